"""The state that the loop's next action follows from, read from a campaign; light enough for every poll of a page."""

import numpy as np

from dal.campaign import CampaignStore
from dal.campaign.view import View
from dal.loop.actions import Action, State, next_action

COVERAGE = "coverage"
"""The strategy of a batch that is chosen without a model, as the first one is."""


def next_step(campaign: CampaignStore) -> Action:
    """Return the action `next_batch` would run next. Read-only; takes no lock."""
    return next_action(state_of(View(campaign)))


def state_of(view: View) -> State:
    """Read a campaign's state, at one moment, as the loop takes it."""
    with view.campaign.database.snapshot():
        now, last = view.position(), view.campaign.rounds.last
        trainable = (
            last is not None and last.strategy != COVERAGE and len(np.unique(view.labels(last.last_answer).codes)) > 1
        )
        return State(now.round, now.step, trainable, now.pending, now.spare, view.verdicts())

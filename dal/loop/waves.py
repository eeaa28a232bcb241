"""Passes by waves in a campaign: which rounds make one, where it begins, and what it carries over.

All of it follows from the campaign's settings, its pool and its rounds: never from the workers or their pace, because
the same campaign asks the same records on one core and on a hundred workers.
"""

from collections.abc import Sequence

import numpy as np

from dal._files import read_npz
from dal.campaign import CampaignStore, Round
from dal.campaign.parts import learner_of
from dal.learners.estimators import kind_of
from dal.pool import Pool
from dal.scan import Carried, Waves
from dal.scan.journal import candidates_from
from dal.scan.plan import seconds_alone
from dal.selection.strategy import Strategy

SECONDS_A_RECORD = 5.0
"""A person takes about so long to label a text or a picture: what is scored meanwhile costs nobody time."""


def waves_of(campaign: CampaignStore, pool: Pool, k: int, strategy: Strategy) -> Waves | None:
    """Return the terms on which the next round scores the pool by waves; None where it scores the whole pool.

    The first round of a pool scores all of it, as does each `full_every`-th one. So do all rounds in which classes have
    quotas: waves end when the best of all are good enough, and tell nothing of the best of a rare class.

    Parameters
    ----------
    campaign : CampaignStore
    pool : Pool
    k : int
        Size of the batch.
    strategy : Strategy
        Of a round with a model.
    """
    wanted = campaign.settings.scanning
    if wanted.scan == "full" or strategy.score == "random" or campaign.settings.balance:
        return None
    past = _scanned(campaign, pool.fingerprint)
    since = next((number for number, each in enumerate(reversed(past)) if each.waves is None), None)
    if since is None or since + 1 >= wanted.full_every:
        return None
    if wanted.scan == "auto" and _seconds(campaign, pool) <= SECONDS_A_RECORD * k:
        return None
    reaches = [each.summary["reach"] for each in past if each.summary and each.summary.get("reach")]
    return Waves(wanted.floor, after=reaches[-1]["after"] if reaches else None)


def _seconds(campaign: CampaignStore, pool: Pool) -> float:
    kind = kind_of(learner_of(campaign).estimator)
    return seconds_alone(pool.n_rows, pool.n_features, len(campaign.settings.classes), kind=kind)


def carried_of(campaign: CampaignStore, current: Round) -> Carried | None:
    """Return the rows that the round before has kept, to be scored again; None where it had no model."""
    before = [each for each in _scanned(campaign, current.pool_fingerprint) if each.number < current.number]
    if not before or before[-1].model is None:
        return None
    kept = candidates_from(read_npz(campaign.rounds.load_scan(before[-1]), "candidates.npz"))
    return Carried(kept.rows, np.asarray(kept.embeddings, dtype=np.float32))


def _scanned(campaign: CampaignStore, fingerprint: str) -> Sequence[Round]:
    return [each for each in campaign.rounds.all() if each.summary and each.pool_fingerprint == fingerprint]

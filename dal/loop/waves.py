"""Passes by waves in a campaign: which rounds make one, where it begins, and what it carries over.

All of it follows from the campaign's settings, its pool and its rounds: never from the workers or their pace, because
the same campaign asks the same records on one core and on a hundred workers.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dal._files import read_npz
from dal.campaign import CampaignStore, Round
from dal.campaign.parts import learner_of
from dal.errors import CampaignError
from dal.learners.estimators import is_committee, kind_of
from dal.learners.learner import BOOTSTRAPS
from dal.pool import Pool
from dal.scan import Carried, Waves
from dal.scan.plan import seconds_alone
from dal.selection.candidates import candidates_from
from dal.selection.strategy import Strategy

_log = logging.getLogger(__name__)

SECONDS_A_RECORD = 5.0
"""A person takes about so long to label a text or a picture: what is scored meanwhile costs nobody time."""


def waves_of(campaign: CampaignStore, pool: Pool, k: int, strategy: Strategy) -> dict[str, Any] | None:
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

    Returns
    -------
    dict or None
        The terms as JSON can hold them, with the number of the round whose candidates are carried over: for
        :func:`taken`.
    """
    wanted = campaign.settings.scanning
    if wanted.scan == "full" or strategy.score == "random" or campaign.settings.balance:
        return None
    past = [each for each in campaign.rounds.all() if each.summary and each.pool_fingerprint == pool.fingerprint]
    if not past or _since_all(past) + 1 >= wanted.full_every:
        return None
    if wanted.scan == "auto" and _seconds(campaign, pool, strategy) <= SECONDS_A_RECORD * k:
        return None
    reaches = [each.summary["reach"] for each in past if each.summary and each.summary.get("reach")]
    before = next((each for each in reversed(past) if _ranked(each)), None)
    if before is not None:
        try:
            _kept(campaign, before)
        except CampaignError as error:
            _log.warning("%s. This round scores the whole pool instead of going on from there.", error)
            return None
    return {
        "floor": wanted.floor,
        "after": reaches[-1]["after"] if reaches else None,
        "carries": None if before is None else before.number,
    }


def _since_all(past: Sequence[Round]) -> int:
    """Count the rounds by waves since one with a model scored the whole pool; since the first where none did."""
    at = next((at for at, each in reversed(list(enumerate(past))) if _ranked(each) and not each.waves), 0)
    return sum(each.waves is not None for each in past[at:])


def _ranked(each: Round) -> bool:
    """Return whether a model has ranked the records that a round keeps."""
    return each.model is not None and Strategy.named(each.strategy).score != "random"


def _seconds(campaign: CampaignStore, pool: Pool, strategy: Strategy) -> float:
    """Estimate how long one process would score the whole pool."""
    estimator = learner_of(campaign).estimator
    asked = BOOTSTRAPS if strategy.committee and not is_committee(estimator) else 1
    n_classes = len(campaign.settings.classes)
    return seconds_alone(pool.n_rows, pool.n_features, n_classes, kind=kind_of(estimator), members=asked)


def taken(campaign: CampaignStore, terms: Mapping[str, Any]) -> tuple[Waves, Carried | None]:
    """Return the terms that a round has frozen, and the rows that it carries over.

    Raises
    ------
    CampaignError
        If the candidates of the round before are lost.
    """
    number = terms["carries"]
    carried = None if number is None else _kept(campaign, campaign.rounds.get(number))
    return Waves(terms["floor"], terms["after"]), carried


def _kept(campaign: CampaignStore, before: Round) -> Carried:
    kept = candidates_from(read_npz(campaign.rounds.load_scan(before), "candidates.npz"))
    return Carried(kept.rows, np.asarray(kept.embeddings, dtype=np.float32))

"""Copies: the near-duplicates of labelled records, where one answer is to stand for its group."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dal.campaign import CampaignStore
from dal.campaign.features import Features
from dal.campaign.parts import learner_of
from dal.campaign.view import View
from dal.compute.workers import Workers
from dal.errors import InputError
from dal.loop.codebook import codebook_of
from dal.scan import Progress, scan
from dal.scan.plan import seconds_alone
from dal.selection.candidates import usable
from dal.selection.distances import Neighbourhood
from dal.selection.familiar import Copies, Familiar
from dal.selection.strategy import Strategy

Rows = npt.NDArray[np.int64]

MOST_COPIES = 100
"""Near-duplicates of one record, by default."""
MOST_RECORDS = 2**16 - 2
"""Labelled records of a pass: their numbers are 2 bytes a row."""
_MOST_NUMBERS = 2**24


@dataclass(frozen=True)
class Group:
    """Near-duplicates of labelled records.

    Attributes
    ----------
    rows : ndarray of int64, shape (n,)
        Ascending; none was asked or answered.
    of : ndarray of int64, shape (n,)
        Row of the labelled record that is nearest to each.
    distance : float
        They are no farther apart.
    full : int
        Labelled records with as many near-duplicates as are listed of one; they may have more.
    """

    rows: Rows
    of: Rows
    distance: float
    full: int


def copies_of(
    campaign: CampaignStore,
    *,
    most: int = MOST_COPIES,
    workers: Workers | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Group:
    """Find the near-duplicates of a campaign's labelled records, by one exact pass over its pool.

    They are within the distance that makes a record familiar to the default strategy. Nothing is stored:
    what an answer stands for changes with the answer.

    Parameters
    ----------
    campaign : CampaignStore
    most : int, default=100
        Near-duplicates of one record that are listed, the nearest ones.
    workers : Workers, optional
        Where the pass runs; by default in this process.
    progress : callable, optional
        Called with the progress of the pass.

    Raises
    ------
    InputError
        If `most` is less than 1, or there are more labelled records than a pass can compare with.
    """
    if most < 1:
        raise InputError(f"`most` must be at least 1, got {most}; pass a number of copies")
    view, settings, workers = View(campaign), campaign.settings, workers or Workers()
    pool, labelled = view.pool, view.labels().rows
    X = Features(view).take(labelled)
    sound = usable(X, missing=True)
    labelled, X = labelled[sound], X[sound]
    room = min(MOST_RECORDS, _MOST_NUMBERS // pool.n_features)
    nothing = Group(labelled[:0], labelled[:0], 0.0, 0)
    if len(labelled) < 2:
        return nothing
    learner, codebook = learner_of(campaign), codebook_of(campaign, pool)[0]
    place = codebook.directions if learner.compares_directions else codebook.embed
    # Equal records are of one group, that of the least row.
    points, first = np.unique(place(X), axis=0, return_index=True)
    if len(points) > room:
        raise InputError(
            f"`campaign` must have at most {room:,} different labelled records of {pool.n_features} features, got"
            f" {len(points):,}; export the labels without copies"
        )
    around = Familiar.to(
        X,
        codebook,
        directions=learner.compares_directions,
        seed=settings.random_state,
        round=0,
        most_numbers=X.size,
    )
    if around is None:
        return nothing
    familiar = Familiar(codebook, around.directions, Neighbourhood(points, around.near.distance))
    found = scan(
        pool,
        None,
        Strategy("random", "top", shortlist=1),
        1,
        view.never_asked(0),
        random_state=settings.random_state,
        client=workers.client_for(
            pool.n_rows, seconds_alone(pool.n_rows, pool.n_features, len(settings.classes), kind=None)
        ),
        progress=progress,
        missing=pool.asks_missing and learner.takes_missing(pool.n_features),
        likeness=Copies(familiar, most),
    ).candidates
    full = int((np.bincount(found.cells, minlength=len(points)) >= most).sum())
    return Group(found.rows, labelled[first[found.cells]], around.near.distance, full)

"""Distributed active learning on very large pools.

The records lie in a chunked Zarr array; Dask workers score them in place, only the best candidates travel, a
coordinator chooses a diverse batch, people label it, the learner is trained again, until more labels no longer pay.

These names are what a campaign needs. The parts it is made of have their own packages: :mod:`dal.evidence.stopping` has
the stopping criteria, :mod:`dal.scan` the pass over a pool, :mod:`dal.selection` the choice of a batch,
:mod:`dal.learners` the learners and models, :mod:`dal.replay` the results of comparisons.
"""

from typing import TYPE_CHECKING

from dal._distribution import __version__ as __version__
from dal._lazy import names_of

if TYPE_CHECKING:
    from dal.campaign import Labelling, Measuring, Scanning, Storage
    from dal.evidence.stopping import MaxLabels
    from dal.loop.batch import Batch
    from dal.loop.campaign import Campaign
    from dal.loop.coordinator import Stopped
    from dal.pool import Pool
    from dal.replay import TestSet, compare, simulate
    from dal.selection.strategy import Strategy
else:
    __getattr__ = names_of(
        __name__,
        {
            "dal.campaign": ("Labelling", "Measuring", "Scanning", "Storage"),
            "dal.evidence.stopping": ("MaxLabels",),
            "dal.loop.batch": ("Batch",),
            "dal.loop.campaign": ("Campaign",),
            "dal.loop.coordinator": ("Stopped",),
            "dal.pool": ("Pool",),
            "dal.replay": ("TestSet", "compare", "simulate"),
            "dal.selection.strategy": ("Strategy",),
        },
    )

__all__ = [
    # the pool
    "Pool",
    # the loop
    "Campaign",
    "Batch",
    "Stopped",
    # its settings
    "Strategy",
    "MaxLabels",
    "Labelling",
    "Storage",
    "Measuring",
    "Scanning",
    # the loop with known answers
    "compare",
    "simulate",
    "TestSet",
]

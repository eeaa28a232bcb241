"""Distributed active learning on very large pools.

The records lie in a chunked Zarr array; Dask workers score them in place, only the best candidates travel, a
coordinator chooses a diverse batch, people label it, the learner is trained again, until more labels no longer pay.
"""

from typing import TYPE_CHECKING

from dal import scan
from dal._distribution import __version__ as __version__
from dal._lazy import names_of

if TYPE_CHECKING:
    from dal.campaign import Answer, Labelling, Measuring, Storage
    from dal.evidence.stopping import (
        ClassificationChange,
        MaxHours,
        MaxLabels,
        MaxRounds,
        OverallUncertainty,
        Plateau,
        PoolExhausted,
        StabilizingPredictions,
        TargetScore,
    )
    from dal.learners.learner import Learner
    from dal.learners.models import Model
    from dal.loop.batch import Batch
    from dal.loop.campaign import Campaign
    from dal.loop.coordinator import Stopped
    from dal.pool import Pool
    from dal.replay import Comparison, Replay, TestSet, compare, simulate
    from dal.scan import Scan
    from dal.selection.batch import choose
    from dal.selection.candidates import Candidates
    from dal.selection.strategy import Strategy
else:
    __getattr__ = names_of(
        __name__,
        {
            "dal.campaign": ("Answer", "Labelling", "Measuring", "Storage"),
            "dal.evidence.stopping": (
                "ClassificationChange",
                "MaxHours",
                "MaxLabels",
                "MaxRounds",
                "OverallUncertainty",
                "Plateau",
                "PoolExhausted",
                "StabilizingPredictions",
                "TargetScore",
            ),
            "dal.learners.learner": ("Learner",),
            "dal.learners.models": ("Model",),
            "dal.loop.batch": ("Batch",),
            "dal.loop.campaign": ("Campaign",),
            "dal.loop.coordinator": ("Stopped",),
            "dal.pool": ("Pool",),
            "dal.replay": ("Comparison", "Replay", "TestSet", "compare", "simulate"),
            "dal.scan": ("Scan",),
            "dal.selection.batch": ("choose",),
            "dal.selection.candidates": ("Candidates",),
            "dal.selection.strategy": ("Strategy",),
        },
    )

__all__ = [
    # the pool and the learner
    "Pool",
    "Learner",
    "Model",
    # the loop
    "Campaign",
    "Labelling",
    "Storage",
    "Measuring",
    "Answer",
    "Batch",
    "Stopped",
    # when it ends
    "MaxLabels",
    "MaxRounds",
    "MaxHours",
    "TargetScore",
    "Plateau",
    "StabilizingPredictions",
    "OverallUncertainty",
    "ClassificationChange",
    "PoolExhausted",
    # its parts
    "Strategy",
    "scan",
    "Scan",
    "Candidates",
    "choose",
    # the loop with a known oracle
    "TestSet",
    "Replay",
    "Comparison",
    "simulate",
    "compare",
]

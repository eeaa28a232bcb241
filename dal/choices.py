"""The names that a user chooses from, in a module that imports nothing: help and completion list them.

What each name means is defined where it is used; tests hold the two together.
"""

from typing import Literal

Vote = Literal["majority", "dawid_skene"]
"""How several answers become a label, see :mod:`dal.evidence.votes`."""

Extent = Literal["auto", "full", "waves"]
"""How much of the pool a round scores, see :mod:`dal.scan.waves`."""

Missing = Literal["refuse", "fill"]
"""Of a chunk that a plain Zarr array does not store: refuse it, or read the array's fill value."""

ENCODINGS = ("float32", "float16", "bfloat16", "int8", "uint8")
"""How a pool stores its features, see :mod:`dal.pool.encodings`."""

AUTO = "auto"
"""In place of an encoding: the narrowest that leaves scores as they are, see :mod:`dal.pool.narrowing`."""

FORMATS = ("csv", "jsonl", "parquet", "prodigy", "label-studio")
"""Formats of files of answers, see :mod:`dal.exchange`."""

STRATEGIES = (
    *("default", "coverage", "power", "weighted_kmeans", "badge", "cluster_margin", "k_center", "stratified"),
    *("class_coverage", "uncertainty_herding", "dropquery", "bait", "typiclust"),
    *("random", "least_confident", "margin", "ratio", "entropy"),
    *("vote_entropy", "bald", "expected_gradient_length", "dropout"),
)
"""Strategies by name, see :meth:`dal.selection.strategy.Strategy.named`."""

PRESETS = ("logistic", "head", "forest", "hgb", "mlp", "sgd")
"""Learners by name, see :meth:`dal.learners.learner.Learner.named`."""

ENCODERS = ("sentences", "onnx")
"""Encoders by name, see :func:`dal.encoders.named.encoder_named`."""

GPU = "GPU"
"""The resource of Dask by which a worker says that it has a GPU: ``dask worker --resources GPU=1``."""

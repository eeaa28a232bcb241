"""Pools that several test modules stand on."""

from pathlib import Path

import numpy as np

from dal.pool import Pool


def three_classes(path: Path) -> tuple[Pool, np.ndarray]:
    """Build a pool of 2,000 records in three clouds; gives it with the code of each record."""
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 3, 2_000)
    X = (2.0 * rng.standard_normal((3, 4))[codes] + rng.standard_normal((2_000, 4))).astype(np.float32)
    return Pool.build(X, path), codes

"""Test records that are drawn from the pool, where the user has none."""

from itertools import islice

import numpy as np
import numpy.typing as npt

from dal.classes import UNLABELLED
from dal.errors import SettingsError
from dal.pool import Pool
from dal.replay.curves import Codes, Rows
from dal.replay.play import TestSet
from dal.selection.candidates import usable
from dal.selection.explore import uniform_rows

MOST_TEST = 5000
TEST_SHARE = 0.2
_TEST_ROUND = 2**31
"""Round of the hash that draws the test records; no campaign reaches it."""


def size_of_test(pool: Pool, codes: Codes) -> int:
    """Count the records that :func:`held_out` draws."""
    return min(MOST_TEST, int(TEST_SHARE * (pool.n_rows - np.count_nonzero(codes == UNLABELLED))))


def held_out(pool: Pool, codes: Codes, *, missing: bool = False) -> tuple[Rows, TestSet]:
    """Draw test records from the pool by hash: a fifth of it, at most 5,000, the same ones for any seed.

    Parameters
    ----------
    pool : Pool
    codes : ndarray of int64, shape (N,)
        Class of each record; -1 where it is not known: such records are not drawn.
    missing : bool, default=False
        Whether the learner takes NaN.

    Returns
    -------
    rows : ndarray of int64
        Ascending; they must never be asked.
    test : TestSet
        Those of them that the learner takes: with `missing`, records with NaN as well.
    """
    count = size_of_test(pool, codes)
    unknown: npt.NDArray[np.int64] = np.flatnonzero(codes == UNLABELLED)
    rows = np.sort(np.fromiter(islice(uniform_rows(pool.n_rows, unknown, 0, _TEST_ROUND), count), np.int64))
    X = pool.take(rows)
    valid = usable(X, missing=missing)
    if not valid.any():
        raise SettingsError(
            f"the pool must have records to test on, got none usable among {count:,} drawn (too few, or NaN in each);"
            " pass your own test set"
        )
    return rows, TestSet(X[valid], codes[rows[valid]])

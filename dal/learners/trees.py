"""Forests and boosted trees as flat arrays, walked by many records at once: bit for bit scikit-learn's predictions.

A record's path through a tree is a chain of data-dependent branches that the CPU mispredicts. Sixteen records side by
side keep it busy, and choose a child by arithmetic instead of a branch. A block of records
meets each tree before the next one does, so that both stay in the core's cache. Leaves that add the same are one row:
a grown forest has a pure leaf for each record that it was fitted on, and as many different rows as classes. On one core
a forest of a hundred trees takes 4 to 5 us a record in this way, and 12 by scikit-learn's own trees.

The walk is compiled by Numba. Without it, scikit-learn predicts by its own trees. Trees that another process laid out
are then walked by NumPy, node by node, in about twice scikit-learn's time. All three give the same bits.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator
from sklearn.ensemble import ExtraTreesClassifier, HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.tree import DecisionTreeClassifier, ExtraTreeClassifier

from dal.learners import _sklearn
from dal.selection.order import row_hash

Floats32 = npt.NDArray[np.float32]
Floats64 = npt.NDArray[np.float64]
Integers = npt.NDArray[np.integer[Any]]

FORESTS = (RandomForestClassifier, ExtraTreesClassifier)
_SINGLE = (DecisionTreeClassifier, ExtraTreeClassifier)

_ABREAST = 16
_BLOCK_BYTES = 512 * 2**10
_FEATURE, _THRESHOLD, _LEFT, _LEAF = range(4)


class _Tree(NamedTuple):
    """One tree as scikit-learn has it; parents stand before their children."""

    feature: Integers
    threshold: Floats64
    left: Integers
    right: Integers
    leaf: npt.NDArray[np.bool_]
    values: Floats64  # of each node, in columns
    missing_left: npt.NDArray[np.bool_]  # where a record goes whose feature is missing


@dataclass(frozen=True, eq=False)
class Trees:
    """A forest, a tree or a boosted model.

    Attributes
    ----------
    nodes : ndarray of shape (n_nodes, 4), uint32
        Feature, threshold (the bits of a float32), left child, and row in `leaves`. The right child follows the left
        one. A leaf is its own left child, and no feature exceeds its threshold.
    roots : ndarray of shape (n_trees,), uint32
    columns : ndarray of shape (n_trees,), uint32
        The first column that a tree adds to.
    leaves : ndarray of shape (n_distinct, width), float64
        The different rows that leaves add.
    start : ndarray of shape (n_columns,), float64
        What is added to.
    n_features : int
    boosted : HistGradientBoostingClassifier or None
        Whose sums are no probabilities yet.
    missing : ndarray of shape (n_nodes,), uint8
        Where a record without the feature goes: 0 to the left child, 1 to the right.
    """

    nodes: npt.NDArray[np.uint32]
    roots: npt.NDArray[np.uint32]
    columns: npt.NDArray[np.uint32]
    leaves: Floats64
    start: Floats64
    n_features: int
    boosted: HistGradientBoostingClassifier | None
    missing: npt.NDArray[np.uint8]

    @classmethod
    def of(cls, estimator: BaseEstimator) -> "Trees | None":
        """Lay out the trees of an estimator.

        Return None if it has none, or some with splits by category, or if Numba is not installed.
        """
        if find_spec("numba") is None:
            return None
        if type(estimator) in (*FORESTS, *_SINGLE) and estimator.n_outputs_ == 1:
            trees = [each.tree_ for each in getattr(estimator, "estimators_", [estimator])]
            return cls._laid_out([_of_forest(tree) for tree in trees], np.zeros(len(estimator.classes_)), estimator)
        if type(estimator) is HistGradientBoostingClassifier and (boosted := _sklearn.boosted(estimator)) is not None:
            categories = any(nodes["is_categorical"].any() for nodes in boosted.trees)
            if not categories and not boosted.preprocessed:
                return cls._laid_out(list(map(_of_boosting, boosted.trees)), boosted.start, estimator)
        return None

    @classmethod
    def _laid_out(cls, trees: Sequence[_Tree], start: Floats64, estimator: BaseEstimator) -> "Trees":
        """Join trees that add to all columns, or, where they are boosted, to one column each in turn."""
        boosted = estimator if isinstance(estimator, HistGradientBoostingClassifier) else None
        turns = 1 if boosted is None else len(start)
        first_node = np.cumsum([0, *(len(tree.leaf) for tree in trees)])
        first_leaf = np.cumsum([0, *(np.count_nonzero(tree.leaf) for tree in trees)])
        missing = np.concatenate([_in_place(tree, ~(tree.missing_left | tree.leaf)) for tree in trees])
        nodes = np.concatenate(
            [_nodes(tree, *firsts) for tree, *firsts in zip(trees, first_node, first_leaf, strict=False)]
        )
        leaves, place = _distinct(np.concatenate([tree.values[tree.leaf] for tree in trees]))
        nodes[:, _LEAF] = place[nodes[:, _LEAF]]  # an inner node has 0 before, and what stands there is never looked at
        return cls(
            nodes,
            first_node[:-1].astype(np.uint32),
            (np.arange(len(trees)) % turns).astype(np.uint32),
            leaves,
            start,
            estimator.n_features_in_,
            boosted,
            missing.astype(np.uint8),
        )

    def predict_proba(self, X: npt.NDArray[Any]) -> Floats64 | None:
        """Compute the estimator's ``predict_proba``, bit for bit.

        Parameters
        ----------
        X : ndarray of shape (n_records, n_features)

        Returns
        -------
        ndarray of shape (n_records, n_classes) or None
            None if records have another width, infinite values, or values that a boosted model would compare in double
            precision: the estimator itself handles or refuses these.
        """
        # The walk looks at no bounds: a record that is too short would be read past its end.
        if X.shape[1] != self.n_features or (self.boosted is not None and X.dtype != np.float32):
            return None
        records: Floats32 = np.ascontiguousarray(X, dtype=np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            total = records.sum()  # instead of a mask of all values, unless it overflows
        missing = None
        if not np.isfinite(total) and not np.isfinite(records).all():
            if np.isinf(records).any():
                return None
            missing = self.missing
        sums = np.tile(self.start, (len(records), 1))
        block = max(_ABREAST, _BLOCK_BYTES // (4 * records.shape[1]))
        thresholds = self.nodes.view(np.float32)
        _walker()(records, self.nodes, thresholds, missing, self.roots, self.columns, self.leaves, block, sums)
        if self.boosted is None:
            # In one order, which a forest's threads would not keep.
            return sums / len(self.roots)
        return _sklearn.probabilities(self.boosted, sums)


def _of_forest(tree: Any) -> _Tree:  # noqa: ANN401 - compiled, without types
    leaf = tree.children_left < 0
    missing_left = tree.missing_go_to_left.astype(bool)
    return _Tree(
        tree.feature, tree.threshold, tree.children_left, tree.children_right, leaf, tree.value[:, 0, :], missing_left
    )


def _of_boosting(nodes: npt.NDArray[Any]) -> _Tree:
    feature, threshold, left, right = (nodes[name] for name in ("feature_idx", "num_threshold", "left", "right"))
    leaf, missing_left = nodes["is_leaf"].astype(bool), nodes["missing_go_to_left"].astype(bool)
    return _Tree(feature, threshold, left, right, leaf, nodes["value"][:, None], missing_left)


def _nodes(tree: _Tree, first_node: int, first_leaf: int) -> npt.NDArray[np.uint32]:
    """Order the nodes of a tree so that siblings are neighbours."""
    inner, leaves = np.flatnonzero(~tree.leaf), np.flatnonzero(tree.leaf)
    place = first_node + _places(tree)
    nodes = np.zeros((len(tree.leaf), 4), dtype=np.uint32)
    own = place - first_node
    nodes[own[inner], _FEATURE] = tree.feature[inner]
    nodes[own[inner], _LEFT] = place[tree.left[inner]]
    nodes[own[leaves], _LEFT] = place[leaves]
    nodes[own[leaves], _LEAF] = first_leaf + np.arange(len(leaves))
    thresholds = nodes.view(np.float32)
    thresholds[own[inner], _THRESHOLD] = _largest_float32_up_to(tree.threshold[inner])
    thresholds[own[leaves], _THRESHOLD] = np.inf
    return nodes


def _places(tree: _Tree) -> Integers:
    """Return the place of each node among those of its tree."""
    inner = np.flatnonzero(~tree.leaf)
    place = np.zeros(len(tree.leaf), dtype=np.int64)
    place[tree.left[inner]] = 1 + 2 * np.arange(len(inner))
    place[tree.right[inner]] = 2 + 2 * np.arange(len(inner))
    return place


def _in_place(tree: _Tree, values: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    placed = np.empty_like(values)
    placed[_places(tree)] = values
    return placed


def _distinct(rows: Floats64) -> tuple[Floats64, Integers]:
    """Return the rows that differ in any bit, each once, and the place of every row among them.

    Examples
    --------
    >>> rows, place = _distinct(np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]))
    >>> rows[place].tolist()
    [[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]
    """
    bits = np.ascontiguousarray(rows).view(np.uint64)
    # One number a row: whole rows take many times as long to sort. The low half of 1.0 is zero, hence the shift.
    factors = row_hash(np.arange(rows.shape[1]), 0, 0) | np.uint64(1)
    sums = ((bits ^ (bits >> np.uint64(32))) * factors).sum(axis=1)
    _, first, place = np.unique(sums, return_index=True, return_inverse=True)
    if not np.array_equal(bits[first[place]], bits):  # two rows have the same sum, by a chance of next to nothing
        return rows, np.arange(len(rows))
    return rows[first], place


def _largest_float32_up_to(values: Floats64) -> Floats32:
    """Round down: a float32 is above the result exactly where it is above the value.

    Examples
    --------
    >>> _largest_float32_up_to(np.array([0.5, 0.1])).astype(float).tolist()
    [0.5, 0.09999999403953552]
    """
    with np.errstate(over="ignore"):
        rounded = values.astype(np.float32)
    above = rounded > values
    rounded[above] = np.nextafter(rounded[above], np.float32(-np.inf))
    return rounded


@cache
def _walker() -> Any:  # noqa: ANN401 - compiled
    try:
        from numba import njit  # takes a fifth of a second, and only trees need it
    except ModuleNotFoundError:  # on a worker, where the coordinator has it
        return _step_by_step

    try:
        # Compiling takes a second; on disk, next to this file or in the user's cache, it is kept for later processes.
        return njit(nogil=True, cache=True)(_walk)
    except RuntimeError:  # neither place can be written to
        return njit(nogil=True)(_walk)


def _walk(
    X: Floats32,
    nodes: npt.NDArray[np.uint32],
    thresholds: Floats32,
    missing: npt.NDArray[np.uint8] | None,
    roots: npt.NDArray[np.uint32],
    columns: npt.NDArray[np.uint32],
    leaves: Floats64,
    block: int,
    sums: Floats64,
) -> None:
    # Unsigned, all of it: for a signed index, Numba also looks whether it counts from the end (a fifth of the time).
    at, row = np.empty(_ABREAST, np.uint64), np.empty(_ABREAST, np.uint64)
    feature, threshold = np.uint64(_FEATURE), np.uint64(_THRESHOLD)
    left, leaf = np.uint64(_LEFT), np.uint64(_LEAF)
    for first in range(0, len(X), block):
        stop = min(first + block, len(X))
        for tree in range(len(roots)):
            for start in range(first, stop, _ABREAST):
                for lane in range(_ABREAST):
                    at[lane] = roots[tree]
                    row[lane] = min(start + lane, stop - 1)  # past the end, the last one walks along
                moved = np.uint64(1)
                while moved:
                    moved = np.uint64(0)
                    for lane in range(_ABREAST):
                        here = at[lane]
                        value = X[row[lane], np.uint64(nodes[here, feature])]
                        if missing is None:  # known when this is compiled
                            right = np.uint64(value > thresholds[here, threshold])
                        elif value != value:
                            right = np.uint64(missing[here])
                        else:
                            right = np.uint64(value > thresholds[here, threshold])
                        there = np.uint64(nodes[here, left]) + right
                        moved |= here ^ there
                        at[lane] = there
                for lane in range(min(_ABREAST, stop - start)):
                    of_leaf, record = np.uint64(nodes[at[lane], leaf]), row[lane]
                    for column in range(leaves.shape[1]):
                        sums[record, np.uint64(columns[tree]) + np.uint64(column)] += leaves[of_leaf, column]


def _step_by_step(
    X: Floats32,
    nodes: npt.NDArray[np.uint32],
    thresholds: Floats32,
    missing: npt.NDArray[np.uint8] | None,
    roots: npt.NDArray[np.uint32],
    columns: npt.NDArray[np.uint32],
    leaves: Floats64,
    block: int,
    sums: Floats64,
) -> None:
    """Walk as `_walk` does, all records of a block at once; a leaf is added in the same order."""
    feature, left, leaf = (nodes[:, column].astype(np.intp) for column in (_FEATURE, _LEFT, _LEAF))
    threshold, width = np.ascontiguousarray(thresholds[:, _THRESHOLD]), leaves.shape[1]
    for first in range(0, len(X), block):
        values, out = X[first : first + block], sums[first : first + block]
        record = np.arange(len(values))
        for root, column in zip(roots.tolist(), columns.tolist(), strict=True):
            there = np.full(len(values), root, np.intp)
            while True:
                here = there
                asked = values[record, feature[here]]
                right = asked > threshold[here]
                if missing is not None:
                    right = np.where(np.isnan(asked), missing[here] == 1, right)
                there = left[here] + right
                if np.array_equal(here, there):  # all are in leaves
                    break
            out[:, column : column + width] += leaves[leaf[there]]

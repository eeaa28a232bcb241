"""Scores: the worth of asking a record, from what the learner predicts for it.

Every score is a float per record, **higher = ask first**, in [0, 1], and never NaN. The functions take probabilities
class-major, ``(n_classes, n_records)``: each step then runs over contiguous memory, which is what makes a score cheap
beside the learner itself. There are five doors, by what is known of the records: :func:`of_probabilities`,
:func:`of_decisions`, :func:`of_committee`, :func:`of_gradients` and :func:`of_dropout`. Each gives the predicted class
and its confidence along with the score: all three come from the same numbers.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from scipy import sparse

from dal import plugins
from dal.errors import LearnerError, SettingsError

Floats = npt.NDArray[np.floating]


class Scored(NamedTuple):
    """The scores of a block of records, with their predictions.

    Attributes
    ----------
    score : ndarray of shape (n_records,)
        Higher = ask first.
    predicted : ndarray of shape (n_records,), int64
        Column of the most probable class; the first one among equals.
    confidence : ndarray of shape (n_records,)
        Probability of that class.
    """

    score: Floats
    predicted: npt.NDArray[np.int64]
    confidence: Floats


class TopTwo(NamedTuple):
    """The two largest entries of every column, and where the largest stands."""

    first: Floats
    second: Floats
    position: npt.NDArray[np.int64]


def top_two(values: Floats) -> TopTwo:
    """Find the two largest entries of each column.

    Parameters
    ----------
    values : ndarray of shape (n_classes, n_records)
        At least two classes.

    Returns
    -------
    TopTwo
        The first position wins among equals, as with ``argmax``.

    Examples
    --------
    >>> first, second, position = top_two(np.array([[0.2, 0.5], [0.7, 0.5], [0.1, 0.0]]))
    >>> first.tolist(), second.tolist(), position.tolist()
    ([0.7, 0.5], [0.2, 0.5], [1, 0])
    """
    first = values[0].copy()
    second = np.full_like(first, -np.inf)
    # The smallest type that holds a column's number: a fifth of the time of a masked copy of wider ones.
    small = np.min_scalar_type(len(values) - 1)
    position = np.zeros(first.shape, dtype=small)
    for column, row in enumerate(values[1:], start=1):
        np.maximum(second, np.minimum(first, row), out=second)
        np.maximum(position, np.multiply(row > first, column, dtype=small), out=position)
        np.maximum(first, row, out=first)
    return TopTwo(first, second, position.astype(np.int64))


def _score(name: str, p: Floats, top: TopTwo) -> Floats:
    n_classes = p.shape[0]
    score: Floats
    match name:
        case "least_confident":
            score = (1.0 - top.first) * (n_classes / (n_classes - 1))
        case "margin":
            score = 1.0 - (top.first - top.second)
        case "ratio":
            score = top.second / top.first
        case "entropy":
            score = _entropy(p) / np.log(n_classes)
        case _:
            raise SettingsError(f"`name` must be a score of one model, got {name!r}.")
    return score


def _entropy(p: Floats) -> Floats:
    """Compute the Shannon entropy of each column, in nats."""
    # 0 ln 0 is 0; the smallest normal number keeps the logarithm finite without moving any other value.
    logarithm = np.log(np.maximum(p, np.finfo(p.dtype).tiny))
    entropy: Floats = -np.einsum("cn,cn->n", p, logarithm)
    return entropy


OF_ONE_MODEL: tuple[str, ...] = ("least_confident", "margin", "ratio", "entropy")
"""Scores from the probabilities, or decision values, of one model."""
OF_COMMITTEE: tuple[str, ...] = ("vote_entropy", "bald")
"""Scores from the probabilities of each member of a committee."""
OF_GRADIENTS = "expected_gradient_length"
"""The score from the probabilities and inputs of a linear softmax layer."""
OF_DROPOUT = "dropout"
"""The score from the predictions of one model under masks of the features."""
NAMES: tuple[str, ...] = ("random", *OF_ONE_MODEL, *OF_COMMITTEE, OF_GRADIENTS, OF_DROPOUT)
"""Every score by name. ``random`` looks at no prediction: its value is a hash of the row."""


SLOT = plugins.Slot("strategy.score", "dal.scores", NAMES)
"""Where scores of one's own are found."""
TAKES = ("probabilities", "committee", "records")


class Score(Protocol):
    """A score of one's own: a function of class probabilities that returns how much each record is worth asking.

    The value of a record depends on nothing but the record and the model: records are scored in blocks of any size, by
    any worker. It is finite, and higher is asked first. Selectors that weigh take what is below 0 as 0.

    An attribute `takes` says what the score is called with: ``"probabilities"`` (the default), an array (n, C);
    ``"committee"``, an iterable of such arrays, one a member; ``"records"``, the features (n, d) and the
    :class:`dal.learners.models.Model`.

    See Also
    --------
    dal.testing.ScoreContract : the tests to subclass for a score of one's own.

    Examples
    --------
    >>> def doubt(probabilities):
    ...     return 1 - probabilities.max(axis=1)
    >>> doubt(np.array([[0.5, 0.5], [1.0, 0.0]])).tolist()
    [0.5, 0.0]

    >>> class Disagreement:
    ...     takes = "committee"
    ...
    ...     def __call__(self, members):
    ...         return np.stack(list(members)).var(axis=0).sum(axis=1)
    >>> Disagreement()([np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]])]).tolist()
    [0.5]
    """

    def __call__(self, probabilities: Any, /) -> Floats:  # noqa: ANN401 - as `takes` says
        """Return the score of each record, (n,)."""


def resolved(score: "str | Score | plugins.Carried") -> "str | plugins.Carried":
    """Return a score as scans use it: the name of a built-in one, or one of one's own with its name.

    Raises
    ------
    SettingsError
        If there is no such score, or it cannot be called as one.
    """
    if isinstance(score, plugins.Carried) or (isinstance(score, str) and score in NAMES):
        return score
    found: Any = plugins.find(score, SLOT) if isinstance(score, str) else score
    if isinstance(found, type):
        found = found()
    if not callable(found) or getattr(found, "takes", TAKES[0]) not in TAKES:
        raise SettingsError(
            f"`strategy.score` must be callable and `takes` one of {', '.join(TAKES)}, got {score!r}; see"
            " dal.scores.Score."
        )
    return plugins.Carried.of(found, SLOT)


def takes_committee(score: "str | plugins.Carried") -> bool:
    """Return whether a score asks each member of a committee."""
    if isinstance(score, str):
        return score in OF_COMMITTEE
    return bool(getattr(score.part, "takes", TAKES[0]) == "committee")


def of_own(
    score: plugins.Carried,
    probabilities: Floats,
    committee: Callable[[], Iterable[Floats]],
    records: Callable[[], tuple[Any, Any]],
) -> Scored:
    """Score records by a score of one's own.

    Parameters
    ----------
    score : Carried
    probabilities : ndarray of shape (n_records, n_classes)
    committee, records : callable
        Give what a score is called with that takes these.

    Raises
    ------
    LearnerError
        If it returns another shape, or a value that is not finite for a record that the model predicts.
    """
    top = top_two(np.ascontiguousarray(probabilities.T))
    predicted = np.isfinite(probabilities).all(axis=1)
    takes = getattr(score.part, "takes", TAKES[0])
    try:
        given = (committee(),) if takes == "committee" else records() if takes == "records" else (probabilities,)
        values = np.array(score.part(*given), dtype=np.float64)
    except LearnerError:
        raise
    except Exception as error:  # anybody's code
        raise LearnerError(f"`{score.name}` must score {len(predicted):,} records, got {error!r}; mend it.") from error
    if values.shape != predicted.shape:
        raise LearnerError(
            f"`{score.name}` must return one value a record, shape {predicted.shape}, got {values.shape}; mend it."
        )
    if bad := np.count_nonzero(~np.isfinite(values[predicted])):
        raise LearnerError(
            f"`{score.name}` must return finite values, got {bad:,} of {len(values):,} that are not; mend it."
        )
    values[~predicted] = np.nan
    return Scored(values, top.position, top.first)


def of_probabilities(name: str, probabilities: Floats) -> Scored:
    r"""Score records from their class probabilities.

    Parameters
    ----------
    name : str
        With :math:`p_{(1)} \ge p_{(2)}` the two largest of C probabilities:

        * ``least_confident``: :math:`(1 - p_{(1)})\,C/(C-1)` (Lewis and Gale, 1994);
        * ``margin``: :math:`1 - (p_{(1)} - p_{(2)})` (Scheffer et al., 2001);
        * ``ratio``: :math:`p_{(2)} / p_{(1)}`;
        * ``entropy``: :math:`-\sum_c p_c \ln p_c / \ln C` (Shannon, 1948).

        For two classes all four order the records alike.
    probabilities : ndarray of shape (n_records, n_classes)
        Rows sum to one; at least two classes.

    Returns
    -------
    Scored
        In the floating type of `probabilities`.

    Examples
    --------
    >>> scored = of_probabilities("margin", np.array([[0.5, 0.25, 0.25], [0.125, 0.75, 0.125]]))
    >>> scored.score.tolist(), scored.predicted.tolist(), scored.confidence.tolist()
    ([0.75, 0.375], [0, 1], [0.5, 0.75])
    """
    p = np.ascontiguousarray(probabilities.T)
    top = top_two(p)
    return Scored(_score(name, p, top), top.position, top.first)


def of_decisions(name: str, decisions: Floats, n_classes: int) -> Scored:
    r"""Score records from the decision values of a softmax model, without forming its probabilities.

    With z the decision values, :math:`p_c = e^{z_c - z_{(1)}} / \sum_j e^{z_j - z_{(1)}}`, so the margin is
    :math:`1 - (1 - e^{z_{(2)} - z_{(1)}}) / \sum_j e^{z_j - z_{(1)}}`: one exponential an entry and no division of the
    whole matrix. Equal to :func:`of_probabilities` on the softmax within rounding.

    Parameters
    ----------
    name : str
        As in :func:`of_probabilities`.
    decisions : ndarray of shape (n_columns, n_records)
        Class-major. One column is a binary model: its value is the log odds of the second class.
    n_classes : int
        Classes in all. Those without a column have probability zero; they count in the normalisation of
        ``least_confident`` and ``entropy``.

    Returns
    -------
    Scored
        ``predicted`` is a position among the columns (0 or 1 for a binary model). A record with a decision value that
        is not finite has a confidence that is not finite, if all its values are such, as those of a record with a NaN
        or infinite feature are.

    Examples
    --------
    >>> z = np.log(np.array([[0.5, 0.125], [0.25, 0.75], [0.25, 0.125]]))
    >>> of_decisions("margin", z, 3).score.round(6).tolist()
    [0.75, 0.375]
    """
    if decisions.shape[0] == 1:
        # Zero times the value, not zero: one that is not finite must not look like a sure prediction.
        decisions = np.concatenate([0.0 * decisions, decisions])
    z1, z2, position = top_two(decisions)
    shifted = decisions - z1
    odds = np.exp(shifted)
    total = odds.sum(axis=0)
    confidence = 1.0 / total
    score: Floats
    if name == "margin":
        score = 1.0 - (1.0 - np.exp(z2 - z1)) * confidence
    elif name == "ratio":
        score = np.exp(z2 - z1)
    elif name == "least_confident":
        score = (1.0 - confidence) * (n_classes / (n_classes - 1))
    elif name == "entropy":
        score = (np.log(total) - np.einsum("cn,cn->n", odds, shifted) * confidence) / np.log(n_classes)
    else:
        raise SettingsError(f"`name` must be a score of decision values, got {name!r}.")
    return Scored(score, position, confidence)


def of_committee(name: str, members: Iterable[Floats]) -> Scored:
    r"""Score records from the class probabilities of a committee, one member after another.

    Two sums are kept and no member's probabilities: memory is O(n_records n_classes) for any number of members.

    Parameters
    ----------
    name : str
        With :math:`p^{(j)}` the probabilities of member j of m, :math:`\bar p` their mean, and :math:`V_c` the members
        whose most probable class is c (the first among equals):

        * ``vote_entropy``: :math:`-\sum_c (V_c/m) \ln(V_c/m) / \ln C` (query by committee; Dagan and Engelson, 1995);
        * ``bald``: :math:`(H(\bar p) - \frac{1}{m}\sum_j H(p^{(j)})) / \ln C`, H being the entropy: what the label
          would tell of which member is right (Houlsby et al., 2011), and the same as the mean Kullback-Leibler
          divergence of the members from their consensus (McCallum and Nigam, 1998).
    members : iterable of ndarray of shape (n_records, n_classes)
        At least one; rows sum to one.

    Returns
    -------
    Scored
        Predicted class and confidence are those of the mean.

    Examples
    --------
    >>> sure, other = np.array([[1.0, 0.0], [1.0, 0.0]]), np.array([[1.0, 0.0], [0.0, 1.0]])
    >>> of_committee("bald", [sure, other]).score.tolist()
    [0.0, 1.0]
    """
    if name not in OF_COMMITTEE:
        raise SettingsError(f"`name` must be a score of a committee, got {name!r}.")
    sums: tuple[Floats, Floats] | None = None
    count = 0
    for member in members:
        count += 1
        p = np.ascontiguousarray(member.T, dtype=np.float64)
        said = _votes(p) if name == "vote_entropy" else _entropy(p)
        sums = (p, said) if sums is None else (sums[0] + p, sums[1] + said)
    if sums is None:
        raise ValueError("a committee has at least one member")
    mean, said = sums[0] / count, sums[1] / count
    # Rounding may put a disagreement of nothing below zero.
    disagreement = _entropy(said) if name == "vote_entropy" else np.maximum(_entropy(mean) - said, 0.0)
    top = top_two(mean)
    return Scored(disagreement / np.log(len(mean)), top.position, top.first)


def _votes(p: Floats) -> Floats:
    votes = np.zeros_like(p)
    votes[top_two(p).position, np.arange(p.shape[1])] = 1.0
    return votes


def of_gradients(probabilities: Floats, inputs: Any) -> Scored:  # noqa: ANN401 - dense or sparse
    r"""Score records by how much their label is expected to move a linear softmax layer.

    The gradient of the log loss in the layer's weights and intercepts, were c the label, is
    :math:`(p - e_c) \otimes (h, 1)`, so its expected length (EGL; Settles et al., 2008) is

    .. math:: g = \sqrt{\lVert h \rVert^2 + 1} \; \sum_c p_c \lVert p - e_c \rVert,
              \quad \lVert p - e_c \rVert^2 = \lVert p \rVert^2 - 2 p_c + 1

    in closed form. It has no upper bound; the score is g / (1 + g), which orders the records alike.

    Parameters
    ----------
    probabilities : ndarray of shape (n_records, n_classes)
    inputs : ndarray or sparse array of shape (n_records, n_inputs)
        What goes into the layer, h.

    Examples
    --------
    >>> of_gradients(np.array([[0.5, 0.5], [1.0, 0.0]]), np.array([[0.0], [3.0]])).score.round(6).tolist()
    [0.414214, 0.0]
    """
    p = np.ascontiguousarray(probabilities.T, dtype=np.float64)
    if sparse.issparse(inputs):
        squared = np.asarray(inputs.multiply(inputs).sum(axis=1), dtype=np.float64).ravel()
    else:
        h = np.asarray(inputs, dtype=np.float64)
        squared = np.einsum("nd,nd->n", h, h)
    # At p = e_c rounding may leave less than nothing.
    distance = np.sqrt(np.maximum(np.einsum("cn,cn->n", p, p) - 2.0 * p + 1.0, 0.0))
    length = np.sqrt(squared + 1.0) * np.einsum("cn,cn->n", p, distance)
    top = top_two(p)
    return Scored(length / (1.0 + length), top.position, top.first)


def of_dropout(scored: Scored, masked: Iterable[npt.NDArray[np.int64]]) -> Scored:
    r"""Score records by how often dropout of their features changes the prediction (DropQuery; Gupte et al. 2024).

    1 where more than half of the m passes predict another class than the pass without dropout, so that all of these tie
    and a hash draws among them. Otherwise :math:`(c + s) / (m + 1)`, with c the passes that do and s the margin score.

    Parameters
    ----------
    scored : Scored
        By margin, without dropout.
    masked : iterable of ndarray of shape (n_records,), int64
        Predicted columns of each pass.

    Examples
    --------
    >>> plain = Scored(np.array([0.5, 0.5]), np.array([0, 1]), np.array([0.7, 0.7]))
    >>> of_dropout(plain, [np.array([1, 1]), np.array([2, 0]), np.array([0, 1])]).score.tolist()
    [1.0, 0.375]
    """
    changes, passes = np.zeros(len(scored.score), dtype=np.int64), 0
    for predicted in masked:
        changes += predicted != scored.predicted
        passes += 1
    graded = (changes + np.clip(scored.score, 0.0, 1.0)) / (passes + 1)
    # What the model cannot predict has a score that is not finite, and keeps it.
    return scored._replace(score=np.where((2 * changes > passes) & np.isfinite(scored.score), 1.0, graded))

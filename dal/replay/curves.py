"""Replays as values: learning curves, their means over the seeds, and what they cost in labels."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import t as student_t

Rows = npt.NDArray[np.int64]
Codes = npt.NDArray[np.int64]

NO_CLASS = 255
"""In a view: no learner yet or none that takes the record, or a class beyond the 255 that a byte can name."""


@dataclass(frozen=True)
class Replay:
    """One campaign, played against an oracle.

    Attributes
    ----------
    strategy : str
    seed : int
    labels : tuple of int
        Labels known at each point of the learning curve, the first batch first.
    accuracy : tuple of float
        Of a learner fitted on just these labels, on the test set.
    batches : tuple of ndarray
        Rows asked in each round.
    scores : tuple of ndarray of float32
        How much each of them was worth asking; NaN where the strategy gives no score.
    predicted : tuple of ndarray of int64
        What the model that chose them took each for; -1 where there was no model.
    views : tuple of ndarray of shape (n, 2), uint8
        What the learner of each point of the curve thinks of the records that were watched: the class (255 where there
        is no learner yet), and its probability in 255ths.
    """

    strategy: str
    seed: int
    labels: tuple[int, ...]
    accuracy: tuple[float, ...]
    batches: tuple[Rows, ...]
    scores: tuple[npt.NDArray[np.float32], ...] = ()
    predicted: tuple[Codes, ...] = ()
    views: tuple[npt.NDArray[np.uint8], ...] = ()

    @property
    def area(self) -> float:
        """Mean accuracy over the labels asked: the area under the learning curve, divided by its width."""
        if len(self.labels) < 2:
            return self.accuracy[0]
        return float(np.trapezoid(self.accuracy, self.labels) / (self.labels[-1] - self.labels[0]))

    def labels_to_reach(self, accuracy: float) -> float | None:
        """Return the labels at which the curve first reaches an accuracy; None if it never does.

        The curve is a straight line between its points.

        Examples
        --------
        >>> replay = Replay("margin", 0, (10, 20, 30), (0.5, 0.7, 0.9), ())
        >>> round(replay.labels_to_reach(0.8), 6), replay.labels_to_reach(0.95)
        (25.0, None)
        """
        for index, reached in enumerate(self.accuracy):
            if reached >= accuracy:
                if index == 0:
                    return float(self.labels[0])
                before, low = self.labels[index - 1], self.accuracy[index - 1]
                return before + (self.labels[index] - before) * (accuracy - low) / (reached - low)
        return None


@dataclass(frozen=True)
class Needed:
    """The labels that an accuracy costs.

    Attributes
    ----------
    labels : float or None
        Mean over the seeds; None where one of them never got there.
    reached, seeds : int
        In how many of the seeds the accuracy was reached.
    difference : float or None
        Mean difference to the other strategy, paired by seed; negative is fewer. None where one of the two never got
        there in some seed.
    half_width : float or None
        Of the 95 % interval of the difference; None where there are fewer than two pairs.
    """

    labels: float | None
    reached: int
    seeds: int
    difference: float | None
    half_width: float | None


@dataclass(frozen=True)
class Comparison:
    """Replays of several strategies on one pool, several seeds each."""

    replays: tuple[Replay, ...]

    def of(self, strategy: str) -> list[Replay]:
        """Return the replays of one strategy, sorted by seed."""
        return sorted((r for r in self.replays if r.strategy == strategy), key=lambda r: r.seed)

    @property
    def strategies(self) -> list[str]:
        """The strategies, in the order in which they were given."""
        return list(dict.fromkeys(replay.strategy for replay in self.replays))

    def band(self, strategy: str) -> tuple[Replay, tuple[float, ...], tuple[float, ...]]:
        """Return the mean curve of a strategy, and the ends of its 95 % interval (Student's t over the seeds).

        The interval is that of the mean, cut to [0, 1]. Its ends are the curve itself where there is a single seed:
        one seed is no evidence of how another would have gone.
        """
        mean = self.mean(strategy)
        curves = np.array([replay.accuracy[: len(mean.labels)] for replay in self.of(strategy)])
        half = _half_width(curves)
        low, high = np.clip(np.array(mean.accuracy) - half, 0, 1), np.clip(np.array(mean.accuracy) + half, 0, 1)
        return mean, tuple(low.tolist()), tuple(high.tolist())

    def reached_by_all(self, strategy: str) -> float:
        """Return the best accuracy that a strategy reached in every seed."""
        return min(max(replay.accuracy) for replay in self.of(strategy))

    def needed(self, strategy: str, accuracy: float, against: str | None = None) -> "Needed":
        """Count the labels that a strategy needs to reach an accuracy, and their difference to another strategy's.

        Parameters
        ----------
        strategy : str
        accuracy : float
        against : str, optional
            The strategy to compare with, seed by seed.
        """
        reached = {replay.seed: replay.labels_to_reach(accuracy) for replay in self.of(strategy)}
        others = {r.seed: r.labels_to_reach(accuracy) for r in self.of(against)} if against is not None else {}
        known = [labels for labels in reached.values() if labels is not None]
        pairs = [(labels, others[seed]) for seed, labels in reached.items() if seed in others]
        differences = [one - other for one, other in pairs if one is not None and other is not None]
        # Seeds in which one of the two never got there are the ones in which they differ most: an interval over the
        # others would be a lie.
        complete = bool(pairs) and len(differences) == len(pairs)
        half = _half_width(np.array(differences)[:, None])[0] if complete and len(differences) > 1 else None
        return Needed(
            labels=float(np.mean(known)) if len(known) == len(reached) and known else None,
            reached=len(known),
            seeds=len(reached),
            difference=float(np.mean(differences)) if complete else None,
            half_width=None if half is None else float(half),
        )

    def labels_to_reach(self, strategy: str, accuracy: float) -> float | None:
        """Return the labels at which the mean curve of a strategy first reaches an accuracy; None if it never does."""
        return self.mean(strategy).labels_to_reach(accuracy)

    def mean(self, strategy: str) -> Replay:
        """Return the mean over the seeds of the curves of a strategy."""
        replays = self.of(strategy)
        points = min(len(replay.labels) for replay in replays)
        labels = np.mean([replay.labels[:points] for replay in replays], axis=0).round().astype(int)
        accuracy = np.mean([replay.accuracy[:points] for replay in replays], axis=0)
        return Replay(strategy, -1, tuple(labels.tolist()), tuple(accuracy.tolist()), ())


def _half_width(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the half-width of the 95 % interval of the mean over the first axis; zero where there is one value."""
    n = len(values)
    if n < 2:
        return np.zeros(values.shape[1:])
    width: npt.NDArray[np.float64] = student_t.ppf(0.975, n - 1) * values.std(axis=0, ddof=1) / np.sqrt(n)
    return width


def saved_labels(comparison: Comparison, strategy: str, against: str = "random") -> Mapping[str, float] | None:
    """Compute the labels that a strategy saves in reaching the accuracy that another one reached at its end.

    Returns
    -------
    mapping or None
        ``accuracy``, ``labels``, ``labels_against``, ``share`` saved; None if the strategy never got there.
    """
    last = comparison.mean(against)
    needed = comparison.labels_to_reach(strategy, last.accuracy[-1])
    if needed is None:
        return None
    spent = comparison.labels_to_reach(against, last.accuracy[-1]) or last.labels[-1]
    return {"accuracy": last.accuracy[-1], "labels": needed, "labels_against": spent, "share": 1 - needed / spent}

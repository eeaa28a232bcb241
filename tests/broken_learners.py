"""Learners that misbehave on a record whose first feature is above 100; workers import them by name."""

import os
import threading
import time
from pathlib import Path

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from threadpoolctl import threadpool_info

POISON = 1000.0
SLOWING = "DAL_TEST_SLOWING"
"""Environment variable: path of a file."""


class Steady(ClassifierMixin, BaseEstimator):
    """Scores by the second feature, as slowly as it is told."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds

    def fit(self, X: np.ndarray, y: np.ndarray) -> "Steady":
        self.classes_ = np.unique(y)
        self.n_features_in_ = X.shape[1]
        return self

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        time.sleep(self.seconds)  # stands for a learner that takes its time
        if (X[:, 0] > POISON / 2).any():
            self.poisoned()
        p = 1 / (1 + np.exp(-X[:, 1].astype(np.float64)))
        return self.shaped(np.stack([1 - p, p], axis=1))

    def poisoned(self) -> None:
        pass

    def shaped(self, p: np.ndarray) -> np.ndarray:
        return p


class Slowed(Steady):
    """Takes its time while the file that the environment names is there: a test ends the slow part of a scan."""

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        if (file := os.environ.get(SLOWING)) is None or not Path(file).exists():
            return Steady().predict_proba(X)
        return super().predict_proba(X)


class Raises(Steady):
    def poisoned(self) -> None:
        raise ValueError("cannot digest this record")


class WantsOneThread(Steady):
    """Refuses to predict where linear algebra may use more than one thread."""

    def shaped(self, p: np.ndarray) -> np.ndarray:
        threads = {library["prefix"]: library["num_threads"] for library in threadpool_info()}
        if set(threads.values()) != {1}:
            raise ValueError(f"threads: {threads}")
        return p


class KillsItsWorker(Steady):
    def poisoned(self) -> None:
        os._exit(1)


class Gated(Steady):
    """Writes a line for each tile, and waits from the fifth on until a gate is open."""

    FREE = 5

    def __init__(self, log: str = "", gate: str = "") -> None:
        super().__init__()
        self.log, self.gate = log, gate

    def shaped(self, p: np.ndarray) -> np.ndarray:
        if self.log and len(p) == 64:  # a tile, and no check of the learner
            with Path(self.log).open("a") as file:
                file.write("span\n")
            while Path(self.log).read_text().count("span") >= self.FREE and not Path(self.gate).exists():
                time.sleep(0.01)
        return p


class Halts(Steady):
    """Writes a line for each tile, and at the poisoned record, once, its process id; there it waits for its end."""

    def __init__(self, log: str = "") -> None:
        super().__init__()
        self.log = log

    def poisoned(self) -> None:
        log = Path(self.log)
        if "halted" not in log.read_text():
            _append(log, f"halted {os.getpid()}")
            threading.Event().wait()

    def shaped(self, p: np.ndarray) -> np.ndarray:
        if self.log:
            _append(Path(self.log), f"scored {len(p)}")
        return p


def _append(log: Path, line: str) -> None:
    with log.open("a") as file:
        file.write(f"{line}\n")


class ReturnsNaN(Steady):
    def shaped(self, p: np.ndarray) -> np.ndarray:
        return p * np.nan


class ReturnsTooManyColumns(Steady):
    def shaped(self, p: np.ndarray) -> np.ndarray:
        return np.concatenate([p, p], axis=1)


KINDS = (Steady, Slowed, Raises, WantsOneThread, KillsItsWorker, Gated, Halts, ReturnsNaN, ReturnsTooManyColumns)
NAMES = [f"tests.broken_learners.{kind.__name__}" for kind in KINDS]

"""Learners that tests name, and that workers import."""

from typing import ClassVar

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.linear_model import LogisticRegression

WIDTH = 6


class Embedding(ClassifierMixin, BaseEstimator):
    """A hidden layer that is drawn and a last one that is fitted; the hidden one comes with the probabilities."""

    embedding_width_ = WIDTH
    passes: ClassVar[int] = 0

    def fit(self, X: np.ndarray, y: np.ndarray) -> "Embedding":
        self.hidden_ = (np.random.default_rng(0).standard_normal((X.shape[1], WIDTH)) / 3).astype(np.float32)
        self.last_ = LogisticRegression().fit(self.hidden(X), y)
        self.classes_ = self.last_.classes_
        self.n_features_in_ = X.shape[1]
        return self

    def hidden(self, X: np.ndarray) -> np.ndarray:
        hidden: np.ndarray = np.tanh(X @ self.hidden_)
        return hidden

    def predict_embedded(self, X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        type(self).passes += 1
        hidden = self.hidden(X)
        return self.last_.predict_proba(hidden), hidden

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        return self.predict_embedded(X)[0]


class TooNarrow(Embedding):
    """An embedding of another width than it says."""

    embedding_width_ = WIDTH + 1


NAMES = [f"tests.toy_learners.{kind.__name__}" for kind in (Embedding, TooNarrow)]

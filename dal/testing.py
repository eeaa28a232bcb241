"""Contract tests for parts of one's own: subclass one and name the part; any test runner that knows classes runs it.

Examples
--------
In a test file::

    from dal.testing import CriterionContract
    from mypackage import Patience

    class TestPatience(CriterionContract):
        criterion = Patience(rounds=3)

A part may be an object, its class, ``module:object``, or the name of an entry point.
"""

import inspect
import io
import pickle
import tempfile
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np

from dal.campaign import Asked
from dal.encoders.named import encoder_named
from dal.evidence.ruler import RoundRecord
from dal.evidence.stopping import Criterion, Verdict, parse, texts_of
from dal.exchange.files import format_of
from dal.exchange.formats import Format, Item, Known, Line, Rejected, Sheet
from dal.learners.learner import Learner
from dal.learners.models import Model, score_block
from dal.plugins import Carried
from dal.pool.encoded import BATCH_SIZE, Shipped, encode_group, refuse_encoder
from dal.scores import resolved, takes_committee
from dal.selection.batch import choose, select
from dal.selection.candidates import Candidates, Capacity
from dal.selection.codebook import Codebook
from dal.selection.strategy import Strategy

__all__ = [
    "CriterionContract",
    "EncoderContract",
    "FormatContract",
    "LearnerContract",
    "ScoreContract",
    "SelectorContract",
]


def _given(contract: object, name: str) -> Any:  # noqa: ANN401 - anybody's object
    """Return the part that a contract names; a plain function is not bound to it as a method."""
    part = inspect.getattr_static(type(contract), name)
    return part.__func__ if isinstance(part, staticmethod) else part


class ScoreContract:
    """The contract of every score: a pure, finite function of each record alone that can be sent to other processes.

    Attributes
    ----------
    score : Score or str
    classes : int
        Of the made-up records.
    """

    score: Any
    classes: int = 3

    def make(self) -> Carried | str:
        """Return the score as a scan uses it."""
        return resolved(_given(self, "score"))

    def model(self) -> Model:
        """Return the model that scores; override it where yours needs one of a kind."""
        X, names = self.records(), [f"class {n}" for n in range(self.classes)]
        codes = np.arange(len(X)) % self.classes
        return Learner.named("logistic", names).fit(X[:90], codes[:90], committee=takes_committee(self.make()))

    def records(self) -> "np.ndarray":
        """Return records (n, d): some alike, some far away."""
        X = np.random.default_rng(0).standard_normal((300, 4)) + (np.arange(300) % self.classes)[:, None]
        X[200:210], X[210:220] = X[0], 50 * X[210:220]
        return X.astype(np.float32)

    def values(self, X: "np.ndarray", model: Model) -> "np.ndarray":
        """Return the scores of a block, as a worker computes them."""
        return score_block(self._made, model, X).score

    @cached_property
    def _made(self) -> Carried | str:
        return self.make()

    def test_gives_a_finite_value_for_each_record(self) -> None:
        """Score records near and far: none is NaN or infinite."""
        values = self.values(self.records(), self.model())
        assert values.shape == (300,)
        assert np.isfinite(values).all(), "a score must be finite for each record that the model predicts"

    def test_asks_a_doubtful_record_before_a_sure_one(self) -> None:
        """Score a mean of two classes and a record far on one side: higher is asked first."""
        model, X = self.model(), self.records()
        proba = model.predict_proba(X).max(axis=1)
        values = self.values(X, model)
        assert values[np.argmin(proba)] >= values[np.argmax(proba)], "higher must mean: ask first"

    def test_does_not_depend_on_the_other_records_of_a_block(self) -> None:
        """Score in blocks of several heights, and in another order: each record has the same value."""
        model, X = self.model(), self.records()
        whole = self.values(X, model)
        for rows in (1, 7, 64):
            parts = [self.values(X[start : start + rows], model) for start in range(190, 230, rows)]
            found = np.concatenate(parts)
            np.testing.assert_allclose(found, whole[190 : 190 + len(found)], rtol=1e-4, atol=1e-5)
        backwards = self.values(np.ascontiguousarray(X[::-1]), model)[::-1]
        np.testing.assert_allclose(backwards, whole, rtol=1e-4, atol=1e-5)

    def test_is_pure(self) -> None:
        """Score twice, another block in between: the same bits, and the input is as it was."""
        model, X = self.model(), self.records()
        before, first = X.copy(), self.values(X, model)
        self.values(X[:50] + 1, model)
        np.testing.assert_array_equal(self.values(X, model), first)
        np.testing.assert_array_equal(X, before)

    def test_travels_to_a_worker(self) -> None:
        """Send the score as a scan does: it gives the same values there."""
        model, X = self.model(), self.records()
        sent = pickle.loads(cloudpickle.dumps(self.make()))
        np.testing.assert_array_equal(score_block(sent, model, X).score, self.values(X, model))

    def test_comes_back_from_settings(self) -> None:
        """Write a strategy with the score as settings keep it, and read it again."""
        strategy = Strategy(_given(self, "score"), "top")
        again = Strategy.named(strategy.text)
        assert again.scorer == strategy.scorer
        model, X = self.model(), self.records()
        np.testing.assert_array_equal(score_block(again.scorer, model, X).score, self.values(X, model))


class EncoderContract:
    """The contract of every encoder: finite features of each record alone, the same in each process.

    Attributes
    ----------
    encoder : Encoder or str
    pictures : bool
        Whether it encodes pictures; else texts.
    tolerance : float
        How far the features of a record may move with the records beside it, relative to the largest feature: a network
        computes other last bits for another batch.
    """

    encoder: Any
    pictures: bool = False
    tolerance: float = 1e-4

    @cached_property
    def made(self) -> Any:  # noqa: ANN401 - anybody's object
        """The encoder as a build uses it."""
        part = _given(self, "encoder")
        found = encoder_named(part) if isinstance(part, str) else part
        refuse_encoder(found)
        return found

    def records(self) -> list[Any]:
        """Return records: texts of one letter and of many words, or pictures of several sizes."""
        if not self.pictures:
            return ["a", "the quick brown fox", "naïve 猫 🦊", "one two " * 300, "the quick brown fox"]
        rng = np.random.default_rng(0)
        sizes = ((1, 1), (40, 30), (300, 200), (32, 32))
        return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]

    def features(self, encoder: Any, records: list[Any]) -> "np.ndarray":  # noqa: ANN401
        """Return the features of records as a build computes them."""
        shipped = Shipped.of(encoder)
        size = getattr(encoder, "batch_size", None) or BATCH_SIZE
        group = encode_group(shipped, "pictures" if self.pictures else "texts", size, records)
        assert not group.causes, f"each record must have finite features: {group.causes}"
        return group.features

    def test_returns_finite_features_of_each_record(self) -> None:
        """Encode records of several lengths and sizes."""
        records = self.records()
        features = self.features(self.made, records)
        assert features.shape[0] == len(records)
        assert features.shape[1] >= 1

    def test_features_do_not_depend_on_the_records_beside(self) -> None:
        """Encode each record alone, and all together."""
        records = self.records()
        together = self.features(self.made, records)
        for record, row in zip(records, together, strict=True):
            [alone] = self.features(self.made, [record])
            assert np.abs(alone - row).max() <= self.tolerance * max(1.0, float(np.abs(row).max()))

    def test_is_the_same_in_another_process(self) -> None:
        """Pack and unpack it: the id and the features stay."""
        twin = pickle.loads(Shipped.of(self.made).packed)
        assert isinstance(self.made.id, str)
        assert twin.id == self.made.id
        assert np.array_equal(self.features(twin, self.records()), self.features(self.made, self.records()))


class SelectorContract:
    """The contract of every selector: distinct picks, none asked before, the same for any order of the candidates.

    Attributes
    ----------
    selector : Selector or str
    """

    selector: Any

    def strategy(self) -> Strategy:
        """Return the strategy that chooses."""
        return Strategy("margin", _given(self, "selector"))

    def candidates(self, n: int = 200) -> Candidates:
        """Return candidates with ties in their scores and near-duplicates among them."""
        rng = np.random.default_rng(n)
        rows = np.sort(rng.choice(10 * n, n, replace=False)).astype(np.int64)
        points = rng.standard_normal((n, 4)).astype(np.float32)
        points[n // 2 : n // 2 + 3] = points[0]
        proba = rng.dirichlet(np.ones(3), n).astype(np.float32)
        scores = np.round(rng.random(n), 2)
        return Candidates(rows, scores, rng.integers(0, 5, n), proba.argmax(axis=1), points, proba)

    def chosen(self, candidates: Candidates, k: int, seed: int = 5) -> list[int]:
        """Return the rows that are chosen."""
        labeled = np.random.default_rng(1).standard_normal((9, candidates.embeddings.shape[1])).astype(np.float32)
        return list(select(candidates, self.strategy(), k, labeled, seed, 2).tolist())

    def test_chooses_distinct_candidates_and_no_more_than_asked_for(self) -> None:
        """Choose none, some, and more than there are."""
        candidates = self.candidates()
        for k in (0, 1, 7, 60, 500):
            rows = self.chosen(candidates, k)
            assert len(set(rows)) == len(rows) <= k, "no record twice"
            assert set(rows) <= set(candidates.rows.tolist())
        assert self.chosen(candidates, 7), "something must be chosen where there are candidates"

    def test_never_chooses_what_was_asked(self) -> None:
        """Choose after some candidates were asked."""
        candidates = self.candidates()
        asked = candidates.rows[::3]
        rows = choose(
            candidates,
            self.strategy(),
            40,
            capacity=Capacity(len(candidates), 0, 0),
            codebook=Codebook.fit(candidates.embeddings, 4, seed=0),
            asked=candidates.embeddings[::3],
            excluded=asked,
            random_state=5,
            round=2,
        )
        assert not np.isin(rows, asked).any()

    def test_does_not_depend_on_the_order_of_the_candidates(self) -> None:
        """Choose from the same candidates in other orders."""
        candidates = self.candidates()
        expected = self.chosen(candidates, 30)
        for seed in range(3):
            shuffled = candidates.take(np.random.default_rng(seed).permutation(len(candidates)))
            assert self.chosen(shuffled, 30) == expected

    def test_is_pure(self) -> None:
        """Choose twice, others in between: the same rows under the same seed, and the input is as it was."""
        candidates = self.candidates()
        arrays = [candidates.rows, candidates.scores, candidates.cells, candidates.embeddings, candidates.proba]
        before, first = [np.array(each) for each in arrays], self.chosen(candidates, 25)
        self.chosen(self.candidates(90), 13, seed=77)
        assert self.chosen(candidates, 25) == first
        for array, old in zip(arrays, before, strict=True):
            np.testing.assert_array_equal(np.asarray(array), old)

    def test_comes_back_from_settings(self) -> None:
        """Write a strategy with the selector as settings keep it, and read it again."""
        again = Strategy.named(self.strategy().text)
        assert again.traits == self.strategy().traits
        candidates = self.candidates()
        labeled = candidates.embeddings[:3] + 2
        for k in (1, 20):
            one, other = (select(candidates, each, k, labeled, 5, 2).tolist() for each in (self.strategy(), again))
            assert one == other


class CriterionContract:
    """The contract of every stopping criterion: a pure function from a history to a value, threshold and reason.

    Attributes
    ----------
    criterion : Criterion or str
        An object, or its text as in settings.
    """

    criterion: Any

    def make(self) -> Criterion:
        """Return the criterion as a campaign reads it from its settings."""
        given = _given(self, "criterion")
        return parse(given) if isinstance(given, str) else given

    def histories(self) -> Sequence[tuple[RoundRecord, ...]]:
        """Return histories to judge; override it where yours needs more to say something."""
        rounds = [
            RoundRecord(n, 50 * n, 4 * n % 6, 5, 0.5 * n, 10_000 - 50 * n, 0.9 + n / 200, 0.1 / n, 0.5 / n, 80 + n, 100)
            for n in range(1, 13)
        ]
        unmeasured = [RoundRecord(n, 50 * n, 0, 0, 0.5 * n, 10_000 - 50 * n) for n in range(1, 13)]
        return [tuple(each[:n]) for each in (rounds, unmeasured) for n in range(len(each) + 1)]

    def test_says_its_value_its_threshold_and_its_reason(self) -> None:
        """Judge each history; each verdict is complete."""
        for history in self.histories():
            verdict = self.make().judge(history, 50 * len(history), 0.5 * len(history))
            assert isinstance(verdict, Verdict), f"judge must return a Verdict, got {verdict!r}"
            assert verdict.criterion.strip(), "a verdict must name its criterion"
            assert verdict.reason.strip(), "a verdict must have a reason"
            assert isinstance(verdict.stop, bool | np.bool_), f"`stop` must be a bool, got {verdict.stop!r}"
            assert np.isfinite(verdict.threshold), f"`threshold` must be finite, got {verdict.threshold!r}"
            assert verdict.value is None or np.isfinite(verdict.value), (
                f"`value` is {verdict.value!r}; None is no evidence"
            )
            assert not (verdict.stop and verdict.value is None), "without a value there is no reason to stop"

    def test_is_a_pure_function_of_the_history(self) -> None:
        """Judge the histories forwards, backwards and with another object: the verdicts are the same."""
        criterion, histories = self.make(), self.histories()
        first = [criterion.judge(each, 7, 1.0) for each in histories]
        again = [criterion.judge(list(each), 7, 1.0) for each in reversed(histories)]
        assert first == again[::-1], "the same history must give the same verdict"
        assert first == [self.make().judge(each, 7, 1.0) for each in histories], "another object must judge alike"

    def test_comes_back_from_settings(self) -> None:
        """Write the criterion as settings keep it, and read it again."""
        (text,) = texts_of(self.make())
        again = parse(text)
        assert texts_of(again) == (text,)
        for history in self.histories():
            assert again.judge(history, 7, 1.0) == self.make().judge(history, 7, 1.0)


class LearnerContract:
    """The contract of every learner: it fits on a dozen labels, and predicts the same once saved and loaded.

    Attributes
    ----------
    learner : str, estimator or Preset
    trusted : sequence of str
        Types that a saved model may hold beyond scikit-learn's own.
    """

    learner: Any
    trusted: Sequence[str] = ()

    def records(self) -> "tuple[np.ndarray, np.ndarray]":
        """Return records (n, d) and class codes of three classes; override it for counts or categories."""
        codes = np.arange(60) % 3
        X = np.random.default_rng(0).standard_normal((60, 5)) + 2.0 * codes[:, None]
        return X.astype(np.float32), codes

    def make(self, random_state: int = 0) -> Learner:
        """Return the learner as a campaign does."""
        given, classes = _given(self, "learner"), ["a", "b", "c"]
        return Learner.of(given, classes, random_state=random_state, trusted=self.trusted)

    def fitted(self, labels: int = 12) -> Model:
        """Return a model of the first labels."""
        X, codes = self.records()
        return self.make().fit(X[:labels], codes[:labels])

    def test_fits_on_a_dozen_labels(self) -> None:
        """Fit on twelve labels; the probabilities are some."""
        X, _ = self.records()
        proba = self.fitted().predict_proba(X)
        assert proba.shape == (len(X), 3)
        assert np.isfinite(proba).all(), "probabilities must be finite"
        assert (proba >= 0).all(), "probabilities must not be negative"
        np.testing.assert_allclose(proba.sum(axis=1), 1, atol=1e-3)

    def test_fits_where_a_class_has_no_label(self) -> None:
        """Fit on labels of two classes of three; the third has no probability."""
        X, codes = self.records()
        seen = np.flatnonzero(codes != 1)[:12]
        proba = self.make().fit(X[seen], codes[seen]).predict_proba(X)
        assert (proba[:, 1] == 0).all()

    def test_is_saved_and_loaded(self) -> None:
        """Save and load a model without running unknown code: its probabilities are the same."""
        X, _ = self.records()
        model = self.fitted()
        loaded = Model.loads(model.dumps(), trusted=self.trusted)
        np.testing.assert_array_equal(loaded.predict_proba(X), model.predict_proba(X))

    def test_gives_the_same_model_under_the_same_seed(self) -> None:
        """Fit twice: the probabilities are the same."""
        X, _ = self.records()
        np.testing.assert_array_equal(self.fitted().predict_proba(X), self.fitted().predict_proba(X))

    def test_passes_the_check_before_the_first_round(self) -> None:
        """Run what a campaign runs before anything is written."""
        X, _ = self.records()
        self.make().check(X.shape[1], records=X)


class FormatContract:
    """The contract of every exchange format: a batch that is written reads back as it was.

    Attributes
    ----------
    format : str, Format or class
    suffix : str
        Ending of the files.
    """

    format: Any
    suffix: str = ".txt"

    def make(self) -> Format:
        """Return the format as an export and an import do."""
        return format_of(Path(f"batch{self.suffix}"), _given(self, "format"), self.sheet().classes)

    def sheet(self) -> Sheet:
        """Return what a file says of its batch."""
        return Sheet("made-up-r001", 1, ("cat", "dog, or wolf"), ("text",), 1, {"text": "text"})

    def record_ids(self) -> Sequence[str]:
        """Return record ids; override it where some cannot be written, and say so to your users."""
        return ["17", "a b", "naïve", "x,y;z", "007"]

    def items(self, *, answered: bool) -> list[Item]:
        """Return records to write: each without an answer, or with one or two."""
        answers = [
            (Known("cat", "submitted", "ann"),),
            (Known("", "skipped", "bo"),),
            (Known("dog, or wolf", "submitted", "ann"), Known("cat", "submitted", "bo")),
        ]
        return [
            Item(
                _asked(rank, record_id), {"text": f"text {rank}"}, None, answers[rank % 3] if answered else (), answered
            )
            for rank, record_id in enumerate(self.record_ids())
        ]

    def round_trip(self, items: list[Item]) -> tuple[int, list[Line | Rejected]]:
        """Write records in blocks of two, and read the file."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"batch{self.suffix}"
            with path.open("wb", buffering=0) as file:
                raw: io.RawIOBase = file
                count = self.make().write(raw, self.sheet(), (items[at : at + 2] for at in range(0, len(items), 2)))
            return count, list(self.make().lines(path))

    def test_answers_come_back(self) -> None:
        """Write answers and read them: record, label, status and annotator are the same, in the same order."""
        items = self.items(answered=True)
        expected = [(item.asked.record_id, *known) for item in items for known in item.known]
        count, lines = self.round_trip(items)
        assert count == len(expected), f"write must count its lines, {len(expected)}, got {count}"
        assert self._said(lines) == expected

    def test_records_without_an_answer_come_back_pending(self) -> None:
        """Write records that nobody answered: each has a line without label and status."""
        items = self.items(answered=False)
        count, lines = self.round_trip(items)
        assert count == len(items)
        assert self._said(lines) == [(item.asked.record_id, "", "", "") for item in items]

    def test_an_empty_batch_is_a_file_without_lines(self) -> None:
        """Write no record."""
        assert self.round_trip([]) == (0, [])

    def test_lines_are_numbered_in_the_order_of_the_file(self) -> None:
        """Read the lines: their numbers rise, and the format names the place of each."""
        numbers = [each.number for each in self.round_trip(self.items(answered=True))[1] if isinstance(each, Line)]
        assert numbers == sorted(set(numbers)), "each line must have a number of its own"
        assert all(self.make().place(number).strip() for number in numbers)

    def _said(self, lines: Sequence[Line | Rejected]) -> list[tuple[str, str, str, str]]:
        own, said = self.make().own, []
        for line in lines:
            assert isinstance(line, Line), f"a line that was written must be read, got {line}"
            said.append((own(line.record_id), own(line.label), line.status, own(line.annotator)))
        return said


def _asked(rank: int, record_id: str) -> Asked:
    return Asked(row=rank, record_id=record_id, rank=rank, score=0.5, predicted=0, explore=False)

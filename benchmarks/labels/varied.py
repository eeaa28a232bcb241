"""A varied suite of small sets, those among them on which a strategy that trusts its learner asks the wrong records.

All are played by the linear learners that ``dal`` presets, with the penalty from which these start: choosing it takes
most of the time of a fit. They cannot represent the classes of the second group, however many labels they have.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import numpy as np
import numpy.typing as npt
from sklearn.datasets import (
    load_iris,
    load_wine,
    make_circles,
    make_classification,
    make_friedman1,
    make_gaussian_quantiles,
    make_hastie_10_2,
    make_moons,
)
from sklearn.decomposition import PCA

from benchmarks.labels.sets import (
    Codes,
    Setup,
    Source,
    World,
    _head,
    _Modes,
    _read,
    _scaled_logistic,
    digits,
    digits_duplicated,
    embedded,
    imbalanced,
    kddcup_features,
    noisy,
    sms_spam,
)
from dal.replay import TestSet

Drawn = tuple[npt.NDArray[np.float64], Codes]
Draw = Callable[[np.random.Generator, int], Drawn]

POOL, TESTED = 2_500, 3_000


# -- classes that are drawn -------------------------------------------------------------------------------------------


def _world(X: npt.ArrayLike, y: npt.ArrayLike, test_X: npt.ArrayLike, test_y: npt.ArrayLike, n_classes: int) -> World:
    codes, test_codes = np.asarray(y, np.int64), np.asarray(test_y, np.int64)
    return World(np.asarray(X, np.float32), codes, TestSet(np.asarray(test_X, np.float32), test_codes), n_classes)


def drawn(source: Source, draw: Draw, n_classes: int = 2, n_rows: int = POOL) -> World:
    """Draw the pool and the test set alike."""
    rng = np.random.default_rng([source.seed, 101])
    return _world(*draw(rng, n_rows), *draw(rng, TESTED), n_classes)


def concentric(rng: np.random.Generator, count: int, *, dim: int, ratio: float, inner: float) -> Drawn:
    """Draw two Gaussians of the same mean, of deviations 1 and `ratio`; a share `inner` is of the narrow one."""
    y = (rng.random(count) >= inner).astype(np.int64)
    return rng.standard_normal((count, dim)) * np.where(y, ratio, 1.0)[:, None], y


def xor(rng: np.random.Generator, count: int, *, noise: int = 0) -> Drawn:
    """Draw four Gaussians at the corners of a square, the opposite ones of one class, beside features of noise."""
    corner = rng.integers(0, 2, (count, 2))
    X = np.hstack([2.0 * corner - 1.0 + 0.4 * rng.standard_normal((count, 2)), rng.standard_normal((count, noise))])
    return X, corner[:, 0] ^ corner[:, 1]


def checkerboard(rng: np.random.Generator, count: int, *, fields: int) -> Drawn:
    """Draw points of a square whose fields alternate between two classes."""
    X = rng.random((count, 2)) * fields
    return X, X.astype(np.int64).sum(axis=1) % 2


def spirals(rng: np.random.Generator, count: int) -> Drawn:
    """Draw two spirals that wind around each other."""
    y = rng.integers(0, 2, count)
    angle = 3 * np.pi * np.sqrt(rng.random(count))
    turned = angle + np.pi * y
    return np.stack([np.cos(turned), np.sin(turned)], 1) * angle[:, None] + 0.5 * rng.standard_normal((count, 2)), y


def rings(rng: np.random.Generator, count: int, *, shares: tuple[float, ...]) -> Drawn:
    """Draw classes as rings around each other, of these shares from the innermost one."""
    y = rng.choice(len(shares), count, p=shares)
    angle, radius = 2 * np.pi * rng.random(count), y + 0.5 + 0.2 * rng.standard_normal(count)
    return np.stack([np.cos(angle), np.sin(angle)], 1) * radius[:, None], y


def band(rng: np.random.Generator, count: int, *, dim: int, half: float) -> Drawn:
    """Draw records whose class says whether one feature is near zero."""
    X = rng.standard_normal((count, dim))
    return X, (np.abs(X[:, 0]) < half).astype(np.int64)


def island(rng: np.random.Generator, count: int, *, share: float) -> Drawn:
    """Draw two classes that a line divides, and behind one of them a share of records of the other."""
    X, y = rng.standard_normal((count, 4)), rng.integers(0, 2, count)
    X[:, 0] += 3.0 * y - 1.5
    away = rng.random(count) < share
    X[away, 0] = 7.0 + 0.5 * rng.standard_normal(away.sum())
    return X, np.where(away, 0, y)


def flipped(rng: np.random.Generator, count: int, *, share: float, dim: int = 10, n_classes: int = 2) -> Drawn:
    """Draw a Gaussian of each class, and replace a share of the labels by lots."""
    y = rng.integers(0, n_classes, count)
    means = np.random.default_rng(5).standard_normal((n_classes, dim))
    means *= 3.0 / np.linalg.norm(means[0] - means[1])
    X = means[y] + rng.standard_normal((count, dim))
    return X, np.where(rng.random(count) < share, rng.integers(0, n_classes, count), y)


def one_sided(rng: np.random.Generator, count: int) -> Drawn:
    """Draw two classes that a line divides, the labels near the line and on one side of it mostly by lot."""
    X = rng.standard_normal((count, 6))
    y = (X[:, 0] > 0.3).astype(np.int64)
    by_lot = (X[:, 0] > 0.1) & (X[:, 0] < 1.0)
    return X, np.where(by_lot, rng.integers(0, 2, count), y)


def noisy_region(rng: np.random.Generator, count: int) -> Drawn:
    """Draw two classes that a line divides; a quarter of the records is a region on the line, of labels by lot."""
    X, y = rng.standard_normal((count, 8)), rng.integers(0, 2, count)
    X[:, 0] += 3.0 * y - 1.5
    away = rng.random(count) < 0.25
    X[away] = 0.4 * rng.standard_normal((away.sum(), 8))
    X[away, 1] += 5.0
    return X, np.where(away, rng.integers(0, 2, count), y)


def long_tailed_features(rng: np.random.Generator, count: int) -> Drawn:
    """Draw features with outliers, as amounts of money have them."""
    X = rng.standard_t(2, (count, 8))
    return X, (np.tanh(X[:, 0]) + np.tanh(X[:, 1]) + 0.3 * rng.standard_normal(count) > 0).astype(np.int64)


def friedman(rng: np.random.Generator, count: int) -> Drawn:
    """Draw Friedman's first regression problem, cut at its upper third."""
    X, value = make_friedman1(count, noise=1.0, random_state=_seed(rng))
    return X, (value > 17.0).astype(np.int64)


def hastie(rng: np.random.Generator, count: int) -> Drawn:
    """Draw ten normal features, whose class says whether they lie in a ball."""
    X, y = make_hastie_10_2(count, random_state=_seed(rng))
    return X, (y > 0).astype(np.int64)


def quantiles(rng: np.random.Generator, count: int) -> Drawn:
    """Draw one Gaussian, cut into three classes by the distance from its mean."""
    X, y = make_gaussian_quantiles(n_samples=count, n_features=5, n_classes=3, random_state=_seed(rng))
    return X, y


def _seed(rng: np.random.Generator) -> int:
    return int(rng.integers(2**31))


def mixture(
    source: Source, *, modes: int, dim: int, n_classes: int, evenly: bool = False, spread: float = 1.5
) -> World:
    """Draw records of many modes of very different weight; with `evenly` all count alike in the test set."""
    rng = np.random.default_rng([source.seed, 102])
    drawn_modes = _Modes.drawn(rng, modes, dim, n_classes, spread=spread, deviation=0.6, cap=20.0)
    return _world(*drawn_modes.records(rng, POOL), *drawn_modes.records(rng, TESTED, evenly=evenly), n_classes)


def classification(source: Source, **shape: object) -> World:
    """Draw scikit-learn's ``make_classification``, records of the pool and of the test set from the same clusters."""
    X, y = make_classification(POOL + TESTED, random_state=source.seed, shuffle=True, **shape)
    return _world(X[:POOL], y[:POOL], X[POOL:], y[POOL:], int(y.max()) + 1)


def tail(rng: np.random.Generator, count: int, *, n_classes: int = 8, ratio: float = 50.0) -> Drawn:
    """Draw Gaussians of classes whose shares fall geometrically, the last a `ratio`-th of the first."""
    shares = ratio ** (-np.arange(n_classes) / (n_classes - 1))
    y = rng.choice(n_classes, count, p=shares / shares.sum())
    means = 1.3 * np.random.default_rng(6).standard_normal((n_classes, 8))
    return means[y] + rng.standard_normal((count, 8)), y


def shifted(source: Source, draw: Draw, towards: float) -> World:
    """Draw a test set in which records count the more the larger their first feature is."""
    rng = np.random.default_rng([source.seed, 103])
    X, y = draw(rng, POOL)
    test_X, test_y = draw(rng, 3 * TESTED)
    kept = rng.random(len(test_y)) < 1 / (1 + np.exp(-towards * (test_X[:, 0] - np.median(X[:, 0]))))
    return _world(X, y, test_X[kept], test_y[kept], int(y.max()) + 1)


def duplicated(source: Source, draw: Draw) -> World:
    """Draw 500 records, and copy them with a little noise, some a hundred times."""
    rng = np.random.default_rng([source.seed, 104])
    X, y = draw(rng, 500)
    original = rng.permutation(np.repeat(np.arange(500), np.minimum(1 + 2 * rng.pareto(1.1, 500).astype(int), 100)))
    noise = 0.02 * X.std(axis=0) * rng.standard_normal((len(original), X.shape[1]))
    return _world(X[original] + noise, y[original], *draw(rng, TESTED), int(y.max()) + 1)


# -- real ones --------------------------------------------------------------------------------------------------------


def parted(source: Source, name: str, most: int = POOL, share: float = 0.6) -> World:
    """Read a set, and draw pool and test set by the seed."""
    X, y = (
        _bundled(name)
        if source.data is None or not (source.data / f"{name}.npz").exists()
        else _read(source.data, name)
    )
    order = np.random.default_rng([source.seed, 105]).permutation(len(y))
    size = min(most, round(share * len(y)))
    pool, test = order[:size], order[size : size + TESTED]
    return _world(X[pool], y[pool], X[test], y[test], int(y.max()) + 1)


def _bundled(name: str) -> Drawn:
    X, y = {"iris": load_iris, "wine": load_wine}[name](return_X_y=True)
    return X, y.astype(np.int64)


def fashion(source: Source) -> World:
    """Draw pictures, in the 64 principal components of the pool."""
    world = parted(source, "fashion_mnist", 4_000)
    components = PCA(64, svd_solver="covariance_eigh").fit(world.X / 255.0)
    X, test_X = (components.transform(each / 255.0).astype(np.float32) for each in (world.X, world.test.X))
    return replace(world, X=X, test=TestSet(test_X, world.test.y))


def kddcup(source: Source) -> World:
    """Draw connections, with the features of the larger set of this name."""
    world = parted(source, "kddcup99_10pct", 5_000)
    features = kddcup_features(np.concatenate([world.X, world.test.X]).astype(np.float64))
    return replace(world, X=features[: len(world.y)], test=TestSet(features[len(world.y) :], world.test.y))


# -- protocols --------------------------------------------------------------------------------------------------------


def _of(
    world: Callable[[Source], World], initial: int = 20, batch: int = 20, rounds: int = 10, **other: object
) -> Setup:
    return Setup(world, _scaled_logistic, initial, batch, rounds, seeds=10, **other)  # type: ignore[arg-type]


def _synthetic(draw: Draw, n_classes: int = 2) -> Setup:
    return _of(partial(drawn, draw=draw, n_classes=n_classes))


def _real(name: str, initial: int = 20, batch: int = 20, rounds: int = 10, most: int = POOL, **other: object) -> Setup:
    return _of(partial(parted, name=name, most=most), initial, batch, rounds, file=f"{name}.npz", **other)


def _embeddings(name: str, initial: int) -> Setup:
    return Setup(
        partial(embedded, name=name, most=2_000, tested=1_500),
        _head,
        initial,
        batch=20 if initial < 100 else 50,
        rounds=8,
        seeds=10,
        file=f"embeddings/{name}.npz",
        balanced=True,
    )


SIX = {"n_features": 20, "n_informative": 6}
CONCENTRIC = partial(concentric, dim=10, ratio=2.0, inner=0.5)

VARIED: Mapping[str, Setup] = {
    # Real.
    "v_digits": _of(digits, rounds=12),
    "v_digits_duplicated": _of(digits_duplicated),
    "v_letter": _real("letter", 60, 50, most=4_000),
    "v_satimage": _real("satimage"),
    "v_german": _real("german"),
    "v_splice": _real("splice"),
    "v_wdbc": _real("wdbc", 10, 10),
    "v_ionosphere": _real("ionosphere", 10, 10),
    "v_mammography": _real("mammography_microcalc", 40, 20, metric="balanced accuracy"),
    "v_iris": _real("iris", 10, 5),
    "v_wine": _real("wine", 10, 5),
    "v_sms_spam": _of(sms_spam, file="sms_spam.jsonl.gz"),
    "v_fashion": _of(fashion, 50, 50, 8, file="fashion_mnist.npz"),
    "v_kddcup": _of(kddcup, 50, 30, 8, file="kddcup99_10pct.npz", metric="balanced accuracy"),
    "v_stackoverflow": _embeddings("stackoverflow_wl", 40),
    "v_trec": _embeddings("trec", 100),
    "v_sms_embedded": _embeddings("sms_spam_wl", 8),
    "v_cifar10": _embeddings("cifar10_lite0", 20),
    # No line divides the classes.
    "concentric_2d": _synthetic(partial(concentric, dim=2, ratio=3.0, inner=0.5)),
    "concentric_2d_inner_30": _synthetic(partial(concentric, dim=2, ratio=3.0, inner=0.3)),
    "concentric_5d_inner_70": _synthetic(partial(concentric, dim=5, ratio=2.0, inner=0.7)),
    "concentric_10d": _synthetic(CONCENTRIC),
    "concentric_10d_inner_30": _synthetic(partial(concentric, dim=10, ratio=1.5, inner=0.3)),
    "concentric_20d_inner_80": _synthetic(partial(concentric, dim=20, ratio=2.0, inner=0.8)),
    "hastie": _synthetic(hastie),
    "gaussian_quantiles": _synthetic(quantiles, 3),
    "circles": _synthetic(lambda rng, count: make_circles(count, noise=0.1, factor=0.5, random_state=_seed(rng))),
    "rings": _synthetic(partial(rings, shares=(0.2, 0.3, 0.5)), 3),
    "band": _synthetic(partial(band, dim=5, half=0.4)),
    "band_wide": _synthetic(partial(band, dim=10, half=1.3)),
    "xor": _synthetic(xor),
    "xor_noise": _synthetic(partial(xor, noise=6)),
    "checkerboard": _synthetic(partial(checkerboard, fields=4)),
    "checkerboard_odd": _synthetic(partial(checkerboard, fields=3)),
    "spirals": _synthetic(spirals),
    "moons": _synthetic(lambda rng, count: make_moons(count, noise=0.25, random_state=_seed(rng))),
    "island": _synthetic(partial(island, share=0.08)),
    "friedman": _synthetic(friedman),
    # Labels by lot.
    "flipped_10": _synthetic(partial(flipped, share=0.2)),
    "flipped_20": _synthetic(partial(flipped, share=0.4)),
    "flipped_40": _synthetic(partial(flipped, share=0.8)),
    "flipped_classes": _synthetic(partial(flipped, share=0.4, n_classes=6), 6),
    "one_sided": _synthetic(one_sided),
    "noisy_region": _synthetic(noisy_region),
    "noisy_modes": _of(partial(noisy, n_rows=4_000), 40, 40, 8),
    # Long tails, many modes, copies, shifts.
    "tail": _synthetic(tail, 8),
    "tail_balanced": replace(_synthetic(tail, 8), metric="balanced accuracy"),
    "long_tailed_features": _synthetic(long_tailed_features),
    "modes": _of(partial(mixture, modes=40, dim=16, n_classes=6)),
    "modes_evenly": _of(partial(mixture, modes=40, dim=16, n_classes=6, evenly=True)),
    "modes_of_two": _of(partial(mixture, modes=30, dim=6, n_classes=2)),
    "imbalanced_modes": _of(partial(imbalanced, n_rows=4_000), 50, 50, 8),
    "moons_duplicated": _of(
        partial(duplicated, draw=lambda rng, n: make_moons(n, noise=0.25, random_state=_seed(rng)))
    ),
    "concentric_duplicated": _of(partial(duplicated, draw=CONCENTRIC)),
    "flipped_shifted": _of(partial(shifted, draw=partial(flipped, share=0.2), towards=2.0)),
    "concentric_shifted": _of(partial(shifted, draw=CONCENTRIC, towards=1.0)),
    # scikit-learn's clusters.
    "clusters_easy": _of(partial(classification, n_clusters_per_class=1, class_sep=1.2, **SIX)),
    "clusters_of_two": _of(partial(classification, n_clusters_per_class=2, class_sep=0.8, **SIX)),
    "clusters_of_four": _of(partial(classification, n_clusters_per_class=4, class_sep=1.5, **SIX)),
    "clusters_classes": _of(partial(classification, n_classes=4, n_clusters_per_class=2, class_sep=1.0, **SIX)),
    "clusters_rare": _of(partial(classification, weights=[0.93], n_clusters_per_class=2, flip_y=0.02, **SIX)),
    "clusters_flipped": _of(partial(classification, flip_y=0.3, n_clusters_per_class=1, class_sep=1.0, **SIX)),
}
"""Setups by name; a name that begins with ``v_`` is a small protocol on a set of the other suite."""

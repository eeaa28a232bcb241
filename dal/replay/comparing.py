"""Several strategies on the same pool, paired by seed: one replay after another, or side by side on a cluster."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator

from dal.campaign.settings import Settings
from dal.classes import codes_of, distinct_names, names_of
from dal.compute.client import connect
from dal.compute.workers import Workers, workers_of
from dal.errors import SettingsError
from dal.learners.learner import Learner
from dal.learners.presets import chosen_or_default
from dal.pool import Pool
from dal.replay.curves import Comparison, Replay, Rows
from dal.replay.held import held_out
from dal.replay.play import Oracle, TestSet, label_of, simulate
from dal.selection.strategy import Strategy

if TYPE_CHECKING:
    from distributed import Client
    from distributed.deploy.cluster import Cluster

    from dal.compute.client import Connectable
    from dal.compute.work import Beat


def compare(
    pool: Pool,
    y: Oracle | npt.ArrayLike,
    test: TestSet | None = None,
    classes: Sequence[str] | None = None,
    strategies: Sequence[str | Strategy] = ("default", "random"),
    *,
    random_state: int | Iterable[int] = 0,
    estimator: str | BaseEstimator = Settings.estimator,
    trusted: Sequence[str] = Settings.trusted,
    batch_size: int = 50,
    rounds: int = 10,
    reserved: npt.ArrayLike = (),
    watched: npt.NDArray[np.float32] | None = None,
    client: "Connectable | Workers" = None,
    on_round: Callable[[Replay], None] | None = None,
    known: Sequence[Replay] = (),
    on_replay: Callable[[Replay], None] | None = None,
) -> Comparison:
    """Play the same campaign with several strategies, paired by seed.

    Parameters
    ----------
    pool, y, estimator, trusted, batch_size, rounds, reserved, watched, client, on_round
        As in :func:`simulate`.
    test : TestSet, optional
        As in :func:`simulate`. By default a fifth of the pool's records, at most 5,000, drawn by hash; they are never
        asked.
    classes : sequence of str, optional
        Default: the classes that `y` names.
    strategies : sequence of str or Strategy
        Objects need no name here: a score may be a lambda.
    random_state : int or iterable of int, default=0
        Seeds, one replay of each strategy for each. One shows how a strategy works; to tell two apart takes ten or
        more.
    known : sequence of Replay, default=()
        Replays that were played before, and are not played again.
    on_replay : callable, optional
        Given each replay that was played, as soon as it ends.

    Returns
    -------
    Comparison
    """
    named, seeds = _by_label(strategies), _seeds_of(random_state)
    played = {(replay.strategy, replay.seed): replay for replay in known}
    classes = _classes_of(y) if classes is None else classes
    if test is None:
        drawn, test = _drawn(pool, y, classes, estimator, trusted)
        reserved = np.union1d(np.asarray(reserved, np.int64), drawn)
    with workers_of(client) as workers:
        for seed in seeds:
            for label, strategy in named.items():
                if (label, seed) in played:
                    continue
                played[label, seed] = simulate(
                    pool,
                    y,
                    test,
                    classes,
                    strategy=strategy,
                    estimator=estimator,
                    trusted=trusted,
                    batch_size=batch_size,
                    rounds=rounds,
                    random_state=seed,
                    reserved=reserved,
                    watched=watched,
                    client=workers,
                    on_round=on_round,
                )
                if on_replay is not None:
                    on_replay(played[label, seed])
    return Comparison(tuple(played[label, seed] for seed in seeds for label in named))


def compare_side_by_side(
    pool: Pool,
    y: Oracle | npt.ArrayLike,
    test: TestSet,
    classes: Sequence[str],
    strategies: Sequence[str | Strategy],
    *,
    client: "Client | Cluster | str",
    random_state: int | Iterable[int] = 0,
    known: Sequence[Replay] = (),
    on_replay: Callable[[Replay], None] | None = None,
    **settings: Any,  # noqa: ANN401 - those of simulate
) -> Comparison:
    """Play whole replays on the workers of a cluster, many at a time: for pools that one worker scans in seconds.

    The replays are those of :func:`compare`, bit by bit, because a scan gives the same candidates wherever it runs.

    Parameters
    ----------
    pool : Pool
        Workers must be able to read it.
    y, test, classes, strategies, random_state, known, on_replay
        As in :func:`compare`; a callable is sent to the workers.
    client : distributed.Client, Cluster or str
    **settings
        ``estimator``, ``trusted``, ``batch_size``, ``rounds``, ``reserved`` and ``watched``, as in :func:`simulate`.

    Raises
    ------
    ClusterError
        If the cluster is lost, or in ten minutes no round ends anywhere; a worker that dies has its replays begun again
        by others.
    """
    from dal.compute.work import each_on

    named, seeds = _by_label(strategies), _seeds_of(random_state)
    played = {(replay.strategy, replay.seed): replay for replay in known}
    shared = {"strategies": named, "pool": pool, "y": y, "test": test, "classes": tuple(classes), **settings}
    wanted = [(label, seed) for seed in seeds for label in named if (label, seed) not in played]
    with connect(client) as connected:
        if connected is None:
            raise SettingsError("`client` must be a Client, a Cluster or an address, got None; compare does without")
        for which, replay in each_on(connected, _replayed, wanted, shared):
            played[which] = replay
            if on_replay is not None:
                on_replay(replay)
    return Comparison(tuple(played[label, seed] for seed in seeds for label in named))


def _by_label(strategies: Sequence[str | Strategy]) -> dict[str, str | Strategy]:
    named: dict[str, str | Strategy] = {}
    for strategy in strategies:
        label = label_of(strategy)
        if named.setdefault(label, strategy) != strategy:
            raise SettingsError(
                f"`strategies` must have different names, got {label} for two; give lambdas names by def, at the top of"
                " a module."
            )
    return named


def _classes_of(y: Oracle | npt.ArrayLike) -> tuple[str, ...]:
    if callable(y):
        raise SettingsError("`classes` must be named where `y` is a function, got None")
    return distinct_names(y, what="y")[0]


def _drawn(
    pool: Pool,
    y: Oracle | npt.ArrayLike,
    classes: Sequence[str],
    estimator: str | BaseEstimator,
    trusted: Sequence[str],
) -> tuple[Rows, TestSet]:
    if callable(y):
        raise SettingsError("`test` must be a TestSet where `y` is a function, got None")
    names = names_of(classes)
    codes = codes_of(y, names, what="y", gaps=True, codes=True)
    learner = Learner.of(chosen_or_default(estimator, pool.encoder), names, trusted=trusted)
    missing = learner.takes_missing(pool.n_features)
    rows, test = held_out(pool, codes, missing=missing)
    return rows, replace(test, y=np.array(names, dtype=object)[test.y])


def _seeds_of(random_state: int | Iterable[int]) -> tuple[int, ...]:
    return tuple(random_state) if isinstance(random_state, Iterable) else (random_state,)


def _replayed(shared: dict[str, Any], which: tuple[str, int], beat: "Beat") -> Replay:
    label, seed = which
    settings = {name: value for name, value in shared.items() if name != "strategies"}
    return simulate(**settings, strategy=shared["strategies"][label], random_state=seed, on_round=lambda _: beat())

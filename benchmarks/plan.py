"""How often a pilot plan holds: its intervals against the labels that random sampling and the default really need."""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import numpy.typing as npt
from scipy.optimize import least_squares

from benchmarks import machine
from benchmarks.labels.replay import Contender, Stage, _Campaign, staged
from benchmarks.labels.sets import SETS, Setup, Source, World
from benchmarks.labels.table import markdown
from benchmarks.labels.varied import VARIED
from dal._files import replacing
from dal.evidence.pilot import Curve, accuracy_now, forecast, outlook
from dal.evidence.ruler import Estimate
from dal.evidence.votes import Labels
from dal.loop.learners import Known
from dal.loop.pilot import measured
from dal.replay import TestSet
from dal.selection.strategy import Strategy

Rows = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

MOST_ROWS, MOST_TESTED = 10_000, 3_000
TIMES = (1.0, 1.5, 2.0, 3.0, 4.0)
"""Sizes at which the curve of random sampling is measured, as multiples of the pilot's."""
FEWER = (0.05, 0.1, 0.2, 0.3)
"""Targets that a user may set: of the errors that the pilot shows, these shares are to go."""
FACTOR = 1.5
LEAST_GAIN = 0.01
"""Rise of the true curve from the pilot to a target that it takes to say where the curve reaches it."""
DRAWS, REPLAYS, PILOTS = 8, 2, 6
FARTHEST = 6.0
"""Where a replay of the default ends that has not reached the farthest target, as a multiple of the pilot."""


@dataclass(frozen=True)
class Case:
    """A set, with the labels of a pilot."""

    name: str
    pilot: int
    held_out: bool
    """Whether its results came after all numbers of `dal.evidence.pilot` were chosen."""

    @property
    def setup(self) -> Setup:
        """The set's protocol."""
        return {**SETS, **VARIED}[self.name]


CASES = (
    Case("digits", 200, held_out=False),
    Case("sms_spam", 200, held_out=False),
    Case("imbalanced", 300, held_out=False),
    Case("v_letter", 300, held_out=False),
    Case("v_satimage", 250, held_out=False),
    Case("cifar10_lite0", 200, held_out=False),
    Case("trec", 400, held_out=False),
    Case("stackoverflow_wl", 300, held_out=False),
    Case("sms_spam_wl", 200, held_out=False),
    Case("satimage", 300, held_out=True),
    Case("banking77", 400, held_out=True),
    Case("noisy", 300, held_out=True),
    Case("letter", 300, held_out=True),
    Case("fashion", 400, held_out=True),
    Case("kddcup", 200, held_out=True),
    Case("clinc150", 400, held_out=True),
)

APART = ("imbalanced", "noisy", "kddcup")
"""Sets whose test records are no sample of the pool: a part of the pool is held out instead."""


def played(case: Case, seed: int, data: Path | None) -> dict[str, Any]:
    """Measure the curves of random sampling and of the default, and pilots of other records each."""
    setup = case.setup
    world = _dealt(setup.world(Source(seed, data)), seed, whole=case.name not in APART)
    n = case.pilot
    with staged(world, setup, seed) as stage:
        sizes = [round(times * n) for times in TIMES if times * n <= len(world.y)]
        judged, random = np.moveaxis(
            [[_both(stage, rows, size) for size in sizes] for rows in _permuted(world, seed, 1, DRAWS)], -1, 0
        )
        goal = judged.mean(axis=0)[-1]
        default = [
            _default(stage, setup, rows[:n], goal, round(FARTHEST * n)) for rows in _permuted(world, seed, 2, REPLAYS)
        ]
        pilots = []
        for rows in _permuted(world, seed, 3, PILOTS):
            mine = np.sort(rows[:n])
            curve = measured(stage.learner, Known(world.X[mine], Labels(mine, world.y[mine])), seed=seed)
            pilots.append({"sizes": curve.sizes.tolist(), "right": curve.right.round(3).tolist()})
    # The default leaves the easy records of the pool, so it is judged on the test records, which are easier or harder
    # than those of the pool by chance: as much as random sampling finds.
    lucky = float((random - judged).mean())
    return {
        "labels": sizes,
        "random": random.mean(axis=0).tolist(),
        "spread": (random.std(axis=0, ddof=1) / DRAWS**0.5).tolist(),
        "default": [[(labels, right + lucky) for labels, right in points] for points in default],
        "pilots": pilots,
    }


def _default(stage: Stage, setup: Setup, rows: Rows, goal: float, most: int) -> list[tuple[int, float]]:
    """Go on from a pilot by the default, until the accuracy is reached thrice."""
    campaign = _Campaign(stage, Contender(Strategy.named(setup.default, explore=0.0)))
    campaign.known = rows
    points, reached = [(len(rows), _right(stage, rows))], 0
    while reached < 3 and len(campaign.known) < most:
        if not len(campaign.asked_next(max(20, len(rows) // 5))):
            break
        points.append((len(campaign.known), _right(stage, campaign.known)))
        reached += points[-1][1] >= goal
    return points


def _right(stage: Stage, rows: Rows) -> float:
    model = stage.fit(rows).model
    assert model is not None
    return float((model.predict_proba(stage.world.test.X).argmax(axis=1) == stage.world.test.y).mean())


def _both(stage: Stage, rows: Rows, size: int) -> tuple[float, float]:
    """Return the accuracy after `size` random labels on the test records, and on all records not learned from."""
    world, model = stage.world, stage.fit(rows[:size]).model
    assert model is not None
    X, y = np.concatenate([world.test.X, world.X[rows[size:]]]), np.append(world.test.y, world.y[rows[size:]])
    right = np.concatenate([proba.argmax(axis=1) for proba in model.predict_in_blocks(X)]) == y
    return float(right[: len(world.test.y)].mean()), float(right.mean())


def _permuted(world: World, seed: int, what: int, count: int) -> list[Rows]:
    return [np.random.default_rng([seed, what, each]).permutation(len(world.y)) for each in range(count)]


def _dealt(world: World, seed: int, *, whole: bool) -> World:
    """Deal records into a pool and a test set that is a sample like it."""
    X = np.concatenate([world.X, world.test.X]) if whole else world.X
    y = np.concatenate([world.y, world.test.y]) if whole else world.y
    order = np.random.default_rng([seed, 19]).permutation(len(y))
    tested = min(MOST_TESTED, 2 * len(y) // 5)
    pool, outside = order[tested:][:MOST_ROWS], order[:tested]
    return World(X[pool], y[pool], TestSet(X[outside], y[outside]), world.n_classes)


# -- the tables --------------------------------------------------------------------------------------------------------


class Result(NamedTuple):
    """One forecast and the truth: labels, or for the expected accuracy that.

    Attributes
    ----------
    case : str
    kind : str
        The way of choosing, and the kind of target.
    truth : float
        Infinite where it is beyond the farthest size that was measured.
    found : Estimate
    limit : float
        The forecast of one who knows the shape of the true curve, and its height by the pilot alone.
    start : int
        Labels of the pilot.
    """

    case: str
    kind: str
    truth: float
    found: Estimate
    limit: float
    start: int

    @property
    def covered(self) -> bool:
        """Whether the interval holds the truth."""
        return self.found.low <= self.truth <= self.found.high

    def near(self, guess: float | None) -> bool:
        """Return whether a forecast is within the factor; all up to the pilot count as one, and all that is beyond."""
        if guess is None:
            return self.truth > FARTHEST_TRUE * self.start
        first, last = self.start, FARTHEST_TRUE * self.start
        ratio = np.clip(guess, first, last) / np.clip(self.truth, first, last)
        return bool(1 / FACTOR <= ratio <= FACTOR)


def results(entry: Mapping[str, Any]) -> Iterator[Result]:
    """Yield each forecast of a set's pilots with its truth."""
    case, n, labels = entry["case"], entry["pilot"], np.array(entry["labels"], dtype=np.float64)
    law = _law(labels / n, np.array(entry["random"]))
    sizes = np.geomspace(n / 4, labels[-1], 4_000)
    height = law(sizes / n)
    default = _mean_curve(entry["default"])
    for number, pilot in enumerate(entry["pilots"]):
        found = outlook(Curve(np.array(pilot["sizes"]), np.array(pilot["right"])), seed=number)
        now = accuracy_now(found)
        assert now.value is not None
        seen = 1 - (1 - height) * (1 - now.value) / (1 - float(law(np.array(1.0))))
        for times in labels[1:] / n:
            curve = np.quantile(found.accuracy(np.array([times * n]))[:, 0], [0.025, 0.5, 0.975]).tolist()
            truth = float(law(np.array(times)))
            yield Result(case, "accuracy", truth, Estimate(curve[1], curve[0], curve[2], n, ""), math.nan, n)
            if truth - float(law(np.array(1.0))) < LEAST_GAIN:
                continue
            limit = _reached(sizes, seen, truth)
            yield Result(case, "random", times * n, forecast(found, truth), limit, n)
            reached = _reached(*default, truth)
            yield Result(case, "default", reached, forecast(found, truth, default=True), math.nan, n)
        for share in FEWER:
            target = 1 - (1 - share) * (1 - now.value)
            truth, limit = _reached(sizes, height, target), _reached(sizes, seen, target)
            yield Result(case, "random, fewer errors", truth, forecast(found, target), limit, n)


FARTHEST_TRUE = TIMES[-1]


def _law(x: Floats, accuracy: Floats) -> Callable[[Floats], Floats]:
    """Fit a power law to the measured means: their noise alone would move where a flat curve reaches a target."""

    def at(values: Floats, parameters: Floats) -> Floats:
        return np.asarray(parameters[0] - np.exp(parameters[1]) * values ** -np.exp(parameters[2]))

    fitted = least_squares(lambda parameters: at(x, parameters) - accuracy, [accuracy[-1] + 0.02, -2.0, -0.5]).x
    return lambda values: at(values, fitted)


def _mean_curve(curves: Sequence[Sequence[tuple[int, float]]]) -> tuple[Floats, Floats]:
    """Return the mean of replays as far as all go, its best so far at each point."""
    length = min(map(len, curves))
    points = np.array([curve[:length] for curve in curves], dtype=np.float64).mean(axis=0)
    return points[:, 0], np.maximum.accumulate(points[:, 1])


def _reached(labels: Floats, accuracy: Floats, target: float) -> float:
    """Return where an ascending curve reaches a target, on straight lines between its points; infinite beyond."""
    if accuracy[-1] < target:
        return math.inf
    return float(np.interp(target, *_distinct(accuracy, labels)))


def _distinct(accuracy: Floats, labels: Floats) -> tuple[Floats, Floats]:
    kept = np.append(True, np.diff(accuracy) > 0)
    return accuracy[kept], labels[kept]


KINDS = ("accuracy", "random", "default", "random, fewer errors")


def tables(entries: Sequence[Mapping[str, Any]]) -> str:
    """Return the tables as Markdown: of all sets, and of each."""
    found = [each for entry in entries for each in results(entry)]
    held = {case.name: case.held_out for case in CASES}
    names = [entry["case"] for entry in entries]
    groups = [
        ("held out", [each for each in names if held[each]]),
        ("others", [each for each in names if not held[each]]),
    ]
    lines = []
    for group, members in groups:
        for kind in KINDS:
            mine = [each for each in found if each.case in members and each.kind == kind]
            if mine:
                lines.append([group, str(len(members)), kind, *_line(mine)])
    headings = ["sets", "", "forecast of", "forecasts", "interval holds", "number given", "within 1.5", "limit"]
    each = [[name, *(_brief(found, name, kind) for kind in KINDS)] for name in names]
    return markdown(headings, lines) + "\n\n" + markdown(["set", *KINDS], each)


def _line(mine: Sequence[Result]) -> list[str]:
    cells = [str(len(mine)), f"{np.mean([each.covered for each in mine]):.0%}"]
    if mine[0].kind == "accuracy":
        return [*cells, "", "", ""]
    limits = [each.near(each.limit) for each in mine if not math.isnan(each.limit)]
    return [
        *cells,
        f"{np.mean([each.found.value is not None for each in mine]):.0%}",
        f"{np.mean([each.near(each.found.value) for each in mine]):.0%}",
        f"{np.mean(limits):.0%}" if limits else "",
    ]


def _brief(found: Sequence[Result], name: str, kind: str) -> str:
    mine = [each for each in found if each.case == name and each.kind == kind]
    if not mine:
        return "too flat"
    held = f"{sum(each.covered for each in mine)} of {len(mine)}"
    return held if kind == "accuracy" else f"{held}, {np.mean([each.near(each.found.value) for each in mine]):.0%}"


@click.command("plan")
@click.option("--data", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Folder of NAME.npz files.")
@click.option("--case", "names", multiple=True, type=click.Choice([case.name for case in CASES]), help="Default: all.")
@click.option("--seeds", default=1, show_default=True)
@click.option("--json", "path", required=True, type=click.Path(dir_okay=False, path_type=Path), help="Goes on from it.")
def command(data: Path | None, names: tuple[str, ...], seeds: int, path: Path) -> None:
    """Measure how often a pilot plan holds: a tenth of an hour a set."""
    entries: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["entries"] if path.exists() else []
    for seed in range(seeds):
        for case in CASES:
            which = {"case": case.name, "pilot": case.pilot, "seed": seed}
            if (names and case.name not in names) or any(which.items() <= entry.items() for entry in entries):
                continue
            entries.append({**which, **played(case, seed, data)})
            with replacing(path) as file:
                file.write(json.dumps({"machine": machine.facts(), "entries": entries}).encode())
    click.echo(tables(entries))

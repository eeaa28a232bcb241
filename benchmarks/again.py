"""Ask again or ask new: accuracy by answers where people err, with one answer a record, several, or as many as pay.

A team of five answers; each person errs in a fixed share of the records, the same ones under every way of asking. A new
record is the one with the smallest margin. The price is an answer, whatever it is about. The learner is the logistic
regression of the label replays.
"""

import json
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import click
import numpy as np
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks import machine
from benchmarks.labels.sets import Source, World, digits, satimage, sms_spam
from benchmarks.labels.statistics import area
from dal._threads import one_thread
from dal.evidence.again import asked_again, sureness
from dal.evidence.votes import Labels, label

SETS = {"digits": (digits, 50, 14), "satimage": (satimage, 60, 12), "sms_spam": (sms_spam, 40, 12)}
"""Makers of the worlds, answers a round, rounds after the first."""

TEAMS = {
    "60 %": (0.6,) * 5,
    "75 %": (0.75,) * 5,
    "85 %": (0.85,) * 5,
    "95 %": (0.95,) * 5,
    "60 to 95 %": (0.6, 0.6, 0.75, 0.85, 0.95),
}

WAYS = {
    "one": (1, "majority"),
    "one, weighed": (1, "dawid_skene"),
    "two": (2, "dawid_skene"),
    "three": (3, "dawid_skene"),
    "again": (1, "majority"),
    "again, weighed": (1, "dawid_skene"),
}
"""Answers to each new record, and the vote."""


@dataclass(frozen=True)
class Played:
    """A replay: mean accuracy over its answers, accuracy at the end, share of the answers that were second opinions."""

    set: str
    team: str
    way: str
    seed: int
    area: float
    last: float
    again: float
    answers: int


class Team:
    """People who answer, and what they have answered."""

    def __init__(self, world: World, right: tuple[float, ...], seed: int) -> None:
        rng = np.random.default_rng([seed, 11])
        shape = len(world.y), len(right)
        wrong = (world.y[:, None] + rng.integers(1, world.n_classes, shape)) % world.n_classes
        self._says = np.where(rng.random(shape) < right, world.y[:, None], wrong)
        self._order = np.argsort(rng.random(shape), axis=1)
        self.given = np.zeros(len(world.y), np.int64)
        self.size = len(right)
        self.rows: list[int] = []
        self.people: list[str] = []
        self.codes: list[int] = []

    def ask(self, rows: np.ndarray, times: int = 1) -> None:
        """Have each record answered by people who have not answered it."""
        for row in np.repeat(rows, times).tolist():
            person = int(self._order[row, self.given[row]])
            self.given[row] += 1
            self.rows.append(row)
            self.people.append(f"person {person}")
            self.codes.append(int(self._says[row, person]))


@lru_cache(maxsize=1)
def made(name: str, seed: int, data: Path) -> World:
    """Make the world of a seed, once for all ways."""
    return SETS[name][0](Source(seed, data))


def play(name: str, team: str, way: str, seed: int, data: Path, most: float = 0.5) -> Played:
    """Play one campaign of one answer after another."""
    _, batch, rounds = SETS[name]
    times, vote = WAYS[way]
    world = made(name, seed, data)
    people = Team(world, TEAMS[team], seed)
    people.ask(np.random.default_rng([seed, 7]).permutation(len(world.y))[: batch // times], times)
    answers, accuracy, asked_twice = [], [], 0
    while True:
        columns = people.rows, people.people, people.codes
        known = label(*columns, vote=vote, n_classes=world.n_classes, seed=seed)
        model = fitted(world, known)
        answers.append(len(people.rows))
        accuracy.append(float((model.predict(world.test.X) == world.test.y).mean()))
        if len(answers) > rounds:
            break
        free = np.setdiff1d(np.arange(len(world.y)), known.rows)
        proba = model.predict_proba(world.X[free])
        order = np.sort(proba, axis=1)
        chosen = np.argsort(order[:, -1] - order[:, -2], kind="stable")[: batch // times]
        new = free[chosen]
        if way.startswith("again"):
            labelled = sureness(*columns, n_classes=world.n_classes, seed=seed)
            able = people.given[labelled.rows] < people.size
            again, dropped = asked_again(labelled.right[able], order[chosen, -1], int(most * len(new)))
            people.ask(labelled.rows[able][again])
            asked_twice += len(again)
            new = np.delete(new, dropped)
        people.ask(new, times)
    return Played(name, team, way, seed, area(answers, accuracy), accuracy[-1], asked_twice / answers[-1], answers[-1])


def fitted(world: World, known: Labels) -> Pipeline:
    """Fit the learner to labels, doubtful ones as all classes that they may be."""
    positions, codes, weights = known.weighted()
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300))
    return model.fit(world.X[known.rows[positions]], codes, logisticregression__sample_weight=weights)


def paired(better: list[float], worse: list[float]) -> tuple[float, float]:
    """Return the mean of paired differences and the half-width of its 95 % interval."""
    differences = np.subtract(better, worse)
    half = stats.t.ppf(0.975, len(differences) - 1) * stats.sem(differences) if len(differences) > 1 else np.inf
    return float(differences.mean()), float(half)


@click.command("again")
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True, help="Folder of the data sets.")
@click.option("--seeds", default=10, show_default=True, help="Replays of each way.")
@click.option("--sets", default=",".join(SETS), show_default=True)
@click.option("--teams", default=",".join(TEAMS), show_default=True)
@click.option("--ways", default="one|one, weighed|two|three|again", show_default=True)
@click.option("--json", "path", type=click.Path(path_type=Path), help="Write the figures to this file.")
def command(data: Path, seeds: int, sets: str, teams: str, ways: str, path: Path | None) -> None:
    """Measure whether second opinions pay, for teams that err in 5 to 40 of 100 records."""
    played: list[Played] = []
    chosen = ways.split("|")
    for name in sets.split(","):
        for team in teams.split(","):
            with one_thread:
                drawn = [[play(name, team, way, seed, data) for way in chosen] for seed in range(seeds)]
            mine = dict(zip(chosen, map(list, zip(*drawn, strict=True)), strict=True))
            played += [each for way in mine.values() for each in way]
            areas = {way: [each.area for each in known] for way, known in mine.items()}
            cells = []
            for way in chosen:
                apart = "" if way == chosen[0] else " ({:+.3f} ± {:.3f})".format(*paired(areas[way], areas[chosen[0]]))
                share = f", {np.mean([each.again for each in mine[way]]):.0%} again" if way.startswith("again") else ""
                cells.append(f"{way} {np.mean(areas[way]):.3f}{apart}{share}")
            print(f"{name}, {team}: {'; '.join(cells)}", flush=True)
    if path is not None:
        content = {"machine": machine.facts(), "replays": [asdict(each) for each in played]}
        path.write_text(json.dumps(content, indent=2), encoding="utf-8")

"""How often the advice about learners is right, by the number of labels, and what switching to one gains."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt

from benchmarks import machine
from benchmarks.labels.replay import NO_ROWS, Contender, Stage, _Campaign, staged
from benchmarks.labels.sets import SETS, Setup, Source, World
from benchmarks.labels.statistics import mean_interval
from benchmarks.labels.table import markdown
from dal._files import replacing
from dal.evidence.comparison import compare
from dal.evidence.votes import Labels
from dal.learners.learner import Learner
from dal.loop.learners import SAMPLED, Known, Tried, judge
from dal.selection.explore import uniform_rows
from dal.selection.strategy import Strategy

CANDIDATES = ("logistic", "head", "forest")
"""Not hgb and mlp, whose fits take longest."""
IN_USE = ("logistic", "forest")
MOST_ROWS, MOST_TESTED = 10_000, 3_000
WEIGHTS = ("raked", "equal")
"""To the pool, as dal does; and all alike, to compare with."""


@dataclass(frozen=True)
class Case:
    """A set, with the records asked in a round, and the rounds after which learners are compared."""

    name: str
    batch: int
    after: tuple[int, ...] = (1, 3, 6)
    rounds: int = 7


CASES = (
    Case("digits", 30),
    Case("letter", 70),
    Case("satimage", 40),
    Case("sms_spam", 30),
    Case("fashion", 60),
    Case("kddcup", 40),
    Case("trec", 50),
    Case("stackoverflow_wl", 50),
)


def played(case: Case, in_use: str, seed: int, data: Path | None) -> dict[str, Any]:
    """Play a campaign that stays with its learner, and one that follows the first advice."""
    setup: Setup = SETS[case.name]
    world = _cut(setup.world(Source(seed, data)), seed)
    with staged(world, setup, seed) as stage:
        classes = stage.learner.classes
        learners = {name: Learner.named(name, classes, random_state=seed) for name in CANDIDATES}
        stage.learner = learners[in_use]
        checks = list(_stay(stage, case, in_use, learners))
        found: dict[str, Any] = {"checks": checks, "final": checks[-1]["right"][in_use], "switched": None}
        advised = [(each["rounds"], each["advice"]["raked"]) for each in checks[:-1] if each["advice"]["raked"]]
        if advised:
            at, name = advised[0]
            final = _switched(stage, case, in_use, learners, at, name)
            found["switched"] = {"after": at, "to": name, "final": final}
        return found


def _stay(stage: Stage, case: Case, in_use: str, learners: Mapping[str, Learner]) -> Iterator[dict[str, Any]]:
    order = [in_use, *(name for name in CANDIDATES if name != in_use)]
    campaign = _begun(stage, case)
    for number in range(1, case.rounds + 1):
        campaign.asked_next(case.batch)
        if number not in (*case.after, case.rounds):
            continue
        right = {name: _right(stage, learners[name], campaign) for name in order}
        found = {"rounds": number, "labels": len(campaign.known), "right": right}
        if number in case.after:
            tried = _tried(stage, {name: learners[name] for name in order}, campaign)
            found |= _verdicts(tried, drawn_of(campaign))
        yield found


def _begun(stage: Stage, case: Case) -> _Campaign:
    campaign = _Campaign(stage, Contender(Strategy(), start="cold"))
    campaign.asked_next(case.batch)
    return campaign


def _switched(stage: Stage, case: Case, in_use: str, learners: Mapping[str, Learner], at: int, name: str) -> float:
    campaign = _begun(stage, case)
    for number in range(1, case.rounds + 1):
        stage.learner = learners[name if number > at else in_use]
        campaign.asked_next(case.batch)
    return _right(stage, learners[name], campaign)


def _right(stage: Stage, learner: Learner, campaign: _Campaign) -> float:
    world, known = stage.world, campaign.known
    if len(np.unique(world.y[known])) < 2:
        return float((world.test.y == world.y[known[0]]).mean())
    model = learner.try_fit(world.X[known], world.y[known])
    return float((model.predict_proba(world.test.X).argmax(axis=1) == world.test.y).mean())


def _tried(stage: Stage, learners: Mapping[str, Learner], campaign: _Campaign) -> Tried:
    world, rows = stage.world, np.sort(campaign.known)
    draws = uniform_rows(stage.pool.n_rows, NO_ROWS, stage.seed, -7)
    sample = np.array([next(draws) for _ in range(min(SAMPLED, stage.pool.n_rows))])
    return judge(learners, Known(world.X[rows], Labels(rows, world.y[rows])), world.X[sample])


def drawn_of(campaign: _Campaign) -> npt.NDArray[np.bool_]:
    """Return whether each labelled record, by row, was drawn uniformly."""
    return np.isin(np.sort(campaign.known), NO_ROWS if campaign.random is None else campaign.random)


def _verdicts(tried: Tried, drawn: npt.NDArray[np.bool_]) -> dict[str, Any]:
    found: dict[str, Any] = {"too_early": tried.too_early, "advice": dict.fromkeys(WEIGHTS), "candidates": {}}
    if tried.too_early:
        return found
    for name, weights in zip(WEIGHTS, (tried.weights, np.ones_like(tried.weights)), strict=True):
        results = compare(tried.judged, tried.folds, weights, drawn)
        better = [each for each in results if each.verdict == "better"]
        found["candidates"][name] = [asdict(each) for each in results]
        if better:
            found["advice"][name] = max(better, key=lambda each: each.difference_low).name
    return found


def _cut(world: World, seed: int) -> World:
    """Draw at most `MOST_ROWS` records of the pool, and `MOST_TESTED` of the test set."""
    rng = np.random.default_rng([seed, 18])
    rows = np.sort(rng.permutation(len(world.y))[:MOST_ROWS])
    tested = np.sort(rng.permutation(len(world.test.y))[:MOST_TESTED])
    test = type(world.test)(world.test.X[tested], world.test.y[tested])
    return World(world.X[rows], world.y[rows], test, world.n_classes)


# -- the tables --------------------------------------------------------------------------------------------------------


def tables(entries: Sequence[Mapping[str, Any]]) -> str:
    """Return the tables as Markdown."""
    return "\n\n".join([_advice(entries, name) for name in WEIGHTS] + [_gains(entries)])


def _pairs(entries: Sequence[Mapping[str, Any]], weights: str) -> Iterator[tuple[int, Mapping[str, Any], float]]:
    """Yield, for each comparison of two learners, its place in the campaign, its result, and the true difference."""
    for entry in entries:
        for place, check in enumerate(entry["checks"][:-1]):
            for each in check["candidates"].get(weights, [])[1:]:
                yield place, each, check["right"][each["name"]] - check["right"][entry["in_use"]]


def _advice(entries: Sequence[Mapping[str, Any]], weights: str) -> str:
    lines = []
    labels = [[entry["checks"][place]["labels"] for entry in entries] for place in range(3)]
    for place in range(3):
        mine = [(each, truth) for at, each, truth in _pairs(entries, weights) if at == place]
        if not mine:
            continue
        better, worse = ([t for e, t in mine if e["verdict"] == word] for word in ("better", "worse"))
        late = sum(each["verdict"] == "too early to tell" for each, _ in mine)
        gains = np.array([truth for _, truth in mine])
        held = np.mean([e["difference_low"] <= t <= e["difference_high"] for e, t in mine])
        off = np.mean([e["difference"] - t for e, t in mine])
        missed = sum(truth > 0.02 for each, truth in mine if each["verdict"] == "too early to tell")
        lines.append(
            [
                f"{min(labels[place])} to {max(labels[place])}",
                str(len(mine)),
                _share(better, lambda truth: truth > 0),
                f"{100 * np.mean(better):+.1f}" if better else "",
                _share(worse, lambda truth: truth < 0),
                f"{late / len(mine):.0%}",
                f"{missed} of {int((gains > 0.02).sum())}",
                f"{held:.0%}",
                f"{100 * off:+.1f}",
            ]
        )
    headings = [
        f"labels ({weights} weights)",
        "pairs",
        '"better", right',
        "gain, points",
        '"worse", right',
        "too early",
        "better by over 2 points and not told",
        "interval holds",
        "bias of the difference, points",
    ]
    return markdown(headings, lines)


def _share(truths: Sequence[float], right: Callable[[float], bool]) -> str:
    return f"{sum(map(right, truths))} of {len(truths)}" if truths else "none"


def _gains(entries: Sequence[Mapping[str, Any]]) -> str:
    lines = []
    for case in CASES:
        for in_use in IN_USE:
            mine = [each for each in entries if each["case"] == case.name and each["in_use"] == in_use]
            if not mine:
                continue
            moved = [each for each in mine if each["switched"]]
            gains = 100 * np.array([each["switched"]["final"] - each["final"] for each in moved])
            to = sorted({each["switched"]["to"] for each in moved})
            at = sorted(
                {
                    each["checks"][k]["labels"]
                    for each in moved
                    for k in range(3)
                    if each["checks"][k]["rounds"] == each["switched"]["after"]
                }
            )
            gain = ""
            if len(gains) > 1:
                mean, low, high = mean_interval(gains)
                gain = f"{mean:+.1f} ({low:+.1f} to {high:+.1f})"
            elif len(gains):
                gain = f"{gains[0]:+.1f}"
            lines.append(
                [
                    case.name,
                    in_use,
                    str(mine[0]["checks"][-1]["labels"]),
                    f"{np.mean([each['final'] for each in mine]):.3f}",
                    f"{len(moved)} of {len(mine)}",
                    ", ".join(to),
                    ", ".join(map(str, at)),
                    gain,
                ]
            )
    headings = [
        "set",
        "in use",
        "labels",
        "accuracy of staying",
        "advised",
        "to",
        "at labels",
        "gain at the end, points",
    ]
    return markdown(headings, lines)


@click.command("learners")
@click.option("--data", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Folder of NAME.npz files.")
@click.option("--case", "names", multiple=True, type=click.Choice([case.name for case in CASES]), help="Default: all.")
@click.option("--seeds", default=5, show_default=True)
@click.option("--json", "path", required=True, type=click.Path(dir_okay=False, path_type=Path), help="Goes on from it.")
def command(data: Path | None, names: tuple[str, ...], seeds: int, path: Path) -> None:
    """Measure how often the advice about learners is right, and what following it gains."""
    entries: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["entries"] if path.exists() else []
    for seed in range(seeds):
        for case in CASES:
            for in_use in IN_USE:
                which = {"case": case.name, "in_use": in_use, "seed": seed}
                if (names and case.name not in names) or any(which.items() <= entry.items() for entry in entries):
                    continue
                entries.append({**which, **played(case, in_use, seed, data)})
                with replacing(path) as file:
                    file.write(json.dumps({"machine": machine.facts(), "entries": entries}).encode())
    click.echo(tables(entries))

"""Weights for labelled sets that were asked for: when they help to train by, and when to judge by."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt

from benchmarks import machine
from benchmarks.labels.main import SETUPS
from benchmarks.labels.replay import NO_ROWS, Contender, Rows, Stage, _Campaign, staged
from benchmarks.labels.sets import Source
from benchmarks.labels.statistics import mean_interval
from benchmarks.labels.table import markdown
from benchmarks.learners import _cut, drawn_of
from dal._files import replacing
from dal.evidence.bias import distance, of_regions
from dal.evidence.comparison import Judged, compare
from dal.evidence.votes import Labels
from dal.learners.learner import Learner
from dal.loop.bias import REGIONS, by_regions
from dal.loop.learners import SAMPLED, Known, judge, judge_weighted, scaled
from dal.selection.codebook import Codebook
from dal.selection.explore import uniform_rows
from dal.selection.strategy import Strategy

Floats = npt.NDArray[np.float64]

EXPLORE = 0.05
MOST_JUDGED = 4_000
"""Records of the pool on which a model is judged, of those that were not asked."""
MADE_UP = 4
"""Answers by the shares of the labels that are added to the explore answers, for weights of classes."""
TRAINED = ("none", "training_weight", "weight", "classes")


@dataclass(frozen=True)
class Case:
    """A set, with the records asked in a round, and the rounds after which models are trained."""

    name: str
    batch: int
    after: tuple[int, ...] = (2, 6)


CASES = (
    Case("digits", 30),
    Case("satimage", 40),
    Case("imbalanced", 50),
    Case("sms_spam", 30),
    Case("kddcup", 40),
    Case("concentric_10d_inner_30", 30),
    Case("concentric_20d_inner_80", 30),
)


def played(case: Case, learner: str, seed: int, data: Path | None) -> list[dict[str, Any]]:
    """Play a campaign by the default strategy, and train and judge models on its labels with and without weights.

    Parameters
    ----------
    case : Case
    learner : str
        A preset; ``set`` for the learner of the set.
    seed : int
    data : Path or None
    """
    setup = SETUPS[case.name]
    world = _cut(setup.world(Source(seed, data)), seed)
    with staged(world, setup, seed) as stage:
        if learner != "set":
            stage.learner = Learner.named(learner, stage.learner.classes, random_state=seed)
        campaign = _Campaign(stage, Contender(replace(Strategy(), explore=EXPLORE), start="cold"))
        campaign.asked_next(case.batch)
        found = []
        for number in range(1, max(case.after) + 1):
            campaign.asked_next(case.batch)
            if number in case.after:
                found.append(_checked(stage, campaign))
        return found


def _checked(stage: Stage, campaign: _Campaign) -> dict[str, Any]:
    world, rows = stage.world, np.sort(campaign.known)
    draws = uniform_rows(stage.pool.n_rows, NO_ROWS, stage.seed, -7)
    sample = world.X[[next(draws) for _ in range(min(SAMPLED, stage.pool.n_rows))]]
    known, codes = Known(world.X[rows], Labels(rows, world.y[rows])), world.y[rows]
    learners = {"in use": stage.learner}
    tried = judge(learners, known, sample)
    if tried.too_early:
        return {"labels": len(rows), "too_early": tried.too_early}
    regions = by_regions(known.X, sample, stage.seed)
    weightings = {
        "none": None,
        "training_weight": scaled(regions),
        "weight": scaled(tried.weights.mean(axis=0)),
        "classes": _of_classes(codes, np.isin(rows, campaign.random), world.n_classes),
    }
    rest = np.setdiff1d(np.arange(len(world.y)), rows)
    rest = np.sort(np.random.default_rng([stage.seed, 3]).permutation(rest)[:MOST_JUDGED])
    trained = {
        name: _measured(stage.learner.try_fit(known.X, codes, weights).predict_proba(world.X[rest]), world.y[rest])
        for name, weights in weightings.items()
    }
    corrected = judge_weighted(learners, known, sample, tried, scaled(regions))
    assert isinstance(corrected, Judged)
    both = [*tried.judged, corrected]
    # As if all labels were of records drawn at random: the accuracy then is that of the weighted ones.
    judged = {
        name: compare(both, tried.folds, weights, np.ones(len(rows), dtype=np.bool_))
        for name, weights in (("weight", tried.weights), ("equal", np.ones_like(tried.weights)))
    }
    verdicts = {
        name: {**asdict(corrected), "plain": plain.accuracy.value, "ends": [plain.accuracy.low, plain.accuracy.high]}
        for name, (plain, corrected) in judged.items()
    }
    told = compare(both, tried.folds, tried.weights, drawn_of(campaign))[0].accuracy
    codebook = Codebook.fit(sample, REGIONS, stage.seed)
    shares = of_regions(
        codebook.assign(known.X).astype(np.int64),
        codes,
        codebook.assign(sample).astype(np.int64),
        stage.learner.classes,
    )
    found = {"labels": len(rows), "trained": trained, "verdicts": verdicts, "apart": distance(shares)}
    return found | {"drawn": told.n, "at_least": told.low}


def _of_classes(codes: Rows, drawn: npt.NDArray[np.bool_], n_classes: int) -> Floats:
    """Weigh labels to the shares of the classes among those drawn uniformly, with some made-up ones."""
    shares = np.bincount(codes, minlength=n_classes) / len(codes)
    wanted = np.bincount(codes[drawn], minlength=n_classes) + MADE_UP * shares
    return scaled((wanted / np.where(shares > 0, shares, 1))[codes])


def _measured(proba: npt.NDArray[np.floating[Any]], truth: Rows) -> dict[str, float]:
    right, given = proba.argmax(axis=1) == truth, proba.astype(np.float64)
    brier = (given**2).sum(axis=1) - 2 * given[np.arange(len(truth)), truth] + 1
    recall = [right[truth == code].mean() for code in np.unique(truth)]
    return {"accuracy": float(right.mean()), "recall": float(np.mean(recall)), "brier": float(brier.mean())}


# -- the tables --------------------------------------------------------------------------------------------------------


def tables(entries: Sequence[Mapping[str, Any]]) -> str:
    """Return the tables as Markdown: what training by weights gains, by learner; what judging by them does; levels."""
    return "\n\n".join([*(_trained(entries, name) for name in _learners(entries)), _judged(entries), _levels(entries)])


def _learners(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(entry["learner"] for entry in entries))


def _groups(entries: Sequence[Mapping[str, Any]], learner: str) -> list[tuple[str, list[Mapping[str, Any]]]]:
    """Return, for each set and place in the campaign, the checks of all seeds."""
    found = []
    for case in CASES:
        for place in range(len(case.after)):
            mine = [entry for entry in entries if (entry["case"], entry["learner"]) == (case.name, learner)]
            checks = [entry["checks"][place] for entry in mine if "trained" in entry["checks"][place]]
            if checks:
                found.append((case.name, checks))
    return found


def _trained(entries: Sequence[Mapping[str, Any]], learner: str) -> str:
    lines = []
    for name, checks in _groups(entries, learner):
        apart, by_chance = np.mean([check["apart"] for check in checks], axis=0)
        line = [name, str(checks[0]["labels"]), f"{apart:.2f}, {by_chance:.2f}"]
        line.append(" / ".join(f"{_mean(checks, 'none', of):.3f}" for of in ("accuracy", "recall", "brier")))
        for other in TRAINED[1:]:
            gains = 100 * np.array([check["trained"][other]["accuracy"] for check in checks])
            gains -= 100 * np.array([check["trained"]["none"]["accuracy"] for check in checks])
            recall = 100 * (_mean(checks, other, "recall") - _mean(checks, "none", "recall"))
            brier = _mean(checks, other, "brier") - _mean(checks, "none", "brier")
            line.append(f"{_spread(gains)} / {recall:+.1f} / {brier:+.3f}")
        lines.append(line)
    headings = [
        f"{learner}: set",
        "labels",
        "apart, by chance",
        "without weights: accuracy / mean recall / Brier",
        *(f"`{name}`" if "weight" in name else name for name in TRAINED[1:]),
    ]
    return markdown(headings, lines)


def _mean(checks: Sequence[Mapping[str, Any]], trained: str, of: str) -> float:
    return float(np.mean([check["trained"][trained][of] for check in checks]))


def _spread(values: Floats) -> str:
    if len(values) < 2:
        return f"{values[0]:+.1f}"
    mean, low, high = mean_interval(values)
    return f"{mean:+.1f} ({low:+.1f} to {high:+.1f})"


def _judged(entries: Sequence[Mapping[str, Any]]) -> str:
    lines = []
    for learner in _learners(entries):
        checks = [check for _, group in _groups(entries, learner) for check in group]
        plain = np.array([check["trained"]["none"]["accuracy"] for check in checks])
        truth = np.array([check["trained"]["training_weight"]["accuracy"] for check in checks]) - plain
        for name in ("weight", "equal"):
            told = [check["verdicts"][name] for check in checks]
            gaps = np.array([each["difference"] for each in told]) - truth
            held = [each["difference_low"] <= t <= each["difference_high"] for each, t in zip(told, truth, strict=True)]
            better, worse = (
                [t for each, t in zip(told, truth, strict=True) if each["verdict"] == word]
                for word in ("better", "worse")
            )
            off = np.array([each["plain"] for each in told]) - plain
            lines.append(
                [
                    learner,
                    name,
                    str(len(checks)),
                    f"{sum(t > 0 for t in better)} of {len(better)}",
                    f"{sum(t < 0 for t in worse)} of {len(worse)}",
                    f"{100 * gaps.mean():+.1f}",
                    f"{np.mean(held):.0%}",
                    f"{100 * off.mean():+.1f}, {100 * np.sqrt((off**2).mean()):.1f}",
                ]
            )
    headings = [
        "learner",
        "judged by",
        "labelled sets",
        '"better", right',
        '"worse", right',
        "bias of the difference, points",
        "interval holds",
        "accuracy without weights: bias, error",
    ]
    return markdown(headings, lines)


def _levels(entries: Sequence[Mapping[str, Any]]) -> str:
    """Hold what an accuracy is at least, and the one that weighted labels show, against the pool."""
    lines = []
    for learner in _learners(entries):
        everything = list[Mapping[str, Any]]()
        for name, checks in _groups(entries, learner):
            lines.append([learner, name, str(checks[0]["labels"]), *_level(checks)])
            everything += checks
        lines.append([learner, "all", "", *_level(everything)])
    headings = [
        "learner",
        "set",
        "labels",
        "drawn at random",
        "accuracy",
        "weighted labels: bias, interval holds",
        "at least",
        "it is",
    ]
    return markdown(headings, lines)


def _level(checks: Sequence[Mapping[str, Any]]) -> list[str]:
    truth = np.array([check["trained"]["none"]["accuracy"] for check in checks])
    weighted = [check["verdicts"]["weight"] for check in checks]
    off = np.array([each["plain"] for each in weighted]) - truth
    held = [each["ends"][0] <= t <= each["ends"][1] for each, t in zip(weighted, truth, strict=True)]
    drawn = [check["drawn"] for check in checks]
    told = [(check["at_least"], t) for check, t in zip(checks, truth, strict=True) if check["at_least"] > 0]
    return [
        f"{min(drawn)} to {max(drawn)}",
        f"{truth.mean():.3f}",
        f"{100 * off.mean():+.1f}, {sum(held)} of {len(held)}",
        f"{np.mean([low for low, _ in told]):.3f}" if told else "",
        f"{sum(low <= t for low, t in told)} of {len(told)}",
    ]


@click.command("bias")
@click.option("--data", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Folder of NAME.npz files.")
@click.option("--case", "names", multiple=True, type=click.Choice([case.name for case in CASES]), help="Default: all.")
@click.option("--learner", default="set", show_default=True, help="A preset, or set: the learner of each set.")
@click.option("--seeds", default=5, show_default=True)
@click.option("--json", "path", required=True, type=click.Path(dir_okay=False, path_type=Path), help="Goes on from it.")
def command(data: Path | None, names: tuple[str, ...], learner: str, seeds: int, path: Path) -> None:
    """Measure what weights to the pool do to models, in training and in judging."""
    entries: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["entries"] if path.exists() else []
    for seed in range(seeds):
        for case in CASES:
            which = {"case": case.name, "learner": learner, "seed": seed}
            if (names and case.name not in names) or any(which.items() <= entry.items() for entry in entries):
                continue
            entries.append({**which, "checks": played(case, learner, seed, data)})
            with replacing(path) as file:
                file.write(json.dumps({"machine": machine.facts(), "entries": entries}).encode())
    click.echo(tables(entries))

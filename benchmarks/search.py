"""What a search by examples saves: labels until five records of each rare class are found, against the default.

Both campaigns begin without a label, with the same pool and seed. The one that searches is given one example of each
rare class, drawn by the seed, as a person may know one. In each round it searches for the like of the examples, and of
the records found so far, of those rare classes of which it has less than five. The example counts when it is labelled.
"""

import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt

import dal
from benchmarks import machine
from benchmarks.finetune import measured
from benchmarks.labels.sets import kddcup_features
from benchmarks.labels.statistics import Interval, mean_interval
from benchmarks.labels.table import markdown
from dal._files import replacing

ENOUGH = 5
SHARES = (0.0, 0.3, 1.0)
"""Of each batch that is searched for; 0 is the default alone."""


@dataclass(frozen=True)
class Case:
    """A pool with its classes, and the rare ones among these."""

    X: npt.NDArray[np.float32]
    y: npt.NDArray[np.int64]
    rare: tuple[int, ...]
    estimator: str


def kddcup(data: Path, seed: int) -> Case:
    """Draw 100,000 connections, among them all of the classes of at most 60."""
    with np.load(data / "kddcup99_10pct.npz") as stored:
        X, y = stored["X"].astype(np.float64), stored["y"].astype(np.int64)
    counts, rng = np.bincount(y), np.random.default_rng([seed, 16])
    few = np.flatnonzero(counts[y] <= 60)
    others = rng.permutation(np.flatnonzero(counts[y] > 60))[: 100_000 - len(few)]
    rows = rng.permutation(np.concatenate([few, others]))
    rare = np.flatnonzero((counts >= ENOUGH) & (counts <= 60))
    return Case(kddcup_features(X[rows]), y[rows], tuple(rare.tolist()), "logistic")


def stackoverflow(data: Path, seed: int) -> Case:
    """Keep eight titles of five classes that the seed draws, and all of the other fifteen."""
    with np.load(data / "embeddings" / "stackoverflow_wl.npz") as stored:
        E, y = stored["E"].astype(np.float32), stored["y"].astype(np.int64)
    rng = np.random.default_rng([seed, 17])
    rare = np.sort(rng.permutation(int(y.max()) + 1)[:5])
    order = rng.permutation(len(y))
    rank = np.empty(len(y), np.int64)
    for code in range(int(y.max()) + 1):
        mine = order[y[order] == code]
        rank[mine] = np.arange(len(mine))
    rows = order[~np.isin(y[order], rare) | (rank[order] < 8)]
    return Case(E[rows], y[rows], tuple(rare.tolist()), "head")


CASES: Mapping[str, Callable[[Path, int], Case]] = {"kddcup": kddcup, "stackoverflow_wl": stackoverflow}


def played(case: Case, share: float, *, seed: int, batch: int, rounds: int, folder: Path) -> dict[str, Any]:
    """Play a campaign; return after how many labels each rare class had five, and what it came to."""
    pool = dal.Pool.build(case.X, folder / "pool.zarr")
    names = [str(code) for code in range(int(case.y.max()) + 1)]
    campaign = dal.Campaign.create(
        folder / "campaign", pool, names, estimator=case.estimator, batch_size=batch, random_state=seed, explore=0.0
    )
    rng = np.random.default_rng([seed, 18])
    known = {code: [int(rng.choice(np.flatnonzero(case.y == code)))] for code in case.rare}
    found, reached, labels = dict.fromkeys(case.rare, 0), dict[int, int](), 0
    for _ in range(rounds):
        sought = [str(row) for code in case.rare if found[code] < ENOUGH for row in known[code]]
        search = {"like": sought, "share": share} if share and sought else {}
        given = campaign.next_batch(**search)
        if isinstance(given, dal.Stopped):
            break
        codes = case.y[given.rows]
        campaign.label(given, codes.astype(str))
        for row, code in zip(given.rows.tolist(), codes.tolist(), strict=True):
            labels += 1
            if code in found:
                found[code] += 1
                known[code] = list(dict.fromkeys([*known[code], row]))
                if found[code] == ENOUGH:
                    reached[code] = labels
    accuracy, recall = measured(campaign, case.y)
    return {
        "labels": labels,
        "reached": {str(code): reached.get(code) for code in case.rare},
        "accuracy": accuracy,
        "recall": recall,
    }


def shown(found: Interval, digits: int = 0) -> str:
    """Return a mean with its interval."""
    if found.low is None or found.high is None or found.value is None:
        return f"{found.value or 0:,.{digits}f}"
    return f"{found.value:,.{digits}f} ± {(found.high - found.low) / 2:,.{digits}f}"


def needed(row: Mapping[str, Any]) -> list[int]:
    """Return the labels until five of each rare class are found; all there were, where they are not."""
    return [row["labels"] if labels is None else labels for labels in row["reached"].values()]


def table(rows: list[dict[str, Any]]) -> str:
    """Lay the rows out, one line for each set and share."""
    lines = []
    for name, share in dict.fromkeys((row["case"], row["share"]) for row in rows):
        mine = [row for row in rows if (row["case"], row["share"]) == (name, share)]
        usual = {row["seed"]: row for row in rows if (row["case"], row["share"]) == (name, 0.0)}
        paired = [(row, usual[row["seed"]]) for row in mine if row["seed"] in usual]
        less = np.array([np.mean(needed(row)) - np.mean(needed(other)) for row, other in paired])
        done = [labels is not None for row in mine for labels in row["reached"].values()]
        lines.append(
            [
                name,
                f"search {share:g}" if share else "default",
                str(len(mine)),
                f"{sum(done)} of {len(done)}",
                shown(mean_interval(np.array([np.mean(needed(row)) for row in mine]))),
                shown(mean_interval(less)) if share and len(less) > 1 else "",
                shown(mean_interval(np.array([max(needed(row)) for row in mine]))),
                shown(mean_interval(np.array([100 * row["recall"] for row in mine])), 1),
                shown(mean_interval(np.array([100 * row["accuracy"] for row in mine])), 1),
            ]
        )
    headings = [
        "set",
        "batches by",
        "seeds",
        "rare classes with five",
        "labels to five",
        "against the default",
        "labels to five of all",
        "mean recall, %",
        "accuracy, %",
    ]
    return markdown(headings, lines)


@click.command("search")
@click.option("--data", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True)
@click.option("--case", "cases", multiple=True, type=click.Choice(list(CASES)), help="Default: all.")
@click.option("--share", "shares", multiple=True, type=float, default=SHARES, show_default=True)
@click.option("--batch", default=50, show_default=True)
@click.option("--rounds", default=12, show_default=True)
@click.option("--seeds", default=10, show_default=True)
@click.option("--json", "path", required=True, type=click.Path(dir_okay=False, path_type=Path), help="Goes on from it.")
def command(
    data: Path, cases: tuple[str, ...], shares: tuple[float, ...], batch: int, rounds: int, seeds: int, path: Path
) -> None:
    """Measure what a search by examples saves."""
    rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    for seed in range(seeds):
        for name in cases or CASES:
            for share in shares:
                which = {"case": name, "share": share, "seed": seed, "batch": batch, "rounds": rounds}
                if any(which.items() <= row.items() for row in rows):
                    continue
                with tempfile.TemporaryDirectory(prefix="dal-") as place:
                    case = CASES[name](data, seed)
                    found = played(case, share, seed=seed, batch=batch, rounds=rounds, folder=Path(place))
                rows.append({**which, **found})
                with replacing(path) as file:
                    file.write(json.dumps({"machine": machine.facts(), "rows": rows}, indent=1).encode())
    click.echo(table(rows))

"""What rounds by waves cost and what they lose, against rounds that score the whole pool.

`loss` replays campaigns in pairs, with the same pool, first labels and seeds: one scores the whole pool in each round,
the other scores it by waves. `cost` plays a real campaign on a generated pool of any size, and times its rounds.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks import machine
from benchmarks.labels.replay import Contender, Stage, replay, staged
from benchmarks.labels.sets import SETS, Setup, Source, World, embedded, imbalanced, noisy
from benchmarks.labels.statistics import area, paired
from dal._files import replacing
from dal.scan import Limits, Waves
from dal.selection.strategy import Strategy

ROWS = 200_000
BLOCKS = 1_000
"""A set has at least so many blocks, of which a first wave takes 32: a few rows each, since real pools are larger."""


def _sorted(source: Source) -> World:
    world = imbalanced(source, ROWS)
    order = np.argsort(world.y, kind="stable")
    return replace(world, X=world.X[order], y=world.y[order])


LARGE: Mapping[str, tuple[Setup, str]] = {
    "imbalanced": (replace(SETS["imbalanced"], world=lambda source: imbalanced(source, ROWS), seeds=8), "default"),
    "imbalanced_sorted": (replace(SETS["imbalanced"], world=_sorted, seeds=8), "default"),
    "noisy": (replace(SETS["noisy"], world=lambda source: noisy(source, ROWS), seeds=8), "default"),
    "kddcup": (replace(SETS["kddcup"], seeds=8), "default"),
    "fashion": (replace(SETS["fashion"], initial=100, batch=100, rounds=12, seeds=5), "default"),
    "stackoverflow_wl": (
        replace(SETS["stackoverflow_wl"], world=lambda source: embedded(source, "stackoverflow_wl", 18_000), seeds=8),
        "class_coverage",
    ),
}
"""Sets made large, with the strategy that is the default for their features."""


def _limits(n_rows: int) -> Limits:
    return Limits(tile_rows=1 << max(4, (n_rows // BLOCKS).bit_length() - 1))


def _contenders(strategy: str, floors: Sequence[float], *, alone: bool) -> dict[str, Contender]:
    chosen = Strategy.named(strategy, explore=0.05)
    found = {"full": Contender(chosen)}
    for floor in floors:
        found[f"{floor:g}"] = Contender(chosen, waves=Waves(floor))
        if alone:
            found[f"{floor:g} alone"] = Contender(chosen, waves=Waves(floor), carries=False)
    return found


def played(stage: Stage, setup: Setup, contenders: Mapping[str, Contender]) -> dict[str, dict[str, Any]]:
    """Replay each contender from the same first labels."""
    return {name: asdict(replay(stage, setup, each)) for name, each in contenders.items()}


def lost(known: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Compare each contender with the full pass, seed by seed."""

    def areas(name: str) -> np.ndarray:
        return np.array([area(each["labels"], each["accuracy"]) for each in known[name]])

    def mean(name: str, of: str) -> float:
        return float(np.mean([np.mean(each[of]) if each[of] else np.nan for each in known[name]]))

    rows = []
    for name in known:
        found = paired(areas(name), areas("full"))
        finals = paired(
            np.array([each["accuracy"][-1] for each in known[name]]),
            np.array([each["accuracy"][-1] for each in known["full"]]),
        )
        rows.append(
            {
                "contender": name,
                "scored": mean(name, "scored"),
                "area": float(areas(name).mean()),
                "difference": found.difference,
                "final": finals.difference,
                "noise": mean(name, "noise"),
                "rare found": float(np.mean([each["rare_found"][-1] for each in known[name]])),
            }
        )
    return rows


def _shown(rows: Sequence[Mapping[str, Any]], seeds: int) -> str:
    lines = [
        "| | rows scored | area | against full | at the end | noise | rare classes |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        diff, final = row["difference"], row["final"]
        both = [
            "" if row["contender"] == "full" else f"{each.value:+.4f} ± {(each.high - each.low) / 2:.4f}"
            for each in (diff, final)
        ]
        noise = "" if np.isnan(row["noise"]) else f"{row['noise']:.2f}"
        lines.append(
            f"| {row['contender']} | {row['scored']:.1%} | {row['area']:.4f} | {both[0]} | {both[1]} | {noise} |"
            f" {row['rare found']:.1f} |"
        )
    return "\n".join([*lines, f"{seeds} seeds."])


@click.group("waves")
def command() -> None:
    """What rounds by waves cost, and what they lose, against rounds that score the whole pool."""


@command.command()
@click.option("--sets", default=",".join(LARGE), show_default=True, help="Separated by commas.")
@click.option("--seeds", type=click.IntRange(min=2), help="Default: by set.")
@click.option("--floors", default="0.9", show_default=True, help="Separated by commas.")
@click.option("--alone", is_flag=True, help="Also without scoring the candidates of the round before again.")
@click.option("--data", type=click.Path(path_type=Path, exists=True, file_okay=False), help="Folder of data sets.")
@click.option("--json", "into", type=click.Path(path_type=Path, dir_okay=False), help="Replays are kept here.")
def loss(sets: str, seeds: int | None, floors: str, alone: bool, data: Path | None, into: Path | None) -> None:
    """Replay campaigns by waves and by full passes in pairs, and compare their learning curves."""
    click.echo(", ".join(f"{name} {value}" for name, value in machine.facts().items()))
    known: dict[str, dict[str, list[dict[str, Any]]]] = {}
    if into is not None and into.exists():
        known = json.loads(into.read_text())
    for name in sets.split(","):
        setup, strategy = LARGE[name]
        contenders = _contenders(strategy, [float(each) for each in floors.split(",")], alone=alone)
        of_set = known.setdefault(name, {})
        for seed in range(seeds or setup.seeds):
            todo = {each: how for each, how in contenders.items() if len(of_set.get(each, ())) <= seed}
            if todo:
                world = setup.world(Source(seed, data))
                with staged(world, setup, seed, _limits(len(world.X))) as stage:
                    for each, found in played(stage, setup, todo).items():
                        of_set.setdefault(each, []).append(found)
                if into is not None:
                    with replacing(into) as partial:
                        partial.write(json.dumps(known).encode())
        click.echo(f"\n{name}\n{_shown(lost({each: of_set[each] for each in contenders}), seeds or setup.seeds)}")

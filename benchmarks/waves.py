"""What rounds by waves cost and what they lose, against rounds that score the whole pool.

`loss` replays campaigns in pairs, with the same pool, first labels and seeds: one scores the whole pool in each round,
the other scores it by waves. `cost` plays a real campaign on a generated pool of any size, and times its rounds.
`late` replays campaigns in pairs, too: one learns from all of a batch before the next one is chosen, the other from a
share of it. `pause` lets people answer a campaign that runs by itself, and times how long they have no record between
two batches.
"""

import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import click
import numpy as np
import numpy.typing as npt
import zarr
from rich.progress import track
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors
from zarr.codecs import Crc32cCodec

import dal
from benchmarks import machine
from benchmarks.labels.replay import Contender, Stage, replay, staged
from benchmarks.labels.sets import SETS, Setup, Source, World, embedded, imbalanced, noisy
from benchmarks.labels.statistics import area, paired
from benchmarks.team import played as answered
from dal._files import replacing
from dal.compute.local import local_cluster
from dal.pool import Pool
from dal.scan import Limits, Waves
from dal.selection.strategy import Strategy

ROWS = 200_000
BLOCKS = 1_000
"""The least number of blocks of a set. A first wave takes 32 of them, so that they are small where sets are."""


def _sorted(source: Source) -> World:
    world = imbalanced(source, ROWS)
    order = np.argsort(world.y, kind="stable")
    return replace(world, X=world.X[order], y=world.y[order])


def grown(world: World, seed: int, *, features: int | None = None, neighbours: int = 10) -> World:
    """Grow a set: each new record lies between one of the pool and a near one of its class.

    The records of the test set stay as they are.

    Parameters
    ----------
    world : World
    seed : int
    features : int, optional
        Principal components of the pool that are kept of each record; default: all features.
    neighbours : int, default=10
        Number of nearest records of the class, of which one is drawn.
    """
    X, test = world.X, world.test
    if features is not None:
        components = PCA(features, random_state=seed).fit(X)
        X, test = components.transform(X), replace(test, X=components.transform(test.X))
    rng = np.random.default_rng([seed, 79])
    source = rng.integers(0, len(X), ROWS - len(X))
    other = np.empty_like(source)
    for code in range(world.n_classes):
        of_class = np.flatnonzero(world.y == code)
        new = np.flatnonzero(world.y[source] == code)
        near = NearestNeighbors(n_neighbors=neighbours).fit(X[of_class]).kneighbors(return_distance=False)
        place = np.searchsorted(of_class, source[new])
        other[new] = of_class[near[place, rng.integers(0, neighbours, len(new))]]
    between = X[source] + rng.random((len(source), 1), dtype=np.float32) * (X[other] - X[source])
    order = rng.permutation(ROWS)
    y = np.concatenate([world.y, world.y[source]])
    return replace(world, X=np.concatenate([X, between])[order].astype(np.float32), y=y[order], test=test)


def _grown(name: str, features: int | None = None) -> Setup:
    setup = SETS[name]

    def world(source: Source) -> World:
        whole = embedded(source, name, sys.maxsize) if "embeddings" in (setup.file or "") else setup.world(source)
        return grown(whole, source.seed, features=features)

    return replace(setup, world=world, seeds=8)


LARGE: Mapping[str, tuple[Setup, str]] = {
    "imbalanced": (replace(SETS["imbalanced"], world=lambda source: imbalanced(source, ROWS), seeds=8), "default"),
    "imbalanced_sorted": (replace(SETS["imbalanced"], world=_sorted, seeds=8), "default"),
    "noisy": (replace(SETS["noisy"], world=lambda source: noisy(source, ROWS), seeds=8), "default"),
    "kddcup": (replace(SETS["kddcup"], seeds=8), "default"),
    "digits": (_grown("digits"), "default"),
    "satimage": (replace(_grown("satimage"), seeds=5), "default"),
    "letter": (replace(_grown("letter"), seeds=5), "default"),
    "sms_spam": (_grown("sms_spam"), "default"),
    "fashion": (replace(_grown("fashion", features=64), initial=100, batch=100, rounds=12, seeds=5), "default"),
    "stackoverflow_wl": (_grown("stackoverflow_wl"), "class_coverage"),
    "cifar10_lite0": (_grown("cifar10_lite0", features=128), "class_coverage"),
}
"""Sets made large, with the strategy that is the default for their features."""


def _limits(n_rows: int) -> Limits:
    return Limits(tile_rows=1 << max(4, (n_rows // BLOCKS).bit_length() - 1))


def _contenders(strategy: str, floors: Sequence[float], each: int, *, alone: bool) -> dict[str, Contender]:
    chosen = Strategy.named(strategy, explore=0.05)
    found = {"full": Contender(chosen)}
    for floor in floors:
        found[f"{floor:g}"] = Contender(chosen, waves=Waves(floor, rows_for_each=each))
        if alone:
            found[f"{floor:g} alone"] = Contender(chosen, waves=Waves(floor, rows_for_each=each), carries=False)
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
@click.option(
    "--rows-for-each",
    type=click.IntRange(min=1),
    default=Waves.rows_for_each,
    show_default=True,
    help="Rows that are scored at least for each of the shortlist.",
)
@click.option("--alone", is_flag=True, help="Also without scoring the candidates of the round before again.")
@click.option("--data", type=click.Path(path_type=Path, exists=True, file_okay=False), help="Folder of data sets.")
@click.option("--json", "into", type=click.Path(path_type=Path, dir_okay=False), help="Replays are kept here.")
def loss(
    sets: str, seeds: int | None, floors: str, rows_for_each: int, alone: bool, data: Path | None, into: Path | None
) -> None:
    """Replay campaigns by waves and by full passes in pairs, and compare their learning curves."""
    chosen = {name: LARGE[name] for name in sets.split(",")}
    of_floors = [float(each) for each in floors.split(",")]
    _compare(
        {name: setup for name, (setup, _) in chosen.items()},
        {name: _contenders(by, of_floors, rows_for_each, alone=alone) for name, (_, by) in chosen.items()},
        seeds,
        data,
        into,
    )


@command.command()
@click.option("--sets", default="digits,imbalanced,noisy", show_default=True, help="Separated by commas.")
@click.option("--seeds", type=click.IntRange(min=2), help="Default: by set.")
@click.option("--close-at", "shares", default="0.9,0.8", show_default=True, help="Separated by commas.")
@click.option("--data", type=click.Path(path_type=Path, exists=True, file_okay=False), help="Folder of data sets.")
@click.option("--json", "into", type=click.Path(path_type=Path, dir_okay=False), help="Replays are kept here.")
def late(sets: str, seeds: int | None, shares: str, data: Path | None, into: Path | None) -> None:
    """Replay campaigns whose rounds begin before all of a batch is answered, in pairs with others that wait."""
    strategy = Strategy.named("default", explore=0.05)
    contenders = {"full": Contender(strategy)}
    contenders |= {share: Contender(strategy, close_at=float(share)) for share in shares.split(",")}
    setups = {name: SETS[name] for name in sets.split(",")}
    _compare(setups, dict.fromkeys(setups, contenders), seeds, data, into)


def _compare(
    setups: Mapping[str, Setup],
    of_sets: Mapping[str, Mapping[str, Contender]],
    seeds: int | None,
    data: Path | None,
    into: Path | None,
) -> None:
    """Replay the contenders of each set from the same first labels, and print how they compare with the first one."""
    click.echo(", ".join(f"{name} {value}" for name, value in machine.facts().items()))
    known: dict[str, dict[str, list[dict[str, Any]]]] = {}
    if into is not None and into.exists():
        known = json.loads(into.read_text())
    for name, setup in setups.items():
        contenders = of_sets[name]
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


# -- cost --------------------------------------------------------------------------------------------------------------

CLASSES, BASE_ROWS, SEED, CHUNK_BYTES = 4, 1 << 20, 3, 8 * 2**20
STEPS = 30.0
"""Of int8 in a standard deviation."""


def _turned(n_rows: int, dim: int, dtype: str) -> Iterator[npt.NDArray[Any]]:
    """Yield a block of Gaussian records again and again, each time turned at random."""
    rng = np.random.default_rng(SEED)
    base = rng.standard_normal((BASE_ROWS, dim), dtype=np.float32)
    for start in range(0, n_rows, BASE_ROWS):
        turn = np.linalg.qr(rng.standard_normal((dim, dim)))[0].astype(np.float32)
        turned = (base @ turn)[: n_rows - start]
        yield np.clip(np.rint(turned * STEPS), -127, 127).astype(dtype) if dtype == "int8" else turned.astype(dtype)


def _classes(X: npt.NDArray[np.float32], dtype: str) -> npt.NDArray[np.int64]:
    """Return the class of each record: its sides of two surfaces, one of them bent."""
    X = X / STEPS if dtype == "int8" else X
    return (X[:, 0] + 0.3 * X[:, 1] ** 2 > 0.3).astype(np.int64) + 2 * (X[:, 2] > 0.5 * X[:, 3])


def _pool(directory: Path, n_rows: int, dim: int, dtype: str) -> Pool:
    """Write the pool as a plain Zarr array with checksums, or open it if it is already there."""
    place = directory / f"turned-{n_rows}x{dim}-{dtype}.zarr"
    if not place.exists():
        partial = place.with_suffix(".part")
        height = CHUNK_BYTES // (dim * np.dtype(dtype).itemsize)
        array = zarr.create_array(
            partial,
            shape=(n_rows, dim),
            chunks=(min(height, n_rows), dim),
            dtype=dtype,
            compressors=[Crc32cCodec()],
            overwrite=True,
        )
        blocks = track(_turned(n_rows, dim, dtype), "writing the pool", total=-(-n_rows // BASE_ROWS), transient=True)
        for number, block in enumerate(blocks):
            array[BASE_ROWS * number : BASE_ROWS * number + len(block)] = block
        partial.rename(place)
    return Pool.open(place)


def rounds_of(pool: Pool, folder: Path, *, rounds: int, batch: int, workers: int) -> list[dict[str, Any]]:
    """Play a campaign by waves on a local cluster; return the figures of each round."""
    campaign = dal.Campaign.create(
        folder,
        pool,
        [str(code) for code in range(CLASSES)],
        batch_size=batch,
        random_state=1,
        scanning=dal.Scanning(scan="waves"),
    )
    found = []
    with local_cluster(workers) as client:
        for _ in range(rounds):
            began = perf_counter()
            given = campaign.next_batch(client=client)
            seconds = perf_counter() - began
            assert isinstance(given, dal.Batch)
            campaign.label(given, _classes(pool.take(given.rows), str(pool.dtype)).astype(str))
            summary = campaign.rounds.get(given.number).summary or {}
            found.append(
                {
                    "round": given.number,
                    "by": "waves" if summary["reach"] else "all",
                    "seconds": seconds,
                    "scan": summary["seconds"],
                    "scored": summary["rows"] / pool.n_rows,
                    "bytes": summary["bytes_read"],
                    "waves": summary["reach"]["waves"] if summary["reach"] else 0,
                    "worker": max(client.run(machine.peak_bytes).values()),
                    "coordinator": machine.peak_bytes(),
                }
            )
            click.echo(_line(found[-1]))
    return found


def _line(row: Mapping[str, Any]) -> str:
    cells = [row["round"], row["by"], f"{row['scored']:.2%}", row["waves"], f"{row['bytes'] / 2**30:.2f}"]
    cells += [f"{row['scan']:.1f}", f"{row['seconds']:.1f}"]
    cells += [f"{row['worker'] / 2**20:,.0f}", f"{row['coordinator'] / 2**20:,.0f}"]
    return f"| {' | '.join(map(str, cells))} |"


HEAD = """| round | by | rows scored | waves | GiB read | scan, s | whole round, s | worker, MiB | coordinator, MiB |
|---:|---|---:|---:|---:|---:|---:|---:|---:|"""


@command.command()
@click.option("--rows", type=click.IntRange(min=100_000), default=100_000_000, show_default=True)
@click.option("--dim", type=click.IntRange(min=4), default=16, show_default=True, help="Features of a record.")
@click.option("--dtype", type=click.Choice(["int8", "float16", "float32"]), default="int8", show_default=True)
@click.option("--rounds", type=click.IntRange(min=3), default=20, show_default=True)
@click.option("--batch", type=click.IntRange(min=1), default=100, show_default=True)
@click.option("--workers", type=click.IntRange(min=1), default=2, show_default=True)
@click.option("--directory", type=click.Path(path_type=Path, file_okay=False), help="Where the pool is kept.")
@click.option("--json", "into", type=click.Path(path_type=Path, dir_okay=False), help="Figures are written here.")
def cost(
    rows: int, dim: int, dtype: str, rounds: int, batch: int, workers: int, directory: Path | None, into: Path | None
) -> None:
    """Play a campaign by waves on a generated pool, and time its rounds against one that scores the whole pool."""
    click.echo(", ".join(f"{name} {value}" for name, value in machine.facts().items()))
    with tempfile.TemporaryDirectory(prefix="dal-waves-") as name:
        pool = _pool(directory or Path(name), rows, dim, dtype)
        click.echo(HEAD)
        found = rounds_of(pool, Path(name) / "campaign", rounds=rounds, batch=batch, workers=workers)
    if into is not None:
        with replacing(into) as partial:
            partial.write(json.dumps({"machine": machine.facts(), "rows": rows, "rounds": found}).encode())
    # The first round has no model.
    whole = [each for each in found[1:] if each["by"] == "all"]
    if whole:
        for part in ("scan", "seconds"):
            by_waves = median(each[part] for each in found if each["by"] == "waves")
            share = by_waves / median(each[part] for each in whole)
            click.echo(f"{part}: a round by waves {by_waves:.1f} s, {share:.1%} of one that scores all")


# -- pause -------------------------------------------------------------------------------------------------------------


@command.command()
@click.option("--rows", type=click.IntRange(min=100_000), default=10_000_000, show_default=True)
@click.option("--rounds", type=click.IntRange(min=3), default=8, show_default=True)
@click.option("--batch", type=click.IntRange(min=1), default=100, show_default=True)
@click.option("--think", default=0.3, show_default=True, help="Seconds for an answer, in the middle.")
@click.option("--people", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--scan", "scans", default="full,waves", show_default=True, help="Separated by commas.")
@click.option("--close-at", "shares", default="1,0.9", show_default=True, help="Separated by commas.")
@click.option("--directory", type=click.Path(path_type=Path, file_okay=False), help="Where the pool is kept.")
def pause(
    rows: int,
    rounds: int,
    batch: int,
    think: float,
    people: int,
    scans: str,
    shares: str,
    directory: Path | None,
) -> None:
    """Let people answer a campaign that runs by itself, and time how long they have no record between two batches.

    Thinking is scaled down, so that the rest of a batch lasts shorter than in a campaign.
    """
    click.echo(", ".join(f"{name} {value}" for name, value in machine.facts().items()))
    click.echo("| scan | close_at | a pause, s | of it | people had no record | s each | at most | left unanswered |")
    click.echo("|---|---:|---:|---|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory(prefix="dal-waves-") as name:
        pool = _pool(directory or Path(name), rows, 16, "int8")
        blocks = (pool.read(start, min(start + BASE_ROWS, rows)) for start in range(0, rows, BASE_ROWS))
        codes = np.concatenate([_classes(np.asarray(block, np.float32), "int8") for block in blocks])
        for scan in scans.split(","):
            for share in shares.split(","):
                campaign = dal.Campaign.create(
                    Path(name) / f"{scan}-{share}",
                    pool,
                    [str(code) for code in range(CLASSES)],
                    batch_size=batch,
                    random_state=1,
                    stop=f"max_rounds={rounds}",
                    scanning=dal.Scanning(scan=scan),
                    labelling=dal.Labelling(close_at=float(share)),
                )
                told = answered(campaign, codes, people, think, patience=1.0)
                waits = [f"{told[each]:.1f}" for each in ("waits_per_person", "wait_median", "longest_wait")]
                cells = [scan, share, f"{told['pause_median']:.1f}", told["pause_parts"], *waits, told["unanswered"]]
                click.echo(f"| {' | '.join(map(str, cells))} |")

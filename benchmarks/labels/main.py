"""The command: plays what is missing, and boils it down."""

import json
import multiprocessing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

import click
import numpy as np
from rich.console import Console
from rich.progress import Progress

from benchmarks import machine
from benchmarks.labels import published
from benchmarks.labels.picture import picture
from benchmarks.labels.promises import FORMER, judged, promises_table, summary_table
from benchmarks.labels.replay import Contender, replay, staged
from benchmarks.labels.sets import SETS, Setup, Source
from benchmarks.labels.statistics import (
    Gains,
    Interval,
    area,
    labels_to_final,
    mean_interval,
    paired,
    share_closed,
    thirds,
)
from benchmarks.labels.table import gap_table, protocol_table, safety_table, tables
from benchmarks.labels.varied import VARIED
from dal._files import replacing
from dal.errors import LearnerError
from dal.learners.learner import Learner
from dal.scores import OF_GRADIENTS
from dal.selection.strategy import STRATEGIES, Strategy

PROTOCOL, ORACLE, GROUP = "lu", "oracle", "varied"
SETUPS: Mapping[str, Setup] = {**SETS, **VARIED}
BALANCED = ("class_coverage", "default", "margin", "random")
"""Strategies that are also played with an equal share of what is asked for each class."""
CONTENDERS: Mapping[str, Contender] = {
    **{name: Contender(Strategy.named(name, explore=0.0)) for name in STRATEGIES},
    "default, explore 5 %": Contender(Strategy()),
    "default, as shipped": Contender(Strategy(), start="cold"),
    **{f"{name}, balanced": Contender(Strategy.named(name, explore=0.0), balance=True) for name in BALANCED},
    ORACLE: Contender(Strategy.named("random", explore=0.0), oracle=True),
}
"""Strategies by name with the explore share at 0; the default with its 5 %; that with its own cold start; an oracle."""
RIVALS = ("random", "margin", "default")
"""Every strategy is compared with these."""

Cache = dict[tuple[str, str], dict[int, dict]]
Plan = Mapping[str, Mapping[str, int]]
"""Seeds of each strategy on each set."""


@dataclass(frozen=True)
class Job:
    """What one process plays at a time: all strategies that are missing on one pool.

    Attributes
    ----------
    name : str
        Set, or set of the published protocol with its prefix.
    seed : int
    strategies : tuple of str
    data : Path or None
    """

    name: str
    seed: int
    strategies: tuple[str, ...]
    data: Path | None


def play(job: Job) -> dict[str, dict]:
    """Play a job, below a process of its own."""
    if job.name.startswith(f"{PROTOCOL}/"):
        X, y = published.load(job.data or Path(), job.name.removeprefix(f"{PROTOCOL}/"))
        return {
            query: {"seed": job.seed, "area": published.area(X, y, query, job.seed)}
            for query in ("random", "margin")
            if query in job.strategies
        }
    setup = SETUPS[job.name]
    world = setup.world(Source(job.seed, job.data))
    with staged(world, setup, job.seed) as stage:
        return {name: {"seed": job.seed, **asdict(replay(stage, setup, CONTENDERS[name]))} for name in job.strategies}


# -- what there is, and what is missing -------------------------------------------------------------------------------


def jobs(plan: Plan, known: Cache, data: Path | None) -> Iterator[Job]:
    """Yield the jobs that a plan still lacks."""
    for name, strategies in plan.items():
        for seed in range(max(strategies.values())):
            missing = tuple(
                each for each, seeds in strategies.items() if seed < seeds and seed not in known.get((name, each), {})
            )
            if missing:
                yield Job(name, seed, missing, data)


def read(path: Path) -> Cache:
    """Read the replays that a file holds."""
    if not path.exists():
        return {}
    entries = json.loads(path.read_text(encoding="utf-8"))
    return {(entry["set"], entry["strategy"]): {each["seed"]: each for each in entry["replays"]} for entry in entries}


def write(path: Path, written: Iterable[Mapping]) -> None:
    """Write entries to a file, whole or not at all."""
    with replacing(path) as file:
        file.write((json.dumps(list(written), indent=None, separators=(",", ":")) + "\n").encode())


def same(before: Mapping, again: Mapping) -> bool:
    """Say whether a replay asked what it asked before."""
    if "digest" in before:
        return bool(before["digest"] == again["digest"])
    return bool(np.isclose(before["area"], again["area"], rtol=0, atol=1e-9))


def stale(plan: Plan, known: Cache, data: Path | None, workers: "Workers") -> set[tuple[str, str]]:
    """Find the replays of other code: those whose first seed comes out otherwise now."""
    firsts = [
        Job(name, min(known[name, strategy]), (strategy,), data)
        for name, strategies in plan.items()
        for strategy in strategies
        if known.get((name, strategy))
    ]
    return {
        (job.name, strategy)
        for job, result in workers.played(firsts, "checking what the file holds")
        for strategy, again in result.items()
        if not same(known[job.name, strategy][job.seed], again)
    }


class Workers:
    """Two processes of one thread each."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def __enter__(self) -> "Workers":
        with ExitStack() as stack:
            names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
            stack.enter_context(machine.environment(dict.fromkeys(names, 1)))
            spawn = multiprocessing.get_context("spawn")
            self.executor = stack.enter_context(ProcessPoolExecutor(min(2, machine.CORES), mp_context=spawn))
            self.stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self.executor.shutdown(cancel_futures=True)
        self.stack.close()

    def played(self, todo: Sequence[Job], what: str) -> Iterator[tuple[Job, dict[str, dict]]]:
        """Play jobs, and give them as they end."""
        with Progress(console=self.console, transient=True) as progress:
            bar = progress.add_task(what, total=len(todo))
            futures = {self.executor.submit(play, job): job for job in todo}
            for future in as_completed(futures):
                yield futures[future], future.result()
                progress.advance(bar)


# -- what it comes to -------------------------------------------------------------------------------------------------


def kept(known: Cache) -> Iterator[dict]:
    """Yield the replays of each set and strategy in the order of their seeds, for :func:`read`."""
    for (name, strategy), by_seed in known.items():
        yield {"set": name, "strategy": strategy, "replays": [by_seed[seed] for seed in sorted(by_seed)]}


def entries(known: Cache) -> Iterator[dict]:
    """Boil replays down: one entry for each set and strategy, its replays with it."""
    for (name, strategy), replays in known.items():
        ordered = [replays[seed] for seed in sorted(replays)]
        rivals = {
            rival: known[name, rival]
            for rival in RIVALS
            if rival != strategy and set(known.get((name, rival), {})) >= set(replays)
        }
        areas = _areas(ordered)
        entry = {
            "set": name,
            "strategy": strategy,
            "seeds": len(ordered),
            "area": float(areas.mean()),
            "area_interval": mean_interval(areas)[1:],
            "against": {
                rival: _as_dict(paired(areas, _areas([theirs[seed] for seed in sorted(replays)])))
                for rival, theirs in rivals.items()
            },
            "labels_to_random_final": None,
            "labels_to_random_final_interval": None,
        }
        random = known.get((name, "random"), {})
        if "labels" in ordered[0] and set(random) >= set(replays):
            entry |= _of_curves(ordered, [random[seed] for seed in sorted(replays)])
        yield {**entry, "replays": ordered}


def gaps_closed(known: Cache) -> dict[str, dict[str, tuple[Interval, ...]]]:
    """Return the share of the gap from random to the oracle that each strategy closes by third of the budget.

    By set, and pooled over the sets on which a strategy, random and the oracle were played; only seeds that all three
    have.
    """
    parts: dict[str, dict[str, Gains]] = {}
    for (name, strategy), replays in known.items():
        random, oracle = known.get((name, "random"), {}), known.get((name, ORACLE), {})
        seeds = sorted(set(replays) & set(random) & set(oracle))
        if strategy in ("random", ORACLE) or len(seeds) < 2:
            continue
        base, most, mine = (
            np.array([thirds(group[seed]["labels"], group[seed]["accuracy"]) for seed in seeds])
            for group in (random, oracle, replays)
        )
        parts.setdefault(strategy, {})[name] = Gains(mine - base, most - base)
    return {
        strategy: {
            **{name: share_closed([gains]) for name, gains in by_set.items()},
            "pooled": share_closed(list(by_set.values())),
        }
        for strategy, by_set in parts.items()
    }


def _areas(replays: Sequence[Mapping]) -> np.ndarray:
    return np.array([each["area"] if "area" in each else area(each["labels"], each["accuracy"]) for each in replays])


def _of_curves(replays: Sequence[Mapping], random: Sequence[Mapping]) -> dict:
    points = min(len(each["labels"]) for each in (*replays, *random))
    curves, baseline = (np.array([each["accuracy"][:points] for each in group]) for group in (replays, random))
    # A batch may be short where the candidates are near-duplicates: the labels of a point are then a mean.
    labels = np.mean([each["labels"][:points] for each in replays], axis=0)
    needed = labels_to_final(labels, curves, baseline)
    parts = np.array([thirds(each["labels"], each["accuracy"]) for each in replays])
    gains = parts - [thirds(each["labels"], each["accuracy"]) for each in random]
    found: dict = {
        "thirds_against_random": [mean_interval(each) for each in gains.T],
        "end_against_random": mean_interval(curves[:, -1] - baseline[:, -1]),
        "labels": [round(float(each), 1) for each in labels],
        "curve": [round(float(each), 5) for each in curves.mean(axis=0)],
        "points_mean": float(curves.mean()),
        "random_final": float(baseline[:, -1].mean()),
        "labels_to_random_final": needed.value,
        "labels_to_random_final_interval": needed[1:],
    }
    if replays[0]["noise"]:
        found["noise_share"] = float(np.mean([np.mean(each["noise"]) for each in replays]))
    if any(any(each["rare_recall"]) or any(each["rare_found"]) for each in (*replays, *random)):
        for key in ("rare_found", "rare_recall"):
            found[key] = [float(value) for value in np.mean([each[key][:points] for each in replays], axis=0)]
    return found


def _as_dict(comparison: object) -> dict:
    fields = comparison._asdict()  # type: ignore[attr-defined]
    interval = fields.pop("difference")
    return {"difference": interval.value, "interval": interval[1:], **fields}


# -- the door ---------------------------------------------------------------------------------------------------------


def planned(
    sets: Sequence[str],
    strategies: Sequence[str],
    seeds: int | None,
    data: Path | None,
    console: Console,
    *,
    oracle: bool = False,
) -> dict[str, dict[str, int]]:
    """Return the seeds of each strategy on each set, without the sets whose data are lacking.

    Without strategies, the promises need some on each set, and the oracle is added where its replays take few hours.
    """
    plan: dict[str, dict[str, int]] = {}
    for name in sets:
        group = [f"{PROTOCOL}/{each}" for each in published.PUBLISHED] if name == PROTOCOL else [name]
        for each in group:
            file = f"{each.removeprefix(PROTOCOL + '/')}.npz" if name == PROTOCOL else SETUPS[each].file
            if file is not None and not (data is not None and (data / file).exists()):
                console.print(f"left out: {each}, because there is no {file} (pass --data DIR)")
            elif name != PROTOCOL and (lacking := [p for p in SETUPS[each].packages if find_spec(p) is None]):
                console.print(f"left out: {each}, because {', '.join(lacking)} cannot be imported")
            elif name == PROTOCOL:
                plan[each] = dict.fromkeys(("random", "margin"), seeds or published.SEEDS)
            else:
                setup = SETUPS[each]
                wanted = dict.fromkeys(["random", *(strategies or ["margin", FORMER, setup.default])])
                able = [strategy for strategy in wanted if _able(each, strategy)]
                for strategy in sorted(set(wanted) - set(able)):
                    console.print(f"left out: {strategy} on {each}, whose learner it cannot ask")
                plan[each] = dict.fromkeys(able, seeds or setup.seeds)
                if oracle:
                    plan[each][ORACLE] = seeds or setup.seeds
                elif setup.oracle and not strategies:
                    plan[each][ORACLE] = min(seeds or setup.oracle, setup.oracle)
    return plan


def _able(name: str, strategy: str) -> bool:
    """Say whether a set's learner gives what a strategy asks of it; a forest has no gradients."""
    score = CONTENDERS[strategy].strategy.score
    if score != OF_GRADIENTS:
        return True
    try:
        Learner(SETUPS[name].learner(0), ["one", "other"]).check(n_features=3, score=score)
    except LearnerError:
        return False
    return True


def _listed(value: str | None, known: Iterable[str], default: Sequence[str]) -> list[str]:
    chosen = [each.strip() for each in value.split(";" if ";" in value else ",")] if value else list(default)
    unknown = sorted(set(chosen) - set(known))
    if unknown:
        raise click.BadParameter(f"{', '.join(unknown)}: must be of {', '.join(known)}")
    return chosen


@click.command(
    "labels", help="Replay campaigns: how many labels a strategy saves, and whether the default's promises hold."
)
@click.option(
    "--sets", help="Comma-separated; 'lu' is the published protocol, 'varied' many small sets. Default: all but those."
)
@click.option(
    "--strategies",
    help="Comma-separated, or separated by ';', or 'all'; random is always played. Default: what the promises take.",
)
@click.option("--oracle", is_flag=True, help="Also an oracle, and the share of the gap to it that strategies close.")
@click.option("--seeds", type=click.IntRange(2), help="Replays of each; default: 10 to 100, by set.")
@click.option("--data", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Folder of NAME.npz files.")
@click.option("--json", "json_path", required=True, type=click.Path(dir_okay=False, path_type=Path))
@click.option("--tables", "tables_path", type=click.Path(dir_okay=False, path_type=Path), help="Markdown tables.")
@click.option("--pictures", type=click.Path(file_okay=False, path_type=Path), help="Folder for learning curves as SVG.")
@click.option("--play/--no-play", default=True, help="Only boil down what the file holds.")
def command(
    sets: str | None,
    strategies: str | None,
    oracle: bool,
    seeds: int | None,
    data: Path | None,
    json_path: Path,
    tables_path: Path | None,
    pictures: Path | None,
    play: bool,
) -> None:
    """Play what is missing, and write the file, tables and pictures."""
    console = Console()
    every = [name for name in CONTENDERS if name != ORACLE]
    chosen = every if strategies == "all" else _listed(strategies, CONTENDERS, [])
    names = _listed(sets, [*SETUPS, PROTOCOL, GROUP], [*SETS, PROTOCOL])
    names = [each for name in names for each in (VARIED if name == GROUP else [name])]
    plan = planned(names, chosen, seeds, data, console, oracle=oracle)
    known = read(json_path)
    if play:
        with Workers(console) as workers:
            for pair in sorted(stale(plan, known, data, workers)):
                console.print(f"{pair[0]}, {pair[1]}: the code has changed; its replays are made anew")
                del known[pair]
            for job, result in workers.played(list(jobs(plan, known, data)), "replaying"):
                for strategy, replayed in result.items():
                    known.setdefault((job.name, strategy), {})[job.seed] = replayed
                # To boil all sets down after each job would take as long as to play it.
                write(json_path, kept(known))
    results = list(entries(known))
    write(json_path, results)
    of_sets = [each for each in results if each["set"] in SETS]
    varied = safety_table([each for each in results if each["set"] in VARIED])
    shares = gaps_closed(known)
    promises = promises_table(judged(of_sets, shares))
    text = "\n\n".join(
        [*tables(of_sets), varied, protocol_table(results), summary_table(of_sets), gap_table(shares), promises]
    )
    console.print(text, markup=False, soft_wrap=True)
    facts = machine.facts()
    console.print(f"{facts['cpu']}, {facts['cores']} cores; {facts['packages']}", markup=False, soft_wrap=True)
    if tables_path is not None:
        tables_path.write_text(text + "\n", encoding="utf-8")
    if pictures is not None:
        pictures.mkdir(parents=True, exist_ok=True)
        for name in dict.fromkeys(each["set"] for each in results if "curve" in each):
            mine = [each for each in results if each["set"] == name]
            (pictures / f"labels-{name}.svg").write_text(picture(mine), encoding="utf-8")

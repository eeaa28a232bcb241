"""A team at work: how long people wait for their next record while batches are prepared, with and without a reserve.

The campaign runs in a process of its own, as ``dal run`` does, on a local cluster. People are threads that take a
record from the queue, think for a while, and answer; who gets none waits and asks again. Thinking is scaled down to
make a day's work fit into minutes, and rounds are as long as they are: waiting is thus overstated, in both settings.
"""

import json
import multiprocessing
import tempfile
import threading
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path

import click
import numpy as np

from benchmarks import machine
from dal import Campaign
from dal.campaign import Given, Labelling, Queue
from dal.campaign.view import status
from dal.compute.local import local_cluster
from dal.pool import Pool
from dal.web.overview import pauses

CLASSES = ("red", "green", "blue")
ASK_AGAIN = 0.05
"""Seconds until somebody who got no record asks again."""


@dataclass
class Person:
    """What one annotator did and how long each wait for a record was, in seconds."""

    answers: int = 0
    waits: list[float] = field(default_factory=list)


@click.command("team")
@click.option("--people", default=8, show_default=True, help="Annotators at work at the same time.")
@click.option("--rounds", default=20, show_default=True, help="Batches to label.")
@click.option("--batch", default=80, show_default=True, help="Records asked in a round.")
@click.option("--rows", default=1_000_000, show_default=True, help="Records of the pool, 32 features each.")
@click.option("--think", default=0.4, show_default=True, help="Seconds for an answer, in the middle.")
@click.option("--json", "path", type=click.Path(path_type=Path), help="Write the figures to this file.")
def command(people: int, rounds: int, batch: int, rows: int, think: float, path: Path | None) -> None:
    """Measure how long a team waits for records, round after round."""
    rng = np.random.default_rng(0)
    codes = rng.integers(0, len(CLASSES), rows)
    figures: dict[str, object] = {"machine": machine.facts(), "load_before": machine.load()}
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        X = rng.standard_normal((rows, 32), dtype=np.float32)
        X += rng.standard_normal((len(CLASSES), 32), dtype=np.float32)[codes]
        pool = Pool.build(X, directory / "pool.zarr")
        for name, options in (("waiting", {}), ("no waiting", {"labelling": Labelling(close_at=0.8, reserve=1.0)})):
            campaign = Campaign.create(
                directory / name, pool, CLASSES, batch_size=batch, stop=[f"max_rounds={rounds}"], **options
            )
            figures[name] = told = played(campaign, codes, people, think)
            print(
                f"{name}: {told['answers']} answers in {told['seconds']:.0f} s; pauses of {told['pause_median']:.1f} s,"
                f" the median ({told['pause_parts']}); people waited {told['waited_share']:.1%} of their time,"
                f" {told['waits_per_person']:.1f} times each, {told['longest_wait']:.1f} s at most"
            )
    if path is not None:
        path.write_text(json.dumps(figures, indent=2), encoding="utf-8")


def played(
    campaign: Campaign, codes: np.ndarray, people: int, think: float, patience: float = 0.1
) -> dict[str, object]:
    """Let people answer a campaign that runs by itself in another process; return how they waited, and its pauses."""
    context = multiprocessing.get_context("spawn")
    coordinator = context.Process(target=_run, args=(campaign.directory, patience))
    coordinator.start()
    over, team = threading.Event(), [Person() for _ in range(people)]
    # Until the first batch is there nobody can work: that start is not what is measured.
    while Queue(campaign).progress("nobody").batch == 0:
        over.wait(ASK_AGAIN)
    began = time.perf_counter()
    threads = [
        threading.Thread(target=_work, args=(campaign, f"person {number}", person, codes, think, over))
        for number, person in enumerate(team)
    ]
    for thread in threads:
        thread.start()
    coordinator.join()
    seconds = time.perf_counter() - began
    over.set()
    for thread in threads:
        thread.join()
    between = pauses(campaign.rounds.all())
    parts = {
        part: float(np.median([getattr(each, part) for each in between]))
        for part in ("idle", "train", "score", "select")
    }
    waits = [wait for person in team for wait in person.waits]
    return {
        "answers": sum(person.answers for person in team),
        "labels": status(campaign).labels,
        "seconds": seconds,
        "pause_median": sum(parts.values()),
        "pause_parts": ", ".join(f"{part} {value:.2f}" for part, value in parts.items()),
        "waited_share": sum(waits) / (seconds * people),
        "waits_per_person": len(waits) / people,
        "wait_median": float(np.median(waits)) if waits else 0.0,
        "longest_wait": max(waits, default=0.0),
        "unanswered": sum(campaign.rounds.pending(each.number) for each in campaign.rounds.all()[:-1]),
    }


def _run(directory: Path, patience: float) -> None:
    with local_cluster() as client:
        Campaign.open(directory).run(client=client, patience=patience)


def _work(
    campaign: Campaign, name: str, person: Person, codes: np.ndarray, think: float, over: threading.Event
) -> None:
    queue, rng = Queue(campaign), np.random.default_rng(sum(name.encode()))
    waited_since: float | None = None
    while not over.is_set():
        served = queue.lease(name, 1)
        if not served:
            waited_since = waited_since or time.perf_counter()
            over.wait(ASK_AGAIN)
            continue
        if waited_since is not None:
            person.waits.append(time.perf_counter() - waited_since)
            waited_since = None
        over.wait(float(rng.lognormal(np.log(think), 0.5)))
        row = served[0].row
        queue.answer(name, [Given(uuid.uuid4().hex, row, "submitted", int(codes[row]))])
        person.answers += 1

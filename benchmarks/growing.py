"""Time and memory of a round by the number of labels: reading them, their features, the fit, the batch, the export.

Each part runs in a process of its own, so that its peak of memory is its own. Labels are put into the database as
rounds of a campaign leave them there: people take months to give them.
"""

import json
import multiprocessing
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table
from sqlalchemy import insert

import dal
from benchmarks import machine, synthetic
from dal.campaign import CampaignStore, schema
from dal.campaign.features import Features
from dal.campaign.people import enrolled
from dal.campaign.view import View
from dal.exchange.labels import write_labels
from dal.loop.coordinator import Coordinator
from dal.pool import Pool

ROUNDS, BATCH, TESTED = 100, 1000, 20_000
"""Rounds that gave the labels, records of the batch that is measured, and records that the model is tried on."""

STEPS = {"_fit": "round, its fit", "_scan": "round, its pass", "_select": "round, choosing its batch"}

Part = Callable[[dal.Campaign], object]


def grown(directory: Path, labels: int, dim: int, estimator: str) -> Path:
    """Make a campaign that has this many labels, or return the one that is there."""
    place = directory / f"campaign-{labels}x{dim}-{estimator}"
    pool = synthetic.pool_of(directory, labels + max(labels // 5, 100_000), dim)
    if (place / "whole").exists():
        return place
    campaign = dal.Campaign.create(place, pool, list(synthetic.names()), batch_size=BATCH, estimator=estimator)
    rows = np.random.default_rng(0).permutation(pool.n_rows - TESTED)[:labels].astype(np.int64)
    parts = np.array_split(rows, ROUNDS)
    for number, part in enumerate(track(parts, "asking", transient=True), start=1):
        _ask(campaign, pool, number, part)
    (place / "whole").touch()
    return place


def _ask(campaign: CampaignStore, pool: Pool, number: int, rows: np.ndarray) -> None:
    """Put a round into the database whose batch these rows are, all answered."""
    codes, at = synthetic.labels(rows).tolist(), campaign.created_at.isoformat()
    with campaign.database.writing() as connection:
        if number == 1:
            enrolled(connection, "oracle")
        fixed = {"status": "closed", "explore": 0.05, "seed": 0, "strategy": "default", "excluded_digest": ""}
        counted = {"k": len(rows), "last_answer": 0, "labels": 0, "excluded": 0, "n_rows": pool.n_rows}
        times = {"frozen_at": at, "opened_at": at, "closed_at": at}
        values = {"number": number, "pool_fingerprint": pool.fingerprint, **fixed, **counted, **times}
        connection.execute(insert(schema.rounds).values(**values))
        listed = list(enumerate(zip(rows.tolist(), codes, strict=True)))
        for start in range(0, len(listed), 4096):
            block = listed[start : start + 4096]
            asked = [
                {"row": row, "record_id": str(row), "round": number, "rank": rank, "explore": rank % 20 == 0}
                | {"predicted": code, "score": 0.5, "confidence": 0.5}
                for rank, (row, code) in block
            ]
            answers = [
                {"row": row, "record_id": str(row), "annotator": "oracle", "status": "submitted", "label": code}
                | {"round": number, "source": "web", "answered_at": at, "received_at": at}
                for _, (row, code) in block
            ]
            connection.execute(insert(schema.asked), asked)
            connection.execute(insert(schema.answers), answers)
    ascending = np.sort(rows)
    Features(View(campaign)).keep(number, ascending, pool.take(ascending))


def _fit(campaign: dal.Campaign) -> float:
    model, pool = campaign.fit(), Pool.open(campaign.settings.pool)
    rows = np.arange(pool.n_rows - TESTED, pool.n_rows)
    return float((model.predict_proba(pool.read(rows[0], pool.n_rows)).argmax(axis=1) == synthetic.labels(rows)).mean())


def _in_steps(campaign: dal.Campaign) -> dict[str, dict[str, float]]:
    """Run a round, and return seconds, those of the processor, and growth of the peak of memory of each step."""
    found: dict[str, dict[str, float]] = {}

    def watched(step: Callable[..., None], name: str) -> Callable[..., None]:
        def run(*args: object, **options: object) -> None:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak of memory is that of now
            before, began, busy = machine.peak_bytes(), time.perf_counter(), time.process_time()
            step(*args, **options)
            peak, highest = (machine.peak_bytes() - before) / 2**20, machine.peak_bytes()
            cpu, seconds = time.process_time() - busy, time.perf_counter() - began
            found[STEPS[name]] = {"seconds": seconds, "cpu": cpu, "peak_mb": peak, "highest": highest}

        return run

    for name in STEPS:
        setattr(Coordinator, name, watched(getattr(Coordinator, name), name))
    campaign.next_batch()
    return found


PARTS: dict[str, Part] = {
    "labels": lambda campaign: campaign.answers.labels(),
    "excluded": lambda campaign: campaign.rounds.excluded_rows(),
    "features": lambda campaign: Features(View(campaign)).take(campaign.rounds.excluded_rows()),
    "fit": _fit,
    "round": _in_steps,
    "status": lambda campaign: campaign.status(),
    "export": lambda campaign: write_labels(campaign, Pool.open(campaign.settings.pool), campaign.directory / "a.csv"),
}


def measured(place: Path, name: str) -> dict[str, Any]:
    """Run a part in a new process, and return its seconds and its peak of memory."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as executor:
        return executor.submit(_measured, place, name).result()


def _measured(place: Path, name: str) -> dict[str, Any]:
    campaign = dal.Campaign.open(place)
    before, began = machine.peak_bytes(), time.perf_counter()
    found = PARTS[name](campaign)
    seconds, peak = time.perf_counter() - began, machine.peak_bytes() - before
    told: dict[str, Any] = {"accuracy": found} if isinstance(found, float) else {}
    if isinstance(found, dict):
        told, peak = {"steps": found}, max(each["highest"] for each in found.values()) - before
    return {"seconds": seconds, "peak_mb": peak / 2**20, **told}


def rows_of(result: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """Yield the lines of the table: a part, with seconds and memory for each number of labels."""
    counts = list(result["labels"])
    for name in result["labels"][counts[0]]:
        found = [result["labels"][count][name] for count in counts]
        yield name, *(f"{each['seconds']:.1f} s, {each['peak_mb']:.0f} MiB" for each in found)
        for step in found[0].get("steps", ()):
            parts = [each["steps"][step] for each in found]
            yield (
                step,
                *(f"{each['seconds']:.1f} s, CPU {each['cpu']:.1f} s, {each['peak_mb']:.0f} MiB" for each in parts),
            )


@click.command(name="growing")
@click.option("--labels", "counts", type=float, multiple=True, default=(1e5, 1e6), show_default=True)
@click.option("--dim", default=64, show_default=True)
@click.option("--estimator", default="logistic", show_default=True)
@click.option("--part", "parts", multiple=True, type=click.Choice(list(PARTS)), help="Default: all.")
@click.option("--directory", type=click.Path(path_type=Path), required=True, help="For pools and campaigns; kept.")
@click.option("--json", "target", type=click.Path(path_type=Path))
def command(
    counts: tuple[float, ...], dim: int, estimator: str, parts: tuple[str, ...], directory: Path, target: Path | None
) -> None:
    """Measure what a round costs in time and memory by the number of labels."""
    found: dict[str, dict[str, Any]] = {}
    for count in counts:
        place = grown(directory, int(count), dim, estimator)
        found[f"{count:,.0f}"] = {name: measured(place, name) for name in parts or PARTS}
    result = {"dim": dim, "estimator": estimator, "labels": found, "machine": machine.facts(), "load": machine.load()}
    if target is not None:
        target.write_text(json.dumps(result, indent=1), encoding="utf-8")
    drawn = Table("part", *found, title=f"{dim} features, {estimator}; seconds and growth of the peak of memory")
    for line in rows_of(result):
        drawn.add_row(*line)
    Console().print(drawn)

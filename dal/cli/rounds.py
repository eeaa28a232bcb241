"""Rounds: choose the next batch, carry on round after round, draw the map that batches are shown on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dal.cli.campaigns import tell_balance
from dal.cli.cluster import rows_shown, workers_chosen
from dal.cli.options import workers_options
from dal.cli.terminal import quoted, say, shown

if TYPE_CHECKING:
    from dal.campaign import CampaignStore
    from dal.loop.batch import Batch
    from dal.loop.coordinator import Stopped
    from dal.scan import Progress


@click.command("next")
@click.argument("directory", type=click.Path(path_type=Path))
@workers_options
@click.option("--close", is_flag=True, help="Close the open batch with the answers it has.")
@click.option("--coverage", is_flag=True, help="Choose this batch by coverage of the pool, without the learner.")
@click.option("--full", is_flag=True, help="Score the whole pool for this batch, in a campaign by waves.")
@click.option(
    "--like",
    multiple=True,
    metavar="ID|FILE.csv",
    help="Search for records like this one: the id of a record, or a CSV file of ids or features. May be repeated.",
)
@click.option(
    "--where",
    metavar="CONDITION",
    help="Search among the records that meet a condition on columns of the pool, such as \"lang = 'de'\".",
)
@click.option(
    "--share", type=click.FloatRange(0, 1, min_open=True), help="Search for this share of the batch only, such as 0.3."
)
def next_(
    directory: Path,
    scheduler: str | None,
    workers: int | None,
    close: bool,
    coverage: bool,
    full: bool,
    like: tuple[str, ...],
    where: str | None,
    share: float | None,
) -> None:
    """Train, scan the pool, and write the next batch into DIRECTORY as a file to fill in."""
    from dal.campaign.choice import Choice
    from dal.campaign.parts import pool_of
    from dal.loop.actions import Stop, Wait
    from dal.loop.campaign import Campaign, Stopped
    from dal.loop.search import read_likes
    from dal.loop.state import next_step

    if share is not None and not like and where is None:
        raise click.UsageError("--share is the share that is searched for; say for what by --like or --where")
    campaign = Campaign.open(directory)
    sought = read_likes(like, pool_of(campaign)) if like else None
    warned = Choice(campaign).warning()
    step = next_step(campaign)
    if (isinstance(step, Wait) and not close) or isinstance(step, Stop):
        scheduler, workers = None, 0  # nothing is scored
    with workers_chosen(scheduler, workers) as chosen, shown("scan") as show:
        given = campaign.next_batch(
            client=chosen,
            progress=rows_shown(show),
            close=close,
            coverage=coverage,
            full=full,
            like=sought,
            where=where,
            share=share or 1.0,
            on_batch=lambda batch: _tell_batch(campaign, directory, batch),
        )
    if isinstance(given, Stopped):
        _tell_stopped(given)
        return
    if close and not given.fresh:
        say(f"Nobody has begun this batch, so it stays open. To close it all the same: dal close {quoted(directory)}")
    if (overtaken := Choice(campaign).warning()) != warned:
        say(overtaken or "The learner in use has been compared again: no other one has overtaken it.")


@click.command("run")
@click.argument("directory", type=click.Path(path_type=Path))
@workers_options
@click.option(
    "--metrics", metavar="[HOST:]PORT", help="Serve numbers for Prometheus there; without HOST for this machine alone."
)
def run_(directory: Path, scheduler: str | None, workers: int | None, metrics: str | None) -> None:
    """Carry on round after round, as people answer, until a stopping criterion ends the campaign.

    Answers come by imports or from the labelling page. With the settings close_at and reserve nobody waits for the next
    batch. Ctrl-C ends it; run again, it goes on.
    """
    from dal.loop.campaign import Campaign

    campaign = Campaign.open(directory)
    latest: list[Progress] = []
    with (
        nullcontext() if metrics is None else _metrics(campaign, metrics, latest),
        workers_chosen(scheduler, workers) as chosen,
        shown("scan") as show,
    ):
        draw = rows_shown(show)

        def progressed(progress: Progress) -> None:
            latest[:] = [progress]
            draw(progress)

        ended = campaign.run(
            client=chosen,
            progress=progressed,
            on_batch=lambda batch: say(f"Round {batch.number} is open: {len(batch.rows):,} records to label"),
            on_rest=lambda text: say(f"{text[:1].upper()}{text[1:]}"),
        )
    if ended is not None:
        _tell_stopped(ended)


@contextmanager
def _metrics(campaign: CampaignStore, address: str, latest: list[Progress]) -> Iterator[None]:
    """Serve the numbers of a run at an address, with the latest progress of a scan."""
    from dal.campaign.metrics import metrics_of
    from dal.campaign.view import View
    from dal.metrics import exposition, logged, serving
    from dal.scan.run import progress_metrics

    view = View(campaign)

    def read() -> str:
        return exposition([*metrics_of(view), *progress_metrics(*latest[:1]), counts.metric()])

    with logged() as counts, serving(address, read) as url:
        say(f"Metrics: {url}")
        yield


def _tell_stopped(stopped: Stopped) -> None:
    say("Stopped:")
    for each in stopped.verdicts:
        say(f"  {each.criterion}: {each.reason}")


def _tell_batch(campaign: CampaignStore, directory: Path, batch: Batch) -> None:
    from dal.campaign.choice import Choice
    from dal.campaign.parts import pool_of
    from dal.campaign.view import View, left_out, scored
    from dal.classes import listed
    from dal.exchange import write_batch
    from dal.loop.learners import advice_due
    from dal.selection.candidates import UNUSABLE

    path = directory / f"batch-{batch.number:04d}.csv"
    if not path.exists():
        write_batch(campaign, pool_of(campaign), batch.number, path)
    summary = campaign.rounds.get(batch.number).summary or {}
    if batch.fresh and (invalid := summary.get("invalid", 0)):
        part = f" of the {summary['rows']:,} that were scored" if summary.get("reach") else ""
        say(f"{invalid:,} records{part} {UNUSABLE}: they are never asked.")
    if batch.fresh and (told := left_out(campaign.rounds.get(batch.number))):
        say(f"{told}.")
    if batch.fresh:
        say(f"Round {batch.number}: {len(batch.rows):,} records to label, in {path}")
        if told := scored(campaign.rounds.all()):
            say(told)
        if found := sum(each.found_by is not None for each in campaign.rounds.batch(batch.number)):
            say(f"{found:,} of them were found by a search.")
        tell_balance(View(campaign).balance())
        if told := Choice(campaign).warning():
            say(told)
    else:
        say(f"Round {batch.number} is open: {batch.pending:,} of {len(batch.rows):,} records are unanswered.")
    say(f"Fill in the column label with one of: {listed(campaign.settings.classes, most=None)}")
    say(f"Then: dal label import {quoted(directory)} {quoted(path)}, and dal next {quoted(directory)}")
    if batch.fresh and advice_due(View(campaign)):
        say("Learners are compared now; the batch can be answered meanwhile.")


@click.command("map")
@click.argument("directory", type=click.Path(path_type=Path))
@workers_options
def map_(directory: Path, scheduler: str | None, workers: int | None) -> None:
    """Draw the map of the pool that the campaign in DIRECTORY shows its batches on: one pass over the pool."""
    from dal.campaign import CampaignStore
    from dal.campaign.parts import pool_of
    from dal.map import MAP, map_of
    from dal.scan.plan import seconds_alone

    campaign = CampaignStore.open(directory)
    pool = pool_of(campaign)
    alone = seconds_alone(pool.n_rows, pool.n_features, 2, kind=None)
    with workers_chosen(scheduler, workers) as chosen, shown("map") as show:
        map_of(
            pool,
            campaign.directory / MAP,
            campaign.settings.random_state,
            client=chosen.client_for(pool.n_rows, alone),
            progress=lambda done, total: show(done, total, "rows"),
        )
    say("The campaign page shows where each batch lies in the pool now: dal serve")

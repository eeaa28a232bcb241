"""Labels: bring answers in and out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from dal.choices import FORMATS
from dal.cli.options import system_user, workers_options
from dal.cli.terminal import quoted, say, shown

if TYPE_CHECKING:
    from dal.campaign import CampaignStore
    from dal.exchange import ImportReport
    from dal.loop.bias import Weights
    from dal.loop.copies import Group

_LISTED_LINES = 20

_format_option = click.option(
    "--format",
    "file_format",
    help=f"One of {', '.join(FORMATS)}, or of your own, as module:object or installed. Default: by the ending of FILE.",
)


@click.group()
def label() -> None:
    """Import and export answers."""


@label.command("import")
@click.argument("directory", type=click.Path(path_type=Path))
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--annotator", help="Who answered the lines that do not say so. Default: your user name.")
@click.option("--take-conflicts", is_flag=True, help="Take lines that differ from what was answered elsewhere since.")
@_format_option
def import_(directory: Path, file: Path, annotator: str | None, take_conflicts: bool, file_format: str | None) -> None:
    """Import the answers in FILE: .csv, .jsonl or .parquet, or what a labelling tool exported."""
    from dal.campaign import CampaignStore
    from dal.campaign.parts import pool_of
    from dal.exchange import read_answers

    campaign = CampaignStore.open(directory)
    opened = pool_of(campaign)
    conflicts: Literal["take", "keep out"] = "take" if take_conflicts else "keep out"
    who = annotator or system_user()
    with shown("reading") as show:
        report = read_answers(
            file,
            campaign,
            opened,
            who,
            conflicts=conflicts,
            file_format=file_format,
            progress=lambda read: show(read, None, "answers"),
        )
    _tell_import(report)


def _tell_import(report: ImportReport) -> None:
    if report.seen:
        say("This file was imported before: nothing was changed.")
        return
    say(
        f"{report.new:,} new, {report.changed:,} changed, {report.same:,} known already, {report.pending:,} pending,"
        f" {report.rejections:,} rejected, {report.kept_out:,} in conflict"
    )
    if report.superseded:
        say(f"{report.superseded:,} more were followed by a later answer of the same annotator.")
    if report.volunteered:
        say(f"{report.volunteered:,} of them were never asked: taken as volunteered.")
    for what, lines, total in (
        ("rejected", report.rejected, report.rejections),
        ("conflict", report.conflicts, report.kept_out),
    ):
        for line in lines[:_LISTED_LINES]:
            say("  " + ": ".join(filter(None, (line.place, line.record_id, what, line.reason))))
        if total > _LISTED_LINES:
            say(f"  and {total - _LISTED_LINES:,} more")
    refused = report.rejections + report.kept_out
    if refused and not report.new + report.changed + report.same + report.superseded:
        raise click.ClickException(f"No answer was taken: all {refused:,} were refused.")


@label.command("export")
@click.argument("directory", type=click.Path(path_type=Path))
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--round", "number", type=int, help="Default: the newest.")
@_format_option
@click.option("--labels", is_flag=True, help="The labelled set instead: every label, and all that led to it.")
@click.option(
    "--copies",
    type=click.IntRange(1),
    metavar="N",
    help="With --labels: also up to N near-duplicates of each labelled record, with its label, marked as copies.",
)
@click.option(
    "--weights",
    "weighted",
    is_flag=True,
    help="With --labels: also weights that make the labels stand for the pool; fits the learner 30 times.",
)
@workers_options
def export(
    directory: Path,
    file: Path,
    number: int | None,
    file_format: str | None,
    labels: bool,
    copies: int | None,
    weighted: bool,
    scheduler: str | None,
    workers: int | None,
) -> None:
    """Write a batch with the answers known so far to FILE."""
    from dal.campaign import CampaignStore
    from dal.campaign.parts import pool_of
    from dal.exchange import write_batch, write_labels

    campaign = CampaignStore.open(directory)
    if labels:
        if number is not None:
            raise click.UsageError("--labels writes all rounds: leave out --round.")
        found = None if copies is None else _copies(campaign, copies, scheduler, workers)
        pairs = None if found is None else (found.rows, found.of)
        weights = _weights(campaign, scheduler, workers) if weighted else None
        given = None if weights is None else (weights.rows, weights.weights, weights.training)
        written = write_labels(campaign, pool_of(campaign), file, file_format=file_format, copies=pairs, weights=given)
        say(f"Wrote {written:,} labels{'' if found is None else f' and {len(found.rows):,} copies'} to {file}")
        if found is not None and found.full:
            say(f"Records with {copies:,} copies or more: {found.full:,}. Name a larger --copies for all of them.")
        for line in () if weights is None else weights.lines:
            say(line)
        return
    if copies is not None or weighted or scheduler is not None or workers is not None:
        raise click.UsageError("--copies and --weights belong to --labels, and workers to these two")
    lines = write_batch(campaign, pool_of(campaign), _round_of(campaign, number), file, file_format=file_format)
    say(f"Wrote {lines:,} lines to {file}")


def _copies(campaign: CampaignStore, most: int, scheduler: str | None, workers: int | None) -> Group:
    from dal.cli.cluster import rows_shown, workers_chosen
    from dal.loop.copies import copies_of

    with workers_chosen(scheduler, workers) as chosen, shown("copies") as show:
        return copies_of(campaign, most=most, workers=chosen, progress=rows_shown(show))


def _weights(campaign: CampaignStore, scheduler: str | None, workers: int | None) -> Weights:
    from dal.cli.cluster import workers_chosen
    from dal.loop.bias import weights_of

    with workers_chosen(scheduler, workers) as chosen, shown("fits") as show:
        return weights_of(campaign, workers=chosen, progress=lambda done, total: show(done, total, "fits"))


def _round_of(campaign: CampaignStore, number: int | None) -> int:
    rounds = [each.number for each in campaign.rounds.all()]
    if not rounds:
        raise click.ClickException(f"No batch was chosen yet: dal next {quoted(campaign.directory)}")
    if number is not None and number not in rounds:
        raise click.ClickException(f"`--round` must be from {rounds[0]} to {rounds[-1]}, got {number}.")
    return number or rounds[-1]


def _label_studio(command: Callable[..., None]) -> Callable[..., None]:
    for option in (
        click.option("--project", help="Number or title. Default: one of this campaign's own."),
        click.option("--token", envvar="LABEL_STUDIO_API_KEY", required=True, help="Of Account & Settings there."),
        click.option("--url", envvar="LABEL_STUDIO_URL", required=True, help="Address of the server."),
    ):
        command = option(command)
    return command


@label.command("push")
@click.argument("directory", type=click.Path(path_type=Path))
@_label_studio
@click.option("--round", "number", type=int, help="Default: the newest.")
def push(directory: Path, url: str, token: str, project: str | None, number: int | None) -> None:
    """Put a batch into a project of a Label Studio server; pushed again, it adds what is missing.

    The address and the token may stand in LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY.
    """
    from dal.campaign import CampaignStore
    from dal.campaign.parts import pool_of
    from dal.exchange import Server, push_batch

    campaign = CampaignStore.open(directory)
    server = Server(url, token)
    with shown("pushing") as show:
        pushed = push_batch(
            campaign,
            pool_of(campaign),
            _round_of(campaign, number),
            server,
            project or _project_title(campaign),
            progress=lambda done, total: show(done, total, "records"),
        )
    say(
        f"{pushed.new:,} tasks made, {pushed.there:,} there already, {pushed.answered:,} left out as answered elsewhere"
    )
    say(f"Label them at {pushed.page}, then: dal label pull {quoted(directory)} --url {quoted(url)}")


@label.command("pull")
@click.argument("directory", type=click.Path(path_type=Path))
@_label_studio
@click.option("--take-conflicts", is_flag=True, help="Take answers that differ from what was answered elsewhere since.")
def pull(directory: Path, url: str, token: str, project: str | None, take_conflicts: bool) -> None:
    """Import the answers given in a project of a Label Studio server; run it as often as you like."""
    from dal.campaign import CampaignStore
    from dal.campaign.parts import pool_of
    from dal.exchange import Server, pull_answers

    campaign = CampaignStore.open(directory)
    conflicts: Literal["take", "keep out"] = "take" if take_conflicts else "keep out"
    title = project or _project_title(campaign)
    _tell_import(pull_answers(campaign, pool_of(campaign), Server(url, token), title, conflicts=conflicts))


def _project_title(campaign: CampaignStore) -> str:
    """Name a project so that no two campaigns share it; Label Studio takes 50 characters."""
    return f"{campaign.directory.name[:40]} {campaign.id[:8]}"


@label.command("gold")
@click.argument("directory", type=click.Path(path_type=Path))
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@_format_option
def gold_(directory: Path, file: Path, file_format: str | None) -> None:
    """Mix the records in FILE, whose labels are known, into what people are served, to see whom to trust.

    They are never asked, nor learned from. How often one is served says the setting gold, a share.
    """
    from dal.campaign import CampaignStore
    from dal.campaign.parts import pool_of
    from dal.exchange import read_gold

    campaign = CampaignStore.open(directory)
    say(f"{read_gold(file, campaign, pool_of(campaign), file_format=file_format):,} gold records are new.")
    if not campaign.settings.labelling.gold:
        say(f"None is served yet: set gold, such as gold = 0.05, in {directory / 'campaign.toml'}")


@label.command("relabel")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option(
    "--records", "n", default=20, show_default=True, type=click.IntRange(1), help="The number of records to list."
)
def relabel(directory: Path, n: int) -> None:
    """List the records for which another answer is worth most: doubtful ones that matter."""
    from dal.campaign import CampaignStore
    from dal.campaign.doubts import doubtful
    from dal.classes import spelled

    campaign = CampaignStore.open(directory)
    proposed = doubtful(campaign, n)
    if not proposed:
        say("No label is in doubt.")
    for each in proposed:
        said = ", ".join(f"{who}: {spelled(answer)}" for who, answer in sorted(each.answers.items()))
        say(f"{each.record_id}: {spelled(each.label)} with probability {each.probability:.2f} ({said})")

"""The command line: one verb for each thing people do."""

import getpass
import io
import logging
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

import click
from distributed import Client
from rich.console import Console
from rich.logging import RichHandler
from rich.table import Table as RichTable

from dal import demo as demonstration
from dal import explorer
from dal._distribution import __version__
from dal.campaign import Annotators, Campaign, Settings
from dal.campaign.control import Act, Control
from dal.campaign.disk import DISK_ERRORS, told
from dal.compute.client import connect
from dal.compute.local import local_cluster
from dal.errors import CampaignError, DalError
from dal.evidence.votes import Vote
from dal.exchange import (
    FORMATS,
    ImportReport,
    Server,
    pull_answers,
    push_batch,
    read_answers,
    read_gold,
    write_batch,
    write_labels,
)
from dal.figures import Table
from dal.learners.presets import import_estimator
from dal.loop.actions import Stop, Wait
from dal.loop.coordinator import Batch, Stopped, create_campaign, next_batch, next_step, pool_of, run_campaign
from dal.loop.standing import Status, doubtful, left_out, saved, status
from dal.map import map_of
from dal.pool import Pool, append_pool, build_pool
from dal.pool.encodings import ENCODINGS
from dal.pool.store import Missing, listed
from dal.progress import shown
from dal.scan import Progress
from dal.selection.strategy import STRATEGIES
from dal.simulation import Replay
from dal.web import Listening, Options, make_server
from dal.web.overview import MAP

_LISTED_LINES = 20
_LISTED_PAIRS = 5

console = Console(highlight=False, soft_wrap=True, markup=False)


class _Verbs(click.Group):
    """Turns the library's errors into one line and an exit code; anything else is a bug and keeps its traceback."""

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401 - click's own signature
        try:
            with _terminable():
                return super().invoke(ctx)
        except DalError as error:
            raise click.ClickException(str(error)) from error
        except OSError as error:
            if error.errno not in DISK_ERRORS:
                raise
            raise click.ClickException(f"{error.filename or 'A file'}: {told(error)}") from error
        except KeyboardInterrupt as error:
            console.print("Interrupted. Nothing is lost: run the same command again, it goes on from here.")
            ctx.exit(143 if isinstance(error, _Terminated) else 130)


class _Terminated(KeyboardInterrupt):
    """The process was asked to end by SIGTERM, as by a service manager: it ends as by Ctrl-C."""


@contextmanager
def _terminable() -> Iterator[None]:
    def end(*_: object) -> None:
        raise _Terminated

    if threading.current_thread() is not threading.main_thread():  # as in a test: only there are signals handled
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="dal")
def main() -> None:
    """Distributed active learning on very large pools."""
    # A learner of one's own is named as module:object, and its module lies where one stands.
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    # Names of files may be any bytes, and a terminal may know few letters: neither is worth a traceback.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    handler = RichHandler(console=console, show_time=False, show_path=False)
    handler.addFilter(_no_interrupt)
    logging.basicConfig(level=logging.WARNING, handlers=[handler], format="%(message)s", force=True)
    # What dal has to say of a cluster is in its own errors; Dask would print a traceback for every lost connection.
    logging.getLogger("distributed").setLevel(logging.CRITICAL)


def _no_interrupt(record: logging.LogRecord) -> bool:
    """Drop what a library logs of Ctrl-C passing through it: whoever pressed the key knows."""
    return not (record.exc_info and isinstance(record.exc_info[1], KeyboardInterrupt))


# -- pools -------------------------------------------------------------------------------------------------------------


@main.group()
def pool() -> None:
    """Build pools and look at them."""


@pool.command("build")
@click.argument("source", type=click.Path(exists=True, path_type=Path))
@click.argument("pool_path", metavar="POOL")
@click.option("--ids", help="Column with the record ids, which must not repeat. Default: the row numbers.")
@click.option("--features", help="Feature columns, separated by commas. Default: all but ids, display and an index.")
@click.option("--display", default="", help="Columns to show to annotators, separated by commas.")
@click.option(
    "--dtype",
    type=click.Choice(ENCODINGS),
    help="How to store the features; narrow types are read faster and are less exact. Default: float32, or uint8 kept.",
)
@click.option("--text", help="Column of texts to make the features from; it is shown as well.")
@click.option("--vectoriser", help="What does so: module:object, a transformer of scikit-learn, fitted or not.")
@click.option("--header/--no-header", default=None, help="Whether the first line of a CSV file names the columns.")
@click.option("--size", help="Resize pictures to HEIGHTxWIDTH, such as 32x32. Default: they must have one size.")
@click.option("--background", help="Colour below transparent pixels, such as black or #336699. Default: white.")
@click.option("--overwrite", is_flag=True, help="Replace the pool that is there.")
def build(
    source: Path,
    pool_path: str,
    ids: str | None,
    features: str | None,
    display: str,
    dtype: str | None,
    text: str | None,
    vectoriser: str | None,
    header: bool | None,
    size: str | None,
    background: str | None,
    overwrite: bool,
) -> None:
    """Build POOL from SOURCE: an .npy, .parquet, .pq, .csv or .tsv file, or a folder of pictures.

    Memory does not grow with the source. Interrupted and run again, it goes on.
    """
    with shown("building", console) as show:
        built = build_pool(
            source,
            pool_path,
            ids=ids,
            features=_split(features) if features else None,
            display=_split(display),
            text=text,
            vectoriser=None if vectoriser is None else import_estimator(vectoriser, "vectoriser"),
            header=header,
            size=None if size is None else _size(size),
            background=background,
            dtype=dtype,
            overwrite=overwrite,
            progress=lambda done, total: show(done, total, "rows"),
        )
    _describe(built)


def _size(text: str) -> tuple[int, int]:
    height, x, width = text.partition("x")
    if not (x and height.isdecimal() and width.isdecimal()):
        raise click.BadParameter(f"HEIGHTxWIDTH was expected, such as 32x32; got {text!r}", param_hint="--size")
    return int(height), int(width)


@pool.command("append")
@click.argument("source", type=click.Path(exists=True, path_type=Path))
@click.argument("pool_path", metavar="POOL")
@click.option("--ids", help="Column with the record ids; none may be in the pool already. Default: as in POOL.")
@click.option("--features", help="Feature columns, separated by commas. Default: as in POOL.")
@click.option("--display", default="", help="Columns to show to annotators, separated by commas. Default: as in POOL.")
@click.option("--text", help="Column of texts to make the features from. Default: as in POOL.")
@click.option("--vectoriser", help="What does so, as module:object: the one the pool was built with, fitted.")
@click.option("--header/--no-header", default=None, help="Whether the first line of a CSV file names the columns.")
@click.option("--size", help="Resize pictures to HEIGHTxWIDTH, such as 32x32. Default: as those of POOL.")
def append(
    source: Path,
    pool_path: str,
    ids: str | None,
    features: str | None,
    display: str,
    text: str | None,
    vectoriser: str | None,
    header: bool | None,
    size: str | None,
) -> None:
    """Add the records of SOURCE at the end of POOL, which is built of such; campaigns on it go on.

    Columns are found by the names that POOL has, whatever their order; others are left out.

    Rows that are there stay where they are. Interrupted, it leaves POOL as it was: run it again.
    """
    with shown("appending", console) as show:
        longer = append_pool(
            source,
            pool_path,
            ids=ids,
            features=_split(features) if features else None,
            display=_split(display),
            text=text,
            vectoriser=None if vectoriser is None else import_estimator(vectoriser, "vectoriser"),
            header=header,
            size=None if size is None else _size(size),
            progress=lambda done, total: show(done, total, "rows"),
        )
    _describe(longer)


_missing_chunks = click.option(
    "--missing-chunks",
    type=click.Choice(get_args(Missing)),
    default="refuse",
    show_default=True,
    help="Of a plain Zarr array: whether a chunk that is not stored is an error, or means the fill value.",
)


@pool.command("info")
@click.argument("pool_path", metavar="POOL")
@_missing_chunks
def info(pool_path: str, missing_chunks: Missing) -> None:
    """Describe POOL."""
    _describe(Pool.open(pool_path, missing_chunks=missing_chunks))


def _describe(opened: Pool) -> None:
    shape = " x ".join(str(length) for length in opened.record_shape)
    console.print(f"{opened.path}: {opened.n_rows:,} records of {shape} {opened.encoding}, {_bytes(opened.nbytes)}")
    if opened.feature_names:
        console.print(f"features: {listed(opened.feature_names)}")
    if opened.left_out:
        console.print(f"left out, as an index: {listed(opened.left_out)}; --features takes them")
    console.print(f"display fields: {', '.join(opened.fields) or 'none'}; fingerprint {opened.fingerprint}")
    if opened.packing is not None:
        console.print(f"by its attributes: {opened.packing}")
    if opened.missing_chunks == "fill":
        missing, expected = opened.holes()
        console.print(f"{missing:,} of {expected:,} chunks are not stored, and read as the fill value")


# -- campaigns ---------------------------------------------------------------------------------------------------------


def _class_options(command: Callable[..., None]) -> Callable[..., None]:
    for option in (
        click.option(
            "--classes-from",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            help="A file of classes, UTF-8, one a line.",
        ),
        click.option("--class", "each_class", multiple=True, help="A class; repeat it for each. It may hold commas."),
        click.option("--classes", help="The classes, separated by commas."),
    ):
        command = option(command)
    return command


def _classes(classes: str | None, each_class: tuple[str, ...], classes_from: Path | None) -> list[str]:
    given = [
        name
        for name, value in (("--classes", classes), ("--class", each_class), ("--classes-from", classes_from))
        if value
    ]
    if len(given) > 1:
        raise click.UsageError(f"{' and '.join(given)} name the classes twice: give one of them.")
    if classes_from is not None:
        try:
            lines = classes_from.read_text(encoding="utf-8-sig").split("\n")
        except UnicodeDecodeError as error:
            raise click.UsageError(f"{classes_from} must be UTF-8: save it as such.") from error
        return [line.strip() for line in lines if line.strip()]
    return list(each_class) or _split(classes or "")


@main.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.argument("pool_path", metavar="POOL")
@_class_options
@click.option(
    "--learner", default="logistic", show_default=True, help="logistic, forest, hgb, mlp, or module:object of your own."
)
@click.option("--strategy", default="default", show_default=True, help=f"One of {', '.join(STRATEGIES)}.")
@click.option("--batch", default=100, show_default=True, help="Records asked in a round.")
@click.option("--seed", default=0, show_default=True, help="Same seed, same batches.")
@click.option("--stop", multiple=True, help="A stopping criterion, such as max_labels=5000; repeat it for several.")
@click.option("--explore", default=0.05, show_default=True, help="Share drawn uniformly, to measure honestly.")
@click.option("--trust", multiple=True, help="A type, by full name, that a saved learner may hold.")
@click.option("--overlap", default=1, show_default=True, help="Annotators who are to answer each record.")
@click.option("--gold", default=0.0, show_default=True, help="Share of served records whose label is known.")
@click.option(
    "--vote",
    type=click.Choice(get_args(Vote)),
    default="majority",
    show_default=True,
    help="How several answers become a label.",
)
@click.option("--database", default="", help="URL of a PostgreSQL database. Default: a file in DIRECTORY.")
@click.option(
    "--store", default="", help="URL of an object store for models, as s3://bucket/folder. Default: DIRECTORY."
)
@click.option("--close-at", default=1.0, show_default=True, help="Share of a batch whose answers are waited for.")
@click.option("--reserve", default=0.0, show_default=True, help="Records beyond the batch, as a share, for the pause.")
@click.option("--stop-set", type=int, help="Records held back to compare models on. Default: 1 %, 1,000 at most.")
@click.option("--holdout", type=click.Path(exists=True, dir_okay=False), help="Labelled records apart, as .npz: X, y.")
@_missing_chunks
def init(
    directory: Path,
    pool_path: str,
    classes: str | None,
    each_class: tuple[str, ...],
    classes_from: Path | None,
    learner: str,
    strategy: str,
    batch: int,
    seed: int,
    stop: tuple[str, ...],
    explore: float,
    trust: tuple[str, ...],
    overlap: int,
    gold: float,
    vote: Vote,
    database: str,
    store: str,
    close_at: float,
    reserve: float,
    stop_set: int | None,
    holdout: str | None,
    missing_chunks: Missing,
) -> None:
    """Make a campaign in DIRECTORY that labels records of POOL."""
    named = _classes(classes, each_class, classes_from)
    if not named:
        raise click.UsageError("The classes are missing: --classes ham,spam, --class for each, or --classes-from.")
    campaign = create_campaign(
        directory,
        pool_path,
        named,
        learner=learner,
        strategy=strategy,
        batch=batch,
        seed=seed,
        stop=stop,
        explore=explore,
        trusted=trust,
        overlap=overlap,
        gold=gold,
        vote=vote,
        database=database,
        store=store,
        close_at=close_at,
        reserve=reserve,
        stop_set=stop_set,
        holdout=holdout,
        missing_chunks=missing_chunks,
    )
    console.print(f"Made the campaign {campaign.directory}. The first batch: dal next {directory}")
    console.print(f"To label in a browser: dal serve {directory}, and beside it dal run {directory}")


@main.command("next")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--scheduler", help="Address of a Dask scheduler. Default: a local cluster of this machine's cores.")
@click.option("--close", is_flag=True, help="Close the open batch with the answers it has.")
@click.option("--coverage", is_flag=True, help="Choose this batch by coverage of the pool, without the learner.")
def next_(directory: Path, scheduler: str | None, close: bool, coverage: bool) -> None:
    """Train, scan the pool, and write the next batch into DIRECTORY as a file to fill in."""
    campaign = Campaign.open(directory)
    step = next_step(campaign)
    waits = (isinstance(step, Wait) and not close) or isinstance(step, Stop)
    with _cluster(None if waits else scheduler, start=not waits) as client, shown("scan", console) as show:
        given = next_batch(campaign, client=client, progress=_rows_shown(show), close=close, coverage=coverage)
    if isinstance(given, Stopped):
        _tell_stopped(given)
        return
    _tell_batch(campaign, directory, given)
    if close and not given.fresh:
        console.print(f"Nobody has begun this batch, so it stays open. To close it all the same: dal close {directory}")


@main.command("run")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--scheduler", help="Address of a Dask scheduler. Default: a local cluster of this machine's cores.")
def run_(directory: Path, scheduler: str | None) -> None:
    """Carry on round after round, as people answer, until a stopping criterion ends the campaign.

    Answers come by imports or from the labelling page. With the settings close_at and reserve nobody waits for the next
    batch. Ctrl-C ends it; run again, it goes on.
    """
    campaign = Campaign.open(directory)
    with _cluster(scheduler, start=True) as client, shown("scan", console) as show:
        ended = run_campaign(
            campaign,
            client=client,
            progress=_rows_shown(show),
            on_batch=lambda batch: console.print(f"Round {batch.number} is open: {len(batch.rows):,} records to label"),
        )
    if ended is not None:
        _tell_stopped(ended)


def _tell_stopped(stopped: Stopped) -> None:
    console.print("Stopped: more labels are not worth their price.")
    for each in stopped.verdicts:
        console.print(f"  {each.criterion}: {each.reason}")


def _tell_batch(campaign: Campaign, directory: Path, batch: Batch) -> None:
    path = directory / f"batch-{batch.number:04d}.csv"
    if not path.exists():
        write_batch(campaign, pool_of(campaign), batch.number, path)
    invalid = (campaign.round(batch.number).summary or {}).get("invalid", 0)
    if batch.fresh and invalid:
        console.print(f"{invalid:,} records hold NaN or infinite values: they are never asked.")
    if batch.fresh and (told := left_out(campaign.round(batch.number))):
        console.print(f"{told}.")
    if batch.fresh:
        console.print(f"Round {batch.number}: {len(batch.rows):,} records to label, in {path}")
    else:
        console.print(f"Round {batch.number} is open: {batch.pending:,} of {len(batch.rows):,} records are unanswered.")
    console.print(f"Fill in the column label with one of: {', '.join(campaign.settings.classes)}")
    console.print(f"Then: dal label import {directory} {path}, and dal next {directory}")


@contextmanager
def _cluster(scheduler: str | None, *, start: bool) -> Iterator[Client | None]:
    if scheduler is not None:
        with connect(scheduler) as client:
            yield client
    elif start:
        with local_cluster() as client:
            yield client
    else:
        yield None


def _rows_shown(show: Callable[[int, int | None, str], None]) -> Callable[[Progress], None]:
    return lambda progress: show(progress.rows_done, progress.rows_total, str(progress))


@main.command("map")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--scheduler", help="Address of a Dask scheduler. Default: a local cluster of this machine's cores.")
def map_(directory: Path, scheduler: str | None) -> None:
    """Draw the map of the pool that the campaign in DIRECTORY shows its batches on: one pass over the pool."""
    campaign = Campaign.open(directory)
    with _cluster(scheduler, start=True) as client, shown("map", console) as show:
        map_of(
            pool_of(campaign),
            campaign.directory / MAP,
            campaign.settings.seed,
            client=client,
            progress=lambda done, total: show(done, total, "rows"),
        )
    console.print("The campaign page shows where each batch lies in the pool now: dal serve")


@main.command("status")
@click.argument("directory", type=click.Path(path_type=Path))
def status_(directory: Path) -> None:
    """Tell where the campaign in DIRECTORY stands."""
    campaign = Campaign.open(directory)
    now = status(campaign)
    _describe_settings(campaign.settings)
    state = "no round yet" if not now.round else f"round {now.round} is {now.status}"
    console.print(f"{state}; {now.asked:,} records asked, {now.labels:,} labelled, {now.pending:,} waiting")
    console.print("labels: " + ", ".join(f"{name}: {count:,}" for name, count in now.per_class.items()))
    console.print(f"accuracy: {now.accuracy.text}")
    for each in now.people:
        skipped = f", {each.skipped / each.answers:.0%} skipped"
        pace = "" if each.median_seconds is None else f", {each.median_seconds:.1f} s each in the median"
        equal, together = now.agreement.with_others(each.name)
        alike = "" if equal is None else f"; alike with others in {equal:.0%} of {together:,}"
        console.print(f"annotator {each.name}: {each.answers:,} answers{skipped}{pace}{alike}")
    console.print(f"agreement: {now.agreement.text}")
    for pair in now.agreement.pairs[:_LISTED_PAIRS]:
        kappa = "" if pair.kappa is None else f", Cohen's kappa {pair.kappa:.2f}"
        console.print(f"  {pair.first} and {pair.second}: alike in {pair.agreement:.0%} of {pair.n:,}{kappa}")
    for name, (right, of) in sorted(now.gold.items()):
        console.print(f"gold records: {name} has {right:,} of {of:,} right")
    console.print(f"labels saved: {saved(campaign).text}")
    for name, share in now.shares.items():
        if share.value is not None:
            console.print(f"share of {name} in the pool: {share.text}")
    _tell_verdicts(now)
    if now.left_out:
        console.print(now.left_out)
    for note in now.notes:
        console.print(f"the learner warned: {note}")


def _tell_verdicts(now: Status) -> None:
    for word, verdicts in (("go on", now.verdicts), ("advice", now.advice)):
        for each in verdicts:
            first = now.first_stops.get(each.criterion)
            before = f" (it would have stopped after round {first})" if first is not None and not each.stop else ""
            said = "STOP" if each.stop and word == "go on" else f"{word}, stop" if each.stop else word
            console.print(f"{said}: {each.criterion}: {each.reason}{before}")


def _describe_settings(settings: Settings) -> None:
    console.print(
        f"pool {settings.pool}; learner {settings.learner}; strategy {settings.strategy}; seed {settings.seed}"
    )


# -- labels ------------------------------------------------------------------------------------------------------------


@main.group()
def label() -> None:
    """Bring answers in and out."""


@label.command("import")
@click.argument("directory", type=click.Path(path_type=Path))
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--annotator", help="Who answered the lines that do not say so. Default: your user name.")
@click.option("--take-conflicts", is_flag=True, help="Take lines that differ from what was answered elsewhere since.")
@click.option("--format", "file_format", type=click.Choice(FORMATS), help="Default: by the ending of FILE.")
def import_(directory: Path, file: Path, annotator: str | None, take_conflicts: bool, file_format: str | None) -> None:
    """Import the answers in FILE: .csv, .jsonl or .parquet, or what a labelling tool exported."""
    campaign = Campaign.open(directory)
    opened = pool_of(campaign)
    conflicts: Literal["take", "keep out"] = "take" if take_conflicts else "keep out"
    who = annotator or _user()
    with shown("reading", console) as show:
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


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError) as error:  # as in a container whose user has no name
        raise click.ClickException("This system has no name for you: say who answered with --annotator.") from error


def _tell_import(report: ImportReport) -> None:
    if report.seen:
        console.print("This file was imported before: nothing was changed.")
        return
    console.print(
        f"{report.new:,} new, {report.changed:,} changed, {report.same:,} known already, {report.pending:,} pending,"
        f" {report.rejections:,} rejected, {report.kept_out:,} in conflict"
    )
    if report.superseded:
        console.print(f"{report.superseded:,} more were followed by a later answer of the same annotator.")
    if report.volunteered:
        console.print(f"{report.volunteered:,} of them were never asked: taken as volunteered.")
    for what, lines, total in (
        ("rejected", report.rejected, report.rejections),
        ("conflict", report.conflicts, report.kept_out),
    ):
        for line in lines[:_LISTED_LINES]:
            console.print("  " + ": ".join(filter(None, (line.place, line.record_id, what, line.reason))))
        if total > _LISTED_LINES:
            console.print(f"  and {total - _LISTED_LINES:,} more")
    refused = report.rejections + report.kept_out
    if refused and not report.new + report.changed + report.same + report.superseded:
        raise click.ClickException(f"No answer was taken: all {refused:,} were refused.")


@label.command("export")
@click.argument("directory", type=click.Path(path_type=Path))
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--round", "number", type=int, help="Default: the newest.")
@click.option("--format", "file_format", type=click.Choice(FORMATS), help="Default: by the ending of FILE.")
@click.option("--labels", is_flag=True, help="The labelled set instead: every label, and all that led to it.")
def export(directory: Path, file: Path, number: int | None, file_format: str | None, labels: bool) -> None:
    """Write a batch with the answers known so far to FILE."""
    campaign = Campaign.open(directory)
    if labels:
        if number is not None:
            raise click.UsageError("--labels writes all rounds: leave out --round.")
        written = write_labels(campaign, pool_of(campaign), file, file_format=file_format)
        console.print(f"Wrote {written:,} labels to {file}")
        return
    lines = write_batch(campaign, pool_of(campaign), _round_of(campaign, number), file, file_format=file_format)
    console.print(f"Wrote {lines:,} lines to {file}")


def _round_of(campaign: Campaign, number: int | None) -> int:
    rounds = [each.number for each in campaign.rounds()]
    if not rounds:
        raise click.ClickException(f"No batch was chosen yet: dal next {campaign.directory}")
    if number is not None and number not in rounds:
        raise click.ClickException(f"Expected a round from {rounds[0]} to {rounds[-1]}, got {number}.")
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
    campaign = Campaign.open(directory)
    server = Server(url, token)
    with shown("pushing", console) as show:
        pushed = push_batch(
            campaign,
            pool_of(campaign),
            _round_of(campaign, number),
            server,
            project or _project_title(campaign),
            progress=lambda done, total: show(done, total, "records"),
        )
    console.print(
        f"{pushed.new:,} tasks made, {pushed.there:,} there already, {pushed.answered:,} left out as answered elsewhere"
    )
    console.print(f"Label them at {pushed.page}, then: dal label pull {directory} --url {url}")


@label.command("pull")
@click.argument("directory", type=click.Path(path_type=Path))
@_label_studio
@click.option("--take-conflicts", is_flag=True, help="Take answers that differ from what was answered elsewhere since.")
def pull(directory: Path, url: str, token: str, project: str | None, take_conflicts: bool) -> None:
    """Import the answers given in a project of a Label Studio server; run it as often as you like."""
    campaign = Campaign.open(directory)
    conflicts: Literal["take", "keep out"] = "take" if take_conflicts else "keep out"
    title = project or _project_title(campaign)
    _tell_import(pull_answers(campaign, pool_of(campaign), Server(url, token), title, conflicts=conflicts))


def _project_title(campaign: Campaign) -> str:
    """Name a project so that no two campaigns share it; Label Studio takes 50 characters."""
    return f"{campaign.directory.name[:40]} {campaign.id[:8]}"


@label.command("gold")
@click.argument("directory", type=click.Path(path_type=Path))
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--format", "file_format", type=click.Choice(FORMATS), help="Default: by the ending of FILE.")
def gold_(directory: Path, file: Path, file_format: str | None) -> None:
    """Mix the records in FILE, whose labels are known, into what people are served, to see whom to trust.

    They are never asked, nor learned from. How often one is served says the setting gold, a share.
    """
    campaign = Campaign.open(directory)
    console.print(f"{read_gold(file, campaign, pool_of(campaign), file_format=file_format):,} gold records are new.")
    if not campaign.settings.gold:
        console.print(f"None is served yet: set gold, such as gold = 0.05, in {directory / 'campaign.toml'}")


@label.command("relabel")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--records", "n", default=20, show_default=True, type=click.IntRange(1), help="List so many.")
def relabel(directory: Path, n: int) -> None:
    """List the records for which another answer is worth most: doubtful ones that matter."""
    campaign = Campaign.open(directory)
    proposed = doubtful(campaign, n)
    if not proposed:
        console.print("No label is in doubt.")
    for each in proposed:
        said = ", ".join(f"{who}: {what}" for who, what in sorted(each.answers.items()))
        console.print(f"{each.record_id}: {each.label} with probability {each.probability:.2f} ({said})")


# -- people ------------------------------------------------------------------------------------------------------------


@main.group()
def annotator() -> None:
    """Let people in, who answer over the network."""


@annotator.command("add")
@click.argument("directory", type=click.Path(path_type=Path))
@click.argument("name")
@click.option("--manager", is_flag=True, help="May close rounds and manage, too.")
@click.option("--url", default="http://127.0.0.1:8000/", show_default=True, help="Where they reach the pages.")
def add_annotator(directory: Path, name: str, manager: bool, url: str) -> None:
    """Give NAME a link to the campaign in DIRECTORY. It is shown this once.

    From the first one on, nobody gets in without a link.
    """

    def show(token: str) -> None:
        console.print(f"The link of {name}, shown this once:")
        console.print(f"{url.rstrip('/')}/enter#{token}")
        console.file.flush()

    Annotators(Campaign.open(directory)).add(name, "manager" if manager else "annotator", show=show)


@annotator.command("revoke")
@click.argument("directory", type=click.Path(path_type=Path))
@click.argument("name")
def revoke_annotator(directory: Path, name: str) -> None:
    """Make the token of NAME worthless; the answers stay."""
    Annotators(Campaign.open(directory)).revoke(name)
    console.print(f"The token of {name} is worth nothing any more.")


@annotator.command("list")
@click.argument("directory", type=click.Path(path_type=Path))
def list_annotators(directory: Path) -> None:
    """List everybody who has, or had, a token."""
    for account in Annotators(Campaign.open(directory)).all():
        until = "" if account.revoked_at is None else f", revoked {account.revoked_at:%Y-%m-%d %H:%M} UTC"
        console.print(f"{account.name}: {account.role} since {account.created_at:%Y-%m-%d %H:%M} UTC{until}")


# -- pages -------------------------------------------------------------------------------------------------------------


@main.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; others take annotators.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="0 takes a free one.")
@click.option("--user", help="Who labels, where there are no annotators yet. Default: your user name.")
@click.option("--show-suggestions", is_flag=True, help="Show what the model predicts; people then tend to agree.")
@click.option("--tls-cert", type=click.Path(exists=True, path_type=Path), help="Certificate, PEM.")
@click.option("--tls-key", type=click.Path(exists=True, path_type=Path), help="Its key, PEM.")
@click.option("--trust-proxy", metavar="ADDRESS", help="Believe the X-Forwarded headers of the proxy at this address.")
def serve(
    directory: Path,
    host: str,
    port: int,
    user: str | None,
    show_suggestions: bool,
    tls_cert: Path | None,
    tls_key: Path | None,
    trust_proxy: str | None,
) -> None:
    """Serve the pages of the campaign in DIRECTORY: labelling, and the campaign itself.

    It only serves: batches are prepared by dal next or dal run, in another process. Killed and started again, it loses
    nothing.
    """
    campaign = Campaign.open(directory)
    listening = Listening(host, port, tls_cert, tls_key, trust_proxy)
    with make_server(campaign, listening, Options(user or _user(), show_suggestions)) as server:
        console.print(f"Labelling: {server.url}")
        console.print(f"The campaign: {server.url}campaign")
        if not listening.private and tls_cert is None and trust_proxy is None:
            console.print("Without TLS whoever is on the way can read links and answers: --tls-cert, or a proxy.")
        server.run()


@main.command()
@click.argument("directory", type=click.Path(path_type=Path))
def pause(directory: Path) -> None:
    """Give nobody records of the campaign in DIRECTORY, until dal resume."""
    _tell(directory, "pause", "Paused: nobody gets records. Answers to records in hand are still taken.")


@main.command()
@click.argument("directory", type=click.Path(path_type=Path))
def resume(directory: Path) -> None:
    """End a pause, or a stop, of the campaign in DIRECTORY."""
    _tell(directory, "resume", "The campaign goes on.")


@main.command()
@click.argument("directory", type=click.Path(path_type=Path))
def close(directory: Path) -> None:
    """Close the open round of the campaign in DIRECTORY with the answers it has."""
    _tell(directory, "close", "Closed. Unanswered records of the batch are not asked again; late answers are kept.")


@main.command()
@click.argument("directory", type=click.Path(path_type=Path))
def stop(directory: Path) -> None:
    """Stop the campaign in DIRECTORY: its open round is closed, and no other begins, until dal resume."""
    _tell(directory, "stop", "Stopped. Nothing was deleted; dal resume goes on.")


def _tell(directory: Path, act: Act, said: str) -> None:
    Control(Campaign.open(directory)).tell(act, _user())
    console.print(said)


# -- the explorer ------------------------------------------------------------------------------------------------------


@main.command("compare")
@click.argument("pool_path", metavar="POOL")
@click.option("--answers", required=True, type=click.Path(path_type=Path), help="An .npy file: the class of each row.")
@_class_options
@click.option("--strategies", default="random,margin,default", show_default=True, help=f"Of {', '.join(STRATEGIES)}.")
@click.option("--seeds", default=5, show_default=True, help="Replays of each strategy.")
@click.option("--test", type=click.Path(path_type=Path), help="An .npz file with X and y. Default: drawn from POOL.")
@click.option("--batch", default=20, show_default=True, help="Records asked in a round.")
@click.option("--rounds", default=12, show_default=True, help="Batches to ask.")
@click.option("--learner", default="logistic", show_default=True, help="As in dal init.")
@click.option("--scheduler", help="Address of a Dask scheduler. Default: a local cluster of this machine's cores.")
@click.option("--output", default="explorer.html", show_default=True, type=click.Path(dir_okay=False, path_type=Path))
@_missing_chunks
def compare_(
    pool_path: str,
    answers: Path,
    classes: str | None,
    each_class: tuple[str, ...],
    classes_from: Path | None,
    strategies: str,
    seeds: int,
    test: Path | None,
    batch: int,
    rounds: int,
    learner: str,
    scheduler: str | None,
    output: Path,
    missing_chunks: Missing,
) -> None:
    """Replay strategies on POOL against known answers, and write a page that shows them side by side.

    Each finished replay is kept beside the page, in a folder that ends in .run: interrupted and run again, it goes on;
    with more seeds or strategies, it plays those.
    """
    explorer.check_page(output)
    opened = Pool.open(pool_path, missing_chunks=missing_chunks)
    named = tuple(dict.fromkeys(_split(strategies)))
    known = explorer.Known.read(answers, opened.n_rows, _classes(classes, each_class, classes_from))
    plan = explorer.Plan(opened, known, named, seeds, learner, batch, rounds, test)
    plan.check()
    _tell_known(known)
    folder = explorer.RunFolder(output.with_suffix(".run"), plan.settings())
    done, total = 0, seeds * len(named)
    with _cluster(scheduler, start=True) as client:
        with shown("map", console) as show:
            pool_map = map_of(
                opened,
                folder.path / "map.npz",
                0,
                client=client,
                progress=lambda counted, all_: show(counted, all_, "rows"),
            )
        with shown("replays", console) as show:

            def told(replay: Replay) -> None:
                nonlocal done
                done += 1
                show(done, total, f"{replay.strategy}, seed {replay.seed}: accuracy {replay.accuracy[-1]:.3f}")

            run = explorer.play(plan, folder, pool_map, client=client, on_replay=told)
    explorer.write_explorer(output, explorer.view_of_run(run, opened))
    console.print(_as_rich(explorer.table(run.comparison)))
    console.print(f"Open {output} in a browser.")


def _tell_known(known: explorer.Known) -> None:
    shares = ", ".join(f"{name}: {share:.1%}" for name, share in zip(known.classes, known.shares, strict=True))
    unknown = f"; {len(known.unknown):,} records without a class are never asked" if len(known.unknown) else ""
    console.print(f"classes: {shares}{unknown}")


@main.command("report")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option(
    "--output", "-o", default="report.html", show_default=True, type=click.Path(dir_okay=False, path_type=Path)
)
@click.option("--scheduler", help="Address of a Dask scheduler to count the map on. Default: this process.")
def report(directory: Path, output: Path, scheduler: str | None) -> None:
    """Write the campaign in DIRECTORY, finished or running, as one page to play it again, round by round.

    It is the explorer of dal compare: what was asked on the map of the pool, what the model thought, accuracy with its
    interval, stopping criteria, annotators. The file opens anywhere, and fetches nothing.
    """
    explorer.check_page(output)
    campaign = Campaign.open(directory)
    opened = pool_of(campaign)
    with _cluster(scheduler, start=False) as client, shown("map", console) as show:
        try:
            pool_map = map_of(
                opened,
                campaign.directory / MAP,
                campaign.settings.seed,
                client=client,
                progress=lambda done, total: show(done, total, "rows"),
            )
        except CampaignError as error:  # it cannot be kept, and a report changes nothing: it does without
            pool_map = None
            logging.getLogger(__name__).warning("%s. The report has no map.", error)
    explorer.write_explorer(output, explorer.view_of_campaign(campaign, pool_map))
    console.print(f"Open {output} in a browser.")


# -- the demonstration -------------------------------------------------------------------------------------------------


@main.command()
@click.option("--rows", default=500_000, show_default=True, type=click.IntRange(1000), help="Records of the pool.")
@click.option("--rounds", default=12, show_default=True, type=click.IntRange(1), help="Batches to ask.")
@click.option("--batch", default=20, show_default=True, type=click.IntRange(1), help="Records asked in a round.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Same seed, same batches.")
@click.option("--directory", default="demo", show_default=True, type=click.Path(path_type=Path), help="For the files.")
def demo(rows: int, rounds: int, batch: int, seed: int, directory: Path) -> None:
    """Play a whole campaign in about a minute: half a million handwritten digits, two strategies, one page."""
    directory.mkdir(parents=True, exist_ok=True)
    with shown("making digits", console) as show:
        made = demonstration.build(directory, rows, seed, show)
    console.print(f"{made.pool.n_rows:,} records in {made.pool.path}, {_bytes(made.pool.nbytes)}")
    with local_cluster() as client:
        console.print(f"{len(client.nthreads())} worker processes; dashboard: {client.dashboard_link}")
        with shown("map", console) as show:
            pool_map = map_of(made.pool, None, seed, client=client, progress=lambda n, total: show(n, total, "rows"))
        with shown("rounds", console) as show:
            comparison = demonstration.play(made, pool_map, client, rounds, batch, seed, show)
    console.print(_as_rich(demonstration.table(comparison)))
    page = directory / "report.html"
    demonstration.write_report(page, made, pool_map, comparison, seed)
    console.print(demonstration.verdict(comparison))
    console.print(f"The page that shows both strategies, round by round: {page}")


def _as_rich(table: Table) -> RichTable:
    shown_table = RichTable(*table.header)
    for column in shown_table.columns:
        column.justify = "right"
    for row in table.rows:
        shown_table.add_row(*row)
    return shown_table


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} TB"


if __name__ == "__main__":
    main()

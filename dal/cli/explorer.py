"""The explorer: compare strategies on known answers, write a campaign as one page."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dal.choices import STRATEGIES, Missing
from dal.cli.cluster import workers_chosen
from dal.cli.options import class_options, classes_of, missing_chunks_option, tls_options, workers_options
from dal.cli.terminal import draw, say, shown

if TYPE_CHECKING:
    from dal.explorer import Known
    from dal.replay import Replay


SECONDS_OF_ROUND = 0.2
"""What a round of a replay takes beside the scan: the fit, the choice, the measuring."""


@click.command("compare")
@click.argument("pool_path", metavar="POOL")
@click.option("--answers", required=True, type=click.Path(path_type=Path), help="An .npy file: the class of each row.")
@class_options
@click.option(
    "--strategy",
    "strategies",
    multiple=True,
    default=("random", "margin", "default"),
    show_default="random, margin and default",
    help=f"As in dal init; repeat it for each. {', '.join(STRATEGIES)}, or one of your own.",
)
@click.option("--seeds", default=5, show_default=True, help="Replays of each strategy.")
@click.option("--test", type=click.Path(path_type=Path), help="An .npz file with X and y. Default: drawn from POOL.")
@click.option("--batch-size", default=20, show_default=True, help="Records asked in a round.")
@click.option("--rounds", default=12, show_default=True, help="Batches to ask.")
@click.option("--estimator", default="", help="As in dal init, and the same default.")
@click.option("--trusted", multiple=True, metavar="TYPE", help="As in dal init.")
@workers_options
@click.option("--output", default="explorer.html", show_default=True, type=click.Path(dir_okay=False, path_type=Path))
@missing_chunks_option
def compare_(
    pool_path: str,
    answers: Path,
    classes: str | None,
    each_class: tuple[str, ...],
    classes_from: Path | None,
    strategies: tuple[str, ...],
    seeds: int,
    test: Path | None,
    batch_size: int,
    rounds: int,
    estimator: str,
    trusted: tuple[str, ...],
    scheduler: str | None,
    workers: int | None,
    output: Path,
    missing_chunks: Missing,
) -> None:
    """Replay strategies on POOL against known answers, and write a page that shows them side by side.

    Each finished replay is kept beside the page, in a folder that ends in .run: interrupted and run again, it goes on;
    with more seeds or strategies, it plays those.
    """
    from dal import explorer
    from dal.explorer.play import play, table
    from dal.learners.presets import chosen_or_default
    from dal.map import map_of
    from dal.pool import Pool
    from dal.scan.plan import seconds_alone

    explorer.check_page(output)
    opened = Pool.open(pool_path, missing_chunks=missing_chunks)
    named = tuple(dict.fromkeys(strategies))
    known = explorer.Known.read(answers, opened.n_rows, classes_of(classes, each_class, classes_from))
    learner = chosen_or_default(estimator, opened.encoder)
    plan = explorer.Plan(opened, known, named, seeds, learner, batch_size, rounds, test, trusted)
    plan.check()
    _tell_known(known)
    folder = explorer.RunFolder(output.with_suffix(".run"), plan.settings())
    done, total = 0, seeds * len(named)
    alone = total * rounds * (SECONDS_OF_ROUND + seconds_alone(opened.n_rows, opened.n_features, 2, kind=None))
    with workers_chosen(scheduler, workers) as chosen:
        client = chosen.client_for(opened.n_rows, alone)
        with shown("map") as show:
            pool_map = map_of(
                opened,
                folder.path / "map.npz",
                0,
                client=client,
                progress=lambda counted, all_: show(counted, all_, "rows"),
            )
        with shown("replays") as show:

            def told(replay: Replay) -> None:
                nonlocal done
                done += 1
                show(done, total, f"{replay.strategy}, seed {replay.seed}: accuracy {replay.accuracy[-1]:.3f}")

            run = play(plan, folder, pool_map, client=client, on_replay=told)
    explorer.write_explorer(output, explorer.view_of_run(run, opened))
    draw(table(run.comparison))
    say(f"Open {output} in a browser.")


def _tell_known(known: Known) -> None:
    from dal.classes import spelled

    pairs = zip(known.classes, known.shares, strict=True)
    shares = ", ".join(f"{spelled(name, counted=True)}: {share:.1%}" for name, share in pairs)
    unknown = f"; {len(known.unknown):,} records without a class are never asked" if len(known.unknown) else ""
    say(f"classes: {shares}{unknown}")


@click.command("report")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option(
    "--output", "-o", default="report.html", show_default=True, type=click.Path(dir_okay=False, path_type=Path)
)
@click.option("--scheduler", help="Address of a Dask scheduler to count the map on. Default: this process.")
@tls_options
def report(directory: Path, output: Path, scheduler: str | None) -> None:
    """Write the campaign in DIRECTORY, finished or running, as one page to play it again, round by round.

    It is the explorer of dal compare: what was asked on the map of the pool, what the model thought, accuracy with its
    interval, stopping criteria, annotators. The file opens anywhere, and fetches nothing.
    """
    from dal import explorer
    from dal.campaign import CampaignStore
    from dal.campaign.parts import pool_of
    from dal.errors import CampaignError
    from dal.map import MAP, map_of

    explorer.check_page(output)
    campaign = CampaignStore.open(directory)
    opened = pool_of(campaign)
    with workers_chosen(scheduler, None if scheduler else 0) as chosen, shown("map") as show:
        try:
            pool_map = map_of(
                opened,
                campaign.directory / MAP,
                campaign.settings.random_state,
                client=chosen.client,
                progress=lambda done, total: show(done, total, "rows"),
            )
        except CampaignError as error:  # it cannot be kept, and a report changes nothing: it does without
            pool_map = None
            logging.getLogger(__name__).warning("%s. The report has no map.", error)
    explorer.write_explorer(output, explorer.view_of_campaign(campaign, pool_map))
    say(f"Open {output} in a browser.")

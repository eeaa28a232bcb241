"""Learners: compare others with the one in use, switch to one, and plan how many labels it takes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from dal.choices import PRESETS
from dal.cli.options import system_user, workers_options
from dal.cli.terminal import draw, say, shown

if TYPE_CHECKING:
    from dal.loop.pilot import PilotPlan


@click.group()
def learner() -> None:
    """Compare learners on the labels so far, and switch to another one."""


@learner.command("compare")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option(
    "--learner",
    "learners",
    multiple=True,
    metavar="NAME",
    help=f"Compare this one: {', '.join(PRESETS)}, a plug-in, or module:object. Repeat it for several."
    " Default: all presets but sgd.",
)
@workers_options
def compare(directory: Path, learners: tuple[str, ...], scheduler: str | None, workers: int | None) -> None:
    """Compare other learners with the one that the campaign in DIRECTORY uses, on its labels so far.

    Each is fitted on four fifths of the labels and judged on the rest, fifteen times. The result is
    kept, and nothing else is changed.
    """
    from dal.cli.cluster import workers_chosen
    from dal.figures.table import Table
    from dal.loop.campaign import Campaign

    campaign = Campaign.open(directory)
    with workers_chosen(scheduler, workers) as chosen, shown("fits") as show:
        found = campaign.compare_learners(
            learners, client=chosen, progress=lambda done, total: show(done, total, "fits")
        )
    if found.candidates:
        for table in found.tables():
            draw(Table(*table))
    say(found.text)
    for note in found.notes:
        say(note)


@learner.command("switch")
@click.argument("directory", type=click.Path(path_type=Path))
@click.argument("name")
@click.option("--reason", default="", help="Why. Default: the last comparison, where it finds NAME to be better.")
@click.option("--person", help="Who wants it. Default: your user name.")
def switch(directory: Path, name: str, reason: str, person: str | None) -> None:
    """Use the learner NAME from the next round of the campaign in DIRECTORY on.

    A round that has begun keeps its learner and its batch. A dal run that is at work need not be started again.
    """
    from dal.loop.campaign import Campaign

    switched = Campaign.open(directory).switch_learner(name, reason, person=person or system_user())
    say(switched.text)
    say("It holds from the next round on.")


@click.command("plan")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--target", type=float, required=True, help="Accuracy on the pool that is wanted, such as 0.9.")
@click.option("--price", type=float, help="Of one answer, in any currency.")
@click.option("--pace", type=float, help="Answers a day, of all annotators together.")
@click.option(
    "--imported-at-random",
    is_flag=True,
    help="The labelled records that this campaign never asked were drawn uniformly from the pool.",
)
@click.option(
    "--picture", type=click.Path(dir_okay=False, path_type=Path), help="Draw the expected curves to this file, .html."
)
@workers_options
def plan_(
    directory: Path,
    target: float,
    price: float | None,
    pace: float | None,
    imported_at_random: bool,
    picture: Path | None,
    scheduler: str | None,
    workers: int | None,
) -> None:
    """Estimate the labels that an accuracy takes in the campaign in DIRECTORY, and their cost.

    It takes 200 labels of records drawn at random: asked by the strategy random or by the explore share, or
    imported. Nothing is changed.
    """
    from dal.cli.cluster import workers_chosen
    from dal.figures.table import Table
    from dal.loop.campaign import Campaign

    if picture is not None and picture.suffix.lower() not in (".html", ".htm"):
        raise click.UsageError(f"--picture must end in .html, got {picture.name}.")
    campaign = Campaign.open(directory)
    with workers_chosen(scheduler, workers) as chosen, shown("fits") as show:
        found = campaign.plan(
            target,
            price=price,
            pace=pace,
            imported_at_random=imported_at_random,
            client=chosen,
            progress=lambda done, total: show(done, total, "parts"),
        )
    if found.ways:
        for table in found.tables():
            draw(Table(*table))
    say(found.text)
    for note in found.notes:
        say(note)
    if picture is not None and found.ways:
        _write(picture, found)
        say(f"Open {picture} in a browser.")


def _write(path: Path, found: PilotPlan) -> None:
    from dal._files import replacing
    from dal.figures import page_of

    with replacing(path) as file:
        file.write(page_of(found.figure(), f"Accuracy {found.target:g}").encode())

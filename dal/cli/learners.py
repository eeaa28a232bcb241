"""Learners: compare others with the one in use, and switch to one."""

from __future__ import annotations

from pathlib import Path

import click

from dal.choices import PRESETS
from dal.cli.options import system_user, workers_options
from dal.cli.terminal import draw, say, shown


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
    help=f"Compare this one: {', '.join(PRESETS)}, a plug-in, or module:object. Repeat it for several. Default: all"
    " presets.",
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

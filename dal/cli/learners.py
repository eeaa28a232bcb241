"""Learners: compare others with the one in use."""

from __future__ import annotations

from pathlib import Path

import click

from dal.choices import PRESETS
from dal.cli.options import workers_options
from dal.cli.terminal import draw, say, shown


@click.group()
def learner() -> None:
    """Compare learners on the labels so far."""


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

    Each is fitted on four fifths of the labels and judged on the rest, fifteen times. Nothing is changed.
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
        draw(Table(*found.rows()))
    say(found.text)
    for note in found.notes:
        say(note)

"""Machines: let programs answer as annotators of their own kind."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from dal.cli.terminal import say, shown


@click.group()
def machine() -> None:
    """Let programs answer, as annotators of their own kind."""


@machine.command("answer")
@click.argument("directory", type=click.Path(path_type=Path))
@click.argument("name")
@click.option("--command", required=True, help="The program, with its arguments, such as 'python llm.py'; no shell.")
@click.option("--cost", type=float, help="Price of an answer, for the status; the last one prices all.")
@click.option("--cap", type=int, help="Most answers of this machine in the campaign. Kept until it is changed.")
@click.option("--at-once", default=100, show_default=True, type=int, help="Records of one run of the program.")
@click.option("--seconds", default=300.0, show_default=True, type=float, help="Until a run must have ended.")
def answer(
    directory: Path, name: str, command: str, cost: float | None, cap: int | None, at_once: int, seconds: float
) -> None:
    """Let a program answer the open batch of the campaign in DIRECTORY under NAME.

    It reads the records as JSON lines, and writes a JSON line with record_id and label for each, in any order. People
    answer the records on which it differs from the model, a share of the others, and the explore share. Run it after
    each dal next; killed and run again, it asks only for records that have no answer.
    """
    from dal.campaign import CampaignStore
    from dal.campaign.parts import pool_of
    from dal.exchange.machines import ask_machine

    try:
        words = shlex.split(command)
    except ValueError as error:
        raise click.UsageError(f"--command must be a command line, got {command!r}: {error}") from error
    campaign = CampaignStore.open(directory)
    with shown(name) as show:
        asked = ask_machine(
            campaign,
            pool_of(campaign),
            name,
            words,
            cost=cost,
            cap=cap,
            at_once=at_once,
            seconds=seconds,
            progress=lambda done, total: show(done, total, "records"),
        )
    say(f"{asked.answers:,} records answered, {asked.skipped:,} of them skipped; {asked.alone:,} need no person")
    if asked.unasked:
        say(f"{asked.unasked:,} records were not asked, because of the cap: a larger --cap raises it")
    waiting = campaign.rounds.last
    if waiting is not None and waiting.status == "open":
        say(f"{campaign.rounds.pending(waiting.number):,} records wait for people")

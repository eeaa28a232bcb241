"""Campaigns: make one, tell where one stands."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dal.cli.options import class_options, classes_of, grouped, settings_options
from dal.cli.terminal import quoted, say

if TYPE_CHECKING:
    from dal.campaign import Settings
    from dal.campaign.view import ClassBalance, Status

_LISTED_PAIRS = 5
_LISTED_CLASSES = 10


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.argument("pool_path", metavar="POOL")
@class_options
@settings_options
def init(
    directory: Path,
    pool_path: str,
    classes: str | None,
    each_class: tuple[str, ...],
    classes_from: Path | None,
    **chosen: Any,  # noqa: ANN401 - by name, as the fields of the settings have them
) -> None:
    """Make a campaign in DIRECTORY that labels records of POOL."""
    from dal.loop.campaign import Campaign

    named = classes_of(classes, each_class, classes_from)
    if not named:
        raise click.UsageError("The classes are missing: --classes ham,spam, --class for each, or --classes-from.")
    campaign = Campaign.create(directory, pool_path, named, **grouped(chosen))
    parts = f"whose learner is {campaign.settings.estimator} and strategy {campaign.settings.strategy}"
    say(f"Made the campaign {campaign.directory}, {parts}.")
    say(f"The first batch: dal next {quoted(directory)}")
    say(f"To label in a browser: dal serve {quoted(directory)}, and beside it dal run {quoted(directory)}")


@click.command("status")
@click.argument("directory", type=click.Path(path_type=Path))
def status_(directory: Path) -> None:
    """Show where the campaign in DIRECTORY stands."""
    from dal.campaign import CampaignStore
    from dal.campaign.view import status
    from dal.classes import spelled
    from dal.loop.savings import saved

    campaign = CampaignStore.open(directory)
    now = status(campaign)
    _describe_settings(campaign.settings)
    state = "no round yet" if not now.round else f"round {now.round} is {now.status}"
    say(f"{state}; {now.asked:,} records asked, {now.labels:,} labelled, {now.pending:,} waiting")
    say("labels: " + ", ".join(f"{spelled(name, counted=True)}: {count:,}" for name, count in now.per_class.items()))
    if now.learner != campaign.settings.estimator:
        say(f"learner: {now.learner}")
    for told in (now.switched, now.overtaken):
        if told:
            say(told)
    say(f"accuracy: {now.accuracy.text}")
    if now.before:
        say(now.before)
    for each in now.people:
        skipped = f", {each.skipped / each.answers:.0%} skipped"
        pace = "" if each.median_seconds is None else f", {each.median_seconds:.1f} s each in the median"
        equal, together = now.agreement.with_others(each.name)
        alike = "" if equal is None else f"; alike with others in {equal:.0%} of {together:,}"
        say(f"annotator {each.name}: {each.answers:,} answers{skipped}{pace}{alike}")
    for machine in now.machines:
        say(machine.text)
    say(f"agreement: {now.agreement.text}")
    for pair in now.agreement.pairs[:_LISTED_PAIRS]:
        kappa = "" if pair.kappa is None else f", Cohen's kappa {pair.kappa:.2f}"
        say(f"  {pair.first} and {pair.second}: alike in {pair.agreement:.0%} of {pair.n:,}{kappa}")
    for name, (right, of) in sorted(now.gold.items()):
        say(f"gold records: {name} has {right:,} of {of:,} right")
    for told in (text for course in now.courses for text in course.warnings):
        say(told)
    say(f"labels saved: {saved(campaign).text}")
    for name, share in now.shares.items():
        if share.value is not None:
            say(f"share of {name} in the pool: {share.text}")
    if now.bias:
        say(f"classes among the labels, against the pool: {now.bias}")
    tell_balance(now.balance)
    _tell_verdicts(now)
    if now.left_out:
        say(now.left_out)
    for told in (now.one_class, now.trusted, now.unskilled, now.scored, now.compared, now.again, now.rest):
        if told:
            say(told)
    for note in now.notes:
        say(f"the learner warned: {note}")


def tell_balance(balance: Sequence[ClassBalance]) -> None:
    """Print how far the classes are from their target shares, the farthest below first."""
    for each in balance[:_LISTED_CLASSES]:
        say(each.text)
    if len(balance) > _LISTED_CLASSES:
        say(f"balance: {len(balance) - _LISTED_CLASSES:,} other classes lack less")


def _tell_verdicts(now: Status) -> None:
    for word, verdicts in (("go on", now.verdicts), ("advice", now.advice)):
        for each in verdicts:
            first = now.first_stops.get(each.criterion)
            before = f" (it would have stopped after round {first})" if first is not None and not each.stop else ""
            said = "STOP" if each.stop and word == "go on" else f"{word}, stop" if each.stop else word
            say(f"{said}: {each.criterion}: {each.reason}{before}")


def _describe_settings(settings: Settings) -> None:
    chosen = ("pool", "estimator", "strategy", "random_state")
    say("; ".join(f"{name} {getattr(settings, name)}" for name in chosen))

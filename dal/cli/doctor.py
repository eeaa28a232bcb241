"""The doctor: look at a cluster, a pool and a campaign, and name what to change."""

from __future__ import annotations

from pathlib import Path

import click

from dal.cli.options import tls_options
from dal.cli.terminal import say

_HOSTS = 3


@click.command()
@click.argument("directory", required=False, metavar="[CAMPAIGN]", type=click.Path(path_type=Path))
@click.option("--pool", metavar="POOL", help="A pool to look at, where there is no campaign yet.")
@click.option("--scheduler", help="Address of a Dask scheduler, whose hosts are examined. Default: this machine alone.")
@tls_options
@click.pass_context
def doctor(ctx: click.Context, directory: Path | None, pool: str | None, scheduler: str | None) -> None:
    """Name what must be changed before work starts; exit with status 1 if anything must.

    Looks at versions, memory, settings, clocks, open ports, and whether each host reaches the pool and the store.
    Changes nothing.
    """
    from dal.compute.local import SETTINGS, silent
    from dal.doctor.examine import examine
    from dal.doctor.findings import findings, together

    if directory is not None and pool is not None:
        raise click.UsageError("A campaign has its own pool: give CAMPAIGN or --pool, not both.")
    with silent():
        facts = examine(directory, pool, scheduler)
    found = together(findings(facts, SETTINGS))
    for (severity, what, change), hosts in found.items():
        more = f" and {len(hosts) - _HOSTS:,} more" if len(hosts) > _HOSTS else ""
        say(f"{severity:<7} {', '.join(hosts[:_HOSTS])}{more}: {what}")
        if change:
            say(f"        change: {change}")
    counts = {word: sum(severity == word for severity, _, _ in found) for word in ("fault", "advice")}
    say(f"{counts['fault']} faults that must be changed, {counts['advice']} pieces of advice.")
    if counts["fault"]:
        ctx.exit(1)

"""The command line of the measurements: one subcommand each."""

import click

from benchmarks import (
    again,
    bias,
    clusters,
    deep,
    drift,
    elastic,
    encode,
    entrance,
    finetune,
    growing,
    labels,
    large,
    learners,
    memory,
    pages,
    peers,
    plan,
    remote,
    scale,
    scan,
    search,
    selection,
    suite,
    team,
    waves,
    workers,
)


@click.group()
def main() -> None:
    """Measure dal on this machine, side by side with what one would use instead."""


main.add_command(again.command)
main.add_command(bias.command)
main.add_command(clusters.command)
main.add_command(deep.command)
main.add_command(drift.command)
main.add_command(elastic.command)
main.add_command(encode.command)
main.add_command(entrance.command)
main.add_command(finetune.command)
main.add_command(growing.command)
main.add_command(scan.command)
main.add_command(search.command)
main.add_command(memory.command)
main.add_command(scale.command)
main.add_command(labels.command)
main.add_command(large.command)
main.add_command(learners.command)
main.add_command(pages.command)
main.add_command(peers.command)
main.add_command(plan.command)
main.add_command(remote.command)
main.add_command(selection.command)
main.add_command(team.command)
main.add_command(suite.command)
main.add_command(waves.command)
main.add_command(workers.command)

# Worker processes are spawned: they import this module again.
if __name__ == "__main__":
    main(prog_name="python -m benchmarks")

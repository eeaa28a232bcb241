"""The demonstration."""

from pathlib import Path

import click

from dal.cli.cluster import workers_chosen
from dal.cli.terminal import as_bytes, draw, say, shown


@click.command()
@click.option("--rows", default=500_000, show_default=True, type=click.IntRange(1000), help="Records of the pool.")
@click.option("--rounds", default=12, show_default=True, type=click.IntRange(1), help="Batches to ask.")
@click.option("--batch-size", default=20, show_default=True, type=click.IntRange(1), help="Records asked in a round.")
@click.option("--random-state", default=0, show_default=True, type=click.IntRange(0), help="Same seed, same batches.")
@click.option("--directory", default="demo", show_default=True, type=click.Path(path_type=Path), help="For the files.")
def demo(rows: int, rounds: int, batch_size: int, random_state: int, directory: Path) -> None:
    """Play a whole campaign in about a minute: half a million handwritten digits, two strategies, one page."""
    from dal import demo as demonstration
    from dal.map import map_of
    from dal.scan.plan import seconds_alone

    directory.mkdir(parents=True, exist_ok=True)
    with shown("making digits") as show:
        made = demonstration.build(directory, rows, random_state, show)
    say(f"{made.pool.n_rows:,} records in {made.pool.path}, {as_bytes(made.pool.nbytes)}")
    scans = rounds * len(demonstration.STRATEGIES)
    alone = scans * seconds_alone(rows, made.pool.n_features, len(demonstration.CLASSES), kind="LogisticRegression")
    with workers_chosen(None, None) as chosen:
        client = chosen.client_for(rows, alone)
        with shown("map") as show:
            pool_map = map_of(
                made.pool, None, random_state, client=client, progress=lambda n, total: show(n, total, "rows")
            )
        with shown("rounds") as show:
            comparison = demonstration.play(made, pool_map, client, rounds, batch_size, random_state, show)
    draw(demonstration.table(comparison))
    page = directory / "report.html"
    demonstration.write_report(page, made, pool_map, comparison, random_state)
    say(demonstration.verdict(comparison))
    say(f"The page that shows both strategies, round by round: {page}")

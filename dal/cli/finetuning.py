"""Fine-tuning: train a pool's encoder on the labels, and move the campaign to the pool that it makes."""

from pathlib import Path

import click

from dal.cli.options import split, workers_options
from dal.cli.terminal import quoted, say, shown


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.argument("source", type=click.Path(exists=True, path_type=Path))
@click.argument("pool_path", metavar="POOL")
@click.option("--encoder", required=True, help="The encoder to train, as for dal pool build; of torch.")
@click.option("--ids", help="Column with the record ids, as for dal pool build.")
@click.option("--display", default="", help="Columns to show to annotators, separated by commas.")
@click.option("--text", help="Column of texts.")
@click.option("--images", is_flag=True, help="SOURCE is a folder of pictures, or an .npy file of them.")
@click.option("--header/--no-header", default=None, help="Whether the first line of a CSV file names the columns.")
@click.option("--epochs", type=click.IntRange(min=1), default=10, show_default=True, help="Passes over the labels.")
@click.option("--learning-rate", type=float, default=2e-5, show_default=True, help="Of the encoder.")
@click.option("--batch-size", type=click.IntRange(min=1), default=16, show_default=True, help="Records of a step.")
@click.option("--random-state", type=int, default=0, show_default=True)
@workers_options
def finetune(
    directory: Path,
    source: Path,
    pool_path: str,
    encoder: str,
    ids: str | None,
    display: str,
    text: str | None,
    images: bool,
    header: bool | None,
    epochs: int,
    learning_rate: float,
    batch_size: int,
    random_state: int,
    scheduler: str | None,
    workers: int | None,
) -> None:
    """Train an encoder on the labels of the campaign in DIRECTORY, encode SOURCE into POOL, and move to it.

    SOURCE holds the records that the campaign's pool was built of. The campaign's answers stay, and its accuracy is
    measured again from there on. Interrupted and run again, it goes on. Restart dal serve and dal run afterwards.
    """
    from dal.cli.pools import encoding_client
    from dal.encoders.named import encoder_named
    from dal.encoders.tuning import Tuning
    from dal.loop.campaign import Campaign
    from dal.loop.finetune import finetune as carry_out
    from dal.pool.build import Options

    given = encoder_named(encoder)
    tuning = Tuning(epochs, learning_rate, batch_size, random_state)
    with encoding_client(scheduler, workers, encoder) as client, shown("fine-tuning") as show:
        how = Options(ids, None, split(display), text, None, header, None, None, given, images, client)
        campaign, weights = carry_out(
            Campaign.open(directory),
            source,
            pool_path,
            given,
            how,
            tuning,
            lambda what, done, of: show(done, of, what),
        )
    say(f"{campaign.directory} goes on with {pool_path}. The next batch: dal next {quoted(directory)}")
    tuned = f"dal.encoders:tuned(encoder={encoder!r}, weights={str(weights)!r})"
    say(f"To append to it: dal pool append SOURCE {quoted(pool_path)} --encoder {quoted(tuned)}")

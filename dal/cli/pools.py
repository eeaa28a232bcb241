"""Pools: build, append to, describe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dal.choices import ENCODINGS, Missing
from dal.cli.options import missing_chunks_option, split
from dal.cli.terminal import as_bytes, say, shown

if TYPE_CHECKING:
    from dal.pool import Pool


@click.group()
def pool() -> None:
    """Build pools and look at them."""


@pool.command("build")
@click.argument("source", type=click.Path(exists=True, path_type=Path))
@click.argument("pool_path", metavar="POOL")
@click.option("--ids", help="Column with the record ids, which must not repeat. Default: the row numbers.")
@click.option("--features", help="Feature columns, separated by commas. Default: all but ids, display and an index.")
@click.option("--display", default="", help="Columns to show to annotators, separated by commas.")
@click.option(
    "--dtype",
    type=click.Choice(ENCODINGS),
    help="How to store the features; narrow types are read faster and are less exact. Default: float32, or uint8 kept.",
)
@click.option("--text", help="Column of texts to make the features from; it is shown as well.")
@click.option("--vectoriser", help="What does so: module:object, a transformer of scikit-learn, fitted or not.")
@click.option("--header/--no-header", default=None, help="Whether the first line of a CSV file names the columns.")
@click.option("--size", help="Resize pictures to HEIGHTxWIDTH, such as 32x32. Default: they must have one size.")
@click.option("--background", help="Colour below transparent pixels, such as black or #336699. Default: white.")
@click.option("--overwrite", is_flag=True, help="Replace the pool that is there.")
def build(
    source: Path,
    pool_path: str,
    ids: str | None,
    features: str | None,
    display: str,
    dtype: str | None,
    text: str | None,
    vectoriser: str | None,
    header: bool | None,
    size: str | None,
    background: str | None,
    overwrite: bool,
) -> None:
    """Build POOL from SOURCE: an .npy, .parquet, .pq, .csv or .tsv file, or a folder of pictures.

    Memory does not grow with the source. Interrupted and run again, it goes on.
    """
    from dal.pool import Pool

    with shown("building") as show:
        built = Pool.build(
            source,
            pool_path,
            ids=ids,
            features=split(features) if features else None,
            display=split(display),
            text=text,
            vectoriser=_vectoriser(vectoriser),
            header=header,
            size=None if size is None else _size(size),
            background=background,
            dtype=dtype,
            overwrite=overwrite,
            progress=lambda done, total: show(done, total, "rows"),
        )
    _describe(built)


def _vectoriser(name: str | None) -> Any:  # noqa: ANN401 - any transformer of scikit-learn
    if name is None:
        return None
    from dal.learners.presets import import_estimator

    return import_estimator(name, "vectoriser")


def _size(text: str) -> tuple[int, int]:
    height, x, width = text.partition("x")
    if not (x and height.isdecimal() and width.isdecimal()):
        raise click.BadParameter(f"must be HEIGHTxWIDTH, such as 32x32; got {text!r}", param_hint="--size")
    return int(height), int(width)


@pool.command("append")
@click.argument("source", type=click.Path(exists=True, path_type=Path))
@click.argument("pool_path", metavar="POOL")
@click.option("--ids", help="Column with the record ids; none may be in the pool already. Default: as in POOL.")
@click.option("--features", help="Feature columns, separated by commas. Default: as in POOL.")
@click.option("--display", default="", help="Columns to show to annotators, separated by commas. Default: as in POOL.")
@click.option("--text", help="Column of texts to make the features from. Default: as in POOL.")
@click.option("--vectoriser", help="What does so, as module:object: the one the pool was built with, fitted.")
@click.option("--header/--no-header", default=None, help="Whether the first line of a CSV file names the columns.")
@click.option("--size", help="Resize pictures to HEIGHTxWIDTH, such as 32x32. Default: as those of POOL.")
def append(
    source: Path,
    pool_path: str,
    ids: str | None,
    features: str | None,
    display: str,
    text: str | None,
    vectoriser: str | None,
    header: bool | None,
    size: str | None,
) -> None:
    """Add the records of SOURCE at the end of POOL, which is built of such; campaigns on it go on.

    Columns are found by the names that POOL has, in any order; others are left out.

    Rows that are there stay where they are. Interrupted, it leaves POOL as it was: run it again.
    """
    from dal.pool import Pool

    with shown("appending") as show:
        longer = Pool.open(pool_path).append(
            source,
            ids=ids,
            features=split(features) if features else None,
            display=split(display),
            text=text,
            vectoriser=_vectoriser(vectoriser),
            header=header,
            size=None if size is None else _size(size),
            progress=lambda done, total: show(done, total, "rows"),
        )
    _describe(longer)


@pool.command("info")
@click.argument("pool_path", metavar="POOL")
@missing_chunks_option
def info(pool_path: str, missing_chunks: Missing) -> None:
    """Describe POOL."""
    from dal.pool import Pool

    _describe(Pool.open(pool_path, missing_chunks=missing_chunks))


def _describe(opened: Pool) -> None:
    from dal.pool.store import listed

    shape = " x ".join(str(length) for length in opened.record_shape)
    say(f"{opened.path}: {opened.n_rows:,} records of {shape} {opened.encoding}, {as_bytes(opened.nbytes)}")
    if opened.feature_names:
        say(f"features: {listed(opened.feature_names)}")
    if opened.left_out:
        say(f"left out, as an index: {listed(opened.left_out)}; --features takes them")
    say(f"display fields: {', '.join(opened.fields) or 'none'}; fingerprint {opened.fingerprint}")
    if opened.packing is not None:
        say(f"by its attributes: {opened.packing}")
    if opened.missing_chunks == "fill":
        missing, expected = opened.holes()
        say(f"{missing:,} of {expected:,} chunks are not stored, and read as the fill value")

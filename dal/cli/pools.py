"""Pools: build, append to, describe."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dal.choices import AUTO, ENCODERS, ENCODINGS, Missing
from dal.cli.options import missing_chunks_option, split, workers_options
from dal.cli.terminal import as_bytes, say, shown

if TYPE_CHECKING:
    from distributed import Client

    from dal.pool import Pool

_LOOKED_AT = 2**21
"""Numbers that are looked at for gaps: 8 MiB, as in one chunk, however large the pool."""

_encoder_option = click.option(
    "--encoder",
    help=f'What encodes texts or pictures: {", ".join(ENCODERS)}, module:object, with parameters as in "sentences('
    "model='DIRECTORY')\". Not kept with POOL, which keeps its id: pass it to append as well.",
)


def _encoding_workers(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that say where records are encoded."""
    return workers_options(command, "Worker processes that encode on this machine. Default: none, this process.")


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
    type=click.Choice((AUTO, *ENCODINGS)),
    help="How to store the features; narrow types are read faster and are less exact. auto: the narrowest of int8, "
    "float16 and float32 that leaves the scores of a sample as they are. Default: float32, or uint8 kept.",
)
@click.option("--text", help="Column of texts to make the features from; it is shown as well.")
@click.option("--vectoriser", help="What does so: module:object, a transformer of scikit-learn, fitted or not.")
@_encoder_option
@click.option("--images", is_flag=True, help="With --encoder: SOURCE is a folder of pictures, or an .npy file of them.")
@click.option("--header/--no-header", default=None, help="Whether the first line of a CSV file names the columns.")
@click.option("--size", help="Resize pictures to HEIGHTxWIDTH, such as 32x32. Default: they must have one size.")
@click.option("--background", help="Colour below transparent pixels, such as black or #336699. Default: white.")
@click.option("--overwrite", is_flag=True, help="Replace the pool that is there.")
@_encoding_workers
def build(
    source: Path,
    pool_path: str,
    ids: str | None,
    features: str | None,
    display: str,
    dtype: str | None,
    text: str | None,
    vectoriser: str | None,
    encoder: str | None,
    images: bool,
    header: bool | None,
    size: str | None,
    background: str | None,
    overwrite: bool,
    scheduler: str | None,
    workers: int | None,
) -> None:
    """Build POOL from SOURCE: an .npy, .parquet, .csv, .tsv or .arrow file, or a folder of pictures.

    With --encoder, a model turns texts (--text) or pictures (--images) into features, once.

    Memory does not grow with the source. Interrupted and run again, it goes on.
    """
    from dal.pool import Pool

    with encoding_client(scheduler, workers, encoder) as client, shown("building") as show:
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
            encoder=_encoder(encoder),
            images=images,
            client=client,
            dtype=dtype,
            overwrite=overwrite,
            progress=lambda done, total: show(done, total, "rows"),
        )
    _describe(built)
    _tell_gaps(built)


def _vectoriser(name: str | None) -> Any:  # noqa: ANN401 - any transformer of scikit-learn
    if name is None:
        return None
    from dal.learners.presets import import_estimator

    return import_estimator(name, "vectoriser")


def _encoder(name: str | None) -> Any:  # noqa: ANN401 - any object with `encode`
    if name is None:
        return None
    from dal.encoders.named import encoder_named

    return encoder_named(name)


@contextmanager
def encoding_client(scheduler: str | None, workers: int | None, encoder: str | None) -> Iterator[Client | None]:
    """Return the workers that encode, as a context; None where this process does."""
    if scheduler is None and not workers:
        yield None
        return
    if encoder is None:
        raise click.UsageError("--workers and --scheduler encode records: give --encoder as well, or leave them out.")
    from dal.cli.cluster import workers_chosen
    from dal.compute.ready import ready

    with workers_chosen(scheduler, workers) as chosen:
        client = chosen.client
        assert client is not None  # one of the two options was given
        ready(client, say=say)
        yield client


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
@_encoder_option
@_encoding_workers
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
    encoder: str | None,
    scheduler: str | None,
    workers: int | None,
) -> None:
    """Add the records of SOURCE at the end of POOL, which is built of such; campaigns on it go on.

    Columns are found by the names that POOL has, in any order; others are left out.

    Rows that are there stay where they are. Interrupted, it leaves POOL as it was: run it again.
    """
    from dal.pool import Pool

    with encoding_client(scheduler, workers, encoder) as client, shown("appending") as show:
        opened = Pool.open(pool_path)
        before = opened.n_rows
        longer = opened.append(
            source,
            ids=ids,
            features=split(features) if features else None,
            display=split(display),
            text=text,
            vectoriser=_vectoriser(vectoriser),
            header=header,
            size=None if size is None else _size(size),
            encoder=_encoder(encoder),
            client=client,
            progress=lambda done, total: show(done, total, "rows"),
        )
    _describe(longer)
    _tell_gaps(longer, before)


@pool.command("info")
@click.argument("pool_path", metavar="POOL")
@missing_chunks_option
def info(pool_path: str, missing_chunks: Missing) -> None:
    """Describe POOL."""
    from dal.pool import Pool

    _describe(Pool.open(pool_path, missing_chunks=missing_chunks))


def _tell_gaps(opened: Pool, start: int = 0) -> None:
    """Print how many records from `start` on hold missing or infinite features: all where a column is empty."""
    import numpy as np

    if len(opened.record_shape) > 1 or opened.encoder is not None:  # pictures have no gaps; an encoder's are named
        return
    stop = min(opened.n_rows, start + max(1, _LOOKED_AT // opened.n_features))
    X = opened.read(start, stop)
    for of, gaps, follows in (
        ("missing", np.isnan(X), "a learner that takes no missing values, such as logistic, never asks them"),
        ("infinite", np.isinf(X), "no learner asks them"),
    ):
        if not (count := int(gaps.any(axis=1).sum())):
            continue
        of_column = np.count_nonzero(gaps, axis=0)
        worst = int(np.argmax(of_column))
        name = opened.feature_names[worst] if opened.feature_names else f"column {worst}"
        say(
            f"{count:,} of the {stop - start:,} records that were looked at hold {of} features, the most in {name}"
            f" ({of_column[worst]:,}): {follows}"
        )


def _describe(opened: Pool) -> None:
    from dal.pool.store import listed

    shape = " x ".join(str(length) for length in opened.record_shape)
    say(f"{opened.path}: {opened.n_rows:,} records of {shape} {opened.encoding}, {as_bytes(opened.nbytes)}")
    if opened.evidence:
        from dal.pool.narrowing import evidence_text

        say(evidence_text(opened.evidence))
    if opened.feature_names:
        say(f"features: {listed(opened.feature_names)}")
    if opened.left_out:
        say(f"left out, as an index: {listed(opened.left_out)}; --features takes them")
    say(f"display fields: {', '.join(opened.fields) or 'none'}; fingerprint {opened.fingerprint}")
    if opened.encoder is not None:
        say(f"encoded by {opened.encoder}")
    if opened.unencoded.get("count"):
        from dal.pool.encoded import missing_text

        say(missing_text(opened.unencoded))
    if opened.packing is not None:
        say(f"by its attributes: {opened.packing}")
    if opened.missing_chunks == "fill":
        missing, expected = opened.holes()
        say(f"{missing:,} of {expected:,} chunks are not stored, and read as the fill value")

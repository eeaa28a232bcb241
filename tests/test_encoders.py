"""Pools of encoded records: what is encoded, once, in which batches, and what becomes of what cannot be."""

import base64
import contextlib
import io
import json
import logging
import math
import multiprocessing
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dask.dataframe as dd
import numpy as np
import pandas as pd
import psutil
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from distributed import Client
from PIL import Image
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.pipeline import make_pipeline

import dal
from benchmarks.object_server import running
from dal.campaign import CampaignStore, Settings
from dal.cli import main
from dal.encoders import VectoriserEncoder
from dal.encoders.named import encoder_named
from dal.errors import ClusterError, InputError, SettingsError, SourceError
from dal.exchange import write_batch
from dal.places import names_at
from dal.pool import Pool, Sizes, build, encoded
from dal.pool.apart import Apart, Died
from dal.pool.tables import open_table
from dal.testing import EncoderContract
from dal.web.records import Records
from tests.batches import batch_of
from tests.clusters import dask_scheduler, dask_worker
from tests.toy_encoders import VOWELS, Colours, Here, Mortal, Noted, Placed, Roomy, Vowels, Written

SMALL = Sizes(field_rows=64, chunk_bytes=64 * 28, group_texts=64)
WORDS = ["an", "owl", "sees", "mice", "under", "old", "trees", "while", "foxes", "sleep"]


def texts(count: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(1, 9))) for _ in range(count)]


def table(path: Path, values: list[str | None], start: int = 0) -> Path:
    ids = [f"r{start + at}" for at in range(len(values))]
    columns = pa.table({"id": ids, "text": values, "kind": [str(at % 3) for at in range(len(values))]})
    if path.suffix == ".csv":
        columns.to_pandas().to_csv(path, index=False)
    elif path.suffix == ".arrow":
        with pa.ipc.new_stream(path, columns.schema) as writer:
            writer.write_table(columns, max_chunksize=90)
    else:
        pq.write_table(columns, path, row_group_size=100)
    return path


def counted(values: list[str]) -> np.ndarray:
    """What `Vowels` returns of texts, without the length of the batch."""
    return np.array([[*(text.count(each) for each in VOWELS), len(text)] for text in values], np.float32)


@pytest.mark.parametrize("kind", ["csv", "parquet", "arrow", "pandas", "dask"])
def test_texts_become_features_in_batches_of_similar_length(kind: str, tmp_path: Path) -> None:
    values, encoder = texts(700), Vowels()
    source: Any = table(tmp_path / f"texts.{kind if kind in ('csv', 'arrow') else 'parquet'}", list(values))
    if kind in ("pandas", "dask"):
        source = pd.read_parquet(source)
    if kind == "dask":
        source = dd.from_pandas(source, npartitions=3)
    shown: list[tuple[int, int | None]] = []
    pool = Pool.build(
        source, tmp_path / "pool.zarr", ids="id", text="text", display=["kind"], encoder=encoder,
        progress=lambda done, total: shown.append((done, total)),
    )  # fmt: skip
    X = pool.read(0, 700)
    np.testing.assert_array_equal(X[:, :6], counted(values))
    assert (pool.encoder, pool.dtype, pool.feature_names) == ("vowels:1", np.float32, ("text",))
    assert pool.display([3, 500]) == {"text": [values[3], values[500]], "kind": ["0", "2"]}
    assert pool.record_ids([699]) == ["r699"]
    assert shown[-1] == (700, 700)
    # Every batch is full but the last, and holds texts of similar length: together they are sorted.
    assert [len(batch) for batch in encoder.batches] == [8] * 87 + [4]
    lengths = [len(text) for batch in encoder.batches for text in batch]
    assert lengths == sorted(lengths, reverse=True)


@pytest.mark.parametrize("rows", [0, 1, 63, 64, 200, 299])
def test_a_build_goes_on_with_the_same_batches_from_any_row(rows: int, tmp_path: Path) -> None:
    values = texts(300)
    source = table(tmp_path / "texts.parquet", list(values))

    def features(start: int) -> np.ndarray:
        how = build.Options("id", None, [], "text", None, None, None, encoder=Vowels(), sizes=SMALL)
        return np.concatenate([block.features for block in build._source(source, how).blocks(start)])

    np.testing.assert_array_equal(features(rows), features(0)[rows:])


def interrupted(task: Callable[[], object]) -> None:
    """Build or append to a pool in a process that kills itself."""
    process = multiprocessing.get_context("fork").Process(target=task)
    process.start()
    process.join()
    assert process.exitcode == -9


def test_a_killed_build_goes_on_from_its_last_whole_unit(tmp_path: Path) -> None:
    values: list[str | None] = [*texts(500)]
    values[10], values[400], values[490] = "", "the end of it", None
    source, place, file = table(tmp_path / "texts.parquet", values), tmp_path / "pool.zarr", tmp_path / "deadly"
    file.touch()
    encoder = Mortal("the end of it", file)
    interrupted(lambda: Pool.build(source, place, ids="id", text="text", encoder=encoder, sizes=SMALL))
    file.unlink()
    encoder.log.unlink()
    with pytest.raises(SourceError, match="group_rows"):
        Pool.build(source, place, ids="id", text="text", encoder=encoder)
    pool = Pool.build(source, place, ids="id", text="text", encoder=encoder, sizes=SMALL)
    again = {text for batch in encoder.noted() for text in batch}
    assert "the end of it" in again
    assert len(encoder.noted()) < 30, "what was safe is not encoded again"
    sizes = Sizes(group_texts=SMALL.group_texts)
    whole = Pool.build(
        source, tmp_path / "whole.zarr", ids="id", text="text", encoder=Mortal("none", file), sizes=sizes
    )
    np.testing.assert_array_equal(pool.read(0, 500), whole.read(0, 500))
    assert pool.unencoded == whole.unencoded
    assert [name for _, name, _ in pool.unencoded["named"]] == ["r10", "r490"]


def test_a_killed_append_goes_on_from_its_last_whole_unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    more: list[str | None] = [*texts(500, seed=1)]
    more[10], more[400], more[490] = "", "the end of it", None
    old, new = table(tmp_path / "old.parquet", list(texts(100))), table(tmp_path / "new.parquet", more, start=100)
    other, file = table(tmp_path / "other.parquet", list(texts(200, seed=2)), start=900), tmp_path / "deadly"
    encoder = Mortal("the end of it", file)

    def begun(name: str) -> Pool:
        return Pool.build(old, tmp_path / name, ids="id", text="text", encoder=encoder, sizes=SMALL)

    whole = begun("whole.zarr").append(new, encoder=encoder, sizes=SMALL)
    pool = begun("pool.zarr")
    file.touch()
    interrupted(lambda: pool.append(new, encoder=encoder, sizes=SMALL))
    file.unlink()
    assert pool.refreshed() is pool, "it has its old rows"
    encoder.log.unlink()
    done: list[int] = []
    longer = pool.append(new, encoder=encoder, progress=lambda rows, _: done.append(rows), sizes=SMALL)
    assert done[0] > 256
    assert len(encoder.noted()) < 30, "what was safe is not encoded again"
    np.testing.assert_array_equal(longer.read(0, 600), whole.read(0, 600))
    assert longer.record_ids([100, 599]) == ["r100", "r599"]
    assert longer.display([450]) == {"text": [more[350]]}
    assert longer.unencoded == whole.unencoded
    assert [row for row, _, _ in longer.unencoded["named"]] == [110, 590]
    # Another source begins from its start, and makes the first one begin from its start as well.
    pool = begun("twice.zarr")
    file.touch()
    interrupted(lambda: pool.append(new, encoder=encoder, sizes=SMALL))
    file.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(build, "sorted_entries", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            pool.append(other, encoder=encoder, sizes=SMALL)
    encoder.log.unlink()
    again = pool.append(new, encoder=encoder, sizes=SMALL)
    np.testing.assert_array_equal(again.read(0, 600), whole.read(0, 600))
    assert sum(map(len, encoder.noted())) == 498


DEADLY = """
import sys
from pathlib import Path
from dal.pool import Pool, Sizes
from tests.toy_encoders import Mortal
encoder = Mortal("the end of it", Path(sys.argv[3]))
encoder.batch_size = 2
Pool.build(sys.argv[1], sys.argv[2], ids="id", text="text", encoder=encoder, sizes=Sizes(group_texts=2))
"""


@pytest.mark.slow
@pytest.mark.parametrize("stored", [False, True])
def test_records_that_kill_their_process_are_named_when_the_build_is_run_again(
    stored: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    values: list[str | None] = [*texts(40)]
    deadly = [1] if stored else [1, 30]
    for row in deadly:
        values[row] = "the end of it"
    source, file, folder = table(tmp_path / "texts.parquet", values), tmp_path / "deadly", tmp_path / "new"
    file.touch()
    encoder = Mortal("the end of it", file)
    encoder.batch_size = 2
    how: dict[str, Any] = {"encoder": encoder, "sizes": Sizes(group_texts=2)}
    with contextlib.ExitStack() as stack:
        place: Any = folder / "pool.zarr"
        if stored:
            place = "s3://bucket/pool.zarr"
            for name, value in stack.enter_context(running()).environment().items():
                monkeypatch.setenv(name, value)
        # Not a fork: the threads of the store's client may be at work here.
        command = [sys.executable, "-c", DEADLY, str(source), str(place), str(file)]
        assert subprocess.run(command, cwd=Path(__file__).parents[1], check=False).returncode == -9
        with caplog.at_level(logging.WARNING):
            pool = Pool.build(source, place, ids="id", text="text", **how)
        assert [(row, name) for row, name, _ in pool.unencoded["named"]] == [(row, f"r{row}") for row in deadly]
        assert "ended the process" in pool.unencoded["named"][0][2]
        assert "r1 " in caplog.text
        kept = np.delete(np.arange(40), deadly)
        np.testing.assert_array_equal(pool.take(kept)[:, :6], counted([values[row] or "" for row in kept]))
        assert set(names_at(pool.place)) == {"features", "fields", "ids", "ids_index", "zarr.json"}
    assert stored or [path.name for path in folder.iterdir()] == ["pool.zarr"]


def test_work_in_a_process_apart_tells_its_own_errors() -> None:
    with contextlib.closing(Apart(math.sqrt, "no number")) as apart, pytest.raises(TypeError, match="sqrt"):
        apart.receive()


class LastWord:
    """A thing that ends the process that unpickles it, in the middle of a message to its parent."""

    def __reduce__(self) -> tuple[Any, ...]:
        say = "import os, sys; os.write(int(sys.argv[1]), bytes([0, 0, 1, 0]) + b'cut'); os._exit(0)"
        return exec, (say,)


def test_a_process_apart_that_dies_while_it_answers_is_dead() -> None:
    with contextlib.closing(Apart(math.sqrt, LastWord())) as apart, pytest.raises(Died):
        apart.receive()


def test_an_interrupted_build_is_not_resumed_by_another_encoder(tmp_path: Path) -> None:
    source, place = table(tmp_path / "texts.parquet", [*texts(400), "last"]), tmp_path / "pool.zarr"

    class Failing(Vowels):
        def encode(self, batch: Sequence[str]) -> list[list[int]]:
            raise RuntimeError(f"no luck with {len(batch)}")

    with pytest.raises(SourceError, match="no luck"):
        Pool.build(source, place, ids="id", text="text", encoder=Failing())
    assert Pool.build(source, place, ids="id", text="text", encoder=Vowels("other")).encoder == "other:1"


def test_texts_that_are_empty_are_named_and_never_asked(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    values: list[str | None] = [*texts(400)]
    values[7], values[300] = "  ", None
    source = table(tmp_path / "texts.csv", values)
    with caplog.at_level(logging.WARNING):
        pool = Pool.build(source, tmp_path / "pool.zarr", ids="id", text="text", encoder=Vowels())
    assert "2 records" in caplog.text
    assert "r7" in caplog.text
    assert np.flatnonzero(np.isnan(pool.read(0, 400)).any(axis=1)).tolist() == [7, 300]
    shown = CliRunner().invoke(main, ["pool", "info", str(pool.path)])
    assert "r300" in shown.output
    assert "vowels:1" in shown.output
    # Also a learner that takes missing features is not given a record without any.
    for estimator in ("logistic", "hgb"):
        campaign = dal.Campaign.create(
            tmp_path / estimator, pool, classes=["a", "b"], estimator=estimator, batch_size=200, strategy="random"
        )
        asked: list[int] = []
        for batch in campaign.batches():
            asked += batch.rows.tolist()
            campaign.label(batch, ["a" if row % 2 else "b" for row in batch.rows])
            if len(asked) > 380:
                break
        assert set(range(400)) - {7, 300} == set(asked)


def test_a_pool_of_embeddings_has_a_head_as_its_learner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    X = (rng.normal(size=(120, 4)) * rng.lognormal(0, 2, (120, 1))).astype(np.float32)
    y = np.array(["no", "yes"])[(X[:, 0] > 0).astype(int)]
    source = table(tmp_path / "texts.csv", [" ".join(map(str, row)) for row in X])
    pool = Pool.build(source, tmp_path / "encoded.zarr", ids="id", text="text", encoder=Written())
    np.testing.assert_allclose(pool.read(0, 120), X, rtol=1e-6)
    plain = Pool.build(X, tmp_path / "plain.zarr")

    def done(*words: str) -> str:
        result = CliRunner().invoke(main, list(words))
        assert result.exit_code == 0, result.output
        return result.output

    for place, options, named, strategy in (
        (pool, [], "head", "class_coverage"),
        (plain, [], "logistic", "default"),
        (pool, ["--estimator", "logistic", "--strategy", "default"], "logistic", "default"),
    ):
        directory = tmp_path / f"{named}-{len(options)}"
        made = done("init", directory.name, place.path, "--classes", "no,yes", *options)
        assert f"learner is {named} and strategy {strategy}." in made
        assert f"estimator {named}; strategy {strategy};" in done("status", directory.name)
        settings = dal.Campaign.open(directory).settings
        assert (settings.estimator, settings.strategy) == (named, strategy)
    settings = dal.Campaign.create("c", pool, ["no", "yes"], batch_size=40).settings
    assert (settings.estimator, settings.strategy) == ("head", "class_coverage")
    replays = {
        name: dal.compare(pool, y, strategies=["random"], batch_size=40, rounds=1, **how)
        for name, how in (("default", {}), ("head", {"estimator": "head"}), ("logistic", {"estimator": "logistic"}))
    }
    final = {name: replay.replays[0].accuracy for name, replay in replays.items()}
    assert final["default"] == final["head"] != final["logistic"]
    np.save("answers.npy", y)
    done("compare", pool.path, "--answers", "answers.npy", "--strategy", "random", "--seeds", "1", "--rounds", "1")
    assert "Learner head" in Path("explorer.html").read_text(encoding="utf-8")


def test_a_head_begins_with_one_record_of_each_direction(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    of = rng.integers(0, 4, 500)
    X = (10 * np.eye(4)[of] + 0.1 * rng.standard_normal((500, 4))) * rng.lognormal(0, 2, (500, 1))
    source = table(tmp_path / "texts.csv", [" ".join(map(str, row)) for row in X])
    pool = Pool.build(source, tmp_path / "pool.zarr", ids="id", text="text", encoder=Written())
    begun = {}
    for estimator in ("", "logistic"):
        campaign = dal.Campaign.create(
            tmp_path / f"c{estimator}", pool, ["a", "b"], estimator=estimator, batch_size=4, explore=0.0
        )
        batch = campaign.next_batch()
        assert isinstance(batch, dal.Batch)
        begun[estimator] = batch.rows
    assert set(of[begun[""]].tolist()) == {0, 1, 2, 3}
    assert begun[""].tolist() != begun["logistic"].tolist()


def pictures(folder: Path, count: int) -> np.ndarray:
    """Write pictures of one colour each, of various sizes and formats; return their colours."""
    folder.mkdir()
    colours = np.random.default_rng(0).integers(0, 256, (count, 3))
    for at, colour in enumerate(colours):
        size = (5 + at % 7, 4 + at % 3)
        Image.new("RGB", size, tuple(map(int, colour))).save(folder / f"p{at:03d}.{('png', 'bmp')[at % 2]}")
    return colours.astype(np.float32)


def test_a_folder_of_pictures_with_damaged_ones(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    colours = pictures(tmp_path / "pictures", 150)
    whole = (tmp_path / "pictures" / "p070.png").read_bytes()
    (tmp_path / "pictures" / "p070.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "pictures" / "p071.bmp").write_bytes(b"no picture")
    (tmp_path / "pictures" / "p072.png").unlink()
    (tmp_path / "pictures" / "p072.png").symlink_to(tmp_path / "pictures" / "p073.bmp")
    with caplog.at_level(logging.WARNING):
        pool = Pool.build(tmp_path / "pictures", tmp_path / "pool.zarr", images=True, encoder=Colours())
    X = pool.read(0, 150)
    assert np.isnan(X[[70, 71]]).all()
    colours[72] = colours[73]
    kept = np.delete(np.arange(150), [70, 71])
    np.testing.assert_array_equal(X[kept], colours[kept])
    assert pool.record_ids([0, 149]) == ["p000.png", "p149.bmp"]
    assert [name for _, name, _ in pool.unencoded["named"]] == ["p070.png", "p071.bmp"]
    assert "p071.bmp" in caplog.text


def test_pictures_upright_on_white_and_in_three_channels(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    half = Image.new("RGBA", (2, 2), (0, 0, 0, 0))
    half.paste((200, 0, 0, 255), (0, 0, 1, 2))
    half.save(tmp_path / "pictures" / "a.png")
    Image.new("L", (3, 3), 77).save(tmp_path / "pictures" / "b.png")
    pool = Pool.build(tmp_path / "pictures", tmp_path / "pool.zarr", images=True, encoder=Colours())
    np.testing.assert_array_equal(pool.read(0, 2), [[227.5, 127.5, 127.5], [77, 77, 77]])


def test_annotators_see_the_pictures(tmp_path: Path) -> None:
    pictures(tmp_path / "pictures", 6)
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "pictures" / "q1.png")
    (tmp_path / "pictures" / "q2.jpg").write_bytes(b"broken")
    pool = Pool.build(tmp_path / "pictures", tmp_path / "pool.zarr", images=True, encoder=Colours())
    assert (pool.fields, pool.kinds, pool.has_pictures) == ((), {}, True)
    small, drawn, large, broken = pool.pictures([0, 1, 6, 7])
    assert small == (tmp_path / "pictures" / "p000.png").read_bytes(), "a small file is kept as it is"
    assert drawn is not None
    assert drawn.startswith(b"\x89PNG")  # browsers show no .bmp everywhere
    shown = Image.open(io.BytesIO(large or b""))
    assert (shown.format, shown.size, broken) == ("JPEG", (256, 192), None)
    records = Records(pool)
    assert records.image(0) == small
    assert [content.image is not None for content in records.contents([0, 6])] == [True, True]
    with pytest.raises(InputError, match="decoded"):
        records.image(7)
    chosen = Settings("pool.zarr", ("a", "b"), batch_size=2)
    campaign = CampaignStore.make(tmp_path / "c", chosen, pool_fingerprint=pool.fingerprint, n_rows=8)
    frozen = {"pool_fingerprint": pool.fingerprint, "n_rows": 8, "k": 2, "explore": 0.0, "seed": 0}
    campaign.rounds.open(campaign.rounds.freeze(**frozen, strategy="margin"), batch_of([6, 0], ["q1.png", "p000.png"]))
    write_batch(campaign, pool, 1, tmp_path / "batch.json", file_format="label-studio")
    first, second = (task["data"]["image"] for task in json.loads((tmp_path / "batch.json").read_text()))
    assert first.startswith("data:image/jpeg;base64,")
    assert base64.b64decode(second.removeprefix("data:image/png;base64,")) == small
    with pytest.raises(InputError, match="pictures"):
        Pool.build(np.eye(3), tmp_path / "plain.zarr").pictures([0])


@pytest.mark.parametrize("kind", ["numpy", "dask", "file"])
def test_arrays_of_pictures(kind: str, tmp_path: Path) -> None:
    import dask.array as da

    pixels = np.random.default_rng(1).integers(0, 256, (130, 6, 5, 3), dtype=np.uint8)
    source: Any = pixels if kind == "numpy" else da.from_array(pixels, chunks=(50, 6, 5, 3))
    if kind == "file":
        np.save(tmp_path / "pixels.npy", pixels)
        source = tmp_path / "pixels.npy"
    ids = None if kind == "file" else [f"x{at}" for at in range(130)]
    pool = Pool.build(source, tmp_path / "pool.zarr", images=True, encoder=Colours(), ids=ids)
    np.testing.assert_allclose(pool.read(0, 130), pixels.mean((1, 2)), rtol=1e-6)
    with pytest.raises(SourceError, match="uint8"):
        Pool.build(np.zeros((3, 4)), tmp_path / "other.zarr", images=True, encoder=Colours())


def test_appending_encodes_what_is_new_and_nothing_else(tmp_path: Path) -> None:
    old, new = texts(300), texts(100, seed=1)
    pool = Pool.build(table(tmp_path / "old.csv", list(old)), tmp_path / "pool.zarr", ids="id", text="text",
                      encoder=Vowels())  # fmt: skip
    encoder = Vowels()
    more: list[str | None] = [*new[:50], "", *new[50:]]
    longer = pool.append(table(tmp_path / "new.parquet", more, start=300), encoder=encoder)
    assert sorted(text for batch in encoder.batches for text in batch) == sorted(new)
    np.testing.assert_array_equal(longer.read(300, 350)[:, :6], counted(new[:50]))
    assert [(row, name) for row, name, _ in longer.unencoded["named"]] == [(350, "r350")]
    for other, word in ((Vowels("vowels2"), "vowels2:1"), (None, "none")):
        with pytest.raises(SourceError, match=word):
            longer.append(table(tmp_path / "more.csv", ["x"], start=900), encoder=other)
    plain = Pool.build(np.eye(3), tmp_path / "plain.zarr")
    with pytest.raises(SourceError, match="left out"):
        plain.append(np.eye(3), encoder=Vowels())


def test_workers_load_an_encoder_once_and_give_the_same_bytes(cluster: Client, tmp_path: Path) -> None:
    values: list[str | None] = [*texts(5_000)]
    values[4_000] = ""
    source, notes = table(tmp_path / "texts.parquet", values), tmp_path / "notes"
    notes.mkdir()
    alone = Pool.build(source, tmp_path / "alone.zarr", ids="id", text="text", encoder=Noted(notes))
    pool = Pool.build(source, tmp_path / "pool.zarr", ids="id", text="text", encoder=Noted(notes), client=cluster)
    np.testing.assert_array_equal(pool.read(0, 5_000), alone.read(0, 5_000))
    assert [name for _, name, _ in pool.unencoded["named"]] == ["r4000"]
    processes = [each.name.split("-")[1] for each in notes.iterdir()]
    assert len(processes) == len(set(processes)) == 2


@pytest.mark.slow
def test_a_record_that_kills_its_workers_is_named_and_kept_as_missing(
    mortal_cluster: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # Dask sends a task elsewhere as often as it is told to before it gives up: here, never. Each worker takes seconds.
    monkeypatch.setattr(mortal_cluster.cluster.scheduler, "allowed_failures", 0)
    values: list[str | None] = [*texts(40)]
    values[21], values[30] = "the end of it", ""
    source, file = table(tmp_path / "texts.parquet", values), tmp_path / "deadly"
    file.touch()
    encoder = Mortal("the end of it", file)
    # So large that it is sent once, and outlives the worker that holds it.
    encoder.ballast = bytes(2**21)  # type: ignore[attr-defined]
    sizes = Sizes(group_texts=4)
    how: dict[str, Any] = {"ids": "id", "text": "text", "encoder": encoder, "client": mortal_cluster}
    with caplog.at_level(logging.WARNING):
        pool = Pool.build(source, tmp_path / "pool.zarr", sizes=sizes, **how)
    assert [(row, name) for row, name, _ in pool.unencoded["named"]] == [(21, "r21"), (30, "r30")]
    assert "ended the workers" in pool.unencoded["named"][0][2]
    assert "r21" in caplog.text
    X = pool.read(0, 40)
    assert np.flatnonzero(np.isnan(X).any(axis=1)).tolist() == [21, 30]
    kept = np.delete(np.arange(40), [21, 30])
    np.testing.assert_array_equal(X[kept, :6], counted([values[row] or "" for row in kept]))
    one = table(tmp_path / "one.parquet", ["the end of it"])
    raw = encoded.RawTexts(open_table(one, "id", None, [], text="text"), "text")
    with pytest.raises(ClusterError, match="more than 0 records"):
        list(encoded.Encoded(raw, encoder, mortal_cluster, sizes, max_deadly=0).blocks(0))


def test_a_batch_is_as_large_as_memory_allows(cluster: Client, tmp_path: Path) -> None:
    source = table(tmp_path / "texts.parquet", [*texts(99), "the end of it"])

    def built(name: str, encoder: Vowels, client: Client | None = None) -> np.ndarray:
        pool = Pool.build(source, tmp_path / name, ids="id", text="text", encoder=encoder, client=client, sizes=SMALL)
        return pool.read(0, 100)

    for fits, size in ((1000, 32), (6, 4), (1, 1)):
        encoder = Roomy(fits)
        X = built(f"{fits}.zarr", encoder)
        # The first batch is the record by which memory was measured.
        assert [len(batch) for batch in encoder.batches[1:]] == [size] * (100 // size) + [100 % size] * (size == 32)
        assert 2**20 < encoder.room < psutil.virtual_memory().total / 2
        if fits == 6:
            np.testing.assert_array_equal(built("cluster.zarr", Roomy(6), client=cluster), X)
            # Another memory changes nothing about a build that was begun.
            with pytest.raises(SourceError, match="fails"):
                built("begun.zarr", Roomy(6, fails="the end of it"))
            np.testing.assert_array_equal(built("begun.zarr", Roomy(1000)), X)
    with pytest.raises(SourceError, match="memory for one record"):
        built("none.zarr", Roomy(0))
    with pytest.raises(SourceError, match="memory for one record"):
        built("none.zarr", Roomy(0), client=cluster)


@pytest.mark.slow
def test_an_encoder_goes_where_a_gpu_is_declared(tmp_path: Path) -> None:
    source = table(tmp_path / "texts.parquet", texts(200))
    how: dict[str, Any] = {"ids": "id", "text": "text", "sizes": Sizes(group_texts=8)}
    expected = Pool.build(source, tmp_path / "alone.zarr", encoder=Placed(wants_gpu=True), **how).read(0, 200)
    with (
        dask_scheduler() as address,
        dask_worker(address, environment={"NETS_NO_GPU": "1"}),
        Client(address, set_as_default=False) as client,
    ):
        client.wait_for_workers(1, timeout=60)
        # Where no worker declares one, all of them encode.
        with pytest.raises(SourceError, match="declares no GPU"):
            Pool.build(source, tmp_path / "none.zarr", encoder=Placed(wants_gpu=True), client=client, **how)
        with dask_worker(address, resources="GPU=1"):
            client.wait_for_workers(2, timeout=60)
            pool = Pool.build(source, tmp_path / "pool.zarr", encoder=Placed(wants_gpu=True), client=client, **how)
            np.testing.assert_array_equal(pool.read(0, 200), expected)
            with pytest.raises(SourceError, match="declares no GPU"):
                Pool.build(source, tmp_path / "cpu.zarr", encoder=Placed(wants_gpu=False), client=client, **how)


@pytest.mark.slow
def test_the_last_worker_with_a_gpu_dies_of_a_record_and_others_come(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    values, file = texts(24), tmp_path / "deadly"
    values[13] = "the end of it"
    file.touch()
    source, encoder = table(tmp_path / "texts.parquet", list(values)), Mortal("the end of it", file, wants_gpu=True)
    # So large that it is the result of a task, which is lost with the worker; in small groups the record is found soon.
    encoder.batch_size, encoder.ballast = 2, bytes(2**21)  # type: ignore[attr-defined]
    with (
        dask_scheduler(environment={"DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "0"}) as address,
        dask_worker(address, environment={"NETS_NO_GPU": "1"}),
        dask_worker(address, resources="GPU=1") as first,
        Client(address, set_as_default=False) as client,
        ThreadPoolExecutor(1) as thread,
        caplog.at_level(logging.WARNING),
    ):
        client.wait_for_workers(2, timeout=60)
        how: dict[str, Any] = {"ids": "id", "text": "text", "encoder": encoder, "client": client}
        building = thread.submit(Pool.build, source, tmp_path / "pool.zarr", sizes=Sizes(group_texts=2), **how)
        assert first.wait(60) == -9
        with dask_worker(address, resources="GPU=1", nanny=True):
            pool = building.result(120)
    assert [(row, name) for row, name, _ in pool.unencoded["named"]] == [(13, "r13")]
    kept = np.delete(np.arange(24), 13)
    np.testing.assert_array_equal(pool.take(kept)[:, :6], counted([values[row] for row in kept]))


def test_weights_that_differ_on_a_worker_are_refused(cluster: Client, tmp_path: Path) -> None:
    source = table(tmp_path / "texts.csv", list(texts(10)))
    with pytest.raises(SourceError, match=r"weights.*here:"):
        Pool.build(source, tmp_path / "pool.zarr", text="text", encoder=Here("mine"), client=cluster)


class Odd:
    """Returns what a test gives it."""

    id = "odd:1"

    def __init__(self, found: object) -> None:
        self.found = found

    def encode(self, batch: Sequence[str]) -> object:
        return self.found(batch) if callable(self.found) else self.found


@pytest.mark.parametrize(
    ("how", "word"),
    [
        ({"encoder": Odd([[1.0]]), "text": "text"}, "shape"),
        ({"encoder": Odd(lambda batch: np.zeros((len(batch), len(batch[0])))), "text": "text"}, "like before"),
        ({"encoder": Odd(lambda batch: np.full((len(batch), 3), np.nan)), "text": "text"}, "NaN"),
        ({"encoder": Odd(lambda batch: np.zeros((len(batch), 2**15), np.float16)), "text": "text"}, "16,384"),
        ({"encoder": Odd(lambda batch: batch), "text": "text"}, "shape"),
        ({"encoder": Odd(None)}, "neither"),
        ({"encoder": Odd(None), "text": "text", "images": True}, "both"),
        ({"encoder": Odd(None), "text": "text", "vectoriser": TfidfVectorizer()}, "vectoriser"),
        ({"encoder": Odd(None), "text": "none"}, "none"),
        ({"encoder": Odd(None), "images": True}, "table"),
        ({"encoder": Vowels, "text": "text"}, "encode"),
        ({"encoder": object(), "text": "text"}, "encode"),
        ({"encoder": Vowels(batch_size=0), "text": "text"}, "batch_size"),
        ({"encoder": Vowels(), "text": "text", "dtype": "int8"}, "int8"),
        ({"encoder": Vowels(), "text": "text", "client": "tcp://127.0.0.1:1"}, "client"),
        ({"images": True}, "encoder"),
    ],
)
def test_bad_input_is_refused_in_words(how: dict[str, Any], word: str, tmp_path: Path) -> None:
    source = table(tmp_path / "texts.parquet", list(texts(100)))
    with pytest.raises(SourceError, match=word):
        Pool.build(source, tmp_path / "pool.zarr", ids="id", **how)


def test_an_encoder_with_a_lambda_travels_and_one_with_a_lock_is_refused(cluster: Client, tmp_path: Path) -> None:
    values = texts(100)
    source = table(tmp_path / "texts.parquet", list(values))
    encoder = Odd(lambda batch: [[len(text)] for text in batch])
    pool = Pool.build(source, tmp_path / "pool.zarr", ids="id", text="text", encoder=encoder, client=cluster)
    assert pool.read(0, 100)[:, 0].tolist() == [len(value) for value in values]
    with pytest.raises(SourceError, match="picklable"):
        Pool.build(source, tmp_path / "x.zarr", text="text", encoder=Odd(threading.Lock()), client=cluster)


@pytest.mark.slow
def test_a_truncated_picture_in_the_middle_of_10_000(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for at, colour in enumerate(((255, 0, 0), (0, 255, 0))):
        Image.new("RGB", (8, 8), colour).save(tmp_path / f"{at}.png")
    for row in range(10_000):
        (folder / f"p{row:05d}.png").hardlink_to(tmp_path / f"{row % 2}.png")
    whole = (tmp_path / "1.png").read_bytes()
    (folder / "p05001.png").unlink()
    (folder / "p05001.png").write_bytes(whole[: len(whole) // 2])
    pool = Pool.build(folder, tmp_path / "pool.zarr", images=True, encoder=Colours())
    X, expected = pool.read(0, 10_000), np.float32([[255, 0, 0], [0, 255, 0]] * 5_000)
    expected[5001] = np.nan
    np.testing.assert_array_equal(X, expected)
    assert [(row, name) for row, name, _ in pool.unencoded["named"]] == [(5001, "p05001.png")]


def test_the_command_line_builds_and_appends(tmp_path: Path) -> None:
    old, new = table(tmp_path / "old.csv", list(texts(200))), table(tmp_path / "new.csv", list(texts(50)), 200)
    place = str(tmp_path / "pool.zarr")
    run = CliRunner().invoke

    def done(*words: str) -> str:
        result = run(main, ["pool", *words])
        assert result.exit_code == 0, result.output
        return result.output

    assert "vowels:1" in done(
        "build", str(old), place, "--ids", "id", "--text", "text", "--encoder", "tests.toy_encoders:vowels"
    )
    encoder = "tests.toy_encoders:Vowels(batch_size=16)"
    assert "250 records of 7" in done("append", str(new), place, "--encoder", encoder)
    pictures(tmp_path / "pictures", 10)
    place = str(tmp_path / "pictures.zarr")
    assert "10 records of 3 float32" in done(
        "build", str(tmp_path / "pictures"), place, "--images", "--encoder", "tests.toy_encoders:Colours"
    )
    refused = run(main, ["pool", "build", str(old), str(tmp_path / "x.zarr"), "--workers", "2"])
    assert refused.exit_code == 2
    assert "--encoder" in refused.output


@pytest.mark.slow
def test_the_command_line_encodes_on_workers_of_this_machine(tmp_path: Path) -> None:
    source, place = table(tmp_path / "texts.csv", list(texts(3_000))), tmp_path / "pool.zarr"
    words = ["--ids", "id", "--text", "text", "--encoder", "tests.toy_encoders:Vowels", "--workers", "2"]
    result = CliRunner().invoke(main, ["pool", "build", str(source), str(place), *words])
    assert result.exit_code == 0, result.output
    np.testing.assert_array_equal(Pool.open(place).read(0, 3_000)[:, :6], counted(texts(3_000)))


def test_a_fitted_vectoriser_is_an_encoder(tmp_path: Path) -> None:
    values = texts(300)
    fitted = make_pipeline(TfidfVectorizer(), TruncatedSVD(5, random_state=0)).fit(values)
    source = table(tmp_path / "texts.csv", list(values))
    pool = Pool.build(source, tmp_path / "pool.zarr", ids="id", text="text", encoder=VectoriserEncoder(fitted))
    np.testing.assert_allclose(pool.read(0, 300), fitted.transform(values), atol=1e-6)
    other = make_pipeline(TfidfVectorizer(), TruncatedSVD(5, random_state=0)).fit(values[:200])
    assert VectoriserEncoder(other).id != pool.encoder == VectoriserEncoder(fitted).id
    with pytest.raises(SettingsError, match="fitted"):
        VectoriserEncoder(TfidfVectorizer())


def test_encoders_are_named_with_their_parameters() -> None:
    found = encoder_named("tests.toy_encoders:Vowels(name='v', batch_size=3)")
    assert (found.id, found.batch_size) == ("v:1", 3)
    sentences = encoder_named("sentences(model='somewhere/else', batch_size=7)")
    assert (sentences.model, sentences.batch_size) == ("somewhere/else", 7)
    for text, word in (("none", "sentences"), ("sentences", "model"), ("sentences(size=3)", "size")):
        with pytest.raises(SettingsError, match=word):
            encoder_named(text)


def test_a_truncated_picture_of_any_format_is_unreadable() -> None:
    from dal.pool.pictures import picture_of

    for kind in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"):
        buffer = io.BytesIO()
        noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(noise).save(buffer, kind)
        whole = buffer.getvalue()
        assert isinstance(picture_of(whole), Image.Image)
        for end in (0, 3, len(whole) // 2):
            assert isinstance(picture_of(whole[:end]), encoded.Unreadable), (kind, end)


def shard(path: Path, folder: Path, names: list[str]) -> Path:
    """Write a tar file as webdataset does: each picture beside its class."""
    with tarfile.open(path, "w") as archive:
        for name in names:
            archive.add(folder / name, name)
            beside = tarfile.TarInfo(f"{name.partition('.')[0]}.cls")
            beside.size = 1
            archive.addfile(beside, io.BytesIO(b"7"))
    return path


def test_tar_shards_of_pictures(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    colours = pictures(tmp_path / "pictures", 150)
    names = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    (tmp_path / "shards").mkdir()
    for at, part in enumerate((names[:70], names[70:])):
        shard(tmp_path / "shards" / f"{at:06d}.tar", tmp_path / "pictures", part)
    pool = Pool.build(tmp_path / "shards", tmp_path / "pool.zarr", images=True, encoder=Colours())
    np.testing.assert_array_equal(pool.read(0, 150), colours)
    assert pool.record_ids([0, 149]) == [names[0], names[149]]
    assert "150 .cls" in caplog.text
    one = Pool.build(tmp_path / "shards" / "000001.tar", tmp_path / "one.zarr", images=True, encoder=Colours())
    np.testing.assert_array_equal(one.read(0, 80), colours[70:])
    longer = one.append(tmp_path / "shards" / "000000.tar", encoder=Colours())
    np.testing.assert_array_equal(longer.read(80, 150), colours[:70])
    shard(tmp_path / "shards" / "000002.tar", tmp_path / "pictures", names[3:4])
    with pytest.raises(SourceError, match=names[3]):
        Pool.build(tmp_path / "shards", tmp_path / "twice.zarr", images=True, encoder=Colours())
    (tmp_path / "none.tar").write_bytes(b"no tar file" * 100)
    with pytest.raises(SourceError, match="tar"):
        Pool.build(tmp_path / "none.tar", tmp_path / "none.zarr", images=True, encoder=Colours())


class TestColours(EncoderContract):
    encoder = "tests.toy_encoders:Colours"
    pictures = True


class TestVectoriser(EncoderContract):
    encoder = VectoriserEncoder(TfidfVectorizer().fit([" ".join(WORDS)]))


def test_the_contract_finds_an_encoder_that_looks_at_its_neighbours() -> None:
    class TestVowels(EncoderContract):
        encoder = Vowels()

    TestVowels().test_returns_finite_features_of_each_record()
    with pytest.raises(AssertionError):
        TestVowels().test_features_do_not_depend_on_the_records_beside()

"""Pools that grow: rows never move, an append is seen whole or not at all, campaigns go on across it."""

import pickle
import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import zarr
from click.testing import CliRunner
from sklearn.feature_extraction.text import TfidfVectorizer

import dal
from dal import Campaign
from dal.campaign.parts import pool_of
from dal.campaign.view import status
from dal.cli import main
from dal.errors import CampaignMismatch, InputError, PoolError, PoolNotFound, SourceError
from dal.exchange import read_answers
from dal.loop.coordinator import Coordinator
from dal.pool import Block, Pool, Sizes
from dal.pool import build as building

D = 3
RNG = np.random.default_rng(5)
OLD, NEW = RNG.standard_normal((101, D)).astype(np.float32), RNG.standard_normal((57, D)).astype(np.float32) / 8
BOTH = np.concatenate([OLD, NEW])


class Stopped(Exception):
    pass


SMALL = Sizes(chunk_bytes=16 * D * 4, field_rows=8, index_rows=16, bucket_entries=50, block_bytes=23 * D * 4)
"""By which a hundred rows make many chunks, and the last one is not full."""
build_small = partial(Pool.build, sizes=SMALL)
append_small = partial(Pool.append, sizes=SMALL)


def named(first: int, count: int) -> dict[str, object]:
    rows = range(first, first + count)
    return {
        "ids": [f"id {row * 7919 % 1009}" for row in rows],
        "display": {"text": [f"text {row}" for row in rows], "n": list(rows)},
    }


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pool for tests to copy."""
    path = tmp_path_factory.mktemp("built") / "pool.zarr"
    build_small(OLD, path, **named(0, 101))
    return path


@pytest.fixture
def path(built: Path, tmp_path: Path) -> Path:
    return shutil.copytree(built, tmp_path / "pool.zarr")


def same(pool: Pool, n_rows: int) -> None:
    """Compare a pool with the records that were put in, one by one."""
    assert pool.n_rows == n_rows
    np.testing.assert_array_equal(pool.read(0, n_rows), BOTH[:n_rows])
    rows = RNG.permutation(n_rows)
    told = named(0, n_rows)
    ids, display = told["ids"], told["display"]
    assert isinstance(ids, list)
    assert isinstance(display, dict)
    np.testing.assert_array_equal(pool.take(rows), BOTH[rows])
    assert pool.record_ids(rows) == [ids[row] for row in rows]
    assert pool.display(rows) == {name: [values[row] for row in rows] for name, values in display.items()}
    np.testing.assert_array_equal(pool.rows_of([ids[row] for row in rows]), rows)
    assert pool.rows_of(["id", f"id {n_rows * 7919 % 1009}"]).tolist() == [-1, -1]


def test_rows_are_added_at_the_end_and_none_moves(path: Path) -> None:
    before = Pool.open(path)
    done: list[tuple[int, int | None]] = []
    after = append_small(Pool.open(path), NEW[:40], progress=lambda *rows: done.append(rows), **named(101, 40))
    assert after.fingerprint == before.fingerprint
    assert done[-1] == (40, 40)
    same(after, 141)
    same(before, 101)  # whoever has it open sees what was there then
    same(append_small(Pool.open(path), NEW[40:], **named(141, 17)), 158)
    same(after, 141)
    same(Pool.open(path), 158)
    same(Pool.open(path).head(101), 101)
    with pytest.raises(InputError, match=r"`n_rows`.*159"):
        Pool.open(path).head(159)
    groups = [name for name in zarr.open_group(path).group_keys() if name.startswith("ids_index")]
    assert sorted(groups) == ["ids_index_141", "ids_index_158"], "older indexes are taken away"


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8", "uint8"])
def test_narrow_pools_grow_in_their_own_type(dtype: str, tmp_path: Path) -> None:
    rounded = np.rint(np.abs(BOTH) * 40) if dtype == "uint8" else BOTH
    whole = build_small(rounded, tmp_path / "whole.zarr", dtype=dtype)
    build_small(rounded[:101], tmp_path / "pool.zarr", dtype=dtype)
    pool = append_small(Pool.open(tmp_path / "pool.zarr"), rounded[101:])
    assert pool.encoding == dtype
    np.testing.assert_array_equal(pool.read(0, 158), whole.read(0, 158))
    if dtype == "int8":
        with pytest.raises(SourceError, match=r"`int8`.*first pass"):
            append_small(Pool.open(tmp_path / "pool.zarr"), rounded[101:] * 1000)
        np.testing.assert_array_equal(Pool.open(tmp_path / "pool.zarr").read(0, 158), whole.read(0, 158))


def test_a_pool_in_shards_grows(tmp_path: Path) -> None:
    sizes = replace(SMALL, max_files=2, shard_chunks=2)
    pool = Pool.build(OLD, tmp_path / "pool.zarr", **named(0, 101), sizes=sizes)
    assert pool.write_rows > pool.chunk_rows
    same(Pool.open(tmp_path / "pool.zarr").append(NEW, **named(101, 57), sizes=sizes), 158)


@pytest.mark.parametrize("held", ["opened", "sent to a worker", "a part of it"])
def test_a_holder_notices_that_the_pool_has_grown(held: str, path: Path) -> None:
    opened = Pool.open(path)
    opened = {"opened": opened, "sent to a worker": pickle.loads(pickle.dumps(opened)), "a part of it": opened}[held]
    assert opened.refreshed() is opened
    if held == "a part of it":
        opened = opened.head(60)
        same(opened.refreshed(), 101)
    for start, stop in ((101, 110), (110, 141), (141, 158)):
        append_small(Pool.open(path), BOTH[start:stop], **named(start, stop - start))
    grown = opened.refreshed()
    same(grown, 158)
    assert grown.refreshed() is grown
    assert grown.nbytes == 158 * D * 4
    same(opened, opened.n_rows)  # ids are found, though the index of then has gone
    build_small(BOTH, path, **named(0, 158), overwrite=True)
    for pool in (opened, grown):
        with pytest.raises(PoolError, match="another pool"):
            pool.refreshed()
    shutil.rmtree(path)
    with pytest.raises(PoolNotFound):
        opened.refreshed()


def test_a_plain_array_that_was_resized_is_another_pool(tmp_path: Path) -> None:
    array = zarr.create_array(tmp_path / "plain.zarr", data=OLD)
    opened = Pool.open(tmp_path / "plain.zarr")
    assert opened.refreshed() is opened
    array.resize((102, D))
    with pytest.raises(PoolError, match="another pool"):
        opened.refreshed()


@pytest.mark.parametrize("where", ["in the rows", "in the index", "before the commit"])
def test_an_interrupted_append_leaves_the_pool_as_it_was(
    where: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise Stopped

    opened = Pool.open(path)
    progress = stop if where == "in the rows" else None
    with monkeypatch.context() as patch:
        if where == "in the index":
            patch.setattr(building, "sorted_entries", stop)
        if where == "before the commit":
            patch.setattr(zarr.core.attributes.Attributes, "__setitem__", stop)
        with pytest.raises(Stopped):
            append_small(Pool.open(path), NEW, progress=progress, **named(101, 57))
    same(opened, 101)
    same(Pool.open(path), 101)
    same(append_small(Pool.open(path), NEW[:9], **named(101, 9)), 110)  # fewer than the time before


def test_an_id_that_is_there_already_is_refused_by_name(path: Path) -> None:
    how = named(101, 57) | {"ids": [f"new {row}" for row in range(56)] + ["id 0"]}
    with pytest.raises(SourceError, match="'id 0' in rows 0, 157"):
        append_small(Pool.open(path), NEW, **how)
    same(Pool.open(path), 101)
    same(append_small(Pool.open(path), NEW, **named(101, 57)), 158)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"source": NEW[:, :2]}, r"shape \(3,\).*got \(2,\)"),
        ({"ids": None}, "records must have ids.*got none"),
        ({"display": {}}, r"display fields must be \['text', 'n'\].*got \[\]"),
        ({"display": {"text": ["x"] * 57, "n": ["7"] * 56 + ["x"]}}, r"'n' must hold integers.*56 \('x'\)"),
        ({"source": iter([]), "ids": None, "display": ()}, "row to append, got no rows"),
        ({"source": [Block(NEW)], "ids": None, "display": ()}, "records must have ids.*got none"),
    ],
)
def test_records_of_another_kind_are_refused(how: dict[str, object], message: str, path: Path) -> None:
    arguments = {"source": NEW, **named(101, 57), **how}
    with pytest.raises(SourceError, match=message):
        append_small(Pool.open(path), arguments.pop("source"), **arguments)
    same(Pool.open(path), 101)


def test_what_cannot_grow_is_refused(tmp_path: Path, path: Path) -> None:
    zarr.create_array(tmp_path / "plain.zarr", data=OLD)
    with pytest.raises(PoolError, match=r"plain\.zarr"):
        append_small(Pool.open(tmp_path / "plain.zarr"), NEW)
    with building._locked(path), pytest.raises(PoolError, match="is writing to"):
        append_small(Pool.open(path), NEW, **named(101, 57))
    (tmp_path / "x.csv").write_text("text,n\nham,1\n")
    with pytest.raises(SourceError, match="`vectoriser`"):
        append_small(Pool.open(path), tmp_path / "x.csv", text="text", vectoriser=TfidfVectorizer())


def test_the_command_line_appends(tmp_path: Path) -> None:
    for name, rows in (("a.csv", range(40)), ("b.csv", range(40, 50))):
        (tmp_path / name).write_text("key,x,y\n" + "".join(f"k{row},{row},{row / 2}\n" for row in rows))
    pool = str(tmp_path / "pool.zarr")
    assert CliRunner().invoke(main, ["pool", "build", str(tmp_path / "a.csv"), pool, "--ids", "key"]).exit_code == 0
    shown = CliRunner().invoke(main, ["pool", "append", str(tmp_path / "b.csv"), pool, "--ids", "key"])
    assert "50 records of 2 float32" in shown.output
    assert Pool.open(pool).rows_of(["k3", "k49"]).tolist() == [3, 49]
    again = CliRunner().invoke(main, ["pool", "append", str(tmp_path / "b.csv"), pool, "--ids", "key"])
    assert again.exit_code == 1
    assert "`ids` must be unique" in again.output


# -- campaigns ---------------------------------------------------------------------------------------------------------

N = 3000


def truth(X: np.ndarray) -> np.ndarray:
    return (X.sum(axis=1) > 0).astype(int)


def started(folder: Path, X: np.ndarray, strategy: str, sizes: Sizes = SMALL) -> Campaign:
    """A campaign whose first batch is answered."""
    pool = Pool.build(X, folder / "pool.zarr", sizes=sizes)
    campaign = dal.Campaign.create(
        folder / "campaign", pool, ["no", "yes"], strategy=strategy, batch_size=10, random_state=3
    )
    answer(campaign, X)
    return campaign


def answer(campaign: Campaign, X: np.ndarray) -> list[int]:
    batch = campaign.next_batch()
    assert isinstance(batch, dal.Batch)
    campaign.label(batch, truth(X[batch.rows]))
    return batch.rows.tolist()


@pytest.mark.parametrize("strategy", ["default", pytest.param("stratified", marks=pytest.mark.slow), "margin"])
def test_a_campaign_goes_on_and_a_round_keeps_its_rows(
    strategy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    X = np.random.default_rng(1).standard_normal((2 * N, D)).astype(np.float32)
    sizes = replace(SMALL, chunk_bytes=2**14)
    twin = started(tmp_path / "twin", X[:N], strategy, sizes)
    expected = answer(twin, X)

    campaign = started(tmp_path / "grown", X[:N], strategy, sizes)

    def stop(*_: object, **__: object) -> None:
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(Coordinator, "_scan", stop)
        with pytest.raises(Stopped):
            campaign.next_batch()
    frozen = campaign.rounds.current
    assert frozen is not None
    append_small(Pool.open(tmp_path / "grown" / "pool.zarr"), X[N:])
    assert answer(campaign, X) == expected, "the round had frozen the pool as it was"
    assert campaign.rounds.get(frozen.number).n_rows == N

    later = [row for _ in range(3) for row in answer(campaign, X)]
    assert campaign.rounds.all()[-1].n_rows == 2 * N
    assert max(later) >= N
    assert len(set(later)) == len(later)


def test_a_campaign_whose_pool_was_spent_goes_on_with_new_records(tmp_path: Path) -> None:
    X = np.random.default_rng(1).standard_normal((30, D)).astype(np.float32)
    campaign = started(tmp_path, X[:20], "margin")
    answer(campaign, X)
    assert isinstance(campaign.next_batch(), dal.Stopped)
    append_small(Pool.open(tmp_path / "pool.zarr"), X[20:])
    assert sorted(answer(campaign, X)) == list(range(20, 30))
    assert isinstance(campaign.next_batch(), dal.Stopped)


def test_a_second_append_is_kept_away_even_if_the_lock_file_is_deleted(tmp_path: Path) -> None:
    path = tmp_path / "pool.zarr"
    build_small(OLD, path)

    def blocks() -> Iterator[Block]:
        (tmp_path / ".pool.zarr.lock").unlink()
        with pytest.raises(PoolError, match="is writing to"):
            append_small(Pool.open(path), NEW)
        yield Block(NEW)

    append_small(Pool.open(path), blocks())
    np.testing.assert_array_equal(Pool.open(path).read(0, len(BOTH)), BOTH)


def test_a_coordinator_that_runs_on_asks_what_was_appended_meanwhile(tmp_path: Path) -> None:
    """As `dal run` does, which holds its pool for weeks."""
    X = np.random.default_rng(1).standard_normal((40, D)).astype(np.float32)
    campaign = started(tmp_path, X[:20], "margin")
    coordinator = Coordinator(campaign)

    def asked() -> list[int]:
        batch = coordinator.run(close=False)
        assert isinstance(batch, dal.Batch)
        campaign.label(batch, truth(X[batch.rows]))
        return batch.rows.tolist()

    asked()
    append_small(Pool.open(tmp_path / "pool.zarr"), X[20:35])
    # A label of a record that nobody has asked, which the open pool of the coordinator does not have yet.
    report = read_answers(written(tmp_path / "more.csv", {"33": "yes"}), campaign, pool_of(campaign), "ann")
    assert (report.new, report.volunteered, report.rejections) == (1, 1, 0)
    third = asked()
    assert len(third) == 10
    assert set(third) < set(range(20, 35)) - {33}
    assert campaign.rounds.all()[-1].n_rows == 35
    assert campaign.rounds.all()[-1].trained_on == 21
    assert sorted(asked()) == sorted({*range(20, 35)} - {33} - set(third))
    assert isinstance(coordinator.run(close=False), dal.Stopped)
    append_small(Pool.open(tmp_path / "pool.zarr"), X[35:])
    assert status(campaign).verdicts == ()
    assert sorted(asked()) == list(range(35, 40))
    build_small(X, tmp_path / "pool.zarr", overwrite=True)
    with pytest.raises(CampaignMismatch, match="another pool"):
        coordinator.run(close=False)


def test_labels_of_records_beyond_what_a_round_froze_are_learned_and_nobody_is_asked_them(tmp_path: Path) -> None:
    X = np.random.default_rng(1).standard_normal((60, D)).astype(np.float32)
    campaign = started(tmp_path, X[:40], "margin")
    campaign.rounds.close(campaign.rounds.get(1))
    coordinator = Coordinator(campaign)
    coordinator.freeze()
    append_small(Pool.open(tmp_path / "pool.zarr"), X[40:])
    labels = {str(row): "yes" if truth(X[row : row + 1])[0] else "no" for row in range(40, 60)}
    assert read_answers(written(tmp_path / "more.csv", labels), campaign, pool_of(campaign), "ann").new == 20
    second = coordinator.run(close=False)
    assert isinstance(second, dal.Batch)
    assert max(second.rows) < 40, "the round had frozen the pool as it was"
    assert coordinator.view.labels().rows[-20:].tolist() == list(range(40, 60))
    np.testing.assert_array_equal(coordinator.features.take(np.arange(35, 60)), X[35:60])


def written(path: Path, labels: dict[str, str]) -> Path:
    path.write_text("record_id,label\n" + "".join(f"{record},{name}\n" for record, name in labels.items()))
    return path


def test_a_record_masked_late_is_nan(tmp_path: Path) -> None:
    features = np.ma.array(np.ones((1000, D), np.uint8), mask=False)
    features[900, 1] = np.ma.masked
    expected = np.ones((1000, D), np.float32)
    expected[900, 1] = np.nan
    np.testing.assert_array_equal(build_small(features, tmp_path / "pool.zarr").read(0, 1000), expected)
    grown = append_small(Pool.open(tmp_path / "pool.zarr"), features)
    np.testing.assert_array_equal(grown.read(1000, 2000), expected)


@pytest.mark.parametrize("first", ["append", "build", "overwrite"])
def test_a_pool_has_one_writer_at_a_time(first: str, tmp_path: Path) -> None:
    path = tmp_path / "pool.zarr"
    if first != "build":
        build_small(OLD, path)

    def blocks() -> Iterator[Block]:
        yield Block(NEW)
        with pytest.raises(PoolError, match="is writing to"):
            build_small(OLD, path, overwrite=True)
        with pytest.raises(PoolError):
            append_small(Pool.open(path), OLD)
        yield Block(NEW)

    if first == "append":
        append_small(Pool.open(path), blocks())
    else:
        build_small(blocks(), path, overwrite=first == "overwrite")
    expected = np.concatenate([OLD, NEW, NEW] if first == "append" else [NEW, NEW])
    np.testing.assert_array_equal(Pool.open(path).read(0, len(expected)), expected)


def test_a_build_leaves_a_pool_alone_that_was_begun_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "pool.zarr"

    def blocks() -> Iterator[Block]:
        build_small(OLD, path)
        yield Block(NEW)

    with pytest.raises(PoolError, match="begun"):
        build_small(blocks(), path)
    np.testing.assert_array_equal(Pool.open(path).read(0, len(OLD)), OLD)


def test_an_append_without_records_keeps_the_index(path: Path) -> None:
    append_small(Pool.open(path), NEW, **named(101, 57))
    with pytest.raises(SourceError, match="no rows"):
        append_small(Pool.open(path), [Block(NEW[:0], [], {"text": [], "n": []})])
    same(Pool.open(path), 158)


@pytest.mark.parametrize(
    "wrong",
    [
        {"n_rows": "x"},
        {"n_rows": None},
        {"n_rows": -1},
        {"complete": "no"},
        {"version": "1"},
        {"fields": None},
        {"fields": ["../x"]},
        {"fields": ["gone"]},
        {"kinds": None},
        {"kinds": {"n": "other"}},
        {"made_from": None},
        {"made_from": {"features": "x"}},
        {"index": "../x"},
    ],
    ids=str,
)
def test_a_damaged_description_is_refused_and_replaced_when_told(wrong: dict[str, object], path: Path) -> None:
    group = zarr.open_group(path, mode="r+")
    group.attrs["dal"] = {**building.description(group), **wrong}
    for act in (
        lambda: Pool.open(path).display([0]),
        lambda: append_small(Pool.open(path), NEW, **named(101, 57)),
        lambda: build_small(NEW, path),
    ):
        with pytest.raises(PoolError):
            act()
    build_small(OLD, path, overwrite=True, **named(0, 101))
    same(Pool.open(path), 101)

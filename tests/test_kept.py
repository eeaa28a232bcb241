"""Features that a campaign keeps: read once from the pool, whatever happens to their files."""

import errno
import logging
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dal
from dal.campaign.features import Features
from dal.campaign.kept import KeptFeatures, Records
from dal.campaign.view import View
from dal.errors import CampaignError
from dal.pool import Pool
from tests.forked import Process


def made(path: Path, count: int = 600) -> tuple[dal.Campaign, np.ndarray]:
    X = np.random.default_rng(0).normal(size=(count, 5)).astype(np.float32)
    pool = Pool.build(X, path / "pool.zarr")
    return dal.Campaign.create(path / "c", pool, ["a", "b"], batch_size=20), X


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    taken: list[int] = []
    real = Pool.take

    def take(self: Pool, rows: np.ndarray) -> np.ndarray:
        taken.extend(np.asarray(rows).tolist())
        return real(self, rows)

    monkeypatch.setattr(Pool, "take", take)
    return taken


@settings(deadline=None, max_examples=40)
@given(st.lists(st.lists(st.integers(100, 160), max_size=12), max_size=6), st.lists(st.integers(90, 170), max_size=30))
def test_what_is_read_is_what_was_added_last(
    tmp_path_factory: pytest.TempPathFactory, added: list[list[int]], wanted: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("kept")
    kept, twin = KeptFeatures(folder, "x", 3), dict[int, np.ndarray]()
    for number, rows in enumerate(added):
        X = np.array([[row, number, -0.5] for row in rows], np.float32).reshape(len(rows), 3)
        kept.add(np.array(rows, np.int64), X)
        twin |= dict(zip(rows, X, strict=True))
    places = kept.find(np.array(wanted, np.int64))
    assert (places >= 0).tolist() == [row in twin for row in wanted]
    there = places[places >= 0]
    found = np.empty((len(there), 3), np.float32)
    if len(there):
        assert kept.read(there, found).all()
        np.testing.assert_array_equal(Records(kept, there)[np.arange(len(there))[::-1]], found[::-1])
    np.testing.assert_array_equal(found, np.array([twin[row] for row in wanted if row in twin]).reshape(-1, 3))


def test_labels_that_nobody_asked_for_are_read_from_the_pool_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    campaign, X = made(tmp_path)
    rows = np.array([590, 17, 301])
    taken = counted(monkeypatch)
    np.testing.assert_array_equal(Features(View(campaign)).take(rows), X[rows])
    more = np.array([17, 590, 44, 301])
    np.testing.assert_array_equal(Features(View(campaign)).take(more), X[more])
    assert taken == [*rows, 44]


@pytest.mark.parametrize("damage", ["cut", "zeros", "bit", "marks", "gone"])
def test_damaged_records_alone_are_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    campaign, X = made(tmp_path)
    rows = np.arange(40, 60)
    Features(View(campaign)).take(rows)
    (features,) = campaign.directory.glob("features/*.features")
    (marks,) = campaign.directory.glob("features/*.rows")
    content = bytearray(features.read_bytes())
    if damage == "cut":
        os.truncate(features, 19 * 20 + 7)
    elif damage == "zeros":
        features.write_bytes(bytes(content[: 19 * 20]) + bytes(20))
    elif damage == "bit":
        content[19 * 20 + 3] ^= 4
        features.write_bytes(content)
    elif damage == "marks":
        os.truncate(marks, 19 * 16 + 5)
    else:
        features.unlink()
    taken = counted(monkeypatch)
    for _ in range(2):
        np.testing.assert_array_equal(Features(View(campaign)).take(rows[::-1]), X[rows[::-1]])
    assert taken == (rows[::-1].tolist() if damage == "gone" else [59])


@pytest.mark.parametrize("damage", ["cut", "bit", "gone", "marks"])
def test_records_that_are_damaged_while_a_round_uses_them_end_it(tmp_path: Path, damage: str) -> None:
    campaign, X = made(tmp_path)
    rows = np.arange(40, 60)[::-1]
    features = Features(View(campaign))
    unread = features.records(rows)
    assert isinstance(unread, Records)
    np.testing.assert_array_equal(unread[3:9], X[rows[3:9]])
    (file,) = campaign.directory.glob("features/*.features")
    content = bytearray(file.read_bytes())
    if damage == "cut":
        os.truncate(file, 50)
    elif damage == "bit":
        content[19 * 20 + 3] ^= 4
        file.write_bytes(content)
    elif damage == "gone":
        file.unlink()
    else:
        (marks,) = campaign.directory.glob("features/*.rows")
        os.truncate(marks, 5 * 16)
        assert features._kept(features._view.pool).find(rows[-1:]).tolist() == [-1]
    with pytest.raises(CampaignError, match="run again"):
        unread[np.arange(20)]
    assert unread[:0].shape == (0, 5)
    np.testing.assert_array_equal(Features(View(campaign)).records(rows)[:], X[rows])


def test_after_a_restore_they_are_made_of_what_rounds_have_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    campaign, X = made(tmp_path)
    batch = campaign.next_batch()
    assert isinstance(batch, dal.Batch)
    for path in campaign.directory.glob("features/*"):
        path.unlink()
    taken = counted(monkeypatch)
    np.testing.assert_array_equal(Features(View(campaign)).take(batch.rows), X[batch.rows])
    assert not taken


def asked_twice(path: Path) -> tuple[dal.Campaign, np.ndarray, np.ndarray]:
    """Return a campaign of two rounds, the rows of both, and the pool's features."""
    campaign, X = made(path)
    first = campaign.next_batch()
    assert isinstance(first, dal.Batch)
    campaign.label(first, [0, 1] * 10)
    second = campaign.next_batch()
    assert isinstance(second, dal.Batch)
    return campaign, np.concatenate([first.rows, second.rows])[::-1], X


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_campaign_of_an_older_version_that_is_killed_while_they_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    campaign, rows, X = asked_twice(tmp_path)
    for path in campaign.directory.glob("features/*"):
        path.unlink()
    # Killed once the second round's are kept.
    Features(View(campaign)).take(rows[:20])
    taken = counted(monkeypatch)
    np.testing.assert_array_equal(Features(View(campaign)).take(rows), X[rows])
    assert not taken


def test_on_a_full_disk_the_files_of_rounds_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    campaign, rows, X = asked_twice(tmp_path)
    for path in campaign.directory.glob("features/*"):
        path.unlink()
    monkeypatch.setattr("dal.campaign.kept._write", full)
    rows = np.append(rows, np.setdiff1d(np.arange(600), rows)[5])
    taken = counted(monkeypatch)
    features = Features(View(campaign))
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            np.testing.assert_array_equal(features.take(rows), X[rows])
    assert taken == [rows[-1]] * 2, "that alone was never asked"
    assert caplog.text.count("are not kept") == 1


def test_a_damaged_record_that_cannot_be_written_again_is_not_read_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    campaign, X = made(tmp_path)
    rows = np.array([7, 599, 33])
    Features(View(campaign)).take(rows)
    (path,) = campaign.directory.glob("features/*.features")
    content = bytearray(path.read_bytes())
    path.write_bytes(content[:20] + bytes(20) + content[40:])
    with monkeypatch.context() as patch:
        patch.setattr("dal.campaign.kept._write", full)
        found = Features(View(campaign)).records(rows)
        np.testing.assert_array_equal(found[np.arange(3)], X[rows])
    again = Features(View(campaign)).records(rows)
    assert isinstance(again, Records)
    np.testing.assert_array_equal(again[np.arange(3)], X[rows])


@pytest.mark.parametrize("few", [2, 500])
def test_the_round_of_rows_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, few: int) -> None:
    campaign, rows, _ = asked_twice(tmp_path)
    monkeypatch.setattr("dal.campaign.rounds._FEW", few)
    never = np.setdiff1d(np.arange(600), rows)[[3, 0]]
    wanted = np.concatenate([rows[[0, -1, 25]], never])
    assert campaign.rounds.rounds_of(wanted).tolist() == [2, 1, 1, 0, 0]


def test_where_they_cannot_be_written_the_pool_is_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    campaign, X = made(tmp_path)
    monkeypatch.setattr("dal.campaign.kept._write", full)
    rows = np.array([7, 599])
    features = Features(View(campaign))
    with caplog.at_level(logging.WARNING):
        found = features.records(rows)
    assert isinstance(found, np.ndarray)
    np.testing.assert_array_equal(found, X[rows])
    assert "Free space" in caplog.text


def _add_for_ever(folder: Path) -> None:
    kept = KeptFeatures(folder, "x", 50)
    for start in range(0, 10**9, 100):
        rows = np.arange(start, start + 100)
        kept.add(rows, np.repeat(rows[:, None], 50, axis=1).astype(np.float32))


def test_a_killed_writer_leaves_sound_records(tmp_path: Path) -> None:
    kept = KeptFeatures(tmp_path / "kept", "x", 50)
    for _ in range(3):
        marks = tmp_path / "kept/x.rows"
        before = marks.stat().st_size if marks.exists() else 0
        writer = Process(target=_add_for_ever, args=(tmp_path / "kept",))
        writer.start()
        while not marks.exists() or marks.stat().st_size < before + 8_000:
            time.sleep(0.001)
        os.kill(writer.pid or 0, signal.SIGKILL)
        writer.join()
        rows = np.arange(400)
        places = kept.find(rows)
        assert (places >= 0).all()
        found = np.empty((400, 50), np.float32)
        assert kept.read(places, found).all()
        np.testing.assert_array_equal(found[:, 7], rows)

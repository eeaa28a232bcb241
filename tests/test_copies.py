"""Copies: one answer stands for the near-duplicates of its record, in an exported labelled set."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import zarr
from click.testing import CliRunner
from distributed import Client

from dal import Campaign
from dal.campaign import Answer, CampaignStore, Settings
from dal.cli import main
from dal.compute.workers import Workers
from dal.errors import InputError
from dal.exchange import write_labels
from dal.loop.copies import copies_of
from dal.pool import Pool
from dal.selection.distances import DUPLICATE_DISTANCE
from tests.test_exchange import InMemory

N, D = 5_003, 20
LABELLED = [10, 700, 701, 1_500, 2_999, 3_000, 4_100, 5_002]
ANSWERS = ["odd" if row % 2 else "even" for row in LABELLED]
BAD = [42, 2_200]


@pytest.fixture(scope="module")
def records() -> np.ndarray:
    """Groups of near-copies, of 30, of 700 around two labelled records, of one; some that no answer stands for."""
    rng = np.random.default_rng(4)
    X = rng.standard_normal((N, D))
    X[100:130] = X[10] + 0.01 * rng.standard_normal((30, D))
    X[701] = X[700] + 0.02 * rng.standard_normal(D)
    X[1_600:2_300] = X[700] + 0.02 * rng.standard_normal((700, D))
    X[4_500] = X[5_002]
    X[4_000:4_050] = X[2_500] + 0.01 * rng.standard_normal((50, D))
    X[2_999] = X[1_500]  # equal and both labelled
    X[3_100] = X[1_500]
    X[BAD[0], 3], X[BAD[1], 4] = np.nan, np.inf
    return X.astype(np.float32)


@pytest.fixture(scope="module")
def pool(records: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Pool:
    ids = [f"record {row}" for row in range(N)]
    return Pool.build(
        records, tmp_path_factory.mktemp("pool") / "pool.zarr", ids=ids, display={"half": np.arange(N) // 2}
    )


def made(pool: Pool, directory: Path) -> Campaign:
    campaign = Campaign.create(directory, pool, ["even", "odd"], random_state=3)
    campaign.label([f"record {row}" if "record 0" in pool.record_ids([0]) else str(row) for row in LABELLED], ANSWERS)
    return campaign


def by_brute_force(X: np.ndarray, most: int) -> dict[int, int]:
    """Return the labelled record of each near-duplicate, from all distances in doubles."""
    sound = np.isfinite(X).all(axis=1)
    sample = X[sound].astype(np.float64)  # the sample of a small pool is all of it
    placed = (X.astype(np.float64) - sample.mean(axis=0)) / sample.std(axis=0) / np.sqrt(D)
    distinct = [row for row in LABELLED if row != 2_999]  # of equal ones the first
    points = placed[distinct]
    between = np.linalg.norm(points[:, None] - points[None], axis=2)
    np.fill_diagonal(between, np.inf)
    radius = DUPLICATE_DISTANCE * np.median(between.min(axis=1))
    groups: dict[int, list[tuple[float, int]]] = {}
    for row in np.flatnonzero(sound).tolist():
        if row in LABELLED:
            continue
        apart = np.linalg.norm(points - placed[row], axis=1)
        if apart.min() <= radius:
            groups.setdefault(distinct[int(apart.argmin())], []).append((float(apart.min()), row))
    return {row: of for of, group in groups.items() for _, row in sorted(group)[:most]}


@pytest.mark.parametrize("most", [1_000, 50])
def test_copies_are_those_of_brute_force_in_any_layout(
    most: int, pool: Pool, records: np.ndarray, tmp_path: Path, cluster: Client
) -> None:
    expected = by_brute_force(records, most)
    sizes = np.bincount(list(expected.values()), minlength=N)
    by_701 = int(sizes[701])  # some are nearer to a copy that has an answer as well
    assert 0 < by_701 < 40
    full = {1_000: 0, 50: 1}[most]
    assert (sizes[10], sizes[1_500], sizes[5_002], sizes[2_999], sizes[3_000]) == (30, 1, 1, 0, 0)
    assert (sizes >= most).sum() == full
    assert sizes[700] == min(most, 699 - by_701)
    campaign = made(pool, tmp_path / "c")
    array = zarr.create_array(tmp_path / "odd.zarr", shape=records.shape, chunks=(777, D), dtype="float32")
    array[:] = records
    odd = made(Pool.open(tmp_path / "odd.zarr"), tmp_path / "odd")
    for found in (
        copies_of(campaign, most=most),
        copies_of(campaign, most=most, workers=Workers(cluster)),
        copies_of(odd, most=most),
    ):
        assert dict(zip(found.rows.tolist(), found.of.tolist(), strict=True)) == expected
        assert found.full == full


def test_copies_are_exported_and_counted_apart_and_follow_the_answers(pool: Pool, tmp_path: Path) -> None:
    campaign = made(pool, tmp_path / "c")
    target = tmp_path / "labels.parquet"
    done = CliRunner().invoke(
        main,
        ["label", "export", str(tmp_path / "c"), str(target), "--labels", "--copies", "50", "--workers", "0"],
        catch_exceptions=False,
    )
    assert done.exit_code == 0
    assert f"Wrote 8 labels and 84 copies to {target}" in done.output
    assert "Records with 50 copies or more: 1." in done.output
    frame = pd.read_parquet(target)
    own, copied = frame[frame["copy_of"].isna()], frame[frame["copy_of"].notna()]
    assert own["row"].tolist() == LABELLED
    assert own["label"].tolist() == ANSWERS
    assert set(copied["chosen_by"]) == {"copy"}
    assert set(copied["votes"]) == {0}
    assert not copied["annotators"].map(len).any()
    assert not copied["answers"].map(len).any()
    assert copied["half"].tolist() == (copied["row"] // 2).tolist()
    assert copied["record_id"].tolist() == [f"record {row}" for row in copied["row"]]
    truth = dict(zip((f"record {row}" for row in LABELLED), ANSWERS, strict=True))
    assert copied["label"].tolist() == [truth[each] for each in copied["copy_of"]]
    assert (copied["copy_of"] == "record 10").sum() == 30
    # Nothing of it is stored: people, ruler and training have the answers alone.
    assert len(campaign.answers.latest().rows) == len(LABELLED)
    campaign.label(["record 10"], ["odd"])
    found = copies_of(campaign, most=50)
    assert write_labels(campaign, pool, tmp_path / "again.csv", copies=(found.rows, found.of)) == len(LABELLED)
    again = pd.read_csv(tmp_path / "again.csv")
    assert set(again[again["copy_of"] == "record 10"]["label"]) == {"odd"}


def test_of_a_label_that_is_gone_no_copy_is_written(tmp_path: Path) -> None:
    pool = InMemory([f"r{at}" for at in range(10)])
    settings = Settings("pool.zarr", ("cat", "dog"), estimator="logistic", strategy="margin", batch_size=4)
    campaign = CampaignStore.make(tmp_path / "c", settings, pool_fingerprint="f", n_rows=pool.n_rows)
    campaign.answers.add([Answer(101, "r1", "ann", "submitted", 1)], source="x")
    copies = np.array([102, 103]), np.array([101, 105])
    assert write_labels(campaign, pool, tmp_path / "x.csv", copies=copies, at_once=1) == 1
    frame = pd.read_csv(tmp_path / "x.csv")
    assert list(zip(frame["record_id"], frame["label"], frame["copy_of"].fillna(""), strict=True)) == [
        ("r1", "dog", ""),
        ("r2", "dog", "r1"),
    ]


def test_without_two_labels_there_are_no_copies_and_wrong_numbers_are_refused(pool: Pool, tmp_path: Path) -> None:
    campaign = Campaign.create(tmp_path / "c", pool, ["even", "odd"])
    assert len(copies_of(campaign).rows) == 0
    campaign.label(["record 10"], ["even"])
    assert len(copies_of(campaign).rows) == 0
    with pytest.raises(InputError, match="most"):
        copies_of(campaign, most=0)
    done = CliRunner().invoke(main, ["label", "export", str(tmp_path / "c"), str(tmp_path / "x.csv"), "--copies", "5"])
    assert done.exit_code == 2
    assert "--labels" in done.output

"""Searching: the records nearest to examples, found exactly, kept apart from the honest ruler."""

import csv
import logging
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import zarr
from click.testing import CliRunner
from distributed import Client

from dal import Batch, Campaign
from dal.campaign import Search
from dal.campaign.view import status
from dal.cli import main
from dal.errors import InputError
from dal.learners.models import Model, score_block
from dal.loop.coordinator import Coordinator
from dal.pool import Pool
from dal.pool.condition import Condition
from dal.scan import Journal, Limits, Scan, sample_codebook, scan
from dal.selection.batch import posed
from dal.selection.once import Once
from dal.selection.order import key_order
from dal.selection.search import NEAREST, Likeness
from tests.forked import Process

N, D = 5_003, 6
BAD, ASKED = [3, 999], [5, 4_000]
EXAMPLES = [17, 2_500]
LIMITS = Limits(tile_rows=512)


@pytest.fixture(scope="module")
def records() -> np.ndarray:
    rng = np.random.default_rng(0)
    X = (rng.standard_normal((N, D)) * [1, 1, 1, 50, 1, 1]).astype(np.float32)
    X[:1500:3] = X[17]  # a log's copies of one record, in three tiles
    X[2000:2600] += 4
    X[ASKED[1]] = X[2501]
    X[BAD[0], 1], X[BAD[1]] = np.inf, np.nan
    return X


@pytest.fixture(scope="module")
def pool(records: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Pool:
    place, lang = tmp_path_factory.mktemp("pool") / "pool.zarr", np.where(np.arange(N) % 11, "en", "de")
    ids = [f"record {row}" for row in range(N)]
    return Pool.build(records, place, ids=ids, display={"lang": lang, "few": np.arange(N) < 9})


def brute_force(X: np.ndarray, total: int, *, directions: bool, step: int = 1) -> list[int]:
    """Compare each record with each example, in doubles; sort by key, and drop copies of others and of asked ones."""
    sound = np.isfinite(X).all(axis=1)
    X = np.where(sound[:, None], X, np.float32(1))
    sample = X[sound].astype(np.float64)  # the sample of a small pool is all of it
    if directions:
        placed = X / np.sqrt((X.astype(np.float64) ** 2).sum(axis=1, keepdims=True))
    else:
        placed = (X - sample.mean(axis=0)) / sample.std(axis=0) / np.sqrt(D)
    of_each = ((placed[:, None] - placed[EXAMPLES]) ** 2).sum(axis=2)
    apart, nearest = of_each.min(axis=1), of_each.argmin(axis=1)
    # In single precision copies and the example itself are at 0 all the same.
    order = key_order(-np.round(apart, 9), np.arange(N), 11, 4)
    seen = {X[row].tobytes() for row in ASKED}
    kept = []
    for row in order.tolist():
        if sound[row] and row % step == 0 and X[row].tobytes() not in seen:
            kept.append(row)
            seen.add(X[row].tobytes())
    of_examples = [[row for row in kept if nearest[row] == each][: total // 2] for each in range(2)]
    return sorted({*kept[:total], *of_examples[0], *of_examples[1]})


def found(pool: Pool, records: np.ndarray, *, directions: bool = False, **options: object) -> Scan:
    likeness = Likeness.to(records[EXAMPLES], sample_codebook(pool, 0, 3), directions=directions)
    options = {"limits": LIMITS, **options}
    once = Once.after(records[ASKED])
    return scan(pool, None, NEAREST, 2, ASKED, random_state=11, round=4, likeness=likeness, once=once, **options)


@pytest.mark.parametrize("directions", [False, True])
def test_the_nearest_records_are_found_in_any_layout(
    directions: bool, pool: Pool, records: np.ndarray, tmp_path: Path, cluster: Client
) -> None:
    expected = brute_force(records, NEAREST.capacity(2, N).total, directions=directions)
    assert len(expected) > 2_000
    here = found(pool, records, directions=directions)
    assert here.candidates.rows.tolist() == expected
    array = zarr.create_array(tmp_path / "odd.zarr", shape=records.shape, chunks=(777, D), dtype="float32")
    array[:] = records
    odd = found(Pool.open(tmp_path / "odd.zarr"), records, directions=directions, limits=Limits(512, span_bytes=1))
    there = found(pool, records, directions=directions, client=cluster)
    for other in (odd, there):
        assert other.candidates.rows.tolist() == expected
        np.testing.assert_array_equal(other.candidates.scores, here.candidates.scores)
        np.testing.assert_array_equal(other.candidates.embeddings, records[expected])


def test_the_nearest_that_meet_a_condition(pool: Pool, records: np.ndarray, cluster: Client) -> None:
    where = Condition.on("lang = 'de'", pool)
    expected = brute_force(records, NEAREST.capacity(2, N).total, directions=False, step=11)
    assert found(pool, records, where=where, client=cluster).candidates.rows.tolist() == expected


def test_examples_are_searched_for_in_turn(pool: Pool, records: np.ndarray) -> None:
    """A crowd of near records must leave some to an example that stands alone."""
    kept = found(pool, records).candidates
    copies = (records == records[17]).all(axis=1)
    alone = kept.take(np.flatnonzero(copies[kept.rows] | (kept.rows // 600 == 4)))
    assert set(alone.cells) == {0, 1}
    problem = posed(alone, NEAREST, np.empty((0, D)), 11, 4)
    rows = problem.rows[NEAREST.chooser(problem, 9)]
    # The copies are one record; the rest of the batch is of the crowd.
    assert copies[rows[:2]].sum() == copies[rows].sum() == 1
    assert len(rows) == 9


def test_another_example_starts_a_journal_over(pool: Pool, records: np.ndarray, tmp_path: Path) -> None:
    first = found(pool, records, journal=Journal(tmp_path))
    again = found(pool, records, journal=Journal(tmp_path))
    other = found(pool, records[::-1], journal=Journal(tmp_path))
    assert again.summary.spans_resumed == first.summary.spans > other.summary.spans_resumed == 0


# -- in a campaign ----------------------------------------------------------------------------------------------------


def made(pool: Pool, directory: Path, **options: object) -> Campaign:
    return Campaign.create(directory, pool, ["near", "far"], **{"batch_size": 20, "random_state": 7, **options})


def taken(campaign: Campaign, **options: object) -> Batch:
    given = campaign.next_batch(**options)
    assert isinstance(given, Batch)
    return given


def answered(campaign: Campaign, batch: Batch) -> None:
    campaign.label(batch, (batch.rows < 2000).astype(int))


def chosen_by(campaign: Campaign, number: int) -> dict[str, list[int]]:
    by: dict[str, list[int]] = {}
    for each in campaign.rounds.batch(number):
        by.setdefault(each.chosen_by, []).append(each.row)
    return by


def distances(pool: Pool, rows: list[int], example: int) -> np.ndarray:
    space = sample_codebook(pool, 0, 7)
    return np.linalg.norm(space.embed(pool.take(rows)) - space.embed(pool.take([example])), axis=1)


@pytest.mark.parametrize("strategy", ["default", pytest.param("margin", marks=pytest.mark.slow)])
def test_a_batch_near_an_example(strategy: str, pool: Pool, tmp_path: Path) -> None:
    campaign = made(pool, tmp_path / "c", strategy=strategy)
    first = taken(campaign, like="record 2500")
    by = chosen_by(campaign, 1)
    # Before there is a label, too; the example itself was never asked, and comes first. 5 % of 20 is explored.
    assert (len(by["like"]), len(by["explore"]), by.get("strategy")) == (19, 1, None)
    assert by["like"][0] == 2500
    others = np.setdiff1d(np.arange(1500, N), [*by["like"], *BAD])
    assert distances(pool, by["like"], 2500).max() < np.quantile(distances(pool, others.tolist(), 2500), 0.02)
    answered(campaign, first)
    # Of the many copies of one record one is asked, and no copy of it ever again.
    answered(campaign, taken(campaign, like=["record 17"]))
    third = taken(campaign, like=pool.take([17])[0], share=0.3)
    by = {number: chosen_by(campaign, number) for number in (2, 3)}
    copies = set(range(0, 1500, 3))
    assert len(copies & {*by[2]["like"], *by[3]["like"]}) == 1
    assert (len(by[3]["like"]), len(by[3]["explore"]), len(by[3]["strategy"])) == (6, 1, 13)
    assert len(third.rows) == len(set(third.rows)) == 20
    # What the model thought of them is known, and the ruler has the explored ones alone.
    asked = [each for each in campaign.rounds.batch(3) if each.found_by == "like"]
    assert all(each.predicted is not None and each.score is not None and each.confidence for each in asked)
    answered(campaign, third)
    assert campaign.rounds.explored_rows().tolist() == sorted(
        row for n in (1, 2, 3) for row in chosen_by(campaign, n)["explore"]
    )
    assert status(campaign).asked == 60
    # The next round searches for nothing.
    taken(campaign)
    assert (campaign.rounds.get(3).search, campaign.rounds.get(4).search) == (
        Search(examples=(tuple(pool.take([17])[0].tolist()),), share=0.3),
        None,
    )


@pytest.mark.parametrize("strategy", [pytest.param("default", marks=pytest.mark.slow), "margin"])
def test_a_batch_within_a_condition(strategy: str, pool: Pool, tmp_path: Path) -> None:
    campaign = made(pool, tmp_path / "c", strategy=strategy)
    answered(campaign, taken(campaign, where="lang = 'de'"))
    answered(campaign, taken(campaign, where="lang = 'de'", share=0.5))
    answered(campaign, taken(campaign, where="few", like="record 2500", share=0.2))
    by = {number: chosen_by(campaign, number) for number in (1, 2, 3)}
    assert [{name: len(rows) for name, rows in by[number].items()} for number in (1, 2, 3)] == [
        {"where": 19, "explore": 1},
        {"where": 10, "explore": 1, "strategy": 9},
        {"like": 4, "explore": 1, "strategy": 15},
    ]
    assert all(row % 11 == 0 for number in (1, 2) for row in by[number]["where"])
    assert max(by[3]["like"]) < 9
    # What is searched for is chosen as the whole batch would be, of a pool of these records alone.
    scores = [each.score for each in campaign.rounds.batch(2) if each.found_by]
    others = np.setdiff1d(np.arange(0, N, 11), [*by[1]["where"], *by[2]["where"], *BAD])
    model = Model.loads(campaign.rounds.load_model(campaign.rounds.get(2).model))
    left = score_block("margin", model, pool.take(others)).score
    assert np.mean(scores) > np.quantile(left, 0.9)


def test_explored_records_leave_the_search_its_share(tmp_path: Path) -> None:
    X = np.random.default_rng(0).standard_normal((40, 3))
    campaign = made(Pool.build(X, tmp_path / "p.zarr"), tmp_path / "c", strategy="margin", explore=0.5)
    campaign.label(["0", "1"], ["near", "far"])
    taken(campaign, where="length(record_id) > 0", share=0.5)
    assert {name: len(rows) for name, rows in chosen_by(campaign, 1).items()} == {"where": 10, "explore": 10}


def killed(directory: str, method: str) -> None:
    """Take the next batch, and die before a step of it."""

    def dying(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(Coordinator, method, dying)
    Campaign.open(directory).next_batch(like="record 2500", share=0.5)


@pytest.mark.slow
def test_killed_or_on_a_cluster_it_gives_the_same_batch(pool: Pool, tmp_path: Path, cluster: Client) -> None:
    batches, begun = {}, made(pool, tmp_path / "begun", strategy="margin")
    answered(begun, taken(begun))
    for name in ("_searched", "_select", "cluster", "whole"):
        shutil.copytree(begun.directory, tmp_path / name)
        campaign = Campaign.open(tmp_path / name)
        options = {"like": "record 2500", "share": 0.5}
        if name == "cluster":
            options["client"] = cluster
        elif name != "whole":
            process = Process(target=killed, args=(str(tmp_path / name), name))
            process.start()
            process.join(60)
            assert process.exitcode == -signal.SIGKILL
            options = {}  # what it was begun with is frozen
        batches[name] = taken(campaign, **options).rows.tolist()
        assert len(chosen_by(campaign, 2)["like"]) == 10
    assert all(rows == batches["whole"] for rows in batches.values())


def test_a_search_that_comes_late_or_finds_nothing_says_so(
    pool: Pool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    campaign = made(pool, tmp_path / "c")
    first = taken(campaign)
    with caplog.at_level(logging.WARNING, "dal"):
        assert taken(campaign, like="record 2500").rows.tolist() == first.rows.tolist()
    assert "search again" in caplog.text
    copies = Pool.build(np.repeat(pool.take([1, 2]), 50, axis=0), tmp_path / "copies.zarr")
    campaign = Campaign.create(tmp_path / "d", copies, ["a", "b"], batch_size=3, random_state=1)
    campaign.label(["0", "50"], ["a", "b"])
    caplog.clear()
    with caplog.at_level(logging.WARNING, "dal"):
        batch = taken(campaign, like="0")
    assert "found no record" in caplog.text
    assert len(batch.rows) > 0
    assert "like" not in chosen_by(campaign, 1)


@pytest.mark.parametrize("there", ["here", pytest.param("cluster", marks=pytest.mark.slow)])
def test_a_condition_that_fails_on_a_record_takes_its_round_back(
    there: str, pool: Pool, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    client = request.getfixturevalue("cluster") if there == "cluster" else None
    campaign = made(pool, tmp_path / "c")
    with pytest.raises(InputError, match=r"overflow.*coalesce"):
        campaign.next_batch(where="abs(few - 9223372036854775807 - 1) > 0", client=client)
    assert campaign.rounds.last is None
    assert len(taken(campaign, client=client).rows) == 20
    assert campaign.rounds.last.search is None


@pytest.mark.parametrize(
    ("like", "share", "word"),
    [
        (["record 1", "nobody"], 1.0, "'nobody'"),
        ("record 3", 1.0, "'record 3'"),
        ([], 1.0, "at least one"),
        ([1, 2], 1.0, "`like`.*str"),
        (np.zeros((2, D + 1)), 1.0, f"{D} features"),
        (np.full((1, D), np.inf), 1.0, "finite"),
        (np.zeros((1001, D)), 1.0, "1,001"),
        ("record 1", 0.0, "`share`"),
        ("record 1", 1.5, "`share`"),
        (None, 1.0, "lang, few"),
    ],
)
def test_what_cannot_be_searched_for_is_refused_before_any_work(
    like: object, share: float, word: str, pool: Pool, tmp_path: Path
) -> None:
    campaign = made(pool, tmp_path / "c")
    with pytest.raises(InputError, match=word):
        campaign.next_batch(like=like, share=share, where=None if like is not None else "long > 3")
    assert campaign.rounds.last is None


def test_the_command_line_takes_ids_and_files(records: np.ndarray, tmp_path: Path) -> None:
    import pandas as pd

    table = pd.DataFrame(records[1500:], columns=[f"f{at}" for at in range(D)]).assign(
        key=np.arange(1500, N).astype(str)
    )
    Pool.build(table, tmp_path / "pool.zarr", ids="key")
    campaign = made(Pool.open(tmp_path / "pool.zarr"), tmp_path / "c")
    files = {
        "ids.csv": [["record_id", "label"], ["2501", "near"], ["2502", ""]],
        "others.csv": [[f"f{at}" for at in range(D)], records[2503].tolist()],
        "strange.csv": [["name"], ["2501"]],
    }
    for name, lines in files.items():
        with (tmp_path / name).open("w", newline="") as file:
            csv.writer(file).writerows(lines)

    def told(*options: str) -> tuple[int, str]:
        done = CliRunner().invoke(main, ["next", str(campaign.directory), "--workers", "0", *options])
        return done.exit_code, " ".join(done.output.split())

    code, said = told("--like", str(tmp_path / "strange.csv"))
    assert code
    assert "record_id, or the features f0, f1" in said
    code, said = told("--share", "0.5")
    assert code
    assert "--like" in said
    code, said = told("--like", "2500", "--like", str(tmp_path / "ids.csv"), "--share", "0.5")
    assert not code, said
    assert "10 of them were found by a search" in said
    assert campaign.rounds.last.search == Search(rows=(1000, 1001, 1002), share=0.5)
    answered(campaign, taken(campaign))
    code, said = told("--where", "f9 > 1")
    assert code
    assert "f0, f1" in said
    code, said = told("--where", "f0 > 1", "--like", "2500", "--like", str(tmp_path / "others.csv"))
    assert not code, said
    assert campaign.rounds.last.search.where == "f0 > 1"
    assert campaign.rounds.last.search.examples == tuple(tuple(records[row].tolist()) for row in (2500, 2503))

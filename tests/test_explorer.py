"""The explorer's pure parts against hand-worked values, its files, and what is refused at the door."""

import base64
import json
import os
import re
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from distributed import Client

from dal import Campaign, cli, explorer
from dal.campaign.view import View
from dal.compute.local import local_cluster
from dal.errors import CampaignMismatch, InputError, SettingsError
from dal.explorer import Known, Plan, Run, RunFolder
from dal.explorer.page import explorer_html
from dal.explorer.play import play, read_test, table
from dal.explorer.run import GRID, watched_by
from dal.explorer.view import MOST_POINTS, view_of_run
from dal.loop.campaign import Batch
from dal.map import map_of
from dal.pool import Pool
from dal.replay import Comparison, Replay, TestSet, compare, compare_side_by_side, simulate, view_of
from dal.replay.held import held_out


def replay(strategy: str, seed: int, accuracy: tuple[float, ...], batches: list[list[int]] | None = None) -> Replay:
    labels = tuple(10 * (i + 1) for i in range(len(accuracy)))
    rows = tuple(np.array(batch, dtype=np.int64) for batch in batches or [[i] for i in range(len(accuracy))])
    return Replay(strategy, seed, labels, accuracy, rows)


PAIRED = Comparison(
    (
        replay("random", 0, (0.5, 0.7, 0.9)),
        replay("margin", 0, (0.7, 0.9, 0.9)),
        replay("random", 1, (0.5, 0.6, 0.7)),
        replay("margin", 1, (0.6, 0.7, 0.9)),
    )
)


def test_labels_needed_are_paired_by_seed() -> None:
    needed = PAIRED.needed("margin", 0.7, "random")
    # margin: at the first point, at the second; random: at the second, at the third
    assert needed.labels == pytest.approx((10 + 20) / 2)
    assert needed.difference == pytest.approx(((10 - 20) + (20 - 30)) / 2)
    assert needed.half_width == pytest.approx(0)
    # random reaches 0.8 in one seed only: no difference, and no interval over the other one alone
    needed = PAIRED.needed("random", 0.8)
    assert (needed.labels, needed.reached, needed.seeds) == (None, 1, 2)
    assert PAIRED.needed("margin", 0.8, "random").difference is None
    assert PAIRED.reached_by_all("random") == 0.7


def test_the_interval_of_a_difference_is_students() -> None:
    shifted = Comparison((*PAIRED.replays[:3], replay("margin", 1, (0.7, 0.7, 0.9))))
    # differences -10 and -20: mean -15, standard error 5, t(0.975, 1) = 12.7062
    needed = shifted.needed("margin", 0.7, "random")
    assert needed.difference == pytest.approx(-15)
    assert needed.half_width == pytest.approx(5 * 12.7062, rel=1e-4)


def test_a_band_is_the_interval_of_the_mean_and_stays_a_share() -> None:
    mean, low, high = PAIRED.band("random")
    assert mean.accuracy == pytest.approx((0.5, 0.65, 0.8))
    assert (low[0], high[0]) == pytest.approx((0.5, 0.5))
    # 0.7 and 0.6: standard error 0.05, times 12.7: beyond [0, 1]
    assert low[1] == pytest.approx(0.65 - 0.05 * 12.7062, abs=1e-4)
    assert high[1] == 1.0
    one = Comparison((PAIRED.replays[0],))
    assert one.band("random")[1] == (0.5, 0.7, 0.9)


def run_of(*replays: Replay, title: str = "by hand") -> Run:
    rows = np.unique(np.concatenate([rows for each in replays for rows in each.batches]))
    return Run(title, ("ham", "spam"), replays, rows, rows % 2, None)


def test_overlap_and_class_counts_by_hand() -> None:
    view = view_of_run(
        run_of(
            replay("a", 0, (0.5, 0.6), [[1, 2, 3], [5, 6]]),
            replay("b", 0, (0.5, 0.6), [[2, 3, 4], [5, 7]]),
        ),
        None,
    )
    # {1, 2, 3} and {2, 3, 4}; then 2, 3, 5 of 1, 2, 3, 4, 5, 6, 7
    assert view["overlap"][0] == [[1.0, 0.5], [0.5, 1.0]]
    assert view["overlap"][1][0][1] == view["overlap"][1][1][0] == pytest.approx(3 / 7, abs=1e-4)
    assert [each["counts"] for each in view["panels"][0]["rounds"]] == [[1, 2], [2, 3]]
    ids = view["records"]["ids"]
    assert [ids[i] for i in view["panels"][1]["rounds"][1]["asked"]] == ["5", "7"]
    assert np.frombuffer(base64.b64decode(view["records"]["labels"]), "<i2").tolist() == [int(i) % 2 for i in ids]


def test_other_budgets_and_other_seeds_are_cut_and_said() -> None:
    view = view_of_run(
        run_of(replay("a", 0, (0.5, 0.6, 0.7)), replay("b", 0, (0.5, 0.6)), replay("b", 1, (0.4, 0.5))), None
    )
    assert [len(each["labels"]) for each in view["strategies"]] == [2, 2]
    assert [each["seeds"] for each in view["strategies"]] == [[0], [0]]
    assert any("different seeds: only the 1 that" in note for note in view["notes"])
    apart = view_of_run(run_of(replay("random", 0, (0.5, 0.6)), replay("b", 1, (0.5, 0.6))), None)
    assert any("cannot be paired" in note for note in apart["notes"])
    assert apart["needed"]["strategies"]["b"][0][3] is None
    assert any("different budgets: all are cut at 20 labels" in note for note in view["notes"])


def test_the_table_and_the_page_tell_of_the_same_accuracy_and_of_seeds_that_are_alike() -> None:
    lines = {line[0]: line for line in table(PAIRED).rows}
    assert lines["random"][2].startswith("0.800 ± ")
    assert lines["margin"][2] == "0.900 ± 0.000"
    assert [line[2] for line in table(Comparison(PAIRED.replays[:2])).rows] == ["0.900", "0.900"]
    view = view_of_run(run_of(*PAIRED.replays), None)
    assert view["needed"]["targets"][view["needed"]["start"]] == PAIRED.reached_by_all("random") == 0.7
    assert sum("asked the same records with every seed" in note for note in view["notes"]) == 2
    other = replay("margin", 1, (0.6, 0.7, 0.9), [[0], [2], [1]])
    mixed = view_of_run(run_of(*PAIRED.replays[:3], other), None)
    assert [note.split()[0] for note in mixed["notes"] if "same records" in note] == ["random"]


def test_more_than_four_strategies_are_curves_only() -> None:
    view = view_of_run(run_of(*(replay(name, 0, (0.5, 0.6)) for name in "abcde")), None)
    assert view["panels"] == []
    assert len(view["strategies"]) == 5
    assert any("5 strategies: curves only" in note for note in view["notes"])
    assert any("no map" in note for note in view["notes"])


# -- on a real pool ----------------------------------------------------------------------------------------------------

BAD = "<script>alert('in a record')</script><img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pool of three classes with texts, its answers, and a test set."""
    path = tmp_path_factory.mktemp("world")
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 1400)
    X = (2.5 * np.eye(3, 4)[y] + rng.standard_normal((1400, 4))).astype(np.float32)
    text = [BAD if row == 7 else f"mail {row} of kind {y[row]}" for row in range(1200)]
    Pool.build(X[:1200], path / "pool.zarr", display={"text": np.array(text)})
    np.save(path / "y.npy", np.array(["ham", "spam", "other"])[y[:1200]])
    np.save(path / "codes.npy", y[:1200])
    np.savez(path / "test.npz", X=X[1200:], y=np.array(["ham", "spam", "other"])[y[1200:]])
    return path


@pytest.mark.slow
def test_a_run_on_disk_is_the_run_that_was_played(folder: Path, tmp_path: Path) -> None:
    pool, known = Pool.open(folder / "pool.zarr"), Known.read(folder / "y.npy", 1200)
    plan = Plan(pool, known, ("random", "margin"), 2, "logistic", 6, 2, None)
    plan.check()
    kept = RunFolder(tmp_path / "a.run", plan.settings())
    pool_map = map_of(pool, kept.path / "map.npz", 0)
    played: list[tuple[str, int]] = []
    run = play(plan, kept, pool_map, on_replay=lambda each: played.append((each.strategy, each.seed)))
    assert sorted(played) == [("margin", 0), ("margin", 1), ("random", 0), ("random", 1)]
    again = RunFolder.read(tmp_path / "a.run")
    assert json.dumps(view_of_run(again, pool)) == json.dumps(view_of_run(run, pool))
    for one, other in zip(again.replays, run.replays, strict=True):
        for name in ("batches", "scores", "predicted", "views"):
            for a, b in zip(getattr(one, name), getattr(other, name), strict=True):
                assert np.array_equal(a, b, equal_nan=name == "scores")
    # The test records are never asked, and one more seed plays that seed alone.
    reserved, test = held_out(pool, known.codes)
    assert len(reserved) == 240 == len(test.y)
    asked = np.concatenate([rows for each in run.replays for rows in each.batches])
    assert not np.isin(asked, reserved).any()
    assert np.array_equal(test.X, pool.take(reserved))
    played.clear()
    more = replace(plan, seeds=3)
    (tmp_path / "a.run" / "replays" / "margin-1.npz").unlink()
    fresh: list[Path] = []
    play(more, RunFolder(tmp_path / "a.run", more.settings()), pool_map, on_replay=lambda _: fresh.append(tmp_path))
    assert len(fresh) == 6
    assert {path.name for path in (tmp_path / "a.run" / "replays").iterdir()} == {
        f"{strategy}-{seed}.npz" for strategy in ("random", "margin") for seed in range(3)
    }
    assert [line[0] for line in table(run.comparison).rows] == ["random", "margin"]


def test_a_replay_is_kept_whatever_its_strategy_is_called(tmp_path: Path) -> None:
    kept = RunFolder(tmp_path / "a.run", {})
    played = Replay("score=a:B(of='../x', c=1),shortlist=5", 3, (10,), (0.5,), (np.arange(10),))
    kept.add(played)
    assert [each.strategy for each in kept.replays()] == [played.strategy]
    assert len(list((tmp_path / "a.run" / "replays").iterdir())) == 1


@pytest.mark.slow
def test_replays_side_by_side_on_a_cluster_are_those_of_one_process(folder: Path, cluster: Client) -> None:
    pool, y = Pool.open(folder / "pool.zarr"), np.load(folder / "codes.npy")
    with np.load(folder / "test.npz") as stored:
        X = stored["X"]
    test = TestSet(X, np.zeros(len(X), np.int64))
    settings = {"batch_size": 6, "rounds": 2, "watched": pool.read(3, 9)}
    here = compare(pool, y, test, ("a", "b", "c"), ("margin", "random"), random_state=(4,), **settings)
    there = compare_side_by_side(
        pool, y, test, ("a", "b", "c"), ("margin", "random"), client=cluster, random_state=(4,), **settings
    )
    for one, other in zip(here.replays, there.replays, strict=True):
        assert (one.strategy, one.seed, one.labels, one.accuracy) == (
            other.strategy,
            other.seed,
            other.labels,
            other.accuracy,
        )
        assert [rows.tolist() for rows in one.batches] == [rows.tolist() for rows in other.batches]
        assert [view.tolist() for view in one.views] == [view.tolist() for view in other.views]


@pytest.mark.slow
def test_replays_outlive_the_workers_that_began_them(folder: Path) -> None:
    pool, y = Pool.open(folder / "pool.zarr"), np.load(folder / "codes.npy")
    test = TestSet(pool.read(700, 900), y[700:900])
    settings = {"random_state": (0, 1), "batch_size": 6, "rounds": 3}
    here = compare(pool, y, test, ("a", "b", "c"), ("margin", "random"), **settings)
    with local_cluster(2) as own:
        victims = list(own.run(os.getpid).values())

        def kill(_: Replay) -> None:
            if victims:
                os.kill(victims.pop(), signal.SIGKILL)

        there = compare_side_by_side(
            pool, y, test, ("a", "b", "c"), ("margin", "random"), client=own, on_replay=kill, **settings
        )
    assert not victims
    assert [each.accuracy for each in there.replays] == [each.accuracy for each in here.replays]
    assert all(
        np.array_equal(np.concatenate(one.batches), np.concatenate(other.batches))
        for one, other in zip(there.replays, here.replays, strict=True)
    )


def test_a_view_is_the_model_s_class_and_confidence(folder: Path) -> None:
    pool, y = Pool.open(folder / "pool.zarr"), np.load(folder / "codes.npy")
    watched = pool.read(5, 25)
    played = simulate(
        pool, y, TestSet(watched, y[5:25]), ("a", "b", "c"), strategy="margin", batch_size=30, rounds=2, watched=watched
    )
    assert [view.shape for view in played.views] == [(20, 2), (20, 2)]
    assert float((played.views[1][:, 0] == y[5:25]).mean()) == played.accuracy[1]
    assert played.views[1][:, 1].min() >= 255 // 3
    assert view_of(None, watched).tolist() == [[255, 0]] * 20


def test_reserved_rows_are_never_asked_even_when_the_pool_ends(folder: Path) -> None:
    pool, y = Pool.open(folder / "pool.zarr"), np.load(folder / "codes.npy")
    reserved = np.arange(30, 1200)
    played = simulate(
        pool,
        y,
        TestSet(pool.read(0, 9), y[:9]),
        ("a", "b", "c"),
        batch_size=20,
        rounds=4,
        explore=0.2,
        reserved=reserved,
    )
    assert played.labels == (20, 30)
    assert sorted(np.concatenate(played.batches).tolist()) == list(range(30))


def test_a_map_of_two_features_is_watched_on_a_grid(tmp_path: Path) -> None:
    X = np.random.default_rng(0).normal(size=(300, 2)).astype(np.float32)
    pool = Pool.build(X, tmp_path / "pool.zarr")
    made = map_of(pool, None, 0)
    grid = watched_by(pool, made)
    left, right, bottom, top = made.extent
    assert grid.shape == (GRID * GRID, 2)
    assert grid[0] == pytest.approx([left + (right - left) / GRID / 2, bottom + (top - bottom) / GRID / 2])
    assert grid[1, 0] - grid[0, 0] == pytest.approx((right - left) / GRID, rel=1e-4)
    assert grid[GRID, 1] - grid[0, 1] == pytest.approx((top - bottom) / GRID, rel=1e-4)


def test_a_view_stays_small_and_draws_images_as_they_are(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (6000, 40, 60, 1)).astype(np.uint8)
    images[:, :, :40] = 0
    pool = Pool.build(images, tmp_path / "pool.zarr")
    batches = [np.arange(start, start + 2400) for start in (1000, 3500)]
    played = Replay("margin", 0, (2400, 4800), (0.5, 0.6), tuple(batches))
    view = view_of_run(
        Run("big", ("a", "b"), (played,), np.arange(6000), np.arange(6000) % 2, map_of(pool, None, 0)), pool
    )
    assert len(view["records"]["ids"]) <= MOST_POINTS
    drawn = view["records"]["images"]
    assert (drawn["height"], drawn["width"], drawn["channels"], drawn["ink"]) == (14, 20, 1, True)
    data = np.frombuffer(base64.b64decode(drawn["data"]), np.uint8).reshape(-1, 14, 20)
    row = int(view["records"]["ids"][-1])
    assert np.array_equal(data[-1], images[row, ::3, ::3, 0])
    assert drawn["first"] + len(data) == len(view["records"]["ids"])
    assert view["panels"][0]["rounds"][1]["size"] == 2400
    assert len(explorer_html(view)) < 4_000_000


def test_text_cannot_leave_its_place_in_the_page() -> None:
    run = run_of(replay(BAD, 0, (0.5, 0.6)), title="@@SCRIPT@@ " + BAD)
    text = explorer_html(view_of_run(run, None))
    assert BAD not in text
    assert text.count("<script") == text.count("</script>") == 2
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    assert data is not None
    assert json.loads(data[1])["title"] == "@@SCRIPT@@ " + BAD
    assert "default-src &#x27;none&#x27;" in text


# -- the folder --------------------------------------------------------------------------------------------------------


def test_a_run_of_a_newer_version_is_refused_with_its_version(tmp_path: Path) -> None:
    RunFolder(tmp_path / "a.run", {"batch": 5})
    told = json.loads((tmp_path / "a.run" / "run.json").read_text())
    (tmp_path / "a.run" / "run.json").write_text(json.dumps({**told, "version": 7}))
    for opening in (lambda: RunFolder(tmp_path / "a.run", {"batch": 5}), lambda: RunFolder.read(tmp_path / "a.run")):
        with pytest.raises(CampaignMismatch, match="up to 1, got 7"):
            opening()


def test_folders_that_are_no_run_or_another_run_are_refused(tmp_path: Path) -> None:
    RunFolder(tmp_path / "a.run", {"batch": 5, "rounds": 2})
    with pytest.raises(SettingsError, match="interrupted"):
        RunFolder.read(tmp_path / "a.run")
    with pytest.raises(SettingsError, match="another batch"):
        RunFolder(tmp_path / "a.run", {"batch": 6, "rounds": 2})
    (tmp_path / "b.run").mkdir()
    (tmp_path / "b.run" / "thesis.txt").write_text("mine")
    with pytest.raises(SettingsError, match="other files"):
        RunFolder(tmp_path / "b.run", {})
    (tmp_path / "b.run" / "run.json").write_text("{")
    with pytest.raises(SettingsError, match=r"run\.json must be a run"):
        RunFolder(tmp_path / "b.run", {})
    with pytest.raises(SettingsError, match=r"no run\.json"):
        RunFolder.read(tmp_path / "c.run")


# -- the command line --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (np.zeros(3, int), "1,200 records.*got 3 labels"),
        (np.arange(1200) / 2, "got fractions such as 0.5"),
        (np.full(1200, np.nan), "at least two classes"),
        (np.zeros((1200, 2), int), r"shape \(1200, 2\)"),
        (np.zeros(1200, int), "at least two classes"),
        (np.arange(1200) % 3 - 1, "got '-1'"),
        (np.array(["a", "b", "nan"] * 400), "got 'nan'"),
        (np.array(["1", "1.0"] * 600), "got '1' and '1.0'"),
        (np.array(["a", None] * 600, dtype=object), r"cannot be read as an .npy.*fillna\(''\)"),
        (np.arange(1200).astype("datetime64[s]"), "datetime64"),
    ],
    ids=[
        "length",
        "fractions",
        "unknown",
        "shape",
        "one class",
        "negative",
        "made of NaN",
        "twins",
        "objects",
        "times",
    ],
)
def test_labels_that_are_none_are_refused(labels: np.ndarray, said: str, tmp_path: Path) -> None:
    np.save(tmp_path / "y.npy", labels, allow_pickle=True)
    with pytest.raises(SettingsError, match=said):
        Known.read(tmp_path / "y.npy", 1200)


def test_integers_and_strings_become_classes(folder: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "y.npy", np.array([7, 3, 7, 5], dtype=np.uint8))
    known = Known.read(tmp_path / "y.npy", 4)
    assert known.classes == ("3", "5", "7")
    assert known.codes.tolist() == [2, 0, 2, 1]
    assert Known.read(folder / "y.npy", 1200).classes == ("ham", "other", "spam")


@pytest.mark.parametrize(
    ("labels", "classes", "codes"),
    [
        (np.array([-1, 1, 1, -1]), ("-1", "1"), [0, 1, 1, 0]),
        (np.array([-2, -1, 1, 2]), ("-2", "-1", "1", "2"), [0, 1, 2, 3]),
        (np.array([2.0, np.nan, 10.0, 2.0]), ("2", "10"), [0, -1, 1, 0]),
        (np.array([True, False, True, True]), ("False", "True"), [1, 0, 1, 1]),
        (np.array(["b", "", "a", "  "]), ("a", "b"), [1, -1, 0, -1]),
        (np.array([b"b", b"a", b"a", b"b"]), ("a", "b"), [1, 0, 0, 1]),
    ],
    ids=["signs", "negatives", "floats", "booleans", "empty texts", "bytes"],
)
def test_what_names_the_classes(labels: np.ndarray, classes: tuple[str, ...], codes: list[int], tmp_path: Path) -> None:
    np.save(tmp_path / "y.npy", labels)
    known = Known.read(tmp_path / "y.npy", 4)
    assert (known.classes, known.codes.tolist()) == (classes, codes)
    assert known.unknown.tolist() == [row for row, code in enumerate(codes) if code < 0]


def test_named_classes_decide_what_a_doubtful_label_is(tmp_path: Path) -> None:
    np.save(tmp_path / "y.npy", np.array([-1, 0, 1, 0]))
    known = Known.read(tmp_path / "y.npy", 4, ["1", "0", "-1"])
    assert (known.classes, known.codes.tolist()) == (("1", "0", "-1"), [2, 1, 0, 1])
    np.save(tmp_path / "y.npy", np.array(["a", "nan", "b", "None"]))
    assert Known.read(tmp_path / "y.npy", 4, ["a", "b"]).codes.tolist() == [0, -1, 1, -1]
    assert Known.read(tmp_path / "y.npy", 4, ["a", "b", "nan", "None"]).codes.tolist() == [0, 2, 1, 3]
    np.save(tmp_path / "y.npy", np.array(["a", "c", "b", "a"]))
    with pytest.raises(SettingsError, match="'c' is no class of a, b"):
        Known.read(tmp_path / "y.npy", 4, ["a", "b"])


@pytest.mark.slow
def test_records_of_unknown_class_are_neither_asked_nor_tested_on(folder: Path, tmp_path: Path) -> None:
    """Classes are numbers in an order that is not theirs, which codes taken for names would show."""
    pool, codes = Pool.open(folder / "pool.zarr"), np.load(folder / "codes.npy")
    y = np.array(["1", "0", "2"], dtype=object)[codes]
    y[::7] = ""
    np.save(tmp_path / "y.npy", y.astype(str))
    known = Known.read(tmp_path / "y.npy", pool.n_rows)
    assert known.classes == ("0", "1", "2")
    plan = Plan(pool, known, ("random", "margin"), 1, "logistic", 10, 4, None)
    plan.check()
    tested, test = held_out(pool, known.codes)
    assert not np.isin(tested, known.unknown).any()
    assert test.y.tolist() == known.codes[tested].tolist()
    run = play(plan, RunFolder(tmp_path / "e.run", plan.settings()), map_of(pool, None, 0))
    for replay in run.replays:
        assert not np.isin(np.concatenate(replay.batches), known.unknown).any()
        assert replay.accuracy[-1] > 0.6
    assert run.shares == pytest.approx(tuple(np.mean(y[y != ""] == name) for name in known.classes))
    assert any("172 records is not known" in note for note in run.notes)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--output", "page.pdf"], "must end in .html"),
        (["--strategy", "margin", "--strategy", "martin"], "martin"),
        (["--strategy", ""], "strategy"),
        (["--seeds", "0"], "`seeds` must be at least 1"),
        (["--batch-size", "1000"], "at most 960"),
        (["--estimator", "magic"], "magic"),
        (["--estimator", "tests.toy_learners:Embedding"], "--trusted tests.toy_learners.Embedding"),
        (["--answers", "nowhere.npy"], "nowhere.npy cannot be read (No such file"),
        (["--test", "nowhere.npz"], "nowhere.npz cannot be read (No such file"),
    ],
)
def test_compare_refuses_at_the_door(options: list[str], said: str, folder: Path, tmp_path: Path) -> None:
    command = ["compare", str(folder / "pool.zarr"), "--answers", str(folder / "y.npy")]
    result = CliRunner().invoke(cli.main, [*command, "--output", str(tmp_path / "e.html"), *options])
    assert result.exit_code == 1, result.output
    assert said in result.output
    assert list(tmp_path.iterdir()) == []


def test_a_test_set_of_other_classes_or_widths_is_refused(folder: Path, tmp_path: Path) -> None:
    known = Known.read(folder / "y.npy", 1200)
    np.savez(tmp_path / "a.npz", X=np.zeros((2, 4)), y=np.array(["ham", "eggs"]))
    np.savez(tmp_path / "b.npz", X=np.zeros((2, 5)), y=np.array(["ham", "ham"]))
    np.savez(tmp_path / "c.npz", X=np.full((2, 4), np.nan), y=np.array(["ham", "ham"]))
    for name, said in (("a", "eggs"), ("b", r"got X \(2, 5\)"), ("c", "NaN")):
        with pytest.raises(InputError, match=said):
            read_test(tmp_path / f"{name}.npz", known, 4)


def test_a_campaign_is_shown_as_it_stands(folder: Path, tmp_path: Path) -> None:
    pool, y = Pool.open(folder / "pool.zarr"), np.load(folder / "codes.npy")
    campaign = Campaign.create(
        tmp_path / "c", pool, ["ham", "spam", "other"], batch_size=20, explore=0.4, stop=["max_labels=100"]
    )
    with pytest.raises(SettingsError, match="must have a batch"):
        explorer.view_of_campaign(campaign, None)
    for _ in range(2):
        batch = campaign.next_batch()
        campaign.label(batch, y[batch.rows], annotator="ann")  # type: ignore[union-attr]
    campaign.next_batch()
    result = CliRunner().invoke(cli.main, ["report", str(tmp_path / "c"), "-o", str(tmp_path / "r.html")])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "c" / "map.npz").exists()
    view = explorer.view_of_campaign(campaign, map_of(pool, tmp_path / "c" / "map.npz", 0))
    (panel,) = view["panels"]
    assert panel["labels"] == [0, 20, 40]
    assert panel["accuracy"][0] is None  # chosen without a model: nothing to be measured
    record = View(campaign).history()[1]
    assert panel["accuracy"][1] == pytest.approx(record.explore_correct / record.explore_asked, abs=1e-5)
    assert panel["accuracy"][2] is None
    assert len(panel["views"]) == 3
    assert view["shares"] is None  # 20 explore answers, then 8: too few to draw
    tables = {each["title"]: each["rows"] for each in view["tables"]}
    assert tables["Annotators"] == [["ann", "40", "0%", "", ""]]
    shares = np.bincount(View(campaign).labels().codes, minlength=3) / 40
    classes = tables["Classes asked, and of the pool"]
    assert [(row[0], row[2]) for row in classes] == [
        (name, f"{share:.1%}") for name, share in zip(("ham", "spam", "other"), shares.tolist(), strict=True)
    ]
    assert sum(int(row[1]) for row in tables["Regions asked, and of the pool"]) == 40
    assert "28 were drawn at random" in tables["What was asked, and the pool"][-1][0]
    assert [row[0] for row in tables["Rounds"]] == ["1", "2", "3"]
    assert tables["Stopping criteria"][0][:2] == ["max_labels", "go on"]
    assert "live: round 3 is open, 20 waiting" in view["lead"]
    assert view["needed"] is None
    campaign.rounds.close(campaign.rounds.get(3))
    assert "live: round 3 is closed, the next one not begun" in explorer.view_of_campaign(campaign, None)["lead"]
    while isinstance(batch := campaign.next_batch(), Batch):
        campaign.label(batch, y[batch.rows], annotator="ann")
    ended = explorer.view_of_campaign(campaign, None)["lead"]
    assert ended.endswith("100 labelled of 120 asked · ended: 100 of 100 labels are known")


def test_compare_plays_a_learner_whose_types_are_named(folder: Path, tmp_path: Path) -> None:
    output, learner = tmp_path / "explorer.html", "tests.toy_learners:Embedding"
    command = ["compare", str(folder / "pool.zarr"), "--answers", str(folder / "y.npy"), "--output", str(output)]
    command += ["--strategy", "badge", "--seeds", "1", "--batch-size", "8", "--rounds", "2", "--estimator", learner]
    result = CliRunner().invoke(cli.main, [*command, "--trusted", "tests.toy_learners.Embedding"])
    assert result.exit_code == 0, result.output
    assert f"Learner {learner}" in output.read_text()


@pytest.mark.slow
def test_compare_plays_and_goes_on(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "explorer.html"
    command = ["compare", str(folder / "pool.zarr"), "--answers", str(folder / "y.npy"), "--output", str(output)]
    command += [
        "--strategy",
        "random",
        "--strategy",
        "score=margin,selector=power,beta=2",
        "--batch-size",
        "8",
        "--rounds",
        "3",
        "--test",
        str(folder / "test.npz"),
    ]
    first = CliRunner().invoke(cli.main, [*command, "--seeds", "1"])
    assert first.exit_code == 0, first.output
    assert "Open" in first.output
    before = (tmp_path / "explorer.run" / "replays" / "random-0.npz").stat().st_mtime_ns
    more = CliRunner().invoke(cli.main, [*command, "--seeds", "2"])
    assert more.exit_code == 0, more.output
    assert (tmp_path / "explorer.run" / "replays" / "random-0.npz").stat().st_mtime_ns == before
    assert "200 test records of your own" in output.read_text()
    other = CliRunner().invoke(cli.main, [*command, "--seeds", "2", "--rounds", "4"])
    assert other.exit_code == 1
    assert "another rounds" in other.output

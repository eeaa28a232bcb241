"""The measurements run, and refuse to time contenders that do not give the same answer."""

import dataclasses
import json
import math
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from xml.etree import ElementTree as ET

import click
import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks import bias, clusters, large, learners, memory, peers, scale, search, suite, synthetic
from benchmarks.scan import Found, Job, agreement, hand_part, hand_pass, measure, plain_part, plain_pass, report, run
from dal.scan import plan
from tests.clusters import own_cluster

ROOT = Path(__file__).parents[1]
CANDIDATE_BYTES = 32
CONTENDERS = ["dal", "threads", "hand", "plain", "dask_ml", "numpy"]


@pytest.mark.slow
def test_scan_measures_all_contenders_in_one_run(tmp_path: Path) -> None:
    target = tmp_path / "result.json"
    options = ["--rows=40000", "--dim=16", "--repeats=1", "--processes=1", f"--json={target}"]
    order = [sys.executable, "-m", "benchmarks", "scan", *options]
    done = subprocess.run(order, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert "dal / it" in done.stdout
    result = json.loads(target.read_text())
    assert (result["rows"], result["learner"], result["repeats"]) == (40_000, "logistic", 1)
    assert (result["dtype"], result["agreement_with_float32"]) == ("float32", 1.0)
    assert list(result["seconds"]) == list(result["rows_per_second"]) == CONTENDERS
    assert list(result["ratio"]) == list(result["agreement"]) == CONTENDERS[1:]
    assert all(len(times) == 1 and times[0] > 0 for times in result["seconds"].values())
    assert result["ratio"]["numpy"] == pytest.approx(result["seconds"]["numpy"][0] / result["seconds"]["dal"][0])
    assert min(result["agreement"].values()) >= 0.999
    assert result["of_hand"]["dal"] == result["ratio"]["hand"]
    assert list(result["of_hand"]) == ["dal", "threads"]
    assert 0 < result["start_seconds"] < 60
    assert {"cores", "cpu", "python", "packages"} <= set(result["machine"])


@pytest.mark.slow
def test_a_narrow_pool_is_scanned_by_those_that_decode_it(tmp_path: Path) -> None:
    result = run(tmp_path, 12_000, 8, "logistic", 1, 1, "int8")
    assert result["dtype"] == "int8"
    assert list(result["seconds"]) == ["dal", "hand", "dal_float32", "hand_float32"]
    seconds = {name: times[0] for name, times in result["seconds"].items()}
    assert result["ratio"]["dal_float32"] == pytest.approx(seconds["dal_float32"] / seconds["dal"])
    assert result["agreement"]["dal_float32"] == result["agreement_with_float32"]
    exact = synthetic.pool_of(tmp_path, 12_000, 8)
    narrow = synthetic.narrowed(exact, "int8")
    assert narrow.encoding == "int8"
    best = []
    for pool in (exact, narrow):
        ascending = np.sort(synthetic.model_of(exact, "logistic").estimator.predict_proba(pool.read(0, 12_000)))
        best.append(set(np.argsort(ascending[:, -1] - ascending[:, -2])[:10_000].tolist()))
    assert result["agreement_with_float32"] == pytest.approx(len(best[0] & best[1]) / 10_000, abs=2e-4)
    assert 0.9 < result["agreement_with_float32"] < 1


@pytest.mark.parametrize("layout", synthetic.LAYOUTS)
def test_a_pool_is_written_in_other_layouts(layout: str, tmp_path: Path) -> None:
    exact = synthetic.pool_of(tmp_path, 12_345, 8)
    pool = synthetic.laid_out(exact, layout, chunk_bytes=1024 * 4 * 8)
    assert (pool.chunk_rows, pool.write_rows) == {
        "sharded": (1024, 8192),
        "compressed": (1024, 1024),
        "foreign": (10_000, 10_000),
    }[layout]
    np.testing.assert_array_equal(pool.read(5, 12_345), exact.read(5, 12_345))
    told = json.loads((Path(pool.path) / "zarr.json").read_text())
    assert ("lz4" in str(told), "crc32c" in str(told)) == (layout == "compressed", layout == "sharded")


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    folder = tmp_path_factory.mktemp("benchmark")
    pool = synthetic.pool_of(folder, 12_000, 8)
    (folder / "model").write_bytes(synthetic.model_of(pool, "logistic").dumps())
    return Job(pool.path, str(folder / "model"), pool.n_rows, 4096, 1000)


@pytest.fixture(scope="module")
def found(job: Job) -> Found:
    candidates = hand_part(job, 0, job.n_rows)
    return Found(candidates.rows, candidates.scores)


def test_the_hand_loop_finds_what_a_plain_sort_finds_in_a_part_of_the_pool(job: Job) -> None:
    part = hand_part(dataclasses.replace(job, candidates=100), 4096, job.n_rows)
    probabilities = job.model().estimator.predict_proba(job.pool().read(4096, job.n_rows))
    ascending = np.sort(probabilities, axis=1)
    smallest = np.argsort(ascending[:, -1] - ascending[:, -2])[:100]
    assert part.rows.tolist() == sorted((4096 + smallest).tolist())


def test_agreement_is_whole_for_the_plain_loop(job: Job, found: Found) -> None:
    plain = plain_part(job, 0, job.n_rows)
    assert agreement({"dal": found, "hand": found, "plain": plain}, job) == {"hand": 1.0, "plain": 1.0}


@pytest.mark.parametrize("work", [hand_pass, plain_pass])
def test_the_parts_of_three_processes_make_up_the_whole(job: Job, found: Found, work: Callable[..., Found]) -> None:
    with ThreadPoolExecutor(1) as executor:
        parted = work(job, [executor] * 3)
    assert parted.rows.tolist() == found.rows.tolist()
    np.testing.assert_allclose(parted.scores, found.scores, atol=1e-6)


def test_agreement_refuses_a_contender_that_finds_other_rows(job: Job, found: Found) -> None:
    others = np.setdiff1d(np.arange(job.n_rows), found.rows)[:2]
    wrong = Found(np.sort(np.concatenate([found.rows[2:], others])), found.scores)
    with pytest.raises(click.ClickException, match=r"dal and plain have 99\.80%"):
        agreement({"dal": found, "hand": found, "plain": wrong}, job)


def test_agreement_refuses_a_contender_that_names_a_row_twice(job: Job, found: Found) -> None:
    twice = Found(np.r_[found.rows[:-1], found.rows[-2]], found.scores)
    with pytest.raises(click.ClickException, match="dal and numpy"):
        agreement({"dal": found, "hand": found, "numpy": twice}, job)


@pytest.mark.parametrize("other", ["hand", "threads"])
def test_agreement_wants_dals_own_functions_to_be_exact(other: str, job: Job, found: Found) -> None:
    nearly = Found(found.rows, np.nextafter(found.scores, 1))
    with pytest.raises(click.ClickException, match=f"dal and {other}"):
        agreement({"dal": found, other: nearly}, job)


def test_contenders_take_turns_in_another_order_each_time(tmp_path: Path) -> None:
    calls: list[str] = []
    contenders = {name: (lambda name=name: calls.append(name)) for name in "abc"}
    seconds = measure(contenders, 3, tmp_path)
    assert "".join(calls) == "abc" + "acb" + "cab"
    assert {name: len(times) for name, times in seconds.items()} == {"a": 3, "b": 3, "c": 3}


def test_report_compares_medians() -> None:
    told = report(100, {"dal": [2.0, 1.0, 9.0], "hand": [1.0, 5.0, 1.0]})
    assert told["rows_per_second"] == {"dal": 50.0, "hand": 100.0}
    assert (told["ratio"], told["of_hand"]) == ({"hand": 0.5}, {"dal": 0.5})


@pytest.mark.slow
@pytest.mark.parametrize("learner", ["logistic", "forest"])
def test_a_worker_stays_below_the_memory_that_is_predicted(tmp_path: Path, learner: str) -> None:
    pool = synthetic.pool_of(tmp_path, 1_000_000, 32)
    peaks = memory.peaks_of(pool, synthetic.model_of(pool, learner), 2)
    assert 0.5 * peaks.predicted < peaks.worker <= peaks.predicted


def test_a_query_beside_other_libraries_finds_what_a_plain_sort_finds(tmp_path: Path) -> None:
    pool = synthetic.pool_of(tmp_path, 20_000, 8)
    model = synthetic.model_of(pool, "logistic")
    (tmp_path / "model.skops").write_bytes(model.dumps())
    best = np.sort(model.predict_proba(pool.read(0, pool.n_rows)), axis=1)
    found = peers.queried("dal", tmp_path, 10)
    assert found.rows == sorted(np.argsort(best[:, -1] - best[:, -2])[:10].tolist())
    assert found.cpu > 0
    assert found.grown >= 0


def test_the_simulation_scores_every_row_once_and_counts_time_both_ways() -> None:
    pool = scale.VirtualPool(20_000_000, 128)
    told = scale.simulate(pool, scale.Capacity(2000, 8, 250), 4, 1e6, None)
    assert told["rows"] == 20_000_000
    assert 2000 <= told["candidates"] <= 2000 + 8 * 250
    assert told["pass_seconds"] > told["ideal_seconds"] * 0.9
    # What is sent is bounded by what all spans in flight may bring, and a share of it each time the rows seen double.
    sent = told["bytes_up"] / CANDIDATE_BYTES
    assert sent <= 4000 * (plan.in_flight(4) + math.log2(told["tasks"]))
    assert told["overhead"] == told["coordinator_seconds"] / told["pass_seconds"] > 0


@pytest.mark.slow
def test_ten_times_the_rows_send_hardly_more_to_the_coordinator() -> None:
    small, large = (
        scale.simulate(scale.VirtualPool(n_rows, 128), scale.Capacity(2000, 8, 250), 24, 1e4, None)
        for n_rows in (20_000_000, 200_000_000)
    )
    assert large["tasks"] > 3 * small["tasks"]
    assert large["bytes_up"] < 2 * small["bytes_up"]
    kept = 4000 * CANDIDATE_BYTES
    assert large["bytes_up"] <= kept * (plan.in_flight(24) + math.log2(large["tasks"]))


def test_messages_of_a_pass_grow_with_the_workers_and_no_faster(tmp_path: Path) -> None:
    fitted, workers = large.model(), 24
    pool = large.pool_of(tmp_path, 2 * workers)
    # All in this process, but each worker with its own connections.
    with own_cluster(workers, processes=False, protocol="tcp") as (_, client):
        for _ in ("first", "again"):
            large.Messages.count(client)
            found = large.passed(pool, fitted, client)
            sent = large.Messages.taken(client)
            # Two spans and a question for features; more where a machine is slow. Each to each would be 576.
            for counts in sent[:3]:
                assert all(count <= 6 * workers + 20 for count in counts.values()), counts
            assert sent.workers["compute-task"] >= 2 * workers
            assert sent.total <= 60 * workers
    assert found.candidates.rows.tolist() == large.passed(pool, fitted, None).candidates.rows.tolist()


def test_the_curve_is_drawn(tmp_path: Path) -> None:
    results = [
        {"rows": rows, "workers": workers, "overhead": 3e6 / rows * workers}
        for rows in (10**8, 10**9)
        for workers in (4, 16)
    ]
    drawn = ET.fromstring(scale.picture(results))
    lines = drawn.findall("{*}polyline")
    assert [len(line.attrib["points"].split()) for line in lines] == [2, 2]
    assert {text.text for text in drawn.findall("{*}text")} >= {"4 threads", "16 threads", "1e8", "1e9", "goal .05"}


def test_the_suite_lays_out_what_each_measurement_found() -> None:
    scanned = {
        "rows_per_second": {"dal": 2e6},
        "ratio": {"hand": 0.97, "dal_cells": 1.2},
        "of_hand": {"dal": 0.97, "dal_cells": 0.81},
        "start_seconds": 0.0241,
    }
    replayed = [
        {"set": "digits", "strategy": "default", "labels_to_random_final": 130.4},
        {"set": "digits", "strategy": "margin", "labels_to_random_final": None},
    ]
    found = [*suite.figures("scan", scanned), *suite.figures("labels", replayed)]
    assert [figure.value for figure in found] == ["2.00 M", "0.97", "0.81", "0.024 s", "130", "not reached"]
    assert "| scan | pace, dal / hand | 0.97 |" in suite.markdown(found).splitlines()


def test_a_row_ends_with_a_run_that_is_not_clean_or_is_of_other_code() -> None:
    def runs(*of: tuple[str, str, str]) -> list[clusters.Run]:
        return [clusters.Run(kind, outcome, 1.0, "log", commit, 0.0) for kind, outcome, commit in of]

    begun = runs(("TLS", "clean", "b"), ("TLS", "failed", "b"), ("TLS", "clean", "b"), ("SSH", "failed", "b"))
    assert clusters.in_a_row(begun, "TLS", "b") == 1
    assert clusters.in_a_row([*begun, *runs(("TLS", "clean", "b"))], "TLS", "b") == 2
    assert clusters.in_a_row([*begun, *runs(("TLS", "sshd is not there", "b"))], "TLS", "b") == 0
    assert clusters.in_a_row([*begun, *runs(("TLS", "clean", "a"), ("TLS", "clean", "b"))], "TLS", "b") == 1
    assert clusters.in_a_row(begun, "TLS", "a") == clusters.in_a_row([], "TLS", "a") == 0


BESIDE_THE_OTHER = """
import time
from pathlib import Path
import pytest
def test_it(request):
    there = Path({folder!r})
    mine = there / "{name}-runs"
    mine.mkdir()  # not where it runs already
    try:
        (there / "{name}").touch()
        while not (there / "{other}").exists():
            time.sleep(0.01)
        assert not (there / "{name}-broken").exists()
    finally:
        mine.rmdir()
"""


@pytest.mark.slow
def test_kinds_run_side_by_side_and_a_later_call_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, there = tmp_path / "code", tmp_path / "there"
    for folder in (code, there):
        folder.mkdir()
    for name, other in (("one", "other"), ("other", "one")):
        text = BESIDE_THE_OTHER.format(folder=str(there), name=name, other=other)
        (code / f"test_{name}.py").write_text(text)
    (code / ".gitignore").write_text("__pycache__\n")
    monkeypatch.setattr(clusters, "ROOT", code)
    monkeypatch.setattr(clusters, "KINDS", {name: [f"test_{name}.py"] for name in ("one", "other")})
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{name}_NAME", "Ann")
        monkeypatch.setenv(f"GIT_{name}_EMAIL", "ann@example.com")

    def git(*words: str) -> None:
        subprocess.run(["git", *words], cwd=code, check=True, capture_output=True)

    def called(*options: str) -> tuple[int, list[tuple[str, str]]]:
        """Call the command; give its status, and the runs that it added."""
        kept = tmp_path / "results" / "runs.jsonl"
        before = len(kept.read_text().splitlines()) if kept.exists() else 0
        status = CliRunner().invoke(clusters.command, ["--results", str(tmp_path / "results"), *options]).exit_code
        lines = kept.read_text().splitlines()[before:] if kept.exists() else []
        runs = [clusters.Run(**json.loads(line)) for line in lines]
        assert all("passed" in (tmp_path / "results" / run.log).read_text() for run in runs if run.outcome == "clean")
        return status, sorted((run.kind, run.outcome) for run in runs)

    git("init")
    assert called() == (1, [])  # nothing is committed
    git("add", ".")
    git("commit", "--message", "both")
    (there / "other-broken").touch()
    two = ("--repeats", "2", "--jobs", "2")
    assert called(*two) == (1, [("one", "clean"), ("one", "clean"), ("other", "failed")])
    (there / "other-broken").unlink()
    assert called(*two) == (0, [("other", "clean"), ("other", "clean")])


def test_what_a_search_saves_is_compared_seed_by_seed() -> None:
    """A class that is not found by the end counts as found after all labels."""

    def row(share: float, seed: int, *reached: int | None) -> dict[str, object]:
        found = dict(enumerate(reached))
        return {
            "case": "a",
            "share": share,
            "seed": seed,
            "labels": 600,
            "reached": found,
            "recall": 0.5,
            "accuracy": 0.9,
        }

    rows = [row(0.0, 0, 200, None), row(0.0, 1, 100, 300), row(0.3, 0, 100, 500), row(0.3, 1, 20, 180)]
    default, searched = (
        [cell.strip() for cell in line.split("|")[2:-1]] for line in search.table(rows).splitlines()[2:]
    )
    assert default[:3] == ["default", "2", "3 of 4"]
    assert searched[:3] == ["search 0.3", "2", "4 of 4"]
    assert [cell.split()[0] for cell in (default[3], searched[3], searched[4])] == ["300", "200", "-100"]


def test_advice_about_learners_is_held_against_the_truth() -> None:
    """Two campaigns: the advice of the first is right and followed, that of the second would have been wrong."""

    def check(labels: int, truth: float, verdict: str) -> dict[str, object]:
        gap = {"better": 0.1, "worse": -0.1}.get(verdict, 0.0)
        other = {
            "name": "forest",
            "verdict": verdict,
            "difference": gap,
            "difference_low": gap - 0.05,
            "difference_high": gap + 0.05,
        }
        return {
            "rounds": labels // 10,
            "labels": labels,
            "right": {"logistic": 0.5, "forest": 0.5 + truth},
            "candidates": {name: [{"name": "logistic"}, other] for name in learners.WEIGHTS},
        }

    def entry(seed: int, *told: tuple[float, str], switched: dict[str, object] | None) -> dict[str, object]:
        checks = [check(labels, *each) for labels, each in zip((10, 30, 60), told, strict=True)]
        last = {"rounds": 7, "labels": 70, "right": {"logistic": 0.6, "forest": 0.7}}
        return {
            "case": "digits",
            "in_use": "logistic",
            "seed": seed,
            "checks": [*checks, last],
            "final": 0.6,
            "switched": switched,
        }

    late, better, worse = "too early to tell", "better", "worse"
    to = {"after": 3, "to": "forest", "final": 0.64}
    entries = [
        entry(0, (0.08, late), (0.12, better), (0.1, better), switched=to),
        entry(1, (0.01, late), (-0.2, better), (-0.1, worse), switched=None),
    ]
    raked, _, gains = (
        [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
        for table in learners.tables(entries).split("\n\n")
    )
    assert raked == [
        ["10 to 10", "2", "none", "", "none", "100%", "1 of 1", "50%", "-4.5"],
        ["30 to 30", "2", "1 of 2", "-4.0", "none", "0%", "0 of 1", "50%", "+14.0"],
        ["60 to 60", "2", "1 of 1", "+10.0", "1 of 1", "0%", "0 of 1", "100%", "+0.0"],
    ]
    assert gains == [["digits", "logistic", "70", "0.600", "1 of 2", "forest", "30", "+4.0"]]


@pytest.mark.slow
def test_a_campaign_in_which_learners_are_compared_is_played() -> None:
    case = learners.Case("digits", 30, after=(2,), rounds=3)
    found = learners.played(case, "logistic", 3, None)
    assert [each["labels"] for each in found["checks"]] == [90, 120]
    assert found["checks"][0]["right"].keys() == found["checks"][1]["right"].keys() == set(learners.CANDIDATES)
    assert found["final"] == found["checks"][1]["right"]["logistic"] > 0.8
    told = found["checks"][0]["candidates"]["raked"]
    assert [each["name"] for each in told] == list(learners.CANDIDATES)
    assert told[0]["verdict"] == "in use"
    assert 0 < told[0]["accuracy"]["low"] < 1


def test_what_weights_gain_is_tabled_by_set_and_learner() -> None:
    def check(labels: int, gain: float, difference: float) -> dict[str, object]:
        measured = {"accuracy": 0.5, "recall": 0.4, "brier": 0.6}
        trained = {name: {**measured, "accuracy": 0.5 + gain} for name in bias.TRAINED} | {"none": measured}
        ends = {"difference_low": difference - 0.02, "difference_high": difference + 0.02}
        told = {"difference": difference, **ends, "verdict": "better", "plain": 0.45, "ends": [0.4, 0.49]}
        known = {"labels": labels, "apart": [0.3, 0.1], "drawn": labels // 4, "at_least": 0.48 if labels > 80 else 0.0}
        return {**known, "trained": trained, "verdicts": {"weight": told, "equal": told}}

    early = {"labels": 40, "too_early": "few"}
    entries = [
        {"case": "digits", "learner": "set", "seed": 0, "checks": [early, check(90, 0.02, 0.03)]},
        {"case": "digits", "learner": "set", "seed": 1, "checks": [check(40, -0.01, 0.04), check(90, 0.04, 0.03)]},
    ]
    trained, judged, levels = (
        [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
        for table in bias.tables(entries).split("\n\n")
    )
    assert [line[:5] for line in trained] == [
        ["digits", "40", "0.30, 0.10", "0.500 / 0.400 / 0.600", "-1.0 / +0.0 / +0.000"],
        ["digits", "90", "0.30, 0.10", "0.500 / 0.400 / 0.600", "+3.0 (-9.7 to +15.7) / +0.0 / +0.000"],
    ]
    assert judged[0] == ["set", "weight", "3", "2 of 3", "0 of 0", "+1.7", "67%", "-5.0, 5.0"]
    assert levels == [
        ["set", "digits", "40", "10 to 10", "0.500", "-5.0, 0 of 1", "", "0 of 0"],
        ["set", "digits", "90", "22 to 22", "0.500", "-5.0, 0 of 2", "0.480", "2 of 2"],
        ["set", "all", "", "10 to 22", "0.500", "-5.0, 0 of 3", "0.480", "2 of 2"],
    ]


@pytest.mark.slow
def test_a_campaign_whose_labels_are_weighted_is_played() -> None:
    (found,) = bias.played(bias.Case("digits", 30, after=(2,)), "set", 3, None)
    assert found["labels"] == 90
    assert set(found["trained"]) == set(bias.TRAINED)
    assert all(0.8 < each["accuracy"] <= 1 for each in found["trained"].values())
    assert found["trained"]["weight"] != found["trained"]["none"]
    assert 0 < found["at_least"] < found["trained"]["none"]["accuracy"]
    assert 20 <= found["drawn"] < 40
    assert 0 < found["apart"][0] < 1
    assert found["verdicts"]["weight"]["name"] == "in use, weighted"

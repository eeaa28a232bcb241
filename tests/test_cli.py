"""The command line as a person uses it: files in, files out, real processes."""

import csv
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import zarr
from click.testing import CliRunner, Result
from distributed import Client

from dal import Campaign
from dal.campaign import Annotators, Answer, Measuring
from dal.campaign.parts import pool_of
from dal.cli import main
from dal.pool import Pool
from dal.replay import TestSet, simulate
from dal.web import Listening, Options, make_server

N = 3_000


def dal(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)


def ok(*arguments: object) -> str:
    result = dal(*arguments)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A CSV as an enterprise exports it: ids with leading zeros, a text to look at, two numbers to learn from."""
    rng = np.random.default_rng(0)
    spam = rng.random(N) < 0.4
    frame = pd.DataFrame(
        {
            "key": [f"{row:06d}" for row in range(N)],
            "subject": [f"{'=win' if s else 'Re: plan,'} {row}" for row, s in enumerate(spam)],
            "links": rng.normal(2.0 * spam, 1),
            "capitals": rng.normal(1.5 * spam, 1),
        }
    )
    path = tmp_path_factory.mktemp("source") / "mails.csv"
    frame.to_csv(path, index=False)
    return path, {key: "spam" if s else "ham" for key, s in zip(frame["key"], spam, strict=True)}


@pytest.fixture
def pool(table: tuple[Path, dict[str, str]], tmp_path: Path) -> Path:
    ok("pool", "build", table[0], tmp_path / "pool.zarr", "--ids", "key", "--display", "subject")
    return tmp_path / "pool.zarr"


def test_people_are_let_in_and_out(pool: Path, tmp_path: Path) -> None:
    campaign = tmp_path / "campaign"
    ok("init", campaign, pool, "--classes", "ham,spam", "--overlap", 2, "--gold", 0.1)
    opened = Campaign.open(campaign)
    assert (opened.settings.labelling.overlap, opened.settings.labelling.gold) == (2, 0.1)
    token = ok("annotator", "add", campaign, "ann").strip().partition("/enter#")[2]
    ok("annotator", "add", campaign, "boss", "--manager")
    assert Annotators(opened).verify(token).name == "ann"
    assert "revoked" not in ok("annotator", "list", campaign)
    ok("annotator", "revoke", campaign, "ann")
    assert Annotators(opened).verify(token) is None
    listed = ok("annotator", "list", campaign)
    assert "ann: annotator since" in listed
    assert "boss: manager since" in listed
    assert listed.count("revoked") == 1
    refused = dal("annotator", "revoke", campaign, "ann")
    assert refused.exit_code == 1
    assert "no token" in refused.output


def test_gold_records_come_from_a_file_all_or_none(pool: Path, tmp_path: Path) -> None:
    campaign, file = tmp_path / "c", tmp_path / "gold.csv"
    ok("init", campaign, pool, "--classes", "ham,spam", "--batch-size", 10)
    file.write_text("record_id,label\n000007,spam\n000009,\n000011,ham\n")
    shown = ok("label", "gold", campaign, file)
    assert "2 gold records are new" in shown
    assert "None is served yet" in shown
    assert Campaign.open(campaign).answers.gold() == {7: 1, 11: 0}
    assert "0 gold records are new" in ok("label", "gold", campaign, file)
    for line, said in {
        "000012,eggs": "line 3: 000012: 'eggs' is no class",
        "x,ham": "line 3: x: the pool has no such record",
        "000007,ham": "'000007'",
    }.items():
        file.write_text(f"record_id,label\n000013,ham\n{line}\n")
        refused = dal("label", "gold", campaign, file)
        assert refused.exit_code == 1
        assert said in refused.output
    file.write_text("record_id,label,status\n000013,,skipped\n")
    assert "got 000013 skipped" in dal("label", "gold", campaign, file).output
    assert Campaign.open(campaign).answers.gold() == {7: 1, 11: 0}


def test_two_people_who_disagree_are_told(pool: Path, tmp_path: Path) -> None:
    ok(
        "init",
        tmp_path / "c",
        pool,
        "--classes",
        "ham,spam",
        "--overlap",
        2,
        "--batch-size",
        10,
        "--vote",
        "dawid_skene",
    )
    campaign = Campaign.open(tmp_path / "c")
    assert "No label is in doubt." in ok("label", "relabel", campaign.directory)
    batch = campaign.next_batch()
    for who, codes in (("ann", [0] * 5 + [1] * 5), ("bob", [0] * 4 + [1] * 6)):
        answers = zip(batch.rows.tolist(), batch.record_ids, codes, strict=True)
        campaign.answers.add((Answer(row, key, who, "submitted", code) for row, key, code in answers), source="test")
    shown = ok("status", campaign.directory)
    assert "agreement: 90% of the answers to 10 records with several are alike; Krippendorff's alpha 0.81" in shown
    assert "ann and bob: alike in 90% of 10, Cohen's kappa 0.80" in shown
    assert "annotator ann: 10 answers, 0% skipped; alike with others in 90% of 10" in shown
    (first, *_) = ok("label", "relabel", campaign.directory, "--records", 1).splitlines()
    assert first.startswith(f"{batch.record_ids[4]}: ")
    assert first.endswith("(ann: ham, bob: spam)")


def fill(path: Path, truth: dict[str, str]) -> None:
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row["label"] = truth[row["record_id"]]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


def test_the_walk_through_of_the_readme(
    pool: Path, table: tuple[Path, dict[str, str]], tmp_path: Path, cluster: Client
) -> None:
    scheduler = ["--scheduler", cluster.scheduler.address]
    campaign = tmp_path / "campaign"
    assert "3,000 records of 2 float32" in ok("pool", "info", pool)
    ok(
        "init",
        campaign,
        pool,
        "--classes",
        "ham,spam",
        "--batch-size",
        20,
        "--random-state",
        7,
        "--stop",
        "max_labels=60",
    )
    assert "no round yet" in ok("status", campaign)
    for number in (1, 2, 3):
        shown = ok("next", campaign, *scheduler)
        path = campaign / f"batch-{number:04d}.csv"
        assert f"Round {number}: 20 records to label" in shown
        assert str(path) in shown
        before = path.read_bytes()
        again = ok("next", campaign)
        assert f"Round {number} is open: 20 of 20 records are unanswered" in again
        assert path.read_bytes() == before
        header = path.read_text(encoding="utf-8-sig").splitlines()[0]
        assert header == "record_id,label,status,annotator,subject"
        fill(path, table[1])
        assert ok("label", "import", campaign, path, "--annotator", "ann").startswith("20 new, 0 changed")
        assert "imported before: nothing was changed" in ok("label", "import", campaign, path, "--annotator", "ann")
    shown = ok("next", campaign)
    assert "Stopped" in shown
    assert "60 of 60 labels" in shown
    final = ok("status", campaign)
    assert "60 labelled" in final
    assert "STOP: max_labels" in final
    ok("label", "export", campaign, tmp_path / "again.csv", "--round", 2)
    exported = pd.read_csv(tmp_path / "again.csv", dtype=str, encoding="utf-8-sig")
    assert exported["label"].tolist() == [table[1][key] for key in exported["record_id"]]


def test_a_batch_is_the_same_in_this_process_and_on_workers(
    pool: Path, table: tuple[Path, dict[str, str]], tmp_path: Path, cluster: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[int] = []
    monkeypatch.setattr("dal.compute.local.local_cluster", lambda n: started.append(n) or nullcontext(cluster))
    batches: dict[str, list[bytes]] = {}
    for name, options in (("none", ["--workers", 0]), ("two", ["--workers", 2]), ("chosen", [])):
        campaign = tmp_path / name
        ok("init", campaign, pool, "--classes", "ham,spam", "--batch-size", 15, "--random-state", 7)
        for number in (1, 2):
            shown = ok("next", campaign, *options)
            assert ("3,000 records" in shown and "in this process" in shown) == (name == "chosen")
            path = campaign / f"batch-{number:04d}.csv"
            batches.setdefault(name, []).append(path.read_bytes())
            fill(path, table[1])
            ok("label", "import", campaign, path, "--annotator", "ann")
    assert started == [2, 2]
    assert batches["none"] == batches["two"] == batches["chosen"]
    refused = dal("next", tmp_path / "none", "--workers", 2, "--scheduler", "tcp://127.0.0.1:9")
    assert refused.exit_code == 1
    assert "--workers" in refused.output


def test_an_import_names_the_lines_that_it_cannot_take(
    pool: Path, table: tuple[Path, dict[str, str]], tmp_path: Path, cluster: Client
) -> None:
    campaign = tmp_path / "campaign"
    ok("init", campaign, pool, "--classes", "ham,spam", "--batch-size", 5)
    ok("next", campaign, "--scheduler", cluster.scheduler.address)
    asked = [a.record_id for a in Campaign.open(campaign).rounds.batch(1)]
    volunteer = next(key for key in table[1] if key not in asked)
    lines = [
        "record_id,label,status,annotator",
        f"{asked[0]},ham,,",
        f"{asked[1]},eggs,,",
        "nobody,ham,,",
        f"{asked[2]},,skipped,",
        f"{volunteer},spam,,",
        f"{asked[3]},,,",
    ]
    (tmp_path / "answers.csv").write_text("\n".join(lines) + "\n")
    shown = ok("label", "import", campaign, tmp_path / "answers.csv")
    assert "3 new, 0 changed, 0 known already, 1 pending, 2 rejected" in shown
    assert "1 of them were never asked" in shown
    assert "line 3" in shown
    assert "eggs" in shown
    assert "line 4: nobody" in shown
    assert "3 waiting" in ok("status", campaign)


def test_chunks_of_zeros_that_are_not_stored_are_read_by_every_command(tmp_path: Path) -> None:
    """As Zarr and Dask write a sparse array; the choice is kept with the campaign."""
    X = np.zeros((600, 3), dtype=np.float32)
    X[:200] = np.random.default_rng(0).standard_normal((200, 3))
    codes = (X[:, 0] > 0).astype(int)
    zarr.create_array(tmp_path / "sparse.zarr", data=X, chunks=(100, 3))
    pool, campaign = tmp_path / "sparse.zarr", tmp_path / "c"
    np.save(tmp_path / "y.npy", codes)
    init = ("init", campaign, pool, "--classes", "a,b", "--batch-size", 10, "--stop-set", 0)
    compare = ("compare", pool, "--answers", tmp_path / "y.npy", "--seeds", 1, "--strategy", "margin", "--rounds", 2)
    fill = ("--missing-chunks", "fill")
    for refused in (dal("pool", "info", pool), dal(*init), dal(*compare, "--output", tmp_path / "e.html")):
        assert refused.exit_code == 1
        assert "4 of 6 chunks are not stored" in refused.output
        assert "--missing-chunks fill" in refused.output
    assert "4 of 6 chunks are not stored, and read as" in ok("pool", "info", pool, *fill)
    ok(*init, *fill)
    opened = Campaign.open(campaign)
    for _ in range(2):
        batch = opened.next_batch()
        opened.answers.add(
            (
                Answer(row, key, "ann", "submitted", int(codes[row]))
                for row, key in zip(batch.rows.tolist(), batch.record_ids, strict=True)
            ),
            source="test",
        )
    np.testing.assert_array_equal(pool_of(opened).read(0, 600), X)
    ok("status", campaign)
    ok("label", "export", campaign, tmp_path / "batch.csv")
    ok("report", campaign, "--output", tmp_path / "report.html")
    with make_server(opened, Listening("127.0.0.1", 0, None, None, None), Options("ann", show_suggestions=False)):
        pass
    kept = campaign / "campaign.toml"
    kept.write_text(kept.read_text().replace('missing_chunks = "fill"', 'missing_chunks = "refuse"'))
    assert 'missing_chunks = "fill" in campaign.toml' in dal("report", campaign, "--output", tmp_path / "r.html").output
    kept.write_text(kept.read_text().replace('missing_chunks = "refuse"', 'missing_chunks = "zero"'))
    assert "`missing_chunks` must be refuse or fill" in dal("status", campaign).output
    sparse = Pool.open(pool, missing_chunks="fill")
    made = Campaign.create(tmp_path / "other", sparse, ["a", "b"], batch_size=10, measuring=Measuring(stop_set=0))
    assert Campaign.open(made.directory).settings.missing_chunks == "fill"
    test = TestSet(X[:200], codes[:200])
    simulate(sparse, codes, test, ["a", "b"], strategy="margin", batch_size=10, rounds=2)


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["next", "nowhere"], "holds no campaign"),
        (["status", "nowhere"], "holds no campaign"),
        (["pool", "info", "nothing.zarr"], "nothing.zarr"),
        (["init", "c", "nothing.zarr", "--classes", "a,b"], "nothing.zarr"),
    ],
)
def test_errors_are_one_line_and_an_exit_code(
    command: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = dal(*command)
    assert result.exit_code == 1
    assert result.output.startswith("Error: ")
    assert says in result.output
    assert "Traceback" not in result.output


def test_odd_names_and_numbers_give_no_traceback(
    pool: Path, tmp_path: Path, cluster: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    campaign = tmp_path / "c"
    ok("init", campaign, pool, "--classes", "[/red],[bold]", "--batch-size", 5)
    assert "[/red], [bold]" in ok("next", campaign, "--scheduler", cluster.scheduler.address)
    result = dal("label", "export", campaign, tmp_path / "x.csv", "--round", 9)
    assert result.exit_code == 1
    assert "`--round` must be from 1 to 1, got 9" in result.output

    def nameless() -> str:
        raise OSError("no such user")

    monkeypatch.setattr("getpass.getuser", nameless)
    result = dal("label", "import", campaign, campaign / "batch-0001.csv")
    assert result.exit_code == 1
    assert "--annotator" in result.output


@pytest.mark.slow
def test_an_unreachable_scheduler_is_refused_before_anything_changes(pool: Path, tmp_path: Path) -> None:
    ok("init", tmp_path / "c", pool, "--classes", "ham,spam")
    result = dal("next", tmp_path / "c", "--scheduler", "tcp://127.0.0.1:9")
    assert result.exit_code == 75  # later it may be there: recipes try again
    assert "nobody answers at tcp://127.0.0.1:9" in result.output
    assert Campaign.open(tmp_path / "c").rounds.all() == []


@pytest.mark.slow
@pytest.mark.parametrize("own_workers", [False, True])
@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGINT])
def test_dal_next_ended_in_mid_work_gives_the_same_batch_when_run_again(
    ending: signal.Signals, own_workers: bool, pool: Path, tmp_path: Path, cluster: Client
) -> None:
    for name in ("undisturbed", "ended"):
        ok("init", tmp_path / name, pool, "--classes", "ham,spam", "--batch-size", 15, "--random-state", 3)
    ok("next", tmp_path / "undisturbed", "--scheduler", cluster.scheduler.address)
    command = [sys.executable, "-m", "dal", "next", str(tmp_path / "ended")]
    command += ["--workers", "2"] if own_workers else ["--scheduler", cluster.scheduler.address]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        wait_for(lambda: Campaign.open(tmp_path / "ended").rounds.all(), process)
        os.kill(process.pid, ending)
        shown, _ = process.communicate(timeout=60)
    finally:
        if ending == signal.SIGKILL and own_workers:
            os.killpg(process.pid, signal.SIGKILL)  # the workers of the killed coordinator
    assert "Traceback" not in shown
    ok("next", tmp_path / "ended", "--scheduler", cluster.scheduler.address)
    batches = [(tmp_path / name / "batch-0001.csv").read_bytes() for name in ("undisturbed", "ended")]
    assert batches[0] == batches[1]


def wait_for(condition: object, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        assert process.poll() is None, process.stdout.read() if process.stdout else ""
        time.sleep(0.005)  # polls another process's database


@pytest.mark.slow
def test_the_demo_is_the_same_for_the_same_seed_and_saves_a_page(tmp_path: Path) -> None:
    command = ("demo", "--rows", 4000, "--rounds", 3, "--batch-size", 10, "--random-state", 5)
    first = ok(*command, "--directory", tmp_path / "a")
    second = ok(*command, "--directory", tmp_path / "b")
    assert "scored in this process" in first

    def told(text: str) -> list[str]:
        return [line for line in text.splitlines() if "│" in line or line.startswith("The default strategy")]

    assert told(first) == told(second)
    page = (tmp_path / "a" / "report.html").read_text()
    assert "Active learning on handwritten digits" in page
    # An attribute is called http-equiv: only an address counts.
    assert not re.search(r"https?://", re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL))
    assert not re.search(r"<script[^>]*src=", page)
    pool = Pool.open(tmp_path / "a" / "digits-4000-5.zarr")
    assert pool.record_shape == (8, 8, 1)
    assert pool.fields == ("original",)


def test_commands_to_copy_hold_for_a_folder_whose_name_has_a_blank(pool: Path, tmp_path: Path) -> None:
    folder = tmp_path / "my campaign"
    said = ok("init", folder, pool, "--classes", "ham,spam")
    copied = [shlex.split(each) for each in re.findall(r"dal (?:next|serve|run) .*?my campaign'?", said)]
    assert copied == [["dal", verb, str(folder)] for verb in ("next", "serve", "run")]


def test_a_pool_that_was_moved_is_found_again_by_its_setting(pool: Path, tmp_path: Path) -> None:
    folder, moved = tmp_path / "campaign", tmp_path / "moved.zarr"
    ok("init", folder, pool, "--classes", "ham,spam")
    pool.rename(moved)
    refused = dal("next", folder)
    assert refused.exit_code == 1
    assert "campaign.toml" in refused.output
    toml = folder / "campaign.toml"
    toml.write_text(toml.read_text().replace(str(pool), str(moved)))
    assert ok("label", "export", folder, tmp_path / "labels.csv", "--labels")


def test_classes_with_commas_and_from_a_file(pool: Path, tmp_path: Path) -> None:
    ok("init", tmp_path / "a", pool, "--class", "ham, eggs", "--class", "-1", "--class", "cafe\u0301")
    named = tmp_path / "classes.txt"
    named.write_bytes("\ufeffham, eggs\r\n-1\r\n\r\ncaf\u00e9\r\n".encode())
    ok("init", tmp_path / "b", pool, "--classes-from", named)
    empty = tmp_path / "empty.txt"
    empty.write_bytes(b"\r\n")
    assert 'labels: "ham, eggs": 0, -1: 0, ' in ok("status", tmp_path / "a")
    for name in "ab":
        assert Campaign.open(tmp_path / name).settings.classes == ("ham, eggs", "-1", "caf\u00e9")
    for options, said in (
        ((), "are missing"),
        (("--classes", "a,b", "--class", "c"), "--classes and --class"),
        (("--class", "cafe\u0301", "--class", "caf\u00e9"), "more than once"),
        (("--class", "a"), "at least two"),
        (("--classes-from", empty), "empty.txt must hold a class"),
    ):
        refused = dal("init", tmp_path / "c", pool, *options)
        assert refused.exit_code != 0
        assert said in refused.output
    assert not (tmp_path / "c").exists()


def test_an_import_of_which_everything_is_refused_fails(pool: Path, tmp_path: Path) -> None:
    campaign, path = tmp_path / "campaign", tmp_path / "x.csv"
    ok("init", campaign, pool, "--classes", "ham,spam")
    for content, code in (
        ("record_id,label\n000001,Ham\nunknown,spam\n", 1),
        ("record_id,label\n000001,Ham\n000001,\n", 1),
        ("record_id,label\n000001,ham\n000002,eggs\n", 0),
        ("record_id,label\n000002,eggs\n000001,ham\n", 0),  # known already
        ("record_id,label\n000002,eggs\n", 1),
        ("record_id,label\n000002,\n", 0),
        ("record_id,label\n", 0),
    ):
        path.write_text(content)
        for _ in range(2):  # a second time, too: nothing was imported before
            result = dal("label", "import", campaign, path, "--annotator", "ann")
            assert result.exit_code == code, (content, result.output)
    path.write_text("record_id,label\n000003,eggs\n")
    assert dal("label", "gold", campaign, path).exit_code == 1


def test_exports_are_what_their_ending_says(pool: Path, tmp_path: Path) -> None:
    campaign, path = tmp_path / "campaign", tmp_path / "x.csv"
    ok("init", campaign, pool, "--classes", "ham,spam")
    path.write_text("record_id,label\n000001,ham\n000002,spam\n")
    ok("label", "import", campaign, path, "--annotator", "=ann")
    for name in ("labels.csv", "labels.tsv", "labels.jsonl", "labels.parquet", "labels.PQ"):
        assert "2 labels" in ok("label", "export", campaign, tmp_path / name, "--labels")
    expected = [("000001", "ham", ["=ann"]), ("000002", "spam", ["=ann"])]
    text = {"record_id": str, "annotators": str}
    for name, separator in (("labels.csv", ","), ("labels.tsv", "\t")):
        frame = pd.read_csv(tmp_path / name, dtype=text, sep=separator)
        frame["annotators"] = frame["annotators"].map(json.loads)
        assert list(zip(frame["record_id"], frame["label"], frame["annotators"], strict=True)) == expected
    lines = [json.loads(line) for line in (tmp_path / "labels.jsonl").read_text().splitlines()]
    assert [(each["record_id"], each["label"], each["annotators"]) for each in lines] == expected
    assert lines[0]["answers"][0]["annotator"] == "=ann"
    for name in ("labels.parquet", "labels.PQ"):
        frame = pd.read_parquet(tmp_path / name)
        assert list(zip(frame["record_id"], frame["label"], map(list, frame["annotators"]), strict=True)) == expected
    for command in (
        ("label", "export", campaign, tmp_path / "labels.xlsx", "--labels"),
        ("label", "export", campaign, tmp_path / "labels", "--labels"),
        ("label", "export", campaign, tmp_path / "labels.json", "--labels", "--format", "prodigy"),
        ("report", campaign, "--output", tmp_path / "report.pdf"),
    ):
        refused = dal(*command)
        assert refused.exit_code == 1, refused.output
        assert "must end in" in refused.output
    assert not list(tmp_path.glob("*.xlsx")) + list(tmp_path.glob("*.pdf")) + list(tmp_path.glob("labels.json"))


@pytest.mark.skipif(os.name == "nt", reason="names of files are texts there")
def test_a_name_that_is_no_text_is_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", np.zeros((3, 2), np.float32))
    result = CliRunner().invoke(main, ["pool", "build", "x.npy", os.fsdecode(b"caf\xe9.zarr")])
    assert "caf\\udce9.zarr: 3 records" in result.output, result.output
    assert result.exit_code == 0

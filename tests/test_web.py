"""The pages' server: every door, every state, and records as they are."""

import codecs
import csv
import io
import json
import shutil
import ssl
import subprocess
import sys
import threading
import zipfile
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx2 as httpx
import numpy as np
import pytest
from click.testing import CliRunner
from fastapi.testclient import TestClient
from PIL import Image
from starlette.websockets import WebSocketDisconnect

from dal import Campaign
from dal.campaign import Annotators, Given, Queue, Search
from dal.campaign.control import Control
from dal.campaign.queue import Outcome
from dal.campaign.view import View, status_of
from dal.cli import main
from dal.errors import CampaignError, LabelError, SettingsError
from dal.evidence.agreement import agreement
from dal.figures import COLORS, color_of
from dal.loop.campaign import Batch, Stopped
from dal.map import map_of
from dal.pool import Pool
from dal.web import Limits, Listening, Options, create_app
from dal.web.doors import BODY_BYTES, CHART_POLICY, STRICT_POLICY, Rates
from dal.web.overview import time_left
from dal.web.records import LONGEST_TEXT, Records, as_png
from tests.conftest import missing_service
from tests.servers import running

N = 400
BATCH = 12
LOCAL = {"host": "127.0.0.1"}
SAME = {"sec-fetch-site": "same-origin"}
EVIL = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> tuple[Pool, np.ndarray]:
    rng = np.random.default_rng(3)
    codes = rng.integers(0, 2, N)
    X = rng.normal(2.0 * codes[:, None], 1.0, (N, 4)).astype(np.float32)
    shown = {
        "text": [f"{EVIL} {row}" if row % 2 else f"=plain {row}" for row in range(N)],
        "big": np.arange(N) + 2**60,
        "share": np.where(np.arange(N) % 3, rng.random(N), np.nan),
        "known": np.arange(N) % 2 == 0,
    }
    where = tmp_path_factory.mktemp("web") / "pool.zarr"
    return Pool.build(X, where, ids=[f"mail {row}" for row in range(N)], display=shown), codes


@pytest.fixture(scope="module")
def opened(truth: tuple[Pool, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A campaign whose first batch is open, to be copied."""
    directory = tmp_path_factory.mktemp("web") / "campaign"
    Campaign.create(
        directory, truth[0], ["ham", "spam"], batch_size=BATCH, random_state=5, stop=["max_labels=24"]
    ).next_batch()
    return directory


@pytest.fixture
def campaign(opened: Path, tmp_path: Path) -> Campaign:
    shutil.copytree(opened, tmp_path / "mails")
    return Campaign.open(tmp_path / "mails")


def client(campaign: Campaign, limits: Limits | None = None, **options: object) -> TestClient:
    app = create_app(campaign, Options(user="ann", **options), limits or Limits())
    return TestClient(app, base_url="http://127.0.0.1:8000", headers=SAME)


def as_person(campaign: Campaign, name: str, role: str = "annotator", limits: Limits | None = None) -> TestClient:
    token = Annotators(campaign).add(name, role)
    person = client(campaign, limits)
    assert person.post("/enter", json={"token": token}).status_code == 200
    return person


def took(person: TestClient, n: int = BATCH) -> list[dict[str, Any]]:
    answer = person.post("/api/answers", json={"lease": n})
    assert answer.status_code == 200, answer.text
    return answer.json()["records"]


def said(row: int, label: int | None = 0, **more: object) -> dict[str, Any]:
    status = "skipped" if label is None else "submitted"
    return {"event_id": str(uuid4()), "row": row, "status": status, "label": label, **more}


def gave(person: TestClient, *answers: dict[str, Any]) -> list[dict[str, Any]]:
    answer = person.post("/api/answers", json={"answers": answers})
    assert answer.status_code == 200, answer.text
    return answer.json()["outcomes"]


# -- labelling -------------------------------------------------------------------------------------------------------


def test_records_are_served_as_json_that_javascript_keeps(campaign: Campaign, truth: tuple[Pool, np.ndarray]) -> None:
    records = took(client(campaign))
    asked = {each.row: each.record_id for each in campaign.rounds.batch(1)}
    assert {each["row"]: each["record_id"] for each in records} == asked
    for record in records:
        row = record["row"]
        values = {field["name"]: field["value"] for field in record["fields"]}
        share = truth[0].display([row])["share"][0]
        assert values == {
            "text": f"{EVIL} {row}" if row % 2 else f"=plain {row}",
            "big": str(row + 2**60),
            "share": None if row % 3 == 0 else share,
            "known": row % 2 == 0,
        }
        assert (record["image"], record["error"], record["suggestion"]) == (None, None, None)


def test_an_answer_counts_once_however_often_it_is_sent(campaign: Campaign) -> None:
    ann = client(campaign)
    row = took(ann)[0]["row"]
    answer = said(row, 1, lead_time=1.5, answered_at="2026-01-02T03:04:05+01:00")
    assert [each["outcome"] for each in gave(ann, answer, answer)] == ["new", "repeated"]
    assert [each["outcome"] for each in gave(ann, answer)] == ["repeated"]
    assert gave(ann, said(row, 0))[0]["outcome"] == "changed"
    [past] = ann.get("/api/history").json()["answers"]
    assert (past["row"], past["label"], past["status"]) == (row, 0, "submitted")
    assert campaign.answers.latest().labels.tolist() == [0]


def test_one_bad_answer_does_not_hold_up_the_others(campaign: Campaign) -> None:
    ann = client(campaign)
    row = took(ann)[0]["row"]
    never = next(each for each in range(N) if each not in campaign.rounds.asked_rows())
    outcomes = gave(ann, said(never), said(row, 7), said(row, None, skip_reason="unclear"))
    assert [each["outcome"] for each in outcomes] == ["refused", "refused", "new"]
    assert "never served" in outcomes[0]["reason"]
    assert "class code 7" in outcomes[1]["reason"]


def test_answers_that_wait_for_one_another_are_written_together_each_to_its_own(
    campaign: Campaign, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits: list[int] = []
    together = Queue.answer_together
    in_line: list[object] = []
    all_in_line = threading.Event()

    class Line(deque[object]):
        def append(self, waiting: object) -> None:
            super().append(waiting)
            in_line.append(waiting)
            if len(in_line) == 8:
                all_in_line.set()

    def counted(queue: Queue, given: list[tuple[str, list[Given]]]) -> list[list[Outcome]]:
        commits.append(len(given))
        assert all_in_line.wait(30)  # a slow disk: the others come meanwhile
        return together(queue, given)

    monkeypatch.setattr(Queue, "answer_together", counted)
    monkeypatch.setattr("dal.web.app.deque", Line)
    ann = client(campaign)
    rows = [each["row"] for each in took(ann)][:8]
    with ThreadPoolExecutor(len(rows)) as pool:
        told = list(pool.map(lambda row: gave(ann, said(row, row % 2)), rows))
    assert [[each["outcome"] for each in outcomes] for outcomes in told] == [["new"]] * len(rows)
    assert sum(commits) == len(rows)
    assert len(commits) <= 2
    known = campaign.answers.latest()
    assert dict(zip(known.rows.tolist(), known.labels.tolist(), strict=True)) == {row: row % 2 for row in rows}


@pytest.mark.parametrize("label", [True, "1", 1.0])
def test_what_may_mean_another_class_is_refused(campaign: Campaign, label: object) -> None:
    ann = client(campaign)
    [record] = took(ann, 1)
    answer = said(record["row"]) | {"label": label}
    assert ann.post("/api/answers", json={"answers": [answer]}).status_code == 422
    assert len(list(campaign.answers.log())) == 0


def test_an_undone_answer_comes_back(campaign: Campaign) -> None:
    ann = client(campaign)
    first, second = (each["row"] for each in took(ann)[:2])
    answers = [said(first), said(second)]
    gave(ann, *answers)
    for answer in reversed(answers):
        undone = ann.post("/api/undo", json={"event_id": answer["event_id"], "new_event_id": str(uuid4())})
        assert undone.json()["outcome"]["outcome"] == "changed"
    assert ann.get("/api/history").json()["answers"] == []
    assert {first, second} <= {each["row"] for each in took(ann)}


def test_two_annotators_never_hold_the_same_record(campaign: Campaign) -> None:
    ann, bob = as_person(campaign, "ann"), as_person(campaign, "bob")
    hers, his = took(ann, 5), took(bob, 50)
    assert len(hers) == 5
    assert len(his) == BATCH - 5
    assert not {each["row"] for each in hers} & {each["row"] for each in his}
    ann.post("/api/release", json={"rows": [each["row"] for each in hers]})
    assert len(took(bob, 50)) == BATCH
    assert ann.post("/api/renew", json={"rows": [hers[0]["row"]]}).json() == {"rows": []}


def test_suggestions_are_hidden_unless_wanted(campaign: Campaign, truth: tuple[Pool, np.ndarray]) -> None:
    rows = np.array([each.row for each in campaign.rounds.batch(1)])
    campaign.label([each.record_id for each in campaign.rounds.batch(1)], truth[1][rows])
    campaign.next_batch()
    assert all(each["suggestion"] is None for each in took(client(campaign)))
    wanted = took(client(campaign, show_suggestions=True))
    assert {each["row"]: each["suggestion"][0] for each in wanted} == {
        a.row: a.predicted for a in campaign.rounds.batch(2)
    }


def test_the_page_shows_classes_in_the_colors_of_the_figures(truth: tuple[Pool, np.ndarray], tmp_path: Path) -> None:
    classes = [f"class {code}" for code in range(20)]
    state = client(Campaign.create(tmp_path / "c", truth[0], classes, batch_size=BATCH)).get("/api/state").json()
    assert state["colors"] == [color_of(code) for code in range(20)]
    scripts = [path.read_text() for path in (Path(__file__).parents[1] / "dal/web/static").glob("*.js")]
    assert not any(color.lower() in script.lower() for color in COLORS for script in scripts)


def test_guidelines_are_a_file_beside_the_campaign(campaign: Campaign) -> None:
    ann = client(campaign)
    assert ann.get("/api/state").json()["guidelines"] is False
    assert ann.get("/api/guidelines").status_code == 404
    (campaign.directory / "guidelines.md").write_bytes(f"# {EVIL} ü".encode() + b"\xff")
    assert ann.get("/api/state").json()["guidelines"] is True
    assert ann.get("/api/guidelines").json() == {"text": f"# {EVIL} ü\ufffd"}


def test_an_earlier_record_can_be_seen_again_and_others_of_the_pool_cannot(campaign: Campaign) -> None:
    ann = client(campaign)
    asked = campaign.rounds.batch(1)[3]
    assert ann.get(f"/api/records/{asked.row}").json()["record_id"] == asked.record_id
    never = next(row for row in range(N) if row not in campaign.rounds.asked_rows())
    for path in (f"/api/records/{never}", f"/media/{never}/image", f"/api/records/{2**53 - 1}"):
        assert ann.get(path).status_code == 404
    assert ann.get("/api/records/-1").status_code == 422


# -- phases ----------------------------------------------------------------------------------------------------------


def test_the_next_batch_looks_for_more_like_marked_records(truth: tuple[Pool, np.ndarray], tmp_path: Path) -> None:
    campaign = Campaign.create(tmp_path / "c", truth[0], ["ham", "spam"], batch_size=BATCH)
    campaign.next_batch()
    ann = client(campaign)
    records = took(ann)

    def marked(row: int, *, wanted: bool = True) -> dict[str, Any]:
        return ann.post("/api/examples", json={"row": row, "wanted": wanted}).json()

    rows = [each["row"] for each in records]
    assert {each["example"] for each in records} == {False}
    assert marked(rows[0]) == marked(rows[0]) == {"wanted": True, "examples": 1}
    assert marked(rows[1]) == marked(rows[1]) | {"examples": 2}
    assert marked(rows[1], wanted=False) == {"wanted": False, "examples": 1}
    assert marked(rows[2])["examples"] == 2
    assert [ann.get(f"/api/records/{row}").json()["example"] for row in rows[:3]] == [True, False, True]
    assert [each["example"] for each in took(ann) if each["row"] in rows[:3]].count(True) == 2
    never = next(row for row in range(N) if row not in rows)
    assert "never asked" in marked(never)["detail"]
    assert ann.get("/api/state").json()["examples"] == 2
    # A search of another kind leaves the marks to the next round, which uses them up.
    for where, kinds in (("record_id LIKE 'mail 1%'", {"where"}), (None, {"strategy", "explore", "like"})):
        number = campaign.rounds.last.number
        batch = campaign.rounds.batch(number)
        campaign.label([each.record_id for each in batch], truth[1][[each.row for each in batch]])
        campaign.next_batch(where=where)
        chosen = [each.chosen_by for each in campaign.rounds.batch(number + 1)]
        assert set(chosen) - {"explore"} == kinds - {"explore"}
    assert chosen.count("like") == 4
    both = tuple(sorted([rows[0], rows[2]]))
    assert campaign.rounds.last.search == Search(rows=both, share=0.3, marked=both)
    assert ann.get("/api/state").json()["examples"] == 0
    assert not ann.get(f"/api/records/{rows[0]}").json()["example"]


def test_the_state_follows_the_campaign(truth: tuple[Pool, np.ndarray], tmp_path: Path) -> None:
    pool, codes = truth
    campaign = Campaign.create(
        tmp_path / "c", pool, ["ham", "spam"], batch_size=BATCH, random_state=5, stop=["max_labels=24"]
    )
    ann = client(campaign, Limits(standing_seconds=0.0))
    seen = []

    def note() -> dict[str, Any]:
        state: dict[str, Any] = ann.get("/api/state").json()
        seen.append((state["phase"], state["step"], state["round"], state["answered"], state["pending"]))
        return state

    note()
    settings = campaign.settings
    frozen = campaign.rounds.freeze(
        pool_fingerprint=pool.fingerprint, n_rows=N, k=BATCH, explore=0.05, seed=5, strategy=settings.strategy
    )
    note()
    campaign.rounds.withdraw(frozen)
    campaign.next_batch()
    note()
    gave(ann, *(said(record["row"], int(codes[record["row"]])) for record in took(ann)))
    note()
    campaign.next_batch()
    gave(ann, *(said(record["row"], int(codes[record["row"]])) for record in took(ann)))
    assert isinstance(campaign.next_batch(), Stopped)
    assert note()["reasons"] == ["24 of 24 labels are known."]
    assert seen == [
        ("waiting", "none", 0, 0, 0),
        ("training", "frozen", 1, 0, 0),
        ("open", "open", 1, 0, BATCH),
        ("between", "open", 1, BATCH, 0),
        ("stopped", "closed", 2, BATCH, 0),
    ]
    assert ann.get("/api/state").json()["usual_pause"] > 0


def test_a_manager_pauses_closes_stops_and_goes_on(campaign: Campaign) -> None:
    ann = client(campaign)
    rows = [each["row"] for each in took(ann)]

    def tell(act: str) -> str:
        told = ann.post("/api/actions", json={"act": act})
        assert told.status_code == 200, told.text
        phase: str = told.json()["phase"]
        return phase

    assert tell("pause") == "paused"
    assert took(ann) == []
    assert ann.post("/api/renew", json={"rows": rows}).json() == {"rows": []}
    # An answer that was under way is taken.
    assert gave(ann, said(rows[0]))[0]["outcome"] == "new"
    assert tell("resume") == "open"
    assert len(took(ann)) == BATCH - 1
    assert tell("close") == "between"
    late = gave(ann, said(rows[1], 1))[0]
    assert (late["outcome"], late["late"]) == ("new", True)
    assert ann.post("/api/actions", json={"act": "close"}).status_code == 400
    assert tell("stop") == "stopped"
    stopped = campaign.next_batch()
    assert isinstance(stopped, Stopped)
    assert stopped.verdicts[0].reason.startswith("ann stopped the campaign")
    assert tell("resume") == "between"
    assert [each.act for each in Control(campaign).history()] == ["pause", "resume", "close", "stop", "resume"]
    assert not isinstance(campaign.next_batch(), Stopped)


def test_the_command_line_steers_too(campaign: Campaign, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("getpass.getuser", lambda: "boss")
    for act in ("pause", "resume", "close", "stop"):
        assert CliRunner().invoke(main, [act, str(campaign.directory)]).exit_code == 0
    assert [(each.act, each.person) for each in Control(campaign).history()] == [
        ("pause", "boss"),
        ("resume", "boss"),
        ("close", "boss"),
        ("stop", "boss"),
    ]
    again = CliRunner().invoke(main, ["close", str(campaign.directory)])
    assert again.exit_code == 1
    assert "no round is open" in again.output


# -- images ----------------------------------------------------------------------------------------------------------


def read(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_whole_numbers_are_drawn_as_they_are(channels: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (7, 5, channels)).astype(np.float32)
    drawn = read(as_png(pixels, whole=True))
    assert np.array_equal(drawn, pixels[:, :, 0] if channels == 1 else pixels)


def test_floats_keep_the_scale_of_0_to_1_and_are_stretched_beyond_it() -> None:
    part = np.array([[[0.0], [0.5]], [[0.25], [0.75]]], np.float32)
    assert read(as_png(part, whole=False)).tolist() == [[0, 128], [64, 191]]
    wide = np.array([[[-2.0], [0.0]], [[2.0], [14.0]]], np.float32)
    assert read(as_png(wide, whole=False)).tolist() == [[0, 32], [64, 255]]
    assert read(as_png(np.full((2, 2, 1), 7, np.float32), whole=False)).tolist() == [[0, 0], [0, 0]]


def test_images_are_served_and_one_that_cannot_be_shown_says_so(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (60, 6, 5, 3)).astype(np.uint8)
    pool = Pool.build(pixels, tmp_path / "pool.zarr")
    campaign = Campaign.create(tmp_path / "c", pool, ["cat", "dog"], batch_size=4)
    campaign.next_batch()
    ann = client(campaign)
    for record in took(ann):
        answer = ann.get(f"/{record['image']}")
        assert answer.headers["content-type"] == "image/png"
        assert np.array_equal(read(answer.content), pixels[record["row"]])
    records = Records(Pool.build(rng.random((3, 4, 4, 2), np.float32), tmp_path / "odd.zarr"))
    assert records.contents([2])[0].error == "images must have 1, 3 or 4 channels, got 2."
    nan = Records(Pool.build(np.full((1, 2, 2, 1), np.nan, np.float32), tmp_path / "nan.zarr"))
    with pytest.raises(Exception, match="NaN or infinity"):
        nan.image(0)


def test_a_record_that_cannot_be_read_spares_the_others(tmp_path: Path) -> None:
    n = 40_000
    texts = [f"text {row}" for row in range(n)]
    pool = Pool.build(np.zeros((n, 1), np.float32), tmp_path / "pool.zarr", display={"text": texts})
    files = sorted(path for path in (tmp_path / "pool.zarr" / "fields" / "text").rglob("*") if path.is_file())
    chunks = [path for path in files if path.name != "zarr.json"]
    assert len(chunks) > 1
    lost = chunks[-1].read_bytes()
    chunks[-1].unlink()
    records = Records(Pool.open(pool.path))
    first, last, again = records.contents([0, n - 1, n - 1])
    assert first.fields[0].value == "text 0"
    assert last.fields == again.fields == []
    assert last.error is not None
    chunks[-1].write_bytes(lost)
    assert records.contents([n - 1])[0].fields[0].value == f"text {n - 1}"


def test_a_record_with_nothing_to_show_shows_its_features(tmp_path: Path) -> None:
    pool = Pool.build(np.arange(80, dtype=np.float32).reshape(2, 40), tmp_path / "pool.zarr")
    content = Records(pool).contents([1])[0]
    assert [each.value for each in content.fields] == [float(40 + at) for at in range(32)]


def test_a_long_text_is_cut_and_says_how_long_it_is(tmp_path: Path) -> None:
    text = "x" * (LONGEST_TEXT + 5)
    pool = Pool.build(np.zeros((1, 1), np.float32), tmp_path / "pool.zarr", display={"text": [text]})
    value = Records(pool).contents([0])[0].fields[0].value
    assert isinstance(value, str)
    assert value == f"{text[:LONGEST_TEXT]} … ({LONGEST_TEXT + 5:,} characters in all)"


# -- doors -----------------------------------------------------------------------------------------------------------


def test_it_listens_to_this_machine_and_refuses_the_world_without_tokens(campaign: Campaign) -> None:
    assert Listening().host == "127.0.0.1"
    for host in ("0.0.0.0", "::", "192.0.2.7", "example.org"):
        with pytest.raises(SettingsError, match="dal annotator add"):
            Listening(host=host).check(campaign)
    Annotators(campaign).add("ann")
    Listening(host="0.0.0.0").check(campaign)
    with pytest.raises(SettingsError, match="`tls_key`"):
        Listening(tls_key=Path("key.pem")).check(campaign)
    result = CliRunner().invoke(main, ["serve", str(campaign.directory), "--host", "192.0.2.7", "--port", "0"])
    assert result.exit_code == 1
    assert "must be free to listen on" in result.output


def test_a_link_becomes_a_strict_cookie(campaign: Campaign) -> None:
    shown = CliRunner().invoke(
        main, ["annotator", "add", str(campaign.directory), "ann", "--url", "https://x.org/lab/"]
    )
    link = shown.output.splitlines()[-1]
    address, token = link.split("#")
    assert address == "https://x.org/lab/enter"
    ann = client(campaign)
    assert ann.get("/api/state").status_code == 401
    answer = ann.post("/enter", json={"token": token})
    assert answer.json() == {"name": "ann", "role": "annotator", "session": True}
    cookie = answer.headers["set-cookie"]
    parts = [part.strip().lower() for part in cookie.split(";")]
    assert {"httponly", "samesite=strict"} <= set(parts)
    # With a path of its own, the cookie would miss the prefix that a proxy put before it, or be sent beyond it.
    assert not any(part.startswith(("path", "domain", "secure")) for part in parts)
    assert ann.get("/api/state").json()["me"] == {"name": "ann", "role": "annotator", "session": True}
    assert token not in cookie, "a logout must end what the cookie holds"
    assert f"max-age={7 * 24 * 3600}" in parts
    assert token not in (campaign.directory / "campaign.db").read_bytes().decode("latin1")
    safe = TestClient(create_app(campaign, Options("x")), base_url="https://127.0.0.1", headers=SAME)
    assert "; Secure" in safe.post("/enter", json={"token": token}).headers["set-cookie"]
    program = client(campaign)
    assert program.get("/api/state", headers={"authorization": f"Bearer {token}"}).status_code == 200


def test_a_token_that_is_wrong_or_revoked_lets_nobody_in(campaign: Campaign) -> None:
    ann = as_person(campaign, "ann", limits=Limits(account_seconds=0.0))
    assert ann.get("/api/state").status_code == 200
    assert client(campaign).post("/enter", json={"token": "guess"}).status_code == 401
    Annotators(campaign).revoke("ann")
    assert ann.get("/api/state").status_code == 401
    # The last token was revoked: that does not open the doors.
    assert client(campaign).get("/api/state").status_code == 401


def test_managers_manage_and_annotators_do_not(campaign: Campaign) -> None:
    ann, boss = as_person(campaign, "ann"), as_person(campaign, "boss", "manager")
    for path in ("/api/campaign", "/api/figures/balance", "/export.csv", "/export.jsonl"):
        assert ann.get(path).status_code == 403
        assert boss.get(path).status_code == 200
    assert ann.post("/api/actions", json={"act": "stop"}).status_code == 403
    assert Control(campaign).history() == []


def writes(campaign: Campaign) -> list[str]:
    schema = create_app(campaign, Options("x")).openapi()
    return [path for path, methods in schema["paths"].items() if "post" in methods]


@pytest.mark.parametrize(
    "headers",
    [
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"sec-fetch-site": "none"},
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:8001"},
        {},
    ],
)
def test_every_write_is_refused_from_elsewhere(campaign: Campaign, headers: dict[str, str]) -> None:
    paths = writes(campaign)
    assert len(paths) >= 6
    stranger = TestClient(create_app(campaign, Options("x")), base_url="http://127.0.0.1:8000")
    for path in paths:
        answer = stranger.post(path, json={}, headers=headers)
        assert answer.status_code == 403, path
        assert "own pages" in answer.json()["detail"]


@pytest.mark.parametrize("headers", [SAME, {"origin": "http://127.0.0.1:8000"}, {"authorization": "Bearer any"}])
def test_writes_of_its_own_pages_are_let_through(campaign: Campaign, headers: dict[str, str]) -> None:
    own = TestClient(create_app(campaign, Options("x")), base_url="http://127.0.0.1:8000")
    assert own.post("/api/answers", json={}, headers=headers).status_code == 200


def test_a_form_of_another_site_cannot_write(campaign: Campaign) -> None:
    ann = client(campaign)
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        answer = ann.post("/api/actions", content='{"act": "stop"}', headers={"content-type": kind})
        assert answer.status_code == 415
    assert Control(campaign).history() == []


def test_without_tokens_another_name_for_this_machine_is_refused(campaign: Campaign) -> None:
    for name, status in (("127.0.0.1:1", 200), ("localhost", 200), ("[::1]:80", 200), ("evil.example", 403), ("", 403)):
        assert client(campaign).get("/api/state", headers={"host": name}).status_code == status, name
    ann = as_person(campaign, "ann")
    assert ann.get("/api/state", headers={"host": "label.example.org"}).status_code == 200


def test_pages_carry_a_policy_that_lets_nothing_in(campaign: Campaign) -> None:
    ann = client(campaign)
    for path in ("/", "/enter", "/static/label.js", "/api/state", "/nothing", "/openapi.json"):
        headers = ann.get(path).headers
        assert headers["content-security-policy"] == STRICT_POLICY
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert "server" not in headers
    assert "unsafe" not in STRICT_POLICY
    charts = ann.get("/campaign").headers["content-security-policy"]
    assert charts == CHART_POLICY
    assert "script-src 'self';" in charts
    assert "unsafe-eval" not in charts


def test_the_pages_fetch_nothing_from_elsewhere_and_nothing_absolute(campaign: Campaign) -> None:
    ann = client(campaign)
    for path in ("/", "/enter", "/campaign"):
        page = ann.get(path).text
        assert "//" not in page.replace("<!doctype", "")
        assert 'href="/' not in page
        assert 'src="/' not in page
        assert "<script>" not in page
        assert " style=" not in page
    for script in ("label", "work", "campaign", "api", "enter", "record"):
        text = ann.get(f"/static/{script}.js").text
        assert "innerHTML" not in text
        assert 'fetch("/' not in text


def test_documentation_that_loads_from_elsewhere_is_not_served(campaign: Campaign) -> None:
    ann = client(campaign)
    assert ann.get("/docs").status_code == ann.get("/redoc").status_code == 404
    assert ann.get("/openapi.json").json()["openapi"].startswith("3.")


def test_files_beside_the_pages_are_not_served(campaign: Campaign) -> None:
    ann = client(campaign)
    for path in ("/static/../app.py", "/static/%2e%2e/app.py", "/static/..%2fapp.py", "/bokeh/../../core/serve.py"):
        assert ann.get(path).status_code == 404


def test_a_body_that_is_too_large_is_refused(campaign: Campaign) -> None:
    ann = client(campaign)
    kind = {"content-type": "application/json"}
    assert ann.post("/api/answers", content=b" " * (BODY_BYTES + 1), headers=kind).status_code == 413

    def endless() -> Iterator[bytes]:
        for _ in range(BODY_BYTES // 1000 + 2):
            yield b" " * 1000

    assert ann.post("/api/answers", content=endless(), headers=kind).status_code == 413
    many = [said(1) for _ in range(101)]
    assert ann.post("/api/answers", json={"answers": many}).status_code == 422
    assert ann.post("/api/answers", json={"lease": 51}).status_code == 422
    assert ann.post("/api/answers", json={"answers": [said(1, 0, skip_reason="x" * 201)]}).status_code == 422
    assert ann.post("/api/answers", json={"lease": 1, "extra": 1}).status_code == 422


def test_rates_are_limited(campaign: Campaign) -> None:
    rates = Rates(per_second=2, burst=3)
    assert [rates.excess("a", 0.0) for _ in range(4)] == [None, None, None, 0.5]
    assert rates.excess("b", 0.0) is None
    assert rates.excess("a", 0.25) == 0.25
    assert rates.excess("a", 0.5) is None
    assert [rates.excess("a", 99.0) for _ in range(4)] == [None, None, None, 0.5]
    Annotators(campaign).add("ann")
    guesser = client(campaign)
    answers = [guesser.post("/enter", json={"token": f"guess {at}"}).status_code for at in range(25)]
    assert answers[:20] == [401] * 20
    assert set(answers[20:]) == {429}


def test_a_flood_of_requests_is_told_to_wait(campaign: Campaign) -> None:
    app = create_app(campaign, Options("ann"), Limits(address_rate=1.0, address_burst=20))
    ann = TestClient(app, base_url="http://127.0.0.1:8000")
    codes = [ann.get("/static/dom.js").status_code for _ in range(24)]
    assert codes[:20] == [200] * 20
    assert codes[-1] == 429


def test_there_are_no_websockets(campaign: Campaign) -> None:
    with pytest.raises(WebSocketDisconnect) as ended, client(campaign).websocket_connect("/api/state"):
        pass
    assert ended.value.code == 1008


def test_headers_of_a_proxy_are_believed_only_when_told_so(campaign: Campaign) -> None:
    token = Annotators(campaign).add("ann")
    forwarded = SAME | {"x-forwarded-proto": "https", "x-forwarded-for": "192.0.2.9"}
    for trusted, secure in ((None, False), ("127.0.0.1", True), ("192.0.2.1", False)):
        with running(campaign, trusted_proxy=trusted) as url:
            answer = httpx.post(f"{url}enter", json={"token": token}, headers=forwarded)
            assert answer.status_code == 200
            assert ("; Secure" in answer.headers["set-cookie"]) == secure
            assert "server" not in answer.headers


def test_tls_files_are_taken(campaign: Campaign, tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        missing_service("openssl")
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    wanted = ["-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=x", "-addext"]
    command = ["openssl", "req", *wanted, "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    with running(campaign, tls_certificate=certificate, tls_key=key) as url:
        assert url.startswith("https://")
        verified = ssl.create_default_context(cafile=certificate)
        assert httpx.get(f"{url}api/state", verify=verified).json()["phase"] == "open"


# -- the campaign ------------------------------------------------------------------------------------------------------


def test_the_overview_adds_up(campaign: Campaign, truth: tuple[Pool, np.ndarray]) -> None:
    ann = as_person(campaign, "ann", "manager")
    rows = [each["row"] for each in took(ann)]
    gave(ann, *(said(row, 0, lead_time=0.1 * at) for at, row in enumerate(rows[:5])), said(rows[5], None))
    bob = as_person(campaign, "bob")
    Queue(campaign)
    told = ann.get("/api/campaign").json()
    assert [(each["name"], each["labels"]) for each in told["classes"]] == [("ham", 5), ("spam", 0)]
    [person] = told["people"]
    assert (person["name"], person["answers"], person["skipped"]) == ("ann", 6, 1)
    assert person["median_seconds"] == pytest.approx(0.2)
    assert (told["labels"], told["asked"], told["budget"], told["n_rows"]) == (5, BATCH, 24, N)
    assert told["per_hour"] == 6 * 4
    assert bob.get("/api/state").json()["me"]["name"] == "bob"


def test_the_overview_is_computed_once_for_all_who_ask_at_once(
    campaign: Campaign, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[int] = []

    def counted(of: View) -> object:
        computed.append(1)
        return status_of(of)

    monkeypatch.setattr("dal.web.overview.status_of", counted)
    ann = client(campaign, Limits(standing_seconds=60.0))
    [record] = took(ann, 1)
    gave(ann, said(record["row"]))
    assert ann.post("/api/actions", json={"act": "pause"}).status_code == 200
    with ThreadPoolExecutor(8) as managers:
        told = list(managers.map(lambda _: ann.get("/api/campaign").json(), range(16)))
    assert len(computed) == 1
    assert all((each["labels"], each["standing"]["phase"]) == (1, "paused") for each in told)
    # What a manager does is shown at once.
    ann.post("/api/actions", json={"act": "resume"})
    assert [each["act"] for each in ann.get("/api/campaign").json()["actions"]] == ["resume", "pause"]


def test_the_stopping_figure_says_what_the_verdict_says(tmp_path: Path, truth: tuple[Pool, np.ndarray]) -> None:
    campaign = Campaign.create(tmp_path / "c", truth[0], ["ham", "spam"], batch_size=10, stop=["max_labels=20"])
    for _ in range(2):
        batch = campaign.next_batch()
        assert isinstance(batch, Batch)
        campaign.label(batch, truth[1][batch.rows])
        # Of one round there is no time between two.
        assert ("pauses" in client(campaign).get("/api/campaign").json()["figures"]) == (batch.number > 1)
    campaign.next_batch()
    ann = client(campaign)
    [verdict] = ann.get("/api/campaign").json()["verdicts"]
    assert (verdict["stop"], verdict["value"]) == (True, 20)
    drawn = json.dumps(ann.get("/api/figures/stopping").json())
    assert "max_labels=20: STOP" in drawn
    # Labels known when each round ended, not when it began.
    assert '"value", [10.0, 20.0]' in drawn or '"value", [10, 20]' in drawn


def test_every_figure_that_is_promised_is_drawn(campaign: Campaign, truth: tuple[Pool, np.ndarray]) -> None:
    ann = client(campaign, Limits(standing_seconds=0.0))
    campaign.settings = replace(
        campaign.settings, explore=0.5
    )  # so few labels hold no explore record beyond the first batch
    for _ in range(2):
        batch = campaign.rounds.batch(campaign.rounds.all()[-1].number)
        rows = np.array([each.row for each in batch])
        for name in ("ann", "bob"):
            campaign.label([each.record_id for each in batch], truth[1][rows], annotator=name)
        campaign.next_batch()
    told = ann.get("/api/campaign").json()
    wanted = {"accuracy", "balance", "bias", "stopping", "people", "agreement", "apart", "pace", "pauses", "scores"}
    assert set(told["figures"]) == wanted
    map_of(truth[0], campaign.directory / "map.npz", 0)
    told = ann.get("/api/campaign").json()
    assert set(told["figures"]) == wanted | {"map"}
    for name in told["figures"]:
        for theme in ("light", "dark"):
            drawn = ann.get(f"/api/figures/{name}?theme={theme}").json()["figures"]
            assert drawn
            assert all(each["doc"]["roots"] for each in drawn)
            assert len(drawn) == 2 or name != "bias"  # the regions, and the map
    assert ann.get("/api/figures/nothing").status_code == 422


def test_the_map_places_records_as_it_is_drawn_now(campaign: Campaign, truth: tuple[Pool, np.ndarray]) -> None:
    ann = client(campaign)
    drawn = []
    for seed in (0, 1):
        pool_map = map_of(truth[0], None, seed)
        turned = replace(pool_map.projection, components=pool_map.projection.components * (1, -1)[seed])
        replace(pool_map, projection=turned).save(campaign.directory / "map.npz")
        drawn.append(ann.get("/api/figures/map").json())
    fresh = client(campaign).get("/api/figures/map").json()
    assert places(drawn[1]) == places(fresh)
    assert places(drawn[0]) != places(fresh)


def places(told: Any) -> list[Any]:  # noqa: ANN401 - Bokeh's JSON
    """Find the coordinates of all points in a figure, wherever they lie in it."""
    if isinstance(told, list):
        return [found for each in told for found in places(each)]
    if not isinstance(told, dict):
        return []
    own = [each for each in told.get("entries", []) if isinstance(each, list) and each and each[0] in ("x", "y")]
    return own + [found for each in told.values() for found in places(each)]


def test_exports_hold_every_answer_that_counts(campaign: Campaign) -> None:
    ann = client(campaign)
    records = took(ann)
    odd, even = (next(r for r in records if r["row"] % 2 == parity) for parity in (1, 0))
    gave(ann, said(odd["row"], 0), said(even["row"], None, skip_reason="=cmd"), said(odd["row"], 1))
    lines = [json.loads(line) for line in ann.get("/export.jsonl").text.splitlines()]
    told = {(each["record_id"], each["status"], each["label"], each["annotator"], each["round"]) for each in lines}
    assert told == {
        (odd["record_id"], "submitted", "spam", "ann", 1),
        (even["record_id"], "skipped", None, "ann", 1),
    }
    answer = ann.get("/export.csv")
    assert "attachment" in answer.headers["content-disposition"]
    table = list(csv.DictReader(io.StringIO(answer.content.decode("utf-8-sig"))))
    assert answer.content.startswith(codecs.BOM_UTF8)
    assert [each["record_id"] for each in table] == [each["record_id"] for each in lines]
    assert {each["skip_reason"] for each in table} == {"", "'=cmd"}


def test_agreement_is_that_of_a_plain_count() -> None:
    rng = np.random.default_rng(1)
    said_by = {
        (int(r), f"p{a}"): int(rng.integers(-1, 3)) for r in rng.integers(50, 80, 60) for a in rng.integers(0, 4, 3)
    }
    rows, names = zip(*said_by, strict=True)
    people, shares, together = agreement(rows, names, list(said_by.values()), seed=0).matrix()
    for i, one in enumerate(people):
        for j, other in enumerate(people):
            if one == other:
                continue
            both = [
                said_by[row, one] == said_by[row, other]
                for row in set(rows)
                if said_by.get((row, one), -1) >= 0
                and said_by.get((row, other), -1) >= 0
                and sum(said_by.get((row, each), -1) >= 0 for each in ("p0", "p1", "p2", "p3")) > 1
            ]
            assert together[i, j] == len(both)
            assert np.isnan(shares[i, j]) if not both else shares[i, j] == pytest.approx(np.mean(both))


def test_time_left_is_told_when_there_is_a_pace() -> None:
    assert time_left(50, 19, timedelta(minutes=15)) == (None, None)
    assert time_left(0, 100, timedelta(minutes=15)) == (None, None)
    low, high = time_left(50, 400, timedelta(minutes=15))
    assert low is not None
    assert high is not None
    assert low < 50 * 900 / 400 < high


def test_a_campaign_that_cannot_be_written_says_so(campaign: Campaign) -> None:
    ann = client(campaign)
    took(ann)
    (campaign.directory / "campaign.db").write_bytes(b"not a database" * 1000)
    answer = ann.post("/api/answers", json={"lease": 1})
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) > 0
    assert "restore it from a copy" in answer.json()["detail"]
    assert str(campaign.directory) not in answer.text
    with pytest.raises(CampaignError):
        Campaign.open(campaign.directory)


def test_times_are_told_with_their_zone(campaign: Campaign) -> None:
    ann = client(campaign)
    state = ann.get("/api/state").json()
    assert datetime.fromisoformat(state["since"]) <= datetime.now(UTC)
    row = took(ann)[0]["row"]
    assert ann.post("/api/answers", json={"answers": [said(row, 0, shown_at="2026-01-02T03:04:05")]}).status_code == 422


def test_the_wheel_holds_the_pages(tmp_path: Path) -> None:
    root = Path(__file__).parents[1]
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=root, check=True, capture_output=True)
    [wheel] = tmp_path.glob("*.whl")
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if "/static/" in name}
    assert packed == {path.relative_to(root).as_posix() for path in (root / "dal/web/static").iterdir()}
    assert {"dal/web/static/label.html", "dal/web/static/label.js", "dal/web/static/style.css"} <= packed


def test_without_accounts_one_is_called_as_the_campaign_spelt_one_first(campaign: Campaign) -> None:
    asked = campaign.rounds.batch(1)[0]
    campaign.label([asked.record_id], ["ham"], annotator="ANN")
    assert client(campaign).get("/api/state").json()["me"]["name"] == "ANN"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"labels": ["ham"]}, "must be as many"),
        ({"records": ["mail 0"]}, "must be as many"),
        ({"records": ["mail 0", "frog"]}, "frog"),
        ({"records": [0, 1]}, "records"),
        ({"annotator": None}, "annotator"),
        ({"labels": "ham"}, "labels"),
    ],
)
def test_answers_that_do_not_belong_together_are_refused(campaign: Campaign, wrong: dict[str, Any], said: str) -> None:
    fit: dict[str, Any] = {"records": ["mail 0", "mail 1"], "labels": ["ham", "spam"], "annotator": "ann"}
    with pytest.raises(LabelError, match=said):
        campaign.label(**fit | wrong)
    assert len(campaign.answers.latest().rows) == 0
    campaign.label(**fit)
    assert campaign.answers.latest().labels.tolist() == [0, 1]

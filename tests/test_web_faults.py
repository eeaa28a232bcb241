"""The pages' server when something fails under it, or somebody wears it out: it says so, and goes on."""

import csv
import io
import json
import os
import resource
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx2 as httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import event

from dal import Campaign
from dal.campaign import Annotators, Answer, Measuring, Storage
from dal.errors import SettingsError
from dal.pool import Pool
from dal.web import Limits, Listening, Options, create_app, make_server
from dal.web.overview import exported
from tests import databases
from tests.conftest import missing_service
from tests.recipes import free_port
from tests.servers import running

N, BATCH = 300, 12
SAME = {"sec-fetch-site": "same-origin"}


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    X = np.random.default_rng(3).normal(size=(N, 4)).astype(np.float32)
    text = [f"text {row}" for row in range(N)]
    return Pool.build(X, tmp_path_factory.mktemp("faults") / "pool.zarr", display={"text": text})


def asked(directory: Path, pool: Pool) -> Campaign:
    made = Campaign.create(
        directory,
        pool,
        ["ham", "spam"],
        batch_size=BATCH,
        random_state=5,
        storage=Storage(database=databases.fresh()),
    )
    made.next_batch()
    return made


@pytest.fixture(scope="module")
def untouched(pool: Pool, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A campaign with an open batch, for tests to copy."""
    return asked(tmp_path_factory.mktemp("untouched") / "secret-place", pool).directory


@pytest.fixture
def campaign(pool: Pool, untouched: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Campaign:
    if "backend" in request.fixturenames:  # a copy would use the same database
        return asked(tmp_path / "secret-place", pool)
    return Campaign.open(shutil.copytree(untouched, tmp_path / "secret-place"))


def client(campaign: Campaign, **options: bool) -> TestClient:
    app = create_app(campaign, Options(user="ann", **options))
    return TestClient(app, base_url="http://127.0.0.1:8000", headers=SAME, raise_server_exceptions=False)


def as_person(campaign: Campaign, name: str, role: str = "annotator", **options: bool) -> TestClient:
    token = Annotators(campaign).add(name, role)
    person = client(campaign, **options)
    assert person.post("/enter", json={"token": token}).status_code == 200
    return person


def said(row: int, label: int | None = 0, **more: object) -> dict[str, Any]:
    status = "skipped" if label is None else "submitted"
    return {"event_id": str(uuid4()), "row": row, "status": status, "label": label, **more}


# -- the database fails for a moment -----------------------------------------------------------------------------------

Outage = Callable[[Campaign], AbstractContextManager[None]]


@contextmanager
def gone(campaign: Campaign) -> Iterator[None]:
    away = campaign.directory.with_name("away")
    campaign.directory.rename(away)
    yield
    away.rename(campaign.directory)


@contextmanager
def damaged(campaign: Campaign) -> Iterator[None]:
    file = campaign.directory / "campaign.db"
    content = file.read_bytes()
    file.write_bytes(b"no database" * 1000)
    yield
    file.write_bytes(content)


@contextmanager
def locked(campaign: Campaign) -> Iterator[None]:
    with campaign.database.writing():
        yield


def told_to(*pragmas: str) -> Outage:
    """Have SQLite itself refuse: a file that may not grow is a full disk."""

    @contextmanager
    def outage(campaign: Campaign) -> Iterator[None]:
        def tell(connection: sqlite3.Connection, *_: object) -> None:
            for pragma in pragmas:
                connection.execute(f"PRAGMA {pragma}")

        event.listen(campaign.database.engine, "connect", tell)
        yield
        event.remove(campaign.database.engine, "connect", tell)

    return outage


OUTAGES = {
    "gone": (gone, "file is gone"),
    "damaged": (damaged, "damaged"),
    "locked": (locked, "writing for too long"),
    "full": (told_to("max_page_count = 1"), "full"),
    "read-only": (told_to("query_only = ON"), "write access"),
}


@pytest.mark.parametrize("name", OUTAGES)
def test_while_the_database_fails_answers_are_to_be_sent_again_and_then_count_once(
    campaign: Campaign, name: str
) -> None:
    outage, remedy = OUTAGES[name]
    if name == "locked":
        campaign = Campaign.open(campaign.directory, busy_seconds=0.05)
    ann = client(campaign)
    rows = [each["row"] for each in ann.post("/api/answers", json={"lease": 8}).json()["records"]]
    # Enough to need new pages of the file.
    answers = [said(row, None, skip_reason="x" * 200) for _ in range(12) for row in rows]
    with outage(campaign):
        for path, body in (
            ("/api/answers", {"answers": answers}),
            ("/api/undo", {"event_id": answers[0]["event_id"], "new_event_id": str(uuid4())}),
            ("/api/answers", {"lease": BATCH}),
        )[: 1 if name == "full" else 3]:
            refused = ann.post(path, json=body)
            assert refused.status_code == 503, (name, refused.text)
            assert int(refused.headers["retry-after"]) > 0
            assert remedy in refused.json()["detail"]
            assert "secret-place" not in refused.text
    for expected in ({"new", "same"}, {"repeated"}):
        told = ann.post("/api/answers", json={"answers": answers}).json()["outcomes"]
        assert {each["outcome"] for each in told} == expected
    assert sorted(campaign.answers.latest().rows.tolist()) == sorted(rows)
    assert len(list(campaign.answers.log())) == len(answers)


@pytest.mark.slow
def test_a_postgres_that_is_started_again_is_reached_again(pool: Pool, tmp_path: Path) -> None:
    with databases.running() as home:
        url = databases.fresh_schema(home)
        campaign = Campaign.create(
            tmp_path / "c", pool, ["ham", "spam"], batch_size=BATCH, random_state=5, storage=Storage(database=url)
        )
        campaign.next_batch()
        ann = as_person(campaign, "ann")
        row = ann.post("/api/answers", json={"lease": 1}).json()["records"][0]["row"]
        answer = said(row)
        databases.stop(home)
        for path, body in (("/enter", {"token": "x"}), ("/api/answers", {"answers": [answer]})):
            refused = ann.post(path, json=body)
            assert refused.status_code == 503
            assert home not in refused.text
            assert "postgresql" not in refused.text
        databases.start(home)
        [told] = ann.post("/api/answers", json={"answers": [answer]}).json()["outcomes"]
        assert told["outcome"] == "new"


def test_an_impossible_answer_is_refused_alone(backend: str, campaign: Campaign) -> None:
    ann = client(campaign)
    rows = [each["row"] for each in ann.post("/api/answers", json={"lease": 8}).json()["records"]]
    impossible = [
        said(rows[0], answered_at="0001-01-01T00:00:00+14:00"),
        said(rows[1], shown_at="9999-12-31T23:59:59-14:00"),
        said(rows[2], None, skip_reason="a\x00b"),
    ]
    told = ann.post("/api/answers", json={"answers": [*impossible, said(rows[3])]})
    assert told.status_code == 200, told.text
    assert [each["outcome"] for each in told.json()["outcomes"]] == ["refused"] * 3 + ["new"]
    assert campaign.answers.latest().rows.tolist() == [rows[3]]


HOSTILE = {
    "digits": b'{"lease": ' + b"9" * 5000 + b"}",
    "many-digits": b'{"lease": ' + b"9" * 4200 + b"}",
    "deep": b'{"answers": ' + b"[" * 60_000 + b"]" * 60_000 + b"}",
    "not-so-deep": b'{"lease": ' + b"[" * 600 + b"]" * 600 + b"}",
    "half": b'{"answers": [{"event_id": "\\ud800aaaaaaaa", "row": 1, "status": "\\udfff", "\\udc00": 1}]}',
    "nan": b'{"lease": NaN, "answers": [{"lead_time": Infinity}]}',
    "float": b'{"lease": 1e400}',
    "bytes": b'{"lease": "\xff\xfe"}',
    "list": b"[]",
    "null": b"null",
    "nothing": b"",
    "utf-16": '{"lease": 1, "x": 2}'.encode("utf-16"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_body_is_refused_in_words(campaign: Campaign, name: str) -> None:
    ann = client(campaign)
    for path in ("/api/answers", "/api/undo", "/api/renew", "/enter", "/api/actions"):
        answer = ann.post(path, content=HOSTILE[name], headers={"content-type": "application/json"})
        assert 400 <= answer.status_code < 500, (path, answer.text)
        assert isinstance(answer.json()["detail"], str)


@pytest.mark.parametrize("host", ["[::1", "[", "a b", "a/b", "a:b", "a:99999", "@", "[::1]x", ":80"])
def test_a_hostile_host_is_refused_in_words(campaign: Campaign, host: str) -> None:
    ann = client(campaign)
    for headers in ({"host": host}, {"host": "127.0.0.1", "origin": f"http://{host}", "sec-fetch-site": ""}):
        answer = ann.post("/api/answers", json={"lease": 1}, headers=headers)
        assert answer.status_code in (400, 403), answer.text
        assert isinstance(answer.json()["detail"], str)


# -- exports -----------------------------------------------------------------------------------------------------------


def many_answers(campaign: Campaign) -> int:
    rows, people = campaign.rounds.asked_rows().tolist(), 250
    given = (Answer(row, str(row), f"p{who}", "submitted", who % 2) for who in range(people) for row in rows)
    return campaign.answers.add(given, source="file").new


def handles(campaign: Campaign) -> int:
    """Count the files of the campaign's database that this process holds open."""
    found = 0
    for each in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            found += "campaign.db" in str(each.readlink())
    return found


@pytest.mark.slow
def test_exports_are_whole_while_others_work_and_broken_ones_leave_nothing_open(campaign: Campaign) -> None:
    given = many_answers(campaign)
    rows = campaign.rounds.asked_rows().tolist()
    assert given == 250 * len(rows)
    with running(campaign) as url, ThreadPoolExecutor(12) as people:

        def download(form: str) -> int:
            text = httpx.get(f"{url}export.{form}", timeout=60).content.decode("utf-8-sig")
            if form == "jsonl":
                return len(
                    {(json.loads(line)["annotator"], json.loads(line)["record_id"]) for line in text.splitlines()}
                )
            return len({(line["annotator"], line["record_id"]) for line in csv.DictReader(io.StringIO(text))})

        def answer(at: int) -> int:
            row = rows[at % len(rows)]
            told = httpx.post(f"{url}api/answers", json={"answers": [said(row)], "lease": 3}, headers=SAME, timeout=60)
            return told.status_code

        def broken(_: int) -> None:
            with httpx.stream("GET", f"{url}export.jsonl", timeout=60) as response:
                next(response.iter_raw(64))

        answered = people.map(answer, range(60))
        ended = people.map(broken, range(20))
        sizes = list(people.map(download, ["csv", "jsonl"] * 6))
        assert list(answered) == [200] * 60
        list(ended)
        # Those that ann gave meanwhile may be in it or not: an export is what counted when it began.
        assert all(given <= size <= given + len(rows) for size in sizes), (given, len(rows), sizes)
        deadline = time.monotonic() + 10
        while handles(campaign) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert handles(campaign) == 0


def test_an_export_is_what_counted_when_it_began(campaign: Campaign) -> None:
    many_answers(campaign)
    rows = campaign.rounds.asked_rows().tolist()
    lines = exported(campaign, "jsonl")
    first = next(lines)
    # The last ones are corrected while the first are being sent.
    campaign.answers.add([Answer(row, str(row), "p249", "skipped", None) for row in rows], source="file")
    told = [json.loads(line) for line in (first + b"".join(lines)).splitlines()]
    assert len(told) == 250 * len(rows)
    assert {each["label"] for each in told if each["annotator"] == "p249"} == {"spam"}


# -- people who are slow, or many --------------------------------------------------------------------------------------

SHORT = Limits(connections=40, head_seconds=1.0, body_seconds=1.0, idle_seconds=1.0, head_bytes=4096)


def opened(url: str, sent: bytes) -> socket.socket:
    address = httpx.URL(url)
    connection = socket.create_connection((address.host, address.port), timeout=20)
    connection.sendall(sent)
    return connection


def received(connection: socket.socket) -> str:
    parts = []
    while part := connection.recv(65536):
        parts.append(part)
    return b"".join(parts).decode()


def test_half_sent_requests_hold_up_nobody(campaign: Campaign) -> None:
    patient = Limits(connections=40, head_seconds=60.0)
    with running(campaign, patient) as url:
        half = [opened(url, b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n") for _ in range(100)]
        for _ in range(5):
            assert httpx.get(f"{url}api/state", timeout=10).json()["phase"] == "open"
        bodies = [
            opened(url, b"POST /enter HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 90\r\n"
                   b"Content-Type: application/json\r\nSec-Fetch-Site: same-origin\r\n\r\n{")
            for _ in range(60)
        ]  # fmt: skip
        assert httpx.get(f"{url}api/state", timeout=10).json()["phase"] == "open"
        for each in half + bodies:
            each.close()


@pytest.mark.slow
def test_more_silent_connections_than_files_hold_up_nobody(campaign: Campaign) -> None:
    few = partial(resource.setrlimit, resource.RLIMIT_NOFILE, (1024, 1024))
    command = [sys.executable, "-m", "dal", "serve", str(campaign.directory), "--port", "0"]
    with ExitStack() as open_until_the_end, subprocess.Popen(command, stdout=subprocess.PIPE, preexec_fn=few) as server:
        try:
            assert server.stdout is not None
            url = server.stdout.readline().split()[-1].decode()
            for _ in range(1300):
                open_until_the_end.enter_context(opened(url, b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX"))
            for _ in range(5):
                assert httpx.get(f"{url}api/state", timeout=20).json()["phase"] == "open"
        finally:
            server.kill()


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-", "408"),
        (b"POST /enter HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 90\r\nContent-Type: application/json\r\n"
         b"Sec-Fetch-Site: same-origin\r\n\r\n{", "408"),
        (b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Large: " + b"x" * 5000, "400"),
        (b"POST /enter HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 900000\r\nContent-Type: application/json\r\n"
         b"Sec-Fetch-Site: same-origin\r\n\r\n{", "413"),
        (b"\x16\x03\x01\x02\x00\x01\x00", "400"),
        (b"GET / HTTP/1.1\r\n\r\n", "400"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", "400"),
    ],
    ids=["head", "body", "large-head", "large-body", "tls", "no-host", "two-hosts"],
)  # fmt: skip
def test_what_does_not_arrive_is_refused_in_words(campaign: Campaign, sent: bytes, status: str) -> None:
    with running(campaign, SHORT) as url, opened(url, sent) as connection:
        answer = received(connection)
    head, _, body = answer.partition("\r\n\r\n")
    assert head.split()[1] == status
    assert "connection: close" in head.lower()
    assert json.loads(body)["detail"]


def test_connections_that_say_nothing_are_closed(campaign: Campaign) -> None:
    get = b"GET /static/dom.js HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    with (
        running(campaign, SHORT) as url,
        opened(url, b"") as silent,
        opened(url, get + b"\r\n") as idle,
        opened(url, get + b"Content-Length: 99\r\n\r\n") as unread,
    ):
        assert received(silent) == ""
        assert received(idle).startswith("HTTP/1.1 200")
        assert received(unread).startswith("HTTP/1.1 200")


@pytest.mark.slow
def test_a_server_that_ends_cuts_off_what_is_half_sent_without_a_traceback(
    campaign: Campaign, caplog: pytest.LogCaptureFixture
) -> None:
    head = b"POST /api/answers HTTP/1.1\r\nHost: 127.0.0.1\r\nSec-Fetch-Site: same-origin\r\n"
    with running(campaign) as url:
        half = opened(url, head + b"Content-Type: application/json\r\nContent-Length: 9\r\n\r\n{")
        assert httpx.get(f"{url}api/state", timeout=10).status_code == 200
    half.close()
    assert "graceful shutdown exceeded" in caplog.text
    assert "Traceback" not in caplog.text


def persist(url: str) -> httpx.Response:
    """Ask for a record until there is something else than 503, as the page does."""
    while (answer := httpx.post(url, json={"lease": 1}, headers=SAME, timeout=30)).status_code == 503:
        time.sleep(0.05)
    return answer


def test_too_many_requests_at_once_are_told_to_come_again(campaign: Campaign) -> None:
    with running(campaign, Limits(requests=2)) as url, ThreadPoolExecutor(3) as people:
        with campaign.database.writing():
            waiting = [people.submit(persist, f"{url}api/answers") for _ in range(2)]
            deadline = time.monotonic() + 20
            while (answer := httpx.get(f"{url}api/state")).status_code == 200 and time.monotonic() < deadline:
                pass
            assert answer.status_code == 503
            assert answer.headers["retry-after"] == "2"
            assert "try again" in answer.json()["detail"]
        assert [each.result().status_code for each in waiting] == [200, 200]


# -- who comes from where ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        {"x-forwarded-for": "192.0.2.9"},
        {"forwarded": "for=192.0.2.9"},
        {"via": "1.1 proxy"},
        {"x-real-ip": "192.0.2.9"},
        {"x-forwarded-host": "label.example.org"},
        {"x-forwarded-proto": "https"},
        {"x-forwarded-context": "/proxy"},
        {"cf-connecting-ip": "192.0.2.9"},
        {"origin": "https://label.example.org"},
    ],
)
def test_without_tokens_a_forwarded_request_is_not_a_local_one(campaign: Campaign, headers: dict[str, str]) -> None:
    ann = client(campaign)
    assert ann.get("/api/campaign").status_code == 200
    for path in ("/api/state", "/api/campaign", "/export.csv"):
        answer = ann.get(path, headers=headers)
        assert answer.status_code == 403
        assert "dal annotator add" in answer.json()["detail"]
    assert as_person(campaign, "ann").get("/api/state", headers=headers).status_code == 200


def test_a_logout_ends_the_session_and_not_the_link(campaign: Campaign, monkeypatch: pytest.MonkeyPatch) -> None:
    token = Annotators(campaign).add("ann")
    app = create_app(campaign, Options("x"), Limits(account_seconds=0.0))
    here, there = (TestClient(app, base_url="https://127.0.0.1:8000", headers=SAME) for _ in range(2))
    for browser in (here, there):
        assert browser.post("/enter", json={"token": token}).json()["session"]
        assert browser.get("/api/state").status_code == 200
    [(name, secret)] = here.cookies.items()
    assert here.post("/leave", json={}).status_code == 200
    assert list(here.cookies.items()) == []
    here.cookies.set(name, secret)  # somebody kept it
    assert here.get("/api/state").status_code == 401
    assert there.get("/api/state").status_code == 200
    here.cookies.clear()
    assert here.post("/leave", json={}).status_code == 200, "who is out already is out"
    assert here.post("/enter", json={"token": token}).status_code == 200
    # A session that nobody uses ends by itself; one in use is renewed.
    start = time.time()
    for hours, status in ((11, 200), (22, 200), (33, 200), (45.1, 401)):
        monkeypatch.setattr(campaign.database, "clock", partial(datetime.fromtimestamp, start + hours * 3600, UTC))
        assert there.get("/api/state").status_code == status, hours


def test_answers_of_another_campaign_or_person_do_not_land_here(campaign: Campaign) -> None:
    ann = client(campaign)
    row = ann.post("/api/answers", json={"lease": 1}).json()["records"][0]["row"]
    for meant, status in ((f"{campaign.id}/ann", 200), (f"{campaign.id}/bob", 421), ("other/ann", 421)):
        answer = ann.post("/api/answers", json={"answers": [said(row)]}, headers={"dal-for": meant})
        assert answer.status_code == status
    assert len(list(campaign.answers.log())) == 1


# -- a pool that changes while it is served ----------------------------------------------------------------------------


def test_appended_records_are_shown_and_another_pool_is_not(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pool = Pool.build(rng.random((40, 3)), tmp_path / "pool.zarr", display={"text": [f"old {at}" for at in range(40)]})
    campaign = Campaign.create(
        tmp_path / "c", pool, ["ham", "spam"], batch_size=40, strategy="random", measuring=Measuring(stop_set=0)
    )
    ann = client(campaign)
    np.save(tmp_path / "more.npy", rng.random((40, 3)))
    Pool.open(pool.path).append(tmp_path / "more.npy", display={"text": [f"new {at}" for at in range(40, 80)]})
    campaign.next_batch()
    records = ann.post("/api/answers", json={"lease": 20}).json()["records"]
    assert {each["fields"][0]["value"] for each in records} == {
        f"{'old' if each['row'] < 40 else 'new'} {each['row']}" for each in records
    }
    assert any(each["row"] >= 40 for each in records)
    Pool.build(rng.random((90, 3)), tmp_path / "pool.zarr", overwrite=True)
    answer = ann.post("/api/answers", json={"lease": 40})
    assert answer.status_code == 503
    assert str(tmp_path) not in answer.text


def test_a_record_whose_chunk_is_restored_is_shown_again(tmp_path: Path) -> None:
    X = np.random.default_rng(0).random((40, 3))
    pool = Pool.build(X, tmp_path / "pool.zarr", display={"text": [f"text {at}" for at in range(40)]})
    campaign = Campaign.create(tmp_path / "c", pool, ["ham", "spam"], batch_size=5, strategy="random")
    campaign.next_batch()
    ann = client(campaign)
    chunks = [path for path in (tmp_path / "pool.zarr" / "fields" / "text" / "c").rglob("*") if path.is_file()]
    kept = {path: path.read_bytes() for path in chunks}
    for path in chunks:
        path.write_bytes(b"torn")
    broken = ann.post("/api/answers", json={"lease": 5})
    assert all(each["error"] for each in broken.json()["records"])
    assert str(tmp_path) not in broken.text
    for path, content in kept.items():
        path.write_bytes(content)
    records = ann.post("/api/answers", json={"lease": 5}).json()["records"]
    assert {each["fields"][0]["value"] for each in records} == {f"text {each['row']}" for each in records}
    assert {each["error"] for each in records} == {None}


@pytest.mark.parametrize(
    ("listening", "user", "told"),
    [
        ({"port": "taken"}, "ann", "in use"),
        ({"host": "127.0.0.1.", "port": 0}, "ann", "annotator add"),
        ({"tls_certificate": "bad.pem", "tls_key": "bad.pem"}, "ann", "PEM"),
        ({}, " ", "--user"),
        ({}, "\x00", "--user"),
    ],
)
def test_what_cannot_be_served_is_said_before_it_is(
    campaign: Campaign, tmp_path: Path, listening: dict[str, Any], user: str, told: str
) -> None:
    (tmp_path / "bad.pem").write_text("no certificate")
    given = {name: tmp_path / value if str(value).endswith(".pem") else value for name, value in listening.items()}
    with socket.create_server(("127.0.0.1", 0)) as taken:
        given["port"] = taken.getsockname()[1] if given.get("port") == "taken" else 0
        with pytest.raises(SettingsError, match=told):
            make_server(campaign, Listening(**given), Options(user))


@pytest.mark.parametrize("host", ["192.0.2.7", "no such host", "a..b", "x" * 100])
def test_a_host_that_cannot_be_listened_on_is_said(campaign: Campaign, host: str) -> None:
    Annotators(campaign).add("ann")
    with pytest.raises(SettingsError, match="must be free to listen on"):
        make_server(campaign, Listening(host, 0), Options("ann"))


# -- a real proxy, as the documentation has it -------------------------------------------------------------------------


def documented(port: int, upstream: str) -> str:
    """Give nginx's settings with the block of docs/labelling.md in them."""
    page = (Path(__file__).parents[1] / "docs" / "labelling.md").read_text()
    block = page.split("```nginx\n")[1].split("```")[0]
    assert "http://127.0.0.1:8000/" in block
    server = f"server {{ listen 127.0.0.1:{port}; {block.replace('http://127.0.0.1:8000/', upstream)} }}"
    paths = " ".join(f"{kind}_temp_path tmp;" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    return f"daemon off; pid pid; error_log stderr; events {{}} http {{ access_log off; {paths} {server} }}"


@contextmanager
def nginx(folder: Path, upstream: str) -> Iterator[str]:
    program = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        missing_service("nginx")
    port = free_port()
    folder.mkdir()
    (folder / "nginx.conf").write_text(documented(port, upstream))
    with subprocess.Popen([program, "-p", str(folder), "-c", "nginx.conf"]) as process:
        try:
            deadline = time.monotonic() + 20
            while time.monotonic() < deadline:
                with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                    break
            yield f"http://127.0.0.1:{port}/label/"
        finally:
            process.terminate()


@pytest.mark.slow
def test_the_documented_proxy_lets_writes_through_and_makes_nobody_a_manager(
    campaign: Campaign, tmp_path: Path
) -> None:
    with running(campaign, trusted_proxy="127.0.0.1") as upstream, nginx(tmp_path / "nginx", upstream) as url:
        assert httpx.get(f"{url}api/state").status_code == 403
        assert httpx.get(f"{upstream}api/state").json()["me"]["role"] == "manager"
        token = Annotators(campaign).add("ann")
        deadline = time.monotonic() + 20  # the server looks every other second whether there are people
        while httpx.get(f"{upstream}api/state").status_code == 200 and time.monotonic() < deadline:
            time.sleep(0.05)
        # As a browser over plain http does: no Sec-Fetch-Site, and an Origin with the port.
        with httpx.Client(headers={"origin": url.removesuffix("/label/")}) as browser:
            assert browser.post(f"{url}enter", json={"token": token}).status_code == 200
            records = browser.post(f"{url}api/answers", json={"lease": 1}).json()["records"]
            [told] = browser.post(f"{url}api/answers", json={"answers": [said(records[0]["row"])]}).json()["outcomes"]
            assert told["outcome"] == "new"
            foreign = browser.post(f"{url}api/answers", json={}, headers={"origin": "http://127.0.0.1:1"})
            assert foreign.status_code == 403
            assert "Host" in foreign.json()["detail"]

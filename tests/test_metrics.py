"""Metrics: what the text says, read back by a strict parser, against counts by hand."""

import logging
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import httpx2 as httpx
import numpy as np
import pytest
import yaml
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st

from dal.campaign import Annotators, Given, Queue
from dal.campaign.control import Control
from dal.errors import DatabaseError, SettingsError
from dal.loop.campaign import Campaign
from dal.metrics import CONTENT_TYPE, Logged, Metric, exposition, logged, serving
from dal.pool import Pool
from dal.scan.run import progress_metrics
from dal.web import Options, create_app

CLASSES = ('he said "no"', "back\\slash")
SAMPLE = re.compile(r'([a-z][a-z0-9_]*)(?:\{([a-z_]+)="((?:[^"\\\n]|\\["\\n])*)"\})? ([-+0-9.e]+)')
UNESCAPED = {r"\\": "\\", r"\"": '"', r"\n": "\n"}


def parsed(text: str) -> dict[str, dict[str, float]]:
    """Read the text format strictly: numbers by name, and by the value of the label."""
    assert text.endswith("\n")
    found: dict[str, dict[str, float]] = {}
    lines = iter(text.removesuffix("\n").split("\n"))
    current = ""
    for line in lines:
        if line.startswith("# HELP "):
            current = line.split(" ")[2]
            assert current not in found
            assert re.fullmatch(rf"# TYPE {current} (gauge|counter)", next(lines))
            found[current] = {}
            continue
        match = SAMPLE.fullmatch(line)
        assert match is not None, line
        name, _, value, number = match.groups()
        value = re.sub(r"\\.", lambda escaped: UNESCAPED[escaped[0]], value or "")
        assert name == current
        assert value not in found[name]
        found[name][value] = float(number)
    assert all(name.endswith("_total") == ("counter" in text.split(f"# TYPE {name} ")[1][:7]) for name in found)
    return found


@given(st.dictionaries(st.text(), st.floats(allow_nan=False, allow_infinity=False), min_size=1), st.text())
def test_labels_and_numbers_come_back(values: dict[str, float], meaning: str) -> None:
    written = exposition([Metric("dal_x", "gauge", meaning, values, "label"), Metric("dal_y", "gauge", "", {"": 0.1})])
    assert parsed(written) == {"dal_x": values, "dal_y": {"": 0.1}}


@pytest.fixture
def campaign(tmp_path: Path) -> Campaign:
    """A campaign with a round that is answered, and an open batch of which one record is answered and two are held."""
    rng = np.random.default_rng(1)
    codes = rng.integers(0, 2, 400)
    X = rng.normal(2.0 * codes[:, None], 1.0, (400, 4)).astype(np.float32)
    pool = Pool.build(X, tmp_path / "pool.zarr")
    made = Campaign.create(tmp_path / "c", pool, CLASSES, batch_size=12, random_state=5)
    batch = made.next_batch()
    made.label(batch, [CLASSES[code] for code in codes[batch.rows]])
    made.next_batch()
    queue = Queue(made)
    held = queue.lease("ann", 3)
    queue.answer("ann", [Given(event_id=str(uuid4()), row=held[0].row, status="submitted", label=0)])
    return made


def check(numbers: dict[str, dict[str, float]], campaign: Campaign) -> None:
    """Compare the numbers with the campaign's own."""
    assert numbers["dal_round"] == {"": 2}
    assert {step for step, value in numbers["dal_round_step"].items() if value} == {"open"}
    codes = campaign.answers.labels().codes
    assert numbers["dal_labels"] == dict(zip(CLASSES, np.bincount(codes, minlength=2), strict=True))
    assert numbers["dal_answers_total"] == {"": 13}
    assert numbers["dal_batch_records"] == {"": 12}
    assert numbers["dal_batch_pending"] == {"": 11}
    assert numbers["dal_leases"] == {"": 2}
    assert numbers["dal_people"] == {"": 1}
    second = campaign.rounds.get(2)
    assert second.summary is not None
    assert numbers["dal_last_scan_rows"] == {"": 400}
    assert numbers["dal_last_scan_seconds"] == {"": second.summary["seconds"]}
    assert set(numbers["dal_pause_seconds"]) == {"idle", "train", "score", "select"}


def pages(campaign: Campaign, address: str = "http://127.0.0.1:8000") -> TestClient:
    return TestClient(create_app(campaign, Options(user="ann")), base_url=address)


def test_the_pages_serve_the_campaign_in_numbers(campaign: Campaign) -> None:
    with pages(campaign) as client:
        assert client.get("/nothing").status_code == 404
        first = client.get("/metrics")
        assert first.headers["content-type"] == CONTENT_TYPE
        check(parsed(first.text), campaign)
        assert parsed(first.text)["dal_http_responses_total"] == {"2xx": 0, "4xx": 1, "5xx": 0}
        assert parsed(client.get("/metrics").text)["dal_http_responses_total"] == {"2xx": 1, "4xx": 1, "5xx": 0}


def test_the_numbers_are_behind_the_doors_of_the_pages(campaign: Campaign) -> None:
    assert pages(campaign, "http://example.org").get("/metrics").status_code == 403
    tokens = {role: Annotators(campaign).add(role, role) for role in ("annotator", "manager")}
    client = pages(campaign, "http://example.org")
    assert client.get("/metrics").status_code == 401
    answers = {
        role: client.get("/metrics", headers={"authorization": f"Bearer {token}"}) for role, token in tokens.items()
    }
    assert answers["annotator"].status_code == 403
    check(parsed(answers["manager"].text), campaign)


def until(true: Callable[[], bool], seconds: float = 60.0) -> None:
    ends = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < ends
        time.sleep(0.05)


@pytest.mark.slow
def test_a_run_serves_its_numbers(campaign: Campaign) -> None:
    command = [sys.executable, "-m", "dal", "run", str(campaign.directory), "--workers", "0", "--metrics", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=campaign.directory) as process:
        try:
            assert process.stdout is not None
            url = next(line for line in process.stdout if line.startswith("Metrics: ")).split()[1]
            assert url.startswith("http://127.0.0.1:")

            def numbers() -> dict[str, dict[str, float]]:
                return parsed(httpx.get(url).text)

            check(numbers(), campaign)
            assert numbers()["dal_scan_rows"] == {"": 0}
            Control(campaign).tell("close", "boss")
            until(lambda: numbers()["dal_round"] == {"": 3} and numbers()["dal_round_step"]["open"] == 1)
            now = numbers()
            assert now["dal_scan_rows"] == now["dal_scan_rows_done"] == {"": 400}
            assert now["dal_scan_rows_per_second"][""] > 0
            assert now["dal_scan_bytes_read"] == {"": 400 * 4 * 4}
            assert now["dal_log_messages_total"] == {"warning": 0, "error": 0, "critical": 0}
            Control(campaign).tell("stop", "boss")
            assert process.wait(timeout=30) == 0
        finally:
            process.kill()


def test_warnings_are_counted_while_they_are_watched() -> None:
    log = logging.getLogger("dal.somewhere")
    with logged() as counts:
        log.warning("once")
        log.error("twice")
        log.info("never")
        logging.getLogger("other").warning("not ours")
    log.warning("too late")
    assert counts.metric().values == {"warning": 1, "error": 1, "critical": 0}


def test_the_server_of_a_run_answers_what_it_can() -> None:
    answers = iter(["dal_x 1\n", "dal_x 2\n"])

    def read() -> str:
        for answer in answers:
            return answer
        raise DatabaseError("it fails just now", "mend it")

    with serving("127.0.0.1:0", read) as url:
        assert [httpx.get(url).text for _ in range(2)] == ["dal_x 1\n", "dal_x 2\n"]
        assert httpx.get(url).status_code == 503
        assert httpx.get(url.replace("metrics", "")).status_code == 404
        with pytest.raises(SettingsError, match="metrics"), serving(url.split("/")[2], read):
            pass
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(url, timeout=5)
    for nonsense in ("", "x", "127.0.0.1:99999", "127.0.0.1:"):
        with pytest.raises(SettingsError, match="metrics"), serving(nonsense, read):
            pass


# -- the guide ---------------------------------------------------------------------------------------------------------

GUIDE = (Path(__file__).parents[1] / "docs" / "operations.md").read_text(encoding="utf-8")


def test_the_guide_names_the_numbers_that_there_are(campaign: Campaign) -> None:
    with pages(campaign) as client:
        served = set(parsed(client.get("/metrics").text))
    watched = set(parsed(exposition([*progress_metrics(), Logged().metric()])))
    named = set(re.findall(r"`(dal_\w+)`", GUIDE))
    assert named == served | watched
    scrape, alerts = (yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", GUIDE, re.DOTALL))
    assert [job["job_name"] for job in scrape["scrape_configs"]] == ["dal-run", "dal-serve"]
    expressions = [rule["expr"] for group in alerts["groups"] for rule in group["rules"]]
    assert set(re.findall(r"dal_\w+", " ".join(expressions))) <= named

"""A real Label Studio server: push a batch, annotate and skip as two people, pull."""

import http.cookiejar
import json
import os
import re
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import dal
from dal import Campaign
from dal.cli import main
from dal.errors import ServerError, SettingsError
from dal.exchange import Server, pull_answers, push_batch
from dal.pool import Pool
from tests.conftest import missing_service
from tests.recipes import free_port

ROOT = Path(__file__).parents[1]
LABEL_STUDIO = Path(os.environ.get("DAL_LABEL_STUDIO", ROOT / ".venv-label-studio" / "bin" / "label-studio"))
FRESH = LABEL_STUDIO.parents[1] / "fresh"
"""An empty database as `label-studio init` makes it; without one the server takes a minute or two to make its own."""
STARTS_WITHIN = 240.0
LEGACY = "0123456789abcdef0123456789abcdef01234567"  # of a server that lives for this test, on loopback
CLASSES = ("ham", "spam", "naïve <&> 🐱")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start a server with an empty database, and end it by its process id."""
    if not LABEL_STUDIO.exists():
        missing_service(f"Label Studio ({LABEL_STUDIO})")
    port = free_port()
    folder = tmp_path_factory.mktemp("label-studio")
    if FRESH.exists():
        shutil.copytree(FRESH, folder, dirs_exist_ok=True)
    environment = os.environ | {
        "LABEL_STUDIO_USERNAME": "ann@example.com",
        "LABEL_STUDIO_PASSWORD": "only-on-loopback",
        "LABEL_STUDIO_USER_TOKEN": LEGACY,
        "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN": "true",
        "LATEST_VERSION_CHECK": "false",
        "COLLECT_ANALYTICS": "false",
        "SENTRY_DSN": "",
        "FRONTEND_SENTRY_DSN": "",
    }
    for name in ("PYTHONPATH", "PYTEST_CURRENT_TEST"):  # of this Python, not of that one
        environment.pop(name, None)
    arguments = [
        "start",
        "--no-browser",
        "--internal-host",
        "127.0.0.1",
        "--port",
        str(port),
        "--data-dir",
        str(folder),
    ]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [LABEL_STUDIO, *arguments], env=environment, stdout=log, stderr=log, cwd=folder, start_new_session=True
        )
        try:
            _wait(process, f"http://127.0.0.1:{port}", folder / "log")
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(30)


def _wait(process: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    deadline = time.monotonic() + STARTS_WITHIN
    while True:
        try:
            with urllib.request.urlopen(url + "/health", timeout=5):
                return
        except OSError:
            tail = log.read_text(errors="replace")[-2000:]
            assert process.poll() is None, f"Label Studio ended: {tail}"
            assert time.monotonic() < deadline, f"Label Studio did not start: {tail}"
            time.sleep(0.5)  # between two looks at what cannot tell us; the deadline above ends it


@pytest.fixture(scope="module")
def bobs_token(url: str) -> str:
    """Sign up a second person by an invitation, as a person does, and take a personal token from the account page."""
    invitation = Server(url, LEGACY).get("/api/invite")["invite_url"]
    jar = http.cookiejar.CookieJar()
    browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(jar))

    def post(path: str, body: bytes, kind: str) -> bytes:
        cookie = next(cookie.value for cookie in jar if cookie.name == "csrftoken")
        headers = {"Content-Type": kind, "X-CSRFToken": cookie or "", "Referer": url}
        with browser.open(urllib.request.Request(url + path, body, headers)) as answer:
            return answer.read()

    with browser.open(url + invitation) as page:
        form = re.search(rb'csrfmiddlewaretoken" value="([^"]+)"', page.read())
    assert form is not None
    fields = {
        "csrfmiddlewaretoken": form[1].decode(),
        "email": "bob@example.com",
        "password": "also-only-on-loopback",
        "allow_newsletters": "false",
        "how_find_us": "other",
    }
    post(invitation, urllib.parse.urlencode(fields).encode(), "application/x-www-form-urlencoded")
    token = json.loads(post("/api/token/", b"{}", "application/json"))["token"]
    assert isinstance(token, str)
    assert token.count(".") == 2
    return token


@pytest.fixture
def campaign(tmp_path: Path) -> Campaign:
    """A campaign in its second round, so that the batch has a model, predictions and an order."""
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 255, (400, 5, 4, 3), dtype=np.uint8)
    truth = pictures[:, 0, 0, 0] // 86
    ids = [f"=pic/{row:03d}.png" for row in range(400)]
    display = {"title": [f"title of <{row}> & co" for row in range(400)], "label": [row / 2 for row in range(400)]}
    pool = dal.Pool.build(pictures, tmp_path / "pool.zarr", ids=ids, display=display)
    made = dal.Campaign.create(tmp_path / "campaign", pool, CLASSES, batch_size=12, random_state=3)
    first = made.next_batch()
    assert isinstance(first, dal.Batch)
    made.label(first, truth[first.rows])
    assert isinstance(made.next_batch(), dal.Batch)
    return made


def chosen(shown: str, label: str) -> list[dict[str, object]]:
    return [{"from_name": "label", "to_name": shown, "type": "choices", "value": {"choices": [label]}}]


def annotate(server: Server, project: int, label: str | None, lead_time: float = 1.5) -> str:
    """Take the next record from the queue, as the labelling page does, and answer it; None skips."""
    task = server.get(f"/api/projects/{project}/next")
    body: dict[str, object] = (
        {"result": [], "was_cancelled": True} if label is None else {"result": chosen("image", label)}
    )
    server.send("POST", f"/api/tasks/{task['id']}/annotations", body | {"lead_time": lead_time})
    return str(task["data"]["record_id"])


def stored(campaign: Campaign) -> dict[tuple[str, str], str | None]:
    pool = Pool.open(campaign.settings.pool)
    latest = campaign.answers.latest(asked_in=2)
    names = [None if code < 0 else CLASSES[code] for code in latest.labels.tolist()]
    return dict(zip(zip(pool.record_ids(latest.rows), latest.annotators, strict=True), names, strict=True))


def test_a_batch_goes_to_the_server_and_the_answers_of_two_people_come_back(
    url: str, bobs_token: str, campaign: Campaign
) -> None:
    pool = Pool.open(campaign.settings.pool)
    ann, bob = Server(url, LEGACY), Server(url, bobs_token)
    batch = campaign.rounds.batch(2)
    pushed = push_batch(campaign, pool, 2, ann, "a campaign of tests")
    assert (pushed.new, pushed.there, pushed.answered) == (12, 0, 0)
    project = ann.get(f"/api/projects/{pushed.project}")
    assert (project["sampling"], project["model_version"]) == ("Sequential sampling", f"{campaign.id}-r002")

    # What people see: the picture itself, the fields, and what the model thinks.
    seen = ann.get(f"/api/tasks?project={pushed.project}&page_size=100&fields=all")["tasks"]
    assert [task["data"]["record_id"] for task in seen] == [record.record_id for record in batch]
    for task, record in zip(seen, batch, strict=True):
        assert task["data"]["title"] == f"title of <{record.row}> & co"
        assert task["data"]["field_1"] == record.row / 2
        assert task["data"]["image"].startswith("data:image/png;base64,")
        (prediction,) = task["predictions"]
        assert record.predicted is not None
        assert prediction["result"][0]["value"] == {"choices": [CLASSES[record.predicted]]}
        assert prediction["score"] == pytest.approx(record.confidence, abs=1e-6)

    again = push_batch(campaign, pool, 2, bob, str(pushed.project))
    assert (again.project, again.new, again.there) == (pushed.project, 0, 12)
    assert ann.get(f"/api/projects/{pushed.project}")["task_number"] == 12

    # The queue is in the order of asking; three answers and a skip, by two people.
    said: dict[tuple[str, str], str | None] = {}
    said[annotate(ann, pushed.project, "spam"), "ann@example.com"] = "spam"
    said[annotate(ann, pushed.project, None), "ann@example.com"] = None
    said[annotate(bob, pushed.project, CLASSES[2]), "bob@example.com"] = CLASSES[2]
    said[annotate(bob, pushed.project, "ham"), "bob@example.com"] = "ham"
    assert [record_id for record_id, _ in said] == [record.record_id for record in batch[:4]]
    report = pull_answers(campaign, pool, bob, "a campaign of tests")
    assert (report.new, report.changed, report.same, report.rejections) == (4, 0, 0, 0)
    assert stored(campaign) == said
    assert campaign.rounds.pending(2) == 8
    report = pull_answers(campaign, pool, ann, str(pushed.project))
    assert (report.new, report.changed, report.same, report.rejections) == (0, 0, 4, 0)
    assert stored(campaign) == said

    # The server takes anything; what it should not have taken is named, and the rest comes in.
    tasks = {task["data"]["record_id"]: task["id"] for task in seen}
    fifth, sixth, seventh = (tasks[record.record_id] for record in batch[4:7])
    ann.send("POST", f"/api/tasks/{fifth}/annotations", {"result": chosen("image", "eggs")})
    ann.send("POST", f"/api/tasks/{sixth}/annotations", {"result": []})
    ann.send("POST", f"/api/tasks/{seventh}/annotations", {"result": chosen("image", "ham")})
    foreign = {"data": {"image": "x", "record_id": "elsewhere", "title": "t", "field_1": 1.0}}
    (foreign_task,) = ann.send("POST", f"/api/projects/{pushed.project}/import?return_task_ids=true", [foreign])[
        "task_ids"
    ]
    bob.send("POST", f"/api/tasks/{foreign_task}/annotations", {"result": chosen("image", "ham")})
    report = pull_answers(campaign, pool, bob, str(pushed.project))
    assert (report.new, report.same, report.rejections) == (1, 4, 3)
    assert [(each.place, each.record_id) for each in report.rejected] == [
        ("$[4].annotations[0]", batch[4].record_id),
        ("$[5].annotations[0]", batch[5].record_id),
        ("$[7].annotations[0]", "elsewhere"),
    ]
    said[batch[6].record_id, "ann@example.com"] = "ham"
    assert stored(campaign) == said

    # A change of mind is an update there; of two annotations of one person, the later counts.
    first = ann.get(f"/api/tasks/{tasks[batch[0].record_id]}/annotations")[0]["id"]
    ann.send("PATCH", f"/api/annotations/{first}/", {"result": chosen("image", "ham")})
    bob.send("POST", f"/api/tasks/{tasks[batch[2].record_id]}/annotations", {"result": chosen("image", "spam")})
    report = pull_answers(campaign, pool, ann, str(pushed.project))
    assert (report.new, report.changed, report.same) == (0, 2, 3)
    said[batch[0].record_id, "ann@example.com"] = "ham"
    said[batch[2].record_id, "bob@example.com"] = "spam"
    assert stored(campaign) == said
    assert pull_answers(campaign, pool, ann, str(pushed.project)).changed == 0


def test_the_command_line_pushes_and_pulls(url: str, bobs_token: str, campaign: Campaign) -> None:
    environment = {"LABEL_STUDIO_URL": url, "LABEL_STUDIO_API_KEY": bobs_token}

    def run(*arguments: object) -> str:
        result = CliRunner().invoke(main, ["label", *map(str, arguments)], env=environment)
        assert result.exit_code == 0, result.output
        return result.output

    shown = run("push", campaign.directory)
    assert "12 tasks made, 0 there already" in shown
    assert "0 tasks made, 12 there already" in run("push", campaign.directory)
    project = re.search(r"/projects/(\d+)/data", shown)
    assert project is not None
    annotate(Server(url, bobs_token), int(project[1]), "spam")
    assert "1 new, 0 changed" in run("pull", campaign.directory)
    assert "0 new, 0 changed, 1 known already" in run("pull", campaign.directory)
    assert list(stored(campaign).values()) == ["spam"]
    campaign.rounds.close(campaign.rounds.get(2))


def test_what_a_server_refuses_is_said(url: str, campaign: Campaign) -> None:
    pool = Pool.open(campaign.settings.pool)
    with pytest.raises(ServerError, match=r"refuses the token \(401\), sent as a legacy token"):
        push_batch(campaign, pool, 2, Server(url, "0" * 40), "a campaign")
    with pytest.raises(ServerError, match=r"refuses the token \(401\), sent as a personal access token"):
        push_batch(campaign, pool, 2, Server(url, "a.b.c"), "a campaign")
    with pytest.raises(ServerError, match=r"`project`.*'nothing of that kind'"):
        pull_answers(campaign, pool, Server(url, LEGACY), "nothing of that kind")
    with pytest.raises(ServerError, match="404"):
        pull_answers(campaign, pool, Server(url, LEGACY), "99999")
    choices = '<Choices name="label" toName="text"><Choice value="a"/></Choices>'
    page = f'<View><Text name="text" value="$text"/>{choices}</View>'
    made = Server(url, LEGACY).send("POST", "/api/projects", {"title": "of others", "label_config": page})
    with pytest.raises(SettingsError, match="labelling page of project"):
        push_batch(campaign, pool, 2, Server(url, LEGACY), str(made["id"]))
    with pytest.raises(SettingsError, match="3 to 50 characters"):
        push_batch(campaign, pool, 2, Server(url, LEGACY), "ab")

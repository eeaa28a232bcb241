"""The pages in a real browser: nothing typed is lost or credited to another record, whatever happens to the server."""

import json
import multiprocessing
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, Route
from sklearn.datasets import load_digits

from dal import Campaign
from dal.campaign import Annotators, Labelling, Queue, Storage
from dal.campaign.control import Control
from dal.campaign.examples import Examples
from dal.loop.campaign import Batch
from dal.pool import Pool
from tests import databases
from tests.pages import Opened, all_sent, in_state, on_screen

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

SHOTS = os.environ.get("DAL_SHOTS")
"""A folder for pictures of every state, to be looked at."""

EVIL = "<img src=x onerror=\"document.body.dataset.evil='yes'\"><b>bold</b>"
Serve = Callable[[Campaign], "Served"]


# -- what the tests stand on -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, np.ndarray]:
    X, y = load_digits(return_X_y=True)
    pixels = (X * 15.9).astype(np.uint8).reshape(-1, 8, 8, 1)
    path = tmp_path_factory.mktemp("digits") / "pool.zarr"
    texts = [EVIL if row % 2 else f"digit of person {row % 43}" for row in range(len(y))]
    Pool.build(pixels, path, ids=[f"digit-{row}" for row in range(len(y))], display={"note": texts})
    return str(path), y


def made(digits: tuple[str, np.ndarray], directory: Path, **options: object) -> Campaign:
    return Campaign.create(directory, digits[0], list("0123456789"), **{"batch_size": 60, "random_state": 3, **options})


class Served:
    """`dal serve` as a process, which can be killed and started again at the same address."""

    def __init__(self, campaign: Campaign) -> None:
        self.campaign = campaign
        self.port = 0
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "dal", "serve", str(self.campaign.directory), "--user", "ann"]
        self.process = subprocess.Popen([*command, "--port", str(self.port)], stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+)/", line)
        assert found, line
        self.port = int(found.group(1))
        self.url = f"http://127.0.0.1:{self.port}/"

    def kill(self) -> None:
        with self.process:  # may be called again
            self.process.kill()


@pytest.fixture
def serve() -> Iterator[Serve]:
    started: list[Served] = []

    def serving(campaign: Campaign) -> Served:
        started.append(Served(campaign))
        return started[-1]

    yield serving
    for each in started:
        each.kill()


def watch(page: Page) -> None:
    """Note, in the page and before its own code, which record is on screen at every key."""
    page.evaluate(
        """() => { window.pressed = []; document.addEventListener("keydown", (event) => window.pressed.push(
            [document.querySelector("#record header .id")?.textContent ?? null, event.key]), true); }"""
    )


def answers(campaign: Campaign) -> dict[str, int]:
    known = campaign.answers.latest()
    return {f"digit-{row}": label for row, label in zip(known.rows.tolist(), known.labels.tolist(), strict=True)}


def right(page: Page, campaign: Campaign, n: int) -> None:
    """Every key stands as the answer to the record that was on screen when it was pressed, and nothing else does."""
    all_sent(page)
    pressed = page.evaluate("window.pressed")
    assert len(pressed) == n
    expected = {record: (int(key) + 9) % 10 for record, key in pressed}
    assert None not in expected
    assert len(expected) == n
    assert answers(campaign) == expected


def shot(page: Page, name: str) -> None:
    if SHOTS:
        Path(SHOTS).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=f"{SHOTS}/{name}.png")


def burn(until: float) -> None:
    while time.monotonic() < until:
        sum(range(10_000))


KEYS = np.random.default_rng(8).integers(0, 10, 200).tolist()


# -- nothing is lost ---------------------------------------------------------------------------------------------------


def test_forty_keys_while_the_machine_is_busy_are_forty_right_answers(
    digits: tuple[str, np.ndarray], tmp_path: Path, serve: Serve, opened: Opened
) -> None:
    campaign = made(digits, tmp_path / "c")
    campaign.next_batch()
    page = opened()
    page.goto(serve(campaign).url)
    in_state(page, "record")
    watch(page)
    spawn = multiprocessing.get_context("spawn")
    burning = [spawn.Process(target=burn, args=(time.monotonic() + 8,)) for _ in range(os.cpu_count() or 2)]
    for each in burning:
        each.start()
    for key in KEYS[:40]:
        page.keyboard.press(str(key))
        page.wait_for_timeout(120)
    for each in burning:
        each.join()
    right(page, campaign, 40)


def test_a_server_killed_in_mid_typing_loses_nothing(
    digits: tuple[str, np.ndarray], tmp_path: Path, serve: Serve, opened: Opened
) -> None:
    campaign = made(digits, tmp_path / "c")
    campaign.next_batch()
    server = serve(campaign)
    page = opened()
    page.goto(server.url)
    in_state(page, "record")
    watch(page)
    # Fewer than the page holds at first: where the server is slow, no more of them come before it is killed.
    for at, key in enumerate(KEYS[:14]):
        if at == 8:
            server.kill()  # whatever request is under way
        page.keyboard.press(str(key))
        page.wait_for_timeout(60)
    page.locator("#unsent").wait_for()
    assert "kept on this computer" in page.locator("#remark").inner_text()
    shot(page, "offline")
    server.start()
    right(page, campaign, 14)
    page.locator("#unsent").wait_for(state="hidden")
    in_state(page, "record")
    # Killed again, and the page is closed before the server is back.
    server.kill()
    last = on_screen(page)
    page.keyboard.press("7")
    page.wait_for_function("before => document.querySelector('#record header .id')?.textContent !== before", arg=last)
    page.close(run_before_unload=False)
    server.start()
    again = page.context.new_page()
    again.goto(server.url)
    in_state(again, "record")
    all_sent(again)
    assert answers(campaign)[last] == 6
    assert len(answers(campaign)) == 15


@pytest.mark.parametrize("kept_in", ["file", "server"])
def test_answers_given_while_the_database_is_away_arrive_once_and_pages_opened_meanwhile_go_on(
    digits: tuple[str, np.ndarray], tmp_path: Path, serve: Serve, opened: Opened, kept_in: str
) -> None:
    with databases.running() if kept_in == "server" else nullcontext("") as home:
        campaign = made(digits, tmp_path / "c", storage=Storage(database=databases.fresh_schema(home) if home else ""))
        campaign.next_batch()
        link = f"enter#{Annotators(campaign).add('ann')}" if home else ""
        server = serve(campaign)
        page = opened()
        page.goto(server.url + link)
        in_state(page, "record")
        watch(page)
        away = tmp_path / "away"
        if home:
            databases.stop(home)
        else:
            campaign.directory.rename(away)
        for key in KEYS[:8]:
            page.keyboard.press(str(key))
            page.wait_for_timeout(60)
        page.get_by_text("The campaign's database fails just now").first.wait_for()
        shot(page, f"database-away-{kept_in}")
        late = opened()
        late.goto(server.url + link)
        late.get_by_text("This page tries again automatically").first.wait_for()
        assert str(tmp_path) not in late.locator("body").inner_text()
        shot(late, f"opened-meanwhile-{kept_in}")
        boss = opened()
        boss.goto(f"{server.url}campaign")
        boss.get_by_text("This page tries again automatically").wait_for()
        if home:
            databases.start(home)
        else:
            away.rename(campaign.directory)
        right(page, campaign, 8)
        assert len(list(campaign.answers.log())) == 8
        in_state(late, "record")
        boss.get_by_text("Your link is needed" if home else "round 1, labelling").first.wait_for()


def test_a_logout_takes_records_back_and_asks_for_the_link(
    digits: tuple[str, np.ndarray], tmp_path: Path, serve: Serve, opened: Opened
) -> None:
    campaign = made(digits, tmp_path / "c", batch_size=10)
    campaign.next_batch()
    links = {name: Annotators(campaign).add(name, role) for name, role in (("ann", "annotator"), ("boss", "manager"))}
    server = serve(campaign)
    for name in links:
        page = opened()
        page.goto(f"{server.url}enter#{links[name]}")
        page.get_by_role("button", name="Log out").wait_for()
        shot(page, f"log-out-{name}")
        if name == "ann":
            in_state(page, "record")
            page.keyboard.press("1")
        page.get_by_role("button", name="Log out").click()
        page.get_by_role("heading", name="Your link is needed").wait_for()
        assert page.context.cookies() == []
        page.goto(server.url)
        in_state(page, "token")
    assert len(answers(campaign)) == 1
    assert len(Queue(campaign).lease("bob", 10)) == 9


@pytest.mark.parametrize("button", ["Log out", "Stop for now"])
def test_one_who_stops_while_an_answer_is_under_way_holds_no_records(
    digits: tuple[str, np.ndarray], tmp_path: Path, serve: Serve, opened: Opened, button: str
) -> None:
    campaign = made(digits, tmp_path / "c", batch_size=10)
    campaign.next_batch()
    link = Annotators(campaign).add("ann", "annotator")
    page = opened()
    page.goto(f"{serve(campaign).url}enter#{link}")
    in_state(page, "record")
    held: list[Route] = []
    page.route("**/api/answers", lambda route: held.append(route), times=1)
    with page.expect_request("**/api/answers"):
        page.keyboard.press("1")
    page.get_by_role("button", name=button).click()
    with page.expect_response("**/api/release"):
        held[0].continue_()
    assert len(answers(campaign)) == 1
    assert len(Queue(campaign).lease("bob", 10)) == 9


def test_an_image_that_the_server_could_not_give_in_time_comes_when_it_is_back(
    digits: tuple[str, np.ndarray], tmp_path: Path, serve: Serve, opened: Opened
) -> None:
    campaign = made(digits, tmp_path / "c", batch_size=12)
    campaign.next_batch()
    page = opened()
    gone: list[Route] = []

    def away(route: Route) -> None:
        # As from a server that is down, from a proxy before it, and from one that asks for a moment.
        gone.append(route)
        if len(gone) % 3 == 0:
            route.abort()
        else:
            route.fulfill(status=(429, 502)[len(gone) % 2], body="<h1>Bad gateway</h1>")

    page.route("**/media/**", away)
    page.goto(serve(campaign).url)
    page.get_by_alt_text("The image appears as soon as the server can be reached.").wait_for()
    in_state(page, "record")
    shot(page, "image-waits")
    page.unroute("**/media/**")
    page.wait_for_function("() => document.querySelector('#record img').naturalWidth > 0")
    assert page.locator("#record img").get_attribute("alt") == f"Record {on_screen(page)}"
    in_state(page, "record")


def test_a_batch_that_closes_early_is_not_said_to_be_answered_whole(
    digits: tuple[str, np.ndarray], tmp_path: Path, serve: Serve, opened: Opened
) -> None:
    campaign = made(digits, tmp_path / "c", batch_size=10, labelling=Labelling(close_at=0.9))
    batch = campaign.next_batch()
    assert isinstance(batch, Batch)
    [held] = Queue(campaign).lease("bob", 1)
    rest = batch.rows != held.row
    campaign.label(np.array(batch.record_ids)[rest].tolist(), digits[1][batch.rows[rest]])
    campaign.rounds.close(campaign.rounds.get(1))
    page = opened()
    page.goto(serve(campaign).url)
    in_state(page, "between")
    assert "Enough of its records have an answer" in page.locator("#record").inner_text()


class Prefix(BaseHTTPRequestHandler):
    """A proxy that strips a path, and knows neither websockets nor anything else beyond plain requests."""

    protocol_version = "HTTP/1.0"
    upstream = 0
    START = "/user/ann/proxy/"

    def do_GET(self) -> None:
        if not self.path.startswith(self.START) or "upgrade" in self.headers:
            self.send_error(404)
            return
        behind = HTTPConnection("127.0.0.1", self.upstream)
        body = self.rfile.read(int(self.headers.get("content-length", 0))) or None
        hop = ("connection", "accept-encoding", "content-length", "transfer-encoding")
        headers = {name: value for name, value in self.headers.items() if name.lower() not in hop}
        behind.request(self.command, "/" + self.path.removeprefix(self.START), body, headers)
        answer = behind.getresponse()
        content = answer.read()
        behind.close()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in (*hop, "date"):
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    do_POST = do_GET  # noqa: N815 - the base class's names

    def log_message(self, *_: object) -> None:
        """Write no line of a log."""


@contextmanager
def behind_a_proxy(port: int) -> Iterator[str]:
    handler = type("Handler", (Prefix,), {"upstream": port})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as proxy:
        threading.Thread(target=proxy.serve_forever).start()
        try:
            yield f"http://127.0.0.1:{proxy.server_port}{Prefix.START}"
        finally:
            proxy.shutdown()


def test_two_annotators_behind_a_proxy_never_get_the_same_record(
    digits: tuple[str, np.ndarray], tmp_path: Path, serve: Serve, opened: Opened
) -> None:
    campaign = made(digits, tmp_path / "c", batch_size=24)
    campaign.next_batch()
    tokens = {name: Annotators(campaign).add(name) for name in ("ann", "bob")}
    server = serve(campaign)
    stranger = opened()
    stranger.goto(server.url)
    in_state(stranger, "token")
    shot(stranger, "token")
    with behind_a_proxy(server.port) as url:
        pages = {name: opened() for name in tokens}
        for name, page in pages.items():
            page.goto(f"{url}enter#wrong")
            page.get_by_role("heading", name="This link does not work").wait_for()
            shot(page, "link")
            page.goto(f"{url}enter#{tokens[name]}")
            page.wait_for_url(url)
            in_state(page, "record")
            [cookie] = page.context.cookies()
            assert (cookie["httpOnly"], cookie["sameSite"], cookie["path"]) == (
                True,
                "Strict",
                Prefix.START.rstrip("/"),
            )
            watch(page)
        while any(page.evaluate("document.body.dataset.state") in ("record", "loading") for page in pages.values()):
            for page in pages.values():
                if page.evaluate("document.body.dataset.state") == "record":
                    page.keyboard.press("1")
                page.wait_for_timeout(30)
        seen = {name: {record for record, _ in page.evaluate("window.pressed")} for name, page in pages.items()}
        for page in pages.values():
            all_sent(page)
            assert not page.get_by_role("link", name="Campaign").is_visible()
    assert all(seen.values())
    assert not seen["ann"] & seen["bob"]
    assert seen["ann"] | seen["bob"] == {each.record_id for each in campaign.rounds.batch(1)} == set(answers(campaign))


def test_three_rounds_are_labelled_through_the_page(
    digits: tuple[str, np.ndarray], tmp_path: Path, serve: Serve, opened: Opened
) -> None:
    campaign = made(digits, tmp_path / "digits", batch_size=20, stop=["max_labels=60"])
    server = serve(campaign)
    page = opened()
    page.goto(server.url)
    in_state(page, "waiting")
    shot(page, "waiting")
    for number in (1, 2, 3):
        assert isinstance(campaign.next_batch(), Batch)
        in_state(page, "record")
        assert page.locator("#round").inner_text() == f"round {number}"
        for _ in range(20):
            in_state(page, "record")
            row = int(on_screen(page).removeprefix("digit-"))
            page.keyboard.press(str((int(digits[1][row]) + 1) % 10))
        in_state(page, "between")
        shot(page, "between")
    campaign.next_batch()
    in_state(page, "stopped")
    assert "60 of 60 labels are known" in page.locator("#record").inner_text()
    shot(page, "stopped")
    assert answers(campaign) == {f"digit-{row}": digits[1][row] for row in campaign.rounds.asked_rows().tolist()}
    # An answer of the last round is still there to be looked at.
    page.keyboard.press("ArrowLeft")
    in_state(page, "record")
    assert "your answer:" in page.locator("#record header").inner_text()
    page.goto(f"{server.url}campaign")
    page.locator("[data-figure=accuracy] .bk-Figure").wait_for()
    page.locator("[data-figure=bias] .bk-Figure").wait_for()
    assert page.locator("#labels").inner_text() == "60"
    shot(page, "campaign-stopped")


# -- what people do ----------------------------------------------------------------------------------------------------


def test_everything_is_done_by_keyboard_alone(
    digits: tuple[str, np.ndarray], tmp_path: Path, serve: Serve, opened: Opened
) -> None:
    campaign = made(digits, tmp_path / "c", batch_size=12)
    (campaign.directory / "guidelines.md").write_text(f"Look twice. {EVIL}")
    campaign.next_batch()
    page = opened()
    page.goto(serve(campaign).url)
    in_state(page, "record")
    keys = page.keyboard
    first = on_screen(page)
    keys.press("1")
    second = on_screen(page)
    keys.press("2")
    keys.press("Space")
    keys.press("Shift+Space")
    page.locator("#reason-dialog").wait_for()
    shot(page, "reasons")
    keys.press("2")
    keys.press("Space")  # the reason given last
    assert page.locator("#previous .took").count() == 5
    assert page.locator("#previous").inner_text().count("skipped (broken)") == 2
    # Undo, of any depth, and back again by another answer.
    for _ in range(5):
        keys.press("u")
    assert on_screen(page) == first
    assert page.locator("#record header").inner_text().endswith("was 0")
    assert "Took back 0" in page.locator("#say").inner_text()
    shot(page, "undone")
    keys.press("3")
    # An earlier answer is looked at and changed; what was on screen comes back.
    here = on_screen(page)
    assert here == second
    keys.press("ArrowLeft")
    assert on_screen(page) == first
    shot(page, "looking")
    keys.press("9")
    assert on_screen(page) == here
    keys.press("/")
    keys.type("7")
    shot(page, "search")
    keys.press("Enter")
    all_sent(page)
    assert {answers(campaign)[each] for each in (first, second)} == {8, 7}
    # A held key answers once.
    before = on_screen(page)
    keys.down("5")
    for _ in range(5):
        keys.down("5")
    keys.up("5")
    all_sent(page)
    assert answers(campaign)[before] == 4
    assert len(answers(campaign)) == 3
    keys.press("?")
    page.locator("#help-dialog").wait_for()
    shot(page, "help")
    keys.press("4")  # not while a dialog is open
    keys.press("Escape")
    keys.press("g")
    page.locator("#guide-dialog[open]").wait_for()
    assert page.locator("#guide-text").inner_text() == f"Look twice. {EVIL}"
    shot(page, "guidelines")
    keys.press("Escape")
    assert len(answers(campaign)) == 3
    # More like this: by its key, and by Enter on its button, which keeps the focus.
    shown = on_screen(page)
    badge = page.locator("#record header", has_text="more like this")
    keys.press("m")
    badge.wait_for()
    assert Examples(campaign).rows() == [int(shown.removeprefix("digit-"))]
    assert page.locator("#more").get_attribute("aria-pressed") == "true"
    shot(page, "more")
    page.locator("#more").focus()
    keys.press("Enter")
    badge.wait_for(state="detached")
    assert Examples(campaign).count() == 0
    assert page.evaluate("document.activeElement.id") == "more"
    assert f"more like {shown}" in page.locator("#say").inner_text()
    assert len(answers(campaign)) == 3
    # By the tabulator key, too: Enter presses the button that has the focus.
    page.locator("#classes button").nth(2).focus()
    shown = on_screen(page)
    keys.press("Enter")
    all_sent(page)
    assert answers(campaign)[shown] == 2
    # A reload brings the same answers back, and undo goes on.
    page.reload()
    in_state(page, "record")
    assert page.locator("#previous .took").count() == 4
    keys.press("Backspace")
    page.wait_for_function("wanted => document.querySelector('#record header .id')?.textContent === wanted", arg=shown)
    assert page.locator("body[data-evil]").count() == 0


def test_a_manager_who_only_looks_holds_no_records(
    digits: tuple[str, np.ndarray], tmp_path: Path, serve: Serve, opened: Opened
) -> None:
    campaign = made(digits, tmp_path / "c", batch_size=12)
    campaign.next_batch()
    token = Annotators(campaign).add("boss", "manager")
    server = serve(campaign)
    page = opened()

    def left_for_others(n: int) -> bool:
        until = time.monotonic() + 30
        while (left := Queue(campaign).progress("ann").left) != n and time.monotonic() < until:
            page.wait_for_timeout(50)
        return left == n

    page.goto(f"{server.url}enter#{token}")
    page.wait_for_url(f"{server.url}campaign")
    assert left_for_others(12)
    page.get_by_role("link", name="Label").press("Enter")
    in_state(page, "record")
    assert left_for_others(0)
    page.get_by_role("link", name="Campaign").press("Enter")
    page.wait_for_url(f"{server.url}campaign")
    assert left_for_others(12)


def test_a_click_leaves_no_focus_that_space_would_press_again(
    digits: tuple[str, np.ndarray], tmp_path: Path, serve: Serve, opened: Opened
) -> None:
    campaign = made(digits, tmp_path / "c", batch_size=12)
    campaign.next_batch()
    page = opened()
    page.goto(serve(campaign).url)
    in_state(page, "record")
    first = on_screen(page)
    page.get_by_role("button", name="4", exact=False).first.click()
    second = on_screen(page)
    page.keyboard.press("Space")
    all_sent(page)
    assert (answers(campaign)[first] >= 0, answers(campaign)[second]) == (True, -1)


def refused(status: int, route: Route) -> None:
    route.fulfill(status=status, json={"detail": f"No: {status}"})


# -- every state -------------------------------------------------------------------------------------------------------


def test_every_state_says_what_it_is(
    digits: tuple[str, np.ndarray], tmp_path: Path, serve: Serve, opened: Opened
) -> None:
    campaign = made(digits, tmp_path / "c", batch_size=12)
    campaign.next_batch()
    tokens = {name: Annotators(campaign).add(name) for name in ("ann", "bob")}
    server = serve(campaign)
    ann, bob = opened(intercepted=True), opened(intercepted=True)

    def stage(page: Page) -> str:
        text: str = page.locator("#record").inner_text()
        return text

    for name, page in (("ann", ann), ("bob", bob)):
        page.goto(f"{server.url}enter#{tokens[name]}")
        page.wait_for_url(server.url)
    in_state(ann, "record", "others")
    in_state(bob, "record", "others")
    # One has all but one or none of the batch in hand; the other hands hers back and takes what is left.
    first, other = (ann, bob) if ann.evaluate("document.body.dataset.state") == "record" else (bob, ann)
    shot(first, "record")
    other.evaluate("localStorage.clear()")
    while other.evaluate("document.body.dataset.state") == "record":
        other.keyboard.press("1")
        other.wait_for_timeout(50)
    in_state(other, "others")
    assert "with others" in stage(other)
    shot(other, "others")
    # Handing back: the records go to the other one by themselves.
    first.get_by_role("button", name="Stop for now").click()
    in_state(first, "finished")
    shot(first, "finished")
    in_state(other, "record")
    # Paused and on again.
    Control(campaign).tell("pause", "boss")
    in_state(other, "paused")
    assert "Paused by boss" in stage(other)
    shot(other, "paused")
    Control(campaign).tell("resume", "boss")
    in_state(other, "record")
    # Closed while a record is on screen: it goes; an answer on its way is kept, late.
    other.route("**/api/renew", lambda route: route.abort())
    shown = on_screen(other)
    Control(campaign).tell("close", "boss")
    # The answer to the answer then tells two things at once: that the round is closed, and that it came late.
    other.wait_for_function("async () => (await (await fetch('api/state')).json()).phase !== 'open'")
    other.keyboard.press("2")
    other.wait_for_function("() => document.querySelector('#remark')?.textContent.includes('came late')")
    shot(other, "late")
    all_sent(other)
    assert answers(campaign)[shown] == 1
    other.unroute("**/api/renew")
    # What is left of a closed batch is served on; once it is answered, there is nothing until the next one.
    in_state(other, "record")
    while other.evaluate("document.body.dataset.state") == "record":
        other.keyboard.press("1")
        other.wait_for_timeout(50)
    all_sent(other)
    # In preparation.
    pool, settings = campaign.rounds.all()[0], campaign.settings
    campaign.rounds.freeze(
        pool_fingerprint=pool.pool_fingerprint,
        n_rows=pool.n_rows,
        k=12,
        explore=0.05,
        seed=3,
        strategy=settings.strategy,
    )
    in_state(other, "training")
    assert "Round 2 is in preparation" in stage(other)
    shot(other, "training")
    campaign.next_batch()
    in_state(other, "record")

    # An answer that the server does not accept brings its record back.
    def spoiled(route: Route) -> None:
        sent = json.loads(route.request.post_data)
        for each in sent["answers"]:
            each["label"] = 99
        route.continue_(post_data=json.dumps(sent))

    shown = on_screen(other)
    other.route("**/api/answers", spoiled)
    other.keyboard.press("3")
    other.get_by_text("not accepted").wait_for()
    assert on_screen(other) == shown
    shot(other, "refused")
    other.unroute("**/api/answers")
    other.keyboard.press("3")
    all_sent(other)
    # A lease that went to somebody else.
    other.route("**/api/renew", lambda route: route.fulfill(json={"rows": []}))
    other.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    other.get_by_text("went to somebody else").wait_for()
    shot(other, "lost")
    other.unroute("**/api/renew")
    # An image that cannot be shown: Space skips it as broken.
    in_state(other, "record")
    broken = opened()
    broken.route("**/media/**", lambda route: route.fulfill(status=409, json={"detail": "gone"}))
    broken.context.add_cookies(other.context.cookies())
    broken.goto(server.url)
    in_state(broken, "broken")
    assert "cannot be shown" in stage(broken)
    shot(broken, "broken")
    shown = on_screen(broken)
    broken.keyboard.press("Space")
    all_sent(broken)
    [past] = [
        each
        for each in broken.evaluate("fetch('api/history').then((a) => a.json())")["answers"]
        if each["record_id"] == shown
    ]
    assert (past["status"], past["skip_reason"]) == ("skipped", "broken")
    # Too many requests, not allowed, and a server that is gone.
    for status, state in ((403, "forbidden"), (401, "token")):
        page = opened()
        # A default in the lambda would be given the request: the handler takes it as its second argument.
        page.route("**/api/state", partial(refused, status))
        page.goto(server.url)
        in_state(page, state)
        assert f"No: {status}" in stage(page)
        shot(page, state)
    late = opened()
    late.route("**/api/state", lambda route: route.abort())
    late.goto(server.url)
    in_state(late, "gone")
    shot(late, "gone")
    slow = opened()
    slow.route("**/api/state", lambda _: None)  # never answered
    slow.goto(server.url)
    in_state(slow, "loading")
    shot(slow, "loading")
    assert slow.locator("#classes button").count() == 0
    Annotators(campaign).revoke("bob")
    Annotators(campaign).revoke("ann")
    in_state(other, "token")


# -- how it looks ------------------------------------------------------------------------------------------------------

CONTRAST = """() => {
  const parse = (text) => (text.match(/[\\d.]+/g) ?? []).map(Number);
  const paper = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const [r, g, b, a = 1] = parse(getComputedStyle(at).backgroundColor);
      if (a > 0.99) return [r, g, b];
    }
    return matchMedia("(prefers-color-scheme: dark)").matches ? [0, 0, 0] : [255, 255, 255];
  };
  const light = (rgb) => {
    const [r, g, b] = rgb.map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const bad = [];
  for (const element of document.body.querySelectorAll("*")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!own || !element.checkVisibility() || element.closest(":disabled, .figure, noscript, .hidden")) continue;
    const [a, b] = [light(parse(getComputedStyle(element).color)), light(paper(element))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) bad.push([element.textContent.trim().slice(0, 40), ratio.toFixed(2)]);
  }
  return bad;
}"""

NAMED = """() => [...document.querySelectorAll("button, a, input")].filter((each) => each.checkVisibility())
    .every((each) => (each.getAttribute("aria-label") ?? each.textContent).trim())"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [(1280, 720), (390, 844)])
def test_pages_can_be_read_in_any_light_and_on_any_screen(
    scheme: str, size: tuple[int, int], digits: tuple[str, np.ndarray], tmp_path: Path, serve: Serve, opened: Opened
) -> None:
    campaign = made(digits, tmp_path / "digits", batch_size=20)
    (campaign.directory / "guidelines.md").write_text("Look twice.")
    campaign.next_batch()
    width, height = size
    url = serve(campaign).url
    page = opened(viewport={"width": width, "height": height}, color_scheme=scheme)
    page.goto(url)
    in_state(page, "record")
    for key in ("1", "2", "Space", "4"):
        page.keyboard.press(key)
    page.locator("#record img").wait_for()
    page.wait_for_function("() => document.querySelector('#record img').complete")
    all_sent(page)
    shot(page, f"label-{scheme}-{width}")
    assert page.evaluate(CONTRAST) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for thing in ("#record img", "#classes button:last-child", "#skip", "#undo"):
        box = page.locator(thing).bounding_box()
        assert box is not None
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width + 1
        assert box["y"] + box["height"] <= height + 1, thing
    # Everything that can be pressed has a name for those who do not see it.
    assert page.evaluate(NAMED)
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    page.goto(f"{url}campaign")
    page.locator("[data-figure=balance] .bk-Figure").wait_for()
    page.wait_for_timeout(800)
    shot(page, f"campaign-{scheme}-{width}")
    assert page.evaluate(CONTRAST) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(NAMED)
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()


def test_bokeh_needs_what_the_chart_policy_allows_and_no_more(
    digits: tuple[str, np.ndarray], tmp_path: Path, serve: Serve, opened: Opened
) -> None:
    # Of two rounds, with a learning curve, which has tools.
    campaign = made(digits, tmp_path / "c", batch_size=20, explore=0.3)
    for _ in range(3):
        batch = campaign.next_batch()
        assert isinstance(batch, Batch)
        campaign.label(batch, digits[1][batch.rows])
    url = serve(campaign).url
    noted = "addEventListener('securitypolicyviolation', (e) => (window.broken ??= []).push(e.effectiveDirective))"

    def broken(policy: Callable[[str], str]) -> set[str]:
        page = opened()
        page.add_init_script(noted)

        def changed(route: Route) -> None:
            answer = route.fetch()
            headers = dict(answer.headers)
            headers["content-security-policy"] = policy(headers["content-security-policy"])
            route.fulfill(response=answer, headers=headers)

        # The page alone: a route for what it asks for again and again would be in mid-flight when the server ends.
        page.route(f"{url}campaign", changed)
        page.goto(f"{url}campaign")
        page.locator("[data-figure=accuracy] .bk-Figure").wait_for()
        page.wait_for_timeout(1000)
        found: list[str] = page.evaluate("window.broken ?? []")
        return set(found)

    assert broken(lambda policy: policy) == set()
    assert any(each.startswith("style-src") for each in broken(lambda policy: policy.replace(" 'unsafe-inline'", "")))
    assert "img-src" in broken(lambda policy: policy.replace("img-src 'self' data:", "img-src 'self'"))


def test_figures_that_are_drawn_again_leave_nothing_behind(
    digits: tuple[str, np.ndarray], tmp_path: Path, serve: Serve, opened: Opened
) -> None:
    campaign = made(digits, tmp_path / "c", batch_size=20, explore=0.3)
    for _ in range(3):
        batch = campaign.next_batch()
        assert isinstance(batch, Batch)
        campaign.label(batch, digits[1][batch.rows])
    page = opened(color_scheme="light")
    page.goto(f"{serve(campaign).url}campaign")
    drawn = "() => [Bokeh.index.roots.length, Bokeh.documents.length, document.querySelectorAll('.bk-Figure').length]"

    def figures() -> list[int]:
        # The last of them is the time between batches; then all are there.
        page.locator("[data-figure=pauses] .bk-Figure").wait_for()
        page.wait_for_timeout(500)
        found: list[int] = page.evaluate(drawn)
        return found

    first = figures()
    assert min(first) >= 5
    for scheme in ("dark", "light", "dark"):
        page.evaluate("document.querySelector('[data-figure=pauses] .figure').firstElementChild.remove()")
        page.emulate_media(color_scheme=scheme)
        assert figures() == first


def test_a_manager_steers_on_the_campaign_page(
    digits: tuple[str, np.ndarray], tmp_path: Path, serve: Serve, opened: Opened
) -> None:
    campaign = made(digits, tmp_path / "c", batch_size=20)
    campaign.next_batch()
    page = opened()
    page.goto(f"{serve(campaign).url}campaign")
    page.get_by_role("button", name="Stop the campaign").click()
    shot(page, "sure")
    page.get_by_role("button", name="Cancel").click()
    assert Control(campaign).history() == []
    page.get_by_role("button", name="Pause").click()
    page.locator("#yes").click()
    page.get_by_role("button", name="Go on").wait_for()
    assert "paused" in page.locator("#phase").inner_text()
    page.get_by_role("button", name="Go on").click()
    page.locator("#yes").click()
    page.get_by_role("button", name="Pause").wait_for()
    assert [(each.act, each.person) for each in Control(campaign).history()] == [("pause", "ann"), ("resume", "ann")]
    with page.expect_download() as downloaded:
        page.get_by_role("link", name="CSV").click()
    assert Path(downloaded.value.path()).read_text("utf-8-sig").startswith("record_id,row,round,annotator")

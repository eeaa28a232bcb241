"""The pages in a real browser, while clocks, storage, addresses and people change under them."""

import json
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest

from dal import Campaign
from dal.campaign import Annotators
from dal.campaign.control import Control
from dal.pool import Pool
from tests.pages import Opened, all_sent, in_state, on_screen
from tests.servers import running

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

N, BATCH = 120, 40


def texts(path: Path) -> Pool:
    X = np.random.default_rng(3).normal(size=(N, 4)).astype(np.float32)
    return Pool.build(X, path, display={"text": [f"text {row}" for row in range(N)]})


@pytest.fixture
def campaign(tmp_path: Path) -> Campaign:
    made = Campaign.create(
        tmp_path / "c", texts(tmp_path / "pool.zarr"), ["ham", "spam"], batch_size=BATCH, random_state=5
    )
    made.next_batch()
    return made


def answers(campaign: Campaign) -> dict[str, int]:
    known = campaign.answers.latest()
    return {str(row): label for row, label in zip(known.rows.tolist(), known.labels.tolist(), strict=True)}


def test_a_picture_is_that_of_the_campaign_that_is_served_now(tmp_path: Path, opened: Opened) -> None:
    """The same address, the same rows, another pool: a browser that keeps pictures must not show the old ones."""
    port, page = 0, opened()
    for side in (3, 5):
        pool = Pool.build(np.full((4, side, side, 1), 7, np.uint8), tmp_path / f"{side}.zarr")
        campaign = Campaign.create(tmp_path / f"c{side}", pool, ["ham", "spam"], batch_size=4, random_state=5)
        campaign.next_batch()
        with running(campaign, port=port) as url:
            port = int(url.rstrip("/").rpartition(":")[2])
            page.goto(url)
            page.wait_for_function("() => document.querySelector('#record img')?.naturalWidth > 0")
            assert page.evaluate("document.querySelector('#record img').naturalWidth") == side


def test_keys_answer_nothing_that_is_not_on_screen(campaign: Campaign, opened: Opened) -> None:
    people = Annotators(campaign)
    token = people.add("ann")
    page = opened()
    with running(campaign) as url:
        page.goto(f"{url}enter#{token}")
        in_state(page, "record")
        page.keyboard.press("1")
        all_sent(page)
        people.revoke("ann")
        in_state(page, "token")
        for key in ("1", "2", "Space", "u", "1"):
            page.keyboard.press(key)
        assert page.evaluate("Object.keys(localStorage).filter((key) => key.includes('/outbox/'))") == []
        assert page.locator("#classes button").first.is_disabled()
    assert len(list(campaign.answers.log())) == 1


def test_answers_given_when_a_session_ends_are_sent_after_the_next_login(campaign: Campaign, opened: Opened) -> None:
    token = Annotators(campaign).add("ann")
    page = opened()
    with running(campaign) as url:
        page.goto(f"{url}enter#{token}")
        in_state(page, "record")
        page.context.clear_cookies()
        shown = on_screen(page)
        page.keyboard.press("2")
        in_state(page, "token")
        assert "One answer is kept" in page.locator("#record").inner_text()
        page.on("dialog", lambda dialog: dialog.accept())
        page.goto(f"{url}enter#{token}")
        in_state(page, "record")
        all_sent(page)
    assert answers(campaign) == {shown: 1}


def test_what_was_done_is_sent_in_its_order_also_when_the_clock_was_set_back(
    campaign: Campaign, opened: Opened
) -> None:
    page = opened(intercepted=True)
    page.on("dialog", lambda dialog: dialog.accept())
    with running(campaign) as url:
        page.goto(url)
        in_state(page, "record")
        page.route("**/api/answers", lambda route: route.abort())
        shown = on_screen(page)
        page.keyboard.press("1")
        page.wait_for_function("() => Object.keys(localStorage).some((key) => key.includes('/outbox/'))")
        page.add_init_script("{ const now = Date.now; Date.now = () => now() - 86_400_000; }")
        page.reload()
        in_state(page, "record", "gone", "loading")
        page.locator("#previous button").wait_for()
        page.keyboard.press("u")
        page.get_by_text("was ham").wait_for()
        assert on_screen(page) == shown
        page.unroute("**/api/answers")
        all_sent(page)
    assert answers(campaign) == {}
    assert [each.status for each in campaign.answers.log()] == ["submitted", "retracted"]


def test_an_answer_counts_also_when_the_clock_was_put_right_while_its_record_was_shown(
    campaign: Campaign, opened: Opened
) -> None:
    page = opened()
    with running(campaign) as url:
        page.goto(url)
        in_state(page, "record")
        page.evaluate("() => { const now = Date.now; Date.now = () => now() + 20 * 365 * 86_400_000; }")
        shown = on_screen(page)
        page.keyboard.press("2")
        all_sent(page)
    assert answers(campaign) == {shown: 1}
    [given] = campaign.answers.log()
    assert given.lead_time is not None
    assert given.lead_time < 600


def test_what_the_browser_cannot_keep_is_said_and_its_record_stays(campaign: Campaign, opened: Opened) -> None:
    page = opened()
    with running(campaign) as url:
        page.goto(url)
        in_state(page, "record")
        page.evaluate(
            "() => { window.keep = Storage.prototype.setItem;"
            " Storage.prototype.setItem = () => { throw new DOMException('full', 'QuotaExceededError'); }; }"
        )
        shown = on_screen(page)
        page.keyboard.press("1")
        page.get_by_text("This browser has no space left").wait_for()
        assert on_screen(page) == shown
        page.evaluate("() => { Storage.prototype.setItem = window.keep; }")
        page.keyboard.press("2")
        all_sent(page)
    assert answers(campaign) == {shown: 1}


def test_a_person_with_a_stroke_in_their_name_sends_nothing_of_another_ones(campaign: Campaign, opened: Opened) -> None:
    people = Annotators(campaign)
    page = opened(intercepted=True)
    page.on("dialog", lambda dialog: dialog.accept())
    with running(campaign) as url:
        page.goto(f"{url}enter#{people.add('ann/outbox/b')}")
        in_state(page, "record")
        page.route("**/api/answers", lambda route: route.abort())
        page.keyboard.press("1")
        page.get_by_text("1 unsent").wait_for()
        page.goto(f"{url}enter#{people.add('ann')}")
        page.unroute("**/api/answers")
        in_state(page, "record")
        page.keyboard.press("2")
        page.wait_for_function("() => Object.keys(localStorage).filter((key) => key.includes('/outbox/')).length === 1")
    assert campaign.answers.latest().annotators == ["ann"]


def test_the_campaign_page_steers_no_other_campaign(campaign: Campaign, tmp_path: Path, opened: Opened) -> None:
    other = Campaign.create(
        tmp_path / "d", texts(tmp_path / "other.zarr"), ["ham", "spam"], batch_size=BATCH, random_state=5
    )
    page = opened(intercepted=True)
    with running(campaign) as url:
        page.goto(f"{url}campaign")
        page.get_by_text("round 1, labelling").wait_for()
        page.route("**/api/campaign", lambda route: route.abort())
        page.get_by_role("button", name="Stop the campaign").click()
    with running(other, port=int(url.rstrip("/").rpartition(":")[2])):
        page.locator("#yes").click()
        page.get_by_text("open it again").wait_for()
        assert Control(other).history() == []


def test_a_server_that_spells_its_user_otherwise_gets_what_is_unsent(campaign: Campaign, opened: Opened) -> None:
    page = opened(intercepted=True)
    page.on("dialog", lambda dialog: dialog.accept())
    with running(campaign) as url:
        page.goto(url)
        in_state(page, "record")
        page.keyboard.press("1")
        all_sent(page)
        shown = on_screen(page)
        page.route("**/api/answers", lambda route: route.abort())
        page.keyboard.press("2")
        page.get_by_text("1 unsent").wait_for()
    page.unroute("**/api/answers")
    with running(campaign, port=int(url.rstrip("/").rpartition(":")[2]), user=" ANN "):
        all_sent(page)
        in_state(page, "record")
    assert answers(campaign)[shown] == 1
    assert campaign.answers.latest().annotators == ["ann", "ann"]


def test_an_undo_that_the_server_refuses_is_said(campaign: Campaign, opened: Opened) -> None:
    """In another tab the answer was changed meanwhile: what stands is that one."""
    page = opened()
    with running(campaign) as url:
        page.goto(url)
        in_state(page, "record")
        row = int(on_screen(page))
        page.keyboard.press("1")
        all_sent(page)
        answer = {"event_id": str(uuid4()), "row": row, "status": "submitted", "label": 1}
        page.evaluate(
            "body => fetch('api/answers', {method: 'POST', headers: {'content-type': 'application/json'}, body})",
            json.dumps({"answers": [answer]}),
        )
        page.keyboard.press("u")
        page.get_by_text("could not be taken back").wait_for()
    assert answers(campaign) == {str(row): 1}

"""The explorer in a real browser: everything moves, nothing leaves the machine, text stays text."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from dal.explorer import Run, view_of_run, write_explorer
from dal.explorer.run import watched_by
from dal.map import map_of
from dal.pool import Pool
from dal.replay import Replay, TestSet, compare

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

BAD = "<script>document.title = 'broken'</script><img src=x onerror=\"document.title = 'broken'\">"
ROUNDS = 4


def page_of(run: Run, pool: Pool | None, path: Path) -> Path:
    write_explorer(path, view_of_run(run, pool))
    return path


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three strategies on small images, two seeds."""
    path = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 900)
    X = rng.integers(0, 40, (900, 6, 6, 1)).astype(np.uint8)
    for code in range(3):
        X[y == code, 2 * code : 2 * code + 2] += 120
    pool = Pool.build(X, path / "pool.zarr")
    made = map_of(pool, None, 0)
    test = TestSet(pool.read(700, 900), y[700:])
    played = compare(
        pool,
        y,
        test,
        ("a", "b", "c"),
        ("random", "margin", "k_center"),
        random_state=(0, 1),
        batch_size=6,
        rounds=ROUNDS,
        reserved=np.arange(700, 900),
        watched=watched_by(pool, made),
    )
    run = Run("Stripes", ("a", "b", "c"), played.replays, np.arange(900), y, made, shares=(0.3, 0.3, 0.4))
    return page_of(run, pool, path / "explorer.html")


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two strategies on two features, every text, class and title hostile."""
    path = tmp_path_factory.mktemp("texts")
    X = np.random.default_rng(0).normal(size=(300, 2)).astype(np.float32)
    y = (X[:, 0] > 0).astype(np.int64)
    pool = Pool.build(X, path / "pool.zarr", display={"text": np.array([f"{row} {BAD}" for row in range(300)])})
    made = map_of(pool, None, 0)
    played = compare(
        pool,
        y,
        TestSet(X, y),
        ("no", "yes"),
        ("random", "margin"),
        batch_size=4,
        rounds=3,
        watched=watched_by(pool, made),
    )
    run = Run(BAD, (BAD, "yes"), played.replays, np.arange(300), y, made, notes=(BAD,))
    return page_of(run, pool, path / "explorer.html")


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1280, "height": 720}, reduced_motion="reduce")
    opened = context.new_page()
    wrong: list[str] = []
    opened.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("request", lambda request: wrong.append(request.url) if not request.url.startswith("file:") else None)
    yield opened
    context.close()
    assert wrong == []


def where(page: Page) -> str:
    return page.locator("#where").inner_text()


def pixels(page: Page, panel: int) -> str:
    return str(page.evaluate(f"document.querySelectorAll('.stage canvas')[{panel}].toDataURL()"))


def test_the_slider_the_buttons_and_the_keys_move_all_panels(page: Page, images: Path) -> None:
    page.goto(images.as_uri())
    assert where(page) == f"round 1 of {ROUNDS}"
    assert page.locator(".panel").count() == 3
    assert page.locator(".cold").first.inner_text() == "No labels yet: chosen without a model."
    first = [pixels(page, panel) for panel in range(3)]
    page.locator("#round").fill("3")
    assert where(page) == f"round 3 of {ROUNDS}"
    assert all(pixels(page, panel) != first[panel] for panel in range(3))
    assert "with 18 labels" in page.locator(".panel .score").first.inner_text()
    page.keyboard.press("End")
    assert where(page) == f"round {ROUNDS} of {ROUNDS}"
    page.keyboard.press("ArrowRight")
    assert where(page) == f"round {ROUNDS} of {ROUNDS}"
    page.keyboard.press("ArrowLeft")
    assert where(page) == f"round {ROUNDS - 1} of {ROUNDS}"
    page.keyboard.press("Home")
    assert where(page) == f"round 1 of {ROUNDS}"
    assert [pixels(page, panel) for panel in range(3)] == first
    page.locator("#forward").click()
    assert where(page) == f"round 2 of {ROUNDS}"


def test_space_plays_to_the_end_and_pauses(page: Page, images: Path) -> None:
    page.goto(images.as_uri())
    page.keyboard.press(" ")
    assert page.locator("#play").get_attribute("aria-label") == "pause"
    expect(page.locator("#where")).to_have_text(f"round 2 of {ROUNDS}", timeout=20_000)
    page.keyboard.press(" ")
    assert page.locator("#play").get_attribute("aria-label") == "play"
    page.keyboard.press(" ")
    expect(page.locator("#where")).to_have_text(f"round {ROUNDS} of {ROUNDS}", timeout=30_000)
    expect(page.locator("#play")).to_have_attribute("aria-label", "play")


def test_letters_and_digits_turn_parts_on_and_off(page: Page, images: Path) -> None:
    page.goto(images.as_uri())
    page.keyboard.press("2")
    assert page.locator(".panel:visible h2 b").all_inner_texts() == ["margin"]
    page.keyboard.press("2")
    assert page.locator(".panel:visible").count() == 3
    assert page.locator(".chosen canvas:visible").count() == 18
    page.keyboard.press("t")
    assert page.locator(".chosen canvas:visible").count() == 0
    assert page.locator(".band").count() == 3
    page.keyboard.press("b")
    assert page.locator(".band").count() == 0
    before = pixels(page, 0)
    page.keyboard.press("p")
    assert pixels(page, 0) != before
    page.keyboard.press("?")
    assert page.locator("dialog").is_visible()
    page.keyboard.press("Escape")
    assert not page.locator("dialog").is_visible()


def test_a_record_that_is_pointed_at_is_shown_in_every_panel(page: Page, images: Path) -> None:
    page.goto(images.as_uri())
    page.keyboard.press("ArrowRight")
    before = [pixels(page, panel) for panel in range(3)]
    page.locator(".chosen li").first.hover()
    assert page.locator("#tip").is_visible()
    told = page.locator("#tip div").all_inner_texts()
    assert told[1].startswith("A")
    assert "asked in round 2" in told[1]
    assert len(told) == 4
    assert page.locator("#tip canvas").count() == 1
    assert all(pixels(page, panel) != before[panel] for panel in range(3))
    assert page.locator(".chosen li.on").count() >= 1
    page.mouse.move(5, 5)
    assert not page.locator("#tip").is_visible()
    assert [pixels(page, panel) for panel in range(3)] == before
    # And on the map itself: the middle of the ring of a record that was asked.
    spot = page.evaluate(
        "(() => { const c = document.querySelector('.stage canvas').getBoundingClientRect();"
        " const [x, y] = placer(c.width, c.height)(panels[0].rounds[1].asked[0]); return [c.left + x, c.top + y]; })()"
    )
    page.mouse.move(*spot)
    assert "asked in round" in page.locator("#tip").inner_text()


def test_the_target_says_what_it_costs(page: Page, images: Path) -> None:
    page.goto(images.as_uri())
    slide = page.locator("#needed input")
    slide.fill("0")
    low = page.locator("#needed table").inner_text()
    slide.fill(str(slide.get_attribute("max")))
    assert page.locator("#needed table").inner_text() != low
    assert "paired by seed" in page.locator("#needed .hint").inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_that_would_keep_somebody_out(
    page: Page, images: Path, texts: Path, scheme: Literal["light", "dark"]
) -> None:
    page.emulate_media(color_scheme=scheme)
    for path in (images, texts):
        page.goto(path.as_uri())
        page.keyboard.press("End")
        found = Axe().run(page)
        assert found.violations_count == 0, found.generate_report()


def test_hostile_text_stays_text(page: Page, texts: Path) -> None:
    page.goto(texts.as_uri())
    page.keyboard.press("ArrowRight")
    page.locator(".chosen li").first.hover()
    assert "onerror" in page.locator("#tip pre").inner_text()
    assert "<script>" in page.locator("h1").inner_text()
    assert page.title() == BAD
    assert page.locator("img").count() == 0
    assert page.locator("script").count() == 2


@pytest.mark.parametrize("width", [1280, 390])
def test_long_texts_and_their_classes_can_be_read_in_the_list(browser: Browser, width: int, tmp_path: Path) -> None:
    X = np.random.default_rng(0).normal(size=(120, 3)).astype(np.float32)
    y = (X[:, 0] > 1).astype(np.int64)
    pool = Pool.build(X, tmp_path / "pool.zarr", display={"text": np.array(["winner " * 30] * 120)})
    played = compare(pool, y, TestSet(X, y), ("ham", "spam"), ("random", "margin", "default"), batch_size=4, rounds=2)
    run = Run("Mails", ("ham", "spam"), played.replays, np.arange(120), y, map_of(pool, None, 0))
    opened = browser.new_page(viewport={"width": width, "height": 800})
    opened.goto(page_of(run, pool, tmp_path / "texts.html").as_uri())
    for chosen in opened.locator(".chosen").all():
        assert chosen.evaluate("each => each.scrollWidth - each.clientWidth") == 0
        frame = chosen.bounding_box()
        assert frame is not None
        for text in chosen.locator(".text").all():
            box, name = text.bounding_box(), text.locator("i").bounding_box()
            assert box is not None
            assert name is not None
            assert box["x"] + box["width"] <= frame["x"] + frame["width"]
            assert box["height"] > 2 * name["height"]  # several lines of it
            assert frame["x"] <= name["x"] <= name["x"] + name["width"] <= frame["x"] + frame["width"]
    opened.close()


def test_the_page_may_ask_for_nothing(browser: Browser, texts: Path) -> None:
    context = browser.new_context()
    opened = context.new_page()
    said: list[str] = []
    opened.on("console", lambda message: said.append(message.text))
    opened.goto(texts.as_uri())
    assert opened.evaluate("fetch('http://127.0.0.1:9/').then(() => 'left', () => 'kept')") == "kept"
    assert any("Content Security Policy" in text for text in said)
    context.close()


def test_a_page_without_a_map_and_one_of_many_strategies_still_show_what_they_have(
    browser: Browser, tmp_path: Path
) -> None:
    def played(name: str) -> Replay:
        return Replay(name, 0, (2, 4), (0.5, 0.6), (np.array([1, 2]), np.array([3, 4])))

    for count, panels in ((2, 2), (6, 0)):
        replays = tuple(played(name) for name in "abcdef"[:count])
        run = Run("plain", ("no", "yes"), replays, np.arange(9), np.arange(9) % 2, None)
        context = browser.new_context(viewport={"width": 390, "height": 844})
        opened = context.new_page()
        errors: list[str] = []
        opened.on("pageerror", lambda error, told=errors: told.append(str(error)))  # type: ignore[misc]
        opened.goto(page_of(run, None, tmp_path / f"{count}.html").as_uri())
        opened.keyboard.press("ArrowRight")
        assert opened.locator("#where").inner_text() == "round 2 of 2"
        assert opened.locator(".panel").count() == panels
        assert opened.locator("#curves polyline").count() == count
        assert opened.evaluate("document.documentElement.scrollWidth") <= 390
        context.close()
        assert errors == []

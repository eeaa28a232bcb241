"""The labelling page in a real browser: opening it, and reading what it shows."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, BrowserContext, Page

Opened = Callable[..., Page]
WAIT = 60_000


@contextmanager
def opening(browser: Browser) -> Iterator[Opened]:
    """Open pages, each in its own context; check at the end that none asked another host or logged an error.

    A page that will get a route after it was loaded is opened with `intercepted=True`. Chromium says that it
    intercepts requests a moment before the page's renderer does, and the request of that moment goes past the route.
    With a route from the start, which matches nothing, requests go through the same way all the time.
    """
    contexts: list[BrowserContext] = []
    asked: list[str] = []
    errors: list[str] = []

    def open_page(*, intercepted: bool = False, **options: object) -> Page:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 720}, **options})
        contexts.append(context)
        context.on("request", lambda request: asked.append(request.url))
        page = context.new_page()
        page.set_default_timeout(WAIT)
        if intercepted:
            page.route("**/matches-nothing", lambda route: route.abort())
        page.on("pageerror", lambda error: errors.append(str(error)))
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert all(url.startswith(("http://127.0.0.1:", "data:", "blob:")) for url in asked), asked
    assert errors == []


def in_state(page: Page, *states: str) -> None:
    """Wait until the page is in one of some states."""
    page.wait_for_function("wanted => wanted.includes(document.body.dataset.state)", arg=list(states))


def all_sent(page: Page) -> None:
    """Wait until no answer is kept in the browser."""
    page.wait_for_function("() => Object.keys(localStorage).every((key) => !key.includes('/outbox/'))")


def on_screen(page: Page) -> str:
    """Return the id of the record that is shown."""
    return str(page.locator("#record header .id").inner_text())

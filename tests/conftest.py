import logging
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest
from distributed import Client
from playwright.sync_api import Browser, sync_playwright

from dal.compute.local import local_cluster
from tests import databases, object_store, pages

SERVICES_REQUIRED = os.environ.get("DAL_TEST_SERVICES") == "required"
"""Set by .ci/run: a test that would be skipped for want of a service fails instead."""


# A shell that starts the tests in its background has them ignore Ctrl-C, and all processes that they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def missing_service(what: str) -> None:
    """Skip the running test for want of a service; on CI, fail it."""
    if SERVICES_REQUIRED:
        pytest.fail(f"{what} is not there, and DAL_TEST_SERVICES=required")
    pytest.skip(f"{what} is not there")


@contextmanager
def _lasting_cluster() -> Iterator[Client]:
    """Start two worker processes for many tests, and leave handlers of logs as they are.

    LocalCluster mutes the handlers of the loggers `distributed` and `bokeh` for as long as it lives. Those of `caplog`
    are among them, and are the same in every test of the session: none would see a log again.
    """
    muted = [logging.getLogger(name) for name in ("distributed", "bokeh")]
    handlers = [log.handlers for log in muted]
    for log in muted:
        log.handlers = []
    with local_cluster(2) as client:
        for log, kept in zip(muted, handlers, strict=True):
            log.handlers = kept
        yield client


@pytest.fixture(scope="session")
def cluster() -> Iterator[Client]:
    """Two real worker processes, shared by the tests that do not harm them."""
    with _lasting_cluster() as client:
        yield client


@pytest.fixture(scope="session")
def _mortals() -> Iterator[Client]:
    with _lasting_cluster() as client:
        yield client


@pytest.fixture
def mortal_cluster(_mortals: Client) -> Client:
    """Two real worker processes that a test may kill: others come in their place."""
    _mortals.wait_for_workers(2, timeout=60)
    return _mortals


CHROMIUM = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """A real browser of the system's packages, to which no host has a name but this machine."""
    path = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if path is None:
        missing_service("Chromium")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=path, args=["--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1"]
        )
        yield started
        started.close()


@pytest.fixture
def opened(browser: Browser) -> Iterator[pages.Opened]:
    """A function that opens pages, which must log no error and ask no other host."""
    with pages.opening(browser) as open_page:
        yield open_page


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """A PostgreSQL server for the whole session; the directory of its socket."""
    if databases.programs() is None:
        missing_service("PostgreSQL")
    with databases.running() as home:
        yield home


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """A server that speaks S3, in a process of its own, with a bucket; the bucket's URL."""
    with pytest.MonkeyPatch.context() as patched, object_store.running() as address:
        for name, value in object_store.environment(address).items():
            patched.setenv(name, value)
        yield object_store.fresh_bucket()


@pytest.fixture(params=["sqlite", "postgresql"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a test over SQLite and over PostgreSQL."""
    if request.param == "postgresql":
        home = request.getfixturevalue("postgres")
        monkeypatch.setattr(databases, "fresh", partial(databases.fresh_schema, home))
    return str(request.param)

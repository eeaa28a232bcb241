import os
from collections.abc import Iterator

import pytest
from distributed import Client

from dal.client import local_cluster

SERVICES_REQUIRED = os.environ.get("DAL_TEST_SERVICES") == "required"
"""Set by .ci/run: a test that would be skipped for want of a service fails instead."""


def missing_service(what: str) -> None:
    """Skip the running test for want of a service; on CI, fail it."""
    if SERVICES_REQUIRED:
        pytest.fail(f"{what} is not there, and DAL_TEST_SERVICES=required")
    pytest.skip(f"{what} is not there")


@pytest.fixture(scope="session")
def cluster() -> Iterator[Client]:
    """Two real worker processes, shared by the tests that do not harm them."""
    with local_cluster(2) as client:
        yield client

"""The API under requests that nobody would write: whatever comes, it is never the server's own error."""

from pathlib import Path

import numpy as np
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings

from dal import Campaign
from dal.pool import Pool
from dal.web import Options, create_app

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def test_no_request_makes_it_fail(tmp_path: Path) -> None:
    pool = Pool.build(np.zeros((50, 4, 4, 1), np.uint8), tmp_path / "pool.zarr", display={"text": ["x"] * 50})
    campaign = Campaign.create(tmp_path / "campaign", pool, ["ham", "spam"], batch_size=20, strategy="random")
    campaign.next_batch()
    schema = schemathesis.openapi.from_asgi("/openapi.json", create_app(campaign, Options(user="ann")))
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) >= 14
    for operation in operations:

        @given(case=operation.as_strategy())
        @settings(
            max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None
        )
        def never_fails(case: schemathesis.Case) -> None:
            # The doors are shut to strangers: come in as the page itself does, to reach what lies behind them.
            answer = case.call(headers={"host": "127.0.0.1", "sec-fetch-site": "same-origin"})
            assert answer.status_code < 500, answer.text

        never_fails()

"""The pages' server in a thread of the test's process."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dal.campaign import CampaignStore
from dal.web import Limits, Listening, Options, make_server


@contextmanager
def running(
    campaign: CampaignStore,
    limits: Limits | None = None,
    *,
    port: int = 0,
    user: str = "ann",
    **listening: Any,  # noqa: ANN401 - fields of Listening
) -> Iterator[str]:
    """Serve a campaign on a port, by default a free one; gives the URL."""
    with make_server(campaign, Listening(port=port, **listening), Options(user=user), limits or Limits()) as server:
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            yield server.url
        finally:
            server.end()
            thread.join()

"""Clusters as users start them themselves, that nobody outside of this machine can reach."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from distributed import Client, LocalCluster


@contextmanager
def own_cluster(workers: int, threads: int = 1, **options: object) -> Iterator[tuple[LocalCluster, Client]]:
    """Give a LocalCluster with Dask's own settings; the pages of its workers are open to the network by default."""
    with (
        LocalCluster(
            n_workers=workers,
            threads_per_worker=threads,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            worker_dashboard_address="127.0.0.1:0",
            silence_logs=logging.CRITICAL,
            **options,
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield cluster, client

"""Clusters as users start them themselves, that nobody outside of this machine can reach."""

import logging
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from distributed import Client, LocalCluster

from tests.recipes import ROOT, free_port


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


@contextmanager
def dask_scheduler(port: int | None = None, **options: Any) -> Iterator[str]:  # noqa: ANN401 - those of _running
    """Run a scheduler in a process of its own; gives its address."""
    port = port or free_port()
    command = ["scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard"]
    with _running(command, **options):
        yield f"tcp://127.0.0.1:{port}"


@contextmanager
def dask_worker(
    address: str,
    *,
    threads: int = 1,
    host: str = "127.0.0.1",
    name: str | None = None,
    nanny: bool = False,
    resources: str = "",
    **options: Any,  # noqa: ANN401 - those of _running
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a worker in a process of its own, or with a nanny in two."""
    command = ["worker", address, "--nthreads", str(threads), "--host", host, "--no-dashboard"]
    command += [*([] if nanny else ["--no-nanny"]), *(["--name", name] if name else [])]
    command += ["--resources", resources] if resources else []
    with _running(command, **options) as process:
        yield process


@contextmanager
def _running(
    command: list[str], *, environment: Mapping[str, str] | None = None, preload: str = "", log: Path | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    module = f"distributed.cli.dask_{command[0]}"
    found = {"PYTHONPATH": str(ROOT)}  # dal need not be installed to be tested
    with (log or Path(os.devnull)).open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", module, *command[1:], *(["--preload", preload] if preload else [])],
            cwd="/",  # python -m finds modules in its directory first
            env=os.environ | found | dict(environment or {}),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:  # one that was stopped
            process.kill()
            process.wait(20)

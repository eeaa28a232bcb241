"""Processes for tests to kill, forked off one that has imported what they run.

multiprocessing has one fork server, and what it imports is settled by its first user: in a session with a cluster, that
is the cluster. A process of a bare server imports for seconds, and with every one that a test kills.
"""

from multiprocessing import context, forkserver, popen_forkserver, process
from unittest import mock

_SERVER = forkserver.ForkServer()
_SERVER.set_forkserver_preload(
    [
        *("tests.test_faults", "tests.test_coordinator", "tests.test_lasting", "tests.test_waves_of_campaigns"),
        *("dal.cli.campaigns", "dal.cli.labels", "dal.cli.rounds", "dal.cli.explorer", "dal.web.app", "dal.web.server"),
        *(
            "dal.loop.coordinator",
            "dal.scan.driver",
            "dal.exchange.server",
            "dal.exchange.labels",
            "dal.explorer.report",
        ),
        *("dal.pool.build", "sklearn.linear_model", "skops.io", "rich.progress", "rich.table", "rich.logging"),
    ]
)


class Process(context.ForkServerProcess):
    """A process of the tests' own fork server."""

    @staticmethod
    def _Popen(process_obj: process.BaseProcess) -> popen_forkserver.Popen:  # noqa: N802 - multiprocessing's name
        with mock.patch.object(forkserver, "connect_to_new_process", _SERVER.connect_to_new_process):
            return popen_forkserver.Popen(process_obj)

"""Numbers for a monitoring system, in the text format of Prometheus, and a small server for them.

The format is a dozen lines, so no client library is needed:
https://prometheus.io/docs/instrumenting/exposition_formats/.
"""

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Literal

from dal.errors import DalError, SettingsError

_log = logging.getLogger(__name__)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_PATIENCE = 5.0
"""Seconds in which a request must arrive: they are answered one after another."""


@dataclass(frozen=True)
class Metric:
    """A number that is watched, or one for each value of a label.

    Attributes
    ----------
    name : str
    kind : {"gauge", "counter"}
        A counter only grows while its process lives.
    help : str
        Its meaning, with its unit.
    values : mapping of str to float
        By the value of `label`; the key of a metric without a label is empty.
    label : str
    """

    name: str
    kind: Literal["gauge", "counter"]
    help: str
    values: Mapping[str, float]
    label: str = ""


def gauge(name: str, meaning: str, value: float) -> Metric:
    """Return a number that goes up and down."""
    return Metric(name, "gauge", meaning, {"": value})


def counter(name: str, meaning: str, value: float) -> Metric:
    """Return a number that only grows."""
    return Metric(name, "counter", meaning, {"": value})


def exposition(metrics: Iterable[Metric]) -> str:
    r"""Write metrics in Prometheus' text format.

    Examples
    --------
    >>> print(exposition([gauge("dal_round", "Newest round.", 3)]), end="")
    # HELP dal_round Newest round.
    # TYPE dal_round gauge
    dal_round 3
    >>> print(exposition([Metric("dal_labels", "gauge", "Labels.", {'a "b"': 2.5}, "class")]).splitlines()[-1])
    dal_labels{class="a \"b\""} 2.5
    """
    lines = []
    for each in metrics:
        lines += [f"# HELP {each.name} {_escaped(each.help)}", f"# TYPE {each.name} {each.kind}"]
        for value, number in each.values.items():
            label = f'{{{each.label}="{_escaped(value, quoted=True)}"}}' if each.label else ""
            lines.append(f"{each.name}{label} {number:.17g}")
    return "".join(f"{line}\n" for line in lines)


def _escaped(text: str, *, quoted: bool = False) -> str:
    text = text.replace("\\", r"\\").replace("\n", r"\n")
    return text.replace('"', r"\"") if quoted else text


class Logged(logging.Handler):
    """Counts what is logged at each level from a warning on."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._counts: Counter[str] = Counter({"warning": 0, "error": 0, "critical": 0})

    def emit(self, record: logging.LogRecord) -> None:
        """Count a record."""
        self._counts[record.levelname.lower()] += 1

    def metric(self) -> Metric:
        """Return the counts."""
        return Metric("dal_log_messages_total", "counter", "Messages logged, by level.", dict(self._counts), "level")


@contextmanager
def logged() -> Iterator[Logged]:
    """Count what `dal` logs, as long as the context lasts."""
    counts = Logged()
    log = logging.getLogger("dal")
    log.addHandler(counts)
    try:
        yield counts
    finally:
        log.removeHandler(counts)


@contextmanager
def serving(address: str, read: Callable[[], str]) -> Iterator[str]:
    """Serve a text at ``/metrics`` from a thread of its own; yield the URL.

    Nobody is asked for a password: an address that other machines reach belongs in a private network.

    Parameters
    ----------
    address : str
        ``PORT`` on this machine alone, or ``HOST:PORT``; port 0 takes a free one.
    read : callable
        Called for each request. What it raises on purpose is answered as unavailable.

    Raises
    ------
    SettingsError
        If the address is none, or not free.
    """
    host, _, port = address.rpartition(":")
    host = host.strip("[]") or "127.0.0.1"

    class Handler(BaseHTTPRequestHandler):
        timeout = _PATIENCE
        server_version, sys_version = "dal", ""

        def do_GET(self) -> None:
            """Answer a request."""
            if self.path.partition("?")[0] != "/metrics":
                self.send_error(404)
                return
            try:
                body = read().encode()
            except DalError as error:  # the database fails just now
                _log.warning("No metrics: %s", error)
                self.send_error(503)
                return
            self.send_response(200)
            self.send_header("Content-Type", CONTENT_TYPE)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its signature
            """Log nothing: a request comes every few seconds."""

    try:
        server = HTTPServer((host, int(port)), Handler)
    except (OSError, ValueError, OverflowError) as error:
        raise SettingsError(
            f"`metrics` must be PORT or HOST:PORT that is free to listen on, got {address!r} ({error})"
        ) from error
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
    thread.start()
    try:
        yield f"http://{f'[{host}]' if ':' in host else host}:{server.server_port}/metrics"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()

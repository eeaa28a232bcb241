"""Limits of connections: how many there may be, and how long each may take, so that slow ones do not block others.

uvicorn waits for a request without limit, and the system limits a process's open files: a thousand connections that
send half a request would block all others. Here each part of a request has a time limit. When there are too many
connections, those that wait for their sender are closed first.
"""

import asyncio
import json
import logging
import resource
import socket
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import h11
import uvicorn
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

_FILES = 65_536
_FILES_FOR_OTHERS = 512
"""Files reserved for the database, the pool, and connections that are accepted but not yet counted."""

_BACKLOG = 100
"""Connections that asyncio accepts before the first can make room; without free files it would hang."""


@dataclass(frozen=True)
class Limits:
    """Limits of connections and requests.

    Attributes
    ----------
    connections : int
        Open connections; beyond them, each new one closes one that waits for its sender.
    requests : int
        Requests being answered; further ones get an answer that asks to retry.
    head_seconds, body_seconds : float
        Time for a request's head to arrive, TLS included, and for its body.
    idle_seconds : float
        Time between two requests.
    stalled_seconds : float
        Time during which the client reads nothing of what is sent.
    head_bytes : int
        Largest head.
    address_rate, address_burst : float, int
        Requests a second from one address, and how many at once; a page makes two or three for each answer.
    standing_seconds : float
        Age up to which the state that all pages show alike is reused, for any number of pages.
    account_seconds : float
        Age up to which it is reused who a token belongs to; a revoked one works that much longer.
    """

    connections: int = 2000
    requests: int = 500
    head_seconds: float = 10.0
    body_seconds: float = 20.0
    idle_seconds: float = 30.0
    stalled_seconds: float = 60.0
    head_bytes: int = 16 * 1024
    address_rate: float = 200.0
    address_burst: int = 1000
    standing_seconds: float = 1.0
    account_seconds: float = 2.0

    def fitting(self) -> "Limits":
        """Raise the process's limit of open files as far as allowed, and return limits that fit it."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = _FILES if hard == resource.RLIM_INFINITY else min(hard, _FILES)
        if soft != resource.RLIM_INFINITY and soft < most:
            with suppress(OSError, ValueError):  # a container may forbid it, and there are fewer connections
                resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        room = self.connections if soft == resource.RLIM_INFINITY else max(soft - _FILES_FOR_OTHERS, soft // 2)
        return Limits(**{**vars(self), "connections": min(self.connections, room)})


LIMITS = Limits()


class Connection(H11Protocol):
    """A connection that is closed when a part of a request takes too long.

    Parameters
    ----------
    limits : Limits
    config, server_state, app_state
        Passed by uvicorn.
    """

    def __init__(
        self, limits: Limits, config: uvicorn.Config, server_state: ServerState, app_state: dict[str, Any]
    ) -> None:
        super().__init__(config, server_state, app_state)
        self.since = self.loop.time()
        self._limits = limits
        self._deadline: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None
        self._app = self.app

    @property
    def is_answering(self) -> bool:
        """Whether a request has begun to arrive whose response is not complete."""
        return self.cycle is not None and not self.cycle.response_complete

    @property
    def waits(self) -> bool:
        """Whether it waits for its sender: nothing is being answered, or the request has not arrived completely."""
        return not self.is_answering or self.cycle.more_body

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start to wait for a request; close another connection if there are too many."""
        if len(self.connections) >= self._limits.connections:
            others: set[Connection] = self.connections  # type: ignore[assignment]
            oldest = min((each for each in others if each.waits), key=lambda each: each.since, default=None)
            if oldest is not None:
                oldest.transport.abort()
                self.connections.discard(oldest)
        super().connection_made(transport)  # type: ignore[arg-type]
        self._wait(self._limits.head_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the timers."""
        self._stop()
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Process data; the time for a head starts with its first byte."""
        self.app = _busy if self._is_busy() else self._app
        super().data_received(data)
        if self.is_answering:
            self._stop()  # a body has its own time, in `Doors`
        elif self._deadline is None and not self.transport.is_closing():
            self._wait(self._limits.head_seconds)

    def on_response_complete(self) -> None:
        """Start to wait for the next request, or for the end of a refused one."""
        self.since = self.loop.time()
        self._stop()
        super().on_response_complete()
        if not self.transport.is_closing() and self.conn.their_state is h11.SEND_BODY:
            self._wait(self._limits.head_seconds)

    def pause_writing(self) -> None:
        """Wait for the client to read, for a limited time."""
        super().pause_writing()
        self._stalled = self.loop.call_later(self._limits.stalled_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """Cancel the time limit."""
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - uvicorn's message
        """Refuse data that is no request, with a message."""
        most = self._limits.head_bytes
        self._refuse(HTTPStatus.BAD_REQUEST, f"The request must be HTTP/1.1 with a head of at most {most:,} bytes.")

    def _is_busy(self) -> bool:
        most = self._limits.requests
        others: set[Connection] = self.connections  # type: ignore[assignment]
        return len(self.tasks) >= most and sum(not each.waits for each in others) >= most

    def _wait(self, seconds: float) -> None:
        self._stop()
        self._deadline = self.loop.call_later(seconds, self._late)

    def _stop(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _late(self) -> None:
        seconds = f"{self._limits.head_seconds:.0f} seconds"
        if self.conn.our_state is h11.IDLE and self.conn.trailing_data[0]:
            self._refuse(HTTPStatus.REQUEST_TIMEOUT, f"The request's head did not arrive within {seconds}.")
        else:
            self.transport.close()

    def _refuse(self, status: HTTPStatus, detail: str) -> None:
        body = json.dumps({"detail": detail}).encode()
        headers = [("content-type", "application/json"), ("content-length", str(len(body))), ("connection", "close")]
        with suppress(h11.LocalProtocolError):  # an answer is under way already
            head = self.conn.send(h11.Response(status_code=status, headers=headers, reason=status.phrase.encode()))
            self.transport.write((head or b"") + body)
        self.transport.close()


async def _busy(scope: Scope, receive: Receive, send: Send) -> None:
    response = JSONResponse(
        {"detail": "Too many requests are being answered; try again in a moment."},
        HTTPStatus.SERVICE_UNAVAILABLE,
        {"retry-after": "2", "connection": "close"},
    )
    await response(scope, receive, send)


class _Ended(logging.Filter):
    """A filter that keeps requests cut off by the server's end out of its log: each would log a long traceback."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not (record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError))


logging.getLogger("uvicorn.error").addFilter(_Ended())


class LimitedServer(uvicorn.Server):
    """uvicorn with limited connections and a time limit for the TLS handshake.

    Parameters
    ----------
    config : uvicorn.Config
    limits : Limits
    """

    def __init__(self, config: uvicorn.Config, limits: Limits) -> None:
        super().__init__(config)
        self._limits = limits

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen on the given sockets."""
        loop, config = asyncio.get_running_loop(), self.config
        self.servers = [
            await loop.create_server(
                lambda: Connection(self._limits, config, self.server_state, self.lifespan.state),
                sock=each,
                ssl=config.ssl,
                ssl_handshake_timeout=None if config.ssl is None else self._limits.head_seconds,
                backlog=_BACKLOG,
            )
            for each in sockets or ()
        ]
        self.started = True

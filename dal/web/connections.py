"""Connections: how many there may be, and how long each may take; nobody who is slow holds up the others.

uvicorn waits for a request for ever, and the system gives a process so many files: a thousand connections that send
half a request would be the last. Here each part of a request has its time, and where there are too many connections,
those that wait for their sender make room.
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
"""Files that are kept free for the database, the pool, and connections that are accepted and not counted yet."""

_BACKLOG = 100
"""asyncio accepts so many connections before the first of them can make room; out of files, it stands still."""


@dataclass(frozen=True)
class Limits:
    """What connections may take.

    Attributes
    ----------
    connections : int
        Open at once; beyond them, one that waits for its sender is closed for each that comes.
    requests : int
        Being answered at once; more are told to come again.
    head_seconds, body_seconds : float
        For a request's head to arrive, TLS included, and its body.
    idle_seconds : float
        Between two requests.
    stalled_seconds : float
        During which nobody takes what is sent.
    head_bytes : int
        Largest head.
    """

    connections: int = 2000
    requests: int = 500
    head_seconds: float = 10.0
    body_seconds: float = 20.0
    idle_seconds: float = 30.0
    stalled_seconds: float = 60.0
    head_bytes: int = 16 * 1024

    def fitting(self) -> "Limits":
        """Raise the process's limit of open files as far as it goes, and take no more connections than it leaves."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = _FILES if hard == resource.RLIM_INFINITY else min(hard, _FILES)
        if soft != resource.RLIM_INFINITY and soft < most:
            with suppress(OSError, ValueError):  # a container may forbid it: then there are fewer connections
                resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        room = self.connections if soft == resource.RLIM_INFINITY else max(soft - _FILES_FOR_OTHERS, soft // 2)
        return Limits(**{**vars(self), "connections": min(self.connections, room)})


class Connection(H11Protocol):
    """One connection, which is closed when a part of a request takes too long.

    Parameters
    ----------
    limits : Limits
    config, server_state, app_state
        As uvicorn gives them.
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
        """Whether a request has begun to arrive whose answer is not complete."""
        return self.cycle is not None and not self.cycle.response_complete

    @property
    def waits(self) -> bool:
        """Whether it is its sender's turn: nothing is being answered, or the request has not arrived whole."""
        return not self.is_answering or self.cycle.more_body

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to wait for a request; make room where there is none."""
        if len(self.connections) >= self._limits.connections:
            others: set[Connection] = self.connections  # type: ignore[assignment]
            oldest = min((each for each in others if each.waits), key=lambda each: each.since, default=None)
            if oldest is not None:
                oldest.transport.abort()
                self.connections.discard(oldest)
        super().connection_made(transport)  # type: ignore[arg-type]
        self._wait(self._limits.head_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the timers."""
        self._stop()
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what came; the time for a head begins with its first byte."""
        self.app = _busy if self._is_busy() else self._app
        super().data_received(data)
        if self.is_answering:
            self._stop()  # a body has its own time, in `Doors`
        elif self._deadline is None and not self.transport.is_closing():
            self._wait(self._limits.head_seconds)

    def on_response_complete(self) -> None:
        """Begin to wait for the next request, or for the end of one that nobody wants to read."""
        self.since = self.loop.time()
        self._stop()
        super().on_response_complete()
        if not self.transport.is_closing() and self.conn.their_state is h11.SEND_BODY:
            self._wait(self._limits.head_seconds)

    def pause_writing(self) -> None:
        """Wait for the other side to take what was sent, but not for ever."""
        super().pause_writing()
        self._stalled = self.loop.call_later(self._limits.stalled_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """Go on."""
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - uvicorn's words
        """Refuse what is no request, in words."""
        most = self._limits.head_bytes
        self._refuse(
            HTTPStatus.BAD_REQUEST, f"A request of HTTP/1.1 with a head of at most {most:,} bytes was expected."
        )

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
        {"detail": "Too many requests are being answered: come again in a moment."},
        HTTPStatus.SERVICE_UNAVAILABLE,
        {"retry-after": "2", "connection": "close"},
    )
    await response(scope, receive, send)


class _Ended(logging.Filter):
    """Keeps requests that were cut off by the server's end out of its log: each would be a page of traceback."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not (record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError))


logging.getLogger("uvicorn.error").addFilter(_Ended())


class LimitedServer(uvicorn.Server):
    """uvicorn, with limited connections; the handshake of TLS has its time, too.

    Parameters
    ----------
    config : uvicorn.Config
    limits : Limits
    """

    def __init__(self, config: uvicorn.Config, limits: Limits) -> None:
        super().__init__(config)
        self._limits = limits

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen on the sockets that are given."""
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

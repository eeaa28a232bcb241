"""A lease on a folder of an object store: one process at a time writes there, on whichever machine.

A store frees no lock when a process dies. So the lock is an object that its holder writes again every few seconds, each
time only if it is still the one that it wrote before. No clocks are compared: another process that finds the object
watches it by its own clock. It is refused as soon as the object changes, and takes the object over when it has not
changed for `SECONDS`. On the machine of the holder nobody waits: there a process that is gone is seen.
"""

import asyncio
import json
import logging
import os
import secrets
import socket
import time
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any

from dal.errors import StoreError
from dal.stores.objects import Objects, Unconditional, begun, wait

SECONDS = 90.0
"""Longer than a write that was begun within `BEATS` beats can be tried again, so that none lands after a takeover."""
BEAT_SECONDS = 5.0
BEATS = 4
"""Without a renewal, after which the holder renews before it writes more."""
NAME = "dal.lock"

_log = logging.getLogger(__name__)
_held: set[str] = set()
"""Tokens of the leases that this process holds."""


class Held(Exception):
    """Another process holds the folder; the message names it."""


class Lease:
    """A folder of a store, held until `close`.

    Parameters
    ----------
    objects : Objects
        Of the folder.
    seconds, beat : float
        Until a lease that does not change is taken over, and between two renewals.

    Raises
    ------
    Held
        Another process holds the folder, and is alive.
    StoreError
        The store gives no answer, or refuses to write.
    """

    def __init__(self, objects: Objects, seconds: float = SECONDS, beat: float = BEAT_SECONDS) -> None:
        self._objects = objects
        self._seconds, self._beat = seconds, beat
        self._token, self._beats = secrets.token_hex(16), 0
        self._lost = ""
        self._renewed = _now()
        self._turn: asyncio.Lock | None = None
        self._beating: Future[None] | None = None
        self._releasing: Future[None] | None = None
        _held.add(self._token)
        try:
            wait(self._acquired())
        except BaseException as error:
            _held.discard(self._token)
            if not isinstance(error, Unconditional):
                raise
            what = "%s cannot be locked: its store knows no conditional writes; let no other process write there"
            _log.warning(what, objects.text)
            return
        self._beating = begun(self._go_on())

    def check(self) -> None:
        """Raise an error if another process has taken the folder over; renew first where that is due."""
        if self._beating is None or self._releasing is not None:
            return
        if self._is_due():
            wait(self._renewed_once())
        self._refuse_lost()

    def _is_due(self) -> bool:
        return not self._lost and _now() - self._renewed > BEATS * self._beat

    def _refuse_lost(self) -> None:
        if self._lost:
            raise StoreError(
                f"{self._objects.text} was taken over by {self._lost}, as this process did not answer for"
                f" {self._seconds:.0f} s; nothing more is written, see which of the two is to go on"
            )

    def release(self) -> None:
        """Begin to release the folder, unless another process has taken it over; `close` waits for it.

        What is still written then must be written on a condition that the next holder breaks.
        """
        if self._beating is not None and self._releasing is None:
            self._beating.cancel()
            self._releasing = begun(self._deleted())

    async def _deleted(self) -> None:
        if self._is_due():
            await self._renewed_once()
        self._refuse_lost()
        await self._objects.delete([NAME])

    def close(self) -> None:
        """Release the folder, unless another process has taken it over."""
        self.release()
        if self._releasing is None:
            return
        try:
            self._releasing.result()
        except StoreError as error:  # it is found to be left behind, and taken over
            _log.warning("%s/%s was left: %s", self._objects.text, NAME, error)
        finally:
            _held.discard(self._token)

    def _said(self) -> bytes:
        self._beats += 1
        told = {**_this_process(), "token": self._token, "beat": self._beats}
        return json.dumps(told).encode()

    async def _acquired(self) -> None:
        while True:
            self._renewed = _now()
            if await self._objects.put_if(NAME, self._said(), None) is not None:
                return
            found = await self._objects.versioned(NAME)
            if found is None:
                continue
            data, version = found
            if _read(data).get("token") == self._token:  # the answer to the first try was lost
                return
            if not _is_dead(_read(data)) and await self._moves(data):
                continue
            self._renewed = _now()
            if await self._objects.put_if(NAME, self._said(), version) is not None:
                _log.warning("%s was left locked by %s, which is gone", self._objects.text, _named(_read(data)))
                return

    async def _moves(self, data: bytes) -> bool:
        """Watch a lease; return whether it was given free, and raise `Held` if it was renewed."""
        holder = _named(_read(data))
        if _is_alive(_read(data)):
            raise Held(holder)
        what = "%s is locked by %s: waiting up to %.0f s to see whether it is alive"
        _log.warning(what, self._objects.text, holder, self._seconds)
        until = _now() + self._seconds
        while _now() < until:
            await asyncio.sleep(min(self._beat / 2, self._seconds / 4))
            found = await self._objects.versioned(NAME)
            if found is None:
                return True
            if found[0] != data:
                raise Held(_named(_read(found[0])))
        return False

    async def _go_on(self) -> None:
        while not self._lost:
            await asyncio.sleep(self._beat)
            with suppress(StoreError):  # later perhaps; a write that fails says so
                await self._renewed_once()

    async def _renewed_once(self) -> None:
        self._turn = self._turn or asyncio.Lock()
        async with self._turn:
            began = _now()
            # Read first: the answer to the last renewal may have been lost, and a store may not know conditions.
            found = await self._objects.versioned(NAME)
            told = _read(found[0]) if found is not None else {}
            if found is None or told.get("token") != self._token:
                self._lost = _named(told) if told else "a process that has ended since"
                return
            if await self._objects.put_if(NAME, self._said(), found[1]) is not None:
                self._renewed = began


def _now() -> float:
    """Return seconds on a clock that goes on while the machine sleeps, where there is one."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def _read(data: bytes) -> dict[str, Any]:
    try:
        told = json.loads(data)
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}


def _named(told: dict[str, Any]) -> str:
    return f"process {told.get('process', 'unknown')} on {told.get('host', 'an unknown machine')}"


def _this_process() -> dict[str, Any]:
    return {"host": socket.gethostname(), "machine": _machine(), "process": os.getpid(), "began": _began(os.getpid())}


def _machine() -> str:
    """Return what tells machines and containers apart, in which process ids mean the same; "" where nothing does."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _began(process: int) -> str:
    """Return when a process began, "" where it is gone: a number may be used again."""
    try:
        told = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if told[0] in "ZX" else told[19]


def _is_here(told: dict[str, Any]) -> bool:
    return bool(_machine()) and told.get("machine") == _machine() and isinstance(told.get("process"), int)


def _is_alive(told: dict[str, Any]) -> bool:
    return _is_here(told) and not _is_dead(told)


def _is_dead(told: dict[str, Any]) -> bool:
    """Check whether a holder of this machine is gone; of another one nothing is known."""
    if not _is_here(told):
        return False
    if told["process"] == os.getpid():
        return told.get("token") not in _held
    return _began(told["process"]) != told.get("began")

"""An object store on loopback that holds its objects in memory, answers as late as asked, and fails on demand.

``python -m benchmarks.object_server`` serves on a free port until its standard input ends, and prints its address
first. It knows as much of S3 as dal needs: GET with ranges, HEAD, PUT, DELETE, listing by pages, deleting many, parts.
A plain HTTP client reads the same objects. Nothing is signed or checked: it stands for a network, not for an authority.

Faults and delays are set, and requests counted, through paths that begin with ``/__``: see :class:`Server`.
"""

import asyncio
import json
import mmap
import os
import random
import re
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

_DATE = "Sun, 29 Nov 2026 09:00:00 GMT"
_STAMP = "2026-11-29T09:00:00.000Z"
_PAGE = 1000


class Faults:
    """What goes wrong.

    Attributes
    ----------
    latency : float
        Seconds before an answer begins.
    refused, status : float, int
        Share of requests that are answered by this status, 503 by default.
    cut : float
        Share of answers that end in the middle of their body.
    stalled : float
        Share of requests that are never answered.
    short : float
        Share of GETs that give a byte less, and say so.
    only : str
        Part of the path that must be there for any of these but the latency.
    methods : str
        Methods that may fail; all if empty.
    most : int
        At most this many failures; -1 for no limit.
    """

    def __init__(self) -> None:
        self.latency = self.refused = self.cut = self.stalled = self.short = 0.0
        self.status = 503
        self.only = self.methods = ""
        self.most = -1
        self.kept = random.Random(1)

    def set(self, values: dict[str, Any]) -> None:
        for name, value in values.items():
            setattr(self, name, type(getattr(self, name))(value))
        self.kept = random.Random(1)

    def drawn(self, method: str, path: str) -> str:
        """Draw the fault of a request; empty if there is none."""
        if self.only not in path or self.most == 0 or (self.methods and method not in self.methods.split(",")):
            return ""
        number = self.kept.random()
        for name in ("refused", "cut", "stalled", "short"):
            number -= getattr(self, name)
            if number < 0:
                self.most -= 1
                return name
        return ""


class Store:
    """Objects by path, and what was asked for."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes | memoryview] = {}
        self.parts: dict[str, dict[int, bytes]] = {}
        self.tags: dict[str, int] = {}
        self.counts: Counter[str] = Counter()
        self.now = self.peak = 0
        self.log: list[str] = []
        self.faults = Faults()

    def controlled(self, path: str, body: bytes) -> bytes:
        if path == "/__set__":
            self.faults.set(json.loads(body))
        elif path == "/__reset__":
            self.counts.clear()
            self.log.clear()
            self.peak = 0
        elif path == "/__copy__":  # of files of this machine, which saves uploading them
            for name, file in json.loads(body).items():
                with open(file, "rb") as opened:  # noqa: PTH123
                    # A map keeps its file open, of which a process may have fewer than a pool has small chunks.
                    large = os.path.getsize(file) >= 2**20  # noqa: PTH202
                    held: mmap.mmap | bytes = (
                        mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) if large else opened.read()
                    )
                self.objects[name] = memoryview(held)
        elif path == "/__drop__":
            for name in [name for name in self.objects if name.startswith(json.loads(body))]:
                del self.objects[name]
        return json.dumps({"counts": self.counts, "peak": self.peak, "log": self.log}).encode()

    def answered(self, method: str, path: str, query: dict[str, list[str]], headers: dict[str, str], body: bytes):  # noqa: ANN201
        """Return status, headers and body."""
        if method in ("GET", "HEAD") and "list-type" in query:
            return 200, {}, self.listed(path.strip("/"), query)
        if method in ("GET", "HEAD"):
            found = self.objects.get(path)
            if found is None:
                return 404, {}, b"<Error><Code>NoSuchKey</Code><Message>The key does not exist</Message></Error>"
            ranged = re.fullmatch(r"bytes=(\d*)-(\d*)", headers.get("range", ""))
            if ranged is None:
                return 200, {"Accept-Ranges": "bytes", "ETag": self.tag(path)}, memoryview(found)
            size = len(found)
            first, last = ranged[1], ranged[2]
            start = int(first) if first else max(size - int(last), 0)
            stop = min(int(last) + 1, size) if first and last else size
            if start >= size:
                return 416, {}, b""
            told = {"Content-Range": f"bytes {start}-{stop - 1}/{size}", "ETag": self.tag(path)}
            return 206, told, memoryview(found)[start:stop]
        if method == "PUT" and "partNumber" in query:
            self.parts[query["uploadId"][0]][int(query["partNumber"][0])] = body
            return 200, {}, b""
        if method == "PUT":
            if headers.get("if-none-match") == "*" and path in self.objects:
                return 412, {}, b"<Error><Code>PreconditionFailed</Code></Error>"
            if headers.get("if-match", self.tag(path)) != self.tag(path):
                return 412, {}, b"<Error><Code>PreconditionFailed</Code></Error>"
            self.objects[path] = body
            self.tags[path] = self.tags.get(path, 0) + 1
            return 200, {"ETag": self.tag(path)}, b""
        if method == "POST" and "uploads" in query:
            number = f"upload-{len(self.parts)}"
            self.parts[number] = {}
            said = f"<InitiateMultipartUploadResult><UploadId>{number}</UploadId></InitiateMultipartUploadResult>"
            return 200, {}, said.encode()
        if method == "POST" and "uploadId" in query:
            parts = self.parts.pop(query["uploadId"][0])
            self.objects[path] = b"".join(parts[number] for number in sorted(parts))
            return 200, {}, b'<CompleteMultipartUploadResult><ETag>"x"</ETag></CompleteMultipartUploadResult>'
        if method == "POST" and "delete" in query:
            keys = re.findall(r"<Key>(.*?)</Key>", body.decode())
            for key in keys:
                self.objects.pop(f"{path.rstrip('/')}/{_unescaped(key)}", None)
            said = "".join(f"<Deleted><Key>{key}</Key></Deleted>" for key in keys)
            return 200, {}, f"<DeleteResult>{said}</DeleteResult>".encode()
        if method == "DELETE" and "uploadId" in query:
            self.parts.pop(query["uploadId"][0], None)
            return 204, {}, b""
        if method == "DELETE":
            self.objects.pop(path, None)
            return 204, {}, b""
        return 501, {}, b""

    def tag(self, path: str) -> str:
        """Return the tag of what lies at a path; it changes with each PUT."""
        return f'"{self.tags.get(path, 0)}"' if path in self.objects else ""

    def listed(self, bucket: str, query: dict[str, list[str]]) -> bytes:
        prefix, delimiter = query.get("prefix", [""])[0], query.get("delimiter", [""])[0]
        after = query.get("continuation-token", query.get("start-after", [""]))[0]
        entries: dict[str, int | None] = {}
        for path in sorted(self.objects):
            name = path.removeprefix(f"/{bucket}/")
            if path == name or not name.startswith(prefix):
                continue
            inside, found, _ = name[len(prefix) :].partition(delimiter) if delimiter else (name, "", "")
            whole = prefix + inside + delimiter if found else name
            if whole > after:
                entries.setdefault(whole, None if found else len(self.objects[path]))
        page = list(entries.items())[:_PAGE]
        said = "".join(
            f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>"
            if size is None
            else f"<Contents><Key>{escape(name)}</Key><LastModified>{_STAMP}</LastModified><ETag>x</ETag>"
            f"<Size>{size}</Size></Contents>"
            for name, size in page
        )
        more = len(entries) > len(page)
        token = f"<NextContinuationToken>{escape(page[-1][0])}</NextContinuationToken>" if more else ""
        return (
            f"<ListBucketResult><Name>{bucket}</Name><Prefix>{escape(prefix)}</Prefix><KeyCount>{len(page)}</KeyCount>"
            f"<IsTruncated>{str(more).lower()}</IsTruncated>{token}{said}</ListBucketResult>"
        ).encode()


def _unescaped(text: str) -> str:
    for sign, said in (("<", "&lt;"), (">", "&gt;"), ('"', "&quot;"), ("'", "&apos;"), ("&", "&amp;")):
        text = text.replace(said, sign)
    return text


class _Connection(asyncio.Protocol):
    """One connection: a request at a time, as HTTP/1.1 clients send them."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.held = bytearray()
        self.transport: asyncio.Transport | None = None
        self.busy = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.store.counts["connections"] += 1

    def connection_lost(self, error: Exception | None) -> None:  # noqa: ARG002
        self.transport = None

    def data_received(self, data: bytes) -> None:
        self.held += data
        self.next()

    def next(self) -> None:
        end = self.held.find(b"\r\n\r\n")
        if self.busy or end < 0 or self.transport is None:
            return
        first, *lines = bytes(self.held[:end]).decode("latin1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        length = int(headers.get("content-length", 0))
        if len(self.held) < end + 4 + length:
            if headers.get("expect") == "100-continue" and len(self.held) == end + 4:
                self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            return
        body = bytes(memoryview(self.held)[end + 4 : end + 4 + length])
        del self.held[: end + 4 + length]
        method, target, _ = first.split(" ")
        url = urlsplit(target)
        path = unquote(url.path)
        if path.startswith("/__"):
            self.write("200 OK", {}, self.store.controlled(path, body), "GET")
            return
        self.busy = True
        store = self.store
        store.counts["alone"] += not store.now
        store.now += 1
        store.peak = max(store.peak, store.now)
        query = parse_qs(url.query, keep_blank_values=True)
        kind = "list" if "list-type" in query else "chunk" if "/c/" in path else "other"
        store.counts[method] += 1
        store.counts[f"{method} {kind}"] += 1
        store.log.append(f"{method} {path}")
        request = (method, path, query, headers, body)
        if store.faults.latency:
            asyncio.get_running_loop().call_later(store.faults.latency, self.answer, *request)
        else:
            self.answer(*request)

    def answer(self, method: str, path: str, query: dict[str, list[str]], headers: dict[str, str], body: bytes) -> None:
        store = self.store
        store.now -= 1
        fault = store.faults.drawn(method, path)
        if fault:
            store.counts[fault] += 1
        if self.transport is None or fault == "stalled":
            return  # and stays busy
        if fault == "refused":
            said = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
            self.write(f"{store.faults.status} Fault", {}, said, method)
        else:
            status, told, data = store.answered(method, path, query, headers, body)
            self.write(f"{status} Answer", told, data[:-1] if fault == "short" else data, method, cut=fault == "cut")
        self.busy = False
        self.next()

    def write(
        self, status: str, headers: dict[str, str], body: bytes | memoryview, method: str, *, cut: bool = False
    ) -> None:
        if self.transport is None:
            return
        told = {"Content-Length": str(len(body)), "ETag": '"x"', "Last-Modified": _DATE, **headers}
        head = "".join(f"{name}: {value}\r\n" for name, value in told.items())
        self.transport.write(f"HTTP/1.1 {status}\r\n{head}\r\n".encode())
        if method != "HEAD":
            self.transport.write(body[: len(body) // 2] if cut else body)
        if cut:
            self.transport.close()


async def _serve() -> None:
    store, loop = Store(), asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Connection(store), "127.0.0.1", 0, backlog=1024)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await loop.run_in_executor(None, sys.stdin.read)


class Server:
    """A running server.

    Attributes
    ----------
    address : str
    """

    def __init__(self, address: str) -> None:
        self.address = address

    def _ask(self, path: str, body: object = None) -> dict[str, Any]:
        request = urllib.request.Request(self.address + path, json.dumps(body).encode(), method="POST")
        with urllib.request.urlopen(request) as answer:
            told: dict[str, Any] = json.load(answer)
        return told

    def fail(self, **faults: float | str) -> None:
        """Set delays and faults. What is not named is zero."""
        none = {"latency": 0, "refused": 0, "cut": 0, "stalled": 0, "short": 0, "status": 503}
        self._ask("/__set__", {**none, "only": "", "methods": "", "most": -1, **faults})

    def hold(self, files: dict[str, str]) -> None:
        """Let it hold files of this machine, by path, such as ``/bucket/name``."""
        self._ask("/__copy__", files)

    def drop(self, prefix: str) -> None:
        """Forget the objects whose path begins so."""
        self._ask("/__drop__", prefix)

    def reset(self) -> None:
        """Count from nothing again."""
        self._ask("/__reset__")

    def counts(self) -> Counter[str]:
        """Return the requests by method and kind, the faults, and the connections, since they were last reset.

        ``alone`` counts requests that came while no other one waited: their delays pass one after another.
        """
        return Counter(self._ask("/__counts__")["counts"])

    def peak(self) -> int:
        """Return the most requests that were waiting at a time."""
        return int(self._ask("/__counts__")["peak"])

    def log(self) -> list[str]:
        """Return method and path of each request."""
        return list(self._ask("/__counts__")["log"])

    def environment(self) -> dict[str, str]:
        """Return the environment in which ``s3://`` URLs lead here."""
        return {
            "AWS_ENDPOINT_URL": self.address,
            "AWS_ACCESS_KEY_ID": "anybody",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }


@contextmanager
def running() -> Iterator[Server]:
    """Start a server in a process of its own; it ends with the context."""
    command = [sys.executable, "-m", "benchmarks.object_server"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        try:
            yield Server(process.stdout.readline().strip())
        finally:
            process.stdin.close()
            process.terminate()


if __name__ == "__main__":
    asyncio.run(_serve())

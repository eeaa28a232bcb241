"""Admission of requests: who, from where, how many; checked before anything else reads a request.

No address that a server logs holds a secret: a person's link carries the token behind ``#``, which browsers do not
send. The page at ``enter`` turns it into a cookie that no script can read and that no other site's page can use.
"""

import asyncio
import ipaddress
import time
from collections import Counter, OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

BODY_BYTES = 256 * 1024
"""Largest request; fifty answers, which is what the page sends at once, are about 25 kB."""

_BASE = (
    "default-src 'none'; script-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; "
)
STRICT_POLICY = _BASE + "style-src 'self'"
CHART_POLICY = _BASE.replace("img-src 'self'", "img-src 'self' data:") + "style-src 'self' 'unsafe-inline'"
"""Policy for pages with BokehJS, which writes its own <style> elements and has icons that are data URLs."""

_ALWAYS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "x-frame-options": "DENY",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}
_SAFE = {"GET", "HEAD", "OPTIONS"}


@dataclass(frozen=True)
class Refusal:
    """A refused request, with the status and the message for its sender."""

    status: HTTPStatus
    detail: str
    wait: float | None = None

    def response(self) -> JSONResponse:
        """Return the refusal as JSON, like all errors; the rest of the request is not read."""
        headers = {"connection": "close"} if self.wait is None else {"retry-after": str(max(1, round(self.wait)))}
        return JSONResponse({"detail": self.detail}, self.status, headers)


def is_loopback(host: str) -> bool:
    """Check whether a host name or address is this machine's own, which no other machine can reach.

    Examples
    --------
    >>> [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "example.org")]
    [True, True, True, False, False]
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


_PORTS = {"http": 80, "https": 443}
_FORWARDED = ("forwarded", "via", "x-real-ip", "x-client-ip", "x-cluster-client-ip", "true-client-ip", "x-proxy")
_FORWARDED_BEGIN = ("x-forwarded", "x-original-", "x-envoy-", "x-proxycontext", "cf-", "x-amzn-", "x-arr-")


def _address(host: str, scheme: str) -> tuple[str, int | None] | None:
    """Parse a Host header, or the end of an Origin, as name and port; None where it is neither."""
    try:
        parts = urlsplit(f"//{host}")
        name, port = parts.hostname or "", parts.port
    except ValueError:
        return None
    after = host[host.rfind("]") + 1 :] if host.startswith("[") else ""
    if parts.path or parts.query or parts.fragment or "@" in host or (after and not after.startswith(":")):
        return None
    return name, port or _PORTS.get(scheme)


def same_origin(scope: Scope) -> Refusal | None:
    """Refuse a write that another site's page may have sent with this browser's cookie.

    Browsers name the origin of a request: in ``Sec-Fetch-Site``, which no page can forge and no proxy changes, or, on
    plain http, only in ``Origin``. A program other than a browser sends neither. It sends its token in
    ``Authorization``, which no other site can make a browser add.

    Returns
    -------
    Refusal or None
    """
    headers = Headers(scope=scope)
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site is not None:
        allowed = site == "same-origin"
    elif origin is not None:
        scheme, _, host = origin.partition("://")
        own = _address(headers.get("host", ""), scheme)
        allowed = scheme in _PORTS and own is not None and _address(host, scheme) == own
    else:
        allowed = headers.get("authorization", "").lower().startswith("bearer ")
    if allowed:
        return None
    came = f"Origin {origin or 'none'}, Sec-Fetch-Site {site or 'none'}, Host {headers.get('host', 'none')}"
    return Refusal(
        HTTPStatus.FORBIDDEN,
        "A write must come from this server's own pages, or have an Authorization: Bearer token. "
        f"This one came with {came[:500]}. A proxy must pass Host on as the browser sent it, port included.",
    )


def local_request(scope: Scope) -> Refusal | None:
    """Refuse a request to a server without tokens that does not come directly from this machine.

    A page of another site can make its name resolve to 127.0.0.1 and would then be "same origin" (DNS rebinding). A
    proxy on this machine makes all its visitors look local. It shows in its headers, or in HTTP/1.0, nginx's default,
    or in an Origin that is not local.

    Returns
    -------
    Refusal or None
    """
    headers = Headers(scope=scope)
    address = _address(headers.get("host", ""), "http")
    origin = headers.get("origin", "").partition("://")[2]
    came = _address(origin, "http") if origin else None
    forwarded = [name for name in headers if name in _FORWARDED or name.startswith(_FORWARDED_BEGIN)]
    if scope.get("http_version") == "1.0":
        forwarded.append("HTTP/1.0")
    if came is not None and not is_loopback(came[0]):
        forwarded.append("Origin")
    if forwarded:
        why = f"not forwarded ones ({', '.join(sorted(set(forwarded)))[:200]})"
    elif address is None or not is_loopback(address[0]):
        why = f"sent to 127.0.0.1 or localhost, not to {(address or ('', 0))[0][:200] or 'a nameless host'}"
    else:
        return None
    return Refusal(
        HTTPStatus.FORBIDDEN,
        f"Without annotator tokens this server answers only requests of its own machine, {why}."
        " Give everyone a link of their own: dal annotator add",
    )


class Rates:
    """A limit of requests a second for each sender, with a burst; the senders seen least recently are forgotten.

    Parameters
    ----------
    per_second : float
    burst : int
        Requests that may come at once after a pause.
    """

    KEPT = 10_000

    def __init__(self, per_second: float, burst: int) -> None:
        self._per_second = per_second
        self._burst = burst
        self._senders: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def excess(self, sender: str, now: float | None = None) -> float | None:
        """Count a request; return the seconds to wait if it is one too many, else None."""
        now = time.monotonic() if now is None else now
        left, at = self._senders.pop(sender, (float(self._burst), now))
        left = min(self._burst, left + (now - at) * self._per_second)
        allowed = left >= 1
        self._senders[sender] = (left - 1 if allowed else left, now)
        while len(self._senders) > self.KEPT:
            self._senders.popitem(last=False)
        return None if allowed else (1 - left) / self._per_second


class Doors:
    """The outermost layer of the application.

    Parameters
    ----------
    app : ASGI application
    chart_paths : iterable of str
        Pages with Bokeh figures.
    requests : Rates
        Limit for each address.
    body_seconds : float
        Time for a request's body to arrive.
    answered : Counter of str
        Counts the responses by the kind of their status, such as ``2xx``.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        chart_paths: Iterable[str],
        requests: Rates,
        body_seconds: float,
        answered: Counter[str],
    ) -> None:
        self._app = app
        self._body_seconds = body_seconds
        self._charts = frozenset(chart_paths)
        self._requests = requests
        self._answered = answered

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or refuse it."""
        if scope["type"] == "websocket":  # there are none; refused by ASGI's protocol
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        sending = self._with_headers(scope, send)
        refusal = self._refusal(scope)
        if refusal is None and scope["method"] not in _SAFE:
            body = await _body(Headers(scope=scope), receive, self._body_seconds)
            if isinstance(body, Refusal):
                refusal = body
            else:
                receive = _replayed(body, receive)
        if refusal is None:
            await self._app(scope, receive, sending)
        else:
            await refusal.response()(scope, receive, sending)

    def _count(self, status: int) -> None:
        self._answered[f"{status // 100}xx"] += 1

    def _refusal(self, scope: Scope) -> Refusal | None:
        client = scope.get("client")
        wait = self._requests.excess(client[0] if client else "")
        if wait is not None:
            return Refusal(HTTPStatus.TOO_MANY_REQUESTS, "Too many requests from this address; wait a moment.", wait)
        headers = Headers(scope=scope)
        hosts = headers.getlist("host")
        if len(hosts) != 1 or _address(hosts[0], "http") is None:
            return Refusal(HTTPStatus.BAD_REQUEST, "The request must have one Host header with a name or an address.")
        if scope["method"] in _SAFE:
            return None
        if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            return Refusal(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "The body must be application/json.")
        return same_origin(scope)

    def _with_headers(self, scope: Scope, send: Send) -> Send:
        policy = CHART_POLICY if scope["path"].strip("/") in self._charts else STRICT_POLICY

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._count(message["status"])
                headers = MutableHeaders(scope=message)
                for name, value in _ALWAYS.items():
                    headers[name] = value
                headers["content-security-policy"] = policy
                headers.setdefault("cache-control", "no-store")
            await send(message)

        return sending


async def _body(headers: Headers, receive: Receive, seconds: float) -> bytes | Refusal:
    """Read a body that is neither too large nor too slow."""
    too_large = Refusal(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        f"The body must have at most {BODY_BYTES:,} bytes; send less at a time.",
    )
    length = headers.get("content-length", "0")
    if length.isdecimal() and int(length) > BODY_BYTES:
        return too_large
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return bytes(body)
                body += message.get("body", b"")
                if len(body) > BODY_BYTES:
                    return too_large
                if not message.get("more_body", False):
                    return bytes(body)
    except TimeoutError:
        # pages send it again
        return Refusal(HTTPStatus.REQUEST_TIMEOUT, f"The body did not arrive within {seconds:.0f} seconds.")


def _replayed(body: bytes, receive: Receive) -> Receive:
    sent = False

    async def replaying() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replaying

"""Running the pages' server: its address, and checks before it listens."""

import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import uvicorn

from dal.campaign import Annotators, CampaignStore
from dal.errors import SettingsError
from dal.texts import name_flaw
from dal.web.app import Options, create_app
from dal.web.connections import LimitedServer, Limits
from dal.web.doors import is_loopback

LIMITS = Limits()


@dataclass(frozen=True)
class Listening:
    """The address that the server listens on.

    Attributes
    ----------
    host : str
        Address; one that others can reach needs annotator tokens.
    port : int
        0 takes a free one.
    tls_certificate, tls_key : Path or None
        PEM files; both, or neither.
    trusted_proxy : str or None
        Address of a proxy whose X-Forwarded headers are trusted; without one they are ignored.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    trusted_proxy: str | None = None

    def check(self, campaign: CampaignStore) -> None:
        """Check that strangers cannot get in.

        Raises
        ------
        SettingsError
            Others can reach the address and the campaign has no tokens, or only one of two TLS files is given.
        """
        if not is_loopback(self.host) and not Annotators(campaign).all():
            raise SettingsError(
                f"the campaign must have annotators with tokens, because others can reach {self.host} and any visitor "
                "would"
                " be a manager, got none; give everyone a link of their own first (dal annotator add), or listen on"
                " 127.0.0.1"
            )
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise SettingsError("`tls_certificate` and `tls_key` must be passed together, got one of them")

    @property
    def private(self) -> bool:
        """Whether only this machine's own users can reach it."""
        return is_loopback(self.host)


class Server:
    """A server that listens already, and answers as soon as it runs.

    Attributes
    ----------
    url : str
        The address to open, as this machine knows it.
    """

    def __init__(self, server: uvicorn.Server, listening: Listening) -> None:
        self._server = server
        try:
            family = socket.AF_INET6 if ":" in listening.host else socket.AF_INET
            self._socket = socket.create_server((listening.host, listening.port), family=family, backlog=2048)
        except (OSError, UnicodeError) as error:  # UnicodeError for an invalid host name
            why = getattr(error, "strerror", None) or error
            raise SettingsError(
                f"`host` and `port` must be free to listen on, got {listening.host}, port {listening.port}: {why};"
                " choose another one; port 0 takes any free one"
            ) from error
        host = f"[{listening.host}]" if ":" in listening.host else listening.host
        scheme = "http" if listening.tls_certificate is None else "https"
        self.url = f"{scheme}://{host}:{self._socket.getsockname()[1]}/"

    def __enter__(self) -> Self:
        """Return the server itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop listening."""
        self._socket.close()

    def run(self) -> None:
        """Answer requests until the process is asked to end."""
        self._server.run(sockets=[self._socket])

    def end(self) -> None:
        """End `run`, which runs in another thread."""
        self._server.should_exit = True


def make_server(campaign: CampaignStore, listening: Listening, options: Options, limits: Limits = LIMITS) -> Server:
    """Check everything and make a server that listens.

    Parameters
    ----------
    campaign : Campaign
    listening : Listening
    options : Options
    limits : Limits

    Returns
    -------
    Server

    Raises
    ------
    SettingsError
        See `Listening.check`; or the address is not free, or a TLS file or the user's name cannot be used.
    PoolError
        The campaign's pool cannot be opened.
    """
    listening.check(campaign)
    if wrong := name_flaw(options.user):
        raise SettingsError(f"`user` must be the name of a person (--user), but this one {wrong}; choose another")
    limits = limits.fitting()
    config = uvicorn.Config(
        create_app(campaign, options, limits),
        ssl_certfile=listening.tls_certificate,
        ssl_keyfile=listening.tls_key,
        # By default uvicorn trusts every proxy on this machine.
        proxy_headers=listening.trusted_proxy is not None,
        forwarded_allow_ips=listening.trusted_proxy or "",
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        server_header=False,
        h11_max_incomplete_event_size=limits.head_bytes,
        timeout_keep_alive=round(limits.idle_seconds),
        timeout_graceful_shutdown=5,
    )
    try:
        config.load()
    except OSError as error:  # of ssl, too
        raise SettingsError(
            f"{listening.tls_certificate} and {listening.tls_key} cannot be used for TLS: {error.strerror or error};"
            " they must be a certificate and its key, both PEM"
        ) from error
    return Server(LimitedServer(config, limits), listening)

"""The certificates by which this process and a scheduler know each other."""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from dal.errors import SettingsError

_RECIPE = "cluster/tls/README.md shows how"


@contextmanager
def certificates(
    scheduler: str | None, *, ca_file: Path | None = None, cert: Path | None = None, key: Path | None = None
) -> Iterator[None]:
    """Set the certificates that were given, on top of Dask's own configuration, for as long as the context lives.

    A value that is None stays as Dask's configuration has it. Where one is given, an address without TLS is refused: a
    connection that was meant to be encrypted must not fall back to plain text.

    Parameters
    ----------
    scheduler
        Address of the scheduler; certificates are of no use without one.
    ca_file
        Certificates of the authorities that signed those of the scheduler and the workers, PEM.
    cert, key
        Certificate of this process, and its private key, PEM.

    Raises
    ------
    SettingsError
        A certificate is given without a scheduler, or for one that is not reached by TLS.
    """
    given = {
        name: str(path)
        for name, path in (("ca-file", ca_file), ("client.cert", cert), ("client.key", key))
        if path is not None
    }
    if not given:
        yield
        return
    if scheduler is None or not scheduler.startswith("tls://"):
        raise SettingsError(
            "`--scheduler` must be an address such as tls://10.0.0.5:8786 where certificates are given, got "
            f"{scheduler or 'none'}; write tls://, or leave --tls-ca-file, --tls-cert and --tls-key out"
        )
    import dask
    import distributed  # noqa: F401 - without its defaults in place, the end of the context would take them along

    wanted = {f"distributed.comm.tls.{name}": path for name, path in given.items()}
    with dask.config.set(wanted | {"distributed.comm.require-encryption": True}):
        yield


def refusal(address: str, timeout: float) -> str | None:
    """Return why TLS keeps this process from the scheduler at an address; None where TLS is not the reason.

    Dask's own error depends on chance: a scheduler refuses a certificate when the client's side of the handshake is
    over, and the client's first message may then meet a closed connection before the reason is read. Here a plain
    socket shakes hands again, and only listens.
    """
    from distributed import Security
    from distributed.comm.addressing import parse_address, parse_host_port

    try:
        scheme, place = parse_address(address)
        host, port = parse_host_port(place)
    except ValueError:
        return None
    security = Security()
    if scheme == "tcp":
        if security.require_encryption:
            return "Dask's configuration requires encryption (distributed.comm.require-encryption): write tls://"
        anybody = ssl.create_default_context()
        anybody.check_hostname = False
        anybody.verify_mode = ssl.CERT_NONE
        spoken = not isinstance(_heard(host, port, anybody, timeout, listen=False), OSError)
        return f"the scheduler there speaks TLS: write tls://, and name certificates ({_RECIPE})" if spoken else None
    if scheme != "tls":
        return None
    files = security.get_tls_config_for_role("client")
    named = ", ".join(f"{name} {files[name]}" for name in ("ca_file", "cert", "key") if files[name])
    if not files["ca_file"] or not files["cert"]:
        return (
            f"tls:// takes certificates, got {named or 'none'}: name them by --tls-ca-file, --tls-cert and --tls-key, "
            f"or as distributed.comm.tls in Dask's configuration ({_RECIPE})"
        )
    try:
        context = security.get_connection_args("client")["ssl_context"]
    except OSError as error:  # that of a file, or of ssl
        return f"the certificates cannot be read ({error}): look at {named}"
    heard = _heard(host, port, context, timeout, listen=True)
    if isinstance(heard, ssl.SSLCertVerificationError):
        return (
            f"the scheduler's certificate is refused ({heard.verify_message}): it must be signed by {files['ca_file']} "
            f"and not expired ({_RECIPE})"
        )
    if isinstance(heard, ssl.SSLError) and heard.reason in {"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE"}:
        return "the server there does not speak TLS: write tcp://, or start the scheduler with --protocol tls"
    if isinstance(heard, ssl.SSLError):
        reason = (heard.reason or str(heard)).lower().replace("_", " ")
        return f"the scheduler refuses {files['cert']} ({reason}): have it signed again by its authority ({_RECIPE})"
    return None


def _heard(host: str, port: int, context: ssl.SSLContext, timeout: float, *, listen: bool) -> OSError | None:
    """Connect to a server, listen for its first byte where that is asked, and return the error that came."""
    try:
        with (
            socket.create_connection((host, port), timeout=timeout) as plain,
            context.wrap_socket(plain, server_hostname=host) as encrypted,
        ):
            if listen:
                encrypted.recv(1)
    except OSError as error:
        return error
    return None


# -- their last day ----------------------------------------------------------------------------------------------------


def presented(address: str, timeout: float) -> datetime | None:
    """Return the time at which the certificate expires that a server of Dask shows; None where it shows none.

    A process reads its certificate when it starts: a file that was replaced since says nothing of it.

    Parameters
    ----------
    address : str
        Of a scheduler or a worker.
    timeout : float
    """
    from distributed import Security
    from distributed.comm.addressing import parse_address, parse_host_port

    try:
        scheme, place = parse_address(address)
        context = Security().get_connection_args("client")["ssl_context"]
        if scheme != "tls" or context is None:
            return None
        host, port = parse_host_port(place)
        context.verify_mode = ssl.CERT_NONE  # also of one that has expired
        with (
            socket.create_connection((host, port), timeout=timeout) as plain,
            context.wrap_socket(plain, server_hostname=host) as encrypted,
        ):
            shown = encrypted.getpeercert(binary_form=True)
    except (OSError, ValueError):  # of the connection or a file, of the address
        return None
    return None if shown is None else _expiry(shown)


def own_files() -> dict[str, datetime]:
    """Return the time at which each file of certificates of Dask's configuration expires, for a client, by its path.

    A file of several holds a certificate and its signers, or authorities of which one follows another: the first
    certificate counts, or the authority that lasts longest. A file that cannot be read has no entry.
    """
    from distributed import Security

    files = Security().get_tls_config_for_role("client")
    found = {}
    for name, chosen in (("ca_file", max), ("cert", lambda expiries: expiries[0])):
        try:
            text = Path(files[name] or "").read_text(encoding="ascii", errors="replace")
            found[str(files[name])] = chosen([_expiry(ssl.PEM_cert_to_DER_cert(each)) for each in _PEM.findall(text)])
        except (OSError, ValueError, IndexError):
            continue
    return found


_PEM = re.compile("-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)


def _expiry(certificate: bytes) -> datetime:
    """Read the end of a certificate's validity (RFC 5280, 4.1), which `ssl` tells only of certificates it has verified.

    Parameters
    ----------
    certificate : bytes
        DER.
    """
    _, whole = next(_elements(memoryview(certificate)))
    _, signed = next(_elements(whole))
    # The version, which has this tag, may be left out; then come serial number, algorithm, issuer and validity.
    fields = [value for tag, value in _elements(signed) if tag != 0xA0]
    _, (tag, end) = _elements(fields[3])
    time = bytes(end).decode("ascii")
    if tag == 0x17:  # of two digits for the year
        time = f"{'20' if time < '50' else '19'}{time}"
    return datetime.strptime(time, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)


def _elements(der: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Return the tag and the value of each element of a sequence."""
    while der:
        tag, length, start = der[0], der[1], 2
        if length & 0x80:
            start += length & 0x7F
            length = int.from_bytes(der[2:start], "big")
        yield tag, der[start : start + length]
        der = der[start + length :]

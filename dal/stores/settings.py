"""Address and credentials of an object store, from where users keep them: the environment, AWS's files, fsspec's.

Every process looks in its own environment. So no secret travels with a pool, a job or a campaign.
"""

import functools
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from dal._distribution import install_line
from dal.errors import InputError, NotInstalled, SettingsError

if TYPE_CHECKING:
    from obstore.store import ObjectStore as Client

_KIND = {
    "s3": "s3", "s3a": "s3",
    "gs": "gs", "gcs": "gs",
    "az": "az", "abfs": "az", "abfss": "az",
    "http": "http", "https": "http",
}  # fmt: skip
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/]*)/?(.*)", re.DOTALL)
_IN_FSSPEC = {"s3": ("s3", "s3a"), "gs": ("gs", "gcs"), "az": ("az", "abfs", "abfss"), "http": ("http", "https")}
_ENVIRONMENT = (
    "AWS_",
    "GOOGLE_",
    "STORAGE_EMULATOR_HOST",
    "AZURE_",
    "FSSPEC_",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
)

CONNECT_SECONDS = 5
REQUEST_SECONDS = 600
"""Of a whole request: long enough for a shard over a slow line."""
RETRIES = 10
RETRY_SECONDS = 60


def is_object_store(text: str) -> bool:
    """Check whether dal opens this URL by itself; others are left to fsspec.

    Examples
    --------
    >>> [is_object_store(text) for text in ("s3://bucket/a", "memory://a", "simplecache::s3://bucket/a")]
    [True, False, False]
    """
    found = _URL.fullmatch(text)
    return found is not None and found[1].lower() in _KIND and "::" not in found[2]


@dataclass(frozen=True)
class Address:
    """The store and the folder of a URL.

    Attributes
    ----------
    kind : {"s3", "gs", "az", "http"}
    bucket : str
        A bucket or container, or the address of a web server.
    prefix : str
        Of the folder in it; no sign at its end.
    account : str
        Of Azure, where the URL names it.
    """

    kind: str
    bucket: str
    prefix: str
    account: str = ""

    @classmethod
    def of(cls, text: str) -> "Address":
        """Return the address of a URL.

        Raises
        ------
        InputError
            The URL names no bucket, or holds credentials.

        Examples
        --------
        >>> Address.of("s3://bucket/a#b/c")
        Address(kind='s3', bucket='bucket', prefix='a#b/c', account='')
        >>> Address.of("abfs://box@mine.dfs.core.windows.net/a")
        Address(kind='az', bucket='box', prefix='a', account='mine')
        >>> Address.of("https://example.org/my%20pools/a.zarr")
        Address(kind='http', bucket='https://example.org', prefix='my pools/a.zarr', account='')
        """
        found = _URL.fullmatch(text)
        assert found is not None  # `is_object_store`
        scheme, host, path = found[1].lower(), found[2], found[3].rstrip("/")
        kind = _KIND[scheme]
        before, at, after = host.rpartition("@")
        if at and (kind != "az" or ":" in before):
            raise InputError(
                f"`path` must hold no credentials, got some in {scheme}://...@{after}; give them by the environment"
            )
        if not host:
            raise InputError(f"`path` must name a bucket, such as {scheme}://bucket/folder, got {text!r}")
        if kind == "http":
            parts = urlsplit(text)
            if parts.query or parts.fragment:
                raise InputError(
                    f"`path` must be a URL without ? and #, got {scheme}://{host}{unquote(parts.path)} with more behind"
                    " it; a pool has many files, and such a part belongs to one"
                )
            return cls(kind, f"{scheme}://{host}", unquote(parts.path.strip("/")))
        if kind == "az" and at:
            return cls(kind, before, path, after.partition(".")[0])
        return cls(kind, host, path)


@dataclass
class _Found:
    """Arguments with which a store is opened."""

    config: dict[str, Any] = field(default_factory=dict)
    client: dict[str, Any] = field(default_factory=dict)
    attempts: int = RETRIES + 1
    provider: Callable[[], Any] | None = None


def client_of(address: Address, read_seconds: float = 30.0) -> "Client":
    """Open a store; the same client for the same address and environment, so that connections are shared.

    Parameters
    ----------
    address : Address
    read_seconds : float, default=30.0
        Until a server that sends nothing is given up, and asked again.

    Raises
    ------
    NotInstalled
        The package is missing.
    SettingsError
        The environment, or fsspec's configuration, asks for what dal cannot do.
    """
    import fsspec.config  # a tenth of a second, and local places do without

    environment = tuple(sorted((name, value) for name, value in os.environ.items() if name.startswith(_ENVIRONMENT)))
    given: dict[str, Any] = {}
    for protocol in _IN_FSSPEC[address.kind]:
        given |= fsspec.config.conf.get(protocol, {})
    # Two processes never share a client: after a fork the threads that drive it are gone.
    return _client(
        address.kind, address.bucket, address.account, environment, _Options(given), read_seconds, os.getpid()
    )


class _Options(dict[str, Any]):
    """Options that can be a key, by what they say."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(repr(sorted(self.items(), key=repr)))


@functools.lru_cache(maxsize=32)
def _client(
    kind: str,
    bucket: str,
    account: str,
    environment: tuple[tuple[str, str], ...],
    given: Mapping[str, Any],
    read_seconds: float,
    process: int,  # noqa: ARG001
) -> "Client":
    try:
        from obstore import store
    except ImportError as error:
        raise NotInstalled(f"object stores need the package obstore; {install_line('remote')}") from error
    env, options = dict(environment), dict(given)
    found = {"s3": _s3, "gs": _gs, "az": _az, "http": _http}[kind](env, options)
    if options:
        raise SettingsError(
            f"fsspec's configuration of {kind} (FSSPEC_{kind.upper()}, or its files) must hold options that dal knows,"
            f" got {', '.join(sorted(options))}; remove them, or give address and credentials by the environment"
        )
    endpoint = str(found.config.get("endpoint", found.config.get("base_url", bucket)))
    client: Any = {
        "connect_timeout": timedelta(seconds=CONNECT_SECONDS),
        "read_timeout": timedelta(seconds=read_seconds),
        "timeout": timedelta(seconds=REQUEST_SECONDS),
        "allow_http": endpoint.startswith("http://"),
        **found.client,
    }
    retry: Any = {
        "max_retries": found.attempts - 1,
        "retry_timeout": timedelta(seconds=RETRY_SECONDS),
        "backoff": {"init_backoff": timedelta(seconds=0.025), "max_backoff": timedelta(seconds=5), "base": 2},
    }
    how: Any = {"client_options": client, "retry_config": retry}
    config: Any = {"account_name": account, **found.config} if account else found.config
    if found.provider is not None:
        how["credential_provider"] = found.provider
    try:
        if kind == "http":
            return store.HTTPStore(bucket, **how)
        if kind == "gs":
            return store.GCSStore(bucket, config=config, **how)
        return (store.AzureStore if kind == "az" else store.S3Store)(bucket, config=config, **how)
    except Exception as error:
        why = str(error).partition("\n")[0]
        raise SettingsError(f"address and credentials of {kind}://{bucket} must be usable, got: {why}") from None


def _take(options: dict[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Take options out under the names that obstore has for them; those that are None say nothing."""
    taken = {known: options.pop(name) for name, known in names.items() if name in options}
    return {name: value for name, value in taken.items() if value is not None}


def _s3(env: dict[str, str], options: dict[str, Any]) -> _Found:
    """Find what botocore and s3fs would: fsspec's options, the environment, then the profiles of AWS's files."""
    keys = {"key": "access_key_id", "secret": "secret_access_key", "token": "session_token"}
    inner = dict(options.pop("client_kwargs", None) or {})
    config = _take(inner, {"endpoint_url": "endpoint", "region_name": "region"})
    config |= _take(inner, {f"aws_{name}": name for name in keys.values()})
    config |= _take(options, {**keys, "endpoint_url": "endpoint", "anon": "skip_signature"})
    found = _Found(config)
    if "verify" in inner:
        found.client |= _verified(inner.pop("verify"))
    options |= {f"client_kwargs.{name}": value for name, value in inner.items()}
    for name in ("use_ssl", "asynchronous", "max_concurrency", "default_block_size", "default_cache_type"):
        options.pop(name, None)  # they say how s3fs works, not where the store is
    explicit: str | None = options.pop("profile", None)
    profile = explicit or env.get("AWS_PROFILE") or env.get("AWS_DEFAULT_PROFILE")
    if bundle := env.get("AWS_CA_BUNDLE"):
        found.client |= _verified(bundle)
    # In botocore's order: keys of the environment go before a profile that is named there.
    told = bool("access_key_id" in config or config.get("skip_signature"))
    told = told or ("AWS_ACCESS_KEY_ID" in env and explicit is None)
    native = any(name in env for name in ("AWS_WEB_IDENTITY_TOKEN_FILE", *_CONTAINER))
    if not told and (profile or (_has_files(env) and not native)):
        found.provider = _by_profile(profile, config)
    elif not told and not native and env.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true":
        raise SettingsError(
            "credentials for s3 must be given, got none; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or"
            " AWS_PROFILE, or for a public bucket FSSPEC_S3='{\"anon\": true}'"
        )
    endpoint = env.get("AWS_ENDPOINT_URL_S3") or env.get("AWS_ENDPOINT_URL")
    if endpoint and "endpoint" not in config and env.get("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "").lower() != "true":
        config["endpoint"] = endpoint
    config.setdefault("region", env.get("AWS_REGION") or env.get("AWS_DEFAULT_REGION") or "us-east-1")
    if (attempts := env.get("AWS_MAX_ATTEMPTS", "")).isdecimal():
        found.attempts = max(int(attempts), 1)
    return found


_CONTAINER = ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI")


def _has_files(env: Mapping[str, str]) -> bool:
    named = [path for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE") if (path := env.get(name))]
    usual = [Path.home() / ".aws" / "credentials", Path.home() / ".aws" / "config"]
    return any(path.expanduser().exists() for path in [*map(Path, named), *usual])


def _by_profile(profile: str | None, config: dict[str, Any]) -> Callable[[], Any] | None:
    """Find credentials as AWS's own tools do, by the profiles of their files; None where these hold none."""
    try:
        import botocore.exceptions
        import botocore.session
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError as error:
        raise NotInstalled(
            f"profiles of ~/.aws need the package boto3; {install_line('remote')}, or set AWS_ACCESS_KEY_ID"
        ) from error
    try:
        session = botocore.session.Session(profile=profile)
        if region := session.get_config_variable("region"):
            config.setdefault("region", region)
        scoped = session.get_scoped_config()
        if "endpoint_url" in scoped:
            config.setdefault("endpoint", scoped["endpoint_url"])
        if session.get_credentials() is None:
            return None
        return Boto3CredentialProvider(session)
    except botocore.exceptions.BotoCoreError as error:
        raise SettingsError(f"AWS's configuration must be readable, got: {error}; mend ~/.aws") from error


def _verified(bundle: object) -> dict[str, Any]:
    if isinstance(bundle, str):
        try:
            return {"root_certificate": Path(bundle).read_bytes()}
        except OSError as error:
            raise SettingsError(f"{bundle} must be a file of certificates: {error.strerror}") from error
    return {} if bundle is True or bundle is None else {"allow_invalid_certificates": True}


def _gs(env: dict[str, str], options: dict[str, Any]) -> _Found:
    """Find what gcsfs would; obstore finds GOOGLE_APPLICATION_CREDENTIALS, gcloud's files and the machine's account."""
    found = _Found(_take(options, {"endpoint_url": "base_url"}))
    token = options.pop("token", None)
    for name in ("project", "asynchronous", "access", "default_location"):
        options.pop(name, None)
    if token == "anon":
        found.config["skip_signature"] = True
    elif isinstance(token, str) and token not in ("google_default", "cloud", "cache"):
        found.config["application_credentials"] = token
    elif token is not None and not isinstance(token, str):
        options["token"] = token
    if emulator := env.get("STORAGE_EMULATOR_HOST"):
        found.config.setdefault("base_url", emulator if "://" in emulator else f"http://{emulator}")
        found.config.setdefault("skip_signature", True)
    return found


_CONNECTION = {
    "AccountName": "account_name", "AccountKey": "account_key", "SharedAccessSignature": "sas_key",
    "BlobEndpoint": "endpoint",
}  # fmt: skip


def _az(env: dict[str, str], options: dict[str, Any]) -> _Found:
    """Find what adlfs would; obstore finds AZURE_STORAGE_ACCOUNT_NAME, _KEY, _SAS_TOKEN and the machine's account."""
    names = ("account_name", "account_key", "client_id", "client_secret", "tenant_id")
    found = _Found(_take(options, {**{name: name for name in names}, "sas_token": "sas_key", "anon": "skip_signature"}))
    text = options.pop("connection_string", None) or env.get("AZURE_STORAGE_CONNECTION_STRING")
    for part in (text or "").split(";"):
        name, _, value = part.partition("=")
        if name in _CONNECTION:
            found.config.setdefault(_CONNECTION[name], value)
    if text and text.strip().rstrip(";").lower() == "usedevelopmentstorage=true":
        found.config.setdefault("use_emulator", True)
    if "sas_key" in found.config:
        found.config["sas_key"] = found.config["sas_key"].lstrip("?")
    options.pop("asynchronous", None)
    return found


def _http(env: dict[str, str], options: dict[str, Any]) -> _Found:  # noqa: ARG001
    options.pop("asynchronous", None)
    return _Found()


def secrets_of_environment() -> set[str]:
    """Return values that must stand in no message: those of variables and options whose names tell that they are."""
    import fsspec.config

    named = re.compile(r"secret|token|key|password|sas|connection_string", re.IGNORECASE)
    held = {value for name, value in os.environ.items() if name.startswith(_ENVIRONMENT) and named.search(name)}

    def inside(options: object, name: str = "") -> None:
        if isinstance(options, Mapping):
            for inner, value in options.items():
                inside(value, str(inner))
        elif isinstance(options, str) and named.search(name):
            held.add(options)

    for protocols in _IN_FSSPEC.values():
        for protocol in protocols:
            inside(fsspec.config.conf.get(protocol, {}))
    return {value for value in held if len(value) >= 6}

"""TLS with certificates made and used as cluster/tls/README.md says: the right ones work, all others are refused."""

import contextlib
import os
import re
import shutil
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import dask
import httpx2 as httpx
import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from distributed import Security
from sqlalchemy import text

import dal
from benchmarks import object_server
from dal.campaign.database import open_server
from dal.cli import main
from dal.compute.client import connect
from dal.compute.tls import certificates as certificates_of_options
from dal.compute.tls import own_files
from dal.errors import ClusterError, DatabaseError
from tests import databases
from tests.certificates import RECIPE, last_day, made, signed
from tests.conftest import missing_service
from tests.recipes import ROOT, block_with, flat, free_port, running


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificates of another authority, which bear the same names."""
    return made(tmp_path_factory.mktemp("foreign"))


@pytest.fixture(scope="module")
def expired(tmp_path_factory: pytest.TempPathFactory, certificates: Path) -> Path:
    """Certificates of the same authority that expired yesterday."""
    return signed(tmp_path_factory.mktemp("expired"), certificates, -1)


@pytest.fixture(scope="module")
def cluster_of_recipe(certificates: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A scheduler and two workers by the README's commands; the environment in which they were started."""
    logs = tmp_path_factory.mktemp("logs")
    found = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {
        "SCHEDULER_PORT": str(free_port()),
        "DASHBOARD_PORT": str(free_port()),
        "WORKERS": "2",
        "CERTIFICATES": str(certificates),
        "PYTHONPATH": found,
    }
    with (
        running(block_with(RECIPE, "dask scheduler"), environment, logs / "scheduler.log"),
        running(block_with(RECIPE, "dask worker"), environment, logs / "workers.log"),
    ):
        with dask.config.set(configured(certificates)), connect(address(environment), timeout=30) as client:
            client.wait_for_workers(2, timeout=60)
        yield environment


def address(environment: dict[str, str], protocol: str = "tls") -> str:
    return f"{protocol}://127.0.0.1:{environment['SCHEDULER_PORT']}"


def configured(folder: Path) -> dict[str, object]:
    """The README's file of Dask's configuration, for the certificates in a folder."""
    written = block_with(RECIPE, "require-encryption: true").replace("certificates/", f"{folder}/")
    return flat(yaml.safe_load(written))


def run(block: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a block of shell to its end."""
    return subprocess.run(
        ["bash", "-euc", block],
        cwd=ROOT,
        env=os.environ | environment | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=100,
    )


def tried(address: str, files: Path | None, **more: object) -> None:
    """Connect with the certificates of a folder."""
    with dask.config.set((configured(files) if files else {}) | more), connect(address) as client:
        assert client.submit(pow, 2, 10).result(timeout=30) == 1024


@pytest.mark.slow
def test_only_holders_of_a_certificate_reach_the_cluster(
    cluster_of_recipe: dict[str, str], certificates: Path, foreign: Path, expired: Path, tmp_path: Path
) -> None:
    encrypted, plain = address(cluster_of_recipe), address(cluster_of_recipe, "tcp")
    tried(encrypted, certificates)
    # One of ours in the hands of a process that takes another authority for its own, and the other way round.
    trusting = {"distributed.comm.tls.ca-file": str(foreign / "ca.pem")}
    trusted = {"distributed.comm.tls.ca-file": str(certificates / "ca.pem")}
    for word, where, files, more in (
        ("speaks TLS", plain, None, {}),
        ("requires encryption", plain, certificates, {}),
        ("--tls-cert", encrypted, None, {}),
        ("signed by", encrypted, foreign, {}),
        ("signed by", encrypted, certificates, trusting),
        ("unknown ca", encrypted, foreign, trusted),
        ("certificate expired", encrypted, expired, {}),
        ("cannot be read", encrypted, tmp_path / "gone", {}),
    ):
        with pytest.raises(ClusterError, match=word):
            tried(where, files, **more)


@pytest.mark.slow
def test_a_scheduler_that_cannot_be_trusted_is_refused(certificates: Path, expired: Path, tmp_path: Path) -> None:
    for folder, word in ((RECIPE, "certificate has expired"), ("cluster", "does not speak TLS")):
        ports = {"SCHEDULER_PORT": str(free_port()), "DASHBOARD_PORT": str(free_port())}
        log = tmp_path / word
        with running(block_with(folder, "dask scheduler"), ports | {"CERTIFICATES": str(expired)}, log):
            heard_from(log, "Scheduler at")
            with pytest.raises(ClusterError, match=word):
                tried(address(ports), certificates)


def heard_from(log: Path, words: str) -> None:
    """Wait until a command has written some words to its log."""
    while words not in log.read_text():
        time.sleep(0.02)


@pytest.mark.slow
def test_other_workers_are_refused(
    cluster_of_recipe: dict[str, str], certificates: Path, foreign: Path, expired: Path, tmp_path: Path
) -> None:
    block = block_with(RECIPE, "dask worker").replace("--death-timeout 60", "--death-timeout 5")
    plain = block[: block.index(" \\\n    --tls-ca-file")].replace("tls://", "tcp://")
    kinds = {"plain": (plain, certificates), "foreign": (block, foreign), "expired": (block, expired)}
    with contextlib.ExitStack() as stack:
        started = {
            name: stack.enter_context(
                running(worker, cluster_of_recipe | {"WORKERS": "1", "CERTIFICATES": str(folder)}, tmp_path / name)
            )
            for name, (worker, folder) in kinds.items()
        }
        assert [process.wait(timeout=60) for process in started.values()] == [1, 1, 1]
    with dask.config.set(configured(certificates)), connect(address(cluster_of_recipe)) as client:
        assert len(client.scheduler_info()["workers"]) == 2


@pytest.mark.slow
def test_a_campaign_over_tls_asks_the_same_as_one_in_process(
    cluster_of_recipe: dict[str, str], foreign: Path, tmp_path: Path
) -> None:
    rng = np.random.default_rng(3)
    y = rng.integers(0, 2, 20_000)
    X = rng.normal(y[:, None], 1.0, (20_000, 4)).astype(np.float32)
    pool = dal.Pool.build(X, tmp_path / "pool.zarr")
    here, there = (
        dal.Campaign.create(tmp_path / name, pool, ["a", "b"], batch_size=20, random_state=5)
        for name in ("here", "there")
    )
    # The options, the environment, and Dask's own configuration, a round each.
    written = tmp_path / "dask.yaml"
    sections = block_with(RECIPE, "require-encryption: true")
    written.write_text(sections.replace("certificates/", f"{cluster_of_recipe['CERTIFICATES']}/"))
    command = f"\ndal next {there.directory} --scheduler {address(cluster_of_recipe)}\n"
    ways = [
        (block_with(RECIPE, '--tls-cert "${CERTIFICATES:-certificates}/dal.pem"'), {}),
        (block_with(RECIPE, "CLIENT__CERT="), {}),
        (command, {"DASK_CONFIG": str(written)}),
    ]
    named = cluster_of_recipe | {"CAMPAIGN": str(there.directory)}
    for number, (block, more) in enumerate(ways, start=1):
        done = run(block, named | more)
        assert done.returncode == 0, done.stderr
        assert isinstance(here.next_batch(), dal.Batch)
        asked, known = (campaign.rounds.batch(number) for campaign in (there, here))
        assert [each.row for each in asked] == [each.row for each in known]
        for campaign in (here, there):
            rows = np.array([each.row for each in asked])
            campaign.label([each.record_id for each in asked], y[rows])
    refused = run(ways[0][0], named | {"CERTIFICATES": str(foreign)})
    assert refused.returncode == 1
    assert "certificate" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert len(there.rounds.all()) == len(ways)


def test_the_last_day_of_a_certificate_is_read(certificates: Path, tmp_path: Path) -> None:
    days = {days: signed(tmp_path / str(days), certificates, days) for days in (-1, 40, 20_000)}  # until after 2050
    bundle = tmp_path / "bundle.pem"
    bundle.write_text("".join((days[each] / "dal.pem").read_text() for each in (-1, 20_000, 40)))
    for folder in days.values():
        with dask.config.set(configured(folder)):
            found = {path: f"{expires:%Y-%m-%d}" for path, expires in own_files().items()}
        assert found == {str(path): last_day(path) for path in (folder / "ca.pem", folder / "dal.pem")}
    with dask.config.set(
        {"distributed.comm.tls.ca-file": str(bundle), "distributed.comm.tls.client.cert": str(bundle)}
    ):
        assert f"{own_files()[str(bundle)]:%Y-%m-%d}" == last_day(days[-1] / "dal.pem")
    with dask.config.set({"distributed.comm.tls.ca-file": str(bundle), "distributed.comm.tls.client.cert": __file__}):
        assert {f"{expires:%Y-%m-%d}" for expires in own_files().values()} == {last_day(days[20_000] / "dal.pem")}


@pytest.mark.slow
def test_the_doctor_of_a_cluster_with_certificates_and_of_a_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = made(tmp_path / "ours", authority_days=25)
    leading, near, far = (signed(tmp_path / str(days), ours, days) for days in (5, 9, 13))
    ports = {"SCHEDULER_PORT": str(free_port()), "DASHBOARD_PORT": str(free_port()), "WORKERS": "1"}
    ports["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(object_server.running())
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        rng = np.random.default_rng(0)
        pool = dal.Pool.build(rng.standard_normal((60_000, 6)).astype(np.float32), "s3://bucket/pool.zarr")
        storage = dal.Storage(store="s3://bucket/store")
        campaign = dal.Campaign.create(tmp_path / "campaign", pool, ["a", "b"], batch_size=20, storage=storage)
        for name, folder, host, more in (
            ("scheduler", leading, "", {}),
            ("worker", near, "127.0.0.2", {}),
            ("worker", far, "127.0.0.3", {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{free_port()}"}),
        ):
            places = ports | {"CERTIFICATES": str(folder), "WORKER_HOST": host} | more
            stack.enter_context(running(block_with(RECIPE, f"dask {name}"), places, tmp_path / f"{name}-{host}.log"))
        with dask.config.set(configured(ours)), connect(address(ports), timeout=30) as client:
            client.wait_for_workers(2, timeout=60)

        def doctor() -> list[str]:
            files = {"--tls-ca-file": "ca.pem", "--tls-cert": "dal.pem", "--tls-key": "dal-key.pem"}
            options = [word for option, name in files.items() for word in (option, str(far / name))]
            words = ["doctor", str(campaign.directory), "--scheduler", address(ports), *options]
            done = CliRunner().invoke(main, words, catch_exceptions=False)
            assert done.exit_code == 1
            return done.output.splitlines()

        said = doctor()
        for severity, host, named in (
            ("advice", "127.0.0.1", f"the scheduler's certificate expires on {last_day(leading / 'scheduler.pem')}"),
            ("advice", "127.0.0.2", f"a worker's certificate expires on {last_day(near / 'worker.pem')}"),
            ("advice", "127.0.0.3", f"a worker's certificate expires on {last_day(far / 'worker.pem')}"),
            ("advice", "this machine", f"{far / 'dal.pem'} expires on {last_day(far / 'dal.pem')}"),
            ("advice", "this machine", f"{far / 'ca.pem'} expires on {last_day(ours / 'ca.pem')}"),
            ("fault", "127.0.0.3", "cannot read the pool s3://bucket/pool.zarr"),
            ("advice", "127.0.0.3", "cannot write to s3://bucket/store"),
            ("fact", "127.0.0.2", "reads a chunk"),
            ("fact", "this machine", "reads a chunk"),
        ):
            assert [line for line in said if line.startswith(f"{severity:<7} {host}") and named in line], (named, said)
        assert not [line for line in said if "not encrypted" in line or ("127.0.0.2" in line and "store" in line)]
        assert len([line for line in said if line.startswith("fault")]) == 1, said

        server.fail(refused=1.0, status=403, methods="PUT")
        said = doctor()
        for severity, host, named in (
            ("fault", "this machine", "the store cannot be used"),
            ("advice", "127.0.0.2", "cannot write to s3://bucket/store"),
        ):
            assert [line for line in said if line.startswith(f"{severity:<7} {host}") and named in line], (named, said)


@pytest.mark.parametrize("scheduler", [[], ["--scheduler", "tcp://127.0.0.1:1"]])
def test_certificates_without_tls_are_refused(scheduler: list[str], tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    file.touch()
    done = CliRunner().invoke(main, ["next", str(tmp_path), "--tls-ca-file", str(file), *scheduler])
    assert done.exit_code == 1
    assert "tls://" in done.output


def test_options_are_configured_for_one_command_only(tmp_path: Path) -> None:
    before = dask.config.get("distributed.comm")
    with certificates_of_options("tls://127.0.0.1:1", ca_file=Path("a"), cert=Path("b"), key=Path("c")):
        security = Security()
        assert security.get_tls_config_for_role("client") == {"ca_file": "a", "cert": "b", "key": "c", "ciphers": None}
        assert security.require_encryption
    assert dask.config.get("distributed.comm") == before


@pytest.fixture(scope="module")
def encrypted_postgres(certificates: Path) -> Iterator[dict[str, str]]:
    """A server with the README's settings; the environment for the README's command."""
    if databases.programs() is None:
        missing_service("PostgreSQL")
    port = free_port()
    with databases.running() as home:
        databases.stop(home)
        folder = Path(home) / "certificates"
        shutil.copytree(certificates, folder)
        data = Path(home) / "data"
        with (data / "postgresql.conf").open("a") as file:
            file.write(block_with(RECIPE, "ssl_ca_file").replace("certificates/", f"{folder}/"))
            file.write(f"port = {port}\n")
        # First come the local lines, by which the tests end the server.
        (data / "pg_hba.conf").write_text(f"local all all trust\n{block_with(RECIPE, 'hostssl')}")
        for path in [folder, *folder.iterdir(), data / "postgresql.conf", data / "pg_hba.conf"]:
            shutil.chown(path, data.owner(), data.group())
        databases.start(home, "127.0.0.1")
        yield {"POSTGRES_PORT": str(port), "CERTIFICATES": str(certificates)}


@pytest.mark.slow
def test_a_campaign_in_an_encrypted_database(
    encrypted_postgres: dict[str, str], foreign: Path, expired: Path, tmp_path: Path
) -> None:
    X = np.random.default_rng(3).normal(size=(500, 3)).astype(np.float32)
    dal.Pool.build(X, tmp_path / "pool.zarr")
    places = {"CAMPAIGN": str(tmp_path / "campaign"), "POOL": str(tmp_path / "pool.zarr")}
    done = run(block_with(RECIPE, "dal init"), encrypted_postgres | places)
    assert done.returncode == 0, done.stderr
    campaign = dal.Campaign.open(tmp_path / "campaign")
    assert isinstance(campaign.next_batch(), dal.Batch)
    with campaign.database.connected() as connection:
        query = "SELECT ssl, client_dn FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
        assert connection.execute(text(query)).one() == (True, "/CN=dal")

    url, ours = campaign.settings.storage.database, encrypted_postgres["CERTIFICATES"]
    refused = {
        "no encryption": url.replace("verify-full", "disable"),
        "client certificate": re.sub("&sslcert=.*", f"&sslcert={tmp_path}/none", url),
        "certificate verify failed": url.replace(ours, str(foreign)),
        "unknown ca": url.replace(f"sslcert={ours}", f"sslcert={foreign}").replace(
            f"sslkey={ours}", f"sslkey={foreign}"
        ),
        "expired": url.replace(ours, str(expired)),
        'does not match host name "localhost"': url.replace("127.0.0.1", "localhost"),
    }
    for words, other in refused.items():
        with pytest.raises(DatabaseError, match=words) as told, open_server(other).connected():
            pass
        assert "sslrootcert" in told.value.remedy


@pytest.mark.slow
def test_the_pages_of_the_recipe(certificates: Path, foreign: Path, tmp_path: Path) -> None:
    X = np.random.default_rng(3).normal(size=(500, 3)).astype(np.float32)
    pool = dal.Pool.build(X, tmp_path / "pool.zarr")
    campaign = dal.Campaign.create(tmp_path / "campaign", pool, ["a", "b"], batch_size=20)
    port = free_port()
    environment = {"CAMPAIGN": str(campaign.directory), "PAGES_PORT": str(port), "CERTIFICATES": str(certificates)}
    with running(block_with(RECIPE, "dal serve"), environment, tmp_path / "log"):
        heard_from(tmp_path / "log", "Labelling")
        ours, others = (ssl.create_default_context(cafile=folder / "ca.pem") for folder in (certificates, foreign))
        assert httpx.get(f"https://127.0.0.1:{port}/api/state", verify=ours).status_code == 200
        with pytest.raises(httpx.ConnectError, match="certificate"):
            httpx.get(f"https://127.0.0.1:{port}/api/state", verify=others)
        with pytest.raises(httpx.TransportError):
            httpx.get(f"http://127.0.0.1:{port}/api/state")

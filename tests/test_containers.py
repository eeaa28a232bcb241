"""The image and the file for Docker Compose in cluster/containers/, run as their README says."""

import contextlib
import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

import dal
from tests import databases
from tests.conftest import missing_service
from tests.containers import Image, Machine, built, machine, needed, running
from tests.deployment import COMPOSE
from tests.recipes import ROOT, block_with

FOLDER = "cluster/containers"
SECRETS = {"POSTGRES_PASSWORD": "of-postgres", "STORE_SECRET": "of-the-store"}


@pytest.fixture(scope="module")
def image() -> Image:
    needed("unshare", "nsenter", "setpriv", "ip")
    return built()


# -- the image ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_image_has_no_rights_and_no_secrets(image: Image, tmp_path: Path) -> None:
    with machine(image, tmp_path, [], {"/campaign": tmp_path / "campaign"}) as host:
        who = host.run(["python", "-c", "import os; print(os.getuid(), os.getgid(), os.getgroups())"])
        assert who.stdout.split() == ["10001", "10001", "[10001]"], who.stderr
        status = host.run(["grep", "Cap", "/proc/self/status"]).stdout
        assert set(re.findall(r"Cap(?:Prm|Eff|Inh):\s*(\w+)", status)) == {"0" * 16}
        for path in ("/x", "/opt/dal/x", "/etc/x", "/var/x"):
            assert "Read-only" in host.run(["touch", path]).stderr
        assert host.run(["touch", "/tmp/x", "/campaign/x"]).returncode == 0
    assert not (image.root / "etc" / "pip.conf").exists()
    assert not list(image.root.glob("run/secrets/*"))
    assert not (image.root / "source").exists()
    # a read-only root keeps no bytecode: without it each process compiles all of its imports
    packages = "opt/dal/lib/python3.*/site-packages"
    for module in ("dal/cli", "distributed/worker", "sklearn/base"):
        folder, name = module.split("/")
        assert list(image.root.glob(f"{packages}/{folder}/**/__pycache__/{name}*.pyc")), module


@pytest.mark.slow
def test_the_demonstration_runs_in_the_image(image: Image, tmp_path: Path) -> None:
    (block,) = re.findall(r"docker run .* dal (dal demo .*)", block_with(FOLDER, "docker run"))
    with machine(image, tmp_path, [], {"/campaign": tmp_path / "campaign"}) as host:
        done = host.run([*shlex.split(block), "--rounds", "2"])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "<html" in (tmp_path / "campaign" / "demo" / "report.html").read_text()


SAID = {
    "unshare": "unshare: unshare failed: Operation not permitted",
    "buildah": "error during unshare(CLONE_NEWUSER): operation not permitted",
    "debootstrap": "E: Cannot install into target '/x' mounted with noexec or nodev",
}


@pytest.mark.parametrize("program", SAID)
def test_a_machine_that_forbids_the_build_is_no_failure(program: str, tmp_path: Path) -> None:
    done = built_with({program: f"echo {shlex.quote(SAID[program])} >&2; exit 1"}, tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "store" / "forbidden").read_text() == f"{SAID[program]}\n"


@pytest.mark.parametrize(
    ("program", "does", "said"),
    [
        ("debootstrap", "echo 'E: Failed getting release file' >&2; exit 1", "release file"),
        ("buildah", "echo 'no space left on device' >&2; exit 125", "no space"),
        ("buildah", "sleep 60", "time is over"),
    ],
)
def test_another_failure_of_the_build_is_one(program: str, does: str, said: str, tmp_path: Path) -> None:
    done = built_with({program: does}, tmp_path)
    assert done.returncode != 0
    assert said in done.stderr
    assert not (tmp_path / "store" / "forbidden").exists()


def built_with(programs: dict[str, str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Build the image as CI does, with other programs in the place of the real ones, which do nothing."""
    seconds = "1" if any("sleep" in does for does in programs.values()) else "100"
    (folder / "bin").mkdir()
    others = {"unshare": 'shift; exec "$@"', "buildah": f"echo {shlex.quote(str(folder / 'root'))}", "debootstrap": ""}
    for name, does in (others | programs).items():
        (folder / "bin" / name).write_text(f"#!/bin/sh\n{does}\n")
        (folder / "bin" / name).chmod(0o755)
    path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "STORE": str(folder / "store"), "SECONDS_AT_MOST": seconds}
    return subprocess.run([ROOT / ".ci" / "image"], env=environment, capture_output=True, text=True, timeout=60)


# -- the file for Docker Compose ---------------------------------------------------------------------------------------


def composed(file: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Read a file as Docker Compose does."""
    if not COMPOSE.exists():
        missing_service(f"Docker Compose in {COMPOSE} (.ci/deployment)")
    command = [str(COMPOSE), "--file", str(file), "config", "--format", "json"]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)


def test_docker_compose_reads_the_file() -> None:
    done = composed(ROOT / FOLDER / "compose.yaml", SECRETS)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    found = json.loads(done.stdout)
    services = found["services"]
    assert set(services) == {"scheduler", "worker", "coordinator", "pages", "postgres", "store"}
    for name, service in services.items():
        if service["image"] == "dal":
            assert service["read_only"], name
            assert service["tmpfs"] == ["/tmp"]
            assert service["cap_drop"] == ["ALL"]
        assert "ports" not in service or name == "pages"
    assert [port["host_ip"] for port in services["pages"]["ports"]] == ["127.0.0.1"]
    assert found["networks"]["cluster"]["internal"]
    assert set(services["scheduler"]["networks"]) == set(services["worker"]["networks"]) == {"cluster"}


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("cap_drop", "cap_dropp"),
        ("read_only: true", "read_only: perhaps"),
        ("scheduler: { condition: service_healthy }", "schedule: { condition: service_healthy }"),
        ("condition: service_started", "condition: started"),
        ('networks: ["cluster", "outside"]', 'networks: ["cluster", "outsider"]'),
        ("- campaign:/campaign", "- campagne:/campaign"),
        ('["127.0.0.1:${PAGES_PORT:-8000}:8000"]', '["127.0.0.1:port:8000"]'),
        ("replicas: ${WORKERS:-2}", "replicas: ${WORKERS:-two}"),
    ],
)
def test_typos_are_caught(right: str, wrong: str, tmp_path: Path) -> None:
    text = (ROOT / FOLDER / "compose.yaml").read_text()
    assert right in text
    (tmp_path / "compose.yaml").write_text(text.replace(right, wrong))
    assert composed(tmp_path / "compose.yaml", SECRETS).returncode != 0


@pytest.mark.parametrize("secret", SECRETS)
def test_no_secret_has_a_default(secret: str) -> None:
    done = composed(ROOT / FOLDER / "compose.yaml", SECRETS | {secret: ""})
    assert done.returncode != 0
    assert secret in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_services_play_a_round(image: Image, tmp_path: Path) -> None:
    services = json.loads(composed(ROOT / FOLDER / "compose.yaml", SECRETS).stdout)["services"]
    block = block_with(FOLDER, "docker compose run")
    once = [shlex.split(words) for words in re.findall(r"docker compose run --rm --no-deps coordinator (.*)", block)]
    volumes = {"/campaign": tmp_path / "campaign", "/data": tmp_path / "data"}
    with contextlib.ExitStack() as stack:
        host = stack.enter_context(machine(image, tmp_path, list(services), volumes))
        X = np.random.default_rng(3).normal(size=(20_000, 4)).astype(np.float32)
        dal.Pool.build(X, volumes["/data"] / "pool.zarr")
        stack.enter_context(stand_ins(host, services, tmp_path))

        def start(name: str) -> psutil.Process:
            service = services[name]
            return stack.enter_context(host.running(service["command"], service["environment"], tmp_path / name))

        start("scheduler")
        healthy(host, services["scheduler"]["environment"])
        start("worker")
        healthy(host, services["worker"]["environment"])
        for words in once:
            done = host.run(words, services["coordinator"]["environment"])
            assert done.returncode == 0, done.stdout + done.stderr
        unwell = host.run(image.health, services["pages"]["environment"])
        assert unwell.returncode == 1
        assert "127.0.0.1:8000" in unwell.stderr
        start("pages")
        healthy(host, services["pages"]["environment"])
        coordinator = start("coordinator")
        while "Round 1 is open" not in (tmp_path / "coordinator").read_text():
            assert coordinator.is_running(), (tmp_path / "coordinator").read_text()
            time.sleep(0.1)
        workers = (
            "from distributed import Client; print(len(Client('tcp://scheduler:8786').scheduler_info()['workers']))"
        )
        assert host.run(["python", "-c", workers]).stdout == "1\n"
    assert "Traceback" not in (tmp_path / "coordinator").read_text()


@contextlib.contextmanager
def stand_ins(host: Machine, services: dict, folder: Path) -> Iterator[None]:
    """Run Debian's PostgreSQL and moto at the places of the database and the store."""
    if databases.programs() is None:
        missing_service("PostgreSQL")
    password = services["postgres"]["environment"]["POSTGRES_PASSWORD"]
    with databases.running() as home:
        databases.run_sql(home, f"ALTER USER dal PASSWORD '{password}'")
        databases.run_sql(home, "CREATE DATABASE dal OWNER dal")
        Path(home, "data", "pg_hba.conf").write_text("local all all trust\nhost all all all scram-sha-256\n")
        databases.stop(home)
        databases.start(home, "127.0.0.1", within=host.inside([]))
        moto = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "7070"]
        with running(host.inside(moto), folder / "moto"):
            made = "import boto3; boto3.client('s3').create_bucket(Bucket='campaigns')"
            while host.run(["python", "-c", made], services["coordinator"]["environment"]).returncode:
                pass
            yield


def healthy(host: Machine, environment: dict[str, str]) -> None:
    """Wait until the image's own health check finds a service well, as the engine does."""
    while host.run(host.image.health, environment).returncode:
        time.sleep(0.1)

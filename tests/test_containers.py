"""The file for Docker Compose in cluster/containers/, read by Docker Compose itself."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.conftest import missing_service
from tests.deployment import COMPOSE
from tests.recipes import ROOT

FOLDER = "cluster/containers"
SECRETS = {"POSTGRES_PASSWORD": "of-postgres", "STORE_SECRET": "of-the-store"}


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

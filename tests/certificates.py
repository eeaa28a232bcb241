"""Certificates made as cluster/tls/README.md says."""

import os
import shutil
import subprocess
from pathlib import Path

from tests.conftest import missing_service
from tests.recipes import block_with

RECIPE = "cluster/tls"


def made(folder: Path, authority_days: int = 3650) -> Path:
    """Make an authority and its certificates as the README does."""
    if shutil.which("openssl") is None:
        missing_service("openssl")
    _run(block_with(RECIPE, "openssl req").replace("-days 3650", f"-days {authority_days}"), folder)
    return folder


def signed(folder: Path, authority: Path, days: int) -> Path:
    """Make certificates of an authority that is there already, which expire in some days."""
    folder.mkdir(exist_ok=True)
    for name in ("ca.pem", "ca-key.pem"):
        shutil.copy(authority / name, folder)
    # all but the line that makes the authority
    _run(block_with(RECIPE, "openssl req").replace("openssl req -x509", ": openssl req -x509"), folder, DAYS=str(days))
    return folder


def _run(block: str, folder: Path, **environment: str) -> None:
    environment |= {"CERTIFICATES": str(folder)}
    subprocess.run(["bash", "-euc", block], env=os.environ | environment, check=True, capture_output=True)


def last_day(certificate: Path) -> str:
    """Ask openssl for the day on which a certificate expires."""
    command = ["openssl", "x509", "-noout", "-enddate", "-dateopt", "iso_8601", "-in", certificate]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return done.stdout.removeprefix("notAfter=").split()[0]

"""Backup and restore as docs/operations.md says: a restored campaign asks what the lost one would have asked."""

import os
import re
import secrets
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from urllib.parse import quote
from uuid import uuid4

import numpy as np
import pytest

from dal import Batch, Campaign
from dal.campaign import Given, Queue, Storage
from dal.pool import Pool
from tests import databases, servers
from tests.conftest import missing_service

GUIDE = (Path(__file__).parents[1] / "docs" / "operations.md").read_text(encoding="utf-8")
CLASSES = ("ham", "spam")
BATCH = 20


def block_with(language: str, text: str) -> str:
    (block,) = [each for each in re.findall(rf"```{language}\n(.*?)```", GUIDE, re.DOTALL) if text in each]
    return block


def run(block: str, folder: Path) -> None:
    tools = databases.programs()
    path = os.pathsep.join(map(str, filter(None, (Path(sys.executable).parent, os.environ["PATH"], tools))))
    done = subprocess.run(["bash", "-euc", block], cwd=folder, env=os.environ | {"PATH": path}, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


@pytest.fixture
def truth(tmp_path: Path) -> tuple[Pool, np.ndarray]:
    rng = np.random.default_rng(2)
    codes = rng.integers(0, 2, 3_000)
    X = rng.normal(1.5 * codes[:, None], 1.0, (3_000, 5)).astype(np.float32)
    return Pool.build(X, tmp_path / "pool.zarr"), codes


def label(campaign: Campaign, batch: Batch, codes: np.ndarray) -> None:
    campaign.label(batch, [CLASSES[code] for code in codes[batch.rows]])


def test_a_campaign_is_backed_up_beside_its_pages_and_restored(truth: tuple[Pool, np.ndarray], tmp_path: Path) -> None:
    pool, codes = truth
    lost = Campaign.create(tmp_path / "campaign", pool, CLASSES, batch_size=BATCH, random_state=3)
    label(lost, lost.next_batch(), codes)
    asked = lost.next_batch()
    queue, began, ends = Queue(lost), threading.Event(), threading.Event()

    def answer() -> None:
        """Answer record after record as long as the backup lasts, and the same ones again."""
        while not ends.is_set():
            for row in asked.rows.tolist():
                given = Given(event_id=str(uuid4()), row=row, status="submitted", label=int(codes[row]))
                queue.answer("ann", [given])
                began.set()

    person = threading.Thread(target=answer)
    with servers.running(lost):
        person.start()
        assert began.wait(60)
        try:
            run(block_with("sh", ".backup("), tmp_path)
        finally:
            ends.set()
            person.join()
    label(lost, asked, codes)
    would_ask = lost.next_batch()
    shutil.rmtree(tmp_path / "campaign")

    shutil.move(tmp_path / "backup", tmp_path / "campaign")
    restored = Campaign.open(tmp_path / "campaign")
    now = restored.status()
    assert (now.round, now.status, now.asked) == (2, "open", 2 * BATCH)
    assert restored.answers.last_id() - BATCH >= 1
    assert [each.record_id for each in restored.rounds.batch(2)] == asked.record_ids
    label(restored, asked, codes)
    assert restored.next_batch().record_ids == would_ask.record_ids


@pytest.mark.slow
def test_a_campaign_in_postgresql_with_a_store_is_restored(
    truth: tuple[Pool, np.ndarray], tmp_path: Path, postgres: str
) -> None:
    if shutil.which("pg_dump") is None and databases.programs() is None:
        missing_service("pg_dump")
    pool, codes = truth
    name = f"labels_{secrets.token_hex(6)}"
    url = f"postgresql://{databases.USER}@/{name}?host={quote(postgres, safe='')}"
    store = tmp_path / "campaigns"
    databases.run_sql(postgres, f"CREATE DATABASE {name}")
    lost = Campaign.create(
        tmp_path / "campaign",
        pool,
        CLASSES,
        batch_size=BATCH,
        random_state=3,
        storage=Storage(database=url, store=store.as_uri()),
    )
    label(lost, lost.next_batch(), codes)
    asked = lost.next_batch()

    def here(block: str) -> str:
        block = block.replace("--host=db.example.org", f"--host={postgres}").replace(" labels\n", f" {name}\n")
        return block.replace("postgresql://dal@db.example.org/labels", f"'{url}'").replace("/mnt/shared", str(tmp_path))

    run(here(block_with("shell", "pg_dump")), tmp_path)
    label(lost, asked, codes)
    would_ask = lost.next_batch()

    # The server, the store and the coordinator's machine are gone.
    databases.run_sql(postgres, f"DROP DATABASE {name}")
    shutil.rmtree(store)
    shutil.rmtree(tmp_path / "campaign")
    (tmp_path / "campaign").mkdir()
    run(here(block_with("shell", "pg_restore")), tmp_path)
    shutil.copy(tmp_path / "backup" / "campaign.toml", tmp_path / "campaign")
    restored = Campaign.open(tmp_path / "campaign")
    assert [each.record_id for each in restored.rounds.batch(2)] == asked.record_ids
    label(restored, asked, codes)
    assert restored.next_batch().record_ids == would_ask.record_ids

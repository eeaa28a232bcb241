"""The pages: how soon the next record is there after a key, and how long a hundred people wait for their answers."""

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import click
import numpy as np
import psutil

from benchmarks import machine
from dal import Campaign
from dal.campaign import Annotators
from dal.pool import Pool

# Noted in the page itself, when the frame after the change is about to be drawn.
WATCH = """() => {
  window.waits = [];
  let pressed = null;
  document.addEventListener("keydown", () => { pressed = performance.now(); }, true);
  new MutationObserver(() => {
    if (pressed === null) return;
    const from = pressed;
    pressed = null;
    requestAnimationFrame(() => window.waits.push(performance.now() - from));
  }).observe(document.getElementById("record"), { childList: true });
}"""


@click.command("pages")
@click.option("--people", default=100, show_default=True, help="Annotators at work at the same time.")
@click.option("--seconds", default=40.0, show_default=True, help="For so long.")
@click.option("--think", default=2.0, show_default=True, help="Seconds between two answers of one of them, on average.")
@click.option("--json", "path", type=click.Path(path_type=Path), help="Write the figures to this file.")
def command(people: int, seconds: float, think: float, path: Path | None) -> None:
    """Measure the labelling page and its server."""
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        figures: dict[str, Any] = {"machine": machine.facts(), "load_before": machine.load()}
        figures["page"] = _page(_campaign(directory / "page", 400))
        size = int(people * (seconds / think + 20))
        figures["team"] = _team(_campaign(directory / "team", size), people, seconds, think)
    page, team = figures["page"], figures["team"]
    print(f"key to next record: median {page['median_ms']:.1f} ms, 95th percentile {page['p95_ms']:.1f} ms")
    print(
        f"{people} people, {team['answers']} answers in {seconds:.0f} s: median {team['median_ms']:.1f} ms, 99th"
        f" percentile {team['p99_ms']:.1f} ms; server {team['server_cores']:.2f} cores, load generator"
        f" {team['load_cores']:.2f} of {machine.CORES} cores"
    )
    if path is not None:
        path.write_text(json.dumps(figures, indent=2))


def _campaign(directory: Path, batch: int) -> Campaign:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (batch + 100, 28, 28, 1)).astype(np.uint8)
    notes = [f"record {row} as somebody wrote it down, in a line or so of text" for row in range(len(pixels))]
    pool = Pool.build(pixels, directory / "pool.zarr", display={"note": notes})
    campaign = Campaign.create(directory / "campaign", pool, list("0123456789"), batch_size=batch, strategy="random")
    campaign.next_batch()
    return campaign


@contextmanager
def _served(campaign: Campaign) -> Iterator[tuple[str, psutil.Process]]:
    command = [sys.executable, "-m", "dal", "serve", str(campaign.directory), "--port", "0", "--user", "ann"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        found = re.search(r"http://\S+", process.stdout.readline())
        assert found is not None
        yield found.group(), psutil.Process(process.pid)
        process.kill()


def _page(campaign: Campaign) -> dict[str, float]:
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium") or shutil.which("chromium-browser")
    with _served(campaign) as (url, _), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path)
        page = browser.new_page(viewport={"width": 1280, "height": 720})
        page.goto(url)
        page.wait_for_selector("#record img")
        page.evaluate(WATCH)
        for at in range(200):
            page.keyboard.press(str(at % 10))
            page.wait_for_timeout(120)
        waits = np.array(page.evaluate("window.waits"))
        browser.close()
    return {"keys": len(waits), "median_ms": float(np.median(waits)), "p95_ms": float(np.percentile(waits, 95))}


def _team(campaign: Campaign, people: int, seconds: float, think: float) -> dict[str, float]:
    tokens = [Annotators(campaign).add(f"person {at}") for at in range(people)]
    with _served(campaign) as (url, server):
        me = psutil.Process(os.getpid())
        before = [_cpu(each) for each in (server, me)]
        begun = time.perf_counter()
        waits = asyncio.run(_work(url, tokens, seconds, think))
        spent = time.perf_counter() - begun
        server_cores, load_cores = ((_cpu(each) - was) / spent for each, was in zip((server, me), before, strict=True))
    measured = np.array(waits) * 1000
    return {
        "people": people,
        "answers": len(measured),
        "median_ms": float(np.median(measured)),
        "p99_ms": float(np.percentile(measured, 99)),
        "server_cores": server_cores,
        "load_cores": load_cores,
    }


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


async def _work(url: str, tokens: list[str], seconds: float, think: float) -> list[float]:
    host, port = url.removeprefix("http://").strip("/").split(":")
    waits: list[float] = []
    people = [_person(host, int(port), token, at, seconds, think, waits) for at, token in enumerate(tokens)]
    await asyncio.gather(*people)
    return waits


async def _person(
    host: str, port: int, token: str, number: int, seconds: float, think: float, waits: list[float]
) -> None:
    """One annotator, who does as the page does: ten records ahead, and an answer as soon as it is given."""
    rng = np.random.default_rng(number)
    reader, writer = await asyncio.open_connection(host, port)

    async def ask(body: dict[str, Any]) -> dict[str, Any]:
        content = json.dumps(body).encode()
        writer.write(
            b"POST /api/answers HTTP/1.1\r\nhost: %b:%d\r\ncontent-type: application/json\r\n"
            b"authorization: Bearer %b\r\ncontent-length: %d\r\n\r\n"
            % (host.encode(), port, token.encode(), len(content))
            + content
        )
        head = await reader.readuntil(b"\r\n\r\n")
        found = re.search(rb"content-length: (\d+)", head)
        assert head.startswith(b"HTTP/1.1 200"), head
        assert found is not None
        answer: dict[str, Any] = json.loads(await reader.readexactly(int(found.group(1))))
        return answer

    await asyncio.sleep(rng.uniform(0, 2 * think))
    queue = (await ask({"lease": 16}))["records"]
    end = time.perf_counter() + seconds
    while time.perf_counter() < end and queue:
        await asyncio.sleep(rng.uniform(0.5, 1.5) * think)
        row = queue.pop(0)["row"]
        given = {"event_id": str(uuid4()), "row": row, "status": "submitted", "label": 1, "lead_time": think}
        begun = time.perf_counter()
        got = await ask({"answers": [given], "lease": 0 if len(queue) > 10 else 16})
        waits.append(time.perf_counter() - begun)
        assert got["outcomes"][0]["outcome"] == "new"
        held = {each["row"] for each in queue}
        queue += [each for each in got["records"] if each["row"] not in held]
    writer.close()

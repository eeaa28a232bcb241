"""All measurements at a size that ends in minutes, their figures in one table: what `make bench` runs."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import click
from rich.console import Console
from rich.table import Table

from benchmarks import machine

MEASURED = {
    "scan": ["--rows", "2000000"],
    "memory": ["--rows-large", "5000000"],
    "scale": [],
    "selection": ["--sizes", "1000", "32", "--no-apricot"],
    "team": ["--rounds", "6"],
    "labels": ["--sets", "digits,digits_duplicated", "--strategies", "default,margin", "--seeds", "10"],
}


class Figure(NamedTuple):
    """One number of a measurement, in words."""

    measured: str
    what: str
    value: str


def figures(name: str, result: Any) -> Iterator[Figure]:  # noqa: ANN401 - each measurement has a form of its own
    """Pick the figures of one measurement that are looked at first."""
    for what, value in _PICKED[name](result):
        yield Figure(name, what, value)


def _of_scan(result: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "rows a second, dal", f"{result['rows_per_second']['dal'] / 1e6:.2f} M"
    for name, ratio in result["ratio"].items():
        if not name.startswith("dal"):
            yield f"pace, dal / {name}", f"{ratio:.2f}"
    for name, what in (("dal_cells", "with cells"), ("dal_first", "writing cells")):
        if name in result["of_hand"]:
            yield f"pace, dal {what} / hand", f"{result['of_hand'][name]:.2f}"
    yield "a scan of one chunk", f"{result['start_seconds']:.3f} s"


def _of_memory(result: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    sizes = result["rows"]
    yield f"a worker's peak, {sizes['large']:,} rows / {sizes['small']:,}", f"{result['worker_peak_ratio']:.3f}"
    yield "the coordinator's growth", f"{result['coordinator_peak_mb']['large']:.1f} MiB"
    yield "candidates sent to it", f"{result['bytes_up']['large'] / 2**20:.1f} MiB"


def _of_scale(result: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield f"overhead, {result['rows']:.0e} rows on {result['workers']} threads", f"{result['overhead']:.1%}"


def _of_selection(result: list[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    for each in result:
        yield f"CPU time a candidate, k = {each['k']:,}, d = {each['d']}", f"{each['us_per_candidate']:.0f} us"
        yield "objective / that of exact greedy", f"{each['objective_ratio']:.3f}"


def _of_team(result: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, each in result.items():
        if isinstance(each, dict) and "waited_share" in each:
            yield f"people waited, {name.replace('_', ' ')}", f"{each['waited_share']:.1%} of their time"


def _of_labels(result: list[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    for each in result:
        needed = each["labels_to_random_final"]
        said = "not reached" if needed is None else f"{needed:.0f}"
        yield f"labels to random's final accuracy, {each['set']}, {each['strategy']}", said


_PICKED: Mapping[str, Any] = {
    "scan": _of_scan,
    "memory": _of_memory,
    "scale": _of_scale,
    "selection": _of_selection,
    "team": _of_team,
    "labels": _of_labels,
}


def markdown(found: list[Figure]) -> str:
    """Lay the figures out as a Markdown table under the machine's name."""
    facts = machine.facts()
    lines = [f"{facts['cores']} cores, {facts['cpu']}, Python {facts['python']}, {time.strftime('%Y-%m-%d')}", ""]
    lines += ["| measured | what | figure |", "|---|---|---:|", *(f"| {' | '.join(figure)} |" for figure in found)]
    return "\n".join(lines) + "\n"


@click.command("suite")
@click.option(
    "--results",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("benchmarks/results"),
    show_default=True,
    help="A JSON file for each measurement, and table.md.",
)
def command(results: Path) -> None:
    """Run them all at a size that ends in minutes, and lay their figures out."""
    results.mkdir(parents=True, exist_ok=True)
    console, found = Console(), list[Figure]()
    for name, options in MEASURED.items():
        path = results / f"{name}.json"
        console.rule(f"{name} {' '.join(options)}")
        # In a process of its own each: memory is measured in some of them.
        subprocess.run([sys.executable, "-m", "benchmarks", name, *options, "--json", str(path)], check=True)
        found += figures(name, json.loads(path.read_text(encoding="utf-8")))
    (results / "table.md").write_text(markdown(found), encoding="utf-8")
    drawn = Table("measured", "what", "figure", title="the suite")
    for figure in found:
        drawn.add_row(*figure)
    console.print(drawn)
    console.print(f"The JSON files and table.md are in {results}.")

"""Encoding into a pool beside a plain loop of PyTorch on the same threads, and its memory for ten times the records.

The plain loop encodes the same records with the same model and batches, from files to one array in memory: sentences by
the library's own function, which sorts all texts by length; pictures decoded, prepared and encoded batch by batch. Both
take turns in one process. Needs the extra test-torch.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import click
import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from benchmarks import machine
from dal.pool import Pool

if TYPE_CHECKING:
    import torch

BATCH, SIDE = 32, 112
BAR, FLAT = 0.95, 1.05
WORDS = [
    f"{start}{end}" for start in ("b", "kl", "str", "v", "w", "z") for end in ("a", "eed", "ink", "oam", "uld", "y")
]


def texts(count: int, longest: int = 24) -> list[str]:
    """Make texts of 1 to `longest` words."""
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(WORDS, rng.integers(1, longest + 1))) for _ in range(count)]


def lay_out_texts(folder: Path, count: int) -> Path:
    """Write a table of texts."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    source = folder / f"texts-{count}.parquet"
    pq.write_table(pa.table({"text": texts(count)}), source)
    return source


def lay_out_pictures(folder: Path, count: int) -> Path:
    """Write JPEG files of 160 x 120 pixels."""
    from PIL import Image

    source = folder / "pictures"
    source.mkdir()
    rng = np.random.default_rng(0)
    for at in range(count):
        small = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        small.resize((160, 120)).save(source / f"{at:06d}.jpg")
    return source


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Return the seconds of the clock and of the processors that a piece of work takes."""
    clock, processors = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - clock, time.process_time() - processors


def compared(
    name: str, plain: Callable[[], object], ours: Callable[[], object], count: int, repeats: int
) -> dict[str, Any]:
    """Take turns, and return the medians and their ratios."""
    found: dict[str, list[tuple[float, float]]] = {"plain": [], "dal": []}
    for turn in range(repeats):
        for which, work in (("plain", plain), ("dal", ours))[:: 1 if turn % 2 else -1]:
            found[which].append(timed(work))
    clock, processors = ({which: median(each[at] for each in found[which]) for which in found} for at in (0, 1))
    return {
        "name": name,
        "records": count,
        "records_per_second": {which: count / seconds for which, seconds in clock.items()},
        "ratio": clock["plain"] / clock["dal"],
        "cpu_ratio": processors["plain"] / processors["dal"],
    }


def of_texts(folder: Path, count: int, repeats: int) -> dict[str, Any]:
    """Compare on texts."""
    import pyarrow.parquet as pq
    from sentence_transformers import SentenceTransformer

    from dal.encoders import SentenceEncoder
    from tests.packaged import sentence_model

    source, encoder = lay_out_texts(folder, count), SentenceEncoder(sentence_model(), device="cpu", batch_size=BATCH)
    model = SentenceTransformer(sentence_model(), device="cpu")
    assert encoder.id  # loads the model

    def plain() -> npt.NDArray[np.float32]:
        values = pq.read_table(source)["text"].to_pylist()
        found: npt.NDArray[np.float32] = model.encode(values, batch_size=BATCH, show_progress_bar=False)
        return found

    def ours() -> None:
        Pool.build(source, folder / "texts.zarr", text="text", encoder=encoder, overwrite=True)

    plain(), ours()
    return compared("sentences", plain, ours, count, repeats)


def of_pictures(folder: Path, count: int, repeats: int) -> dict[str, Any]:
    """Compare on pictures."""
    import torch
    from PIL import Image

    from benchmarks.networks import Resized
    from dal.encoders import TorchEncoder
    from tests.packaged import image_model

    source, model, prepared = lay_out_pictures(folder, count), image_model(), Resized(SIDE)
    encoder = TorchEncoder(model, prepared, batch_size=BATCH, device="cpu")
    assert encoder.id  # digests the weights

    def plain() -> npt.NDArray[np.float32]:
        files, found = sorted(source.iterdir()), []
        with torch.inference_mode():
            for at in range(0, count, BATCH):
                batch = torch.stack([prepared(Image.open(file)) for file in files[at : at + BATCH]])
                found.append(model(batch).numpy())
        return np.concatenate(found)

    def ours() -> None:
        Pool.build(source, folder / "pictures.zarr", images=True, encoder=encoder, overwrite=True)

    plain(), ours()
    return compared("pictures", plain, ours, count, repeats)


def letters(text: str) -> "torch.Tensor":
    """Return the counts of letters."""
    import torch

    return torch.from_numpy(np.bincount(np.frombuffer(text.encode(), np.uint8), minlength=128).astype(np.float32))


def peak_of(count: int) -> int:
    """Return the peak memory of a process that encodes a number of texts by a small network of torch."""
    command = [sys.executable, "-c", f"from benchmarks.encode import grow; grow({count})"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ)
    return int(done.stdout.split()[-1])


def grow(count: int) -> None:
    """Encode texts, and print the most memory that this process has held."""
    import torch

    from dal.encoders import TorchEncoder

    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(128, 512), torch.nn.ReLU(), torch.nn.Linear(512, 256))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        source = Path(os.environ["DAL_BENCHMARK_TEXTS"]) / f"texts-{count}.parquet"
        Pool.build(source, folder / "pool.zarr", text="text", encoder=TorchEncoder(module, letters, batch_size=256))
    print(machine.peak_bytes())


@click.command("encode")
@click.option("--texts", "n_texts", default=2048, show_default=True, help="Texts to encode.")
@click.option("--pictures", "n_pictures", default=512, show_default=True, help="Pictures to encode.")
@click.option("--repeats", default=3, show_default=True, help="Turns of each.")
@click.option("--memory", "n_memory", default=100_000, show_default=True, help="Texts for the memory, and a tenth.")
@click.option("--out", type=click.Path(path_type=Path), help="Write the results there as JSON.")
def command(n_texts: int, n_pictures: int, repeats: int, n_memory: int, out: Path | None) -> None:
    """Encoding, as a ratio to a plain loop of PyTorch; and its memory."""
    import torch

    os.environ["HF_HUB_OFFLINE"] = "1"
    results = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if n_texts:
            results.append(of_texts(folder, n_texts, repeats))
        if n_pictures:
            results.append(of_pictures(folder, n_pictures, repeats))
        peaks = {}
        with machine.environment({"DAL_BENCHMARK_TEXTS": folder}):
            for count in (n_memory // 10, n_memory) if n_memory else ():
                lay_out_texts(folder, count)
                peaks[count] = peak_of(count)
    drawn = Table("records", "plain, a second", "dal, a second", "ratio", "of CPU time", "bar")
    for each in results:
        pace = [f"{each['records_per_second'][which]:,.1f}" for which in ("plain", "dal")]
        drawn.add_row(
            f"{each['records']:,} {each['name']}", *pace, f"{each['ratio']:.2f}", f"{each['cpu_ratio']:.2f}", f"{BAR}"
        )
    console = Console()
    console.print(f"{torch.get_num_threads()} threads of torch {torch.__version__}, load {machine.load():.1f}")
    console.print(drawn)
    if peaks:
        (few, small), (many, large) = peaks.items()
        megabytes = f"{small / 2**20:.0f} MiB for {few:,} texts, {large / 2**20:.0f} MiB for {many:,}"
        console.print(f"peak memory: {megabytes}: {large / small:.3f} times (bar {FLAT})")
    if out is not None:
        out.write_text(json.dumps({"machine": machine.facts(), "results": results, "peak_bytes": peaks}, indent=2))

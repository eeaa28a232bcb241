"""A scan by a network beside a plain loop of PyTorch on the same thread, and the memory of round after round.

The plain loop reads the same pool by slices of Zarr, scores it by the same network in the same batches, without
gradients, and keeps the best. Both take turns in one process. Needs the extra torch.
"""

import gc
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import click
import numpy as np
import numpy.typing as npt

from benchmarks import machine
from dal.learners.deep import TorchClassifier
from dal.learners.learner import Learner
from dal.pool import Pool
from dal.scan.driver import scan
from dal.selection.strategy import Strategy

if TYPE_CHECKING:
    from dal.learners.models import Model

K, SIDE, N_CLASSES = 100, 28, 10
BAR, FLAT = 0.95, 1.05
CLASSES = [str(number) for number in range(N_CLASSES)]


def learner(epochs: int) -> Learner:
    """Return the learner that is measured."""
    from benchmarks.networks import SmallNet

    estimator = TorchClassifier(SmallNet, shape=(SIDE, SIDE, 1), std=255, max_epochs=epochs)
    return Learner(estimator, CLASSES, trusted=["benchmarks.networks.SmallNet"])


def plain_pass(pool: Pool, model: "Model") -> npt.NDArray[np.int64]:
    """Score a pool as a hand-written loop does, and return its best rows."""
    import torch
    import zarr
    from safetensors.torch import load

    from benchmarks.networks import SmallNet

    network, estimator = SmallNet(N_CLASSES), model.estimator
    network.load_state_dict(load(estimator.weights_[0]))
    network.eval()
    pictures, found = zarr.open_group(pool.path, mode="r")["features"], []
    with torch.inference_mode():
        for start in range(0, pool.n_rows, pool.chunk_rows):
            block = torch.from_numpy(pictures[start : start + pool.chunk_rows])
            for batch in block.split(estimator.predicted_at_once):
                outputs = network(batch.permute(0, 3, 1, 2).float() / 255)
                two = torch.softmax(outputs, dim=1).topk(2, dim=1).values
                found.append(1 - (two[:, 0] - two[:, 1]).numpy())
    scores = np.concatenate(found)
    return np.argsort(-scores, kind="stable")[: 10 * K]


def own_pass(pool: Pool, model: "Model") -> npt.NDArray[np.int64]:
    """Score a pool by a scan in this process."""
    return scan(pool, model, Strategy("margin", "top"), K).candidates.rows


def timed(work: Callable[[], npt.NDArray[np.int64]]) -> tuple[float, float, set[int]]:
    """Return the seconds of the clock and of the processor, and the rows found."""
    clock, processor = time.perf_counter(), time.process_time()
    rows = work()
    return time.perf_counter() - clock, time.process_time() - processor, set(rows.tolist())


def resident_bytes() -> int:
    """Return the memory that this process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def rounds_of(pool: Pool, rounds: int) -> list[int]:
    """Fit and scan once a round, on more labels each, and return the memory held after each."""
    X, held = pool.read(0, 10 * rounds), []
    codes = np.arange(len(X)) % N_CLASSES
    for number in range(1, rounds + 1):
        model = learner(1).fit(X[: 10 * number], codes[: 10 * number])
        own_pass(pool.head(2_048), model)
        gc.collect()  # buffers of a reader are in a cycle until it runs
        held.append(resident_bytes())
    return held


@click.command("deep")
@click.option("--rows", default=65_536, show_default=True, help="Pictures in the pool.")
@click.option("--repeats", default=5, show_default=True)
@click.option("--rounds", default=50, show_default=True, help="Rounds whose memory is looked at.")
def command(rows: int, repeats: int, rounds: int) -> None:
    """Compare a scan by a network with a plain loop of PyTorch, and look at memory over rounds."""
    import torch

    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        images = rng.integers(0, 256, (rows, SIDE, SIDE, 1), dtype=np.uint8)
        pool = Pool.build(images, Path(folder) / "pool.zarr")
        model = learner(3).fit(pool.read(0, 200), np.arange(200) % N_CLASSES)
        found: dict[str, list[tuple[float, float, set[int]]]] = {"plain": [], "dal": []}
        for turn in range(repeats):
            ways = (("plain", plain_pass), ("dal", own_pass))[:: 1 if turn % 2 else -1]
            for name, way in ways:
                found[name].append(timed(lambda way=way: way(pool, model)))
        clock, processor = ({name: median(each[at] for each in runs) for name, runs in found.items()} for at in (0, 1))
        same = len(found["plain"][0][2] & found["dal"][0][2]) / (10 * K)
        held = rounds_of(pool, rounds)
    early = held[min(9, len(held) - 1)]
    told = {
        "machine": machine.facts(),
        "torch": torch.__version__,
        "rows": rows,
        "repeats": repeats,
        "rows_per_second": {name: rows / seconds for name, seconds in clock.items()},
        "ratio": clock["plain"] / clock["dal"],
        "cpu_ratio": processor["plain"] / processor["dal"],
        "bar": BAR,
        "same_candidates": same,
        "rounds": rounds,
        "memory_after_round_10": early,
        "memory_after_the_last": held[-1],
        "growth": held[-1] / early,
        "bar_of_growth": FLAT,
    }
    click.echo(json.dumps(told, indent=2))

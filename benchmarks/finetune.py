"""What fine-tuning adds at the end of a campaign: accuracy with the encoder as it was, and trained on the labels.

A campaign holds the labels of records drawn by the seed. It is measured on all its other records, before and after
`Campaign.finetune`, by the same head on the features of the pool that it then has. Both measurements of a seed are of
the same records, so that differences are paired. Needs the extra test-torch.
"""

import gzip
import json
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt

import dal
from benchmarks import machine
from benchmarks.labels.statistics import Interval, mean_interval
from benchmarks.labels.table import markdown
from dal._files import replacing
from dal.encoders import Encoder, SentenceEncoder, TorchEncoder, Tuning
from dal.pool import Pool

SIDE = 96


@dataclass(frozen=True)
class Case:
    """Raw records with their classes.

    Attributes
    ----------
    source : path or ndarray
    y : ndarray of int64
    encoder : callable
        Makes the encoder as it was before.
    how : mapping
        What a build is told of the source.
    tuning : Tuning
    """

    source: Any
    y: npt.NDArray[np.int64]
    encoder: Callable[[], Encoder]
    how: Mapping[str, Any] = field(default_factory=dict)
    tuning: Tuning = field(default_factory=Tuning)


def messages(data: Path, seed: int, count: int, folder: Path) -> Case:
    """Draw text messages; the sentence model is all-MiniLM-L6-v2."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from tests.packaged import sentence_model

    with gzip.open(data / "sms_spam.jsonl.gz", "rt", encoding="utf-8") as file:
        records = [json.loads(line) for line in file]
    drawn = np.random.default_rng(seed).permutation(len(records))[:count]
    source = folder / "messages.parquet"
    pq.write_table(pa.table({"text": [records[row]["text"] for row in drawn]}), source)
    y = np.array([records[row]["label"] for row in drawn], dtype=np.int64)
    return Case(source, y, lambda: SentenceEncoder(sentence_model(), device="cpu", batch_size=32), {"text": "text"})


def pictures(data: Path, seed: int, count: int, folder: Path) -> Case:  # noqa: ARG001 - as `messages`
    """Draw pictures of Fashion-MNIST; the network is EfficientNet-Lite0, which has seen photographs."""
    from benchmarks.networks import Resized
    from tests.packaged import image_model

    with np.load(data / "fashion_mnist.npz") as stored:
        X, y = stored["X"].reshape(-1, 28, 28, 1).astype(np.uint8), stored["y"].astype(np.int64)
    drawn = np.random.default_rng(seed).permutation(len(y))[:count]
    # A small network forgets less at once than a large model of language.
    tuning = Tuning(learning_rate=2e-4)
    network, prepared = image_model(), Resized(SIDE)
    return Case(X[drawn], y[drawn], lambda: TorchEncoder(network, prepared, device="cpu"), {"images": True}, tuning)


CASES: Mapping[str, Callable[[Path, int, int, Path], Case]] = {"messages": messages, "pictures": pictures}


def measured(campaign: dal.Campaign, y: npt.NDArray[np.int64]) -> tuple[float, float]:
    """Return accuracy and mean recall over classes on the records of the campaign's pool that have no label."""
    rest = np.setdiff1d(np.arange(len(y)), campaign.answers.latest().rows)
    found = campaign.fit().predict_proba(Pool.open(campaign.settings.pool).take(rest)).argmax(axis=1)
    right = found == y[rest]
    counts, hits = np.bincount(y[rest]), np.bincount(y[rest], weights=right)
    return float(right.mean()), float((hits[counts > 0] / counts[counts > 0]).mean())


def played(case: Case, labels: int, seed: int, folder: Path) -> dict[str, float]:
    """Label, measure, train the encoder, and measure again."""
    pool = Pool.build(case.source, folder / "pool.zarr", encoder=case.encoder(), **case.how)
    classes = [str(code) for code in range(int(case.y.max()) + 1)]
    campaign = dal.Campaign.create(folder / "campaign", pool, classes, random_state=seed)
    rows = np.random.default_rng([seed, labels]).permutation(len(case.y))[:labels]
    campaign.label(pool.record_ids(rows.tolist()), case.y[rows])
    before = measured(campaign, case.y)
    began = time.process_time()
    moved = campaign.finetune(case.source, folder / "tuned.zarr", case.encoder(), **case.how, tuning=case.tuning)
    spent = time.process_time() - began
    after = measured(moved, case.y)
    return {
        "accuracy_before": before[0], "accuracy_after": after[0],
        "recall_before": before[1], "recall_after": after[1], "cpu_seconds": spent,
    }  # fmt: skip


def shown(found: Interval, factor: float = 100.0) -> str:
    """Return an interval as text, in points."""
    if found.low is None or found.high is None or found.value is None:
        return f"{factor * (found.value or 0):+.1f}"
    return f"{factor * found.value:+.1f} ± {factor * (found.high - found.low) / 2:.1f}"


def table(rows: list[dict[str, Any]]) -> str:
    """Lay the rows out, one line for each case and number of labels."""
    lines = []
    for name, records, labels in dict.fromkeys((row["case"], row["records"], row["labels"]) for row in rows):
        mine = [row for row in rows if (row["case"], row["records"], row["labels"]) == (name, records, labels)]
        line = [name, f"{records:,}", str(labels), str(len(mine))]
        for what in ("accuracy", "recall"):
            before, after = (np.array([row[f"{what}_{when}"] for row in mine]) for when in ("before", "after"))
            line += [f"{before.mean():.3f}", f"{after.mean():.3f}", shown(mean_interval(after - before))]
        lines.append([*line, f"{np.mean([row['cpu_seconds'] for row in mine]):.0f}"])
    headings = [
        "case",
        "records",
        "labels",
        "seeds",
        "accuracy",
        "tuned",
        "points",
        "recall",
        "tuned",
        "points",
        "CPU s",
    ]
    return markdown(headings, lines)


@click.command("finetune")
@click.option("--data", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True)
@click.option("--case", "cases", multiple=True, type=click.Choice(list(CASES)), help="Default: all.")
@click.option("--records", default=1_500, show_default=True, help="Records of a pool.")
@click.option("--labels", multiple=True, type=int, default=(100, 400), show_default=True)
@click.option("--seeds", default=3, show_default=True)
@click.option("--json", "path", required=True, type=click.Path(dir_okay=False, path_type=Path), help="Goes on from it.")
def command(data: Path, cases: tuple[str, ...], records: int, labels: tuple[int, ...], seeds: int, path: Path) -> None:
    """Measure what fine-tuning adds."""
    rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    for seed in range(seeds):
        for name in cases or CASES:
            for count in labels:
                which = {"case": name, "records": records, "labels": count, "seed": seed}
                if any(which.items() <= row.items() for row in rows):
                    continue
                with tempfile.TemporaryDirectory(prefix="dal-") as place:
                    case = CASES[name](data, seed, records, Path(place))
                    rows.append({**which, **asdict(case.tuning), **played(case, count, seed, Path(place))})
                with replacing(path) as file:
                    file.write(json.dumps({"machine": machine.facts(), "rows": rows}, indent=1).encode())
    click.echo(table(rows))

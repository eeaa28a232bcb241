"""The labelled set, as a table with the source of every label."""

import codecs
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet

from dal._files import replacing
from dal.campaign import Asked, CampaignStore, Event, Round
from dal.campaign.answer_log import READ_AT_ONCE
from dal.campaign.view import View
from dal.errors import LabelError
from dal.exchange.files import Records
from dal.exchange.formats import arrow_type, as_json, columns_for, csv_bytes, csv_cell
from dal.texts import guarded

Rows = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

_TIME = pa.timestamp("us", tz="UTC")

ANSWER = pa.struct(
    [
        ("id", pa.int64()),
        ("annotator", pa.string()),
        ("status", pa.string()),
        ("label", pa.string()),
        ("answered_at", _TIME),
        ("received_at", _TIME),
        ("lead_time", pa.float64()),
        ("skip_reason", pa.string()),
        ("suggested", pa.string()),
        ("suggestion_shown", pa.bool_()),
        ("source", pa.string()),
        ("late", pa.bool_()),
        ("machine", pa.bool_()),
        ("alone", pa.bool_()),
    ]
)
_EVENT_FIELDS = [ANSWER.field(at).name for at in range(ANSWER.num_fields)]
COLUMNS = pa.schema(
    [
        ("row", pa.int64()),
        ("record_id", pa.string()),
        ("label", pa.string()),
        ("votes", pa.int32()),
        ("annotators", pa.list_(pa.string())),
        ("answers", pa.list_(ANSWER)),
        ("round", pa.int32()),
        ("rank", pa.int32()),
        ("explore", pa.bool_()),
        ("chosen_by", pa.string()),
        ("strategy", pa.string()),
        ("score", pa.float64()),
        ("predicted", pa.string()),
        ("confidence", pa.float64()),
        ("model", pa.string()),
        ("copy_of", pa.string()),
        ("propensity", pa.float64()),
        ("weight", pa.float64()),
        ("training_weight", pa.float64()),
    ]
)
"""Columns of the table; `docs/exchange.md` describes each."""


LABEL_FORMATS = ("parquet", "csv", "jsonl")
_SUFFIXES = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".tsv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
}


def write_labels(
    campaign: CampaignStore,
    pool: Records,
    path: str | Path,
    *,
    file_format: str | None = None,
    copies: tuple[Rows, Rows] | None = None,
    weights: tuple[Rows, Floats, Floats] | None = None,
    at_once: int = READ_AT_ONCE,
) -> int:
    """Write every answered record, with its label and its history, as Parquet, CSV or JSON lines.

    The columns are those of `docs/exchange.md`, then the pool's display fields. A Parquet file has the campaign's id
    and classes in its metadata; a CSV file has lists as JSON. Records are in the order of their rows. A record whose
    answers were all skipped or retracted has no label. Answers that arrive during the writing are not included.

    Parameters
    ----------
    campaign : Campaign
    pool : Records
        The campaign's pool.
    path : str or Path
    file_format : str, optional
        One of `LABEL_FORMATS`. Default: by the suffix of `path`.
    copies : tuple of ndarray of int64, optional
        Rows of near-duplicates, and for each the row of the labelled record whose label it is given; see
        :func:`dal.loop.copies.copies_of`. They come last. They have no answers, and a `copy_of`.
    weights : tuple of ndarray, optional
        Rows, and for each its weight to judge by and that to train by; see :class:`dal.loop.bias.Weights`. NaN is none.
    at_once : int, default=4096
        Records that are in memory at a time.

    Returns
    -------
    int
        Number of records with a label of their own, from answers.

    Raises
    ------
    LabelError
        The suffix names none of the formats.
    CampaignError
        The file cannot be written.
    """
    path = Path(path)
    sink = _sink(path, file_format)
    upto = campaign.answers.last_id()
    known = campaign.answers.labels(upto)
    labels = dict(zip(known.rows.tolist(), known.codes.tolist(), strict=True))
    sources = _Sources(
        labels,
        {each.number: each for each in campaign.rounds.all()},
        View(campaign).propensities(),
        {} if weights is None else _known(*weights),
    )
    records = campaign.answers.by_record(upto, read_at_once=at_once)
    about = {"dal": json.dumps({"campaign": campaign.id, "classes": campaign.settings.classes, "last_answer": upto})}
    with replacing(path) as file:
        first = True
        while (block := list(islice(records, at_once))) or first:
            batch = _batch(block, pool, campaign.settings.classes, sources)
            sink.write(file, batch.replace_schema_metadata(about))
            first = False
        for batch in _copies(copies, at_once, pool, campaign.settings.classes, labels):
            sink.write(file, batch.replace_schema_metadata(about))
        sink.close()
    return len(labels)


class _Sources(NamedTuple):
    """All that is known of records beside their answers: by row, but for the rounds, which are by number."""

    labels: dict[int, int]
    rounds: dict[int, Round]
    propensities: dict[int, float]
    weights: dict[int, tuple[float, ...]]


class _Sink(Protocol):
    """A writer of the table in batches; there is at least one batch, possibly empty."""

    def write(self, file: BinaryIO, batch: "pa.RecordBatch") -> None:
        """Write records."""

    def close(self) -> None:
        """Write the end of the file."""


class _Parquet:
    def __init__(self) -> None:
        self._writer: pa.parquet.ParquetWriter | None = None

    def write(self, file: BinaryIO, batch: "pa.RecordBatch") -> None:
        if self._writer is None:
            self._writer = pa.parquet.ParquetWriter(file, batch.schema, compression="zstd")
        self._writer.write_batch(batch)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class _JsonLines:
    def write(self, file: BinaryIO, batch: "pa.RecordBatch") -> None:
        for record in batch.to_pylist():
            file.write(_json({name: as_json(value) for name, value in record.items()}).encode() + b"\n")

    def close(self) -> None:
        """Do nothing: lines need no end."""


class _Csv:
    def __init__(self, delimiter: str) -> None:
        self._delimiter, self._begun = delimiter, False

    def write(self, file: BinaryIO, batch: "pa.RecordBatch") -> None:
        if not self._begun:
            file.write(codecs.BOM_UTF8 + csv_bytes([[guarded(name) for name in batch.schema.names]], self._delimiter))
            self._begun = True
        cells = ([_cell(value) for value in record.values()] for record in batch.to_pylist())
        file.write(csv_bytes(cells, self._delimiter))

    def close(self) -> None:
        """Do nothing: lines need no end."""


def _cell(value: object) -> str:
    # Long texts are not cut, unlike in a batch for spreadsheets: programs read the labelled set.
    if isinstance(value, str):
        return guarded(value)
    return guarded(_json(value)) if isinstance(value, list | dict) else csv_cell(value)


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, default=lambda moment: moment.isoformat())


def _sink(path: Path, name: str | None) -> _Sink:
    found = name or _SUFFIXES.get(path.suffix.lower())
    match found:
        case "parquet":
            return _Parquet()
        case "csv":
            return _Csv("\t" if path.suffix.lower() == ".tsv" else ",")
        case "jsonl":
            return _JsonLines()
        case _:
            raise LabelError(
                f"`path` must end in {', '.join(_SUFFIXES)} for the labelled set, got {name or path.name}; or name one "
                f"of the formats {', '.join(LABEL_FORMATS)}"
            )


def _batch(
    block: list[tuple[list[Event], tuple[int, Asked] | None]],
    pool: Records,
    classes: tuple[str, ...],
    sources: _Sources,
) -> "pa.RecordBatch":
    names: dict[int | None, str | None] = {None: None, **dict(enumerate(classes))}
    return _shown([_record(events, asking, names, sources) for events, asking in block], pool)


def _known(rows: Rows, *weights: Floats) -> dict[int, tuple[float, ...]]:
    there = np.isfinite(weights).all(axis=0)
    return dict(zip(rows[there].tolist(), zip(*(each[there].tolist() for each in weights), strict=True), strict=True))


def _copies(
    copies: tuple[Rows, Rows] | None, at_once: int, pool: Records, classes: tuple[str, ...], labels: dict[int, int]
) -> Iterator["pa.RecordBatch"]:
    """Label near-duplicates as their records are labelled; leave those out whose record has no label any more."""
    rows, of = (np.empty(0, np.int64),) * 2 if copies is None else copies
    kept = np.isin(of, np.fromiter(labels, np.int64, len(labels)))
    rows, of = rows[kept], of[kept]
    for start in range(0, len(rows), at_once):
        block, originals = rows[start : start + at_once], of[start : start + at_once]
        nothing: dict[str, Any] = {"votes": 0, "annotators": [], "answers": [], "chosen_by": "copy"}
        records = [
            nothing | {"row": row, "record_id": own, "label": classes[labels[original]], "copy_of": copied}
            for row, own, original, copied in zip(
                block.tolist(), pool.record_ids(block), originals.tolist(), pool.record_ids(originals), strict=True
            )
        ]
        yield _shown(records, pool)


def _shown(records: list[dict[str, Any]], pool: Records) -> "pa.RecordBatch":
    """Make the table of records, with the pool's display fields."""
    fixed = pa.RecordBatch.from_pylist(records, schema=COLUMNS)
    shown = pool.display(np.array([record["row"] for record in records], dtype=np.int64))
    for field, name in columns_for(pool.fields, COLUMNS.names).items():
        values = pa.array(shown[field], arrow_type(pool.kinds.get(field), shown[field]))
        fixed = fixed.append_column(name, values)
    return fixed


def _record(
    events: list[Event],
    asking: tuple[int, Asked] | None,
    names: dict[int | None, str | None],
    sources: _Sources,
) -> dict[str, Any]:
    row, rounds = events[0].row, sources.rounds
    label = sources.labels.get(row)
    last = {event.annotator: event for event in events if not event.machine}
    agreeing = [event for event in last.values() if label is not None and event.label == label]
    number, asked = asking if asking else (None, None)
    weight, training = (None if label is None else sources.weights.get(row)) or (None, None)
    return {
        "row": row,
        "record_id": events[0].record_id,
        "label": names[label],
        "votes": len(agreeing),
        "annotators": sorted(name for name, event in last.items() if event.status == "submitted"),
        "answers": [
            {name: getattr(event, name) for name in _EVENT_FIELDS}
            | {"label": names[event.label], "suggested": names[event.suggested]}
            for event in events
        ],
        "round": number,
        "rank": asked and asked.rank,
        "explore": asked and asked.explore,
        "chosen_by": asked and asked.chosen_by,
        "strategy": number and rounds[number].strategy,
        "score": asked and asked.score,
        "predicted": names[asked.predicted] if asked else None,
        "confidence": asked and asked.confidence,
        "model": number and rounds[number].model,
        "copy_of": None,
        "propensity": sources.propensities.get(row),
        "weight": weight,
        "training_weight": training,
    }

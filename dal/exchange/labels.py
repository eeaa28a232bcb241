"""The labelled set, as a table that says where every label comes from."""

import json
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from dal.campaign import Asked, Campaign, Event, Round
from dal.campaign.disk import replacing
from dal.exchange.files import Records
from dal.exchange.formats import arrow_type, columns_for

_AT_ONCE = 4096
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
    ]
)
_TOLD = [ANSWER.field(at).name for at in range(ANSWER.num_fields)]
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
        ("strategy", pa.string()),
        ("score", pa.float64()),
        ("predicted", pa.string()),
        ("confidence", pa.float64()),
        ("model", pa.string()),
    ]
)
"""What `docs/exchange.md` tells of each column."""


def write_labels(campaign: Campaign, pool: Records, path: str | Path) -> int:
    """Write every record that has an answer as a Parquet file, with its label and all that led to it.

    The columns are those of `docs/exchange.md`, then the pool's display fields; the campaign's id and classes are in
    the file's metadata. Records are in the order of their rows. A record whose answers were all skipped or taken back
    has no label. Answers that come while the file is written are not in it.

    Parameters
    ----------
    campaign : Campaign
    pool : Records
        The campaign's pool.
    path : str or Path

    Returns
    -------
    int
        Records that have a label.

    Raises
    ------
    CampaignError
        If the file cannot be written.
    """
    upto = campaign.last_answer()
    known = campaign.labels(upto)
    labels = dict(zip(known.rows.tolist(), known.codes.tolist(), strict=True))
    rounds = {each.number: each for each in campaign.rounds()}
    records = campaign.answers_by_record(upto)
    about = {"dal": json.dumps({"campaign": campaign.id, "classes": campaign.settings.classes, "last_answer": upto})}
    with replacing(Path(path)) as file:
        writer = None
        while (block := list(islice(records, _AT_ONCE))) or writer is None:
            batch = _batch(block, pool, campaign.settings.classes, labels, rounds).replace_schema_metadata(about)
            writer = writer or pa.parquet.ParquetWriter(file, batch.schema, compression="zstd")
            writer.write_batch(batch)
        writer.close()
    return len(labels)


def _batch(
    block: list[tuple[list[Event], tuple[int, Asked] | None]],
    pool: Records,
    classes: tuple[str, ...],
    labels: dict[int, int],
    rounds: dict[int, Round],
) -> "pa.RecordBatch":
    names: dict[int | None, str | None] = {None: None, **dict(enumerate(classes))}
    records = [_record(events, asking, names, labels, rounds) for events, asking in block]
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
    labels: dict[int, int],
    rounds: dict[int, Round],
) -> dict[str, Any]:
    row = events[0].row
    label = labels.get(row)
    last = {event.annotator: event for event in events}
    agreeing = [event for event in last.values() if label is not None and event.label == label]
    number, asked = asking if asking else (None, None)
    return {
        "row": row,
        "record_id": events[0].record_id,
        "label": names[label],
        "votes": len(agreeing),
        "annotators": sorted(name for name, event in last.items() if event.status == "submitted"),
        "answers": [
            {name: getattr(event, name) for name in _TOLD}
            | {"label": names[event.label], "suggested": names[event.suggested]}
            for event in events
        ],
        "round": number,
        "rank": asked and asked.rank,
        "explore": asked and asked.explore,
        "strategy": number and rounds[number].strategy,
        "score": asked and asked.score,
        "predicted": names[asked.predicted] if asked else None,
        "confidence": asked and asked.confidence,
        "model": number and rounds[number].model,
    }

"""Batches for tests of a campaign, by columns."""

from collections.abc import Sequence

import numpy as np

from dal.campaign import Asked


def batch_of(
    rows: Sequence[int],
    ids: Sequence[str] | None = None,
    *,
    scores: Sequence[float | None] | None = None,
    predicted: Sequence[int | None] | None = None,
    explore: Sequence[bool] | None = None,
    confidence: Sequence[float | None] | None = None,
    found_by: Sequence[str | None] | None = None,
    reserve: int = 0,
) -> list[Asked]:
    rows = np.asarray(rows, np.int64).tolist()
    nothing = [None] * len(rows)
    columns = (
        [f"id{row}" for row in rows] if ids is None else list(ids),
        nothing if scores is None else scores,
        nothing if predicted is None else predicted,
        [False] * len(rows) if explore is None else explore,
        nothing if confidence is None else confidence,
        nothing if found_by is None else found_by,
    )
    return [
        Asked(row, record_id, rank, score, code, flag, sure, rank >= len(rows) - reserve, by)
        for rank, (row, record_id, score, code, flag, sure, by) in enumerate(zip(rows, *columns, strict=True))
    ]

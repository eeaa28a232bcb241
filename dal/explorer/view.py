"""The data of a run that is sent to the browser: plain values, of bounded size for any pool."""

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from dal.explorer.run import GRID, Run
from dal.figures import color_of, marker_of
from dal.pool import Pool
from dal.replay import Comparison, Replay

VERSION = 1
MOST_PANELS = 4
MOST_POINTS = 5000
MOST_SAMPLE = 1500
MOST_IMAGE_BYTES = 1_500_000
MOST_SIDE = 28
MOST_TEXT = 280
TARGETS = 100

Rows = npt.NDArray[np.int64]


def view_of_run(run: Run, pool: Pool | None) -> dict[str, Any]:
    """Return the data that the explorer draws.

    Parameters
    ----------
    run : Run
    pool : Pool or None
        For thumbnails and texts of the records; without it they are drawn as points only.

    Returns
    -------
    dict
        JSON values; arrays are base64 of little-endian bytes. Bounded for any pool: at most 5,000 records, 1.5 MB of
        thumbnails, a byte or two for each watched place and round.
    """
    common, notes = _common(run)
    panels = common.strategies[:MOST_PANELS] if len(common.strategies) <= MOST_PANELS else []
    if not panels:
        notes.append(f"{len(common.strategies)} strategies: curves only. Up to {MOST_PANELS} are drawn side by side.")
    if run.pool_map is None:
        notes.append("This run has no map of the pool: its records are listed only.")
    shown = [common.of(strategy)[0] for strategy in panels]
    rows = _rows_shown(run, shown)
    position = {row: index for index, row in enumerate(rows.tolist())}
    baseline = "random" if "random" in common.strategies else None
    return {
        "version": VERSION,
        "title": run.title,
        "measured": run.measured,
        "notes": [*run.notes, *notes],
        "classes": [
            {"name": name, "color": color_of(code), "marker": marker_of(code)} for code, name in enumerate(run.classes)
        ],
        "shares": run.shares,
        "estimated": False,
        "map": _map(run),
        "records": _records(run, pool, rows),
        "strategies": [_strategy(common, name, run) for name in common.strategies],
        "panels": [_panel(run, replay, position) for replay in shown],
        "overlap": _overlaps(shown),
        "needed": _needed(common, baseline),
        "baseline": baseline,
        "lead": None,
        "tables": [],
    }


def _common(run: Run) -> tuple[Comparison, list[str]]:
    """Cut the replays to the seeds and labels that all strategies share, and return notes on it."""
    everything, notes = run.comparison, []
    seeds = [{replay.seed for replay in everything.of(name)} for name in everything.strategies]
    shared = set.intersection(*seeds)
    if not shared:
        notes.append("The strategies have no seed in common: their differences cannot be paired.")
    elif any(own != shared for own in seeds):
        notes.append(f"The strategies have different seeds: only the {len(shared)} that all have are compared.")
        everything = Comparison(tuple(replay for replay in run.replays if replay.seed in shared))
    last = [replay.labels[-1] for replay in everything.replays if replay.labels]
    if last and min(last) < max(last):
        notes.append(f"The replays have different budgets: all are cut at {min(last):,} labels.")
        everything = Comparison(tuple(_cut(replay, min(last)) for replay in everything.replays))
    for name in everything.strategies:
        first, *others = everything.of(name)
        if others and all(_same_choices(first, other) for other in others):
            notes.append(
                f"{name} asked the same records with every seed, because it draws nothing at random. Its interval of "
                "± 0"
                " does not estimate its spread on other data."
            )
    return everything, notes


def _same_choices(one: Replay, other: Replay) -> bool:
    return len(one.batches) == len(other.batches) and all(map(np.array_equal, one.batches, other.batches))


def _cut(replay: Replay, labels: int) -> Replay:
    points = sum(known <= labels for known in replay.labels)
    points = max(1, points)
    return Replay(
        replay.strategy,
        replay.seed,
        replay.labels[:points],
        replay.accuracy[:points],
        replay.batches[:points],
        replay.scores[:points],
        replay.predicted[:points],
        replay.views[:points],
    )


def _rows_shown(run: Run, shown: Sequence[Replay]) -> Rows:
    """Return the records to send: an even sample of the pool, then the asked ones, evenly thinned if necessary."""
    sample = run.pool_map.sample[:MOST_SAMPLE] if run.pool_map is not None else np.empty(0, np.int64)
    batches = [batch for replay in shown for batch in replay.batches]
    room = MOST_POINTS - len(sample)
    most = room // max(1, len(batches)) if sum(map(len, batches)) > room else room
    asked = [batch[np.arange(min(most, len(batch))) * len(batch) // max(1, min(most, len(batch)))] for batch in batches]
    others = np.setdiff1d(np.concatenate([np.empty(0, np.int64), *asked]), sample)
    return np.concatenate([sample, others])


def _map(run: Run) -> dict[str, Any] | None:
    if run.pool_map is None:
        return None
    made = run.pool_map
    density = made.density.reshape(128, 2, 128, 2).sum(axis=(1, 3))
    shade = np.log1p(density.astype(np.float64))
    return {
        "extent": list(made.extent),
        "axes": list(made.projection.axes),
        "density": _packed(np.round(shade / max(float(shade.max()), 1e-9) * 255), np.uint8),
        "bins": len(density),
        "sample": min(MOST_SAMPLE, len(made.sample)),
        "rows": made.n_rows,
        "grid": GRID if made.projection.mean.shape == (2,) else None,
    }


def _records(run: Run, pool: Pool | None, rows: Rows) -> dict[str, Any]:
    codes = run.codes_of(rows)
    sent: dict[str, Any] = {
        "ids": [str(row) for row in rows.tolist()] if pool is None else pool.record_ids(rows),
        "labels": _packed(codes, np.int16),
        "x": None,
        "y": None,
        "images": None,
        "texts": None,
    }
    if pool is None:
        return sent
    X = pool.take(rows)
    if run.pool_map is not None:
        places = run.pool_map.projection.place(X)
        sent |= {"x": _packed(places[:, 0], np.float32), "y": _packed(places[:, 1], np.float32)}
    if len(pool.record_shape) == 3:
        sent["images"] = _thumbnails(X.reshape(-1, *pool.record_shape))
    texts = pool.display(rows)
    if texts and sent["images"] is None:
        sent["texts"] = [_shortened({name: values[i] for name, values in texts.items()}) for i in range(len(rows))]
    return sent


def _shortened(fields: dict[str, object]) -> str:
    shown = ["" if value is None else str(value) for value in fields.values()]
    text = shown[0] if len(shown) == 1 else "\n".join(map(": ".join, zip(fields, shown, strict=True)))
    return text if len(text) <= MOST_TEXT else text[: MOST_TEXT - 1] + "…"


def _thumbnails(images: npt.NDArray[np.float32]) -> dict[str, Any] | None:
    """Return images as bytes, at most 28 pixels high and wide; only the last ones if they are too large together."""
    step = max(1, -(-max(images.shape[1:3]) // MOST_SIDE))
    small = images[:, ::step, ::step, : 3 if images.shape[3] >= 3 else 1]
    count = min(len(small), MOST_IMAGE_BYTES // int(np.prod(small.shape[1:])))
    # The asked records come last and matter most: drop the first ones.
    small = small[len(small) - count :]
    low, high = float(np.nanmin(small)), float(np.nanmax(small))
    levels = np.nan_to_num((small - low) / (high - low if high > low else 1.0)) * 255
    grey = small.shape[3] == 1
    return {
        "first": len(images) - count,
        "height": small.shape[1],
        "width": small.shape[2],
        "channels": small.shape[3],
        # Dark ink on paper where most of a grey picture is low, as handwriting is stored; else light on dark, as
        # photographs.
        "ink": bool(grey and np.median(levels) < 64),
        "data": _packed(np.round(levels), np.uint8),
    }


def _strategy(comparison: Comparison, name: str, run: Run) -> dict[str, Any]:
    mean, low, high = comparison.band(name)
    replays = comparison.of(name)
    if run.intervals:
        low, high = (tuple(ends) for ends in zip(*run.intervals, strict=True))
    return {
        "name": name,
        "labels": list(mean.labels),
        "accuracy": _finite(mean.accuracy),
        "low": _finite(low),
        "high": _finite(high),
        "seeds": [replay.seed for replay in replays],
        "curves": [_finite(replay.accuracy) for replay in replays],
    }


def _finite(values: Sequence[float]) -> list[float | None]:
    return [None if np.isnan(value) else round(float(value), 5) for value in values]


def _panel(run: Run, replay: Replay, position: dict[int, int]) -> dict[str, Any]:
    rounds = []
    counts = np.zeros(len(run.classes), dtype=np.int64)
    for number, batch in enumerate(replay.batches):
        codes = run.codes_of(batch)
        counts = counts + np.bincount(codes[codes >= 0], minlength=len(run.classes))
        here = [i for i, row in enumerate(batch.tolist()) if row in position]
        scores = replay.scores[number][here] if replay.scores else np.full(len(here), np.nan)
        predicted = replay.predicted[number][here] if replay.predicted else np.full(len(here), -1)
        rounds.append(
            {
                "asked": [position[int(batch[i])] for i in here],
                "size": len(batch),
                "scores": _finite(scores.tolist()),
                "predicted": predicted.tolist(),
                "counts": counts.tolist(),
            }
        )
    watched = GRID * GRID if run.pool_map is not None and run.pool_map.projection.mean.shape == (2,) else MOST_SAMPLE
    views = [_packed(view[:watched], np.uint8) for view in replay.views]
    return {
        "name": replay.strategy,
        "seed": replay.seed,
        "labels": list(replay.labels),
        "accuracy": _finite(replay.accuracy),
        "rounds": rounds,
        "views": views if run.pool_map is not None else [],
    }


def _overlaps(shown: Sequence[Replay]) -> list[list[list[float]]]:
    """Return, after each round, the Jaccard index between the records that each two strategies have asked so far."""
    rounds = min((len(replay.batches) for replay in shown), default=0)
    sets: list[set[int]] = [set() for _ in shown]
    overlaps = []
    for number in range(rounds):
        sets = [so_far | set(r.batches[number].tolist()) for so_far, r in zip(sets, shown, strict=True)]
        overlaps.append([[round(jaccard(a, b), 4) for b in sets] for a in sets])
    return overlaps


def jaccard(a: set[int], b: set[int]) -> float:
    """Return the share of common members among all members of two sets.

    Examples
    --------
    >>> jaccard({1, 2, 3}, {2, 3, 4}), jaccard(set(), set())
    (0.5, 0.0)
    """
    union = len(a | b)
    return len(a & b) / union if union else 0.0


def _needed(comparison: Comparison, baseline: str | None) -> dict[str, Any] | None:
    """Return the labels that each strategy needs, for targets from the worst first accuracy to the best last one."""
    means = [comparison.mean(name) for name in comparison.strategies]
    ends = [value for mean in means for value in mean.accuracy if not np.isnan(value)]
    if not ends or len(means[0].labels) < 2 or any(np.isnan(r.accuracy).any() for r in comparison.replays):
        return None
    # Whole thousandths, so that the target shown is exactly the one computed; plus the target of `dal compare`'s table.
    default = comparison.reached_by_all(baseline or comparison.strategies[0])
    targets = np.union1d(np.round(np.linspace(min(ends), max(ends), TARGETS + 1), 3), [default])
    columns = {}
    for name in comparison.strategies:
        against = baseline if name != baseline else None
        found = [comparison.needed(name, float(target), against) for target in targets]
        columns[name] = [
            [
                None if each.labels is None else round(each.labels, 1),
                each.reached,
                each.seeds,
                None if each.difference is None else round(each.difference, 1),
                None if each.half_width is None else round(each.half_width, 1),
            ]
            for each in found
        ]
    start = int(np.searchsorted(targets, default))
    return {"targets": targets.tolist(), "start": start, "strategies": columns}


def _packed(values: npt.NDArray[Any], dtype: npt.DTypeLike) -> str:
    little = np.ascontiguousarray(values).astype(np.dtype(dtype).newbyteorder("<"))
    return base64.b64encode(little.tobytes()).decode("ascii")

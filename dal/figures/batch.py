"""A batch on the map of the pool."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from bokeh.models import ColumnDataSource, HoverTool, Range1d
from bokeh.plotting import figure

from dal.figures.palette import ASKED, color_of, marker_of
from dal.figures.style import plain_figure

MOST_POINTS = 5000


@dataclass(frozen=True)
class Points:
    """Records on the map.

    Attributes
    ----------
    x, y : ndarray of shape (n,), float
    record_ids : sequence of str
    labels : ndarray of shape (n,), int64
        Class codes; -1 for records without a label.
    batch : ndarray of shape (n,), bool
        Whether a record belongs to the batch that is shown.
    scores : sequence of float or None
        Score of each record, where it is known.
    """

    x: npt.NDArray[np.floating]
    y: npt.NDArray[np.floating]
    record_ids: Sequence[str]
    labels: npt.NDArray[np.int64]
    batch: npt.NDArray[np.bool_]
    scores: Sequence[float | None]

    def __len__(self) -> int:
        return len(self.x)


@dataclass(frozen=True)
class BatchMap:
    """The map of the pool with some of its records.

    Attributes
    ----------
    density : ndarray of shape (height, width), int64
        Records of the pool in each field of the map; the first row is the lowest y.
    extent : tuple of float
        Left, right, bottom, top.
    points : Points
    classes : sequence of str
    axes : tuple of str
        Titles of the two axes.
    """

    density: npt.NDArray[np.int64]
    extent: tuple[float, float, float, float]
    points: Points
    classes: Sequence[str]
    axes: tuple[str, str] = ("first principal component", "second principal component")


def batch_map(shown: BatchMap) -> figure:
    """Draw the pool as grey density, labelled records by class, and the records of the batch as rings.

    Parameters
    ----------
    shown : BatchMap
        Of more than 5,000 points, those of the batch are drawn as far as there is room, and an even share of the
        others.

    Returns
    -------
    bokeh.plotting.figure
    """
    left, right, bottom, top = shown.extent
    plot = plain_figure(
        height=460,
        x_range=Range1d(left, right),
        y_range=Range1d(bottom, top),
        x_axis_label=shown.axes[0],
        y_axis_label=shown.axes[1],
        tools="pan,wheel_zoom,box_zoom,reset",
    )
    plot.grid.visible = False
    density = _shades(shown.density)
    plot.image_rgba(image=[density], x=left, y=bottom, dw=right - left, dh=top - bottom)
    kept = _thinned(shown.points)
    points = shown.points
    drawn = []
    for code, name in enumerate(shown.classes):
        here = kept[points.labels[kept] == code]
        if len(here):
            source = _source(points, here, [name] * len(here))
            looks = {"color": color_of(code), "marker": marker_of(code), "legend_label": name}
            drawn.append(plot.scatter("x", "y", source=source, size=7, fill_alpha=0.8, line_color=None, **looks))
    ring = kept[points.batch[kept]]
    if len(ring):
        names = [shown.classes[code] if code >= 0 else "not yet" for code in points.labels[ring].tolist()]
        rings = plot.scatter(
            "x",
            "y",
            source=_source(points, ring, names),
            size=13,
            fill_color=None,
            line_color=ASKED,
            line_width=2,
            legend_label="this batch",
        )
        drawn.append(rings)
    if drawn:
        tooltips = [("record", "@record"), ("label", "@label"), ("score", "@score")]
        plot.add_tools(HoverTool(tooltips=tooltips, renderers=drawn))
        plot.add_layout(plot.legend[0], "right")
        plot.legend.click_policy = "hide"
    if len(kept) < len(points):
        plot.title.text = f"{len(kept):,} of {len(points):,} records drawn"
    return plot


def _thinned(points: Points) -> npt.NDArray[np.int64]:
    batch, others = np.flatnonzero(points.batch), np.flatnonzero(~points.batch)
    batch = _evenly(batch, MOST_POINTS)
    return np.sort(np.concatenate([batch, _evenly(others, MOST_POINTS - len(batch))]))


def _evenly(positions: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.int64]:
    return positions if len(positions) <= count else positions[np.arange(count) * len(positions) // count]


def _source(points: Points, here: npt.NDArray[np.int64], names: Sequence[str]) -> ColumnDataSource:
    scores = [points.scores[position] for position in here.tolist()]
    columns: dict[str, Sequence[object]] = {
        "x": points.x[here].tolist(),
        "y": points.y[here].tolist(),
        "record": [points.record_ids[position] for position in here.tolist()],
        "label": list(names),
        "score": ["" if score is None else f"{score:.3f}" for score in scores],
    }
    return ColumnDataSource(data=columns)


def _shades(density: npt.NDArray[np.int64]) -> npt.NDArray[np.uint32]:
    """Return the density as mid-grey of growing opacity, which is visible on light and on dark paper."""
    shade = np.log1p(density.astype(np.float64))
    alpha = (shade / max(float(shade.max()), 1e-9) * 200).astype(np.uint32)
    return (alpha << np.uint32(24)) | np.uint32(0x00808080)

"""A batch on the map of the pool."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from bokeh.models import ColumnDataSource, HoverTool, Range1d
from bokeh.plotting import figure

from dal.figures.palette import ASKED, COLORS, color_of, marker_of
from dal.figures.style import plain_figure

MOST_POINTS = 5000
FIELDS = 32
"""Of the map on which labels are compared with the pool, along each axis."""
OVER, UNDER = COLORS[1], COLORS[0]


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


def bias_map(
    density: npt.NDArray[np.int64],
    extent: tuple[float, float, float, float],
    places: npt.NDArray[np.floating],
    axes: tuple[str, str],
) -> figure:
    """Draw where labelled records are more frequent than records of the pool, and where less.

    Each field of a coarse map has the colour of the larger one of its two shares, the stronger the further they are
    apart. Fields in which nothing lies are empty.

    Parameters
    ----------
    density, extent, axes
        As in `BatchMap`; the density has a multiple of `FIELDS` fields along each axis.
    places : ndarray of shape (n, 2), float
        Of labelled records.

    Returns
    -------
    bokeh.plotting.figure
    """
    pool = _coarse(density)
    left, right, bottom, top = extent
    places = places[np.isfinite(places).all(axis=1)].astype(np.float64)
    labels, _, _ = np.histogram2d(places[:, 1], places[:, 0], bins=FIELDS, range=[[bottom, top], [left, right]])
    of_pool, of_labels = (each / max(1.0, float(each.sum())) for each in (pool, labels))
    gap = of_labels - of_pool
    row, column = np.nonzero((pool > 0) | (labels > 0))
    # The legend looks like the first field of either kind.
    strongest = np.argsort(-np.abs(gap[row, column]), kind="stable")
    row, column = row[strongest], column[strongest]
    widest = max(float(np.abs(gap).max()), 1e-9)
    width, height = (right - left) / FIELDS, (top - bottom) / FIELDS
    columns: dict[str, Sequence[object]] = {
        "x": (left + (column + 0.5) * width).tolist(),
        "y": (bottom + (row + 0.5) * height).tolist(),
        "color": np.where(gap[row, column] > 0, OVER, UNDER).tolist(),
        # By the root, so that differences much smaller than the largest one are seen.
        "alpha": np.sqrt(np.abs(gap[row, column]) / widest).tolist(),
        "labels": [f"{share:.1%}" for share in of_labels[row, column].tolist()],
        "pool": [f"{share:.1%}" for share in of_pool[row, column].tolist()],
        "side": np.where(gap[row, column] > 0, "more among the labels", "more in the pool").tolist(),
    }
    plot = plain_figure(
        height=360,
        x_range=Range1d(left, right),
        y_range=Range1d(bottom, top),
        x_axis_label=axes[0],
        y_axis_label=axes[1],
    )
    plot.grid.visible = False
    fields = plot.rect(
        "x",
        "y",
        width,
        height,
        source=ColumnDataSource(data=columns),
        fill_color="color",
        fill_alpha="alpha",
        line_color=None,
        legend_group="side",
    )
    plot.add_tools(HoverTool(tooltips=[("of the labels", "@labels"), ("of the pool", "@pool")], renderers=[fields]))
    plot.add_layout(plot.legend[0], "above")
    plot.legend.orientation = "horizontal"
    return plot


def _coarse(density: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Count records in `FIELDS` by `FIELDS` fields."""
    height, width = density.shape
    fields = density.reshape(FIELDS, height // FIELDS, FIELDS, width // FIELDS)
    return fields.sum(axis=(1, 3)).astype(np.float64)


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

"""Bokeh figures of results, for pages, notebooks and reports alike, and the page that holds them in one file."""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from bokeh.embed import components
from bokeh.models import ColumnDataSource, HoverTool, Range1d
from bokeh.models.annotations import Span
from bokeh.plotting import figure
from bokeh.resources import INLINE

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000")
"""Okabe and Ito's palette: told apart by colour-blind readers, too."""


@dataclass(frozen=True)
class Curve:
    """A learning curve with its spread.

    Attributes
    ----------
    name : str
    labels : sequence of int
    accuracy : sequence of float
    low, high : sequence of float, optional
        Lowest and highest over the seeds.
    """

    name: str
    labels: Sequence[int]
    accuracy: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


def learning_curves(curves: Sequence[Curve], target: float | None = None, width: int = 860) -> figure:
    """Draw accuracy against labels.

    Parameters
    ----------
    curves : sequence of Curve
    target : float, optional
        An accuracy to mark by a line across.
    width : int, default=860
        Pixels.

    Returns
    -------
    bokeh.plotting.figure
    """
    plot = figure(
        width=width,
        height=420,
        x_axis_label="labels",
        y_axis_label="accuracy on test records",
        tools="pan,wheel_zoom,box_zoom,reset",
        toolbar_location="right",
        sizing_mode="scale_width",
    )
    plot.toolbar.logo = None
    for curve, color in zip(curves, COLORS * len(curves), strict=False):
        _draw_curve(plot, curve, color)
    if target is not None:
        plot.add_layout(Span(location=target, dimension="width", line_dash="dashed", line_color="#666666"))
    plot.add_tools(HoverTool(tooltips=[("strategy", "@name"), ("labels", "@labels"), ("accuracy", "@accuracy{0.000}")]))
    plot.legend.location = "bottom_right"
    plot.legend.click_policy = "mute"
    return plot


def _draw_curve(plot: figure, curve: Curve, color: str) -> None:
    columns: dict[str, Sequence[object]] = {
        "labels": list(curve.labels),
        "accuracy": list(curve.accuracy),
        "name": [curve.name] * len(curve.labels),
    }
    source = ColumnDataSource(data=columns)
    if curve.low is not None and curve.high is not None:
        plot.varea(x=list(curve.labels), y1=list(curve.low), y2=list(curve.high), color=color, alpha=0.15)
    plot.line(
        "labels", "accuracy", source=source, color=color, line_width=2.5, legend_label=curve.name, muted_alpha=0.1
    )
    plot.scatter("labels", "accuracy", source=source, color=color, size=7, legend_label=curve.name, muted_alpha=0.1)


def record_images(
    images: npt.NDArray[np.floating], captions: Sequence[str], title: str, columns: int = 10, width: int = 860
) -> figure:
    """Draw records that are small grey images side by side.

    Parameters
    ----------
    images : ndarray of shape (n, height, width)
        Each is stretched over its own range.
    captions : sequence of str
        Under each image.
    title : str
    columns : int, default=10
    width : int, default=860
        Pixels.

    Returns
    -------
    bokeh.plotting.figure
    """
    rows = -(-len(images) // columns)
    plot = figure(
        width=width,
        height=int(width / columns * rows * 1.28) + 40,
        x_range=Range1d(start=-0.1, end=columns),
        y_range=Range1d(start=-1.28 * rows, end=0.12),
        title=title,
        tools="",
        toolbar_location=None,
        sizing_mode="scale_width",
    )
    plot.axis.visible = plot.grid.visible = False
    plot.outline_line_color = None
    x = [float(index % columns) for index in range(len(images))]
    y = [-1.28 * (index // columns) - 1.0 for index in range(len(images))]
    plot.image(image=[_dark_on_light(image) for image in images], x=x, y=y, dw=0.9, dh=0.98, palette="Greys256")
    plot.text(
        x=[left + 0.45 for left in x],
        y=[bottom - 0.02 for bottom in y],
        text=list(captions),
        text_align="center",
        text_baseline="top",
        text_font_size="11px",
        text_color="#333333",
    )
    return plot


def _dark_on_light(image: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    # Bokeh draws the first row at the bottom; its greys begin with black, and ink is where the image is high.
    low, high = float(np.min(image)), float(np.max(image))
    return (high - image[::-1]) / (high - low if high > low else 1.0)


@dataclass(frozen=True)
class Table:
    """Rows of text under a header."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


Part = str | figure | Table
"""What a page is made of."""


def write_page(path: str | Path, title: str, parts: Sequence[Part]) -> None:
    """Write one self-contained HTML file: figures, tables and text, with nothing to fetch from anywhere.

    Parameters
    ----------
    path : path
    title : str
    parts : sequence of str, figure or Table
        A text is a paragraph, escaped; one that begins with "# " is a heading.
    """
    plots = [part for part in parts if isinstance(part, figure)]
    script, divisions = components(plots) if plots else ("", ())
    drawn = iter(divisions)
    body = "\n".join(next(drawn) if isinstance(part, figure) else _as_html(part) for part in parts)
    Path(path).write_text(
        _PAGE.format(title=html.escape(title), head=INLINE.render() if plots else "", body=body, script=script),
        encoding="utf-8",
    )


def _as_html(part: str | Table) -> str:
    if isinstance(part, str):
        return f"<h2>{html.escape(part[2:])}</h2>" if part.startswith("# ") else f"<p>{html.escape(part)}</p>"
    header = "".join(f"<th>{html.escape(cell)}</th>" for cell in part.header)
    lines = ("".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in part.rows)
    return f"<table><tr>{header}</tr>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 900px; margin: 2rem auto; padding: 0 1rem; color: #222; }}
table {{ border-collapse: collapse; margin: 1rem 0; }}
th, td {{ text-align: right; padding: .3rem .9rem; border-bottom: 1px solid #ddd; }}
th:first-child, td:first-child {{ text-align: left; }}
</style>
{head}
</head>
<body>
<h1>{title}</h1>
{body}
{script}
</body>
</html>
"""

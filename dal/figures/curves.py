"""Learning curves: of several strategies, and of one campaign with its honest interval."""

from collections.abc import Sequence
from dataclasses import dataclass

from bokeh.models import ColumnDataSource, HoverTool, Span, Whisker
from bokeh.plotting import figure

from dal.evidence.ruler import RoundRecord, wilson
from dal.figures.palette import color_of, marker_of
from dal.figures.style import plain_figure

_TOOLS = "pan,wheel_zoom,box_zoom,reset"


@dataclass(frozen=True)
class Curve:
    """A learning curve with its spread.

    Attributes
    ----------
    name : str
    labels : sequence of int
    accuracy : sequence of float
    low, high : sequence of float, optional
        Ends of the band: an interval over seeds, or of a measured share.
    biased : sequence of bool, optional
        Points that were measured on records chosen by a strategy: drawn hollow.
    """

    name: str
    labels: Sequence[int]
    accuracy: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    biased: Sequence[bool] | None = None


def learning_curves(
    curves: Sequence[Curve],
    target: float | None = None,
    y_label: str = "accuracy on test records",
    now: int | None = None,
) -> figure:
    """Draw accuracy against labels.

    Parameters
    ----------
    curves : sequence of Curve
        A curve without points appears in the legend only.
    target : float, optional
        An accuracy to mark by a line.
    y_label : str
    now : int, optional
        A number of labels to mark by a line.

    Returns
    -------
    bokeh.plotting.figure
    """
    plot = plain_figure(
        height=420,
        x_axis_label="labels",
        y_axis_label=y_label,
        tools=_TOOLS,
    )
    for index, curve in enumerate(curves):
        _draw_curve(plot, curve, index)
    if target is not None:
        plot.add_layout(Span(location=target, dimension="width", line_dash="dashed"))
    if now is not None:
        plot.add_layout(Span(location=now, dimension="height", line_dash="dotted"))
    plot.add_tools(HoverTool(tooltips=[("", "@name"), ("labels", "@labels"), ("accuracy", "@accuracy{0.000}@band")]))
    plot.legend.location = "bottom_right"
    plot.legend.click_policy = "mute"
    return plot


def accuracy_curve(history: Sequence[RoundRecord]) -> figure:
    """Draw a campaign's accuracy, round by round, with the Wilson interval of each.

    Each point is over the explore answers of one round, with the model that chose that round's batch: an honest
    measurement, though a wide one. Rounds without an explore answer have no point.

    Parameters
    ----------
    history : sequence of RoundRecord
        The campaign's rounds, oldest first, from :meth:`dal.campaign.view.View.history`.

    Returns
    -------
    bokeh.plotting.figure
    """
    measured = [record for record in history if record.explore_asked]
    ends = [wilson(record.explore_correct, record.explore_asked) for record in measured]
    curve = Curve(
        "accuracy on explore answers",
        [record.labels for record in measured],
        [record.explore_correct / record.explore_asked for record in measured],
        [low for low, _ in ends],
        [high for _, high in ends],
    )
    plot = plain_figure(height=320, x_axis_label="labels", y_axis_label="accuracy", tools=_TOOLS, y_range=(0, 1.02))
    _draw_curve(plot, curve, 0, whiskers=True)
    plot.add_tools(HoverTool(tooltips=[("labels", "@labels"), ("accuracy", "@accuracy{0.000}@band")]))
    plot.legend.visible = False
    return plot


def _draw_curve(plot: figure, curve: Curve, index: int, *, whiskers: bool = False) -> None:
    color = color_of(index)
    spread = curve.low is not None and curve.high is not None
    low = list(curve.low if curve.low is not None else curve.accuracy)
    high = list(curve.high if curve.high is not None else curve.accuracy)
    biased = list(curve.biased or [False] * len(curve.labels))
    columns: dict[str, Sequence[object]] = {
        "labels": list(curve.labels),
        "accuracy": list(curve.accuracy),
        "low": low,
        "high": high,
        "name": [curve.name] * len(curve.labels),
        "band": [f" ({a:.3f} to {b:.3f})" if spread else "" for a, b in zip(low, high, strict=True)],
        "fill": [0.0 if hollow else 1.0 for hollow in biased],
    }
    source = ColumnDataSource(data=columns)
    if spread and whiskers:
        plot.add_layout(
            Whisker(source=source, base="labels", lower="low", upper="high", line_color=color, line_width=1.5)
        )
    elif spread:
        plot.varea("labels", "low", "high", source=source, color=color, alpha=0.15, muted_alpha=0.03)
    named = {"legend_label": curve.name, "muted_alpha": 0.1}
    plot.line("labels", "accuracy", source=source, color=color, line_width=2.5, **named)
    plot.scatter(
        "labels", "accuracy", source=source, color=color, fill_alpha="fill", size=8, marker=marker_of(index), **named
    )

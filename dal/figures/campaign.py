"""Figures of a campaign's page besides its curve and its map: classes, criteria, people, time."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from bokeh.models import ColumnDataSource, FactorRange, HoverTool, Label, NumeralTickFormatter, Range1d, Span, Text
from bokeh.plotting import figure
from bokeh.transform import dodge

from dal.campaign.view import Pause
from dal.evidence.bias import Share
from dal.evidence.quality import Apart, Course
from dal.evidence.stopping import Verdict
from dal.figures.palette import ASKED, COLORS, color_of, marker_of
from dal.figures.style import plain_figure

_POOL = "#8A8F98"


@dataclass(frozen=True)
class Balance:
    """One class: its number of labels, and its share of the pool.

    Attributes
    ----------
    name : str
    labels : int
    new : int
        Labels of the newest round among these.
    pool_share : float or None
        Estimated share of the pool; None without evidence.
    pool_low, pool_high : float or None
        Ends of its interval.
    """

    name: str
    labels: int
    new: int = 0
    pool_share: float | None = None
    pool_low: float | None = None
    pool_high: float | None = None


@dataclass(frozen=True)
class Criterion:
    """A stopping criterion with its history.

    Attributes
    ----------
    name : str
    now : Verdict
    rounds : sequence of int
    values : sequence of float or None
        Its value after each of these rounds; None without enough evidence.
    """

    name: str
    now: Verdict
    rounds: Sequence[int]
    values: Sequence[float | None]


@dataclass(frozen=True)
class Annotator:
    """One annotator's work.

    Attributes
    ----------
    name : str
    answers : int
        Labels and skips.
    skipped : int
    median_seconds : float or None
        Median time of one answer; None where no times are known.
    """

    name: str
    answers: int
    skipped: int
    median_seconds: float | None = None


def class_balance(classes: Sequence[Balance]) -> figure:
    """Draw each class's share of the labels beside its estimated share of the pool, with its interval.

    Parameters
    ----------
    classes : sequence of Balance

    Returns
    -------
    bokeh.plotting.figure
    """
    total = max(1, sum(each.labels for each in classes))
    names = [each.name for each in classes]
    estimated = [each for each in classes if each.pool_share is not None]
    columns: dict[str, Sequence[object]] = {
        "name": names,
        "share": [each.labels / total for each in classes],
        "labels": [each.labels for each in classes],
        "new": [each.new for each in classes],
        "pool": [0.0 if each.pool_share is None else each.pool_share for each in classes],
        "share_text": [_share_text(each) for each in classes],
    }
    plot = plain_figure(
        height=max(170, 60 + 38 * len(classes)),
        y_range=FactorRange(factors=list(reversed(names))),
        x_range=Range1d(0, 1.05 * max([0.01, *_ends(classes), *[each.labels / total for each in classes]])),
        x_axis_label="share",
    )
    plot.xaxis.formatter = NumeralTickFormatter(format="0 %")
    source = ColumnDataSource(data=columns)
    bars = [
        plot.hbar(
            y=dodge("name", 0.17, range=plot.y_range),
            right="share",
            height=0.3,
            source=source,
            color=COLORS[0],
            legend_label="of the labels",
        )
    ]
    if estimated:
        bars.append(
            plot.hbar(
                y=dodge("name", -0.17, range=plot.y_range),
                right="pool",
                height=0.3,
                source=source,
                color=_POOL,
                hatch_pattern="/",
                hatch_color="#FFFFFF",
                hatch_alpha=0.6,
                legend_label="of the pool, estimated",
            )
        )
        _draw_intervals(plot, estimated)
    tooltips = [("class", "@name"), ("labels", "@labels, @new of them new"), ("pool", "@share_text")]
    plot.add_tools(HoverTool(tooltips=tooltips, renderers=bars))
    plot.ygrid.visible = False
    plot.add_layout(plot.legend[0], "above")
    plot.legend.orientation = "horizontal"
    return plot


def _ends(classes: Sequence[Balance]) -> list[float]:
    return [end for each in classes for end in (each.pool_share, each.pool_high) if end is not None]


def _share_text(each: Balance) -> str:
    if each.pool_share is None:
        return "not enough evidence"
    if each.pool_low is None or each.pool_high is None:
        return f"{each.pool_share:.1%}"
    return f"{each.pool_share:.1%} ({each.pool_low:.1%} to {each.pool_high:.1%})"


def _draw_intervals(plot: figure, classes: Sequence[Balance]) -> None:
    known = [each for each in classes if each.pool_low is not None and each.pool_high is not None]
    if known:
        source = ColumnDataSource(
            data={
                "name": [each.name for each in known],
                "low": [each.pool_low for each in known],
                "high": [each.pool_high for each in known],
            }
        )
        place = dodge("name", -0.17, range=plot.y_range)
        plot.segment(x0="low", x1="high", y0=place, y1=place, source=source, color=ASKED, line_width=2)


def regions(shares: Sequence[Share]) -> figure:
    """Draw the share of each region among the labels beside its share of the pool, the most asked for first.

    Parameters
    ----------
    shares : sequence of Share
        Such as from :func:`dal.evidence.bias.of_regions`.

    Returns
    -------
    bokeh.plotting.figure
    """
    balances = [Balance(each.name, each.labels, 0, each.pool.value, each.pool.low, each.pool.high) for each in shares]
    plot = class_balance(balances)
    plot.hover.tooltips = [("region", "@name"), ("labels", "@labels"), ("pool", "@share_text")]
    return plot


def stopping_criteria(criteria: Sequence[Criterion]) -> list[figure]:
    """Draw each criterion's value after every round against its threshold.

    Parameters
    ----------
    criteria : sequence of Criterion

    Returns
    -------
    list of bokeh.plotting.figure
        One a criterion: their values have different units.
    """
    return [_criterion(each) for each in criteria]


def _criterion(criterion: Criterion) -> figure:
    known = [(r, v) for r, v in zip(criterion.rounds, criterion.values, strict=True) if v is not None]
    title = f"{criterion.name}: {'STOP' if criterion.now.stop else 'go on'}"
    values = [value for _, value in known] + [criterion.now.threshold]
    margin = 0.1 * (max(values) - min(values)) or 0.1 * abs(max(values)) or 1.0
    plot = plain_figure(
        height=170,
        title=title,
        x_axis_label="round",
        x_range=Range1d(0.5, max([*criterion.rounds, 1]) + 0.5),
        y_range=Range1d(min(values) - margin, max(values) + margin),
    )
    plot.xaxis.ticker.desired_num_ticks = 6
    plot.xaxis.ticker.min_interval = 1
    plot.yaxis.ticker.desired_num_ticks = 4
    plot.add_layout(Span(location=criterion.now.threshold, dimension="width", line_dash="dashed"))
    source = ColumnDataSource(data={"round": [r for r, _ in known], "value": [v for _, v in known]})
    color = ASKED if criterion.now.stop else COLORS[0]
    line = plot.line("round", "value", source=source, color=color, line_width=2)
    dots = plot.scatter("round", "value", source=source, color=color, size=7)
    plot.add_tools(HoverTool(tooltips=[("round", "@round"), ("value", "@value{0.[0000]}")], renderers=[line, dots]))
    if not known:
        _annotate(plot, "not enough evidence yet")
    return plot


def _annotate(plot: figure, text: str) -> None:
    plot.add_layout(Label(x=12, y=12, x_units="screen", y_units="screen", text=text, text_font_size="13px"))


def annotators(people: Sequence[Annotator]) -> figure:
    """Draw how many records each annotator labelled and skipped, with the median seconds of an answer.

    Parameters
    ----------
    people : sequence of Annotator

    Returns
    -------
    bokeh.plotting.figure
    """
    names = [each.name for each in people]
    columns: dict[str, Sequence[object]] = {
        "name": names,
        "labelled": [each.answers - each.skipped for each in people],
        "skipped": [each.skipped for each in people],
        "answers": [each.answers for each in people],
        "pace": [_pace(each) for each in people],
        "share": [each.skipped / each.answers if each.answers else 0.0 for each in people],
    }
    most = max([1, *[each.answers for each in people]])
    plot = plain_figure(
        height=max(150, 70 + 34 * len(people)),
        y_range=FactorRange(factors=list(reversed(names))),
        x_range=Range1d(0, 1.35 * most),
        x_axis_label="answers",
    )
    source = ColumnDataSource(data=columns)
    bars = plot.hbar_stack(
        ["labelled", "skipped"],
        y="name",
        height=0.6,
        source=source,
        color=[COLORS[0], COLORS[4]],
        legend_label=["labelled", "skipped"],
    )
    plot.add_glyph(
        source, Text(x="answers", y="name", text="pace", x_offset=6, text_baseline="middle", text_font_size="12px")
    )
    tooltips = [("", "@name"), ("labelled", "@labelled"), ("skipped", "@skipped, @share{0 %}"), ("", "@pace")]
    plot.add_tools(HoverTool(tooltips=tooltips, renderers=list(bars)))
    plot.ygrid.visible = False
    plot.add_layout(plot.legend[0], "above")
    plot.legend.orientation = "horizontal"
    return plot


def courses(people: Sequence[Course]) -> figure:
    """Draw how often each person is right over time: windows of equally many judged answers, with their intervals.

    Parameters
    ----------
    people : sequence of Course

    Returns
    -------
    bokeh.plotting.figure
    """
    plot = plain_figure(height=240, x_axis_label="judged answers", y_axis_label="right")
    plot.yaxis.formatter = NumeralTickFormatter(format="0 %")
    drawn = []
    for at, each in enumerate(people):
        ends = np.cumsum([share.of for share in each.windows]).tolist()
        columns: dict[str, Sequence[object]] = {
            "end": ends,
            "right": [share.value for share in each.windows],
            "low": [share.interval[0] for share in each.windows],
            "high": [share.interval[1] for share in each.windows],
            "name": [each.name] * len(ends),
            "text": [share.text for share in each.windows],
        }
        source = ColumnDataSource(data=columns)
        plot.segment("end", "low", "end", "high", source=source, color=color_of(at), alpha=0.35)
        plot.line("end", "right", source=source, color=color_of(at), line_width=2, legend_label=each.name)
        drawn.append(
            plot.scatter(
                "end", "right", source=source, color=color_of(at), size=7, marker=marker_of(at), legend_label=each.name
            )
        )
        if each.change is not None:
            line = Span(location=each.change.after, dimension="height", line_color=color_of(at), line_dash="dashed")
            plot.add_layout(line)
    plot.add_tools(HoverTool(tooltips=[("", "@name"), ("right", "@text")], renderers=drawn))
    plot.add_layout(plot.legend[0], "right")
    return plot


def people_apart(people: Sequence[Apart]) -> figure:
    """Draw careless people apart from hard records: how often each is right, by the doubt of the records they got.

    Parameters
    ----------
    people : sequence of Apart

    Returns
    -------
    bokeh.plotting.figure
    """
    plot = plain_figure(height=240, x_axis_label="doubt of the records", y_axis_label="right", y_range=Range1d(0, 1.05))
    plot.yaxis.formatter = NumeralTickFormatter(format="0 %")
    plot.x_range = Range1d(0, max(0.1, 1.3 * max(each.doubt for each in people)))
    columns: dict[str, Sequence[object]] = {
        "doubt": [each.doubt for each in people],
        "right": [each.right for each in people],
        "name": [each.name for each in people],
        "text": [each.text for each in people],
    }
    source = ColumnDataSource(data=columns)
    points = plot.scatter("doubt", "right", source=source, color=COLORS[0], size=9)
    plot.add_glyph(
        source, Text(x="doubt", y="right", text="name", x_offset=8, text_baseline="middle", text_font_size="12px")
    )
    plot.add_tools(HoverTool(tooltips=[("", "@text")], renderers=[points]))
    return plot


def _pace(each: Annotator) -> str:
    skipped = f"{each.skipped / each.answers:.0%} skipped" if each.answers else ""
    pace = f"{each.median_seconds:.1f} s" if each.median_seconds is not None else ""
    return ", ".join(filter(None, [pace, skipped]))


def agreement_matrix(
    names: Sequence[str],
    agreement: npt.NDArray[np.floating],
    together: npt.NDArray[np.integer],
    *,
    what: str = "agreement",
) -> figure:
    """Draw how well each two annotators agree.

    Parameters
    ----------
    names : sequence of str
    agreement : ndarray of shape (n, n)
        Share of equal answers, or kappa, of each pair; NaN where they have no record in common.
    together : ndarray of shape (n, n), int
        Number of records that both have answered.
    what : str
        Name of the numbers.

    Returns
    -------
    bokeh.plotting.figure
    """
    pairs = [(i, j) for i in range(len(names)) for j in range(len(names)) if i != j]
    known = [not np.isnan(agreement[pair]) for pair in pairs]
    columns: dict[str, Sequence[object]] = {
        "first": [names[i] for i, _ in pairs],
        "second": [names[j] for _, j in pairs],
        # At most 0.55, so that the number on it is readable on light and on dark paper.
        "alpha": [
            0.55 * float(np.clip(agreement[pair], 0, 1)) if k else 0.0 for pair, k in zip(pairs, known, strict=True)
        ],
        "text": [f"{agreement[pair]:.2f}" if k else "-" for pair, k in zip(pairs, known, strict=True)],
        "n": [int(together[pair]) for pair in pairs],
    }
    plot = plain_figure(
        height=max(180, 90 + 44 * len(names)),
        title=what,
        x_range=FactorRange(factors=list(names)),
        y_range=FactorRange(factors=list(reversed(names))),
    )
    source = ColumnDataSource(data=columns)
    boxes = plot.rect(
        "first",
        "second",
        1,
        1,
        source=source,
        fill_color=COLORS[0],
        fill_alpha="alpha",
        line_color=_POOL,
    )
    plot.add_glyph(
        source,
        Text(x="first", y="second", text="text", text_align="center", text_baseline="middle", text_font_size="13px"),
    )
    tooltips = [("", "@first and @second"), (what, "@text"), ("records of both", "@n")]
    plot.add_tools(HoverTool(tooltips=tooltips, renderers=[boxes]))
    plot.grid.visible = False
    return plot


def throughput(hours: Sequence[float], labels_per_hour: Sequence[float]) -> figure:
    """Draw the pace of labelling.

    Parameters
    ----------
    hours : sequence of float
        Hours since the campaign's start, ascending.
    labels_per_hour : sequence of float
        Pace up to each of these times.

    Returns
    -------
    bokeh.plotting.figure
    """
    plot = plain_figure(height=220, x_axis_label="hours since the start", y_axis_label="labels an hour")
    source = ColumnDataSource(data={"hours": list(hours), "pace": list(labels_per_hour)})
    plot.varea("hours", 0, "pace", source=source, color=COLORS[0], alpha=0.15)
    line = plot.line("hours", "pace", source=source, color=COLORS[0], line_width=2)
    plot.y_range.start = 0
    plot.add_tools(
        HoverTool(tooltips=[("hours", "@hours{0.0}"), ("labels an hour", "@pace{0}")], renderers=[line], mode="vline")
    )
    return plot


def pauses(rounds: Sequence[Pause]) -> figure:
    """Draw the time before each batch: stacked seconds of training, scoring, selecting, and idleness.

    Parameters
    ----------
    rounds : sequence of Pause

    Returns
    -------
    bokeh.plotting.figure
    """
    parts = ["train", "score", "select", "idle"]
    columns: dict[str, Sequence[object]] = {"round": [str(each.round) for each in rounds]}
    columns |= {part: [getattr(each, part) for each in rounds] for part in parts}
    plot = plain_figure(
        height=260,
        x_range=FactorRange(factors=[str(each.round) for each in rounds]),
        x_axis_label="round",
        y_axis_label="seconds",
    )
    colors = [color_of(index) for index in range(3)] + [_POOL]
    bars = plot.vbar_stack(
        parts,
        x="round",
        width=0.7,
        source=ColumnDataSource(data=columns),
        color=colors,
        hatch_pattern=[" ", "/", "x", "-"],
        hatch_color="#FFFFFF",
        hatch_alpha=0.5,
        legend_label=parts,
    )
    tooltips = [("round", "@round"), *((part, f"@{part}{{0.0}} s") for part in parts)]
    plot.add_tools(HoverTool(tooltips=tooltips, renderers=list(bars)))
    plot.y_range.start = 0
    plot.xgrid.visible = False
    plot.add_layout(plot.legend[0], "right")
    return plot


def score_histogram(counts: npt.NDArray[np.integer] | Sequence[int], edges: tuple[float, float] = (0.0, 1.0)) -> figure:
    """Draw the number of scored records by score.

    Parameters
    ----------
    counts : array of int, shape (n_bins,)
        Records in equal bins, such as the ``counts`` of ``Tally.histogram``.
    edges : tuple of float, default=(0.0, 1.0)
        Where the first bin begins, and where the last one ends.

    Returns
    -------
    bokeh.plotting.figure
    """
    numbers = np.asarray(counts, dtype=np.int64)
    places = np.linspace(*edges, len(numbers) + 1)
    # The height, not the axis, is logarithmic: a logarithmic axis has no place for an empty bin.
    columns: dict[str, Sequence[object]] = {
        "left": places[:-1].tolist(),
        "right": places[1:].tolist(),
        "height": np.log10(1 + numbers).tolist(),
        "records": numbers.tolist(),
    }
    plot = plain_figure(
        height=220,
        x_axis_label="score (higher = ask first)",
        y_axis_label="records, log scale",
        x_range=Range1d(*edges),
    )
    source = ColumnDataSource(data=columns)
    bars = plot.quad(
        left="left", right="right", bottom=0, top="height", source=source, color=COLORS[0], line_color=None
    )
    top = int(np.ceil(np.log10(1 + max(1, *numbers.tolist()))))
    plot.yaxis.ticker = list(range(top + 1))
    plot.yaxis.major_label_overrides = {power: f"{10**power:,}" if power else "0" for power in range(top + 1)}
    plot.y_range.start = 0
    tooltips = [("scores", "@left to @right"), ("records", "@records{0,0}")]
    plot.add_tools(HoverTool(tooltips=tooltips, renderers=[bars]))
    return plot

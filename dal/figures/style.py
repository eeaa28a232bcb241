"""Colours, markers and themes of all figures."""

from collections.abc import Mapping
from typing import Any

from bokeh.embed import file_html
from bokeh.plotting import figure
from bokeh.resources import INLINE
from bokeh.themes import Theme

_PAPER = {"light": "#FFFFFF", "dark": "#16191D"}
_INK = {"light": "#24292F", "dark": "#D7DCE2"}
_FAINT = {"light": "#E3E6EA", "dark": "#30363D"}


def _theme(name: str) -> Theme:
    ink, faint, paper = _INK[name], _FAINT[name], _PAPER[name]
    font = "system-ui, sans-serif"
    attributes: Mapping[str, Mapping[str, Any]] = {
        "Plot": {"background_fill_color": None, "border_fill_color": None, "outline_line_color": None},
        "Axis": {
            "axis_line_color": faint,
            "major_tick_line_color": faint,
            "minor_tick_line_color": None,
            "axis_label_text_color": ink,
            "major_label_text_color": ink,
            "axis_label_text_font": font,
            "axis_label_text_font_style": "normal",
            "axis_label_text_font_size": "13px",
            "major_label_text_font": font,
            "major_label_text_font_size": "12px",
        },
        "Grid": {"grid_line_color": faint},
        "Title": {"text_color": ink, "text_font": font, "text_font_size": "14px"},
        "Legend": {
            "background_fill_color": paper,
            "background_fill_alpha": 0.85,
            "border_line_color": None,
            "label_text_color": ink,
            "label_text_font": font,
            "label_text_font_size": "12px",
        },
        "Text": {"text_color": ink, "text_font": {"value": font}},
        "Label": {"text_color": ink, "text_font": font},
        "Span": {"line_color": ink},
    }
    return Theme(json={"attrs": {model: dict(values) for model, values in attributes.items()}})


THEMES: Mapping[str, Theme] = {"light": _theme("light"), "dark": _theme("dark")}
"""Paper and ink, for ``bokeh.embed.json_item(figure, theme=...)``.

The paper itself is the page's: figures are transparent."""


def page_of(plot: figure, title: str) -> str:
    """Return a figure as a page of HTML that opens anywhere, and fetches nothing."""
    page: str = file_html(plot, INLINE, title, theme=THEMES["light"])
    return page


def plain_figure(*, height: int, tools: str = "", **options: Any) -> figure:  # noqa: ANN401 - Bokeh's own options
    """Make a figure as wide as its container, without a logo, with a toolbar only where there are tools."""
    options.setdefault("sizing_mode", "stretch_width")
    plot = figure(height=height, tools=tools, toolbar_location="above" if tools else None, **options)
    plot.toolbar.logo = None
    plot.toolbar.autohide = True
    plot.min_border_right = 12
    return plot

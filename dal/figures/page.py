"""The page that holds figures, tables and text in one file."""

import html
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from bokeh.embed import json_item
from bokeh.plotting import figure
from bokeh.resources import Resources

from dal.figures.style import THEMES


@dataclass(frozen=True)
class Table:
    """Rows of text under a header."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


Part: TypeAlias = str | figure | Table
"""What a page is made of."""


# The core alone: widgets, data tables and WebGL would make a page three times as long.
_BOKEH = Resources(mode="inline", components=["bokeh"], log_level="warn")


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
    places = iter(range(len(plots)))
    body = "\n".join(
        f'<div id="figure-{next(places)}"></div>' if isinstance(part, figure) else _as_html(part) for part in parts
    )
    Path(path).write_text(
        _PAGE.format(
            title=html.escape(title),
            head=_BOKEH.render() if plots else "",
            body=body,
            script=_SCRIPT.format(items=as_script_json(_items(plots))) if plots else "",
        ),
        encoding="utf-8",
    )


def _items(plots: Sequence[figure]) -> dict[str, list[object]]:
    return {
        name: [json_item(plot, f"figure-{place}", theme=theme) for place, plot in enumerate(plots)]
        for name, theme in THEMES.items()
    }


def as_script_json(value: object) -> str:
    r"""Write a value as JSON that may stand inside of a script element: no text in it can end the element.

    Examples
    --------
    >>> as_script_json(["</script>"])
    '["\\u003c/script\\u003e"]'
    """
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _as_html(part: str | Table) -> str:
    if isinstance(part, str):
        return f"<h2>{html.escape(part[2:])}</h2>" if part.startswith("# ") else f"<p>{html.escape(part)}</p>"
    header = "".join(f"<th>{html.escape(cell)}</th>" for cell in part.header)
    lines = ("".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in part.rows)
    return f"<table><tr>{header}</tr>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


# Both themes are in the page: figures follow the reader's setting, also when it changes at sunset.
_SCRIPT = """<script type="application/json" id="figures">{items}</script>
<script>
const figures = JSON.parse(document.getElementById("figures").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");
function draw() {{
  for (const item of figures[dark.matches ? "dark" : "light"]) {{
    document.getElementById(item.target_id).replaceChildren();
    Bokeh.embed.embed_item(item);
  }}
}}
dark.addEventListener("change", draw);
draw();
</script>"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
:root {{ --paper: #ffffff; --ink: #24292f; --line: #d8dde3; }}
@media (prefers-color-scheme: dark) {{ :root {{ --paper: #16191d; --ink: #d7dce2; --line: #30363d; }} }}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 900px; margin: 2rem auto; padding: 0 1rem;
  color: var(--ink); background: var(--paper); }}
table {{ border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto; }}
th, td {{ text-align: right; padding: .3rem .9rem; border-bottom: 1px solid var(--line); }}
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

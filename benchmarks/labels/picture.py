"""Learning curves as a small SVG, in the colours of dal's own figures."""

import html
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from dal.figures import COLORS

WIDTH, HEIGHT = 640, 360
LEFT, RIGHT, TOP, BOTTOM = 56, 190, 28, 40
SHOWN = ("default", "default, as shipped", "margin", "badge", "cluster_margin", "coverage", "random")
"""More curves than these cannot be told apart; the tables have them all."""


def picture(results: Sequence[Mapping]) -> str:
    """Draw the mean learning curves of one set, and the accuracy at which random sampling ends."""
    by_name = {each["strategy"]: each for each in results if "curve" in each}
    curves = [by_name[name] for name in SHOWN if name in by_name]
    x = np.concatenate([each["labels"] for each in curves])
    y = np.concatenate([each["curve"] for each in curves])
    frame = _Frame(float(x.min()), float(x.max()), float(y.min()), float(y.max()))
    target = curves[0]["random_final"]
    parts = [*frame.axes(), frame.across(target)]
    ends = _apart([frame.y(each["curve"][-1]) for each in curves], 14)
    for index, (each, end) in enumerate(zip(curves, ends, strict=True)):
        color = COLORS[index % len(COLORS)] if each["strategy"] != "random" else "#777777"
        points = " ".join(
            f"{frame.x(a):.1f},{frame.y(b):.1f}" for a, b in zip(each["labels"], each["curve"], strict=True)
        )
        parts.append(f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="2"/>')
        last = frame.x(each["labels"][-1]), frame.y(each["curve"][-1])
        parts.append(
            f'<line x1="{last[0]:.1f}" y1="{last[1]:.1f}" x2="{WIDTH - RIGHT + 12}" y2="{end:.1f}" stroke="{color}"'
            ' stroke-width="1" stroke-dasharray="2 2"/>'
        )
        text = html.escape(each["strategy"])
        parts.append(f'<text x="{WIDTH - RIGHT + 16}" y="{end + 4:.1f}" fill="{color}">{text}</text>')
    name, seeds = results[0]["set"], max(each["seeds"] for each in results)
    title = f'<text x="{LEFT}" y="16" font-weight="bold">{html.escape(name)}, mean of {seeds} seeds</text>'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
        ' font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>'
        f"{title}{''.join(parts)}</svg>\n"
    )


class _Frame:
    """Where values stand on the picture."""

    def __init__(self, left: float, right: float, low: float, high: float) -> None:
        margin = 0.04 * (high - low or 1.0)
        self.left, self.right, self.low, self.high = left, right, low - margin, high + margin

    def x(self, value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (value - self.left) / (self.right - self.left)

    def y(self, value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (self.high - value) / (self.high - self.low)

    def axes(self) -> list[str]:
        parts = [
            f'<rect x="{LEFT}" y="{TOP}" width="{WIDTH - LEFT - RIGHT}" height="{HEIGHT - TOP - BOTTOM}"'
            ' fill="none" stroke="#999999"/>'
        ]
        for tick in _ticks(self.left, self.right):
            x = self.x(tick)
            parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" stroke="#eeeeee"/>')
            parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{tick:,.0f}</text>')
        for tick in _ticks(self.low, self.high):
            y = self.y(tick)
            parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#eeeeee"/>')
            parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:.2f}</text>')
        middle = (LEFT + WIDTH - RIGHT) / 2
        return [*parts, f'<text x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">labels</text>']

    def across(self, value: float) -> str:
        y = self.y(value)
        place = f'x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"'
        return f'<line {place} stroke="#777777" stroke-dasharray="5 4"/>'


def _ticks(low: float, high: float) -> list[float]:
    """Return about five round values between two others."""
    raw = (high - low) / 5
    power = 10.0 ** np.floor(np.log10(raw))
    step = float(min((factor * power for factor in (1, 2, 5, 10)), key=lambda each: abs(each - raw)))
    first = int(np.ceil(low / step - 1e-9))
    return [index * step for index in range(first, int(np.floor(high / step + 1e-9)) + 1)]


def _apart(places: Sequence[float], distance: float) -> list[float]:
    """Move labels down until none covers another."""
    order = np.argsort(places)
    moved = list(places)
    for before, after in pairwise(order):
        moved[after] = max(moved[after], moved[before] + distance)
    return moved

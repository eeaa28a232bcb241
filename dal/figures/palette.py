"""Colours and markers of classes and strategies, on every page; Bokeh is not needed for them."""

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8A8F98")
"""Okabe and Ito's palette for colour-blind readers, without the two that light or dark paper swallows."""

MARKERS = ("circle", "square", "triangle", "diamond", "inverted_triangle", "hex", "star", "square_pin", "triangle_pin")
"""A second cue. Their number is coprime to that of the colours, so that 63 classes look different."""

ASKED = "#E8336D"
"""Colour of the batch that is being asked, drawn over everything else."""


def color_of(index: int) -> str:
    """Return the colour of a class or strategy."""
    return COLORS[index % len(COLORS)]


def marker_of(index: int) -> str:
    """Return the marker of a class or strategy, by Bokeh's name."""
    return MARKERS[index % len(MARKERS)]

"""Records drawn as images."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from bokeh.models import ColumnDataSource, Range1d, Text
from bokeh.plotting import figure

from dal.figures.style import plain_figure


def record_images(
    images: npt.NDArray[np.floating], captions: Sequence[str], title: str, columns: int = 10, width: int = 860
) -> figure:
    """Draw records that are small grey images side by side.

    Parameters
    ----------
    images : ndarray of shape (n, height, width)
        Each is stretched to its own range.
    captions : sequence of str
        Text under each image.
    title : str
    columns : int, default=10
    width : int, default=860
        Pixels.

    Returns
    -------
    bokeh.plotting.figure
    """
    rows = -(-len(images) // columns)
    plot = plain_figure(
        width=width,
        height=int(width / columns * rows * 1.28) + 40,
        x_range=Range1d(start=-0.1, end=columns),
        y_range=Range1d(start=-1.28 * rows, end=0.12),
        title=title,
        sizing_mode="scale_width",
    )
    plot.axis.visible = plot.grid.visible = False
    x = [float(index % columns) for index in range(len(images))]
    y = [-1.28 * (index // columns) - 1.0 for index in range(len(images))]
    plot.image(image=[_dark_on_light(image) for image in images], x=x, y=y, dw=0.9, dh=0.98, palette="Greys256")
    middles = {"x": [left + 0.45 for left in x], "y": [bottom - 0.02 for bottom in y], "text": list(captions)}
    # The glyph and not plot.text, which would override the theme's colour.
    plot.add_glyph(
        ColumnDataSource(data=middles),
        Text(x="x", y="y", text="text", text_align="center", text_baseline="top", text_font_size={"value": "11px"}),
    )
    return plot


def _dark_on_light(image: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    # Bokeh draws the first row at the bottom, and its greys begin with black; ink is where the image is high.
    low, high = float(np.min(image)), float(np.max(image))
    return (high - image[::-1]) / (high - low if high > low else 1.0)

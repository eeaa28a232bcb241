"""Bokeh figures of results, for pages and notebooks alike.

Every figure is a function from plain values to a Bokeh figure. A theme sets the colours of paper and ink when the
figure is shown: ``bokeh.embed.json_item(figure, theme=THEMES["dark"])``. The colours of classes and strategies are
distinguishable on light and dark paper and for colour-blind readers, and their markers without any colour.
"""

from typing import TYPE_CHECKING

from dal._lazy import names_of

if TYPE_CHECKING:
    from dal.campaign.view import Pause
    from dal.figures.batch import BatchMap, Points, batch_map, bias_map
    from dal.figures.campaign import (
        Annotator,
        Balance,
        Criterion,
        agreement_matrix,
        annotators,
        class_balance,
        courses,
        pauses,
        people_apart,
        regions,
        score_histogram,
        stopping_criteria,
        throughput,
    )
    from dal.figures.curves import Curve, accuracy_curve, learning_curves
    from dal.figures.palette import COLORS, MARKERS, color_of, marker_of
    from dal.figures.records import record_images
    from dal.figures.style import THEMES, page_of
    from dal.figures.table import Table
else:
    __getattr__ = names_of(
        __name__,
        {
            "dal.campaign.view": ("Pause",),
            "dal.figures.batch": ("BatchMap", "Points", "batch_map", "bias_map"),
            "dal.figures.campaign": (
                "Annotator",
                "Balance",
                "Criterion",
                "agreement_matrix",
                "annotators",
                "class_balance",
                "courses",
                "pauses",
                "people_apart",
                "regions",
                "score_histogram",
                "stopping_criteria",
                "throughput",
            ),
            "dal.figures.curves": ("Curve", "accuracy_curve", "learning_curves"),
            "dal.figures.records": ("record_images",),
            "dal.figures.palette": ("COLORS", "MARKERS", "color_of", "marker_of"),
            "dal.figures.style": ("THEMES", "page_of"),
            "dal.figures.table": ("Table",),
        },
        extra="web",
    )

__all__ = [
    # learning curves
    "Curve",
    "accuracy_curve",
    "learning_curves",
    # a campaign
    "Annotator",
    "Balance",
    "Criterion",
    "Pause",
    "agreement_matrix",
    "annotators",
    "class_balance",
    "courses",
    "pauses",
    "people_apart",
    "regions",
    "score_histogram",
    "stopping_criteria",
    "throughput",
    # records
    "BatchMap",
    "Points",
    "batch_map",
    "bias_map",
    "record_images",
    "Table",
    # looks
    "COLORS",
    "MARKERS",
    "THEMES",
    "color_of",
    "marker_of",
    "page_of",
]

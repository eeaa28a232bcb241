"""The loop with a known oracle: replays of campaigns, and comparisons of strategies on the same pool."""

from typing import TYPE_CHECKING

from dal._lazy import names_of

if TYPE_CHECKING:
    from dal.replay.comparing import compare, compare_side_by_side
    from dal.replay.curves import NO_CLASS, Comparison, Needed, Replay, saved_labels
    from dal.replay.play import TestSet, simulate, view_of
else:
    __getattr__ = names_of(
        __name__,
        {
            "dal.replay.comparing": ("compare", "compare_side_by_side"),
            "dal.replay.curves": ("NO_CLASS", "Comparison", "Needed", "Replay", "saved_labels"),
            "dal.replay.play": ("TestSet", "simulate", "view_of"),
        },
    )

__all__ = [
    "NO_CLASS",
    "Comparison",
    "Needed",
    "Replay",
    "TestSet",
    "compare",
    "compare_side_by_side",
    "saved_labels",
    "simulate",
    "view_of",
]

"""Figures say what they were given: their columns by hand, and no text that becomes markup."""

import json

import numpy as np
import pytest
from bokeh.embed import json_item
from bokeh.models import GlyphRenderer, HBar, Line, Quad, Rect, Scatter, Span, Whisker
from bokeh.plotting import figure

from dal import figures
from dal.evidence.bias import of_regions
from dal.evidence.quality import Apart, Change, Course, Share
from dal.evidence.ruler import RoundRecord, wilson
from dal.evidence.stopping import Verdict
from dal.figures import Annotator, Balance, BatchMap, Criterion, Curve, Pause, Points


def glyphs(plot: figure, kind: type) -> list[GlyphRenderer]:
    return [each for each in plot.renderers if isinstance(each.glyph, kind)]


def columns(plot: figure, kind: type, index: int = 0) -> dict[str, list[object]]:
    return {name: list(values) for name, values in glyphs(plot, kind)[index].data_source.data.items()}


def test_a_curve_has_its_band_and_marks_biased_points_hollow() -> None:
    curve = Curve("margin", [20, 40], [0.5, 0.75], [0.4, 0.7], [0.6, 0.8], biased=[False, True])
    plot = figures.learning_curves([curve, Curve("random", [20], [0.5])], target=0.9)
    drawn = columns(plot, Scatter)
    assert drawn["labels"] == [20, 40]
    assert drawn["fill"] == [1.0, 0.0]
    assert drawn["band"] == [" (0.400 to 0.600)", " (0.700 to 0.800)"]
    assert columns(plot, Scatter, 1)["band"] == [""]
    assert [each.location for each in plot.center if isinstance(each, Span)] == [0.9]
    first, second = glyphs(plot, Scatter)
    assert first.glyph.marker != second.glyph.marker
    marked = figures.learning_curves([curve], target=0.9, now=30)
    spans = [(each.dimension, each.location) for each in marked.center if isinstance(each, Span)]
    assert spans == [("width", 0.9), ("height", 30)]


def test_a_campaigns_curve_stands_on_the_explore_answers_of_each_round() -> None:
    history = [RoundRecord(1, 0, 0, 0, 0.0, 90), RoundRecord(2, 20, 3, 4, 0.5, 80), RoundRecord(3, 40, 5, 5, 1.0, 70)]
    plot = figures.accuracy_curve(history)
    drawn = columns(plot, Scatter)
    assert drawn["labels"] == [20, 40]
    assert drawn["accuracy"] == [0.75, 1.0]
    assert list(zip(drawn["low"], drawn["high"], strict=True)) == [wilson(3, 4), wilson(5, 5)]
    assert any(isinstance(each, Whisker) for each in plot.center)
    figures.accuracy_curve([])


def test_class_balance_compares_shares_of_labels_with_shares_of_the_pool() -> None:
    plot = figures.class_balance([Balance("ham", 30, 5, 0.9, 0.8, 0.95), Balance("spam", 10)])
    drawn = columns(plot, HBar)
    assert drawn["share"] == [0.75, 0.25]
    assert drawn["pool"] == [0.9, 0.0]
    assert drawn["share_text"] == ["90.0% (80.0% to 95.0%)", "not enough evidence"]
    assert len(glyphs(plot, HBar)) == 2
    assert len(glyphs(figures.class_balance([Balance("ham", 0), Balance("spam", 0)]), HBar)) == 1


def test_regions_are_drawn_with_the_most_asked_for_first() -> None:
    shares = of_regions(np.array([4, 4, 4, 9]), np.array([0, 1, 1, 0]), np.array([9] * 8 + [4, 7]), ["ham", "spam"])
    plot = figures.regions(shares)
    drawn = columns(plot, HBar)
    assert drawn["name"] == ["2, mostly spam", "3, no label", "1, mostly ham"]
    assert drawn["share"] == [0.75, 0.0, 0.25]
    assert drawn["pool"] == [0.1, 0.1, 0.8]
    assert plot.hover[0].tooltips[0] == ("region", "@name")


def test_the_map_of_bias_shows_which_share_is_larger_in_each_field() -> None:
    density = np.zeros((64, 64), np.int64)
    density[2:4, 6:8] = 5  # one field of the coarse map
    density[60, 63] = 20
    places = np.array([[3.2, 1.1], [3.9, 1.9], [3.5, 1.5], [40.0, 0.0], [np.nan, 1.0], [31.5, 0.5]])
    plot = figures.bias_map(density, (0, 32, 0, 32), places, ("x", "y"))
    drawn = columns(plot, Rect)
    fields = {
        place: found
        for *place, found in zip(drawn["x"], drawn["y"], drawn["side"], strict=True)
        for place in [tuple(place)]
    }
    assert fields == {
        (3.5, 1.5): "more among the labels",
        (31.5, 0.5): "more among the labels",
        (31.5, 30.5): "more in the pool",
    }
    assert dict(zip(drawn["labels"], drawn["pool"], strict=True)) == {
        "75.0%": "50.0%",
        "25.0%": "0.0%",
        "0.0%": "50.0%",
    }
    assert drawn["alpha"][0] == 1


def test_criteria_show_value_threshold_and_history() -> None:
    plots = figures.stopping_criteria(
        [
            Criterion("plateau", Verdict("plateau", True, 0.001, 0.002, ""), [1, 2, 3], [None, 0.01, 0.001]),
            Criterion("target_score", Verdict("target_score", False, None, 0.9, ""), [], []),
        ]
    )
    assert columns(plots[0], Scatter) == {"round": [2, 3], "value": [0.01, 0.001]}
    assert [each.location for each in plots[0].center if isinstance(each, Span)] == [0.002]
    assert [plot.title.text for plot in plots] == ["plateau: STOP", "target_score: go on"]


def batch_of(n: int, in_batch: int) -> Points:
    x = np.arange(n, dtype=float)
    batch = np.arange(n) < in_batch
    return Points(x, -x, [f"r{i}" for i in range(n)], np.where(batch, -1, np.arange(n) % 2), batch, [0.5] * n)


def test_the_map_shows_labels_by_class_and_the_batch_as_rings() -> None:
    density = np.array([[0, 1], [10, 1000]])
    plot = figures.batch_map(BatchMap(density, (0, 5, -5, 0), batch_of(5, 2), ("ham", "spam")))
    ham, spam, ring = glyphs(plot, Scatter)
    assert list(ham.data_source.data["record"]) == ["r2", "r4"]
    assert list(spam.data_source.data["x"]) == [3.0]
    assert list(ring.data_source.data["record"]) == ["r0", "r1"]
    assert list(ring.data_source.data["label"]) == ["not yet", "not yet"]
    assert ring.glyph.fill_color is None
    assert ham.glyph.marker != spam.glyph.marker
    (image,) = plot.renderers[0].data_source.data["image"]
    alpha = image >> 24
    assert alpha[0, 0] == 0
    assert alpha[0, 1] < alpha[1, 0] < alpha[1, 1] == 200


def test_the_map_draws_at_most_5000_points_and_all_of_the_batch() -> None:
    plot = figures.batch_map(BatchMap(np.ones((2, 2), int), (0, 1, 0, 1), batch_of(20_000, 400), ("a", "b")))
    counts = [len(each.data_source.data["x"]) for each in glyphs(plot, Scatter)]
    assert sum(counts) == 5000
    assert counts[2] == 400
    assert plot.title.text == "5,000 of 20,000 records drawn"


def test_people_pairs_and_pauses() -> None:
    plot = figures.annotators([Annotator("ann", 20, 5, 3.25), Annotator("bob", 0, 0)])
    drawn = columns(plot, HBar)
    assert (drawn["labelled"], drawn["skipped"], drawn["pace"]) == ([15, 0], [5, 0], ["3.2 s, 25% skipped", ""])
    matrix = np.array([[1.0, -0.2, np.nan], [-0.2, 1, 0.5], [np.nan, 0.5, 1]])
    drawn = columns(figures.agreement_matrix(["a", "b", "c"], matrix, np.full((3, 3), 7)), Rect)
    assert drawn["text"] == ["-0.20", "-", "-0.20", "0.50", "-", "0.50"]
    assert drawn["alpha"] == pytest.approx([0.0, 0.0, 0.0, 0.275, 0.0, 0.275])
    plot = figures.pauses([Pause(2, 50, 1, 2, 3), Pause(3, 60, 1, 2, 3)])
    assert list(plot.renderers[3].data_source.data["idle"]) == [50, 60]


def test_people_over_time_and_apart() -> None:
    change = Change(40, Share(38, 40), Share(10, 40), Share(30, 33), Share(30, 34))
    ann = Course("ann", 80, (Share(38, 40), Share(10, 40)), change)
    bob = Course("bob", 90, (Share(40, 45), Share(41, 45)))
    plot = figures.courses([ann, bob])
    drawn = [each.data_source.data for each in plot.renderers if isinstance(each.glyph, Line)]
    assert [list(each["end"]) for each in drawn] == [[40, 80], [45, 90]]
    assert [list(each["right"]) for each in drawn] == [[0.95, 0.25], [40 / 45, 41 / 45]]
    assert [each.location for each in plot.center if isinstance(each, Span)] == [40]
    drawn = columns(figures.people_apart([Apart("eve", 9, 0.6, 0.3), Apart("ann", 8, 0.9, 0.1)]), Scatter)
    assert (drawn["doubt"], drawn["right"], drawn["name"]) == ([0.3, 0.1], [0.6, 0.9], ["eve", "ann"])


def test_the_score_histogram_is_logarithmic_and_keeps_empty_bins() -> None:
    drawn = columns(figures.score_histogram([0, 9, 999]), Quad)
    assert drawn["height"] == pytest.approx([0.0, 1.0, 3.0])
    assert drawn["left"] == pytest.approx([0, 1 / 3, 2 / 3])
    figures.score_histogram([0, 0])
    assert columns(figures.score_histogram([1, 2], (-4.0, 4.0)), Quad)["right"] == [0.0, 4.0]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_figure_can_be_themed_and_sent_as_json(theme: str) -> None:
    plots = [
        figures.throughput([0.5, 1.0], [100, 120]),
        figures.score_histogram([1, 2]),
        figures.record_images(np.zeros((2, 3, 3)), ["a", "b"], "chosen"),
    ]
    ink = {"light": "#24292F", "dark": "#D7DCE2"}[theme]
    for plot in plots:
        assert ink in json.dumps(json_item(plot, theme=figures.THEMES[theme]))


def test_classes_differ_by_colour_or_marker() -> None:
    assert len({(figures.color_of(code), figures.marker_of(code)) for code in range(63)}) == 63

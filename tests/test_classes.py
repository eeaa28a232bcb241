"""Which class a label names, however it was written."""

import csv
from collections.abc import Sequence
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dal.classes import (
    Classes,
    alike,
    class_flaw,
    codes_of,
    distinct_names,
    is_missing,
    listed,
    names_of,
    spelled,
    text_of,
)
from dal.errors import LabelError


@pytest.mark.parametrize(
    "labels",
    [
        [0, 1, 1, 0],
        ["0", "1", "1", "0"],
        [0.0, 1.0, 1.0, 0.0],
        [False, True, True, False],
        np.array([0, 1, 1, 0], np.uint8),
        np.array([0, 1, 1, 0], np.float32),
        np.array([b"0", b"1", b"1", b"0"]),
        np.array(["0.0", "1.0", "01", " 0 "]),
        np.array([0, "1", np.int64(1), np.str_("0")], object),
        pd.Series([0, 1, 1, 0], dtype="Int64"),
        pd.Series([0, 1, 1, 0]).astype("category"),
        pd.Series(["0", "1", "1", "0"], dtype="string"),
        np.ma.array([0, 1, 1, 0]),
        [Decimal(0), Decimal("1.00"), Decimal("1E+0"), Decimal("-0")],
    ],
    ids=lambda labels: f"{type(labels).__name__}-{getattr(labels, 'dtype', '')}",
)
@pytest.mark.parametrize("codes", [False, True])
def test_numbers_are_names_whatever_holds_them(labels: Sequence[object], codes: bool) -> None:
    assert codes_of(labels, ["1", "0"], what="y", codes=codes).tolist() == [1, 0, 0, 1]


GAPS = [
    None,
    np.nan,
    float("nan"),
    pd.NA,
    pd.NaT,
    np.datetime64("NaT", "s"),
    np.ma.masked,
    "",
    "  ",
    b"",
    np.float32("nan"),
]


@pytest.mark.parametrize("gap", GAPS, ids=repr)
def test_no_label_is_unlabelled_or_refused_and_never_a_class(gap: object) -> None:
    assert is_missing(gap)
    labels = np.empty(3, object)
    labels[:] = ["ham", gap, "spam"]
    assert codes_of(labels, ["ham", "spam"], what="y", gaps=True).tolist() == [0, -1, 1]
    with pytest.raises(LabelError, match="`y` must hold a class for each record, got 1 without one"):
        codes_of(labels, ["ham", "spam"], what="y")
    names, codes = distinct_names(labels, what="y")
    assert (names, codes.tolist()) == (("ham", "spam"), [0, -1, 1])


@pytest.mark.parametrize("text", ["nan", "NaN", "None", "<NA>", "NaT", "null"])
def test_what_programs_write_for_no_label_is_none_unless_a_class_is_called_so(text: str) -> None:
    assert codes_of(["a", text], ["a", "b"], what="y", gaps=True).tolist() == [0, -1]
    assert codes_of(["a", text], ["a", text], what="y").tolist() == [0, 1]


def test_masked_labels_are_unlabelled_and_what_lies_below_the_mask_is_not_read() -> None:
    labels = np.ma.array([0, 99, 1], mask=[False, True, False])
    assert codes_of(labels, ["0", "1"], what="y", gaps=True).tolist() == [0, -1, 1]
    texts = np.ma.array(["ham", "eggs", "spam"], mask=[False, True, False])
    assert codes_of(texts, ["ham", "spam"], what="y", gaps=True).tolist() == [0, -1, 1]


def test_codes_are_taken_only_where_told_and_where_no_class_is_called_by_a_number() -> None:
    assert codes_of(np.array([1, 0, 2]), ["a", "b", "c"], what="y", codes=True).tolist() == [1, 0, 2]
    assert codes_of([True, False], ["a", "b"], what="y", codes=True).tolist() == [1, 0]
    assert codes_of(["b", "a"], ["a", "b"], what="y", codes=True).tolist() == [1, 0]
    with pytest.raises(LabelError, match=r"0 = ham, 1 = spam.*pass the names"):
        codes_of([0, 1], ["ham", "spam"], what="y")
    for codes in (False, True):
        # The 1 and the 2 are names and the 0 is none, while all three could be positions.
        with pytest.raises(LabelError, match=r"'0' is no class of 1, 2, 3.*positions they would be 0 = 1, 1 = 2"):
            codes_of([0, 1, 2], ["1", "2", "3"], what="y", codes=codes)
        with pytest.raises(LabelError, match="no class"):
            codes_of([0, 1], ["True", "False"], what="y", codes=codes)
    with pytest.raises(LabelError, match="codes 0 to 1, got 2"):
        codes_of([0, 2], ["a", "b"], what="y", codes=True)
    with pytest.raises(LabelError, match="got -1"):
        codes_of([0, -1], ["a", "b"], what="y", codes=True)


def test_a_label_that_may_be_either_of_two_classes_is_refused() -> None:
    known = Classes(["1", "01", "1.0"])
    assert [known.find(text) for text in ("1", "01", "1.0")] == [0, 1, 2]
    with pytest.raises(LabelError, match=r"'001' may be '1' or '01' or '1.0'"):
        known.find("001")


def test_names_decide_by_their_letters() -> None:
    known = Classes(["caf\u00e9", "Ham", "true", "-1"])
    assert known.find("cafe\u0301") == 0
    assert [known.find(value) for value in (True, "TRUE", -1, -1.0, "-1.0")] == [2, 2, 3, 3, 3]
    for value in ("ham", "cafe", [1], {"a": 1}, 10**5000, "\ud83d", b"\xff", 1.5, float("inf"), False):
        with pytest.raises(LabelError):
            known.find(value)


@pytest.mark.parametrize(
    "labels", [[[0, 1], [1, 0]], np.eye(2), np.array(1), "ham", "01", b"10", {"a": 1}, None], ids=repr
)
def test_labels_of_another_shape_are_refused(labels: object) -> None:
    with pytest.raises(LabelError):
        codes_of(labels, ["0", "1"], what="y")


def test_the_classes_of_labels() -> None:
    names, codes = distinct_names(np.array([-1, 1, 1, -1]), what="y")
    assert (names, codes.tolist()) == (("-1", "1"), [0, 1, 1, 0])
    names, codes = distinct_names(pd.Series([10.0, np.nan, 9.0]), what="y")
    assert (names, codes.tolist()) == (("9", "10"), [1, -1, 0])
    names, codes = distinct_names(np.array([1, "b", None, 1], object), what="y")
    assert (names, codes.tolist()) == (("1", "b"), [0, 1, -1, 0])
    with pytest.raises(LabelError, match="names of classes"):
        distinct_names(np.array([[1], [2]], object).tolist(), what="y")


def test_classes_may_be_numbers() -> None:
    assert names_of(np.unique([3, 1, 3])) == ("1", "3")  # type: ignore[arg-type]
    assert names_of([True, False]) == ("True", "False")
    for wrong in ("ham,spam", [None, "a"], [[1], "a"], {"a", "b"}, {"a": 1, "b": 0}, (name for name in "ab"), 2, None):
        with pytest.raises(LabelError, match="classes"):
            names_of(wrong)


def test_a_number_that_is_none_is_no_label() -> None:
    assert [is_missing(Decimal(text)) for text in ("NaN", "sNaN", "0")] == [True, True, False]
    assert codes_of([Decimal("sNaN"), Decimal("1E+2")], ["100", "b"], what="y", gaps=True).tolist() == [-1, 0]
    assert text_of(Decimal("1E+999999")) == "1E+999999"


def test_names_that_programs_take_for_one_another() -> None:
    assert alike(["b", "01", "x", "1.0"]) == ("01", "1.0")
    assert alike(["True", "b", "true"]) == ("True", "true")
    assert alike(["1", "2", "a", "A", "True"]) is None


@pytest.mark.parametrize("sign", ["\x07", "\n", "\t", "\r", "\x7f", "\x85", "\u2028", "\u2029", "\ufffe"])
def test_a_class_is_called_by_what_can_be_shown(sign: str) -> None:
    assert class_flaw(f"a{sign}b") is not None
    assert class_flaw("a, \"b\" = 'c' <&> 😀 é") is None


@given(st.lists(st.integers(-3, 12), min_size=1), st.permutations([str(number) for number in range(-3, 13)]))
def test_every_way_to_hold_the_same_numbers_gives_the_same_codes(numbers: list[int], names: list[str]) -> None:
    expected = [names.index(str(number)) for number in numbers]
    for labels in (numbers, np.array(numbers), np.array(numbers, float), [str(number) for number in numbers]):
        assert codes_of(labels, names, what="y").tolist() == expected


def test_listed_classes_can_be_parted_again() -> None:
    names = ["pop", "rock, hard", '"pop"', " pop", "18:00", "naïve 🐱", 'a","b']
    shown = listed(names)
    assert next(csv.reader([shown], skipinitialspace=True)) == names
    assert shown.split(", ")[-3:] == ["18:00", "naïve 🐱", '"a"",""b"']
    assert spelled("a\u2028b\n") == '"a\\u2028b\\n"'
    assert spelled("18:00", counted=True) == '"18:00"'

"""Texts from outside: the same people, the guard of spreadsheets, JSON that is none."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dal.texts import (
    as_seconds,
    as_time,
    brief,
    flaw,
    folded,
    guarded,
    name_flaw,
    parsed,
    shown_name,
    time_flaw,
    unguarded,
)

FORMULAS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


@given(st.text(st.sampled_from("'=+-@\t\r\n5a \uff0b\uff1d")) | st.text())
@example("'=")
@example("''=1")
@example("-5")
@example("'")
def test_the_guard_is_undone_exactly(text: str) -> None:
    assert unguarded(guarded(text)) == text
    assert unguarded(guarded(guarded(text))) == guarded(text)
    assert not guarded(text).startswith(FORMULAS)


@pytest.mark.parametrize(
    "spelling",
    [
        "Zoë Ann",
        "ZOË ANN",
        "zoe\u0308 ann",
        " Zoë  Ann\t",
        "\ufeffZoë\u00a0Ann",
        "Z\u200boë Ann",
        "\uff3aoë\u3000Ann\n",
    ],
)
def test_spellings_of_one_name(spelling: str) -> None:
    assert folded(spelling) == folded("Zoë Ann")
    assert name_flaw(spelling) is None


def test_other_names_stay_others() -> None:
    names = ["ann", "anne", "an n", "ana", "ann@example.com", "user 1", "user 11", "李", "Ольга"]
    assert len({folded(name) for name in names}) == len(names)


@given(st.text())
def test_a_key_is_the_key_of_itself_and_of_the_shown_name(name: str) -> None:
    assert folded(folded(name)) == folded(name)
    assert folded(shown_name(name)) == folded(name)
    assert shown_name(shown_name(name)) == shown_name(name)


@pytest.mark.parametrize("name", ["", " ", "\u200b", "\ufeff\u00a0", "a\x00b", "\ud800", "x" * 201, "\ufdfa" * 150])
def test_what_is_no_name(name: str) -> None:
    assert name_flaw(name) is not None


def test_what_cannot_be_kept() -> None:
    assert flaw("fine 🐱") is None
    assert "NUL" in (flaw("a\x00") or "")
    assert "surrogate" in (flaw("\udc00") or "")


def test_times_at_the_ends_of_the_calendar() -> None:
    east, west = timezone(timedelta(hours=14)), timezone(timedelta(hours=-12))
    for moment in (
        datetime(1, 1, 1, tzinfo=east),
        datetime(9999, 12, 31, 23, tzinfo=west),
        datetime(1, 6, 1, tzinfo=UTC),
    ):
        assert "is not between" in (time_flaw(moment) or "")
    assert time_flaw(datetime(2026, 1, 1, tzinfo=east)) is None
    assert "time zone" in (time_flaw(datetime(2026, 1, 1)) or "")
    assert as_time("0001-01-01T00:00:00+14:00") is not None
    for value in (10**400, float("nan"), float("inf"), "soon", True, None, "2026-01-01T00:00:00"):
        assert as_time(value) is None
    for value in (10**400, float("nan"), float("inf"), -1, "5", True, None):
        assert as_seconds(value) is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"{", "not JSON"),
        (b"\xff", "not UTF-8"),
        (b"1" * 5000, "too many digits"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"a":' * 200_000, "nested too deeply"),
    ],
)
def test_json_that_is_none_says_why(text: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parsed(text)


def test_the_beginning_of_anything_can_be_told() -> None:
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    assert brief(deep) == "a list"
    assert brief("\ud83d" * 3) == '"???"'
    assert brief(list(range(100)), 8) == "[0, 1, 2…"
    assert brief(10**5000) == "a int"

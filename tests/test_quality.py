"""How well people answer: over time, by their pace, and apart from how hard their records are."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text

from dal import Pool
from dal.campaign import Answer, CampaignStore, Given, Labelling, Queue, Settings, Storage
from dal.campaign.quality import Quality
from dal.campaign.view import status
from dal.cli import main
from dal.evidence.agreement import agreement
from dal.evidence.quality import FIRST_LOOK, Course, apart, courses, judgements
from dal.evidence.votes import dawid_skene
from dal.explorer import report
from tests import databases
from tests.batches import batch_of

FIRST_ROW = 1_000


# -- judgements --------------------------------------------------------------------------------------------------------

ANSWERS = st.dictionaries(
    st.tuples(st.integers(70, 76), st.sampled_from("abcde")), st.integers(-1, 3), min_size=1, max_size=30
)


@given(ANSWERS, st.dictionaries(st.integers(70, 76), st.integers(0, 3), max_size=2))
def test_an_answer_is_judged_by_gold_or_by_most_others(said: dict[tuple[int, str], int], gold: dict[int, int]) -> None:
    rows = [row for row, _ in said]
    right, by_gold = judgements(rows, list(said.values()), gold)
    for (row, who), code, found, known in zip(said, said.values(), right.tolist(), by_gold.tolist(), strict=True):
        assert known == (row in gold)
        votes = Counter(c for (r, other), c in said.items() if r == row and other != who and c >= 0).most_common()
        if code < 0:
            expected = -1
        elif row in gold:
            expected = int(code == gold[row])
        elif not votes or (len(votes) > 1 and votes[0][1] == votes[1][1]):
            expected = -1
        else:
            expected = int(code == votes[0][0])
        assert found == expected


# -- courses -----------------------------------------------------------------------------------------------------------


class Work(NamedTuple):
    """Answers in the order of time."""

    rows: np.ndarray
    names: list[str]
    codes: np.ndarray

    def first(self, n: int) -> "Work":
        return Work(self.rows[:n], self.names[:n], self.codes[:n])

    def followed(self, gold: Mapping[int, int] | None = None, seconds: np.ndarray | None = None) -> dict[str, Course]:
        n = len(self.rows)
        known = courses(*self, gold or {}, np.arange(n), np.full(n, np.nan) if seconds is None else seconds)
        return {each.name: each for each in known}

    def changed(self) -> set[str]:
        return {name for name, each in self.followed().items() if each.change}


def work(
    seed: int, n: int, people: int, overlap: int, right: float, *, late: float | None = None, harder: float = 0.0
) -> Work:
    """Return `n` answers of each person.

    From the middle on, p0 is right in a share of `late`; all are less often right by `harder` at the end.
    """
    rng = np.random.default_rng(seed)
    records = n * people // overlap
    who = np.stack([rng.permutation(people)[:overlap] for _ in range(records)])
    share = np.full(who.shape, right) - harder * (np.arange(records) / records)[:, None]
    if late is not None:
        share = np.where((np.arange(records) >= records // 2)[:, None] & (who == 0), late, share)
    truth = rng.integers(0, 4, records)[:, None]
    codes = np.where(rng.random(who.shape) < share, truth, (truth + rng.integers(1, 4, who.shape)) % 4)
    rows = FIRST_ROW + np.repeat(np.arange(records), overlap)
    return Work(rows, [f"p{each}" for each in who.ravel()], codes.ravel())


def of_gold(right: Sequence[int]) -> tuple[np.ndarray, list[str], np.ndarray, dict[int, int]]:
    """Return ann's answers to gold records, which are right or not."""
    rows = FIRST_ROW + np.arange(len(right))
    return rows, ["ann"] * len(right), 1 - np.asarray(right, np.int64), dict.fromkeys(rows.tolist(), 0)


def test_steady_people_are_not_named() -> None:
    assert sum(bool(work(seed, 200, 4, 2, 0.85).changed()) for seed in range(40)) <= 2


def test_harder_records_are_nobodys_change() -> None:
    assert sum(bool(work(seed, 300, 5, 2, 0.95, harder=0.4).changed()) for seed in range(20)) <= 1


@pytest.mark.slow
@pytest.mark.parametrize("right", [0.6, 0.85, 0.95])
def test_steady_people_are_not_named_at_any_look(right: float) -> None:
    named = 0
    for seed in range(200):
        done = work(seed, 400, 5, 2, right)
        upto = np.linspace(len(done.rows) / 10, len(done.rows), 10).astype(int)
        named += any(done.first(n).changed() for n in upto)
    assert named <= 10, "5 % of the campaigns"


@pytest.mark.parametrize(("people", "overlap"), [(5, 2), (3, 3)])
def test_one_who_gets_worse_is_named_with_the_time_and_alone(people: int, overlap: int) -> None:
    found = [work(seed, 400, people, overlap, 0.9, late=0.4).followed() for seed in range(6)]
    assert [{name for name, each in known.items() if each.change} for known in found].count({"p0"}) >= 5
    for known in found:
        change = known["p0"].change
        if change is not None:
            assert abs(change.after / known["p0"].judged - 0.5) < 0.15
            assert change.since.value < 0.6 < change.before.value
            assert change.others_since.value > 0.7


def test_a_change_is_where_the_plain_sum_is_farthest_from_the_line() -> None:
    done = work(3, 400, 5, 2, 0.9, late=0.4)
    right, _ = judgements(done.rows, done.codes, {})
    own = [int(each) for name, each in zip(done.names, right, strict=True) if name == "p0" and each >= 0]
    own = own[: max(each for each in _looks_at() if each <= len(own))]
    away = [abs(sum(own[:t]) - t / len(own) * sum(own)) for t in range(1, len(own))]
    known = done.followed()["p0"].change
    assert known is not None
    assert known.after == 1 + away.index(max(away))
    assert (known.before.right, known.before.of) == (sum(own[: known.after]), known.after)


def test_the_order_of_the_columns_changes_nothing() -> None:
    done = work(5, 120, 3, 3, 0.9, late=0.3)
    order = np.random.default_rng(0).permutation(len(done.rows))
    # No two of one person take the same time: which of them is faster would be a matter of the order.
    seconds = np.arange(len(order)) * 7919 % len(order)
    mixed = [done.rows[order], [done.names[at] for at in order], done.codes[order], {}, order, seconds[order]]
    assert courses(*done, {}, np.arange(len(order)), seconds) == courses(*mixed)  # type: ignore[arg-type]


def test_nothing_changes_between_answers_that_came_at_once() -> None:
    done = work(3, 400, 5, 2, 0.9, late=0.4)
    at_once = np.zeros(len(done.rows), np.int64)
    assert done.changed() == {"p0"}
    assert not any(each.change for each in courses(*done, {}, at_once, np.full(len(at_once), np.nan)))


def test_two_people_cannot_tell_who_of_them_changed_but_gold_can() -> None:
    assert not work(0, 400, 2, 2, 0.95, late=0.4).changed()
    rows, names, codes, gold = of_gold([1] * 100 + [0, 1] * 50)
    known = Work(rows, names, codes).followed(gold)["ann"]
    assert known.change is not None
    assert "ann is right less often after 100 judged answers" in known.warnings[0]
    better = Work(rows, names, codes[::-1]).followed(gold)["ann"]
    assert "ann is right more often after 100 judged answers" in better.warnings[0]


def test_careless_haste_is_named_and_quick_ease_is_not() -> None:
    rng = np.random.default_rng(0)
    seconds = rng.lognormal(1, 1, 600)
    seconds[:3] = (np.nan, -5.0, np.inf)
    fast = seconds < np.quantile(seconds[3:], 0.33)
    for careless in (True, False):
        right = (rng.random(600) < np.where(fast == careless, 0.6, 0.95)).astype(np.int64)
        rows, names, codes, gold = of_gold(right.tolist())
        found = Work(rows, names, codes).followed(gold, seconds)["ann"]
        assert found.hasty == careless
        assert found.fast is not None
        assert found.middle is not None
        assert found.slow is not None
        thirds = _thirds(right[3:].tolist(), seconds[3:].tolist())
        assert [(sum(each), len(each)) for each in thirds] == [
            (each.right, each.of) for each in (found.fast, found.middle, found.slow)
        ]
        assert any("when fast" in each for each in found.warnings) == careless


def _thirds(right: list[int], seconds: list[float]) -> list[list[int]]:
    """Return the answers of each third, window by window, of those at the last look."""
    n = max(each for each in _looks_at() if each <= len(right))
    count = n // 30
    thirds: list[list[int]] = [[], [], []]
    start = 0
    for window in range(count):
        size = n // count + (window < n % count)
        order = sorted(range(start, start + size), key=lambda at: seconds[at])
        for third in range(3):
            of = size // 3 + (third < size % 3)
            thirds[third] += [right[at] for at in order[:of]]
            order = order[of:]
        start += size
    return thirds


def _looks_at() -> list[int]:
    return [math.ceil(FIRST_LOOK * 1.25**look - 1e-9) for look in range(13)]


def paced(right: np.ndarray, seconds: np.ndarray, n: int) -> Course:
    """Return ann's course after `n` answers to gold records."""
    rows, names, codes, gold = of_gold(right[:n].tolist())
    return Work(rows, names, codes).followed(gold, seconds[:n])["ann"]


@pytest.mark.parametrize("careless", [False, True])
def test_haste_is_told_from_practice_on_ever_harder_records(careless: bool) -> None:
    """People speed up and records get harder: the fast answers are the late ones, which are wrong more often."""
    rng, share = np.random.default_rng(7), np.linspace(0.97, 0.72, 600)
    named = 0
    for _ in range(200):
        pace = rng.lognormal(0, 0.3, 600)
        seconds = np.linspace(12, 5, 600) * pace
        right = (rng.random(600) < share - 0.35 * (careless & (pace < 0.88))).astype(np.int64)
        named += paced(right, seconds, 600).hasty
    assert named >= 190 if careless else named <= 10, "5 % of 200"


def test_pace_is_looked_at_as_seldom_as_changes() -> None:
    rng = np.random.default_rng(2)
    right, seconds = rng.integers(0, 2, 60), rng.lognormal(1, 1, 60)
    found = {n: paced(right, seconds, n) for n in range(40, 60)}
    assert len({(each.fast, each.middle, each.slow) for each in found.values()}) == 2
    assert all(each.fast == found[40 if n < 50 else 50].fast for n, each in found.items())


def test_people_who_come_later_change_no_verdict() -> None:
    """The chance is spent in the order in which people come: those who came before keep their share of it."""
    rng = np.random.default_rng(4)
    right = np.r_[np.ones(60, np.int64), rng.random(90) < 0.75].astype(np.int64)
    rows, names, codes, gold = of_gold(right.tolist() * 12)
    names = [f"p{at // len(right):02}" for at in range(len(rows))]
    alone = Work(rows, names, codes).first(len(right)).followed(gold)
    together = Work(rows, names, codes).followed(gold)
    assert alone["p00"].change is not None
    assert together["p00"] == alone["p00"]
    assert together["p11"].change is None, "the same answers, with a smaller share"
    # A name early in the alphabet is no early coming.
    late = Work(rows, ["p00" if each == "p11" else "a" if each == "p00" else each for each in names], codes)
    assert late.followed(gold)["p00"].change is None
    assert late.followed(gold)["a"].change == alone["p00"].change


@pytest.mark.slow
@pytest.mark.parametrize("right", [0.6, 0.75, 0.9])
def test_people_who_come_one_after_another_are_named_as_seldom(right: float) -> None:
    rng, named = np.random.default_rng(11), 0
    for _ in range(120):
        done = of_gold((rng.random(1_600) < right).astype(np.int64).tolist())
        names, seconds = [f"p{at // 400}" for at in range(1_600)], rng.lognormal(1, 0.5, 1_600)
        looks = [400 * person + n for person in range(4) for n in _looks_at() if n <= 400]
        named += any(
            each.change or each.hasty
            for n in looks
            for each in Work(done[0][:n], names[:n], done[2][:n]).followed(done[3], seconds[:n]).values()
        )
    assert named <= 6, "5 % of the campaigns"


def test_few_answers_say_nothing() -> None:
    rows, names, codes, gold = of_gold([1] * 39)
    found = Work(rows, names, codes).followed(gold)["ann"]
    assert found == Course("ann", 39)
    assert "40 are needed" in found.text
    assert courses([], [], [], {}, [], []) == ()


# -- hard records and careless people ----------------------------------------------------------------------------------


def test_hard_records_are_told_from_careless_people() -> None:
    """Hal and four colleagues get hard records, cat gets easy ones and answers them without care."""
    rng = np.random.default_rng(1)
    rows, who, codes = [], [], []
    for row in range(FIRST_ROW, FIRST_ROW + 900):
        hard = row % 3 == 0
        names = ("ann", "bob", "eve", "joe", "hal") if hard or row % 3 == 1 else ("ann", "bob", "eve", "joe", "cat")
        for name in names:
            share = 0.75 if hard else {"cat": 0.75}.get(name, 0.97)
            rows.append(row)
            who.append(name)
            codes.append(row // 3 % 2 if rng.random() < share else 1 - row // 3 % 2)
    columns = rows, who, codes
    found = {each.name: each for each in apart(dawid_skene(*columns, n_classes=2, seed=0), *columns)}
    agrees = {name: agreement(*columns, seed=0, repeats=2).with_others(name)[0] for name in ("hal", "cat")}
    assert agrees["hal"] == pytest.approx(agrees["cat"], abs=0.05), "agreement alone cannot tell them apart"
    assert found["cat"].right < found["hal"].right - 0.05
    assert found["hal"].doubt > 1.5 * found["cat"].doubt


# -- a campaign --------------------------------------------------------------------------------------------------------

CHOSEN = Settings(
    "pool.zarr", ("cat", "dog"), estimator="logistic", strategy="margin", batch_size=60, labelling=Labelling(overlap=3)
)


@pytest.fixture
def campaign(tmp_path: Path) -> CampaignStore:
    X = np.random.default_rng(0).standard_normal((2_000, 2)).astype(np.float32)
    pool = Pool.build(X, tmp_path / "pool.zarr")
    chosen = replace(CHOSEN, pool=str(tmp_path / "pool.zarr"), storage=Storage(database=databases.fresh()))
    made = CampaignStore.make(tmp_path / "c", chosen, pool_fingerprint=pool.fingerprint, n_rows=2_000)
    frozen = {
        "pool_fingerprint": pool.fingerprint,
        "n_rows": 2_000,
        "k": 60,
        "explore": 0.0,
        "seed": 0,
        "strategy": "margin",
    }
    rows = list(range(FIRST_ROW, FIRST_ROW + 60))
    made.rounds.open(made.rounds.freeze(**frozen), batch_of(rows, [f"r{row}" for row in rows]))
    return made


def answered(campaign: CampaignStore) -> None:
    """Have ann get worse from row 1,030 on; bob and eve are always right. A machine is always wrong."""
    with campaign.database.writing() as connection:
        connection.execute(text("INSERT INTO people (key, name) VALUES ('robot', 'robot')"))
        connection.execute(text("INSERT INTO machines (name) VALUES ('robot')"))
    for row in range(FIRST_ROW, FIRST_ROW + 60):
        codes = {"ann": (row + (row >= FIRST_ROW + 30)) % 2, "bob": row % 2, "eve": row % 2}
        given = [
            (name, [Given(f"{name} {row}", row, "submitted", code, lead_time=float(row % 7))])
            for name, code in codes.items()
        ]
        assert [each.result for (each,) in Queue(campaign).answer_together(given)] == ["new"] * 3


@pytest.mark.usefixtures("backend")
def test_people_are_followed_through_a_campaign(campaign: CampaignStore) -> None:
    answered(campaign)
    campaign.answers.add([Answer(FIRST_ROW, f"r{FIRST_ROW}", "robot", "submitted", 1)], source="machine")
    found = {each.name: each for each in Quality(campaign).courses}
    assert sorted(found) == ["ann", "bob", "eve"], "a machine is not a person"
    assert [each.judged for each in found.values()] == [60, 30, 30]
    change = found["ann"].change
    assert change is not None
    assert change.after == 30
    assert found["ann"].fast is not None
    assert status(campaign).courses == Quality(campaign).courses
    assert Quality(campaign).apart[0].name == "ann"


def test_the_order_is_that_of_the_database_not_of_a_browsers_clock(campaign: CampaignStore) -> None:
    answered(campaign)
    known = Quality(campaign).courses
    with campaign.database.writing() as connection:
        connection.execute(text("UPDATE answers SET answered_at = '1999-01-01T00:00:00+00:00' WHERE id % 2 = 0"))
    assert Quality(campaign).courses == known


def test_answers_of_a_file_without_times_came_at_once(campaign: CampaignStore) -> None:
    answered(campaign)
    with campaign.database.writing() as connection:
        connection.execute(
            text(
                "UPDATE answers SET event_id = NULL, lead_time = NULL, answered_at = '2030-01-01T00:00:00+00:00',"
                " received_at = '2029-01-01T00:00:00+00:00'"
            )
        )
    found = {each.name: each for each in Quality(campaign).courses}
    assert found["ann"].judged == 60
    assert found["ann"].change is None
    assert found["ann"].fast is None
    assert "too few answers tell their seconds" in found["ann"].text


def test_the_command_line_tells_how_well_people_answer(campaign: CampaignStore) -> None:
    empty = CliRunner().invoke(main, ["annotator", "quality", str(campaign.directory)])
    assert "Nobody has answered yet." in empty.output
    answered(campaign)
    told = CliRunner().invoke(main, ["annotator", "quality", str(campaign.directory)])
    assert told.exit_code == 0, told.output
    assert "ann: of 60 judged answers" in told.output
    assert "ann is right less often after 30 judged answers" in told.output
    assert "ann: right in" in told.output
    shown = CliRunner().invoke(main, ["status", str(campaign.directory)])
    assert "ann is right less often after 30 judged answers" in shown.output


def test_the_report_tells_how_well_people_answer(campaign: CampaignStore, monkeypatch: pytest.MonkeyPatch) -> None:
    answered(campaign)
    # The pool of this campaign is a name only, and cannot be set beside the labels.
    monkeypatch.setattr(report, "_bias", lambda _: [])
    tables = {each["title"]: each["rows"] for each in report._tables(campaign, status(campaign))}
    (ann,) = (row for row in tables["Annotators over time"] if row[0] == "ann")
    assert ann[:3] == ["ann", "60", "100%, 50%, 0%"]
    assert [row[0] for row in tables["Careless people and hard records"]] == ["ann", "bob", "eve"]
    ((warning,),) = tables["Warnings of people"]
    assert warning.startswith("ann is right less often after 30 judged answers")

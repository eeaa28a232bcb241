import math
from dataclasses import MISSING, fields

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dal.errors import SettingsError
from dal.evidence.ruler import RoundRecord, wilson
from dal.evidence.stopping import (
    All,
    ClassificationChange,
    Criterion,
    MaxHours,
    MaxLabels,
    MaxRounds,
    OverallUncertainty,
    Plateau,
    PoolExhausted,
    StabilizingPredictions,
    TargetScore,
    advice,
    first_stop,
    parse,
)


def history(*explore: tuple[int, int], first: int = 4, left: int = 1000) -> list[RoundRecord]:
    """Rounds with these (correct, asked) explore answers, the newest last."""
    return [
        RoundRecord(first + i, 100 * (i + 1), correct, asked, float(i), left - i)
        for i, (correct, asked) in enumerate(explore)
    ]


@pytest.mark.parametrize(
    ("criterion", "below", "at"),
    [
        (MaxLabels(500), {"labels": 499}, {"labels": 500}),
        (MaxRounds(3), {"history": history((1, 1), (1, 1))}, {"history": history((1, 1), (1, 1), (1, 1))}),
        (MaxHours(2.5), {"now_hours": 2.49}, {"now_hours": 2.5}),
        (PoolExhausted(), {"history": history((1, 1), left=1)}, {"history": history((1, 1), left=0)}),
    ],
)
def test_budgets_stop_at_their_value_and_not_before(criterion: Criterion, below: dict, at: dict) -> None:
    quiet = {"history": history((1, 1)), "labels": 1, "now_hours": 0.1}
    assert not criterion.judge(**(quiet | below)).stop
    assert criterion.judge(**(quiet | at)).stop


def test_verdicts_carry_value_threshold_and_reason() -> None:
    verdict = MaxLabels(5000).judge(history((1, 1)), 412, 0.0)
    assert (verdict.criterion, verdict.stop, verdict.value, verdict.threshold) == ("max_labels", False, 412, 5000)
    assert verdict.reason == "412 of 5000 labels are known"


@given(st.lists(st.integers(0, 80).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), min_size=3, max_size=7))
@settings(max_examples=60, deadline=None)
def test_target_score_tests_the_lower_end_over_its_rounds(explore: list[tuple[int, int]]) -> None:
    verdict = TargetScore(0.8, rounds=3).judge(history(*explore), 0, 0.0)
    correct, asked = (sum(column) for column in zip(*explore[-3:], strict=True))
    if asked == 0:
        assert (verdict.stop, verdict.value) == (False, None)
    else:
        low, _ = wilson(correct, asked)
        assert verdict.value == low
        assert verdict.stop == (low >= 0.8)


def test_target_score_is_not_reached_by_one_lucky_batch() -> None:
    verdict = TargetScore(0.95).judge(history((5, 5), (5, 5), (5, 5)), 300, 1.0)
    assert not verdict.stop
    assert verdict.value == wilson(15, 15)[0]
    assert "73 explore answers" in verdict.reason


@pytest.mark.parametrize("score", [0.5, 0.8, 0.95, 0.99])
def test_the_fewest_answers_it_names_are_the_fewest(score: float) -> None:
    said = TargetScore(score, rounds=1).judge(history((1, 1)), 0, 0.0).reason
    fewest = int(said.split("takes ")[1].split()[0])
    assert TargetScore(score, rounds=1).judge(history((fewest, fewest)), 0, 0.0).stop
    assert not TargetScore(score, rounds=1).judge(history((fewest - 1, fewest - 1)), 0, 0.0).stop


def test_too_few_rounds_are_no_evidence() -> None:
    verdict = TargetScore(0.5, rounds=3).judge(history((99, 99), (99, 99)), 0, 0.0)
    assert (verdict.stop, verdict.value) == (False, None)
    assert verdict.reason == "not enough evidence: 2 of 3 rounds are closed"
    verdict = Plateau(rounds=2).judge(history(*[(90, 100)] * 3), 0, 0.0)
    assert (verdict.stop, verdict.value) == (False, None)
    assert verdict.reason == "not enough evidence: 3 of 4 rounds are closed"
    assert PoolExhausted().judge([], 0, 0.0).reason == "not enough evidence: no round is closed"


def test_plateau_compares_pooled_accuracies_of_the_two_windows() -> None:
    # the first round is in neither window; pooled, the rounds of many answers count for more: 0.9 then 0.908
    rounds = history((0, 100), (80, 100), (190, 200), (10, 50), (444, 450))
    before, now = 270 / 300, 454 / 500
    verdict = Plateau(gain=0.01, rounds=2).judge(rounds, 0, 0.0)
    assert verdict.value == pytest.approx(now - before)
    assert verdict.stop
    assert not Plateau(gain=0.005, rounds=2).judge(rounds, 0, 0.0).stop
    assert "0.900 to 0.908" in verdict.reason


def test_plateau_is_not_seen_in_a_handful_of_answers() -> None:
    few = history(*[(5, 5)] * 6)
    assert Plateau().judge(few, 0, 0.0).value is None
    assert "15 and 15 explore answers" in Plateau().judge(few, 0, 0.0).reason
    assert Plateau(answers=15).judge(few, 0, 0.0).stop


def settled(*kappas: float | None, changed: float | None = None, sure: float | None = None) -> list[RoundRecord]:
    """Rounds whose models agree with their predecessors on the stop set by these kappas, the newest last."""
    return [
        RoundRecord(4 + i, 100 * i, 0, 0, float(i), 900, kappa=kappa, changed=changed, uncertainty=sure)
        for i, kappa in enumerate(kappas)
    ]


def test_predictions_are_stable_by_the_mean_kappa_of_the_last_rounds() -> None:
    # worked by hand: (0.75 + 0.875 + 1.0) / 3 = 0.875; the first rounds, 0.2 and none, are outside of the window
    verdict = StabilizingPredictions(0.875).judge(settled(None, 0.2, 0.75, 0.875, 1.0), 0, 0.0)
    assert (verdict.value, verdict.stop) == (0.875, True)
    assert not StabilizingPredictions(0.875).judge(settled(None, 0.2, 0.75, 0.875, 0.999), 0, 0.0).stop
    assert "mean kappa of 0.8750 over 3 rounds" in verdict.reason
    early = StabilizingPredictions().judge(settled(None, 1.0, 1.0), 0, 0.0)
    assert (early.stop, early.value) == (False, None)
    assert "2 of 3 pairs" in early.reason


def test_a_round_without_a_model_interrupts_no_comparison_of_others() -> None:
    # a batch chosen by coverage has no model: the rounds around it still count
    assert StabilizingPredictions(0.95).judge(settled(0.96, None, 0.95, 0.97), 0, 0.0).stop


def test_uncertainty_and_change_look_at_the_newest_model() -> None:
    rounds = [*settled(0.9, changed=0.3, sure=0.4), *settled(0.99, changed=0.002, sure=0.04)]
    assert OverallUncertainty().judge(rounds, 0, 0.0).stop
    assert not OverallUncertainty(0.04).judge(rounds, 0, 0.0).stop
    assert ClassificationChange(0.002).judge(rounds, 0, 0.0).stop
    assert not ClassificationChange().judge(rounds, 0, 0.0).stop
    assert "changed 0.20%" in ClassificationChange().judge(rounds, 0, 0.0).reason
    for criterion in (OverallUncertainty(), ClassificationChange()):
        for nothing in ([], history((1, 1))):
            verdict = criterion.judge(nothing, 0, 0.0)
            assert (verdict.stop, verdict.value) == (False, None)


def test_all_stops_only_when_each_part_does() -> None:
    both = All((StabilizingPredictions(0.9), MaxLabels(500)))
    stable = settled(0.95, 0.95, 0.95)
    assert [both.judge(stable, labels, 0.0).stop for labels in (499, 500)] == [False, True]
    assert not both.judge(settled(0.95, 0.5, 0.95), 500, 0.0).stop
    verdict = both.judge(stable, 499, 0.0)
    assert (verdict.criterion, verdict.value, verdict.threshold) == ("stabilizing_predictions and max_labels", 1, 2)
    assert verdict.reason.startswith("stabilizing_predictions met: ")
    assert "max_labels not met: 499 of 500" in verdict.reason


def test_the_first_stop_is_told_by_what_was_known_then() -> None:
    # labels known before rounds 4..8: 0, 100, 200, 300, 400; so after round 5 closed 200 were known, at hour 2
    rounds = settled(0.5, 0.995, 0.995, 0.995, 0.4)
    assert first_stop(MaxLabels(150), rounds) == 5
    assert first_stop(MaxHours(3), rounds) == 6
    assert first_stop(StabilizingPredictions(), rounds) == 7  # and no more after round 8: it would have ended before
    assert not StabilizingPredictions().judge(rounds, 500, 9.0).stop
    assert first_stop(MaxLabels(500), rounds) is None
    assert first_stop(MaxLabels(1), []) is None


def test_advice_leaves_out_what_was_chosen() -> None:
    assert [type(each) for each in advice([])] == [
        StabilizingPredictions,
        Plateau,
        OverallUncertainty,
        ClassificationChange,
    ]
    chosen = [parse("plateau=0.1 and stabilizing_predictions"), parse("max_labels=5")]
    assert [type(each) for each in advice(chosen)] == [OverallUncertainty, ClassificationChange]


@pytest.mark.parametrize(
    "make",
    [
        lambda: StabilizingPredictions(0),
        lambda: StabilizingPredictions(1.5),
        lambda: StabilizingPredictions(rounds=0),
        lambda: OverallUncertainty(0),
        lambda: OverallUncertainty(1),
        lambda: ClassificationChange(-0.1),
        lambda: ClassificationChange(1),
        lambda: All((MaxLabels(5),)),
        lambda: MaxLabels(0),
        lambda: MaxRounds(0),
        lambda: MaxHours(0),
        lambda: MaxHours(math.inf),
        lambda: MaxHours(math.nan),
        lambda: TargetScore(1.0),
        lambda: TargetScore(95),
        lambda: TargetScore(math.nan),
        lambda: TargetScore(0.9, rounds=0),
        lambda: Plateau(gain=2),
        lambda: Plateau(rounds=0),
        lambda: Plateau(answers=0),
    ],
)
def test_impossible_settings_are_refused(make: object) -> None:
    with pytest.raises(SettingsError, match=r"must have .*, got"):
        make()


@pytest.mark.parametrize(
    ("text", "criterion"),
    [
        ("max_labels=5000", MaxLabels(5000)),
        ("max_rounds=7", MaxRounds(7)),
        (" max_hours = 1.5 ", MaxHours(1.5)),
        ("target_score=0.95", TargetScore(0.95)),
        ("target_score=0.95,rounds=5", TargetScore(0.95, rounds=5)),
        ("plateau", Plateau()),
        ("plateau=0.01, rounds=4, answers=50", Plateau(0.01, 4, 50)),
        ("pool_exhausted", PoolExhausted()),
        ("stabilizing_predictions=0.98,rounds=2", StabilizingPredictions(0.98, 2)),
        ("overall_uncertainty", OverallUncertainty(0.05)),
        ("classification_change=0.001", ClassificationChange(0.001)),
        ("plateau=0.01 and  max_rounds=7", All((Plateau(0.01), MaxRounds(7)))),
    ],
)
def test_parse_reads_what_people_write(text: str, criterion: Criterion) -> None:
    assert parse(text) == criterion


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("max_label=5", "got 'max_label'"),
        ("", "got ''"),
        ("max_labels", "lacks its value"),
        ("max_labels=", "n must be a whole number"),
        ("max_labels=many", "got 'many'"),
        ("max_labels=5.5", "n must be a whole number"),
        ("target_score=high", "score must be a number"),
        ("target_score=0.9,round=3", "is no stopping criterion"),
        ("max_labels=5,n=6", "is no stopping criterion"),
        ("pool_exhausted=1", "is no stopping criterion"),
        ("target_score=95", "a score between 0 and 1"),
        ("max_labels=5 and ", "got ''"),
        ("max_labels=5 or plateau", "n must be a whole number"),
    ],
)
def test_parse_refuses_what_it_cannot_read(text: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        parse(text)


CRITERIA = {
    MaxLabels, MaxRounds, MaxHours, TargetScore, Plateau, StabilizingPredictions, OverallUncertainty,
    ClassificationChange, PoolExhausted,
}  # fmt: skip


def test_a_refusal_lists_every_criterion_with_its_defaults_and_what_it_does() -> None:
    with pytest.raises(SettingsError) as refusal:
        parse("no_such_thing")
    _, *usages = str(refusal.value).split("\n")
    examples = [usage.strip().split(": ")[0] for usage in usages]
    assert {type(parse(example)) for example in examples} == CRITERIA
    for example, usage in zip(examples, usages, strict=True):
        criterion, name = parse(example), example.split("=")[0]
        assert len(usage.split(": ")[1].split()) >= 4
        assert len(fields(criterion)) == example.count("="), "an example names everything that can be set"
        if all(field.default is not MISSING for field in fields(criterion)):
            assert parse(name) == criterion
        else:
            first = example.split(",")[0]
            assert parse(first) == criterion


@pytest.mark.parametrize(
    ("text", "wrong", "example"),
    [
        ("plateau=3", "`Plateau` must have a gain", "plateau=0.002,rounds=3,answers=100"),
        ("plateau=0.01,round=3", "it takes gain, rounds, answers, and not round", "plateau=0.002"),
        ("target_score=95", "`TargetScore` must have a score", "target_score=0.95,rounds=3"),
        ("max_labels", "it lacks its value", "max_labels=5000"),
        ("max_labels=5,n=6", "n is there more than once", "max_labels=5000"),
        ("pool_exhausted=1", "it takes nothing, and not a value", "pool_exhausted"),
        ("max_rounds=5 and plateau=rounds", "gain must be a number, got 'rounds'", "plateau=0.002"),
    ],
)
def test_a_refusal_quotes_what_was_written_and_shows_how_it_is(text: str, wrong: str, example: str) -> None:
    with pytest.raises(SettingsError) as refusal:
        parse(text)
    said = str(refusal.value)
    assert said.startswith(f"{text.split(' and ')[-1]!r} is no stopping criterion: {wrong}")
    assert f"An example:\n  {example}" in said
    assert ": stop " in said
    assert "(" not in said, "nothing of how it is kept inside"

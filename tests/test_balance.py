"""Balance: shares of the labels that classes are to have, met by quotas of predicted classes and told honestly."""

import logging
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from click.testing import CliRunner
from distributed import Client
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from dal import Batch, Campaign, Labelling, Scanning
from dal.campaign.settings import Settings, shares_of
from dal.campaign.view import status
from dal.cli import main
from dal.errors import SettingsError
from dal.learners.learner import Learner
from dal.learners.models import Model, score_block
from dal.loop.coordinator import Coordinator
from dal.pool import Pool
from dal.scan import Limits, Scan, sample_codebook, scan
from dal.selection import balance
from dal.selection.balance import MOST, choose_balanced, kept_of_classes, quotas_of
from dal.selection.batch import Known
from dal.selection.order import key_order, power_keys, uniform
from dal.selection.strategy import STRATEGIES, Strategy
from tests.forked import Process

N, D = 6_007, 5
CLASSES = ["usual", "other", "rare"]
BAD, ASKED = [4, 901], np.array([5, 17, 3_000, 4_444, 6_000])
LIMITS = Limits(tile_rows=512)
SEED, ROUND = 11, 4


@pytest.fixture(scope="module")
def labels() -> np.ndarray:
    """One record in a hundred is of the rare class, and more of them lie at the end."""
    rng = np.random.default_rng(2)
    chances = np.linspace(0.004, 0.016, N)
    return np.where(rng.random(N) < chances, 2, rng.integers(0, 2, N))


@pytest.fixture(scope="module")
def records(labels: np.ndarray) -> np.ndarray:
    rng = np.random.default_rng(0)
    centers = np.array([[0, 0, 0, 0, 0], [2, 0, 0, 0, 0], [1, 2.5, 0, 0, 0]])
    X = (centers[labels] + rng.standard_normal((N, D))).astype(np.float32)
    X[1000:1400] = np.round(X[1000:1400])  # ties
    X[BAD[0], 1], X[BAD[1]] = np.inf, np.nan
    return X


@pytest.fixture(scope="module")
def pool(records: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Pool:
    return Pool.build(records, tmp_path_factory.mktemp("pool") / "pool.zarr")


@pytest.fixture(scope="module")
def model(records: np.ndarray, labels: np.ndarray) -> Model:
    rows = np.setdiff1d(np.arange(0, N, 30), BAD)
    return Learner.of(LogisticRegression(), CLASSES, random_state=0).fit(records[rows], labels[rows])


# -- quotas ------------------------------------------------------------------------------------------------------------


@given(
    share=st.lists(st.floats(0, 1), min_size=2, max_size=8).filter(sum),
    labels=st.lists(st.integers(0, 300), min_size=8, max_size=8),
    k=st.integers(0, 60),
    uses=st.floats(0.01, 1),
)
@settings(max_examples=300, deadline=None)
def test_quotas_fill_the_classes_that_lack_most(share: list[float], labels: list[int], k: int, uses: float) -> None:
    shares = [uses * each / sum(share) for each in share]
    labels = labels[: len(shares)]
    quotas = quotas_of(shares, labels, k)
    assert sum(quotas) <= k
    total = sum(labels) + k
    for each, known, quota in zip(shares, labels, quotas, strict=True):
        # Never beyond the share, nor beyond a multiple of what an even batch would have; a fraction is rounded.
        assert 0 <= quota <= max(0, np.ceil(each * total - known + 1e-6))
        assert quota <= np.ceil(MOST * each * k) + 1
    most = [min(np.ceil(round(MOST * each * k, 9)), k) for each in shares]
    lacking = [min(each * total - known, up_to) for each, known, up_to in zip(shares, labels, most, strict=True)]
    if sum(max(0, each) for each in lacking) <= k:
        assert all(quota >= np.floor(each - 1e-6) for quota, each in zip(quotas, lacking, strict=True))
    elif k:
        assert sum(quotas) == k


@given(labels=st.lists(st.integers(0, 40), min_size=3, max_size=9), k=st.integers(1, 60))
@settings(max_examples=200, deadline=None)
def test_an_even_target_raises_the_lowest_first(labels: list[int], k: int) -> None:
    quotas = quotas_of([1 / len(labels)] * len(labels), labels, k)
    most = np.ceil(MOST * k / len(labels))
    for known, quota in zip(labels, quotas, strict=True):
        for others, theirs in zip(labels, quotas, strict=True):
            assert not quota or theirs >= most or known + quota <= others + theirs + 1


# -- the scan and the choice -------------------------------------------------------------------------------------------


def judged(model: Model, records: np.ndarray, score: str) -> tuple[np.ndarray, np.ndarray]:
    """Score all records at once; those that are never asked have the score -inf."""
    sound = np.isfinite(records).all(axis=1)
    whole = np.where(sound[:, None], records, np.float32(0))
    # In tiles, because the last bits of a product depend on its height.
    starts = range(0, N, LIMITS.tile_rows)
    padded = np.concatenate([whole, np.repeat(whole[:1], -N % LIMITS.tile_rows, axis=0)])
    blocks = [score_block("margin", model, padded[at : at + LIMITS.tile_rows]) for at in starts]
    scores = np.concatenate([each.score for each in blocks])[:N].astype(np.float64)
    predicted = model.seen[np.concatenate([each.predicted for each in blocks])[:N]]
    if score == "random":
        scores = uniform(np.arange(N), SEED, ROUND)
    scores[~sound] = -np.inf
    scores[ASKED] = -np.inf
    return scores, predicted


def kept(pool: Pool, model: Model, strategy: Strategy, k: int, quotas: tuple[int, ...], **options: object) -> Scan:
    cells = strategy.n_cells(k, pool.n_rows)
    codebook = sample_codebook(pool, cells, 3) if strategy.traits.features else None
    return scan(
        pool,
        model,
        strategy,
        k,
        ASKED,
        random_state=SEED,
        round=ROUND,
        codebook=codebook,
        with_features=True,
        per_class=kept_of_classes(strategy, quotas, 0),
        **{"limits": LIMITS, **options},
    )


def chosen(pool: Pool, found: Scan, strategy: Strategy, k: int, quotas: tuple[int, ...]) -> np.ndarray:
    cells = strategy.n_cells(k, pool.n_rows)
    codebook = sample_codebook(pool, cells, 3) if strategy.traits.features else None
    capacity = strategy.capacity(k, pool.n_rows, len(codebook.centers) if codebook else None)
    X = pool.take(ASKED)
    known = Known(
        ASKED, X, None, np.zeros(len(ASKED), np.int64), np.full((len(ASKED), 3), 1 / 3, np.float32), len(ASKED)
    )
    return choose_balanced(
        found.candidates,
        strategy,
        k,
        quotas,
        known,
        capacity=capacity._replace(per_class=kept_of_classes(strategy, quotas, 0)),
        codebook=codebook,
        random_state=SEED,
        round=ROUND,
    )


def by_brute_force(scores: np.ndarray, predicted: np.ndarray, k: int, quotas: tuple[int, ...]) -> list[int]:
    """Take the best of each class by key, and the best of all the others."""
    order = [row for row in key_order(scores, np.arange(N), SEED, ROUND).tolist() if np.isfinite(scores[row])]
    batch = [row for code, quota in enumerate(quotas) for row in [r for r in order if predicted[r] == code][:quota]]
    return sorted(batch + [row for row in order if row not in batch][: k - len(batch)])


@pytest.mark.parametrize("name", ["margin", "random", "power"])
def test_the_best_of_each_class_and_then_of_all_in_any_layout(
    name: str, pool: Pool, records: np.ndarray, model: Model, tmp_path: Path, cluster: Client
) -> None:
    k, quotas, strategy = 40, (0, 3, 25), Strategy.named(name)
    scores, predicted = judged(model, records, name)
    if name == "power":
        scores = np.where(np.isneginf(scores), -np.inf, power_keys(scores, np.arange(N), strategy.beta, SEED, ROUND))
    expected = by_brute_force(scores, predicted, k, quotas)
    plain = by_brute_force(scores, predicted, k, ())
    assert (predicted[plain] == 2).sum() < 20  # the quota changes the batch
    array = zarr.create_array(tmp_path / "odd.zarr", shape=records.shape, chunks=(777, D), dtype="float32")
    array[:] = records
    odd = Pool.open(tmp_path / "odd.zarr")
    for place, options in (
        (pool, {}),
        (odd, {"limits": Limits(512, span_bytes=1)}),
        (pool, {"client": cluster}),
    ):
        found = kept(place, model, strategy, k, quotas, **options)
        batch = chosen(place, found, strategy, k, quotas)
        assert sorted(batch.tolist()) == expected
        assert (predicted[batch] == 2).sum() == 25


@pytest.mark.parametrize("name", ["default", "class_coverage"])
def test_a_scan_keeps_what_a_full_sort_keeps(
    name: str, pool: Pool, records: np.ndarray, model: Model, cluster: Client
) -> None:
    k, quotas, strategy = 20, (0, 0, 9), Strategy.named(name)
    usual, most = kept(pool, model, strategy, k, ()), kept(pool, model, strategy, k, quotas, client=cluster)
    scores, predicted = judged(model, records, name)
    ranked = strategy.capacity(k, N).ranked(scores, np.arange(N), SEED, ROUND)
    order = [row for row in key_order(ranked, np.arange(N), SEED, ROUND).tolist() if np.isfinite(scores[row])]
    rare = [row for row in order if predicted[row] == 2][: strategy.shortlist * 9]
    assert len(np.setdiff1d(rare, usual.candidates.rows)) > 5
    assert most.candidates.rows.tolist() == sorted({*usual.candidates.rows.tolist(), *rare})


@pytest.mark.parametrize("name", [name for name in STRATEGIES if name not in ("coverage", "expected_gradient_length")])
def test_every_strategy_meets_the_quotas(name: str, pool: Pool, records: np.ndarray, labels: np.ndarray) -> None:
    strategy, k, quotas = Strategy.named(name), 20, (2, 0, 12)
    rows = np.setdiff1d(np.arange(0, N, 30), BAD)
    learner = Learner.of(LogisticRegression(), CLASSES, random_state=0)
    model = learner.fit(records[rows], labels[rows], committee=strategy.committee)
    found = kept(pool, model, strategy, k, quotas)
    batch = chosen(pool, found, strategy, k, quotas)
    codes = model.predict_proba(records[batch]).argmax(axis=1)
    assert len(batch) == len(set(batch.tolist())) == k
    assert not np.isin(batch, [*ASKED, *BAD]).any()
    assert np.bincount(codes, minlength=3)[2] >= 12
    assert np.bincount(codes, minlength=3)[0] >= 2
    # Without quotas it is the strategy's own batch, whatever else was kept.
    without = chosen(pool, kept(pool, model, strategy, k, ()), strategy, k, ())
    assert np.isin(batch, without).sum() >= 4 or name in ("random", "k_center", "stratified", "typiclust")


def test_a_class_that_is_never_predicted_leaves_its_places_to_others(pool: Pool, records: np.ndarray) -> None:
    model = Learner.of(LogisticRegression(), CLASSES, random_state=0).fit(records[:600:6], np.arange(100) % 2)
    strategy = Strategy.named("default")
    found = kept(pool, model, strategy, 10, (0, 0, 10))
    without = chosen(pool, kept(pool, model, strategy, 10, ()), strategy, 10, ())
    assert chosen(pool, found, strategy, 10, (0, 0, 10)).tolist() == without.tolist()


# -- in a campaign -----------------------------------------------------------------------------------------------------


def made(pool: Pool, directory: Path, **options: object) -> Campaign:
    chosen = {"batch_size": 40, "random_state": 7, "balance": {"rare": 0.2}, "strategy": "margin", **options}
    return Campaign.create(directory, pool, CLASSES, **chosen)


def begun(campaign: Campaign, labels: np.ndarray) -> None:
    rows = [row for row in (*range(0, 300, 10), *np.flatnonzero(labels == 2)[:4].tolist()) if row not in BAD]
    ids = campaign_ids(rows)
    campaign.label(ids, [CLASSES[labels[row]] for row in rows])


def campaign_ids(rows: list[int]) -> list[str]:
    return [str(row) for row in rows]


def answered(campaign: Campaign, labels: np.ndarray, **options: object) -> Batch:
    batch = campaign.next_batch(**options)
    assert isinstance(batch, Batch)
    campaign.label(batch, [CLASSES[labels[row]] for row in batch.rows])
    return batch


def test_a_campaign_asks_for_the_class_that_lacks(pool: Pool, labels: np.ndarray, tmp_path: Path) -> None:
    scanning = Scanning(scan="waves")
    balanced = made(pool, tmp_path / "balanced", scanning=scanning)
    plain = made(pool, tmp_path / "plain", balance=(), scanning=scanning)
    for campaign in (balanced, plain):
        begun(campaign, labels)
        for _ in range(3):
            answered(campaign, labels)
    assert plain.rounds.get(1).balance is None
    # Waves would end before they have seen the rare ones.
    assert [each.waves is None for each in plain.rounds.all()] == [True, False, False]
    assert [each.waves is None for each in balanced.rounds.all()] == [True, True, True]
    assert "quotas" not in plain.rounds.get(1).summary
    assert balanced.rounds.get(1).balance == (0.0, 0.0, 0.2)
    known = status(balanced)
    assert known.per_class["rare"] > 1.3 * status(plain).per_class["rare"]
    # The ruler is left alone: drawn from all records, and not counted as what the quota asked for.
    assert balanced.rounds.explored_rows().tolist() == plain.rounds.explored_rows().tolist() != []
    batch = balanced.rounds.batch(3)
    quota = balanced.rounds.get(3).summary["quotas"]
    mine = [each for each in batch if each.chosen_by == "strategy"]
    assert sum(quota) <= len(mine) == 38
    assert sum(each.predicted == 2 for each in mine) >= quota[2] > 5
    [told] = known.balance
    answers = [labels[each.row] for each in mine]
    assert (told.name, told.share, told.round, told.quota) == ("rare", 0.2, 3, quota[2])
    assert told.predicted == sum(each.predicted == 2 for each in mine)
    assert (told.answered, told.answers) == (answers.count(2), 38)
    assert (told.labels, told.of) == (known.per_class["rare"], known.labels)
    assert f"{told.answered} of 38 answers" in told.text
    assert status(plain).balance == ()


def test_all_choices_of_a_round_follow_the_number_asked_before(
    pool: Pool, labels: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    campaign = made(pool, tmp_path / "c", labelling=Labelling(reserve=0.5), strategy="default")
    begun(campaign, labels)
    before, real, seen = status(campaign).labels, balance.choose, []

    def counted(*what: Any, n_asked: int, asked: np.ndarray, **how: Any) -> np.ndarray:  # noqa: ANN401
        seen.append((n_asked, len(asked)))
        return real(*what, n_asked=n_asked, asked=asked, **how)

    monkeypatch.setattr(balance, "choose", counted)
    campaign.next_batch()
    assert len(seen) > 2, "the batch, quotas, the reserve"
    assert {n_asked for n_asked, _ in seen} == {before}
    assert seen[0][1] == before + 2, "the explore share"
    assert seen[-1][1] > before + 30, "and the batch"


def test_a_batch_without_a_model_has_no_quota_and_says_so(pool: Pool, labels: np.ndarray, tmp_path: Path) -> None:
    campaign = made(pool, tmp_path / "c", balance="uniform")
    assert status(campaign).balance == ()
    answered(campaign, labels)
    assert [each.quota for each in status(campaign).balance] == [None, None, None]
    assert "chosen without a model" in status(campaign).balance[0].text


def test_a_class_that_no_label_names_takes_no_places_of_others(
    pool: Pool, labels: np.ndarray, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    campaign = made(pool, tmp_path / "c", balance=["rare=0.3", f"{CLASSES[1]}=0.6"])
    rows = [row for row in range(0, 300, 10) if labels[row] != 2]
    campaign.label(campaign_ids(rows), [CLASSES[labels[row]] for row in rows])
    with caplog.at_level(logging.WARNING, "dal"):
        batch = campaign.next_batch()
    assert isinstance(batch, Batch)
    assert len(batch.rows) == 40
    assert "No label names rare yet, so that none can be predicted" in caplog.text
    summary = campaign.rounds.get(1).summary
    assert summary is not None
    assert summary["quotas"][2] == 0
    assert summary["quotas"] == list(quotas_of((0.0, 0.6, 0.0), np.bincount(labels[rows], minlength=3), 38))


def killed(directory: str, method: str) -> None:
    """Take the next batch, and die before a step of it."""

    def dying(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(Coordinator, method, dying)
    Campaign.open(directory).next_batch()


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["margin", "class_coverage"])
def test_killed_or_on_a_cluster_it_gives_the_same_batch(
    strategy: str, pool: Pool, labels: np.ndarray, tmp_path: Path, cluster: Client
) -> None:
    batches, first = {}, made(pool, tmp_path / "first", strategy=strategy)
    begun(first, labels)
    for name in ("_fit", "_scan", "_select", "cluster", "whole"):
        shutil.copytree(first.directory, tmp_path / name)
        if name.startswith("_"):
            process = Process(target=killed, args=(str(tmp_path / name), name))
            process.start()
            process.join(60)
            assert process.exitcode == -signal.SIGKILL
            # The round goes on with what it froze.
            place = tmp_path / name / "campaign.toml"
            place.write_text(place.read_text().replace('balance = ["rare=0.2"]', "balance = []"))
            assert Campaign.open(tmp_path / name).settings.balance == ()
        campaign = Campaign.open(tmp_path / name)
        batches[name] = answered(campaign, labels, client=cluster if name == "cluster" else None).rows.tolist()
        asked = [each for each in campaign.rounds.batch(1) if each.chosen_by == "strategy"]
        assert sum(each.predicted == 2 for each in asked) >= campaign.rounds.get(1).summary["quotas"][2] > 5
    assert all(rows == batches["whole"] for rows in batches.values())


# -- the door ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("balance", "word"),
    [
        ({"nobody": 0.2}, "nobody=0.2"),
        ({"rare": 1.2}, "at most 1"),
        ({"rare": -0.2}, "above 0"),
        ({"rare": 0}, "above 0"),
        ({"rare": float("nan")}, "above 0"),
        ({"rare": 0.6, "other": 0.5}, "add up to at most 1"),
        ("rare", "class=share"),
        ("rare=much", "class=share"),
        (["rare=0.2", "rare=0.3"], "once"),
        (["uniform", "rare=0.3"], "'uniform'"),
        (["uniform", "uniform"], "more than once"),
        ([3], "`balance`"),
    ],
)
def test_a_balance_that_cannot_be_is_refused_before_anything_is_written(
    balance: object, word: str, pool: Pool, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match=word):
        made(pool, tmp_path / "c", balance=balance)
    assert not (tmp_path / "c").exists()


def test_classes_with_strange_names_have_shares() -> None:
    assert shares_of(("a=b=0.25", "c, d = 0.5", "uniform=0.25"), ("a=b", "c, d", "uniform")) == (0.25, 0.5, 0.25)
    assert shares_of(("uniform",), ("a", "b", "c", "uniform")) == (0.25,) * 4
    chosen = Settings("pool.zarr", ("ham", "cafe\u0301"), balance=("caf\u00e9=0.5",))
    assert Settings.from_toml(chosen.to_toml()).balance == ("caf\u00e9=0.5",)
    # A campaign of an earlier version has no such setting.
    older = "\n".join(line for line in chosen.to_toml().splitlines() if not line.startswith("balance"))
    assert Settings.from_toml(older).balance == ()


def test_the_command_line_takes_and_tells_it(pool: Pool, labels: np.ndarray, tmp_path: Path) -> None:
    def told(*options: str) -> tuple[int, str]:
        done = CliRunner().invoke(main, list(options))
        return done.exit_code, " ".join(done.output.split())

    init = ["init", str(tmp_path / "c"), str(pool.path), "--classes", "usual,other,rare", "--batch-size", "40"]
    code, said = told(*init, "--balance", "rar=0.2")
    assert code
    assert "usual, other, rare" in said
    code, said = told(*init, "--balance", "rare=0.2", "--balance", "other=0.1", "--strategy", "margin")
    assert not code, said
    campaign = Campaign.open(tmp_path / "c")
    assert campaign.settings.balance == ("rare=0.2", "other=0.1")
    begun(campaign, labels)
    code, said = told("next", str(campaign.directory), "--workers", "0")
    assert not code, said
    assert "balance of rare: 20.0% wanted" in said
    quota = campaign.rounds.get(1).summary["quotas"][2]
    assert f"round 1: {quota} to be predicted so" in said
    answered(campaign, labels)
    code, said = told("status", str(campaign.directory))
    assert "balance of rare: 20.0% wanted" in said
    assert "of 38 answers are" in said

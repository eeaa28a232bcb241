"""The labelled set as a file, read back with pandas."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest

from dal.campaign import Answer, CampaignStore, Settings
from dal.exchange import write_labels
from dal.exchange.labels import COLUMNS
from dal.pool import Pool
from tests.batches import batch_of

CLASSES = ("cat", "dog", "owl")
N = 300
NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    shown = {"text": [f"text {row}" for row in range(N)], "score": [row % 3 == 0 for row in range(N)]}
    ids = [f"id-{row:04d}" for row in range(N)]
    return Pool.build(np.zeros((N, 2), np.float32), tmp_path_factory.mktemp("p") / "pool.zarr", ids=ids, display=shown)


def ask(campaign: CampaignStore, pool: Pool, rows: Sequence[int], strategy: str) -> str:
    frozen = {"pool_fingerprint": pool.fingerprint, "n_rows": N, "k": len(rows), "explore": 0.5, "seed": 0}
    chosen = campaign.rounds.freeze(**frozen, strategy=strategy)
    model = campaign.rounds.save_model(chosen, f"model {chosen.number}".encode(), trained_on=0)
    scores = [row / N for row in rows]
    explore = [at % 2 == 1 for at in range(len(rows))]
    predicted = [row % 3 for row in rows]
    columns = {"scores": scores, "predicted": predicted, "explore": explore, "confidence": [0.5] * len(rows)}
    columns["found_by"] = ["like" if row == 299 else None for row in rows]
    campaign.rounds.open(chosen, batch_of(rows, pool.record_ids(rows), **columns))
    return model


def say(campaign: CampaignStore, annotator: str, **answers: int | None) -> None:
    given = [
        Answer(
            row := int(name[1:]), f"id-{row:04d}", annotator, "skipped" if code is None else "submitted", code,
            NOON, lead_time=1.5, skip_reason="cannot tell" if code is None else None, suggestion_shown=True,
        )
        for name, code in answers.items()
    ]  # fmt: skip
    campaign.answers.add(given, source="pages")


def values(column: pd.Series) -> list[object]:
    return [None if pd.isna(value) else value for value in column]


@pytest.fixture
def campaign(pool: Pool, tmp_path: Path) -> CampaignStore:
    chosen = Settings(pool.path, CLASSES, estimator="logistic", strategy="margin", batch_size=4)
    return CampaignStore.make(tmp_path / "campaign", chosen, pool_fingerprint=pool.fingerprint, n_rows=N)


def test_every_label_says_where_it_comes_from(campaign: CampaignStore, pool: Pool, tmp_path: Path) -> None:
    first = ask(campaign, pool, [250, 120], "margin")
    say(campaign, "ann", r250=0, r120=1)
    say(campaign, "bob", r250=0, r120=None)
    say(campaign, "cyd", r250=2)
    campaign.rounds.close(campaign.rounds.get(1))
    second = ask(campaign, pool, [299, 33, 7], "entropy")
    say(campaign, "ann", r299=1, r33=2)
    say(campaign, "ann", r299=2)  # a change of mind
    say(campaign, "bob", r33=None)
    say(campaign, "bob", r180=1)  # nobody had asked
    campaign.answers.add_gold([(90, "id-0090", 0)])
    say(campaign, "bob", r90=0)
    upto = campaign.answers.last_id()

    assert write_labels(campaign, pool, tmp_path / "labels.parquet") == 5
    frame = pd.read_parquet(tmp_path / "labels.parquet")
    assert list(frame.columns) == [*COLUMNS.names, "text", "pool.score"]
    frame = frame.set_index("row")
    assert frame.index.tolist() == [33, 120, 180, 250, 299]
    assert frame["record_id"].tolist() == ["id-0033", "id-0120", "id-0180", "id-0250", "id-0299"]
    assert frame["label"].tolist() == ["owl", "dog", "dog", "cat", "owl"]
    assert frame["votes"].tolist() == [1, 1, 1, 2, 1]
    assert [list(names) for names in frame["annotators"]] == [["ann"], ["ann"], ["bob"], ["ann", "bob", "cyd"], ["ann"]]
    assert frame["round"].tolist() == pytest.approx([2, 1, np.nan, 1, 2], nan_ok=True)
    assert frame["rank"].tolist() == pytest.approx([1, 1, np.nan, 0, 0], nan_ok=True)
    assert values(frame["explore"]) == [True, True, None, False, False]
    assert values(frame["chosen_by"]) == ["explore", "explore", None, "strategy", "like"]
    assert values(frame["strategy"]) == ["entropy", "margin", None, "margin", "entropy"]
    assert values(frame["model"]) == [second, first, None, first, second]
    assert frame["score"].tolist() == pytest.approx([33 / N, 120 / N, np.nan, 250 / N, 299 / N], nan_ok=True)
    assert values(frame["predicted"]) == ["cat", "cat", None, "dog", "owl"]
    assert frame["text"].tolist() == [f"text {row}" for row in frame.index]
    assert frame["pool.score"].tolist() == [True, True, True, False, False]

    said = {
        row: [(each["annotator"], each["status"], each["label"], each["source"]) for each in answers]
        for row, answers in frame["answers"].items()
    }
    assert said[299] == [("ann", "submitted", "dog", "pages"), ("ann", "submitted", "owl", "pages")]
    assert said[33] == [("ann", "submitted", "owl", "pages"), ("bob", "skipped", None, "pages")]
    skipped = frame.loc[33, "answers"][1]
    assert (skipped["skip_reason"], skipped["lead_time"], skipped["suggestion_shown"]) == ("cannot tell", 1.5, True)
    assert (skipped["suggested"], skipped["late"]) == ("cat", False)
    assert pd.Timestamp(skipped["answered_at"]) == pd.Timestamp(NOON)
    about = json.loads(pa.parquet.read_schema(tmp_path / "labels.parquet").metadata[b"dal"])
    assert about == {"campaign": campaign.id, "classes": list(CLASSES), "last_answer": upto}


def test_many_records_are_written_some_at_a_time(campaign: CampaignStore, pool: Pool, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = rng.permutation(np.arange(40, N))[:100]
    truth = {f"r{row}": int(code) for row, code in zip(rows, rng.integers(0, 3, 100), strict=True)}
    say(campaign, "ann", **truth)
    assert write_labels(campaign, pool, tmp_path / "x.parquet", at_once=7) == 100
    frame = pd.read_parquet(tmp_path / "x.parquet")
    assert frame["row"].tolist() == sorted(rows.tolist())
    assert frame["label"].tolist() == [CLASSES[truth[f"r{row}"]] for row in sorted(rows.tolist())]
    assert frame["text"].tolist() == [f"text {row}" for row in sorted(rows.tolist())]


def test_a_campaign_without_answers_gives_a_file_without_rows(
    campaign: CampaignStore, pool: Pool, tmp_path: Path
) -> None:
    assert write_labels(campaign, pool, tmp_path / "x.parquet") == 0
    frame = pd.read_parquet(tmp_path / "x.parquet")
    assert len(frame) == 0
    assert list(frame.columns) == [*COLUMNS.names, "text", "pool.score"]

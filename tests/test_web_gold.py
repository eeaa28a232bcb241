"""Gold records as annotators meet them: nothing that a server tells may tell them from others."""

from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
from fastapi.testclient import TestClient

from dal import Campaign
from dal.campaign import Annotators, Given, Labelling, Measuring, Queue
from dal.pool import Pool
from dal.web import Limits, Options, create_app
from dal.web.guesses import Guesses
from dal.web.records import Records

N, BATCH = 300, 10
GOLD = range(200, 230)


@pytest.fixture(params=[1, 2], ids=["alone", "two"])
def campaign(request: pytest.FixtureRequest, tmp_path: Path) -> Campaign:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 2, N)
    X = rng.normal(2.0 * codes[:, None], 1.0, (N, 4)).astype(np.float32)
    X[GOLD[3]] = np.nan  # is never asked, and may be gold
    pool = Pool.build(X, tmp_path / "pool.zarr", display={"text": [f"text {row}" for row in range(N)]})
    made = Campaign.create(
        tmp_path / "c",
        pool,
        ["ham", "spam"],
        batch_size=BATCH,
        random_state=5,
        labelling=Labelling(overlap=request.param, gold=0.3, reserve=0.5),
    )
    made.answers.add_gold([(row, str(row), int(codes[row])) for row in GOLD])
    return made


def as_person(campaign: Campaign, name: str) -> TestClient:
    token = Annotators(campaign).add(name)
    app = create_app(campaign, Options(user="x", show_suggestions=True), Limits(standing_seconds=0.0))
    person = TestClient(app, base_url="http://127.0.0.1:8000", headers={"sec-fetch-site": "same-origin"})
    assert person.post("/enter", json={"token": token}).status_code == 200
    return person


def kinds(value: Any) -> Any:  # noqa: ANN401 - JSON
    """Give a value's shape: its keys, and the kinds of what they hold."""
    if isinstance(value, dict):
        return {key: kinds(each) for key, each in value.items()}
    return [kinds(each) for each in value] if isinstance(value, list) else type(value).__name__


def ask(person: TestClient, path: str, body: object) -> Any:  # noqa: ANN401 - JSON
    answer = person.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def answered_one(person: TestClient, record: dict[str, Any]) -> dict[str, Any]:
    """Do with a record all that can be done, and note what is told and what changes."""
    row, event = record["row"], str(uuid4())
    said = {"event_id": event, "row": row, "status": "submitted", "label": 0, "suggestion_shown": True}
    counted = ("answered", "mine", "pending", "size")
    before = person.get("/api/state").json()
    first = ask(person, "/api/answers", {"answers": [said]})
    undone = ask(person, "/api/undo", {"event_id": event, "new_event_id": str(uuid4())})
    held = ask(person, "/api/renew", {"rows": [row]})
    skipped = said | {"event_id": str(uuid4()), "status": "skipped", "label": None}
    again = ask(person, "/api/answers", {"answers": [skipped]})
    changed = ask(person, "/api/answers", {"answers": [said | {"event_id": str(uuid4()), "label": row // 2 % 2}]})
    last = person.get("/api/history?n=1").json()["answers"]
    states = [before, first["state"], undone["state"], again["state"], changed["state"]]
    return {
        "record": kinds(record),
        "steps": [[state[name] - before[name] for name in counted] for state in states],
        "outcomes": [each | {"event_id": ""} for each in first["outcomes"] + again["outcomes"] + changed["outcomes"]],
        "undone": undone["outcome"] | {"event_id": ""},
        "held": held == {"rows": [row]},
        "history": kinds(last) if last and last[0]["row"] == row else None,
        "states": [kinds(state) for state in states],
        "shown": kinds(person.get(f"/api/records/{row}").json()),
    }


@pytest.mark.slow
def test_gold_looks_like_any_other_record(campaign: Campaign) -> None:
    people = [as_person(campaign, name) for name in ("ann", "bob")[: campaign.settings.labelling.overlap]]
    seen: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
    for number in (1, 2):
        campaign.next_batch()
        for person in people:
            for _ in range(2 * BATCH):
                # One at a time, which tells most.
                records = ask(person, "/api/answers", {"lease": 1})["records"]
                if not records or person.get("/api/state").json()["phase"] != "open":
                    break
                told = answered_one(person, records[0])
                told["pending"] = campaign.rounds.pending(number) > 0
                told["round"] = number
                seen[records[0]["row"] in GOLD].append(told)
    assert len(seen[True]) >= 3
    assert len(seen[False]) >= 2 * BATCH * len(people)
    for number in (1, 2):
        shapes = {
            gold: {str(told) for told in told_of if told["round"] == number and told["pending"]}
            for gold, told_of in seen.items()
        }
        # The answers that fill the batch change the phase, or come when the numbers stand at their ends.
        assert shapes[True] <= shapes[False], sorted(shapes[True] - shapes[False])[:1] + sorted(shapes[False])[:1]
    assert all(told["record"]["suggestion"] is not None for told in seen[True] if told["round"] == 2)
    assert {str(told["record"]["suggestion"]) for told in seen[True] if told["round"] == 2} == {"['int', 'float']"}


@pytest.mark.slow
def test_gold_cannot_be_found_by_asking_for_rows(campaign: Campaign) -> None:
    ann = as_person(campaign, "ann")
    served: list[int] = []
    for stage in range(2):
        seen = [row for row in range(N) if ann.get(f"/api/records/{row}").status_code == 200]
        assert seen == sorted(served)
        said = {"event_id": str(uuid4()), "row": GOLD[5], "status": "submitted", "label": 0}
        if not stage:
            [told] = ask(ann, "/api/answers", {"answers": [said]})["outcomes"]
            assert (told["outcome"], "never served" in told["reason"]) == ("refused", True)
            campaign.next_batch()
            served = [each["row"] for each in ask(ann, "/api/answers", {"lease": 15})["records"]]
            assert any(row in GOLD for row in served)


def test_gold_with_missing_features_is_suggested_what_the_model_says_of_it(tmp_path: Path) -> None:
    codes = np.arange(N) % 2
    X = np.random.default_rng(0).normal(0.0, 0.1, (N, 2)).astype(np.float32)
    X[codes == 1] = np.nan  # to a forest, missing is the second class; zeros would be the first one
    pool = Pool.build(X, tmp_path / "pool.zarr")
    campaign = Campaign.create(
        tmp_path / "c", pool, ["ham", "spam"], estimator="forest", measuring=Measuring(stop_set=0)
    )
    campaign.label([str(row) for row in range(100)], codes[:100])
    known = Guesses(campaign, Records(pool))._predicted(campaign.next_batch().number, frozenset(GOLD))
    assert {row: code for row, (code, _) in known.items()} == {row: codes[row] for row in GOLD}


def test_gold_keeps_its_place_among_the_records_in_hand(campaign: Campaign) -> None:
    """Were the records in hand told in an order of their own when they are asked for again, gold alone would move."""
    ann = as_person(campaign, "ann")
    campaign.next_batch()
    told: list[list[int]] = []
    for n in (4, 7, 9, 9):
        told.append([each["row"] for each in ask(ann, "/api/answers", {"lease": n})["records"]])
        ask(ann, "/api/renew", {"rows": told[-1][::-1]})
    assert any(row in GOLD for row in told[0])
    assert [rows[: len(before)] for before, rows in pairwise(told)] == told[:-1]


def test_gold_beside_the_rest_of_a_cold_start_has_no_suggestion_either(tmp_path: Path) -> None:
    codes = np.arange(N) % 2
    X = np.random.default_rng(1).normal(3.0 * codes[:, None], 1.0, (N, 3)).astype(np.float32)
    pool = Pool.build(X, tmp_path / "pool.zarr")
    labelling = Labelling(gold=0.5, close_at=0.5)
    campaign = Campaign.create(tmp_path / "c", pool, ["ham", "spam"], batch_size=BATCH, labelling=labelling)
    campaign.answers.add_gold([(row, str(row), int(codes[row])) for row in GOLD])
    first = campaign.next_batch()
    campaign.label(first.record_ids[:5], codes[first.rows[:5]])
    second = campaign.next_batch()
    assert second.number == 2
    queue, guesses = Queue(campaign), Guesses(campaign, Records(pool))

    def suggested(n: int) -> list[tuple[bool, int, bool]]:
        served = queue.lease("ann", n)
        told = guesses.of(served)
        return [(each.row in GOLD, each.round, each.row in told) for each in served]

    # One at a time, a gold one may be all that is served.
    seen = []
    while len(seen) < 5 + BATCH + 3:
        seen += suggested(1)
        (served,) = queue.lease("ann", 1)
        queue.answer("ann", [Given(f"a{served.row}", served.row, "submitted", 0)])
    for _, number, has_suggestion in seen:
        assert has_suggestion == (number == 2)
    numbers = [number for _, number, _ in seen]
    assert numbers == sorted(numbers), "the rest first, with the gold ones in between"
    assert {is_gold for is_gold, number, _ in seen if number == 1} == {True, False}
    assert {is_gold for is_gold, number, _ in seen if number == 2} == {True, False}

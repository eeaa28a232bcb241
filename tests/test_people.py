"""One person is one annotator, however the name is spelt."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import text

from dal.campaign import Account, Annotators, Answer, CampaignStore, Given, Labelling, Queue, Settings, Storage
from dal.campaign.activity import Activity
from dal.errors import InputError
from dal.evidence.agreement import agreement
from dal.exchange import read_answers
from tests import databases
from tests.batches import batch_of
from tests.test_exchange import InMemory

pytestmark = pytest.mark.usefixtures("backend")

SPELLINGS = ["ZOË Ann", "zoe\u0308 ann", " Zoë  Ann\t", "\ufeffZoë\u00a0Ann", "Zoë\u200b Ann", "\uff3aoë Ann"]
CHOSEN = Settings(
    "pool.zarr", ("cat", "dog"), estimator="logistic", strategy="margin", batch_size=4, labelling=Labelling(overlap=2)
)
POOL = InMemory([f"r{at}" for at in range(10)])


@pytest.fixture
def campaign(tmp_path: Path) -> CampaignStore:
    chosen = replace(CHOSEN, storage=Storage(database=databases.fresh()))
    made = CampaignStore.make(tmp_path / "c", chosen, pool_fingerprint="f", n_rows=POOL.n_rows)
    frozen = {"pool_fingerprint": "f", "n_rows": POOL.n_rows, "k": 4, "explore": 0.0, "seed": 0, "strategy": "margin"}
    made.rounds.open(made.rounds.freeze(**frozen), batch_of([101, 107], ["r1", "r7"]))
    return made


def by_file(campaign: CampaignStore, tmp_path: Path, name: str) -> None:
    (tmp_path / "x.csv").write_text(f"record_id,label,annotator\nr1,dog,{name}\n", encoding="utf-8")
    assert read_answers(tmp_path / "x.csv", campaign, POOL, "somebody else").changed == 1


def by_default(campaign: CampaignStore, tmp_path: Path, name: str) -> None:
    (tmp_path / "x.csv").write_text("record_id,label\nr1,dog\n")
    assert read_answers(tmp_path / "x.csv", campaign, POOL, name).changed == 1


def by_page(campaign: CampaignStore, tmp_path: Path, name: str) -> None:
    queue = Queue(campaign)
    assert [each.row for each in queue.lease(name, 5)] == [107]
    (outcome,) = queue.answer(name, [Given("event-1", 101, "submitted", 1)])
    assert outcome.result == "changed"
    assert queue.progress(name) == queue.progress("Zoë Ann")
    assert queue.progress(name).mine == 1
    assert [each.event_id for each in queue.history(name, 5)] == ["event-1"]


def by_python(campaign: CampaignStore, tmp_path: Path, name: str) -> None:
    assert campaign.answers.add([Answer(101, "r1", name, "submitted", 1)], source="x").changed == 1


@pytest.mark.parametrize(
    "way", [by_file, by_page, *(pytest.param(way, marks=pytest.mark.slow) for way in (by_default, by_python))]
)
@pytest.mark.parametrize(
    "spelling", [*SPELLINGS[:2], *(pytest.param(each, marks=pytest.mark.slow) for each in SPELLINGS[2:])]
)
def test_one_person_cannot_fill_an_overlap_of_two(
    campaign: CampaignStore, tmp_path: Path, way: Callable[[CampaignStore, Path, str], None], spelling: str
) -> None:
    campaign.answers.add([Answer(101, "r1", "Zoë Ann", "submitted", 0)], source="before")
    way(campaign, tmp_path, spelling)
    assert campaign.rounds.pending(1) == 2, "both records wait for a second person"
    latest = campaign.answers.latest()
    assert (latest.annotators, latest.labels.tolist()) == (["Zoë Ann"], [1])
    assert [(each.name, each.answers) for each in Activity(campaign).work()] == [("Zoë Ann", 1)]
    assert agreement(latest.rows, latest.annotators, latest.labels, seed=0).records == 0


def test_the_first_spelling_is_shown_and_both_in_one_file_are_one_person(
    campaign: CampaignStore, tmp_path: Path
) -> None:
    lines = ["r1,dog,ZOË  ANN ", "r7,cat,zoë ann", "r1,cat,zoe\u0308 ann", "r7,cat,bob"]
    (tmp_path / "x.csv").write_text("\n".join(["record_id,label,annotator", *lines]), encoding="utf-8")
    report = read_answers(tmp_path / "x.csv", campaign, POOL, "x")
    assert (report.new, report.rejections) == (2, 2), "two answers of one person to one record contradict each other"
    assert "'ZOË ANN' answers this record differently" in report.rejected[0].reason
    latest = campaign.answers.latest()
    assert list(zip(latest.rows.tolist(), latest.annotators, strict=True)) == [(107, "ZOË ANN"), (107, "bob")]


def test_a_file_handed_in_again_under_another_spelling_is_the_same_import(
    campaign: CampaignStore, tmp_path: Path
) -> None:
    (tmp_path / "x.csv").write_text("record_id,label\nr1,dog\n")
    assert read_answers(tmp_path / "x.csv", campaign, POOL, "Ann").new == 1
    assert read_answers(tmp_path / "x.csv", campaign, POOL, " ANN ").seen


def test_a_person_has_one_token(campaign: CampaignStore) -> None:
    people = Annotators(campaign)
    campaign.answers.add([Answer(101, "r1", "zoë ann", "submitted", 0)], source="before")
    token = people.add(" ZOË Ann\u200b")
    account = people.verify(token)
    assert isinstance(account, Account)
    assert account.name == "zoë ann"
    with pytest.raises(InputError, match="has a token already"):
        people.add("Zoe\u0308 ann")
    people.revoke("ZOË ANN")
    assert people.verify(token) is None


def test_two_spellings_of_an_older_campaign_become_one_person(campaign: CampaignStore, tmp_path: Path) -> None:
    answers = [(101, "Ann"), (107, "bob"), (107, "ann")]
    campaign.answers.add([Answer(row, f"r{row - 100}", who, "submitted", 0) for row, who in answers], source="x")
    token = Annotators(campaign).add("bob")
    (tmp_path / "x.csv").write_text("record_id,label\nr1,cat\n")
    read_answers(tmp_path / "x.csv", campaign, POOL, "BOB")
    with campaign.database.writing() as connection:  # as version 3 kept them
        for statement in (
            "UPDATE answers SET annotator = ' ANN' WHERE annotator = 'Ann' AND id > 1",
            "UPDATE annotators SET name = 'BOB'",
            "UPDATE imports SET annotator = 'BOB'",
            "DROP TABLE again",
            "DROP TABLE people",
            "DROP TABLE sessions",
            "ALTER TABLE imports DROP COLUMN rejected",
            "ALTER TABLE rounds DROP COLUMN waves",
            "ALTER TABLE rounds DROP COLUMN search",
            "ALTER TABLE rounds DROP COLUMN balance",
            "ALTER TABLE rounds DROP COLUMN learner",
            "DROP TABLE switches",
            "DROP TABLE comparisons",
            "ALTER TABLE asked DROP COLUMN found_by",
            "DROP TABLE examples",
            "ALTER TABLE answers DROP COLUMN alone",
            "DROP TABLE machines",
            "UPDATE campaign SET schema_version = 3",
        ):
            connection.execute(text(statement))
    opened = CampaignStore.open(campaign.directory)
    latest = opened.answers.latest()
    assert list(zip(latest.rows.tolist(), latest.annotators, strict=True)) == [
        (101, "Ann"),
        (101, "bob"),
        (107, "Ann"),
        (107, "bob"),
    ]
    assert opened.rounds.pending(1) == 0
    account = Annotators(opened).verify(token)
    assert account is not None
    assert account.name == "bob"
    assert read_answers(tmp_path / "x.csv", opened, POOL, "Bob").seen
    assert opened.answers.add([Answer(101, "r1", "ANN", "submitted", 1)], source="x").changed == 1

"""The doors: the block of the design as it stands, and one name for a setting in Python, in TOML and as an option."""

import gc
import inspect
import multiprocessing
import os
import signal
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import MISSING, Field, FrozenInstanceError, fields
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, get_args

import click
import numpy as np
import pytest
from distributed import Client
from sklearn.linear_model import LogisticRegression

import dal
from dal.campaign.settings import GROUPS, Settings
from dal.cli import main
from dal.compute.local import local_cluster
from dal.errors import CampaignError, CampaignLocked, LabelError, SettingsError

CLASSES = ["ham", "spam"]
N = 600


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> tuple[dal.Pool, np.ndarray]:
    y = np.random.default_rng(0).integers(0, 2, N)
    X = np.random.default_rng(1).normal(1.5 * y[:, None], 1.0, (N, 4)).astype(np.float32)
    place = tmp_path_factory.mktemp("doors") / "pool.zarr"
    return dal.Pool.build(X, place, ids=[f"mail {row}" for row in range(N)]), y


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with local_cluster(1) as opened:
        yield opened


def made(truth: tuple[dal.Pool, np.ndarray], directory: Path, **options: object) -> dal.Campaign:
    given = {"batch_size": 20, "stop": dal.MaxLabels(60)} | options
    return dal.Campaign.create(directory, truth[0], CLASSES, **given)


def asking(y: np.ndarray) -> Callable[[list[str]], list[str]]:
    return lambda record_ids: [CLASSES[y[int(each.removeprefix("mail "))]] for each in record_ids]


def test_the_block_of_the_design(truth: tuple[dal.Pool, np.ndarray], client: Client, tmp_path: Path) -> None:
    (pool, y), ask = truth, asking(truth[1])
    X, ids, X_new = pool.read(0, N), pool.record_ids(range(N)), pool.read(7, 19)

    pool = dal.Pool.build(X, tmp_path / "pool.zarr", ids=ids)
    campaign = dal.Campaign.create(
        tmp_path / "campaign",
        pool,
        classes=["ham", "spam"],
        estimator=LogisticRegression(),
        strategy="default",
        batch_size=100,
        stop=dal.MaxLabels(300),
        random_state=0,
    )
    for batch in campaign.batches(client=client.scheduler.address):
        campaign.label(batch, ask(batch.record_ids))
    status, probabilities = campaign.status(), campaign.model.predict_proba(X_new)
    compared = dal.compare(pool, y, strategies=["default", "random"], random_state=range(2), rounds=2, batch_size=10)

    assert status.labels == 300
    assert probabilities.shape == (12, 2)
    assert (campaign.model.predict(X) == np.array(CLASSES)[y]).mean() > 0.9
    assert campaign.model.classes_.tolist() == CLASSES
    # The stored model has not learned the last batch; this one has.
    latest, before = campaign.answers.latest(), campaign.rounds.asked_rows()
    everything = dal.learners.learner.Learner.of(LogisticRegression(), CLASSES)
    np.testing.assert_array_equal(
        campaign.fit().predict_proba(X_new),
        everything.fit(pool.take(latest.rows), latest.labels).predict_proba(X_new),
    )
    assert (campaign.fit().predict_proba(X_new) != campaign.model.predict_proba(X_new)).any()
    assert campaign.rounds.asked_rows().tolist() == before.tolist()
    assert compared.strategies == ["default", "random"]
    assert [replay.seed for replay in compared.of("random")] == [0, 1]
    assert compared.mean("default").labels == (10, 20)
    assert client.status == "running"


@pytest.mark.slow
def test_every_kind_of_client_gives_the_same_batches_and_stays_open(
    truth: tuple[dal.Pool, np.ndarray], client: Client, tmp_path: Path
) -> None:
    asked = []
    for name, chosen in enumerate([None, client, client.cluster, client.scheduler.address]):
        campaign = made(truth, tmp_path / str(name))
        asked.append([])
        for batch in campaign.batches(client=chosen):
            asked[-1].append(batch.record_ids)
            campaign.label(batch, truth[1][batch.rows])
        assert client.status == "running"
        assert client.submit(sum, [1, 2]).result() == 3
    assert asked[0] == asked[1] == asked[2] == asked[3]
    assert len(asked[0]) == 3


def test_an_iteration_ends_where_a_criterion_or_the_pool_does_and_says_why(
    truth: tuple[dal.Pool, np.ndarray], tmp_path: Path
) -> None:
    few = dal.Pool.build(truth[0].read(0, 30), tmp_path / "few.zarr")
    for campaign, reason in (
        (made(truth, tmp_path / "a"), "max_labels"),
        (dal.Campaign.create(tmp_path / "b", few, CLASSES, batch_size=20), "pool_exhausted"),
    ):
        assert campaign.stopped is None
        with pytest.raises(CampaignError, match="no model"):
            assert campaign.model
        for batch in campaign.batches():
            campaign.label(batch, truth[1][batch.rows])
        assert campaign.stopped is not None
        assert [verdict.criterion for verdict in campaign.stopped.verdicts] == [reason]
        assert list(campaign.batches()) == []
    assert campaign.status().labels == 30


def go_on(directory: Path, y: np.ndarray, told: "Connection") -> None:
    campaign = dal.Campaign.open(directory)
    for batch in campaign.batches():
        told.send((batch.number, batch.record_ids))
        if batch.number == 2:
            campaign.label(batch.record_ids[:5], y[batch.rows[:5]])
            told.send("labelled five")
            signal.pause()  # killed here
        campaign.label(batch, y[batch.rows])


def test_a_process_that_is_killed_goes_on_with_the_records_that_wait(
    truth: tuple[dal.Pool, np.ndarray], tmp_path: Path
) -> None:
    undisturbed = made(truth, tmp_path / "undisturbed")
    expected = []
    for batch in undisturbed.batches():
        expected.append(batch.record_ids)
        undisturbed.label(batch, truth[1][batch.rows])

    campaign = made(truth, tmp_path / "campaign")
    context = multiprocessing.get_context("forkserver")
    here, there = context.Pipe()
    process = context.Process(target=go_on, args=(campaign.directory, truth[1], there))
    process.start()
    there.close()
    assert here.recv() == (1, expected[0])
    assert here.recv() == (2, expected[1])
    assert here.recv() == "labelled five"
    with pytest.raises(CampaignLocked, match=str(process.pid)):
        next(iter(campaign.batches()))
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()

    again = []
    for batch in dal.Campaign.open(campaign.directory).batches():
        again.append(batch.record_ids)
        assert batch.pending == len(batch.record_ids)
        campaign.label(batch, truth[1][batch.rows])
    assert again == [expected[1][5:], *expected[2:]]
    assert campaign.answers.latest().rows.tolist() == undisturbed.answers.latest().rows.tolist()


def test_a_batch_that_is_not_labelled_ends_the_iteration_and_stays(
    truth: tuple[dal.Pool, np.ndarray], tmp_path: Path
) -> None:
    campaign = made(truth, tmp_path / "campaign")
    batches = campaign.batches()
    first = next(batches)
    campaign.label(first.record_ids[:13], truth[1][first.rows[:13]])
    rest = next(batches)
    assert (rest.number, rest.record_ids) == (1, first.record_ids[13:])
    with pytest.raises(LabelError, match="`batch` 1"):
        next(batches)
    assert list(batches) == []
    assert campaign.rounds.pending(1) == 7
    again = campaign.next_batch()
    assert isinstance(again, dal.Batch)
    assert again.record_ids == first.record_ids

    campaign.label(rest, [None] * 7)
    second = next(campaign.batches())
    assert second.number == 2
    assert campaign.status().labels == 13


def test_a_second_annotator_is_asked_once_more_and_the_same_one_never_for_ever(
    truth: tuple[dal.Pool, np.ndarray], tmp_path: Path
) -> None:
    campaign = made(truth, tmp_path / "campaign", labelling=dal.Labelling(overlap=2))
    batches, people = campaign.batches(), []
    for who, batch in zip(("ann", "bob"), batches, strict=False):
        campaign.label(batch, truth[1][batch.rows], annotator=who)
        people.append((batch.number, len(batch.rows)))
    assert people == [(1, 20), (1, 20)]
    batches = campaign.batches()
    for _ in range(2):
        batch = next(batches)
        assert batch.number == 2
        campaign.label(batch, truth[1][batch.rows], annotator="ann")
    with pytest.raises(LabelError, match="`batch` 2"):
        next(batches)


def test_an_iteration_that_is_dropped_lets_go_of_the_campaign(
    truth: tuple[dal.Pool, np.ndarray], tmp_path: Path
) -> None:
    campaign = made(truth, tmp_path / "campaign")

    def interrupted() -> None:
        for batch in campaign.batches():
            raise InterruptedError(batch.number)

    with pytest.raises(InterruptedError):
        interrupted()
    for _ in campaign.batches():
        break
    gc.collect()
    with campaign.lock():
        assert campaign.rounds.pending(1) == 20


def test_labels_are_taken_once_by_name_or_not_at_all(truth: tuple[dal.Pool, np.ndarray], tmp_path: Path) -> None:
    campaign = made(truth, tmp_path / "campaign")
    batch = next(campaign.batches())
    for wrong, said in (
        (["ham"] * 19, "`labels`.*20.*19"),
        (["ham"] * 19 + ["eggs"], "eggs"),
        (np.full(20, 2), "2"),
    ):
        with pytest.raises(LabelError, match=said):
            campaign.label(batch, wrong)
    with pytest.raises(LabelError, match="no such mail"):
        campaign.label(["mail 1", "no such mail"], ["ham", "ham"])
    assert campaign.answers.last_id() == 0

    labels = np.array(CLASSES, dtype=object)[truth[1][batch.rows]]
    labels[3] = None
    for _ in range(2):
        campaign.label(batch, labels)
        assert campaign.answers.last_id() == 20
    latest = campaign.answers.latest()
    codes = dict(zip(latest.rows.tolist(), latest.labels.tolist(), strict=True))
    expected = truth[1][batch.rows]
    expected[3] = dal.campaign.SKIPPED
    assert codes == dict(zip(batch.rows.tolist(), expected.tolist(), strict=True))
    outside = next(row for row in range(N) if row not in batch.rows)
    campaign.label([f"mail {outside}"], [truth[1][outside]], annotator="ann")
    assert campaign.status().labels == 20


# -- one name for a setting everywhere -------------------------------------------------------------------------------


def option_of(name: str) -> click.Option:
    command = main.get_command(click.Context(main), "init")
    assert command is not None
    [found] = [each for each in command.params if isinstance(each, click.Option) and each.name == name]
    return found


ALL = [("settings", Settings), *GROUPS.items()]
EACH = [(place, each) for place, kind in ALL for each in fields(kind) if each.name not in GROUPS]


@pytest.mark.parametrize(("place", "each"), EACH, ids=lambda value: getattr(value, "name", value))
def test_a_setting_has_one_name_in_python_in_toml_and_as_an_option(place: str, each: Field) -> None:
    chosen = Settings("pool.zarr", ("ham", "spam"), measuring=dal.Measuring(stop_set=3))
    table = tomllib.loads(chosen.to_toml())[place]
    value = getattr(chosen if place == "settings" else getattr(chosen, place), each.name)
    assert table[each.name] == (list(value) if isinstance(value, tuple) else value)
    kind = Settings if place == "settings" else GROUPS[place]
    assert kind.__doc__ is not None
    assert f"    {each.name} : " in kind.__doc__
    assert each.metadata["help"] in kind.__doc__

    parameters = inspect.signature(dal.Campaign.create).parameters
    assert (each.name if place == "settings" else place) in parameters
    if each.name in ("pool", "classes"):
        assert each.default is MISSING
        return
    option = option_of(each.name)
    assert option.opts == [f"--{each.name.replace('_', '-')}"]
    assert (option.default or ()) == (each.default or ())
    assert option.multiple == isinstance(each.default, tuple)
    assert option.help is not None
    assert option.help.startswith(each.metadata["help"])
    if choices := get_args(each.type) if isinstance(option.type, click.Choice) else ():
        assert tuple(option.type.choices) == choices  # type: ignore[attr-defined]
    if place == "settings" and each.name not in ("explore", "missing_chunks"):  # these go by the strategy and the pool
        assert parameters[each.name].default == each.default


def test_there_are_no_other_settings() -> None:
    names = {each.name for _, each in EACH}
    assert set(inspect.signature(dal.Campaign.create).parameters) == {
        "directory", *(each.name for each in fields(Settings))
    }  # fmt: skip
    command = main.get_command(click.Context(main), "init")
    assert command is not None
    of_classes = {"classes", "each_class", "classes_from"}
    assert {each.name for each in command.params} == names - {"pool"} | {"directory", "pool_path"} | of_classes
    assert set(tomllib.loads(Settings("p", ("a", "b")).to_toml())) == {"settings", *GROUPS}


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (dal.Labelling, {"overlap": 0}),
        (dal.Labelling, {"close_at": 0}),
        (dal.Labelling, {"reserve": 11}),
        (dal.Labelling, {"vote": "loudest"}),
        (dal.Storage, {"store": "bucket/folder"}),
        (dal.Storage, {"database": " "}),
        (dal.Measuring, {"stop_set": -1}),
        (dal.Measuring, {"holdout": 3}),
    ],
)
def test_a_group_of_settings_is_checked_as_it_is_made(kind: type, wrong: dict[str, Any]) -> None:
    [name] = wrong
    with pytest.raises(SettingsError, match=f"`{name}` must be"):
        kind(**wrong)
    with pytest.raises(FrozenInstanceError):
        setattr(kind(), name, None)


def test_a_group_that_is_none_is_refused(truth: tuple[dal.Pool, np.ndarray], tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="`labelling` must be of the type Labelling"):
        made(truth, tmp_path / "campaign", labelling={"overlap": 2})
    assert not (tmp_path / "campaign").exists()


OLD = """\
# What was chosen for this campaign. Edit it between rounds; `id` and `classes` are fixed for ever.
id = "{id}"

[settings]
pool = "{pool}"
classes = ["ham", "spam"]
learner = "forest"
strategy = "margin"
batch = 20
seed = 7
stop = ["max_labels=60"]
explore = 0.2
trusted = []
overlap = 2
gold = 0.1
vote = "dawid_skene"
database = ""
store = ""
close_at = 0.75
reserve = 0.5
stop_set = 5
holdout = ""
missing_chunks = "refuse"
"""
"""What version 0.1 wrote before settings were grouped."""


def test_a_file_of_an_earlier_version_opens_with_the_names_of_now(
    truth: tuple[dal.Pool, np.ndarray], tmp_path: Path
) -> None:
    options = {"estimator": "forest", "strategy": "margin", "random_state": 7, "explore": 0.2}
    new = made(
        truth,
        tmp_path / "campaign",
        labelling=dal.Labelling(overlap=2, gold=0.1, vote="dawid_skene", close_at=0.75, reserve=0.5),
        measuring=dal.Measuring(stop_set=5),
        **options,
    )
    file = new.directory / "campaign.toml"
    file.write_text(OLD.format(id=new.id, pool=truth[0].path), encoding="utf-8")
    assert dal.Campaign.open(new.directory).settings == new.settings

    for wrong, said in (
        ("batch = 20\n", "batch = 20\nbatch_size = 20\n"),
        ("overlap = 2\n", "overlap = 2\n[labelling]\noverlap = 2\n"),
        ("[settings]", "[labeling]\noverlap = 2\n[settings]"),
        ("overlap = 2\n", "[storage]\noverlap = 2\n"),
    ):
        file.write_text(OLD.format(id=new.id, pool=truth[0].path).replace(wrong, said), encoding="utf-8")
        with pytest.raises(SettingsError, match=r"campaign\.toml: .*(batch_size|overlap|labeling)"):
            dal.Campaign.open(new.directory)

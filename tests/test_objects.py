"""What a campaign keeps beside its database: in its directory, or in an object store that several machines reach."""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import fsspec
import numpy as np
import pytest
import s3fs
import zarr
from sklearn.linear_model import LogisticRegression

from dal import Campaign
from dal.campaign import Storage
from dal.campaign.objects import Objects, objects_of
from dal.compute.local import local_cluster
from dal.errors import CampaignError, CampaignNotFound, SettingsError
from dal.learners.models import Model
from dal.loop.campaign import Batch
from dal.places import for_zarr
from dal.pool import Pool
from tests import databases, object_store

MODEL = b"a model, or what is left of it"
DIGEST = hashlib.sha256(MODEL).hexdigest()
CLASSES = ("red", "green", "blue")


@pytest.fixture(params=["directory", "file", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The setting `store`."""
    if request.param == "s3":
        return str(request.getfixturevalue("s3")) + f"/{tmp_path.name}"
    return "" if request.param == "directory" else f"file://{tmp_path}/elsewhere"


def stored(objects: Objects) -> dict[str, bytes]:
    """Everything in the store itself, by name: copies do not count."""
    if "://" not in objects.place:
        root = Path(objects.place)
        return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    files, root = s3fs.S3FileSystem(use_listings_cache=False), objects.place.removeprefix("s3://")
    return {path.removeprefix(f"{root}/"): files.cat_file(path) for path in files.find(root)}


def damage(objects: Objects, name: str, data: bytes) -> None:
    store, _ = fsspec.core.url_to_fs(objects.place)
    store.pipe_file(f"{objects.place}/{name}", data)


# -- objects -----------------------------------------------------------------------------------------------------------


def test_an_object_comes_back_on_this_machine_and_on_another(store: str, tmp_path: Path) -> None:
    mine = objects_of(tmp_path / "mine", store, "0af3")
    mine.check()
    mine.write(f"models/{DIGEST}.skops", MODEL)
    mine.write(f"models/{DIGEST}.skops", MODEL)
    theirs = objects_of(tmp_path / ("theirs" if store else "mine"), store, "0af3")
    assert stored(theirs)[f"models/{DIGEST}.skops"] == MODEL
    for objects in (mine, theirs):
        assert objects.read(f"models/{DIGEST}.skops", DIGEST) == MODEL
        assert objects.find(f"models/{DIGEST}.skops") == MODEL
        assert objects.find("models/none.skops") is None
        with pytest.raises(CampaignError, match=r"models/none\.skops cannot be read: it is gone"):
            objects.read("models/none.skops", DIGEST)


def test_campaigns_that_share_a_store_do_not_meet(store: str, tmp_path: Path) -> None:
    for name in ("first", "second"):
        objects_of(tmp_path / name, store, name).write("learner.skops", name.encode())
    for name in ("first", "second"):
        assert objects_of(tmp_path / name, store, name).find("learner.skops") == name.encode()
        assert stored(objects_of(tmp_path / name, store, name))["learner.skops"] == name.encode()


@pytest.mark.parametrize("found", [MODEL[:-1], b""])
def test_a_damaged_object_is_refused(store: str, tmp_path: Path, found: bytes) -> None:
    objects_of(tmp_path / "mine", store, "0af3").write("models/x", MODEL)
    theirs = objects_of(tmp_path / ("theirs" if store else "mine"), store, "0af3")
    damage(theirs, "models/x", found)
    with pytest.raises(CampaignError, match=f"models/x is damaged: its digest should be {DIGEST}"):
        theirs.read("models/x", DIGEST)
    assert not (tmp_path / "theirs" / "models").exists(), "what is damaged is not copied"


@pytest.mark.parametrize("copy", [MODEL[1:], None])
def test_a_copy_that_is_damaged_or_gone_is_fetched_again(s3: str, tmp_path: Path, copy: bytes | None) -> None:
    objects = objects_of(tmp_path, s3, "0af4")
    objects.write("models/x", MODEL)
    if copy is None:
        (tmp_path / "models/x").unlink()
    else:
        (tmp_path / "models/x").write_bytes(copy)
    assert objects.read("models/x", DIGEST) == MODEL
    assert (tmp_path / "models/x").read_bytes() == MODEL
    s3fs.S3FileSystem().rm(f"{s3}/0af4/models/x")
    assert objects.read("models/x", DIGEST) == MODEL, "a sound copy is read before the store"


# -- refused before work starts ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> tuple[Pool, np.ndarray]:
    rng = np.random.default_rng(3)
    codes = rng.integers(0, 3, 6_000)
    X = (2.0 * rng.standard_normal((3, 4))[codes] + rng.standard_normal((6_000, 4))).astype(np.float32)
    return Pool.build(X, tmp_path_factory.mktemp("pool") / "pool.zarr"), codes


@pytest.mark.parametrize("url", ["bucket/folder", "memory://folder", " s3://bucket", "nosuch://bucket/folder"])
def test_what_is_no_store_is_refused(truth: tuple[Pool, np.ndarray], tmp_path: Path, url: str) -> None:
    with pytest.raises(SettingsError, match=r"`store`.*s3://bucket/folder"):
        Campaign.create(tmp_path / "c", truth[0], CLASSES, storage=Storage(store=url))
    with pytest.raises(CampaignNotFound):
        Campaign.open(tmp_path / "c")


def test_a_store_whose_package_is_missing_is_refused(truth: tuple[Pool, np.ndarray], tmp_path: Path) -> None:
    fsspec.register_implementation("absent", "no_such_module.FileSystem", clobber=True)
    with pytest.raises(CampaignError, match=r"needs more packages.*pip install 'dal-learn\[remote\]'"):
        Campaign.create(tmp_path / "c", truth[0], CLASSES, storage=Storage(store="absent://bucket/folder"))


def nobody_there(patched: pytest.MonkeyPatch) -> str:
    patched.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # the port where nothing is ever answered
    # Apart, not cleared: an instance that Zarr uses leaves its connections open when it is dropped.
    patched.setattr(s3fs.S3FileSystem, "_cache", {})
    return "s3://bucket/folder"


def no_bucket(patched: pytest.MonkeyPatch) -> str:
    return "s3://no-such-bucket/folder"


@pytest.mark.parametrize(("place", "why"), [(nobody_there, "connect"), (no_bucket, "bucket does not exist")])
def test_a_store_that_cannot_be_written_is_refused_when_the_campaign_is_made(
    truth: tuple[Pool, np.ndarray],
    tmp_path: Path,
    s3: str,
    monkeypatch: pytest.MonkeyPatch,
    place: Callable[[pytest.MonkeyPatch], str],
    why: str,
) -> None:
    url = place(monkeypatch)
    with pytest.raises(CampaignError, match=f"{url}/.* cannot be written: .*{why}.*[Rr]un again"):
        Campaign.create(tmp_path / "c", truth[0], CLASSES, storage=Storage(store=url))
    with pytest.raises(CampaignNotFound):
        Campaign.open(tmp_path / "c")
    monkeypatch.undo()
    assert Campaign.create(tmp_path / "c", truth[0], CLASSES, storage=Storage(store=f"{s3}/again")).rounds.all() == []


def test_a_store_that_is_gone_is_refused_before_a_round_is_frozen(
    truth: tuple[Pool, np.ndarray], tmp_path: Path, s3: str
) -> None:
    bucket = object_store.fresh_bucket()
    campaign = Campaign.create(
        tmp_path / "c", truth[0], CLASSES, batch_size=20, storage=Storage(store=f"{bucket}/labels")
    )
    s3fs.S3FileSystem().rm(bucket, recursive=True)
    with pytest.raises(CampaignError, match=f"{bucket}/labels/.* cannot be written"):
        campaign.next_batch()
    assert campaign.rounds.all() == []


# -- another machine goes on -------------------------------------------------------------------------------------------


def asked(campaign: Campaign, truth: tuple[Pool, np.ndarray], **options: object) -> list[int]:
    """Ask the next batch, and answer it."""
    batch = campaign.next_batch(**options)
    assert isinstance(batch, Batch)
    campaign.label(batch, truth[1][batch.rows])
    return batch.rows.tolist()


def moved(campaign: Campaign, directory: Path) -> Campaign:
    """Open a campaign on another machine, which has campaign.toml and nothing else."""
    directory.mkdir()
    shutil.copy(campaign.directory / "campaign.toml", directory)
    return Campaign.open(directory)


def with_batch(campaign: Campaign, size: int) -> Campaign:
    """Edit campaign.toml, as people do between rounds."""
    toml = campaign.directory / "campaign.toml"
    toml.write_text(toml.read_text().replace("batch_size = 20\n", f"batch_size = {size}\n"))
    return Campaign.open(campaign.directory)


@pytest.mark.slow
def test_a_coordinator_on_another_machine_goes_on(
    truth: tuple[Pool, np.ndarray], tmp_path: Path, postgres: str, s3: str
) -> None:
    # 6,000 rows: 20 rows a candidate, and two cells of 16 candidates.
    pool = Pool.build(truth[0].read(0, 6_000), tmp_path / "pool.zarr")
    made = {"batch_size": 20, "random_state": 7, "estimator": LogisticRegression(C=0.37, max_iter=500)}
    alone = Campaign.create(tmp_path / "alone", pool, CLASSES, **made)
    shared = Campaign.create(
        tmp_path / "here",
        pool,
        CLASSES,
        storage=Storage(database=databases.fresh_schema(postgres), store=f"{s3}/moved/"),
        **made,
    )
    for _ in range(2):
        assert asked(shared, truth) == asked(alone, truth)
    Pool.open(pool.path).append(truth[0].read(100, 200))
    there = moved(shared, tmp_path / "there")
    # Neither a pool that grew nor another size of the batch gives it other cells than the first machine found.
    here, there, alone = (with_batch(each, 300) for each in (shared, there, alone))
    truth = truth[0], np.append(truth[1], truth[1][100:200])
    for _ in range(2):
        assert asked(there, truth) == asked(alone, truth)
    assert asked(here, truth) == asked(alone, truth)
    assert {each.summary["codebook"] for each in here.rounds.all()} == {here.rounds.all()[0].summary["codebook"]}
    for each in here.rounds.all()[1:]:
        Model.loads(here.rounds.load_model(each.model))
    kept = stored(here.objects)
    assert sum(name.startswith("models/") for name in kept) == 4
    assert sum("-candidates-" in name for name in kept) == 5
    assert not (tmp_path / "there" / "cells.zarr").exists()


@pytest.mark.slow
def test_workers_write_cells_into_the_store(truth: tuple[Pool, np.ndarray], tmp_path: Path, s3: str) -> None:
    """The workers inherit where the store is, and reach no directory of the campaign."""
    alone = Campaign.create(tmp_path / "alone", truth[0], CLASSES, batch_size=20, random_state=7)
    shared = Campaign.create(
        tmp_path / "shared", truth[0], CLASSES, batch_size=20, random_state=7, storage=Storage(store=f"{s3}/cells")
    )
    with local_cluster(2) as client:
        for number in range(1, 4):
            assert asked(shared, truth, client=client) == asked(alone, truth)
            summary = shared.rounds.get(number).summary
            assert summary["wrote_cells"] is (number == 2), "the first round has no model, and looks at no cells"
            assert summary["notes"] == []
    cells = [zarr.open_array(for_zarr(place), mode="r") for place in (shared.objects.cells, alone.objects.cells)]
    assert cells[0].attrs["codebook"] == cells[1].attrs["codebook"]
    np.testing.assert_array_equal(cells[0][:], cells[1][:])
    assert "cells.zarr/c/0" in stored(shared.objects)

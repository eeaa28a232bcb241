"""Where data lies is decided once, and nothing is deleted that dal did not write."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
import s3fs
import zarr
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dal import Campaign
from dal._files import replacing
from dal.campaign import Measuring
from dal.campaign.objects import objects_of
from dal.errors import InputError, PoolError, ScanError
from dal.learners.learner import Learner
from dal.loop.campaign import Batch
from dal.places import Nodes, NotOurs, Url, for_zarr, place_of
from dal.pool import Pool
from dal.scan import Cells, Journal, sample_codebook, scan, stored_cells
from dal.selection.strategy import Strategy

X = np.random.default_rng(5).standard_normal((300, 3)).astype(np.float32)
# So many records that the strategy spreads its candidates over cells.
MANY = np.random.default_rng(6).standard_normal((1_200, 3)).astype(np.float32)
STRATEGY = Strategy()
MODEL = Learner.named("logistic", ("no", "yes")).fit(X, (X[:, 0] > 0).astype(np.int64))
HOSTILE = [
    "thesis#2", "#", "a?b", "?", "100%", "my%20pool", "%23", "a b", " ", "ä", "e\u0301", "日本", "a\\b", "[ab]", "*",
    "a*", "{x}", "-rf", "--help", "new\nline", "~", "~root", "a::b", "zip::x", "file:", "s3:", "a:b", "a;b", "a&b=c",
    "a@b", "$HOME", "'", '"', "`", ".hidden", "..x", "x.zip", "c", "zarr.json", "a|b", "<a>", "a,b", "\u202e", "\udcff",
]  # fmt: skip
# One name of a file, as a file system takes it.
NAMES = st.sampled_from(HOSTILE) | st.text(
    st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=12
).filter(lambda name: name not in (".", ".."))
SIGNS = "#?%:*[]{}\\;&@ ~"


@pytest.fixture
def tmp_path_of_each() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def contents(folder: Path) -> dict[str, bytes | str | None]:
    """Every file, link and folder below a folder, with what is in it."""
    return {
        str(path.relative_to(folder)): str(path.readlink())
        if path.is_symlink()
        else path.read_bytes()
        if path.is_file()
        else None
        for path in sorted(folder.rglob("*"))
    }


def with_siblings(folder: Path, name: str) -> Path:
    """Fill folders whose names are those that somebody who takes `name` for a URL or a pattern would find."""
    mistaken = {name[:cut] for cut in range(1, len(name)) if name[cut] in SIGNS} | {"thesis", "a", "x", "mine"}
    mistaken |= {name.replace("%20", " ").replace("%23", "#"), name.strip(), name.replace("\\", "/").split("/")[0]}
    mistaken |= {name[cut + 1 :] for cut in range(len(name)) if name[cut] in SIGNS}
    for each in mistaken - {name, "", ".", ".."}:
        if "/" in each:
            continue
        (folder / each / "features").mkdir(parents=True, exist_ok=True)
        for file in ("mine.txt", "features/zarr.json", "cells.zarr"):
            (folder / each / file).write_bytes(each.encode(errors="surrogateescape"))
    return folder / name


# -- a place -----------------------------------------------------------------------------------------------------------


@given(st.lists(NAMES, min_size=1, max_size=3))
def test_a_local_path_is_one_whatever_signs_are_in_it(names: list[str]) -> None:
    path = Path("/", *names)
    assert place_of(path) == place_of(str(path)) == place_of(path.as_uri()) == path
    assert place_of(str(place_of(Path(*names)))) == Path(*names).absolute()
    assert for_zarr(path) is path


@pytest.mark.parametrize(
    ("said", "text"),
    [
        ("s3://bucket/with#hash?x=1%20/", "s3://bucket/with#hash?x=1%20"),
        ("S3://bucket/Key", "s3://bucket/Key"),
        ("memory://a", "memory://a"),
        ("simplecache::s3://bucket/pool", "simplecache::s3://bucket/pool"),
        ("zip://a.zarr::s3://bucket/a#b.zip", "zip://a.zarr::s3://bucket/a#b.zip"),
    ],
)
def test_a_url_of_a_known_kind_is_one(said: str, text: str) -> None:
    assert place_of(said) == Url(text)
    assert place_of(text) == place_of(place_of(text)) == Url(text)
    assert str(place_of(said) / "x") == str(place_of(f"{text}/x"))


@pytest.mark.parametrize(
    ("said", "path"),
    [
        ("FILE://localhost/data/a%23b#c", "/data/a#b#c"),
        ("local:///data/x", "/data/x"),
        ("file:///data/%ff", "/data/\udcff"),
        ("/data/s3://bucket", "/data/s3:/bucket"),
        ("/data/pool.zarr/", "/data/pool.zarr"),
    ],
)
def test_a_url_of_a_file_is_a_path(said: str, path: str) -> None:
    assert place_of(said) == Path(path)


@pytest.mark.parametrize(
    "said",
    ["", "a\0b", "file:///a%00", "file://a/b", "file://pool.zarr", " s3://b", "nosuch://b", "s3://b/a::c", 3, None],
)
def test_what_is_no_place_is_refused(said: str) -> None:
    with pytest.raises(InputError, match="got"):
        place_of(said)


# -- pools, campaigns and stores under any name ------------------------------------------------------------------------


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(NAMES, st.booleans())
@example("thesis#2", True)
@example("emb #2.zarr", False)
def test_pools_under_any_name_leave_their_siblings_alone(name: str, as_text: bool) -> None:
    with tempfile.TemporaryDirectory() as within:
        folder = Path(within)
        path = with_siblings(folder, name)
        before = contents(folder)
        place = str(path) if as_text else path
        ids = [f"r{row}" for row in range(300)]
        Pool.build(X[:100], place, ids=ids[:100], display={"n": ids[:100]})
        Pool.build(X[50:150], place, ids=ids[50:150], overwrite=True)
        Pool.open(place).append(X[150:300], ids=ids[150:])
        opened = Pool.open(place)
        np.testing.assert_array_equal(opened.read(0, opened.n_rows), X[50:])
        assert opened.rows_of(["r299", "r50"]).tolist() == [249, 0]
        np.testing.assert_array_equal(Pool.open(opened.path).take([249]), X[299:])
        after = contents(folder)
        assert {each: after.get(each) for each in before} == before
        new = {Path(each).parts[0] for each in set(after) - set(before)}
        assert new <= {name, f".{name}.lock"}


@settings(max_examples=12, deadline=None)
@given(NAMES, NAMES)
@example("thesis#2", "c")
@example("#2026", "camp")
def test_what_a_campaign_keeps_leaves_siblings_alone(outer: str, inner: str) -> None:
    with tempfile.TemporaryDirectory() as within:
        folder = Path(within)
        path = with_siblings(with_siblings(folder, outer), inner)
        before = contents(folder)
        pool = Pool.build(MANY, folder / "the pool.zarr")
        strategy = STRATEGY
        codebook = sample_codebook(pool, 2, 0)
        for objects in (objects_of(path, "", "0af3"), objects_of(path, path.as_uri(), "0af3")):
            objects.write("models/a", b"model")
            assert objects.find("models/a") == b"model"
            for rows in (1_100, 1_200):  # a pool that has grown: the cells are made again
                cells = stored_cells(objects.cells, rows, codebook)
                assert cells.write
                journal = Journal(path / "journal")
                found = scan(pool.head(rows), MODEL, strategy, 5, codebook=codebook, cells=cells, journal=journal)
                journal.clear()
                assert len(found.candidates)
            np.testing.assert_array_equal(
                zarr.open_array(for_zarr(objects.cells), mode="r")[found.candidates.rows], found.candidates.cells
            )
            assert objects.cells.is_relative_to(path)
        after = contents(folder)
        assert {each: after.get(each) for each in before} == before


@pytest.mark.parametrize("name", ["thesis#2/camp", "box/#2026/camp", "a?b/c d"])
def test_a_campaign_beside_the_users_files(name: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 2, 4_000)
    pool = Pool.build((rng.standard_normal((4_000, 3)) + 2 * codes[:, None]).astype(np.float32), tmp_path / "pool.zarr")
    for sibling in ("thesis", "box", "a"):
        (tmp_path / sibling).mkdir()
        (tmp_path / sibling / "chapter.tex").write_text("two years of work")
    campaign = Campaign.create(tmp_path / name, pool, ["no", "yes"], batch_size=10, measuring=Measuring(stop_set=0))
    for _ in range(2):
        batch = Campaign.open(tmp_path / name).next_batch()
        assert isinstance(batch, Batch)
        campaign.label(batch, codes[batch.rows])
    assert zarr.open_array(campaign.directory / "cells.zarr", mode="r").shape == (4_000,)
    for sibling in ("thesis", "box", "a"):
        assert (tmp_path / sibling / "chapter.tex").read_text() == "two years of work"
        assert {path.name for path in (tmp_path / sibling).iterdir()} <= {"chapter.tex", "#2026"}


SLOW_NAMES = [pytest.param(name, marks=pytest.mark.slow) for name in ("a*", "100%25")]


@pytest.mark.parametrize("name", ["with#hash", *SLOW_NAMES])
def test_pools_in_an_object_store_leave_their_siblings_alone(name: str, s3: str) -> None:
    store = s3fs.S3FileSystem(use_listings_cache=False)
    kept = [f"{s3}/{each}/features/mine" for each in ("with", "a", "abc", "x", f"{name}2", f"{name}/features2")]
    for key in kept:
        store.pipe_file(key, b"mine")
    place = f"{s3}/{name}/"
    Pool.build(X[:100], place, ids=[str(row) for row in range(100)])
    Pool.build(X[100:250], place, ids=[str(row) for row in range(150)], overwrite=True)
    Pool.open(place).append(X[250:], ids=[str(row) for row in range(150, 200)])
    np.testing.assert_array_equal(Pool.open(place).read(0, 200), X[100:])
    assert [store.cat_file(key) for key in kept] == [b"mine"] * len(kept)
    pool = Pool.build(MANY, "memory://places/many.zarr", overwrite=True)
    codebook = sample_codebook(pool, 2, 0)
    for rows in (1_100, 1_200):
        cells = stored_cells(f"{place}cells.zarr", rows, codebook)
        scan(pool.head(rows), MODEL, STRATEGY, 5, codebook=codebook, cells=cells)
    assert zarr.open_array(f"{place}cells.zarr", mode="r").shape == (1_200,)
    assert [store.cat_file(key) for key in kept] == [b"mine"] * len(kept)


def test_a_file_url_names_a_pool(tmp_path: Path) -> None:
    built = Pool.build(X, (tmp_path / "my #1 pool.zarr").as_uri())
    assert built.place == tmp_path / "my #1 pool.zarr"
    assert [path.name for path in tmp_path.iterdir()] == ["my #1 pool.zarr"]


# -- nothing is deleted that dal cannot prove it made ------------------------------------------------------------------


@pytest.mark.parametrize("what", ["file", "link", "array", "root"])
def test_a_pool_that_holds_more_than_dal_wrote_keeps_it(what: str, tmp_path: Path) -> None:
    place = tmp_path / "pool.zarr"
    ids = [str(row) for row in range(100)]
    Pool.build(X[:100], place, ids=ids)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "zarr.json").write_bytes((place / "ids/zarr.json").read_bytes())
    (tmp_path / "elsewhere" / f"zarr.{'0' * 32}.partial").write_bytes(b"of another program at work")
    match what:
        case "file":
            (place / "features/c/notes.txt").write_text("mine")
        case "link":
            shutil.rmtree(place / "ids")
            (place / "ids").symlink_to(tmp_path / "elsewhere")
        case "array":
            zarr.open_group(place, mode="r+").create_array("ids_index_notes", data=X)
            zarr.open_group(place, mode="r+").create_array("umap", data=X)
        case "root":
            (place / "README").write_text("mine")
    before = contents(tmp_path)
    if what in ("file", "link"):
        with pytest.raises(PoolError, match=r"notes\.txt|ids must not be a symbolic link"):
            Pool.build(X[100:], place, overwrite=True)
        assert contents(tmp_path) == before
        return
    np.testing.assert_array_equal(Pool.build(X[100:], place, overwrite=True).read(0, 200), X[100:])
    Pool.open(place).append(X[:100])
    kept = [
        name for name in before if name.startswith(("pool.zarr/umap", "pool.zarr/ids_index_notes", "pool.zarr/READ"))
    ]
    assert {name: contents(tmp_path)[name] for name in kept} == {name: before[name] for name in kept}
    assert kept


def test_the_folder_for_the_ids_is_refused_if_it_is_the_users(tmp_path: Path) -> None:
    beside = tmp_path / ".pool.zarr.ids"
    beside.mkdir()
    (beside / "bucket-000").write_bytes(b"left by a build that was killed")
    Pool.build(X, tmp_path / "pool.zarr", ids=[str(row) for row in range(300)])
    assert not beside.exists()
    beside.mkdir()
    (beside / "bucket-000").write_bytes(b"mine")
    (beside / "mine").write_bytes(b"mine")
    with pytest.raises(PoolError, match=r"\.pool\.zarr\.ids"):
        Pool.build(X, tmp_path / "pool.zarr", ids=[str(row) for row in range(300)], overwrite=True)
    assert contents(beside) == {"bucket-000": b"mine", "mine": b"mine"}


def cells_of(pool: Pool, place: object) -> object:
    codebook = sample_codebook(pool, 2, 0)
    return scan(pool, MODEL, STRATEGY, 5, codebook=codebook, cells=Cells(place_of(place), write=True))


@pytest.mark.parametrize("what", ["array", "same shape", "group", "file", "folder", "link", "chunk"])
def test_cells_take_the_place_of_nothing_else(what: str, tmp_path: Path) -> None:
    pool = Pool.build(MANY, tmp_path / "pool.zarr")
    place = tmp_path / "cells.zarr"
    match what:
        case "array":
            zarr.create_array(place, data=np.arange(7))
        case "same shape":
            zarr.create_array(place, data=np.arange(1_200, dtype=np.uint16), chunks=(1_200,))
        case "group":
            zarr.create_group(place)
        case "file":
            place.write_text("mine")
        case "folder":
            place.mkdir()
            (place / "mine").write_text("mine")
        case "link":
            cells_of(pool.head(1_100), tmp_path / "others.zarr")
            place.symlink_to(tmp_path / "others.zarr")
            (tmp_path / "others.zarr/c/mine").write_text("mine")
        case "chunk":
            cells_of(pool.head(1_100), place)
            (place / "c/mine").write_text("mine")
    before = contents(tmp_path)
    with pytest.raises(ScanError, match=r"cells\.zarr"):
        cells_of(pool, place)
    assert contents(tmp_path) == before


def test_cells_whose_metadata_is_torn_are_put_aside(tmp_path: Path) -> None:
    pool = Pool.build(MANY, tmp_path / "pool.zarr")
    cells_of(pool, tmp_path / "cells.zarr")
    (tmp_path / "cells.zarr/zarr.json").write_bytes(b"")
    torn = contents(tmp_path / "cells.zarr")
    cells_of(pool, tmp_path / "cells.zarr")
    assert zarr.open_array(tmp_path / "cells.zarr", mode="r").shape == (1_200,)
    assert contents(tmp_path / "cells.zarr.unreadable-1") == torn


def test_a_journal_deletes_its_own_passes_only(tmp_path: Path) -> None:
    pool = Pool.build(MANY, tmp_path / "pool.zarr")
    place = tmp_path / "results"
    (place / ("0" * 64)).mkdir(parents=True)
    (place / ("0" * 64) / "spans").write_bytes(b"of another pass")
    (place / ("1" * 64)).mkdir()
    (place / ("1" * 64) / "mine").write_bytes(b"mine")
    (place / "2026").mkdir()
    (place / "2026" / "spans").write_bytes(b"mine")
    (place / ("2" * 64)).symlink_to(place / "2026")
    kept = {name: held for name, held in contents(place).items() if not name.startswith("0")}
    journal = Journal(place)
    scan(pool, None, Strategy.named("random"), 5, journal=journal)
    assert len([name for name in contents(place) if name.endswith("spans")]) == 3 - 1
    journal.clear()
    assert contents(place) == kept


def test_a_file_that_is_replaced_leaves_its_neighbours_alone(tmp_path: Path) -> None:
    (tmp_path / "labels.csv.part").write_text("a download of mine")
    with replacing(tmp_path / "labels.csv") as file:
        file.write(b"new")
    assert contents(tmp_path) == {"labels.csv": b"new", "labels.csv.part": b"a download of mine"}


def test_deletion_takes_no_sign_for_a_pattern() -> None:
    store = fsspec.filesystem("memory")
    for key in ("/places/a*/x/c/0", "/places/ab/x/c/0", "/places/a*/x/zarr.json", "/places/a*/xy/c/0"):
        store.pipe_file(key, b"")
    Nodes.found(place_of("memory://places/a*"), ["x"]).delete()
    assert [*store.find("/places/a*"), *store.find("/places/ab")] == ["/places/a*/xy/c/0", "/places/ab/x/c/0"]
    store.pipe_file("/places/ab/x/c/mine", b"")
    with pytest.raises(NotOurs, match="places/ab/x/c/mine"):
        Nodes.found(place_of("memory://places/ab"), ["x"])

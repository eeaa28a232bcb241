"""Files that are written whole, and NumPy files, whole and damaged."""

import errno
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import dal
from dal._files import as_npz, read_labelled, read_labels, read_npz, replacing, write_npz
from dal.errors import CampaignError, SettingsError

X = np.arange(6, dtype=np.float64).reshape(2, 3)
Y = np.array(["ham", "spam"])


@pytest.mark.parametrize("kind", ["float64", "float32", "float16", "int64", "uint8", "bool"])
def test_features_of_any_numbers_are_read_as_they_are(tmp_path: Path, kind: str) -> None:
    np.savez(tmp_path / "x.npz", X=X.astype(kind), y=Y, more=np.zeros(3))
    features, labels = read_labelled(tmp_path / "x.npz", 3)
    assert features.dtype == np.float32
    assert features.tolist() == X.astype(kind).astype(float).tolist()
    assert labels.tolist() == ["ham", "spam"]


def test_pictures_are_flattened_record_by_record(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", X=np.arange(12, dtype=np.uint8).reshape(2, 2, 3, 1), y=Y)
    assert read_labelled(tmp_path / "x.npz", 6)[0].tolist() == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]


def test_a_feature_beyond_float32_is_infinite(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", X=X * 1e300, y=Y)
    assert np.isinf(read_labelled(tmp_path / "x.npz", 3)[0]).sum() == 5


@pytest.mark.parametrize(
    ("stored", "said"),
    [
        ({"X": X + 0j, "y": Y}, "got complex128"),
        ({"X": X.astype(str), "y": Y}, "X must hold numbers, got <U"),
        ({"X": X.astype("M8[s]"), "y": Y}, "X must hold numbers, got datetime64"),
        ({"X": np.zeros((2, 3), "i4,i4"), "y": Y}, "X must hold numbers"),
        ({"X": X[0], "y": Y}, r"X \(3,\) and y \(2,\)"),
        ({"X": np.float64(1), "y": Y}, r"X \(\) and y \(2,\)"),
        ({"X": X, "y": Y[0]}, r"X \(2, 3\) and y \(\)"),
        ({"X": X, "y": Y[:, None]}, r"y \(2, 1\)"),
        ({"X": X[:0], "y": Y[:0]}, r"X \(0, 3\)"),
        ({"X": X.reshape(2, 3, 1)[:0], "y": Y[:0]}, r"X \(0, 3, 1\)"),
        ({"X": X, "labels": Y}, "of X, labels without y"),
        ({"X": X, "y": Y.astype(object)}, r"fillna\(''\)"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_it_is(tmp_path: Path, stored: dict[str, np.ndarray], said: str) -> None:
    np.savez(tmp_path / "x.npz", **stored)
    with pytest.raises(SettingsError, match=said):
        read_labelled(tmp_path / "x.npz", 3)


def flip(content: bytes) -> bytes:
    """Damage the stream of a packed file."""
    return content[:150] + bytes(255 - byte for byte in content[150:250]) + content[250:]


@pytest.mark.parametrize(
    "damage",
    [
        lambda _: b"",
        lambda _: b"X,y\n1,ham\n",
        lambda _: b"\x80\x04\x95pickle",
        lambda content: content[:200],
        lambda content: content[:-30],
        flip,
    ],
    ids=["empty", "CSV", "pickle", "half", "cut", "damaged"],
)
def test_a_file_that_is_none_is_refused_in_words(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    rng = np.random.default_rng(0)
    np.savez_compressed(tmp_path / "x.npz", X=rng.random((400, 3)), y=np.array(["ham"] * 400))
    np.save(tmp_path / "y.npy", np.array(["ham"] * 400))
    (tmp_path / "x.npz").write_bytes(damage((tmp_path / "x.npz").read_bytes()))
    (tmp_path / "y.npy").write_bytes(damage((tmp_path / "y.npy").read_bytes()[:300]))
    with pytest.raises(SettingsError, match=r"x\.npz") as refused:
        read_labelled(tmp_path / "x.npz", 3)
    assert "allow_pickle" not in str(refused.value)
    if damage is not flip:  # the labels lie as they are, and bytes of texts are texts
        with pytest.raises(SettingsError, match=r"y\.npy"):
            read_labels(tmp_path / "y.npy")


def test_one_form_in_place_of_the_other_is_named(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    np.savez(tmp_path / "y.npz", y=Y)
    with zipfile.ZipFile(tmp_path / "z.npz", "w") as archive:
        archive.writestr("X", "raw")
        archive.writestr("y", "raw")
    with pytest.raises(SettingsError, match="got a single array"):
        read_labelled(tmp_path / "x.npy", 3)
    with pytest.raises(SettingsError, match=r"an .npy file of labels, got an \.npz file of y"):
        read_labels(tmp_path / "y.npz")
    with pytest.raises(SettingsError, match=r"z\.npz"):
        read_labelled(tmp_path / "z.npz", 3)
    with pytest.raises(SettingsError, match="cannot be read"):
        read_labels(tmp_path)


# -- files of dal ------------------------------------------------------------------------------------------------------


def test_what_is_written_is_read(tmp_path: Path) -> None:
    arrays = {"rows": np.arange(3, 9), "name": np.array("wörter")}
    write_npz(tmp_path / "a.npz", arrays, compressed=True)
    for found in (read_npz(tmp_path / "a.npz"), read_npz(as_npz(**arrays))):
        assert found["rows"].tolist() == [3, 4, 5, 6, 7, 8]
        assert found["name"] == "wörter"


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("keep", [0, 3, 100, 0.5, 0.9])
def test_a_torn_file_is_named(tmp_path: Path, *, keep: float, compressed: bool) -> None:
    path = tmp_path / "torn.npz"
    write_npz(path, {"x": np.random.default_rng(0).random(999)}, compressed=compressed)
    whole = path.read_bytes()
    path.write_bytes(whole[: keep if isinstance(keep, int) else int(keep * len(whole))])
    with pytest.raises(CampaignError, match=r"torn\.npz"):
        read_npz(path)
    with pytest.raises(CampaignError, match="rounds/0001"):
        read_npz(path.read_bytes(), "rounds/0001.npz")


def test_a_changed_byte_is_found(tmp_path: Path) -> None:
    data = bytearray(as_npz(x=np.arange(1000)))
    data[len(data) // 2] ^= 1
    with pytest.raises(CampaignError):
        read_npz(bytes(data))


def test_no_file_is_no_torn_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_npz(tmp_path / "none.npz")


def test_a_file_of_objects_is_not_unpickled(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.array([{}], dtype=object))
    with pytest.raises(CampaignError, match=r"a\.npz"):
        read_npz(tmp_path / "a.npz")


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")

    def fail() -> None:
        with replacing(tmp_path / "a") as file:
            file.write(b"new")
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(CampaignError, match="Free space"):
        fail()
    assert (tmp_path / "a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_files_are_written_in_one_place() -> None:
    package = Path(dal.__file__).parent
    calls = re.compile(r"os\.replace\(|os\.fsync\(|np\.savez|np\.save\(|np\.load\(|mkstemp")
    found = {path.relative_to(package).as_posix() for path in package.rglob("*.py") if calls.search(path.read_text())}
    # A source maps the user's array; it is not read at once.
    assert found == {"_files.py", "pool/sources.py"}

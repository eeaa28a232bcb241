"""Labelled records that a user keeps in NumPy's files: an .npz of features and labels, an .npy of labels."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dal.errors import SettingsError

_WRITTEN = "write one with numpy.savez(path, X=features, y=labels)"
_AS_TEXTS = (
    "Labels that are Python objects become texts by pandas.Series(labels).fillna('').astype(str).to_numpy(str): those"
    " that are none are empty then, and an empty text is no class"
)


def read_labelled(path: str | Path, n_features: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[Any]]:
    """Read the features and the labels of an .npz file with the arrays ``X`` and ``y``, one record a row of both.

    Raises
    ------
    SettingsError
        If it is no such file, or does not fit the pool; the message begins with the path.
    """
    stored = _loaded(Path(path), ("X", "y"))
    X, y = stored["X"], stored["y"]
    if X.dtype.kind not in "biuf":
        raise SettingsError(f"{path} holds X of {X.dtype}; numbers were expected: {_WRITTEN}")
    shape = X.shape
    if X.ndim > 2 and X.size:
        X = X.reshape(len(X), -1)
    if X.ndim != 2 or X.shape != (*y.shape, n_features) or not len(X):
        raise SettingsError(
            f"{path} holds X {shape} and y {y.shape}; X (n, {n_features}) and y (n,) were expected: {_WRITTEN}"
        )
    with np.errstate(over="ignore"):  # what no float32 holds becomes infinite, and is refused as such
        return X.astype(np.float32), y


def read_labels(path: Path) -> npt.NDArray[Any]:
    """Read the array of an .npy file.

    Raises
    ------
    SettingsError
        If it is no such file; the message begins with the path.
    """
    return _loaded(path, ())[""]


def _loaded(path: Path, names: tuple[str, ...]) -> dict[str, npt.NDArray[Any]]:
    """Read the named arrays of an .npz file, or the one of an .npy file, which has no name."""
    form = "an .npz file with X and y" if names else "an .npy file of labels"
    todo = _WRITTEN if names else "write one with numpy.save(path, labels)"
    try:
        with path.open("rb") as file:
            found = np.load(file, allow_pickle=False)
            if isinstance(found, np.ndarray):
                if names:
                    raise SettingsError(f"{path} holds one array alone; expected {form}: {todo}")
                return {"": found}
            if missing := [name for name in names or ("",) if name not in found.files]:
                lacks = f"; it lacks {' and '.join(missing)}" if names else ""
                raise SettingsError(
                    f"{path} is an .npz file of {', '.join(found.files) or 'nothing'}{lacks}; expected {form}: {todo}"
                )
            return {name: np.asarray(found[name]) for name in names}  # others than NumPy put bytes in it
    except SettingsError:
        raise
    except OSError as error:
        raise SettingsError(f"{path} cannot be read ({error.strerror or error}); expected {form}") from error
    except Exception as error:  # of a damaged file, parsing its header or unpacking it may raise anything
        raise SettingsError(f"{path} cannot be read as {form} ({_reason(error)}); {todo}") from error


def _reason(error: Exception) -> str:
    """Say why NumPy cannot read a file, without its advice to unpickle: that would run what the file says."""
    said = str(error)
    if said.startswith("Object arrays"):
        return f"it holds Python objects. {_AS_TEXTS}"
    return "it is none" if "pickle" in said else f"damaged: {said}"

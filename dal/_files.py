"""Labelled records in a user's NumPy files: an .npz of features and labels, an .npy of labels."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dal.errors import SettingsError

_WRITTEN = "write one with numpy.savez(path, X=features, y=labels)"
_AS_TEXTS = (
    "turn labels that are Python objects into texts with pandas.Series(labels).fillna('').astype(str).to_numpy(str):"
    " missing ones are then empty, and an empty text is no class"
)


def read_labelled(path: str | Path, n_features: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[Any]]:
    """Read the features and the labels of an .npz file with the arrays ``X`` and ``y``, one record a row of both.

    Parameters
    ----------
    path : str or Path
    n_features : int
        Number of features of the pool.

    Returns
    -------
    X : ndarray of float32, shape (n, n_features)
    y : ndarray of shape (n,)

    Raises
    ------
    SettingsError
        The file is no such file, or does not match the pool; the message begins with the path.
    """
    stored = _loaded(Path(path), ("X", "y"))
    X, y = stored["X"], stored["y"]
    if X.dtype.kind not in "biuf":
        raise SettingsError(f"{path}: X must hold numbers, got {X.dtype}; {_WRITTEN}")
    shape = X.shape
    if X.ndim > 2 and X.size:
        X = X.reshape(len(X), -1)
    if X.ndim != 2 or X.shape != (*y.shape, n_features) or not len(X):
        raise SettingsError(
            f"{path}: X must be (n, {n_features}) and y (n,), got X {shape} and y {y.shape}; {_WRITTEN}"
        )
    with np.errstate(over="ignore"):  # values beyond float32 become infinite, and infinity is refused later
        return X.astype(np.float32), y


def read_labels(path: Path) -> npt.NDArray[Any]:
    """Read the array of an .npy file.

    Parameters
    ----------
    path : Path

    Returns
    -------
    ndarray

    Raises
    ------
    SettingsError
        The file is no such file; the message begins with the path.
    """
    return _loaded(path, ())[""]


def _loaded(path: Path, names: tuple[str, ...]) -> dict[str, npt.NDArray[Any]]:
    """Read the named arrays of an .npz file, or the unnamed one of an .npy file."""
    form = "an .npz file with X and y" if names else "an .npy file of labels"
    todo = _WRITTEN if names else "write one with numpy.save(path, labels)"
    try:
        with path.open("rb") as file:
            found = np.load(file, allow_pickle=False)
            if isinstance(found, np.ndarray):
                if names:
                    raise SettingsError(f"{path} must be {form}, got a single array; {todo}")
                return {"": found}
            if missing := [name for name in names or ("",) if name not in found.files]:
                lacks = f" without {' and '.join(missing)}" if names else ""
                raise SettingsError(
                    f"{path} must be {form}, got an .npz file of {', '.join(found.files) or 'nothing'}{lacks}; {todo}"
                )
            return {name: np.asarray(found[name]) for name in names}  # members that are no arrays come as bytes
    except SettingsError:
        raise
    except OSError as error:
        raise SettingsError(f"{path} cannot be read ({error.strerror or error}); it must be {form}") from error
    except Exception as error:  # parsing or unpacking a damaged file may raise anything
        raise SettingsError(f"{path} cannot be read as {form} ({_reason(error)}); {todo}") from error


def _reason(error: Exception) -> str:
    """Return why NumPy cannot read a file, without its advice to unpickle, which would run code from the file."""
    text = str(error)
    if text.startswith("Object arrays"):
        return f"it holds Python objects; {_AS_TEXTS}"
    return "it is none" if "pickle" in text else f"damaged: {text}"

"""Encoders by name, for the command line."""

import inspect
from pathlib import Path
from typing import Any

from dal import plugins
from dal.choices import ENCODERS
from dal.encoders.tuning import Tunable
from dal.errors import SettingsError

SLOT = plugins.Slot("encoder", "dal.encoders", ENCODERS)
_HOMES = {"sentences": "dal.encoders:SentenceEncoder", "onnx": "dal.encoders:OnnxEncoder"}


def encoder_named(text: str) -> Any:  # noqa: ANN401 - any object with `encode`
    """Return the encoder that a text names.

    Parameters
    ----------
    text : str
        One of :data:`dal.choices.ENCODERS`, ``module:object``, or an entry point of the group ``dal.encoders``, with
        parameters as in ``sentences(model='all-MiniLM-L6-v2')``. A class or function is called without arguments where
        no parameters are given.

    Raises
    ------
    SettingsError
        There is no such encoder, or its parameters are refused.
    """
    base, opening, parameters = text.partition("(")
    found = plugins.find(f"{_HOMES.get(base, base)}{opening}{parameters}", SLOT)
    if not opening and (isinstance(found, type) or (inspect.isroutine(found) and not hasattr(found, "encode"))):
        try:
            return found()
        except Exception as error:  # anybody's code
            raise SettingsError(
                f"`encoder` must be called with its parameters, as in \"{text}(model='...')\", got {text!r}: {error}"
            ) from error
    return found


def tuned(encoder: str, weights: str) -> Tunable:
    """Return an encoder with weights that `dal finetune` has written.

    Parameters
    ----------
    encoder : str
        As for `encoder_named`.
    weights : str
        A file of safetensors.
    """
    found = tunable(encoder_named(encoder))
    try:
        data = Path(weights).read_bytes()
    except OSError as error:
        raise SettingsError(f"`weights` must be a file that can be read, got {weights}: {error.strerror}") from error
    return found.with_weights(data)


def tunable(encoder: object) -> Tunable:
    """Return an encoder that can be trained; raise an error for another one."""
    if not isinstance(encoder, Tunable):
        raise SettingsError(
            f"`encoder` must be a SentenceEncoder or a TorchEncoder to be trained, got {type(encoder).__name__}"
        )
    return encoder

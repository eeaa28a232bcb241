"""Encoders by name, for the command line."""

import inspect
from typing import Any

from dal import plugins
from dal.choices import ENCODERS
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

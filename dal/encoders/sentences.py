"""Sentence models of sentence-transformers."""

import json
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from dal._distribution import needs
from dal.encoders.devices import chosen_device, fitting, halved, state_digest
from dal.encoders.protocol import named_digest
from dal.encoders.tuning import Tunable
from dal.errors import DalError, SettingsError


class SentenceEncoder(Tunable):
    """A model of sentence-transformers, loaded when it is first used.

    Parameters
    ----------
    model : str
        A directory, or a name that the library finds: on the machine first, then on its hub.
    batch_size : int, optional
        Texts of a batch; texts of similar length come together. Default: 32, or fewer where memory has no room for as
        many long ones.
    device : str, optional
        ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ... Default: a GPU where torch sees one.
    max_length : int, optional
        Tokens after which a text is cut. Default: the model's.
    """

    def __init__(
        self, model: str, *, batch_size: int | None = None, device: str | None = None, max_length: int | None = None
    ) -> None:
        self.model, self.batch_size, self.device, self.max_length = str(model), batch_size, device, max_length

    @cached_property
    def id(self) -> str:
        """The model's name, and a digest of its weights, its tokenizer and its further modules."""
        model = self._loaded
        return named_digest(
            self.model.rstrip("/").rpartition("/")[2],
            state_digest(model),
            str(model),  # the modules and their settings, such as the pooling
            str(model.max_seq_length),
            tokenizer_text(model.tokenizer),
        )

    @cached_property
    def _loaded(self) -> Any:  # noqa: ANN401 - a model of a library that may be missing
        with needs("sentences", "a sentence model"):
            from sentence_transformers import SentenceTransformer
        try:
            model = SentenceTransformer(self.model, device=chosen_device(self.device), trust_remote_code=False)
        except DalError:
            raise
        except Exception as error:  # the library raises whatever a damaged file makes it raise
            raise SettingsError(
                f"`model` must be a sentence model, got {self.model!r}, which cannot be loaded: "
                f"{type(error).__name__}: {error}; check its files, or download it again"
            ) from error
        if self.max_length is not None:
            model.max_seq_length = self.max_length
        return self._replaced(model).eval()

    @property
    def trained(self) -> Any:  # noqa: ANN401 - a module of torch
        """The module, which :func:`dal.encoders.tuning.tuned` trains."""
        return self._loaded

    def encode(self, batch: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return the features of texts; where a GPU runs out of memory, in halves."""
        return halved(self._encode, batch)

    def forward(self, batch: Sequence[str]) -> Any:  # noqa: ANN401 - a tensor
        """Return the features of texts as a tensor that gradients pass."""
        model = self._loaded
        # The newer name of one method.
        cut = model.preprocess if hasattr(model, "preprocess") else model.tokenize
        inputs = {name: each.to(model.device) for name, each in cut(list(batch)).items() if hasattr(each, "to")}
        return model(inputs)["sentence_embedding"]

    def fitting(self, record: str, room: int) -> int:
        """Return how many texts such as this one a batch may have in some bytes of memory."""
        return fitting(self._loaded, self._encode, record, room, str(self._loaded.device))

    def _encode(self, batch: Sequence[str]) -> npt.NDArray[np.float32]:
        found: npt.NDArray[np.float32] = self._loaded.encode(
            list(batch), batch_size=len(batch), convert_to_numpy=True, show_progress_bar=False
        )
        return found

    def __getstate__(self) -> dict[str, Any]:
        # The model does not travel, nor does its id: each process loads it from its own files, which may be others.
        return {name: value for name, value in self.__dict__.items() if name not in ("_loaded", "id")}


def tokenizer_text(tokenizer: Any) -> str:  # noqa: ANN401 - of transformers
    """Return a text that holds all that decides how a tokenizer cuts texts."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        # Truncation and padding are settings of the call before, not of the tokenizer.
        kept = json.loads(backend.to_str())
        return json.dumps({name: kept[name] for name in sorted(kept) if name not in ("truncation", "padding")})
    return repr(sorted(tokenizer.get_vocab().items())) if hasattr(tokenizer, "get_vocab") else repr(tokenizer)

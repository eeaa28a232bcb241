"""Networks as encoders: modules of torch, and models exported to ONNX."""

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dal._distribution import needs
from dal.encoders.devices import chosen_device, fitting, halved, state_digest
from dal.encoders.protocol import file_digest, function_digest, named_digest
from dal.encoders.tuning import Tunable
from dal.errors import SettingsError


class TorchEncoder(Tunable):
    """Any module of torch, such as a network of torchvision or timm without its head.

    Parameters
    ----------
    module : torch.nn.Module or callable
        From a batch of what `preprocess` returns to (n, d), or to more axes that are flattened. A function that makes
        the module travels lighter to workers than the module: each process calls it once.
    preprocess : callable
        From one record, a `PIL.Image.Image` in red, green and blue or a text, to a tensor or an array, all of one
        shape.
    batch_size : int, optional
        Default: 32, or fewer where memory has no room for as many.
    device : str, optional
        ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ... Default: a GPU where torch sees one.
    name : str, optional
        The first part of the id. Default: the name of the module's class, or of the function.
    """

    def __init__(
        self,
        module: Any,  # noqa: ANN401 - torch may be missing
        preprocess: Callable[[Any], Any],
        *,
        batch_size: int | None = None,
        device: str | None = None,
        name: str | None = None,
    ) -> None:
        if not callable(module) or not callable(preprocess):
            raise SettingsError(
                f"`module` and `preprocess` must be callable, got {type(module).__name__} and "
                f"{type(preprocess).__name__}"
            )
        self.module, self.preprocess, self.batch_size, self.device = module, preprocess, batch_size, device
        self._prepared_by = function_digest(preprocess)  # travels: a worker may not have the source
        self.name: str = name or str(getattr(module, "__qualname__", type(module).__qualname__))

    @cached_property
    def id(self) -> str:
        """The name, and a digest of the weights, of the modules and of the preprocessing."""
        return named_digest(self.name, state_digest(self._loaded), str(self._loaded), self._prepared_by)

    @cached_property
    def _device(self) -> str:
        return chosen_device(self.device)

    @cached_property
    def _loaded(self) -> Any:  # noqa: ANN401 - a module of torch
        with needs("torch", "an encoder of torch"):
            import torch
        module = self.module
        if not isinstance(module, torch.nn.Module):
            try:
                module = module()
            except Exception as error:  # anybody's code
                raise SettingsError(
                    f"`module` must make a module of torch, got {self.name}, which fails: {type(error).__name__}: "
                    f"{error}; check the weights that it loads"
                ) from error
        if not isinstance(module, torch.nn.Module):
            raise SettingsError(f"`module` must make a module of torch, got {type(module).__name__}")
        # In eval mode, dropout and the statistics of a batch do not move the features.
        return self._replaced(module).to(self._device).eval()

    def prepare(self, record: Any) -> Any:  # noqa: ANN401 - a tensor
        """Return the tensor of a record."""
        import torch

        return torch.as_tensor(self.preprocess(record))

    def encode(self, batch: Sequence[Any]) -> npt.NDArray[np.float32]:
        """Return the features of tensors; where a GPU runs out of memory, in halves."""
        return halved(self._encode, batch)

    @property
    def trained(self) -> Any:  # noqa: ANN401 - a module of torch
        """The module, which :func:`dal.encoders.tuning.tuned` trains."""
        return self._loaded

    def forward(self, batch: Sequence[Any]) -> Any:  # noqa: ANN401 - a tensor
        """Return the features of tensors as a tensor that gradients pass."""
        import torch

        found = self._loaded(torch.stack(list(batch)).to(self._device))
        if not isinstance(found, torch.Tensor):
            raise SettingsError(
                f"`module` must return one tensor, got {type(found).__name__}; wrap it in a module that returns "
                "the features"
            )
        return found.flatten(1)

    def fitting(self, record: Any, room: int) -> int:  # noqa: ANN401 - a tensor
        """Return how many records such as this one a batch may have in some bytes of memory."""
        return fitting(self._loaded, self._encode, record, room, self._device)

    def _encode(self, batch: Sequence[Any]) -> npt.NDArray[np.float32]:
        import torch

        with torch.inference_mode():
            features: npt.NDArray[np.float32] = self.forward(batch).float().cpu().numpy()
        return features

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_loaded", "_device", "id")}


class OnnxEncoder:
    """A model in a file of ONNX, run by ONNX Runtime.

    Parameters
    ----------
    path : str or Path
        The file; workers must find it at the same path.
    preprocess : callable or str
        From one record to an array, all of one shape; or ``module:function``, as the command line has it.
    output : str, optional
        Name of the output with the features. Default: the first.
    batch_size : int, default=32
    device : {"cpu", "cuda"}, default="cpu"
    """

    def __init__(
        self,
        path: str | Path,
        preprocess: Callable[[Any], Any] | str,
        *,
        output: str | None = None,
        batch_size: int = 32,
        device: str = "cpu",
    ) -> None:
        if isinstance(preprocess, str):
            from dal.plugins import Slot, find

            preprocess = find(preprocess, Slot("preprocess", None))
        if not callable(preprocess):
            raise SettingsError(f"`preprocess` must be callable, got {type(preprocess).__name__}")
        self.path, self.preprocess, self.output = str(path), preprocess, output
        self.batch_size, self.device = batch_size, device
        self._prepared_by = function_digest(preprocess)  # travels: a worker may not have the source

    @cached_property
    def id(self) -> str:
        """The file's name, and a digest of its contents, of the output and of the preprocessing."""
        session = self._loaded  # a file that cannot be loaded is refused here
        output = self.output or session.get_outputs()[0].name
        return named_digest(Path(self.path).name, file_digest(Path(self.path)), output, self._prepared_by)

    @cached_property
    def _loaded(self) -> Any:  # noqa: ANN401 - a session of ONNX Runtime
        with needs("onnx", "an ONNX model"):
            import onnxruntime
        wanted = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}.get(self.device)
        if wanted not in onnxruntime.get_available_providers():
            raise SettingsError(
                f"`device` must be one that ONNX Runtime has, got {self.device!r}; it has "
                f"{', '.join(onnxruntime.get_available_providers())}"
            )
        try:
            session = onnxruntime.InferenceSession(self.path, providers=[wanted])
        except Exception as error:  # the library has its own errors for each fault of a file
            raise SettingsError(
                f"`path` must be a model of ONNX, got {self.path!r}, which cannot be loaded: {error}"
            ) from error
        names = [each.name for each in session.get_outputs()]
        if len(session.get_inputs()) != 1 or (self.output is not None and self.output not in names):
            raise SettingsError(
                f"`path` must be a model of one input with the output {self.output or names[0]!r}, got "
                f"{len(session.get_inputs())} inputs and the outputs {', '.join(names)}"
            )
        return session

    @property
    def wants_gpu(self) -> bool:
        """Whether it uses a GPU."""
        return self.device != "cpu"

    def prepare(self, record: Any) -> npt.NDArray[Any]:  # noqa: ANN401 - a text or a picture
        """Return the array of a record."""
        return np.asarray(self.preprocess(record))

    def encode(self, batch: Sequence[npt.NDArray[Any]]) -> npt.NDArray[np.float32]:
        """Return the features of arrays."""
        session = self._loaded
        output = self.output or session.get_outputs()[0].name
        [found] = session.run([output], {session.get_inputs()[0].name: np.stack(batch)})
        features: npt.NDArray[np.float32] = np.asarray(found).reshape(len(batch), -1)
        return features

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_loaded", "id")}

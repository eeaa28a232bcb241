"""Encoders without a network to load, which tests and their workers import."""

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

VOWELS = "aeiou"


class Vowels:
    """Counts the vowels of texts; notes each batch, as the padding of a network would feel it."""

    def __init__(self, name: str = "vowels", batch_size: int | None = 8) -> None:
        self.id, self.batch_size = f"{name}:1", batch_size
        self.batches: list[list[str]] = []

    def encode(self, batch: Sequence[str]) -> list[list[int]]:
        self.batches.append(list(batch))
        longest = max(map(len, batch))
        return [[*(text.count(each) for each in VOWELS), len(text), longest] for text in batch]


class Colours:
    """The mean colour of pictures, made of their pixels in `prepare`."""

    id = "colours:1"
    batch_size = 4

    def prepare(self, picture: Image.Image) -> npt.NDArray[np.float32]:
        return np.asarray(picture, np.float32)

    def encode(self, batch: Sequence[npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
        return np.stack([pixels.mean((0, 1)) for pixels in batch])


class Noted(Vowels):
    """Notes in a folder each process that unpacks it, and each batch."""

    def __init__(self, folder: Path) -> None:
        super().__init__("noted")
        self.folder = folder

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ = state
        (self.folder / f"load-{os.getpid()}-{time.monotonic_ns()}").touch()


class Placed(Vowels):
    """Refuses to encode on a worker that has no GPU, as its environment says."""

    def __init__(self, name: str = "placed", *, wants_gpu: bool) -> None:
        super().__init__(name)
        self.wants_gpu = wants_gpu

    def encode(self, batch: Sequence[str]) -> list[list[int]]:
        if "NETS_NO_GPU" in os.environ:
            raise RuntimeError("this worker declares no GPU")
        return super().encode(batch)


class Mortal(Placed):
    """Kills its process at a text, as long as a file is there; notes the batches of all processes beside the file."""

    def __init__(self, text: str, file: Path, *, wants_gpu: bool = False) -> None:
        super().__init__("mortal", wants_gpu=wants_gpu)
        self.text, self.file = text, file
        self.log = file.with_name("batches")

    def encode(self, batch: Sequence[str]) -> list[list[int]]:
        if self.text in batch and self.file.exists():
            os.kill(os.getpid(), 9)
        with self.log.open("a") as log:
            print(json.dumps(batch), file=log)
        return super().encode(batch)

    def noted(self) -> list[list[str]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]


class Roomy(Vowels):
    """Says how many records fit into memory, and notes in how much."""

    def __init__(self, fits: int, fails: str = "") -> None:
        super().__init__("roomy", None)
        self.fits, self.fails, self.room = fits, fails, 0

    def fitting(self, _: str, room: int) -> int:
        self.room = room
        return self.fits

    def encode(self, batch: Sequence[str]) -> list[list[int]]:
        if self.fails in batch:
            raise RuntimeError(self.fails)
        return super().encode(batch)


class Here(Vowels):
    """Has other weights in each process."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ = state | {"id": f"here:{os.getpid()}"}


class Written:
    """Reads the numbers that a text holds."""

    id = "written:1"

    def encode(self, batch: Sequence[str]) -> list[list[float]]:
        return [[float(word) for word in text.split()] for text in batch]


def vowels() -> Vowels:
    return Vowels()

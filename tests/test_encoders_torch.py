"""Encoders with real models, offline: `make test-torch`."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not there: make test-torch")

from tests.packaged import image_model, sentence_model  # noqa: E402

pytestmark = pytest.mark.torch


def test_the_packages_carry_real_models() -> None:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(sentence_model(), device="cpu", local_files_only=True)
    cat, kitten, invoice = model.encode(["a cat sleeps", "the kitten is asleep", "your invoice is overdue"])
    assert cat @ kitten > 0.5 > 0.2 > cat @ invoice
    pictures = torch.from_numpy(np.random.default_rng(0).random((2, 3, 64, 64), dtype=np.float32))
    with torch.inference_mode():
        assert image_model()(pictures).shape == (2, 1280)

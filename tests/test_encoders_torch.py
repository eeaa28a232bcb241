"""Encoders with real models, offline: `make test-torch`."""

import csv
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from click.testing import CliRunner
from distributed import Client
from PIL import Image

torch = pytest.importorskip("torch", reason="torch is not there: make test-torch")

from dal._weighing import weighed  # noqa: E402
from dal.cli import main  # noqa: E402
from dal.encoders import OnnxEncoder, SentenceEncoder, TorchEncoder  # noqa: E402
from dal.errors import SettingsError, SourceError  # noqa: E402
from dal.pool import Pool, Sizes  # noqa: E402
from dal.testing import EncoderContract  # noqa: E402
from tests.packaged import image_model, sentence_model  # noqa: E402
from tests.torch_encoders import Tight, Two, as_tensor, broken, letters, pictures  # noqa: E402

pytestmark = pytest.mark.torch

WORDS = ["cats", "kittens", "dogs", "invoices", "taxes", "sleep", "bite", "are", "overdue", "late", "soft", "in winter"]


@pytest.fixture(autouse=True, scope="module")
def _offline() -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(scope="module")
def sentences() -> SentenceEncoder:
    return SentenceEncoder(sentence_model(), device="cpu")


def texts(count: int) -> list[str]:
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(WORDS, rng.integers(1, 12))) for _ in range(count)]


def written(path: Path, values: list[str]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["text"], *([value] for value in values)])
    return path


def folder_of(path: Path, count: int) -> Path:
    path.mkdir()
    rng = np.random.default_rng(0)
    for at in range(count):
        small = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
        small.resize((60 + at % 9, 50)).save(path / f"p{at:04d}.jpg")
    return path


def plain_features(folder: Path) -> npt.NDArray[np.float32]:
    with torch.inference_mode():
        model = image_model()
        tensors = [as_tensor(Image.open(path)) for path in sorted(folder.iterdir())]
        return np.concatenate([model(torch.stack(tensors[at : at + 16])).numpy() for at in range(0, len(tensors), 16)])


def test_a_csv_of_texts_by_the_command_line_is_what_the_library_encodes(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    values = texts(150)
    source, place = written(tmp_path / "texts.csv", [*values, " "]), tmp_path / "pool.zarr"
    encoder = f"sentences(model={sentence_model()!r}, device='cpu', batch_size=16)"
    shown = CliRunner().invoke(main, ["pool", "build", str(source), str(place), "--text", "text", "--encoder", encoder])
    assert shown.exit_code == 0, shown.output
    X = Pool.open(place).read(0, 151)
    model = SentenceTransformer(sentence_model(), device="cpu")
    np.testing.assert_allclose(X[:150], model.encode(values), atol=1e-5)
    assert np.isnan(X[150]).all()
    cat, kitten, invoice = model.encode(["cats sleep", "kittens are asleep", "your invoice is overdue"])
    assert cat @ kitten > 0.5 > 0.2 > cat @ invoice


def test_a_folder_of_pictures_is_what_the_plain_loop_encodes(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "pictures", 70)
    expected = plain_features(folder)
    whole = (folder / "p0033.jpg").read_bytes()
    (folder / "p0033.jpg").write_bytes(whole[: len(whole) // 2])
    words = ["pool", "build", str(folder), str(tmp_path / "pool.zarr"), "--images"]
    shown = CliRunner().invoke(main, [*words, "--encoder", "tests.torch_encoders:pictures"])
    assert shown.exit_code == 0, shown.output
    assert "p0033.jpg" in shown.output
    X = Pool.open(tmp_path / "pool.zarr").read(0, 70)
    assert np.isnan(X[33]).all()
    kept = np.delete(np.arange(70), 33)
    # Beside a missing record, the others move up in their batch: last bits may differ.
    np.testing.assert_allclose(X[kept], expected[kept], rtol=1e-4, atol=1e-5)


BUILD = """
import sys
from dal.encoders import SentenceEncoder
from dal.pool import Pool, Sizes
from tests.packaged import sentence_model
encoder = SentenceEncoder(sentence_model(), device="cpu")
progress = lambda done, total: print(done, flush=True)
sizes = Sizes(field_rows=64, chunk_bytes=64 * 384 * 4, group_texts=64)
Pool.build(sys.argv[1], sys.argv[2], text="text", encoder=encoder, progress=progress, sizes=sizes)
"""


@pytest.mark.timeout(300)  # it imports torch once more
def test_a_killed_build_has_the_same_bytes_when_it_has_gone_on(tmp_path: Path, sentences: SentenceEncoder) -> None:
    source, place = written(tmp_path / "texts.csv", texts(250)), tmp_path / "killed.zarr"
    with subprocess.Popen([sys.executable, "-c", BUILD, str(source), str(place)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) >= 128:
                process.send_signal(signal.SIGKILL)
                break
    assert process.returncode == -signal.SIGKILL
    done: list[int] = []
    how = {"text": "text", "encoder": sentences, "sizes": Sizes(group_texts=64)}
    killed = Pool.build(source, place, progress=lambda rows, _: done.append(rows), **how)
    assert done[0] > 64
    whole = Pool.build(source, tmp_path / "whole.zarr", **how)
    np.testing.assert_array_equal(killed.read(0, 250), whole.read(0, 250))


def test_workers_encode_with_models_of_their_own(cluster: Client, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "pictures", 130)
    encoder = pictures()
    pool = Pool.build(folder, tmp_path / "pool.zarr", images=True, encoder=encoder, client=cluster)
    alone = Pool.build(folder, tmp_path / "alone.zarr", images=True, encoder=pictures())
    np.testing.assert_allclose(pool.read(0, 130), alone.read(0, 130), rtol=1e-4, atol=1e-5)
    assert pool.encoder == alone.encoder == encoder.id


def test_ids_name_weights_and_preprocessing(sentences: SentenceEncoder, tmp_path: Path) -> None:
    assert SentenceEncoder(sentence_model(), device="cpu", batch_size=3).id == sentences.id
    copied = shutil.copytree(sentence_model(), tmp_path / "model")
    assert SentenceEncoder(str(copied), device="cpu").id == sentences.id
    assert SentenceEncoder(sentence_model(), device="cpu", max_length=20).id != sentences.id
    assert pictures().id == pictures().id
    module = image_model()
    assert TorchEncoder(module, as_tensor, name="image_model").id == pictures().id
    assert TorchEncoder(module, lambda picture: as_tensor(picture) * 2, name="image_model").id != pictures().id
    with torch.no_grad():
        next(module.parameters()).view(-1)[0] += 1
    assert TorchEncoder(module, as_tensor, name="image_model").id != pictures().id


def test_an_onnx_model(tmp_path: Path) -> None:
    from onnx import TensorProto, checker, helper, numpy_helper, save

    weights = np.random.default_rng(0).normal(size=(26, 5)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["features"]), helper.make_node("Relu", ["features"], ["positive"])],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 26])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 5]) for name in ("features", "positive")],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    checker.check_model(model)
    save(model, tmp_path / "linear.onnx")
    values = texts(100)
    source = written(tmp_path / "texts.csv", values)
    expected = np.stack([letters(value).numpy() for value in values]) @ weights
    encoder = OnnxEncoder(tmp_path / "linear.onnx", letters)
    pool = Pool.build(source, tmp_path / "pool.zarr", text="text", encoder=encoder)
    np.testing.assert_allclose(pool.read(0, 100), expected, rtol=1e-5, atol=1e-5)
    named = OnnxEncoder(tmp_path / "linear.onnx", "tests.torch_encoders:letters", output="positive")
    assert named.id != encoder.id
    cab = letters("cab").numpy()
    np.testing.assert_allclose(named.encode([cab]), np.maximum(cab @ weights, 0)[None], rtol=1e-5)
    (tmp_path / "broken.onnx").write_bytes((tmp_path / "linear.onnx").read_bytes()[:100])
    for path, output, word in (
        ("broken.onnx", None, "broken"),
        ("none.onnx", None, "none"),
        ("linear.onnx", "x", "'x'"),
    ):
        with pytest.raises(SettingsError, match=word):
            _ = OnnxEncoder(tmp_path / path, letters, output=output).id
    with pytest.raises(SettingsError, match="device"):
        _ = OnnxEncoder(tmp_path / "linear.onnx", letters, device="cuda").id


def test_weights_that_do_not_load_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    copied = shutil.copytree(sentence_model(), tmp_path / "model")
    weights = copied / "model.safetensors"
    with weights.open("rb+") as file:
        file.truncate(weights.stat().st_size // 2)
    source = written(tmp_path / "texts.csv", texts(10))
    for encoder in (
        SentenceEncoder(str(copied), device="cpu"),
        SentenceEncoder(str(tmp_path / "nowhere"), device="cpu"),
        TorchEncoder(broken, letters),
        TorchEncoder(dict, letters),
    ):
        with pytest.raises(SettingsError, match=r"model|module"):
            Pool.build(source, tmp_path / "pool.zarr", text="text", encoder=encoder)
        assert not (tmp_path / "pool.zarr").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
@pytest.mark.parametrize("device", ["cuda", "cuda:3", "nonsense"])
def test_a_device_that_is_not_there_is_refused(device: str) -> None:
    for encoder in (SentenceEncoder(sentence_model(), device=device), TorchEncoder(Two, letters, device=device)):
        with pytest.raises(SettingsError, match=device):
            _ = encoder.id


def test_a_gpu_that_runs_out_of_memory_gets_half_a_batch(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    module, values = Tight(most=10), texts(50)
    source = written(tmp_path / "texts.csv", values)
    pool = Pool.build(source, tmp_path / "pool.zarr", text="text", encoder=TorchEncoder(module, letters, batch_size=32))
    np.testing.assert_array_equal(pool.read(0, 50)[:, 0], [letters(value).sum() for value in values])
    assert module.seen == [32, 16, 8, 8, 16, 8, 8, 18, 9, 9]
    assert "16" in caplog.text
    with pytest.raises(SettingsError, match="memory"):
        TorchEncoder(Tight(most=0), letters).encode([letters("x")])


def test_a_batch_is_as_large_as_its_widest_layer_allows() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(26, 512), torch.nn.ReLU(), torch.nn.Linear(512, 8))
    encoder = TorchEncoder(module, letters, device="cpu")
    # What goes into the activation and what comes out, and a copy.
    one = 3 * 2 * 512 * 4
    assert encoder.fitting(encoder.prepare("text"), 100 * one) == 100
    assert encoder.batch_size is None
    sentences = SentenceEncoder(sentence_model(), device="cpu")
    short, long = (sentences.fitting("word " * count, 2**30) for count in (10, 200))
    assert 10 * long < short < 30 * long
    assert not [hook for layer in module.modules() for hook in layer._forward_hooks]
    # A layer that gets a tensor by its name, and returns a tuple: 5 steps of 26 in, 5 of 8 out, and a copy.
    layer = torch.nn.LSTM(26, 8, batch_first=True)
    outputs, record_bytes = weighed(layer, lambda: layer(input=torch.zeros(2, 5, 26))[0], 2)
    assert record_bytes == 3 * 4 * 5 * (26 + 8)
    assert outputs.shape == (2, 5, 8)


def test_a_module_must_return_one_tensor(tmp_path: Path) -> None:
    source = written(tmp_path / "texts.csv", texts(5))
    with pytest.raises(SettingsError, match="tensor"):
        Pool.build(source, tmp_path / "pool.zarr", text="text", encoder=TorchEncoder(Two(), letters))
    with pytest.raises(SourceError, match="fails"):
        Pool.build(source, tmp_path / "pool.zarr", text="text", encoder=TorchEncoder(torch.nn.Linear(3, 2), letters))


def filled_in(batch: Path, label: Callable[[dict[str, str]], str]) -> None:
    with batch.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row["label"] = label(row)
    with batch.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


def animals(folder: Path) -> None:
    """Draw dark "cats" and bright "dogs", and leave one broken file among them."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for at in range(60):
        pixels = rng.integers(0, 100, (30, 40, 3)) + 150 * (at % 2)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{('cat', 'dog')[at % 2]}-{at:02d}.png")
    (folder / "cat-99.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")


def test_the_page_goes_from_texts_and_pictures_to_labelled_sets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).parents[1] / "docs" / "encoding.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    rng = np.random.default_rng(0)
    spam = ["you won a prize", "claim your free money now", "cheap pills for you"]
    ham = ["meeting moved to monday", "minutes of the meeting", "lunch tomorrow with the team"]
    subjects = [str(rng.choice((ham, spam)[at % 2])) + f" {at}" for at in range(100)]
    with (tmp_path / "mails.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["id", "subject"], *([f"m{at}", subject] for at, subject in enumerate(subjects))])
    animals(tmp_path / "animals")
    (module,) = re.findall(r"^```python\n(# encoders.py\n.*?)^```$", page, re.DOTALL | re.MULTILINE)
    (tmp_path / "encoders.py").write_text(module)

    def label(row: dict[str, str]) -> str:
        if "subject" in row:
            return "spam" if row["subject"].startswith(("you", "claim", "cheap")) else "ham"
        return row["record_id"][:3]

    for block in re.findall(r"^```bash\n(.*?)^```$", page, re.DOTALL | re.MULTILINE):
        for line in block.splitlines():
            program, *words = shlex.split(line.replace("all-MiniLM-L6-v2", sentence_model()))
            if program == "pip":
                continue
            if words[:2] == ["label", "import"]:
                filled_in(tmp_path / words[3], label)
            shown = CliRunner().invoke(main, words)
            assert shown.exit_code == 0, f"{line}\n{shown.output}"
            if "animals.zarr" in words and "build" in words:
                assert "cat-99.png" in shown.output
    with (tmp_path / "labels.csv").open(newline="", encoding="utf-8-sig") as file:
        labels = {row["record_id"]: row["label"] for row in csv.DictReader(file)}
    assert len(labels) == 10
    assert all(record_id.startswith(found) for record_id, found in labels.items())


class TestSentences(EncoderContract):
    encoder = SentenceEncoder(sentence_model(), device="cpu")


class TestPictures(EncoderContract):
    encoder = "tests.torch_encoders:pictures"
    pictures = True

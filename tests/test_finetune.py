"""Fine-tuning: an encoder trained on a campaign's labels, and the campaign on the pool that it makes."""

import csv
import os
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from distributed import Client

torch = pytest.importorskip("torch", reason="make test-torch runs it")

from safetensors.torch import load  # noqa: E402

import dal  # noqa: E402
from dal.campaign import store  # noqa: E402
from dal.cli import main  # noqa: E402
from dal.encoders import TorchEncoder, Tuning, VectoriserEncoder, tuned, tuning  # noqa: E402
from dal.encoders.named import encoder_named  # noqa: E402
from dal.errors import CampaignError, CampaignMismatch, SettingsError, SourceError  # noqa: E402
from dal.loop import finetune  # noqa: E402
from dal.pool import Pool  # noqa: E402
from tests.packaged import image_model, sentence_model  # noqa: E402
from tests.torch_encoders import Cramped, as_tensor, by_letters, letters, letters_network  # noqa: E402

pytestmark = pytest.mark.torch

N, NAMES = 480, ("many", "few")
FAST = Tuning(epochs=30, learning_rate=1e-2)


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """A CSV of texts whose class is the parity of one letter among many others."""
    rng = np.random.default_rng(3)
    texts = ["".join(rng.choice(list("abcdefgh"), 40)) for _ in range(N)]
    codes = np.array([text.count("a") < 5 for text in texts]).astype(int)
    path = tmp_path_factory.mktemp("words") / "texts.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["name", "text"], *([f"t{row}", text] for row, text in enumerate(texts))])
    return path, codes


def campaign_of(words: tuple[Path, np.ndarray], folder: Path, rounds: int = 3) -> dal.Campaign:
    pool = Pool.build(words[0], folder / "pool.zarr", ids="name", text="text", encoder=by_letters())
    campaign = dal.Campaign.create(folder / "campaign", pool, NAMES, batch_size=30, explore=0.2, random_state=2)
    play(campaign, words[1], rounds)
    return campaign


def play(campaign: dal.Campaign, codes: np.ndarray, rounds: int) -> list[int]:
    rows: list[int] = []
    for _ in range(rounds):
        batch = campaign.next_batch()
        assert isinstance(batch, dal.Batch)
        campaign.label(batch, codes[batch.rows])
        rows += batch.rows.tolist()
    return rows


def finetuned(campaign: dal.Campaign, source: Path, folder: Path, **options: object) -> dal.Campaign:
    given = {"ids": "name", "text": "text", "tuning": FAST, **options}
    return campaign.finetune(source, folder / "tuned.zarr", by_letters(), **given)


def test_an_encoder_learns_the_labels_and_the_campaign_goes_on_in_the_new_pool(
    words: tuple[Path, np.ndarray], tmp_path: Path, cluster: Client
) -> None:
    source, codes = words
    campaign = campaign_of(words, tmp_path)
    before, told = campaign.fit(), []
    asked = [each.row for number in (1, 2, 3) for each in campaign.rounds.batch(number)]
    old = Pool.open(campaign.settings.pool)
    rest = np.setdiff1d(np.arange(N), asked)
    moved = finetuned(campaign, source, tmp_path, client=cluster, progress=lambda *args: told.append(args))
    new = Pool.open(tmp_path / "tuned.zarr")
    assert told[29] == ("epochs", 30, 30)
    assert told[-1] == ("rows", N, N)
    assert moved.settings.pool == new.path
    assert new.encoder != old.encoder
    np.testing.assert_array_equal(new.record_ids(np.arange(N)), old.record_ids(np.arange(N)))
    [weights] = (moved.directory / "encoders").iterdir()
    again = tuned("tests.torch_encoders:by_letters", str(weights))
    assert again.id == new.encoder
    text = source.read_text().splitlines()[8].split(",")[1]
    np.testing.assert_allclose(again.encode([again.prepare(text)])[0], new.read(7, 8)[0], atol=1e-6)
    assert moved.status().accuracy.value is None
    assert "before the move" in moved.status().before
    further = play(moved, codes, 1)
    assert not set(further) & set(asked)
    accuracy = [(model.predict_proba(pool.take(rest)).argmax(axis=1) == codes[rest]).mean()
                for model, pool in ((before, old), (moved.model, new))]  # fmt: skip
    assert accuracy[1] > accuracy[0] + 0.03, accuracy
    assert not (moved.directory / "finetune.json").exists()
    with pytest.raises(CampaignError, match="already"):
        finetuned(moved, source, tmp_path)


@pytest.mark.slow
def test_killed_at_any_step_and_run_again_it_ends_in_the_same_pool(
    words: tuple[Path, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, codes = words
    campaign = campaign_of(words, tmp_path)
    shutil.copytree(campaign.directory, tmp_path / "twin")
    whole = finetuned(dal.Campaign.open(tmp_path / "twin"), source, tmp_path)
    expected = Pool.open(whole.settings.pool)
    shutil.copytree(tmp_path / "tuned.zarr", tmp_path / "undisturbed.zarr")
    shutil.rmtree(tmp_path / "tuned.zarr")

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    encode, calls = TorchEncoder.encode, []

    def killed_late(self: TorchEncoder, batch: list) -> np.ndarray:
        calls.append(len(batch))
        return killed() if len(calls) > 12 else encode(self, batch)

    for place, name, action in (
        (finetune, "tuned", killed),
        (TorchEncoder, "encode", killed_late),
        (dal.Campaign, "move", killed),
        (store, "update", killed),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, action)
            with pytest.raises(KeyboardInterrupt):
                finetuned(dal.Campaign.open(campaign.directory), source, tmp_path)
        if place is finetune:
            # Answers that come meanwhile are kept, and do not move what was frozen.
            campaign.label(["t0"], codes[:1], annotator="late")
    with pytest.raises(CampaignMismatch, match="finetune"):
        dal.Campaign.open(campaign.directory).next_batch()
    moved = finetuned(dal.Campaign.open(campaign.directory), source, tmp_path)
    again = Pool.open(moved.settings.pool)
    assert again.encoder == expected.encoder
    np.testing.assert_array_equal(again.read(0, N), Pool.open(tmp_path / "undisturbed.zarr").read(0, N))
    assert "late" in {each.annotator for each in moved.answers.log()}
    assert not set(play(moved, codes, 1)) & {each.row for n in (1, 2, 3) for each in moved.rounds.batch(n)}


@pytest.mark.parametrize(
    ("options", "error", "word"),
    [
        ({"encoder": VectoriserEncoder}, SettingsError, "TorchEncoder"),
        ({"tuning": Tuning(learning_rate=1e30)}, SettingsError, "learning_rate"),
        ({"ids": None}, SourceError, "order"),
    ],
)
def test_bad_input_is_refused_and_leaves_the_campaign_as_it_was(
    words: tuple[Path, np.ndarray], tmp_path: Path, options: dict, error: type[Exception], word: str
) -> None:
    source, codes = words
    campaign = campaign_of(words, tmp_path, rounds=1)
    given = {"ids": "name", "text": "text", "tuning": Tuning(epochs=1), **options}
    encoder = given.pop("encoder", by_letters)
    encoder = object() if encoder is VectoriserEncoder else encoder()
    with pytest.raises(error, match=word):
        campaign.finetune(source, tmp_path / "tuned.zarr", encoder, **given)
    assert dal.Campaign.open(campaign.directory).settings.pool == campaign.settings.pool
    play(campaign, codes, 1)


def test_a_gpu_that_runs_out_of_memory_trains_on_a_batch_in_turns(caplog: pytest.LogCaptureFixture) -> None:
    texts = [f"{'ab'[row % 2] * 3} {row}" for row in range(24)]
    codes = np.arange(24) % 2
    how = Tuning(epochs=3, learning_rate=1e-2, batch_size=12)

    def trained(most: int) -> dict[str, torch.Tensor]:
        encoder = TorchEncoder(Cramped(most), letters)
        values = [encoder.prepare(text) for text in texts]
        return load(tuning.tuned(encoder, lambda rows: (rows, [values[row] for row in rows]), codes, how))

    whole = trained(12)
    assert not caplog.text
    parted = trained(5)
    assert "train on 6 records at once: it takes 3 in turns" in caplog.text
    with pytest.raises(SettingsError, match="one record"):
        trained(0)
    # By the same steps, so the weights are the same but for last bits.
    for name, value in whole.items():
        torch.testing.assert_close(parted[name], value, atol=1e-5, rtol=1e-4)
    assert not torch.equal(whole["0.weight"], letters_network().state_dict()["0.weight"])


def test_weights_of_another_encoder_are_refused() -> None:
    from safetensors.torch import save

    encoder = by_letters().with_weights(save({"0.weight": torch.zeros(2, 2)}))
    with pytest.raises(SettingsError, match="weights"):
        encoder.encode([torch.zeros(26)])
    assert by_letters().with_weights(save(letters_network().state_dict())).id == by_letters().id
    with pytest.raises(SettingsError, match="weights"):
        tuned("tests.torch_encoders:by_letters", "nowhere.safetensors")


@pytest.mark.slow
def test_a_sentence_model_and_an_image_model_are_trained_by_the_command_line(tmp_path: Path) -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    texts = [f"{word} {number} {tail}" for number in range(12) for word, tail in (("buy", "now"), ("see", "you soon"))]
    source = tmp_path / "texts.csv"
    with source.open("w", newline="") as file:
        csv.writer(file).writerows([["text"], *([text] for text in texts)])
    encoder = f"sentences(model={sentence_model()!r}, device='cpu', batch_size=8)"
    pool, campaign, moved = (str(tmp_path / name) for name in ("pool.zarr", "ann's campaign", "tuned.zarr"))
    codes = np.arange(24) % 2

    def run(*command: str) -> str:
        result = CliRunner().invoke(main, command, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    run("pool", "build", str(source), pool, "--text", "text", "--encoder", encoder)
    run("init", campaign, pool, "--classes", "spam,ham", "--batch-size", "8")
    opened = dal.Campaign.open(campaign)
    batch = opened.next_batch()
    assert isinstance(batch, dal.Batch)
    opened.label(batch, np.array(["spam", "ham"])[codes[batch.rows]])
    said = run("finetune", campaign, str(source), moved, "--text", "text", "--encoder", encoder, "--epochs", "1")
    words = shlex.split(said[said.index("dal pool append") :])
    again = encoder_named(words[words.index("--encoder") + 1])
    np.testing.assert_allclose(again.encode(texts[:3]), Pool.open(moved).read(0, 3), atol=1e-5)
    assert "before the move" not in run("status", campaign), "no round was measured yet"
    new, old = Pool.open(moved), Pool.open(pool)
    assert new.encoder != old.encoder
    further = dal.Campaign.open(campaign).next_batch()
    assert isinstance(further, dal.Batch)
    assert not set(further.rows) & set(batch.rows)

    from dal.encoders.tuning import tuned as trained

    rng = np.random.default_rng(0)
    images = [torch.as_tensor(rng.random((3, 48, 48)), dtype=torch.float32) + at % 2 for at in range(8)]
    network = TorchEncoder(image_model, as_tensor, batch_size=4)
    weights = trained(
        network, lambda at: (at, [images[i] for i in at]), np.arange(8) % 2, Tuning(epochs=1, batch_size=4)
    )
    changed = network.with_weights(weights)
    assert changed.id != network.id
    assert np.isfinite(changed.encode(images[:2])).all()

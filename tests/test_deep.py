"""Networks as learners: TorchClassifier against plain torch, and what it must refuse."""

import json
import os
import pickle
import re
import shlex
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cloudpickle
import numpy as np
import pytest
import zarr
from click.testing import CliRunner
from distributed import Client

import dal
from dal.cli import main
from dal.compute.asking import gpus_of
from dal.encoders import TorchEncoder
from dal.errors import ClusterError, LearnerError, SourceError
from dal.learners.deep import SkorchClassifier, TorchClassifier, is_network_class
from dal.learners.learner import Learner
from dal.learners.models import Model, score_block
from dal.pool.sizes import Sizes
from dal.scan.driver import sample_codebook, scan
from dal.selection.batch import choose, select
from dal.selection.candidates import shortlist
from dal.testing import LearnerContract
from tests.clusters import dask_scheduler, dask_worker, own_cluster

torch = pytest.importorskip("torch", reason="make test-torch runs it")
pytestmark = pytest.mark.torch

import skorch  # noqa: E402

from tests import nets  # noqa: E402

TRUSTED = ("tests.nets.Dense", "tests.nets.Lazy", "tests.nets.Images", "tests.nets.Cramped", "tests.nets.Undefined")
CLASSES = ("ant", "bee", "cow", "dog")


def clouds(n: int = 120, classes: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Records of 4 features around a centre for each class."""
    rng = np.random.default_rng(seed)
    codes = np.arange(n) % classes
    centres = 3 * np.eye(4)[:classes]
    return (centres[codes] + rng.standard_normal((n, 4)) * 0.6).astype(np.float32), codes


def squares(n: int = 90, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Pictures of 8 x 8 bytes, flat, with a bright quarter for each class."""
    rng = np.random.default_rng(seed)
    codes = np.arange(n) % 3
    images = rng.integers(0, 120, (n, 8, 8, 1), dtype=np.uint8)
    for image, code in zip(images, codes, strict=True):
        top, left = divmod(int(code), 2)
        image[4 * top : 4 * top + 4, 4 * left : 4 * left + 4] += 120
    return images.reshape(n, 64), codes


def dense(**settings: object) -> TorchClassifier:
    given = {"module": nets.Dense, "max_epochs": 15, "batch_size": 16, "learning_rate": 1e-2}
    return TorchClassifier(**(given | settings))


def fitted(estimator: TorchClassifier, codes: np.ndarray | None = None) -> Model:
    X, own = clouds()
    return Learner(estimator, CLASSES, trusted=TRUSTED).fit(X, own if codes is None else codes)


def plain(model: Model, X: np.ndarray, network: "torch.nn.Module") -> np.ndarray:
    """Predict as torch's own manual does."""
    from safetensors.torch import load

    network.load_state_dict(load(model.estimator.weights_[0]))
    network.eval()
    with torch.no_grad():
        return torch.softmax(network(torch.from_numpy(X)), dim=1).numpy()


# -- fitting and predicting --------------------------------------------------------------------------------------------


def test_it_learns_and_predicts_as_plain_torch_does() -> None:
    X, codes = clouds(seed=1)
    model = fitted(dense())
    found = model.predict_proba(X)
    np.testing.assert_allclose(found[:, :3], plain(model, X, nets.Dense(3)), rtol=1e-5, atol=1e-6)
    assert (found[:, :3].argmax(axis=1) == codes).mean() > 0.95
    assert (found[:, 3] == 0).all(), "a class without a label has no probability"


def test_columns_are_those_of_the_classes_that_a_fit_has_seen() -> None:
    X, codes = clouds()
    model = fitted(dense(), np.array([1, 3, 2])[codes])
    assert model.codes == (1, 2, 3)
    assert (model.predict(X) == np.array(["bee", "dog", "cow"])[codes]).mean() > 0.95


def test_the_same_seed_gives_the_same_weights_and_another_seed_others() -> None:
    state = torch.random.get_rng_state()
    one, again, other = (fitted(dense(random_state=seed)).estimator.weights_ for seed in (3, 3, 4))
    assert one == again != other
    assert torch.equal(torch.random.get_rng_state(), state), "the process's own generator stays as it was"


def test_the_same_number_of_threads_gives_the_same_weights() -> None:
    X, codes = squares(60)
    threads = torch.get_num_threads()
    estimator = TorchClassifier(nets.Images, shape=(8, 8, 1), std=255, max_epochs=3, threads=2)
    one, again = (Learner(estimator, CLASSES[:3], trusted=TRUSTED).fit(X, codes) for _ in range(2))
    assert one.estimator.weights_ == again.estimator.weights_
    assert torch.get_num_threads() == threads


def test_pictures_are_given_channels_first_and_scaled() -> None:
    X, codes = squares()
    model = Learner.of(nets.learner, CLASSES[:3], trusted=TRUSTED).fit(X, codes)
    fresh, truth = squares(seed=1)
    assert (model.predict_proba(fresh).argmax(axis=1) == truth).mean() > 0.9
    images = torch.from_numpy(fresh.reshape(-1, 8, 8, 1)).permute(0, 3, 1, 2) / np.float32(255)
    network = nets.Images(3)
    expected = plain(model, images.numpy(), network)
    np.testing.assert_allclose(model.predict_proba(fresh), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(
        model.estimator.predict_proba(fresh), model.predict_proba(fresh.astype(np.float32)), "bytes are floats"
    )


def test_means_and_deviations_are_those_of_channels_and_of_features() -> None:
    from dal.learners._torch import _tensor

    X = np.arange(24, dtype=np.float32).reshape(2, 12)
    images = dense(shape=(2, 2, 3), mean=[1, 2, 3], std=[1, 2, 4])
    expected = (X.reshape(2, 2, 2, 3) - [1, 2, 3]) / [1, 2, 4]
    np.testing.assert_array_equal(_tensor(X, images, "cpu").numpy(), expected.transpose(0, 3, 1, 2).astype(np.float32))
    flat = dense(mean=np.arange(12).tolist(), std=2.0)
    np.testing.assert_array_equal(_tensor(X, flat, "cpu").numpy(), (X - np.arange(12)) / np.float32(2))
    pairs = dense(shape=(3, 4), mean=5, std=[1, 2, 3, 4])
    np.testing.assert_array_equal(
        _tensor(X, pairs, "cpu").numpy(), ((X.reshape(2, 3, 4) - 5) / np.float32([1, 2, 3, 4])).astype(np.float32)
    )


def test_layers_that_find_their_width_by_themselves_are_loaded_in_another_process() -> None:
    X, codes = clouds()
    model = fitted(TorchClassifier(nets.Lazy, max_epochs=15, learning_rate=1e-2))
    again = pickle.loads(cloudpickle.dumps(model.for_score("margin")))
    np.testing.assert_array_equal(again.predict_proba(X), model.predict_proba(X))
    assert (model.predict_proba(X).argmax(axis=1) == codes).mean() > 0.9


def test_weights_of_records_and_of_classes_count() -> None:
    X, codes = clouds()
    swapped = np.where(codes == 0, 1, 0)
    both, labels = np.concatenate([X, X]), np.concatenate([codes % 2, swapped])
    weights = np.repeat([1.0, 0.0], len(X))
    learner = Learner(dense(), CLASSES, trusted=TRUSTED)
    assert learner.takes_weights
    found = learner.fit(both, labels, weights).predict_proba(X).argmax(axis=1)
    assert (found == codes % 2).mean() > 0.95
    heavy = Learner(dense(class_weight={"ant": 1.0, "bee": 1e-9}), CLASSES, trusted=TRUSTED).fit(both, labels)
    assert (heavy.predict(X) == "ant").all()
    rare = np.concatenate([np.flatnonzero(codes == 0)[:2], np.flatnonzero(codes == 1)])
    noise = np.random.default_rng(0).standard_normal((len(rare), 4)).astype(np.float32)
    shares = [
        Learner(dense(class_weight=each, max_epochs=30), CLASSES, trusted=TRUSTED)
        .fit(noise, codes[rare])
        .predict_proba(noise)[:, 0]
        .mean()
        for each in (None, "balanced")
    ]
    assert shares[1] > 2 * shares[0]


def test_early_stopping_keeps_the_weights_of_the_lowest_loss() -> None:
    X, codes = clouds(60)
    noisy = np.random.default_rng(0).permutation(codes)  # nothing can be learned, so more epochs make it worse
    settings = {"early_stopping": True, "validation_fraction": 0.3, "patience": 2, "learning_rate": 0.05}
    learner = Learner(dense(max_epochs=60, **settings), CLASSES[:3], trusted=TRUSTED)
    stopped, whole = (
        learner.fit(X, noisy),
        Learner(dense(max_epochs=60, learning_rate=0.05), CLASSES[:3]).try_fit(X, noisy),
    )
    assert stopped.predict_proba(X).max() < whole.predict_proba(X).max()


def test_what_is_held_out_is_a_share_of_each_class_and_never_all_of_it() -> None:
    from dal.learners._torch import _held_out

    codes = np.array([0] * 20 + [1] * 10 + [2])
    held = _held_out(codes, 0.3, np.random.default_rng(0))
    assert np.bincount(codes[held], minlength=3).tolist() == [6, 3, 0]
    assert len(np.unique(held)) == len(held)
    assert len(_held_out(np.array([0, 1]), 0.9, np.random.default_rng(0))) == 0


def test_half_precision_gives_nearly_the_same_probabilities() -> None:
    X, codes = clouds()
    found = fitted(dense(precision="bfloat16")).predict_proba(X)
    assert found.dtype == np.float32
    assert (found.argmax(axis=1) == codes).mean() > 0.95


@pytest.mark.parametrize("at_once", [1, 7, 120, 4096])
def test_a_prediction_does_not_depend_on_the_size_of_its_batches(at_once: int) -> None:
    X, _ = clouds()
    expected = fitted(dense()).predict_proba(X)
    found = fitted(dense(predict_batch_size=at_once)).predict_proba(X)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_predicting_keeps_no_gradients() -> None:
    model = fitted(dense())
    X, _ = clouds()
    model.predict_proba(X)
    (live,) = model.estimator._networks
    assert all(each.grad is None for each in live._network.parameters())
    assert not live._network.training


# -- committees --------------------------------------------------------------------------------------------------------


def test_masks_of_dropout_are_the_same_for_every_record_and_in_every_process() -> None:
    X, _ = clouds()
    model = fitted(dense(passes=4, predict_batch_size=50))
    members = list(model.committee(X))
    assert len(members) == 4
    assert not np.allclose(members[0], members[1], atol=1e-3)
    again = list(pickle.loads(cloudpickle.dumps(model.for_score("bald"))).committee(X[::-1].copy()))
    for one, other in zip(members, again, strict=True):
        np.testing.assert_allclose(other[::-1], one, rtol=1e-4, atol=1e-6)
    assert np.allclose(model.predict_proba(X), fitted(dense(passes=4)).predict_proba(X)), "no mask in a prediction"


def test_a_mask_is_a_network_with_some_units_left_out() -> None:
    """Compute one member by hand: units either are zero, or are scaled by the share that is kept."""
    X, _ = clouds()
    model = fitted(dense(passes=2))
    (live,) = model.estimator._networks
    first, dropout, last = live._network.layers[0], live._network.layers[2], live._network.layers[3]
    member = next(iter(model.committee(X)))
    seen: list[torch.Tensor] = []
    hook = dropout.register_forward_hook(lambda _, __, output: seen.append(output))
    live.probabilities(X, masks=0)
    hook.remove()
    with torch.inference_mode():
        hidden = torch.relu(first(torch.from_numpy(X)))
        kept = (seen[0] / hidden)[hidden > 0].numpy()
        by_hand = torch.softmax(last(seen[0]), dim=1).numpy()
    np.testing.assert_allclose(np.unique(np.round(kept, 2)), [0, 1.43])
    np.testing.assert_allclose(member[:, :3], by_hand, rtol=1e-4, atol=1e-6)


def test_whole_channels_are_dropped_where_a_layer_drops_channels() -> None:
    X, codes = squares()
    model = Learner.of(nets.learner, CLASSES[:3], trusted=TRUSTED).fit(X, codes)
    (live,) = model.estimator._networks
    seen: list[torch.Tensor] = []
    live._network.layers[4].register_forward_hook(lambda _, __, output: seen.append(output))
    live.probabilities(X, masks=3)
    dropped = [(channel == 0).all().item() for channel in seen[0].transpose(0, 1)]
    whole = [(channel > 0).any(dim=2).any(dim=1).all().item() for channel in seen[0].transpose(0, 1)]
    assert all(one or other for one, other in zip(dropped, whole, strict=True))


def test_an_ensemble_is_the_mean_of_its_members() -> None:
    X, _ = clouds()
    model = fitted(dense(members=3))
    members = np.stack(list(model.committee(X)))
    assert len(members) == 3
    assert not np.allclose(members[0], members[1], atol=1e-3)
    np.testing.assert_allclose(members.mean(axis=0), model.predict_proba(X), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("settings", [{"passes": 3}, {"members": 2}])
def test_bald_is_the_information_in_the_members(settings: dict[str, int]) -> None:
    X, _ = clouds()
    model = Learner(dense(**settings), CLASSES, trusted=TRUSTED).fit(X, clouds()[1], committee=True)
    assert model.bootstraps == ()
    p = np.stack(list(model.committee(X))).astype(np.float64)
    safe = np.clip(p, 1e-30, 1)
    mean = p.mean(axis=0)
    expected = -(mean * np.log(np.clip(mean, 1e-30, 1))).sum(axis=1) + (p * np.log(safe)).sum(axis=2).mean(axis=0)
    found = score_block("bald", model, X).score
    assert np.corrcoef(found, expected)[0, 1] > 0.9999
    np.testing.assert_allclose(found * np.log(4), expected, atol=1e-5)


def test_a_network_without_dropout_has_a_committee_of_bootstraps() -> None:
    X, codes = clouds(30)
    learner = Learner(TorchClassifier(nets.Lazy, max_epochs=2), CLASSES, trusted=TRUSTED)
    assert len(list(learner.fit(X, codes, committee=True).committee(X))) == 10


# -- saving and loading ------------------------------------------------------------------------------------------------


def test_a_model_file_holds_safetensors_and_no_pickle() -> None:
    import io
    import zipfile

    from safetensors.torch import load

    model = fitted(dense())
    assert {name: tuple(each.shape) for name, each in load(model.estimator.weights_[0]).items()} == {
        "layers.0.weight": (16, 4),
        "layers.0.bias": (16,),
        "layers.3.weight": (3, 16),
        "layers.3.bias": (3,),
    }
    with zipfile.ZipFile(io.BytesIO(model.dumps())) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    assert model.estimator.weights_[0] in files.values()
    assert not any(name.endswith((".pkl", ".pt")) or data[:2] == b"PK" for name, data in files.items())


def test_a_file_runs_no_code_that_is_not_named() -> None:
    data = fitted(dense()).dumps()
    with pytest.raises(LearnerError, match=r"tests\.nets\.Dense"):
        Model.loads(data)
    script = (
        "import sys\nfrom dal.learners.models import Model\nfrom dal.errors import LearnerError\n"
        "try:\n    Model.loads(sys.stdin.buffer.read())\nexcept LearnerError:\n"
        "    print('tests.nets' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", script], input=data, capture_output=True, check=True, timeout=100)
    assert ran.stdout.strip() == b"False"


def test_a_learner_is_saved_before_it_is_fitted() -> None:
    learner = Learner(TorchClassifier(nets.pictures, shape=(8, 8, 1), std=255), CLASSES)
    again = Learner.loads(learner.dumps(), CLASSES, trusted=["tests.nets.pictures"])
    assert again.estimator.get_params() == learner.estimator.get_params()
    with pytest.raises(LearnerError, match="pictures"):
        Learner.loads(learner.dumps(), CLASSES)


@pytest.mark.parametrize("named", ["tests.nets:Dense", "class"])
def test_a_class_of_networks_is_a_learner(named: str) -> None:
    learner = Learner.of(nets.Dense if named == "class" else named, CLASSES, random_state=7, trusted=TRUSTED)
    assert isinstance(learner.estimator, TorchClassifier)
    assert (learner.estimator.module, learner.estimator.random_state) == (nets.Dense, 7)
    assert is_network_class(nets.Dense)
    assert not is_network_class(nets.Dense(2))
    assert not is_network_class(TorchClassifier)


@pytest.mark.parametrize("score", ["margin", "bald", "random"])
def test_it_passes_the_check_before_the_first_round(score: str) -> None:
    X, _ = clouds()
    Learner(dense(max_epochs=2), CLASSES, trusted=TRUSTED).check(4, score, records=X, weighted=True)


def test_it_takes_no_missing_features() -> None:
    assert not Learner(dense(), CLASSES, trusted=TRUSTED).takes_missing(4)


def test_it_is_the_last_step_of_a_pipeline() -> None:
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    X, codes = clouds()
    learner = Learner(make_pipeline(StandardScaler(), dense(passes=3)), CLASSES, trusted=TRUSTED)
    model = learner.fit(X, codes)
    assert (model.predict_proba(X).argmax(axis=1) == codes).mean() > 0.95
    assert len(list(model.committee(X))) == 3
    assert model.scratch_bytes > 0


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("estimator", "word"),
    [
        (TorchClassifier(nets.Wide), "shape"),
        (TorchClassifier(nets.Exploding), "loss"),
        (TorchClassifier(nets.Undefined, max_epochs=2), "finite"),
        (TorchClassifier(torch.nn.Identity), "shape"),
        (TorchClassifier(nets.Dense, module_args={"depth": 3}), "depth"),
        (TorchClassifier(nets.learner), "n_classes"),
        (TorchClassifier(nets.Dense(3)), "`module`"),
        (TorchClassifier("tests.nets:Dense"), "`module`"),
        (TorchClassifier(lambda n_classes: nets.Dense(n_classes)), "lambda"),
        (TorchClassifier(nets.Dense, device="cuda:77"), "`device`"),
        (TorchClassifier(nets.Dense, device="abacus"), "`device`"),
        (TorchClassifier(nets.Dense, precision="float8"), "`precision`"),
        (TorchClassifier(nets.Dense, class_weight="heavy"), "`class_weight`"),
        (TorchClassifier(nets.Dense, batch_size=0), "`batch_size`"),
        (TorchClassifier(nets.Dense, predict_batch_size=-1), "`predict_batch_size`"),
        (TorchClassifier(nets.Dense, validation_fraction=1.0), "`validation_fraction`"),
        (TorchClassifier(nets.Dense, shape=(2, 3)), "`shape`"),
        (TorchClassifier(nets.Full, predict_batch_size=1), "memory"),
    ],
)
def test_it_is_refused_before_the_first_round(estimator: TorchClassifier, word: str) -> None:
    trusted = tuple(f"tests.nets.{each}" for each in ("Dense", "Wide", "Exploding", "Undefined", "Full", "learner"))
    with pytest.raises(LearnerError, match=word):
        Learner(estimator, CLASSES[:3], trusted=trusted).check(4, records=clouds()[0])


@pytest.mark.parametrize("change", ["other", "torn"])
def test_weights_that_do_not_load_are_refused(change: str) -> None:
    X, _ = clouds()
    model = fitted(dense())
    estimator = pickle.loads(pickle.dumps(model.estimator))
    if change == "other":
        estimator.module_args = {"width": 5}
    else:
        estimator.weights_ = (estimator.weights_[0][:40],)
    with pytest.raises(LearnerError, match="weights"):
        Model(estimator, CLASSES, 4, (0, 1, 2)).predict_proba(X)


def test_batches_are_halved_where_memory_does_not_do() -> None:
    X, codes = clouds()
    learner = Learner(
        TorchClassifier(nets.Cramped, max_epochs=15, batch_size=16, learning_rate=1e-2), CLASSES, trusted=TRUSTED
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the check of missing features predicts, too
        model = learner.fit(X, codes)
    assert any("in turns" in each for each in model.warnings)
    with pytest.warns(RuntimeWarning) as caught:
        found = model.predict_proba(X)
    assert [str(each.message).rpartition(": ")[2].split()[0] for each in caught] == ["60", "30", "15", "7"]
    np.testing.assert_allclose(found[:, :3], plain(model, X, nets.Dense(3)), rtol=1e-5, atol=1e-6)
    assert (found.argmax(axis=1) == codes).mean() > 0.95
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.predict_proba(X)  # from now on


def test_steps_in_turns_are_the_steps_of_whole_batches() -> None:
    X, codes = clouds(32)
    settings = {"max_epochs": 3, "batch_size": 16, "module_args": {"width": 8}}

    class Calm(nets.Dense):
        def __init__(self, n_classes: int, width: int) -> None:
            super().__init__(n_classes, width)
            self.layers[2] = torch.nn.Identity()

    class CalmAndCramped(Calm):
        def forward(self, records: torch.Tensor) -> torch.Tensor:
            if len(records) > 4:
                raise torch.OutOfMemoryError("as it is simulated here")
            return super().forward(records)

    whole = TorchClassifier(Calm, **settings).fit(X, codes)
    with pytest.warns(RuntimeWarning, match="in turns"):
        turns = TorchClassifier(CalmAndCramped, **settings, predict_batch_size=4).fit(X, codes)
    turns.module = Calm
    np.testing.assert_allclose(turns.predict_proba(X), whole.predict_proba(X), rtol=1e-3, atol=1e-4)


# -- skorch ------------------------------------------------------------------------------------------------------------


def net_of_skorch(**settings: object) -> "skorch.NeuralNetClassifier":
    given = {
        "module__n_classes": 4, "criterion": torch.nn.CrossEntropyLoss, "optimizer": torch.optim.AdamW, "lr": 0.01,
        "max_epochs": 15, "batch_size": 16, "train_split": None,
    }  # fmt: skip
    return skorch.NeuralNetClassifier(nets.Dense, **(given | settings))


class Subclassed(skorch.NeuralNetClassifier):
    pass


@pytest.mark.parametrize("kind", [skorch.NeuralNetClassifier, Subclassed])
def test_a_skorch_classifier_is_a_learner(kind: type) -> None:
    X, codes = clouds()
    net = net_of_skorch()
    net = kind(**{name: value for name, value in net.get_params(deep=False).items() if name[0] != "_"})
    trusted = (*TRUSTED, f"{__name__}.Subclassed")
    model = Learner(net, CLASSES, trusted=trusted).fit(X, np.array([0, 3, 2])[codes])
    assert isinstance(model.estimator, SkorchClassifier)
    assert type(model.estimator.net) is kind
    found = model.predict_proba(X)
    assert (found[:, 1] == 0).all(), "the class without a label"
    whole = plain(model, X, nets.Dense(4))[:, :3]
    np.testing.assert_allclose(found[:, [0, 2, 3]], (whole / whole.sum(axis=1, keepdims=True)), atol=1e-5)
    assert (model.predict(X) == np.array(["ant", "dog", "cow"])[codes]).mean() > 0.95
    again = pickle.loads(cloudpickle.dumps(model.for_score("margin")))
    np.testing.assert_array_equal(again.predict_proba(X), found)
    same = Learner(net, CLASSES, trusted=trusted).fit(X, np.array([0, 3, 2])[codes])
    assert same.estimator.weights_ == model.estimator.weights_
    assert not hasattr(net, "module_"), "only a clone is fitted"


def test_a_skorch_classifier_passes_the_check_with_callbacks_and_a_split() -> None:
    from skorch.callbacks import EarlyStopping
    from skorch.dataset import ValidSplit

    X, _ = clouds()
    net = net_of_skorch(train_split=ValidSplit(0.2, stratified=True), callbacks=[("stop", EarlyStopping(patience=2))])
    learner = Learner(net, CLASSES, trusted=TRUSTED)
    learner.check(4, "bald", records=X)
    again = Learner.loads(learner.dumps(), CLASSES, trusted=TRUSTED)
    assert again.estimator.net.callbacks[0][1].patience == 2
    assert again.estimator.net.train_split.cv == 0.2
    with pytest.raises(LearnerError, match=r"nets\.Dense"):
        Learner.loads(learner.dumps(), CLASSES)


def test_a_skorch_classifier_gets_pictures_and_has_a_committee_of_masks() -> None:
    X, codes = squares()
    net = skorch.NeuralNetClassifier(
        nets.Images, module__n_classes=3, criterion=torch.nn.CrossEntropyLoss, optimizer=torch.optim.AdamW, lr=0.01,
        max_epochs=12, train_split=None,
    )  # fmt: skip
    estimator = SkorchClassifier(net, shape=(8, 8, 1), std=255, passes=3)
    model = Learner(estimator, CLASSES[:3], trusted=TRUSTED).fit(X, codes)
    assert (model.predict_proba(X).argmax(axis=1) == codes).mean() > 0.9
    members = list(model.committee(X.astype(np.float32)))
    assert len(members) == 3
    assert not np.allclose(members[0], members[1], atol=1e-3)
    assert (model.estimator.predicted_at_once, model.tile_rows) == (128, 1024)
    assert model.scratch_bytes >= 128 * 8 * 64 * 4


def test_a_skorch_net_too_narrow_for_the_classes_is_refused() -> None:
    with pytest.raises(LearnerError, match="SkorchClassifier could not be fitted"):
        Learner(net_of_skorch(module__n_classes=2), CLASSES, trusted=TRUSTED).check(4, records=clouds()[0])


# -- warm start --------------------------------------------------------------------------------------------------------


def test_a_warm_start_goes_on_from_the_weights_of_the_round_before() -> None:
    X, codes = clouds()
    settings = {"max_epochs": 1, "learning_rate": 1e-12, "weight_decay": 0.0}  # the weights stay where they start
    before = fitted(dense(max_epochs=15))
    warm = Learner(dense(warm_start=True, **settings), CLASSES, trusted=TRUSTED)
    assert warm.starts_warm
    np.testing.assert_allclose(warm.fit(X, codes, parent=before).predict_proba(X), before.predict_proba(X), atol=1e-4)
    cold = Learner(dense(**settings), CLASSES, trusted=TRUSTED)
    assert not cold.starts_warm
    assert np.abs(cold.fit(X, codes, parent=before).predict_proba(X) - before.predict_proba(X)).max() > 0.1
    assert warm.fit(X, codes).estimator.weights_ == cold.fit(X, codes).estimator.weights_, "the first round"


def test_a_new_class_makes_the_last_layer_new_and_no_other_one() -> None:
    from safetensors.torch import load

    X, codes = clouds(classes=4)
    settings = {"max_epochs": 1, "learning_rate": 1e-12, "weight_decay": 0.0}
    three = fitted(dense(max_epochs=15))
    learner = Learner(dense(warm_start=True, **settings), CLASSES, trusted=TRUSTED)
    before, after = (load(each.estimator.weights_[0]) for each in (three, learner.fit(X, codes, parent=three)))
    assert torch.allclose(before["layers.0.weight"], after["layers.0.weight"], atol=1e-6)
    assert after["layers.3.weight"].shape == (4, 16)


# -- embeddings --------------------------------------------------------------------------------------------------------


class Product(torch.nn.Module):
    """A network without a linear layer."""

    def __init__(self, n_classes: int) -> None:
        super().__init__()
        self.weights = torch.nn.Parameter(torch.zeros(4, n_classes))

    def forward(self, X: "torch.Tensor") -> "torch.Tensor":
        return X @ self.weights


class Twice(torch.nn.Module):
    """A network that passes its last layer twice."""

    def __init__(self, n_classes: int) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, n_classes)

    def forward(self, X: "torch.Tensor") -> "torch.Tensor":
        out: torch.Tensor = self.layer(X) + self.layer(2 * X)
        return out


def hidden(model: Model, X: np.ndarray, weights: bytes) -> np.ndarray:
    """Compute the inputs of the last layer of `nets.Dense`, as torch's own manual does."""
    from safetensors.torch import load

    network = nets.Dense(len(model.codes)).eval()
    network.load_state_dict(load(weights))
    with torch.no_grad():
        return network.layers[:3](torch.from_numpy(X)).numpy()


@pytest.mark.parametrize("settings", [{}, {"members": 2}, {"module": nets.Cramped}], ids=["one", "ensemble", "cramped"])
@pytest.mark.filterwarnings("ignore:cpu has no memory:RuntimeWarning")
def test_embeddings_are_the_inputs_of_the_last_layer_from_the_pass_that_predicts(settings: dict) -> None:
    X, _ = clouds(seed=1)
    estimator = dense(**{"max_epochs": 3, **settings})
    model = fitted(estimator)
    assert (model.embedding_width, model.estimator.embedding_layer_) == (16, "layers.3")
    probabilities, embeddings = model.predict_embedded(X)
    np.testing.assert_array_equal(probabilities, model.predict_proba(X))
    np.testing.assert_allclose(embeddings, hidden(model, X, model.estimator.weights_[0]), atol=1e-5)
    again = pickle.loads(cloudpickle.dumps(model.for_score("margin")))
    np.testing.assert_array_equal(again.predict_embedded(X)[1], embeddings)


def test_a_skorch_classifier_has_embeddings_where_a_softmax_follows_the_last_layer() -> None:
    X, codes = clouds()
    model = Learner(net_of_skorch(max_epochs=2), CLASSES, trusted=TRUSTED).fit(X, codes)
    probabilities, embeddings = model.predict_embedded(X)
    np.testing.assert_array_equal(probabilities, model.predict_proba(X))
    network = nets.Dense(4).eval()
    from safetensors.torch import load

    network.load_state_dict(load(model.estimator.weights_[0]))
    with torch.no_grad():
        np.testing.assert_allclose(embeddings, network.layers[:3](torch.from_numpy(X)).numpy(), atol=1e-5)


@pytest.mark.parametrize("module", [Product, Twice])
def test_a_network_without_a_last_linear_layer_is_compared_by_features(module: type) -> None:
    X, codes = clouds()
    estimator = dense(module=module, max_epochs=1).fit(X, codes)
    assert estimator.embedding_width_ == 0
    assert not hasattr(estimator, "predict_embedded")


@pytest.mark.parametrize("name", ["default", "badge", "cluster_margin"])
def test_the_batch_by_the_last_layer_is_that_of_a_plain_network_for_any_workers(
    album: tuple[dal.Pool, np.ndarray], cluster: Client, name: str
) -> None:
    pool, codes = album
    strategy = dal.Strategy.named(name, explore=0.0)
    learner = TorchClassifier(nets.Mortal, shape=(8, 8, 1), std=255, max_epochs=4)
    model = Learner(learner, CLASSES[:3], trusted=(*TRUSTED, "tests.nets.Mortal")).fit(pool.read(0, 60), codes[:60])
    codebook = sample_codebook(pool, strategy.n_cells(30, pool.n_rows), 0)
    nets.Mortal.passes.clear()
    given = {"random_state": 1, "round": 2, "codebook": codebook}
    alone = scan(pool, model, strategy, 30, np.arange(60), **given).candidates
    assert nets.Mortal.passes["scan"] == -(-pool.n_rows // model.estimator.predicted_at_once), "one pass"
    together = scan(pool, model, strategy, 30, np.arange(60), client=cluster, **given).candidates
    network = model.estimator._networks[0]._network
    with torch.inference_mode():
        images = torch.from_numpy(pool.read(0, pool.n_rows)).reshape(-1, 8, 8, 1).permute(0, 3, 1, 2) / 255
        inner = network.layers[:-1](images).numpy()
    batches = []
    for found in (alone, together):
        np.testing.assert_allclose(found.inner, inner[found.rows], atol=1e-5)
        np.testing.assert_array_equal(found.inner, alone.inner)
        given = {"excluded": np.arange(60), "asked": pool.read(0, 60), "asked_inner": inner[:60]}
        capacity = strategy.capacity(30, pool.n_rows, len(codebook.centers))
        batches.append(
            choose(found, strategy, 30, capacity=capacity, codebook=codebook, random_state=1, round=2, **given)
        )
    np.testing.assert_array_equal(*batches)
    if name == "cluster_margin":
        return
    # The twin: records that stand where the last layer puts them, and nothing but the choice.
    kept = shortlist(alone, strategy.capacity(30, pool.n_rows, len(codebook.centers)), 1, 2)
    twin = select(replace(kept, embeddings=kept.inner), strategy, 30, inner[:60], 1, 2)
    np.testing.assert_array_equal(batches[0], twin)


# -- pools, workers, campaigns -----------------------------------------------------------------------------------------


class TestNetwork(LearnerContract):
    learner = dense(max_epochs=3, module_args={"n_features": 5})
    trusted = TRUSTED


@pytest.fixture(scope="module")
def album(tmp_path_factory: pytest.TempPathFactory) -> tuple[dal.Pool, np.ndarray]:
    """A pool of 4,096 pictures as bytes, (n, 8, 8, 1)."""
    X, codes = squares(4096, seed=5)
    return dal.Pool.build(X.reshape(-1, 8, 8, 1), tmp_path_factory.mktemp("album") / "pool.zarr"), codes


@pytest.mark.parametrize("score", ["margin", "bald"])
def test_workers_score_pictures_straight_from_the_pool_and_find_what_one_process_finds(
    album: tuple[dal.Pool, np.ndarray], cluster: Client, score: str
) -> None:
    pool, codes = album
    assert (pool.record_shape, pool.dtype) == ((8, 8, 1), np.uint8)
    strategy = dal.Strategy(score, "top", explore=0.0)
    learner = Learner.of(nets.learner, CLASSES[:3], trusted=TRUSTED)
    model = learner.fit(pool.read(0, 60), codes[:60], committee=strategy.committee)
    alone, together = (scan(pool, model, strategy, 50, client=each) for each in (None, cluster))
    np.testing.assert_array_equal(together.candidates.rows, alone.candidates.rows)
    np.testing.assert_array_equal(together.candidates.scores, alone.candidates.scores)
    scores = score_block(score, model, pool.read(0, pool.n_rows)).score
    np.testing.assert_allclose(
        np.sort(alone.candidates.scores)[::-1], np.sort(scores)[::-1][: len(alone.candidates.rows)], atol=1e-5
    )


def test_a_worker_without_the_memory_for_a_batch_is_refused_before_the_pass(
    album: tuple[dal.Pool, np.ndarray],
) -> None:
    pool, codes = album
    estimator = TorchClassifier(nets.Images, shape=(8, 8, 1), std=255, max_epochs=1, predict_batch_size=10**6)
    model = Learner(estimator, CLASSES[:3], trusted=TRUSTED).try_fit(pool.read(0, 60), codes[:60])
    assert model.scratch_bytes > 10**6 * 4 * 64 * 8, "the first layer gives eight channels of float32"
    with (
        own_cluster(1, threads=1, memory_limit="2GiB", processes=False, protocol="tcp") as (_, client),
        pytest.raises(ClusterError, match="has 2,048 MiB for 1 threads"),
    ):
        scan(pool, model, dal.Strategy("margin", "top"), 50, client=client)


@pytest.fixture(scope="module")
def mixed() -> Iterator[Client]:
    """A worker that declares a GPU, though it has none, and one that declares none and refuses to predict."""
    with (
        dask_scheduler() as address,
        dask_worker(address, threads=2, resources="GPU=1"),
        dask_worker(address, threads=2, environment={"NETS_NO_GPU": "1"}),
        Client(address, set_as_default=False) as client,
    ):
        client.wait_for_workers(2, timeout=60)
        yield client


@pytest.mark.slow
def test_a_network_is_scored_and_trained_where_a_gpu_is_declared(mixed: Client, tmp_path: Path) -> None:
    from safetensors.torch import load

    X, codes = squares(4096, seed=5)
    # A piece of work for each of the four threads.
    chunks = {"shape": (4096, 8, 8, 1), "chunks": (512, 8, 8, 1)}
    zarr.create_array(tmp_path / "pool.zarr", dtype="uint8", **chunks)[:] = X.reshape(-1, 8, 8, 1)
    pool = dal.Pool.open(tmp_path / "pool.zarr")
    [(address, gpus)] = gpus_of(mixed).items()
    assert gpus == 1
    process = mixed.run(os.getpid, workers=[address])[address]
    trusted = ("tests.nets.Placed",)
    campaign = dal.Campaign.create(
        tmp_path / "c", pool, CLASSES[:3], estimator="tests.nets:placed", trusted=trusted, batch_size=40
    )
    twin = dal.Campaign.create(
        tmp_path / "twin", pool, CLASSES[:3], estimator="tests.nets:placed", trusted=trusted, batch_size=40
    )
    for _ in range(2):
        batches = campaign.next_batch(client=mixed), twin.next_batch()
        assert all(isinstance(each, dal.Batch) for each in batches)
        assert batches[0].rows.tolist() == batches[1].rows.tolist(), "the same batch as in one process"
        for each, batch in zip((campaign, twin), batches, strict=True):
            each.label(batch, np.array(CLASSES)[codes[batch.rows]])
    [weights] = campaign.model.estimator.weights_
    assert int(load(weights)["process"]) == process
    [weights] = twin.model.estimator.weights_
    assert int(load(weights)["process"]) == os.getpid()

    # The control: a network that is bound to the processor goes to all workers.
    learner = TorchClassifier(nets.Placed, shape=(8, 8, 1), std=255, max_epochs=1, device="cpu")
    model = Learner(learner, CLASSES[:3], trusted=trusted).fit(pool.read(0, 60), codes[:60])
    with pytest.raises(LearnerError, match="declares no GPU"):
        scan(pool, model, dal.Strategy("margin", "top"), 50, client=mixed)


@pytest.mark.slow
def test_records_are_encoded_where_a_gpu_is_declared(mixed: Client, tmp_path: Path) -> None:
    from tests.torch_encoders import Homed, letters

    records = [f"{'abc'[at % 3]} {at}" for at in range(200)]
    (tmp_path / "texts.csv").write_text("\n".join(["text", *records]))
    how = {"text": "text", "client": mixed, "sizes": Sizes(group_texts=16)}
    pool = dal.Pool.build(tmp_path / "texts.csv", tmp_path / "auto.zarr", encoder=TorchEncoder(Homed(), letters), **how)
    assert (pool.read(0, 200) == 1).all(), "one letter of the alphabet each"
    # The control: an encoder that is bound to the processor goes to all workers.
    bound = TorchEncoder(Homed(), letters, device="cpu")
    with pytest.raises(SourceError, match="declares no GPU"):
        dal.Pool.build(tmp_path / "texts.csv", tmp_path / "cpu.zarr", encoder=bound, **how)


def play(directory: Path, codes: np.ndarray) -> list[list[int]]:
    """Play a campaign to its end; return the rows of each batch that was labelled here."""
    campaign, asked = dal.Campaign.open(directory), []
    for batch in campaign.batches():
        asked.append(batch.rows.tolist())
        campaign.label(batch, [CLASSES[code] for code in codes[batch.rows]])
    return asked


def campaign_of(pool: dal.Pool, directory: Path, estimator: str, **options: object) -> dal.Campaign:
    """Make a campaign of ten rounds."""
    trusted = ("tests.nets.Mortal", "tests.nets.Images")
    given = {"batch_size": 12, "stop": "max_rounds=10", "random_state": 3} | options
    return dal.Campaign.create(directory, pool, CLASSES[:3], estimator=estimator, trusted=trusted, **given)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_campaign_of_ten_rounds_that_is_killed_in_a_fit_and_in_a_scan_asks_the_same_records(
    album: tuple[dal.Pool, np.ndarray], tmp_path: Path
) -> None:
    pool, codes = album
    undisturbed = campaign_of(pool, tmp_path / "undisturbed", "tests.nets:mortal")
    expected = play(undisturbed.directory, codes)
    assert len(expected) == 10

    campaign_of(pool, tmp_path / "campaign", "tests.nets:mortal")
    np.save(tmp_path / "codes.npy", codes)
    script = "import sys, numpy, pathlib; from tests.test_deep import play"
    script += "; play(pathlib.Path(sys.argv[1]), numpy.load(sys.argv[2]))"
    command = [sys.executable, "-c", script, str(tmp_path / "campaign"), str(tmp_path / "codes.npy")]
    file = tmp_path / "kill"
    rounds = []
    for place in ("fit 60", "scan 10"):
        file.write_text(place)
        died = subprocess.run(command, env=os.environ | {"NETS_KILL": str(file)}, timeout=300, check=False)
        assert died.returncode == -signal.SIGKILL
        newest = dal.Campaign.open(tmp_path / "campaign").rounds.current
        assert newest is not None
        rounds.append((newest.number, newest.status))
    assert [status for _, status in rounds] == ["frozen", "fitted"], rounds
    play(tmp_path / "campaign", codes)
    campaign = dal.Campaign.open(tmp_path / "campaign")
    assert [[each.row for each in campaign.rounds.batch(number)] for number in range(1, 11)] == expected
    status = campaign.status()
    assert status.labels == 120
    assert (campaign.model.predict(pool.read(0, 900)) == np.array(CLASSES)[codes[:900]]).mean() > 0.9


@pytest.mark.slow
def test_the_blocks_of_the_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[1] / "docs" / "networks.md").read_text()
    modules = dict(re.findall(r"^```python\n# (\w+)\.py\n(.*?)^```$", page, re.DOTALL | re.MULTILINE))
    assert list(modules) == ["nets", "of_skorch"]
    commands = [line for line in page.splitlines() if line.startswith("dal ")]
    assert [line.split()[1] for line in commands] == ["init", "next"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name, text in modules.items():
        Path(f"{name}.py").write_text(text)
    images = np.random.default_rng(0).integers(0, 256, (1_200, 28, 28, 1), dtype=np.uint8)
    pool = dal.Pool.build(images, "pool.zarr")
    for line in commands:
        result = CliRunner().invoke(main, shlex.split(line)[1:], catch_exceptions=False)
        assert result.exit_code == 0, result.output
    campaign = dal.Campaign.open("campaign")
    batch = next(campaign.batches())
    campaign.label(batch, np.array(["shirt", "shoe", "bag"])[batch.rows % 3])
    assert len(set(next(campaign.batches()).rows) - set(batch.rows)) == 500
    assert campaign.model.predict_proba(pool.read(0, 5)).shape == (5, 3)
    Learner.named("of_skorch:learner", CLASSES[:3], trusted=["nets.SmallNet"]).check(784, records=pool.read(0, 60))


@pytest.mark.slow
def test_a_scan_finds_what_a_plain_loop_finds_and_memory_stays_flat_over_rounds() -> None:
    command = [sys.executable, "-m", "benchmarks", "deep", "--rows", "2048", "--repeats", "1", "--rounds", "16"]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, timeout=110)
    told = json.loads(ran.stdout)
    assert told["same_candidates"] > 0.98, "ties by the last bits may change places"
    assert told["growth"] < 1.05

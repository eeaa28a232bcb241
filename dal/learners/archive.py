"""Archives: models as skops files, loaded without running code of types that are not trusted."""

from collections.abc import Sequence
from typing import Any

import skops.io

from dal.errors import LearnerError

# Parts of scikit-learn's own estimators that skops does not list as safe by itself. None runs code when it is loaded.
_TRUSTED = (
    "builtins.print",  # where callbacks of skorch report
    "collections.OrderedDict",
    "dal.learners.blocks.InBlocks",
    "dal.learners.deep.SkorchClassifier",  # all that describes its net is looked at by itself
    "dal.learners.deep.TorchClassifier",  # the network's class or function is looked at by itself
    "dal.learners.penalty.TunedLogisticRegression",
    "functools.partial",  # what it calls is looked at by itself
    "numpy.dtype",
    "scipy._lib.array_api_compat.numpy._aliases.asarray",  # a spline of SciPy 1.17 keeps how it makes arrays
    "scipy.interpolate._bsplines.BSpline",
    "scipy.interpolate._bsplines._BSpline",
    "skorch.callbacks.training.EarlyStopping",
    "skorch.dataset.ValidSplit",
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
    "sklearn.metrics._scorer._PassthroughScorer",
    "sklearn.model_selection._split.StratifiedKFold",
    "sklearn.multiclass._ConstantPredictor",
    "sklearn.tree._tree.Tree",
    "sklearn.utils._bunch.Bunch",
    "sklearn.utils.validation.check_array",
)


_TRUSTED_PARTS = (
    "scipy.sparse.",
    "sklearn.calibration.",
    "sklearn.feature_selection.",
    "sklearn.gaussian_process.",
    "sklearn.metrics._dist_metrics.",
    "sklearn.neighbors.",
    "sklearn.neural_network.",
    "torch.nn.modules.loss.",
    "torch.optim.",
)


FORMAT = 2


FORMATS = (1, 2)
"""Format 1 fitted estimators on the campaign's own codes, and did not store whether they take missing values."""


def archived(content: dict[str, Any], kind: str) -> bytes:
    """Return the content as the bytes of a skops archive."""
    try:
        return bytes(skops.io.dumps(content))
    except Exception as error:
        raise LearnerError(f"{kind} cannot be saved with skops: {error}") from error


def load(data: bytes, trusted: Sequence[str]) -> dict[str, Any]:
    """Load what `archived` returned; refuse types that neither scikit-learn nor `trusted` names."""
    try:
        found = skops.io.get_untrusted_types(data=data)
    except Exception as error:
        raise LearnerError(
            f"`data` must be a model saved by dal, got {len(data)} bytes that skops cannot read: {error}"
        ) from error
    own = [name for name in found if name in _TRUSTED or name.startswith(_TRUSTED_PARTS)]
    _check_foreign([name for name in found if name not in {*own, *trusted}])
    try:
        content = skops.io.loads(data, trusted=[*own, *trusted])
    except Exception as error:
        raise LearnerError(f"the saved model cannot be loaded: {error}") from error
    if not isinstance(content, dict):
        raise LearnerError(f"`data` must be a model saved by dal, got a saved {type(content).__name__}")
    if content.get("format") not in FORMATS:
        raise LearnerError(f"`data` must be a model of format {FORMAT}, got format {content.get('format')!r}")
    return content


def _check_foreign(names: Sequence[str]) -> None:
    nameless = [name for name in names if "<" in name or name.startswith("__main__.")]
    if nameless:
        raise LearnerError(
            f"the model holds {', '.join(nameless)}, which other processes cannot find by name when they load it: "
            "define it at the top level of a module that they can import, without a lambda"
        )
    if names:
        raise LearnerError(
            f"the model holds types that are not trusted: {', '.join(names)}. "
            f"If you trust their code, name them: trusted={list(names)!r}"
            f" ({' '.join(f'--trusted {name}' for name in names)})"
        )

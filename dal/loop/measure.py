"""Measures of a round's model before it chooses: on the stop set, and on the user's holdout."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
from sklearn.metrics import cohen_kappa_score

from dal._files import read_labelled
from dal.campaign import Round, Settings
from dal.campaign.features import Features
from dal.campaign.view import View
from dal.classes import codes_of
from dal.errors import LabelError, SettingsError
from dal.learners.models import Model
from dal.scores import of_probabilities
from dal.selection.candidates import usable


def measured(view: View, features: Features, current: Round, model: Model) -> dict[str, float]:
    """Compare a round's model with the one before on the stop set, and try it on the user's holdout.

    Returns
    -------
    dict
        Fields of :class:`dal.evidence.ruler.RoundRecord`; without those that cannot be measured.
    """
    campaign = view.campaign
    values: dict[str, float] = {}
    X = features.stop_set(current.stop_set)
    if len(X := X[usable(X, missing=model.takes_missing)]):
        proba = model.predict_proba(X)
        # A record may be so far from all others that an estimator overflows.
        if (finite := np.isfinite(proba).all(axis=1)).any():
            values["uncertainty"] = float(of_probabilities("entropy", proba[finite]).score.mean())
        if current.parent_model is not None:
            before = Model.loads(campaign.rounds.load_model(current.parent_model), campaign.settings.trusted)
            proba, X = (each[usable(X, missing=before.takes_missing)] for each in (proba, X))
            now, then = proba.argmax(axis=1), before.predict_proba(X).argmax(axis=1)
            values["changed"] = float((now != then).mean())
            # Kappa of two models that agree on a single class is 0 / 0.
            values["kappa"] = 1.0 if (now == then).all() else float(cohen_kappa_score(now, then))
    holdout = read_holdout(campaign.settings, view.pool.n_features, campaign.directory)
    if holdout is not None:
        given = usable(holdout[0], missing=model.takes_missing)  # all, unless the learner was changed since
        X, codes = holdout[0][given], holdout[1][given]
        values["holdout_correct"] = int((model.predict_proba(X).argmax(axis=1) == codes).sum())
        values["holdout_asked"] = len(codes)
    return values


def read_holdout(
    settings: Settings, n_features: int, beside: Path = Path()
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]] | None:
    """Read the labelled records that the user has set apart, with class codes; None where there are none."""
    if not settings.measuring.holdout:
        return None
    try:
        X, y = read_labelled(beside / settings.measuring.holdout, n_features)
        return X, codes_of(y, settings.classes, what="y")
    except (LabelError, SettingsError) as error:
        raise SettingsError(f"The holdout: {error}.") from error

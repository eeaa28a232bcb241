"""Labels that were saved against random sampling, by fits on the explore answers alone."""

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from dal.campaign import CampaignStore
from dal.campaign.features import Features
from dal.campaign.parts import learner_of
from dal.campaign.view import View
from dal.classes import UNLABELLED
from dal.evidence.ruler import Estimate, explore_counts, labels_saved
from dal.selection.candidates import usable

if TYPE_CHECKING:
    from dal.learners.learner import Learner

Rows = npt.NDArray[np.int64]


def saved(campaign: CampaignStore) -> Estimate:
    """Estimate how many labels were saved against random sampling; see `dal.evidence.ruler.labels_saved`.

    Fits the learner some hundred times on explore answers, if there is evidence at all: seconds, and with a heavy
    learner minutes.
    """
    view = View(campaign)
    with campaign.database.snapshot():
        rows, codes = view.explored_labels(here=True)
        spent, counts = len(view.labels().rows), explore_counts(view.history()[-5:])
    learner: Learner | None = None
    X: npt.NDArray[np.float32] | None = None
    sound: npt.NDArray[np.bool_] | None = None

    def fit_and_judge(learned: Rows, judged: Rows) -> npt.NDArray[np.bool_]:
        nonlocal learner, X, sound
        if learner is None or X is None or sound is None:
            learner = learner_of(campaign)  # it is a second of imports, and most campaigns lack the evidence
            X = Features(view).take(rows)
            # The learner of now may take fewer records than the one that they were drawn for.
            sound = usable(X, missing=learner.takes_missing(X.shape[1]))
            if len(np.unique(codes[sound])) > 1:
                # Once, not in each of two hundred fits, which would take ten times as long.
                learner = learner.settled(learner.try_fit(X[sound], codes[sound]))
        learned, given = learned[sound[learned]], sound[judged]
        predicted = np.full(len(judged), codes[learned[0]] if len(learned) else UNLABELLED)
        if len(np.unique(codes[learned])) > 1 and given.any():
            model = learner.try_fit(X[learned], codes[learned])
            predicted[given] = model.predict_proba(X[judged[given]]).argmax(axis=1)
        return np.asarray(predicted == codes[judged])

    return labels_saved(fit_and_judge, len(rows), counts, spent, seed=campaign.settings.random_state)

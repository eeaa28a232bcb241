"""Parts of one's own: a score, a selector, a stopping criterion, a learner and an exchange format."""

from dataclasses import dataclass

import numpy as np

from dal.evidence.stopping import Verdict
from dal.exchange.formats import Format, Known, Line
from dal.selection.strategy import Traits


@dataclass(frozen=True)
class Doubt:
    """Ask first where the most probable class is least so, some power of it."""

    power: float = 1.0

    def __call__(self, probabilities):
        return (1.0 - probabilities.max(axis=1)) ** self.power


def one_a_class(problem, k):
    """Take the best candidate of each predicted class in turn."""
    predicted = problem.proba[problem.distinct].argmax(axis=1)
    turn = [np.count_nonzero(predicted[:place] == code) for place, code in enumerate(predicted)]
    return problem.distinct[np.lexsort((predicted, turn))][:k]


one_a_class.traits = Traits(proba=True)


@dataclass(frozen=True)
class QuietRounds:
    """Stop when the models of the last rounds changed hardly anything on the stop set."""

    rounds: int = 3
    change: float = 0.01

    def judge(self, history, labels, now_hours):
        seen = [record.changed for record in history if record.changed is not None][-self.rounds :]
        if len(seen) < self.rounds:
            return Verdict("quiet_rounds", False, None, self.change, f"{len(seen)} of {self.rounds} rounds compared")
        said = f"at most {max(seen):.2%} changed in {self.rounds} rounds; up to {self.change:.2%} is quiet"
        return Verdict("quiet_rounds", max(seen) <= self.change, max(seen), self.change, said)


def nearest(random_state):
    """Return a classifier that looks at the five nearest records."""
    from sklearn.neighbors import KNeighborsClassifier

    return KNeighborsClassifier(n_neighbors=5)


class Tabbed(Format):
    """Four columns without a header, separated by tabs."""

    def lines(self, path):
        for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            yield Line(number, *text.split("\t"))

    def write(self, file, sheet, blocks):
        items = [item for block in blocks for item in block]
        said = [(item.asked.record_id, *each) for item in items for each in item.known or [Known("", "", "")]]
        file.write("".join("\t".join(line) + "\n" for line in said).encode())
        return len(said)

"""The loop as a value: where a campaign stands, and what it does next.

A round is train -> scan -> select -> label. Its state in the database moves

    (none) -> frozen -> fitted -> scanned -> open -> closed

and each arrow is one transaction. :func:`next_action` reads the state and says which arrow comes next; it looks at
nothing else, so a coordinator that died anywhere is continued by asking again.
"""

from dataclasses import dataclass
from typing import Literal

from dal.evidence.stopping import Verdict

Status = Literal["none", "frozen", "fitted", "scanned", "open", "closed"]


@dataclass(frozen=True)
class State:
    """Where a campaign stands.

    Attributes
    ----------
    number : int
        The newest round; 0 before the first.
    status : str
        That round's status; ``none`` before the first round.
    trainable : bool
        Whether the round learns from labels: not in a cold start, which has none and chooses by coverage.
    pending : int
        Records of the open batch that nobody has answered.
    spare : int
        So many of them need not be waited for.
    verdicts : tuple of Verdict
        What the stopping criteria say now.
    """

    number: int
    status: Status
    trainable: bool
    pending: int
    spare: int = 0
    verdicts: tuple[Verdict, ...] = ()


@dataclass(frozen=True)
class Open:
    """Open round `number`: freeze what it starts from."""

    number: int


@dataclass(frozen=True)
class Fit:
    """Fit the learner on the labels that the round froze."""


@dataclass(frozen=True)
class Scan:
    """Score the pool; `cold` means without a model."""

    cold: bool


@dataclass(frozen=True)
class Select:
    """Choose the batch among the candidates and open it for labelling."""


@dataclass(frozen=True)
class Wait:
    """`pending` records of the open batch are still to be labelled."""

    pending: int


@dataclass(frozen=True)
class Close:
    """Enough of the batch has been answered: close the round."""


@dataclass(frozen=True)
class Stop:
    """A stopping criterion says that more labels are not worth their price."""

    verdicts: tuple[Verdict, ...]


Action = Open | Fit | Scan | Select | Wait | Close | Stop


def next_action(state: State) -> Action:
    """Say what a campaign does next.

    Examples
    --------
    >>> next_action(State(number=0, status="none", trainable=False, pending=0))
    Open(number=1)
    >>> next_action(State(number=1, status="frozen", trainable=False, pending=0))
    Scan(cold=True)
    >>> next_action(State(number=1, status="open", trainable=False, pending=3))
    Wait(pending=3)
    >>> next_action(State(number=1, status="open", trainable=False, pending=3, spare=3))
    Close()
    """
    match state.status:
        case "none" | "closed":
            reached = tuple(verdict for verdict in state.verdicts if verdict.stop)
            return Stop(reached) if reached else Open(state.number + 1)
        case "frozen":
            return Fit() if state.trainable else Scan(cold=True)
        case "fitted":
            return Scan(cold=False)
        case "scanned":
            return Select()
        case "open":
            return Wait(state.pending) if state.pending > state.spare else Close()

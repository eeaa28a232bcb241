"""The loop as a value: where a campaign stands, and what it does next.

A round is train -> scan -> select -> label. Its step in the database moves

    (none) -> frozen -> fitted -> scanned -> open -> closed

and each arrow is one transaction. :func:`next_action` maps the state to the arrow that comes next. It has no memory and
reads nothing else, so a coordinator that died anywhere goes on by asking again.
"""

from dataclasses import dataclass

from dal.campaign.schema import Step
from dal.evidence.stopping import Verdict


@dataclass(frozen=True)
class State:
    """The state of a campaign.

    Attributes
    ----------
    number : int
        The newest round; 0 before the first.
    step : str
        That round's step; ``none`` before the first round.
    trainable : bool
        Whether the round learns from labels; a cold start has none and chooses by coverage.
    pending : int
        Records of the open batch that nobody has answered.
    spare : int
        How many of them need not be waited for.
    verdicts : tuple of Verdict
        Verdicts of the stopping criteria.
    """

    number: int
    step: Step
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
    """Score the pool with the round's model; in a `cold` start without one."""

    cold: bool


@dataclass(frozen=True)
class Select:
    """Choose the batch among the candidates and open it for labelling."""


@dataclass(frozen=True)
class Wait:
    """Wait until `pending` records of the open batch are labelled."""

    pending: int


@dataclass(frozen=True)
class Close:
    """Close the round: enough of its batch was answered."""


@dataclass(frozen=True)
class Stop:
    """End the campaign: these stopping criteria were met."""

    verdicts: tuple[Verdict, ...]


Action = Open | Fit | Scan | Select | Wait | Close | Stop


def next_action(state: State) -> Action:
    """Return the action that comes next.

    Examples
    --------
    >>> next_action(State(number=0, step="none", trainable=False, pending=0))
    Open(number=1)
    >>> next_action(State(number=1, step="frozen", trainable=False, pending=0))
    Scan(cold=True)
    >>> next_action(State(number=1, step="open", trainable=False, pending=3))
    Wait(pending=3)
    >>> next_action(State(number=1, step="open", trainable=False, pending=3, spare=3))
    Close()
    """
    match state.step:
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

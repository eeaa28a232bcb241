"""Every error that dal raises on purpose.

The tree is grouped by what the reader of the message does about it::

    DalError
    |-- InputError (ValueError)      change what you passed; nothing was written
    |   |-- SourceError              the data a pool is built from
    |   |-- LearnerError             the learner, or what it returned
    |   |-- LabelError               classes and answers
    |   `-- SettingsError            a strategy, a batch size, a stopping criterion, an option
    |-- PoolError                    look at the pool's store
    |   |-- PoolNotFound (FileNotFoundError)
    |   |-- PoolIncomplete           a build was interrupted: run it again, it goes on
    |   `-- ChunkError               a chunk is missing or damaged: restore it
    |-- CampaignError                look at the campaign's directory
    |   |-- CampaignNotFound (FileNotFoundError)
    |   |-- CampaignLocked           another coordinator is at work: wait for it, or end it
    |   |-- LearnerSwitched          somebody has switched the learner meanwhile: look, and do it again
    |   |-- DatabaseError            its database fails for the moment: mend it, then do the same again
    |   `-- CampaignMismatch         this is another campaign's directory, pool or version
    |-- ProgramError                 look at the program that answers as an annotator, then run again
    |-- ServerError                  look at the labelling tool's server, then run again
    |-- StoreError                   look at the object store, or the credentials for it, then run again
    `-- ScanError                    run again: finished spans are kept
        |-- ClusterError             what the cluster lacks, or cannot do: mend it
        |   `-- ClusterLost          no scheduler, no workers, no progress: wait for them
        `-- SpanError                one span fails every time; the message names it

A message says what was expected, what came, and what to do next.
"""


class DalError(Exception):
    """Base of every error that dal raises on purpose."""


class InputError(DalError, ValueError):
    """Input that cannot be used; nothing was changed."""


class SourceError(InputError):
    """The data that a pool is to be built from cannot be used."""


class LearnerError(InputError):
    """The learner cannot be used, or returned something that is no prediction."""


class LabelError(InputError):
    """A class or an answer cannot be used."""


class SettingsError(InputError):
    """An option, a strategy or a stopping criterion cannot be used."""


class PoolError(DalError):
    """The pool's store is not as it should be."""


class PoolNotFound(PoolError, FileNotFoundError):
    """There is no pool at this place."""


class PoolIncomplete(PoolError):
    """The pool's build was interrupted; the same build, run again, goes on."""


class ChunkError(PoolError):
    """A chunk of the pool is missing or damaged."""


class CampaignError(DalError):
    """The campaign's durable state is not as it should be."""


class CampaignNotFound(CampaignError, FileNotFoundError):
    """There is no campaign at this place."""


class CampaignLocked(CampaignError):
    """Another coordinator is at work on this campaign."""


class LearnerSwitched(CampaignError):
    """The learner was switched by somebody else meanwhile; nothing was changed."""


class DatabaseError(CampaignError):
    """The campaign's database cannot be read or written now; nothing was changed, and the same may be tried again.

    Attributes
    ----------
    remedy : str
        What to do, in words that name no place: annotators may read them.
    """

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.remedy = remedy


class CampaignMismatch(CampaignError):
    """The directory, the pool or the version belongs to another campaign."""


class ProgramError(DalError):
    """A program that answers as an annotator fails, or answers what cannot be taken; earlier answers are kept."""


class ServerError(DalError):
    """A labelling tool's server cannot be reached, or refuses."""


class StoreError(DalError):
    """An object store cannot be reached, or refuses; the message names store and object.

    Attributes
    ----------
    transient : bool
        Whether the same may succeed later.
    """

    def __init__(self, message: str, *, transient: bool = False) -> None:
        super().__init__(message)
        self.transient = transient


class ScanError(DalError):
    """A scan could not finish; finished spans are kept in its journal."""


class ClusterError(ScanError):
    """The cluster cannot be used."""


class ClusterLost(ClusterError):
    """The cluster cannot be reached, has no workers, or makes no progress: later it may."""


class SpanError(ScanError):
    """A span of the pool failed on every attempt."""


class NotInstalled(DalError, ImportError):
    """A package that an extra of the distribution installs is missing."""

"""The facts that findings are made of: what a cluster, a pool and a campaign say of themselves."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from dal.compute.versions import Versions
from dal.scan.plan import WorkerBytes

Role = Literal["this process", "scheduler", "worker"]


@dataclass(frozen=True)
class Process:
    """A scheduler, a worker, or the process that runs the campaign.

    Attributes
    ----------
    role : {"this process", "scheduler", "worker"}
    address : str
        Of its own; empty for this process.
    host : str
        Address or name of its machine.
    threads : int
    memory_limit : int
        In bytes; 0 where there is none.
    has_nanny : bool
        Whether a process watches over it.
    dashboard : int or None
        Port of its pages.
    environment : mapping of str to str
        Variables; None where one is not set.
    settings : mapping of str to object
        Keys of Dask's configuration.
    listening : tuple of (str, int)
        Addresses and ports that it listens on.
    files : int
        The most files and connections that it may have open; 0 where there is no limit.
    versions : Versions
    silent : str
        Why nothing is known of it; empty where it answered.
    """

    role: Role
    address: str = ""
    host: str = ""
    threads: int = 1
    memory_limit: int = 0
    has_nanny: bool = True
    dashboard: int | None = None
    environment: Mapping[str, str | None] = field(default_factory=dict)
    settings: Mapping[str, object] = field(default_factory=dict)
    listening: tuple[tuple[str, int], ...] = ()
    files: int = 0
    versions: Versions = field(default_factory=dict)
    silent: str = ""


@dataclass(frozen=True)
class Machine:
    """A machine, as one process on it sees it.

    Attributes
    ----------
    host : str
    memory : int
        In bytes, of the machine or its container; 0 where it is not known.
    cores : int
        0 where it is not known.
    kernels : tuple of str
        Of its linear algebra.
    clock_off : float
        Seconds that its clock is ahead of this process's.
    clock_within : float
        Seconds that `clock_off` may be wrong.
    free : int or None
        Bytes on the disk that the process works on.
    pool_trouble, store_trouble : str or None
        Why the pool cannot be read, or the place of the cells not be written.
    chunk_bytes : int
        Size of the chunk that was read; 0 where none was.
    chunk_seconds : float
    unseen : str
        Why it was not looked at closely; empty where it was.
    """

    host: str
    memory: int = 0
    cores: int = 0
    kernels: tuple[str, ...] = ()
    clock_off: float = 0.0
    clock_within: float = 0.0
    free: int | None = None
    pool_trouble: str | None = None
    store_trouble: str | None = None
    chunk_bytes: int = 0
    chunk_seconds: float = 0.0
    unseen: str = ""


@dataclass(frozen=True)
class Certificate:
    """A certificate by which processes know each other.

    Attributes
    ----------
    host : str
    name : str
        Its file, or the process that shows it.
    expires : datetime
    seconds_left : float
        By the clock of this machine; less than zero where it has expired.
    """

    host: str
    name: str
    expires: datetime
    seconds_left: float


@dataclass(frozen=True)
class Home:
    """The campaign and its pool, as this process sees them.

    Attributes
    ----------
    troubles : mapping of str to str
        What cannot be opened, read or written, and why: ``campaign``, ``pool``, ``store``, ``database``.
    directory : str
    free : int or None
        Bytes on the disk of the campaign's directory.
    needed : int
        Bytes that the campaign still takes there.
    filesystem : str or None
        The network file system that the directory lies on.
    database_host : str
        Of a database on a server; empty where it is a file.
    database_encrypted : bool
    database_clock_off : float
        Seconds that the server's clock is ahead of this process's.
    pool, store : str
        Their places.
    candidates : int
        Bytes that the candidates of a scan are predicted to take in the coordinator; 0 without a pool.
    """

    troubles: Mapping[str, str] = field(default_factory=dict)
    directory: str = ""
    free: int | None = None
    needed: int = 0
    filesystem: str | None = None
    database_host: str = ""
    database_encrypted: bool = True
    database_clock_off: float = 0.0
    pool: str = ""
    store: str = ""
    candidates: int = 0


@dataclass(frozen=True)
class Facts:
    """Everything that was collected.

    Attributes
    ----------
    processes : tuple of Process
        This one first.
    machines : tuple of Machine
        This one first.
    home : Home
    need : WorkerBytes or None
        What a scan is predicted to take in a worker; None without a pool.
    scheduler : str
        Its address; empty without a cluster.
    no_cluster : str
        Why the scheduler cannot be used.
    certificates : tuple of Certificate
        Those of this process first.
    """

    processes: tuple[Process, ...]
    machines: tuple[Machine, ...]
    home: Home = field(default_factory=Home)
    need: WorkerBytes | None = None
    scheduler: str = ""
    no_cluster: str = ""
    certificates: tuple[Certificate, ...] = ()

    @property
    def workers(self) -> list[Process]:
        """The workers of the cluster."""
        return [each for each in self.processes if each.role == "worker"]

"""Findings: from facts to what must or should be changed, by pure functions."""

import ipaddress
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

from dask.utils import parse_timedelta

from dal.compute.versions import OF_SCHEDULER, differences
from dal.doctor.facts import Facts, Process

Severity = Literal["fault", "advice", "fact"]

_MIB = 2**20
_PAUSE = 0.8
"""Share of its memory at which a worker of Dask takes no more tasks, where its settings do not say."""
_CLOCK_ADVICE, _CLOCK_FAULT = 2.0, 300.0
"""Seconds: logs no longer fit together; an object store refuses requests that are signed a quarter of an hour off."""
_SOON = 30 * 86_400.0
"""Seconds: a certificate that expires within them should be made again now."""
_ROOM = 2**30
"""Bytes that a disk should have left beyond what is needed."""
_FILES, _FILES_A_WORKER = 100, 5
"""Files and connections that a scheduler has open: without workers, with room for clients, and for each worker."""
_SLOW = 5
"""A machine that reads this many times as slowly as the fastest one is worth a look."""

RECIPE = "start it with DASK_CONFIG=cluster/distributed.yaml (cluster/README.md)"


@dataclass(frozen=True)
class Finding:
    """A finding about one place.

    Attributes
    ----------
    severity : {"fault", "advice", "fact"}
        A fault must be changed: work would be refused, fail or do harm. Advice should be followed: work goes on, slower
        or less safely. A fact is fine.
    host : str
    what : str
    change : str
        What to change; empty for a fact.
    """

    severity: Severity
    host: str
    what: str
    change: str = ""


def findings(facts: Facts, wanted: Mapping[str, Any]) -> list[Finding]:
    """Return all findings, faults first.

    Parameters
    ----------
    facts : Facts
    wanted : mapping
        Dask's configuration as `dal` wants it, nested.
    """
    all_of_them = chain(
        _cluster(facts),
        _versions(facts),
        _memory(facts),
        _workers(facts),
        _files(facts),
        _environment(facts, wanted),
        _settings(facts, wanted),
        _doors(facts),
        _certificates(facts),
        _kernels(facts),
        _clocks(facts),
        _reach(facts),
        _pace(facts),
        _home(facts),
        _disks(facts),
    )
    order = {"fault": 0, "advice": 1, "fact": 2}
    return sorted(all_of_them, key=lambda found: order[found.severity])


def together(found: list[Finding]) -> dict[tuple[Severity, str, str], list[str]]:
    """Return the hosts of each finding that several have alike, by severity, what and change."""
    hosts: dict[tuple[Severity, str, str], list[str]] = defaultdict(list)
    for each in found:
        hosts[each.severity, each.what, each.change].append(each.host)
    return {key: list(dict.fromkeys(several)) for key, several in hosts.items()}


# -- the cluster -------------------------------------------------------------------------------------------------------


def _cluster(facts: Facts) -> Iterator[Finding]:
    if facts.no_cluster:
        yield Finding("fault", facts.scheduler, facts.no_cluster, "start the scheduler, or correct its address")
    elif facts.scheduler and not facts.workers:
        yield Finding("fault", facts.scheduler, "the cluster has no worker", "start workers (cluster/README.md)")
    elif facts.scheduler:
        hosts = len({each.host for each in facts.workers})
        threads = sum(each.threads for each in facts.workers)
        yield Finding("fact", facts.scheduler, f"{len(facts.workers):,} workers, {threads:,} threads, {hosts:,} hosts")
    for each in facts.processes:
        if each.silent:
            change = "look at its log; a worker that is busy or still starting answers later: run dal doctor again"
            yield Finding("fault", each.host, f"the {each.role} at {each.address} says nothing: {each.silent}", change)


def _versions(facts: Facts) -> Iterator[Finding]:
    here = facts.processes[0].versions
    for each in facts.processes[1:]:
        if each.silent:
            continue
        names = {"names": OF_SCHEDULER} if each.role == "scheduler" else {}
        for unlike in differences(here, each.versions, **names):
            severity: Severity = "fault" if unlike.refused else "advice"
            yield Finding(severity, each.host, f"a {each.role} has {unlike}", unlike.remedy)


def _memory(facts: Facts) -> Iterator[Finding]:
    if facts.need is None:
        return
    one = facts.need.for_threads(1)
    yield Finding("fact", "every worker", f"a scan takes about {one / _MIB:,.0f} MiB with one thread ({facts.need})")
    needed: dict[str, int] = defaultdict(int)
    limits: dict[str, int] = defaultdict(int)
    for each in facts.workers:
        need, limit = facts.need.for_threads(each.threads), each.memory_limit
        needed[each.host] += need
        limits[each.host] += limit
        pause = _share(each.settings.get("distributed.worker.memory.pause"), _PAUSE)
        said = f"a worker has {limit / _MIB:,.0f} MiB for {_threads(each.threads)}"
        change = f"give each worker {need / pause / _MIB:,.0f} MiB or more, or fewer threads"
        if limit and need > limit:
            yield Finding("fault", each.host, f"{said}, and a scan takes about {need / _MIB:,.0f}", change)
        elif limit and need > pause * limit:
            what = f"{said}; a scan takes about {need / _MIB:,.0f}, and workers pause at {pause:.0%} of their memory"
            yield Finding("advice", each.host, what, change)
    memory = {each.host: each.memory for each in facts.machines}
    for host, all_need in needed.items():
        has = memory.get(host, 0)
        if has and all_need > has:
            what = f"the workers of a scan take about {all_need / _MIB:,.0f} MiB together, the machine has"
            yield Finding("fault", host, f"{what} {has / _MIB:,.0f}", "start fewer workers there")
        elif has and limits[host] > 1.05 * has:
            what = f"the memory limits of its workers come to {limits[host] / _MIB:,.0f} MiB, the machine has"
            yield Finding("advice", host, f"{what} {has / _MIB:,.0f}", "start fewer workers there, or give each less")
    here = facts.machines[0]
    if here.memory and facts.home.candidates > here.memory:
        what = f"the candidates of a scan take about {facts.home.candidates / _MIB:,.0f} MiB in the coordinator, it has"
        change = "set a smaller batch, or run it on a machine with more memory"
        yield Finding("fault", here.host, f"{what} {here.memory / _MIB:,.0f}", change)
    if not facts.scheduler and here.memory and one * max(1, here.cores) > here.memory:
        most = here.memory // one
        what = f"one worker a core ({here.cores}) takes about {one * here.cores / _MIB:,.0f} MiB in a scan, it has"
        yield Finding("advice", here.host, f"{what} {here.memory / _MIB:,.0f}", f"use --workers {max(0, most)}")


def _workers(facts: Facts) -> Iterator[Finding]:
    for each in facts.workers:
        if each.threads > 1:
            change = "start one worker process a core, each with --nthreads 1"
            what = f"a worker has {_threads(each.threads)}: Python's lock slows what they score, and they share a death"
            yield Finding("advice", each.host, what, change)
        if not each.has_nanny and not each.silent:
            what = "a worker has no nanny: nobody starts it again, and distributed.yaml sets no variables for it"
            yield Finding("advice", each.host, what, "leave --no-nanny out, or let a supervisor restart it")
        if not each.memory_limit:
            yield Finding("advice", each.host, "a worker has no memory limit", "give it one by --memory-limit")


def _files(facts: Facts) -> Iterator[Finding]:
    needed = _FILES + _FILES_A_WORKER * len(facts.workers)
    for each in facts.processes:
        if each.role == "scheduler" and each.files and each.files < needed:
            what = f"the scheduler may have {each.files:,} files open: {len(facts.workers):,} workers take {needed:,}"
            change = f"run ulimit -n {needed} or more where it starts (LimitNOFILE= in a unit of systemd)"
            yield Finding("advice", each.host, what, change)


_TRIM, _MMAP = "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"


def _environment(facts: Facts, wanted: Mapping[str, Any]) -> Iterator[Finding]:
    variables = {name: str(value) for name, value in wanted["distributed"]["nanny"]["pre-spawn-environ"].items()}
    for each in facts.processes:
        # On this machine, workers get the values that are not set when they are started.
        is_worker = each.role == "worker"
        if each.silent or each.role == "scheduler" or (facts.scheduler and not is_worker):
            continue
        unlike = {
            name: each.environment.get(name)
            for name, value in variables.items()
            if each.environment.get(name) != value and (is_worker or each.environment.get(name) is not None)
        }
        threads = {name: has for name, has in unlike.items() if name.endswith("_NUM_THREADS")}
        if threads:
            what = f"{_said(threads)} for a worker: threads of linear algebra fight for the cores that tasks use"
            yield Finding("advice", each.host, what, _set(threads, variables))
        # Without either value the system's own are as good; with one of them, or Dask's, each buffer is mapped again.
        malloc = {name: has for name, has in unlike.items() if name in (_TRIM, _MMAP)}
        if malloc and any(each.environment.get(name) is not None for name in (_TRIM, _MMAP)):
            what = f"{_said(malloc)} for a worker: reading chunks takes two to five times the CPU time"
            yield Finding("advice", each.host, what, _set(malloc, variables))


def _said(values: Mapping[str, str | None]) -> str:
    return ", ".join(f"{name} is {'not set' if has is None else has}" for name, has in values.items())


def _set(names: Mapping[str, object], wanted: Mapping[str, str]) -> str:
    chosen = " ".join(f"{name}={wanted[name]}" for name in names)
    return f"set {chosen} where workers start; what is set there wins over distributed.yaml"


def _settings(facts: Facts, wanted: Mapping[str, Any]) -> Iterator[Finding]:
    for each in facts.processes:
        if each.silent or each.role == "this process":
            continue
        for name, (role, at_least, reason) in _CHECKED.items():
            if role != each.role or name not in each.settings:
                continue
            want = at(wanted, name)
            has = each.settings[name]
            if not at_least(has, want):
                yield Finding("advice", each.host, f"{name} is {has} for the {each.role}: {reason}", RECIPE)
        if each.memory_limit and each.settings.get("distributed.worker.memory.terminate", True) in (False, 0, None):
            what = "distributed.worker.memory.terminate is off: the system may end any process where memory runs out"
            yield Finding("advice", each.host, what, "leave it at Dask's default of 0.95")


def at(tree: Mapping[str, Any], key: str) -> object:
    """Return the value below a dotted key of nested settings."""
    value: Any = tree
    for name in key.split("."):
        value = value[name]
    return value


def _many(has: object, want: object) -> bool:
    return isinstance(has, int) and isinstance(want, int) and has >= want


def _long(has: object, want: object) -> bool:
    return has is None or parse_timedelta(str(has)) >= parse_timedelta(str(want))


def _bounded(has: object, want: object) -> bool:  # noqa: ARG001 - the other rules take two
    return has is not None


def _same(has: object, want: object) -> bool:
    return has == want


_CHECKED: Mapping[str, tuple[str, Any, str]] = {
    "distributed.scheduler.allowed-failures": (
        "scheduler",
        _many,
        "a task is given up after this many deaths of workers, also of workers that it only waited for",
    ),
    "distributed.scheduler.no-workers-timeout": (
        "scheduler",
        _bounded,
        "tasks for which there is no worker wait for ever",
    ),
    "distributed.scheduler.worker-ttl": (
        "scheduler",
        _long,
        "a worker that is busy in one long call is taken for dead",
    ),
    "distributed.comm.retry.count": ("worker", _many, "a connection that breaks once fails a task"),
    "distributed.worker.profile.enabled": ("worker", _same, "it takes a tenth of the CPU time of a light learner"),
}
"""Settings by key: whose they are, whether a value will do, and what happens where it does not."""

KEYS = (*_CHECKED, "distributed.worker.memory.pause", "distributed.worker.memory.terminate")
"""Settings that findings look at."""


# -- doors -------------------------------------------------------------------------------------------------------------


def _doors(facts: Facts) -> Iterator[Finding]:
    encrypted = facts.scheduler.startswith(("tls://", "wss://", "inproc://"))
    for each in facts.processes[1:]:
        if each.silent:
            continue
        if each.dashboard is not None and (open_to := _open(each, each.dashboard)):
            what = f"the pages of the {each.role} listen on {open_to}: they show logs and code without a password"
            change = "give --dashboard-address 127.0.0.1:PORT, and look through an SSH tunnel"
            yield Finding("advice", each.host, what, change)
    if encrypted or not facts.scheduler or facts.no_cluster:
        return
    host = facts.scheduler.rpartition("://")[2].rpartition(":")[0].strip("[]")
    if not _loopback(host):
        public = _public(host)
        what = f"{facts.scheduler} is not encrypted: all who reach it can run code as its user"
        change = "use TLS (cluster/tls/README.md)" + (", or an address of a private network" if public else "")
        yield Finding("fault" if public else "advice", facts.scheduler, what, change)


def _certificates(facts: Facts) -> Iterator[Finding]:
    for each in facts.certificates:
        change = "sign it again, replace the file, and restart the processes that use it (cluster/tls/README.md)"
        day = f"{each.expires:%Y-%m-%d}"
        if each.seconds_left <= 0:
            yield Finding("fault", each.host, f"{each.name} expired on {day}", change)
        elif each.seconds_left < _SOON:
            what = f"{each.name} expires on {day}: nobody gets a new connection from then on"
            yield Finding("advice", each.host, what, change)


def _open(process: Process, port: int) -> str:
    """Return the address by which others reach a port of a process; empty where none does."""
    return next((f"{ip} port {p}" for ip, p in process.listening if p == port and not _loopback(ip)), "")


def _loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _public(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_global
    except ValueError:  # a name: nothing is known
        return False


# -- machines ----------------------------------------------------------------------------------------------------------


def _kernels(facts: Facts) -> Iterator[Finding]:
    workers = {each.host for each in facts.workers}
    kinds: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for each in facts.machines:
        if each.kernels and (each.host in workers or not facts.scheduler):
            kinds[each.kernels].append(each.host)
    if len(kinds) > 1:
        for kernels, hosts in kinds.items():
            what = f"its linear algebra ({', '.join(kernels)}) is not that of all hosts: last bits of scores may differ"
            change = "use machines of one kind, or set OPENBLAS_CORETYPE alike, where batches must repeat exactly"
            for host in hosts:
                yield Finding("advice", host, what, change)


def _clocks(facts: Facts) -> Iterator[Finding]:
    for each in facts.machines[1:]:
        certain = abs(each.clock_off) - each.clock_within
        if certain > _CLOCK_ADVICE:
            severity: Severity = "fault" if certain > _CLOCK_FAULT else "advice"
            ahead = "ahead of" if each.clock_off > 0 else "behind"
            what = f"its clock is {abs(each.clock_off):,.0f} s {ahead} this machine's"
            yield Finding(severity, each.host, what, "let NTP set the clocks (chrony, systemd-timesyncd)")


def _reach(facts: Facts) -> Iterator[Finding]:
    for each in facts.machines:
        if each.unseen:
            change = "run dal doctor again when its workers are free"
            yield Finding("advice", each.host, f"pool, store and kernels were not looked at: {each.unseen}", change)
        if each.pool_trouble is not None:
            change = "mount or copy the pool under this name there, or give the workers credentials for its store"
            yield Finding("fault", each.host, f"cannot read the pool {facts.home.pool}: {each.pool_trouble}", change)
        if each.store_trouble is not None:
            what = f"cannot write to {facts.home.store}: {each.store_trouble}; each scan computes cells again"
            change = "put the campaign's store where all hosts can write (dal init --store), or give them the right to"
            yield Finding("advice", each.host, what, change)


def _pace(facts: Facts) -> Iterator[Finding]:
    read = [(each, each.chunk_bytes / max(each.chunk_seconds, 1e-6)) for each in facts.machines if each.chunk_bytes]
    best = max((pace for each, pace in read if each is not facts.machines[0]), default=0.0)
    for each, pace in read:
        what = f"reads a chunk of {each.chunk_bytes / _MIB:,.1f} MiB in {each.chunk_seconds:.3f} s"
        if pace * _SLOW < best and each is not facts.machines[0]:
            what = f"{what}, {best / pace:,.0f} times as long as the fastest host"
            yield Finding("advice", each.host, what, "look at the disk or the network between it and the pool")
        else:
            yield Finding("fact", each.host, f"{what}, {pace / _MIB:,.0f} MiB/s")


# -- the campaign ------------------------------------------------------------------------------------------------------


def _home(facts: Facts) -> Iterator[Finding]:
    home, here = facts.home, facts.machines[0].host
    for what, why in home.troubles.items():
        yield Finding("fault", here, f"the {what} cannot be used: {why}", "mend it, and run dal doctor again")
    if home.filesystem is not None and not home.database_host:
        what = f"{home.directory} is on a network file system ({home.filesystem}), where SQLite damages its files"
        change = "move the campaign to a disk of this machine, or keep it in PostgreSQL (dal init --database)"
        yield Finding("fault", here, what, change)
    if home.database_host and not home.database_encrypted:
        what = f"the connection to the database on {home.database_host} is not encrypted"
        yield Finding("advice", here, what, "add ?sslmode=verify-full to the URL of the database")
    if abs(home.database_clock_off) > _CLOCK_ADVICE:
        what = f"the clock of the database's server is {home.database_clock_off:+,.0f} s off this machine's"
        yield Finding("advice", here, what, "let NTP set the clocks (chrony, systemd-timesyncd)")


def _disks(facts: Facts) -> Iterator[Finding]:
    home, here = facts.home, facts.machines[0].host
    if home.free is not None:
        free = f"{home.directory} has {home.free / _MIB:,.0f} MiB free"
        change = "free space on that disk, or keep the campaign's objects in a store (dal init --store)"
        if home.free < home.needed:
            yield Finding("fault", here, f"{free}; the campaign takes {home.needed / _MIB:,.0f} more", change)
        elif home.free < home.needed + _ROOM:
            yield Finding("advice", here, f"{free}", change)
    for each in facts.machines[1:]:
        if each.free is not None and each.free < _ROOM:
            what = f"the disk that its workers write to has {each.free / _MIB:,.0f} MiB free"
            yield Finding("advice", each.host, what, "free space there, or name another one by --local-directory")


def _threads(count: int) -> str:
    return f"{count} thread{'s' if count > 1 else ''}"


def _share(value: object, default: float) -> float:
    return float(value) if isinstance(value, int | float) and value else default

"""Collect the facts: of this machine, of a campaign and its pool, and of every process of a cluster."""

import asyncio
import inspect
import math
import time
from collections.abc import Awaitable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from distributed import Client
from sqlalchemy import text

from dal._files import network_filesystem
from dal.campaign import CampaignStore
from dal.campaign.objects import Objects
from dal.campaign.parts import pool_of
from dal.compute import versions
from dal.compute.asking import ask
from dal.compute.client import connect
from dal.compute.local import SETTINGS
from dal.compute.ready import awake, wait_for_worker
from dal.compute.tls import own_files, presented
from dal.doctor import process
from dal.doctor.facts import Certificate, Facts, Home, Machine, Process
from dal.doctor.findings import KEYS
from dal.errors import ClusterError, DalError
from dal.learners.models import Model
from dal.places import Url
from dal.pool import Pool
from dal.scan.driver import memory_here, with_wanted
from dal.scan.hosts import worker_bytes
from dal.scan.plan import WorkerBytes, tile_rows
from dal.scan.worker.kernel import Order
from dal.scan.worker.probe import read_chunk, tried
from dal.selection.strategy import Strategy

HERE = "this machine"
_HANDSHAKES, _HANDSHAKE_SECONDS = 32, 5.0
"""TLS connections at a time, and how long one may take: a firewall may keep this machine from workers."""

_VARIABLES = list(SETTINGS["distributed"]["nanny"]["pre-spawn-environ"])  # type: ignore[index]
_STRIDE = 0x9E3779B1
"""Spreads the chunks that machines read, so that none finds another one's in a shared cache."""


def examine(
    directory: Path | None = None, pool: str | None = None, scheduler: str | None = None, *, seconds: float = 30.0
) -> Facts:
    """Collect what is true of this machine and, where they are named, of a campaign or a pool, and of a cluster.

    Nothing is raised for what is found: a thing that cannot be opened, read or reached is a fact.

    Parameters
    ----------
    directory : Path, optional
        Of a campaign.
    pool : str, optional
        Path or URL of a pool, where there is no campaign.
    scheduler : str, optional
        Address of a Dask scheduler.
    seconds : float
        How long a process may take to answer.
    """
    home = _home(directory, pool)
    here = Facts((_this_process(),), (_this_machine(home),), home.facts, home.need, scheduler or "")
    if scheduler is None:
        return here
    here = replace(here, certificates=tuple(_certificates(scheduler)))
    try:
        with connect(scheduler) as client:
            assert client is not None
            with awake(client):
                processes, machines = _of_cluster(client, home, seconds)
    except (ClusterError, OSError) as error:
        return replace(here, no_cluster=str(error))
    return replace(
        here,
        processes=(*here.processes, *processes),
        machines=(*here.machines, *machines),
        certificates=(*here.certificates, *_of_workers(processes)),
    )


# -- here --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Found:
    """The pool and the place of the cells that this process has opened, with all that is known."""

    facts: Home
    pool: Pool | None = None
    need: WorkerBytes | None = None
    objects: Objects | None = None


def _this_process() -> Process:
    told = process.facts(_VARIABLES, list(KEYS), "")
    return Process("this process", host=HERE, environment=told["environment"], versions=versions.found())


def _this_machine(home: _Found) -> Machine:
    told = process.facts([], [], "")
    near = Machine(HERE, told["memory"], told["cores"], tuple(process.linear_algebra()))
    return near if home.pool is None else _with_chunk(near, _tried(home.pool))


def _tried(pool: Pool) -> tuple[int, float] | BaseException:
    try:
        return read_chunk(pool)
    except (DalError, OSError, ValueError) as error:
        return error


def _home(directory: Path | None, pool: str | None) -> _Found:
    if directory is not None:
        return _of_campaign(directory)
    if pool is None:
        return _Found(Home())
    try:
        opened = Pool.open(pool)
    except DalError as error:
        return _Found(Home({"pool": str(error)}, pool=pool))
    need, here = predicted(opened, Strategy.named("default"), k=100, n_classes=2)
    return _Found(Home(pool=opened.path, candidates=here), opened, need)


def _of_campaign(directory: Path) -> _Found:
    network = network_filesystem(directory)
    home = Home(directory=str(directory), filesystem=network, free=process.facts([], [], str(directory))["free"])
    try:
        campaign = CampaignStore.open(directory)
    except DalError as error:
        # On such a disk the campaign is refused, which is a finding of its own.
        return _Found(home if network else replace(home, troubles={"campaign": str(error)}))
    troubles: dict[str, str] = {}
    pool, need, here, objects = None, None, 0, None
    try:
        pool = pool_of(campaign)
    except DalError as error:
        troubles["pool"] = str(error)
    try:
        campaign.objects.check()
    except DalError as error:
        troubles["store"] = str(error)
    for what, folder in (("campaign's directory", directory), ("store", campaign.objects.folder)):
        if (trouble := process.write_trouble(str(_existing(folder)))) is not None and what not in troubles:
            troubles[what] = trouble
    if pool is not None:
        settings = campaign.settings
        strategy = Strategy.named(settings.strategy, settings.explore)
        wanted = settings.batch_size + math.ceil(settings.labelling.reserve * settings.batch_size)
        need, here = predicted(pool, strategy, wanted, len(settings.classes), _last_model(campaign))
        if strategy.capacity(wanted, pool.n_rows).cells:
            objects = campaign.objects
    home = replace(
        home,
        troubles=troubles | _database(campaign),
        pool=campaign.settings.pool,
        candidates=here,
        store="" if objects is None else objects.place,
        needed=0 if pool is None or campaign.settings.storage.store or objects is None else 2 * pool.n_rows,
        **_server(campaign),
    )
    return _Found(home, pool, need, objects)


def _existing(folder: Path) -> Path:
    """Return the folder, or the nearest one above it that is there: the first round makes the others."""
    return next(each for each in (folder, *folder.parents) if each.exists())


def _last_model(campaign: CampaignStore) -> Model | None:
    digest = campaign.rounds.newest_model(campaign.pool_fingerprint)
    try:
        return None if digest is None else Model.loads(campaign.rounds.load_model(digest), campaign.settings.trusted)
    except DalError:  # the loop says so when it needs it
        return None


def predicted(
    pool: Pool, strategy: Strategy, k: int, n_classes: int, model: Model | None = None
) -> tuple[WorkerBytes, int]:
    """Predict the memory that a scan for a batch takes in a worker, and its candidates here, before there is a scan.

    Parameters
    ----------
    pool : Pool
    strategy : Strategy
    k : int
        Records to be chosen, with those of the reserve.
    n_classes : int
    model : Model, optional
        The one before: models of a campaign are of one size, more or less. Without one, none is counted.
    """
    capacity = strategy.capacity(k, pool.n_rows)
    tile = tile_rows(pool.n_features, model.tile_rows if model else None)
    order = with_wanted(Order(strategy.scorer, capacity, tile, 0, 0, None, carry=True), model, strategy)
    return worker_bytes(pool, order, n_classes, model), memory_here(pool, order, strategy, model)


def _database(campaign: CampaignStore) -> dict[str, str]:
    try:
        campaign.rounds.all()
    except DalError as error:
        return {"database": str(error)}
    return {}


def _server(campaign: CampaignStore) -> dict[str, Any]:
    """Return what is known of a database on a server; nothing of a file, or of a server that does not answer."""
    database = campaign.database
    if not database.is_server:
        return {}
    url = database.engine.url
    host = url.query.get("host", url.host)
    is_local = not isinstance(host, str) or host.startswith("/") or host == "localhost"
    try:
        with database.reading() as connection:
            asked = datetime.now(UTC)
            off = (database.now(connection) - asked).total_seconds()
            encrypted = connection.scalar(text("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"))
    except DalError:  # a fault of its own, see `_database`
        return {"database_host": str(host)}
    return {
        "database_host": str(host),
        "database_encrypted": is_local or bool(encrypted),
        "database_clock_off": off,
    }


# -- a cluster ---------------------------------------------------------------------------------------------------------


def _call(name: str, *given: object) -> tuple[Any, ...]:
    """Return a call of a function of `process` for a process that has no such module."""
    function, expression, variables = versions.elsewhere(name, *given)
    return function, expression, variables | {"text": inspect.getsource(process)}


async def _within(answer: Awaitable[Any], seconds: float) -> Any:  # noqa: ANN401 - of whatever function
    try:
        return await asyncio.wait_for(answer, seconds)
    except TimeoutError:
        return TimeoutError(f"no answer within {seconds:.0f} s")
    except Exception as error:  # of the connection, or the function's own
        return error


async def _ask(client: Client, address: str, folder: str, seconds: float) -> list[Any]:
    """Ask a process, without its threads, of itself, its versions, and its clock; no address is the scheduler's."""
    calls = [_call("facts", _VARIABLES, list(KEYS), folder), versions.elsewhere("found"), _call("clock")]
    answers: list[Any] = []
    for call in calls:
        began = time.time()
        if not address:
            answer = await _within(client.run_on_scheduler(*call), seconds)
        else:
            told = await _within(client.run(*call, workers=[address], on_error="return"), seconds)
            answer = told.get(address, OSError("it is gone")) if isinstance(told, dict) else told
        if isinstance(answer, Exception):
            return [answer]
        answers.append(answer)
    ended = time.time()
    return [*answers, (answers[-1] - (began + ended) / 2, (ended - began) / 2)]


def _of_cluster(client: Client, home: _Found, seconds: float) -> tuple[list[Process], list[Machine]]:
    with suppress(ClusterError):  # without a worker there is less to tell
        wait_for_worker(client)
    known = client.scheduler_info(n_workers=-1)
    leader = str(known["address"])
    folders = {"": ""} | {address: str(each.get("local_directory", "")) for address, each in known["workers"].items()}

    async def all_told() -> list[list[Any]]:
        return await asyncio.gather(*(_ask(client, address, folders[address], seconds) for address in folders))

    answers = dict(zip(folders, client.sync(all_told), strict=True))
    scheduler = Process("scheduler", leader, _host(leader), dashboard=known["services"].get("dashboard"))
    processes = [_with_answers(scheduler, answers[""])]
    for address, worker in known["workers"].items():
        told = Process(
            "worker",
            address,
            str(worker["host"]),
            int(worker["nthreads"]),
            int(worker["memory_limit"] or 0),
            has_nanny=worker["nanny"] is not None,
            dashboard=worker["services"].get("dashboard"),
        )
        processes.append(_with_answers(told, answers[address]))
    first = {each.host: each for each in reversed(processes) if each.role == "worker" and not each.silent}
    return processes, _machines(client, home, {each.address: each for each in first.values()}, answers, seconds)


def _host(address: str) -> str:
    return address.rpartition("://")[2].rpartition(":")[0].strip("[]")


def _with_answers(known: Process, answers: Sequence[Any]) -> Process:
    if len(answers) == 1:
        return replace(known, silent=f"{type(answers[0]).__name__}: {answers[0]}")
    told, found, _, _ = answers
    listening = tuple((str(ip), int(port)) for ip, port in told["listening"])
    return replace(
        known,
        environment=told["environment"],
        settings=told["settings"],
        listening=listening,
        files=told["files"],
        versions=found,
    )


def _of_workers(processes: Sequence[Process]) -> list[Certificate]:
    """Look at the certificate of one worker of each host, where this process reaches it."""
    asked = {each.host: each for each in processes if each.role == "worker"}
    with ThreadPoolExecutor(max_workers=_HANDSHAKES) as threads:
        shown = threads.map(lambda worker: presented(worker.address, _HANDSHAKE_SECONDS), asked.values())
        return [
            _certificate(host, "a worker's certificate", end) for host, end in zip(asked, shown, strict=True) if end
        ]


def _certificates(scheduler: str) -> list[Certificate]:
    """Look at the files of this process and at the certificate that the scheduler shows; without TLS there are none."""
    if not scheduler.startswith("tls://"):
        return []
    found = [_certificate(HERE, path, expires) for path, expires in own_files().items()]
    shown = presented(scheduler, _HANDSHAKE_SECONDS)
    return found if shown is None else [*found, _certificate(_host(scheduler), "the scheduler's certificate", shown)]


def _certificate(host: str, name: str, expires: datetime) -> Certificate:
    return Certificate(host, name, expires, (expires - datetime.now(UTC)).total_seconds())


def _machines(
    client: Client,
    home: _Found,
    chosen: Mapping[str, Process],
    answers: Mapping[str, Sequence[Any]],
    seconds: float,
) -> list[Machine]:
    """Look at each machine by one worker on it, beside its tasks."""

    def asked(addresses: Sequence[str], *call: Any) -> dict[str, Any]:  # noqa: ANN401 - a function and its arguments
        silent = dict.fromkeys(addresses, TimeoutError(f"no answer within {seconds:.0f} s"))
        return silent | ask(client, asyncio.to_thread, *call, workers=addresses, seconds=seconds)

    cells = None if home.objects is None else home.objects.cells
    looked = asked(list(chosen), *_call("machine", str(_existing(cells.parent)) if isinstance(cells, Path) else ""))
    here = versions.found()
    sound = [
        address
        for address, each in chosen.items()
        if not any(unlike.refused for unlike in versions.differences(here, each.versions))
    ]
    read: Mapping[str, Any] = {}
    written: Mapping[str, Any] = {}
    if home.objects is not None and isinstance(cells, Url):
        written = asked(sound, tried, home.objects.check)
    if home.pool is not None:
        read = asked(sound, tried, read_chunk, home.pool)
    machines = []
    for address, each in chosen.items():
        told, _, _, (off, within) = answers[address]
        machine = Machine(
            each.host, told["memory"], told["cores"], clock_off=off, clock_within=within, free=told["free"]
        )
        found = looked[address]
        if isinstance(found, BaseException):
            machines.append(replace(machine, unseen=f"{type(found).__name__}: {found}"))
            continue
        trouble = found["store_trouble"] if written.get(address) is None else str(written[address])
        machine = replace(machine, kernels=tuple(found["kernels"]), store_trouble=trouble)
        machines.append(_with_chunk(machine, read.get(address)))
    return machines


def _with_chunk(machine: Machine, read: tuple[int, float] | str | BaseException | None) -> Machine:
    match read:
        case None:
            return machine
        case str():
            return replace(machine, pool_trouble=read)
        case BaseException():
            return replace(machine, pool_trouble=f"{type(read).__name__}: {read}")
        case size, took:
            return replace(machine, chunk_bytes=size, chunk_seconds=took)

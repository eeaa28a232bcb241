"""A SLURM of one host, for tests, with its own key and configuration: nobody reaches it from elsewhere."""

import os
import re
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from tests.recipes import free_port

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "squeue", "scancel")
PATH = os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"])

# More processors than there are, so that all jobs run at once. A job that was put back into the queue waits for
# `cred_expire` before it begins again. `KillWait` lies between SIGTERM and SIGKILL.
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
AuthType=auth/munge
AuthInfo=socket={home}/munge/socket,cred_expire=5
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={home}/state
SlurmdSpoolDir={home}/spool
SlurmctldPidFile={home}/slurmctld.pid
SlurmdPidFile={home}/slurmd.pid
SlurmctldLogFile={home}/slurmctld.log
SlurmdLogFile={home}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,bf_interval=1,sched_min_interval=100000
KillWait=10
OverTimeLimit=0
MpiDefault=none
ReturnToService=2
NodeName=localhost NodeHostname={host} NodeAddr=127.0.0.1 CPUs=64 RealMemory=64000 State=UNKNOWN
PartitionName=main Nodes=localhost Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> list[str]:
    """Return the programs that are not there."""
    return [program for program in PROGRAMS if shutil.which(program, path=PATH) is None]


class Slurm:
    """A SLURM that runs.

    Attributes
    ----------
    environment
        Where its commands find it.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        self.environment = {"SLURM_CONF": str(home / "slurm.conf"), "PATH": PATH}

    def asked(self, *command: str) -> str:
        """Give what one of its commands prints."""
        return subprocess.run(
            command, env=os.environ | self.environment, capture_output=True, text=True, check=False
        ).stdout

    def jobs(self) -> dict[str, tuple[int, int]]:
        """Give the restarts, and the minutes since the last, of each job that waits or runs."""
        shown = self.asked("scontrol", "--oneliner", "show", "jobs")
        jobs = {}
        for line in shown.splitlines():
            values = dict(re.findall(r"(\w+)=(\S*)", line))
            array = "ArrayTaskId" in values  # its first task has the array's own number: a limit of it is one for all
            name = f"{values['ArrayJobId']}_{values['ArrayTaskId']}" if array else values["JobId"]
            jobs[name] = int(values["Restarts"]), int(values["RunTime"].split(":")[1])
        return jobs

    def end_soon(self) -> None:
        """Bring the walltimes of all jobs so near that SLURM signals them, in half a minute: so often it looks."""
        for job, (_, minutes) in self.jobs().items():
            self.limit(job, minutes + 2)

    def limit(self, job: str, minutes: int) -> None:
        """Set the walltime of a job."""
        self.asked("scontrol", "update", f"JobId={job}", f"TimeLimit={minutes}")

    def wait_until_empty(self, seconds: float) -> None:
        """Wait until no job is left."""
        self.wait(lambda: not self.asked("squeue", "--noheader").strip(), seconds)

    def wait(self, condition: Callable[[], bool], seconds: float = 60) -> None:
        """Wait for a condition."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                logs = [f"{path}:\n{path.read_text(errors='replace')}" for path in sorted(self.home.glob("*.log"))]
                raise TimeoutError("\n".join([f"SLURM is not as expected after {seconds} s", *logs]))
            time.sleep(0.1)  # polls what cannot tell us; the deadline above ends it


@contextmanager
def running() -> Iterator[Slurm]:
    """Run SLURM, and end it and its jobs."""
    with tempfile.TemporaryDirectory(prefix="dal-slurm-") as folder:  # paths of sockets must be short
        home = Path(folder)
        slurm = Slurm(home)
        munge = home / "munge"
        for name in ("munge", "state", "spool"):
            (home / name).mkdir(mode=0o700)
        (munge / "key").write_bytes(secrets.token_bytes(1024))
        (munge / "key").chmod(0o400)
        host = socket.gethostname().split(".")[0]
        ports = {"controller_port": free_port(), "node_port": free_port()}
        (home / "slurm.conf").write_text(CONFIGURATION.format(home=home, host=host, **ports))
        with ExitStack() as started:
            # --force: it runs as root, below a folder where everybody may write
            files = [f"--{name}-file={munge / name}" for name in ("key", "pid", "log", "seed")]
            daemon = partial(_daemon, slurm)
            started.enter_context(daemon("munged", "--foreground", "--force", f"--socket={munge / 'socket'}", *files))
            slurm.wait((munge / "socket").exists)
            started.enter_context(daemon("slurmctld", "-D", "-c"))
            started.enter_context(daemon("slurmd", "-D"))
            slurm.wait(lambda: slurm.asked("sinfo", "--noheader", "--format=%T").strip() == "idle")
            yield slurm
            slurm.asked("scancel", "--user=root")
            slurm.wait_until_empty(seconds=60)


@contextmanager
def _daemon(slurm: Slurm, *command: str) -> Iterator[None]:
    with (slurm.home / f"{command[0]}.out.log").open("wb") as log:
        process = subprocess.Popen(command, env=os.environ | slurm.environment, stdout=log, stderr=log, cwd=slurm.home)
    try:
        yield
    finally:
        process.terminate()
        process.wait(timeout=60)

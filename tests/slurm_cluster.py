"""A SLURM cluster of one node on the loopback address, with daemons and files of its own."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

COMMANDS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol")
_CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CryptoType=crypto/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SchedulerParameters=sched_interval=1,bf_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/completed
JobRequeue=1
MinJobAge=300
KillWait=5
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} RealMemory={memory} State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def can_run_slurm() -> bool:
    """Tell whether the daemons are installed, and may be started: as root."""
    path = f"{os.environ['PATH']}:/usr/sbin"
    return os.geteuid() == 0 and all(shutil.which(name, path=path) for name in COMMANDS)


class SlurmCluster:
    """A cluster that is there within a ``with`` statement.

    Parameters
    ----------
    folder : Path
        Where everything of it goes; its path has to be short, for the sockets in it.
    cores : int
        That it believes to have.
    """

    def __init__(self, folder: Path, cores: int = 20, memory_mb: int = 40_000) -> None:
        self.folder = folder
        host = socket.gethostname().split(".")[0]
        controller, node = _free_ports(2)
        for name in ("munge", "state", "spool"):
            (folder / name).mkdir(mode=0o755)
        (folder / "slurm.conf").write_text(
            _CONFIGURATION.format(
                host=host,
                controller=controller,
                node=node,
                folder=folder,
                cores=cores,
                memory=memory_mb,
            )
        )
        key = folder / "munge" / "key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(1024))
        self._daemons: list[subprocess.Popen[bytes]] = []

    @property
    def environment(self) -> dict[str, str]:
        """The environment in which its commands find it."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_"))}
        kept["PATH"] += ":/usr/sbin"
        return {**kept, "SLURM_CONF": str(self.folder / "slurm.conf")}

    def __enter__(self) -> SlurmCluster:
        munge = self.folder / "munge"
        try:
            self._start(
                *("munged", "--foreground", "--force", f"--key-file={munge / 'key'}"),
                *(f"--socket={munge / 'socket'}", f"--pid-file={munge / 'pid'}"),
                *(f"--seed-file={munge / 'seed'}", f"--log-file={munge / 'log'}"),
            )
            self._start("slurmctld", "-D")
            self._start("slurmd", "-D")
            self._wait_until_idle()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for daemon in reversed(self._daemons):
            daemon.terminate()
        for daemon in reversed(self._daemons):
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def call(self, *command: str) -> str:
        """Run a command of SLURM's and return what it prints."""
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def wait_for_start(self, job: str, made: Path, seconds: float = 120) -> None:
        """Wait until a job has made something, and see that it still runs."""
        end = time.monotonic() + seconds
        while not made.exists():
            assert time.monotonic() < end, f"{made}: not there"
            time.sleep(0.1)
        assert self.call("squeue", "--noheader", f"--jobs={job}", "--format=%T") == "RUNNING\n"

    def wait_for_jobs(self, seconds: float) -> None:
        """Wait until no job is left in the queue."""
        end = time.monotonic() + seconds
        while queue := self.call("squeue", "--noheader", "--format=%i %T %r"):
            assert time.monotonic() < end, f"still in the queue: {queue}"
            time.sleep(0.5)

    def completed(self) -> list[Mapping[str, str]]:
        """Return what is on record of each job and task that has ended."""
        lines = (self.folder / "completed").read_text().splitlines()
        return [dict(word.split("=", 1) for word in line.split() if "=" in word) for line in lines]

    def _start(self, *command: str) -> None:
        log = (self.folder / f"{command[0]}.out").open("wb")
        with log:
            self._daemons.append(
                subprocess.Popen(command, env=self.environment, stdout=log, stderr=log)
            )

    def _wait_until_idle(self) -> None:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            done = subprocess.run(
                ["sinfo", "--noheader", "--format=%T"],
                env=self.environment,
                capture_output=True,
                text=True,
            )
            if done.stdout.strip() == "idle":
                return
            time.sleep(0.2)
        logs = "\n".join(path.read_text() for path in sorted(self.folder.glob("*.out")))
        raise AssertionError(f"the cluster does not start: {done.stdout}{done.stderr}\n{logs}")


def _free_ports(number: int) -> Sequence[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports

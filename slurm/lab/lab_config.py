"""What the lab consists of, as values and text: options, paths, addresses, slurm.conf, slurmdbd.conf, hosts.

Nothing here has an effect, so that the tests of it need neither root nor Slurm.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

CONTROLLER = "ctl"
CONTROLLER_ADDRESS = "10.77.0.1"
MAX_NUM_NODES = 200  # one /24 holds the nodes' addresses, from .11 on
MAX_SOCKET_PATH_BYTES = 107  # sun_path of a unix socket, less its closing NUL


class LabError(Exception):
    """The lab can't do what was asked; the message says why and what to do."""


@dataclasses.dataclass(frozen=True)
class LabOptions:
    """What a person chooses when bringing the lab up."""

    num_nodes: int = 2
    cpus_per_node: int = 8
    gpus_per_node: int = 8
    accounting: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.num_nodes <= MAX_NUM_NODES:
            raise LabError(f"nodes is {self.num_nodes}; it must be from 1 to {MAX_NUM_NODES}.")
        if not 1 <= self.cpus_per_node <= 1024:
            raise LabError(f"cpus-per-node is {self.cpus_per_node}; it must be from 1 to 1024.")
        if not 0 <= self.gpus_per_node <= 128:
            raise LabError(f"gpus-per-node is {self.gpus_per_node}; it must be from 0 to 128.")

    @property
    def node_names(self) -> list[str]:
        return [f"n{index}" for index in range(1, self.num_nodes + 1)]

    @property
    def namespace_names(self) -> list[str]:
        return [CONTROLLER, *self.node_names]

    @property
    def node_range(self) -> str:
        """The nodes in Slurm's notation: `n1` or `n[1-64]`."""
        return "n1" if self.num_nodes == 1 else f"n[1-{self.num_nodes}]"


@dataclasses.dataclass(frozen=True)
class LabPaths:
    """Where the lab's files lie; all of them under one directory."""

    root: Path

    def __post_init__(self) -> None:
        longest = max(len(str(path)) for path in (self.munge_socket, self.database_socket))
        if longest > MAX_SOCKET_PATH_BYTES:
            raise LabError(f"dir is {self.root}; it must be shorter: a socket's path in it would have {longest} bytes.")
        if any(character in str(self.root) for character in " #,=%\"'\\\n"):
            raise LabError(f"dir is {str(self.root)!r}; it must hold no blank, quote or # , = %, for slurm.conf.")

    @property
    def state(self) -> Path:
        return self.root / "state.json"

    @property
    def hosts(self) -> Path:
        return self.root / "hosts"

    @property
    def slurm_conf(self) -> Path:
        return self.root / "etc" / "slurm.conf"

    @property
    def gres_conf(self) -> Path:
        return self.root / "etc" / "gres.conf"

    @property
    def gpus(self) -> Path:
        return self.root / "gpus"

    @property
    def slurmdbd_conf(self) -> Path:
        return self.root / "etc" / "slurmdbd.conf"

    @property
    def logs(self) -> Path:
        return self.root / "log"

    @property
    def spool(self) -> Path:
        return self.root / "spool"

    @property
    def munge(self) -> Path:
        return self.root / "munge"

    @property
    def munge_socket(self) -> Path:
        return self.munge / "munge.socket"

    @property
    def database(self) -> Path:
        return self.root / "mysql"

    @property
    def database_socket(self) -> Path:
        # MariaDB runs as its own user, which may write only here.
        return self.database / "mysqld.sock"

    def log(self, process: str) -> Path:
        return self.logs / f"{process.replace(':', '-')}.log"


def node_address(index: int) -> str:
    """The address of node `n<index>`, counted from 1."""
    return f"10.77.0.{10 + index}"


def render_hosts(options: LabOptions) -> str:
    """Every name of the lab, for /etc/hosts in every namespace: there is no name server to ask."""
    lines = ["127.0.0.1 localhost", "::1 localhost ip6-localhost ip6-loopback", f"{CONTROLLER_ADDRESS} {CONTROLLER}"]
    lines += [f"{node_address(index)} {name}" for index, name in enumerate(options.node_names, start=1)]
    return "\n".join(lines) + "\n"


def render_slurm_conf(options: LabOptions, paths: LabPaths) -> str:
    cpus = options.cpus_per_node
    gres = f"Gres=gpu:{options.gpus_per_node} " if options.gpus_per_node else ""
    return f"""\
# Written by lab.py; `lab.py down` removes it.
ClusterName=lab
SlurmctldHost={CONTROLLER}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# A requeued job waits until its credential has expired: 120 s by default.
AuthInfo=socket={paths.munge_socket},cred_expire=5
StateSaveLocation={paths.spool}/{CONTROLLER}
SlurmdSpoolDir={paths.spool}/%n
SlurmctldPidFile={paths.root}/slurmctld.pid
SlurmdPidFile={paths.root}/slurmd-%n.pid
MpiDefault=none
GresTypes=gpu

# No cgroups: processes are followed by their parents, CPUs and memory are counted but not enforced.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
# A node may claim more CPUs and memory than the machine has.
SlurmdParameters=config_overrides

# Times are short, so that tests of failures are quick.
ReturnToService=2
KillWait=5
SlurmdTimeout=15
MinJobAge=600
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=1,sched_interval=2,bf_interval=2

# A job in `urgent` takes the nodes of one in `debug`, which is told by its --signal, has GraceTime, and is requeued.
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal

{_render_accounting(options, paths)}
NodeName={options.node_range} CPUs={cpus} Boards=1 SocketsPerBoard=1 CoresPerSocket={cpus} ThreadsPerCore=1 \
RealMemory=512000 {gres}State=UNKNOWN
PartitionName=debug Nodes={options.node_range} Default=YES MaxTime=60 DefaultTime=10 State=UP \
PriorityTier=1 PreemptMode=REQUEUE GraceTime=10
PartitionName=urgent Nodes={options.node_range} Default=NO MaxTime=60 DefaultTime=10 State=UP \
PriorityTier=10 PreemptMode=OFF
"""


def _render_accounting(options: LabOptions, paths: LabPaths) -> str:
    if not options.accounting:
        return "AccountingStorageType=accounting_storage/none\nJobAcctGatherType=jobacct_gather/none\n"
    return (
        "AccountingStorageType=accounting_storage/slurmdbd\n"
        f"AccountingStorageHost={CONTROLLER}\n"
        # AuthInfo doesn't hold for connections to slurmdbd.
        f"AccountingStoragePass=socket={paths.munge_socket}\n"
        "JobAcctGatherType=jobacct_gather/linux\n"
    )


def render_gres_conf(options: LabOptions, paths: LabPaths) -> str:
    """Pretended GPUs: a job may ask for them and is given indices of them, but there is nothing to compute with."""
    if not options.gpus_per_node:
        return ""
    indices = "0" if options.gpus_per_node == 1 else f"[0-{options.gpus_per_node - 1}]"
    return f"# Written by lab.py; `lab.py down` removes it.\nName=gpu File={paths.gpus}/nvidia{indices}\n"


def render_slurmdbd_conf(paths: LabPaths) -> str:
    return f"""\
# Written by lab.py; `lab.py down` removes it.
AuthType=auth/munge
AuthInfo=socket={paths.munge_socket}
DbdHost={CONTROLLER}
SlurmUser=root
PidFile={paths.root}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm_acct_db
"""

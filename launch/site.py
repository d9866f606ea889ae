"""What a site gives to its jobs beside resources: modules, a container, an interface, caches. Pure text."""

from __future__ import annotations

import os
import re
import shlex
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from launch.errors import LaunchError
from strict_settings import Problem

_WORD = re.compile(r"[A-Za-z0-9._:,@=+/-]+")
CACHES = {
    "TRITON_CACHE_DIR": "triton",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TORCH_EXTENSIONS_DIR": "torch-extensions",
}
"""Variable → folder below `cache_dir`: what is compiled on the way. On a shared disk their locks outlive killed jobs,
and the next job waits for them."""


@dataclass(frozen=True)
class Container:
    """The image in which agents and ranks run. The batch script itself runs outside, with the Python that submits."""

    kind: Literal["pyxis", "apptainer"]
    """pyxis (srun --container-image, with enroot) or apptainer (also as singularity)."""
    image: str
    """Image file, or a registry's name as the kind takes it (nvcr.io#nvidia/pytorch:25.01-py3, docker://…)."""
    mounts: tuple[str, ...] = ()
    """Folders that it sees, as PATH or PATH:PATH_INSIDE; code, working and run directory are added."""
    python: str = "python3"
    """Python in the image, with torch and what else the trainer needs; submitit is not needed there."""

    def problems(self) -> Iterator[Problem]:
        """Words that srun or apptainer would take apart."""
        if not self.image.strip() or not self.image.isprintable():
            yield Problem("container.image", self.image, "be a file or a name of an image")
        for mount in self.mounts:
            if "," in mount or not mount.startswith("/"):
                yield Problem("container.mounts", mount, "be an absolute path, or two with a colon, and hold no comma")


def num_gpus(gres: str) -> int:
    """`gpu:h100:8(S:0-1),nvme:1` → 8."""
    return sum(int(found[1]) for found in re.finditer(r"(?:^|,)gpu(?::[^,:(]+)?:(\d+)", gres))


def module_problems(modules: Iterable[str]) -> Iterator[Problem]:
    """Names of modules that a shell would take apart."""
    for module in modules:
        if not _WORD.fullmatch(module):
            yield Problem("modules", module, "be the name of a module, as in `module load`")


def module_lines(modules: Iterable[str]) -> list[str]:
    """Shell lines that load the modules; a batch shell may not know `module` yet."""
    words = [shlex.quote(module) for module in modules]
    if not words:
        return []
    know = "command -v module > /dev/null || { set +e; . /etc/profile; set -e; }"
    return ["", "# launch.modules", know, f"module load {' '.join(words)}"]


def seen_inside(container: Container, needed: Iterable[str]) -> list[str]:
    """The mounts, then the folders that are needed and that lie in none of them, nor in each other."""
    mounted = [Path(mount.split(":")[0]) for mount in container.mounts]
    folders = [Path(folder) for folder in dict.fromkeys(needed)]
    outer = [
        folder for folder in folders if not any(folder != other and folder.is_relative_to(other) for other in folders)
    ]
    return [*container.mounts, *(str(folder) for folder in outer if not any(folder.is_relative_to(m) for m in mounted))]


def container_words(container: Container, needed: Iterable[str], working_dir: str, *, has_gpus: bool) -> list[str]:
    """What stands between srun's own words and the command inside the container."""
    mounts = seen_inside(container, needed)
    if container.kind == "pyxis":
        pairs = ",".join(mount if ":" in mount else f"{mount}:{mount}" for mount in mounts)
        return [
            f"--container-image={container.image}",
            f"--container-mounts={pairs}",
            f"--container-workdir={working_dir}",
        ]
    gpus = ["--nv"] if has_gpus else []
    return ["apptainer", "exec", *gpus, f"--bind={','.join(mounts)}", f"--pwd={working_dir}", container.image]


def make_private(path: Path) -> None:
    """Makes the folder of compiled code, for this user alone: others could put code of theirs there.

    Raises:
        LaunchError: it can't be made, or is not this user's alone.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=0o700, exist_ok=True)
        facts = path.lstat()
    except OSError as error:
        raise LaunchError(f"cache_dir is {path}; it must be a folder that each node can make: {error}.") from error
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.geteuid() or facts.st_mode & 0o022:
        raise LaunchError(f"cache_dir is {path}; it must be your folder, writable by no other. Choose another.")


def cache_environment(cache_dir: str | None) -> Mapping[str, str]:
    """The variables that keep compiled code on the node."""
    return {} if cache_dir is None else {name: f"{cache_dir}/{folder}" for name, folder in CACHES.items()}

"""The disk below a path: which file system it is, whether other machines see it too, how much room it has."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

_OF_ONE_MACHINE = {
    "aufs", "btrfs", "devtmpfs", "exfat", "ext2", "ext3", "ext4", "f2fs", "fuseblk", "hfsplus", "iso9660", "jfs",
    "ntfs", "overlay", "ramfs", "reiserfs", "rootfs", "squashfs", "tmpfs", "vfat", "xfs", "zfs",
}  # fmt: skip
_OF_MANY = (
    "nfs", "nfs4", "lustre", "gpfs", "beegfs", "beegfs_nodev", "ceph", "wekafs", "panfs", "cifs", "smb3", "afs",
    "glusterfs", "orangefs", "pvfs2", "daos", "juicefs", "gfs2", "ocfs2", "bcachefs-net", "vast", "quobyte",
)  # fmt: skip


@dataclass(frozen=True)
class Mount:
    """A mounted file system."""

    point: str
    kind: str
    """As the kernel calls it: `nfs4`, `lustre`, `ext4`, …"""

    @property
    def is_shared(self) -> bool | None:
        """Whether it can be the same on other machines; None where its kind tells nothing (as of 9p, or fuse)."""
        kind = self.kind.removeprefix("fuse.")
        return True if kind in _OF_MANY else False if kind in _OF_ONE_MACHINE else None


def mount_of(path: str, mountinfo: str) -> Mount | None:
    """The mount that holds an absolute path without links, from the text of /proc/self/mountinfo (proc(5)). Pure."""
    best: Mount | None = None
    for line in mountinfo.splitlines():
        own, separator, rest = line.partition(" - ")
        fields = own.split(" ")
        if not separator or len(fields) < 5:
            continue
        point = re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), fields[4])
        is_above = path == point or path.startswith(point.rstrip("/") + "/")
        # Of several on one point the last one covers the others.
        if is_above and (best is None or len(point) >= len(best.point)):
            best = Mount(point, rest.split(" ")[0])
    return best


def existing(path: Path) -> Path:
    """The path, or the nearest directory above it that exists; without links."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path.resolve()


def mount(path: Path) -> Mount | None:
    """The mount that holds the path, or will; None where that can't be told."""
    try:
        return mount_of(str(existing(path)), Path("/proc/self/mountinfo").read_text(encoding="utf-8"))
    except OSError:
        return None


def free_bytes(path: Path) -> int:
    """Room for files below the path, in bytes, as far as this user may fill it."""
    facts = os.statvfs(existing(path))
    return facts.f_bavail * facts.f_frsize

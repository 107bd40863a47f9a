"""How much memory the processes of this host may use: what is built in, or less where a container or a job has less."""

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_VERSION_2 = ""
"""What /proc says of a process's group in version 2, where other lines have names of controllers."""


def memory_limit(root: Path = Path("/")) -> int:
    """Bytes. The least limit of this process's control groups, of version 1 or 2, and of the machine itself."""
    return min([os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), *_limits(root)])


def _limits(root: Path) -> Iterator[int]:
    for file in _limit_files(root):
        try:
            limit = file.read_text().strip()
        except OSError:
            continue  # a container sees its own group as the topmost one, and none of those that /proc names
        if limit.isdecimal():  # and not "max"
            yield int(limit)


def _limit_files(root: Path) -> Iterator[Path]:
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers == _VERSION_2:
            mount, name = root / "sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            mount, name = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        relative = PurePosixPath(group).relative_to("/")
        for folder in (relative, *relative.parents):  # a limit holds for all groups within
            yield mount / folder / name

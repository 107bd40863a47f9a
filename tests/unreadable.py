"""Folders that cannot be read, also where the tests run as root, whom no rights keep from anything."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_NOBODY = 65534


@contextmanager
def without_rights() -> Iterator[None]:
    """Within it, this process is nobody's, if it is root's: whatever it needs must have been imported before."""
    if os.geteuid():
        yield
        return
    os.seteuid(_NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def make_too_deep(folder: Path) -> str:
    """Folders in one another, as deep as a path may be and one more, which cannot be listed by its path.

    Returns its path from where `folder` is.
    """
    name = "d" * 250
    folder.mkdir()
    path = folder
    descriptor = os.open(folder, os.O_RDONLY)
    while len(str(path)) + 1 < os.pathconf("/", "PC_PATH_MAX"):
        os.mkdir(name, dir_fd=descriptor)
        inner = os.open(name, os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor, path = inner, path / name
    os.close(descriptor)
    return str(path.relative_to(folder.parent))

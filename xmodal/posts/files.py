"""Which files `posts` names, and what they hold together."""

import glob
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from shards.errors import UserError
from xmodal.posts.compressed import COMPRESSION_ENDINGS

ENDINGS = (".jsonl", ".json", ".csv", ".parquet")
"""What a file of posts ends with; all but .parquet may be compressed."""


def find_files(posts: str | Sequence[str]) -> list[str]:
    """The file that `posts` names, or the files of that folder, or those that it matches as a pattern, sorted.

    A list of files is itself: a folder into which a collector writes is listed once.

    Of a folder, those with a known ending count, but for `.json`: beside posts, that is rather some program's notes.
    Raises UserError where there is none.
    """
    if not isinstance(posts, str):
        return list(posts)
    if os.path.isdir(posts):
        known = [path for path in Path(posts).iterdir() if ending_of(path.name) not in ("", ".json")]
        files = [str(path) for path in known if path.is_file()]
        problem = f"{posts}: a folder without posts"
    elif os.path.isfile(posts):
        files = [posts]
    else:
        files = [path for path in glob.glob(posts, recursive=True) if os.path.isfile(path)]
        problem = f"{posts}: no such file"
    if not files:
        raise UserError(problem, "check the path of the posts in the config")
    return sorted(files)


def ending_of(path: str) -> str:
    """`.jsonl` of `posts.jsonl.gz`; empty for an ending that is not known."""
    name = os.path.basename(path)
    for compression in COMPRESSION_ENDINGS:
        name = name.removesuffix(compression)
    ending = next((ending for ending in ENDINGS if name.endswith(ending)), "")
    return "" if ending == ".parquet" and name != os.path.basename(path) else ending


def short_names(files: list[str]) -> dict[str, str]:
    """File → its name below the folder that they all lie in: the same wherever that folder is."""
    folder = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in files])
    return {path: os.path.relpath(os.path.abspath(path), folder) for path in files}


def fingerprint(files: list[str]) -> str:
    """The sha256 (hex) of a file, or of several: that of the sha256 of each, in order."""
    hashes = []
    for path in files:
        with open(path, "rb") as file:
            hashes.append(hashlib.file_digest(file, "sha256").hexdigest())
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("\n".join(hashes).encode()).hexdigest()

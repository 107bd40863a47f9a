"""Pictures that lie in a local folder: read in order, with the checks that fetched ones get."""

import asyncio
import errno
import os
import stat
from collections import deque
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from shards.errors import UserError
from xmodal.crawl.fetch import FetchResult
from xmodal.crawl.pictures import PictureConfig, RefusedPictureError, check_picture
from xmodal.crawl.request import FailedTryError

# As of fetching: one thread decodes while the other reads or waits for the interpreter.
_NUM_THREADS = 2
_AHEAD = 8
# Of a path that can be no file's, or a folder's where a file is named.
_NOT_THERE = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EISDIR}


async def read_in_order(
    paths: Sequence[str], folder: str, max_bytes: int, pictures: PictureConfig
) -> AsyncIterator[FetchResult]:
    """Read the pictures at `paths` below `folder` and yield their results in the order given.

    Paths are anyone's, as URLs are: none leads out of the folder. Raises UserError where there is no such folder, as on
    a node that lacks it.
    """
    root = os.path.realpath(folder)
    if not os.path.isdir(root):
        raise UserError(f"media_folder: {folder}: no such folder", "give one that all nodes see, by its whole path")
    loop = asyncio.get_running_loop()
    threads = ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="decode")
    begun: deque[asyncio.Future[FetchResult]] = deque()
    try:
        for path in paths:
            begun.append(loop.run_in_executor(threads, read_picture, path, root, max_bytes, pictures))
            if len(begun) > _AHEAD:
                yield await begun.popleft()
        while begun:
            yield await begun.popleft()
    finally:
        for one in begun:
            one.cancel()
        threads.shutdown(wait=False, cancel_futures=True)


def read_picture(path: str, root: str, max_bytes: int, pictures: PictureConfig) -> FetchResult:
    """The picture at a path below `root`, a real path (`os.path.realpath`), or why there is none."""
    try:
        picture = check_picture(_read(path, root, max_bytes), pictures)
    except FailedTryError as failure:
        return FetchResult(url=path, reason=failure.reason, retryable=failure.retryable, tries=1)
    except RefusedPictureError as error:
        return FetchResult(url=path, reason=error.reason, tries=1)
    except MemoryError:
        return FetchResult(url=path, reason="out_of_memory", retryable=True, tries=1)
    return FetchResult(url=path, picture=picture, tries=1)


def _read(path: str, root: str, max_bytes: int) -> bytes:
    try:
        if not path.strip():
            raise FailedTryError("no_such_file")
        # With links followed, so that none of them leads out either.
        place = os.path.realpath(os.path.join(root, path))
        if os.path.commonpath([root, place]) != root:
            raise FailedTryError("outside_folder")
        # A named pipe would be waited for: it is opened without waiting, and then seen to be none that is read.
        with open(place, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise FailedTryError("no_such_file")
            content = file.read(max_bytes + 1)
    except ValueError:  # a path with a null character, or with half of a surrogate pair
        raise FailedTryError("no_such_file") from None
    except OSError as error:
        if error.errno in _NOT_THERE:
            raise FailedTryError("no_such_file") from None
        raise FailedTryError("unreadable_file", retryable=True) from None
    if len(content) > max_bytes:
        raise FailedTryError("too_large")
    return content

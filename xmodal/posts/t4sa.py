"""T4SA's files → posts: one table of texts, and lists of pictures whose names begin with their post's id.

`raw_tweets_text.csv` holds `id,text`. The lists, beside it, are `all_imgs.csv` (`id_tweet,path`) or, of B-T4SA,
`b-t4sa_train.txt` and its like (`path class`). Pictures lie in folders below: serve them over HTTP and name the server
in `base_url`, such as http://127.0.0.1:8000/ after `python -m http.server --directory T4SA`.
"""

import re
from array import array
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from shards.errors import UserError
from xmodal.posts.csv_files import csv_rows
from xmodal.posts.post import Post, UnreadablePostError, parse_post

TEXTS_NAME = "raw_tweets_text.csv"
LIST_NAME = re.compile(r"all_imgs\.csv|b-t4sa_\w+\.txt")
_PICTURE = re.compile(rb'[^\s,"]*?(\d{1,19})-\d+\.\w+')
_MAX_LINE_BYTES = 1 << 12

FoundInFile = tuple[str, int, Post | UnreadablePostError]
"""A file, a line of it, and what was found there."""


@dataclass(frozen=True, kw_only=True)
class T4saFiles:
    """The files of one input."""

    texts: str
    lists: list[str]


def is_t4sa_name(path: str) -> bool:
    """Whether a file has one of T4SA's names."""
    name = Path(path).name
    return name == TEXTS_NAME or LIST_NAME.fullmatch(name) is not None


def t4sa_files(paths: list[str]) -> T4saFiles:
    """The lists among `paths`, or all those beside the texts if they are named alone; and the texts beside the lists.

    Raises UserError where either is missing.
    """
    lists = [path for path in paths if LIST_NAME.fullmatch(Path(path).name)]
    folder = Path((lists or paths)[0]).parent
    if not lists:
        lists = sorted(str(path) for path in folder.iterdir() if LIST_NAME.fullmatch(path.name))
    texts = folder / TEXTS_NAME
    if not lists or not texts.is_file():
        raise UserError(
            f"{folder}: has no {TEXTS_NAME if lists else 'list of pictures'}",
            f"T4SA's posts are {TEXTS_NAME} with all_imgs.csv or b-t4sa_*.txt, in one folder",
        )
    return T4saFiles(texts=str(texts), lists=lists)


def t4sa_posts(files: T4saFiles) -> Iterator[FoundInFile]:
    """The posts in the order of the texts; texts of which no list has a picture are passed over.

    Holds 25 bytes a picture, some 60 while it sorts them, and neither texts nor paths. All of T4SA is English: it was
    chosen so.
    """
    with ExitStack() as stack:
        lists: list[BinaryIO] = [stack.enter_context(open(path, "rb")) for path in files.lists]
        pictures = _Pictures(lists)
        for number, line in pictures.read_lists():
            error = UnreadablePostError("bad_row", "path: no <post id>-<number>.<extension>")
            yield files.lists[number], line, error
        texts = stack.enter_context(open(files.texts, "rb"))
        for line, row in _text_rows(texts, files.texts):
            found = row if isinstance(row, UnreadablePostError) else _post_or_error(*row, pictures)
            if found is not None:
                yield files.texts, line, found
        for number, line, post_id in pictures.unclaimed():
            error = UnreadablePostError("no_text", f"{TEXTS_NAME}: has no such id", str(post_id))
            yield files.lists[number], line, error


def _text_rows(file: BinaryIO, path: str) -> Iterator[tuple[int, tuple[str, str] | UnreadablePostError]]:
    """Ids and texts, by the columns' names, or of the first two columns where there is no header."""
    id_column, text_column = 0, 1
    for number, (line, row) in enumerate(csv_rows(file)):
        if isinstance(row, UnreadablePostError):
            yield line, row
        elif number == 0 and not row[0].isdecimal():
            if not {"id", "text"} <= set(row):
                raise UserError(f"{path}: has no columns id and text", "its first line names them, or is a post")
            id_column, text_column = row.index("id"), row.index("text")
        elif len(row) <= max(id_column, text_column):
            yield line, UnreadablePostError("bad_row", f"row: {len(row)} fields")
        else:
            yield line, (row[id_column], row[text_column])


def _post_or_error(post_id: str, text: str, pictures: "_Pictures") -> Post | UnreadablePostError | None:
    if not re.fullmatch(r"[0-9]{1,19}", post_id):
        return UnreadablePostError("bad_row", "id: not a whole number")
    try:
        paths = pictures.claim(int(post_id))
        if paths is None:
            return None
        if re.search("[\udc80-\udcff]", text):
            raise UnreadablePostError("bad_row", "text: not UTF-8", post_id)
        return parse_post({"id": post_id, "text": text, "media": paths, "lang": "en", "source": "t4sa"})
    except UnreadablePostError as error:
        return error


class _Pictures:
    """Which pictures a post has, by where their lines are in the lists."""

    def __init__(self, lists: list[BinaryIO]) -> None:
        self._lists = lists

    def read_lists(self) -> Iterator[tuple[int, int]]:
        """Go through the lists; yields the list and line of each that names no picture."""
        ids, places, lines = array("Q"), array("Q"), array("Q")
        for number, file in enumerate(self._lists):
            offset = line = 0
            while content := file.readline(_MAX_LINE_BYTES):
                line += 1
                picture = _PICTURE.search(content)
                if picture:
                    ids.append(int(picture[1]))
                    places.append(offset)
                    lines.append(line * len(self._lists) + number)
                elif content.strip() and line > 1:
                    yield number, line
                offset += len(content)
        found = np.frombuffer(ids, np.uint64)
        order = np.argsort(found, kind="stable")
        self._ids = found[order]
        self._offsets, self._lines = np.frombuffer(places, np.uint64)[order], np.frombuffer(lines, np.uint64)[order]
        self._is_claimed = np.zeros(len(order), bool)

    def claim(self, post_id: int) -> list[str] | None:
        """The paths of a post's pictures, once; None if there are none. Raises UnreadablePostError the second time."""
        key = np.uint64(post_id)
        start, end = np.searchsorted(self._ids, key, "left"), np.searchsorted(self._ids, key, "right")
        if start == end:
            return None
        if self._is_claimed[start]:
            raise UnreadablePostError("duplicate_post", "id: an earlier row has it", str(post_id))
        self._is_claimed[start:end] = True
        # A picture may be in more than one list.
        return list(dict.fromkeys(self._path(place) for place in range(start, end)))

    def unclaimed(self) -> Iterator[tuple[int, int, int]]:
        """The list, line and post id of the pictures that no post has claimed, one a post."""
        ids, first = np.unique(self._ids, return_index=True)
        for post_id, place in zip(ids, first, strict=True):
            if not self._is_claimed[place]:
                line, number = divmod(int(self._lines[place]), len(self._lists))
                yield number, line, int(post_id)

    def _path(self, place: int) -> str:
        file = self._lists[int(self._lines[place]) % len(self._lists)]
        file.seek(int(self._offsets[place]))
        picture = _PICTURE.search(file.readline(_MAX_LINE_BYTES))
        assert picture
        return picture[0].decode("utf-8", "replace")

"""T4SA's files → posts: one table of texts, and lists of pictures whose names begin with their post's id.

`raw_tweets_text.csv` holds `id,text`. The lists, beside it, are `all_imgs.csv` (`id_tweet,path`), of B-T4SA
`b-t4sa_train.txt` and its like (`path class`), or of T4SA 2.0 `bal_T4SA2.0_train.csv` and its like (`path,label`). The
latter two say what class a picture is of: where only these labels are wanted, the texts may be missing. The pictures
lie in folders below, which `media_folder` names.
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
from xmodal.labels import parse_label
from xmodal.posts.compressed import OnRead, open_posts
from xmodal.posts.csv_files import csv_rows
from xmodal.posts.post import Media, Post, UnreadablePostError, parse_post

TEXTS_NAME = "raw_tweets_text.csv"
LIST_NAME = re.compile(r"all_imgs\.csv|b-t4sa_\w+\.txt|\w+_T4SA(2\.0)?_(train|val|test)\.csv")
_PICTURE = re.compile(rb'[^\s,"]*?(\d{1,19})-\d+\.\w+')
_CLASS = re.compile(rb'"?[\s,]+"?([0-2])"?\s*')
_MAX_LINE_BYTES = 1 << 12
_REMEDY = (
    f"T4SA's posts are {TEXTS_NAME} with all_imgs.csv or b-t4sa_*.txt, in one folder; the labels of b-t4sa_*.txt and "
    "*_T4SA2.0_*.csv can be had without texts, with teacher.kind: given"
)

FoundInFile = tuple[str, int, Post | UnreadablePostError]
"""A file, a line of it, and what was found there."""


@dataclass(frozen=True, kw_only=True)
class T4saFiles:
    """The files of one input."""

    texts: str | None
    """None where only labels are there."""
    lists: list[str]

    @property
    def paths(self) -> list[str]:
        """All of them, the texts first."""
        return [*([self.texts] if self.texts else []), *self.lists]

    @property
    def read_with_posts(self) -> list[str]:
        """Those that are read along with the posts; lists beside texts are read whole before the first one."""
        return [self.texts] if self.texts else self.lists


def is_t4sa_name(path: str) -> bool:
    """Whether a file has one of T4SA's names."""
    name = Path(path).name
    return name == TEXTS_NAME or LIST_NAME.fullmatch(name) is not None


def t4sa_files(paths: list[str]) -> T4saFiles:
    """The lists among `paths`, or all those beside the texts if they are named alone; and the texts beside the lists.

    Raises UserError where there is no list.
    """
    lists = [path for path in paths if LIST_NAME.fullmatch(Path(path).name)]
    folder = Path((lists or paths)[0]).parent
    if not lists:
        lists = sorted(str(path) for path in folder.iterdir() if LIST_NAME.fullmatch(path.name))
    if not lists:
        raise UserError(f"{folder}: has no list of pictures", _REMEDY)
    texts = folder / TEXTS_NAME
    return T4saFiles(texts=str(texts) if texts.is_file() else None, lists=lists)


def require_texts(files: T4saFiles) -> None:
    """Raise UserError where there are no texts."""
    if files.texts is None:
        raise UserError(f"{Path(files.lists[0]).parent}: has no {TEXTS_NAME}", _REMEDY)


def t4sa_posts(files: T4saFiles, on_read: OnRead) -> Iterator[FoundInFile]:
    """The posts in the order of the texts; texts of which no list has a picture are passed over. Without texts, those
    of the lists in the order of their ids. `on_read` is told of bytes of `files.read_with_posts`.

    Holds 25 bytes a picture, some 60 while it sorts them, and neither texts nor paths. All of T4SA is English: it was
    chosen so.
    """
    with ExitStack() as stack:
        lists: list[BinaryIO] = [stack.enter_context(open(path, "rb")) for path in files.lists]
        pictures = _Pictures(lists, on_read if files.texts is None else lambda num_bytes: None)
        for number, line in pictures.read_lists():
            error = UnreadablePostError("bad_row", "path: no <post id>-<number>.<extension>")
            yield files.lists[number], line, error
        if files.texts is None:
            for number, line, post_id in pictures.unclaimed():
                yield files.lists[number], line, _post_without_text(post_id, pictures)
            return
        texts = stack.enter_context(open_posts(files.texts, on_read))
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
        claimed = pictures.claim(int(post_id))
        if claimed is None:
            return None
        if re.search("[\udc80-\udcff]", text):
            raise UnreadablePostError("bad_row", "text: not UTF-8", post_id)
        paths, label = claimed
        record = {"id": post_id, "text": text, "media": paths, "label": label, "lang": "en", "source": "t4sa"}
        return parse_post(record)
    except UnreadablePostError as error:
        return error


def _post_without_text(post_id: int, pictures: "_Pictures") -> Post:
    claimed = pictures.claim(post_id)
    assert claimed
    paths, label = claimed
    media = tuple(Media(url=path) for path in paths)
    return Post(id=str(post_id), text="", media=media, label=parse_label(label), lang="en", source="t4sa")


class _Pictures:
    """Which pictures a post has, by where their lines are in the lists."""

    def __init__(self, lists: list[BinaryIO], on_claim: OnRead) -> None:
        self._lists, self._on_claim = lists, on_claim

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

    def claim(self, post_id: int) -> tuple[list[str], int | None] | None:
        """The paths of a post's pictures and the class of all, once; None if there are no pictures.

        The class is None where the lists have none, or several. Raises UnreadablePostError the second time.
        """
        key = np.uint64(post_id)
        start, end = np.searchsorted(self._ids, key, "left"), np.searchsorted(self._ids, key, "right")
        if start == end:
            return None
        if self._is_claimed[start]:
            raise UnreadablePostError("duplicate_post", "id: an earlier row has it", str(post_id))
        self._is_claimed[start:end] = True
        found = [self._path_and_class(place) for place in range(start, end)]
        classes = {class_id for _, class_id in found if class_id is not None}
        # A picture may be in more than one list.
        return list(dict.fromkeys(path for path, _ in found)), classes.pop() if len(classes) == 1 else None

    def unclaimed(self) -> Iterator[tuple[int, int, int]]:
        """The list, line and post id of the pictures that no post has claimed, one a post."""
        ids, first = np.unique(self._ids, return_index=True)
        for post_id, place in zip(ids, first, strict=True):
            if not self._is_claimed[place]:
                line, number = divmod(int(self._lines[place]), len(self._lists))
                yield number, line, int(post_id)

    def _path_and_class(self, place: int) -> tuple[str, int | None]:
        file = self._lists[int(self._lines[place]) % len(self._lists)]
        file.seek(int(self._offsets[place]))
        line = file.readline(_MAX_LINE_BYTES)
        self._on_claim(len(line))
        picture = _PICTURE.search(line)
        assert picture
        class_id = _CLASS.fullmatch(line, picture.end())
        return picture[0].decode("utf-8", "replace"), int(class_id[1]) if class_id else None

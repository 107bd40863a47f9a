"""Where the predictions of `xmodal predict` lie: parts while it runs, then one table and what could not be predicted.

A part holds so many pictures that follow one another, and is visible once it is whole. The parts lie in a hidden folder
beside the table to come, with what was asked for: whoever asks for the same goes on from them. The table is made of
them in one step, after the failures and the summary that lie beside it.
"""

import csv
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from shards.errors import UserError
from shards.json_object import parse_json_object
from shards.storage import LocalStorage, open_folder_of, told_to_user
from xmodal.evaluation.pictures import Picture
from xmodal.labels import CLASSES

SUFFIXES = (".csv", ".jsonl", ".parquet")
_ASKED = "asked.json"
_TABLE_SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("key", pa.string()),  # of the sample in a tar; null for a file
        *((name, pa.float32()) for name in CLASSES),
        ("label", pa.string()),
    ]
)
_PART_SCHEMA = _TABLE_SCHEMA.append(pa.field("reason", pa.string()))
"""`reason`: why there are no probabilities; null where there are."""


class PredictionFiles:
    """The files of one run; several processes may write parts of it at a time, each part one of them."""

    def __init__(self, output: str) -> None:
        """Of the table `output`, local or on s3. Raises UserError where no table can be."""
        if PurePosixPath(output).suffix not in SUFFIXES:
            raise UserError(f"output: {output}: ends with none of {', '.join(SUFFIXES)}", "give it one of these")
        self.url = output
        self._storage, self.name = open_folder_of(output)
        self._parts = self._storage.below(f".{self.name}.parts")
        self.failures_name, self._summary_name = f"{self.name}.failures.jsonl", f"{self.name}.summary.json"

    def begin(self, asked: Mapping[str, Any]) -> dict[str, Any] | None:
        """Begin, or go on with a run that asked for the same; the summary of one that was finished, else None.

        Raises UserError where the run before asked for something else, and where the table is there and is none of a
        run.
        """
        finished = self._summary()
        if finished:
            self._compare(finished["asked"], asked, self.url)
            return finished
        self._parts = self._storage.below(f".{self.name}.parts", create=True)
        if not self._parts.exists(_ASKED):
            temporary = self._parts.new_temporary(_ASKED)
            with told_to_user(temporary.parent):
                temporary.write_text(json.dumps(dict(asked), indent=2) + "\n")
            self._parts.commit(temporary, _ASKED)
        before = parse_json_object(self._parts.read(_ASKED), f"{self._parts.url}/{_ASKED}", f"remove {self._parts.url}")
        self._compare(before, asked, self._parts.url)
        return None

    @contextmanager
    def noticing_another_run(self) -> Iterator[None]:
        """Within it, UserError is raised where another run has made the table and removed the parts meanwhile."""
        try:
            yield
        except (FileNotFoundError, UserError) as error:
            if self._parts.exists(_ASKED) or not self._storage.exists(self.name):
                raise
            raise UserError(
                f"{self.url}: another run of the same has made it", "the same command again says what is in it"
            ) from error

    def _summary(self) -> dict[str, Any] | None:
        if not self._storage.exists(self.name):
            return None
        try:
            content = self._storage.read(self._summary_name)
        except FileNotFoundError:
            raise UserError(f"{self.url}: is there already", "remove it, or give another output") from None
        return parse_json_object(content, self._summary_name, f"remove {self.url}", {"asked": dict})

    def _compare(self, before: Mapping[str, Any], asked: Mapping[str, Any], where: str) -> None:
        for name, value in asked.items():
            if before.get(name) != value:
                raise UserError(
                    f"{where}: is of another {name}: {before.get(name)}, not {value}",
                    "give the same settings to go on, or remove it, or give another output",
                )

    def has_part(self, number: int, pictures: Sequence[Picture]) -> bool:
        """Whether a part is there. Raises UserError where it is of other pictures than those."""
        name = _part_name(number)
        if not self._parts.exists(name):
            return False
        part = self._read_part(number)
        if _places(pictures) != list(zip(part["path"].to_pylist(), part["key"].to_pylist(), strict=True)):
            raise UserError(
                f"{self._parts.url}/{name}: the inputs held other pictures when it was written",
                f"remove {self._parts.url} to begin anew",
            )
        return True

    def write_part(
        self, number: int, pictures: Sequence[Picture], probabilities: np.ndarray, failures: Mapping[int, str]
    ) -> None:
        """Make a part visible, whole. Raises UserError where another run has written it."""
        labels = [CLASSES[place] for place in np.nan_to_num(probabilities).argmax(axis=1).tolist()]
        mask = np.zeros(len(pictures), dtype=bool)
        mask[list(failures)] = True
        paths, keys = zip(*_places(pictures), strict=True)
        columns = {
            "path": pa.array(paths),
            "key": pa.array(keys, pa.string()),
            **{
                name: pa.array(column.astype(np.float32), mask=mask)
                for name, column in zip(CLASSES, probabilities.T, strict=True)
            },
            "label": pa.array(labels, mask=mask),
            "reason": pa.array([failures.get(place) for place in range(len(pictures))], pa.string()),
        }
        temporary = self._parts.new_temporary(_part_name(number))
        with told_to_user(temporary.parent):
            pq.write_table(pa.table(columns, schema=_PART_SCHEMA), temporary, compression="zstd")
        if not self._parts.commit(temporary, _part_name(number)):
            raise UserError(f"{self.url}: another run is writing it", "let it end, or give another output")

    def finish(self, num_parts: int, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Make the table, failures and summary of the parts visible; the parts go away. Returns the summary."""
        with self.noticing_another_run():
            return self._finish(num_parts, asked)

    def _finish(self, num_parts: int, asked: Mapping[str, Any]) -> dict[str, Any]:
        for number in range(num_parts):
            if not self._parts.exists(_part_name(number)):
                raise UserError(f"{self._parts.url}: lacks part {number}", "the same command again makes it")
        labels = dict.fromkeys(CLASSES, 0)
        num_pictures = num_failures = 0
        failures = self._parts.new_temporary(self.failures_name)
        table = self._parts.new_temporary(self.name)
        with told_to_user(table.parent), open(table, "wb") as table_file, open(failures, "wb") as failures_file:
            write, end = _WRITERS[PurePosixPath(self.name).suffix](table_file)
            for number in range(num_parts):
                part = self._read_part(number)
                good = part.filter(part["reason"].is_null())
                write(good.select(_TABLE_SCHEMA.names))
                bad = part.filter(part["reason"].is_valid()).select(["path", "key", "reason"])
                failures_file.writelines(map(_line, bad.to_pylist()))
                num_pictures += good.num_rows
                num_failures += bad.num_rows
                for count in good["label"].value_counts().to_pylist():
                    labels[count["values"]] += count["counts"]
            end()
        summary = {"asked": dict(asked), "pictures": num_pictures, "failures": num_failures, "labels": labels}
        self._storage.put_file(self.failures_name, failures)
        self._parts.discard(failures)
        self._storage.replace(self._summary_name, json.dumps(summary, indent=2).encode() + b"\n")
        self._storage.commit(table, self.name)
        self.remove_parts()
        return summary

    def remove_parts(self) -> None:
        """Drop what a finished run no longer needs."""
        parts = self._parts
        if isinstance(parts, LocalStorage) and not parts.folder.is_dir():
            return
        for name in parts.names():
            parts.delete(name)
        parts.discard_leftovers(0)
        if isinstance(parts, LocalStorage):
            os.rmdir(parts.folder)

    def _read_part(self, number: int) -> pa.Table:
        return pq.read_table(io.BytesIO(self._parts.read(_part_name(number))))


def _shortest(value: object) -> object:
    """A float32 with the nine digits that it has at most, of all those of the float64 that it is read as."""
    return float(f"{value:.9g}") if isinstance(value, float) else value


_Writer = tuple[Callable[[pa.Table], None], Callable[[], object]]
"""What writes some rows, and what ends the file."""


def _csv_writer(file: BinaryIO) -> _Writer:
    text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
    writer = csv.writer(text)
    writer.writerow(_TABLE_SCHEMA.names)

    def write(rows: pa.Table) -> None:
        for row in rows.to_pylist():
            writer.writerow(map(_shortest, row.values()))

    return write, text.detach


def _jsonl_writer(file: BinaryIO) -> _Writer:
    def write(rows: pa.Table) -> None:
        for row in rows.to_pylist():
            file.write(_line({name: _shortest(value) for name, value in row.items()}))

    return write, file.flush


def _parquet_writer(file: BinaryIO) -> _Writer:
    writer = pq.ParquetWriter(file, _TABLE_SCHEMA, compression="zstd")
    return writer.write_table, writer.close


_WRITERS = {".csv": _csv_writer, ".jsonl": _jsonl_writer, ".parquet": _parquet_writer}


def _line(row: Mapping[str, Any]) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"


def _places(pictures: Sequence[Picture]) -> list[tuple[str, str | None]]:
    return [(picture.path, picture.key) for picture in pictures]


def _part_name(number: int) -> str:
    return f"{number:09d}.parquet"

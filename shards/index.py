"""The index of a shard: where each member lies in the tar, and the JSON's fields as columns.

It is derived from the tar alone, so a lost or stale one is rebuilt, and any WebDataset can be indexed. It is kept as
Parquet beside the tar (`000123.tar` → `000123.parquet`), with the tar's size and sha256, and what is broken in its
samples, in the file's metadata.
"""

import hashlib
import io
import json
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from shards.errors import UserError
from shards.storage import CorruptObjectError, Storage
from shards.tar_samples import DAMAGED_TAR, IMAGE_EXTENSIONS, Buffer, problems_of_sample, tar_samples

INDEX_VERSION = "3"
ID_FIELDS = ("post_id", "author")
"""Of a sample's JSON, what posts and people are found by. These columns are text, and null where there is none."""
_LOCATION_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("image_ext", pa.string()),
        ("image_offset", pa.int64()),
        ("image_length", pa.int64()),
        ("image_crc32", pa.uint32()),
        ("json_offset", pa.int64()),
        ("json_length", pa.int64()),
        ("txt_offset", pa.int64()),
        ("txt_length", pa.int64()),
    ]
)


class DamagedTarError(UserError):
    """A tar that cannot be read to its end."""

    def __init__(self, url: str, damage: str) -> None:
        super().__init__(f"{url}: {damage}", "fetch or write this shard again")
        self.url, self.damage = url, damage

    def __reduce__(self) -> tuple[type["DamagedTarError"], tuple[str, str]]:
        return type(self), (self.url, self.damage)  # as ConfigError


def index_name(tar_name: str) -> str:
    """`000123.tar` → `000123.parquet`."""
    return tar_name.removesuffix(".tar") + ".parquet"


def read_index(
    storage: Storage, tar_name: str, *, keep: bool = True, build: bool = True, columns: Sequence[str] | None = None
) -> pa.Table:
    """The index of a committed tar, one row a sample in the tar's order; made where there is none, or a damaged one.

    One of another size of tar or another version is made anew too. What is committed never changes, so no more is
    compared: that would mean to read the tar, as `renew_index` does. One that had to be made is written beside the tar,
    if it is to be kept.
    Of `columns`, if given, those that the index has are read, and no others. Without `build` it must be there: whoever
    reads the index of each shard again and again does not want to read all tars for it.

    Columns: `key, image_ext, {image,json,txt}_{offset,length}` (bytes; null where there is no such member),
    `image_crc32` (zlib's, of the picture's bytes), then the JSON's fields. Table metadata: `tar_bytes`, `tar_sha256`.
    Raises UserError if the tar cannot be read, or has no index that may be made.
    """
    table, name = _stored_index(storage, tar_name, columns)
    if not _is_of(table, storage, tar_name):
        if not build:
            storage.size(tar_name)  # It is not there, or has no index: these are two mistakes.
            raise UserError(
                f"{storage.url}/{tar_name}: has no index, or another tar's", f"run `xmodal shards index {storage.url}`"
            )
        table = build_index(storage.read(tar_name), f"{storage.url}/{tar_name}")
        if keep:
            storage.replace(name, _write_table(table))
        if columns is not None:
            table = table.select([column for column in columns if column in table.column_names])
    return table


def current_index(storage: Storage, tar_name: str) -> pa.Table | None:
    """The index that `read_index` gives, if it lies there and need not be made."""
    table = stored_index(storage, tar_name)
    return table if _is_of(table, storage, tar_name) else None


def renew_index(storage: Storage, tar_name: str) -> pa.Table:
    """As `read_index`, but the tar is read whole, and an index of other bytes than its own is replaced.

    Tars are padded, so that another one is often of the same size.
    """
    table, name = _stored_index(storage, tar_name, None)
    if not _is_of(table, storage, tar_name) or index_metadata(table).get("tar_sha256") != _sha256(storage, tar_name):
        table = build_index(storage.read(tar_name), f"{storage.url}/{tar_name}")
        storage.replace(name, _write_table(table))
    return table


def _sha256(storage: Storage, name: str) -> str:
    sha256 = hashlib.sha256()
    for chunk in storage.chunks(name):
        sha256.update(chunk)
    return sha256.hexdigest()


def stored_index(storage: Storage, tar_name: str) -> pa.Table | None:
    """The index that lies beside a tar, whatever tar it is of; None where there is none, or a damaged one."""
    return _stored_index(storage, tar_name, None)[0]


def _stored_index(storage: Storage, tar_name: str, columns: Sequence[str] | None) -> tuple[pa.Table | None, str]:
    """The index that lies beside a tar, and the name that it has or is to have.

    img2dataset keeps tables of its own as `00000.parquet`: they stay, and the index is `00000.index.parquet` there.
    """
    name = index_name(tar_name)
    for last in (False, True):
        try:
            table = _read_table(storage.read(name), columns)
        except FileNotFoundError:
            return None, name
        except CorruptObjectError:
            table = None
        is_ours = table is not None and "index_version" in index_metadata(table)
        if is_ours or table is None or last:
            break
        name = tar_name.removesuffix(".tar") + ".index.parquet"
    return (table if is_ours else None), name


def index_metadata(table: pa.Table) -> dict[str, str]:
    """The `tar_bytes`, `tar_sha256`, `index_version` and `problems` of an index."""
    return {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}


def index_problems(table: pa.Table) -> list[tuple[str, str]]:
    """What is broken in the tar's samples, but for pictures that do not decode: key and what, in the tar's order."""
    return [(key, what) for key, what in json.loads(index_metadata(table)["problems"])]


def _is_of(table: pa.Table | None, storage: Storage, tar_name: str) -> bool:
    """Whether an index is of this version, and of a tar of the size of this one."""
    if table is None:
        return False
    metadata = index_metadata(table)
    is_of_version = metadata.get("index_version") == INDEX_VERSION
    return is_of_version and metadata.get("tar_bytes") == str(storage.size(tar_name))


def build_index(tar: bytes, url: str) -> pa.Table:
    """Index the bytes of a tar; `url` names it in errors. Raises DamagedTarError if it is no tar or is cut off."""
    rows = IndexRows()
    problems: list[tuple[str, str]] = []
    seen: set[str] = set()
    view = memoryview(tar)  # its slices are no copies
    try:
        for key, members in tar_samples(tar):
            places = {member.extension: (member.offset, member.length) for member in members}
            rows.add(key, places, {ext: view[start : start + length] for ext, (start, length) in places.items()})
            problems += [(key, what) for what in problems_of_sample(view, key, members, seen)]
            seen.add(key)
    except DAMAGED_TAR as error:
        raise DamagedTarError(url, f"not a whole tar file: {error}") from error
    return rows.table(tar_bytes=len(tar), tar_sha256=hashlib.sha256(tar).hexdigest(), problems=problems)


class IndexRows:
    """The rows of an index, sample after sample in the order of the tar: of one that is read, or being written."""

    def __init__(self) -> None:
        self._locations: list[dict[str, Any]] = []
        self._fields: list[dict[str, Any]] = []

    def add(self, key: str, members: Mapping[str, tuple[int, int]], contents: Mapping[str, Buffer]) -> None:
        """Add a sample: by extension, offset and length of its members, and their bytes.

        One without a picture has no row.
        """
        image_ext = next((ext for ext in IMAGE_EXTENSIONS if ext in members), None)
        if image_ext is not None:
            location = _locate(key, members, image_ext)
            self._locations.append(location | {"image_crc32": zlib.crc32(contents[image_ext])})
            self._fields.append(_parse_fields(contents.get("json")))

    def table(self, *, tar_bytes: int, tar_sha256: str, problems: Sequence[tuple[str, str]] = ()) -> pa.Table:
        """The index, as `read_index` gives it; `problems` as `index_problems` does."""
        table = pa.Table.from_pylist(self._locations, schema=_LOCATION_SCHEMA)
        for name in sorted({name for sample in self._fields for name in sample} - set(_LOCATION_SCHEMA.names)):
            table = table.append_column(name, _to_column(name, [sample.get(name) for sample in self._fields]))
        return table.replace_schema_metadata(
            {
                "index_version": INDEX_VERSION,
                "tar_bytes": str(tar_bytes),
                "tar_sha256": tar_sha256,
                "problems": json.dumps(problems),
            }
        )


def _locate(key: str, members: Mapping[str, tuple[int, int]], image_ext: str) -> dict[str, Any]:
    location: dict[str, Any] = {"key": key, "image_ext": image_ext}
    for column, extension in (("image", image_ext), ("json", "json"), ("txt", "txt")):
        location[f"{column}_offset"], location[f"{column}_length"] = members.get(extension, (None, None))
    return location


def _parse_fields(json_member: Buffer | None) -> dict[str, Any]:
    if json_member is None:
        return {}
    try:
        fields = json.loads(bytes(json_member))
    except (ValueError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) else {}


def id_text(value: Any) -> str | None:
    """The text by which the value of `post_id` or `author` is known, whatever its type; None where there is none."""
    if value is None:
        return None
    # Half a surrogate pair has no UTF-8.
    return (json.dumps(value) if isinstance(value, dict | list) else str(value)).encode(errors="replace").decode()


def _to_column(name: str, values: list[Any]) -> pa.Array:
    """Values of one JSON field as a column; as JSON text where they have no common type that Parquet holds.

    Ids are text one by one, so that an odd one among them hides no other from those who are to be forgotten.
    """
    if name in ID_FIELDS:
        return pa.array([id_text(value) for value in values], type=pa.string())
    try:
        column = pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError, UnicodeEncodeError):
        column = None
    if column is None or _has_empty_struct(column.type):
        column = pa.array([None if value is None else json.dumps(value) for value in values])
    return column


def _has_empty_struct(kind: pa.DataType) -> bool:
    """Whether there is a struct without fields in it, from `{}`: Parquet has none."""
    if pa.types.is_struct(kind):
        return not kind.num_fields or any(_has_empty_struct(field.type) for field in kind)
    return pa.types.is_list(kind) and _has_empty_struct(kind.value_type)


def write_index(storage: Storage, tar_name: str, table: pa.Table) -> None:
    """Keep an index beside its tar."""
    storage.replace(index_name(tar_name), _write_table(table))


def _write_table(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def _read_table(content: bytes, columns: Sequence[str] | None) -> pa.Table | None:
    try:
        return pq.ParquetFile(io.BytesIO(content)).read(columns)
    except (pa.ArrowInvalid, OSError):
        return None

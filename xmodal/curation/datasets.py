"""What curation reads: the shards of datasets, and columns of their samples, from the shards' indexes alone.

A column is read once for the steps and dropped when they are done with it; where the kept samples lie is read in a
second pass. So ten million samples fit into a few gigabytes.
"""

import binascii
import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shards.dataset import read_dataset
from shards.errors import UserError
from shards.index import index_metadata, index_name, read_index
from shards.inspection import find_shards
from shards.storage import Storage, open_storage
from shards.tombstones import Tombstones, read_tombstones
from xmodal.labels import CLASSES

T = TypeVar("T")
Task = TypeVar("Task")

_ROWS_PER_BLOCK = 1 << 20
_HASHES = ("sha256", "pdq")
_LARGEST_ERROR_OF_SUM = 0.01
"""Probabilities may have been rounded. What are percentages or logits is further off."""
_REMEDIES = {
    "soft_label": "curate what `xmodal label` made, or shards whose JSON has the three probabilities as soft_label",
    "sha256": "label with pictures.hashes: true, or leave these steps out",
    "pdq": "label with pictures.hashes: true, or leave these steps out",
    "post_id": "give all to one split (split.val: 0 and split.test: 0), and leave other such steps out",
    "width": "leave these steps out",
    "height": "leave these steps out",
}
"""What to do about samples without a field; the first of them that is missing is spoken of."""


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Shards at one place."""

    url: str
    """As the recipe names it."""
    storage: Storage
    shards: list[str]
    """Names of the tars, sorted."""
    sha256: dict[str, str] | None
    """Of each tar, by what `dataset.json` says; None for shards made elsewhere."""
    tombstones: Tombstones


@dataclass(frozen=True, kw_only=True)
class Shard:
    """A shard whose index was read."""

    dataset: int
    """Place in the recipe."""
    name: str
    num_samples: int
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Columns of all samples, in the order of (dataset, name of the shard, place in the shard).

    What no step needs is None.
    """

    shards: list[Shard]
    keys: pa.LargeStringArray
    datasets: np.ndarray
    """int32 `(n,)`, place in the recipe."""
    soft_labels: np.ndarray
    """float32 `(n, classes)`."""
    classes: np.ndarray
    """uint8 `(n,)`: the most probable; ties go to the lower id."""
    confidence: np.ndarray
    """float64 `(n,)`: its probability."""
    crc32: np.ndarray
    """uint32 `(n,)`: of the picture's bytes."""
    sha256: np.ndarray | None
    """uint8 `(n, 32)`."""
    pdq: np.ndarray | None
    """uint8 `(n, 32)`."""
    num_pixels: np.ndarray | None
    """int64 `(n,)`."""
    posts: np.ndarray | None
    """int32 `(n,)`: index into `post_ids`."""
    post_ids: pa.LargeStringArray | None
    """Empty where the post is not known, and no step needs to know it."""
    authors: pa.LargeStringArray | None
    """Empty where the author is not known."""


def open_dataset(url: str) -> Dataset:
    """A finished dataset, or indexed tars made elsewhere if `url` is a pattern of tars.

    Raises UserError for one that is missing or unfinished.
    """
    if url.endswith(".tar"):
        found = find_shards(url)
        storage, shards, sha256 = found.storage, sorted(found.names), None
    else:
        storage = open_storage(url)
        if not storage.exists("dataset.json") and not storage.exists("recipe.json") and storage.names(".tar"):
            raise UserError(
                f"{url}: no dataset.json, so this dataset is not finished",
                f"run `xmodal label` to its end; name tars made elsewhere by a pattern: {url}/{{00000..00099}}.tar",
            )
        entries = [shard for shard in read_dataset(storage)["shards"] if shard["samples"]]
        sha256 = {shard["name"]: shard["sha256"] for shard in entries}
        shards = sorted(sha256)
    return Dataset(url=url, storage=storage, shards=shards, sha256=sha256, tombstones=read_tombstones(storage))


def fingerprint(shards: Iterable[Shard]) -> str:
    """The sha256 (hex) of a dataset: of its shards' names and sha256."""
    return hashlib.sha256(json.dumps([[shard.name, shard.sha256] for shard in shards]).encode()).hexdigest()


def read_samples(
    datasets: Sequence[Dataset],
    needs: Sequence[Mapping[str, Sequence[str]]],
    *,
    where_known: Sequence[str],
    num_workers: int,
    keep_indexes: bool,
) -> Samples:
    """Read of all samples the key, the soft label, and the fields in `needs` (of each dataset: field → who needs it).

    `where_known` are fields (`post_id`, `author`) that are read besides, and that samples may lack. An index that is
    lost is made anew, and kept if asked for. Raises UserError for a shard that is not there, is another one, or has a
    sample without a field that it needs.
    """
    wanted = list(dict.fromkeys([name for fields in needs for name in fields] + list(where_known)))

    def read(task: tuple[int, str]) -> tuple[Shard, dict[str, Any]]:
        number, name = task
        dataset = datasets[number]
        index = _index(dataset, name, ["key", "soft_label", "image_crc32", *wanted], keep=keep_indexes)
        metadata = index_metadata(index)
        shard = Shard(
            dataset=number,
            name=name,
            num_samples=index.num_rows,
            bytes=int(metadata["tar_bytes"]),
            sha256=metadata["tar_sha256"],
        )
        if not index.num_rows:
            return shard, {}  # and without the columns that samples would have given it
        return shard, _columns(index, wanted, needs[number], f"{dataset.storage.url}/{name}")

    tasks = [(number, name) for number, dataset in enumerate(datasets) for name in dataset.shards]
    shards: list[Shard] = []
    blocks = _Blocks()
    for shard, columns in map_in_order(read, tasks, num_workers):
        if shard.num_samples:
            shards.append(shard)
            blocks.add(columns, shard.num_samples)
    if not shards:
        raise UserError(f"{', '.join(dataset.url for dataset in datasets)}: no samples", "label some posts first")
    columns = blocks.whole()
    posts = post_ids = None
    if "post_id" in columns:
        encoded = columns.pop("post_id").dictionary_encode()
        posts, post_ids = encoded.indices.to_numpy(), encoded.dictionary
    return Samples(
        shards=shards,
        keys=columns["key"],
        datasets=np.repeat(
            np.array([shard.dataset for shard in shards], dtype=np.int32), [shard.num_samples for shard in shards]
        ),
        soft_labels=columns["soft_label"],
        classes=columns["class"],
        confidence=columns["confidence"],
        crc32=columns["crc32"],
        sha256=columns.get("sha256"),
        pdq=columns.get("pdq"),
        num_pixels=columns.get("num_pixels"),
        posts=posts,
        post_ids=post_ids,
        authors=columns.get("author"),
    )


def read_rows(
    datasets: Sequence[Dataset], shards: Sequence[Shard], columns: Sequence[str], *, num_workers: int
) -> Iterator[pa.Table]:
    """Columns of every sample, a table a shard, in the order of `shards`, which `read_samples` found."""

    def read(shard: Shard) -> pa.Table:
        dataset = datasets[shard.dataset]
        index = _index(dataset, shard.name, columns, keep=False)
        if index_metadata(index)["tar_sha256"] != shard.sha256:
            raise UserError(f"{dataset.storage.url}/{shard.name}: was changed meanwhile", "curate again")
        return index.select(columns)

    yield from map_in_order(read, shards, num_workers)


def map_in_order(work: Callable[[Task], T], tasks: Iterable[Task], num_workers: int) -> Iterator[T]:
    """What `work` gives for each task, in their order, done by threads that run ahead by a few tasks and no more."""
    waiting: deque[Future[T]] = deque()
    with ThreadPoolExecutor(num_workers) as pool:
        try:
            for task in tasks:
                waiting.append(pool.submit(work, task))
                if len(waiting) > 2 * num_workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _index(dataset: Dataset, name: str, columns: Sequence[str], *, keep: bool) -> pa.Table:
    is_foreign = dataset.sha256 is None
    try:
        # Of tars made elsewhere none is made here: it would be to read them all, and twice.
        index = read_index(dataset.storage, name, keep=keep, build=not is_foreign, columns=columns)
    except FileNotFoundError:
        remedy = "check the pattern" if is_foreign else "restore it, or run `xmodal label` again"
        raise UserError(f"{dataset.storage.url}/{name}: this shard of the dataset is not there", remedy) from None
    if dataset.sha256 is not None and index_metadata(index)["tar_sha256"] != dataset.sha256[name]:
        raise UserError(
            f"{dataset.storage.url}/{name}: not the shard that dataset.json was written for",
            f"remove {index_name(name)}, which may be another tar's, and run `xmodal label` again",
        )
    return index


def _columns(index: pa.Table, wanted: Sequence[str], needs: Mapping[str, Sequence[str]], url: str) -> dict[str, Any]:
    """The columns of one shard, as `_Blocks` takes them. Raises UserError for a field that is missing or malformed."""
    try:
        _require(index, {"soft_label": ["every view"], **needs}, url)
        soft_labels = _soft_labels(index["soft_label"])
        columns: dict[str, Any] = {
            "key": _texts(index["key"]),
            "crc32": index["image_crc32"].to_numpy(),
            "soft_label": soft_labels.astype(np.float32),
            "class": soft_labels.argmax(axis=1).astype(np.uint8),
            "confidence": soft_labels.max(axis=1),
        }
        columns |= {name: _hashes(index[name]) for name in _HASHES if name in wanted}
        if "width" in wanted:
            columns["num_pixels"] = np.multiply(
                *(index[name].to_numpy().astype(np.int64) for name in ("width", "height"))
            )
        columns |= {name: _known_texts(index, name) for name in ("post_id", "author") if name in wanted}
    except (ValueError, TypeError, pa.ArrowException) as error:
        raise UserError(
            f"{url}: a field is not as `xmodal label` writes it: {error}", "mend the JSON of these samples"
        ) from error
    return columns


def _require(index: pa.Table, needs: Mapping[str, Sequence[str]], url: str) -> None:
    """Raise UserError for a sample without one of the fields."""
    missing = [name for name in _REMEDIES if name in needs and _is_missing(index, name)]
    if missing:
        fields = "; ".join(f"{name}, needed for {', '.join(needs[name])}" for name in missing)
        remedy = _REMEDIES[missing[0]]
        if needs[missing[0]] == ["forgotten posts"]:
            remedy = "leave out this dataset: which of its samples are of posts to forget cannot be told"
        raise UserError(f"{url}: samples without {fields}", remedy)


def _is_missing(index: pa.Table, name: str) -> bool:
    if name not in index.column_names or index[name].null_count:
        return True
    # What `xmodal label` writes that was told to hash nothing.
    return name in _HASHES and pc.any(pc.equal(index[name], "")).as_py() is True


def _texts(column: pa.ChunkedArray | pa.Array) -> pa.LargeStringArray:
    column = column.cast(pa.large_string())
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _known_texts(index: pa.Table, name: str) -> pa.LargeStringArray:
    """A column of texts, empty where a sample has none."""
    known = index[name] if name in index.column_names else pa.nulls(index.num_rows, pa.string())
    return pc.fill_null(_texts(known), "")


def _soft_labels(column: pa.ChunkedArray) -> np.ndarray:
    """float64 `(n, classes)`."""
    lengths = pc.list_value_length(column).to_numpy()
    values = pc.list_flatten(column).cast(pa.float64()).to_numpy()
    if (lengths != len(CLASSES)).any() or not np.isfinite(values).all():
        raise ValueError(f"soft_label: not {len(CLASSES)} finite numbers")
    labels = values.reshape(-1, len(CLASSES))
    if (labels < 0).any() or (np.abs(labels.sum(axis=1) - 1) > _LARGEST_ERROR_OF_SUM).any():
        raise ValueError("soft_label: not probabilities, which are positive and add up to 1")
    return labels


def _hashes(column: pa.ChunkedArray) -> np.ndarray:
    """32 bytes in hex each → uint8 `(n, 32)`. Never a Python object a sample: there are many millions."""
    if (pc.binary_length(column).to_numpy() != 64).any():
        raise ValueError("a hash that has not 64 hex digits")
    texts = _texts(column)
    start = 64 * texts.offset
    characters = memoryview(texts.buffers()[2])[start : start + 64 * len(texts)] if len(texts) else b""
    return np.frombuffer(binascii.unhexlify(characters), dtype=np.uint8).reshape(-1, 32)


class _Blocks:
    """Columns put together from those of many shards, a million rows at a time.

    Thousands of small arrays would leave the memory that they are freed from too cut up to be of use for large ones.
    """

    def __init__(self) -> None:
        self._blocks: list[dict[str, Any]] = []
        self._small: list[dict[str, Any]] = []
        self._num_rows = 0

    def add(self, columns: dict[str, Any], num_rows: int) -> None:
        """Add the columns of a shard: numpy or Arrow arrays."""
        self._small.append(columns)
        self._num_rows += num_rows
        if self._num_rows >= _ROWS_PER_BLOCK:
            self._blocks.append(_together(self._small))
            self._small, self._num_rows = [], 0

    def whole(self) -> dict[str, Any]:
        """All columns; what was added is let go of."""
        if self._small:
            self._blocks.append(_together(self._small))
        return _together(self._blocks)


def _together(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """The same columns of all parts, each as one array. Column after column is taken out of the parts."""
    columns = {}
    for name in list(parts[0]):
        pieces = [part.pop(name) for part in parts]
        columns[name] = pa.concat_arrays(pieces) if isinstance(pieces[0], pa.Array) else np.concatenate(pieces)
    return columns

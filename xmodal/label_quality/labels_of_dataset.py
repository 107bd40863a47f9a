"""The soft labels of a finished dataset, as its indexes have them."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shards.dataset import read_dataset
from shards.errors import UserError
from shards.index import read_index
from shards.storage import open_storage
from xmodal.labels import CLASSES

_REMEDY = "give a dataset that `xmodal label` made"


def read_labels(dataset: str, names: Sequence[str]) -> pa.Table:
    """One row a sample, sorted by key: the columns `names`, which are text, and `soft_label`.

    Raises UserError for a dataset that is not finished, has no samples, or has some without these fields.
    """
    storage = open_storage(dataset)
    columns = list(dict.fromkeys(["key", *names, "soft_label"]))
    tables = []
    for shard in read_dataset(storage)["shards"]:
        if not shard["samples"]:
            continue
        try:
            index = read_index(storage, shard["name"], keep=False)
        except FileNotFoundError:
            raise UserError(f"{dataset}/{shard['name']}: this shard of the dataset is not there", _REMEDY) from None
        missing = [name for name in columns if name not in index.column_names or index[name].null_count]
        if missing:
            raise UserError(f"{dataset}/{shard['name']}: samples without {', '.join(missing)}", _REMEDY)
        tables.append(index.select(columns).replace_schema_metadata(None))
    if not tables:
        raise UserError(f"{dataset}: no samples", "label some posts first")
    table = pa.concat_tables(tables, promote_options="permissive")
    if pc.any(pc.not_equal(pc.list_value_length(table["soft_label"]), len(CLASSES))).as_py():
        raise UserError(f"{dataset}: soft labels of other than {len(CLASSES)} classes", _REMEDY)
    return table.sort_by("key")


def soft_labels_of(table: pa.Table) -> np.ndarray:
    """Its soft labels, float64 `(n, 3)`."""
    return pc.list_flatten(table["soft_label"]).to_numpy().astype(np.float64).reshape(-1, len(CLASSES))


def first_of_each(names: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct names, sorted, and the place of the first row that has each."""
    return np.unique(np.array(names.to_pylist(), dtype=str), return_index=True)


def teacher_of(dataset: str) -> str:
    """The name of its teacher, with the revision, as far as they are recorded."""
    teacher = read_dataset(open_storage(dataset)).get("teacher")
    recorded = (
        [teacher[field] for field in ("name", "revision") if field in teacher] if isinstance(teacher, dict) else []
    )
    return " ".join(map(str, recorded)) or "a teacher that is not recorded"

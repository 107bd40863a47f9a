"""Which step of a view's making dropped which sample, so that two views can be told apart.

Kept beside the view as Parquet: the hash of the sample's key, which names nobody, and the number of the step, its place
in the funnel of `view.json`. A key may be there several times, as of copies in several datasets.
"""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from shards.errors import UserError
from shards.view import View, read_beside
from xmodal.curation.name_hashes import name_hashes

_SCHEMA = pa.schema([("key_hash", pa.uint64()), ("step", pa.uint8())])


class DroppedKeys:
    """Collects what was dropped, shard after shard."""

    def __init__(self) -> None:
        self._hashes = [np.empty(0, dtype=np.uint64)]
        self._steps = [np.empty(0, dtype=np.uint8)]

    def add(self, keys: pa.ChunkedArray, dropped_by: np.ndarray) -> None:
        """Add a shard's samples: the number of the step that dropped each, 0 for those that were not."""
        is_dropped = dropped_by > 0
        if is_dropped.any():
            self._hashes.append(key_hashes(keys.filter(is_dropped)))
            self._steps.append(dropped_by[is_dropped])

    def parquet(self) -> bytes:
        """All of them, in the order of (hash, step)."""
        hashes, steps = np.concatenate(self._hashes), np.concatenate(self._steps)
        order = np.lexsort((steps, hashes))
        sink = io.BytesIO()
        pq.write_table(pa.table([hashes[order], steps[order]], schema=_SCHEMA), sink, compression="zstd")
        return sink.getvalue()


def key_hashes(keys: pa.ChunkedArray) -> np.ndarray:
    """uint64 `(n,)`."""
    return name_hashes("sample", keys.to_pylist())


def last_steps(view: View, keys: pa.ChunkedArray) -> np.ndarray:
    """Of each key the number of the last step that dropped a sample of it: int64 `(n,)`, 0 where none did.

    The last, because the copy that came furthest is the one that might be in the view. Raises UserError where the view
    does not say.
    """
    try:
        table = pq.read_table(io.BytesIO(read_beside(view, "dropped"))).cast(_SCHEMA)
    except (ValueError, OSError, pa.ArrowException) as error:
        raise UserError(f"{view.url}: {view.description['dropped']}: {error}", "run `xmodal curate` again") from error
    hashes, steps = table["key_hash"].to_numpy(), table["step"].to_numpy()
    wanted = key_hashes(keys)
    # Rows of one hash are in the order of their steps.
    last = np.searchsorted(hashes, wanted, side="right") - 1
    found = (last >= 0) & (hashes[last] == wanted) if len(hashes) else np.zeros(len(wanted), dtype=bool)
    return np.where(found, steps[last] if len(steps) else 0, 0).astype(np.int64)

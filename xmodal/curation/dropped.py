"""Which step of a view's making dropped which sample, so that two views can be told apart.

Kept beside the view as Parquet: a hash of the sample's key and picture, which names nobody, and the number of the step,
its place in the funnel of `view.json`. It may be there several times, as of copies in several datasets.
"""

import io

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from shards.errors import UserError
from shards.view import View, read_beside
from xmodal.curation.name_hashes import name_hashes

_SCHEMA = pa.schema([("sample_hash", pa.uint64()), ("step", pa.uint8())])


def sample_names(keys: pa.ChunkedArray, crc32: pa.ChunkedArray) -> pa.ChunkedArray:
    """What a sample is known by in whatever view: its key and its picture. Keys alone may be those of two datasets."""
    parts = [keys.cast(pa.large_string()), crc32.cast(pa.large_string())]
    return pc.binary_join_element_wise(*parts, pa.scalar(" ", pa.large_string()))


class DroppedSamples:
    """Collects what was dropped, shard after shard."""

    def __init__(self) -> None:
        self._hashes = [np.empty(0, dtype=np.uint64)]
        self._steps = [np.empty(0, dtype=np.uint8)]

    def add(self, samples: pa.ChunkedArray, dropped_by: np.ndarray) -> None:
        """Add a shard's samples (their `sample_names`) and the number of the step that dropped each, or 0."""
        is_dropped = dropped_by > 0
        if is_dropped.any():
            self._hashes.append(_hashes(samples.filter(is_dropped)))
            self._steps.append(dropped_by[is_dropped])

    def parquet(self) -> bytes:
        """All of them, in the order of (hash, step)."""
        hashes, steps = np.concatenate(self._hashes), np.concatenate(self._steps)
        order = np.lexsort((steps, hashes))
        sink = io.BytesIO()
        pq.write_table(pa.table([hashes[order], steps[order]], schema=_SCHEMA), sink, compression="zstd")
        return sink.getvalue()


def _hashes(samples: pa.ChunkedArray) -> np.ndarray:
    """uint64 `(n,)`."""
    return name_hashes("sample", samples.to_pylist())


def last_steps(view: View, samples: pa.ChunkedArray) -> np.ndarray:
    """For each of `sample_names` the number of the last step that dropped such a one: int64 `(n,)`, 0 where none did.

    The last, because the copy that came furthest is the one that might be in the view. Raises UserError where the view
    does not say.
    """
    try:
        table = pq.read_table(io.BytesIO(read_beside(view, "dropped"))).cast(_SCHEMA)
    except (ValueError, OSError, pa.ArrowException) as error:
        raise UserError(f"{view.url}: {view.description['dropped']}: {error}", "run `xmodal curate` again") from error
    hashes, steps = table["sample_hash"].to_numpy(), table["step"].to_numpy()
    wanted = _hashes(samples)
    # Rows of one hash are in the order of their steps.
    last = np.searchsorted(hashes, wanted, side="right") - 1
    found = (last >= 0) & (hashes[last] == wanted) if len(hashes) else np.zeros(len(wanted), dtype=bool)
    return np.where(found, steps[last] if len(steps) else 0, 0).astype(np.int64)

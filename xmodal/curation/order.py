"""One order of all samples that depends on what they are, and on no file that they came from."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def ranks(keys: pa.LargeStringArray, soft_labels: np.ndarray, contents: Sequence[np.ndarray]) -> np.ndarray:
    """Each sample's place in the order of (key, soft label, contents): int64 `(n,)`.

    `contents` are columns of numbers, one a sample, the first deciding first: all else in which two samples of one key
    may differ. Samples that are equal in all have places in the order in which they are given: they differ only in
    where they lie.
    """
    order = pc.sort_indices(keys).to_numpy().astype(np.int64)
    ordered = keys.take(pa.array(order))
    is_equal = np.zeros(len(keys), dtype=bool)  # to the one before
    is_equal[1:] = pc.equal(ordered[1:], ordered[:-1]).to_numpy(zero_copy_only=False)
    tied = is_equal.copy()
    tied[:-1] |= is_equal[1:]
    if tied.any():
        places = order[tied]
        run = np.cumsum(~is_equal)[tied]
        contents = [column[places] for column in contents]
        order[tied] = places[np.lexsort([places, *reversed(contents), *soft_labels[places].T, run])]
    ranks = np.empty(len(keys), dtype=np.int64)
    ranks[order] = np.arange(len(keys))
    return ranks

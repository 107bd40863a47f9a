"""What a frozen backbone makes of every picture, once: while it does not learn, the head needs nothing else.

As timm has it, a model's forward pass is its features, pooled (`forward_head` with `pre_logits`), then its classifier.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from timm.layers import Mlp

from shards.batches import Batch
from shards.errors import UserError
from shards.stream import EvalStream
from xmodal.students import classifiers
from xmodal.training.feature_store import FeatureStore, picture_ids
from xmodal.training.mistakes import by_first_at_length
from xmodal.training.pictures import Pictures

log = logging.getLogger(__name__)

_ROWS_AT_A_TIME = 1 << 16
"""That ranks exchange."""


@dataclass(frozen=True, kw_only=True)
class Features:
    """Those of all pictures of a split, the same on all ranks."""

    values: torch.Tensor
    """`(views, n, width)`, on the CPU, in the precision that is trained in; the second view is the mirror image."""
    known: torch.Tensor
    """bool `(n,)`: False for what could not be decoded."""

    def draw(self, rows: torch.Tensor) -> torch.Tensor:
        """Of some rows, `(len(rows), width)`: of a picture or its mirror image, by torch's own generator."""
        if len(self.values) == 1:
            return self.values[0, rows]
        return self.values[torch.randint(len(self.values), rows.shape), rows]


def require_linear_classifier(model: torch.nn.Module, name: str) -> None:
    """Raise UserError for a student whose classifier takes something else than `(n, width)`."""
    heads = classifiers(model)
    if len(heads) != 1 or not isinstance(heads[0], torch.nn.Linear | Mlp):
        raise UserError(
            f"keep_features: the classifier of {name} is not one linear layer, or the paper's two",
            "set keep_features=false, or choose another student.model",
        )


def features_of_splits(
    engine: Any, pictures: Pictures, *, flip: bool, goes_on: Callable[[], bool], store: FeatureStore | None
) -> dict[str, Features] | None:
    """`read_features` of train and of val, if it has samples, by the name of the split; all ranks must call it."""
    found = {}
    for split in ("train", "val"):
        if not pictures.num_samples(split):
            continue
        log.info("the frozen backbone looks at the pictures of %s", split)
        features = read_features(
            engine,
            partial(pictures.evaluated, split),
            picture_ids(pictures.view.split(split).rows),
            flip=flip,
            to_pixels=pictures.pixels,
            goes_on=goes_on,
            store=store,
        )
        if features is None:
            return None
        found[split] = features
    return found


def read_features(
    engine: Any,
    stream_of: Callable[[np.ndarray], EvalStream],
    ids: Sequence[bytes],
    *,
    flip: bool,
    to_pixels: Callable[[Batch], torch.Tensor],
    goes_on: Callable[[], bool],
    store: FeatureStore | None,
) -> Features | None:
    """Have the backbone look at each picture of a split, as in evaluation, over all ranks; all must call it.

    `stream_of` gives the pictures of some rows, int64, and `to_pixels` a batch as the student takes it; `flip`: at its
    mirror image, too. What the first rank finds in its `store`, by `ids`, nobody looks at, and what was looked at is
    added to it. `goes_on` is asked before each batch; where it says no, on all ranks alike, the rest is left and None
    returned. Raises UserError on all ranks for a store that is damaged or takes no more.
    """
    (head,) = classifiers(engine.module)
    width = head.fc1.in_features if isinstance(head, Mlp) else head.in_features
    dtype = next(engine.module.parameters()).dtype
    values = torch.zeros(2 if flip else 1, len(ids), cast(int, width), dtype=dtype)
    known = torch.zeros(len(ids), dtype=torch.bool)
    by_first_at_length(partial(_take_stored, store, ids, values, known))
    _add_those_of_others(known[:, None], engine.device)
    missing = (~known).nonzero()[:, 0]
    is_whole = True
    if len(missing):
        engine.eval()
        with torch.no_grad(), _backbone_alone(engine.module):
            for batch in stream_of(missing.numpy()):
                is_whole = goes_on()
                if not is_whole:
                    break
                pixels, rows = to_pixels(batch), batch.rows[batch.mask]
                # Each is taken off the device before the next: what the student made may be overwritten by it.
                for number, view in enumerate([pixels, pixels.flip(-1)] if flip else [pixels]):
                    values[number, rows] = engine(view).cpu()[batch.mask]
                known[rows] = True
    for one in [*values, known[:, None]]:
        _add_those_of_others(one, engine.device)
    by_first_at_length(partial(_keep, store, ids, values, missing[known[missing]]))
    return Features(values=values, known=known) if is_whole else None


def _take_stored(store: FeatureStore | None, ids: Sequence[bytes], values: torch.Tensor, known: torch.Tensor) -> None:
    """In place."""
    if not store:
        return
    places, stored = store.find(ids)
    if stored is not None:
        known[places] = True
        values[:, places] = stored


def _keep(store: FeatureStore | None, ids: Sequence[bytes], values: torch.Tensor, added: torch.Tensor) -> None:
    """Those of the rows `added`."""
    if store and len(added):
        store.add([ids[row] for row in added.tolist()], values[:, added])


def _add_those_of_others(rows: torch.Tensor, device: torch.device) -> None:
    """In place: each rank has rows `(n, width)` of its own, and zeros in all others; their sum is everything."""
    for start in range(0, len(rows), _ROWS_AT_A_TIME):
        part = rows[start : start + _ROWS_AT_A_TIME].to(device, torch.float32)
        dist.all_reduce(part)
        rows[start : start + _ROWS_AT_A_TIME] = part.to(rows.device, rows.dtype)


@contextmanager
def _backbone_alone(module: Any) -> Iterator[None]:
    """Within it, a student called with pixels gives features, `(n, width)`."""
    with _other_forward(module, lambda pixels: module.forward_head(module.forward_features(pixels), pre_logits=True)):
        yield


@contextmanager
def head_alone(module: torch.nn.Module) -> Iterator[None]:
    """Within it, a student called with features, `(n, width)`, gives logits."""
    (classifier,) = classifiers(module)
    with _other_forward(module, classifier.__call__):
        yield


@contextmanager
def _other_forward(module: Any, forward: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    # Not the parts by themselves: DeepSpeed's hooks are on the whole, and gather its weights under ZeRO 3. As an
    # attribute of the object, it hides the method of its class, and must be no submodule.
    module.forward = forward
    try:
        yield
    finally:
        del module.forward

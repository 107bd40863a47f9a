"""What a frozen backbone makes of every picture, once: while it does not learn, the head needs nothing else.

As timm has it, a model's forward pass is its features, pooled (`forward_head` with `pre_logits`), then its classifier.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from timm.layers import Mlp

from shards.batches import Batch
from shards.errors import UserError
from shards.stream import EvalStream
from xmodal.students import classifiers

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


def read_features(
    engine: Any,
    stream: EvalStream,
    *,
    flip: bool,
    to_pixels: Callable[[Batch], torch.Tensor],
    progress: Callable[[], None],
) -> Features:
    """Have the backbone look at each picture of a split, as in evaluation, over all ranks; all must call it.

    `flip`: at its mirror image, too. `to_pixels` gives a batch as the student takes it; `progress` is called for each.
    """
    values: torch.Tensor | None = None
    known = torch.zeros(stream.num_samples, dtype=torch.bool)
    engine.eval()
    with torch.no_grad(), _backbone_alone(engine.module):
        for batch in stream:
            progress()
            pixels = to_pixels(batch)
            # Each is taken off the device before the next: what the student made may be overwritten by it.
            views = [engine(view).cpu() for view in ([pixels, pixels.flip(-1)] if flip else [pixels])]
            if values is None:
                values = torch.zeros(len(views), stream.num_samples, views[0].shape[1], dtype=views[0].dtype)
            rows = batch.rows[batch.mask]
            known[rows] = True
            for number, view in enumerate(views):
                values[number, rows] = view[batch.mask]
    assert values is not None, "a split that is not empty has a batch on each rank"
    _add_those_of_others(values, known, engine.device)
    return Features(values=values, known=known)


def _add_those_of_others(values: torch.Tensor, known: torch.Tensor, device: torch.device) -> None:
    """Each rank has its own rows, and zeros in all others: their sum is everything."""
    for view in [*values, known[:, None]]:
        for start in range(0, len(view), _ROWS_AT_A_TIME):
            part = view[start : start + _ROWS_AT_A_TIME].to(device, torch.float32)
            dist.all_reduce(part)
            view[start : start + _ROWS_AT_A_TIME] = part.to(view.device, view.dtype)


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

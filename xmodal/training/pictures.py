"""The pictures of a view as a run's student takes them: split by split in evaluation, and as tensors on the device."""

import numpy as np
import torch

from shards.batches import Batch, Normaliser
from shards.stream import EvalStream, StreamConfig
from shards.view import View
from xmodal.students import InputSpec
from xmodal.training.ranks import Ranks


def memory_format(model: torch.nn.Module, *, is_on_gpu: bool) -> torch.memory_format:
    """How a student's pixels lie in memory; the layers that follow give it on to each other.

    With the channels last for a student that convolves on a GPU: its 16-bit convolutions compute so, and would else
    turn every layer's pictures there and back. The weights stay as they are, since ZeRO lays them out anew; a layer
    turns its own, which are small beside pictures. Not for a ViT, whose one convolution cuts the patches. On a
    processor, a ViT then takes an eighth longer, EfficientNet-Lite a tenth, and a ResNet or ConvNeXt about the same.
    """
    num_convolutions = sum(parameter.ndim == 4 for parameter in model.parameters())
    return torch.channels_last if is_on_gpu and num_convolutions > 1 else torch.contiguous_format


class Pictures:
    """What training, validation and the features of a run have in common in how they look at pictures."""

    def __init__(
        self,
        view: View,
        spec: InputSpec,
        stream: StreamConfig,
        *,
        batch_size: int,
        ranks: Ranks,
        device: torch.device,
        dtype: torch.dtype,
        memory_format: torch.memory_format,
    ) -> None:
        """`batch_size` is that of a rank in evaluation, `dtype` the precision that is trained in."""
        self.view, self.ranks, self.device, self.dtype = view, ranks, device, dtype
        self._memory_format = memory_format
        self._spec, self._stream, self._batch_size = spec, stream, batch_size
        self._normalise = Normaliser(spec.mean, spec.std)

    def num_samples(self, split: str) -> int:
        """Of the whole view, not of this rank."""
        return int(self.view.description["counts"]["splits"][split])

    def evaluated(self, split: str, rows: np.ndarray | None = None) -> EvalStream:
        """This rank's part of a pass over a split, or over some `rows` of it, int64 and ascending."""
        return EvalStream(
            self.view,
            split=split,
            config=self._stream,
            size=self._spec.size,
            crop_share=self._spec.crop_share,
            squash=self._spec.squash,
            interpolation=self._spec.interpolation,
            batch_size=self._batch_size,
            rank=self.ranks.rank,
            world_size=self.ranks.world_size,
            rows=rows,
        )

    def pixels(self, batch: Batch) -> torch.Tensor:
        """`(batch, 3, size, size)`, normalised, on the device; the next call may overwrite what it returned."""
        pixels = batch.pixels.to(self.device, non_blocking=True)
        return self._normalise(pixels).to(self.dtype, memory_format=self._memory_format)

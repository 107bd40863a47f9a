"""The peers of `loader.py`, each set up as its own documentation and users do. Runs in their environment only.

    python benchmarks/loader_peers.py webdataset measure '{"folder": ...}'

The task `prepare`, before the others, writes the pictures as MDS for the contender that wants them so.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import loader_process
import torch
from loader_process import MEAN, SIDE, STD, Contender, Plan
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset
from torchvision import transforms


def main() -> None:
    """Do what the arguments say."""
    name, task, plan = sys.argv[1], sys.argv[2], Plan(**json.loads(sys.argv[3]))
    if task == "prepare":
        if name == "mosaicml-streaming":
            write_mds(plan)
        return
    contenders: dict[str, Contender] = {"webdataset": WebDataset(), "mosaicml-streaming": MosaicStreaming()}
    loader_process.run(contenders, name, task, plan)


def augmentation() -> transforms.Compose:
    """The usual one of training on pictures: what our `AugmentConfig` is set to in `loader.py`."""
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(
                SIDE, scale=(0.08, 1), ratio=(3 / 4, 4 / 3), interpolation=transforms.InterpolationMode.BICUBIC
            ),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )


class WebDataset:
    """As timm and open_clip train with it: shards shuffled, encoded samples in a buffer, then decoded and varied.

    The `DataLoader` makes the batches, as timm has it: `.batched` in the pipeline is slower by a tenth here.
    """

    def batches(self, plan: Plan) -> Iterator[torch.Tensor]:
        """One epoch."""
        import webdataset

        dataset = (
            webdataset.WebDataset(plan.tars(), shardshuffle=100)
            .shuffle(1000)
            .decode("pilrgb")
            .to_tuple("jpg", "json")
            .map_tuple(augmentation(), lambda fields: torch.tensor(fields["soft_label"]))
        )
        return pixel_batches(dataset, plan)

    def pictures(self, plan: Plan) -> Iterator[bytes]:
        """One epoch."""
        return (picture for picture, _ in samples(plan.tars()))


class MosaicStreaming:
    """A map from the columns of a `StreamingDataset` to tensors, shuffled as it does by itself."""

    def batches(self, plan: Plan) -> Iterator[torch.Tensor]:
        """One epoch."""
        from streaming import StreamingDataset

        transform = augmentation()

        class Pictures(StreamingDataset):
            def __getitem__(self, at: Any) -> Any:
                sample = super().__getitem__(at)
                return transform(sample["image"]), sample["soft_label"]

        dataset = Pictures(local=mds_folder(plan), shuffle=True, shuffle_seed=plan.seed, batch_size=plan.batch_size)
        return pixel_batches(dataset, plan)

    def pictures(self, plan: Plan) -> Iterator[bytes]:
        """One epoch."""
        from streaming import StreamingDataset

        dataset = StreamingDataset(local=mds_folder(plan), shuffle=False, batch_size=plan.batch_size)
        for number in range(len(dataset)):
            yield dataset[number]["image"].fp.getvalue()


def pixel_batches(dataset: IterableDataset, plan: Plan) -> Iterator[torch.Tensor]:
    """What a torch loader makes of samples of pixels and labels."""
    loader = DataLoader(
        dataset,
        batch_size=plan.batch_size,
        num_workers=plan.num_workers,
        prefetch_factor=plan.prefetch_factor,
        drop_last=True,
    )
    return (pixels for pixels, _ in loader)


def mds_folder(plan: Plan) -> str:
    """Where the pictures lie as MDS."""
    return str(Path(plan.folder, "mds"))


def write_mds(plan: Plan) -> None:
    """The samples of the tars as MDS, the pictures byte for byte."""
    import numpy as np
    from streaming import MDSWriter

    columns = {"image": "jpeg", "soft_label": "ndarray:float32:3"}
    file = Path(plan.folder, "one.jpg")
    with MDSWriter(out=mds_folder(plan), columns=columns) as writer:
        for picture, fields in samples(plan.tars()):
            file.write_bytes(picture)  # only a picture that has a file is kept as it is
            with Image.open(file) as image:
                label = np.array(fields["soft_label"], dtype=np.float32)
                writer.write({"image": image, "soft_label": label})
    file.unlink()


def samples(tars: list[str]) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """The encoded picture and the fields of each sample."""
    import webdataset

    for sample in webdataset.WebDataset(tars, shardshuffle=False):
        yield sample["jpg"], json.loads(sample["json"])


if __name__ == "__main__":
    main()

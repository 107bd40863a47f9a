"""Features that stay for other runs: of another recipe, or of a view that shares pictures with this one."""

import hashlib
from collections.abc import Sequence

import pyarrow as pa
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file

from shards.errors import UserError
from shards.storage import Storage, open_storage, told_to_user
from xmodal.students import InputSpec, classifiers


def backbone_fingerprint(model: torch.nn.Module, spec: InputSpec) -> str:
    """A hash of all that decides a frozen backbone's features, but their precision: layers, weights, and input."""
    hashing = hashlib.sha256(f"{spec} {model}".encode())
    of_head = {id(parameter) for head in classifiers(model) for parameter in head.parameters()}
    for name, tensor in sorted({**dict(model.named_parameters()), **dict(model.named_buffers())}.items()):
        if id(tensor) not in of_head:
            hashing.update(name.encode())
            hashing.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return hashing.hexdigest()


def picture_ids(rows: pa.Table) -> list[bytes]:
    """What a view's samples are known by in a store: their keys and what their pictures' bytes sum up to, hashed."""
    columns = (rows[name].to_pylist() for name in ("key", "image_length", "image_crc32"))
    return [hashlib.sha256(repr(row).encode()).digest() for row in zip(*columns, strict=True)]


class FeatureStore:
    """A file of features in a folder, by the ids of their pictures. Of two runs that add at once, one adds nothing."""

    def __init__(self, storage: Storage, name: str) -> None:
        """`name` tells apart what is not the same: the backbone, the precision, the views of a picture."""
        self._storage, self._name = storage, f"{name}.safetensors"

    def find(self, ids: Sequence[bytes]) -> tuple[list[int], torch.Tensor | None]:
        """Places in `ids` of those that are there, and their features, `(views, len(places), width)`.

        None where there is no file as yet. Raises UserError for a file that is damaged.
        """
        stored = self._read()
        if stored is None:
            return [], None
        place_of = {row.tobytes(): place for place, row in enumerate(stored["ids"].numpy())}
        places = [place for place, one in enumerate(ids) if one in place_of]
        return places, stored["values"][:, [place_of[ids[place]] for place in places]]

    def add(self, ids: Sequence[bytes], values: torch.Tensor) -> None:
        """Keep features `(views, len(ids), width)` of pictures that are not there yet.

        Raises UserError for a file that is damaged, and for a storage that takes no more.
        """
        tensors = {"ids": torch.frombuffer(bytearray(b"".join(ids)), dtype=torch.uint8).view(-1, 32), "values": values}
        stored = self._read()
        if stored is not None:
            tensors = {name: torch.cat([stored[name], tensors[name]], dim=-2) for name in tensors}
        # By way of a file: S3 takes no more than 5 GB in one piece.
        temporary = self._storage.new_temporary(self._name)
        try:
            with told_to_user(self._storage.url, every=(OSError, SafetensorError)):
                save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)
                self._storage.put_file(self._name, temporary)
        finally:
            self._storage.discard(temporary)

    def _read(self) -> dict[str, torch.Tensor] | None:
        if not self._storage.exists(self._name):
            return None
        try:
            return load(self._storage.read(self._name))
        except SafetensorError as error:
            raise UserError(f"{self._storage.url}/{self._name}: is damaged: {error}", "delete it") from error


def open_feature_store(folder: str, fingerprint: str, dtype: torch.dtype, *, flip: bool) -> FeatureStore:
    """That of a backbone, by its fingerprint, in a folder that is made if it is not there.

    Features are in the precision `dtype`; `flip`: of the mirror images, too.
    """
    name = f"{fingerprint[:32]}-{str(dtype).removeprefix('torch.')}{'-flipped' if flip else ''}"
    return FeatureStore(open_storage(folder, create=True), name)

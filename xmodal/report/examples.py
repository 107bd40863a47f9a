"""Which pictures a report shows, and how they are put into the page."""

import base64
import io
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image
from scipy.stats import rankdata

from shards.decode import UndecodableImageError, decode_rgb
from shards.errors import UserError
from shards.view import View
from xmodal.labels import CLASSES, NEGATIVE, POSITIVE
from xmodal.report.inputs import Predictions

MAX_SIDE = 96


@dataclass(frozen=True, kw_only=True)
class Example:
    """A picture with the probabilities of its classes."""

    name: str
    """The sample's key, or the benchmark picture's path."""
    picture: str | None
    """As a data URI; None if it cannot be decoded."""
    probabilities: tuple[float, ...]
    human: float | None
    """What people judged, on the benchmark's own scale; None for a sample of the crowd."""


@dataclass(frozen=True, kw_only=True)
class ExampleGroup:
    """Examples that belong together."""

    title: str
    examples: list[Example]


def train_examples(view: View, num_per_class: int) -> list[ExampleGroup]:
    """The most confident samples of each class in the view's train split, at most one of a post.

    Raises UserError for a missing shard.
    """
    rows = view.table.filter(pc.equal(view.table["split"], "train"))
    targets = pc.list_flatten(rows["target"]).to_numpy().reshape(-1, len(CLASSES))
    groups = []
    for number, name in enumerate(CLASSES):
        examples = []
        places = first_of_each_post((rows["key"][place].as_py(), place) for place in by_confidence(targets, number))
        chosen = pa.array(islice(places, num_per_class), pa.int64())  # of none, pyarrow would not know the type
        for row in rows.take(chosen).to_pylist():
            storage = view.datasets[row["dataset"]]
            try:
                content = storage.read_range(row["shard"], row["image_offset"], row["image_length"])
            except OSError as error:
                raise UserError(
                    f"{storage.url}/{row['shard']}: {error.strerror or error}",
                    "put the dataset back where the view was made from it, or run `xmodal curate` again",
                ) from error
            examples.append(
                Example(name=row["key"], picture=thumbnail_uri(content), probabilities=tuple(row["target"]), human=None)
            )
        groups.append(ExampleGroup(title=name, examples=examples))
    return groups


def benchmark_examples(predictions: Predictions, images: str, num_each: int) -> list[ExampleGroup]:
    """Where the student is surest of each side, and where it and people differ most.

    Raises UserError for a picture that is not in the folder `images`.
    """
    polarity = predictions.probabilities[:, POSITIVE] - predictions.probabilities[:, NEGATIVE]
    chosen = {
        "most positive": np.argsort(-polarity, kind="stable")[:num_each],
        "most negative": np.argsort(polarity, kind="stable")[:num_each],
        "largest disagreements with people": largest_disagreements(polarity, predictions.human, num_each),
    }
    return [
        ExampleGroup(title=title, examples=[_benchmark_example(predictions, images, place) for place in places])
        for title, places in chosen.items()
    ]


def by_confidence(soft_labels: np.ndarray, class_number: int) -> list[int]:
    """Places of the samples of a class, by falling confidence; equals stay in their order.

    `soft_labels` is `(n, 3)`; a sample's class is its most probable one.
    """
    places = np.flatnonzero(soft_labels.argmax(axis=1) == class_number) if len(soft_labels) else np.arange(0)
    return places[np.argsort(-soft_labels[places, class_number], kind="stable")].tolist()


def first_of_each_post(samples: Iterable[tuple[str, int]]) -> Iterator[int]:
    """The places of (key, place) pairs, without further pictures of posts that came before; read as far as needed."""
    seen = set()
    for key, place in samples:
        post_id = key.rpartition("-")[0] or key
        if post_id not in seen:
            seen.add(post_id)
            yield place


def largest_disagreements(polarity: np.ndarray, human: np.ndarray, most: int) -> np.ndarray:
    """Places where the ranks of the two differ most, the largest difference first.

    By ranks and not by values, since each benchmark has a scale of its own.
    """
    return np.argsort(-np.abs(rankdata(polarity) - rankdata(human)), kind="stable")[:most]


def thumbnail_uri(content: bytes) -> str | None:
    """A picture with at most MAX_SIDE pixels a side as a data URI, JPEG or PNG; None if it cannot be decoded."""
    try:
        image = decode_rgb(content, min_side=MAX_SIDE)
    except UndecodableImageError:
        return None
    image.thumbnail((MAX_SIDE, MAX_SIDE))
    # Drawings are smaller and cleaner as PNG, photos smaller as JPEG.
    jpeg, png = _encoded(image, "JPEG", quality=85), _encoded(image, "PNG", optimize=True)
    kind, smaller = ("png", png) if len(png) <= len(jpeg) else ("jpeg", jpeg)
    return f"data:image/{kind};base64,{base64.b64encode(smaller).decode()}"


def _encoded(image: Image.Image, kind: str, **options: int) -> bytes:
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def _benchmark_example(predictions: Predictions, images: str, place: int) -> Example:
    path = Path(images, predictions.paths[place])
    # The page is made to be shown to others: no file from elsewhere on this machine may come into it.
    if not Path(os.path.abspath(path)).is_relative_to(os.path.abspath(images)):
        raise UserError(
            f"{predictions.paths[place]}: lies outside of {images}",
            "give as `images` the folder that the predictions' paths start in",
        )
    try:
        content = path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        raise UserError(
            f"{path}: {getattr(error, 'strerror', None) or error}",
            "give as `images` the folder that the predictions' paths start in",
        ) from error
    return Example(
        name=predictions.paths[place],
        picture=thumbnail_uri(content),
        probabilities=tuple(predictions.probabilities[place].tolist()),
        human=float(predictions.human[place]),
    )

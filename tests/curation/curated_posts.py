"""Two datasets that curation makes a view of, and what is asked of it."""

from pathlib import Path

from curation_pictures import NEGATIVE, NEUTRAL, POSITIVE, photo_bytes, post_samples

from shards.view import open_view
from shards.writer import Sample
from xmodal.curation.config import ConfidenceConfig, CurateConfig, SplitConfig

UNSURE = (0.35, 0.3, 0.35)


def first_posts() -> list[list[Sample]]:
    """Two shards: three posts with a picture each, one with two, one of them in the benchmark."""
    return [
        [
            *post_samples("a1", POSITIVE, photo_bytes(1)),
            *post_samples("a2", NEGATIVE, photo_bytes(2), photo_bytes(3)),
        ],
        [
            *post_samples("a3", NEUTRAL, photo_bytes(4)),
            # The first is in the benchmark, as another encoding; the second is not.
            *post_samples("a4", POSITIVE, photo_bytes(5), photo_bytes(6)),
        ],
    ]


def second_posts() -> list[list[Sample]]:
    """One shard: an exact copy, a larger near copy, an unsure post, and a post of its own."""
    return [
        [
            *post_samples("b1", POSITIVE, photo_bytes(1)),
            *post_samples("b2", NEGATIVE, photo_bytes(2, width=480, height=360)),
            *post_samples("b3", UNSURE, photo_bytes(7)),
            *post_samples("b4", POSITIVE, photo_bytes(8)),
        ]
    ]


def config_of(folder: Path, view: Path, **settings) -> CurateConfig:
    return CurateConfig(
        **{
            "datasets": [str(folder / "one"), str(folder / "two")],
            "view": str(view),
            "benchmarks": [str(folder / "bench" / "benchmark.yaml")],
            "confidence": ConfidenceConfig(negative=0.5, neutral=0.5, positive=0.5),
            "split": SplitConfig(train=0.5, val=0.25, test=0.25),
            **settings,
        }
    )


def split_of_keys(view: Path) -> dict[str, str]:
    table = open_view(str(view)).table
    return dict(zip(table["key"].to_pylist(), table["split"].to_pylist(), strict=True))


def files_of(view: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in view.iterdir()}

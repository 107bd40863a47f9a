"""The view is a function of the posts: however they lie in shards and datasets, and whatever else comes to them."""

import tempfile
from pathlib import Path

import numpy as np
from curation_samples import flipped, random_hash
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.dataset import finish
from shards.storage import LocalStorage
from shards.view import open_view
from shards.writer import Sample, write_shard
from xmodal.curation.config import ConfidenceConfig, CurateConfig, SplitConfig
from xmodal.curation.curate import curate

View = dict[str, tuple[str, tuple[float, ...]]]
"""Key → split and target."""


@st.composite
def posts(draw: st.DrawFn) -> list[Sample]:
    """Samples of a dozen posts with pictures of a few families: equal ones, near ones, and of other sizes."""
    samples = []
    for post in range(draw(st.integers(1, 12))):
        label = np.array(draw(st.tuples(*[st.integers(1, 9)] * 3)), dtype=np.float64)
        for number in range(draw(st.integers(1, 3))):
            family, num_bits = draw(st.integers(0, 8)), draw(st.sampled_from([0, 0, 15, 31, 40, 60]))
            # Equal bytes have equal hashes and sizes; near pictures may have any size.
            content = f"{family} {num_bits} {draw(st.integers(0, 1))}"
            side = 100 * (1 + int(random_hash(content), 16) % 3)
            fields = {
                "soft_label": (label / label.sum()).tolist(),
                "post_id": f"p{post}",
                "sha256": random_hash(content),
                "pdq": flipped(random_hash(f"family {family}"), num_bits),
                "width": side,
                "height": side,
            }
            samples.append(Sample(key=f"p{post}-{number}", image=b"bytes", image_extension="jpg", fields=fields))
    return samples


recipes = st.builds(
    dict,
    exact_duplicates=st.booleans(),
    near_duplicates=st.booleans(),
    confidence=st.sampled_from([ConfidenceConfig(), ConfidenceConfig(negative=0.5, neutral=0.4, positive=0.45)]),
    balance=st.sampled_from(["none", "undersample"]),
    split=st.builds(SplitConfig, train=st.just(1), val=st.just(1), test=st.just(1), drop_leaks=st.booleans()),
    seed=st.integers(0, 3),
)


def write(folder: Path, samples: list[Sample], generator: np.random.Generator) -> str:
    """A dataset of the samples in shards of random lengths, in random order."""
    storage = LocalStorage(folder, create=True)
    order = generator.permutation(len(samples))
    cuts = np.sort(generator.integers(0, len(samples) + 1, generator.integers(0, 4)))
    for number, places in enumerate(np.split(order, cuts)):
        write_shard(storage, f"{number:06d}", [samples[place] for place in places])
    finish(storage, describe_shard=lambda _: {}, describe_dataset=lambda _: {})
    return str(folder)


def view_of(datasets: list[str], folder: Path, recipe: dict, num_workers: int) -> tuple[View, list]:
    config = CurateConfig(datasets=datasets, view=str(folder), num_workers=num_workers, **recipe)
    summary = curate(config, dry_run=True)
    if not summary.funnel[-1].samples:
        return {}, summary.funnel
    assert curate(config).funnel == summary.funnel
    rows = open_view(str(folder)).table.to_pylist()
    assert len({row["key"] for row in rows}) == len(rows)
    return {row["key"]: (row["split"], tuple(row["target"])) for row in rows}, summary.funnel


@given(samples=posts(), recipe=recipes, seed=st.integers(0, 2**32 - 1))
@settings(max_examples=40)
def test_the_view_is_the_same_set_however_the_samples_lie_and_whoever_reads_them(samples, recipe, seed):
    generator = np.random.default_rng(seed)
    half = int(generator.integers(1, len(samples) + 1))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        whole = write(folder / "whole", samples, generator)
        halves = [write(folder / "a", samples[:half], generator)]
        if samples[half:]:
            halves.append(write(folder / "b", samples[half:], generator))
        wanted = view_of([whole], folder / "v0", recipe, num_workers=1)
        assert view_of([whole], folder / "v1", recipe, num_workers=5) == wanted
        assert view_of(halves, folder / "v2", recipe, num_workers=2) == wanted
        assert view_of(halves[::-1], folder / "v3", recipe, num_workers=3) == wanted


@given(samples=posts(), more=posts(), recipe=recipes, seed=st.integers(0, 2**32 - 1))
@settings(max_examples=25)
def test_the_split_of_a_post_never_changes_when_data_is_added(samples, more, recipe, seed):
    generator = np.random.default_rng(seed)
    added = [
        Sample(
            key=f"q{sample.key}",
            image=sample.image,
            image_extension="jpg",
            fields={**sample.fields, "post_id": f"q{sample.fields['post_id']}"},
        )
        for sample in more
    ]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        few, many = write(folder / "few", samples, generator), write(folder / "many", samples + added, generator)
        before, _ = view_of([few], folder / "v0", recipe, num_workers=1)
        after, _ = view_of([many], folder / "v1", recipe, num_workers=1)
        both = before.keys() & after.keys()
        assert {key: after[key] for key in both} == {key: before[key] for key in both}
        if not recipe["exact_duplicates"] and not recipe["near_duplicates"] and not recipe["split"].drop_leaks:
            assert recipe["balance"] != "none" or both == before.keys()

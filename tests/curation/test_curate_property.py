"""The view is a function of the posts: however they lie in shards and datasets, and whatever else comes to them."""

import tempfile
from pathlib import Path

import numpy as np
from curation_samples import flipped, random_hash
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.dataset import finish
from shards.storage import LocalStorage
from shards.tombstones import Tombstones, record_tombstones
from shards.view import open_view
from shards.writer import Sample, write_shard
from xmodal.curation.config import ConfidenceConfig, CurateConfig, DatasetConfig, OwnConfidenceConfig, SplitConfig
from xmodal.curation.curate import curate
from xmodal.labels import CLASSES

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
            image = content.encode()
            samples.append(Sample(key=f"p{post}-{number}", image=image, image_extension="jpg", fields=fields))
    return samples


def recipe_of(balance_and_cap: tuple[str, int], **settings) -> dict:
    return {"balance": balance_and_cap[0], "cap": balance_and_cap[1], **settings}


recipes = st.builds(
    recipe_of,
    exact_duplicates=st.booleans(),
    near_duplicates=st.booleans(),
    confidence=st.sampled_from([ConfidenceConfig(), ConfidenceConfig(negative=0.5, neutral=0.4, positive=0.45)]),
    balance_and_cap=st.sampled_from([("none", 0), ("undersample", 0), ("cap", 2)]),
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


thresholds = st.builds(
    OwnConfidenceConfig, **dict.fromkeys(CLASSES, st.one_of(st.none(), st.sampled_from([0.3, 0.45, 0.6])))
)


@given(
    samples=posts(),
    shared=st.lists(st.booleans(), min_size=36, max_size=36),
    others=posts(),
    own=st.tuples(thresholds, thresholds),
    forgotten=st.frozensets(st.sampled_from(["p0", "p1", "p2"])),
    recipe=recipes,
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=40)
def test_the_view_is_the_same_in_whatever_order_datasets_are_named(
    samples, shared, others, own, forgotten, recipe, seed
):
    generator = np.random.default_rng(seed)
    # The second has copies of samples of the first, and others that only have their keys.
    keys = {sample.key for sample, is_shared in zip(samples, shared, strict=False) if is_shared}
    second = [sample for sample in samples if sample.key in keys]
    second += [sample for sample in others if sample.key not in keys]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        datasets = [write(folder / "a", samples, generator), write(folder / "b", second, generator)]
        if forgotten:
            record_tombstones(LocalStorage(datasets[0]), Tombstones(forgotten), reason="", recorded_at="2024-01-01")
        named = [DatasetConfig(dataset=url, confidence=one) for url, one in zip(datasets, own, strict=True)]
        one, other = (
            rows_of(order, folder / f"v{number}", recipe) for number, order in enumerate([named, named[::-1]])
        )
        assert one == other


def rows_of(datasets: list[DatasetConfig], folder: Path, recipe: dict) -> list[tuple]:
    """What makes the rows of a view, in an order of their own: keys may be there twice."""
    config = CurateConfig(datasets=datasets, view=str(folder), **recipe)
    if not curate(config, dry_run=True).funnel[-1].samples:
        return []
    curate(config)
    rows = open_view(str(folder)).table.to_pylist()
    return sorted((row["key"], row["image_crc32"], row["split"], tuple(row["target"])) for row in rows)


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

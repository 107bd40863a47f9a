"""A real Ray with two workers; its tasks find what one machine finds."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import ray

from xmodal.curation.near_duplicates import near_groups
from xmodal.curation.near_duplicates_on_ray import near_groups_on_ray


@pytest.fixture
def workers(ray_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(
        address="local", num_cpus=2, include_dashboard=False, object_store_memory=100_000_000, _temp_dir=str(ray_folder)
    )
    yield
    ray.shutdown()


def test_blocks_on_workers_give_the_groups_of_one_machine(workers, tmp_path):
    generator = np.random.default_rng(0)
    bits = generator.random((5000, 256)) < 0.5
    # Copies of copies, equal ones among them, anywhere: chains over several blocks.
    for _ in range(3):
        copies = generator.integers(5000, size=500)
        changed = generator.random((500, 256)) < generator.choice([0, 0.05, 0.12], 500)[:, np.newaxis]
        bits[generator.integers(5000, size=500)] = bits[copies] ^ changed
    np.save(tmp_path / "hashes.npy", np.packbits(bits, axis=1))
    packed = np.load(tmp_path / "hashes.npy", mmap_mode="r")
    groups = near_groups_on_ray(packed, block=1300)
    assert groups.tolist() == near_groups(packed).tolist()
    spans = [np.ptp(np.flatnonzero(groups == group)) for group in np.unique(groups)]
    assert max(spans) > 1300
    assert len(spans) < 4500

"""A real Ray with two workers; its tasks find what one machine finds."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import label_command
import numpy as np
import pytest
import ray
from curation_samples import flipped, random_hash
from ray.util.state import list_tasks
from ray_head import Head, ray_head

from shards.dataset import finish
from shards.storage import LocalStorage
from shards.writer import Sample, write_shard
from xmodal.curation.near_duplicates import near_groups
from xmodal.curation.near_duplicates_on_ray import MOST_IN_BLOCK, block_size, near_groups_on_ray

CURATE = (sys.executable, "-m", "xmodal.cli", "curate")


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


@pytest.mark.parametrize(
    ("num_hashes", "num_cpus", "tasks"),
    [(10_000_000, 1, 3), (10_000_000, 2, 3), (10_000_000, 16, 21), (100_000_000, 64, 78), (1000, 64, 1), (0, 8, 0)],
)
def test_there_are_as_many_tasks_as_processors_unless_they_are_too_small_or_too_large(num_hashes, num_cpus, tasks):
    size = block_size(num_hashes, num_cpus)
    assert 0 < size <= MOST_IN_BLOCK
    num_blocks = -(-num_hashes // size)
    assert num_blocks * (num_blocks + 1) // 2 == tasks


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with ray_head() as running:
        yield running


def write_dataset(folder: Path) -> None:
    """200 samples; the first two of each ten are near duplicates."""
    storage = LocalStorage(folder, create=True)
    for shard in range(4):
        samples = []
        for number in range(50 * shard, 50 * shard + 50):
            pdq = flipped(random_hash(f"picture {number - 1 if number % 10 == 1 else number}"), number % 2)
            sizes = {"width": 100, "height": 100 + number}
            fields = {"soft_label": [0.2, 0.1, 0.7], "sha256": random_hash(str(number)), "pdq": pdq, **sizes}
            fields["post_id"] = f"p{number}"
            samples.append(Sample(key=f"p{number}-0", image=b"bytes", image_extension="jpg", fields=fields))
        write_shard(storage, f"{shard:06d}", samples)
    finish(storage, describe_shard=lambda _: {}, describe_dataset=lambda _: {})


def test_curate_on_a_cluster_makes_the_view_of_one_machine(head, tmp_path):
    write_dataset(tmp_path / "dataset")
    command = [*CURATE, f"--datasets=[{tmp_path / 'dataset'}]"]
    alone = label_command.run([*command, f"--view={tmp_path / 'alone'}"], head.environment)
    assert alone.returncode == 0, alone.stderr
    assert not list_tasks(address=head.dashboard)
    command += [f"--ray_address={head.address}"]
    there = label_command.run([*command, f"--view={tmp_path / 'there'}"], head.environment)
    assert there.returncode == 0, there.stderr
    assert [task.name for task in list_tasks(address=head.dashboard)] == ["near_duplicate_links"]
    assert "near duplicates" in there.stdout
    assert " 180 " in there.stdout
    tables = [label_command.hashes(tmp_path / view, "*.parquet") for view in ("there", "alone")]
    assert tables[0] == tables[1]
    documents = [json.loads((tmp_path / view / "view.json").read_text()) for view in ("there", "alone")]
    for document, view in zip(documents, ("there", "alone"), strict=True):
        assert document["recipe"].pop("view") == str(tmp_path / view)
    assert documents[0] == documents[1]


def test_a_cluster_that_does_not_answer_is_told_before_anything_is_read(tmp_path, ray_folder):
    write_dataset(tmp_path / "dataset")
    command = [*CURATE, f"--datasets=[{tmp_path / 'dataset'}]", f"--view={tmp_path / 'view'}"]
    done = label_command.run([*command, "--ray_address=127.0.0.1:9"], label_command.environment(ray_folder))
    label_command.assert_told_in_two_lines(done, "ray_address: 127.0.0.1:9: no Ray cluster answers")
    assert not (tmp_path / "view").exists()

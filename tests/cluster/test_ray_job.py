"""`ray job submit` to a real Ray head, on the emoji set: the same shards as `xmodal label` makes by itself."""

import json
import subprocess
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import label_command
import pytest
from ray_head import BIN, Head, ray_head

from xmodal.demo.server import serve_folder

NUM_POSTS = 150


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with ray_head() as running:
        yield running


@pytest.fixture(scope="module")
def arguments(tmp_path_factory) -> Iterator[list[str]]:
    """Those of `label`, but for the dataset."""
    posts = tmp_path_factory.mktemp("posts") / "posts.jsonl"
    with open(label_command.ROOT / "data/emoji/posts.jsonl") as source:
        posts.write_text("".join(islice(source, NUM_POSTS)))
    with serve_folder(str(label_command.ROOT / "data/emoji"), 0) as port:
        yield ["--config", "configs/label/demo.yaml", "--posts", str(posts), "--base_url", f"http://127.0.0.1:{port}/"]


@pytest.fixture(scope="module")
def own_ray_dataset(arguments, ray_folder, tmp_path_factory) -> Path:
    """What `xmodal label` makes without a cluster."""
    dataset = tmp_path_factory.mktemp("own") / "dataset"
    command = [*label_command.LABEL, *arguments, "--dataset", str(dataset)]
    done = label_command.run(command, label_command.environment(ray_folder))
    assert done.returncode == 0, done.stderr
    return dataset


def submit(head: Head, *arguments: str, variables: dict[str, str] | None = None) -> "subprocess.CompletedProcess[str]":
    runtime_environment = json.dumps({"env_vars": variables or {}})
    command = [str(BIN / "ray"), "job", "submit", "--address", head.dashboard, "--working-dir", "."]
    command += ["--runtime-env-json", runtime_environment, "--", "python", "launch/label.py", *arguments]
    return label_command.run(command, head.environment)


def test_a_ray_job_makes_the_same_shards_as_a_run_on_its_own_ray(head, arguments, own_ray_dataset, tmp_path):
    done = submit(head, *arguments, "--dataset", str(tmp_path / "dataset"))
    assert done.returncode == 0, done.stdout + done.stderr
    hashes = label_command.hashes(tmp_path / "dataset")
    assert hashes == label_command.hashes(own_ray_dataset)
    assert len([name for name in hashes if name.endswith(".tar")]) == 3


def test_a_relative_dataset_of_a_job_lies_below_xmodal_root(head, arguments, own_ray_dataset, tmp_path):
    done = submit(head, *arguments, "--dataset", "some/dataset", variables={"XMODAL_ROOT": str(tmp_path)})
    assert done.returncode == 0, done.stdout + done.stderr
    assert label_command.hashes(tmp_path / "some/dataset") == label_command.hashes(own_ray_dataset)
    assert str(tmp_path / "some/dataset") in done.stdout


def test_a_relative_dataset_of_a_driver_lies_in_its_own_folder_not_in_that_of_the_cluster(
    head, arguments, own_ray_dataset, tmp_path
):
    config = str(label_command.ROOT / arguments[1])
    own = ["--config", config, *arguments[2:], "--dataset", "some/dataset", "--ray_address", head.address]
    done = label_command.run([*label_command.LABEL, *own], head.environment, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert label_command.hashes(tmp_path / "some/dataset") == label_command.hashes(own_ray_dataset)


def test_a_job_with_a_mistake_fails_with_two_lines(head, tmp_path):
    done = submit(head, "--config", "configs/label/demo.yaml", "--posts", str(tmp_path / "none.jsonl"))
    assert done.returncode != 0
    assert f"xmodal: {tmp_path}/none.jsonl: no such file" in done.stdout
    assert "Traceback" not in done.stdout

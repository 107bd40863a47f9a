"""Posts to student with dataset and view on S3, over HTTP: a real Ray and two DeepSpeed ranks."""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import label_command
import launchers
import pytest
import s3_servers
from curation_pictures import POSITIVE, photo_bytes, post_samples, write_dataset

from shards.storage import open_storage
from shards.view import open_view
from xmodal.demo.server import serve_folder

NUM_POSTS = 96
DATASET, VIEW = f"s3://{s3_servers.BUCKET}/emoji/dataset", f"s3://{s3_servers.BUCKET}/emoji/view"


@pytest.fixture(scope="module")
def variables(ray_folder: Path) -> Iterator[dict[str, str]]:
    """An environment whose S3 is moto's server."""
    with s3_servers.moto() as endpoint:
        yield label_command.environment(ray_folder, **s3_servers.environment(endpoint))


@pytest.fixture(scope="module")
def label_arguments(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    posts = tmp_path_factory.mktemp("posts") / "posts.jsonl"
    with open(label_command.ROOT / "data/emoji/posts.jsonl") as source:
        posts.write_text("".join(islice(source, NUM_POSTS)))
    with serve_folder(str(label_command.ROOT / "data/emoji"), 0) as port:
        yield [
            "--config=configs/label/demo.yaml", f"--posts={posts}", f"--base_url=http://127.0.0.1:{port}/",
            "--posts_per_unit=32",
        ]  # fmt: skip


def run(verb: str, arguments: list[str], variables: dict[str, str]) -> str:
    done = label_command.run([*label_command.LABEL[:-1], verb, *arguments], variables)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_dataset_and_a_view_on_s3_are_those_of_a_folder_and_train_a_student(
    variables, label_arguments, tmp_path, monkeypatch
):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    local_dataset, local_view = str(tmp_path / "dataset"), str(tmp_path / "view")
    for dataset, view in ((DATASET, VIEW), (local_dataset, local_view)):
        run("label", [*label_arguments, f"--dataset={dataset}"], variables)
        run(
            "curate",
            [f"--datasets=[{dataset}]", f"--view={view}", "--split={train: 0.8, val: 0.2, test: 0}"],
            variables,
        )
    on_s3, in_folder = open_storage(DATASET), open_storage(local_dataset)
    assert on_s3.names() == in_folder.names()
    assert len(on_s3.names(".tar")) == 3
    for name in on_s3.names():
        assert on_s3.read(name) == in_folder.read(name), name
    fingerprints = {json.loads(open_storage(view).read("view.json"))["fingerprint"] for view in (VIEW, local_view)}
    assert len(fingerprints) == 1

    again = run("label", [*label_arguments, f"--dataset={DATASET}"], variables)
    assert "3 (3 were there before)" in again

    outputs = [tmp_path / "run-s3", tmp_path / "run-folder"]
    runs = [
        launchers.settings(view, output, "--max_steps=4")
        for view, output in zip((VIEW, local_view), outputs, strict=True)
    ]
    launchers.train_in_turn(2, runs, tmp_path)
    of_s3, of_folder = map(launchers.losses, outputs)
    assert of_s3 == of_folder
    assert len(of_s3) == 4


def test_a_view_on_s3_of_a_dataset_in_a_folder_leads_to_it_from_everywhere(variables, tmp_path, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    dataset = write_dataset(tmp_path / "dataset", [post_samples("p1", POSITIVE, photo_bytes(1))])
    view = f"s3://{s3_servers.BUCKET}/of-a-folder/view"
    run("curate", [f"--datasets=[{dataset}]", f"--view={view}", "--split={train: 1, val: 0, test: 0}"], variables)
    (tmp_path / "some" / "folder").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "some" / "folder")
    assert [storage.url for storage in open_view(view).datasets] == [dataset]

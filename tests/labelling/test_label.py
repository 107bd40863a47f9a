"""`xmodal label` on a real local Ray, against a real web server, given lines of every kind."""

import hashlib
import json
import re
import shutil
import socket
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import label_command
import made_pictures as made
import pytest
import web_server as web
from label_cases import AUTHOR, MAX_BYTES, SECRET, TRIES, Case, all_cases, failures, members

from shards.dataset import read_dataset
from shards.storage import open_storage
from xmodal import cli
from xmodal.teacher.lexicon import LexiconTeacher

FIELDS = (
    *("soft_label", "teacher", "post_id", "url", "sha256", "pdq", "width", "height"),
    *("lang", "created_at", "source", "author"),
)


@dataclass(kw_only=True)
class Labelled:
    """A finished run over all cases."""

    cases: list[Case]
    config: Path
    dataset: Path
    server: web.WebServer
    run: "subprocess.CompletedProcess[str]"


@pytest.fixture(scope="module")
def labelled(tmp_path_factory, ray_folder) -> Iterator[Labelled]:
    folder = tmp_path_factory.mktemp("label")
    with web.serving() as server, socket.socket() as refusing:
        refusing.bind(("127.0.0.1", 0))
        cases = all_cases(server, refusing.getsockname()[1])
        (folder / "posts.jsonl").write_bytes(b"\n".join(case.line for case in cases))
        config = label_command.write_config(
            folder / "label.yaml",
            posts=str(folder / "posts.jsonl"),
            dataset=str(folder / "dataset"),
            base_url=server.base_url,
            posts_per_unit=40,
            pictures={"max_side": 256},
            fetch={
                "max_tries": TRIES,
                "backoff_seconds": 0.05,
                "total_seconds": 4,
                "max_bytes": MAX_BYTES,
                "allow_networks": label_command.LOOPBACK,
            },
        )
        command = [*label_command.LABEL, "--config", str(config)]
        run = label_command.run(command, label_command.environment(ray_folder))
        yield Labelled(cases=cases, config=config, dataset=folder / "dataset", server=server, run=run)


def by_content(records: list[dict[str, Any]]) -> list[str]:
    return sorted(json.dumps(record, sort_keys=True) for record in records)


def test_bad_input_ends_no_run(labelled):
    assert labelled.run.returncode == 0, labelled.run.stderr
    assert "Traceback" not in labelled.run.stderr


def test_every_picture_that_can_be_had_is_a_sample_and_nothing_else(labelled):
    expected = [
        f"{key}.{kind}"
        for case in labelled.cases
        for key, (ext, _, _) in case.samples.items()
        for kind in (ext, "json")
    ]
    assert list(members(labelled.dataset)) == expected  # in the order of the posts


def test_everything_else_is_in_the_failures_file_with_its_reason(labelled):
    expected = [told for case in labelled.cases for told in case.failures]
    assert by_content(failures(labelled.dataset)) == by_content(expected)


def test_the_json_of_a_sample_holds_what_the_design_says(labelled):
    found = members(labelled.dataset)
    teacher = LexiconTeacher()
    for case in labelled.cases:
        for key, (extension, width, height) in case.samples.items():
            fields = json.loads(found[f"{key}.json"])
            record = json.loads(case.line)
            (label,) = teacher.label([record["text"].encode("utf-8", "replace").decode()])
            assert tuple(fields) == FIELDS
            assert fields["soft_label"] == [round(share, 6) for share in label]
            assert fields["teacher"] == {"name": "vader", "revision": teacher.revision}
            assert fields["post_id"] == str(record["id"]).encode("utf-8", "replace").decode()
            assert fields["url"].startswith(labelled.server.base_url)
            assert fields["sha256"] == hashlib.sha256(found[f"{key}.{extension}"]).hexdigest()
            assert re.fullmatch("[0-9a-f]{64}", fields["pdq"])
            assert (fields["width"], fields["height"]) == (width, height)
    optional = ("lang", "created_at", "source", "author")
    described, plain = json.loads(found["described-0.json"]), json.loads(found["plain-0.json"])
    assert [described[name] for name in optional] == ["en", "1577923200", "dump", AUTHOR]
    assert [plain[name] for name in optional] == ["", "", "", ""]


def test_of_two_posts_with_one_id_the_first_one_counts(labelled):
    negative, _, positive = json.loads(members(labelled.dataset)["twice-0.json"])["soft_label"]
    assert positive > negative


def test_original_bytes_are_kept(labelled):
    found = members(labelled.dataset)
    assert found["plain-0.jpg"] == made.jpeg()
    assert found["cmyk-0.jpg"] == made.cmyk_jpeg()
    assert found["webp-0.webp"] == made.animation("WEBP")


def test_the_tar_names_no_person_and_no_time(labelled):
    for path in labelled.dataset.glob("*.tar"):
        with tarfile.open(path) as tar:
            assert {(member.mtime, member.uid, member.uname, member.mode) for member in tar} == {(0, 0, "root", 0o644)}


def test_texts_are_nowhere_if_they_are_not_to_be_kept_and_authors_in_the_dataset_alone(labelled, ray_folder):
    logs = list(ray_folder.rglob("*"))
    assert any(path.suffix == ".log" for path in logs)
    for word, places in ((SECRET, [*labelled.dataset.iterdir(), *logs]), (AUTHOR, logs)):
        assert [path for path in places if path.is_file() and word.encode() in path.read_bytes()] == []
        assert word not in labelled.run.stdout + labelled.run.stderr


def test_the_summary_counts_posts_pictures_samples_and_failures(labelled):
    lines = labelled.run.stdout.splitlines()
    assert lines[0] == f"Dataset {labelled.dataset}"
    counts = dict(re.split(r"\s{2,}", line.strip(), maxsplit=1) for line in lines[1:])
    reasons = Counter(told["reason"] for case in labelled.cases for told in case.failures)
    assert counts["posts"] == str(len(labelled.cases))
    assert counts["samples"] == str(sum(len(case.samples) for case in labelled.cases))
    retryable = sum(told["retryable"] for case in labelled.cases for told in case.failures)
    listed = ", ".join(f"{reasons[name]} {name}" for name in sorted(reasons))
    assert counts["failures"] == f"{listed}; --retry-failures tries {retryable} of them again"
    assert counts["shards"] == "2 (0 were there before)"


def test_the_dataset_says_what_it_is_made_of(labelled):
    dataset = read_dataset(open_storage(labelled.dataset))
    num_samples = sum(len(case.samples) for case in labelled.cases)
    assert sum(shard["samples"] for shard in dataset["shards"]) == num_samples
    assert sum(sum(shard["label_histogram"].values()) for shard in dataset["shards"]) == num_samples
    assert dataset["teacher"]["name"] == "vader"
    assert dataset["recipe"] == json.loads((labelled.dataset / "recipe.json").read_text())
    assert not list(labelled.dataset.glob(".*"))


def test_webdataset_itself_reads_the_shards(labelled):
    import webdataset

    shards = [str(path) for path in sorted(labelled.dataset.glob("*.tar"))]
    keys = [sample["__key__"] for sample in webdataset.WebDataset(shards, shardshuffle=False)]
    assert keys == [key for case in labelled.cases for key in case.samples]


def test_running_again_changes_nothing_and_starts_no_ray(labelled, ray_folder):
    before = {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in labelled.dataset.glob("*.tar")}
    contents = label_command.hashes(labelled.dataset)
    arguments = ["label", "--config", str(labelled.config)]
    command = (
        f"import sys; from xmodal.cli import main; assert main({arguments!r}) == 0; assert 'ray' not in sys.modules"
    )
    run = label_command.run([sys.executable, "-c", command], label_command.environment(ray_folder))
    assert run.returncode == 0, run.stderr
    assert "2 (2 were there before)" in run.stdout
    assert label_command.hashes(labelled.dataset) == contents
    assert {
        path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in labelled.dataset.glob("*.tar")
    } == before


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["--posts_per_unit", "41"], "posts_per_unit"),
        (["--keep_text", "true"], "keep_text"),
        (["--pictures.quality", "80"], "pictures"),
        (["--base_url", "http://127.0.0.1:1/"], "base_url"),
        (["--teacher.kind", "transformers"], "teacher"),
        (["--fetch.max_bytes", "5"], "max_bytes"),
        (["--posts", "other.jsonl"], "posts_sha256"),
        (["--format", "xmodal"], "format"),
        (["--select.languages", "[en]"], "select"),
    ],
)
def test_other_settings_than_it_was_begun_with_are_refused(labelled, tmp_path, monkeypatch, capsys, arguments, name):
    label_command.write_posts(tmp_path / "other.jsonl", [{"id": "1", "text": "a", "media": ["a.jpg"]}])
    contents = label_command.hashes(labelled.dataset)
    monkeypatch.chdir(tmp_path)
    given = ["--config", str(labelled.config), *arguments]
    label_command.assert_refused(capsys, given, f"recipe.json: {name}: begun with")
    assert label_command.hashes(labelled.dataset) == contents


def test_settings_that_change_no_sample_may_differ_between_runs(labelled):
    arguments = ["--fetch.max_tries", "9", "--max_units_in_flight", "1", "--teacher.num_actors", "2"]
    assert cli.main(["label", "--config", str(labelled.config), *arguments]) == 0


def test_a_folder_of_other_tars_is_refused(labelled, tmp_path, capsys):
    dataset = tmp_path / "dataset"
    dataset.mkdir()
    shutil.copy(next(labelled.dataset.glob("*.tar")), dataset)
    label_command.assert_refused(capsys, ["--config", str(labelled.config), "--dataset", str(dataset)], str(dataset))
    assert len(list(dataset.iterdir())) == 1

"""The report, made from a small real dataset, view, run and evaluation."""

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image

from shards.dataset import finish
from shards.errors import ConfigError, UserError
from shards.index import read_index
from shards.storage import open_storage
from shards.tombstones import Tombstones, record_tombstones
from shards.view import SHARD_SCHEMA, open_view, shard_entry, write_view
from shards.writer import Sample, write_shard
from xmodal.cli import main
from xmodal.labels import CLASSES, histogram
from xmodal.report.report import ReportConfig, report

HOSTILE = """<script>alert(1)</script>"onerror='alert(2)'&lt;"""
SOFT_LABELS = [
    (0.9, 0.1, 0.0),
    (0.8, 0.1, 0.1),
    (0.1, 0.8, 0.1),
    (0.2, 0.7, 0.1),
    (0.0, 0.1, 0.9),
    (0.1, 0.1, 0.8),
    (0.0, 0.3, 0.7),
]
METRICS = {
    "n": 1234,
    "auc": 0.7011,
    "auc_low": 0.6522,
    "auc_high": 0.7433,
    "accuracy": 0.6677,
    "accuracy_low": 0.6188,
    "accuracy_high": 0.7199,
    "left_out": 0,
}


def picture_bytes(color: tuple[int, int, int], size: tuple[int, int] = (200, 100)) -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", size, color).save(sink, "PNG")
    return sink.getvalue()


def make_dataset(folder: Path, *, failures: Sequence[Mapping[str, Any]], teacher: str) -> None:
    storage = open_storage(folder, create=True)
    samples = [
        Sample(
            key=f"post{number}-0",
            image=picture_bytes((30 * number, 99, 99)),
            image_extension="png",
            fields={"soft_label": soft_label, "post_id": f"post{number}", "text_of_post": "a secret text"},
            text="another secret text",
        )
        for number, soft_label in enumerate(SOFT_LABELS)
    ]
    write_shard(storage, "000000", samples, failures)
    finish(
        storage,
        describe_shard=lambda index: {"label_histogram": histogram(index["soft_label"].to_pylist())},
        describe_dataset=lambda shards: {"teacher": {"name": teacher, "revision": "rev7"}},
    )


def make_view(folder: Path, dataset: Path, *, step: str, key: str | None) -> None:
    index = read_index(open_storage(dataset), "000000.tar")
    rows = pa.table(
        {
            "dataset": [0] * len(index),
            "shard": ["000000.tar"] * len(index),
            "key": index["key"] if key is None else [key] * len(index),
            "image_ext": index["image_ext"],
            "image_offset": index["image_offset"],
            "image_length": index["image_length"],
            "image_crc32": index["image_crc32"],
            "split": ["train"] * (len(index) - 1) + ["val"],
            "target": index["soft_label"],
        }
    )
    funnel = [{"step": step, "samples": 7, "by_class": {"negative": 2, "neutral": 2, "positive": 3}}]
    counts = {"splits": {"train": 6, "val": 1, "test": 0}, "funnel": funnel}
    shards = pa.Table.from_pylist([shard_entry(0, "000000.tar", index)], schema=SHARD_SCHEMA)
    write_view(str(folder), rows, shards, datasets=[str(dataset)], description={"counts": counts})


def make_run(folder: Path, *, model: str, validated: bool) -> None:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"student": {"model": model}, "epochs": 3}))
    lines = [{"kind": "step", "step": step, "loss": 2.5 / step, "lr": 1e-3} for step in range(1, 30)]
    if validated:
        values = {"loss": 1.5, "kl": 0.4375, "teacher_agreement": 0.75}
        lines += [{"kind": "validation", "step": 29, "epoch": 0, **values}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def make_predictions(file: Path, images: Path, names: Sequence[str]) -> None:
    images.mkdir()
    with open(file, "w", newline="") as opened:
        writer = csv.writer(opened)
        writer.writerow(["path", *CLASSES, "human_score"])
        for number, name in enumerate(names):
            (images / name).write_bytes(picture_bytes((10, 200, 20 * number)))
            writer.writerow([name, 0.9 - 0.1 * number, 0.1, 0.1 * number, number - 3.5])


def make_inputs(
    folder: Path,
    *,
    hostile: str = "",
    key: str | None = None,
    failures: Sequence[Mapping[str, Any]] = (),
    validated: bool = True,
) -> ReportConfig:
    """All that a report reads, with `hostile` in every text that may come from strangers."""
    make_dataset(folder / "dataset", failures=failures, teacher=f"vader{hostile}")
    make_view(folder / "view", folder / "dataset", step=f"labelled{hostile}", key=key)
    make_run(folder / "train", model=f"vit_tiny{hostile}", validated=validated)
    for name in ("student", "teacher"):
        (folder / f"{name}.json").write_text(json.dumps({f"emoji{hostile}": METRICS}))
    pictures = [f"{number}{hostile}.png".replace("/", "") for number in range(9)]
    make_predictions(folder / "predictions-emoji.csv", folder / "pictures", pictures)
    return ReportConfig(
        dataset=str(folder / "dataset"),
        view=str(folder / "view"),
        train=str(folder / "train"),
        evaluations=[str(folder / "student.json"), str(folder / "teacher.json")],
        predictions=[str(folder / "predictions-emoji.csv")],
        images=str(folder / "pictures"),
        output=str(folder / "out" / "report.html"),
        title=f"a run{hostile}",
    )


class Parsed(HTMLParser):
    """The elements and the visible text of a page, as a browser would take them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.elements[-1:] != [("style", {})]:
            self.text += data

    def images(self) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.elements if tag == "img"]


def page_of(config: ReportConfig) -> Parsed:
    return Parsed(Path(report(config)).read_text(encoding="utf-8"))


def test_the_page_holds_the_numbers(tmp_path: Path) -> None:
    failures = [{"reason": "timeout", "retryable": True}] * 3 + [{"reason": "too_small", "retryable": False}]
    page = page_of(make_inputs(tmp_path, failures=failures))
    words = " ".join(page.text.split())
    for expected in (
        "a run",
        "vader rev7",
        "student AUC 0.701 95 % [0.652, 0.743]",
        "teacher AUC",
        "chance 0.500",
        "samples 7 shards 1 failures 4",
        "train 6",
        "val 1",
        "pictures judged 1,234 1,234",
        "accuracy 0.668 [0.619, 0.720]",
        "positive 3 42.9%",
        "labelled 7 2 2 3",
        "timeout 3 3",
        "too_small 1 0",
        "epochs 3",
    ):
        assert expected in words or expected.replace(" ", "") in words.replace(" ", ""), expected
    labels = [attributes.get("aria-label") or "" for tag, attributes in page.elements if tag == "svg"]
    assert any("validation 0.4375 at step 29" in label for label in labels)
    assert any("student 0.701 [0.652, 0.743]" in label and "chance 0.5" in label for label in labels)


def test_pictures_are_small_embedded_and_described(tmp_path: Path) -> None:
    images = page_of(make_inputs(tmp_path)).images()
    assert len(images) == 6 + 3 * 8
    assert all((image["src"] or "").startswith("data:image/") and image["alt"] for image in images)
    assert images[0]["alt"] == "Picture post0-0: negative 0.90, neutral 0.10, positive 0.00"


def test_a_class_without_samples_to_learn_from_has_no_pictures(tmp_path: Path) -> None:
    config = make_inputs(tmp_path)
    view = open_view(config.view)
    others = [place for place, target in enumerate(view.table["target"].to_pylist()) if target[1] < 0.5]
    description = {"counts": view.description["counts"]}
    other = str(tmp_path / "other")
    write_view(other, view.table.take(others), view.shards, datasets=[config.dataset], description=description)
    assert len(page_of(replace(config, view=other)).images()) == 4 + 3 * 8


def test_strings_of_strangers_stay_text(tmp_path: Path) -> None:
    failures = [{"reason": HOSTILE, "retryable": False}]
    config = make_inputs(tmp_path, hostile=HOSTILE, key=HOSTILE, failures=failures)
    page = page_of(config)
    assert {tag for tag, _ in page.elements}.isdisjoint({"script", "iframe", "object", "embed", "link", "base"})
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    # Title twice, teacher, student, benchmark, funnel step, failure, keys, paths: all there, as they are.
    assert page.text.count("<script>alert(1)") > 10


def test_half_a_surrogate_pair_does_not_stop_the_report(tmp_path: Path) -> None:
    config = make_inputs(tmp_path, failures=[{"reason": "odd"}])
    (tmp_path / "dataset" / "000000.failures.jsonl").write_text(json.dumps({"reason": "half a \ud800 pair"}) + "\n")
    assert "half a ? pair" in page_of(config).text


def test_nothing_is_loaded_from_elsewhere_and_no_script_may_run(tmp_path: Path) -> None:
    page = page_of(make_inputs(tmp_path))
    loading = ("src", "srcset", "href", "xlink:href", "data", "poster", "action")
    targets = [attributes[name] or "" for tag, attributes in page.elements for name in loading if name in attributes]
    assert targets
    assert all(target.startswith("data:image/") for target in targets)
    html = Path(tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "<script" not in html
    assert "url(" not in html
    assert "@import" not in html
    policies = [a["content"] or "" for _, a in page.elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in policies[0]


def test_texts_of_posts_are_not_shown(tmp_path: Path) -> None:
    config = make_inputs(tmp_path)
    assert "secret text" not in Path(report(config)).read_text(encoding="utf-8")


def test_the_same_inputs_give_the_same_bytes(tmp_path: Path) -> None:
    config = make_inputs(tmp_path)
    first = Path(report(config)).read_bytes()
    second = Path(report(replace(config, output=str(tmp_path / "again.html")))).read_bytes()
    assert first == second
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["report.html"]


def test_a_run_without_validation_failures_evaluations_and_predictions_has_a_report(tmp_path: Path) -> None:
    config = make_inputs(tmp_path, validated=False)
    page = page_of(replace(config, evaluations=[], predictions=[], images=None))
    assert "no evaluations" in page.text
    assert "KL" not in page.text
    assert "Learning rate" in page.text
    assert "none" in page.text
    assert len(page.images()) == 6


def test_a_run_that_has_logged_nothing_yet_has_a_report(tmp_path: Path) -> None:
    config = make_inputs(tmp_path)
    (tmp_path / "train" / "metrics.jsonl").write_text("")
    assert "no steps logged yet" in page_of(config).text


def test_a_line_of_metrics_cut_off_by_a_crash_is_left_out(tmp_path: Path) -> None:
    config = make_inputs(tmp_path)
    whole = Path(report(config)).read_bytes()
    with open(tmp_path / "train" / "metrics.jsonl", "a") as file:
        file.write('{"kind": "step", "st')
    assert Path(report(config)).read_bytes() == whole


def test_pictures_that_no_longer_decode_have_a_placeholder(tmp_path: Path) -> None:
    config = make_inputs(tmp_path)
    (tmp_path / "pictures" / "0.png").write_bytes(b"no picture")
    assert "cannot be decoded" in page_of(config).text


def test_predictions_of_undecodable_pictures_are_not_shown(tmp_path: Path) -> None:
    config = make_inputs(tmp_path)
    with open(tmp_path / "predictions-emoji.csv", "a") as file:
        file.write("gone.png,nan,nan,nan,0.5\n")
    assert "gone.png" not in page_of(config).text


@pytest.mark.parametrize(("folder", "images"), [("", "pictures"), ("pictures", ".")])
def test_no_picture_from_elsewhere_comes_into_the_page(tmp_path: Path, monkeypatch, folder: str, images: str) -> None:
    config = make_inputs(tmp_path)
    (tmp_path / "secret.png").write_bytes(picture_bytes((1, 2, 3)))
    with open(tmp_path / "predictions-emoji.csv", "a") as file:
        file.write("../secret.png,1,0,0,9\n")
    monkeypatch.chdir(tmp_path / folder)
    with pytest.raises(UserError, match=r"\.\./secret\.png: lies outside of "):
        report(replace(config, images=images))


def test_numbers_that_are_not_there_are_dashes(tmp_path: Path) -> None:
    config = make_inputs(tmp_path)
    (tmp_path / "teacher.json").write_text('{"emoji": {"n": 1, "auc": NaN, "auc_low": NaN, "auc_high": NaN}}')
    page = page_of(config)
    assert "—" in page.text
    assert "nan" not in page.text.split()


@pytest.mark.parametrize(
    "name",
    [
        "dataset",
        "dataset/dataset.json",
        "dataset/000000.tar",
        "view",
        "view/view.json",
        "train",
        "train/config.json",
        "train/metrics.jsonl",
        "student.json",
        "predictions-emoji.csv",
        "pictures/3.png",
    ],
)
def test_what_is_missing_is_named(tmp_path: Path, name: str) -> None:
    config = make_inputs(tmp_path)
    (tmp_path / name).rename(tmp_path / "elsewhere")
    with pytest.raises(UserError) as caught:
        report(config)
    assert str((tmp_path / name).parent) in caught.value.what
    assert Path(name).name in caught.value.what
    assert caught.value.remedy
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "content", [" ", "{", "[]", "null", '{"emoji": 3}', '{"shards": 3}', '{"emoji": {"auc": "x"}}']
)
@pytest.mark.parametrize(
    "name", ["dataset/dataset.json", "dataset/000000.failures.jsonl", "view/view.json", "student.json"]
)
def test_what_is_malformed_is_named(tmp_path: Path, name: str, content: str) -> None:
    config = make_inputs(tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError) as caught:
        report(config)
    folder = str((tmp_path / name).parent)
    assert folder in caught.value.what


def _without(columns: str) -> Callable[[str], str]:
    return lambda text: text.replace(columns, "x", 1)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (_without("human_score"), "human_score"),
        (_without("0.9"), "line 2"),
        (lambda text: text + "only-a-path.png\n", "line 11"),
    ],
)
def test_malformed_predictions_are_named(tmp_path: Path, change: Callable[[str], str], told: str) -> None:
    config = make_inputs(tmp_path)
    file = tmp_path / "predictions-emoji.csv"
    file.write_text(change(file.read_text()))
    with pytest.raises(UserError) as caught:
        report(config)
    assert str(file) in caught.value.what
    assert told in caught.value.what


def test_metrics_broken_in_the_middle_are_named(tmp_path: Path) -> None:
    config = make_inputs(tmp_path)
    file = tmp_path / "train" / "metrics.jsonl"
    file.write_text("oops\n" + file.read_text())
    with pytest.raises(UserError, match="line 1 "):
        report(config)


def test_an_output_that_is_a_folder_is_refused(tmp_path: Path) -> None:
    config = make_inputs(tmp_path)
    with pytest.raises(UserError) as caught:
        report(replace(config, output=str(tmp_path)))
    assert str(tmp_path) in caught.value.what


def test_predictions_without_the_folder_of_their_pictures_are_refused(tmp_path: Path) -> None:
    config = make_inputs(tmp_path)
    with pytest.raises(ConfigError, match="images"):
        replace(config, images=None)


def test_evaluations_of_one_name_are_refused(tmp_path: Path) -> None:
    config = make_inputs(tmp_path)
    with pytest.raises(ConfigError, match="different file names"):
        replace(config, evaluations=[*config.evaluations, str(tmp_path / "elsewhere" / "student.json")])


def test_a_file_of_several_students_has_a_row_for_each(tmp_path: Path) -> None:
    config = make_inputs(tmp_path)
    models = {"a/student": {"emoji": METRICS}, "ViT_L16": {"emoji": {**METRICS, "auc": 0.8123}}}
    (tmp_path / "all.json").write_text(json.dumps({"models": models, "comparisons": []}))
    page = page_of(replace(config, evaluations=[str(tmp_path / "all.json"), str(tmp_path / "teacher.json")]))
    assert all(text in page.text for text in ("a/student", "ViT_L16", "0.812", "teacher"))
    (tmp_path / "ViT_L16.json").write_text(json.dumps({"emoji": METRICS}))
    with pytest.raises(UserError, match=r"ViT_L16\.json: ViT_L16: another of the files has one of this name"):
        report(replace(config, evaluations=[str(tmp_path / "all.json"), str(tmp_path / "ViT_L16.json")]))


def test_the_command_writes_the_page_and_tells_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = make_inputs(tmp_path)
    inputs = [f"--dataset={config.dataset}", f"--view={config.view}", f"--train={config.train}"]
    assert main(["report", *inputs, f"--output={config.output}"]) == 0
    assert config.output in capsys.readouterr().out
    assert main(["report", *inputs, f"--output={config.output}", f"--evaluations=[{tmp_path}/none.json]"]) == 2
    assert f"{tmp_path}/none.json" in capsys.readouterr().err


def test_pictures_of_posts_that_were_forgotten_since_are_not_shown(tmp_path):
    config = make_inputs(tmp_path)
    assert "post0-0" in Path(report(config)).read_text()
    forgotten = Tombstones(frozenset(["post0"]))
    record_tombstones(open_storage(config.dataset), forgotten, reason="", recorded_at="2026-01-02")
    page = Path(report(config)).read_text()
    assert "post0-0" not in page
    assert "post1-0" in page

"""The verbs `agree` and `calibrate` on small datasets, and calibration on real tweets where they are at hand."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from label_datasets import NEGATIVE, NEUTRAL, PICTURE, POSITIVE, sample, write_dataset
from optional_data import FOLDER, needs

from shards.errors import UserError
from shards.writer import Sample
from xmodal import cli
from xmodal.label_quality.agree import AgreeConfig, agree
from xmodal.label_quality.calibrate import CalibrateConfig, calibrate, halves, same_texts
from xmodal.label_quality.human_labels import posts_of_rows, read_human_labels
from xmodal.label_quality.labels_of_dataset import read_labels, soft_labels_of
from xmodal.posts.readers import read_posts
from xmodal.teacher.teacher import TeacherConfig, load_teacher

TEACHER = {"teacher": {"name": "<b>made</b>", "revision": "1"}}
MVSA = ("mvsa/posts.jsonl", "mvsa/labels_dev.csv", "weights/teacher_minilm_semeval")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two datasets that share p1 (two pictures), p2 and p3, and a picture that lies in q1 and p4."""
    folder = tmp_path_factory.mktemp("quality")
    first = [
        [sample("p3-0", POSITIVE), sample("p1-0", NEGATIVE), sample("p1-1", NEGATIVE)],
        [sample("p2-0", NEUTRAL), sample("p4-0", POSITIVE, "same"), sample("p5-0", NEGATIVE, "same")],
    ]
    second = [
        [sample("p1-0", NEUTRAL), sample("p1-1", NEUTRAL), sample("p2-0", NEUTRAL)],
        [],
        [sample("p3-0", POSITIVE), sample("q1-0", NEUTRAL, "same")],
    ]
    write_dataset(folder / "first", first, TEACHER)
    write_dataset(folder / "second", second)
    return folder


def compared(folder: Path, **settings: str):
    return agree(AgreeConfig(first=str(folder / "first"), second=str(folder / "second"), **settings))


def test_samples_are_compared_by_their_keys(folder):
    summary = compared(folder)
    assert summary.agreement.confusion.tolist() == [[0, 2, 0], [0, 1, 0], [0, 0, 1]]
    assert (summary.only_first, summary.only_second) == (2, 1)
    assert summary.agreement.flips == 0.5


def test_by_post_every_post_counts_once(folder):
    summary = compared(folder, by="post_id")
    assert summary.agreement.confusion.tolist() == [[0, 1, 0], [0, 1, 0], [0, 0, 1]]
    assert (summary.only_first, summary.only_second) == (2, 1)


def test_by_the_pictures_bytes_the_smallest_key_speaks_for_them(folder):
    summary = compared(folder, by="sha256")
    # p4-0 and not p5-0 is held against q1-0.
    assert summary.agreement.confusion.tolist() == [[0, 2, 0], [0, 1, 0], [0, 1, 1]]
    assert (summary.only_first, summary.only_second) == (0, 0)


def test_the_command_prints_a_table_and_writes_numbers_and_a_page(folder, tmp_path, capsys):
    json_file, page = tmp_path / "out" / "agree.json", tmp_path / "out" / "agree.html"
    datasets = [str(folder / name) for name in ("first", "second")]
    assert cli.main(["agree", *datasets, f"--json={json_file}", "--output", str(page)]) == 0
    printed = capsys.readouterr().out
    assert "flips        50.0 %" in printed
    assert re.search(r"negative +0 +2 +0 +100.0 %\nneutral +0 +1 +0 +0.0 %", printed)
    document = json.loads(json_file.read_text())
    assert document["confusion"] == [[0, 2, 0], [0, 1, 0], [0, 0, 1]]
    assert document["flips_of_class"] == {"negative": 1.0, "neutral": 0.0, "positive": 0.0}
    html = page.read_text()
    assert "&lt;b&gt;made&lt;/b&gt; 1" in html
    assert "<b>" not in html
    assert "a teacher that is not recorded" in html
    assert html.count('class="cell"') == 9


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ([], "first, second: not given"),
        (["FIRST"], "second: not given"),
        (["FIRST", "SECOND", "THIRD"], "THIRD"),
        (["FIRST", "NONE"], "none: no such folder"),
        (["FIRST", "ELSEWHERE"], "no key is in both"),
        (["FIRST", "SECOND", "--by", "url"], "by: "),
        (["FIRST", "SECOND", "--json", "FOLDER"], "is a folder"),
    ],
)
def test_mistakes_are_told(folder, arguments, what, tmp_path, capsys):
    if not (folder / "elsewhere").exists():
        write_dataset(folder / "elsewhere", [[sample("z1-0", POSITIVE)]])
    places = {name.upper(): str(folder / name) for name in ("first", "second", "none", "elsewhere")}
    given = [(places | {"FOLDER": str(tmp_path)}).get(argument, argument) for argument in arguments]
    assert cli.main(["agree", *given]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert what in lines[0]


def test_samples_without_what_they_are_compared_by_are_told(tmp_path):
    bare = Sample(key="p1-0", image=PICTURE, image_extension="jpg", fields={"soft_label": [0, 0, 1]})
    dataset = write_dataset(tmp_path / "bare", [[bare]])
    assert agree(AgreeConfig(first=dataset, second=dataset)).agreement.num_samples == 1
    with pytest.raises(UserError, match=r"000000\.tar: samples without sha256"):
        agree(AgreeConfig(first=dataset, second=dataset, by="sha256"))


def write_human(file: Path, rows: Sequence[str], header: str = "path,class") -> str:
    file.write_text("\n".join([header, *rows]) + "\n")
    return str(file)


def test_a_path_means_the_picture_whose_address_ends_with_it(tmp_path):
    rows = [
        "images/a-0.jpg,2",
        "a-1.jpg,positive",
        "images/b-0.jpg,1",
        "ages/c-0.jpg,0",
        "x.jpg,0",
        "d/y.jpg,1",
        "z.jpg,",
    ]
    labels = read_human_labels(write_human(tmp_path / "human.csv", rows), "class")
    urls = {
        "http://h/images/a-0.jpg": "a",
        "http://h/images/a-1.jpg": "a",
        "images/b-0.jpg": "b",
        "http://h/images/c-0.jpg": "c",
        "http://h/1/x.jpg": "d",
        "http://h/2/x.jpg": "e",  # whose picture is it?
        "http://h/d/y.jpg": "f",
        "http://h/e/y.jpg": "g",
    }
    assert posts_of_rows(labels, list(urls.values()), list(urls)) == {"a": 2, "b": 1, "f": 1}


def test_a_post_that_people_call_by_two_classes_is_left_out(tmp_path):
    rows = ["a,2", "b,0", "b,1", "b,0", "c,1", "c,neutral", "nobody,1"]
    labels = read_human_labels(write_human(tmp_path / "human.csv", rows, "post_id,class"), "class")
    assert posts_of_rows(labels, ["a", "a", "b", "c"], [""] * 4) == {"a": 2, "c": 1}
    rows = ["a-0.jpg,2", "a-1.jpg,1"]
    labels = read_human_labels(write_human(tmp_path / "human.csv", rows), "class")
    assert posts_of_rows(labels, ["a", "a"], ["a-0.jpg", "a-1.jpg"]) == {}


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("name,class\nx,1\n", "has no column post_id or path"),
        ("path,label\nx,1\n", "has no column class"),
        ("", "has no column"),
        ("path,class\nx,1\ny,happy\n", "line 3: class: no class"),
        ("path,class\nx,\xff\n", "not a CSV file in UTF-8"),
    ],
)
def test_a_file_of_human_labels_that_cannot_be_read_is_told(tmp_path, content, what):
    file = tmp_path / "human.csv"
    file.write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=what):
        read_human_labels(str(file), "class")
    with pytest.raises(UserError, match="No such file"):
        read_human_labels(str(tmp_path / "none.csv"), "class")


@pytest.fixture(scope="module")
def sure_teacher(tmp_path_factory: pytest.TempPathFactory) -> CalibrateConfig:
    """600 posts of a teacher who says .97 to .99 and is right of 8 in 10, and people's classes; half have two pictures.

    All texts are different.
    """
    folder = tmp_path_factory.mktemp("sure")
    generator = np.random.default_rng(0)
    samples, rows = [], []
    for number in range(600):
        said, true = number % 3, generator.integers(0, 3)
        confidence = 0.97 + number // 3 / 10_000
        label = [(1 - confidence) / 2] * 3
        label[said] = confidence
        samples += [sample(f"p{number:03d}-{place}", tuple(label)) for place in range(1 + number % 2)]
        rows.append(f"p{number:03d},{said if generator.random() < 0.7 else true}")
    write_dataset(folder / "dataset", [samples[:300], samples[300:]], TEACHER)
    human = write_human(folder / "human.csv", [*rows, "unknown,1"], "post_id,class")
    return CalibrateConfig(dataset=str(folder / "dataset"), human=human, num_draws=100)


def test_a_teacher_who_is_too_sure_is_made_less_so_and_judged_on_other_posts(sure_teacher):
    summary = calibrate(sure_teacher)
    assert (summary.num_fitted, summary.num_judged, summary.num_unmatched) == (300, 300, 1)
    # A post counts once, however many pictures it has.
    assert summary.accuracy.value == pytest.approx(0.8, abs=0.07)
    confidence = summary.as_it_is["confidence"].value
    assert confidence == pytest.approx(0.98, abs=0.001)
    assert summary.as_it_is["calibration_error"].value == pytest.approx(confidence - summary.accuracy.value)
    # log 98 divided by it must give log 8, since the other two classes share what is left of .8: about 2.2, less or
    # more by what the half that it was fitted on is right.
    assert summary.temperature.value == pytest.approx(np.log(98) / np.log(8), rel=0.3)
    assert summary.tempered["calibration_error"].value < 0.1 < summary.as_it_is["calibration_error"].value
    assert summary.gain["calibration_error"].low > 0
    assert summary.gain["negative_log_likelihood"].low > 0
    for estimate in (summary.temperature, summary.accuracy, *summary.as_it_is.values(), *summary.tempered.values()):
        assert estimate.low <= estimate.value <= estimate.high


def test_the_halves_are_the_seeds_and_share_no_post(sure_teacher):
    assert calibrate(sure_teacher) == calibrate(sure_teacher)
    other = CalibrateConfig(**{**vars(sure_teacher), "seed": 1})
    assert calibrate(other).temperature != calibrate(sure_teacher).temperature


@pytest.fixture(scope="module")
def reposted(tmp_path_factory: pytest.TempPathFactory) -> CalibrateConfig:
    """90 texts, each posted by one to ten people, who are all judged alike."""
    folder = tmp_path_factory.mktemp("reposted")
    generator = np.random.default_rng(0)
    samples, rows = [], []
    for text in range(90):
        # The last digit is another one where a text was read among others.
        label = generator.dirichlet([1, 1, 1]).round(4)
        for repost in range(1 + text % 10):
            samples.append(sample(f"p{text:02d}x{repost}-0", (label[0] + repost * 1e-6, *label[1:])))
            rows.append(f"p{text:02d}x{repost},{text % 3}")
    write_dataset(folder / "dataset", [samples], TEACHER)
    human = write_human(folder / "human.csv", rows, "post_id,class")
    return CalibrateConfig(dataset=str(folder / "dataset"), human=human, num_draws=200)


def test_the_halves_and_the_draws_have_all_posts_of_a_text_or_none(reposted):
    table = read_labels(reposted.dataset, ["post_id"])
    of_text = np.array([post_id[:3] for post_id in table["post_id"].to_pylist()])
    texts = same_texts(soft_labels_of(table))
    assert len(set(zip(texts.tolist(), of_text.tolist(), strict=True))) == len(set(texts.tolist())) == 90
    for seed in range(20):
        fitted, judged = halves(texts, np.random.default_rng(seed))
        assert sorted([*fitted, *judged]) == list(range(len(texts)))
        assert not set(texts[fitted]) & set(texts[judged])
        assert abs(len(fitted) - len(judged)) <= 10
    summary = calibrate(reposted)
    assert summary.num_fitted + summary.num_judged == len(texts)
    # Of 45 texts, and not of 250 posts: sqrt(.33 * .67 / 45) is 0.07, and of 250 it is 0.03, twice that each way.
    assert summary.accuracy.high - summary.accuracy.low > 0.2


def test_whole_classes_say_nothing_of_the_text(tmp_path):
    assert len(set(same_texts(np.array([[1.0, 0, 0]] * 5 + [[0.5, 0.5, 0]] * 3)).tolist())) == 6
    few = [sample(f"p{number}-0", (0.2, 0.3, 0.5)) for number in range(30)]
    dataset = write_dataset(tmp_path / "few", [few], TEACHER)
    human = write_human(tmp_path / "human.csv", [f"p{number},1" for number in range(30)], "post_id,class")
    with pytest.raises(UserError, match="its 30 posts have 1 different soft labels"):
        calibrate(CalibrateConfig(dataset=dataset, human=human))


def test_numbers_that_another_tool_wrote_as_ids_match_those_of_a_table(tmp_path):
    samples = [sample(f"{number}-0", (0.2 + number / 1000, 0.3 - number / 1000, 0.5)) for number in range(30)]
    for number, one in enumerate(samples):
        one.fields["post_id"] = number
    dataset = write_dataset(tmp_path / "numbers", [samples], {"teacher": {"name": "unversioned"}})
    human = write_human(tmp_path / "human.csv", [f"{number},1" for number in range(30)], "post_id,class")
    config = CalibrateConfig(dataset=dataset, human=human, num_draws=10, output=str(tmp_path / "page.html"))
    assert calibrate(config).num_unmatched == 0
    # And a teacher of which only the name is known is shown by it.
    assert "unversioned" in (tmp_path / "page.html").read_text()


def test_calibration_is_printed_and_written(sure_teacher, tmp_path, capsys):
    files = [f"--json={tmp_path}/c.json", f"--output={tmp_path}/c.html"]
    command = ["calibrate", sure_teacher.dataset, "--human", sure_teacher.human, "--num_draws=20", *files]
    assert cli.main(command) == 0
    printed = capsys.readouterr().out
    assert re.search(r"ECE +0\.\d+ \[0\.\d+, 0\.\d+\]", printed)
    document = json.loads((tmp_path / "c.json").read_text())
    assert document["temperature"]["low"] < document["temperature"]["high"]
    assert sum(one["count"] for one in document["bins"]["tempered"]) == document["num_judged"]
    html = (tmp_path / "c.html").read_text()
    assert "<b>" not in html
    assert "as it is" in html


def test_too_few_posts_are_told(sure_teacher, tmp_path):
    human = write_human(tmp_path / "few.csv", ["p001,1", "nobody,2"], "post_id,class")
    with pytest.raises(UserError, match="1 of its 2 rows mean posts"):
        calibrate(CalibrateConfig(dataset=sure_teacher.dataset, human=human))


@needs(*MVSA)
def test_a_trained_teacher_is_a_little_too_sure_of_real_tweets(tmp_path, record_property):
    posts, human, model = (FOLDER / name for name in MVSA)
    teacher = load_teacher(TeacherConfig(kind="transformers", model=str(model)))
    found = [record.post for record in read_posts(str(posts)) if record.post][:1500]
    labels = teacher.label([post.text for post in found])
    samples = []
    for post, label in zip(found, labels, strict=True):
        one = sample(post.key(0), label)
        samples.append(Sample(**{**vars(one), "fields": {**one.fields, "url": post.media[0].url}}))
    dataset = write_dataset(tmp_path / "mvsa", [samples])
    summary = calibrate(CalibrateConfig(dataset=dataset, human=str(human), class_column="text_class", num_draws=200))
    assert summary.num_judged + summary.num_fitted > 1000
    # As equal as the posts of one text let them be: none was posted more often than that.
    assert abs(summary.num_judged - summary.num_fitted) < 20
    assert summary.num_fitted > 500
    assert summary.accuracy.value > 0.6
    assert 1 < summary.temperature.value < 1.5
    assert summary.tempered["confidence"].value < summary.as_it_is["confidence"].value
    assert summary.tempered["calibration_error"].value < 0.1
    for side in ("as_it_is", "tempered"):
        for name, estimate in getattr(summary, side).items():
            record_property(f"{name} {side}", str(estimate))

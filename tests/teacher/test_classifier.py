import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_classifier import MAX_POSITIONS, save_classifier

from shards.errors import UserError
from xmodal.teacher.classifier import ClassifierTeacher, class_columns, token_batches
from xmodal.teacher.teacher import TeacherConfig, load_teacher

TEXTS = [
    "this was a great day!",
    "not good",
    "so sad",
    "",
    "happy " * 500,
    "@ada see http://example.org",
    "漢字 \x00 \u200b",
    "it is the day.",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_classifier(tmp_path_factory.mktemp("models") / "tiny-bert")


def teacher(folder, **changes) -> ClassifierTeacher:
    loaded = load_teacher(TeacherConfig(kind="transformers", model=str(folder), **changes))
    assert isinstance(loaded, ClassifierTeacher)
    return loaded


def test_labels_are_in_our_order_whatever_the_order_of_the_models(folder):
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    inputs = AutoTokenizer.from_pretrained(folder)("this was a great day!", return_tensors="pt")
    with torch.inference_mode():
        logits = AutoModelForSequenceClassification.from_pretrained(folder)(**inputs).logits
    positive, negative, neutral = logits.softmax(-1)[0].tolist()
    (label,) = teacher(folder).label(["this was a great day!"])
    assert label == pytest.approx((negative, neutral, positive), abs=1e-6)
    assert len(set(label)) == 3


@pytest.mark.parametrize("max_tokens", [1, 40, 100_000])
def test_a_label_does_not_depend_on_the_other_texts_of_its_batch(folder, max_tokens):
    alone = [teacher(folder).label([text])[0] for text in TEXTS]
    together = teacher(folder, max_tokens_per_batch=max_tokens).label(TEXTS)
    for one, other in zip(alone, together, strict=True):
        assert one == pytest.approx(other, abs=1e-5)
        assert sum(other) == pytest.approx(1, abs=1e-5)
    assert len({tuple(round(share, 3) for share in label) for label in alone}) > 4


def test_the_same_texts_have_the_same_labels_to_the_last_bit(folder):
    loaded = teacher(folder)
    assert loaded.label(TEXTS) == loaded.label(TEXTS)


def test_no_texts_have_no_labels(folder):
    assert teacher(folder).label([]) == []


def test_what_lies_beyond_the_models_limit_does_not_count(folder):
    loaded = teacher(folder)
    long = "good " * MAX_POSITIONS
    one, other = loaded.label([long + "sad", long + "happy bad"])
    assert one == other


def test_names_and_links_are_masked_before_the_model_reads(folder):
    one, other = teacher(folder).label(["@ada see https://a.example/1", "@bob see http://b.example/2"])
    assert one == other


def test_the_teacher_is_named_by_its_folder_without_its_path(folder):
    loaded = teacher(f"{folder}/")
    assert (loaded.name, loaded.revision) == ("tiny-bert", "local")


@pytest.mark.parametrize(
    "labels",
    [
        {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"},
        {0: "negative", 1: "positive"},
        {0: "negative", 1: "neutral", 2: "positive", 3: "mixed"},
        {0: "neg", 1: "negative", 2: "positive"},
        {0: "negative", 1: "neutral", 2: "neutral", 3: "positive"},
    ],
    ids=lambda labels: " ".join(labels.values()),
)
def test_a_model_that_does_not_name_our_classes_is_refused_by_the_names_it_has(tmp_path, labels):
    with pytest.raises(UserError) as caught:
        teacher(save_classifier(tmp_path / "other", labels))
    what, remedy = str(caught.value).splitlines()
    assert "teacher.model" in what
    assert str(list(labels.values())) in what
    assert "id2label" in remedy


def test_names_of_classes_may_be_short_or_in_capitals():
    assert class_columns({0: "POSITIVE", 1: "neg", 2: " Neutral"}, "m") == [1, 2, 0]
    assert class_columns({0: "negative", 1: "neutral", 2: "positive"}, "m") == [0, 1, 2]


@pytest.mark.parametrize(
    "damage", ["no folder", "empty folder", "no tokenizer", "no weights", "cut weights", "bad json"]
)
def test_a_model_that_cannot_be_loaded_is_told_in_two_lines(tmp_path, damage):
    folder = tmp_path / "model"
    if damage == "empty folder":
        folder.mkdir()
    elif damage != "no folder":
        save_classifier(folder)
    if damage == "no tokenizer":
        for path in folder.glob("tokenizer*"):
            path.unlink()
    elif damage == "no weights":
        (folder / "model.safetensors").unlink()
    elif damage == "cut weights":
        os.truncate(folder / "model.safetensors", 1000)
    elif damage == "bad json":
        (folder / "config.json").write_text("{")
    with pytest.raises(UserError) as caught:
        teacher(folder)
    what, _ = str(caught.value).splitlines()
    assert what.startswith(f"teacher.model: {folder}: cannot be loaded")


def test_a_model_of_an_unknown_kind_is_told_in_two_lines(tmp_path):
    folder = save_classifier(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "oracle"}))
    with pytest.raises(UserError, match=r"teacher\.model: .*cannot be loaded"):
        teacher(folder)


def test_a_hub_name_without_a_network_is_told_in_two_lines():
    with pytest.raises(UserError) as caught:
        teacher("someone/no-such-model")
    assert len(str(caught.value).splitlines()) == 2


@given(st.lists(st.integers(1, 600), max_size=60), st.integers(1, 2000))
def test_batches_hold_every_text_once_within_the_token_budget(lengths, max_tokens):
    batches = list(token_batches(lengths, max_tokens))
    assert sorted(place for batch in batches for place in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[place] for place in batch) <= max_tokens
    longest = [max(lengths[place] for place in batch) for batch in batches]
    assert longest == sorted(longest, reverse=True)


def test_a_published_teacher_reads_clear_texts_right():
    published = os.environ.get("XMODAL_TEST_TEACHER")
    if not published:
        pytest.skip("XMODAL_TEST_TEACHER names no folder of a published three-class teacher")
    texts = [
        ("What a wonderful day, I love this place!", 2),
        ("So happy and proud of my daughter today :)", 2),
        ("This is the worst service ever, I am so angry.", 0),
        ("Terrible news, I can't stop crying", 0),
        ("The meeting starts at 9 am on Tuesday.", 1),
        ("The train from Rome to Pisa leaves from platform 4", 1),
    ]
    labels = teacher(published).label([text for text, _ in texts])
    assert [label.index(max(label)) for label in labels] == [expected for _, expected in texts]

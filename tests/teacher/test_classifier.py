import json
import math
import os

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny_classifier import MAX_POSITIONS, save_classifier, save_roberta

from shards.errors import UserError
from xmodal.teacher import classifier
from xmodal.teacher.classifier import ClassifierTeacher, class_columns, padded, token_batches
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
    """The teacher of a folder, in fp32: what `auto` means is up to the machine."""
    loaded = load_teacher(
        TeacherConfig(**{"kind": "transformers", "model": str(folder), "precision": "fp32"} | changes)
    )
    assert isinstance(loaded, ClassifierTeacher)
    return loaded


def change_json(file, **settings) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


def change_weights(folder, change) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_labels_are_in_our_order_whatever_the_order_of_the_models(folder):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    inputs = AutoTokenizer.from_pretrained(folder)("this was a great day!", return_tensors="pt")
    with torch.inference_mode():
        logits = AutoModelForSequenceClassification.from_pretrained(folder)(**inputs).logits
    positive, negative, neutral = logits.softmax(-1)[0].tolist()
    (label,) = teacher(folder).label(["this was a great day!"])
    assert label == pytest.approx((negative, neutral, positive), abs=1e-6)
    assert len(set(label)) == 3


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("bf16", 2e-2)])
@pytest.mark.parametrize("max_tokens", [1, 40, 100_000])
def test_a_label_does_not_depend_on_the_other_texts_nor_on_their_order(folder, max_tokens, precision, tolerance):
    by_itself = teacher(folder, precision=precision)
    alone = [by_itself.label([text])[0] for text in TEXTS]
    in_batches = teacher(folder, precision=precision, max_tokens_per_batch=max_tokens)
    for texts in (TEXTS, TEXTS[::-1], [*TEXTS, *["so great " * 12] * 30, *["not so great " * 8] * 30]):
        label_of = dict(zip(texts, in_batches.label(texts), strict=True))
        for text, one in zip(TEXTS, alone, strict=True):
            assert label_of[text] == pytest.approx(one, abs=tolerance)
            assert sum(label_of[text]) == pytest.approx(1, abs=1e-5)
    assert len({tuple(round(share, 3) for share in label) for label in alone}) > 4


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_same_texts_have_the_same_labels_to_the_last_bit(folder, precision):
    loaded = teacher(folder, precision=precision)
    labels = loaded.label(TEXTS)
    assert labels == loaded.label(TEXTS) == teacher(folder, precision=precision).label(TEXTS)


def test_equal_texts_are_read_once_and_all_labelled(folder, monkeypatch):
    loaded = teacher(folder)
    read = []
    tokenise = loaded.tokenise
    monkeypatch.setattr(loaded, "tokenise", lambda texts: read.extend(texts) or tokenise(texts))
    # Names and links are masked first, so these two are equal.
    labels = loaded.label(["not good", "@ada so sad", "not good", "@bob so sad", "not good"])
    assert read == ["not good", "@user so sad"]
    assert labels[0] == labels[2] == labels[4] != labels[1] == labels[3]


def test_more_texts_than_are_sorted_together_are_labelled_in_their_order(folder, monkeypatch):
    loaded = teacher(folder)
    expected = loaded.label(TEXTS)
    monkeypatch.setattr(classifier, "TEXTS_SORTED_TOGETHER", 3)
    for one, other in zip(loaded.label(TEXTS), expected, strict=True):
        assert one == pytest.approx(other, abs=1e-5)


def test_a_megabyte_of_text_is_cut_before_it_is_tokenised(folder, monkeypatch):
    loaded = teacher(folder)
    longest = []
    tokenise = loaded.tokenise
    monkeypatch.setattr(loaded, "tokenise", lambda texts: longest.extend(map(len, texts)) or tokenise(texts))
    one, other = loaded.label(["good " * 200_000, "good " * 1000])
    assert one == other
    assert max(longest) <= 32 * MAX_POSITIONS


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_revision_names_a_precision_that_is_not_fp32(folder, precision):
    assert teacher(folder, precision=precision).revision == {"fp32": "local", "bf16": "local+bf16"}[precision]


def test_bf16_is_near_fp32_and_auto_is_one_of_the_two(folder):
    labels = {precision: teacher(folder, precision=precision).label(TEXTS) for precision in ("fp32", "bf16", "auto")}
    assert labels["fp32"] != labels["bf16"]
    assert labels["auto"] in (labels["fp32"], labels["bf16"])
    for one, other in zip(labels["fp32"], labels["bf16"], strict=True):
        # Random weights ten times as large as usual magnify what a trained model answers within 0.02.
        assert one == pytest.approx(other, abs=0.1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU takes fp16")
def test_fp16_without_a_gpu_is_refused_in_two_lines(folder):
    with pytest.raises(UserError) as caught:
        teacher(folder, precision="fp16")
    what, remedy = str(caught.value).splitlines()
    assert what.startswith("teacher.precision: fp16: there is no GPU")
    assert "--teacher.precision auto" in remedy


@pytest.mark.parametrize(
    ("save", "num_tokens"),
    [(save_classifier, MAX_POSITIONS), (save_roberta, MAX_POSITIONS - 2)],
    ids=["BERT", "RoBERTa"],
)
def test_a_text_is_cut_at_exactly_what_the_model_has_positions_for(tmp_path, save, num_tokens):
    loaded = teacher(save(tmp_path / "model"))
    assert loaded.max_length == num_tokens
    (tokens,) = loaded.tokenise(["good " * 100])
    assert len(tokens) == num_tokens
    # The last word that fits counts, the one after it does not; more tokens would be an index out of range.
    words = num_tokens - 2
    whole, other_end, beyond = loaded.label(["good " * words, "good " * (words - 1) + "sad", "good " * words + "sad"])
    assert whole == beyond
    assert whole != other_end


def test_a_tokenizer_with_a_lower_limit_than_its_model_is_obeyed(tmp_path):
    other = save_classifier(tmp_path / "model")
    change_json(other / "tokenizer_config.json", model_max_length=9)
    assert teacher(other).max_length == 9


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
    "damage",
    [
        *("no folder", "empty folder", "no tokenizer", "no weights", "cut weights", "bad json", "bad settings"),
        *("no head", "other sizes", "not a number"),
    ],
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
    elif damage == "bad settings":
        change_json(folder / "config.json", hidden_size="large")
    elif damage == "no head":
        change_weights(folder, lambda weights: [weights.pop(name) for name in list(weights) if "classifier" in name])
    elif damage == "other sizes":
        change_weights(folder, lambda weights: weights.update({"classifier.weight": torch.zeros(3, 5)}))
    elif damage == "not a number":
        change_weights(folder, lambda weights: weights["bert.embeddings.word_embeddings.weight"][7].fill_(math.nan))
    with pytest.raises(UserError) as caught:
        teacher(folder)
    what, _ = str(caught.value).splitlines()
    assert what.startswith(f"teacher.model: {folder}: cannot be loaded")


def test_a_model_of_an_unknown_kind_is_told_in_two_lines(tmp_path):
    folder = save_classifier(tmp_path / "model")
    change_json(folder / "config.json", model_type="oracle")
    with pytest.raises(UserError, match=r"teacher\.model: .*cannot be loaded"):
        teacher(folder)


def test_labels_that_are_no_numbers_are_refused_without_the_text(tmp_path):
    folder = save_classifier(tmp_path / "model")
    # Finite weights whose products are not.
    change_weights(folder, lambda weights: weights["classifier.weight"].fill_(3e38))
    with pytest.raises(UserError) as caught:
        teacher(folder).label(["a great day"])
    what, remedy = str(caught.value).splitlines()
    assert what == f"teacher.model: {folder}: gives labels that are no numbers"
    assert "precision fp32" in remedy


def test_a_model_without_a_padding_token_is_refused(tmp_path):
    folder = save_classifier(tmp_path / "model")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.pop("pad_token")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match="its tokenizer has no padding token"):
        teacher(folder)


def test_a_revision_of_a_local_folder_is_refused(folder):
    with pytest.raises(UserError, match=r"teacher\.revision: abc: .* is a local folder"):
        teacher(folder, revision="abc")


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub_model(tmp_path, monkeypatch) -> str:
    """The name of a model that an earlier download left in the hub's cache."""
    cached = tmp_path / "models--someone--tiny"
    save_classifier(cached / "snapshots" / COMMIT)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    return "someone/tiny"


def test_a_hub_model_without_a_revision_is_warned_of_once_with_the_commit_to_pin(hub_model, caplog):
    loaded = teacher(hub_model)
    loaded.label(TEXTS)
    (told,) = [record.getMessage() for record in caplog.records if record.name == "xmodal.teacher.classifier"]
    assert told.startswith("teacher.model: someone/tiny: no revision is pinned")
    assert COMMIT in told
    assert (loaded.name, loaded.revision) == ("someone/tiny", COMMIT)


@pytest.mark.parametrize("revision", [COMMIT, "main"])
def test_a_hub_model_is_known_by_its_commit_whatever_its_revision_is_called(hub_model, revision, caplog):
    assert teacher(hub_model, revision=revision).revision == COMMIT
    assert not [record for record in caplog.records if record.name == "xmodal.teacher.classifier"]


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


def test_padding_is_masked_and_all_tokens_are_there():
    ids, mask = padded([[5, 6, 7], [8], [9, 9]], pad_token_id=1)
    assert ids.tolist() == [[5, 6, 7], [8, 1, 1], [9, 9, 1]]
    assert np.array_equal(mask, [[1, 1, 1], [1, 0, 0], [1, 1, 0]])


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

import importlib.metadata
import subprocess
import sys

import pytest

from shards.errors import ConfigError
from xmodal.teacher.lexicon import LexiconTeacher, compound_to_soft_label
from xmodal.teacher.teacher import MemberConfig, TeacherConfig, load_teacher, normalise_text

TEXTS = [
    "I love this wonderful day!",
    "This is a horrible, sad disaster.",
    "The table is in the room.",
    "",
    "😀",
    "\x00",
]


@pytest.fixture(scope="module")
def lexicon() -> LexiconTeacher:
    return LexiconTeacher()


def test_the_lexicon_tells_clear_texts_apart(lexicon):
    happy, sad, plain = lexicon.label(TEXTS[:3])
    assert max(happy) == happy[2] > 0.5
    assert max(sad) == sad[0] > 0.5
    assert plain == (0, 1, 0)


def test_negation_turns_the_side(lexicon):
    (label,) = lexicon.label(["not good at all"])
    assert label[0] > label[2]


def test_every_soft_label_is_a_distribution(lexicon):
    for label in lexicon.label(TEXTS):
        assert min(label) >= 0
        assert sum(label) == pytest.approx(1)


def test_a_label_depends_on_its_own_text_only(lexicon):
    assert lexicon.label(TEXTS) == [lexicon.label([text])[0] for text in TEXTS]
    assert lexicon.label([]) == []


def test_an_endless_text_costs_the_lexicon_little_time(lexicon):
    # VADER's own time would be hours.
    (label,) = lexicon.label(["good but bad " * 100_000])
    assert sum(label) == pytest.approx(1)


@pytest.mark.parametrize("compound", [-1.0, -0.3, 0.0, 0.3, 1.0])
def test_positive_less_negative_is_the_compound_score(compound):
    negative, neutral, positive = compound_to_soft_label(compound)
    assert positive - negative == compound
    assert negative + neutral + positive == pytest.approx(1)


def test_the_lexicon_names_its_version(lexicon):
    assert (lexicon.name, lexicon.revision) == ("vader", importlib.metadata.version("vaderSentiment"))


def test_the_lexicon_loads_no_torch():
    imports = "import sys; from xmodal.teacher.teacher import MemberConfig, TeacherConfig, load_teacher"
    command = f"{imports}; load_teacher(TeacherConfig()); assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", command], timeout=60).returncode == 0


def test_the_config_chooses_the_teacher():
    assert isinstance(load_teacher(TeacherConfig(kind="lexicon")), LexiconTeacher)


@pytest.mark.parametrize(("name", "value", "least"), [("num_actors", 0, 1), ("max_tokens_per_batch", -1, 0)])
def test_a_number_out_of_range_is_told_by_its_name(name, value, least):
    with pytest.raises(ConfigError, match=f"{name}: {value} must be at least {least}"):
        TeacherConfig(**{name: value})


def test_the_recipe_holds_what_decides_the_labels_and_nothing_else():
    classifier = {"model": "m", "revision": "abc", "precision": "bf16"}
    assert TeacherConfig().recipe() == {"kind": "lexicon"}
    speed = {"max_tokens_per_batch": 7, "num_actors": 3}
    assert TeacherConfig(kind="transformers", **classifier, **speed).recipe() == {"kind": "transformers", **classifier}
    members = [MemberConfig(kind="transformers", **classifier, max_tokens_per_batch=7), MemberConfig()]
    assert TeacherConfig(kind="ensemble", members=members).recipe() == {
        "kind": "ensemble",
        "members": [{"kind": "transformers", **classifier}, {"kind": "lexicon"}],
    }


@pytest.mark.parametrize(
    ("text", "normalised"),
    [
        ("hello @ada and @bob_2!", "hello @user and @user"),
        ("see https://t.co/x or http://a.b", "see http or http"),
        ("mail me @ home", "mail me @ home"),
        ("two  spaces stay", "two  spaces stay"),
        ("ada@example.org", "ada@example.org"),
        ("", ""),
    ],
)
def test_names_and_links_are_masked_as_the_models_saw_them(text, normalised):
    assert normalise_text(text) == normalised

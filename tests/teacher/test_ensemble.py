import pytest
from tiny_classifier import save_classifier

from shards.errors import ConfigError, UserError
from xmodal.config import load_config
from xmodal.labelling.cluster import gpus_per_teacher
from xmodal.labelling.config import LabelConfig, recipe_of
from xmodal.teacher.teacher import MemberConfig, TeacherConfig, load_teacher

TEXTS = ["this was a great day!", "so sad", "", "it is the day"]


def members(folder) -> list[MemberConfig]:
    return [MemberConfig(kind="transformers", model=str(folder), precision="fp32"), MemberConfig(kind="lexicon")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_classifier(tmp_path_factory.mktemp("models") / "tiny-bert")


def test_an_ensemble_says_the_mean_of_what_its_members_say(folder):
    of_members = [load_teacher(member).label(TEXTS) for member in members(folder)]
    ensemble = load_teacher(TeacherConfig(kind="ensemble", members=members(folder)))
    for label, one, other in zip(ensemble.label(TEXTS), *of_members, strict=True):
        assert label == pytest.approx([(a + b) / 2 for a, b in zip(one, other, strict=True)])
        assert sum(label) == pytest.approx(1, abs=1e-6)
        assert one != other
    assert ensemble.label([]) == []


def test_an_ensemble_is_known_by_its_members_and_their_revisions(folder):
    ensemble = load_teacher(TeacherConfig(kind="ensemble", members=members(folder)))
    vader = load_teacher(TeacherConfig())
    assert (ensemble.name, ensemble.revision) == ("mean of tiny-bert, vader", f"local, {vader.revision}")


def test_a_member_that_cannot_be_loaded_is_told_in_two_lines(tmp_path):
    with pytest.raises(UserError) as caught:
        load_teacher(TeacherConfig(kind="ensemble", members=members(tmp_path / "none")))
    assert len(str(caught.value).splitlines()) == 2


def test_an_ensemble_takes_a_gpu_if_a_member_does(folder):
    assert gpus_per_teacher(TeacherConfig(kind="ensemble", members=members(folder)), 2) == 1
    assert gpus_per_teacher(TeacherConfig(kind="ensemble", members=[MemberConfig(), MemberConfig()]), 2) == 0


@pytest.mark.parametrize("given", [[], [MemberConfig()]])
def test_an_ensemble_of_fewer_than_two_is_refused(given):
    with pytest.raises(ConfigError, match=f"members: {len(given)} are too few"):
        TeacherConfig(kind="ensemble", members=given)


def test_members_of_what_is_no_ensemble_are_refused():
    with pytest.raises(ConfigError, match="members: 2 do nothing: kind is lexicon"):
        TeacherConfig(members=[MemberConfig(), MemberConfig()])


def load(tmp_path, second: str) -> LabelConfig:
    (tmp_path / "posts.jsonl").write_text("")
    (tmp_path / "label.yaml").write_text(
        f"posts: {tmp_path / 'posts.jsonl'}\ndataset: d\nteacher:\n  kind: ensemble\n  members:\n"
        f"  - {{kind: lexicon}}\n  - {second}\n"
    )
    return load_config(
        LabelConfig, ["--config", str(tmp_path / "label.yaml")], command="xmodal label", description="L."
    )


def test_the_members_of_a_yaml_file_are_read_and_pinned_in_the_recipe(tmp_path):
    config = load(tmp_path, "{kind: transformers, model: m, precision: bf16}")
    assert config.teacher.members == [
        MemberConfig(),
        MemberConfig(kind="transformers", model="m", precision="bf16"),
    ]
    assert recipe_of(config, [config.posts])["teacher"]["members"] == [
        {"kind": "lexicon"},
        {"kind": "transformers", "model": "m", "revision": None, "precision": "bf16"},
    ]


@pytest.mark.parametrize(
    ("second", "what", "remedy"),
    [
        ("{modle: m}", "teacher.members[1].modle: no such setting", "did you mean teacher.members[1].model?"),
        ("{kind: ensemble}", "teacher.members[1].kind: Expected a Literal['lexicon', 'transformers']", "--help"),
        ("{members: []}", "teacher.members[1].members: no such setting", ""),
        ("{max_tokens_per_batch: many}", "teacher.members[1].max_tokens_per_batch: Expected a int", "--help"),
        ("{max_tokens_per_batch: -1}", "teacher.members[1].max_tokens_per_batch: -1 must be at least 0", "change"),
        ("{precision: }", "teacher.members[1].precision: None is no value", "change teacher.members[1].precision"),
        ("lexicon", "teacher.members[1]: 'lexicon' is not a section", "change teacher.members[1] in the config"),
    ],
)
def test_a_wrong_member_is_told_by_its_place(tmp_path, second, what, remedy):
    with pytest.raises(UserError) as caught:
        load(tmp_path, second)
    first, then = str(caught.value).splitlines()
    assert first.startswith(f"{tmp_path / 'label.yaml'}: {what}")
    assert remedy in then


def test_a_wrong_member_on_the_command_line_is_told_as_one():
    with pytest.raises(UserError, match=r"^command line: teacher\.members\[0\]\.kid: no such setting"):
        load_config(
            LabelConfig,
            ["--teacher.members", '[{"kid": "lexicon"}]', "--posts=p", "--dataset=d"],
            command="xmodal label",
            description="L.",
        )

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch

from shards.errors import ConfigError, UserError
from xmodal.students import (
    PRESETS,
    StudentConfig,
    create_student,
    export_student,
    input_spec,
    load_student,
    put_mlp_head,
    scale_without_antialiasing,
    student_fingerprint,
)

ROOT = Path(__file__).parent.parent.parent
TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2}


def new_student(model: str = "vit_tiny_patch16_224", head: str = "linear", **model_args) -> torch.nn.Module:
    """Untrained, but with every weight and every buffer other than timm makes them."""
    torch.manual_seed(0)
    student = create_student(StudentConfig(model=model, pretrained=False, head=head, model_args=model_args))
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    size = input_spec(student).size
    student.train()(torch.randn(4, 3, size, size))
    return student.eval()


def export(model: torch.nn.Module, folder: Path, crop_share: float = 0.8) -> Path:
    export_student(model, str(folder), crop_share=crop_share, provenance={"view_fingerprint": "abc", "steps": 7})
    return folder


def logits(model: torch.nn.Module) -> torch.Tensor:
    size = input_spec(model).size
    pictures = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        return model.eval()(pictures)


def config_json(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_a_preset_is_a_model_of_timm_with_published_weights(preset):
    assert timm.is_model(preset.split(".")[0])
    assert preset in timm.list_pretrained(filter=preset.split(".")[0])


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_has_fused_attention_in_every_block(preset):
    student = create_student(StudentConfig(model=preset, pretrained=False, model_args={"depth": 2}))
    assert [block.attn.fused_attn for block in student.blocks] == [True, True]


MODELS = [
    ("vit_tiny_patch16_224", TINY),
    ("vit_tiny_patch16_224", TINY | {"class_token": False, "global_pool": "avg"}),
    ("vit_tiny_patch16_224", TINY | {"img_size": 48, "depth": 2, "drop_path_rate": 0.1}),
    ("vit_tiny_r_s16_p8_224", {"img_size": 64, "depth": 1}),
    ("resnet10t", {}),
]


@pytest.mark.parametrize(("model", "model_args"), MODELS, ids=["vit", "no-token", "sizes", "hybrid", "batch-norm"])
def test_bare_timm_loads_an_exported_student_with_equal_logits(tmp_path, model, model_args):
    student = new_student(model, **model_args)
    folder = export(student, tmp_path / "student")
    loaded = timm.create_model(f"local-dir:{folder}", pretrained=True)
    assert torch.equal(logits(loaded), logits(student))
    assert logits(student).shape == (2, 3)
    assert len(logits(student).unique()) > 3
    assert torch.equal(logits(load_student(str(folder))), logits(student))


@pytest.mark.parametrize(
    ("model", "model_args", "path"),
    [
        ("vit_tiny_patch16_224", TINY, "head"),
        ("resnet10t", {}, "fc"),
        ("swin_tiny_patch4_window7_224",
         {"img_size": 32, "window_size": 4, "embed_dim": 24, "depths": [1, 1, 1, 1]}, "head.fc"),
    ],
    ids=["vit", "batch-norm", "swin"],
)  # fmt: skip
def test_a_student_with_the_papers_head_is_loaded_with_equal_logits(tmp_path, model, model_args, path):
    student = new_student(model, head="mlp", **model_args)
    head = student.get_submodule(path)
    assert [tuple(weight.shape) for weight in head.parameters()] == [
        (32, head.fc1.in_features), (32,), (3, 32), (3,),
    ]  # fmt: skip
    folder = export(student, tmp_path / "student")
    assert torch.equal(logits(load_student(str(folder))), logits(student))
    # Its head is no linear one: by hand, from the features.
    size = input_spec(student).size
    with torch.inference_mode():
        features = student.forward_head(student.forward_features(torch.zeros(1, 3, size, size)), pre_logits=True)
        hidden = torch.nn.functional.gelu(features @ head.fc1.weight.T + head.fc1.bias)
        torch.testing.assert_close(student(torch.zeros(1, 3, size, size)), hidden @ head.fc2.weight.T + head.fc2.bias)


def test_bare_timm_refuses_a_student_with_the_papers_head_rather_than_loading_a_part(tmp_path):
    folder = export(new_student(head="mlp", **TINY), tmp_path / "student")
    with pytest.raises(RuntimeError, match=r"head\.fc1"):
        timm.create_model(f"local-dir:{folder}", pretrained=True)
    card = (folder / "README.md").read_text()
    assert 'load_student("PATH_OF_THIS_FOLDER")' in card
    assert "timm.create_model" not in card


def test_a_student_with_the_papers_head_can_be_where_another_begins(tmp_path):
    student = new_student(head="mlp", **TINY)
    folder = export(student, tmp_path / "student")
    again = create_student(StudentConfig(model=f"local-dir:{folder}", head="mlp"))
    assert torch.equal(logits(again), logits(student))
    with pytest.raises(UserError, match=r"set student\.head=mlp"):
        create_student(StudentConfig(model=f"local-dir:{folder}"))


def test_a_student_that_begins_as_one_of_the_authors_keeps_their_gelu_without_its_weights_too(tmp_path):
    student = new_student(**TINY)
    put_mlp_head(student, "tanh")
    folder = export(student, tmp_path / "student")
    # As the trainer makes the student that it loads what was learned into.
    again = create_student(StudentConfig(model=f"local-dir:{folder}", head="mlp", pretrained=False))
    again.load_state_dict(student.state_dict())
    assert config_json(export(again, tmp_path / "again"))["head_gelu"] == "tanh"
    assert torch.equal(logits(again), logits(student))


def test_the_buffers_of_batch_norm_are_exported(tmp_path):
    student = new_student("resnet10t")
    loaded = timm.create_model(f"local-dir:{export(student, tmp_path / 'student')}", pretrained=True)
    buffers = dict(loaded.named_buffers())
    assert buffers["bn1.running_mean"].abs().sum() > 0
    assert all(torch.equal(buffers[name], value) for name, value in student.named_buffers())


def test_config_json_says_what_the_model_is_and_takes(tmp_path):
    folder = export(new_student(**TINY | {"img_size": 48}), tmp_path / "student", crop_share=0.75)
    config = config_json(folder)
    assert config["architecture"] == "vit_tiny_patch16_224"
    assert config["label_names"] == ["negative", "neutral", "positive"]
    assert config["num_classes"] == 3
    assert config["pretrained_cfg"]["input_size"] == [3, 48, 48]
    assert config["pretrained_cfg"]["crop_pct"] == 0.75


def test_a_loaded_student_takes_pictures_as_the_exported_one(tmp_path):
    student = new_student(**TINY)
    spec = input_spec(load_student(str(export(student, tmp_path / "student", crop_share=0.75))))
    assert spec == input_spec(student, 0.75)
    assert (spec.size, spec.crop_share) == (32, 0.75)


def test_a_hybrid_takes_the_size_that_it_was_made_for():
    assert input_spec(new_student("vit_tiny_r_s16_p8_224", img_size=64, depth=1)).size == 64


def test_the_crop_is_the_models_own_unless_the_config_says_otherwise():
    student = new_student(**TINY)
    assert input_spec(student).crop_share == student.pretrained_cfg["crop_pct"] == 0.9
    assert input_spec(student, 1.0).crop_share == 1.0


def test_a_student_that_takes_squashed_pictures_says_so(tmp_path):
    student = new_student(**TINY)
    assert not input_spec(student).squash
    export_student(student, str(tmp_path / "student"), crop_share=1.0, squash=True, provenance={})
    assert config_json(tmp_path / "student")["pretrained_cfg"]["crop_mode"] == "squash"
    assert input_spec(load_student(str(tmp_path / "student"))).squash


def with_interpolation(name: str) -> torch.nn.Module:
    return new_student(**TINY, pretrained_cfg_overlay={"interpolation": name})


@pytest.mark.parametrize(("name", "taken"), [("bicubic", "bicubic"), ("bilinear", "bilinear"), ("random", "bilinear")])
def test_a_student_takes_pictures_with_the_interpolation_of_its_config(tmp_path, name, taken):
    student = with_interpolation(name)
    assert input_spec(student).interpolation == taken
    folder = export(student, tmp_path / "student")
    assert config_json(folder)["pretrained_cfg"]["interpolation"] == name
    assert input_spec(load_student(str(folder))).interpolation == taken
    # Those of folders that were exported before the config said so are antialiased.
    rewrite(folder, antialias=None)
    assert input_spec(load_student(str(folder))).interpolation == taken


@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_a_student_of_pictures_without_antialiasing_stays_one(tmp_path, head):
    student = new_student(head=head, **TINY, pretrained_cfg_overlay={"interpolation": "bilinear"})
    antialiased = student_fingerprint(student)
    scale_without_antialiasing(student)
    assert student_fingerprint(student) != antialiased
    folder = export(student, tmp_path / "student")
    config = config_json(folder)
    assert (config["pretrained_cfg"]["interpolation"], config["antialias"]) == ("bilinear", False)
    assert input_spec(load_student(str(folder))).interpolation == "aliased_bilinear"
    # One that begins with it, as in fine-tuning, and what is exported of that.
    for pretrained in (True, False):
        second = create_student(StudentConfig(model=f"local-dir:{folder}", head=head, pretrained=pretrained))
        again = export(second, tmp_path / "again")
        assert input_spec(load_student(str(again))).interpolation == "aliased_bilinear"
    if head == "linear":  # bare timm takes no notice
        assert torch.equal(logits(timm.create_model(f"local-dir:{folder}", pretrained=True)), logits(student))


def test_an_interpolation_that_is_not_at_hand_is_told():
    with pytest.raises(UserError, match="scaled by lanczos, which xmodal does not do"):
        input_spec(with_interpolation("lanczos"))
    student = with_interpolation("bicubic")
    scale_without_antialiasing(student)
    with pytest.raises(UserError, match="scaled by bicubic without antialiasing"):
        input_spec(student)


def test_a_student_can_start_from_an_exported_one(tmp_path):
    student = new_student(**TINY)
    folder = export(student, tmp_path / "first")
    second = create_student(StudentConfig(model=f"local-dir:{folder}", pretrained=True))
    assert torch.equal(logits(second), logits(student))
    again = export(second, tmp_path / "second")
    # A folder that is gone must not be needed by those that came of it.
    (tmp_path / "first").rename(tmp_path / "elsewhere")
    assert torch.equal(logits(timm.create_model(f"local-dir:{again}", pretrained=True)), logits(student))


def test_the_folder_has_the_model_card_and_where_the_student_comes_from(tmp_path):
    folder = export(new_student(**TINY), tmp_path / "student")
    assert {file.name for file in folder.iterdir()} == {
        "config.json",
        "model.safetensors",
        "README.md",
        "provenance.json",
    }
    assert json.loads((folder / "provenance.json").read_text()) == {"view_fingerprint": "abc", "steps": 7}
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: timm\n")
    for fact in ("vit_tiny_patch16_224", "19,619 parameters", "32 by 32", "negative, neutral, positive", "abc", "7"):
        assert fact in card


def test_others_may_read_an_exported_student(tmp_path):
    folder = export(new_student(**TINY), tmp_path / "student")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755


def test_a_new_export_replaces_the_old_folder_whole(tmp_path):
    folder = export(new_student(**TINY), tmp_path / "student")
    (folder / "model.onnx").write_text("of the old one")
    deeper = new_student(**TINY | {"depth": 3})
    export(deeper, folder)
    assert not (folder / "model.onnx").exists()
    assert torch.equal(logits(load_student(str(folder))), logits(deeper))
    assert [entry.name for entry in tmp_path.iterdir()] == ["student"]


def test_a_student_may_be_written_to_an_empty_folder_and_through_a_link(tmp_path):
    student = new_student(**TINY)
    (tmp_path / "empty").mkdir()
    export(student, tmp_path / "empty")
    (tmp_path / "link").symlink_to("empty")
    deeper = new_student(**TINY | {"depth": 3})
    export(deeper, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert torch.equal(logits(load_student(str(tmp_path / "empty"))), logits(deeper))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["empty", "link"]


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def add(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    return folder


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda folder: add(export(new_student(**TINY), folder), "notes.txt"), "holds notes.txt"),
        (lambda folder: add(export(new_student(**TINY), folder), "checkpoints/a/commit.json"), "holds checkpoints"),
        (lambda folder: add(export(new_student(**TINY), folder), ".git/HEAD"), "holds .git"),
        (lambda folder: add(folder, "config.json", "checkpoints/step-1/commit.json"), "holds checkpoints"),
        (lambda folder: add(folder, "config.json"), "no config.json of a student"),
        (lambda folder: add(folder, "README.md"), "no config.json of a student"),
        (lambda folder: add(folder, "config.json/config.json"), "cannot be read"),
        (lambda folder: add(folder.parent, "there") / "there", "is no folder"),
        (lambda folder: add(folder.parent, "there") / "there" / "below", "is no folder"),
    ],
    ids=["notes", "student-and-run", "cloned", "run", "begun-run", "project", "odd", "file", "below-a-file"],
)
def test_what_is_no_student_is_not_replaced(tmp_path, make, why):
    folder = make(tmp_path / "there")
    before = files_below(tmp_path)
    with pytest.raises(UserError) as caught:
        export(new_student(**TINY), folder)
    assert why in caught.value.what
    assert str(folder) in caught.value.what
    assert len(str(caught.value).splitlines()) == 2
    assert files_below(tmp_path) == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["there"]


def test_the_folder_that_one_works_in_is_not_replaced(tmp_path, monkeypatch):
    export(new_student(**TINY), tmp_path / "student")
    (tmp_path / "empty").mkdir()
    for folder in ("student", "empty"):
        monkeypatch.chdir(tmp_path / folder)
        with pytest.raises(UserError, match="the folder that this command runs in"):
            export(new_student(**TINY), Path())
        assert Path.cwd() == tmp_path / folder


def test_a_folder_where_none_can_be_made_is_a_users_mistake():
    with pytest.raises(UserError) as caught:
        export(new_student(**TINY), Path("/proc/students/new"))
    assert caught.value.what == "/proc/students/new: cannot be written to: No such file or directory"
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"model": "vit_of_nobody"}, "vit_of_nobody"),
        ({"model": ""}, "Unknown model"),
        ({"model": "vit_tiny_patch16_224.of_nobody"}, "of_nobody"),
        ({"model": "local-dir:/nowhere", "pretrained": True}, "/nowhere/config.json"),
        ({"model_args": {"image_size": 32}}, "image_size"),
        ({"model_args": {"depth": "deep"}}, "deep"),
        ({"model_args": TINY | {"num_heads": 5}}, "num_heads"),
        ({"model_args": TINY | {"num_heads": 0}}, "num_heads"),
        ({"model_args": TINY | {"patch_size": 0}}, "patch_size"),
        ({"model_args": TINY | {"class_token": False}}, "class token"),
        ({"model_args": {"pretrained": True}}, "pretrained"),
        ({"model": "vgg11", "gradient_checkpointing": True}, "gradient checkpointing"),
        ({"model": "deit_tiny_distilled_patch16_224", "head": "mlp"}, "one linear layer"),
    ],
)
def test_a_name_or_arguments_that_timm_does_not_know_are_a_users_mistake(settings, word):
    config = StudentConfig(**{"model": "vit_tiny_patch16_224", "pretrained": False, **settings})
    with pytest.raises(UserError) as caught:
        create_student(config)
    assert word in caught.value.what
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"model_args": {"num_classes": 7}}, "model_args"),
        ({"eval_crop_share": 0.0}, "eval_crop_share"),
        ({"eval_crop_share": 1.1}, "eval_crop_share"),
    ],
)
def test_a_setting_out_of_range_names_its_key(settings, key):
    with pytest.raises(ConfigError) as caught:
        StudentConfig(**settings)
    assert caught.value.key == key


def cut(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def rewrite(folder: Path, **changes) -> None:
    config = config_json(folder) | changes
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "config.json").unlink(),
        lambda folder: (folder / "config.json").write_text("{"),
        lambda folder: (folder / "config.json").write_text("[]"),
        lambda folder: (folder / "model.safetensors").unlink(),
        lambda folder: (folder / "model.safetensors").write_bytes(b"123"),
        cut,
        lambda folder: rewrite(folder, architecture=None),
        lambda folder: rewrite(folder, architecture="resnet10t"),
        lambda folder: rewrite(folder, antialias="no"),
        lambda folder: rewrite(folder, label_names=None),
        lambda folder: rewrite(folder, label_names=["positive", "neutral", "negative"]),
    ],
    ids=[
        "no-config", "half-config", "list", "no-weights", "no-weights-in-it", "cut-off", "no-architecture",
        "other-architecture", "neither-true-nor-false", "no-labels", "other-labels",
    ],
)  # fmt: skip
def test_a_folder_that_is_no_student_is_a_users_mistake(tmp_path, damage):
    folder = export(new_student(**TINY), tmp_path / "student")
    damage(folder)
    with pytest.raises(UserError) as caught:
        load_student(str(folder))
    assert str(folder) in caught.value.what
    assert len(str(caught.value).splitlines()) == 2


def test_published_weights_that_cannot_be_had_are_a_users_mistake(tmp_path):
    program = (
        "from shards.errors import UserError\n"
        "from xmodal.students import StudentConfig, create_student\n"
        "try:\n"
        "    create_student(StudentConfig(model='vit_tiny_patch16_224', pretrained=True))\n"
        "except UserError as error:\n"
        "    print(error)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    what, remedy = ended.stdout.splitlines()
    assert what.startswith("student.model: vit_tiny_patch16_224")
    assert "student.pretrained=false" in remedy


def test_a_student_is_read_by_whoever_may_read_what_its_maker_writes(tmp_path):
    folder = export(new_student(**TINY), tmp_path / "student")
    modes = {path.name: path.stat().st_mode for path in folder.iterdir()}
    assert modes["model.safetensors"] == modes["config.json"]

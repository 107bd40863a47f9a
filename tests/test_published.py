"""The paper's twelve models by name."""

from pathlib import Path

import pytest
import torch
import yaml

from shards.errors import UserError
from xmodal import cli
from xmodal.published import PUBLISHED, mean_and_std, models_folder, published_model, pulled_folder
from xmodal.students import PRESETS, StudentConfig, create_student, export_student, load_student

ROOT = Path(__file__).parent.parent
NAMES = [
    "boosted_model", "ViT_L16", "ViT_L32", "ViT_B16", "ViT_B32", "merged_T4SA", "bal_flat_T4SA2.0", "bal_T4SA2.0",
    "unb_T4SA2.0", "B-T4SA_1.0_upd_filt", "B-T4SA_1.0_upd", "B-T4SA_1.0",
]  # fmt: skip


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XMODAL_MODELS", str(tmp_path / "models"))
    return tmp_path / "models"


def make_student(folder: Path) -> torch.nn.Module:
    args = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2}
    student = create_student(StudentConfig(model="vit_tiny_patch16_224", pretrained=False, model_args=args))
    export_student(student, str(folder), crop_share=1.0, provenance={})
    return student.eval()


def test_the_twelve_are_in_the_order_of_the_authors_readme():
    assert list(PUBLISHED) == NAMES
    assert {model.backbone for model in PUBLISHED.values()} == set(PRESETS)


@pytest.mark.parametrize("model", [model for model in PUBLISHED.values() if model.recipe], ids=lambda model: model.name)
def test_a_model_is_what_its_recipe_makes(model):
    """Backbone, size, pixel range, training set and accuracies are written in two places, which must agree."""
    text = (ROOT / "configs" / "train" / f"{model.recipe}.yaml").read_text()
    recipe = yaml.safe_load(text)
    assert f'"{model.name}"' in text
    assert recipe["student"]["model"] == model.backbone
    args = recipe["student"]["model_args"]
    assert args["img_size"] == model.size
    scaling = tuple(tuple(args["pretrained_cfg_overlay"][name]) for name in ("mean", "std"))
    assert scaling == mean_and_std(model.pixels)
    assert recipe["view"] == f"runs/views/{model.dataset.lower().replace('-', '_').replace('.', '_')}"
    if model.accuracy:
        assert " / ".join(f"{value:.1f}" for value in model.accuracy.values()) + " %" in text
    if model.row:
        assert model.recipe == f"paper_{model.row.replace('.', '_')}"
        assert model.url.endswith(f"/v0.1.0/{model.name}.h5")


def test_every_model_but_the_undocumented_one_has_a_recipe():
    assert [name for name, model in PUBLISHED.items() if not model.recipe] == ["boosted_model"]
    assert PUBLISHED["merged_T4SA"].recipe == PUBLISHED["ViT_B32"].recipe


def test_every_training_set_that_is_documented_has_a_recipe():
    made = {path.stem for path in (ROOT / "configs" / "curate").glob("*.yaml")}
    for model in PUBLISHED.values():
        assert model.dataset is None or model.dataset.lower().replace("-", "_").replace(".", "_") in made


def test_the_list_names_every_model_and_whether_it_is_here(cache, capsys):
    make_student(cache / "ViT_B16")
    assert cli.main(["models", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == NAMES
    row = next(line for line in lines if line.startswith("ViT_B16"))
    assert row.split() == [
        "ViT_B16", "ViT_B16", "384", "-1..1", "merged_T4SA", "3.7", "87.0", "83.1", "79.4", "paper_3_7", "yes",
        published_model("ViT_B16").url,
    ]  # fmt: skip
    assert "in no release" in lines[1]


def test_a_pulled_model_is_loaded_by_its_name(cache):
    student = make_student(cache / "bal_T4SA2.0")
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(load_student("bal_T4SA2.0")(pixels), student(pixels))


def test_a_folder_comes_before_a_model_of_its_name(cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_student(tmp_path / "ViT_L16")
    assert load_student("ViT_L16").embed_dim == 32


@pytest.mark.parametrize(
    ("name", "what", "remedy"),
    [
        ("ViT_L61", "none of the paper's models", "did you mean ViT_L16?"),
        ("vit_b32", "none of the paper's models", "did you mean ViT_B32?"),
        ("B-T4SA_1.0_udp", "none of the paper's models", "did you mean B-T4SA_1.0_upd?"),
        ("resnet50", "none of the paper's models", "see `xmodal models list` for the names"),
        ("ViT_B32", "is not on this machine", "xmodal models pull ViT_B32"),
        ("merged_T4SA", "is not on this machine", "xmodal models pull merged_T4SA --file merged_T4SA.h5"),
        ("runs/ViT_L16", "no config.json", "train one first"),
    ],
)
def test_a_name_that_is_no_student_here_is_told_what_to_do(cache, name, what, remedy):
    with pytest.raises(UserError) as caught:
        load_student(name)
    assert name in caught.value.what
    assert what in caught.value.what
    assert remedy in caught.value.remedy


def test_a_typo_in_a_models_name_ends_an_evaluation_with_code_2(cache, capsys):
    assert cli.main(["evaluate", "-m", "ViT_B31", "-b", "emoji", "--root", str(ROOT)]) == 2
    what, remedy = capsys.readouterr().err.splitlines()
    assert what == "xmodal: ViT_B31: no such folder, and none of the paper's models"
    assert remedy.strip() == "did you mean ViT_B32?"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [(["lst"], "lst: no such action"), (["list", "--fast"], "--fast: no such setting")],
)
def test_a_mistake_in_asking_for_models_is_told_in_two_lines(arguments, complaint, capsys):
    assert cli.main(["models", *arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert complaint in lines[0]


def test_models_lie_in_the_users_cache_folder(monkeypatch):
    monkeypatch.delenv("XMODAL_MODELS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert models_folder() == Path("/cache/xmodal/models")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    assert pulled_folder("ViT_L16") == Path("/home/someone/.cache/xmodal/models/ViT_L16")

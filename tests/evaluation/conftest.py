"""A tiny student as `xmodal train` exports it, and a benchmark of a few pictures for it."""

from pathlib import Path

import made_pictures
import pytest
import torch

from xmodal.students import StudentConfig, create_student, export_student

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2}
NUM_GROUPS = 12


@pytest.fixture(scope="session")
def tiny_student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ViT for 32 by 32 pixels with weights large enough that pictures differ."""
    torch.manual_seed(0)
    model = create_student(StudentConfig(model="vit_tiny_patch16_224", pretrained=False, model_args=TINY))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    folder = tmp_path_factory.mktemp("student") / "tiny"
    export_student(model, str(folder), crop_share=0.8, provenance={})
    return folder


@pytest.fixture(scope="session")
def diverged_student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One whose weights are no numbers, as training leaves it that diverged."""
    model = create_student(StudentConfig(model="vit_tiny_patch16_224", pretrained=False, model_args=TINY))
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    folder = tmp_path_factory.mktemp("student") / "diverged"
    export_student(model, str(folder), crop_share=1.0, provenance={})
    return folder


@pytest.fixture(scope="session")
def picture_benchmark(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs of pictures of many sizes and kinds, and two that cannot be decoded."""
    folder = tmp_path_factory.mktemp("benchmark")
    rows = ["path,score"]
    for group in range(NUM_GROUPS):
        size = {"width": 33 + 7 * group, "height": 90 - 5 * group}
        score = (-1) ** group * (group + 1) / 20
        for style, content in (
            ("flat", made_pictures.png(**size, seed=group)),
            ("deep", made_pictures.jpeg(seed=group)),
        ):
            (folder / f"{style}-{group}.img").write_bytes(content)
            rows.append(f"{style}-{group}.img,{score}")
    for name, content in {"garbage": made_pictures.GARBAGE, "cut": made_pictures.jpeg()[:300]}.items():
        (folder / f"{name}-x.img").write_bytes(content)
        rows.insert(5, f"{name}-x.img,0.5")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    file = folder / "pictures.yaml"
    file.write_text(f"name: pictures\nimages: {folder}\nlabels: {folder}/labels.csv\ngroup_pattern: '-(.*)\\.img'\n")
    return file

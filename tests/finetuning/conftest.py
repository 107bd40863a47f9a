"""Tiny students to start from, and a small benchmark that they can learn: bright pictures are positive."""

from pathlib import Path

import made_pictures
import pytest
import torch
from launchers import TINY_MODEL_ARGS
from PIL import Image

from xmodal.students import StudentConfig, create_student, export_student, put_mlp_head

NUM_PICTURES = 36
COPIES = (3, 4, 5)
"""Pictures that there is a smaller copy of, with a class of its own."""


def picture(number: int) -> Image.Image:
    shade = (235, 235, 235) if number % 2 else (20, 20, 20)
    return Image.blend(made_pictures.textured(64, 64, number), Image.new("RGB", (64, 64), shade), 0.5)


@pytest.fixture(scope="session")
def beginner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained student."""
    torch.manual_seed(0)
    config = StudentConfig(model="vit_tiny_patch16_224", pretrained=False, model_args=TINY_MODEL_ARGS)
    folder = tmp_path_factory.mktemp("beginner") / "student"
    export_student(create_student(config), str(folder), crop_share=1.0, squash=True, provenance={})
    return folder


@pytest.fixture(scope="session")
def authors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student such as a converted one of theirs: two layers in its head, GELU by tanh; but pictures are cut."""
    torch.manual_seed(0)
    student = create_student(
        StudentConfig(model="vit_tiny_patch16_224", pretrained=False, model_args=TINY_MODEL_ARGS | {"depth": 1})
    )
    put_mlp_head(student, "tanh")
    folder = tmp_path_factory.mktemp("authors") / "student"
    export_student(student, str(folder), crop_share=0.75, provenance={})
    return folder


@pytest.fixture(scope="session")
def bright(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The definition of the benchmark: pictures, copies of some, pairs that share a judgement, one that is damaged; and
    two given divisions.
    """
    folder = tmp_path_factory.mktemp("bright")
    rows = []
    for number in range(NUM_PICTURES):
        name = f"{number}-{number // 4}{'ab'[number % 2]}.png"
        picture(number).save(folder / name)
        rows.append(f"{name},{number % 2}")
    for number in COPIES:
        picture(number).resize((48, 48)).save(folder / f"copy-{number}-c{number}.jpg", quality=85)
        rows.append(f"copy-{number}-c{number}.jpg,{number % 2}")
    (folder / "damaged-d.png").write_bytes(made_pictures.GARBAGE)
    rows.append("damaged-d.png,1")

    def write(name: str, chosen: list[str]) -> None:
        (folder / name).write_text("\n".join(["path,class", *chosen]) + "\n")

    write("table.csv", rows)
    for division, first in ((1, 0), (2, 9)):
        turned = rows[first:] + rows[:first]
        for part, chosen in (("train", turned[:24]), ("val", turned[24:30]), ("test", turned[30:])):
            write(f"{part}-{division}.csv", chosen)
    splits = [
        f"  - {{train: {folder}/train-{number}.csv, val: {folder}/val-{number}.csv, test: {folder}/test-{number}.csv}}"
        for number in (1, 2)
    ]
    file = folder / "bright.yaml"
    file.write_text(
        f"name: bright\nimages: {folder}\nlabels: {folder}/table.csv\nclasses: {{0: negative, 1: positive}}\n"
        "group_pattern: '-(\\w+)\\.\\w+$'\nprotocols: [five_fold, given_splits]\nsplits:\n" + "\n".join(splits) + "\n"
    )
    return file

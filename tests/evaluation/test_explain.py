"""`xmodal explain`: the heat lies where the student looked, in the picture as people see it."""

import io
import os
from dataclasses import replace
from pathlib import Path

import made_pictures
import numpy as np
import pytest
import s3_servers
import torch
from PIL import Image

from shards.augment import eval_box, eval_pixels
from shards.batches import Normaliser
from shards.decode import decode_rgb
from shards.storage import open_storage
from xmodal.cli import main
from xmodal.evaluation.attention import Look, look
from xmodal.evaluation.explain import caption, explained_png
from xmodal.evaluation.heat_map import heat_map, heated
from xmodal.labels import CLASSES
from xmodal.students import InputSpec, StudentConfig, create_student, export_student, scale_without_antialiasing

SPEC = InputSpec(size=32, mean=(0.5,) * 3, std=(0.5,) * 3, crop_share=1.0, squash=False, interpolation="bicubic")


def warmth(pixels: np.ndarray) -> np.ndarray:
    """How much of the heat's colours a grey picture has got: hot places are far from grey."""
    return pixels[..., 0].astype(float) - pixels[..., 2]


@pytest.mark.parametrize(("width", "height"), [(160, 80), (80, 160), (100, 100), (90, 41)])
@pytest.mark.parametrize(("crop_share", "squash"), [(1.0, False), (0.8, False), (1.0, True), (0.8, True)])
@pytest.mark.parametrize("patch", [(0, 0), (1, 3), (3, 2)])
def test_the_hot_patch_lies_over_what_the_student_saw_in_it(width, height, crop_share, squash, patch):
    # Where a mark of the picture comes to lie in the student's square, that patch is hot: it must lie over the mark.
    box = eval_box((width, height), crop_share, squash=squash)
    left, top = (low + (high - low) * (place + 0.5) / 4
                 for low, high, place in ((box[0], box[2], patch[1]), (box[1], box[3], patch[0])))  # fmt: skip
    grey = Image.new("RGB", (width, height), (120, 120, 120))
    marked = grey.copy()
    marked.paste((255, 255, 255), (round(left) - 2, round(top) - 2, round(left) + 3, round(top) + 3))
    seen = eval_pixels(made_pictures.encode(marked, "PNG"), 32, crop_share, squash=squash).mean(axis=0)
    of_patches = seen.reshape(4, 8, 4, 8).mean(axis=(1, 3))
    assert np.unravel_index(of_patches.argmax(), (4, 4)) == patch
    heat = np.zeros((4, 4))
    heat[patch] = 1
    made = warmth(heated(np.asarray(grey), heat, box))
    row, column = np.unravel_index(made.argmax(), made.shape)
    assert abs(column + 0.5 - left) <= (box[2] - box[0]) / 8
    assert abs(row + 0.5 - top) <= (box[3] - box[1]) / 8


def test_what_the_student_did_not_see_is_dark():
    pixels = np.full((40, 80, 3), 200, dtype=np.uint8)
    made = heated(pixels, np.full((2, 2), 0.25), (20, 0, 60, 40))
    assert made[:, :20].max() < 60
    assert made[:, 60:].max() < 60
    assert made[:, 20:60].min() > 100


def test_a_few_patches_of_outliers_do_not_hide_all_others():
    heat = np.linspace(0, 1, 256).reshape(16, 16)
    plain = heated(np.full((64, 64, 3), 120, dtype=np.uint8), heat, (0, 0, 64, 64))
    heat[0, 5] = 1000
    spoilt = heated(np.full((64, 64, 3), 120, dtype=np.uint8), heat, (0, 0, 64, 64))
    assert np.abs(plain[32:].astype(int) - spoilt[32:]).max() < 10


@pytest.mark.parametrize("size", [(3000, 2000), (7, 5), (1, 900), (640, 640)])
def test_a_picture_of_any_size_has_a_sheet_that_can_be_looked_at(size):
    sheet = heat_map(Image.new("RGB", size), np.ones((4, 4)) / 16, (0, 0, *size), ["positive 0.9", "attention rollout"])
    assert sheet.width <= 2 * 640 + 8
    assert sheet.height <= 640 + 60
    assert min(sheet.size) > 50


def test_a_picture_that_is_stored_turned_is_shown_upright():
    content = made_pictures.jpeg(200, 100, exif=made_pictures.turned_exif())
    assert decode_rgb(content).size == (100, 200)
    look = Look(heat=np.eye(4) / 4, probabilities=np.array([0.1, 0.2, 0.7]), method="rollout")
    with Image.open(io.BytesIO(explained_png(content, look, SPEC, None))) as sheet:
        assert sheet.format == "PNG"
        assert sheet.height > 400


def test_the_caption_has_the_probabilities_and_what_is_shown():
    look = Look(heat=np.eye(2), probabilities=np.array([0.1, 0.25, 0.65]), method="gradient")
    assert caption(look, 0) == (
        "positive 0.650   neutral 0.250   negative 0.100",
        "attention weighted by the gradient of negative",
    )
    assert caption(look, None)[1].endswith("of positive")
    look = Look(heat=np.eye(2), probabilities=look.probabilities, method="rollout")
    assert caption(look, None)[1] == "attention rollout"


def test_the_command_writes_a_png_for_each_picture(tiny_student, tmp_path, capsys):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.jpg").write_bytes(made_pictures.jpeg(90, 60))
    (tmp_path / "bad.png").write_bytes(made_pictures.GARBAGE)
    student, output = str(tiny_student), tmp_path / "out"
    pictures = [str(tmp_path / folder / "x.jpg") for folder in ("a", "b")]
    assert main(["explain", "-m", student, *pictures, "--output", str(output)]) == 0
    assert [Path(line).name for line in capsys.readouterr().out.splitlines()] == [
        "x.explained.png",
        "x-2.explained.png",
    ]
    rollout = (output / "x.explained.png").read_bytes()
    assert rollout == (output / "x-2.explained.png").read_bytes()
    shown = {rollout}
    for given in (["--method", "gradient"], *(["--class", name] for name in CLASSES)):
        assert main(["explain", "-m", student, pictures[0], "--output", str(output), *given]) == 0
        shown.add((output / "x.explained.png").read_bytes())
    # What is asked for when no class is, is the predicted one: but for that, all of them differ.
    assert len(shown) == 4
    assert main(["explain", "-m", student, str(tmp_path / "bad.png"), "--output", str(output)]) == 1
    assert main(["explain", "-m", student, pictures[0], "--class", "glad", "--output", str(output)]) == 2
    (told, _) = capsys.readouterr().err.splitlines()[-2:]
    assert told.endswith("label: Expected a Literal['negative', 'neutral', 'positive']. Got value: glad")


def test_the_student_is_shown_the_picture_with_its_own_interpolation(tmp_path):
    args = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2}
    args["pretrained_cfg_overlay"] = {"interpolation": "bilinear"}
    torch.manual_seed(0)
    student = create_student(StudentConfig(model="vit_tiny_patch16_224", pretrained=False, model_args=args))
    scale_without_antialiasing(student)
    export_student(student, str(tmp_path / "student"), crop_share=1.0, squash=True, provenance={})
    content = made_pictures.encode(made_pictures.textured(300, 200), "PNG")
    (tmp_path / "x.png").write_bytes(content)
    given = ["explain", "-m", str(tmp_path / "student"), str(tmp_path / "x.png"), "--output", str(tmp_path / "out")]
    assert main(given) == 0
    pixels = torch.from_numpy(eval_pixels(content, 32, squash=True, interpolation="aliased_bilinear"))[None]
    found = look(student.eval(), Normaliser(SPEC.mean, SPEC.std)(pixels), label=None, method=None)
    spec = replace(SPEC, squash=True)
    assert (tmp_path / "out" / "x.explained.png").read_bytes() == explained_png(content, found, spec, None)


def test_any_name_can_be_written_and_what_was_written_is_not_explained_itself(tiny_student, tmp_path, capsys):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for name in (b"\xff.jpg", b"%s.jpg" % (b"a" * 250), b"%s.jpg" % ("ä" * 120).encode()):
        (pictures / os.fsdecode(name)).write_bytes(made_pictures.jpeg(90, 60))
    given = ["explain", "-m", str(tiny_student), str(pictures), "--output", str(pictures / "explained")]
    written = []
    for _ in range(2):
        assert main(given) == 0
        written.append([Path(line).name for line in capsys.readouterr().out.splitlines()])
    names = ["a" * 180 + ".explained.png", "ä" * 90 + ".explained.png", "\ufffd.explained.png"]
    assert written == [names, names]
    assert sorted(os.listdir(pictures / "explained")) == sorted(names)


def test_a_student_whose_outputs_are_no_numbers_is_not_explained(diverged_student, tmp_path, capsys):
    (tmp_path / "a.jpg").write_bytes(made_pictures.jpeg(90, 60))
    for given in ([], ["--class", "positive"]):
        arguments = ["explain", "-m", str(diverged_student), str(tmp_path / "a.jpg"), "--output", str(tmp_path / "out")]
        assert main([*arguments, *given]) == 2
        assert "student: its outputs are no finite numbers" in capsys.readouterr().err
    assert os.listdir(tmp_path / "out") == []


def test_explanations_may_lie_on_s3_and_are_not_explained_themselves(tiny_student, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("pictures").mkdir()
    Path("pictures/a.jpg").write_bytes(made_pictures.jpeg(90, 60))
    assert main(["explain", "-m", str(tiny_student), "pictures", "--output", "local/"]) == 0
    assert capsys.readouterr().out.splitlines() == ["local/a.explained.png"]
    with s3_servers.moto() as endpoint:
        for name, value in s3_servers.environment(endpoint).items():
            monkeypatch.setenv(name, value)
        at = f"s3://{s3_servers.BUCKET}/pictures"
        open_storage(at, create=True).put_file("a.jpg", Path("pictures/a.jpg"))
        for _ in range(2):
            assert main(["explain", "-m", str(tiny_student), at, "--output", f"{at}/explained"]) == 0
            assert capsys.readouterr().out.splitlines() == [f"{at}/explained/a.explained.png"]
        made = open_storage(f"{at}/explained")
        assert made.names() == ["a.explained.png"]
        assert made.read("a.explained.png") == Path("local/a.explained.png").read_bytes()
    assert sorted(os.listdir()) == ["local", "pictures"]

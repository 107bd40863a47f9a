"""Keras's files → students: equal predictions from every layout, and refusal of whatever is no vit-keras student."""

import json
import os
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import CodeType
from typing import Any

import h5py
import numpy as np
import pytest
import timm
import torch
from keras_files import LAYOUTS, MadeViT, layer
from keras_resize import resized
from made_pictures import encode, textured
from PIL import Image
from timm.data import create_transform, resolve_model_data_config

from shards.batches import Normaliser
from shards.errors import UserError
from xmodal import cli
from xmodal.evaluation.predict import PictureFile
from xmodal.evaluation.predictor import Predictor
from xmodal.models.convert import convert
from xmodal.models.keras_file import read_keras_student
from xmodal.published import PUBLISHED
from xmodal.students import StudentConfig, create_student, input_spec, load_student

EMOJI = Path(__file__).parent.parent.parent / "data" / "emoji"
SIDE = 32


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    """Real drawings of the size that the made ViT takes."""
    files = sorted((EMOJI / "twemoji").glob("*.png"))[:300:50]
    return [Image.open(file).convert("RGB").resize((SIDE, SIDE)) for file in files]


def bytes_of(pictures: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(picture) for picture in pictures])


def predicted(folder: Path, pictures: list[Image.Image]) -> np.ndarray:
    """By xmodal's own way from bytes to probabilities."""
    student = load_student(str(folder))
    spec = input_spec(student)
    assert (spec.size, spec.crop_share, spec.squash) == (SIDE, 1.0, True)
    assert spec.interpolation == "aliased_bilinear"
    pixels = torch.from_numpy(bytes_of(pictures).transpose(0, 3, 1, 2).copy())
    with torch.inference_mode():
        return student(Normaliser(spec.mean, spec.std)(pixels)).softmax(dim=1).double().numpy()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("head", ["mlp", "linear"])
def test_a_converted_student_predicts_what_keras_predicts(tmp_path, pictures, layout, head):
    vit = MadeViT(head=head)
    done = convert(str(vit.write(tmp_path / "m.h5", layout)), str(tmp_path / "s"))
    assert (done.backbone, done.size, done.pixels) == ("other", SIDE, "-1..1")
    ours = predicted(tmp_path / "s", pictures)
    assert np.abs(ours - vit.probabilities(bytes_of(pictures) / 127.5 - 1)).max() < 1e-5
    # Not because all pictures are one to it.
    assert np.ptp(ours, axis=0).min() > 0.02


def test_a_converted_student_predicts_what_keras_predicts_of_photos_of_any_size(tmp_path):
    vit = MadeViT(head="linear")
    convert(str(vit.write(tmp_path / "m.h5", "keras2-model")), str(tmp_path / "s"))
    files, decoded = [], []
    for number, (width, height) in enumerate([(600, 450), (450, 600), (1600, 900), (40, 31), (16, 16)]):
        file = tmp_path / f"{number}.jpg"
        file.write_bytes(encode(textured(width, height, number), "JPEG", quality=90))
        files.append(PictureFile(file))
        decoded.append(np.asarray(Image.open(file)))
    predictor = Predictor(load_student(str(tmp_path / "s")), device=torch.device("cpu"))
    [ours] = predictor([files])
    shown = np.stack([resized(pixels, SIDE) for pixels in decoded])
    assert np.abs(ours.probabilities - vit.probabilities(shown / 127.5 - 1)).max() < 1e-4
    # Rounded, or with antialiasing, they would not be.
    assert np.abs(ours.probabilities - vit.probabilities(shown.round() / 127.5 - 1)).max() > 1e-4
    antialiased = np.stack([np.asarray(Image.fromarray(pixels).resize((SIDE, SIDE), 2)) for pixels in decoded])
    assert np.abs(ours.probabilities - vit.probabilities(antialiased / 127.5 - 1)).max() > 1e-2


@pytest.mark.parametrize("pixels", ["0..1", "-1..1"])
def test_bare_timm_and_its_transforms_predict_the_same(tmp_path, pictures, pixels):
    vit = MadeViT(head="linear")
    convert(str(vit.write(tmp_path / "m.h5", "keras2-model")), str(tmp_path / "s"), pixels=pixels)
    student = timm.create_model(f"local-dir:{tmp_path / 's'}", pretrained=True).eval()
    settings = resolve_model_data_config(student)
    assert (settings["interpolation"], settings["crop_mode"], settings["crop_pct"]) == ("bilinear", "squash", 1.0)
    transform = create_transform(**settings)
    with torch.inference_mode():
        theirs = student(torch.stack([transform(picture) for picture in pictures])).softmax(dim=1).numpy()
    scaled = bytes_of(pictures) / 255 if pixels == "0..1" else bytes_of(pictures) / 127.5 - 1
    assert np.abs(theirs - vit.probabilities(scaled)).max() < 1e-5


def test_the_gelu_of_tensorflow_addons_is_the_approximation_by_tanh(tmp_path, pictures):
    vit = MadeViT(activation="Addons>gelu")
    convert(str(vit.write(tmp_path / "m.h5", "keras2-model")), str(tmp_path / "s"))
    assert json.loads((tmp_path / "s" / "config.json").read_text())["head_gelu"] == "tanh"
    ours = predicted(tmp_path / "s", pictures)
    scaled = bytes_of(pictures) / 127.5 - 1
    assert np.abs(ours - vit.probabilities(scaled, approximate=True)).max() < 1e-5
    assert np.abs(ours - vit.probabilities(scaled)).max() > 2e-5
    # A student that begins with this one has its head, and so has what is exported of it.
    again = create_student(StudentConfig(model=f"local-dir:{tmp_path / 's'}", head="mlp"))
    assert type(again.head.act).__name__ == "GELUTanh"


def test_weights_alone_have_keras_own_gelu_unless_told_otherwise(tmp_path, pictures):
    vit = MadeViT()
    file = str(vit.write(tmp_path / "m.h5", "keras2-weights"))
    done = convert(file, str(tmp_path / "exact"))
    assert done.head == "two layers, exact GELU (the file does not say)"
    assert cli.main(["models", "convert", file, str(tmp_path / "tanh"), "--gelu", "tanh", "--pixels", "-1..1"]) == 0
    scaled = bytes_of(pictures) / 127.5 - 1
    for name in ("exact", "tanh"):
        expected = vit.probabilities(scaled, approximate=name == "tanh")
        assert np.abs(predicted(tmp_path / name, pictures) - expected).max() < 1e-5


def test_a_converted_folder_says_where_it_comes_from(tmp_path, capsys):
    file = MadeViT().write(tmp_path / "m.h5", "keras2-model")
    assert cli.main(["models", "convert", str(file), str(tmp_path / "s"), "--pixels", "0..1"]) == 0
    told = capsys.readouterr().out
    assert "other, " in told
    assert "two layers, exact GELU" in told
    assert "squares of 32 pixels, scaled to 0..1" in told
    origin = json.loads((tmp_path / "s" / "provenance.json").read_text())["converted_from"]
    assert origin["file"] == "m.h5"
    assert origin["pixels"] == "0..1"
    assert origin["sha256"] in told
    assert "Converted from Keras weights" in (tmp_path / "s" / "README.md").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.h5", "s"]


def card_of(folder: Path) -> str:
    """In one line."""
    return " ".join((folder / "README.md").read_text().split())


@pytest.fixture
def small_ones(monkeypatch) -> None:
    """Models of the list as they are, but for their size."""
    for name in ("B-T4SA_1.0", "ViT_L16", "boosted_model"):
        small = replace(PUBLISHED[name], backbone="other", size=SIDE)
        monkeypatch.setitem(PUBLISHED, name, small)


def test_the_card_of_a_published_model_says_what_the_list_knows_of_it(tmp_path, small_ones):
    file = MadeViT().write(tmp_path / "m.h5", "keras2-model")
    for name in ("ViT_L16", "B-T4SA_1.0", "boosted_model"):
        convert(str(file), str(tmp_path / name), model=PUBLISHED[name])
        card = card_of(tmp_path / name)
        assert f"given as `{name}`, a model of the authors of [The Emotions of the Crowd]" in card
        assert "from the soft labels" not in card
        assert "no person annotated" not in card
    card = card_of(tmp_path / "ViT_L16")
    assert "with hard labels" in card
    assert "Training set, by the authors' name: merged_T4SA" in card
    assert "Row of the paper's table: 3.8" in card
    assert "5agree 87.8 %, 4agree 84.8 %, 3agree 81.9 %" in card
    assert "Row of the paper's table: none" in card_of(tmp_path / "B-T4SA_1.0")
    card = card_of(tmp_path / "boosted_model")
    assert "What they trained it on is not documented" in card
    assert "teacher" not in card
    assert "accuracy" not in card


def test_of_a_model_of_anyone_else_the_card_says_that_its_training_is_not_known(tmp_path):
    convert(str(MadeViT().write(tmp_path / "m.h5", "keras2-model")), str(tmp_path / "s"))
    card = card_of(tmp_path / "s")
    assert "trained elsewhere: on what pictures, and by whose labels, is not known here" in card
    assert "neither are the mistakes and leanings" in card
    for claimed in ("teacher", "soft label", "annotated", "Serra"):
        assert claimed not in card


def test_half_precision_and_double_precision_are_read(tmp_path, pictures):
    vit = MadeViT(head="linear")
    for kind in ("f2", "f8"):
        file = vit.write(tmp_path / f"{kind}.h5", "keras2-weights")
        with h5py.File(file, "r+") as opened:
            values = opened["head/head/kernel:0"][()]
            del opened["head/head/kernel:0"]
            opened["head/head/kernel:0"] = values.astype(kind)
        convert(str(file), str(tmp_path / kind))
        assert (
            np.abs(predicted(tmp_path / kind, pictures) - vit.probabilities(bytes_of(pictures) / 127.5 - 1)).max()
            < 1e-3
        )


# --- refused ---------------------------------------------------------------------------------------------------------


def refused(file: Path, *options: str, capsys: pytest.CaptureFixture) -> str:
    """The complaint about a file, in two lines with exit code 2, of which no trace is left but itself."""
    folder = file.parent / "made-of-it"
    before = sorted(path.name for path in file.parent.iterdir())
    assert cli.main(["models", "convert", str(file), str(folder), *options]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    what, remedy = told.err.splitlines()
    assert remedy.strip()
    assert sorted(path.name for path in file.parent.iterdir()) == before
    return what


def code_that_touches(marker: Path) -> CodeType:
    """Code that would leave a trace if it were run."""
    return compile(f"lambda v: __import__('os').system('touch {marker}')", "vit.py", "eval").co_consts[0]


@pytest.mark.parametrize("layout", ["keras2-model", "keras3-model"])
@pytest.mark.parametrize("place", ["another", "in place of ExtractToken", "its output shape"])
def test_pickled_code_in_a_file_is_refused_and_never_run(tmp_path, capsys, layout, place):
    marker = tmp_path / "was-run"
    code = code_that_touches(marker)
    vit = MadeViT()
    layers = vit.layers(layout, code=code if place == "in place of ExtractToken" else None)
    evil = vit.layers(layout, code=code)["config"]["layers"][1]["config"]["layers"][-1]
    if place == "another":
        evil["config"]["name"] = "lambda"
        layers["config"]["layers"].insert(2, evil)
    if place == "its output shape":
        extract = layers["config"]["layers"][1]["config"]["layers"][-1]["config"]
        extract["output_shape"] = evil["config"]["function"]
    what = refused(vit.write(tmp_path / "m.h5", layout, config=json.dumps(layers)), capsys=capsys)
    assert "Lambda layer" in what
    assert not marker.exists()


def drop(name: str) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file[name]

    return change


def put(name: str, values: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        if name in file:
            del file[name]
        file[name] = values

    return change


def settings(**changes: Any) -> Callable[[h5py.File], None]:
    """Change a setting wherever the layers of a model have it."""

    def change(file: h5py.File) -> None:
        def visit(config: Any) -> None:
            if isinstance(config, dict):
                config |= {name: value for name, value in changes.items() if name in config}
                config = list(config.values())
            for item in config if isinstance(config, list) else []:
                visit(item)

        layers = json.loads(file.attrs["model_config"])
        visit(layers)
        file.attrs["model_config"] = json.dumps(layers)

    return change


def elsewhere(file: h5py.File) -> None:
    """The values of a weight lie in another file: /etc/passwd would do."""
    del file[HEAD]
    file.create_dataset(HEAD, shape=(128, 3), dtype="f4", external=[("/etc/hostname", 0, 1536)])


def virtual(file: h5py.File) -> None:
    del file[HEAD]
    source = h5py.VirtualLayout(shape=(128, 3), dtype="f4")
    source[:] = h5py.VirtualSource("/etc/hostname", "x", shape=(128, 3))
    file.create_virtual_dataset(HEAD, source)


def claims_much(file: h5py.File) -> None:
    """Gigabytes of zeros in a few bytes."""
    name = "model_weights/embedding/embedding/kernel:0"
    del file[name]
    file.create_dataset(name, shape=(8192, 8192, 3, 128), dtype="f4", chunks=(64, 64, 3, 128))


def claims_compressed(file: h5py.File) -> None:
    del file[POSITIONS]
    file.create_dataset(POSITIONS, shape=(1, 1_000_001, 128), dtype="f4", chunks=(1, 1000, 128))


def claims_a_chunk(file: h5py.File) -> None:
    """A weight that is a small part of its only chunk, which compressed zeros may fill up."""
    del file[HEAD]
    file.create_dataset(HEAD, shape=(128, 3), dtype="f4", maxshape=(None, 3), chunks=(1 << 24, 3), compression="gzip")


def cycle(file: h5py.File) -> None:
    file["model_weights/head/again"] = file["model_weights"]


HEAD = "model_weights/head/head/kernel:0"
POSITIONS = "model_weights/Transformer/posembed_input/Transformer/posembed_input/pos_embedding:0"
BLOCK = "model_weights/Transformer/encoderblock_1/Transformer/encoderblock_1"
CHANGES: dict[str, tuple[Callable[[h5py.File], None], str]] = {
    "no-weights": (drop("model_weights"), "model_weights is no group"),
    "weights-no-group": (put("model_weights", 3.0), "model_weights is no group"),
    "weights-by-link": (put("model_weights", h5py.ExternalLink("/etc/hostname", "/")), "no group of its own"),
    "weight-gone": (drop(f"{BLOCK}/Dense_1/bias:0"), "lacks a weight of a ViT"),
    "block-half-gone": (drop(f"{BLOCK}/LayerNorm_0"), "lacks a weight"),
    "weight-too-many": (put(f"{BLOCK}/Dense_2/kernel:0", np.zeros((2, 2))), "a weight that students lack"),
    "name-of-lines": (put("model_weights/a\n\x1b[2Jb", np.zeros(3)), "students lack: a??[2Jb"),
    "pre-logits": (put("model_weights/pre_logits/pre_logits/kernel:0", np.zeros((128, 128))), "pre_logits"),
    "other-shape": (put(f"{BLOCK}/LayerNorm_2/gamma:0", np.ones(127)), "has the shape (127,)"),
    "four-outputs": (put(HEAD, np.zeros((128, 4))), "3 outputs"),
    "integers": (put(HEAD, np.zeros((128, 3), dtype=np.int32)), "is no number"),
    "text": (put(HEAD, "weights"), "is no number"),
    "not-finite": (put(HEAD, np.full((128, 3), np.nan)), "no finite number"),
    "link-to-a-file": (put(HEAD, h5py.ExternalLink("/etc/hostname", "/x")), "a link to elsewhere"),
    "link-within": (put(HEAD, h5py.SoftLink("/model_weights/head/head/bias:0")), "a link to elsewhere"),
    "values-in-a-file": (elsewhere, "has its weights elsewhere"),
    "virtual": (virtual, "has its weights elsewhere"),
    "claims-gigabytes": (claims_much, "holds less than its weights would take"),
    "claims-half-a-gigabyte": (claims_compressed, "holds less than its weights would take"),
    "claims-a-chunk": (claims_a_chunk, "holds less than its weights would take"),
    "cycle": (cycle, "has a weight twice"),
    "sigmoid": (settings(activation="sigmoid"), "have the activation sigmoid"),
    "epsilon": (settings(epsilon=1e-3), "epsilon 0.001"),
    "no-pixels": (put("model_weights/embedding/embedding/kernel:0", np.zeros((0, 0, 3, 128))), "has the shape (0, 0"),
    "no-patches": (put(POSITIONS, np.zeros((1, 1, 128))), "no squares: 0 patches"),
    "heads": (settings(num_heads=3), "cannot be cut into 3 heads"),
    "no-heads": (settings(num_heads="2"), "no number of heads"),
    "heads-true": (settings(num_heads=True), "no number of heads"),
    "no-json": (lambda file: file.attrs.modify("model_config", "{"), "damaged"),
    "json-list": (lambda file: file.attrs.modify("model_config", "[]"), "its model_config is none"),
    "json-number": (lambda file: file.attrs.create("model_config", 7), "is no text"),
    "json-deep": (lambda file: file.attrs.modify("model_config", "[" * 60_000), "nested too deeply"),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_is_no_student_of_vit_keras_is_refused(tmp_path, capsys, change):
    alter, complaint = CHANGES[change]
    file = MadeViT(head="linear").write(tmp_path / "m.h5", "keras2-model")
    with h5py.File(file, "r+") as opened:
        alter(opened)
    assert complaint in refused(file, capsys=capsys)


@pytest.mark.parametrize(
    "extra", [layer("Flatten", name="flatten"), layer("Multiply", name="mask"), layer("Evil>Layer", name="x")]
)
def test_a_model_with_a_layer_more_is_refused(tmp_path, capsys, extra):
    vit = MadeViT()
    layers = vit.layers()
    layers["config"]["layers"].append(extra)
    file = vit.write(tmp_path / "m.h5", "keras2-model", config=json.dumps(layers))
    assert f"a layer that vit-keras's ViTs lack: {extra['class_name']}" in refused(file, capsys=capsys)


def test_files_of_other_kinds_are_refused(tmp_path, capsys):
    page = tmp_path / "page.h5"
    page.write_bytes(b"<!DOCTYPE html><title>Google Drive - Virus scan warning</title>")
    assert "is no HDF5 file" in refused(page, capsys=capsys)
    (tmp_path / "empty.h5").write_bytes(b"")
    assert "is no HDF5 file" in refused(tmp_path / "empty.h5", capsys=capsys)
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["conv1/conv1/kernel:0"] = np.zeros((3, 3, 3, 8))
    assert "lacks a weight of a ViT" in refused(tmp_path / "other.h5", capsys=capsys)
    with h5py.File(tmp_path / "bare.h5", "w"):
        pass
    assert "no weights of a ViT" in refused(tmp_path / "bare.h5", capsys=capsys)
    (tmp_path / "folder").mkdir()
    assert "cannot be read" in refused(tmp_path / "folder", capsys=capsys)
    assert cli.main(["models", "convert", str(tmp_path / "none.h5"), str(tmp_path / "x")]) == 2
    assert "No such file" in capsys.readouterr().err


def test_a_file_that_is_cut_off_or_damaged_anywhere_is_refused_or_read(tmp_path):
    """No length and no flipped byte ends in anything but a student or a complaint: no traceback, no crash."""
    whole = MadeViT(head="linear", width=64, mlp=64, heads=1).write(tmp_path / "m.h5", "keras2-model").read_bytes()
    generator = random.Random(3)
    damaged = [whole[: len(whole) * share // 40] for share in range(40)]
    for _ in range(120):
        flipped = bytearray(whole)
        for _ in range(generator.choice([1, 3, 20])):
            flipped[generator.randrange(len(flipped))] = generator.randrange(256)
        damaged.append(bytes(flipped))
    complaints = []
    for content in damaged:
        (tmp_path / "d.h5").write_bytes(content)
        try:
            assert read_keras_student(str(tmp_path / "d.h5")).depth == 2
        except UserError as error:
            complaints.append(str(error))
    assert len(complaints) > 40
    assert {len(complaint.splitlines()) for complaint in complaints} == {2}


def test_nothing_that_is_there_is_overwritten(tmp_path, capsys):
    file = MadeViT().write(tmp_path / "m.h5", "keras2-model")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    assert cli.main(["models", "convert", str(file), str(tmp_path / "mine")]) == 2
    assert "is there already" in capsys.readouterr().err
    assert os.listdir(tmp_path / "mine") == ["thesis.txt"]
    (tmp_path / "empty").mkdir()
    assert cli.main(["models", "convert", str(file), str(tmp_path / "empty")]) == 0


def test_a_folder_that_cannot_be_made_is_told(tmp_path, capsys):
    file = MadeViT().write(tmp_path / "m.h5", "keras2-model")
    assert cli.main(["models", "convert", str(file), str(file / "student")]) == 2
    assert f"{file}: cannot be a folder: File exists" in capsys.readouterr().err


def test_weights_alone_of_a_width_that_no_heads_of_vit_keras_make_are_refused(tmp_path):
    """Keras would have cut them into heads of some other width, which nothing in the file tells."""
    file = MadeViT(width=96, heads=3, head="linear").write(tmp_path / "m.h5", "keras2-weights")
    with pytest.raises(UserError, match="96 dimensions are no multiple of 64"):
        read_keras_student(str(file))


def test_a_file_is_not_taken_for_a_model_of_another_size(tmp_path):
    file = MadeViT().write(tmp_path / "m.h5", "keras2-model")
    with pytest.raises(UserError, match="ViT_B32 is a ViT_B32 for 224"):
        convert(str(file), str(tmp_path / "s"), model=PUBLISHED["ViT_B32"])


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["m.h5"], "convert takes a file and a folder"),
        (["m.h5", "s", "--as", "ViT_L61"], "ViT_L61: none of the paper's twelve models"),
        (["m.h5", "s", "--pixels", "255"], "--pixels"),
        (["m.h5", "s", "--gelu", "fast"], "--gelu"),
        (["m.h5", "s", "--run", "x"], "--run: no such setting"),
    ],
)
def test_a_mistake_in_asking_for_a_conversion_is_told_in_two_lines(arguments, complaint, capsys):
    assert cli.main(["models", "convert", *arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert complaint in lines[0]

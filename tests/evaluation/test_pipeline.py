"""The Python interface: `load_student(name)(pictures)`."""

import io
import itertools
import subprocess
import sys
import threading
from pathlib import Path

import made_pictures
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import ExifTags, Image

from shards.errors import UserError
from xmodal import load_student
from xmodal.evaluation.predict import predict
from xmodal.labels import CLASSES
from xmodal.students import StudentConfig, create_student, export_student
from xmodal.students import load_student as load_module

ROOT = Path(__file__).parent.parent.parent
FILES = sorted((ROOT / "data" / "emoji" / "twemoji").glob("*.png"))[:60:12]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    torch.manual_seed(0)
    args = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2}
    student = create_student(StudentConfig(model="vit_tiny_patch16_224", pretrained=False, model_args=args))
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    path = tmp_path_factory.mktemp("students") / "s"
    export_student(student, str(path), crop_share=0.9, provenance={})
    return str(path)


def test_a_pipeline_predicts_what_evaluation_predicts(folder):
    expected = predict(load_module(folder), FILES, batch_size=2, num_workers=0, accelerator=Accelerator(cpu=True))
    student = load_student(folder, device="cpu")
    for batch_size in (1, 2, 64):
        np.testing.assert_allclose(student.probabilities(FILES, batch_size=batch_size), expected, atol=1e-6)
    assert np.ptp(expected, axis=0).max() > 0.01


def test_files_bytes_images_and_arrays_are_one(folder):
    student = load_student(folder, device="cpu")
    (expected,) = student.probabilities(str(FILES[0]))
    image = Image.open(FILES[0])
    assert {image.mode} <= {"RGBA", "P", "RGB"}
    for picture in (FILES[0], FILES[0].read_bytes(), image):
        np.testing.assert_allclose(student.probabilities([picture])[0], expected, atol=1e-6)
    cmyk = image.convert("RGB").convert("CMYK")
    assert student.probabilities(cmyk).shape == (1, 3)
    array = np.asarray(Image.open(io.BytesIO(made_pictures.png())).convert("RGB"))
    np.testing.assert_allclose(student.probabilities(array), student.probabilities(made_pictures.png()), atol=1e-6)


def test_an_image_is_taken_as_its_file_is(folder, tmp_path):
    """Turned by its EXIF, and 16 bits by their high byte, which Pillow's own saving and converting do otherwise."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    made_pictures.textured(60, 40, 1).save(tmp_path / "turned.png", exif=exif)
    grey = np.linspace(0, 65535, 40 * 40).reshape(40, 40).astype(np.uint16)
    Image.fromarray(grey).save(tmp_path / "deep.png")
    made_pictures.textured(40, 40, 2).convert("CMYK").save(tmp_path / "cmyk.tiff")
    student = load_student(folder, device="cpu")
    for file in sorted(tmp_path.iterdir()):
        with Image.open(file) as image:
            expected = student.probabilities(file)
            np.testing.assert_allclose(student.probabilities(image), expected, atol=1e-6, err_msg=file.name)


def test_one_picture_gives_its_scores_and_several_a_list_of_them(folder):
    student = load_student(folder, device="cpu")
    one = student(FILES[0])
    assert {score["label"] for score in one} == set(CLASSES)
    assert [score["score"] for score in one] == sorted((score["score"] for score in one), reverse=True)
    assert sum(score["score"] for score in one) == pytest.approx(1)
    assert [score["label"] for score in student(FILES[:2])[0]] == [score["label"] for score in one]
    assert student([]) == []


def test_an_iterator_of_pictures_gives_an_iterator_of_their_scores(folder):
    student = load_student(folder, device="cpu")
    asked = []

    def endless():
        for number in itertools.count():
            asked.append(number)
            yield FILES[number % len(FILES)]

    scores = student(endless(), batch_size=2)
    first = [next(scores) for _ in FILES]
    np.testing.assert_allclose(
        [[one["score"] for one in scores_of_one] for scores_of_one in first],
        [[one["score"] for one in scores_of_one] for scores_of_one in student(FILES)],
        atol=1e-6,
    )
    # No more pictures are taken than are at work.
    assert len(asked) < 1000


def test_a_batch_size_below_none_is_refused(folder):
    with pytest.raises(UserError, match="batch_size: -1 must be at least 0"):
        load_student(folder, device="cpu")(FILES, batch_size=-1)


def test_predicting_leaves_torch_as_many_threads_as_it_had(folder):
    before = torch.get_num_threads()
    in_new_thread: list[int] = []
    load_student(folder, device="cpu")(FILES)
    thread = threading.Thread(target=lambda: in_new_thread.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert [torch.get_num_threads(), *in_new_thread] == [before, before]


@pytest.mark.parametrize(
    "picture",
    [
        b"no picture",
        "/nonexistent.png",
        np.zeros((9, 9), dtype=np.float32),
        np.zeros((9, 9, 3), dtype=np.float32),
        np.zeros((3, 9, 9), dtype=np.uint8),
        np.zeros((0, 9, 3), dtype=np.uint8),
        torch.zeros(3, 9, 9),
        7,
    ],
    ids=lambda picture: f"{type(picture).__name__}-{getattr(picture, 'shape', '')}",
)
def test_what_is_no_picture_is_told(folder, picture):
    student = load_student(folder, device="cpu")
    with pytest.raises(UserError, match="is no picture"):
        student([FILES[0], picture])


def test_a_student_whose_outputs_are_no_numbers_gives_no_answer(diverged_student):
    student = load_student(str(diverged_student), device="cpu")
    asked = [
        lambda: student(FILES[0]),
        lambda: student(FILES[:2]),
        lambda: next(student(iter(FILES))),
        lambda: student.probabilities(FILES[0]),
        lambda: student.probabilities(FILES),
    ]
    for ask in asked:
        with pytest.raises(UserError, match="student: its outputs are no finite numbers"):
            ask()


def test_importing_xmodal_loads_no_torch():
    program = "import sys, xmodal; assert callable(xmodal.load_student); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=120)

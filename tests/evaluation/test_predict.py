from pathlib import Path

import made_pictures
import numpy as np
import pytest
import timm
import torch
from accelerate import Accelerator
from PIL import Image

from shards.augment import eval_pixels
from shards.errors import UserError
from xmodal.benchmarks import load_benchmark
from xmodal.evaluation.predict import fitting_batch_size, predict
from xmodal.students import StudentConfig, create_student, load_student, scale_without_antialiasing

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2}


@pytest.fixture(scope="module")
def paths(picture_benchmark: Path) -> list[Path]:
    benchmark = load_benchmark(str(picture_benchmark))
    return [benchmark.image_path(place) for place in range(len(benchmark.paths))]


def probabilities_of(
    student: Path, paths: list[Path], batch_size: int = 8, num_workers: int = 0, flip: bool = False
) -> np.ndarray:
    return predict(
        load_student(str(student)),
        paths,
        batch_size=batch_size,
        num_workers=num_workers,
        accelerator=Accelerator(cpu=True),
        flip=flip,
    )


def test_each_row_is_what_bare_timm_says_of_its_picture(tiny_student, paths):
    model = timm.create_model(f"local-dir:{tiny_student}", pretrained=True).eval()
    probabilities = probabilities_of(tiny_student, paths)
    decodable = [place for place, path in enumerate(paths) if not path.name.endswith("-x.img")]
    for place in decodable:
        pixels = eval_pixels(paths[place].read_bytes(), 32, 0.8)
        with torch.inference_mode():
            expected = model((torch.from_numpy(pixels)[None].float() / 255 - 0.5) / 0.5).softmax(dim=1)[0]
        assert probabilities[place] == pytest.approx(expected.numpy(), abs=1e-5)
    assert len(np.unique(probabilities[decodable].round(4), axis=0)) == len(decodable)


@pytest.mark.parametrize("interpolation", ["bilinear", "aliased_bilinear"])
def test_pictures_are_scaled_as_the_config_of_the_student_says(paths, interpolation):
    args = TINY | {"pretrained_cfg_overlay": {"interpolation": "bilinear"}}
    torch.manual_seed(0)
    student = create_student(StudentConfig(model="vit_tiny_patch16_224", pretrained=False, model_args=args)).eval()
    if interpolation == "aliased_bilinear":
        scale_without_antialiasing(student)
    sound = [path for path in paths if not path.name.endswith("-x.img")]
    probabilities = predict(student, sound, batch_size=8, accelerator=Accelerator(cpu=True))
    pixels = [eval_pixels(path.read_bytes(), 32, 0.9, interpolation=interpolation) for path in sound]
    with torch.inference_mode():
        expected = student((torch.from_numpy(np.stack(pixels)).float() / 255 - 0.5) / 0.5).softmax(dim=1)
    np.testing.assert_allclose(probabilities, expected.numpy(), atol=1e-6)


def test_the_batch_size_does_not_matter(tiny_student, paths):
    # 0: found by itself.
    alone, threes, together, found = (probabilities_of(tiny_student, paths, size) for size in (1, 3, 64, 0))
    np.testing.assert_allclose(alone, found, atol=1e-6)
    np.testing.assert_allclose(alone, threes, atol=1e-6)
    np.testing.assert_allclose(alone, together, atol=1e-6)


def test_workers_that_decode_change_nothing(tiny_student, paths):
    assert np.array_equal(
        probabilities_of(tiny_student, paths), probabilities_of(tiny_student, paths, num_workers=2), equal_nan=True
    )


def test_a_picture_that_cannot_be_decoded_has_no_probabilities(tiny_student, paths, caplog):
    probabilities = probabilities_of(tiny_student, paths)
    undecodable = [path.name.endswith("-x.img") for path in paths]
    assert np.isnan(probabilities).all(axis=1).tolist() == undecodable
    assert probabilities[~np.array(undecodable)].sum(axis=1) == pytest.approx(1)
    assert "garbage-x.img: cannot be decoded" in caplog.text


def test_dropout_is_off_even_for_a_student_that_is_being_trained(paths):
    config = StudentConfig(model="vit_tiny_patch16_224", pretrained=False, model_args={**TINY, "drop_rate": 0.5})
    student = create_student(config).train()
    first, again = (
        predict(student.train(), paths, batch_size=8, num_workers=0, accelerator=Accelerator(cpu=True))
        for _ in range(2)
    )
    assert np.array_equal(first, again, equal_nan=True)


def test_fewer_pictures_than_a_batch_and_none_at_all_are_fine(tiny_student, tmp_path):
    (tmp_path / "one.png").write_bytes(made_pictures.png())
    assert probabilities_of(tiny_student, [tmp_path / "one.png"]).shape == (1, 3)
    assert probabilities_of(tiny_student, []).shape == (0, 3)
    assert probabilities_of(tiny_student, [], batch_size=0).shape == (0, 3)


def test_a_flip_gives_the_mean_of_a_picture_and_its_mirror_image(tiny_student, tmp_path):
    # The same side as the student's, so that nothing is scaled.
    picture = made_pictures.pixels(40, 40)
    mirrored = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for name, image in (("a", picture), ("b", mirrored)):
        (tmp_path / f"{name}.png").write_bytes(made_pictures.encode(image, "PNG"))
    both = [tmp_path / "a.png", tmp_path / "b.png"]
    plain = probabilities_of(tiny_student, both)
    flipped = probabilities_of(tiny_student, both, flip=True)
    assert np.abs(plain[0] - plain[1]).max() > 1e-3
    for row in flipped:
        assert row == pytest.approx(plain.mean(axis=0), abs=1e-3)


def test_a_picture_that_cannot_be_read_is_left_out_too(tiny_student, tmp_path):
    (tmp_path / "a.png").write_bytes(made_pictures.png())
    probabilities = probabilities_of(tiny_student, [tmp_path / "a.png", tmp_path / "gone.png"])
    assert np.isnan(probabilities).all(axis=1).tolist() == [False, True]


class NarrowStudent(torch.nn.Module):
    """Fails as torch does where memory ends, above so many pictures."""

    def __init__(self, most: int, message: str) -> None:
        super().__init__()
        self.most, self.message = most, message

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        if len(pixels) > self.most:
            raise RuntimeError(self.message)
        return pixels.new_zeros(len(pixels), 3)


OUT_OF_MEMORY = "CUDA out of memory. Tried to allocate 2.00 GiB."


@pytest.mark.parametrize(("most", "found"), [(100, 64), (64, 64), (40, 32), (1, 1)])
def test_the_batch_is_halved_until_it_fits(most, found):
    student = NarrowStudent(most, OUT_OF_MEMORY)
    assert fitting_batch_size(student, 8, 64, Accelerator(cpu=True)) == found


def test_a_student_that_does_not_fit_at_all_is_told():
    with pytest.raises(UserError, match="not even one picture fits into memory"):
        fitting_batch_size(NarrowStudent(0, OUT_OF_MEMORY), 8, 64, Accelerator(cpu=True))


def test_another_failure_is_not_taken_for_a_lack_of_memory():
    with pytest.raises(RuntimeError, match="shapes"):
        fitting_batch_size(NarrowStudent(10, "shapes do not fit"), 8, 64, Accelerator(cpu=True))

"""The engine of all predictions."""

from pathlib import Path

import made_pictures
import numpy as np
import pytest
import timm
import torch

from shards.errors import UserError
from xmodal.evaluation.predictor import Predictions, Predictor, check_finite, cpu_batch_size
from xmodal.students import load_student

NUM_PICTURES = 23


class Content:
    """A picture in memory, near or far, that says who has read it."""

    def __init__(self, content: bytes | Exception, *, is_remote: bool = False) -> None:
        self.content, self.is_remote = content, is_remote
        self.num_reads = 0

    def read(self) -> bytes:
        self.num_reads += 1
        if isinstance(self.content, Exception):
            raise self.content
        return self.content


def pictures(*, is_remote: bool = False) -> list[Content]:
    made = [made_pictures.jpeg(60 + number, 50, seed=number) for number in range(NUM_PICTURES)]
    contents: list[bytes | Exception] = [*made]
    contents[3], contents[17] = made_pictures.GARBAGE, PermissionError(13, "Permission denied")
    return [Content(content, is_remote=is_remote) for content in contents]


def batches(contents: list[Content], size: int) -> list[list[Content]]:
    return [contents[start : start + size] for start in range(0, len(contents), size)]


def joined(predictions: list[Predictions]) -> tuple[np.ndarray, dict[int, str]]:
    failures: dict[int, str] = {}
    first = 0
    for one in predictions:
        failures |= {first + place: why for place, why in one.failures.items()}
        first += len(one.pictures)
    return np.concatenate([one.probabilities for one in predictions]), failures


@pytest.fixture(scope="module")
def expected(tiny_student: Path) -> np.ndarray:
    predictor = Predictor(load_student(str(tiny_student)), device=torch.device("cpu"))
    return np.concatenate([predictor.one(content).probabilities for content in pictures()])


@pytest.mark.parametrize("is_remote", [False, True])
@pytest.mark.parametrize("num_threads", [1, 2, 5])
@pytest.mark.parametrize("decode_apart", [False, True])
def test_all_are_predicted_in_their_order_however_it_is_done(
    tiny_student, expected, is_remote, num_threads, decode_apart
):
    predictor = Predictor(load_student(str(tiny_student)), device=torch.device("cpu"), num_threads=num_threads)
    if decode_apart:
        predictor.on_cpu = False  # as for a GPU
    contents = pictures(is_remote=is_remote)
    done = list(predictor(iter(batches(contents, 4))))
    assert [picture for one in done for picture in one.pictures] == contents
    probabilities, failures = joined(done)
    np.testing.assert_allclose(probabilities, expected, atol=1e-6)
    assert np.flatnonzero(np.isnan(probabilities).any(axis=1)).tolist() == sorted(failures) == [3, 17]
    assert failures[3].startswith("cannot be decoded: ")
    assert failures[17] == "cannot be read: Permission denied"
    assert {content.num_reads for content in contents} == {1}


def test_the_number_of_threads_does_not_change_a_bit(tiny_student):
    student = load_student(str(tiny_student))
    predictors = [Predictor(student, device=torch.device("cpu"), num_threads=number) for number in (1, 3)]
    done = [joined(list(predictor(batches(pictures(), 4))))[0] for predictor in predictors]
    assert np.array_equal(*done, equal_nan=True)


def test_no_more_is_taken_than_is_at_work_and_what_is_begun_can_be_left(tiny_student):
    predictor = Predictor(load_student(str(tiny_student)), device=torch.device("cpu"), num_threads=2)
    taken = []

    def endless():
        while True:
            taken.append(1)
            yield [Content(made_pictures.png())]

    running = predictor(endless())
    next(running)
    next(running)
    assert len(taken) < 10
    running.close()


def test_an_error_that_is_no_pictures_ends_the_run(tiny_student):
    predictor = Predictor(load_student(str(tiny_student)), device=torch.device("cpu"))
    contents = [Content(made_pictures.png()), Content(UserError("no access", "see to it")), *pictures()]
    with pytest.raises(UserError, match="no access"):
        list(predictor(batches(contents, 2)))


def test_a_student_without_finite_outputs_is_told_from_pictures_that_failed():
    probabilities = np.array([[0.2, 0.3, 0.5], [np.nan] * 3])
    failed = Predictions(pictures=["a", "b"], probabilities=probabilities, failures={1: "cut off"})
    check_finite(failed.is_finite)
    diverged = Predictions(pictures=["a", "b"], probabilities=probabilities, failures={})
    with pytest.raises(UserError, match="no finite numbers"):
        check_finite(diverged.is_finite)


def test_a_batch_that_does_not_fit_into_memory_is_told(tiny_student):
    student = load_student(str(tiny_student))

    def take_memory(module: torch.nn.Module, arguments: tuple[torch.Tensor]) -> None:
        # Of each picture beyond four, more than any machine has: torch's own allocator refuses it.
        torch.empty(max(0, len(arguments[0]) - 4) << 56, dtype=torch.uint8)

    student.register_forward_pre_hook(take_memory)
    predictor = Predictor(student, device=torch.device("cpu"))
    assert len(list(predictor(batches(pictures(), 4)))) == 6
    with pytest.raises(UserError, match="batch_size: a batch of 5 does not fit into memory"):
        list(predictor(batches(pictures(), 5)))


def test_another_error_of_torch_is_not_taken_for_a_lack_of_memory(tiny_student):
    student = load_student(str(tiny_student))
    student.register_forward_pre_hook(lambda module, arguments: torch.ones(2) + torch.ones(3))
    with pytest.raises(RuntimeError, match="must match the size"):
        Predictor(student, device=torch.device("cpu")).one(pictures()[0])


def test_convolutions_are_predicted_in_smaller_batches_than_transformers(tiny_student):
    assert cpu_batch_size(load_student(str(tiny_student))) > cpu_batch_size(timm.create_model("resnet10t"))

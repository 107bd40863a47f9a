"""The one engine of all predictions: pictures → pixels → probabilities, in their order, in memory that does not grow.

On a CPU each thread reads, decodes and predicts batches of its own, on one core: nothing is handed over, no core waits
for another's part of a layer, and the number of threads does not change a bit of the results. On a GPU the threads read
and decode, each a part of a batch, while the batches before are predicted. What lies far away is read ahead.
"""

import ctypes
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Generic, Protocol, TypeAlias, TypeVar, cast

import numpy as np
import torch
from accelerate.utils.memory import should_reduce_batch_size

from shards.augment import eval_dtype, eval_pixels
from shards.batches import Normaliser
from shards.decode import UndecodableImageError
from shards.errors import UserError
from xmodal.students import input_spec

# As in glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT_BYTES = 1 << 28
_LARGEST_KEPT = 1 << 25  # the most that glibc allows
_BATCHES_AHEAD = 2
"""That are begun for each thread, beyond the one that is waited for."""
_READERS = 16
"""Threads that wait for pictures from far away."""

_Read: TypeAlias = Callable[[], bytes]


class Picture(Protocol):
    """Something that can be read when its turn comes."""

    @property
    def is_remote(self) -> bool:
        """Whether reading it means to wait for a network."""

    def read(self) -> bytes:
        """Its encoded bytes. Raises OSError or UndecodableImageError where there are none."""


P = TypeVar("P", bound=Picture)


@dataclass(frozen=True, kw_only=True)
class Predictions(Generic[P]):
    """Of a batch."""

    pictures: Sequence[P]
    probabilities: np.ndarray
    """float64 `(n, 3)`, columns as `xmodal.labels.CLASSES`; NaN for a picture that cannot be read or decoded."""
    failures: dict[int, str]
    """Place in the batch of each such picture → why."""

    @property
    def is_finite(self) -> bool:
        """Whether the student's own outputs are finite numbers."""
        failed = np.zeros(len(self.probabilities), dtype=bool)
        failed[list(self.failures)] = True
        return bool(np.isfinite(self.probabilities[~failed]).all())


class Predictor:
    """A student that predicts batch after batch."""

    def __init__(
        self, student: torch.nn.Module, *, device: torch.device, num_threads: int = 0, flip: bool = False
    ) -> None:
        """The student is moved to `device`, in evaluation mode.

        With `num_threads` 0 there are as many as torch, or on a GPU this process, has cores. With `flip`, probabilities
        are the mean of those of a picture and of its mirror image.
        """
        self.spec = input_spec(student)
        # The kernels of convolutions want the channels last, and would reorder the activations of every layer.
        self.student = student.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        self.device = device
        self.on_cpu = device.type == "cpu"
        if self.on_cpu:
            _keep_memory()
        self.num_threads = num_threads or (torch.get_num_threads() if self.on_cpu else _num_decoders())
        self.flip = flip
        self._own = threading.local()

    def __call__(self, batches: Iterable[Sequence[P]]) -> Iterator[Predictions[P]]:
        """Predict batches, in their order; some are read and predicted ahead of the one that is asked for."""
        waiting: deque[tuple[Sequence[P], list[Future]]] = deque()
        with _threads(self.num_threads) as pool, ThreadPoolExecutor(_READERS, "read") as readers:
            try:
                for pictures in batches:
                    waiting.append((pictures, self._begin(pictures, pool, readers)))
                    if len(waiting) > self._num_ahead:
                        yield self._end(*waiting.popleft())
                while waiting:
                    yield self._end(*waiting.popleft())
            finally:
                for _, parts in waiting:
                    for part in parts:
                        part.cancel()
                readers.shutdown(cancel_futures=True)

    def one(self, picture: P) -> Predictions[P]:
        """Predict one picture, in the calling thread, with all cores: sooner than a batch would be."""
        probabilities, failures = self._predict([picture.read])
        return Predictions(pictures=[picture], probabilities=probabilities, failures=failures)

    @torch.inference_mode()
    def probabilities(self, pixels: torch.Tensor) -> np.ndarray:
        """Pixels `(n, 3, size, size)` → float64 `(n, 3)`; NaN and infinities where the student's outputs are such.

        Raises UserError where so many pictures do not fit into memory.
        """
        if not hasattr(self._own, "normalise"):
            self._own.normalise = Normaliser(self.spec.mean, self.spec.std)  # its memory is not to be shared
        with _told_of_memory(len(pixels)):
            inputs = self._own.normalise(pixels.to(self.device, non_blocking=True))
            predicted = self.student(inputs).float().softmax(dim=1)
            if self.flip:
                predicted = (predicted + self.student(inputs.flip(-1)).float().softmax(dim=1)) / 2
            return predicted.double().cpu().numpy()

    @property
    def _num_ahead(self) -> int:
        """Batches. A GPU's are large, and all threads work at one of them."""
        return _BATCHES_AHEAD * (self.num_threads if self.on_cpu else 1)

    def _begin(
        self, pictures: Sequence[Picture], pool: ThreadPoolExecutor, readers: ThreadPoolExecutor
    ) -> list[Future]:
        reads = [readers.submit(picture.read).result if picture.is_remote else picture.read for picture in pictures]
        if self.on_cpu:
            return [pool.submit(self._predict, reads)]
        length = -(-len(reads) // self.num_threads) or 1
        return [pool.submit(self._pixels, reads[start : start + length]) for start in range(0, len(reads), length)]

    def _predict(self, reads: Sequence[_Read]) -> tuple[np.ndarray, dict[int, str]]:
        pixels, failures = self._pixels(reads)
        return _without(self.probabilities(pixels), failures), failures

    def _end(self, pictures: Sequence[P], parts: list[Future]) -> Predictions[P]:
        if self.on_cpu:
            probabilities, failures = cast(tuple[np.ndarray, dict[int, str]], parts[0].result())
            return Predictions(pictures=pictures, probabilities=probabilities, failures=failures)
        done: list[tuple[torch.Tensor, dict[int, str]]] = [part.result() for part in parts]
        failures = {}
        first = 0
        for pixels, of_part in done:
            failures |= {first + place: why for place, why in of_part.items()}
            first += len(pixels)
        probabilities = _without(self.probabilities(torch.cat([pixels for pixels, _ in done])), failures)
        return Predictions(pictures=pictures, probabilities=probabilities, failures=failures)

    def _pixels(self, reads: Sequence[_Read]) -> tuple[torch.Tensor, dict[int, str]]:
        """Those of `eval_pixels`, `(n, 3, size, size)`, channels last in memory; zeros for what fails, and why."""
        spec = self.spec
        pixels = np.zeros((len(reads), spec.size, spec.size, 3), dtype=eval_dtype(spec.interpolation))
        failures: dict[int, str] = {}
        for place, read in enumerate(reads):
            try:
                cropped = eval_pixels(
                    read(), spec.size, spec.crop_share, squash=spec.squash, interpolation=spec.interpolation
                )
                pixels[place] = cropped.transpose(1, 2, 0)
            except UndecodableImageError as error:
                failures[place] = f"cannot be decoded: {error}"
            except FileNotFoundError:
                failures[place] = "is not there"
            except OSError as error:
                failures[place] = f"cannot be read: {error.strerror or error}"
        return torch.from_numpy(pixels).permute(0, 3, 1, 2), failures


def cpu_batch_size(student: torch.nn.Module) -> int:
    """How many pictures one core best predicts at a time.

    More are slower: their activations leave the cache, and become so large that the system takes their memory back
    after each layer, and clears it anew. Those of convolutions are several times as large as a transformer's.
    """
    num_convolutions = sum(isinstance(module, torch.nn.Conv2d) for module in student.modules())
    return 4 if num_convolutions > 1 else 8  # a transformer has one, which cuts the picture into patches


def check_finite(is_finite: bool) -> None:
    """Raise UserError for a student whose outputs are not."""
    if not is_finite:
        raise UserError(
            "student: its outputs are no finite numbers",
            "its training diverged, or its weights are damaged: train it anew",
        )


@contextmanager
def _told_of_memory(num_pictures: int) -> Iterator[None]:
    """Turn what torch raises where memory ends, of a GPU or of the machine, into a UserError."""
    try:
        yield
    except RuntimeError as error:
        if not should_reduce_batch_size(error):
            raise
        raise UserError(
            f"batch_size: a batch of {num_pictures} does not fit into memory",
            "give a smaller batch_size, or 0 to have it found, or see what else takes memory there",
        ) from error


def _without(probabilities: np.ndarray, failures: dict[int, str]) -> np.ndarray:
    probabilities[list(failures)] = np.nan
    return probabilities


def _keep_memory() -> None:
    """Have the C library keep memory that was freed, up to a measure, for whoever asks next.

    By itself glibc gives what a layer has freed back to the system, which clears it before the next layer gets it: a
    tenth of the time of a ViT. Another C library has no such call, or takes no notice of it.
    """
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
        library.mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT)


def _num_decoders() -> int:
    """Cores of this process. torchrun lets torch have one, which is right for many CPUs' ranks, but not for a GPU's."""
    of_torch = torch.get_num_threads()
    num_local_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return of_torch if of_torch > 1 else max(1, len(os.sched_getaffinity(0)) // num_local_ranks)


@contextmanager
def _threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """Threads whose operations each run on one core."""
    cores = torch.get_num_threads()
    started = threading.Barrier(count + 1)
    with ThreadPoolExecutor(count, "predict", initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for _ in range(count):
            pool.submit(started.wait)
        started.wait()
        # What a thread sets is its own, but also what threads begin with that come later, those of others too.
        torch.set_num_threads(cores)
        yield pool

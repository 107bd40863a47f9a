"""The streams: elastic over ranks and workers, and exact when resumed."""

import multiprocessing
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from made_pictures import jpeg
from streams import CONFIG, STEPS, assert_equal, assert_runs_equal, steps, train

from shards.augment import AugmentConfig, eval_pixels
from shards.batches import Normaliser
from shards.errors import ConfigError, UserError
from shards.stream import EvalStream, StreamConfig
from shards.view import View

MakeView = Callable[..., View]


def test_a_batch_holds_what_a_model_and_its_loss_take(view: View) -> None:
    stream = train(view, micro_batches=2)
    targets = view.split("train").rows["target"].to_pylist()
    for step in stream:
        assert len(step) == 2
        for batch in step:
            assert batch.pixels.shape == (4, 3, 16, 16)
            assert batch.pixels.dtype == torch.uint8
            assert batch.targets.dtype == torch.float32
            assert batch.rows.dtype == torch.int64
            assert batch.mask.tolist() == [True] * 4
            assert batch.damaged == []
            assert torch.equal(batch.targets, torch.tensor([targets[row] for row in batch.rows]))


def test_pixels_are_those_of_the_samples_row(view: View) -> None:
    plain = AugmentConfig(min_crop_area=1, max_crop_aspect=1, flip=False)
    keys = view.split("train").rows["key"].to_pylist()
    for [batch] in train(view, augment=plain):
        for row, pixels in zip(batch.rows.tolist(), batch.pixels, strict=True):
            content = jpeg(44, 36, seed=int(keys[row][4:8]))
            assert np.array_equal(pixels.numpy(), eval_pixels(content, 16))


def test_an_epoch_has_each_sample_at_most_once_and_others_follow_in_another_order(view: View) -> None:
    stream = train(view)
    epochs = []
    for epoch in range(3):
        assert stream.state_dict() | {"epoch": epoch, "step": 0} == stream.state_dict()
        epochs.append([row for step in stream for batch in step for row in batch.rows.tolist()])
        assert len(set(epochs[-1])) == len(epochs[-1]) == 8 * STEPS
    assert epochs[0] != epochs[1] != epochs[2]


def test_the_same_row_looks_different_in_another_epoch(view: View) -> None:
    stream = train(view)
    seen: dict[int, list[torch.Tensor]] = {}
    for step in steps(stream, 2 * STEPS):
        for row, pixels in zip(step[0].rows.tolist(), step[0].pixels, strict=True):
            seen.setdefault(row, []).append(pixels)
    twice = [pictures for pictures in seen.values() if len(pictures) == 2]
    assert len(twice) > 30
    assert not any(torch.equal(*pictures) for pictures in twice)


def test_one_rank_with_two_micro_batches_equals_two_ranks_with_one(view: View) -> None:
    alone = list(steps(train(view, micro_batches=2), 2 * STEPS))
    pair = [list(steps(train(view, rank=rank, world_size=2), 2 * STEPS)) for rank in range(2)]
    for step, [first], [second] in zip(alone, *pair, strict=True):
        for micro_batch, batch in zip(step, (first, second), strict=True):
            assert_equal([micro_batch], [batch])


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_global_batches_are_the_same_for_every_number_of_ranks(view: View, world_size: int, micro_batches: int) -> None:
    ranks = [
        list(train(view, rank=rank, world_size=world_size, micro_batches=micro_batches)) for rank in range(world_size)
    ]
    assert {len(run) for run in ranks} == {STEPS}
    together = [[batch for step in parts for batch in step] for parts in zip(*ranks, strict=True)]
    assert_runs_equal(together, list(train(view)))


def test_any_number_of_workers_gives_the_same_batches(view: View) -> None:
    expected = list(steps(train(view, micro_batches=2), 2 * STEPS))
    for num_workers in (1, 2):
        config = replace(CONFIG, num_workers=num_workers)
        assert_runs_equal(list(steps(train(view, config, micro_batches=2), 2 * STEPS)), expected)


@pytest.mark.parametrize("done", [1, 3, STEPS - 1, STEPS, STEPS + 2])
def test_a_resumed_stream_goes_on_as_the_unbroken_one_over_the_end_of_epochs(view: View, done: int) -> None:
    unbroken = list(steps(train(view), 3 * STEPS))
    stream = train(view)
    list(steps(stream, done))
    resumed = train(view)
    resumed.load_state_dict(stream.state_dict())
    assert_runs_equal(list(steps(resumed, 3 * STEPS - done)), unbroken[done:])


def test_a_stream_with_workers_resumes_where_training_stood_not_where_the_workers_did(view: View) -> None:
    unbroken = list(steps(train(view), 2 * STEPS))
    config = replace(CONFIG, num_workers=2)
    stream = train(view, config)
    list(steps(stream, 2))
    assert (stream.state_dict()["epoch"], stream.state_dict()["step"]) == (0, 2)
    resumed = train(view, config)
    resumed.load_state_dict(stream.state_dict())
    assert_runs_equal(list(steps(resumed, 2 * STEPS - 2)), unbroken[2:])


@pytest.mark.parametrize(("before", "after"), [(1, 4), (4, 1), (2, 4), (4, 2)])
def test_a_stream_resumes_with_another_number_of_ranks(view: View, before: int, after: int) -> None:
    unbroken = list(steps(train(view), 2 * STEPS))
    states = []
    for rank in range(before):
        stream = train(view, rank=rank, world_size=before)
        list(steps(stream, 3))
        states.append(stream.state_dict())
    assert all(state == states[0] for state in states)
    ranks = []
    for rank in range(after):
        stream = train(view, rank=rank, world_size=after)
        stream.load_state_dict(states[0])
        ranks.append(list(steps(stream, 2 * STEPS - 3)))
    together = [[batch for step in parts for batch in step] for parts in zip(*ranks, strict=True)]
    assert_runs_equal(together, unbroken[3:])


def test_iterating_again_after_a_break_goes_on_with_the_next_step(view: View) -> None:
    unbroken = list(train(view))
    stream = train(view)
    parts = list(steps(stream, 2))
    assert_runs_equal(parts + list(stream), unbroken)


def test_a_state_is_a_few_plain_values(view: View) -> None:
    state = train(view).state_dict()
    assert len(state) < 10
    assert all(type(value) in (int, str) for value in state.values())


def test_iterating_leaves_torchs_random_numbers_alone(view: View) -> None:
    # Else drop path and dropout would differ between a resumed run and an unbroken one.
    torch.manual_seed(0)
    before = torch.get_rng_state()
    list(steps(train(view), STEPS + 1))
    list(EvalStream(view, split="val", config=CONFIG, size=16, batch_size=4))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("name", "config", "options"),
    [
        ("seed", replace(CONFIG, seed=12), {}),
        ("num_lanes", replace(CONFIG, num_lanes=2), {}),
        ("shards_per_block", replace(CONFIG, shards_per_block=3), {}),
        ("samples_per_lane_and_step", CONFIG, {"global_batch_size": 16}),
    ],
)
def test_a_state_of_other_settings_is_refused_by_name(
    view: View, name: str, config: StreamConfig, options: dict[str, Any]
) -> None:
    stream = train(view)
    list(steps(stream, 2))
    other = train(view, config, **options)
    with pytest.raises(UserError, match=f"the stream's {name} was") as caught:
        other.load_state_dict(stream.state_dict())
    assert caught.value.remedy
    assert (other.epoch, other.step) == (0, 0)


def test_a_state_of_another_view_is_refused(
    view: View, finished_dataset: Path, tmp_path: Path, make_view: MakeView
) -> None:
    other = make_view(finished_dataset, tmp_path / "view", view.table.slice(1))
    with pytest.raises(UserError, match="fingerprint"):
        train(other).load_state_dict(train(view).state_dict())


def test_the_number_of_workers_and_micro_batches_may_change_on_resume(view: View) -> None:
    unbroken = list(train(view))
    stream = train(view, micro_batches=4)
    list(steps(stream, 2))
    resumed = train(view, replace(CONFIG, num_workers=1), micro_batches=2)
    resumed.load_state_dict(stream.state_dict())
    assert_runs_equal(list(resumed), unbroken[2:])


def test_too_few_samples_for_one_global_batch_are_a_users_error(view: View) -> None:
    with pytest.raises(UserError, match="41 samples in train do not fill a global batch of 44") as caught:
        train(view, global_batch_size=44)
    assert "lower global_batch_size" in caught.value.remedy


def test_as_many_samples_as_one_global_batch_are_enough(view: View) -> None:
    stream = train(view, global_batch_size=40)
    assert stream.steps_per_epoch == 1
    assert [len(set(batch.rows.tolist())) for [batch] in steps(stream, 2)] == [40, 40]


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"world_size": 3}, "4 lanes cannot be shared equally by 3 ranks"),
        ({"global_batch_size": 10}, "global_batch_size: 10 cannot take the same number"),
        ({"micro_batches": 3}, "8 samples a rank cannot be cut into 3 equal micro-batches"),
        ({"split": "test"}, "split 'test' has no samples"),
    ],
)
def test_a_division_that_does_not_come_out_is_a_users_error(view: View, options: dict[str, Any], what: str) -> None:
    with pytest.raises(UserError, match=what) as caught:
        train(view, **options)
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_lanes", 0),
        ("shards_per_block", 0),
        ("num_workers", -1),
        ("max_damaged_share", 1.5),
        ("max_damaged_share", -0.1),
        ("seed", -1),
    ],
)
def test_a_stream_setting_that_cannot_be_is_an_error_that_names_it(name: str, value: float) -> None:
    with pytest.raises(ConfigError) as caught:
        StreamConfig(**{name: value})  # type: ignore[arg-type]
    assert caught.value.key == name


def test_normalise_makes_what_the_mean_and_deviation_say() -> None:
    pixels = torch.tensor([0, 255, 51], dtype=torch.uint8).reshape(1, 3, 1, 1)
    made = Normaliser((0.5, 0.5, 0.2), (0.5, 0.25, 1.0))(pixels)
    assert made.dtype == torch.float32
    assert torch.allclose(made.flatten(), torch.tensor([-1.0, 2.0, 0.0]), atol=1e-6)


def test_batches_of_other_sizes_are_normalised_in_the_memory_kept_or_in_new() -> None:
    normalise = Normaliser((0.5,) * 3, (0.25,) * 3)
    for shape in ((4, 3, 8, 8), (2, 3, 8, 8), (6, 3, 8, 8), (6, 3, 16, 16), (1, 3, 8, 8)):
        pixels = torch.randint(0, 256, shape, dtype=torch.uint8)
        assert torch.allclose(normalise(pixels), (pixels / 255 - 0.5) / 0.25, atol=1e-6)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_three_ranks_over_two_shards_one_of_a_single_sample_all_get_as_many_batches(
    finished_dataset: Path, tmp_path: Path, make_view: MakeView, view: View, num_workers: int
) -> None:
    table = view.table.filter(pc.is_in(view.table["shard"], pa.array(["000003.tar", "000005.tar"])))
    small = make_view(finished_dataset, tmp_path / "small", table)
    shard_sizes = small.split("train").shard_sizes.tolist()
    assert len(shard_sizes) == 2
    assert 1 in shard_sizes
    config = replace(CONFIG, num_lanes=3, num_workers=num_workers)
    options = {"config": config, "global_batch_size": 3, "world_size": 3}
    ranks = [list(train(small, rank=rank, **options)) for rank in range(3)]
    assert {len(steps_of_rank) for steps_of_rank in ranks} == {sum(shard_sizes) // 3}
    rows = [row for run in ranks for [batch] in run for row in batch.rows.tolist()]
    assert len(set(rows)) == len(rows)
    seen: list[int] = []
    for rank in range(3):
        stream = EvalStream(small, split="train", config=config, size=16, batch_size=2, rank=rank, world_size=3)
        batches = list(stream)
        assert len(batches) == len(stream) == -(-sum(shard_sizes) // 6)
        seen += [row for batch in batches for row in batch.rows[batch.mask].tolist()]
    assert sorted(seen) == list(range(sum(shard_sizes)))


def test_a_view_without_samples_is_a_users_error(
    finished_dataset: Path, tmp_path: Path, make_view: MakeView, view: View
) -> None:
    empty = make_view(finished_dataset, tmp_path / "empty", view.table.slice(0, 0))
    with pytest.raises(UserError, match="split 'train' has no samples"):
        train(empty)
    with pytest.raises(UserError, match="split 'val' has no samples"):
        EvalStream(empty, split="val", config=CONFIG, size=16, batch_size=2)


def test_workers_go_on_from_epoch_to_epoch_and_end_when_the_stream_is_closed(view: View) -> None:
    stream = train(view, replace(CONFIG, num_workers=2))
    processes = []
    for _ in range(3):
        list(stream)
        processes.append({child.pid for child in multiprocessing.active_children()})
    assert len(processes[0]) == 2
    assert processes[0] == processes[1] == processes[2]
    stream.close()
    assert not multiprocessing.active_children()
    assert len(list(stream)) == STEPS
    del stream
    assert not multiprocessing.active_children()  # at once: nobody waits for a collector of cycles


def test_a_state_of_another_order_is_refused(view: View) -> None:
    state = train(view).state_dict()
    for other in (state | {"order_version": 0}, {name: state[name] for name in state if name != "order_version"}):
        with pytest.raises(UserError, match="the stream's order_version was"):
            train(view).load_state_dict(other)


@pytest.mark.parametrize("has_gpu", [True, False])
def test_all_tensors_of_a_batch_are_pinned_where_torch_says_that_there_is_a_gpu(
    view: View, has_gpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinned: list[torch.Tensor] = []

    def pin(tensor: torch.Tensor) -> torch.Tensor:
        pinned.append(tensor)
        return tensor

    monkeypatch.setattr("torch.cuda.is_available", lambda: has_gpu)
    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    [batch] = next(iter(train(view)))
    evaluated = next(iter(EvalStream(view, split="val", config=CONFIG, size=16, batch_size=4)))
    tensors = [part for one in (batch, evaluated) for part in one if isinstance(part, torch.Tensor)]
    assert [tensor.data_ptr() for tensor in pinned] == [tensor.data_ptr() for tensor in tensors if has_gpu]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("num_workers", [0, 1])
def test_batches_are_in_pinned_memory_on_a_machine_with_a_gpu(view: View, num_workers: int) -> None:
    config = replace(CONFIG, num_workers=num_workers)
    stream = train(view, config)
    [batch] = next(iter(stream))
    [*evaluated] = EvalStream(view, split="val", config=config, size=16, batch_size=4)
    for one in (batch, *evaluated):
        assert one.pixels.is_pinned()
        assert one.targets.is_pinned()
    stream.close()

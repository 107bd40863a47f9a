"""The order of an epoch, over a grid of shards, lanes, ranks and batches: what resuming and fairness rest on."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import shards.order
from shards.errors import UserError
from shards.order import EpochOrder, EpochOrders, lane_bounds, lanes_of_rank, num_batches_of_epoch, sample_generator

UNEVEN = [9, 3, 14, 1, 8, 17, 40, 2]
GRID = [
    pytest.param(np.array(sizes), lanes, block, id=f"{sizes}-{lanes} lanes-{block} a block")
    for sizes, lanes, block in itertools.product(
        ([1], [7], [100], [5] * 20, [1] * 30, UNEVEN, [0, 6, 0, 0, 9, 0]), (1, 2, 4, 6), (1, 3, 50)
    )
]


@st.composite
def orders(draw: st.DrawFn) -> EpochOrder:
    return EpochOrder(
        shard_sizes=np.array(draw(st.lists(st.integers(0, 60), min_size=1, max_size=12))),
        seed=draw(st.integers(0, 2**40)),
        epoch=draw(st.integers(0, 10**6)),
        num_lanes=draw(st.integers(1, 12)),
        shards_per_block=draw(st.integers(1, 6)),
    )


def all_rows(order: EpochOrder) -> list[np.ndarray]:
    """The rows of each lane, in order."""
    positions = np.arange(order.samples_per_lane)
    return [order.rows(lane, positions) for lane in range(order.num_lanes)]


def batches_of_rank(order: EpochOrder, global_batch_size: int, rank: int, world_size: int) -> list[list[int]]:
    """The rows of each of a rank's batches, as a stream cuts them."""
    count = global_batch_size // order.num_lanes
    num_batches = num_batches_of_epoch(int(order.shard_sizes.sum()), order.num_lanes, global_batch_size)
    lanes = [
        order.rows(lane, np.arange(num_batches * count)) for lane in lanes_of_rank(rank, world_size, order.num_lanes)
    ]
    return [
        [int(row) for lane in lanes for row in lane[batch * count : (batch + 1) * count]]
        for batch in range(num_batches)
    ]


def batches_by_workers(
    order: EpochOrder, global_batch_size: int, rank: int, world_size: int, num_workers: int
) -> list[list[int]]:
    """The rows of each of a rank's batches, where worker w makes every batch k of k % num_workers = w by itself."""
    count = global_batch_size // order.num_lanes
    num_batches = num_batches_of_epoch(int(order.shard_sizes.sum()), order.num_lanes, global_batch_size)
    batches: list[list[int]] = [[] for _ in range(num_batches)]
    for worker in range(num_workers):
        own = EpochOrder(order.shard_sizes, order.seed, order.epoch, order.num_lanes, order.shards_per_block)
        for batch in range(worker, num_batches, num_workers):
            positions = np.arange(batch * count, (batch + 1) * count)
            for lane in lanes_of_rank(rank, world_size, order.num_lanes):
                batches[batch] += own.rows(lane, positions).tolist()
    return batches


def assert_same_batches(order: EpochOrder, samples_per_lane_and_step: int, num_workers: int) -> None:
    """Each sample at most once, and global batch k the same set for every number of ranks, with so many workers."""
    global_batch_size = order.num_lanes * samples_per_lane_and_step
    alone = batches_of_rank(order, global_batch_size, 0, 1)
    seen = [row for batch in alone for row in batch]
    assert len(set(seen)) == len(seen)
    assert int(order.shard_sizes.sum()) - len(seen) < order.num_lanes + global_batch_size
    for world_size in (number for number in range(1, order.num_lanes + 1) if order.num_lanes % number == 0):
        ranks = [
            batches_by_workers(order, global_batch_size, rank, world_size, num_workers) for rank in range(world_size)
        ]
        assert {len(batches) for batches in ranks} == {len(alone)}
        together = [set(itertools.chain(*parts)) for parts in zip(*ranks, strict=True)]
        assert together == [set(batch) for batch in alone]


def assert_fair(order: EpochOrder) -> None:
    lanes = all_rows(order)
    num_samples = int(order.shard_sizes.sum())
    rows = np.concatenate(lanes)
    assert {len(lane) for lane in lanes} == {num_samples // order.num_lanes}
    assert len(np.unique(rows)) == len(rows)
    assert num_samples - len(rows) < order.num_lanes
    assert all(0 <= row < num_samples for row in rows)


@pytest.mark.parametrize(("sizes", "lanes", "block"), GRID)
def test_every_sample_comes_at_most_once_an_epoch_and_all_lanes_are_equal(
    sizes: np.ndarray, lanes: int, block: int
) -> None:
    for epoch in range(3):
        assert_fair(EpochOrder(sizes, 0, epoch, lanes, block))


@settings(max_examples=60)
@given(order=orders())
def test_every_sample_comes_at_most_once_for_any_shards_and_lanes(order: EpochOrder) -> None:
    assert_fair(order)


@settings(max_examples=60)
@given(order=orders(), seed=st.integers(0, 1000))
def test_rows_at_any_positions_are_the_slice_of_the_whole(order: EpochOrder, seed: int) -> None:
    random = np.random.default_rng(seed)
    for lane, whole in enumerate(all_rows(order)):
        positions = random.permutation(order.samples_per_lane)[: random.integers(0, order.samples_per_lane + 1)]
        assert np.array_equal(order.rows(lane, positions), whole[positions])
        assert order.rows(lane, positions).dtype == np.int64


@pytest.mark.parametrize("samples_per_lane_and_step", [1, 2, 5])
@pytest.mark.parametrize("sizes", [[5] * 20, UNEVEN, [100]], ids=["even", "uneven", "one shard"])
@pytest.mark.parametrize("lanes", [1, 2, 4, 6, 12])
def test_a_global_batch_is_the_same_set_of_samples_for_every_number_of_ranks(
    sizes: list[int], lanes: int, samples_per_lane_and_step: int
) -> None:
    order = EpochOrder(np.array(sizes), 3, 1, lanes, 2)
    global_batch_size = lanes * samples_per_lane_and_step
    alone = batches_of_rank(order, global_batch_size, 0, 1)
    assert len(alone) == sum(sizes) // lanes // samples_per_lane_and_step
    assert all(len(set(batch)) == global_batch_size for batch in alone)
    for world_size in (number for number in range(1, lanes + 1) if lanes % number == 0):
        ranks = [batches_of_rank(order, global_batch_size, rank, world_size) for rank in range(world_size)]
        assert {len(batches) for batches in ranks} == {len(alone)}
        assert {len(batch) for batches in ranks for batch in batches} == {global_batch_size // world_size}
        together = [[row for part in parts for row in part] for parts in zip(*ranks, strict=True)]
        assert together == alone


@pytest.mark.parametrize("num_workers", [1, 3])
@pytest.mark.parametrize("samples_per_lane_and_step", [1, 3])
@pytest.mark.parametrize(("sizes", "lanes", "block"), GRID)
def test_batches_are_the_same_for_any_ranks_and_workers(
    sizes: np.ndarray, lanes: int, block: int, samples_per_lane_and_step: int, num_workers: int
) -> None:
    assert_same_batches(EpochOrder(sizes, 2, 1, lanes, block), samples_per_lane_and_step, num_workers)


@settings(max_examples=60)
@given(order=orders(), samples_per_lane_and_step=st.integers(1, 6), num_workers=st.integers(1, 5))
def test_batches_are_the_same_for_any_shards_ranks_and_workers(
    order: EpochOrder, samples_per_lane_and_step: int, num_workers: int
) -> None:
    assert_same_batches(order, samples_per_lane_and_step, num_workers)


@settings(max_examples=40)
@given(
    sizes=st.lists(st.integers(8, 60), min_size=4, max_size=12),
    lanes=st.integers(1, 4),
    block=st.integers(1, 4),
    seed=st.integers(0, 2**31),
    epoch=st.integers(0, 10**6),
)
def test_any_other_epoch_or_seed_is_another_order(
    sizes: list[int], lanes: int, block: int, seed: int, epoch: int
) -> None:
    pairs = {(seed, epoch), (seed + 1, epoch), (seed, epoch + 1), (epoch, seed)}  # neither may stand for the other
    orders_seen = {tuple(np.concatenate(all_rows(EpochOrder(np.array(sizes), *pair, lanes, block)))) for pair in pairs}
    assert len(orders_seen) == len(pairs)


def test_epochs_and_seeds_differ() -> None:
    sizes = np.array(UNEVEN)
    orders_seen = {
        tuple(np.concatenate(all_rows(EpochOrder(sizes, seed, epoch, 4, 2)))) for seed in range(4) for epoch in range(4)
    }
    assert len(orders_seen) == 16


def test_the_order_is_a_function_of_its_arguments_alone() -> None:
    first = all_rows(EpochOrder(np.array(UNEVEN), 5, 2, 4, 2))
    np.random.seed(1)
    np.random.default_rng(5).random()
    again = all_rows(EpochOrder(np.array(UNEVEN), 5, 2, 4, 2))
    assert all(np.array_equal(one, other) for one, other in zip(first, again, strict=True))


def test_the_order_never_changes_between_releases() -> None:
    # A checkpoint of an earlier release must go on where it stood: another order here would need a check on resume.
    order = EpochOrder(np.array([3, 4, 5]), 0, 0, 2, 1)
    assert [lane.tolist() for lane in all_rows(order)] == [[1, 0, 2, 4, 3, 5], [8, 7, 6, 9, 10, 11]]


@pytest.mark.parametrize("sizes", [[3] * 10 + [1], [31]], ids=["many shards", "one shard"])
def test_the_samples_left_out_of_an_epoch_are_others_each_time(sizes: list[int]) -> None:
    seen: set[int] = set()
    for epoch in range(40):
        seen |= set(np.concatenate(all_rows(EpochOrder(np.array(sizes), 0, epoch, 8, 2))).tolist())
    assert seen == set(range(31))


@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=60), num_lanes=st.integers(1, 9), a_block=st.integers(1, 9)
)
def test_a_lanes_blocks_are_equal_and_span_about_as_many_shards_as_asked_for(
    sizes: list[int], num_lanes: int, a_block: int
) -> None:
    order = EpochOrder(np.array(sizes), 5, 1, num_lanes, a_block)
    if not order.samples_per_lane:
        return
    shard_of_row = np.repeat(np.arange(len(sizes)), sizes)
    for lane, rows in enumerate(all_rows(order)):
        position, lengths = 0, []
        while position < order.samples_per_lane:
            [shards], end = order.blocks_ahead(lane, position, 1)
            # The shards that a block is said to need are those of its rows, no more and no fewer.
            assert set(shards) == set(shard_of_row[rows[position:end]])
            assert order.blocks_ahead(lane, end - 1, 1) == ([shards], end)
            lengths.append(end - position)
            position = end
        assert position == order.samples_per_lane
        assert max(lengths) - min(lengths) <= 1
        parts = len(set(shard_of_row[rows]))
        assert abs(len(lengths) - parts / a_block) <= 0.5 or len(lengths) == 1


def test_the_blocks_ahead_are_those_that_follow_and_end_with_the_lane() -> None:
    order = EpochOrder(np.full(12, 10), 0, 0, 2, 2)
    blocks, end = order.blocks_ahead(1, 25, 9)
    assert len(blocks) == 2
    assert end == 40
    assert blocks[1:] == order.blocks_ahead(1, 40, 1)[0]
    assert order.blocks_ahead(1, 25, 2)[0] == blocks


def test_two_epochs_are_kept_and_are_those_that_would_be_made_anew() -> None:
    orders = EpochOrders(np.full(12, 10), 3, 2, 2)
    first, second = orders(0), orders(1)
    assert orders(0) is first
    assert orders(1) is second
    assert all_rows(orders(2))[0].tolist() != all_rows(second)[0].tolist()
    assert orders(1) is second
    for made, epoch in ((first, 0), (orders(2), 2)):
        for rows, anew in zip(all_rows(made), all_rows(EpochOrder(np.full(12, 10), 3, epoch, 2, 2)), strict=True):
            assert np.array_equal(rows, anew)


def test_a_lane_reads_a_few_shards_at_a_time() -> None:
    sizes = np.full(40, 10)
    shard_of_row = np.repeat(np.arange(40), 10)
    order = EpochOrder(sizes, 0, 0, 2, 4)
    for lane in all_rows(order):
        for block in shard_of_row[lane].reshape(-1, 40):
            assert len(set(block)) == 4


def test_a_block_mixes_its_shards() -> None:
    shard_of_row = np.repeat(np.arange(8), 50)
    lane = all_rows(EpochOrder(np.full(8, 50), 0, 0, 1, 4))[0]
    for start in range(0, 400, 25):
        assert len(set(shard_of_row[lane[start : start + 25]])) > 1


def test_each_sample_is_equally_likely_at_each_end_of_an_epoch() -> None:
    firsts = [int(all_rows(EpochOrder(np.array([6] * 5), 0, epoch, 1, 2))[0][0]) for epoch in range(900)]
    counts = np.bincount(firsts, minlength=30)
    # 30 each are expected; six standard deviations (of a binomial) are 32.
    assert counts.min() > 5
    assert counts.max() < 62


def test_seeking_makes_one_block_wherever_it_leads_in_an_epoch_of_billions(monkeypatch: pytest.MonkeyPatch) -> None:
    order = EpochOrder(np.full(200_000, 10_000), 0, 0, 64, 4)
    assert order.samples_per_lane == 2 * 10**9 // 64
    drawn: list[int] = []
    bits = shards.order._bits

    def counting(count: int, *key: int) -> np.ndarray:
        drawn.append(count)
        return bits(count, *key)

    monkeypatch.setattr("shards.order._bits", counting)
    for share in (0, 0.01, 0.5, 0.99, 1):
        drawn.clear()
        position = int(share * (order.samples_per_lane - 1))
        row = order.rows(63, np.array([position]))
        assert 0 <= row[0] < 2 * 10**9
        # All that is random of a seek: the permutation of a block of 4 shards.
        assert drawn == [pytest.approx(40_000, rel=0.01)]


def test_what_replaces_a_sample_is_another_of_its_lane_and_the_same_with_every_version_of_numpy() -> None:
    order = EpochOrder(np.array(UNEVEN), 3, 1, 2, 2)
    lanes = all_rows(order)
    drawn = {
        (lane, position): [order.replacement(lane, position, attempt) for attempt in range(3)]
        for lane, position in itertools.product(range(2), range(4))
    }
    assert all(set(rows) <= set(lanes[lane].tolist()) for (lane, _), rows in drawn.items())
    assert drawn[0, 0] == [48, 60, 43]
    assert drawn[1, 3] == [9, 30, 30]
    assert len({tuple(rows) for rows in drawn.values()}) == len(drawn)


@given(num_samples=st.integers(1, 10**12), num_lanes=st.integers(1, 4096))
def test_lanes_are_equal_and_disjoint_and_leave_out_less_than_a_sample_each(num_samples: int, num_lanes: int) -> None:
    offset = num_samples % num_lanes
    assert lane_bounds(num_samples, num_lanes, offset)[-1] == num_samples
    bounds = lane_bounds(num_samples, num_lanes)
    assert bounds.dtype == np.int64
    assert len(bounds) == num_lanes + 1
    assert bounds[0] == 0
    assert set(np.diff(bounds)) == {num_samples // num_lanes}
    assert 0 <= num_samples - int(bounds[-1]) < num_lanes


@given(world_size=st.integers(1, 64), lanes_per_rank=st.integers(1, 64))
def test_ranks_share_all_lanes_equally(world_size: int, lanes_per_rank: int) -> None:
    num_lanes = world_size * lanes_per_rank
    lanes = [lanes_of_rank(rank, world_size, num_lanes) for rank in range(world_size)]
    assert [lane for part in lanes for lane in part] == list(range(num_lanes))
    assert {len(part) for part in lanes} == {lanes_per_rank}


@pytest.mark.parametrize(
    ("world_size", "num_lanes", "nearest"), [(3, 64, "2 or 4"), (128, 64, "64"), (5, 4, "4"), (7, 60, "6 or 10")]
)
def test_ranks_that_do_not_divide_the_lanes_are_told_which_do(world_size: int, num_lanes: int, nearest: str) -> None:
    with pytest.raises(UserError, match=f"{num_lanes} lanes cannot be shared equally by {world_size} ranks") as caught:
        lanes_of_rank(0, world_size, num_lanes)
    assert f"multiple of {world_size}" in caught.value.remedy
    assert f"start {nearest} ranks" in caught.value.remedy


@given(num_samples=st.integers(0, 10**12), num_lanes=st.integers(1, 256), per_lane=st.integers(1, 64))
def test_an_epoch_has_as_many_whole_batches_as_its_lanes_can_fill(
    num_samples: int, num_lanes: int, per_lane: int
) -> None:
    num_batches = num_batches_of_epoch(num_samples, num_lanes, num_lanes * per_lane)
    assert num_batches * per_lane <= num_samples // num_lanes < (num_batches + 1) * per_lane


@pytest.mark.parametrize("global_batch_size", [1, 63, 65, 100])
def test_a_batch_that_the_lanes_do_not_divide_is_a_users_error(global_batch_size: int) -> None:
    with pytest.raises(UserError, match=f"global_batch_size: {global_batch_size} cannot take") as caught:
        num_batches_of_epoch(1000, 64, global_batch_size)
    assert "64" in caught.value.remedy


def test_a_samples_random_numbers_depend_on_seed_epoch_and_row() -> None:
    drawn = {
        (seed, epoch, row): tuple(sample_generator(seed, epoch, row).random(4))
        for seed, epoch, row in itertools.product(range(3), range(3), range(5))
    }
    assert len(set(drawn.values())) == len(drawn)
    assert tuple(sample_generator(2, 1, 4).random(4)) == drawn[2, 1, 4]

"""The arithmetic of docs/scaling.md, and that the page has what it gives."""

from pathlib import Path

import pytest

from xmodal.training.scaling import Node, Student, Work, plan, with_tables

PAGE = Path(__file__).parents[2] / "docs" / "scaling.md"
VIT_L16 = Student(name="ViT-L/16", num_parameters=303_304_707, forward_flops=123_107_383_296)


def test_the_page_has_the_numbers_of_the_code():
    text = PAGE.read_text()
    assert text.count("<!-- table") == text.count("<!-- end -->") == 4
    assert with_tables(text) == text


def test_a_plan_is_what_one_works_out_by_hand():
    made = plan(VIT_L16, 100_000_000, Node(), Work())
    # 5e8 images of 369.3 GFLOP at 0.4 · 989 TFLOP/s take 466,800 s.
    assert made.gpu_hours == pytest.approx(466_800 / 3600, rel=1e-3)
    assert made.num_nodes == 1
    assert made.hours == pytest.approx(16.2, abs=0.05)
    assert made.dataset == 10e12
    # 8 · 1,071 images/s · 100 kB.
    assert made.node_read == pytest.approx(0.857e9, rel=1e-3)


def test_more_nodes_need_no_more_of_each():
    few, many = (plan(VIT_L16, number, Node(), Work()) for number in (1_000_000_000, 10_000_000_000))
    assert few.num_nodes == 7
    assert many.num_nodes == 68
    assert few.storage_share == many.storage_share
    assert few.exchange_share == pytest.approx(many.exchange_share, rel=0.02)


def test_ranks_divide_the_lanes():
    seven_nodes = plan(VIT_L16, 1_000_000_000, Node(), Work())
    assert seven_nodes.num_lanes == 112
    # 16 lanes of a node, twice 4 shards of 1,000 pictures of 100 kB for each.
    assert seven_nodes.least_cache == pytest.approx(12.8e9)
    assert plan(VIT_L16, 100_000_000, Node(), Work()).num_lanes == 64


def test_a_slow_network_between_nodes_is_the_first_bottleneck():
    slow = Node(network=100e9 / 8)
    assert plan(VIT_L16, 1_000_000_000, slow, Work()).first_bottleneck == "exchange of gradients"
    # The page says so.
    assert plan(VIT_L16, 1_000_000_000, slow, Work()).exchange_share == pytest.approx(1.60, abs=0.01)
    assert plan(VIT_L16, 1_000_000_000, Node(), Work()).first_bottleneck == "S3"
    assert plan(VIT_L16, 1_000_000, slow, Work()).first_bottleneck == "S3"

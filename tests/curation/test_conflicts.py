import io
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xmodal.curation.conflicts import Conflicts, conflict_figure, conflict_list, find_conflicts

LABELS = np.array([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8], [0.6, 0.3, 0.1]], dtype=np.float32)


def found(members: list[tuple[int, int]], asked: list[bool] | None = None) -> Conflicts:
    """Conflicts of samples, given as (group, place in LABELS)."""
    groups, labels = (np.array([member[which] for member in members], dtype=np.int64) for which in (0, 1))
    datasets = np.zeros(len(members), dtype=np.int32)
    mask = np.ones(len(members), dtype=bool) if asked is None else np.array(asked)
    return find_conflicts(groups, LABELS[labels].reshape(-1, 3), datasets, mask)


def listed(conflicts: Conflicts, keys: list[str]) -> list[dict]:
    chosen = pa.chunked_array([pa.array(keys, pa.string()).filter(pa.array(conflicts.is_listed))])
    return pq.read_table(io.BytesIO(conflict_list(conflicts, chosen))).to_pylist()


def test_groups_of_several_classes_are_listed_the_furthest_apart_first():
    conflicts = found([(0, 0), (5, 0), (0, 3), (2, 2), (5, 1), (7, 3), (2, 0), (7, 1), (8, 2)])
    rows = listed(conflicts, list("abcdefghi"))
    # Group 0 agrees on a class, and 8 is of one picture.
    assert [(row["group"], row["key"]) for row in rows] == [(0, "b"), (0, "e"), (1, "d"), (1, "g"), (2, "f"), (2, "h")]
    assert [row["spread"] for row in rows] == pytest.approx([0.7, 0.7, 0.7, 0.7, 0.5, 0.5])
    assert [row["class"] for row in rows] == ["negative", "neutral", "positive", "negative", "negative", "neutral"]
    assert rows[0]["soft_label"] == pytest.approx([0.8, 0.1, 0.1])
    assert conflicts.num_by_classes == {
        ("negative", "neutral"): 2,
        ("negative", "positive"): 1,
        ("neutral", "positive"): 0,
    }
    assert conflicts.num_in_conflict.sum() == 3
    assert conflicts.num_agreeing.tolist() == [0, 0, 1, 0, 0, 0, 0, 0, 0, 0]


def test_samples_that_are_not_asked_for_are_neither_listed_nor_counted():
    conflicts = found([(0, 0), (0, 1), (3, 0), (3, 2)], [True, False, True, True])
    assert conflicts.is_listed.tolist() == [False, False, True, True]
    assert conflicts.num_by_classes[("negative", "neutral")] == 0


@given(members=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 3)), max_size=25), seed=st.integers(0, 99))
def test_the_list_holds_all_members_of_the_groups_of_several_classes_whatever_their_order(members, seed):
    keys = [f"k{number:02d}" for number in range(len(members))]
    classes: dict[int, set[int]] = {}
    for group, label in members:
        classes.setdefault(group, set()).add(int(LABELS[label].argmax()))
    rows = listed(found(members), keys)
    wanted = {key for key, (group, _) in zip(keys, members, strict=True) if len(classes[group]) > 1}
    assert {row["key"] for row in rows} == wanted
    assert [row["spread"] for row in rows] == sorted((row["spread"] for row in rows), reverse=True)
    order = np.random.default_rng(seed).permutation(len(members))
    assert listed(found([members[place] for place in order]), [keys[place] for place in order]) == rows


@pytest.mark.parametrize("members", [[], [(0, 0)], [(0, 0), (0, 1), (2, 2), (2, 2)]])
def test_the_figure_is_an_svg_that_says_how_many_groups_are_in_conflict(members):
    svg = ElementTree.fromstring(conflict_figure(found(members)))
    in_conflict = 1 if len(members) > 1 else 0
    groups = 2 * in_conflict
    assert svg.attrib["aria-label"].startswith(f"{groups} groups of near duplicates, {in_conflict}")

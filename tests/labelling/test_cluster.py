import pytest

from shards.errors import UserError
from xmodal.labelling.cluster import check_processors, gpus_per_teacher
from xmodal.teacher.teacher import TeacherConfig


@pytest.mark.parametrize(
    ("kind", "num_actors", "num_gpus", "expected"),
    [("lexicon", 3, 2, 0), ("transformers", 3, 0, 0), ("transformers", 1, 1, 1), ("transformers", 2, 8, 1)],
)
def test_a_classifier_takes_a_gpu_where_there_are_any(kind, num_actors, num_gpus, expected):
    assert gpus_per_teacher(TeacherConfig(kind=kind, num_actors=num_actors), num_gpus) == expected


def test_more_teachers_than_gpus_are_refused_instead_of_waiting_for_ever():
    with pytest.raises(UserError, match="3 teachers take a GPU each, and the cluster has 2"):
        gpus_per_teacher(TeacherConfig(kind="transformers", num_actors=3), 2)


def test_teachers_that_leave_no_processor_to_fetch_with_are_refused_instead_of_waiting_for_ever():
    check_processors(TeacherConfig(num_actors=2, cpus_per_actor=0), [1])
    check_processors(TeacherConfig(num_actors=2, cpus_per_actor=3), [3, 4])
    with pytest.raises(UserError, match="2 teachers of 3 processors leave none of the cluster's 6"):
        check_processors(TeacherConfig(num_actors=2, cpus_per_actor=3), [3, 3])


def test_a_teacher_that_no_node_can_hold_is_refused_instead_of_waiting_for_ever():
    with pytest.raises(UserError, match="3: no node of the cluster has so many processors"):
        check_processors(TeacherConfig(num_actors=1, cpus_per_actor=3), [2, 2])

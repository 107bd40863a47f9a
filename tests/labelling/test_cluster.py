import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from shards.errors import UserError
from xmodal.crawl.politeness import PolitenessConfig
from xmodal.labelling import cluster
from xmodal.labelling.cluster import (
    _answer,
    _Finished,
    _first_that_begins,
    _Limit,
    _run_jobs,
    _start_gate,
    _telling_what_died,
    check_processors,
    gpus_per_teacher,
)
from xmodal.labelling.task import UnitJob, UnitResult
from xmodal.ray_session import ray_session
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


@pytest.fixture(scope="module")
def ray(ray_folder) -> Iterator[Any]:
    """A Ray of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", str(ray_folder))
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.delenv("RAY_ADDRESS", raising=False)
        with ray_session(None):
            import ray

            yield ray


def run(ray: Any, task: Any, num_jobs: int, in_flight: int = 4) -> list[UnitResult]:
    """Have so many jobs done by a task, which is told their numbers. Returns what came of them."""
    results: list[UnitResult] = []
    remote = ray.remote(num_cpus=0, max_retries=0)(task)
    jobs = [UnitJob(number=number, records=[]) for number in range(num_jobs)]
    with _telling_what_died(ray):
        limit, finished = _Limit(ray, in_flight), _Finished(ray, results.append)
        _run_jobs(lambda job: remote.remote(job.number), limit, jobs, finished)
    return results


def test_jobs_that_an_error_ended_cost_themselves_alone(ray):
    def task(number: int) -> UnitResult:
        if number % 3:
            raise ValueError(f"no {number}")
        return UnitResult(name=str(number), is_committed=True)

    results = run(ray, task, 60)
    assert sum(result.is_committed for result in results) == 20
    assert sorted(result.broken for result in results if result.broken)[0] == "ValueError: no 1"


def test_a_run_ends_where_many_jobs_in_a_row_broke_and_says_what_broke_the_last(ray):
    def task(number: int) -> UnitResult:
        raise ValueError(f"no {number}")

    with pytest.raises(UserError, match=r"^0000\d\d is the last of 20 units in a row .*: ValueError: no \d+\n"):
        run(ray, task, 60)


def test_no_more_jobs_are_in_flight_than_allowed(ray):
    num_handed_out, most = 0, 0
    results: list[UnitResult] = []

    def jobs() -> Iterator[UnitJob]:
        nonlocal num_handed_out, most
        for number in range(20):
            # The one that is asked for now is not handed out before there is room.
            most = max(most, num_handed_out - len(results))
            yield UnitJob(number=number, records=[])
            num_handed_out += 1

    def task(number: int) -> UnitResult:
        time.sleep(0.02)
        return UnitResult(name=str(number), is_committed=True)

    remote = ray.remote(num_cpus=0)(task)
    _run_jobs(lambda job: remote.remote(job.number), _Limit(ray, 3), jobs(), _Finished(ray, results.append))
    assert len(results) == 20
    assert most == 3


def test_without_a_setting_two_jobs_for_each_processor_are_in_flight(ray):
    assert _Limit(ray, 0).now() == 2 * int(ray.cluster_resources()["CPU"])


def test_there_are_more_where_several_share_a_processor(ray):
    assert _Limit(ray, 0, 0.25).now() == 8 * int(ray.cluster_resources()["CPU"])


def unlucky(ray: Any, ends_left: int) -> Callable[[], Any]:
    """Starts gates of which so many end before they begin."""

    class Gate:
        def __init__(self, has_luck: bool) -> None:
            if not has_luck:
                raise RuntimeError("no luck")

        def forget(self, task: str) -> None: ...

    gate_class = ray.remote(num_cpus=0)(Gate)
    lucks = itertools.chain(itertools.repeat(False, ends_left), itertools.repeat(True))
    return lambda: gate_class.remote(next(lucks))


def test_a_gate_that_ends_before_it_begins_is_started_again(ray, monkeypatch):
    monkeypatch.setattr(cluster, "_GATE_PAUSES_SECONDS", (0.0, 0.0, 0.0))
    gate = _first_that_begins(ray, unlucky(ray, 2))
    ray.get(gate.forget.remote("nobody"))


def test_a_gate_that_never_begins_is_told(ray, monkeypatch):
    monkeypatch.setattr(cluster, "_GATE_PAUSES_SECONDS", (0.0, 0.0, 0.0))
    with pytest.raises(UserError, match=r"^Ray ended the gate of this run before it began, 3 times: .*no luck"):
        _first_that_begins(ray, unlucky(ray, 3))


def ask_until_it_fails(ray: Any, gate: Any) -> None:
    """Its end is known to others only after a while."""
    while True:
        ray.get(gate.forget.remote("nobody"))


def test_a_gate_that_is_lost_is_not_told_to_be_the_teacher(ray):
    gate = _start_gate(ray, PolitenessConfig())
    ray.get(gate.forget.remote("nobody"))
    ray.kill(gate)
    with pytest.raises(ray.exceptions.ActorDiedError):
        ask_until_it_fails(ray, gate)

    def task(number: int) -> UnitResult:
        import ray

        return ray.get(gate.leave.remote("task", {}))

    with pytest.raises(UserError, match=r"^the gate of this run has ended"):
        run(ray, task, 1)


def test_what_a_teacher_is_asked_is_not_asked_for_ever_where_each_time_takes_it_away(ray, monkeypatch):
    monkeypatch.setattr(cluster, "_LONG_ANSWER_SECONDS", -1.0)
    asked = 0

    def ask() -> Any:
        nonlocal asked
        asked += 1
        assert asked < 20
        raise ray.exceptions.ActorUnavailableError("gone", None)

    with pytest.raises(ray.exceptions.ActorUnavailableError):
        _answer(ask)
    assert asked == 5

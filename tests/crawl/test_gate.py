import asyncio
import time
from typing import Any

import pytest

from xmodal.crawl import gate as gates
from xmodal.crawl.gate import GateKeeper, SharedGate
from xmodal.crawl.politeness import HostConfig, HostDownError, Over, PolitenessConfig


def keeper(**settings: Any) -> GateKeeper:
    return GateKeeper(PolitenessConfig(**({"requests_per_second": 0.0, "max_concurrent": 0} | settings)))


async def request(gate: SharedGate, host: str, sent: list[float], seconds: float = 0.0) -> None:
    await gate.enter(host)
    sent.append(time.monotonic())
    await asyncio.sleep(seconds)
    await gate.leave(host, answered=True)


def test_tasks_that_share_a_keeper_share_the_rate_of_a_host():
    async def run() -> list[float]:
        shared, sent = keeper(requests_per_second=50.0), []
        async with SharedGate(shared) as one, SharedGate(shared) as other:
            await asyncio.gather(*(request(gate, "a", sent) for gate in (one, other) for _ in range(20)))
        return sent

    sent = asyncio.run(run())
    assert len(sent) == 40
    assert sent[-1] - sent[0] >= 39 / 50 - 0.05


def test_a_host_may_have_limits_of_its_own():
    own = HostConfig(host="fast", requests_per_second=0, max_concurrent=2)

    async def run() -> None:
        async with SharedGate(keeper(requests_per_second=0.001, hosts=[own])) as gate:
            await gate.enter("slow")
            await asyncio.wait_for(asyncio.gather(gate.enter("fast"), gate.enter("fast")), 5)
            for host in ("slow", "fast"):
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(gate.enter(host), 0.2)

    asyncio.run(run())


def test_hosts_do_not_wait_for_each_other():
    async def run() -> None:
        async with SharedGate(keeper(max_concurrent=1)) as gate:
            await gate.enter("busy")
            await asyncio.wait_for(gate.enter("free"), 5)

    asyncio.run(run())


def test_tasks_that_share_a_keeper_share_the_requests_under_way():
    async def run() -> int:
        shared, under_way, most = keeper(max_concurrent=3), 0, 0

        async def one(gate: SharedGate) -> None:
            nonlocal under_way, most
            await gate.enter("a")
            under_way += 1
            most = max(most, under_way)
            await asyncio.sleep(0.01)
            under_way -= 1
            await gate.leave("a", answered=True)

        async with SharedGate(shared) as first, SharedGate(shared) as second:
            await asyncio.gather(*(one(gate) for gate in (first, second) for _ in range(20)))
        return most

    assert asyncio.run(run()) == 3


def test_a_pause_that_one_task_was_asked_for_is_kept_by_the_others():
    async def run() -> float:
        shared = keeper()
        async with SharedGate(shared) as one, SharedGate(shared) as other:
            await one.enter("a")
            start = time.monotonic()
            await one.leave("a", answered=True, retry_after=0.5)
            await other.enter("a")
            return time.monotonic() - start

    assert asyncio.run(run()) >= 0.5


def test_a_host_that_is_given_up_is_told_to_all_who_wait():
    async def run() -> list[bool | BaseException]:
        async with SharedGate(keeper(failures_to_open=2, patience_seconds=0.0)) as gate:
            for counts in (True, False):
                await gate.enter("a")
                assert await gate.leave("a", answered=False) is counts
            return await asyncio.gather(*(gate.enter("a") for _ in range(5)), return_exceptions=True)

    assert [type(answer) for answer in asyncio.run(run())] == [HostDownError] * 5


def test_a_permit_of_one_who_was_cancelled_is_given_back():
    async def run() -> None:
        async with SharedGate(keeper(max_concurrent=1)) as gate:
            await gate.enter("a")
            waiting = asyncio.create_task(gate.enter("a"))
            await asyncio.sleep(0.05)
            waiting.cancel()
            await gate.leave("a", answered=True)
            await asyncio.sleep(0.1)  # the permit comes when nobody waits for it any more
            await asyncio.wait_for(gate.enter("a"), 5)

    asyncio.run(run())


def test_what_a_task_held_is_given_back_when_it_ends():
    async def run() -> None:
        shared = keeper(max_concurrent=2)
        async with SharedGate(shared) as ended:
            await ended.enter("a")
            await ended.enter("a")
        async with SharedGate(shared) as next_one:
            await asyncio.wait_for(next_one.enter("a"), 5)

    asyncio.run(run())


def test_what_a_task_held_that_died_is_given_back_after_a_while(monkeypatch):
    monkeypatch.setattr(gates, "HEARTBEAT_SECONDS", 0.05)
    monkeypatch.setattr(gates, "SILENT_SECONDS", 0.3)

    async def run() -> float:
        shared = keeper(max_concurrent=1)
        await shared.enter("dead", "a", 1, 1)
        async with SharedGate(shared) as living, SharedGate(shared) as other:
            start = time.monotonic()
            await asyncio.wait_for(living.enter("a"), 5)
            freed = time.monotonic() - start
            # The living one, which holds it for longer than that, keeps it.
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(other.enter("a"), 0.8)
        return freed

    assert asyncio.run(run()) >= 0.2


def test_tasks_that_died_while_they_waited_are_given_nothing(monkeypatch):
    monkeypatch.setattr(gates, "HEARTBEAT_SECONDS", 0.05)
    monkeypatch.setattr(gates, "SILENT_SECONDS", 0.3)

    async def run() -> list[int | None]:
        shared = keeper(max_concurrent=2)
        async with SharedGate(shared) as living, SharedGate(shared) as other:
            await asyncio.gather(living.enter("a"), living.enter("a"))
            # Their questions wait, and come to their turn long after anybody heard of them.
            dead = [asyncio.create_task(shared.enter(f"dead{number}", "a", 1, 2)) for number in range(50)]
            await asyncio.sleep(0.6)
            await living.leave("a", answered=True)
            await asyncio.wait_for(other.enter("a"), 1)
            return await asyncio.wait_for(asyncio.gather(*dead), 1)

    assert asyncio.run(run()) == [0] * 50


def test_a_question_that_comes_twice_is_answered_once():
    async def run() -> None:
        shared = keeper(max_concurrent=2)
        assert await shared.enter("one", "a", 1, 1) == 1
        assert await shared.enter("one", "a", 1, 1) == 1
        assert shared._clients["one"].held["a"] == 1
        # Twice while it waits, and answered to both.
        assert await shared.enter("other", "a", 1, 1) == 1
        waiting = [asyncio.create_task(shared.enter("one", "a", 2, 1)) for _ in range(2)]
        await asyncio.sleep(0.05)
        await shared.leave("other", {"a": Over(answers=1)})
        assert await asyncio.wait_for(asyncio.gather(*waiting), 5) == [1, 1]
        assert shared._hosts["a"].limits.num_open == 2

    asyncio.run(run())


def test_a_report_that_comes_twice_or_late_counts_once():
    async def run() -> None:
        shared = keeper(max_concurrent=10)
        assert await shared.enter("one", "a", 1, 10) == 10
        for sums, num_open in [((3, 0), 7), ((3, 0), 7), ((5, 1), 4), ((3, 0), 4), ((6, 1), 3)]:
            await shared.leave("one", {"a": Over(answers=sums[0], unknown=sums[1])})
            assert shared._hosts["a"].limits.num_open == num_open

    asyncio.run(run())


def test_what_a_task_held_that_was_taken_for_dead_is_given_back_once(monkeypatch):
    monkeypatch.setattr(gates, "HEARTBEAT_SECONDS", 0.05)
    monkeypatch.setattr(gates, "SILENT_SECONDS", 0.3)

    async def run() -> None:
        shared = keeper(max_concurrent=10)
        assert await shared.enter("cut off", "a", 1, 10) == 10
        async with SharedGate(shared) as living:
            await asyncio.gather(*(living.enter("a") for _ in range(10)))
            # It is back, and reports what it had under way.
            await shared.leave("cut off", {"a": Over(answers=10)})
            assert shared._hosts["a"].limits.num_open == 10
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(living.enter("a"), 0.2)

    asyncio.run(run())


def test_a_keeper_that_fails_fails_those_who_wait():
    class Broken(GateKeeper):
        async def enter(self, client: str, host: str, number: int, wanted: int) -> int | None:
            raise ConnectionError

    async def run() -> None:
        async with SharedGate(Broken(PolitenessConfig())) as gate:
            with pytest.raises(ConnectionError):
                await gate.enter("a")

    asyncio.run(run())


def test_idle_hosts_are_forgotten_when_there_are_many(monkeypatch):
    monkeypatch.setattr(gates, "_MOST_HOSTS", 3)
    monkeypatch.setattr(gates, "HEARTBEAT_SECONDS", 0.02)

    async def run() -> GateKeeper:
        shared, sent = keeper(), []
        async with SharedGate(shared) as gate:
            for number in range(10):
                await request(gate, f"host{number}", sent)
                await asyncio.sleep(0.03)
        return shared

    assert len(asyncio.run(run()).busiest(100)) <= 4

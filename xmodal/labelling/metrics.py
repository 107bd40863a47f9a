"""What the processes of a label run count, on Ray's Prometheus endpoint (there each name begins with `ray_`)."""

from collections import Counter
from collections.abc import Mapping
from functools import cache
from typing import Any


@cache
def _counter(name: str, description: str, *tag_keys: str) -> Any:
    from ray.util.metrics import Counter as RayCounter

    return RayCounter(name, description=description, tag_keys=tag_keys)


@cache
def _gauge(name: str, description: str, *tag_keys: str) -> Any:
    from ray.util.metrics import Gauge

    return Gauge(name, description=description, tag_keys=tag_keys)


def count_unit(*, num_pictures: int, num_bytes: int, reasons: Mapping[str, int]) -> None:
    """A unit was committed: so many pictures, so many bytes of them, failures by reason."""
    _counter("xmodal_units_committed", "Units whose shard was committed").inc(1)
    if num_pictures:
        _counter("xmodal_pictures_fetched", "Pictures that became samples").inc(num_pictures)
        _counter("xmodal_picture_bytes", "Bytes of the pictures that became samples").inc(num_bytes)
    for reason, count in reasons.items():
        _counter("xmodal_failures", "Posts and pictures that gave no sample", "reason").inc(count, {"reason": reason})


def count_texts(*, num_texts: int, num_tokens: int, seconds: float) -> None:
    """A teacher read so many texts in so many seconds. A teacher that has no tokens counts none."""
    _counter("xmodal_texts_labelled", "Texts that the teacher read").inc(num_texts)
    if num_tokens:
        _counter("xmodal_tokens_read", "Tokens that the teacher read").inc(num_tokens)
        _gauge("xmodal_tokens_per_second", "Tokens a second of the teacher's last unit").set(num_tokens / seconds)


def show_hosts(hosts: Mapping[str, tuple[int, float]]) -> None:
    """Of the busiest hosts: requests that were let through, and seconds that tasks waited for their turn."""
    for host, (num_requests, seconds_waited) in hosts.items():
        _gauge("xmodal_host_requests", "Requests let through to a host", "host").set(num_requests, {"host": host})
        _gauge("xmodal_host_wait_seconds", "Seconds that tasks waited for a host", "host").set(
            seconds_waited, {"host": host}
        )


def reasons_of(failures: list[dict[str, Any]]) -> Counter[str]:
    """How many failures there are of each reason."""
    return Counter(failure["reason"] for failure in failures)

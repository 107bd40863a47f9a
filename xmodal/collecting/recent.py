"""The ids seen last."""

from collections.abc import Iterable


class RecentIds:
    """A set of ids that forgets the oldest once it holds `capacity`."""

    def __init__(self, capacity: int, ids: Iterable[str] = ()) -> None:
        self._capacity = capacity
        self._ids: dict[str, None] = {}
        for post_id in ids:
            self.add(post_id)

    def __contains__(self, post_id: str) -> bool:
        return post_id in self._ids

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, post_id: str) -> None:
        """Take in an id; one that is there already keeps its age."""
        self._ids[post_id] = None
        if len(self._ids) > self._capacity:
            del self._ids[next(iter(self._ids))]

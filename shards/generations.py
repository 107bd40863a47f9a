"""Names of a shard and of what it became when samples were scrubbed from it. Effects: none.

What is committed never changes, so a shard without some of its samples is another one: `000123.tar` becomes
`000123-scrubbed1.tar`, and that `000123-scrubbed2.tar`. The newest holds all that is to be read; the older ones wait to
be deleted.
"""

import re
from collections.abc import Iterable

_SCRUBBED = re.compile(r"(?P<first>.+)-scrubbed(?P<generation>[1-9]\d{0,8})")
_ENDINGS = (".tar", ".failures.jsonl", ".index.parquet", ".parquet")


def generation_of(stem: str) -> tuple[str, int]:
    """`000123-scrubbed2` → `("000123", 2)`, the name of the first generation and the number of this one, from 0."""
    match = _SCRUBBED.fullmatch(stem)
    return (match["first"], int(match["generation"])) if match else (stem, 0)


def next_generation(stem: str) -> str:
    """`000123` → `000123-scrubbed1`."""
    first, generation = generation_of(stem)
    return f"{first}-scrubbed{generation + 1}"


def newest_generations(stems: Iterable[str]) -> dict[str, str]:
    """Name of the first generation → that of the newest there is, from the names of all shards (without ending)."""
    newest: dict[str, str] = {}
    for stem in sorted(stems, key=generation_of):
        newest[generation_of(stem)[0]] = stem
    return newest


def older_generations(names: Iterable[str]) -> list[str]:
    """Of all files of a dataset, those of shards of which there is a newer generation."""
    names = list(names)
    newest = newest_generations(name.removesuffix(".tar") for name in names if name.endswith(".tar"))
    older = []
    for name in names:
        stem = next((name.removesuffix(ending) for ending in _ENDINGS if name.endswith(ending)), name)
        first, generation = generation_of(stem)
        if generation < generation_of(newest.get(first, stem))[1]:
            older.append(name)
    return older

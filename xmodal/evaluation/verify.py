"""Is a copy of a benchmark whole, and what must one know of it: duplicates, and what they do to its divisions."""

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from shards.errors import UserError
from xmodal.benchmarks import (
    Benchmark,
    BenchmarkConfig,
    definition_of,
    known_benchmarks,
    load_definition,
    read_benchmark,
    read_judgements,
)
from xmodal.curation.benchmark_pictures import read_picture
from xmodal.curation.datasets import map_in_order
from xmodal.curation.near_duplicates import near_groups, pack_hashes
from xmodal.evaluation.folds import NUM_FOLDS, stratified_folds
from xmodal.labels import CLASSES


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something that verifying a benchmark found."""

    kind: Literal["problem", "note"]
    """A problem makes the copy another benchmark than the published one; a note is true of that one too."""
    what: str
    pictures: list[list[str]]
    """Their paths, each list a group that belongs together."""


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What was found in a benchmark."""

    benchmark: str
    pictures: int
    """Rows of the table."""
    by_class: dict[str, int]
    findings: list[Finding]

    @property
    def is_sound(self) -> bool:
        """Whether there are no problems."""
        return all(finding.kind == "note" for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """As `--json` writes it."""
        return asdict(self)


def verify_benchmark(name_or_file: str, *, root: str = "") -> Verification:
    """Look at every picture of a benchmark. Raises UserError where its definition or table cannot be read."""
    benchmark = read_benchmark(name_or_file, root=root)
    hashes = _hashes(benchmark)
    findings = [
        *_missing_and_undecodable(benchmark, hashes),
        *_differences(benchmark),
        *_repeated_rows(benchmark),
    ]
    first_places = {path: place for place, path in reversed(list(enumerate(benchmark.paths)))}
    known = {place: of_one for place in sorted(first_places.values()) if isinstance(of_one := hashes[place], _Hashes)}
    there = list(known)
    exact = _groups_of([of_one.sha256 for of_one in known.values()], there)
    packed = pack_hashes(of_one.pdq for of_one in known.values())
    # Links through copies are links too: what is not larger than the exact groups is told once.
    near = _groups_of(near_groups(packed).tolist(), there)
    exact_members = {frozenset(group) for group in exact}
    only_near = [group for group in near if frozenset(group) not in exact_members]
    findings += _groups_found(benchmark, "exact duplicates", exact)
    findings += _groups_found(benchmark, "near duplicates", only_near)
    findings += _contradictions(benchmark, near)
    if "five_fold" in benchmark.config.protocols:
        findings += _crossing_folds(benchmark, near)
    for number, split in enumerate(benchmark.config.splits, start=1):
        parts = {part: getattr(split, part) for part in ("train", "val", "test")}
        findings += _split_findings(benchmark, number, parts, near, definition_of(name_or_file))
    return Verification(
        benchmark=benchmark.config.name,
        pictures=len(benchmark.paths),
        by_class=benchmark.counts(),
        findings=findings,
    )


def list_benchmarks(root: str = "") -> list[tuple[str, BenchmarkConfig, bool]]:
    """All benchmarks by the names that they are known by, and whether their table is there."""
    configs = {name: load_definition(name, root=root) for name in known_benchmarks()}
    return [(name, config, os.path.exists(config.labels)) for name, config in configs.items()]


@dataclass(frozen=True, kw_only=True)
class _Hashes:
    sha256: str
    pdq: str


def _hashes(benchmark: Benchmark) -> list[_Hashes | str | None]:
    """Of each picture: its hashes, why it cannot be decoded, or None where it is not there."""
    paths = [None if lost else benchmark.image_path(place) for place, lost in enumerate(benchmark.missing.tolist())]
    return list(map_in_order(_hashed, paths, len(os.sched_getaffinity(0))))


def _hashed(path: Path | None) -> _Hashes | str | None:
    if path is None:
        return None
    found = read_picture(path, lossless=True)
    if isinstance(found, str):
        return found
    content, picture = found
    return _Hashes(sha256=hashlib.sha256(content).hexdigest(), pdq=picture.pdq)


def _missing_and_undecodable(benchmark: Benchmark, hashes: Sequence[_Hashes | str | None]) -> Iterator[Finding]:
    missing = [[path] for path, found in zip(benchmark.paths, hashes, strict=True) if found is None]
    if missing:
        yield Finding(kind="problem", what=f"{_pictures(len(missing))} missing", pictures=missing)
    broken = [[path] for path, found in zip(benchmark.paths, hashes, strict=True) if isinstance(found, str)]
    if broken:
        yield Finding(kind="problem", what=f"{_pictures(len(broken))} that cannot be decoded", pictures=broken)


def _differences(benchmark: Benchmark) -> Iterator[Finding]:
    """Where the counts are not the expected ones."""
    expected, counts = benchmark.config.expected, {"pictures": len(benchmark.paths), **benchmark.counts()}
    for key in ("pictures", *CLASSES):
        wanted = getattr(expected, key)
        if wanted is not None and wanted != counts[key]:
            name = "pictures" if key == "pictures" else f"{key} pictures"
            what = f"{counts[key]} {name}, {wanted} are expected"
            if expected.certain:
                yield Finding(kind="problem", what=what, pictures=[])
            else:
                yield Finding(kind="note", what=f"{what}, which is not certain (see its definition)", pictures=[])


def _repeated_rows(benchmark: Benchmark) -> Iterator[Finding]:
    repeated = _groups_of(benchmark.paths, range(len(benchmark.paths)))
    if repeated:
        named = [[benchmark.paths[group[0]]] for group in repeated]
        yield Finding(kind="problem", what=f"{_pictures(len(named))} named by several rows", pictures=named)


def _groups_found(benchmark: Benchmark, name: str, groups: Sequence[Sequence[int]]) -> Iterator[Finding]:
    if groups:
        size = sum(map(len, groups))
        yield Finding(
            kind="note", what=f"{_groups(len(groups))} of {name}, {size} pictures", pictures=_named(benchmark, groups)
        )


def _contradictions(benchmark: Benchmark, groups: Sequence[Sequence[int]]) -> Iterator[Finding]:
    signs = np.sign(benchmark.scores)
    differing = [group for group in groups if len(set(signs[list(group)])) > 1]
    if differing:
        what = f"{_groups(len(differing))} of duplicates that people put into different classes"
        yield Finding(kind="note", what=what, pictures=_named(benchmark, differing))


def _crossing_folds(benchmark: Benchmark, groups: Sequence[Sequence[int]]) -> Iterator[Finding]:
    classes = np.sign(benchmark.scores)
    # Fewer than that of a class cannot be cut into so many folds.
    if min(np.unique(classes, return_counts=True)[1]) < NUM_FOLDS:
        return
    fold_of = stratified_folds(classes)
    crossing = [group for group in groups if len(set(fold_of[list(group)])) > 1]
    if crossing:
        what = f"{_groups(len(crossing))} of duplicates across the paper's {NUM_FOLDS} folds"
        yield Finding(kind="note", what=what, pictures=_named(benchmark, crossing))


def _split_findings(
    benchmark: Benchmark, number: int, tables: Mapping[str, str], groups: Sequence[Sequence[int]], source: str
) -> Iterator[Finding]:
    """Whether a given division is one of the benchmark's pictures, and which duplicates cross it."""
    part_of: dict[str, str] = {}
    several: list[list[str]] = []
    otherwise: list[list[str]] = []
    score_of = dict(zip(benchmark.paths, benchmark.scores.tolist(), strict=True))
    for part, table in tables.items():
        try:
            paths, scores = read_judgements(benchmark.config, table, source)
        except UserError as error:
            yield Finding(kind="problem", what=f"division {number}: {error.what}", pictures=[])
            return
        for path, score in zip(paths, scores.tolist(), strict=True):
            if path in part_of:
                several.append([path])
            if score_of.get(path) != score:
                otherwise.append([path])
            part_of[path] = part
    absent = [[path] for path in benchmark.paths if path not in part_of]
    for pictures, what in (
        (several, "in several rows of it"),
        (otherwise, "not in the benchmark, or of another class there"),
        (absent, "of the benchmark in no part of it"),
    ):
        if pictures:
            yield Finding(
                kind="problem", what=f"division {number}: {_pictures(len(pictures))} {what}", pictures=pictures
            )
    crossing = [group for group in groups if len({part_of.get(benchmark.paths[place]) for place in group} - {None}) > 1]
    if crossing:
        what = f"division {number}: {_groups(len(crossing))} of duplicates across its parts"
        yield Finding(kind="note", what=what, pictures=_named(benchmark, crossing))


def _groups_of(keys: Sequence[Any], places: Sequence[int]) -> list[list[int]]:
    """The places that share a key, where several do, in their order."""
    found: dict[Any, list[int]] = defaultdict(list)
    for key, place in zip(keys, places, strict=True):
        found[key].append(place)
    return [group for group in found.values() if len(group) > 1]


def _named(benchmark: Benchmark, groups: Sequence[Sequence[int]]) -> list[list[str]]:
    return [[benchmark.paths[place] for place in group] for group in groups]


def _pictures(count: int) -> str:
    return "1 picture" if count == 1 else f"{count} pictures"


def _groups(count: int) -> str:
    return "1 group" if count == 1 else f"{count} groups"

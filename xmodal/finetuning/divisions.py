"""Which pictures train, validate and test: folds that keep duplicates together, or the divisions that were given."""

import csv
import hashlib
import io
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from shards.errors import UserError
from shards.storage import LocalStorage
from shards.view import SPLITS
from xmodal.benchmarks import Benchmark, read_judgements
from xmodal.curation.near_duplicates import near_groups
from xmodal.evaluation.folds import grouped_folds
from xmodal.labels import CLASSES, NEGATIVE, NEUTRAL, POSITIVE

FILE = "divisions.csv"
LEFT_OUT = ""
"""The part of a picture that is in none."""


@dataclass(frozen=True, kw_only=True)
class Divisions:
    """Several divisions of the same pictures."""

    names: list[str]
    parts: np.ndarray
    """Text `(divisions, n)`: train, val, test, or `LEFT_OUT`."""
    groups: np.ndarray
    """int64 `(n,)`: the same for pictures that are duplicates of each other, or share their judgement."""
    is_decodable: np.ndarray
    """bool `(n,)`; the others are in no part."""


def table_fingerprint(benchmark: Benchmark) -> str:
    """A sha256 (hex) of which pictures a benchmark has, in which order, and of their scores."""
    return hashlib.sha256(json.dumps(_judgements(benchmark)).encode()).hexdigest()


def classes_of(benchmark: Benchmark) -> np.ndarray:
    """The class id of each picture, int64 `(n,)`; of scores, the sign is the class."""
    return np.sign(benchmark.scores).astype(np.int64) + NEUTRAL


def linked_groups(judgements: np.ndarray, packed: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Groups of pictures linked by near duplication or a shared judgement, transitively: int64 `(n,)`, from 0.

    `judgements` int64 `(n,)` are the groups that share one; `packed` uint8 `(m, 32)` are hashes of the pictures at
    `places` int64 `(m,)`.
    """
    num_pictures = len(judgements)
    _, first_of_judgement = np.unique(judgements, return_index=True)
    judged_as = first_of_judgement[np.unique(judgements, return_inverse=True)[1]]
    ones = np.concatenate([np.arange(num_pictures), places])
    others = np.concatenate([judged_as, places[near_groups(packed)]])
    graph = coo_array((np.ones(len(ones), dtype=bool), (ones, others)), shape=(num_pictures, num_pictures))
    return connected_components(graph, directed=False)[1].astype(np.int64)


def fold_divisions(
    benchmark: Benchmark, groups: np.ndarray, is_decodable: np.ndarray, *, num_folds: int, seed: int
) -> Divisions:
    """A division for each fold, which is held out for testing. Raises UserError for classes that are too small."""
    classes = classes_of(benchmark)
    places = np.flatnonzero(is_decodable)
    for class_id in _needed(classes):
        members = places[classes[places] == class_id]
        num_groups = len(np.unique(groups[members]))
        if num_groups < num_folds:
            raise UserError(
                f"{benchmark.config.name}: {len(members)} {CLASSES[class_id]} pictures, {num_groups} without their"
                f" duplicates, are fewer than the {num_folds} folds",
                f"give --num_folds {num_groups}" if num_groups > 1 else "give a benchmark with more pictures of it",
            )
    fold_of = grouped_folds(classes[places], groups[places], num_folds, seed)
    parts = np.full((num_folds, len(classes)), LEFT_OUT, dtype=object)
    for number in range(num_folds):
        parts[number, places] = np.where(fold_of == number, "test", "train")
    names = [f"fold-{number}" for number in range(1, num_folds + 1)]
    return _checked(benchmark, Divisions(names=names, parts=parts, groups=groups, is_decodable=is_decodable))


def given_divisions(benchmark: Benchmark, groups: np.ndarray, is_decodable: np.ndarray, source: str) -> Divisions:
    """The divisions that come with a benchmark, as they are, whatever duplicates are across their parts.

    A benchmark of scores is one without the pictures whose score is 0; their rows are passed over. `source` is its
    definition, which errors name. Raises UserError for divisions that are none.
    """
    splits = benchmark.config.splits
    place_of = {path: place for place, path in enumerate(benchmark.paths)}
    parts = np.full((len(splits), len(benchmark.paths)), LEFT_OUT, dtype=object)
    names = [f"split-{number}" for number in range(1, len(splits) + 1)]
    for row, split in zip(parts, splits, strict=True):
        for part in SPLITS:
            table = getattr(split, part)
            paths, scores = read_judgements(benchmark.config, table, source)
            for path, score in zip(paths, scores.tolist(), strict=True):
                place = place_of.get(path)
                if place is None and score == 0 and not benchmark.config.has_neutral:
                    continue
                problem = None
                if place is None or benchmark.scores[place] != score:
                    problem = "is not in the benchmark's own table, or of another class there"
                elif row[place] != LEFT_OUT:
                    problem = "is in another row of this division too"
                if problem:
                    raise UserError(
                        f"{table}: {path}: {problem}", f"see `xmodal benchmarks verify {benchmark.config.name}`"
                    )
                row[place] = part
        row[~is_decodable] = LEFT_OUT
    return _checked(benchmark, Divisions(names=names, parts=parts, groups=groups, is_decodable=is_decodable))


def num_crossing(groups: np.ndarray, parts: np.ndarray) -> int:
    """How many groups, int64 `(n,)`, have pictures in several of a division's parts, text `(n,)`."""
    pairs = {(group, part) for group, part in zip(groups.tolist(), parts.tolist(), strict=True) if part != LEFT_OUT}
    return sum(count > 1 for count in Counter(group for group, _ in pairs).values())


def _needed(classes: np.ndarray) -> list[int]:
    """The classes that must be trained on: what the benchmark has, and negative and positive in any case."""
    return sorted({NEGATIVE, POSITIVE, *classes.tolist()})


def _checked(benchmark: Benchmark, divisions: Divisions) -> Divisions:
    """Raise UserError where a part lacks what it is for."""
    classes = classes_of(benchmark)
    for name, row in zip(divisions.names, divisions.parts, strict=True):
        for class_id in _needed(classes):
            if not ((row == "train") & (classes == class_id)).any():
                raise UserError(
                    f"{benchmark.config.name}: {name}: no {CLASSES[class_id]} picture is left to train on",
                    "its duplicates are too many for these folds, or its table lacks them",
                )
        if not (row == "test").any():
            raise UserError(
                f"{benchmark.config.name}: {name}: no picture is left to test on",
                "give fewer folds, or mend the division's tables",
            )
    return divisions


def write_divisions(folder: Path, benchmark: Benchmark, divisions: Divisions) -> None:
    """Write `divisions.csv`: a row for each picture, in the order of the benchmark's table."""
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([*_COLUMNS, *divisions.names])
    columns = (benchmark.paths, benchmark.scores, divisions.groups, divisions.is_decodable.astype(int))
    rows = zip(*(np.asarray(column).tolist() for column in columns), divisions.parts.T.tolist(), strict=True)
    writer.writerows([*columns, *parts] for *columns, parts in rows)
    LocalStorage(folder).replace(FILE, file.getvalue().encode())


def read_divisions(folder: Path, benchmark: Benchmark) -> Divisions:
    """What `write_divisions` wrote. Raises UserError where the benchmark's table is another one by now."""
    with open(folder / FILE, newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    if [(row[0], float(row[1])) for row in rows] != _judgements(benchmark):
        raise UserError(
            f"{folder / FILE}: its pictures or their classes are not those of {benchmark.config.name} any more",
            "bring back the table that the run was begun with, or give a new `output` folder",
        )
    return Divisions(
        names=header[len(_COLUMNS) :],
        parts=np.array([row[len(_COLUMNS) :] for row in rows], dtype=object).T,
        groups=np.array([int(row[2]) for row in rows]),
        is_decodable=np.array([row[3] == "1" for row in rows]),
    )


_COLUMNS = ("path", "human_score", "group", "decodable")


def _judgements(benchmark: Benchmark) -> list[tuple[str, float]]:
    return list(zip(benchmark.paths, benchmark.scores.tolist(), strict=True))

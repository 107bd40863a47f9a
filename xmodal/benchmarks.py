"""Benchmarks: pictures that people judged. A new one is one YAML file in `configs/benchmarks/`."""

import csv
import difflib
import math
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from shards.checks import require_range
from shards.errors import ConfigError, UserError
from xmodal.config import MisspeltSettingError, load_config
from xmodal.labels import CLASSES, NEUTRAL

DEFINITIONS = Path("configs/benchmarks")
"""Where benchmarks are known by name: here, and in the clone that this code lies in."""
_OF_CLONE = Path(__file__).parent.parent / DEFINITIONS
"""Not there where the code was installed without its clone: a wheel has no `configs`."""
INSTALL_FROM_CLONE = "names of benchmarks are known where xmodal was installed from its clone (pip install -e .)"
PICTURE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"}
"""Of files, where a folder and no table says which pictures there are."""


class MissingPicturesError(UserError):
    """Pictures that a benchmark's table names are not there."""


Protocol = Literal["zero_shot", "five_fold", "given_splits"]


@dataclass(frozen=True, kw_only=True)
class ExpectedCounts:
    """How many pictures a whole copy of a benchmark has; nothing where that is not known."""

    pictures: int | None = None
    negative: int | None = None
    neutral: int | None = None
    positive: int | None = None
    certain: bool = True
    """False for numbers that nobody counted in the benchmark's own table: to differ from them is no fault."""

    def __post_init__(self) -> None:
        for key in ("pictures", *CLASSES):
            if getattr(self, key) is not None:
                require_range(self, key, least=0)


@dataclass(frozen=True, kw_only=True)
class GivenSplit:
    """One of the divisions that come with a benchmark: tables with the columns of its own."""

    train: str
    val: str
    test: str


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """Where a benchmark's pictures and judgements lie, and how they are read."""

    name: str
    images: str
    """Folder that the table's paths are relative to."""
    labels: str
    """CSV or TSV file with a header; or a folder, `images` as a rule, in which each class is a folder of its own."""
    path_column: str = "path"
    classes: dict = field(default_factory=dict)
    """The benchmark's own class (its id, or the name of an emotion) → negative, neutral or positive. Without it, the
    benchmark is graded: people gave scores."""
    class_column: str = "class"
    """Of `classes`."""
    score_column: str = "score"
    """Mean human judgement: above 0 is positive, below 0 negative; those at 0 are in no class."""
    group_pattern: str | None = None
    """Regular expression whose first group, in the path, names what was judged. Pictures of one group share their
    judgement, so intervals are made by drawing groups, not pictures."""
    protocols: list[Protocol] = field(default_factory=lambda: ["zero_shot"])
    """How it is used: `zero_shot`, as it is; `five_fold`, fine-tuned by cross-validation; `given_splits`, fine-tuned on
    the divisions that come with it."""
    splits: list[GivenSplit] = field(default_factory=list)
    """Those divisions."""
    expected: ExpectedCounts = field(default_factory=ExpectedCounts)
    """What `xmodal benchmarks verify` holds the counts against."""
    citation: str = ""
    """Whom to cite."""
    source: str = ""
    """Where to get it."""
    license: str = ""
    """Terms of the pictures and the judgements."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w-][\w.-]*", self.name):
            raise ConfigError("name", self.name, "must be letters, digits, '_', '-' and '.': files are named after it")
        if self.group_pattern is not None:
            try:
                num_groups = re.compile(self.group_pattern).groups
            except re.error as error:
                raise ConfigError("group_pattern", self.group_pattern, f"is no regular expression: {error}") from error
            if not num_groups:
                raise ConfigError("group_pattern", self.group_pattern, "must have a group in parentheses")
        if self.classes:
            meanings = list(self.classes.values())  # no set: YAML may hold what has no hash
            if any(one not in CLASSES for one in meanings) or "negative" not in meanings or "positive" not in meanings:
                rule = f"must lead to {', '.join(CLASSES)}, and to negative and positive at least"
                raise ConfigError("classes", self.classes, rule)
        if "given_splits" in self.protocols and not self.splits:
            raise ConfigError("protocols", self.protocols, "has given_splits, but there are no splits")

    @property
    def is_graded(self) -> bool:
        """Whether people gave scores, not classes."""
        return not self.classes

    @property
    def has_neutral(self) -> bool:
        """Whether people could call a picture neutral."""
        return CLASSES[NEUTRAL] in self.classes.values()


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A benchmark whose table was read; `paths`, `scores` float64 `(n,)` and `groups` int64 `(n,)` go together."""

    config: BenchmarkConfig
    """With its paths as seen from the working folder."""
    paths: list[str]
    """As they stand in the table."""
    scores: np.ndarray
    """Of a benchmark with classes: -1 negative, 0 neutral, 1 positive."""
    groups: np.ndarray
    missing: np.ndarray
    """Which pictures are not there: bool `(n,)`."""

    def image_path(self, place: int) -> Path:
        """Where a picture lies."""
        return Path(self.config.images) / self.paths[place]

    def subset(self, places: np.ndarray) -> "Benchmark":
        """The pictures at these places (int64), in their order; a place may stand there several times."""
        return replace(
            self,
            paths=[self.paths[place] for place in places.tolist()],
            scores=self.scores[places],
            groups=self.groups[places],
            missing=self.missing[places],
        )

    def counts(self) -> dict[str, int]:
        """How many pictures people call negative, neutral and positive; of scores, those at 0 stand as neutral."""
        by_sign = Counter(np.sign(self.scores).astype(int).tolist())
        return {name: by_sign[sign] for name, sign in zip(CLASSES, (-1, 0, 1), strict=True)}


def known_benchmarks() -> dict[str, str]:
    """Name → definition, of all that are known by name."""
    files = [file for folder in (_OF_CLONE, DEFINITIONS) for file in sorted(folder.glob("*.yaml"))]
    return {file.stem: str(file) for file in files}


def load_benchmark(name_or_file: str, *, root: str = "", allow_missing: bool = False) -> Benchmark:
    """Read the definition and table of a benchmark, which is known by name or a YAML file.

    `root` is the folder that its paths start at, by default the working folder. Raises UserError for what is missing or
    malformed in either, and for missing pictures: with `allow_missing`, only where all are.
    """
    benchmark = read_benchmark(name_or_file, root=root)
    num_missing, num_pictures = int(benchmark.missing.sum()), len(benchmark.paths)
    if num_missing == num_pictures or (num_missing and not allow_missing):
        place = int(benchmark.missing.argmax())
        raise MissingPicturesError(
            f"{benchmark.image_path(place)}: no such picture ({num_missing} of {num_pictures} are missing)",
            f"check `images` in {definition_of(name_or_file)}, or fetch the benchmark again",
        )
    return benchmark


def read_benchmark(name_or_file: str, *, root: str = "") -> Benchmark:
    """As `load_benchmark`, whether or not its pictures are there."""
    config = load_definition(name_or_file, root=root)
    source = definition_of(name_or_file)
    paths, scores = read_judgements(config, config.labels, source)
    return Benchmark(
        config=config,
        paths=paths,
        scores=scores,
        groups=_groups(paths, config.group_pattern),
        # os.path: also what cannot be looked at, for its rights or for a name that no file has, is not there.
        missing=np.array([not os.path.isfile(Path(config.images) / path) for path in paths]),
    )


def definition_of(name_or_file: str) -> str:
    """The YAML file of a benchmark. Raises UserError for a name that is none, with the nearest one."""
    if Path(name_or_file).suffix in (".yaml", ".yml") or "/" in name_or_file:
        return name_or_file
    known = known_benchmarks()
    if name_or_file in known:
        return known[name_or_file]
    if "," in name_or_file:
        raise UserError(
            f"{name_or_file}: no such benchmark", f"give several apart: -b {' '.join(name_or_file.split(','))}"
        )
    what = f"{name_or_file}: no such benchmark"
    if not _OF_CLONE.is_dir():
        raise UserError(what, f"give a YAML file; {INSTALL_FROM_CLONE}")
    by_lower = {name.lower(): name for name in known}
    close = difflib.get_close_matches(name_or_file.lower(), by_lower, n=1, cutoff=0.5)
    raise UserError(
        what,
        f"did you mean {by_lower[close[0]]}?"
        if close
        else f"give one of {', '.join(known)}, or a YAML file like those in {DEFINITIONS}",
    )


def load_definition(name_or_file: str, *, root: str = "") -> BenchmarkConfig:
    """A benchmark's definition alone, its paths starting at `root`. Raises UserError where it is malformed."""
    file = definition_of(name_or_file)
    try:
        config = load_config(BenchmarkConfig, ["--config", file], command="", description="")
    except MisspeltSettingError:
        raise
    except UserError as error:
        # A benchmark has no command line: the parser's own advice would be to give an option.
        raise UserError(error.what, f"mend {file}; configs/benchmarks/emoji.yaml shows all settings") from error
    splits = [
        GivenSplit(**{part: os.path.join(root, getattr(split, part)) for part in ("train", "val", "test")})
        for split in config.splits
    ]
    images, labels = (os.path.join(root, path) for path in (config.images, config.labels))
    return replace(config, images=images, labels=labels, splits=splits)


def read_judgements(config: BenchmarkConfig, table: str, source: str) -> tuple[list[str], np.ndarray]:
    """Paths and scores, float64 `(n,)`, of one of a benchmark's tables, or of its folders, in their order.

    `source` is the definition, which errors name. Raises UserError where the table cannot be read or has no rows.
    """
    if os.path.isdir(table):
        return _read_folders(config, table, source)
    try:
        # Spreadsheets put a byte order mark before the first column's name.
        with open(table, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, delimiter="\t" if Path(table).suffix == ".tsv" else ",")
            rows = [(reader.line_num, row) for row in reader]
    except OSError as error:
        where = f", or get it: {config.source}" if config.source else ""
        raise UserError(
            f"{source}: labels: {table}: {error.strerror}",
            f"check the path, which starts at the working folder or at --root{where}",
        ) from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{table}: not a CSV file in UTF-8: {error}", "save it as one") from error
    if not rows:
        raise UserError(f"{table}: no rows", "fetch the benchmark's table again")
    judged_by = config.score_column if config.is_graded else config.class_column
    for column in (config.path_column, judged_by):
        if column not in rows[0][1]:
            raise UserError(f"{table}: no column {column!r}", f"it has {list(rows[0][1])}; mend {source}")
    for line, row in rows:
        if not row[config.path_column]:
            raise UserError(f"{table}: line {line}: {config.path_column}: empty", "mend the line")
    cells = [(f"{table}: line {line}: {judged_by}", row[judged_by]) for line, row in rows]
    scores = _graded(cells) if config.is_graded else _classified(config, cells, source)
    return [row[config.path_column] for _, row in rows], scores


def _read_folders(config: BenchmarkConfig, folder: str, source: str) -> tuple[list[str], np.ndarray]:
    """Every picture below a folder, in the order of the paths; its class is the folder that it lies in."""
    if config.is_graded:
        raise UserError(f"{source}: labels: {folder}: is a folder, but there are no classes", "give `classes`")
    files = list(_picture_files(Path(folder)))
    if not files:
        raise UserError(f"{folder}: no pictures in folders", f"check `labels` in {source}")
    scores = _classified(config, [(f"{folder}/{file.parts[0]}", file.parts[0]) for file in files], source)
    # Paths are relative to `images`, as those of a table.
    return [os.path.relpath(os.path.join(folder, file), config.images) for file in files], scores


def _picture_files(folder: Path) -> Iterator[Path]:
    for file in sorted(folder.glob("*/**/*")):
        if file.suffix.lower() in PICTURE_SUFFIXES and file.is_file():
            yield file.relative_to(folder)


def _classified(config: BenchmarkConfig, cells: list[tuple[str, str | None]], source: str) -> np.ndarray:
    """Classes → -1, 0, 1; each cell with where it stands."""
    score_of = {str(own): float(CLASSES.index(meaning) - NEUTRAL) for own, meaning in config.classes.items()}
    scores = []
    for where, cell in cells:
        own = (cell or "").strip()
        if own not in score_of:
            close = difflib.get_close_matches(own, score_of, n=1)
            hint = f"did you mean {close[0]}? else " if close else ""
            raise UserError(
                f"{where}: {own!r} is not one of the classes {', '.join(score_of)}", f"{hint}add it to {source}"
            )
        scores.append(score_of[own])
    return np.array(scores)


def _graded(cells: list[tuple[str, str | None]]) -> np.ndarray:
    scores = []
    for where, cell in cells:
        try:
            score = float(cell or "")
        except ValueError:
            score = float("nan")
        if not math.isfinite(score):
            raise UserError(f"{where}: {cell!r} is not a number", "mend the line")
        scores.append(score)
    return np.array(scores)


def _groups(paths: list[str], pattern: str | None) -> np.ndarray:
    if pattern is None:
        return np.arange(len(paths))
    names = []
    for path in paths:
        match = re.search(pattern, path)
        names.append((match and match.group(1)) or path)
    return np.unique(names, return_inverse=True)[1]

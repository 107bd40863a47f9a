"""Benchmarks: pictures that people judged. A new one is one YAML file in `configs/benchmarks/`."""

import csv
import math
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shards.errors import ConfigError, UserError
from xmodal.config import MisspeltSettingError, load_config


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """Where a benchmark's pictures and judgements lie, and how they are read."""

    name: str
    images: str
    """Folder that the table's paths are relative to."""
    labels: str
    """CSV file with a header."""
    path_column: str = "path"
    score_column: str = "score"
    """Mean human judgement: above 0 is positive, below 0 negative; those at 0 are in no class."""
    group_pattern: str | None = None
    """Regular expression whose first group, in the path, names what was judged. Pictures of one group share their
    judgement, so intervals are made by drawing groups, not pictures."""
    citation: str = ""
    """Whom to cite."""
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


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A benchmark whose table was read; `paths`, `scores` float64 `(n,)` and `groups` int64 `(n,)` go together."""

    config: BenchmarkConfig
    paths: list[str]
    """As they stand in the table."""
    scores: np.ndarray
    groups: np.ndarray

    def image_path(self, place: int) -> Path:
        """Where a picture lies."""
        return Path(self.config.images) / self.paths[place]


def load_benchmark(config_file: str) -> Benchmark:
    """Read a benchmark's definition and table. Raises UserError for what is missing or malformed in either."""
    try:
        config = load_config(BenchmarkConfig, ["--config", config_file], command="", description="")
    except MisspeltSettingError:
        raise
    except UserError as error:
        # A benchmark has no command line: the parser's own advice would be to give an option.
        raise UserError(error.what, f"mend {config_file}; configs/benchmarks/emoji.yaml shows all settings") from error
    try:
        # Spreadsheets put a byte order mark before the first column's name.
        with open(config.labels, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            rows = [(reader.line_num, row) for row in reader]
    except OSError as error:
        raise UserError(
            f"{config_file}: labels: {config.labels}: {error.strerror}",
            "check the path; it starts at the working folder",
        ) from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{config.labels}: not a CSV file in UTF-8: {error}", "save it as one") from error
    if not rows:
        raise UserError(f"{config.labels}: no rows", "fetch the benchmark's table again")
    for column in (config.path_column, config.score_column):
        if column not in rows[0][1]:
            raise UserError(f"{config.labels}: no column {column!r}", f"it has {list(rows[0][1])}; mend {config_file}")
    paths = _paths(config, rows)
    benchmark = Benchmark(
        config=config, paths=paths, scores=_scores(config, rows), groups=_groups(paths, config.group_pattern)
    )
    missing = [place for place in range(len(paths)) if not benchmark.image_path(place).is_file()]
    if missing:
        raise UserError(
            f"{benchmark.image_path(missing[0])}: no such picture ({len(missing)} of {len(paths)} are missing)",
            f"check `images` in {config_file}, or fetch the benchmark again",
        )
    return benchmark


def _paths(config: BenchmarkConfig, rows: list[tuple[int, dict[str, str]]]) -> list[str]:
    for line, row in rows:
        if not row[config.path_column]:
            raise UserError(f"{config.labels}: line {line}: {config.path_column}: empty", "mend the line")
    return [row[config.path_column] for _, row in rows]


def _scores(config: BenchmarkConfig, rows: list[tuple[int, dict[str, str]]]) -> np.ndarray:
    scores = []
    for line, row in rows:
        try:
            score = float(row[config.score_column])
        except (TypeError, ValueError):
            score = float("nan")
        if not math.isfinite(score):
            raise UserError(
                f"{config.labels}: line {line}: {config.score_column}: {row[config.score_column]!r} is not a number",
                "mend the line",
            )
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

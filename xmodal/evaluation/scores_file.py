"""Reading the numbers that `xmodal evaluate --json` wrote, for the table and the report."""

from pathlib import Path

from shards.errors import UserError
from shards.json_object import parse_json_object

Scores = dict[str, dict[str, dict[str, float | None]]]
"""Student → benchmark → metrics; None for what is not a number."""

_REMEDY = "give a file that `xmodal evaluate --json` wrote"


def read_scores(file: str) -> Scores:
    """What `xmodal evaluate --json` wrote; a single student, whom the file does not name, has the file's stem for name.

    Raises UserError where the file is missing, or something else.
    """
    try:
        document = parse_json_object(Path(file).read_bytes(), file, _REMEDY)
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}", _REMEDY) from error
    scores = document["models"] if {*document} == {"models", "comparisons"} else {Path(file).stem: document}
    if not isinstance(scores, dict):
        raise UserError(f"{file}: models: holds no students", _REMEDY)
    for student, by_benchmark in scores.items():
        if not isinstance(by_benchmark, dict) or not all(map(_are_metrics, by_benchmark.values())):
            raise UserError(f"{file}: {student}: holds no metrics of benchmarks", _REMEDY)
    return scores


def _are_metrics(value: object) -> bool:
    return isinstance(value, dict) and all(
        number is None or isinstance(number, int | float) for number in value.values()
    )

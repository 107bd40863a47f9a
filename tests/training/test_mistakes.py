"""What is wrong with that which the first rank does alone ends all of them, and is told once."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from launchers import launch, settings, start_ranks, wait_for_ranks

from xmodal.training.metrics_file import NAME as METRICS_FILE


@pytest.fixture(scope="module")
def run(small_view: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that is at its end, after one step."""
    output = tmp_path_factory.mktemp("ended") / "run"
    done = launch("python", of_run(small_view, output))
    assert done.returncode == 0, done.stdout
    return output


def of_run(view: Path, output: Path) -> list[str]:
    return settings(view, output, "--max_steps=1", "--select=kl")


def damage_metrics(output: Path) -> None:
    file = output / METRICS_FILE
    file.write_text("no line\n" + file.read_text())


def forget_validation(output: Path) -> None:
    file = output / "checkpoints" / "step-00000001" / "commit.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"validation_cost": None}))


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (damage_metrics, r"metrics\.jsonl: line 1 is not a line of metrics"),
        (forget_validation, "checkpoints: no checkpoint there was validated, so none can be selected"),
    ],
    ids=["records", "export"],
)
def test_what_the_first_rank_cannot_do_ends_all_and_is_told_once(
    run, small_view, tmp_path, spoil: Callable[[Path], None], complaint
):
    output = shutil.copytree(run, tmp_path / "run")
    spoil(output)
    codes, (first, second) = wait_for_ranks(start_ranks([of_run(small_view, output)] * 2))
    assert codes == [2, 2], first + second
    assert len(re.findall(rf"xmodal: .*{complaint}", first)) == 1
    assert "Traceback" not in first + second
    assert "xmodal: " not in second


def test_a_mistake_of_one_rank_is_that_of_all_and_forgotten_once_it_is_told():
    codes, outputs = wait_for_ranks(start_ranks([[]] * 2, "tests/mistakes_program.py", TORCH_CPP_LOG_LEVEL="ERROR"))
    assert codes == [0, 0], outputs
    for output in outputs:
        assert output.splitlines() == ["rank 1: this is wrong", "False"] * 2

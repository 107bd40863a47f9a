"""`-m` and `-b`, which take several names each, as people type them."""

from pathlib import Path

import pytest

from shards.errors import UserError
from xmodal import cli
from xmodal.cli.arguments import listed, named
from xmodal.config import load_config
from xmodal.evaluation.evaluate import EvaluateConfig

ROOT = Path(__file__).parent.parent.parent


def config_of(command_line: str) -> EvaluateConfig:
    arguments = listed(command_line.split(), {"-m": "models", "-b": "benchmarks"})
    return load_config(EvaluateConfig, arguments, command="xmodal evaluate", description="")


@pytest.mark.parametrize(
    "command_line",
    [
        "-m a b -b x y",
        "-m a -m b -b x -b y",
        "-b x -m a --tta none -m b --allow_missing false -b y",
        "--models a b --benchmarks x y",
        "--models=a --models=b --benchmarks=x -b y",
        "--models=[a,b] --benchmarks [x,y]",
        "-m a --models [b] -b [x] y",
    ],
)
def test_flags_may_come_often_and_between_others(command_line):
    config = config_of(command_line)
    assert (config.models, config.benchmarks) == (["a", "b"], ["x", "y"])
    assert not config.allow_missing


@pytest.mark.parametrize("command_line", ["a b --x 1 --y=2", "--x 1 a --y=2 b", "--x 1 --y=2 a b"])
def test_what_stands_for_itself_may_stand_anywhere(command_line):
    assert named(command_line.split(), "first", "second") == ["--first=a", "--second=b", "--x", "1", "--y=2"]
    assert named(["--x", "1", "a", "b"], "first") == ["--first=a", "b", "--x", "1"]


def test_a_switch_ends_a_list_and_needs_no_value():
    config = config_of("-m a --allow-missing -b x --num_draws 7")
    assert (config.models, config.benchmarks, config.allow_missing, config.num_draws) == (["a"], ["x"], True, 7)


def test_the_command_line_comes_before_the_config(tmp_path):
    (tmp_path / "c.yaml").write_text("models: [c]\nbenchmarks: [z]\nnum_draws: 9\n")
    config = config_of(f"-m a --config {tmp_path}/c.yaml")
    assert (config.models, config.benchmarks, config.num_draws) == (["a"], ["z"], 9)


@pytest.mark.parametrize(
    ("names", "remedy"),
    [
        (["-b", "5agree,4agree", "-m", "none"], "give several apart: -b 5agree 4agree"),
        (["-b", "emoji", "-m", "ViT_L16,ViT_B32", "--root", str(ROOT)], "give several apart: -m ViT_L16 ViT_B32"),
    ],
)
def test_names_with_commas_between_them_are_told_how_it_is_done(names, remedy, capsys):
    assert cli.main(["evaluate", *names]) == 2
    assert capsys.readouterr().err.splitlines()[1].strip() == remedy


@pytest.mark.parametrize(
    ("command_line", "what"),
    [
        ("-m -b x", "models: [] must name at least one"),
        ("-m a", "benchmarks: not given"),
        ("-m a --tta flip b -b x", "b"),
        ("-m a -b x -x", "-x"),
    ],
)
def test_what_cannot_be_meant_is_told(command_line, what):
    with pytest.raises(UserError) as caught:
        config_of(command_line)
    assert what in caught.value.what

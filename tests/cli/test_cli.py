import ast
import inspect
import itertools
import json
import os
import subprocess
import sys
import textwrap
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import made_pictures
import pytest
from made_tars import make_tar

import xmodal as package
from shards.storage import LocalStorage
from shards.writer import Sample, write_shard
from xmodal import cli
from xmodal.collecting.collect import CollectConfig
from xmodal.curation.config import CurateConfig
from xmodal.demo.demo import DemoConfig
from xmodal.evaluation.evaluate import EvaluateConfig
from xmodal.evaluation.explain import ExplainConfig
from xmodal.evaluation.paper_table import TableConfig
from xmodal.evaluation.predict_pictures import PredictConfig
from xmodal.finetuning.config import CrossvalConfig, FinetuneFiConfig
from xmodal.label_quality.agree import AgreeConfig
from xmodal.label_quality.calibrate import CalibrateConfig
from xmodal.labelling.config import LabelConfig
from xmodal.report.report import ReportConfig
from xmodal.training.config import TrainConfig
from xmodal.training.export import ExportConfig

ROOT = Path(__file__).parent.parent.parent
CONFIGS = {
    "collect": CollectConfig,
    "label": LabelConfig,
    "curate": CurateConfig,
    "agree": AgreeConfig,
    "calibrate": CalibrateConfig,
    "train": TrainConfig,
    "export": ExportConfig,
    "evaluate": EvaluateConfig,
    "crossval": CrossvalConfig,
    "finetune-fi": FinetuneFiConfig,
    "predict": PredictConfig,
    "explain": ExplainConfig,
    "table": TableConfig,
    "report": ReportConfig,
    "demo": DemoConfig,
}


def xmodal(*arguments: str, path: str = os.environ["PATH"]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "xmodal.cli", *arguments],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )


def python(program: str) -> str:
    """What a fresh Python prints."""
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def leaves(config_class: Any, prefix: str = "") -> list[str]:
    """Dotted names of the settings that have a value of their own."""
    names = []
    for field in fields(config_class):
        if is_dataclass(field.type):
            names += leaves(field.type, f"{prefix}{field.name}.")
        else:
            names.append(prefix + field.name)
    return names


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_help_lists_all_verbs(arguments, capsys):
    assert cli.main(arguments) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert listed == [*CONFIGS, "benchmarks", "models", "view", "forget", "shards", "doctor"] == list(cli.VERBS)


def test_the_version_is_that_of_the_package(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"xmodal {package.__version__}\n"


@pytest.mark.parametrize("verb", CONFIGS)
def test_the_help_of_a_verb_names_its_settings(verb, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main([verb, "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    # The overview's line about the verb is the first of its own help.
    assert cli.VERBS[verb][0] in " ".join(text.split())
    for name in leaves(CONFIGS[verb]):
        assert f"--{name}" in text


def own_docstring_lines(config_class: Any) -> list[str]:
    """The first words of every attribute's docstring, of the nested configs too."""
    body = ast.parse(textwrap.dedent(inspect.getsource(config_class))).body[0].body  # type: ignore[attr-defined]
    found = []
    for node, following in itertools.pairwise(body):
        if isinstance(node, ast.AnnAssign) and isinstance(following, ast.Expr):
            found.append(" ".join(ast.literal_eval(following.value).split()))
    for field in fields(config_class):
        if is_dataclass(field.type):
            found += own_docstring_lines(field.type)
    return found


@pytest.mark.parametrize("verb", CONFIGS)
def test_the_help_of_a_verb_says_what_each_setting_is_for(verb, capsys):
    with pytest.raises(SystemExit):
        cli.main([verb, "--help"])
    text = "".join(capsys.readouterr().out.split())
    docstrings = own_docstring_lines(CONFIGS[verb])
    assert docstrings
    for docstring in docstrings:
        assert docstring.replace(" ", "").rstrip(".") in text


@pytest.mark.parametrize("verb", ["evaluate", "predict", "crossval", "finetune-fi"])
def test_all_that_predicts_says_that_threads_do_and_how_large_batches_are(verb, capsys):
    with pytest.raises(SystemExit):
        cli.main([verb, "--help"])
    text = "".join(capsys.readouterr().out.split())
    for words in (
        "Threads of a process that read, decode and, on a CPU, predict; 0: one for each of its cores",
        "0: what is fastest and fits into memory, within reason",
    ):
        assert words.replace(" ", "") in text


def test_the_doctors_help_says_what_it_looks_for(capsys):
    assert cli.main(["doctor", "--help"]) == 0
    assert "xmodal doctor" in capsys.readouterr().out


def test_the_doctor_takes_no_settings(capsys):
    assert_two_lines(cli.main(["doctor", "--fast"]), capsys.readouterr().err, "--fast: no such setting")


def test_shards_are_listed_verified_and_indexed_from_the_command_line(tmp_path):
    storage = LocalStorage(tmp_path)
    for number in range(3):
        content = made_pictures.jpeg(seed=number) if number else made_pictures.GARBAGE
        write_shard(storage, f"{number}", [Sample(key="k", image=content, image_extension="jpg", fields={})])
        storage.delete(f"{number}.parquet")  # as in a dataset of somebody else's
    listed = xmodal("shards", "ls", str(tmp_path))
    assert listed.returncode == 0, listed.stderr
    assert listed.stdout.splitlines()[-1].startswith("3 shards, 3 samples, ")
    assert not list(tmp_path.glob("*.parquet"))
    verified = xmodal("shards", "verify", str(tmp_path), "--num_workers", "1")
    assert verified.returncode == 1
    assert "  0.tar: k: .jpg cannot be decoded" in verified.stdout
    assert verified.stdout.splitlines()[-1] == "3 shards, 1 with problems"
    assert xmodal("shards", "verify", f"{tmp_path}/{{1..2}}.tar").returncode == 0
    assert xmodal("shards", "index", str(tmp_path)).returncode == 0
    assert len(list(tmp_path.glob("*.parquet"))) == 3


def test_what_is_broken_in_samples_is_told_with_shard_and_key_where_they_are_indexed(tmp_path):
    (tmp_path / "0.tar").write_bytes(make_tar(("a.jpg", made_pictures.jpeg()), ("a.json", b"{"), ("b.txt", b"")))
    for _ in range(2):
        done = xmodal("shards", "index", str(tmp_path))
        assert done.returncode == 0, done.stderr
        _, first, second, last = done.stdout.splitlines()
        assert first.startswith("  0.tar: a: .json is not JSON: ")
        assert second == "  0.tar: b: has no picture, only .txt"
        assert last.endswith(", 2 problems in samples")


def test_a_shard_that_cannot_be_indexed_is_told_and_the_others_are_indexed(tmp_path):
    storage = LocalStorage(tmp_path)
    for number in range(3):
        sample = Sample(key="k", image=made_pictures.jpeg(seed=number), image_extension="jpg", fields={})
        write_shard(storage, f"{number}", [sample])
        storage.delete(f"{number}.parquet")
    os.truncate(tmp_path / "1.tar", 700)
    done = xmodal("shards", "index", str(tmp_path))
    assert done.returncode == 1
    assert "1.tar: not a whole tar file" in done.stdout
    assert done.stdout.splitlines()[-1].endswith("1 cannot be read")
    assert sorted(path.name for path in tmp_path.glob("*.parquet")) == ["0.parquet", "2.parquet"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("look", "x"), "look: no such action"),
        (("ls",), "no URL of shards"),
        (("ls", "/nonexistent"), "/nonexistent: no such folder"),
        (("ls", "tests"), "no .tar lies there"),
        (("ls", "tests/{1..3.tar"), "tests/{1..3.tar: Unbalanced braces"),
        (("ls", "x", "--num_workers", "many"), "--num_workers"),
        (("ls", "x", "--num_workers", "-1"), "num_workers: -1 must be at least 0"),
        (("verify", "x", "--quick"), "--quick: no such setting"),
    ],
)
def test_a_mistake_in_asking_for_shards_is_told_in_two_lines(arguments, complaint, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert_two_lines(cli.main(["shards", *arguments]), capsys.readouterr().err, complaint)


def test_an_unknown_verb_is_told_in_two_lines():
    ended = xmodal("tain")
    assert (ended.returncode, ended.stdout) == (2, "")
    what, remedy = ended.stderr.splitlines()
    assert what == "xmodal: tain: no such command"
    assert all(verb in remedy for verb in cli.VERBS)


def mistakes(folder: Path) -> dict[str, tuple[list[str], str]]:
    """Arguments with a real mistake, and what the first line must name."""
    (folder / "posts.txt").write_text("")
    (folder / "broken.yaml").write_text("datasets: [a\n")
    (folder / "typo.yaml").write_text(
        f"datasets: [{folder}/none]\nview: {folder}/view\nconfidance: {{positive: 0.5}}\n"
    )
    (folder / "empty").mkdir()
    emoji = "configs/benchmarks/emoji.yaml"
    none = f"{folder}/none"
    return {
        "label-missing-posts": (["label", "--posts", f"{none}.jsonl", "--dataset", f"{folder}/d"], f"{none}.jsonl"),
        "label-format": (["label", "--posts", f"{folder}/posts.txt", "--dataset", f"{folder}/d"], "posts.txt"),
        "label-required": (["label", "--posts", f"{none}.jsonl"], "dataset"),
        "label-range": (
            ["label", "--posts", f"{none}.jsonl", "--dataset", "d", "--posts_per_unit", "0"],
            "posts_per_unit: 0 must be at least 1",
        ),
        "curate-missing-dataset": (["curate", "--datasets", f"[{none}]", "--view", f"{folder}/v"], none),
        "curate-unfinished": (["curate", "--datasets", f"[{folder}/empty]", "--view", f"{folder}/v"], "dataset.json"),
        "curate-missing-config": (["curate", "--config", f"{none}.yaml"], f"{none}.yaml"),
        "curate-broken-config": (["curate", "--config", f"{folder}/broken.yaml"], "broken.yaml"),
        "curate-unknown-key": (["curate", "--config", f"{folder}/typo.yaml"], "confidance"),
        "curate-type": (["curate", "--datasets", "[a]", "--view", "v", "--seed", "x"], "seed"),
        "train-unknown-flag": (["train", "--view", none, "--output", f"{folder}/t", "--optimizer.rl", "1"], "rl"),
        "train-range": (["train", "--view", none, "--output", f"{folder}/t", "--optimizer.lr", "30"], "optimizer.lr"),
        "evaluate-no-student": (["evaluate", "-m", none, "-b", emoji], none),
        "evaluate-missing-benchmark": (["evaluate", "-m", none, "-b", f"{none}.yaml"], none),
        "predict-no-student": (["predict", none, "-m", f"{folder}/empty"], "empty: no config.json"),
        "explain-class-for-rollout": (
            ["explain", "-m", "x", "y.jpg", "--class", "positive", "--method", "rollout"],
            "has no effect on rollout",
        ),
        "evaluate-typo": (["evaluate", "-m", none, "-b", "emojy"], "emojy: no such benchmark"),
        "report-missing-dataset": (
            ["report", "--dataset", none, "--view", none, "--train", none, "--output", f"{folder}/r.html"],
            none,
        ),
        "report-required": (["report", "--dataset", none], "view"),
    }


MISTAKES = [
    "label-missing-posts", "label-format", "label-required", "label-range", "curate-missing-dataset",
    "curate-unfinished", "curate-missing-config", "curate-broken-config", "curate-unknown-key", "curate-type",
    "train-unknown-flag", "train-range", "evaluate-no-student", "evaluate-missing-benchmark",
    "predict-no-student", "explain-class-for-rollout", "evaluate-typo", "report-missing-dataset", "report-required",
]  # fmt: skip


def assert_two_lines(code: int, errors: str, word: str) -> None:
    assert code == 2
    what, remedy = errors.splitlines()
    assert what.startswith("xmodal: ")
    assert word in what
    assert remedy.startswith("        ")
    assert remedy.strip()


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_in_two_lines(name, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    arguments, word = mistakes(tmp_path)[name]
    assert_two_lines(cli.main(arguments), capsys.readouterr().err, word)


@pytest.mark.parametrize(
    "name",
    [
        "label-missing-posts",
        "curate-missing-dataset",
        "evaluate-no-student",
        "report-missing-dataset",
    ],
)
def test_a_mistake_on_a_real_command_line_has_exit_code_2_and_no_traceback(name, tmp_path):
    arguments, word = mistakes(tmp_path)[name]
    ended = xmodal(*arguments)
    assert ended.stdout == ""
    assert_two_lines(ended.returncode, ended.stderr, word)


def test_training_on_a_missing_view_is_told_in_two_lines(tmp_path):
    ended = xmodal("train", "--view", f"{tmp_path}/none", "--output", f"{tmp_path}/train")
    assert_two_lines(ended.returncode, ended.stderr, f"{tmp_path}/none: no such folder")


def test_the_doctor_finds_this_machine_able_and_names_what_it_looked_for():
    ended = xmodal("doctor")
    assert (ended.returncode, ended.stderr) == (0, "")
    marks = {line.split()[1]: line.split()[0] for line in ended.stdout.splitlines()}
    assert set(marks.values()) <= {"ok", "--"}
    assert {"torch", "cuda", "deepspeed", "ray", "slurm", "s3", "timm", "/dev/shm"} <= set(marks)
    assert marks["torch"] == marks["deepspeed"] == marks["ray"] == "ok"


HEAVY = ("torch", "ray", "deepspeed", "timm", "transformers", "boto3")


@pytest.mark.parametrize("arguments", [None, ["--help"], ["bogus"]])
def test_the_overview_imports_nothing_heavy(arguments):
    program = f"import json, sys\nfrom xmodal import cli\n{f'cli.main({arguments})' if arguments else ''}\n"
    printed = python(program + "print(json.dumps(list(sys.modules)))")
    assert set(json.loads(printed.splitlines()[-1])).isdisjoint(HEAVY)


@pytest.mark.parametrize("module", ["xmodal.labelling", "xmodal.curation.curate"])
def test_labelling_and_curation_import_neither_torch_nor_ray(module):
    modules = set(json.loads(python(f"import json, sys, {module}\nprint(json.dumps(list(sys.modules)))")))
    assert module in modules
    assert modules.isdisjoint({"torch", "ray", "timm"})


def test_the_doctor_says_each_finding_in_one_line(tmp_path):
    sbatch = tmp_path / "sbatch"
    sbatch.write_text("#!/bin/sh\necho 'sbatch: error: one' >&2\necho 'sbatch: fatal: two' >&2\nexit 1\n")
    sbatch.chmod(0o755)
    ended = xmodal("doctor", path=f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert ended.returncode == 0
    (line,) = [line for line in ended.stdout.splitlines() if "slurm" in line]
    assert line.startswith("--")
    assert line.endswith("sbatch: fatal: two")
    assert all(line[:4] in ("ok  ", "--  ") for line in ended.stdout.splitlines())

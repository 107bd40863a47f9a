"""The demo: posts → label → curate → train → evaluate → report, on the emoji set, every part real.

Each stage is the command that a user would type, with the settings of `configs/*/demo.yaml`. Run again, stages that
are done are not done again.
"""

import json
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

import numpy as np

from shards.checks import require_folder, require_range
from shards.dataset import shard_names
from shards.errors import UserError
from shards.index import read_index
from shards.json_object import parse_json_object
from shards.order import lanes_of_rank
from shards.storage import LocalStorage, open_storage
from xmodal.benchmarks import Benchmark, load_benchmark
from xmodal.config import load_config
from xmodal.curation.config import CurateConfig
from xmodal.curation.curate import CurateSummary, curate
from xmodal.demo.server import serve_folder
from xmodal.demo.summary import summary_table
from xmodal.evaluation.evaluate import EvaluateConfig, evaluate, score
from xmodal.evaluation.output_files import write_json
from xmodal.labelling.config import LabelConfig
from xmodal.labelling.label import LabelSummary, label
from xmodal.labels import CLASSES
from xmodal.report.report import ReportConfig, report
from xmodal.training.config import TrainConfig
from xmodal.training.metrics_file import read_metrics
from xmodal.training.ranks import free_port

log = logging.getLogger(__name__)

PICTURES = "data/emoji"
BENCHMARK = "configs/benchmarks/emoji.yaml"
MARKER = "made-by-xmodal-demo"
"""Name of the file that says so in an output folder."""


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """The demo runs in the project's folder, where `configs/` and `data/` are."""

    output: str = "runs/demo"
    """Folder for everything that the demo makes."""
    port: int = 8964
    """Port of the local picture server. Another one makes another dataset, since samples keep their URLs."""
    num_posts: int = 0
    """Label only so many posts, evenly chosen; 0 for all. For a quick try."""
    epochs: int = 0
    """Train so many epochs; 0 for what configs/train/demo.yaml says."""
    num_ranks: int = 2
    """Training processes."""
    serve: bool = False
    """Only serve the pictures, until interrupted, for trying the single commands."""
    fresh: bool = False
    """Delete what an earlier run of the demo made in the output folder first. A folder that it did not make is refused.
    """

    def __post_init__(self) -> None:
        require_folder(self, "output")
        require_range(self, "port", least=1, most=65535)
        require_range(self, "num_posts", "epochs", least=0)
        require_range(self, "num_ranks", least=1)


class _Stopwatch:
    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        log.info("── %s", name)
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 1)


def demo(config: DemoConfig) -> str:
    """Run the whole way, write `result.json` and `report.html`, and return the summary to be shown.

    Raises UserError outside the project's folder, and for a stage that failed.
    """
    for needed in (PICTURES, BENCHMARK):
        if not os.path.exists(needed):
            raise UserError(f"{needed}: not here", "run the demo in the folder of the project's clone")
    if config.serve:
        serve_until_interrupted(config.port)
    # Before anything is done: the launcher would tell it late, amid much else.
    lanes_of_rank(0, config.num_ranks, _load(TrainConfig, "train", []).stream.num_lanes)
    output = Path(config.output)
    storage = LocalStorage(output, create=True)
    if config.fresh:
        _delete_earlier_run(output)
    storage.replace(MARKER, b"`xmodal demo --fresh true` may delete what the demo makes in this folder.\n")
    earlier = _earlier_seconds(output)
    watch = _Stopwatch()
    with watch.stage("label"):
        labelled = _label(config, output)
    with watch.stage("curate"):
        curated = curate(
            _load(CurateConfig, "curate", [f"--datasets={json.dumps([f'{output}/dataset'])}", f"--view={output}/view"])
        )
    with watch.stage("train"):
        trained = _train(config, output)
    with watch.stage("evaluate"):
        benchmark = load_benchmark(BENCHMARK)
        (judged,) = evaluate(_evaluate_config(output)).judgements
        student = judged.metrics
        teacher = teacher_score(benchmark, labelled.dataset)
        write_json(output / "evaluation" / "teacher.json", {benchmark.config.name: teacher})
    with watch.stage("report"):
        report(_report_config(output))
    # A stage that found its work done says nothing of how long the work takes.
    idle = {"label": labelled.shards_there_before == len(labelled.shards), "train": not trained}
    seconds = {stage: earlier.get(stage, spent) if idle.get(stage) else spent for stage, spent in watch.seconds.items()}
    result = _result(labelled, curated, student, teacher, seconds)
    write_json(output / "result.json", result)
    return summary_table(result, labelled, curated, output)


def serve_until_interrupted(port: int) -> NoReturn:
    """Serve the pictures, for trying the single commands."""
    with serve_folder(PICTURES, port) as bound:
        log.info("serving %s on http://127.0.0.1:%d/ until interrupted", PICTURES, bound)
        while True:
            time.sleep(3600)


def _delete_earlier_run(output: Path) -> None:
    """Only what the demo makes: the folder is the user's choice, and may hold more."""
    if not (output / MARKER).exists() and any(output.iterdir()):
        raise UserError(f"{output}: not made by the demo, so --fresh deletes nothing there", "give another --output")
    for name in ("dataset", "view", "train", "evaluation"):
        if (output / name).exists():
            shutil.rmtree(output / name)
    for name in ("posts.jsonl", "train.log", "result.json", "report.html"):
        (output / name).unlink(missing_ok=True)


def _load(config_class: type[Any], verb: str, overrides: Sequence[str]) -> Any:
    return load_config(
        config_class,
        ["--config", f"configs/{verb}/demo.yaml", *overrides],
        command=f"xmodal {verb}",
        description="",
    )


def _label(config: DemoConfig, output: Path) -> LabelSummary:
    overrides = [f"--dataset={output}/dataset"]
    if config.num_posts:
        overrides.append(f"--posts={_choose_posts(config.num_posts, output)}")
    with serve_folder(PICTURES, config.port) as port:
        return label(_load(LabelConfig, "label", [*overrides, f"--base_url=http://127.0.0.1:{port}/"]))


def _choose_posts(num_posts: int, output: Path) -> Path:
    """Write evenly chosen posts of the set to a file of their own."""
    posts = Path(PICTURES, "posts.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    places = np.linspace(0, len(posts) - 1, min(num_posts, len(posts))).round().astype(int)
    chosen = output / "posts.jsonl"
    chosen.write_text("".join(posts[place] for place in places), encoding="utf-8")
    return chosen


def _earlier_seconds(output: Path) -> dict[str, float]:
    """The seconds of the stages in an earlier run of the demo, if there was one."""
    path = output / "result.json"
    if not path.exists():
        return {}
    return parse_json_object(path.read_bytes(), str(path), "delete it").get("seconds", {})


def _train(config: DemoConfig, output: Path) -> bool:
    """Start the launcher as a user would; its whole output goes to train.log, our own lines to the terminal too.

    Returns whether there was anything left to train. Raises UserError if training fails.
    """
    steps_before = len(read_metrics(output / "train"))
    overrides = [f"--view={output}/view", f"--output={output}/train"]
    if config.epochs:
        overrides.append(f"--epochs={config.epochs}")
    bin_folder = os.path.dirname(sys.executable)
    environment = dict(os.environ)
    environment["PATH"] = bin_folder + os.pathsep + environment.get("PATH", "")
    # One thread a rank: two ranks with as many threads as cores each would fight for them.
    environment.setdefault("OMP_NUM_THREADS", "1")
    if not _has_gpus(config.num_ranks):
        environment["DS_ACCELERATOR"] = "cpu"
    command = [
        os.path.join(bin_folder, "deepspeed"),
        f"--num_accelerators={config.num_ranks}",
        f"--master_port={free_port()}",
        "launch/train.py",
        "--config=configs/train/demo.yaml",
        *overrides,
    ]
    log_file = output / "train.log"
    with (
        open(log_file, "w", encoding="utf-8") as full_log,
        subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        ) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            full_log.write(line)
            if _is_worth_showing(line):
                sys.stderr.write(line)
    if process.returncode:
        tail = "\n        ".join(log_file.read_text(encoding="utf-8").splitlines()[-15:])
        raise UserError(
            f"training ended with exit code {process.returncode}", f"see {log_file}; it ends with\n        {tail}"
        )
    return len(read_metrics(output / "train")) > steps_before


def _is_worth_showing(line: str) -> bool:
    """Our own log lines, less those of single steps."""
    return line[:2].isdigit() and line[2:3] == ":" and " step " not in line[:15]


def _has_gpus(num_ranks: int) -> bool:
    import torch

    return torch.cuda.device_count() >= num_ranks


def _evaluate_config(output: Path) -> EvaluateConfig:
    return EvaluateConfig(
        models=[str(output / "train" / "student")],
        benchmarks=[BENCHMARK],
        output=str(output / "evaluation"),
        json=str(output / "evaluation" / "student.json"),
    )


def teacher_score(benchmark: Benchmark, dataset: str) -> dict[str, float]:
    """The teacher's own metrics on a benchmark's pictures: it read the texts of the posts that they come from."""
    storage = open_storage(dataset)
    label_of: dict[str, list[float]] = {}
    for name in shard_names(storage):
        index = read_index(storage, name)
        if index.num_rows:
            urls = (urlsplit(url).path.lstrip("/") for url in index["url"].to_pylist())
            label_of.update(zip(urls, index["soft_label"].to_pylist(), strict=True))
    nothing = [float("nan")] * len(CLASSES)
    probabilities = np.array([label_of.get(path, nothing) for path in benchmark.paths])
    return score(benchmark, probabilities, num_draws=1000, seed=0)


def _report_config(output: Path) -> ReportConfig:
    return ReportConfig(
        dataset=str(output / "dataset"),
        view=str(output / "view"),
        train=str(output / "train"),
        evaluations=[str(output / "evaluation" / f"{name}.json") for name in ("student", "teacher")],
        predictions=[str(output / "evaluation" / "predictions-emoji.csv")],
        images=PICTURES,
        output=str(output / "report.html"),
        title="xmodal demo: the sentiment of emoji",
    )


def _result(
    labelled: LabelSummary,
    curated: CurateSummary,
    student: dict[str, float],
    teacher: dict[str, float],
    seconds: dict[str, float],
) -> dict[str, Any]:
    def scores(metrics: dict[str, float]) -> dict[str, float]:
        return {name: metrics[name] for name in ("auc", "auc_low", "auc_high", "n")}

    return {
        "counts": {
            "posts": labelled.posts,
            "media": labelled.media,
            "samples": labelled.samples,
            "failures": labelled.failures,
            "train": curated.splits["train"],
            "val": curated.splits["val"],
            "benchmark": student["n"],
        },
        "student": scores(student),
        "teacher": scores(teacher),
        "seconds": seconds,
    }

"""A contender of `predict.py` in a process of its own: what it says of the pictures, and how long that took.

    python benchmarks/predict_process.py CONTENDER PLAN

Prints one line of JSON: the seconds, without those for loading the student, and the probabilities by picture.
"""

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

Scores = dict[str, list[float]]
CLASSES = ("negative", "neutral", "positive")


def main() -> None:
    """Run the contender that is asked for."""
    contender, plan = sys.argv[1], json.loads(sys.argv[2])
    seconds, scores = {"xmodal": xmodal_predict, "pipeline": xmodal_pipeline, "transformers": transformers_pipeline}[
        contender
    ](plan)
    print("\n" + json.dumps({"seconds": seconds, "scores": scores, "threads": torch.get_num_threads()}), flush=True)


def xmodal_predict(plan: dict[str, Any]) -> tuple[float, Scores]:
    """What `xmodal predict` does once the student is loaded: a folder of pictures becomes a table on the disk."""
    from xmodal.evaluation.predict import found_batch_size
    from xmodal.evaluation.predict_pictures import PredictConfig, predict_parts
    from xmodal.evaluation.prediction_files import PredictionFiles
    from xmodal.evaluation.predictor import Predictor
    from xmodal.students import load_student

    student = load_student(plan["student"])
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    predictor = Predictor(student, device=accelerator.device)
    size = predictor.spec.size
    batch_size = found_batch_size(student, len(pictures_of(plan)), accelerator)
    predictor.probabilities(torch.zeros(batch_size, 3, size, size, dtype=torch.uint8))  # as timm's, a batch to warm up
    with tempfile.TemporaryDirectory() as folder:
        output = f"{folder}/predictions.jsonl"
        start = time.perf_counter()
        config = PredictConfig(model=plan["student"], inputs=[plan["pictures"]], output=output)
        files = PredictionFiles(output)
        files.begin({})
        files.finish(predict_parts(files, predictor, config, batch_size, accelerator), {})
        seconds = time.perf_counter() - start
        rows = [json.loads(line) for line in Path(output).read_text().splitlines()]
    return seconds, {Path(row["path"]).name: [row[name] for name in CLASSES] for row in rows}


def xmodal_pipeline(plan: dict[str, Any]) -> tuple[float, Scores]:
    """Our Python interface, called with the paths."""
    from xmodal import load_student

    files = pictures_of(plan)
    student = load_student(plan["student"])
    student(files[0])
    start = time.perf_counter()
    scores = student(files)
    seconds = time.perf_counter() - start
    return seconds, by_name(files, scores)


def transformers_pipeline(plan: dict[str, Any]) -> tuple[float, Scores]:
    """The same by transformers, with the batch size and reading processes that the plan has for it."""
    from transformers import pipeline

    files = pictures_of(plan)
    device = 0 if torch.cuda.is_available() else -1
    student = pipeline("image-classification", model=plan["for_transformers"], device=device)
    student(files[0])
    start = time.perf_counter()
    scores = student(files, batch_size=plan["batch_size"], num_workers=plan["workers"])
    seconds = time.perf_counter() - start
    return seconds, by_name(files, scores)


def pictures_of(plan: dict[str, Any]) -> list[str]:
    """The paths of all pictures, in their order."""
    return [str(path) for path in sorted(Path(plan["pictures"]).rglob("*.jpg"))]


def by_name(files: list[str], scores: Any) -> Scores:
    """Labels with scores, of each file, as probabilities in the order of the classes."""
    found = {}
    for file, of_one in zip(files, scores, strict=True):
        by_label = {one["label"]: one["score"] for one in of_one}
        found[Path(file).name] = [by_label[name] for name in CLASSES]
    return found


if __name__ == "__main__":
    main()

"""After which steps a run leaves a checkpoint."""

import torch
from launchers import launch, settings
from safetensors.torch import load_file

from xmodal.training.checkpoint import committed_steps, read_weights
from xmodal.training.metrics_file import read_metrics


def test_steps_at_the_ends_of_epochs_and_of_the_run_are_saved_too(small_view, tmp_path):
    # Of 9 steps an epoch.
    more = ("--epochs=3", "--max_steps=20", "--checkpoint_every_epochs=0", "--checkpoint_every_steps=3")
    done = launch("python", settings(small_view, tmp_path, *more, "--keep_checkpoints=9"))
    assert done.returncode == 0, done.stdout
    assert committed_steps(tmp_path / "checkpoints") == [f"step-{step:08d}" for step in (3, 6, 9, 12, 15, 18, 20)]
    # Those at the ends have been validated.
    validated = {line["step"]: line["kl"] for line in read_metrics(tmp_path) if line["kind"] == "validation"}
    best = min(validated, key=lambda step: (validated[step], -step))
    assert validated.keys() == {9, 18, 20}
    assert (tmp_path / "checkpoints" / "best").read_text() == f"step-{best:08d}"
    student = load_file(tmp_path / "student" / "model.safetensors")
    last = read_weights(tmp_path / "checkpoints" / "step-00000020", 1, "weight")
    assert student.keys() == last.keys()
    assert all(torch.equal(student[name], weight) for name, weight in last.items())

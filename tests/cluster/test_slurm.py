"""The batch scripts on a real SLURM of two nodes."""

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from launchers import ROOT, launch, losses, settings
from slurm_cluster import Slurm, missing, start_slurm
from training_view import make_view


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    reason = missing()
    if reason:
        pytest.skip(reason)
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    try:
        with start_slurm(folder) as running:
            yield running
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def submit(slurm: Slurm, output: Path, *arguments: str) -> tuple[dict[str, str], str]:
    """Run train.sbatch on two nodes to its end. Returns the job's fields and its log."""
    output.mkdir(parents=True, exist_ok=True)
    log = output / "job.log"
    # Both "nodes" are this machine, whose name leads to no address in a namespace that has only `lo`.
    job = slurm.submit(
        "--nodes=2",
        f"--output={log}",
        "--export=ALL,MASTER_ADDR=127.0.0.1",
        "slurm/train.sbatch",
        *arguments,
        folder=ROOT,
    )
    fields = slurm.wait(job)
    return fields, log.read_text()


def test_two_nodes_learn_what_one_process_learns(slurm, tmp_path):
    view = make_view(tmp_path, num_samples=120)
    fields, log = submit(slurm, tmp_path / "job", *settings(view, tmp_path / "job"))
    assert fields["JobState"] == "COMPLETED", log
    alone = launch("python", settings(view, tmp_path / "alone"))
    assert alone.returncode == 0, alone.stdout
    assert "on 2 ranks" in log
    assert losses(tmp_path / "job") == pytest.approx(losses(tmp_path / "alone"), rel=0.02)
    assert (tmp_path / "job" / "student" / "model.safetensors").exists()


def test_a_mistake_fails_the_job_with_exit_code_2_and_its_log_says_what_to_do(slurm, tmp_path):
    fields, log = submit(slurm, tmp_path / "job", *settings(tmp_path / "nowhere", tmp_path / "job"))
    assert fields["JobState"] == "FAILED"
    assert fields["ExitCode"] == "2:0"
    assert "nowhere: no such folder" in log
    assert "check the path, or run the stage that makes it first" in log
    assert "Traceback" not in log


def test_the_batch_scripts_have_no_complaint_of_shellcheck():
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    scripts = [str(path) for path in (ROOT / "slurm").glob("*.sbatch")] + [str(ROOT / ".ci" / "run")]
    done = subprocess.run(["shellcheck", *scripts], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout

"""The batch scripts on a real SLURM of two nodes."""

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import label_command
import psutil
import pytest
from launchers import BIN, ROOT, launch, losses, settings, start_ranks, steps, wait_for_ranks, wait_for_step
from picture_server import serving_pictures
from ray_head import free_port
from slurm_cluster import Slurm
from training_view import make_view

from xmodal.evaluation.evaluate import EvaluateConfig, evaluate


def submit(slurm: Slurm, output: Path, *arguments: str) -> str:
    """Submit train.sbatch on two nodes, with all logs in `output`. Returns the job's number."""
    output.mkdir(parents=True, exist_ok=True)
    # Both "nodes" are this machine, whose name leads to no address in a namespace that has only `lo`.
    return slurm.submit(
        *("--nodes=2", f"--output={output}/job.log"),
        f"--export=ALL,MASTER_ADDR=127.0.0.1,LOG_FOLDER={output}",
        *("slurm/train.sbatch", *arguments),
        folder=ROOT,
    )


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[float]]:
    """A view, and the losses of a run of one process on it."""
    folder = tmp_path_factory.mktemp("alone")
    view = make_view(folder, num_samples=120)
    done = launch("python", settings(view, folder / "run"))
    assert done.returncode == 0, done.stdout
    return view, losses(folder / "run")


def test_two_nodes_learn_what_one_process_learns(slurm, tmp_path, alone):
    view, expected = alone
    job = submit(slurm, tmp_path / "job", *settings(view, tmp_path / "job"))
    fields = slurm.wait(job)
    log = (tmp_path / "job" / f"xmodal-train-{job}-0.log").read_text()
    assert fields["JobState"] == "COMPLETED", log
    assert "on 2 ranks" in log
    assert losses(tmp_path / "job") == pytest.approx(expected, rel=0.02)
    assert (tmp_path / "job" / "student" / "model.safetensors").exists()


def test_a_launcher_of_deepspeed_on_each_node_learns_what_one_process_learns(slurm, tmp_path, alone):
    view, expected = alone
    (script,) = re.findall(
        r"^```bash\n(.*?)^```", (ROOT / "docs" / "launching.md").read_text(), re.DOTALL | re.MULTILINE
    )
    assert "--no_ssh" in script
    (tmp_path / "deepspeed.sbatch").write_text(script.replace("launch/train.py", str(ROOT / "launch" / "train.py")))
    variables = {
        "MASTER_ADDR": "127.0.0.1", "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1",
        "PATH": f"{BIN}{os.pathsep}{slurm.environment['PATH']}",
    }  # fmt: skip
    exported = ",".join(["ALL", *(f"{name}={value}" for name, value in variables.items())])
    options = ("--nodes=2", f"--output={tmp_path}/job.log", f"--export={exported}")
    arguments = settings(view, tmp_path / "job")
    fields = slurm.wait(slurm.submit(*options, "deepspeed.sbatch", *arguments, folder=tmp_path))
    log = (tmp_path / "job.log").read_text()
    assert fields["JobState"] == "COMPLETED", log
    assert "on 2 ranks" in log
    assert losses(tmp_path / "job") == pytest.approx(expected, rel=0.02)


def test_a_mistake_fails_the_job_with_exit_code_2_and_its_log_says_what_to_do(slurm, tmp_path):
    fields = slurm.wait(submit(slurm, tmp_path / "job", *settings(tmp_path / "nowhere", tmp_path / "job")))
    log = (tmp_path / "job" / "job.log").read_text()
    assert fields["JobState"] == "FAILED"
    assert fields["ExitCode"] == "2:0"
    assert "nowhere: no such folder" in log
    assert "check the path, or run the stage that makes it first" in log
    assert "Traceback" not in log


LONG = ("--epochs=100", "--max_steps=400", "--checkpoint_every_epochs=0")
"""A run that can be broken off."""


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A view, and a run of two ranks on it."""
    folder = tmp_path_factory.mktemp("unbroken")
    view = make_view(folder, num_samples=120)
    codes, outputs = wait_for_ranks(start_ranks([settings(view, folder / "run", *LONG)] * 2))
    assert codes == [0, 0], outputs
    return view, folder / "run"


def assert_same_run(output: Path, unbroken: Path) -> None:
    for what in ("step", "samples", "loss"):
        assert [line[what] for line in steps(output)] == [line[what] for line in steps(unbroken)]


def test_a_job_whose_time_is_up_or_that_is_preempted_is_requeued_and_ends_as_if_unbroken(slurm, tmp_path, unbroken):
    view, run = unbroken
    output = tmp_path / "job"
    job = submit(slurm, output, *settings(view, output, *LONG))
    wait_for_step(output, 3, [])
    # What SLURM sends the batch shell ahead of the time limit; a limit is a minute at least.
    slurm.signal(job, "USR1")
    slurm.restart(job, 1)
    stopped_at = steps(output)[-1]["step"]
    wait_for_step(output, stopped_at + 3, [])
    whole = ("--nodes=2", "--ntasks-per-node=2")
    urgent = slurm.submit(*whole, "--partition=urgent", "--output=/dev/null", "--wrap=true", folder=tmp_path)
    slurm.restart(job, 2)
    assert slurm.fields(urgent)["JobState"] == "COMPLETED"
    fields = slurm.wait(job)
    log = (output / "job.log").read_text()
    assert (fields["JobState"], fields["Restarts"]) == ("COMPLETED", "2"), log
    assert "train.sbatch: the time is up" in log
    assert log.count("train.sbatch: stopped; back into the queue") == 2
    assert not list(output.glob("stop*"))
    assert_same_run(output, run)


def test_a_job_whose_node_dies_is_requeued_and_ends_as_if_unbroken(slurm, tmp_path, unbroken):
    view, run = unbroken
    output = tmp_path / "job"
    job = submit(slurm, output, *settings(view, output, *LONG, "--checkpoint_every_steps=20"))
    wait_for_step(output, 30, [])
    slurm.kill_node("n2")
    slurm.wait_for_node("n2", "DOWN")
    slurm.bring_back("n2")
    slurm.restart(job, 1)
    fields = slurm.wait(job)
    log = (output / f"xmodal-train-{job}-0.log").read_text()
    assert (fields["JobState"], fields["Restarts"]) == ("COMPLETED", "1"), log
    assert "resuming at step " in log
    assert_same_run(output, run)


def test_recipes_of_an_array_are_trained_and_stopped_each_by_itself_and_their_students_evaluated(slurm, tmp_path):
    view = make_view(tmp_path, num_samples=120)
    for task, rate in ((1, 1e-3), (2, 2e-3)):
        (tmp_path / f"recipe-{task}.yaml").write_text(f"optimizer:\n  lr: {rate}\n")
    array = slurm.submit(
        *(
            "--array=1-2",
            f"--output={tmp_path}/job-%a.log",
            f"--export=ALL,MASTER_ADDR=127.0.0.1,LOG_FOLDER={tmp_path}",
        ),
        *("slurm/train.sbatch", "--config", f"{tmp_path}/recipe-%a.yaml"),
        *settings(view, tmp_path / "run-%a", "--epochs=100", "--max_steps=100", "--checkpoint_every_epochs=0"),
        folder=ROOT,
    )
    # The one whose own number is the array's too.
    (stopped,) = (task for task in (1, 2) if slurm.wait_until_it_runs(f"{array}_{task}")["JobId"] == array)
    wait_for_step(tmp_path / f"run-{stopped}", 3, [])
    (tmp_path / f"stop-{array}_{stopped}").touch()
    slurm.restart(f"{array}_{stopped}", 1)
    for task in (1, 2):
        fields = slurm.wait(f"{array}_{task}")
        log = (tmp_path / f"xmodal-train-{array}_{task}-0.log").read_text()
        assert (fields["JobState"], fields["Restarts"]) == ("COMPLETED", str(int(task == stopped))), log
        assert len(steps(tmp_path / f"run-{task}")) == 100
    rates = [steps(tmp_path / f"run-{task}")[50]["lr"] for task in (1, 2)]
    assert rates[1] == pytest.approx(2 * rates[0])

    scores = slurm.submit(
        *("--array=1-2", "--nodes=2", f"--output={tmp_path}/scores-%a.log", "--export=ALL,MASTER_ADDR=127.0.0.1"),
        *("slurm/evaluate.sbatch", "-m", f"{tmp_path}/run-%a/student", "-b", "emoji"),
        *(f"--json={tmp_path}/scores-%a.json", "--num_draws=10"),
        folder=ROOT,
    )
    for task in (1, 2):
        fields = slurm.wait(f"{scores}_{task}")
        log = (tmp_path / f"scores-{task}.log").read_text()
        assert fields["JobState"] == "COMPLETED", log
        assert log.count("balanced_accuracy") == 1
        alone = evaluate(
            EvaluateConfig(models=[f"{tmp_path}/run-{task}/student"], benchmarks=["emoji"], num_draws=10)
        ).to_json()
        assert json.loads((tmp_path / f"scores-{task}.json").read_text())["emoji"] == pytest.approx(alone["emoji"])


def test_a_mistake_in_evaluating_fails_the_job_with_its_exit_code(slurm, tmp_path):
    arguments = ("-m", f"{tmp_path}/none", "-b", "emoji")
    job = slurm.submit(f"--output={tmp_path}/job.log", "slurm/evaluate.sbatch", *arguments, folder=ROOT)
    fields = slurm.wait(job)
    assert (fields["JobState"], fields["ExitCode"]) == ("FAILED", "2:0"), (tmp_path / "job.log").read_text()


@pytest.fixture(scope="module")
def label_arguments(tmp_path_factory) -> Iterator[tuple[Path, list[str]]]:
    """A folder, and what label.sbatch is given but for the dataset."""
    folder = tmp_path_factory.mktemp("label")
    posts = label_command.write_posts(
        folder / "posts.jsonl",
        [{"id": str(number), "text": f"good {number}", "media": [f"{number}.jpg"]} for number in range(120)],
    )
    with serving_pictures(folder / "log", free_port()) as url:
        yield folder, [f"--posts={posts}", f"--base_url={url}", "--posts_per_unit=10", label_command.ALLOW_LOOPBACK]


def submit_label(slurm: Slurm, log: Path, options: list[str], *arguments: str) -> str:
    return slurm.submit(
        *("--nodes=2", f"--output={log}", "--export=ALL,HEAD_ADDRESS=127.0.0.1", *options),
        *("slurm/label.sbatch", *arguments),
        folder=ROOT,
    )


def processes_of_job(job: str) -> list[str]:
    """What still runs of its Ray cluster."""
    shown = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    return [line for line in shown.stdout.splitlines() if f"/tmp/ray-{job}/" in line]


@pytest.fixture(scope="module")
def labelled(slurm, label_arguments) -> tuple[str, str, Path]:
    """A job that nothing disturbs: its number, its log, and its dataset."""
    folder, arguments = label_arguments
    log, dataset = folder / "job.log", folder / "dataset"
    job = submit_label(slurm, log, [], *arguments, f"--dataset={dataset}", "--politeness.requests_per_second=0")
    fields = slurm.wait(job)
    assert fields["JobState"] == "COMPLETED", log.read_text()
    return job, log.read_text(), dataset


def test_a_ray_cluster_in_an_allocation_labels_and_is_gone_after(labelled):
    job, log, _ = labelled
    assert re.search(r"samples +120\n", log)
    assert "label.sbatch: 2 of 2 nodes have joined" in log
    assert processes_of_job(job) == []
    assert not Path(f"/tmp/ray-{job}").exists()


def test_a_mistake_in_labelling_fails_the_job_with_its_own_exit_code_and_takes_the_cluster_down(slurm, label_arguments):
    folder, _ = label_arguments
    log = folder / "mistake.log"
    job = submit_label(slurm, log, [], f"--posts={folder / 'none.jsonl'}", f"--dataset={folder / 'mistake'}")
    fields = slurm.wait(job)
    assert (fields["JobState"], fields["ExitCode"]) == ("FAILED", "2:0"), log.read_text()
    assert "none.jsonl: no such file" in log.read_text()
    assert processes_of_job(job) == []


def test_a_job_whose_time_is_up_ends_cleanly_and_goes_on_when_submitted_again(slurm, label_arguments, labelled):
    folder, arguments = label_arguments
    log, dataset = folder / "slow.log", folder / "slow"
    arguments = [*arguments, f"--dataset={dataset}", "--max_units_in_flight=2", "--fetch.max_concurrent=1"]
    job = submit_label(slurm, log, [], *arguments, "--politeness.requests_per_second=4")
    deadline = time.monotonic() + 120
    while len(list(dataset.glob("*.tar"))) < 2:
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)
    # What SLURM sends the batch shell ahead of the time limit; a limit is a minute at least.
    slurm.signal(job, "USR1")
    fields = slurm.wait(job)
    assert (fields["JobState"], fields["ExitCode"]) == ("FAILED", "75:0"), log.read_text()
    assert "the time is up; submit the job again" in log.read_text()
    assert processes_of_job(job) == []
    committed = {path.name: path.stat().st_ino for path in dataset.glob("*.tar")}
    assert 2 <= len(committed) < 12
    again = submit_label(slurm, folder / "again.log", [], *arguments, "--politeness.requests_per_second=0")
    fields = slurm.wait(again)
    assert fields["JobState"] == "COMPLETED", (folder / "again.log").read_text()
    assert committed.items() <= {path.name: path.stat().st_ino for path in dataset.glob("*.tar")}.items()
    assert label_command.hashes(dataset) == label_command.hashes(labelled[2])


def test_a_job_whose_time_is_up_while_it_waits_for_its_nodes_ends_cleanly(slurm, label_arguments):
    folder, arguments = label_arguments
    log = folder / "waiting.log"
    job = submit_label(slurm, log, [], *arguments, f"--dataset={folder / 'waiting'}")
    joining = f"--address=127.0.0.1:{20_000 + int(job) % 10_000}"
    deadline = time.monotonic() + 120
    ended = 0
    while not ended:
        assert time.monotonic() < deadline, log.read_text()
        for process in psutil.process_iter(["cmdline"]):
            arguments_of_process = process.info["cmdline"] or []
            if joining in arguments_of_process and "start" in arguments_of_process:
                # The second node does not come.
                process.kill()
                ended += 1
        time.sleep(0.05)
    # The script waits for it for five minutes.
    time.sleep(10)
    slurm.signal(job, "USR1")
    fields = slurm.wait(job, 100)
    assert (fields["JobState"], fields["ExitCode"]) == ("FAILED", "75:0"), log.read_text()
    assert "nodes have joined" not in log.read_text()
    assert processes_of_job(job) == []


def test_the_batch_scripts_have_no_complaint_of_shellcheck():
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    scripts = [str(path) for path in (ROOT / "slurm").glob("*.sbatch")] + [str(ROOT / ".ci" / "run")]
    done = subprocess.run(["shellcheck", *scripts], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout

import socket

import pytest

from shards.errors import UserError
from xmodal.training.ranks import (
    Place,
    device_number,
    keep_nccl_from_aborting,
    rank_variables,
    require_own_gpus,
)


def test_what_deepspeed_and_torchrun_set_is_taken_as_it_is():
    environment = {
        "RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "node1", "MASTER_PORT": "29500", "OTHER": "x",
    }  # fmt: skip
    assert rank_variables(environment) == {name: environment[name] for name in environment if name != "OTHER"}


def test_under_srun_the_step_says_who_is_who():
    environment = {
        "SLURM_JOB_ID": "1234567", "SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "5", "SLURM_LOCALID": "1",
        "SLURM_STEP_NODELIST": "n[1-4]", "MASTER_ADDR": "n1",
    }  # fmt: skip
    assert rank_variables(environment) == {
        "RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8", "MASTER_ADDR": "n1", "MASTER_PORT": "24567",
    }  # fmt: skip


def test_a_batch_scripts_own_shell_is_a_single_rank():
    variables = rank_variables({"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_LOCALID": "0"})
    assert variables["WORLD_SIZE"] == "1"


def test_plain_python_is_alone_and_takes_a_free_port():
    variables = rank_variables({})
    assert (variables["RANK"], variables["WORLD_SIZE"]) == ("0", "1")
    with socket.socket() as server:
        server.bind((variables["MASTER_ADDR"], int(variables["MASTER_PORT"])))


def test_half_of_a_launchers_variables_is_a_users_error():
    with pytest.raises(UserError, match="MASTER_ADDR, MASTER_PORT"):
        rank_variables({"RANK": "0", "WORLD_SIZE": "2"})


def test_a_step_whose_hosts_cannot_be_named_is_a_users_error(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    step = {"SLURM_JOB_ID": "7", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    with pytest.raises(UserError, match="scontrol show hostnames"):
        rank_variables(step | {"SLURM_STEP_NODELIST": "n[1-2]"})


@pytest.mark.parametrize(
    ("local_rank", "num_visible", "expected"),
    [(0, 8, 0), (7, 8, 7), (0, 1, 0), (5, 1, 0)],  # the last: each task of `srun --gpus-per-task=1` sees one GPU
)
def test_a_rank_takes_the_gpu_of_its_number_or_the_only_one_that_it_sees(local_rank, num_visible, expected):
    assert device_number(local_rank, num_visible) == expected


def test_a_rank_for_which_there_is_no_gpu_is_a_users_error():
    with pytest.raises(UserError, match="no GPU for rank 4 of this host, counted from 0: 4 are visible"):
        device_number(4, 4)


def test_ranks_that_see_the_same_gpu_are_a_users_error():
    own = [Place("n1", "a"), Place("n1", "b"), Place("n2", "c"), Place("n2", "d")]
    require_own_gpus(own)
    require_own_gpus([Place("n1", ""), Place("n1", "")])  # of processors
    with pytest.raises(UserError, match="ranks 2 and 4 share a GPU of n2, where 3 ranks run"):
        require_own_gpus([*own, Place("n2", "c")])


@pytest.mark.parametrize(
    ("launcher", "handling", "expected"),
    [
        ({}, None, "0"),
        ({}, "1", "1"),  # a user's
        ({"TORCHELASTIC_RUN_ID": "none"}, "1", "0"),  # torchrun's own
        ({"TORCHELASTIC_RUN_ID": "none"}, "2", "2"),
    ],
)
def test_nccl_is_kept_from_aborting_unless_a_user_has_asked_for_it(launcher, handling, expected):
    environment = dict(launcher)
    if handling:
        environment["TORCH_NCCL_ASYNC_ERROR_HANDLING"] = handling
    keep_nccl_from_aborting(environment)
    assert environment["TORCH_NCCL_ASYNC_ERROR_HANDLING"] == expected
    assert environment["TORCH_NCCL_ENABLE_MONITORING"] == "0"

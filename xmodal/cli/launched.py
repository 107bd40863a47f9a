"""What launch/*.py does besides a verb."""

import os
from collections.abc import Callable
from functools import wraps


def under_srun(verb: Callable[[list[str]], int | None]) -> Callable[[list[str]], int | None]:
    """The verb; the tasks of a step of srun's, of which Accelerate does not know, are then processes of one job."""

    @wraps(verb)
    def run(arguments: list[str]) -> int | None:
        if int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
            if os.environ.get("DS_ACCELERATOR") == "cpu":
                os.environ["CUDA_VISIBLE_DEVICES"] = ""  # Accelerate does not know of the other

            import torch

            from xmodal.training.ranks import device_number, rank_variables

            os.environ.update(rank_variables(os.environ))
            if torch.cuda.is_available():
                number = device_number(int(os.environ["LOCAL_RANK"]), torch.cuda.device_count())
                os.environ["LOCAL_RANK"] = str(number)  # which Accelerate takes for the GPU's number
        return verb(arguments)

    return run


def without_local_rank(arguments: list[str]) -> list[str]:
    """The arguments, less what DeepSpeed's launcher adds, `--local_rank=N`: the environment says the same."""
    return [argument for argument in arguments if not argument.startswith("--local_rank=")]

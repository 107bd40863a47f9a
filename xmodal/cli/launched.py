"""What launch/*.py does besides a verb."""

import os
from collections.abc import Callable
from functools import wraps


def under_srun(verb: Callable[[list[str]], int | None]) -> Callable[[list[str]], int | None]:
    """The verb; the tasks of a step of srun's, of which Accelerate does not know, are then processes of one job."""

    @wraps(verb)
    def run(arguments: list[str]) -> int | None:
        if int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
            from xmodal.training.ranks import rank_variables

            os.environ.update(rank_variables(os.environ))
        return verb(arguments)

    return run

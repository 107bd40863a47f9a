"""What fine-tuning on a benchmark is told."""

from dataclasses import dataclass, field
from pathlib import Path

from shards.checks import require_folder, require_range
from shards.errors import ConfigError, UserError
from xmodal.evaluation.folds import FOLD_SEED, NUM_FOLDS
from xmodal.students import StudentConfig
from xmodal.training.config import TrainConfig
from xmodal.training.pinned_config import MAY_CHANGE as TRAIN_MAY_CHANGE

RECIPES = Path(__file__).parent.parent.parent / "configs" / "finetune"
"""The paper's: what is not given is as there. A wheel has none."""

MAY_CHANGE = {"root", "output", "json", "batch_size", "num_workers", "num_draws", "seed"} | {
    f"train.{name}" for name in TRAIN_MAY_CHANGE
}
"""Settings that shape neither divisions nor students: a run may go on with others."""


def recipe_file(name: str) -> Path:
    """The file of one of `RECIPES`. Raises UserError where the code was installed without its clone."""
    file = RECIPES / f"{name}.yaml"
    if not file.is_file():
        raise UserError(f"{file}: no such recipe", "install xmodal from the folder of its clone: pip install -e .")
    return file


@dataclass(frozen=True, kw_only=True)
class DivisionTrainConfig(TrainConfig):
    """How the student of each division is trained."""

    view: str = ""
    """Not to be given: each division has its own."""
    output: str = ""
    """Not to be given: each division has its own."""
    student: StudentConfig = field(default_factory=lambda: StudentConfig(model=""))

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("view", "output", "upload"):
            if getattr(self, key):
                raise ConfigError(key, getattr(self, key), "is not to be given: each division has its own")
        for key in ("model", "model_args"):
            if value := getattr(self.student, key):
                raise ConfigError(f"student.{key}", value, "is not to be given: the student to start from says it")


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """A student, a benchmark, and how the one is fine-tuned on parts of the other, and judged on the rest."""

    model: str
    """Folder of the student to start from, or the name of one of the paper's models (see `xmodal models list`)."""
    benchmark: str
    """Name (see `xmodal benchmarks list`) or YAML file."""
    root: str = ""
    """Folder that the benchmark's paths start at, by default the working folder."""
    output: str = ""
    """Folder for the fine-tuned students, their predictions, and result.json; a run that was cut off goes on there. By
    default runs/crossval/BENCHMARK or runs/finetune-fi/BENCHMARK."""
    json: str | None = None
    """File for the metrics of all held-out predictions, as `xmodal evaluate --json` writes them, for `xmodal table`."""
    batch_size: int = 0
    """Pictures of one forward pass of a process that predicts; 0: what is fastest and fits into memory, within
    reason."""
    num_workers: int = 0
    """Threads of a process that read, decode and, on a CPU, predict; 0: one for each of its cores."""
    num_draws: int = 1000
    """Bootstrap draws behind each interval."""
    seed: int = 0
    """Decides the bootstrap draws."""
    train: DivisionTrainConfig = field(default_factory=DivisionTrainConfig)
    """How each student is trained, as `xmodal train` has it. View, output, and what student to start from are left out;
    of a benchmark that has neutral pictures, `loss.neutral` is `kept`; and without random crops, pictures are squashed
    or cut as the student takes them."""

    def __post_init__(self) -> None:
        require_folder(self, "output")
        require_range(self, "num_draws", least=1)
        require_range(self, "batch_size", "num_workers", "seed", least=0)


@dataclass(frozen=True, kw_only=True)
class CrossvalConfig(FinetuneConfig):
    """Cross-validation."""

    num_folds: int = NUM_FOLDS
    """Each is held out once; the paper has five."""
    fold_seed: int = FOLD_SEED
    """Decides which pictures are in which fold."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range(self, "num_folds", least=2)
        require_range(self, "fold_seed", least=0, below=2**32)
        if self.train.select != "last":
            rule = "needs a part to validate on, which folds have not; leave it at last"
            raise ConfigError("train.select", self.train.select, rule)


@dataclass(frozen=True, kw_only=True)
class FinetuneFiConfig(FinetuneConfig):
    """Fine-tuning on given divisions."""

    benchmark: str = "FI_complete"
    """Name (see `xmodal benchmarks list`) or YAML file of a benchmark that comes with divisions (`splits`)."""

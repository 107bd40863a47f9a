"""Everything that a training run is told."""

from dataclasses import dataclass, field
from typing import Literal

from shards.augment import AugmentConfig
from shards.checks import require_folder, require_range
from shards.errors import ConfigError
from shards.stream import StreamConfig
from xmodal.students import StudentConfig


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """What the student is asked to match."""

    kind: Literal["soft", "hard", "mixed"] = "soft"
    """`soft`: cross-entropy against the teacher's probabilities. `hard`: against its most probable class. `mixed`: the
    mean of both, weighted by `hard_share`."""
    hard_share: float = 0.0
    """For `mixed`: weight of the hard loss; the soft one has the rest."""
    temperature: float = 1.0
    """For `soft` and `mixed`: flattens both sides of the soft loss; above 1 the small probabilities count more (Hinton
    et al. 2015)."""
    label_smoothing: float = 0.0
    """For `hard` and `mixed`: mass of the hard loss spread evenly over the classes (the paper: 0.2)."""
    class_weights: Literal["none", "balanced"] = "none"
    """`balanced`: each class weighs as if the view held equally much of all three."""
    neutral: Literal["kept", "masked"] = "kept"
    """`masked`: the loss is that of negative and positive alone, each by its share of the probability of both, in the
    labels too; what the student gives to neutral does not matter. For labels that have no neutral class: the paper's
    fine-tuning, which multiplies the student's neutral probability by 10⁻⁷ before Keras scales them to add up to 1."""
    confidence_power: float = 0.0
    """Each sample weighs as the teacher's confidence to this power, their mean over the view being 1: with 1, one that
    the teacher gives 0.9 weighs twice as much as one of 0.45. 0: all weigh the same."""

    def __post_init__(self) -> None:
        require_range(self, "temperature", above=0)
        require_range(self, "hard_share", "label_smoothing", least=0, below=1)
        require_range(self, "confidence_power", least=0)
        if self.kind == "soft" and self.label_smoothing:
            raise ConfigError("label_smoothing", self.label_smoothing, "has no effect on soft labels; leave it at 0")
        if self.kind == "hard" and self.temperature != 1:
            raise ConfigError("temperature", self.temperature, "has no effect on hard labels; leave it at 1")
        if self.kind != "mixed" and self.hard_share:
            raise ConfigError("hard_share", self.hard_share, "has an effect with kind: mixed alone; leave it at 0")
        if self.kind == "mixed" and not self.hard_share:
            raise ConfigError("hard_share", self.hard_share, "leaves nothing to mix; raise it, or choose kind: soft")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The optimizer, with linear warm-up and cosine decay."""

    kind: Literal["adamw", "radam"] = "adamw"
    """`radam` (Liu et al. 2020; the paper's) begins by small steps of itself, so that it needs no warm-up. Both decay
    the weights themselves, not the gradients."""
    lr: float = 1e-3
    """Peak learning rate."""
    final_lr_share: float = 0.01
    """Learning rate at the last step, as a share of the peak; 1 keeps it constant after the warm-up."""
    warmup_share: float = 0.05
    """Share of all steps over which the learning rate rises from 0."""
    layer_decay: float = 1.0
    """Each layer learns at this share of the rate of the layer above it, the head at the full one: the first layers,
    which know of pictures in general, change least (ViT-B: about 0.65, ViT-L: 0.75). 1: all learn at the same rate."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the running means of the gradient and its square."""
    weight_decay: float = 0.05
    """Not applied to biases, norms, and what the model itself exempts."""
    max_grad_norm: float = 1.0
    """Larger gradients are scaled down to this norm; 0 for no limit."""
    ema_decay: float = 0.0
    """The student that is validated and exported is the moving average of the weights, of which each step leaves this
    share (0.999 remembers about 1,000 steps; in the first ones it is less). 0: it is the weights themselves."""

    def __post_init__(self) -> None:
        require_range(self, "lr", above=0, most=1)
        require_range(self, "final_lr_share", "warmup_share", least=0, most=1)
        require_range(self, "layer_decay", above=0, most=1)
        require_range(self, "weight_decay", "max_grad_norm", least=0)
        require_range(self, "ema_decay", least=0, below=1)
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError("betas", self.betas, "are out of range [0, 1)")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """From a view to a student."""

    view: str
    """The view: its folder, or `s3://BUCKET/PREFIX`."""
    allow_forgotten: bool = False
    """Train on a view although posts of it were forgotten since it was made (`xmodal forget`)."""
    output: str
    """Folder of the run: metrics.jsonl, tensorboard/, checkpoints/ and, at the end, student/."""
    deepspeed: str = "configs/deepspeed/zero2.json"
    """DeepSpeed's own config; its "auto" values are filled in from here. What is not below the working folder is looked
    for below the project's."""
    student: StudentConfig = field(default_factory=StudentConfig)
    compile: bool = False
    """Have torch make kernels for the student as it is (`torch.compile`): minutes at the start and at the first
    validation, then faster steps."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    stream: StreamConfig = field(default_factory=StreamConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    mixup: float = 0.0
    """Each picture is mixed with another of its batch, and matched to the labels of both, by shares that are drawn from
    Beta(mixup, mixup): 0.2 mixes most but a little, 0.8 about evenly. A batch is what a rank has in one forward pass:
    other ranks, or another micro_batch_size, mix others. 0: none."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    epochs: int = 10
    """Passes over the view's train split."""
    frozen_epochs: int = 0
    """In so many of these epochs, the first ones, only the head learns, and all before it is as in evaluation: drop
    path and dropout have no effect. Then all layers do; the optimizer, its warm-up and its decay begin anew, as in a
    second run that starts from the weights of the first."""
    keep_features: bool = False
    """In the frozen epochs, let the backbone look at each picture once, as in evaluation (and at its mirror image, with
    `augment.flip`), and have the head learn from what it made of them: all of these epochs take the time of one forward
    pass. Other augmentation then has no part in them. Each rank holds 2 bytes (4 in float32) times the head's width
    for each picture, and as much for each mirror image; a run that is resumed looks at them again."""
    feature_folder: str = ""
    """Folder, or `s3://BUCKET/PREFIX`, in which these features stay for other runs with the same backbone: such a run
    looks only at those pictures that none before it has seen, even if that one was stopped over it. Empty: they go with
    the run."""
    max_steps: int = 0
    """Stop after so many optimizer steps, the learning rate being what it is then; 0 for no such limit."""
    global_batch_size: int = 256
    """Samples of one optimizer step over all ranks."""
    micro_batch_size: int = 0
    """Samples of one forward pass of a rank; the rest is accumulated. 0: all of a rank's share at once. The student is
    the same but for rounding, unless it has batch norms, or something is drawn for each forward pass: mixup, drop path,
    dropout, the mirror images of keep_features."""
    seed: int = 0
    """Decides the initial weights and, on so many ranks, what mixup, drop path and dropout draw. `stream.seed` decides
    order and augmentation, on any number of ranks."""
    log_every_steps: int = 10
    """Steps that one line of the log, and of metrics.jsonl, sums up."""
    trackers: list[Literal["tensorboard", "wandb"]] = field(default_factory=lambda: ["tensorboard"])
    """Where the numbers of metrics.jsonl go besides. `wandb` (Weights & Biases) needs `pip install 'xmodal[wandb]'`,
    heeds its own environment variables (such as WANDB_MODE), and goes on with its run when this one is resumed."""
    wandb_project: str = "xmodal"
    """Project in which Weights & Biases lists the run."""
    peak_tflops: float = 0.0
    """What MFU in the log is a share of: TFLOP/s of one device in 16 bits. 0: that of the GPU's data sheet where it is
    a common one; else there is no MFU."""
    checkpoint_every_epochs: int = 1
    """Epochs between checkpoints, each after its validation; 0 for none."""
    checkpoint_every_steps: int = 0
    """Optimizer steps between checkpoints, besides those of epochs; 0 for none. With either, there is one of the last
    step, too; with neither, a run that is cut off starts anew."""
    keep_checkpoints: int = 2
    """The newest checkpoints, so many of them, are kept. So is the best by validation (see `select`)."""
    select: Literal["last", "kl", "polarity_agreement"] = "last"
    """Which step's weights become the student. `last`: the last one's. `kl`: those of the checkpoint that diverged
    least from the labels in validation. `polarity_agreement`: of the one that had the right one of negative and
    positive most often, neutral being dropped; of equals, of the newer. The best checkpoint, which is kept, is the best
    in that sense, and by `kl` where it does not matter."""
    keep_every_steps: int = 0
    """The first checkpoint of every so many steps is kept for good; 0 for none."""
    upload: str = ""
    """`s3://BUCKET/PREFIX` (or a folder elsewhere) where copies of the checkpoints that are kept lie, made in the
    background, for this run alone. Where `output` has lost the newest one, the run goes on from its copy. Empty:
    none."""
    upload_grace: float = 60.0
    """Seconds that a run that is asked to stop, at its end too, waits for the copy of its last checkpoint: soon its
    machines are taken away. What is left then, the next start copies."""
    stop_file: str = ""
    """Once this file is there, the run makes a checkpoint, removes the file and ends with exit code 75, as it does at
    SIGTERM. Empty: `stop` in `output`."""
    max_skipped_steps: int = 10
    """Steps in a row that may be skipped because a loss or a gradient is not finite; one more ends the run, with a
    checkpoint."""
    step_timeout: float = 1800.0
    """Seconds that a step, a validation or a checkpoint may take; then the rank writes the stacks of its threads and
    ends with exit code 70."""
    peer_timeout: float = 600.0
    """Seconds that a rank waits for another one that does not answer before it ends. At the start it waits for at least
    300: hosts differ in how fast they read torch."""

    def __post_init__(self) -> None:
        require_folder(self, "output")
        require_range(self, "epochs", "global_batch_size", "log_every_steps", "keep_checkpoints", least=1)
        require_range(self, "max_steps", "micro_batch_size", "checkpoint_every_epochs", least=0)
        require_range(self, "checkpoint_every_steps", "keep_every_steps", "max_skipped_steps", least=0)
        require_range(self, "step_timeout", "peer_timeout", above=0)
        require_range(self, "seed", least=0, below=2**31)
        require_range(self, "mixup", "peak_tflops", "upload_grace", least=0)
        if self.mixup and self.micro_batch_size == 1:
            raise ConfigError("mixup", self.mixup, "has no effect on forward passes of one sample; leave it at 0")
        if len(set(self.trackers)) < len(self.trackers):
            raise ConfigError("trackers", self.trackers, "names one twice")
        require_range(self, "frozen_epochs", least=0, most=self.epochs)
        if self.select != "last" and not self.checkpoint_every_epochs:
            raise ConfigError("select", self.select, "needs checkpoint_every_epochs of 1 or more; or choose last")
        if self.keep_features and not self.frozen_epochs:
            raise ConfigError("keep_features", self.keep_features, "has no effect without frozen_epochs; leave it out")
        if self.feature_folder and not self.keep_features:
            raise ConfigError(
                "feature_folder", self.feature_folder, "has no effect without keep_features; leave it out"
            )
        if self.keep_features and self.mixup:
            raise ConfigError("mixup", self.mixup, "needs the pictures, which keep_features sees once; leave it at 0")

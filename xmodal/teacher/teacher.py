"""What a teacher is, how it is configured, and how its words are cleaned before it reads them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from shards.checks import require_range
from shards.errors import ConfigError
from xmodal.labels import SoftLabel

Precision = Literal["auto", "fp32", "bf16", "fp16"]


@dataclass(frozen=True, kw_only=True)
class _ReaderConfig:
    """What a teacher by itself and a member of an ensemble have in common."""

    model: str = "cardiffnlp/twitter-roberta-base-sentiment-latest"
    """Hub name or local folder, for `transformers`."""
    revision: str | None = None
    """Commit of the hub's model; pin it, so that a later run labels alike."""
    precision: Precision = "auto"
    """Of weights and arithmetic, for `transformers`. `auto` is bf16 on processors and GPUs that compute in it, else
    fp32: some times faster, labels within about 0.02. `fp16` is for GPUs alone."""
    max_tokens_per_batch: int = 0
    """Padded tokens of one forward pass, for `transformers`; 0 for 1,024 on processors, whose caches hold no more, and
    16,384 on GPUs."""

    def __post_init__(self) -> None:
        require_range(self, "max_tokens_per_batch", least=0)


@dataclass(frozen=True, kw_only=True)
class MemberConfig(_ReaderConfig):
    """One teacher of an ensemble."""

    kind: Literal["lexicon", "transformers"] = "lexicon"
    """As of a teacher by itself."""


@dataclass(frozen=True, kw_only=True)
class TeacherConfig(_ReaderConfig):
    """Which teacher reads the texts."""

    kind: Literal["lexicon", "transformers", "ensemble", "given"] = "lexicon"
    """`lexicon` is VADER: a word list, no download, no GPU. `transformers` is a sequence classifier of Hugging Face.
    `ensemble` is the mean of its members' probabilities. `given` reads nothing and takes the posts' own `label`."""
    members: list[MemberConfig] = field(default_factory=list)
    """The teachers of an `ensemble`, two or more; each with `kind`, and for `transformers` with `model`, `revision`,
    `precision` and `max_tokens_per_batch`."""
    num_actors: int = 1
    """Copies of the teacher in the Ray cluster."""
    cpus_per_actor: int = 0
    """Processors that Ray reserves for each copy, and that it computes on; 0 reserves none, and computes on one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range(self, "num_actors", least=1)
        require_range(self, "cpus_per_actor", least=0)
        if self.kind == "ensemble" and len(self.members) < 2:
            raise ConfigError("members", len(self.members), "are too few: an ensemble has two or more")
        if self.kind != "ensemble" and self.members:
            raise ConfigError("members", len(self.members), f"do nothing: kind is {self.kind}, not ensemble")

    @property
    def uses_gpu(self) -> bool:
        """Whether the teacher computes on a GPU where there is one."""
        return self.kind == "transformers" or any(member.kind == "transformers" for member in self.members)

    def recipe(self) -> dict[str, Any]:
        """All of it that decides the labels, as plain values."""
        if self.kind == "ensemble":
            return {"kind": self.kind, "members": [_recipe(member) for member in self.members]}
        return _recipe(self)


def _recipe(config: TeacherConfig | MemberConfig) -> dict[str, Any]:
    if config.kind in ("lexicon", "given"):
        return {"kind": config.kind}
    return {"kind": config.kind, "model": config.model, "revision": config.revision, "precision": config.precision}


class Teacher(Protocol):
    """Reads texts."""

    name: str
    revision: str

    @property
    def num_tokens(self) -> int:
        """Tokens that were read so far; 0 of a teacher that knows none."""

    def label(self, texts: Sequence[str]) -> list[SoftLabel]:
        """The probabilities of negative, neutral and positive for each text, in the order of the texts."""


def load_teacher(config: TeacherConfig | MemberConfig) -> Teacher:
    """The teacher of a config, of a kind that reads. Raises UserError where its model cannot serve."""
    assert config.kind != "given"
    # Each kind is imported only when asked for: torch and transformers take seconds and gigabytes to load.
    if config.kind == "lexicon":
        from xmodal.teacher.lexicon import LexiconTeacher

        return LexiconTeacher()
    if isinstance(config, TeacherConfig) and config.kind == "ensemble":
        from xmodal.teacher.ensemble import EnsembleTeacher

        return EnsembleTeacher([load_teacher(member) for member in config.members])
    from xmodal.teacher.classifier import ClassifierTeacher

    return ClassifierTeacher(
        config.model,
        revision=config.revision,
        precision=config.precision,
        max_tokens_per_batch=config.max_tokens_per_batch,
    )


def normalise_text(text: str) -> str:
    """Mask names and links as the Twitter models saw them in training: `@user` and `http`.

    Source: the preprocessing on the model card of cardiffnlp/twitter-roberta-base-sentiment-latest.
    """
    words = []
    for word in text.split(" "):
        if word.startswith("@") and len(word) > 1:
            words.append("@user")
        else:
            words.append("http" if word.startswith("http") else word)
    return " ".join(words)

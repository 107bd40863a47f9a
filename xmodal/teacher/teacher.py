"""What a teacher is, how it is configured, and how its words are cleaned before it reads them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from shards.checks import require_range
from xmodal.labels import SoftLabel


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """Which teacher reads the texts."""

    kind: Literal["lexicon", "transformers"] = "lexicon"
    """`lexicon` is VADER: a word list, no download, no GPU. `transformers` is a sequence classifier of Hugging Face."""
    model: str = "cardiffnlp/twitter-roberta-base-sentiment-latest"
    """Hub name or local folder, for `transformers`."""
    revision: str | None = None
    """Commit of the hub's model; pin it, so that a later run labels alike."""
    max_tokens_per_batch: int = 8192
    """Padded tokens of one forward pass, for `transformers`."""
    num_actors: int = 1
    """Copies of the teacher in the Ray cluster."""

    def __post_init__(self) -> None:
        require_range(self, "num_actors", "max_tokens_per_batch", least=1)


class Teacher(Protocol):
    """Reads texts."""

    name: str
    revision: str

    def label(self, texts: Sequence[str]) -> list[SoftLabel]:
        """The probabilities of negative, neutral and positive for each text, in the order of the texts."""


def load_teacher(config: TeacherConfig) -> Teacher:
    """The teacher of a config. Raises UserError where its model cannot serve."""
    # Each kind is imported only when asked for: torch and transformers take seconds and gigabytes to load.
    if config.kind == "lexicon":
        from xmodal.teacher.lexicon import LexiconTeacher

        return LexiconTeacher()
    from xmodal.teacher.classifier import ClassifierTeacher

    return ClassifierTeacher(config.model, config.revision, config.max_tokens_per_batch)


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

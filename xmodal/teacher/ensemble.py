"""The ensemble: several teachers that read each text, and the mean of what they say."""

from collections.abc import Sequence

from xmodal.labels import SoftLabel
from xmodal.teacher.teacher import Teacher


class EnsembleTeacher:
    """Soft labels as the mean of its members' probabilities, all of one weight."""

    def __init__(self, members: Sequence[Teacher]) -> None:
        self._members = members
        self.name = "mean of " + ", ".join(member.name for member in members)
        self.revision = ", ".join(member.revision for member in members)

    @property
    def num_tokens(self) -> int:
        """Tokens that all members read so far."""
        return sum(member.num_tokens for member in self._members)

    def label(self, texts: Sequence[str]) -> list[SoftLabel]:
        """The probabilities of negative, neutral and positive for each text; members cut texts at their own limits."""
        of_members = [member.label(texts) for member in self._members]
        return [_mean(labels) for labels in zip(*of_members, strict=True)]


def _mean(labels: Sequence[SoftLabel]) -> SoftLabel:
    negative, neutral, positive = (sum(shares) / len(labels) for shares in zip(*labels, strict=True))
    return (negative, neutral, positive)

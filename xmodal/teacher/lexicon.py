"""The lexicon teacher: VADER (Hutto and Gilbert 2014), a list of rated words with rules for negation and emphasis."""

from collections.abc import Sequence
from importlib.metadata import version

from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from xmodal.labels import SoftLabel

# VADER's time grows with the square of the length: this much takes it a second at worst, a megabyte an hour.
_MAX_CHARACTERS = 10_000


class LexiconTeacher:
    """Soft labels from VADER's compound score."""

    name = "vader"
    num_tokens = 0

    def __init__(self) -> None:
        self.revision = version("vaderSentiment")
        self._analyzer = SentimentIntensityAnalyzer()

    def label(self, texts: Sequence[str]) -> list[SoftLabel]:
        """The probabilities of negative, neutral and positive for each text; texts are cut at 10,000 characters."""
        scores = [self._analyzer.polarity_scores(text[:_MAX_CHARACTERS]) for text in texts]
        return [compound_to_soft_label(score["compound"]) for score in scores]


def compound_to_soft_label(compound: float) -> SoftLabel:
    """VADER's compound score in [-1, 1] as probabilities: its size is the certainty, its sign the side.

    Their difference, positive less negative, is the compound itself. VADER's own `neg, neu, pos` are shares of words,
    which call a long text neutral however clear it is.
    """
    return (max(-compound, 0.0), 1.0 - abs(compound), max(compound, 0.0))

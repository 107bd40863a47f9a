"""The neural teacher: any Hugging Face sequence classifier whose labels are negative, neutral and positive."""

import os
from collections.abc import Iterator, Mapping, Sequence

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from shards.errors import UserError
from xmodal.labels import CLASSES, SoftLabel
from xmodal.teacher.teacher import normalise_text

_ALIASES = {"neg": "negative", "neu": "neutral", "pos": "positive"}


class ClassifierTeacher:
    """Soft labels from a sequence classifier, on a GPU where there is one."""

    def __init__(self, model: str, revision: str | None, max_tokens_per_batch: int) -> None:
        self.name = os.path.basename(os.path.normpath(model)) if os.path.isdir(model) else model
        self._max_tokens_per_batch = max_tokens_per_batch
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            config = AutoConfig.from_pretrained(model, revision=revision)
            columns = class_columns(config.id2label, model)
            self._tokenizer = AutoTokenizer.from_pretrained(model, revision=revision)
            # Without its files transformers makes one that knows no word, and every text would be labelled alike.
            if len(self._tokenizer) <= len(self._tokenizer.all_special_ids):
                raise ValueError("its tokenizer is missing")
            classifier = AutoModelForSequenceClassification.from_pretrained(
                model, revision=revision, dtype=torch.float32
            )
        except (OSError, ValueError, SafetensorError) as error:
            raise UserError(
                f"teacher.model: {model}: cannot be loaded: {str(error).splitlines()[0]}",
                "give a Hugging Face hub name that this machine can reach, or a local folder",
            ) from error
        self.revision = revision or getattr(config, "_commit_hash", None) or "local"
        self._columns = columns
        self._model = classifier.to(self._device).eval()
        self._max_length = min(self._tokenizer.model_max_length, getattr(config, "max_position_embeddings", 512) - 2)

    def label(self, texts: Sequence[str]) -> list[SoftLabel]:
        """The probabilities of negative, neutral and positive for each text; texts are cut at the model's limit."""
        if not texts:
            return []
        tokens = self._tokenizer(
            [normalise_text(text) for text in texts], truncation=True, max_length=self._max_length
        )["input_ids"]
        labels: list[SoftLabel] = [(0.0, 1.0, 0.0)] * len(texts)
        for batch in token_batches([len(ids) for ids in tokens], self._max_tokens_per_batch):
            padded = self._tokenizer.pad({"input_ids": [tokens[place] for place in batch]}, return_tensors="pt")
            with torch.inference_mode():
                logits = self._model(**padded.to(self._device)).logits
            probabilities = logits.float().softmax(-1)[:, self._columns].cpu().tolist()
            for place, (negative, neutral, positive) in zip(batch, probabilities, strict=True):
                labels[place] = (negative, neutral, positive)
        return labels


def class_columns(id2label: Mapping[int, str], model: str) -> list[int]:
    """Which of a model's outputs are negative, neutral and positive. Raises UserError if its names do not say."""
    named = {}
    for column, label in id2label.items():
        plain = label.strip().lower()
        named[_ALIASES.get(plain, plain)] = int(column)
    if set(named) != set(CLASSES) or len(id2label) != len(CLASSES):
        raise UserError(
            f"teacher.model: {model}: its labels {list(id2label.values())} are not negative, neutral and positive",
            "choose a three-class sentiment model, or name the classes in its config.json under id2label",
        )
    return [named[name] for name in CLASSES]


def token_batches(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Places of texts, longest first, in batches whose padded size is at most `max_tokens` (or of one text)."""
    batch: list[int] = []
    for place in sorted(range(len(lengths)), key=lambda place: (-lengths[place], place)):
        if batch and lengths[batch[0]] * (len(batch) + 1) > max_tokens:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch

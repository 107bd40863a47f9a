"""The neural teacher: any Hugging Face sequence classifier whose labels are negative, neutral and positive."""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import cached_file
from transformers.utils.hub import extract_commit_hash

from shards.errors import UserError
from xmodal.labels import CLASSES, SoftLabel
from xmodal.teacher.precision import DTYPES, computes_in_bf16, resolve_precision, speed_up_linear_layers
from xmodal.teacher.teacher import Precision, normalise_text

log = logging.getLogger(__name__)

TOKENS_PER_BATCH = {"cpu": 1024, "cuda": 16_384}
"""Padded tokens of a forward pass: what lies between two layers should stay in a processor's caches, and fill a GPU."""

TEXTS_SORTED_TOGETHER = 4096
"""Bounds the memory that the tokens take, however many texts come in a call. More would save no padding to speak of."""

_MAX_CHARACTERS_PER_TOKEN = 32
"""Longer texts are cut before they are tokenised, which takes all of a text: no model reads a megabyte."""

_ALIASES = {"neg": "negative", "neu": "neutral", "pos": "positive"}


class ClassifierTeacher:
    """Soft labels from a sequence classifier, on a GPU where there is one."""

    def __init__(
        self, model: str, *, revision: str | None = None, precision: Precision = "auto", max_tokens_per_batch: int = 0
    ) -> None:
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        precision_here = resolve_precision(
            precision, device=self._device, has_bf16=precision == "auto" and computes_in_bf16(self._device)
        )
        self._of_model = f"teacher.model: {model}"
        self.max_tokens_per_batch = max_tokens_per_batch or TOKENS_PER_BATCH[self._device]
        is_folder = os.path.isdir(model)
        if is_folder and revision is not None:
            raise UserError(
                f"teacher.revision: {revision}: {model} is a local folder, which has none", "leave teacher.revision out"
            )
        try:
            commit = (
                None if is_folder else extract_commit_hash(cached_file(model, "config.json", revision=revision), None)
            )
            # Of one commit all three, even if the hub's newest one changes meanwhile.
            config = AutoConfig.from_pretrained(model, revision=commit or revision)
            columns = class_columns(config.id2label, model)
            self._tokenizer = AutoTokenizer.from_pretrained(model, revision=commit or revision)
            # Without its files transformers makes one that knows no word, and every text would be labelled alike.
            if len(self._tokenizer) <= len(self._tokenizer.all_special_ids):
                raise ValueError("its tokenizer is missing")
            if self._tokenizer.pad_token_id is None:
                raise ValueError("its tokenizer has no padding token")
            classifier, found = AutoModelForSequenceClassification.from_pretrained(
                model, revision=commit or revision, dtype=DTYPES[precision_here], output_loading_info=True
            )
            # transformers would draw them at random.
            if absent := sorted(found["missing_keys"]):
                raise ValueError(f"its weights lack {absent[0]}" + (f" and {len(absent) - 1} more" * (len(absent) > 1)))
            if not all(torch.isfinite(weight).all() for weight in classifier.parameters()):
                raise ValueError(f"its weights are not finite numbers in {precision_here}")
        except (OSError, ValueError, RuntimeError, ImportError, SafetensorError, StrictDataclassError) as error:
            raise UserError(
                f"{self._of_model}: cannot be loaded: {_first_line(error)}",
                "give a Hugging Face hub name that this machine can reach, or a local folder",
            ) from error
        if not is_folder and revision is None:
            log.warning(
                "%s: no revision is pinned: give --teacher.revision %s to label alike later", self._of_model, commit
            )
        self.name = os.path.basename(os.path.normpath(model)) if is_folder else model
        # Labels differ by precision: what another one made is not this teacher's.
        suffix = "" if precision_here == "fp32" else f"+{precision_here}"
        self.revision = (commit or revision or "local") + suffix
        self.num_tokens = 0
        self._columns = columns
        self._model = classifier.to(self._device).eval()
        self.max_length = max_length(classifier, self._tokenizer.model_max_length)
        if (self._device, precision_here) == ("cpu", "fp32"):
            speed_up_linear_layers(self._model)

    def label(self, texts: Sequence[str]) -> list[SoftLabel]:
        """The probabilities of negative, neutral and positive for each text; texts are cut at the model's limit.

        Raises UserError where they are no numbers.
        """
        cut = _MAX_CHARACTERS_PER_TOKEN * self.max_length
        normalised = [normalise_text(text[:cut]) for text in texts]
        distinct = list(dict.fromkeys(normalised))
        label_of: dict[str, SoftLabel] = {}
        for start in range(0, len(distinct), TEXTS_SORTED_TOGETHER):
            some = distinct[start : start + TEXTS_SORTED_TOGETHER]
            label_of |= zip(some, self._label_distinct(some), strict=True)
        return [label_of[text] for text in normalised]

    def tokenise(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of each text, cut at the model's limit."""
        return self._tokenizer(
            list(texts),
            truncation=True,
            max_length=self.max_length,
            return_attention_mask=False,
            return_token_type_ids=False,
        )["input_ids"]

    def _label_distinct(self, texts: Sequence[str]) -> list[SoftLabel]:
        tokens = self.tokenise(texts)
        self.num_tokens += sum(map(len, tokens))
        probabilities = np.empty((len(texts), len(CLASSES)), dtype=np.float32)
        for batch in token_batches([len(ids) for ids in tokens], self.max_tokens_per_batch):
            ids, mask = padded([tokens[place] for place in batch], self._tokenizer.pad_token_id)
            with torch.inference_mode():
                logits = self._model(input_ids=ids.to(self._device), attention_mask=mask.to(self._device)).logits
                probabilities[batch] = logits.float().softmax(-1)[:, self._columns].cpu().numpy()
        if not np.isfinite(probabilities).all():
            raise UserError(
                f"{self._of_model}: gives labels that are no numbers",
                "give --teacher.precision fp32; if it says so then too, its weights are broken",
            )
        return [(negative, neutral, positive) for negative, neutral, positive in probabilities.tolist()]


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


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


def max_length(classifier: nn.Module, tokenizer_limit: int) -> int:
    """The most tokens that a model reads, special ones included.

    RoBERTa and its kin count positions from behind the padding token's id: of 514 they use 512. Their table of
    positions says so by having a padding index, which BERT's has not.
    """
    limits = [int(tokenizer_limit)]
    if positions := getattr(classifier.config, "max_position_embeddings", None):
        limits.append(positions)
    for name, module in classifier.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            first = 0 if module.padding_idx is None else module.padding_idx + 1
            limits.append(module.num_embeddings - first)
    return min(limits)


def padded(tokens: Sequence[Sequence[int]], pad_token_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens of several texts as one array, and the mask of those that are no padding; shapes (texts, longest)."""
    lengths = np.array([len(ids) for ids in tokens])
    mask = np.arange(lengths.max()) < lengths[:, None]
    ids = np.full(mask.shape, pad_token_id, dtype=np.int64)
    ids[mask] = np.concatenate(tokens)
    return torch.from_numpy(ids), torch.from_numpy(mask.astype(np.int64))


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

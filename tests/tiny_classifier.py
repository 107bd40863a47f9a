"""A tiny text classifier with random weights, saved as a folder that transformers loads: the real path, in seconds."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
)

LABELS = {0: "POSITIVE", 1: "neg", 2: "Neutral"}
MAX_POSITIONS = 34
_WORDS = (
    "bad",
    "but",
    "day",
    "good",
    "great",
    "happy",
    "http",
    "is",
    "it",
    "not",
    "sad",
    "so",
    "the",
    "this",
    "user",
    "was",
)


def save_classifier(folder: Path, labels: dict[int, str] = LABELS) -> Path:
    """A BERT of two layers that reads the words above; others are letters. Returns `folder`."""
    num_words = _save_tokenizer(folder, ["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=num_words,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=MAX_POSITIONS,
        id2label=labels,
        label2id={label: number for number, label in labels.items()},
        initializer_range=0.5,  # the usual 0.02 would answer every text alike
    )
    BertForSequenceClassification(config).eval().save_pretrained(folder)
    return folder


def save_roberta(folder: Path) -> Path:
    """The same as a RoBERTa, whose first position comes behind the id of its padding token. Returns `folder`."""
    num_words = _save_tokenizer(folder, ["[CLS]", "[PAD]", "[SEP]", "[UNK]"])
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=num_words,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=MAX_POSITIONS,
        pad_token_id=1,
        id2label=LABELS,
        label2id={label: number for number, label in LABELS.items()},
        initializer_range=0.5,
    )
    RobertaForSequenceClassification(config).eval().save_pretrained(folder)
    return folder


def _save_tokenizer(folder: Path, special: list[str]) -> int:
    """Save a tokenizer whose first ids are those of the `special` tokens; returns how many it knows."""
    letters = [chr(number) for number in range(33, 127)]
    tokens = dict.fromkeys([*special, *_WORDS, *letters, *("##" + letter for letter in letters)])
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(*((token, vocabulary[token]) for token in ("[SEP]", "[CLS]")))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    return len(vocabulary)

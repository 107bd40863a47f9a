"""A tiny text classifier with random weights, saved as a folder that transformers loads: the real path, in seconds."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

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
    letters = [chr(number) for number in range(33, 127)]
    tokens = dict.fromkeys(
        ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *_WORDS, *letters, *("##" + letter for letter in letters)]
    )
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
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

"""Labelling texts, in texts/s: our transformers teacher against the `text-classification` pipeline of transformers.

    python benchmarks/teach.py --posts posts.jsonl --model FOLDER --quick --json teach.json

Same weights, texts and threads; the pipeline takes batches of 32 in the order given, ours the posts of a unit in one
call. Texts are distinct and already masked, so neither profits from reading equal ones once. Before the rounds all
probabilities are compared. Without --posts and --model, texts and a model of random weights are made.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence

import numpy as np
import report_file
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from shards.errors import UserError
from xmodal.labels import CLASSES
from xmodal.posts.readers import read_posts
from xmodal.teacher.classifier import ClassifierTeacher, class_columns, token_batches
from xmodal.teacher.precision import DTYPES, computes_in_bf16
from xmodal.teacher.teacher import normalise_text

TEXTS_PER_CALL = 1000
"""As a unit of `xmodal label` has by default."""
BATCH_SIZE = 32
LARGEST_DIFFERENCE = {"fp32": 1e-4, "bf16": 0.02, "fp16": 0.02}
"""Of any probability from those of the pipeline in fp32; more is other work."""

Label = Callable[[Sequence[str]], np.ndarray]


def main() -> None:
    """Run all rounds and print (and write) what came out."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--posts", help="file of posts; without it, made texts")
    parser.add_argument("--model", help="hub name or folder; without it, a made model of random weights")
    parser.add_argument("--threads", type=int, help="of torch; by default as many as it takes itself")
    parser.add_argument("--quick", action="store_true", help="1,000 texts and 5 rounds instead of up to 10,000 and 7")
    parser.add_argument("--rounds", type=int, help="instead of 7 (or 5)")
    parser.add_argument("--json", help="file for the figures")
    arguments = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    num_texts = 1000 if arguments.quick else 10_000
    rounds = arguments.rounds or (5 if arguments.quick else 7)
    texts = (posts_texts(arguments.posts) if arguments.posts else made_texts())[:num_texts]
    with tempfile.TemporaryDirectory(prefix="teach-") as folder:
        model = arguments.model or make_model(folder)
        contenders, ours = contenders_of(model)
    differences = check_same_work(contenders, texts)
    results: dict[str, dict[str, list[float]]] = {name: {"texts_per_second": []} for name in contenders}
    for number in range(rounds):
        for name, label in contenders.items():
            start = time.perf_counter()
            label(texts)
            results[name]["texts_per_second"].append(len(texts) / (time.perf_counter() - start))
        latest = ", ".join(f"{name} {results[name]['texts_per_second'][-1]:.0f}" for name in contenders)
        print(f"round {number + 1} of {rounds}, texts/s: {latest}", flush=True)
    for name, teacher in ours.items():
        results[name]["tokenising_percent"] = [
            100 * seconds_of_tokenising(teacher, texts) * speed / len(texts)
            for speed in results[name]["texts_per_second"]
        ]
        results[name]["padding_percent"] = [padding_percent(teacher, texts)]
    for name, difference in differences.items():
        results[name]["largest_difference"] = [difference]
    for name, figures in results.items():
        print(name, {figure: round(statistics.median(values), 6) for figure, values in figures.items()})
    work = (
        f"{len(texts)} distinct texts {'of posts' if arguments.posts else 'made of random words'}, "
        f"{'given' if arguments.model else 'made'} model, "
        f"{'GPU' if torch.cuda.is_available() else f'{torch.get_num_threads()} threads'}"
    )
    document = report_file.report("teach", work, ("torch", "transformers", "xmodal"), results, ratios_of(results))
    report_file.write(document, arguments.json)


def contenders_of(model: str) -> tuple[dict[str, Label], dict[str, ClassifierTeacher]]:
    """The pipeline in fp32 first, then each precision that pays on this device: ours and the pipeline's."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    precisions = ["fp32"] + ["bf16"] * computes_in_bf16(device) + ["fp16"] * (device == "cuda")
    contenders: dict[str, Label] = {}
    ours = {}
    for precision in precisions:
        contenders[f"pipeline {precision}"] = pipeline(model, precision, device)
        teacher = ClassifierTeacher(model, precision=precision)  # type: ignore[arg-type]
        ours[f"xmodal {precision}"] = teacher
        contenders[f"xmodal {precision}"] = by_units(teacher)
    return contenders, ours


def by_units(teacher: ClassifierTeacher) -> Label:
    """Ours, as `xmodal label` calls it."""

    def label(texts: Sequence[str]) -> np.ndarray:
        calls = range(0, len(texts), TEXTS_PER_CALL)
        return np.array([one for start in calls for one in teacher.label(texts[start : start + TEXTS_PER_CALL])])

    return label


def pipeline(model: str, precision: str, device: str) -> Label:
    """The usual way."""
    classify = transformers.pipeline(
        "text-classification", model=model, dtype=DTYPES[precision], device=device, batch_size=BATCH_SIZE, top_k=None
    )
    names = classify.model.config.id2label
    labels = [names[column] for column in class_columns(names, model)]

    def label(texts: Sequence[str]) -> np.ndarray:
        scores = [{one["label"]: one["score"] for one in text} for text in classify(list(texts), truncation=True)]
        return np.array([[of_text[label] for label in labels] for of_text in scores])

    return label


def check_same_work(contenders: dict[str, Label], texts: Sequence[str]) -> dict[str, float]:
    """The largest difference of each from the first. Raises SystemExit where it is another label."""
    labels = {name: label(texts) for name, label in contenders.items()}
    reference = next(iter(labels.values()))
    differences = {name: float(np.abs(found - reference).max()) for name, found in labels.items()}
    for name, difference in differences.items():
        if name.startswith("xmodal") and not difference <= LARGEST_DIFFERENCE[name.split()[-1]]:
            raise SystemExit(f"{name}: a probability differs by {difference:.4f} from the pipeline's in fp32")
    return differences


def ratios_of(results: report_file.Results) -> dict[str, float]:
    """Ours by the pipeline in the same precision, and by the pipeline in fp32; medians over the rounds."""
    ratios = {}
    for name in results:
        precision = name.split()[-1]
        if name.startswith("xmodal"):
            for peer in dict.fromkeys((f"pipeline {precision}", "pipeline fp32")):
                pairs = zip(results[name]["texts_per_second"], results[peer]["texts_per_second"], strict=True)
                ratios[f"{name} / {peer}: texts_per_second"] = round(statistics.median(a / b for a, b in pairs), 3)
    return ratios


def seconds_of_tokenising(teacher: ClassifierTeacher, texts: Sequence[str]) -> float:
    """What the tokens alone take."""
    start = time.perf_counter()
    for first in range(0, len(texts), TEXTS_PER_CALL):
        teacher.tokenise(texts[first : first + TEXTS_PER_CALL])
    return time.perf_counter() - start


def padding_percent(teacher: ClassifierTeacher, texts: Sequence[str]) -> float:
    """Share of padding in what the model reads."""
    real = read = 0
    for first in range(0, len(texts), TEXTS_PER_CALL):
        lengths = [len(ids) for ids in teacher.tokenise(texts[first : first + TEXTS_PER_CALL])]
        real += sum(lengths)
        read += sum(len(batch) * lengths[batch[0]] for batch in token_batches(lengths, teacher.max_tokens_per_batch))
    return 100 * (1 - real / read)


def posts_texts(file: str) -> list[str]:
    """The distinct texts of a file of posts, masked as the teacher does."""
    try:
        return list(dict.fromkeys(normalise_text(record.post.text) for record in read_posts(file) if record.post))
    except UserError as error:
        raise SystemExit(str(error)) from error


WORDS = [f"word{number}" for number in range(1000)]


def made_texts() -> list[str]:
    """10,000 texts of 3 to 60 random words, most of them short, as posts are."""
    generator = np.random.default_rng(0)
    lengths = np.clip(generator.lognormal(2.9, 0.5, 10_000).astype(int), 3, 60)
    return [" ".join(generator.choice(WORDS, length)) for length in lengths]


def make_model(folder: str) -> str:
    """A BERT of the size of MiniLM, with random weights; returns its folder."""
    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=384,
        num_hidden_layers=6,
        intermediate_size=1536,
        id2label=dict(enumerate(CLASSES)),
        label2id={name: number for number, name in enumerate(CLASSES)},
    )
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    return folder


if __name__ == "__main__":
    main()

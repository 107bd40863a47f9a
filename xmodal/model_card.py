"""The model card of a student: what it is, learned from, is good for, and is not. Never a post's text, or a path."""

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from xmodal.labels import CLASSES
from xmodal.published import PUBLISHED, PublishedModel


def model_card(
    *, architecture: str, num_parameters: int, head: str, size: int, loading: str, provenance: Mapping[str, Any]
) -> str:
    """Markdown with the hub's header. What `provenance` (see `xmodal.training.provenance`) lacks is left out.

    `head` is said in words; `loading` is the Python that loads the student.
    """
    sections = [
        _HEADER,
        textwrap.fill(f"{_WHAT_IT_DOES} {_learned_from(provenance)}", 120, break_on_hyphens=False),
        f"""- Architecture: {architecture}, {num_parameters:,} parameters; head: {head}
- Input: RGB, {size} by {size} pixels; outputs: logits of {", ".join(CLASSES)}

```python
{loading}
```""",
        "\n".join(_origin(provenance)),
        *_recipe(provenance.get("config")),
        *_metrics(provenance.get("validation"), provenance.get("benchmark")),
        _use(provenance),
    ]
    return "\n\n".join(sections) + "\n"


_HEADER = """---
library_name: timm
pipeline_tag: image-classification
tags:
- image-classification
- timm
---
# Image sentiment student"""
_WHAT_IT_DOES = "Predicts negative, neutral or positive sentiment from a picture alone."
_LEARNED_FROM_TEACHER = (
    "It learned from {labels} a text teacher gave to the texts of posts; no person annotated its training pictures."
)
_LABELS: dict[str | None, str] = {
    "soft": "the soft labels that",
    "hard": "hard labels, the most probable classes by the soft labels that",
    "mixed": "the soft labels, and the most probable classes by them, that",
}
_LEARNED_FROM_PEOPLE = (
    "It began as another student, such as one that learned from a text teacher, and was fine-tuned on pictures of a "
    "benchmark, by what people said of them. It must not be judged on those."
)
_CONVERTED_AS = (
    "It was converted from Keras weights that were given as `{name}`, a model of the authors of [The Emotions of the "
    "Crowd](https://arxiv.org/abs/2304.14942) (Serra, Carrara, Tesconi and Falchi, ECAI 2023). {training}"
)
_OF_TWEETS = (
    "They trained it on pictures of tweets, with hard labels: of each, the class that a text teacher found most "
    "probable for the tweet's words."
)
_UNDOCUMENTED = "What they trained it on is not documented; it is what they begin with where they fine-tune."
_FROM_ELSEWHERE = (
    "It was converted from Keras weights that were trained elsewhere: on what pictures, and by whose labels, is not "
    "known here."
)

_WEIGHTS = {"ema": "the moving average of the steps' weights", "raw": "those after the last of these steps"}

_USE = """## Intended use and limits

For research on what pictures of public posts convey in sum, such as the mood of many pictures on a topic. Judge it on
pictures of your own that people have labelled (`xmodal evaluate`) before you rely on it.

{learned}
- It does not read the feelings of a person who is seen in a picture. Not for decisions about individuals, for watching
  them, or for moderation without people."""
_LIMITS_OF_POSTS = """\
- It learned what a text teacher said of the words beside a picture: the teacher's mistakes, irony that it missed, and
  posts whose words and picture have little to do with each other are in its labels.
- It saw the posts, languages and years of its data set alone, and has the leanings of those who posted."""
_LIMITS_UNKNOWN = """\
- What it learned from is not known, and so neither are the mistakes and leanings that it has from there."""


def _published(provenance: Mapping[str, Any]) -> PublishedModel | None:
    """The paper's model that a student was converted as."""
    return PUBLISHED.get((provenance.get("converted_from") or {}).get("model") or "")


def _learned_from(provenance: Mapping[str, Any]) -> str:
    if model := _published(provenance):
        return _CONVERTED_AS.format(name=model.name, training=_OF_TWEETS if model.dataset else _UNDOCUMENTED)
    if provenance.get("converted_from"):
        return _FROM_ELSEWHERE
    if provenance.get("benchmark"):
        return _LEARNED_FROM_PEOPLE
    kind = provenance["config"]["loss"]["kind"] if provenance.get("config") else None
    return _LEARNED_FROM_TEACHER.format(labels=_LABELS.get(kind, "what"))


def _use(provenance: Mapping[str, Any]) -> str:
    model = _published(provenance)
    is_known = model.dataset is not None if model else "converted_from" not in provenance
    return _USE.format(learned=_LIMITS_OF_POSTS if is_known else _LIMITS_UNKNOWN)


def _origin(provenance: Mapping[str, Any]) -> Iterator[str]:
    yield "## Training"
    yield ""
    if converted := provenance.get("converted_from"):
        yield f"- Converted from Keras weights: `{converted['file']}` (SHA-256 `{converted['sha256']}`)"
        if model := _published(provenance):
            yield f"- Training set, by the authors' name: {model.dataset or 'not documented'}"
            yield f"- Row of the paper's table: {model.row or 'none'}"
        if model and model.accuracy:
            figures = ", ".join(f"{name} {accuracy:.1f} %" for name, accuracy in model.accuracy.items())
            yield f"- Accuracy that the authors published: {figures}"
        return
    if benchmark := provenance.get("benchmark"):
        yield f"- Fine-tuned on pictures of the benchmark {benchmark}; those of `test` it has not seen"
    yield f"- View it learned from: `{provenance.get('view_fingerprint', 'unknown')}`"
    counts = provenance.get("view_counts") or {}
    by_class = counts.get("splits_by_class") or {}
    for split, samples in (counts.get("splits") or {}).items():
        classes = ", ".join(f"{count:,} {name}" for name, count in by_class.get(split, {}).items())
        yield f"- {split}: {samples:,} pictures" + (f" ({classes})" if classes else "")
    yield f"- Steps: {provenance.get('steps', 'unknown')}; all settings are in `provenance.json`"
    if provenance.get("weights") in _WEIGHTS:
        yield f"- Weights: {_WEIGHTS[provenance['weights']]}"


def _recipe(config: Mapping[str, Any] | None) -> Iterator[str]:
    if not config:
        return
    student, loss, optimizer, augment = (config[name] for name in ("student", "loss", "optimizer", "augment"))
    rows = {
        "began as": f"{student['model']}, {'pretrained' if student['pretrained'] else 'random'} weights",
        "loss": _settings(loss),
        "optimizer": _settings(optimizer),
        "global batch": f"{config['global_batch_size']} pictures",
        "epochs": f"{config['epochs']}, {config['frozen_epochs']} of them with a frozen backbone",
        "augmentation": f"{_settings(augment)}, mixup {config['mixup']}",
        "seed": config["seed"],
    }
    yield "\n".join(["## Recipe", "", "| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])


def _metrics(validation: Mapping[str, Any] | None, benchmark: str | None) -> Iterator[str]:
    if not validation:
        return
    rows = {
        "agreement on the most probable class": "teacher_agreement",
        **{f"recall of {name}": f"recall_{name}" for name in CLASSES},
        "recall, mean of the classes": "recall_macro",
        "divergence (KL, nats)": "kl",
        "loss": "loss",
    }
    lines = [f"| {name} | {validation[key]:.4f} |" for name, key in rows.items() if validation.get(key) is not None]
    about = _AGAINST_PEOPLE if benchmark else _AGAINST_TEACHER
    yield "\n".join(["## Metrics", "", about.format(step=validation["step"]), "", "| | |", "|---|---|", *lines])


_AGAINST_TEACHER = """\
Against its teacher, on pictures of other posts of the same view, as of step {step}. They say how well the
student has learned what the teacher says, not how right either is. Recall: of the pictures whose most probable class by
the teacher is this one, the share in which it is the student's, too."""
_AGAINST_PEOPLE = """\
Against what people said, on the part of the benchmark for validation, by which this step, {step}, may have been chosen.
Recall: of the pictures of a class, the share in which it is the student's, too."""


def _settings(section: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in section.items())

"""The model card of a student: what it is, learned from, is good for, and is not. Never a post's text, or a path."""

from collections.abc import Iterator, Mapping
from typing import Any

from xmodal.labels import CLASSES


def model_card(
    *, architecture: str, num_parameters: int, head: str, size: int, loading: str, provenance: Mapping[str, Any]
) -> str:
    """Markdown with the hub's header. What `provenance` (see `xmodal.training.provenance`) lacks is left out.

    `head` is said in words; `loading` is the Python that loads the student.
    """
    sections = [
        _INTRODUCTION,
        f"""- Architecture: {architecture}, {num_parameters:,} parameters; head: {head}
- Input: RGB, {size} by {size} pixels; outputs: logits of {", ".join(CLASSES)}

```python
{loading}
```""",
        "\n".join(_origin(provenance)),
        *_recipe(provenance.get("config")),
        *_metrics(provenance.get("validation")),
        _USE,
    ]
    return "\n\n".join(sections) + "\n"


_INTRODUCTION = """---
library_name: timm
pipeline_tag: image-classification
tags:
- image-classification
- timm
---
# Image sentiment student

Predicts negative, neutral or positive sentiment from a picture alone. It learned from the soft labels that a text
teacher gave to the texts of posts; no person annotated its training pictures."""

_WEIGHTS = {"ema": "the moving average of the steps' weights", "raw": "those after the last step"}

_USE = """## Intended use and limits

For research on what pictures of public posts convey in sum, such as the mood of many pictures on a topic. Judge it on
pictures of your own that people have labelled (`xmodal evaluate`) before you rely on it.

- It learned what a text teacher said of the words beside a picture: the teacher's mistakes, irony that it missed, and
  posts whose words and picture have little to do with each other are in its labels.
- It saw the posts, languages and years of its data set alone, and has the leanings of those who posted.
- It does not read the feelings of a person who is seen in a picture. Not for decisions about individuals, for watching
  them, or for moderation without people."""


def _origin(provenance: Mapping[str, Any]) -> Iterator[str]:
    yield "## Training"
    yield ""
    if converted := provenance.get("converted_from"):
        yield f"- Converted from Keras weights: `{converted['file']}` (SHA-256 `{converted['sha256']}`)"
        return
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


def _metrics(validation: Mapping[str, Any] | None) -> Iterator[str]:
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
    yield "\n".join(
        [
            f"""## Metrics

Against its teacher, on pictures of other posts of the same view, as of step {validation["step"]}. They say how well the
student has learned what the teacher says, not how right either is. Recall: of the pictures whose most probable class by
the teacher is this one, the share in which it is the student's, too.

| | |
|---|---|""",
            *lines,
        ]
    )


def _settings(section: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in section.items())

"""The twelve models of the paper by their names: what each is, and where on this machine it lies once pulled."""

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from shards.errors import UserError

PixelRange = Literal["0..1", "-1..1"]

AGREEMENTS = ("5agree", "4agree", "3agree")
"""The pictures of Twitter1269 that 5, at least 4, at least 3 of 5 people agree on: the columns of the paper's table."""

_RELEASE = "https://github.com/fabiocarrara/cross-modal-visual-sentiment-analysis/releases/download/v0.1.0"


@dataclass(frozen=True, kw_only=True)
class PublishedModel:
    """A model that the paper's authors trained."""

    name: str
    """As their scripts call it."""
    backbone: str
    """A preset of `xmodal.students`."""
    size: int
    """Pixels of the square's side; pictures are stretched to it whole."""
    pixels: PixelRange
    """To what the pixels were scaled in training: 0..1 for B/32, -1..1 (as vit_keras prepares them) for the others."""
    dataset: str | None
    """What it was trained on, a recipe of configs/curate in other letters; None where that is documented nowhere."""
    row: str | None = None
    """Its row in the paper's table."""
    accuracy: Mapping[str, float] = field(default_factory=dict)
    """Benchmark of `AGREEMENTS` → published accuracy in percent."""
    recipe: str | None = None
    """File of configs/train, without its ending, that trains such a model; None where it is not documented enough. Two
    models have one where nothing tells how they differ."""
    released: bool = False
    """Whether a file of the release holds it; the others lie on Google Drive alone."""

    @property
    def url(self) -> str | None:
        """Where its weights can be downloaded."""
        return f"{_RELEASE}/{self.name}.h5" if self.released else None


def mean_and_std(pixels: PixelRange) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """The mean and standard deviation (timm's) that scale bytes to a range of pixels."""
    mean, std = (0.0, 1.0) if pixels == "0..1" else (0.5, 0.5)
    return (mean,) * 3, (std,) * 3


def _model(
    name: str,
    backbone: str,
    *,
    dataset: str | None = None,
    row: str | None = None,
    accuracy: tuple[float, ...] = (),
    recipe: str | None = None,
) -> PublishedModel:
    small = backbone == "ViT_B32"
    return PublishedModel(
        name=name,
        backbone=backbone,
        size=224 if small else 384,
        pixels="0..1" if small else "-1..1",
        dataset=dataset,
        row=row,
        accuracy=dict(zip(AGREEMENTS, accuracy, strict=False)),
        recipe=f"paper_{row.replace('.', '_')}" if row else recipe,
        released=row is not None,
    )


PUBLISHED: dict[str, PublishedModel] = {
    model.name: model
    for model in (
        # Documented nowhere but as the start of their fine-tuning: L/16 at 384 pixels, by their scripts.
        _model("boosted_model", "ViT_L16"),
        _model("ViT_L16", "ViT_L16", dataset="merged_T4SA", row="3.8", accuracy=(87.8, 84.8, 81.9)),
        _model("ViT_L32", "ViT_L32", dataset="merged_T4SA", row="3.6", accuracy=(85.0, 82.4, 79.4)),
        _model("ViT_B16", "ViT_B16", dataset="merged_T4SA", row="3.7", accuracy=(87.0, 83.1, 79.4)),
        _model("ViT_B32", "ViT_B32", dataset="merged_T4SA", row="3.5", accuracy=(86.5, 82.6, 78.9)),
        # How it differs from ViT_B32 is not documented.
        _model("merged_T4SA", "ViT_B32", dataset="merged_T4SA", recipe="paper_3_5"),
        _model("bal_flat_T4SA2.0", "ViT_B32", dataset="bal_flat_T4SA2.0", row="3.3", accuracy=(82.3, 78.7, 75.3)),
        _model("bal_T4SA2.0", "ViT_B32", dataset="bal_T4SA2.0", row="3.4", accuracy=(84.4, 80.3, 77.1)),
        _model("unb_T4SA2.0", "ViT_B32", dataset="unb_T4SA2.0", recipe="paper_unb_t4sa2_0"),
        _model("B-T4SA_1.0_upd_filt", "ViT_B32", dataset="B-T4SA_1.0_upd_filt", row="3.2", accuracy=(84.7, 79.7, 76.6)),
        _model("B-T4SA_1.0_upd", "ViT_B32", dataset="B-T4SA_1.0_upd", row="3.1", accuracy=(82.2, 78.0, 75.5)),
        # In no row of the table; the accuracy is that of a notebook of theirs.
        _model("B-T4SA_1.0", "ViT_B32", dataset="B-T4SA_1.0", accuracy=(81.2,), recipe="paper_b_t4sa_1_0"),
    )
}
"""The order is that of the authors' README."""


def published_model(name: str) -> PublishedModel:
    """The model of a name. Raises UserError, with the nearest name, for one that is none of the twelve."""
    if name not in PUBLISHED:
        raise UserError(f"{name}: none of the paper's twelve models", suggestion(name))
    return PUBLISHED[name]


def suggestion(name: str) -> str:
    """What to do about a name that is none of the twelve: the nearest one, or how to see them all."""
    if "," in name:
        return f"give several apart: -m {' '.join(name.split(','))}"
    lowered = {known.lower(): known for known in PUBLISHED}
    close = difflib.get_close_matches(name.lower(), lowered, n=1, cutoff=0.6)
    return f"did you mean {lowered[close[0]]}?" if close else "see `xmodal models list` for the names"


def models_folder() -> Path:
    """Where pulled models lie: `$XMODAL_MODELS`, else `xmodal/models` in the user's cache folder."""
    chosen = os.environ.get("XMODAL_MODELS")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "xmodal" / "models"


def pulled_folder(name: str) -> Path:
    """The folder of a published model as a student; it is there once the model was pulled."""
    return models_folder() / name


def pull_command(name: str) -> str:
    """What brings a published model to this machine; the file of one that no release holds must be had before."""
    file = "" if PUBLISHED[name].released else f" --file {name}.h5"
    return f"xmodal models pull {name}{file}"


def models_table() -> str:
    """The twelve models as a table, and which of them were pulled to this machine."""
    header = ("name", "backbone", "side", "pixels", "trained on", "row", *AGREEMENTS, "recipe", "here", "weights")
    rows = [
        (
            model.name,
            model.backbone,
            str(model.size),
            model.pixels,
            model.dataset or "not documented",
            model.row or "-",
            *(f"{model.accuracy[name]:.1f}" if name in model.accuracy else "-" for name in AGREEMENTS),
            model.recipe or "-",
            "yes" if pulled_folder(model.name).is_dir() else "no",
            model.url or "in no release",
        )
        for model in PUBLISHED.values()
    ]
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)) for row in (header, *rows)]
    return "\n".join(line.rstrip() for line in lines)

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from shards.errors import UserError
from shards.storage import LocalStorage
from shards.tombstones import Tombstones, record_tombstones
from xmodal.training.config import TrainConfig
from xmodal.training.train import train


def test_a_view_of_forgotten_posts_is_trained_on_only_if_told_to(small_view: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(small_view.parent, tmp_path / "copy")
    view = str(folder / "view")
    dataset = LocalStorage(folder / "dataset")
    # A view that is not refused gets as far as to the output, which is.
    refused = TrainConfig(view=view, output="/dev/null")
    record_tombstones(dataset, Tombstones(frozenset({"nobody"})), reason="", recorded_at="2026-01-02")
    with pytest.raises(UserError, match="/dev/null"):
        train(refused)
    record_tombstones(dataset, Tombstones(frozenset({"3", "20"})), reason="", recorded_at="2026-01-03")
    with pytest.raises(UserError) as told:
        train(refused)
    assert told.value.what == f"{view}: 2 of its samples are of posts that were forgotten since it was made"
    assert "--allow_forgotten true" in told.value.remedy
    with pytest.raises(UserError, match="/dev/null"):
        train(replace(refused, allow_forgotten=True))

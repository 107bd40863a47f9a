"""What others may see of a run's settings."""

import json
from dataclasses import asdict

from shards.stream import StreamConfig
from xmodal.students import StudentConfig
from xmodal.training.config import TrainConfig
from xmodal.training.provenance import settings_without_paths


def test_settings_for_others_name_no_folder_of_the_machine():
    config = TrainConfig(
        view="/home/somebody/view",
        output="/home/somebody/run",
        deepspeed="/home/somebody/zero.json",
        stop_file="/home/somebody/stop",
        upload="/home/somebody/copies",
        frozen_epochs=1,
        keep_features=True,
        feature_folder="/home/somebody/features",
        student=StudentConfig(model="local-dir:/home/somebody/beginner"),
        stream=StreamConfig(cache_folder="/home/somebody/cache"),
    )
    settings = settings_without_paths(asdict(config))
    assert "somebody" not in json.dumps(settings)
    assert (settings["deepspeed"], settings["student"]["model"]) == ("zero.json", "beginner")
    assert settings["frozen_epochs"] == 1

"""Students converted from files that Keras itself wrote; the small ones of the other tests are made to its layouts."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from optional_data import FOLDER

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.slow  # installs two Keras environments from the package index, once
@pytest.mark.timeout(3600)
def test_students_of_vit_keras_itself_predict_the_same(tmp_path):
    command = [sys.executable, str(ROOT / "benchmarks" / "keras_parity.py"), "--quick", "--json", "report.json"]
    photos = FOLDER / "mvsa" / "images"  # larger and more of them than the benchmark's own
    more = ["--pictures", str(photos), "--num-pictures", "20"] if photos.is_dir() else []
    subprocess.run([*command, *more], cwd=tmp_path, check=True)
    report = json.loads((tmp_path / "report.json").read_text())
    files = {name: set(figures) for name, figures in report["results"].items()}
    both = {"model.h5", "m.weights.h5"}
    assert files == {
        "vit_b32, mlp head, keras2": both | {"weights.h5"},
        "vit_b32, linear head, keras2": both | {"weights.h5"},
        "vit_b32, mlp head, keras3": both,
        "vit_b32, linear head, keras3": both,
    }
    assert report["ratios"]["largest"] < 1e-4

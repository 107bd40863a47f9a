"""The drawings of the documentation say what the code says now."""

import re
import subprocess
import sys
from pathlib import Path

IMAGES = Path(__file__).parent.parent / "docs" / "images"


def texts_and_colours(file: Path) -> list[str]:
    # Coordinates may differ in the last digit between machines.
    return re.findall(r"<!-- .*? -->|fill: #[0-9a-f]{6}", file.read_text())


def test_the_drawing_of_lanes_is_what_its_script_draws(tmp_path: Path) -> None:
    command = [sys.executable, str(IMAGES / "draw_lanes.py"), "--folder", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    drawn = texts_and_colours(tmp_path / "lanes.svg")
    assert "<!-- lane 3 -->" in drawn
    assert len(drawn) > 200
    assert drawn == texts_and_colours(IMAGES / "lanes.svg")

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


def available_gib() -> float:
    """What Linux could give without swapping: unlike the free pages, it counts those of file caches."""
    meminfo = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(meminfo["MemAvailable"].split()[0]) / 2**20


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_one_step_of_a_real_vit_l16_under_zero_2_and_zero_3(tmp_path):
    if available_gib() < 16:
        pytest.skip(f"needs 16 GiB of memory, {available_gib():.0f} are available")
    report = tmp_path / "report.json"
    command = [
        sys.executable, "benchmarks/step.py", "--quick", "--json", str(report), "--contenders", "xmodal",
        "--models", "ViT_L16", "--ranks", "2", "--stages", "2", "3", "--batch-size", "1", "--rounds", "1",
    ]  # fmt: skip
    subprocess.run(command, cwd=ROOT, check=True)
    results = json.loads(report.read_text())["results"]
    assert list(results) == ["xmodal ZeRO-2", "xmodal ZeRO-3"]
    for figures in results.values():
        # It is the real one, and its losses are finite: the benchmark asserts that.
        assert figures["parameters, ViT_L16 on 2 ranks"][0] > 303e6
        assert figures["memory_gib, ViT_L16 on 2 ranks"][0] < 8

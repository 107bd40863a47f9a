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
    subprocess.run(
        [sys.executable, "benchmarks/vit_l16_step.py", "--quick", "--json", str(report)], cwd=ROOT, check=True
    )
    results = json.loads(report.read_text())["results"]
    for figures in results.values():
        # 304 M parameters of 4 bytes in the exported student: it is the real one.
        assert figures["student_bytes"][0] > 303e6 * 4
        assert 0 < figures["loss"][0] < 10

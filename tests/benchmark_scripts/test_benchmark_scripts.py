"""The scripts in benchmarks/ run alone and write what they promise. How fast anything is, is no matter of tests."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent


def run(script: str, folder: Path) -> dict[str, Any]:
    command = [sys.executable, str(ROOT / "benchmarks" / script), "--quick", "--json", "report.json"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads((folder / "report.json").read_text())
    assert set(report) == {"benchmark", "date", "hardware", "versions", "work", "results", "ratios"}
    return report


def test_the_benchmark_of_writing_checks_and_writes_its_report(tmp_path):
    report = run("write.py", tmp_path)
    assert {name: len(figures["mb_per_second"]) for name, figures in report["results"].items()} == {
        "xmodal": 5,
        "webdataset": 5,
    }
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_the_benchmark_of_the_order_writes_its_report(tmp_path):
    report = run("order.py", tmp_path)
    figures = report["results"]["xmodal"]
    assert {len(values) for values in figures.values()} == {5}
    assert all(value > 0 for name in figures for value in figures[name] if name != "memory_mib")
    # That is what O(shards) means here: some arrays of a million integers.
    assert max(figures["memory_mib"]) < 200

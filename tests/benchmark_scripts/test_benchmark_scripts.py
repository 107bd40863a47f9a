"""The scripts in benchmarks/ run alone and write what they promise. How fast anything is, is no matter of tests."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def test_the_benchmark_of_the_order_writes_its_report(tmp_path):
    file = tmp_path / "order.json"
    command = [sys.executable, str(ROOT / "benchmarks/order.py"), "--quick", "--json", str(file)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads(file.read_text())
    assert set(report) == {"benchmark", "date", "hardware", "versions", "work", "results", "ratios"}
    figures = report["results"]["xmodal"]
    assert {len(values) for values in figures.values()} == {5}
    assert all(value > 0 for name in figures for value in figures[name] if name != "memory_mib")
    # That is what O(shards) means here: some arrays of a million integers.
    assert max(figures["memory_mib"]) < 200

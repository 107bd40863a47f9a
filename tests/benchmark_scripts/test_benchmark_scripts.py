"""The scripts in benchmarks/ run alone and write what they promise. How fast anything is, is no matter of tests."""

import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from shards.stream import StreamConfig

ROOT = Path(__file__).parent.parent.parent


def run(script: str, folder: Path, *options: str) -> dict[str, Any]:
    command = [sys.executable, str(ROOT / "benchmarks" / script), "--quick", "--json", "report.json", *options]
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


def test_the_benchmark_of_shuffling_writes_its_report_and_draws_it(tmp_path):
    report = run("shuffle.py", tmp_path, "--rounds", "2", "--plot", ".")
    assert {len(values) for figures in report["results"].values() for values in figures.values()} == {2}
    results = {
        name: {figure: statistics.median(values) for figure, values in figures.items()}
        for name, figures in report["results"].items()
    }
    # What is known of the ideal beforehand: 1,000 shards of one size would feed 1000 (1 - 0.999^256) = 226 to a batch.
    ideal = results["full permutation"]
    assert ideal["neighbour_distance_ratio"] == pytest.approx(1, abs=0.01)
    assert ideal["class_share_std_ratio"] == pytest.approx(1, abs=0.05)
    assert ideal["neighbours_in_one_batch_percent"] == pytest.approx(100 * 255 / 10**6, rel=0.1)
    assert 220 < ideal["shards_per_batch"] < 226
    assert ideal["correlation_with_stored_order"] < 0.01
    # 64 lanes that read a shard at a time, and then more at a time.
    blocks = [results[f"xmodal, 64 lanes, {block} a block"] for block in ("1 shard", "4 shards", "16 shards")]
    # A block of one shard's length spans one or two shards.
    assert 64 <= blocks[0]["shards_per_batch_min"] <= blocks[0]["shards_per_batch"] < 128
    for figure in ("neighbour_distance_ratio", "shards_per_batch", "shards_per_64_batches"):
        assert blocks[0][figure] * 1.2 < blocks[1][figure] < blocks[2][figure] / 1.2
    config = StreamConfig()
    default = results[f"xmodal, {config.num_lanes} lanes, {config.shards_per_block} shards a block"]
    assert default["shards_per_batch"] > 150
    small, large = (results[f"shard shuffle + buffer of {size}"] for size in ("1,000", "10,000"))
    assert small["neighbour_distance_ratio"] < large["neighbour_distance_ratio"] < 0.5
    drawing = (tmp_path / "shuffle.svg").read_text()
    assert ElementTree.fromstring(drawing).tag.endswith("svg")
    assert all(f"<!-- {name} -->" in drawing for name in results if results[name] is not default)
    assert "dc:date" not in drawing


def test_the_benchmark_of_loaders_checks_and_writes_its_report_without_the_peers(tmp_path):
    environment = tmp_path / "peers"
    options = ["--contenders", "xmodal", "decode", "--sizes", "600x450", "--batch-size", "8", "--rounds", "2"]
    report = run("loader.py", tmp_path, *options, "--peers-environment", str(environment))
    assert list(report["results"]) == ["xmodal", "decode"]
    for figures in report["results"].values():
        assert list(figures) == ["images_per_second_600x450", "cpu_ms_per_image_600x450"]
        assert all(len(values) == 2 and min(values) > 0 for values in figures.values())
    assert list(report["ratios"]) == ["xmodal / decode: images_per_second_600x450"]
    # 8 batches to begin with, 48 that are counted, 8 more that the workers may be ahead, of 8 each.
    assert "16 shards of 32," in report["work"]
    assert "384 images a round" in report["work"]
    assert not any(name.startswith("peers") for name in report["versions"])
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_the_benchmark_of_crawling_checks_and_writes_its_report_without_the_peer(tmp_path):
    environment = tmp_path / "peers"
    options = ["--contenders", "xmodal", "--cases", "originals", "checked", "--num-urls", "80", "--rounds", "2"]
    report = run("crawl.py", tmp_path, *options, "--peers-environment", str(environment))
    assert list(report["results"]) == ["xmodal"]
    figures = report["results"]["xmodal"]
    assert list(figures) == [
        f"{figure}_{case}"
        for case in ("originals", "checked")
        for figure in ("images_per_second", "cpu_seconds_per_1000_images", "peak_mib")
    ]
    assert {len(values) for values in figures.values()} == {2}
    assert min(figures["images_per_second_originals"]) > 0
    assert min(figures["peak_mib_checked"]) > 0
    assert report["ratios"] == {}
    assert not any(name.startswith("peers") for name in report["versions"])
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_the_benchmark_of_label_memory_tells_of_every_kind_of_process(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    report = run("label_memory.py", tmp_path, "--few", "200", "--many", "400")
    kinds = {f"{kind}_peak_mib" for kind in ("driver", "task", "teacher", "gate")}
    assert {name: set(figures) for name, figures in report["results"].items()} == {"few": kinds, "many": kinds}
    assert all(50 < values[0] < 2000 for figures in report["results"].values() for values in figures.values())
    assert set(report["ratios"]) == {f"many / few: {kind}" for kind in kinds}
    # Twice the posts; what grows with each of them would double it, but for the libraries.
    assert max(report["ratios"].values()) < 1.5


def test_the_benchmark_of_teachers_checks_and_writes_its_report_with_a_made_model(tmp_path):
    report = run("teach.py", tmp_path, "--threads", "1", "--rounds", "1")
    assert list(report["results"])[:2] == ["pipeline fp32", "xmodal fp32"]
    assert all(len(figures["texts_per_second"]) == 1 for figures in report["results"].values())
    assert report["work"].startswith("1000 distinct texts made of random words, made model")
    assert report["results"]["xmodal fp32"]["largest_difference"][0] < 1e-4
    assert 0 < report["results"]["xmodal fp32"]["padding_percent"][0] < 10
    assert "xmodal fp32 / pipeline fp32: texts_per_second" in report["ratios"]
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_the_benchmark_of_curation_checks_and_writes_its_report(tmp_path):
    report = run("curate.py", tmp_path, "--sizes", "2000", "6000", "--rounds", "2")
    assert list(report["results"]) == ["xmodal, 2,000 samples", "xmodal, 6,000 samples"]
    for figures in report["results"].values():
        assert {len(values) for values in figures.values()} == {2}
        assert min(figures["samples_in_view"]) > 100
        assert max(figures["peak_mib"]) < 4096
    assert list(report["ratios"]) == ["6,000 / 2,000 samples: seconds", "6,000 / 2,000 samples: peak_mib"]
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_the_benchmark_of_near_duplicates_checks_and_writes_its_report_without_the_peers(tmp_path):
    environment = tmp_path / "peers"
    options = ["--contenders", "xmodal", "--rounds", "2", "--peers-environment", str(environment)]
    report = run("dedup.py", tmp_path, *options)
    assert list(report["results"]) == ["xmodal"]
    figures = report["results"]["xmodal"]
    assert list(figures) == [f"{figure}_{size}" for size in (100_000, 400_000) for figure in ("seconds", "peak_mib")]
    assert all(len(values) == 2 and min(values) > 0 for values in figures.values())
    assert list(report["ratios"]) == ["xmodal: 400,000 / 100,000: seconds"]
    assert not any(name.startswith("peers") for name in report["versions"])
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_the_benchmark_of_training_steps_checks_and_writes_its_report_without_timm(tmp_path):
    # Of this student a step takes a blink. Two ranks: a launcher is between each contender and what it is told.
    options = ["--models", "vit_tiny_patch16_224", "--ranks", "2", "--batch-size", "2", "--rounds", "1", "--steps", "2"]
    report = run("step.py", tmp_path, *options, "--workers", "0", "--folder", str(tmp_path))
    results = report["results"]
    assert list(results) == ["xmodal ZeRO-0", "engine ZeRO-0", "torch"]
    case = "vit_tiny_patch16_224 on 2 ranks"
    for name, figures in results.items():
        of_ours = [f"{figure}, {case}" for figure in ("data_wait_percent", "memory_gib_predicted")]
        of_all = [f"{figure}, {case}" for figure in ("images_per_second", "memory_gib", "parameters")]
        assert sorted(figures) == sorted([*of_all, *(of_ours if name.startswith("xmodal") else [])])
        assert all(len(values) == 1 for values in figures.values())
        assert figures[f"images_per_second, {case}"][0] > 0
        assert 0.1 < figures[f"memory_gib, {case}"][0] < 8
    assert 0 <= results["xmodal ZeRO-0"][f"data_wait_percent, {case}"][0] <= 100
    rate = f"images_per_second, {case}"
    assert set(report["ratios"]) == {f"xmodal ZeRO-0 / {other}: {rate}" for other in ("engine ZeRO-0", "torch")}
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_the_benchmark_of_predictions_checks_and_writes_its_report_without_timm(tmp_path):
    options = ["--models", "vit_tiny_patch16_224", "--pictures", "8", "--rounds", "1", "--folder", str(tmp_path)]
    report = run("predict.py", tmp_path, *options, "--contenders", "xmodal", "transformers", "--workers", "0")
    figure = "images_per_second, vit_tiny_patch16_224"
    assert {name: list(figures) for name, figures in report["results"].items()} == {
        "xmodal": [figure],
        "transformers, 0 workers": [figure],
    }
    assert all(values[0] > 0 for figures in report["results"].values() for values in figures.values())
    others = ("transformers, 0 workers", "the fastest other")
    assert set(report["ratios"]) == {f"xmodal / {other}: {figure}" for other in others}
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]

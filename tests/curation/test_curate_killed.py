"""`xmodal curate` is killed at random times, again and again; a reader sees a whole view all the while."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from curation_samples import flipped, random_hash
from launchers import ROOT

from shards.dataset import finish
from shards.storage import TEMPORARY_PREFIX, LocalStorage
from shards.view import open_view
from shards.writer import Sample, write_shard

NUM_KILLS = 8
RECIPES = ("one.yaml", "other.yaml")


def sample(number: int) -> Sample:
    post = f"p{number // 2:04d}"
    fields = {
        "soft_label": [0.1 + 0.008 * (number % 100), 0.1, 0.8 - 0.008 * (number % 100)],
        "post_id": post,
        "sha256": random_hash(str(number // 3 * 3 if number % 7 else number)),
        "pdq": flipped(random_hash(str(number // 5)), number % 5),
        "width": 100 + number % 11,
        "height": 100,
    }
    return Sample(key=f"{post}-{number % 2}", image=b"bytes", image_extension="jpg", fields=fields)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of 600 samples, and two recipes for one view."""
    folder = tmp_path_factory.mktemp("killed")
    storage = LocalStorage(folder / "dataset", create=True)
    for shard in range(12):
        write_shard(storage, f"{shard:06d}", [sample(number) for number in range(50 * shard, 50 * shard + 50)])
    finish(storage, describe_shard=lambda _: {}, describe_dataset=lambda _: {})
    common = f"datasets: [{folder}/dataset]\nexact_duplicates: false\nconflicts: true\nseed: 1\n"
    (folder / "one.yaml").write_text(common + "near_duplicates: false\nbalance: none\n")
    (folder / "other.yaml").write_text(common + "balance: undersample\n")
    return folder


AGAIN_AND_AGAIN = """
import itertools, sys
from xmodal.config import load_config
from xmodal.curation.config import CurateConfig
from xmodal.curation.curate import curate

view, *recipes = sys.argv[1:]
configs = [
    load_config(CurateConfig, ["--config", recipe, "--view", view], command="", description="") for recipe in recipes
]
for config in itertools.cycle(configs):
    print("begins", flush=True)
    curate(config)
"""


def start(*arguments: str) -> subprocess.Popen:
    variables = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *arguments], env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def run(folder: Path, recipe: str, view: Path) -> None:
    """An undisturbed run of the command."""
    with start("-m", "xmodal.cli", "curate", "--config", str(folder / recipe), "--view", str(view)) as process:
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors


def kill_at_random(folder: Path, view: Path, generator: random.Random) -> None:
    """Let a process curate now by the one recipe, now by the other, and kill it, whatever it is at."""
    recipes = [str(folder / recipe) for recipe in generator.sample(RECIPES, 2)]
    with start("-c", AGAIN_AND_AGAIN, str(view), *recipes) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begins\n"
        began = time.monotonic()
        assert process.stdout.readline() == "begins\n", process.communicate()[1]
        try:
            # Within this view, or the next one, or that after it.
            process.wait(timeout=generator.uniform(0, 2.5) * (time.monotonic() - began))
        except subprocess.TimeoutExpired:
            process.kill()
    assert process.returncode == -signal.SIGKILL


def files_of(view: Path) -> dict[str, bytes]:
    """All that a reader may take for a part of the view."""
    return {file.name: file.read_bytes() for file in view.iterdir() if not file.name.startswith(TEMPORARY_PREFIX)}


@contextmanager
def read_again_and_again(view: Path) -> Iterator[set[str]]:
    """The fingerprints of all views that a reader sees as long as the block lasts. Raises if it sees a broken one."""
    seen: set[str] = set()
    ended = threading.Event()

    def read() -> None:
        while not ended.wait(0.002):
            seen.add(open_view(str(view)).fingerprint)

    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read)
        try:
            yield seen
        finally:
            ended.set()
        reading.result()


def test_the_view_is_whole_whenever_its_makers_are_killed_and_the_next_run_makes_it_as_an_undisturbed_one(
    folder: Path,
) -> None:
    undisturbed = {}
    for recipe in RECIPES:
        run(folder, recipe, folder / recipe.removesuffix(".yaml"))
        undisturbed[recipe] = files_of(folder / recipe.removesuffix(".yaml"))
    view = folder / "view"
    run(folder, RECIPES[0], view)
    generator = random.Random(0)
    with read_again_and_again(view) as seen:
        for _ in range(NUM_KILLS):
            kill_at_random(folder, view, generator)
    assert seen == {json.loads(files["view.json"])["fingerprint"] for files in undisturbed.values()}
    for recipe in RECIPES:
        run(folder, recipe, view)
        written = files_of(view)
        documents = [json.loads(files.pop("view.json")) for files in (written, dict(undisturbed[recipe]))]
        for document in documents:
            del document["recipe"]["view"]
        assert documents[0] == documents[1]
        assert written == {name: content for name, content in undisturbed[recipe].items() if name != "view.json"}

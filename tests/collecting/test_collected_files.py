"""When a file of posts is done, by each of its three limits."""

import random
import subprocess
import sys
from pathlib import Path

import pytest
import stream_servers
from collecting import ROOT, collected

from xmodal.collecting.files import FilesConfig, PostFiles
from xmodal.collecting.frames import read_lines
from xmodal.posts.post import Media, Post


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


def write(folder: Path, config: FilesConfig, num_posts: int, seconds_between: float) -> list[int]:
    """Write posts of texts that do not compress; returns how many each finished file holds."""
    clock, generator = Clock(), random.Random(0)
    files = PostFiles(folder, "bluesky", config, clock)
    for number in range(num_posts):
        text = generator.randbytes(3000).hex()
        files.add_post(Post(id=str(number), text=text, media=(Media(url="https://a.example/1.jpg"),)))
        clock.now += seconds_between
        files.flush_when_due()
    files.finish_file()
    assert collected(folder) == [str(number) for number in range(num_posts)]
    assert sorted(path.name for path in folder.glob("*.zst")) == sorted(files.finished)
    return [len(list(read_lines(folder / name))) for name in files.finished]


def test_a_file_ends_at_its_size(tmp_path):
    # 3 kB of noise each; what a post adds is known when the next one comes.
    config = FilesConfig(megabytes_per_file=0.03, flush_seconds=0.5)
    assert write(tmp_path, config, 24, seconds_between=1.0) == [11, 11, 2]


def test_a_file_ends_at_its_age(tmp_path):
    config = FilesConfig(minutes_per_file=1.0, flush_seconds=5.0)
    assert write(tmp_path, config, 25, seconds_between=6.0) == [10, 10, 5]


def test_a_file_ends_at_its_number_of_posts(tmp_path):
    config = FilesConfig(posts_per_file=4, flush_seconds=5.0)
    assert write(tmp_path, config, 10, seconds_between=0.1) == [4, 4, 2]


@pytest.mark.parametrize(("source", "client"), [("x", "tweepy"), ("mastodon", "mastodon"), ("bluesky", "websockets")])
def test_a_client_that_is_not_installed_is_told_with_its_extra(tmp_path, source, client):
    arguments = ["collect", "--source", source, "--folder", str(tmp_path)]
    program = f"import sys; sys.modules[{client!r}] = None; from xmodal.cli import main; sys.exit(main({arguments!r}))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=stream_servers.TOKENS | {"PATH": ""},
    )
    assert done.returncode == 2
    problem, remedy = done.stderr.splitlines()
    assert f"{client} is not installed" in problem
    assert "pip install 'xmodal[collect]'" in remedy

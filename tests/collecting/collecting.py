"""Runs collections, in this process and as people do, and reads what they wrote."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import stream_servers
import yaml

from xmodal.collecting.collect import CollectConfig, CollectSummary, collect
from xmodal.collecting.files import FilesConfig
from xmodal.collecting.reconnect import ReconnectConfig
from xmodal.collecting.services import BlueskyConfig, MastodonConfig, XConfig
from xmodal.posts.compressed import open_posts
from xmodal.posts.readers import read_posts
from xmodal.posts.selection import SelectConfig

ROOT = Path(__file__).resolve().parents[2]


def settings(source: str, url: str, folder: Path, **more: Any) -> dict[str, Any]:
    """Settings of a quick collection from a server of the tests, as YAML holds them."""
    service = {"endpoint": url} | ({"backfill_minutes": 5} if source == "x" else {})
    return {
        "source": source,
        "folder": str(folder),
        source: service | more.pop(source, {}),
        "files": {"flush_seconds": 0.05} | more.pop("files", {}),
        "reconnect": {"backoff_seconds": 0.02, "stall_seconds": 20.0} | more.pop("reconnect", {}),
        **more,
    }


def run(source: str, url: str, folder: Path, **more: Any) -> CollectSummary:
    """Collect in this process; `max_posts` or `max_seconds` ends it."""
    sections = {
        "files": FilesConfig,
        "reconnect": ReconnectConfig,
        "select": SelectConfig,
        "x": XConfig,
        "mastodon": MastodonConfig,
        "bluesky": BlueskyConfig,
    }
    values = settings(source, url, folder, **more)
    for name in sections.keys() & values.keys():
        values[name] = sections[name](**values[name])
    return collect(CollectConfig(**values))


def start(tmp_path: Path, config: dict[str, Any], *prefix: str, **variables: str) -> "subprocess.Popen[str]":
    """Start `xmodal collect` as people do."""
    path = tmp_path / "collect.yaml"
    path.write_text(yaml.safe_dump(config))
    return subprocess.Popen(
        [*prefix, sys.executable, "-m", "xmodal.cli", "collect", "--config", str(path)],
        cwd=ROOT,
        env=os.environ | stream_servers.TOKENS | variables,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def collected(folder: Path) -> list[str]:
    """The ids of the posts in the finished files, in the order of the files."""
    files = sorted(folder.glob("*.jsonl.zst"))
    return [record.post.id for path in files for record in read_posts(str(path)) if record.post]


def lines(folder: Path) -> list[dict[str, Any]]:
    """The records of all compressed files of a folder."""
    files = sorted(folder.glob("*.jsonl.zst"))
    return [json.loads(line) for path in files for line in open_posts(str(path))]


def ids(source: str, *numbers: int) -> list[str]:
    return [stream_servers.id_of(source, number) for number in numbers]


def events(source: str, *numbers: int, **details: Any) -> list[dict[str, Any]]:
    return [stream_servers.event_of(source, number, **details) for number in numbers]


def state(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "state.json").read_text())

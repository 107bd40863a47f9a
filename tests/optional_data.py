"""Data that may not be shipped (tweets, services' answers, a trained teacher): in the folder of $XMODAL_TEST_DATA."""

import os
from pathlib import Path

import pytest

FOLDER = Path(os.environ.get("XMODAL_TEST_DATA") or "/nowhere")


def needs(*names: str) -> pytest.MarkDecorator:
    """Skips where the folder lacks any of these."""
    absent = [name for name in names if not (FOLDER / name).exists()]
    return pytest.mark.skipif(bool(absent), reason=f"XMODAL_TEST_DATA names no folder with {', '.join(absent)}")

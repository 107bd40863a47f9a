"""Fixtures of the training tests."""

from pathlib import Path

import pytest
from training_view import make_view


@pytest.fixture(scope="session")
def small_view(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """158 training and 22 validation samples in 12 shards."""
    return make_view(tmp_path_factory.mktemp("training"), num_samples=180)

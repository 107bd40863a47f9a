import os

import pytest
import torch
import torch.distributed as dist

from shards.errors import UserError
from xmodal.training.job import joined_ranks
from xmodal.training.ranks import RANK_VARIABLES


def test_a_process_is_no_rank_any_more_once_the_ranks_have_parted(monkeypatch):
    for name in RANK_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for _ in range(2):  # the second time they meet at another port
        with joined_ranks(60) as ranks:
            assert (ranks.rank, ranks.world_size, os.environ["RANK"]) == (0, 1, "0")
            dist.all_reduce(torch.ones(1))
        assert not dist.is_initialized()
        assert not set(RANK_VARIABLES) & set(os.environ)


def test_nor_where_a_mistake_has_ended_them(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(UserError, match="a mistake"), joined_ranks(60):
        raise UserError("a mistake", "mend it")
    assert "RANK" not in os.environ

"""A mistake that one rank finds."""

from launchers import start_ranks, wait_for_ranks


def test_a_mistake_of_one_rank_is_that_of_all_and_forgotten_once_it_is_told():
    codes, outputs = wait_for_ranks(start_ranks([[]] * 2, "tests/mistakes_program.py", TORCH_CPP_LOG_LEVEL="ERROR"))
    assert codes == [0, 0], outputs
    for output in outputs:
        assert output.splitlines() == ["rank 1: this is wrong", "False"] * 2

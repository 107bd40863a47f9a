from hypothesis import given
from hypothesis import strategies as st

from xmodal.labelling.units import last_rounds, open_failures, round_name, unit_name


@given(rounds=st.dictionaries(st.integers(0, 10**7), st.integers(0, 30), max_size=20))
def test_the_last_round_of_each_unit_is_read_from_the_names_of_shards(rounds):
    names = [round_name(unit_name(unit), number) for unit, last in rounds.items() for number in range(last + 1)]
    assert last_rounds(names) == {unit_name(unit): last for unit, last in rounds.items()}


def test_names_that_are_no_units_are_passed_over():
    assert last_rounds(["other", "12", "000001-again1", "000002-retry", "000003-retry2"]) == {"000003": 2}


def failure(post_id: str, *, retryable: bool) -> dict:
    return {"post_id": post_id, "retryable": retryable}


def test_a_round_replaces_what_it_took_up_and_no_more():
    first = [failure("gone", retryable=False), failure("a", retryable=True), failure("b", retryable=True)]
    second = [failure("a", retryable=True), failure("b", retryable=False)]
    assert open_failures([first]) == first
    assert open_failures([first, second]) == [first[0], *second]
    assert open_failures([first, second, []]) == [first[0], second[1]]

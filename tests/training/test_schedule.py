import pytest
from hypothesis import given
from hypothesis import strategies as st

from xmodal.training.schedule import learning_rate, step_in_phase

SETTINGS = {"peak": 0.1, "final_share": 0.01, "warmup_share": 0.1}


def test_it_rises_to_the_peak_and_falls_to_the_final_share():
    rates = [learning_rate(step, 100, **SETTINGS) for step in range(100)]
    assert rates[:10] == pytest.approx([0.01 * (step + 1) for step in range(10)])
    assert max(rates) == pytest.approx(0.1)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(0.001)


@given(
    total=st.integers(1, 10_000),
    step=st.integers(0, 20_000),
    warmup=st.floats(0, 1),
    final=st.floats(0, 1),
)
def test_it_is_always_above_or_at_zero_and_never_above_the_peak(total, step, warmup, final):
    rate = learning_rate(step, total, peak=0.5, final_share=final, warmup_share=warmup)
    assert 0 <= rate <= 0.5


@given(total=st.integers(1, 1000), step=st.integers(0, 2000), warmup=st.floats(0, 0.9))
def test_a_final_share_of_one_keeps_it_constant_after_the_warm_up(total, step, warmup):
    rate = learning_rate(step, total, peak=0.5, final_share=1.0, warmup_share=warmup)
    warmup_steps = round(total * warmup)
    assert rate == pytest.approx(0.5 * min(1, (step + 1) / warmup_steps) if warmup_steps else 0.5)


@given(frozen=st.integers(0, 100), others=st.integers(0, 100))
def test_two_phases_are_two_runs_one_after_the_other(frozen, others):
    phases = [step_in_phase(step, frozen, frozen + others) for step in range(frozen + others)]
    assert phases == [(step, frozen) for step in range(frozen)] + [(step, others) for step in range(others)]

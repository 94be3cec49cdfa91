"""Curricula: the papers' formulas in exact arithmetic, one compilation, the peers' schedules."""

import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmjax.core import curricula, ema_rates
from cmjax.core.losses.alpha_flow import alpha_schedule
from cmjax.core.losses.tangents import ramp


def square_root_by_definition(k, s0, s1, total_steps):
    """⌈√q − 1⌉ + 1 = ⌈√q⌉, the least integer whose square reaches q."""
    q = Fraction(k, total_steps) * ((s1 + 1) ** 2 - s0**2) + s0**2
    return math.isqrt(math.ceil(q) - 1) + 1


def table(curriculum, k):
    """N at step k, looked up on the host: each table's own compilation would take the test's time."""
    return curriculum.num_scales[np.searchsorted(curriculum.starts, k, side="right") - 1]


def test_square_root_growth_is_exact_at_every_step():
    s0, s1, total_steps = 2, 150, 800_000
    curriculum = curricula.square_root_growth(s0=s0, s1=s1, total_steps=total_steps)
    numbers = np.asarray(jax.jit(jax.vmap(curriculum))(jnp.arange(total_steps + 1)))
    q = np.arange(total_steps + 1) * ((s1 + 1) ** 2 - s0**2) + s0**2 * total_steps  # times K: integers
    assert np.all(numbers.astype(np.int64) ** 2 * total_steps >= q)
    assert np.all((numbers.astype(np.int64) - 1) ** 2 * total_steps < q)
    for start in curriculum.starts[1:].tolist():
        for k in (start - 1, start, start + 1):
            assert numbers[k] == square_root_by_definition(k, s0, s1, total_steps)
    assert (numbers[0], numbers[-1], len(curriculum.starts)) == (s0, s1 + 1, s1 + 2 - s0)


@settings(max_examples=100, deadline=None)
@given(s0=st.integers(2, 30), growth=st.integers(0, 200), total_steps=st.integers(1, 10**6), data=st.data())
def test_square_root_growth_is_the_formula(s0, growth, total_steps, data):
    s1 = s0 + growth
    curriculum = curricula.square_root_growth(s0=s0, s1=s1, total_steps=total_steps)
    for k in data.draw(st.lists(st.integers(0, total_steps), min_size=1, max_size=3)):
        assert table(curriculum, k) == square_root_by_definition(k, s0, s1, total_steps)
    assert np.all(np.diff(curriculum.starts) > 0)
    assert np.all(np.diff(curriculum.num_scales) > 0)


def test_doubling_has_the_papers_stages():
    curriculum = curricula.doubling(s0=10, s1=1280, total_steps=400_000)
    assert curriculum.num_scales.tolist() == [11, 21, 41, 81, 161, 321, 641, 1281]
    assert curriculum.starts.tolist() == [50_000 * i for i in range(8)]
    assert [int(curriculum(k)) for k in (0, 49_999, 50_000, 349_999, 350_000, 10**6)] == [11, 11, 21, 641, 1281, 1281]


@settings(max_examples=100, deadline=None)
@given(s0=st.integers(2, 30), growth=st.integers(0, 2000), total_steps=st.integers(20, 10**6), data=st.data())
def test_doubling_is_the_formula(s0, growth, total_steps, data):
    s1 = s0 + growth
    curriculum = curricula.doubling(s0=s0, s1=s1, total_steps=total_steps)
    length = math.floor(total_steps / (math.log2(math.floor(s1 / s0)) + 1))
    stage = data.draw(st.integers(1, 12))
    for k in (data.draw(st.integers(0, 2 * total_steps)), stage * length - 1, stage * length):
        assert table(curriculum, k) == min(s0 * 2 ** (k // length), s1) + 1


def test_growing_n_compiles_once():
    curriculum = curricula.square_root_growth(s0=2, s1=20, total_steps=100)
    rate = ema_rates.scheduled_rate(mu0=0.9, curriculum=curriculum)
    traces = []

    @jax.jit
    def schedules(step):
        traces.append(step)
        return curriculum(step), rate(step)

    numbers = [int(schedules(jnp.int32(k))[0]) for k in range(101)]
    assert (numbers[0], numbers[100], len(traces)) == (2, 21, 1)
    assert numbers == sorted(numbers)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("name", "s1", "total_steps"), [("ct_adaptive", 200, 800_000), ("ct_adaptive150", 150, 10**6)])
def test_number_and_rate_are_the_released_codes(openai, name, s1, total_steps):
    curriculum = curricula.square_root_growth(s0=2, s1=s1, total_steps=total_steps)
    rate = ema_rates.scheduled_rate(mu0=0.95, curriculum=curriculum, ema_uses_intervals=True)
    steps = jnp.asarray(openai["sched_steps"])
    np.testing.assert_array_equal(jax.vmap(curriculum)(steps), openai[f"sched_{name}_scales"])
    np.testing.assert_allclose(jax.vmap(rate)(steps), openai[f"sched_{name}_ema"], rtol=1e-12)


def test_growth_at_a_fixed_rate_and_constant_are_the_released_codes(openai):
    steps = jnp.asarray(openai["sched_steps"])
    growing = curricula.square_root_growth(s0=2, s1=150, total_steps=800_000)
    np.testing.assert_array_equal(jax.vmap(growing)(steps), openai["sched_fixed_progressive_scales"])
    fixed = curricula.constant(num_scales=40)
    np.testing.assert_array_equal(jax.vmap(fixed)(steps), openai["sched_cd_fixed_scales"])
    rate = ema_rates.constant_rate(mu=0.95)
    assert {float(rate(k)) for k in (0, 10**6)} == {float(np.float32(openai["sched_cd_fixed_ema"][0]))}


@pytest.mark.usefixtures("x64")
def test_scheduled_rate_is_the_paper_by_default():
    curriculum = curricula.square_root_growth(s0=2, s1=150, total_steps=800_000)
    paper = ema_rates.scheduled_rate(mu0=0.9, curriculum=curriculum)
    released = ema_rates.scheduled_rate(mu0=0.9, curriculum=curriculum, ema_uses_intervals=True)
    assert float(paper(0)) == pytest.approx(0.9, rel=1e-12)
    assert float(released(0)) == pytest.approx(0.81, rel=1e-12)
    for k in (1, 1234, 800_000):
        n = square_root_by_definition(k, 2, 150, 800_000)
        assert float(paper(k)) == pytest.approx(0.9 ** (2 / n), rel=1e-12)
        assert float(released(k)) == pytest.approx(0.9 ** (2 / (n - 1)), rel=1e-12)


@pytest.mark.parametrize("make", [curricula.square_root_growth, curricula.doubling])
@pytest.mark.parametrize("wrong", [{"s0": 1}, {"s1": 9}, {"total_steps": 0}], ids=str)
def test_errors_name_the_argument(make, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        make(**{"s0": 10, "s1": 80, "total_steps": 1000, **wrong})


def test_more_stages_than_steps():
    assert int(curricula.square_root_growth(s0=2, s1=150, total_steps=1)(1)) == 151
    with pytest.raises(ValueError, match="total_steps"):
        curricula.doubling(s0=10, s1=1280, total_steps=7)


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.5])
def test_rates_lie_between_0_and_1(rate):
    with pytest.raises(ValueError, match="mu0"):
        ema_rates.scheduled_rate(mu0=rate, curriculum=curricula.constant(num_scales=18))
    with pytest.raises(ValueError, match="mu "):
        ema_rates.constant_rate(mu=rate)


def test_halving_ends_where_it_should():
    curriculum = curricula.halving(start=16, end=2, total_steps=100)
    np.testing.assert_array_equal(curriculum.num_scales, [17, 9, 5, 3])
    np.testing.assert_array_equal(curriculum.starts, [0, 25, 50, 75])
    longer = curricula.halving(start=512, end=1, total_steps=600_000, doubled=2)
    np.testing.assert_array_equal(np.diff([*longer.starts, 600_000]), 8 * [50_000] + 2 * [100_000])
    for wrong in ({"start": 12, "end": 5}, {"start": 2, "end": 4}, {"total_steps": 3}, {"doubled": 5}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            curricula.halving(**{"start": 16, "end": 2, "total_steps": 100} | wrong)


def test_a_stages_teacher_is_the_student_at_its_beginning():
    """An average of the rate 1 keeps, of the rate 0 takes what the update of the stage's last step gave."""
    curriculum = curricula.halving(start=4, end=1, total_steps=9)
    rate = ema_rates.kept_in_a_stage(curriculum=curriculum)
    kept, seen = -1.0, []
    for step in range(9):
        seen.append(kept)
        kept = float(rate(step)) * kept + (1 - float(rate(step))) * step
    assert seen == [-1, -1, -1, 2, 2, 2, 5, 5, 5]


def test_schedules_of_the_traced_step():
    stage = curricula.equal_stages(count=4, total_steps=10)
    assert [int(stage(step)) for step in range(11)] == [0, 0, 0, 1, 1, 2, 2, 2, 3, 3, 3]
    warmup = ramp(length=4)
    np.testing.assert_allclose([warmup(step) for step in range(6)], [0, 0.25, 0.5, 0.75, 1, 1])
    assert ramp(length=0)(0) == 1
    alpha = alpha_schedule(total_steps=100, start=0.2, end=0.8, clamp=0.01)
    values = np.array([alpha(step) for step in range(0, 101, 10)])
    assert np.all(np.diff(values) <= 0)
    np.testing.assert_allclose(values[[0, 5, 10]], [1, 0.5, 0], atol=1e-3)
    traced = jax.jit(lambda step: (stage(step), warmup(step), alpha(step)))
    for step in (0, 3, 50):
        np.testing.assert_allclose(traced(step), (stage(step), warmup(step), alpha(step)), rtol=1e-6)
    assert traced._cache_size() == 1
    for make in (
        lambda: curricula.equal_stages(count=0, total_steps=1),
        lambda: ramp(length=-1),
        lambda: alpha_schedule(total_steps=1, start=0.5, end=0.5),
        lambda: alpha_schedule(total_steps=1, clamp=0.0),
    ):
        with pytest.raises(ValueError, match=r"count|length|start|clamp"):
            make()

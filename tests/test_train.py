"""What a run may start from: the same network, or one without the modules that leave its function as it is."""

import logging

import jax
import numpy as np
import pytest

from cmjax.config.fields import ConfigError
from cmjax.core.model import BoundModel
from cmjax.nets.adapter import init_params
from cmjax.nets.mlp import MLP
from cmjax.runs.setup import started_from

FIELDS = {"width": 4, "depth": 1, "frequencies": 2, "embedding_width": 3}


def network(seed, **fields):
    return init_params(MLP(**FIELDS | fields), jax.random.key(seed), (2,))


def other(**fields):
    return BoundModel(network(1, **fields), lambda *inputs: inputs, (2,), 0.002, 80.0, "denoiser")


def test_the_other_runs_parameters_and_the_fresh_ones_of_what_it_lacks(caplog):
    fresh, teacher = network(0, two_times=True, guided=True, weight_head=4), other()
    with caplog.at_level(logging.INFO, logger="cmjax"):
        started = started_from(teacher.params, fresh, "runs/teacher")
    assert started.keys() == fresh.keys()
    for name, leaves in started.items():
        source = fresh if name in ("time_s", "guidance", "weight_head") else teacher.params
        jax.tree.map(np.testing.assert_array_equal, leaves, source[name])
    assert "runs/teacher has no guidance, time_s, weight_head:" in caplog.text
    caplog.clear()
    same = other(two_times=True, guided=True, weight_head=4)
    jax.tree.map(np.testing.assert_array_equal, started_from(same.params, fresh, "runs/same"), same.params)
    assert not caplog.text


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"num_classes": 3}, {}),
        ({}, {"num_classes": 3}),
        ({"width": 5}, {}),
        ({}, {"weight_head": 4}),
        ({}, {"two_times": True}),
        ({"guided": True}, {"two_times": True}),
        ({"weight_head": 4}, {"weight_head": 5}),
    ],
)
def test_any_other_difference_is_refused(ours, theirs):
    with pytest.raises(ConfigError, match=r"config.init_from='runs/x'"):
        started_from(other(**theirs).params, network(0, **ours), "runs/x")

"""What is read of a trained run's folder."""

import jax
import pytest

import cmjax
from cmjax.config.fields import ConfigError
from cmjax.config.methods import read_model
from cmjax.runs.record import write_model
from cmjax.runs.trained import open_trained
from configs import digits_edm


@pytest.fixture
def teacher(tmp_path):
    """A denoiser whose own samples are drawn by a solver of an optional library."""
    config = digits_edm.get_config()
    config.net.width, config.net.depth, config.samples.solver = 16, 1, "tsit5"
    params = read_model(config.to_dict(), None).init(jax.random.key(0), (8, 8, 1))
    write_model(tmp_path / "teacher", config.to_dict(), (8, 8, 1), None, params, imported=None, option="")
    return tmp_path / "teacher"


def test_a_model_is_loaded_without_what_its_own_samples_need(teacher, monkeypatch):
    monkeypatch.setattr("cmjax.config.samples.find_spec", lambda name: None)
    assert cmjax.load(teacher).kind == "denoiser"
    with pytest.raises(ConfigError, match=r"config\.samples\.solver='tsit5': needs diffrax"):
        _ = open_trained(teacher).samples

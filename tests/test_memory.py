"""Memory: what is free is found, and what does not fit is refused in a line before it is tried."""

import importlib

import jax
import jax.numpy as jnp
import pytest

from cmjax.cli import train
from cmjax.config.fields import ConfigError
from cmjax.system import memory


def test_what_is_free_is_shared_by_the_devices_of_the_cpu():
    host, device = memory.free_on_host(), memory.free_bytes()
    assert 2**26 < device < host
    assert memory.too_little("it", 1, "buy more") is None
    line = memory.too_little("it", 2**60, "buy more")
    assert line.startswith("it takes 1,073,741,824.0 GiB, and ")
    assert line.endswith("GiB of the device are free: buy more")


def test_a_container_s_limit_counts_without_the_pages_of_files(tmp_path, monkeypatch):
    for name, text in (("max", "3000"), ("current", "2000"), ("stat", "anon 5\ninactive_file 400\n")):
        (tmp_path / f"memory.{name}").write_text(text)
    monkeypatch.setattr(memory, "CGROUPS", ((tmp_path / "memory.max", tmp_path / "memory.current"),))
    assert memory.free_on_host() == 1400
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.free_on_host() > 2**26


def test_a_program_takes_its_temporaries_and_results():
    shape = jax.ShapeDtypeStruct((1000, 1000), jnp.float32)
    compiled = jax.jit(lambda x: (jnp.sin(x @ x) @ x, x + 1)).lower(shape).compile()
    assert 8_000_000 <= memory.program_bytes(compiled) < 40_000_000


@pytest.mark.parametrize(
    "error", [MemoryError("Unable to allocate 3. GiB"), RuntimeError("RESOURCE_EXHAUSTED: Out of memory\nallocating")]
)
def test_running_out_of_memory_is_told_in_a_line_with_what_helps(error):
    line = memory.out_of_memory(error)
    assert line.startswith("out of memory on cpu (")
    assert "config.batch_size" in line
    assert "\n" not in line
    assert memory.out_of_memory(ValueError("x")) is None


def test_a_network_that_does_not_fit_is_refused_before_it_is_made(tmp_path):
    config = importlib.import_module("configs.digits_ct").get_config()
    config.net.width, config.net.depth = 16384, 20
    with pytest.raises(ConfigError, match=r"training 10,.* parameters \(GiB: state .*make the network smaller"):
        train.run(config.to_dict(), tmp_path / "run")
    assert not (tmp_path / "run").exists()

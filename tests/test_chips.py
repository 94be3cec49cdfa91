"""The table of chips, by the names that JAX gives its devices, and speeds on them."""

import jax
import pytest

from cmjax.system.chips import CHIPS, GIB, chip_of
from cmjax.system.mesh import make_mesh
from cmjax.training.loop import Speed, speed_on
from cmjax.training.step import CompiledStep


@pytest.mark.parametrize(
    ("device_kind", "name"),
    [
        ("TPU v5", "TPU v5p"),
        ("TPU v5 lite", "TPU v5e"),
        ("TPU v6 lite", "TPU v6e"),
        ("NVIDIA H100 80GB HBM3", "H100 SXM"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA H200", "H200 SXM"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA L40", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("TPU v7", None),
        ("cpu", None),
    ],
)
def test_a_device_is_known_by_the_longest_name_that_it_begins_with(device_kind, name):
    chip = chip_of(device_kind)
    assert (chip and chip.name) == name


def test_figures_are_in_bytes_and_operations_per_second():
    for chip in CHIPS.values():
        assert 2e13 < chip.peak_flops < 2e15
        assert 8 * GIB <= chip.hbm_bytes <= 192 * GIB
        assert 50 < chip.peak_flops / chip.hbm_bandwidth < 600  # operations for each byte that comes from memory
        assert chip.link_bandwidth is None or 3 < chip.hbm_bandwidth / chip.link_bandwidth < 15


def test_speeds_are_of_all_chips_of_each_and_of_the_peak_where_that_is_known():
    known = Speed(batch_size=512, chips=8, chip_flops=2e12, peak_flops=197e12)
    assert known.at(0.05) == {
        "images_per_second": pytest.approx(10_240),
        "images_per_second_per_chip": pytest.approx(1_280),
        "peak_fraction": pytest.approx(0.203, abs=5e-4),
    }
    step = CompiledStep(None, make_mesh(), flops=8e9)
    here = speed_on(make_mesh(), step, batch_size=16)
    assert here == Speed(16, jax.device_count(), 8e9 / jax.device_count(), None)

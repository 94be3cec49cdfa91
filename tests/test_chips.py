"""The table of chips, by the names that JAX gives its devices."""

import pytest

from cmjax.machine.chips import CHIPS, GIB, chip_of


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

"""Computes speeds from the seconds of a step: of all devices, of each, and as a fraction of the chips' peak."""

from dataclasses import dataclass

from jax.sharding import Mesh

from cmjax.system.chips import chip_of
from cmjax.training.step import CompiledStep


@dataclass(frozen=True)
class Speed:
    """Converts seconds into speeds.

    batch_size: images of a step. chips: devices that share it. chip_flops: operations of one device in a step.
    peak_flops: the published bfloat16 operations per second of a device; None where there is no such number.
    """

    batch_size: int
    chips: int
    chip_flops: float
    peak_flops: float | None

    def at(self, step_seconds: float) -> dict[str, float]:
        """`images_per_second`, `images_per_second_per_chip` and, of a chip that is known, `peak_share`, 0 to 1."""
        rate = self.batch_size / step_seconds
        speeds = {"images_per_second": rate, "images_per_second_per_chip": rate / self.chips}
        if self.peak_flops:
            speeds["peak_share"] = self.chip_flops / step_seconds / self.peak_flops
        return speeds


def speed_on(mesh: Mesh, train_step: CompiledStep, *, batch_size: int) -> Speed:
    """The speed of a train step on the chips of a mesh."""
    chip = chip_of(mesh.devices.flat[0].device_kind)
    return Speed(batch_size, mesh.size, train_step.flops / mesh.size, chip and chip.peak_flops)

"""How fast steps go: for all devices, for each, and as a fraction of what the chips could do."""

from dataclasses import dataclass

from jax.sharding import Mesh

from cmjax.system.chips import chip_of
from cmjax.training.step import CompiledStep


@dataclass(frozen=True)
class Speed:
    """What turns seconds into speeds.

    batch_size: images of a step. chips: devices that fraction it. chip_flops: operations of one of them in a step.
    peak_flops: those it could do in a second, in bfloat16; None where nobody has published it, as of CPUs.
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

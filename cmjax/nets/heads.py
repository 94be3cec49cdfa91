"""The learned loss weight: a small function of the noise level, trained with the network and unused in sampling."""

import flax.linen as nn
from jaxtyping import Array, Float

from cmjax.nets.magnitude import Fourier, MPLinear


class WeightHead(nn.Module):
    """w(c_noise) = a·Fourier(c_noise) + b: the log variance u of EDM2's loss, the w of sCM's.

    features: of c_noise; the published networks have 128.
    normalized: EDM2's form, whose a has norm 1 and whose b is absent; otherwise w starts at zero.
    [Karras et al. 2024, eq. 21; Lu & Song 2025, eq. 8]
    """

    features: int = 128
    normalized: bool = False

    @nn.compact
    def __call__(self, c_noise: Float[Array, " b"]) -> Float[Array, " b"]:
        waves = Fourier(self.features, name="fourier")(c_noise)
        if self.normalized:
            return MPLinear(1, name="linear")(waves)[:, 0]
        return nn.Dense(1, kernel_init=nn.initializers.zeros, name="linear")(waves)[:, 0]

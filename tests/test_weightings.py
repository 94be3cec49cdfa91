"""Loss weights by their formulas."""

import jax.numpy as jnp
import numpy as np

from cmjax.core import weightings
from cmjax.core.preconditioning import edm

T, R = np.array([0.002, 0.5, 1.0, 3.0, 80.0]), np.array([0.001, 0.4, 0.1, 2.0, 0.0])


def test_weights_are_their_formulas():
    expected = {
        "uniform": np.ones(5),
        "inverse_gap": 1 / (T - R),
        "snr": T**-2,
        "snr_plus_one": T**-2 + 1,
        "truncated_snr": np.where(T < 1, T**-2, 1),
    }
    for name, weights in expected.items():
        ours = getattr(weightings, name)(jnp.asarray(T), jnp.asarray(R))
        np.testing.assert_allclose(ours, weights, rtol=1e-6, err_msg=name)


def test_karras_weight_undoes_c_out():
    for sigma_data in (0.5, 2.0):
        c_out = edm(jnp.asarray(T), sigma_data=sigma_data).c_out
        ours = weightings.karras(jnp.asarray(T), jnp.asarray(R), sigma_data=sigma_data)
        np.testing.assert_allclose(ours * c_out**2, 1, rtol=1e-6)

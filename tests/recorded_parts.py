"""What the tests of peers' networks share: quick compilation, layouts, and errors by the largest element."""

from functools import partial

import jax
import numpy as np

quick_jit = partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
)


def nhwc(array):
    return np.moveaxis(array, -3, -1)


def assert_near(actual, expected, tolerance=1e-5):
    """Within a part of the largest element."""
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * np.abs(expected).max())

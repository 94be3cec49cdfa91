"""Keys of samples: those of `jax.random.fold_in`, whatever computes them."""

import jax
import numpy as np
import pytest

from cmjax.generation.keys import keys_of

INDICES = np.array([0, 1, 5, 1000, 2**31 - 1])


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("seed", [0, 1, 2**31 - 1, 2**32 + 5, -3])
def test_keys_are_those_of_fold_in(seed, x64):
    with jax.enable_x64(x64):
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), INDICES)
        np.testing.assert_array_equal(keys_of(seed, INDICES), jax.random.key_data(keys), strict=True)


def test_another_generator_has_its_own_keys():
    with jax.default_prng_impl("rbg"):
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(3), INDICES)
        np.testing.assert_array_equal(keys_of(3, INDICES), jax.random.key_data(keys), strict=True)

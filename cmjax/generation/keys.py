"""The keys of samples: a function of a seed and of a sample's index, computed on the host."""

import jax
import jax.numpy as jnp
import numpy as np

ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
PARITY = 0x1BD11BDA


def keys_of(seed: int, indices: np.ndarray) -> np.ndarray:
    """Computes the data of each sample's key, (n, ...) on the host: a function of the seed and the sample's index.

    They are those of `jax.random.fold_in`. Those of JAX's default generator are computed by numpy, since XLA takes half
    a second to compile them.
    """
    if jax.config.jax_default_prng_impl == "threefry2x32":  # pyright: ignore[reportAttributeAccessIssue]
        return fold_in(seed, indices)
    # fold_in, not split: a key does not depend on how many are asked for
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), jnp.asarray(indices))
    return np.asarray(jax.random.key_data(keys))


def fold_in(seed: int, indices: np.ndarray) -> np.ndarray:
    """Computes the data (n, 2), uint32, of `fold_in(key(seed), index)` by Threefry-2x32.   [Salmon et al. 2011]"""
    # JAX keeps 32 bits of a seed where it has no 64-bit numbers
    high = int(seed) >> 32 if jax.config.read("jax_enable_x64") else 0
    first, second = (np.array([word & 0xFFFFFFFF], np.uint32) for word in (high, int(seed)))
    words = (first, second, first ^ second ^ np.uint32(PARITY))
    # the block that is encrypted is (0, index)
    x, y = words[0] + np.zeros(len(indices), np.uint32), words[1] + np.asarray(indices).astype(np.uint32)
    for i in range(5):
        for turn in ROTATIONS[i % 2]:
            x = x + y
            y = x ^ (y << turn | y >> (32 - turn))
        x, y = x + words[(i + 1) % 3], y + words[(i + 2) % 3] + np.uint32(i + 1)
    return np.stack([x, y], axis=1)

"""Consistency training on signals of your own, with an MLP; here on sums of two sines of 64 values, six minutes.

The data, 4,000 signals of standard deviation 0.5, are made by

    python -c "
    import numpy as np
    rng = np.random.default_rng(0)
    frequency, phase = rng.uniform((1, 3), (2, 6), (4000, 2)), rng.uniform(0, 2 * np.pi, (4000, 2))
    waves = np.sin(2 * np.pi * frequency[:, None] * np.linspace(0, 1, 64)[:, None] + phase[:, None])
    np.savez('sines.npz', signals=(waves @ (0.6, 0.37))[..., None].astype(np.float32))"

and the run by

    python -m cmjax.main --config=configs/signals_ct.py --config.data.data_dir=sines.npz

Objective, network and optimizer are digits_ct's: a signal of 64 values is as large as an 8×8 digit.
"""

from configs import digits_ct


def get_config():
    config = digits_ct.get_config()
    config.data.name, config.data.data_dir = "signals", "sines.npz"
    return config

"""iMF: MeanFlow with the derivative along the network's own velocity.   [Geng et al. 2025, iMF]

python -m cmjax.main --config=configs/digits_imf.py

Times and network are digits_meanflow's, the distance is the adaptive one. Of the released code's further details
(guidance, a second head, a network given t - s alone) it has none.
"""

from configs import digits_meanflow


def get_config():
    config = digits_meanflow.get_config()
    config.objective.name, config.objective.distance = "imf", "adaptive(p=0.75, c=0.001)"
    del config.objective.blend
    return config

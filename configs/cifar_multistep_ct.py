"""Multistep CT on CIFAR-10 with two segments: two DDIM steps make a sample.   [Heek et al. 2024]

    python -m cmjax.main --config=configs/cifar_multistep_ct.py --config.data.data_dir=~/tensorflow_datasets

Cost: 400,000 updates of 1,024 images. The paper has no CIFAR-10: network, grid, distance and weight are cifar_ict's.
"""

from configs import cifar_ict, common


def get_config(variant: str = ""):
    config = cifar_ict.get_config(variant)
    config.objective.update(
        {
            "name": "multistep_ct",
            "segments": 2,
            "distance": "pseudo_huber(c=0.0299)",
            "weight": "inverse_gap",
            "target": "stop_gradient",
        }
    )
    samples = common.few_steps(every=config.samples.every, times=(80.0, 2.5153))  # the segments' upper edges
    config.samples = common.ConfigDict({**samples, "num": config.samples.num})
    return config

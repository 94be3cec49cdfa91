"""iMF on CIFAR-10: MeanFlow with the derivative along the network's own velocity.   [Geng et al. 2025, iMF]

    python -m cmjax.main --config=configs/cifar_imf.py --config.data.data_dir=~/tensorflow_datasets

Cost: 800,000 updates of 1,024 images. The paper trains on ImageNet alone, with classes, and has no figure for CIFAR-10.
Of its released code are the times, with exactly half of the batch at s = t, the distance, the second head for the
velocity, and that the network is given t - s alone; there is no guidance without classes. Network, augmentation and
optimizer are cifar_meanflow's; the code's head has layers of its own, here it is the last layer's other half.
"""

from configs import cifar_meanflow


def get_config(variant: str = ""):
    config = cifar_meanflow.get_config(variant)
    config.objective.update(
        {
            "name": "imf",
            "times": "logit_normal(mean=-0.4, std=1.0)",
            "times_s": "logit_normal(mean=-0.4, std=1.0)",
            "pairs": "sorted(apart=0.5, exact=True)",
            "distance": "adaptive(p=1.0, c=0.01)",
        }
    )
    del config.objective.blend
    config.model.preconditioning = "linear_gap"
    config.net.two_times, config.net.velocity_head = False, True
    return config

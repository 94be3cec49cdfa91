"""iCT on CIFAR-10: consistency training with no teacher, no LPIPS and no average as the target, NCSN++.

    python -m cmjax.main --config=configs/cifar_ict.py --config.data.data_dir=~/tensorflow_datasets

[Song & Dhariwal 2024, table 2 and app. C] Cost: 400,000 updates of 1,024 images. Published: FID 2.83 in one evaluation,
2.46 in two; 2.51 and 2.24 with twice the depth, --config.net.blocks=8 (iCT-deep). All as in the paper, whose distance
and weight are the method's own.
"""

from configs import cifar_ct, common


def get_config(variant: str = ""):
    config = cifar_ct.get_config()
    config.steps = 400_000
    config.batch_size = 1024
    config.net.dropout, config.net.fourier_scale = 0.3, 0.02
    config.objective = common.ConfigDict(
        {
            "name": "ict",
            "curriculum": "doubling(s0=10, s1=1280)",
            "intervals": "lognormal(mean=-1.1, std=2.0)",
        }
    )
    config.optimizer = common.optimizer("radam", learning_rate=1e-4, averages=("ema(rate=0.99993, corrected=False)",))
    if variant == "tiny":
        config.objective.curriculum = "doubling(s0=10, s1=40)"  # eight stages need eight steps
    return common.variant(config, variant)

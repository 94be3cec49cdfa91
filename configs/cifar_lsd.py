"""LSD on CIFAR-10: a flow map that is distilled from itself, from data alone.   [Boffi et al. 2025, self-distillation]

    python -m cmjax.main --config=configs/cifar_lsd.py --config.data.data_dir=~/tensorflow_datasets

Cost: 400,000 updates of 512 images. Published: FID 3.33 in eight evaluations. Times, the three quarters of the batch
that are flow matching, the learned weight, noise of the std of the data, network, learning rate and average are the
authors'. Their network has dropout in flow matching alone, here in both; the second time enters by an embedding that
starts at zero, where theirs sums two of a kind. For a few steps on a laptop: --config=configs/cifar_lsd.py:tiny.
"""

from configs import common


def get_config(variant: str = ""):
    config = common.base()
    config.steps = 400_000
    config.batch_size = 512
    config.data.name = "cifar10"
    config.model = common.linear_model("linear_flow", path="linear(noise_scale=0.5)")
    config.net = common.edm2(
        channels=128, channel_mult=(2, 2, 2), blocks=4, attention_resolutions=(16,), dropout=0.13,
        two_times=True, weight_head=128, class_conditional=False,
    )  # fmt: skip
    config.objective = common.ConfigDict(
        {
            "name": "lsd",
            "times": "uniform(rho=1.0)",
            "times_s": "uniform(rho=1.0)",
            "pairs": "sorted(apart=0.25, exact=True)",
            "distance": "l2",
            "learned_weight": True,
            "target": "stop_gradient",
        }
    )
    config.optimizer = common.optimizer(
        "adam",
        learning_rate=1e-2,
        schedule="inverse_sqrt(flat_steps=35000, warmup_mimg=0.0)",
        clip_norm=1.0,
        averages=("ema(rate=0.9999, corrected=False)",),
    )
    config.checkpoint.save_every = 5000
    config.samples = common.flow_map_samples(every=5000, times=tuple(i / 8 for i in range(8, 0, -1)))
    return common.variant(config, variant)

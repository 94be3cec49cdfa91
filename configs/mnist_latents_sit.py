"""A flow-matching teacher of MNIST's latents, a small transformer: SiT in little.   [Ma et al. 2024, SiT]

    python examples/train_autoencoder.py --data=~/tensorflow_datasets --out=autoencoder
    python -m cmjax.main --mode=encode --config.data.name=mnist --config.data.data_dir=~/tensorflow_datasets \\
      --autoencoder=autoencoder --out=latents
    python -m cmjax.main --config=configs/mnist_latents_sit.py --config.data.data_dir=latents

The latents are 7×7×4, a token for each position. As in the paper the loss is that of the velocity on the linear path,
at uniform times; a tenth of the labels is left out, so that samples can be guided. docs/howto/latents.md has what this
recipe and its students reach.
"""

from configs import common


def get_config():
    config = common.base()
    config.steps, config.batch_size = 800, 64
    config.data.name, config.data.label_dropout = "latents", 0.1
    config.model = common.linear_model("linear", t_min=0.001)
    config.net = common.dit(patch=1, width=96, depth=4, heads=4, time_scale=8.0, class_conditional=True)
    config.objective = common.ConfigDict({"name": "denoising", "times": "uniform(rho=1.0)", "weight": "inverse_c_out"})
    config.optimizer = common.optimizer(
        "muon", learning_rate=1e-2, schedule="cosine(warmup_steps=50)", averages=("ema(rate=0.99)",)
    )
    config.checkpoint.save_every = 200
    config.samples = common.teacher_samples(every=0)
    config.samples.guidance = 1.5
    return config

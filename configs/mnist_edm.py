"""An EDM diffusion model of MNIST: the teacher that mnist_cd distils, a U-Net of 0.3 million parameters.

    python -m cmjax.main --config=configs/mnist_edm.py --config.data.data_dir=~/tensorflow_datasets

ln σ ~ N(−0.4, 1.4²), as in digits_edm: the strokes of a digit are decided at larger noise than those of a photograph.
"""

from configs import common, mnist_ct


def get_config():
    config = mnist_ct.get_config()
    config.steps = 3000
    config.batch_size = 32
    config.net = common.ddpmpp(channels=16, channel_mult=(1, 2, 2), blocks=1, attention_resolutions=(7,))
    config.model.preconditioning = "edm"
    config.objective = common.ConfigDict(
        {"name": "denoising", "times": "lognormal(mean=-0.4, std=1.4)", "weight": "karras"}
    )
    config.optimizer.learning_rate = 1e-3
    config.samples = common.teacher_samples(every=1000)
    return config

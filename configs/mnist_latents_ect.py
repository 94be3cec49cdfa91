"""ECT of MNIST's latents: the teacher of mnist_latents_sit, tuned into a consistency model.   [Geng et al. 2024]

    python -m cmjax.main --config=configs/mnist_latents_sit.py --config.data.data_dir=latents
    python -m cmjax.main --config=configs/mnist_latents_ect.py --config.data.data_dir=latents

The student's path is EDM's and the teacher's is the linear one: the preconditioning `linear_denoiser` makes the
teacher's velocity the student's first denoiser. The std of the latents is 1, twice that of the paper's pixels, and so
are the noise levels. As in digits_ect, three stages with q = 3.
"""

from configs import common, mnist_latents_sit


def get_config():
    config = mnist_latents_sit.get_config()
    config.steps = 600
    config.init_from = "runs/mnist_latents_sit"
    config.data.label_dropout = 0.0
    config.model = common.ve_model("linear_denoiser", sigma_data=1.0)
    config.objective = common.ConfigDict(
        {
            "name": "ect",
            "times": "lognormal(mean=0.7, std=1.8)",
            "stages": "equal(count=3)",
            "gap": "shrinking(q=3)",
            "distance": "pseudo_huber(c=0.3)",
            "weight": "inverse_gap",
            "target": "stop_gradient",
        }
    )
    config.optimizer.learning_rate = 4e-3
    config.samples = common.consistency_samples(every=0, times=(80.0, 1.6))
    return config

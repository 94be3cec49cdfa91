"""sCD of MNIST's latents: the guided teacher of mnist_latents_sit in one evaluation.   [Lu & Song 2025]

    python -m cmjax.main --config=configs/mnist_latents_sit.py --config.data.data_dir=latents
    python -m cmjax.main --config=configs/mnist_latents_scm_cd.py --config.data.data_dir=latents

The paper's path is TrigFlow's; here it is the teacher's own, the linear one, so that the student starts as the teacher.
The scale of the teacher's guidance is an input of the student.
"""

from configs import common, mnist_latents_sit


def get_config():
    config = mnist_latents_sit.get_config()
    config.steps = 240
    config.init_from = "teacher"
    config.data.label_dropout = 0.0
    config.model = common.linear_model("linear")
    config.net.guided = True
    config.objective = common.ConfigDict(
        {
            "name": "scm_cd",
            "teacher": "runs/mnist_latents_sit",
            "guidance": (1.0, 3.0),
            "times": "uniform(rho=1.0)",
            "warmup": "ramp(length=80)",
            "normalize": "unit_norm",
            "learned_weight": False,
        }
    )
    config.optimizer.learning_rate = 4e-3
    config.checkpoint.save_every = 100
    config.samples = common.consistency_samples(every=0, times=(1.0, 0.5))
    config.samples.guidance = 1.5
    return config

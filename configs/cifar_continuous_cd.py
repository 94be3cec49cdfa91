"""The continuous-time consistency distillation of the first paper, on CIFAR-10.   [Song et al. 2023, app. B]

    python -m cmjax.main --config=configs/cifar_edm.py --config.data.data_dir=~/tensorflow_datasets
    python -m cmjax.main --config=configs/cifar_continuous_cd.py --config.data.data_dir=~/tensorflow_datasets

Cost: 800,000 updates of 512 images. With stop-gradient the paper starts from the teacher at the learning rate 5e-6, as
here. Its form without takes another rate, 1e-3: --config.objective.stop_gradient=False
--config.objective.distance=norm --config.optimizer.rule=radam --config.optimizer.learning_rate=1e-3 (norm is what the
released code calls l2). LPIPS is a distance too. The rest is as in cifar_continuous_ct; cifar_scm_cd is the same limit
made stable.
"""

from configs import cifar_continuous_ct


def get_config(variant: str = ""):
    config = cifar_continuous_ct.get_config(variant)
    config.objective.name, config.objective.teacher = "continuous_cd", config.init_from
    config.objective.stop_gradient = True
    return config

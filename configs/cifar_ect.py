"""ECT on CIFAR-10: the teacher of cifar_edm, tuned into a consistency model.   [Geng et al. 2024]

    python -m cmjax.main --config=configs/cifar_edm.py --config.data.data_dir=~/tensorflow_datasets
    python -m cmjax.main --config=configs/cifar_ect.py --config.data.data_dir=~/tensorflow_datasets

Cost: 200,000 updates of 128 images, a stage every 25,000. Published: FID 3.86 in one evaluation, 2.15 in two, and 3.60
and 2.11 after twice as many updates, from NVIDIA's DDPM++ and without mirrored images; here it starts from the NCSN++
that cifar_cd distils, as good a teacher.
The paper's hour on one A100 (FID 2.73 in two): --config.steps=8000 --config.objective.stages="equal(count=1)"
--config.objective.gap="shrinking(q=256)" --config.optimizer.averages="ema(rate=0.9993, corrected=False)".
"""

from configs import common


def get_config(variant: str = ""):
    config = common.base()
    config.steps = 200_000
    config.batch_size = 128
    config.init_from = "runs/cifar_edm-tiny" if variant == "tiny" else "runs/cifar_edm"
    config.data.name = "cifar10"
    config.net = common.ncsnpp(dropout=0.2, augment_dim=9)  # the teacher's, to start from
    config.model.preconditioning = "edm"
    config.objective = common.ConfigDict(
        {
            "name": "ect",
            "times": "lognormal(mean=-1.1, std=2.0)",
            "stages": "equal(count=8)",
            "gap": "shrinking(q=2)",
            "distance": "pseudo_huber(c=0.0)",
            "weight": "inverse_gap",
            "target": "stop_gradient",
        }
    )
    config.optimizer = common.optimizer("radam", learning_rate=1e-4, averages=("ema(rate=0.9999, corrected=False)",))
    config.checkpoint.save_every = 5000
    config.samples = common.consistency_samples(every=5000, times=(80.0, 0.821))
    return common.variant(config, variant)

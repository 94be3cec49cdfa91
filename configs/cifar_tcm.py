"""TCM's second stage on CIFAR-10: noise levels from 1 on, from cifar_ect, which is its first.   [Lee et al. 2025]

    python -m cmjax.main --config=configs/cifar_edm.py --config.data.data_dir=~/tensorflow_datasets
    python -m cmjax.main --config=configs/cifar_ect.py --config.data.data_dir=~/tensorflow_datasets
    python -m cmjax.main --config=configs/cifar_tcm.py --config.data.data_dir=~/tensorflow_datasets

Cost: 400,000 updates of 1,024 images, a length chosen here: the released commands name none but an upper bound.
Published: FID 2.46 in one evaluation, 2.05 in two, from a DDPM++ and a longer first stage, of 512 images with c = 1e-8.
The gap is the released code's after a first stage of 250,000 updates or more, t·0.001·(1 + 8σ(−t)).
"""

from configs import cifar_ect, common


def get_config(variant: str = ""):
    config = cifar_ect.get_config()
    first = "runs/cifar_ect-tiny" if variant == "tiny" else "runs/cifar_ect"
    config.steps = 400_000
    config.batch_size = 1024
    config.init_from = first
    config.objective = common.ConfigDict(
        {
            "name": "tcm",
            "first_stage": first,
            "boundary": 1.0,
            "fraction": 0.25,
            "boundary_weight": 0.1,
            "times": "student(df=0.01, scale=0.2, highest=80.0)",
            "stages": "equal(count=1)",
            "gap": "shrinking(q=1000)",
            "distance": "pseudo_huber(c=1e-8)",
            "weight": "inverse_gap",
            "target": "stop_gradient",
        }
    )
    config.optimizer = common.optimizer("radam", learning_rate=5e-5, averages=("ema(rate=0.9999, corrected=False)",))
    config.samples.times = (80.0, 1.0)
    return common.variant(config, variant)

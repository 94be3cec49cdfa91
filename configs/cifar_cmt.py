"""CMT on CIFAR-10: every state of the teacher's trajectories is mapped to its end, before ECT.   [Hu et al. 2025]

    python -m cmjax.main --config=configs/cifar_edm.py --config.data.data_dir=~/tensorflow_datasets
    python -m cmjax.main --config=configs/cifar_cmt.py --config.data.data_dir=~/tensorflow_datasets

Cost: 300,000 updates of 128 states, those of 8 trajectories of 16 steps. ECT follows, 100,000 updates of 128 images
with the gap of its last stage from the start:
    python -m cmjax.main --config=configs/cifar_ect.py --config.data.data_dir=~/tensorflow_datasets \\
        --config.init_from=runs/cifar_cmt --config.steps=100000 --config.objective.stages="equal(count=1)" \\
        --config.objective.gap="shrinking(q=4096)"
Published after both: FID 1.97 in two evaluations, from NVIDIA's DDPM++; here the teacher is the NCSN++ of cifar_edm.
LPIPS needs two files of weights (see docs/howto/data.md), and compares the images at their size. `:tiny` uses l2.
"""

from configs import cifar_ect, common


def get_config(variant: str = ""):
    config = cifar_ect.get_config()
    config.steps = 300_000
    config.init_from = "teacher"
    config.objective = common.ConfigDict(
        {
            "name": "cmt",
            "teacher": "runs/cifar_edm-tiny" if variant == "tiny" else "runs/cifar_edm",
            "trajectory": "dpmpp_3m",
            "grid": "logarithmic(steps=4)" if variant == "tiny" else "logarithmic(steps=16)",
            "distance": common.LPIPS.replace(")", ", resize=32)"),
        }
    )
    config.optimizer = common.optimizer(
        "radam", learning_rate=2e-4, schedule="linear", averages=("ema(rate=0.999, corrected=False)",)
    )
    return common.variant(config, variant)

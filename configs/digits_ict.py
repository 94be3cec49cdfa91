"""iCT as published, but for N, which ends at 41 as in digits_ct.   [Song & Dhariwal 2024]

python -m cmjax.main --config=configs/digits_ict.py
"""

from configs import common, digits_ct


def get_config():
    config = digits_ct.get_config()
    config.objective = common.ConfigDict(
        {
            "name": "ict",
            "curriculum": "doubling(s0=10, s1=40)",
            "intervals": "lognormal(mean=-1.1, std=2.0)",
        }
    )
    return config

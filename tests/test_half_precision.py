"""That a run in bfloat16 reaches the metrics of the same run in float32."""

import json

import pytest

from cmjax.cli import train
from configs import digits_ct


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_as_a_user")
def test_digits_in_bfloat16_are_as_good_as_in_float32(tmp_path):
    found = {}
    for dtype in ("float32", "bfloat16"):
        config = digits_ct.get_config()
        config.net.dtype, config.steps = dtype, 3000
        config.samples.every, config.log.tensorboard, config.report = 0, False, False
        train.run(config.to_dict(), tmp_path / dtype)
        found[dtype] = json.loads((tmp_path / dtype / "summary.json").read_text())["metrics"]
    for sampler in ("1-step", "2-step"):
        full, half = (found[dtype][sampler] for dtype in ("float32", "bfloat16"))
        assert full["fd"] < 0.75 * found["float32"]["fitted Gaussian"]["fd"], found
        assert half["fd"] < 1.15 * full["fd"], found
        assert half["recall_pixels"] > full["recall_pixels"] - 0.05, found

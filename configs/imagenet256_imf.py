"""iMF-B/2 on ImageNet-256's latents: the scale and the times of guidance are inputs.   [Geng et al. 2025, iMF]

    python -m cmjax.main --config=configs/imagenet256_imf.py --config.data.data_dir=latents

Its latents are those of imagenet256_sit, encoded by sd-vae-ft-mse. Variant `:tiny`. Cost: 800,000 updates of 1,024
images (640 epochs), for a pod. Published, of sd-vae-ft-mse, the authors' statistics and JAX's Inception: FID 3.39 in
one evaluation. Network, times, guidance and optimizer are the released code's for B/2.
"""

from configs import common, imagenet256_meanflow


def get_config(variant: str = ""):
    if variant not in ("", "tiny"):
        raise ValueError(f"the recipe has the variant :tiny alone, not :{variant}")
    config = imagenet256_meanflow.get_config(variant)
    tiny = variant == "tiny"
    config.model = common.linear_model("linear_gap")
    config.objective.update({"name": "imf", "pairs": "sorted(apart=0.5, exact=True)", "keeps_label": True})
    del config.objective.blend, config.objective.guidance_interval
    with config.ignore_type():
        config.objective.guidance = "power(low=1.0, high=8.0, power=1.0)"
    config.objective.guidance_interval = "drawn"
    config.samples.guidance, config.samples.guidance_interval = 7.5, (0.4, 0.65)
    inputs = {"guided": True, "guided_interval": True, "velocity_head": True, "class_conditional": True}
    size = {"patch": 1, "width": 32, "depth": 2, "heads": 2, "head_depth": 1} if tiny else {}
    config.net = common.network("imf_dit", **inputs, **size)
    if not tiny:
        config.steps, config.batch_size = 800_000, 1024
        config.optimizer.schedule = "constant(warmup_steps=12510)"  # 10 epochs
    return config

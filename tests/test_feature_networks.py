"""The networks whose features metrics compare, against PyTorch's graphs with the same random weights; their readers.

What needs PyTorch and torch-fidelity skips where they are missing: pip install 'cmjax[torch]'.
"""

import importlib.util
import pickle
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from cmjax.interop.features import load_clip, load_dinov2, load_inception
from cmjax.nets.features import inception, resize, vit

TINY = {"side": 28, "patch": 14, "width": 32, "depth": 2, "heads": 4}
IMAGES = np.random.default_rng(0).integers(0, 256, (2, 32, 40, 3), np.uint8)


def random_inception(names, seed=0):
    """Arrays as the published files have them, whose activations neither grow nor die."""
    rng, arrays = np.random.default_rng(seed), {}
    for place, leaf in flatten_dict(inception.parameter_shapes()).items():
        *module, kind = place
        key = ".".join(module)
        if kind == "kernel" and len(leaf.shape) == 4:
            fan_in = np.prod(leaf.shape[:3])
            arrays[f"{key}.conv.{names['kernel']}"] = rng.normal(size=leaf.shape) * (2 / fan_in) ** 0.5
            for name, low, high in (("scale", 0.8, 1.2), ("bias", -0.2, 0.2), ("mean", -0.2, 0.2), ("var", 0.5, 1.5)):
                arrays[f"{key}.bn.{names[name]}"] = rng.uniform(low, high, leaf.shape[-1])
        elif kind == "kernel":
            arrays[f"{key}.{names['kernel']}"] = rng.normal(size=leaf.shape) * 0.02
    return {key: array.astype(np.float32) for key, array in arrays.items()}


TORCH = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
FLAX = {name: name for name in TORCH}


def test_inception_of_a_pickle_of_numpy_arrays(tmp_path):
    flat = random_inception(FLAX)
    nested: dict = {}
    for key, array in flat.items():
        *parents, last = key.split(".")
        node = nested
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = array
    (tmp_path / "weights.pickle").write_bytes(pickle.dumps(nested))
    params = load_inception(tmp_path / "weights.pickle")
    gain = flat["Mixed_7c.branch_pool.bn.scale"] / np.sqrt(flat["Mixed_7c.branch_pool.bn.var"] + 0.001)
    kernel = params["Mixed_7c"]["branch_pool"]["kernel"]
    np.testing.assert_allclose(kernel, flat["Mixed_7c.branch_pool.conv.kernel"] * gain, rtol=1e-6)
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, inception.parameter_shapes())
    del nested["Mixed_5b"]["branch1x1"]
    (tmp_path / "weights.pickle").write_bytes(pickle.dumps(nested))
    with pytest.raises(ValueError, match=r"weights.pickle has no Mixed_5b\.branch1x1"):
        load_inception(tmp_path / "weights.pickle")


def test_tf1_bilinear_repeats_the_last_pixel():
    rows = resize.tf1_bilinear(2, 4)
    np.testing.assert_array_equal(rows, [[1, 0], [0.5, 0.5], [0, 1], [0, 1]])


@pytest.fixture
def torch_fidelity(monkeypatch):
    """Its Inception without the rest of the package, which needs torchvision."""
    pytest.importorskip("torch")
    spec = importlib.util.find_spec("torch_fidelity")
    if spec is None:
        pytest.skip("torch-fidelity is not installed")
    package = types.ModuleType("torch_fidelity")
    package.__path__ = list(spec.submodule_search_locations or ())
    monkeypatch.setitem(sys.modules, "torch_fidelity", package)
    return importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")


def test_inception_is_torch_fidelitys(tmp_path, torch_fidelity):
    import torch

    arrays = random_inception(TORCH)
    theirs = {
        key: torch.tensor(a.transpose(3, 2, 0, 1) if a.ndim == 4 else a.T if a.ndim == 2 else a)
        for key, a in arrays.items()
    }
    path = str(tmp_path / "weights.pth")
    torch.save(theirs | {"fc.bias": torch.zeros(1008)}, path)
    names = ["2048", "logits_unbiased"]
    network = torch_fidelity.FeatureExtractorInceptionV3("x", names, feature_extractor_weights_path=path).eval()
    spatial = []
    network.Mixed_6d.branch1x1.register_forward_hook(lambda module, inputs, output: spatial.append(output))
    with torch.no_grad():
        features, logits = network(torch.tensor(IMAGES.transpose(0, 3, 1, 2)))
    ours = jax.jit(inception.Inception().apply)({"params": load_inception(path)}, jnp.asarray(IMAGES))
    expected = features.numpy()
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(ours["features"], expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    np.testing.assert_allclose(ours["probabilities"], torch.softmax(logits, -1).numpy(), rtol=1e-4)
    first = spatial[0].numpy().transpose(0, 2, 3, 1)[..., :7].reshape(2, -1)
    np.testing.assert_allclose(ours["spatial"], first, rtol=1e-4, atol=1e-4 * np.abs(first).max())


def test_resizing_is_pytorchs():
    torch = pytest.importorskip("torch")
    tensor = torch.tensor(IMAGES.transpose(0, 3, 1, 2)).float()

    def theirs(**choices):
        return torch.nn.functional.interpolate(tensor, mode="bicubic", **choices).numpy().transpose(0, 2, 3, 1)

    ours = vit.clip_inputs(jnp.asarray(IMAGES), 48)
    mean, std = np.array(vit.CLIPS, np.float32)
    np.testing.assert_allclose(ours, (theirs(size=(48, 48)) / 255 - mean) / std, atol=1e-4)
    mean, std = np.array(vit.IMAGENET, np.float32)
    for side in (24, 56):
        ours = vit.dinov2_inputs(jnp.asarray(IMAGES), side)
        expected = (theirs(size=(side, side), antialias=True) / 255 - mean) / std
        np.testing.assert_allclose(ours, expected, atol=1e-4)


class _Random:
    """Torch tensors of these shapes, drawn as they are asked for, and kept by key."""

    def __init__(self, torch):
        self.torch, self.arrays = torch, {}
        self.generator = torch.Generator().manual_seed(0)

    def __call__(self, key, *shape):
        drawn = self.torch.randn(shape, generator=self.generator) * (1.5 / max(shape[-1], 1)) ** 0.5
        self.arrays[key] = drawn
        return drawn

    def linear(self, x, key, outputs, bias=True):
        weight = self(f"{key}.weight", outputs, x.shape[-1])
        return self.torch.nn.functional.linear(x, weight, self(f"{key}.bias", outputs) if bias else None)

    def norm(self, x, key, eps):
        width = x.shape[-1]
        weight, bias = 1 + 0.1 * self(f"{key}.weight", width), self(f"{key}.bias", width)
        self.arrays[f"{key}.weight"] = weight
        return self.torch.nn.functional.layer_norm(x, (width,), weight, bias, eps)

    def attention(self, x, q, k, v, heads):
        b, n, d = x.shape
        q, k, v = (part.reshape(b, n, heads, d // heads).transpose(1, 2) for part in (q, k, v))
        return self.torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, d)


def test_dinov2_is_the_published_graph(tmp_path):
    torch = pytest.importorskip("torch")
    draw, functional = _Random(torch), torch.nn.functional
    images = torch.randn(2, 3, 28, 28, generator=draw.generator)
    x = functional.conv2d(images, draw("patch_embed.proj.weight", 32, 3, 14, 14), draw("patch_embed.proj.bias", 32), 14)
    x = x.flatten(2).transpose(1, 2)
    table = draw("pos_embed", 1, 1 + 25, 32)
    grid = table[:, 1:].reshape(1, 5, 5, 32).permute(0, 3, 1, 2)
    grid = functional.interpolate(grid, scale_factor=(2.1 / 5, 2.1 / 5), mode="bicubic")
    positions = torch.cat([table[:, :1], grid.permute(0, 2, 3, 1).reshape(1, 4, 32)], 1)
    x = torch.cat([draw("cls_token", 1, 1, 32).expand(2, 1, 32), x], 1) + positions
    for i in range(2):
        key = f"blocks.{i}"
        h = draw.norm(x, f"{key}.norm1", 1e-6)
        q, k, v = draw.linear(h, f"{key}.attn.qkv", 96).chunk(3, -1)
        h = draw.linear(draw.attention(h, q, k, v, 4), f"{key}.attn.proj", 32)
        x = x + draw(f"{key}.ls1.gamma", 32) * h
        h = draw.linear(draw.norm(x, f"{key}.norm2", 1e-6), f"{key}.mlp.fc1", 128)
        x = x + draw(f"{key}.ls2.gamma", 32) * draw.linear(functional.gelu(h), f"{key}.mlp.fc2", 32)
    expected = draw.norm(x, "norm", 1e-6)[:, 0].numpy()
    torch.save(draw.arrays, tmp_path / "dinov2.pth")
    module = vit.ViT(**TINY, eps=1e-6, clip=False)
    ours = jax.jit(module.apply)(
        {"params": load_dinov2(tmp_path / "dinov2.pth", module)}, jnp.asarray(images.numpy().transpose(0, 2, 3, 1))
    )
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)


def test_clip_is_the_published_graph(tmp_path):
    torch = pytest.importorskip("torch")
    draw, functional, root = _Random(torch), torch.nn.functional, "vision_model"
    images = torch.randn(2, 3, 28, 28, generator=draw.generator)
    x = functional.conv2d(images, draw(f"{root}.embeddings.patch_embedding.weight", 32, 3, 14, 14), stride=14)
    token = draw(f"{root}.embeddings.class_embedding", 32).expand(2, 1, 32)
    x = torch.cat([token, x.flatten(2).transpose(1, 2)], 1)
    x = draw.norm(x + draw(f"{root}.embeddings.position_embedding.weight", 5, 32), f"{root}.pre_layrnorm", 1e-5)
    for i in range(2):
        key = f"{root}.encoder.layers.{i}"
        h = draw.norm(x, f"{key}.layer_norm1", 1e-5)
        q, k, v = (draw.linear(h, f"{key}.self_attn.{name}_proj", 32) for name in "qkv")
        x = x + draw.linear(draw.attention(h, q, k, v, 4), f"{key}.self_attn.out_proj", 32)
        h = draw.linear(draw.norm(x, f"{key}.layer_norm2", 1e-5), f"{key}.mlp.fc1", 128)
        x = x + draw.linear(h * torch.sigmoid(1.702 * h), f"{key}.mlp.fc2", 32)
    x = draw.norm(x[:, 0], f"{root}.post_layernorm", 1e-5)
    expected = draw.linear(x, "visual_projection", 16, bias=False).numpy()
    torch.save(draw.arrays | {"text_model.other": torch.zeros(1)}, tmp_path / "clip.bin")
    module = vit.ViT(**TINY, eps=1e-5, clip=True, embedding=16)
    ours = jax.jit(module.apply)(
        {"params": load_clip(tmp_path / "clip.bin", module)}, jnp.asarray(images.numpy().transpose(0, 2, 3, 1))
    )
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)


def test_the_published_vits_have_the_published_sizes():
    count = {module: sum(leaf.size for leaf in jax.tree.leaves(module.parameter_shapes())) for module in
             (vit.DINOV2, vit.CLIP)}  # fmt: skip
    # DINOv2 ViT-L/14 has 304,368,640 with positions for 37·37 patches and a mask token; here 16·16 and none
    assert count[vit.DINOV2] == 304_368_640 - (37**2 - 16**2) * 1024 - 1024
    assert count[vit.CLIP] == 304_293_888

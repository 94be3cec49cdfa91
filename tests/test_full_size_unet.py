"""Stable Diffusion 1.5's U-Net at its full size, with random weights, beside PyTorch's own layers."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

from cmjax.interop.conditional_unet import unet_key, unet_shapes, unet_to_torch
from cmjax.nets.conditional_unet import ConditionalUNet

pytestmark = pytest.mark.slow


class ByTorch:
    """The U-Net by PyTorch's functions on the arrays under diffusers' names."""

    def __init__(self, torch, arrays, *, heads, groups, levels):
        self.torch, self.f, self.arrays = torch, torch.nn.functional, arrays
        self.heads, self.groups, self.levels = heads, groups, levels

    def weights(self, name):
        return self.arrays[f"{name}.weight"], self.arrays.get(f"{name}.bias")

    def conv(self, name, x, stride=1):
        weight, bias = self.weights(name)
        return self.f.conv2d(x, weight, bias, stride, padding=weight.shape[-1] // 2)

    def linear(self, name, x):
        return self.f.linear(x, *self.weights(name))

    def group_norm(self, name, x, eps=1e-5):
        return self.f.group_norm(x, self.groups, *self.weights(name), eps)

    def layer_norm(self, name, x):
        return self.f.layer_norm(x, x.shape[-1:], *self.weights(name))

    def resnet(self, name, x, embedding):
        h = self.conv(f"{name}.conv1", self.f.silu(self.group_norm(f"{name}.norm1", x)))
        h = h + self.linear(f"{name}.time_emb_proj", self.f.silu(embedding))[:, :, None, None]
        h = self.conv(f"{name}.conv2", self.f.silu(self.group_norm(f"{name}.norm2", h)))
        return h + (self.conv(f"{name}.conv_shortcut", x) if f"{name}.conv_shortcut.weight" in self.arrays else x)

    def attention(self, name, h, context):
        q, k, v = (
            self.linear(f"{name}.to_{which}", source).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for which, source in (("q", h), ("k", context), ("v", context))
        )
        out = self.f.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.linear(f"{name}.to_out.0", out)

    def transformer(self, name, x, context):
        if f"{name}.norm.weight" not in self.arrays:
            return x
        h = self.conv(f"{name}.proj_in", self.group_norm(f"{name}.norm", x, 1e-6))
        h, block = h.flatten(2).transpose(1, 2), f"{name}.transformer_blocks.0"
        normed = self.layer_norm(f"{block}.norm1", h)
        h = h + self.attention(f"{block}.attn1", normed, normed)
        h = h + self.attention(f"{block}.attn2", self.layer_norm(f"{block}.norm2", h), context)
        values, gate = self.linear(f"{block}.ff.net.0.proj", self.layer_norm(f"{block}.norm3", h)).chunk(2, -1)
        h = h + self.linear(f"{block}.ff.net.2", values * self.f.gelu(gate))
        return x + self.conv(f"{name}.proj_out", h.transpose(1, 2).reshape(x.shape))

    def __call__(self, x, time, context):
        torch, f = self.torch, self.f
        half, last = len(self.arrays["conv_in.bias"]) // 2, self.levels - 1
        angles = time[:, None] * torch.exp(torch.arange(half) * (-math.log(10_000) / half))[None]
        embedding = torch.cat([torch.cos(angles), torch.sin(angles)], 1)
        embedding = f.silu(self.linear("time_embedding.linear_1", embedding))
        embedding = self.linear("time_embedding.linear_2", embedding)
        h = self.conv("conv_in", x)
        maps = [h]
        for level in range(self.levels):
            name = f"down_blocks.{level}"
            for i in range(2):
                h = self.resnet(f"{name}.resnets.{i}", h, embedding)
                h = self.transformer(f"{name}.attentions.{i}", h, context)
                maps.append(h)
            if level < last:
                h = self.conv(f"{name}.downsamplers.0.conv", h, 2)
                maps.append(h)
        h = self.resnet("mid_block.resnets.0", h, embedding)
        h = self.transformer("mid_block.attentions.0", h, context)
        h = self.resnet("mid_block.resnets.1", h, embedding)
        for level in range(self.levels):
            name = f"up_blocks.{level}"
            for i in range(3):
                h = self.resnet(f"{name}.resnets.{i}", torch.cat([h, maps.pop()], 1), embedding)
                h = self.transformer(f"{name}.attentions.{i}", h, context)
            if level < last:
                h = self.conv(f"{name}.upsamplers.0.conv", f.interpolate(h, scale_factor=2.0))
        return self.conv("conv_out", f.silu(self.group_norm("conv_norm_out", h)))


def test_one_evaluation_beside_pytorch():
    torch = pytest.importorskip("torch")
    module, random = ConditionalUNet(), np.random.default_rng(0)
    # queries and keys larger, as in trained networks: attention is not near uniform
    gains = {"to_q": 1.4, "to_k": 1.4}
    flat = {}
    for path, leaf in unet_shapes(module).items():
        values = random.normal(size=leaf.shape).astype(np.float32)
        if len(leaf.shape) > 1:
            flat[path] = gains.get(path[-2], 1.0) * values / np.float32(np.prod(leaf.shape[:-1]) ** 0.5)
        else:
            flat[path] = 0.2 * values + (1 if path[-1] == "scale" else 0)
    arrays = {
        unet_key(path): torch.from_numpy(unet_to_torch(unet_key(path).rpartition(".")[0], value, linear=False))
        for path, value in flat.items()
    }
    assert sum(array.numel() for array in arrays.values()) == 859_520_964
    x = random.normal(size=(1, 4, 16, 24)).astype(np.float32)
    context, time = random.normal(size=(1, 77, 768)).astype(np.float32), np.float32([501])
    with torch.no_grad():
        inputs = map(torch.from_numpy, (x, time, context))
        theirs = ByTorch(torch, arrays, heads=8, groups=32, levels=4)(*inputs).numpy()
    params = jax.tree.map(jnp.asarray, unflatten_dict(flat))
    ours = jax.jit(lambda params, x, t, c: module.apply({"params": params}, x, t, context=c))(
        params, np.moveaxis(x, 1, -1), time, context
    )
    np.testing.assert_allclose(np.moveaxis(ours, -1, 1), theirs, rtol=0, atol=1e-4 * np.abs(theirs).max())

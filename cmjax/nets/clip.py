"""CLIP's text transformer, which makes token ids the context of a U-Net.   [Radford et al. 2021, CLIP, sec. 2.4]

Modules are named as transformers names them.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from cmjax.nets.blocks import attend
from cmjax.system.content import content_key
from cmjax.system.mesh import with_auto_axes

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),
    "gelu": partial(nn.gelu, approximate=False),
}
LARGEST_ID = 2
"""The `eos_id` of early configs: it means that a text ends at its largest id."""


class TextOutput(NamedTuple):
    """Holds the outputs of a text encoder.

    last: (b, n, width) the last layer's output after the final norm. hidden: the embeddings and each layer's output,
    (b, n, width) each, without that norm. pooled: (b, width) `last` where the text ends.
    projected: (b, projection) a linear map of `pooled`; None where the encoder has none.
    """

    last: Array
    hidden: tuple[Array, ...]
    pooled: Array
    projected: Array | None


class TextLayer(nn.Module):
    """h + attention(norm(h)), then h + mlp(norm(h)). No token sees a later one."""

    heads: int
    inner: int
    activation: str
    eps: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, h: Float[Array, "b n width"]) -> Float[Array, "b n width"]:
        h = h + CausalAttention(self.heads, self.dtype, name="self_attn")(layer_norm(self, "layer_norm1")(h))
        mlp = Mlp(self.inner, self.activation, self.dtype, name="mlp")
        return h + mlp(layer_norm(self, "layer_norm2")(h))


class CausalAttention(nn.Module):
    """out(attend(q, k, v)), each token attending to itself and those before it."""

    heads: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, h: Float[Array, "b n width"]) -> Float[Array, "b n width"]:
        b, n, width = h.shape
        q, k, v = (
            nn.Dense(width, dtype=self.dtype, name=f"{name}_proj")(h).reshape(b, n, self.heads, width // self.heads)
            for name in "qkv"
        )
        return nn.Dense(width, dtype=self.dtype, name="out_proj")(attend(q, k, v, causal=True).reshape(h.shape))


class Mlp(nn.Module):
    """fc2(activation(fc1(h)))."""

    inner: int
    activation: str
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, h: Float[Array, "b n width"]) -> Float[Array, "b n width"]:
        inner = ACTIVATIONS[self.activation](nn.Dense(self.inner, dtype=self.dtype, name="fc1")(h))
        return nn.Dense(h.shape[-1], dtype=self.dtype, name="fc2")(inner)


class ClipText(nn.Module, kw_only=True):
    """Token ids (b, n) to a `TextOutput`. The defaults are those of CLIP ViT-L/14, Stable Diffusion's text encoder.

    tokens: size of the vocabulary. positions: the most tokens of a text. inner: width of the MLPs.
    activation: "quick_gelu", x·sigmoid(1.702·x), or "gelu", the exact one. eps: of all norms.
    projection: width of the linear map of the pooled output; 0 for none.
    eos_id: the text ends at the first token of this id; with `LARGEST_ID` at the first of its largest id.
    dtype: of computation; parameters and outputs are float32.
    """

    tokens: int = 49408
    positions: int = 77
    width: int = 768
    inner: int = 3072
    layers: int = 12
    heads: int = 12
    activation: str = "quick_gelu"
    eps: float = 1e-5
    projection: int = 0
    eos_id: int = LARGEST_ID
    dtype: Any = jnp.float32

    apply = nn.nowrap(with_auto_axes(nn.Module.apply, rows_from=2))

    @nn.compact
    def __call__(self, ids: Int[Array, "b n"], *, skip: int = 0) -> TextOutput:
        """Encodes the token ids of texts, n <= positions. skip: how many of the last layers are left out of `last`.

        Raises: ValueError where there are more tokens than positions.
        """
        if ids.shape[1] > self.positions:
            raise ValueError(f"ids has {ids.shape[1]} tokens a text; this encoder reads {self.positions}")
        if not 0 <= skip < self.layers:
            raise ValueError(f"skip={skip} must lie in 0 … {self.layers - 1}, the number of layers less 1")
        fields = {"dtype": self.dtype}
        hidden = [Embeddings(self.tokens, self.positions, self.width, name="embeddings", **fields)(ids)]
        fields |= {"heads": self.heads, "inner": self.inner, "activation": self.activation, "eps": self.eps}
        for i in range(self.layers):
            hidden.append(TextLayer(name=f"encoder_layers_{i}", **fields)(hidden[-1]))
        last = layer_norm(self, "final_layer_norm")(hidden[-1 - skip]).astype(jnp.float32)
        # (b, n, width) at one place of each text, (b, width)
        pooled = jnp.take_along_axis(last, self._end(ids)[:, None, None], axis=1)[:, 0]
        projected = None
        if self.projection:
            dense = nn.Dense(self.projection, use_bias=False, dtype=self.dtype, name="text_projection")
            projected = dense(pooled).astype(jnp.float32)
        return TextOutput(last, tuple(h.astype(jnp.float32) for h in hidden), pooled, projected)

    def _end(self, ids: Array) -> Array:
        """Finds the place of the token at which each text ends, (b,)."""
        # of equal maxima `argmax` gives the first: texts are filled up with the same token
        return jnp.argmax(ids if self.eos_id == LARGEST_ID else (ids == self.eos_id).astype(jnp.int32), axis=1)


@partial(jax.tree_util.register_dataclass, data_fields=["params"], meta_fields=["module"])
@dataclasses.dataclass(frozen=True)
class TextEncoder:
    """Binds a `ClipText` to its parameters: a pure function of token ids, and a pytree of the parameters."""

    params: Any
    module: ClipText

    @property
    def weights_key(self) -> str:
        """A key of the weights and the module's fields but the dtype, for the manifest of encoded data."""
        names = {field.name for field in dataclasses.fields(self.module)} - {"parent", "name", "dtype"}
        return content_key(self.params, {name: getattr(self.module, name) for name in names})

    def __call__(self, ids: Array | np.ndarray, *, skip: int = 0) -> TextOutput:
        """Encodes ids (b, n), see `ClipText`."""
        output: Any = self.module.apply({"params": self.params}, jnp.asarray(ids), skip=skip)
        return output


class Embeddings(nn.Module):
    """A vector for each token plus one for each place."""

    tokens: int
    positions: int
    width: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, ids: Int[Array, "b n"]) -> Float[Array, "b n width"]:
        tokens = nn.Embed(self.tokens, self.width, dtype=self.dtype, name="token_embedding")(ids)
        places = jnp.arange(ids.shape[1])[None]
        return tokens + nn.Embed(self.positions, self.width, dtype=self.dtype, name="position_embedding")(places)


def layer_norm(module: Any, name: str) -> nn.LayerNorm:
    """Makes the layer norm of a module with the fields `eps` and `dtype`."""
    return nn.LayerNorm(module.eps, dtype=module.dtype, name=name)

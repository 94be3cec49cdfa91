"""Text encoders in folders of transformers: CLIPTextModel and CLIPTextModelWithProjection."""

import re
from collections.abc import Mapping
from pathlib import Path as FilePath
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from cmjax.interop.fields import COUNT, POSITIVE, Field, checked_fields, one_of, read_config
from cmjax.interop.folders import part_weights
from cmjax.interop.keys import Arrays, ForeignError, FromKeys, Path, filled, from_torch, write_part
from cmjax.nets.clip import ACTIVATIONS, ClipText, TextEncoder
from cmjax.system.files import to_path

CLASSES = ("CLIPTextModel", "CLIPTextModelWithProjection")
PREFIX = "text_model."
"""The prefix of all keys but the projection's, in files of transformers up to version 4."""
PROJECTION = "text_projection.weight"
BUFFER = "embeddings.position_ids"
WEIGHTS = "model.safetensors"
FIELDS: dict[str, Field] = {
    "vocab_size": (49408, *COUNT),
    "hidden_size": (512, *COUNT),
    "intermediate_size": (2048, *COUNT),
    "num_hidden_layers": (12, *COUNT),
    "num_attention_heads": (8, *COUNT),
    "max_position_embeddings": (77, *COUNT),
    "hidden_act": one_of("quick_gelu", ACTIVATIONS),
    "layer_norm_eps": (1e-5, *POSITIVE),
    "projection_dim": (512, *COUNT),
    "eos_token_id": (49407, lambda value: type(value) is int and value >= 0, "the id of a token"),
}


def load_text_encoder(folder: FilePath, dtype: Any = jnp.float32) -> TextEncoder:
    """Reads a text encoder from its folder, with config.json and weights, as data alone.

    Args:   dtype: of computation.
    Raises: ForeignError naming the class where it is another one, fields with a wrong value, or keys that do not fit.
    """
    config = read_config(folder / "config.json")
    file, content = part_weights(folder)
    arrays = _arrays(content)
    module = text_module(config, folder / "config.json", projects=PROJECTION in arrays, dtype=dtype)
    try:
        params = filled(arrays, text_shapes(module), lambda path: FromKeys((text_key(path),), _reader(path)))
    except ForeignError as error:
        raise ForeignError(f"{file}: {error}") from error
    return TextEncoder(jax.tree.map(jnp.asarray, params), module)


def write_text_encoder(folder: str | FilePath, text: TextEncoder) -> None:
    """Writes a folder that transformers and `load_text_encoder` read: config.json and float32 weights."""
    arrays = {}
    for path, value in flatten_dict(text.params).items():
        key, array = text_key(path), np.asarray(value, np.float32)
        key = key if key == PROJECTION else PREFIX + key
        arrays[key] = np.ascontiguousarray(array.T) if path[-1] == "kernel" else array
    write_part(to_path(folder), text_config(text.module), arrays, file=WEIGHTS)


def text_config(module: ClipText) -> dict[str, Any]:
    """Makes the config.json of a network, as transformers reads it."""
    return {
        "architectures": [CLASSES[bool(module.projection)]],
        "model_type": "clip_text_model",
        "vocab_size": module.tokens,
        "hidden_size": module.width,
        "intermediate_size": module.inner,
        "num_hidden_layers": module.layers,
        "num_attention_heads": module.heads,
        "max_position_embeddings": module.positions,
        "hidden_act": module.activation,
        "layer_norm_eps": module.eps,
        "projection_dim": module.projection or module.width,
        "bos_token_id": 0,  # as in released files, whatever the tokenizer's is: nothing reads it
        "eos_token_id": module.eos_id,
        "torch_dtype": "float32",
    }


def text_module(config: Mapping[str, Any], where: Any, *, projects: bool, dtype: Any = jnp.float32) -> ClipText:
    """Makes the network of a config.json. projects: whether its output is projected. Raises: ForeignError."""
    classes = config.get("architectures") or [None]
    if classes[0] not in CLASSES and config.get("model_type") != "clip_text_model":
        raise ForeignError(f"{where} is of the class {classes[0]}; {' and '.join(CLASSES)} can be read")
    fields = checked_fields(config, FIELDS, where)
    width, heads = fields["hidden_size"], fields["num_attention_heads"]
    if width % heads:
        raise ForeignError(f"{where}: num_attention_heads={heads} does not divide hidden_size={width}")
    return ClipText(
        tokens=fields["vocab_size"],
        positions=fields["max_position_embeddings"],
        width=width,
        inner=fields["intermediate_size"],
        layers=fields["num_hidden_layers"],
        heads=heads,
        activation=fields["hidden_act"],
        eps=float(fields["layer_norm_eps"]),
        projection=fields["projection_dim"] if projects else 0,
        eos_id=fields["eos_token_id"],
        dtype=jnp.dtype(dtype),
    )


def text_shapes(module: ClipText) -> Mapping[Path, Any]:
    """Returns the shapes of the parameters by path. Nothing is computed."""
    ids = jax.ShapeDtypeStruct((1, module.positions), jnp.int32)
    return dict(flatten_dict(jax.eval_shape(module.init, jax.random.key(0), ids)["params"]))


def text_key(path: Path) -> str:
    """Gives the key of a parameter by our path, without the prefix `text_model.`."""
    *modules, leaf = path
    key = re.sub(r"\bencoder_layers_(\d+)", r"encoder.layers.\1", ".".join(modules))
    return f"{key}.{'bias' if leaf == 'bias' else 'weight'}"


def _reader(path: Path) -> Any:
    return np.asarray if path[-1] == "embedding" else from_torch


def _arrays(content: Mapping[str, Any]) -> Arrays:
    """Gives the weights, without the prefix of their keys."""
    keys = {key: key.removeprefix(PREFIX) for key in content}
    return {ours: content[key] for key, ours in keys.items() if ours != BUFFER}

"""LoRA: low-rank changes of a pipeline's weights, W + scale·(alpha/rank)·up·down.   [Hu et al. 2021, sec. 4.1]

Files of peft and today's diffusers, of diffusers before, and of kohya's scripts are read; the first and the last are
written.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path as FilePath
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array

from cmjax.interop.clip import PREFIX, text_key
from cmjax.interop.conditional_unet import layer_of, unet_to_torch
from cmjax.interop.keys import ForeignError, Path, from_torch
from cmjax.interop.safetensors_files import read_safetensors
from cmjax.interop.text_to_image import TextToImage
from cmjax.system.files import to_path, write_atomically
from cmjax.system.libraries import require

UNET, TEXTS = "unet", ("text_encoder", "text_encoder_2")
KOHYA = {UNET: ("lora_unet_",), "text_encoder": ("lora_te_", "lora_te1_"), "text_encoder_2": ("lora_te2_",)}
"""Part -> beginnings of its layers' names in files of kohya's scripts."""
METADATA = "lora_adapter_metadata"
ENDS = {
    r"\.lora_A(\.default)?\.weight$": "down",
    r"\.lora_B(\.default)?\.weight$": "up",
    r"\.lora_(down|up)\.weight$": "",
    r"[._]lora(_linear_layer)?\.(down|up)\.weight$": "",
    r"\.alpha$": "alpha",
}
"""Ending of a key -> the layer's array under it; "" where the ending names it."""
SHOWN = 5
"""The number of keys that do not fit which an error names."""


class LoraLayer(NamedTuple):
    """Holds the change alpha/rank·down @ up of a kernel. down: (…, in, rank). up: (rank, out). alpha: a number."""

    down: Array
    up: Array
    alpha: Array

    def delta(self) -> Array:
        """Computes the change, of the shape of the kernel."""
        return self.alpha / self.up.shape[0] * (self.down @ self.up)


Layers = Mapping[str, Mapping[Path, LoraLayer]]
"""The layers by part, "unet", "text_encoder" or "text_encoder_2", and by the path of the changed kernel."""


class _Place(NamedTuple):
    part: str
    path: Path
    kernel: Any


def read_lora(file: str | FilePath, pipeline: TextToImage) -> Layers:
    """Reads the LoRA of a .safetensors file for the networks of a pipeline.

    Raises: ForeignError naming the keys that do not fit these networks.
    """
    file = to_path(file)
    arrays, metadata = read_safetensors(file)
    places = dict(_places(pipeline))
    config = _config(file, metadata)
    found: dict[str, dict[str, np.ndarray]] = {}
    problems = []
    for key, array in arrays.items():
        name, end = _split(key)
        if name not in places:
            problems.append(key)
            continue
        found.setdefault(name, {})[end] = np.asarray(array, np.float32)
    layers: dict[str, dict[Path, LoraLayer]] = {}
    for name, parts in found.items():
        part, path, kernel = places[name]
        layer = _layer(name, parts, config.get(part, {}), kernel)
        if layer is None or path in layers.get(part, {}):
            shapes = " and ".join(str(parts[end].shape) for end in ("down", "up") if end in parts)
            problems.append(f"{name} of {shapes} for a kernel of {kernel.shape}")
        else:
            layers.setdefault(part, {})[path] = layer
    if problems or not layers:
        more = f" and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise ForeignError(f"{file} is no LoRA of this network; what does not fit: {', '.join(problems[:SHOWN])}{more}")
    return layers


def with_lora(pipeline: TextToImage, layers: Layers, *, scale: float = 1.0) -> TextToImage:
    """Merges a LoRA into a pipeline's weights, scale times. It is a pure function of arrays."""
    texts = tuple(
        replace(text, params=merged(text.params, layers.get(part, {}), scale))
        for part, text in zip(TEXTS, pipeline.texts, strict=False)
    )
    return replace(pipeline, params=merged(pipeline.params, layers.get(UNET, {}), scale), texts=texts)


def merged(params: Any, layers: Mapping[Path, LoraLayer], scale: Any = 1.0) -> Any:
    """Adds the changes of layers to parameters, scale times."""
    flat = dict(flatten_dict(params))
    for path, layer in layers.items():
        flat[path] = flat[path] + scale * layer.delta()
    return unflatten_dict(flat)


def write_lora(
    file: str | FilePath,
    layers: Layers,
    pipeline: TextToImage,
    *,
    format: Literal["kohya", "peft"] = "peft",
    dtype: str = "float32",
) -> None:
    """Writes a LoRA as a .safetensors file, which diffusers' `load_lora_weights` reads.

    Args:   format: "peft", with alpha in the file's header, or "kohya", with alpha beside each pair.
            dtype: of the arrays, "float32" or "float16".
    Raises: ForeignError where the format is another.
    """
    require("safetensors", f"writing {file}")
    from safetensors.numpy import save

    if format not in ("kohya", "peft"):
        raise ForeignError(f"format={format!r} must be kohya or peft")
    names = {(part, path): _dotted(part, path) for part in layers for path in layers[part]}
    arrays, ranks, alphas = {}, {}, {}
    for (part, path), dotted in names.items():
        layer, name = layers[part][path], f"{part}.{dotted}"
        down = _to_torch(part, dotted, layer.down, pipeline.module.linear_projection)
        up = np.ascontiguousarray(np.asarray(layer.up).T)
        up = up if down.ndim == 2 else up[:, :, None, None]
        if format == "kohya":
            name = KOHYA[part][0] + dotted.replace(".", "_")
            arrays[f"{name}.alpha"] = np.asarray(layer.alpha, dtype)
        else:
            ranks.setdefault(part, {})[dotted], alphas.setdefault(part, {})[dotted] = len(down), float(layer.alpha)
        ends = ("lora_down", "lora_up") if format == "kohya" else ("lora_A", "lora_B")
        arrays |= {f"{name}.{end}.weight": array.astype(dtype) for end, array in zip(ends, (down, up), strict=True)}
    metadata = {"format": "pt"}
    if format == "peft":
        stated = (_stated(part, ranks[part], alphas[part]) for part in ranks)
        metadata[METADATA] = json.dumps({key: value for entries in stated for key, value in entries})
    write_atomically(to_path(file), save(arrays, metadata))


def _stated(part: str, ranks: Mapping[str, int], alphas: Mapping[str, float]) -> Iterator[tuple[str, Any]]:
    """Makes peft's config of a part: one rank and alpha, and the layers that have others."""
    for name, pattern, values in (("r", "rank_pattern", ranks), ("lora_alpha", "alpha_pattern", alphas)):
        usual = next(iter(values.values()))
        yield f"{part}.{name}", usual
        yield f"{part}.{pattern}", {re.escape(key): value for key, value in values.items() if value != usual}
    yield f"{part}.target_modules", sorted(ranks)
    yield f"{part}.peft_type", "LORA"


def _places(pipeline: TextToImage) -> Iterator[tuple[str, _Place]]:
    """Lists every name that a layer can have in a file -> its place."""
    parts = {UNET: pipeline.params, **{name: text.params for name, text in zip(TEXTS, pipeline.texts, strict=False)}}
    for part, params in parts.items():
        for path, kernel in flatten_dict(params).items():
            if path[-1] == "kernel":
                dotted, place = _dotted(part, path), _Place(part, path, kernel)
                yield f"{part}.{dotted}", place
                if part == UNET:
                    yield dotted, place
                for prefix in KOHYA[part]:
                    yield prefix + dotted.replace(".", "_"), place


def _dotted(part: str, path: Path) -> str:
    if part == UNET:
        return layer_of(path[:-1])
    name = text_key(path).removesuffix(".weight")
    return name if name == "text_projection" else PREFIX + name


def _to_torch(part: str, dotted: str, down: Any, linear: bool) -> np.ndarray:
    return unet_to_torch(dotted, np.asarray(down), linear=linear or part != UNET)


def _split(key: str) -> tuple[str, str]:
    """Splits a key into the name of its layer, and the array: "down", "up" or "alpha"."""
    for pattern, end in ENDS.items():
        if found := re.search(pattern, key):
            name = key[: found.start()].removeprefix("base_model.model.").replace(".processor", "")
            name = re.sub(r"\.to_out$", ".to_out.0", name)
            return name, end or next(group for group in found.groups() if group in ("down", "up"))
    return key, ""


def _config(file: FilePath, metadata: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Reads peft's config in a file's header, by part."""
    try:
        stated = json.loads(metadata.get(METADATA, "{}"))
    except ValueError as error:
        raise ForeignError(f"{file}: its {METADATA} is damaged: {error}") from error
    parts: dict[str, dict[str, Any]] = {}
    for key, value in stated.items() if isinstance(stated, dict) else ():
        part, _, name = key.partition(".")
        parts.setdefault(part, {})[name] = value
    return parts


def _layer(name: str, parts: Mapping[str, np.ndarray], config: Mapping[str, Any], kernel: Any) -> LoraLayer | None:
    """Makes the layer of these arrays; None where they do not fit its kernel."""
    if not {"down", "up"} <= parts.keys() or any(array.ndim not in (2, 4) for array in (parts["down"], parts["up"])):
        return None
    down, up = from_torch(parts["down"]), from_torch(parts["up"])
    if up.ndim != 2 or down.shape[-1] != len(up) or (*down.shape[:-1], up.shape[1]) != kernel.shape:
        return None
    alpha = float(parts["alpha"]) if "alpha" in parts else _alpha(name, config, len(up))
    return LoraLayer(jnp.asarray(down), jnp.asarray(up), jnp.float32(alpha))


def _alpha(name: str, config: Mapping[str, Any], rank: int) -> float:
    """Gives alpha as peft states it for a layer, by default its rank."""
    layer = name.partition(".")[2]
    patterns = config.get("alpha_pattern") or {}
    fits = [value for pattern, value in patterns.items() if re.fullmatch(rf"(.*\.)?({pattern})", layer)]
    alpha = float(fits[0] if fits else config.get("lora_alpha") or rank)
    return alpha * rank**0.5 if config.get("use_rslora") else alpha

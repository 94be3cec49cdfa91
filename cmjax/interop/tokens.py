"""CLIP's tokenizer: encodes prompts as token ids, by the vocabulary in a folder of transformers.

Text becomes NFC in lower case with single spaces. Contractions, runs of letters, single digits and runs of the rest are
words; pairs of characters in them are merged in the order of the vocabulary.   [Radford et al. 2021, CLIP, sec. 2.4]
"""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any

import numpy as np
from jaxtyping import Int

from cmjax.interop.fields import read_config
from cmjax.interop.keys import ForeignError
from cmjax.system.content import content_key
from cmjax.system.files import to_json, to_path, write_atomically
from cmjax.system.libraries import require

log = logging.getLogger(__name__)

Warn = Callable[..., None]

WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
START, END, WORD_END = "<|startoftext|>", "<|endoftext|>", "</w>"


@dataclass(frozen=True)
class Tokenizer:
    """Encodes prompts as token ids (b, length): the start, the tokens, the end, and padding.

    length: tokens of each row. end, pad: ids of the end and of the padding.
    """

    encoder: Any = field(repr=False)
    length: int
    end: int
    pad: int

    @property
    def key(self) -> str:
        """A key of the vocabulary and the rules."""
        return content_key(self.encoder.to_str(), self.length, self.end, self.pad)

    def __call__(self, prompts: Sequence[str], *, warn: Warn = log.warning) -> Int[np.ndarray, "b length"]:
        """Encodes prompts. One of more tokens is cut, with a warning that shows what the text encoder does not see.

        Args:   warn: takes such a warning, a format and its values, as `log.warning` does.
        Raises: TypeError where `prompts` is one text, or holds something else than texts.
        """
        if isinstance(prompts, str) or not all(isinstance(prompt, str) for prompt in prompts):
            raise TypeError(f"prompts must be a list of texts, got {prompts!r}")
        rows = np.full((len(prompts), self.length), self.pad, np.int32)
        for row, prompt in zip(rows, prompts, strict=True):
            encoded = self.encoder.encode(prompt)
            ids = encoded.ids
            if len(ids) > self.length:
                rest = prompt[encoded.offsets[self.length - 1][0] :].strip()
                warn("a prompt of %d tokens is cut to %d, without %r", len(ids), self.length, rest)
                ids = [*ids[: self.length - 1], self.end]
            row[: len(ids)] = ids
        return rows


def load_tokenizer(folder: FilePath) -> Tokenizer:
    """Reads a tokenizer's folder: vocab.json and merges.txt, or tokenizer.json.

    Raises: MissingLibrary with the command that installs `tokenizers`; ForeignError where a file is missing or damaged.
    """
    require("tokenizers", f"reading {folder}")
    names = [folder / name for name in ("special_tokens_map.json", "tokenizer_config.json")]
    config: dict[str, Any] = {}
    for file in names:
        config |= read_config(file) if file.is_file() else {}
    tokens = {name: config.get(f"{name}_token") or default for name, default in (("bos", START), ("eos", END))}
    tokens["pad"] = config.get("pad_token") or tokens["eos"]
    length = config.get("model_max_length", 77)
    if type(length) is not int or not 2 < length <= 10_000:
        raise ForeignError(f"{folder}: model_max_length={length!r} must be the number of tokens that a text has")
    encoder = _encoder(folder, {name: _content(folder, name, token) for name, token in tokens.items()})
    encoder.add_special_tokens([_added(token) for token in tokens.values()])
    ids = {name: encoder.token_to_id(_content(folder, name, token)) for name, token in tokens.items()}
    return Tokenizer(encoder, length, ids["eos"], ids["pad"])


def write_tokenizer(folder: str | FilePath, tokenizer: Tokenizer) -> None:
    """Writes a folder that transformers' CLIPTokenizer and `load_tokenizer` read: vocab.json, merges.txt, configs.

    Raises: ForeignError where it is no byte-pair encoding.
    """
    from tokenizers import models

    encoder, folder = tokenizer.encoder, to_path(folder)
    if not isinstance(encoder.model, models.BPE):
        raise ForeignError(f"CLIPTokenizer is a byte-pair encoding, and the tokenizer a {type(encoder.model).__name__}")
    folder.mkdir(parents=True, exist_ok=True)
    added = encoder.get_added_tokens_decoder()
    start, *_ = encoder.encode("").ids
    options = ("content", "single_word", "lstrip", "rstrip", "normalized")
    tokens: dict[str, Any] = {
        f"{name}_token": {option: getattr(added[number], option) for option in options}
        for name, number in (("bos", start), ("eos", tokenizer.end), ("pad", tokenizer.pad))
    }
    tokens["unk_token"] = encoder.model.unk_token or tokens["eos_token"]
    if not any(tokens["pad_token"][option] for option in options[1:]):  # as in released files
        tokens["pad_token"] = tokens["pad_token"]["content"]
    encoder.model.save(str(folder))
    typed = {
        name: {"__type": "AddedToken", **each} if isinstance(each, dict) else each for name, each in tokens.items()
    }
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": tokenizer.length, "do_lower_case": True, **typed}
    write_atomically(folder / "special_tokens_map.json", to_json(tokens))
    write_atomically(
        folder / "tokenizer_config.json", to_json(config | {"add_prefix_space": False, "errors": "replace"})
    )


def _encoder(folder: FilePath, tokens: Mapping[str, str]) -> Any:
    """Makes the library's tokenizer, which adds the start and the end, and neither pads nor cuts."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

    vocab, whole = folder / "vocab.json", folder / "tokenizer.json"
    try:
        if not vocab.is_file() and whole.is_file():
            encoder = Tokenizer.from_file(str(whole))
            encoder.no_padding()
            encoder.no_truncation()
            return encoder
        ids, merges = _vocabulary(folder)
        if absent := [tokens[name] for name in ("bos", "eos") if tokens[name] not in ids]:
            raise ForeignError(f"{vocab} has no token {' and '.join(absent)}")
        encoder = Tokenizer(models.BPE(ids, merges, unk_token=tokens["eos"], end_of_word_suffix=WORD_END))
    except ForeignError:
        raise
    except Exception as error:  # the library raises nothing more special
        raise ForeignError(f"{folder} holds no tokenizer that can be read: {error}") from error
    encoder.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    encoder.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(WORDS), "removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    ends = ((tokens[name], ids[tokens[name]]) for name in ("eos", "bos"))
    encoder.post_processor = processors.RobertaProcessing(*ends, trim_offsets=False, add_prefix_space=False)
    return encoder


def _vocabulary(folder: FilePath) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Reads the ids by token, and the pairs that are merged, in order."""
    if absent := [name for name in ("vocab.json", "merges.txt") if not (folder / name).is_file()]:
        raise ForeignError(f"{folder} has neither tokenizer.json nor {' and '.join(absent)}")
    try:
        ids = json.loads((folder / "vocab.json").read_text("utf-8"))
        lines = (folder / "merges.txt").read_text("utf-8").split("\n")
    except (OSError, ValueError) as error:
        raise ForeignError(f"{folder} holds no vocabulary that can be read: {error}") from error
    pairs = [tuple(line.split()) for line in lines if line.strip() and not line.startswith("#version")]
    if not isinstance(ids, dict) or not all(type(each) is int for each in ids.values()):
        raise ForeignError(f"{folder / 'vocab.json'} holds no ids of tokens")
    if wrong := [pair for pair in pairs if len(pair) != 2]:
        raise ForeignError(f"{folder / 'merges.txt'} has a line that is no pair: {' '.join(wrong[0])!r}")
    return ids, [(first, second) for first, second in pairs]


def _content(folder: FilePath, name: str, token: Any) -> str:
    text = token.get("content") if isinstance(token, dict) else token
    if not isinstance(text, str) or not text:
        raise ForeignError(f"{folder}: {name}_token={token!r} must be a text, or an object with its content")
    return text


def _added(token: Any) -> Any:
    """Makes the library's special token, with the options that the config states."""
    from tokenizers import AddedToken

    if isinstance(token, str):
        return AddedToken(token, special=True, normalized=False)
    options = {name: bool(token.get(name, False)) for name in ("single_word", "lstrip", "rstrip", "normalized")}
    return AddedToken(token["content"], special=True, **options)

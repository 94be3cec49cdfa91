"""Text encoders and tokenizers: the recorded ids and outputs, every kind of folder, and what is refused."""

import json
import logging
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmjax.interop.clip import PROJECTION, load_text_encoder, text_key, text_module, text_shapes
from cmjax.interop.keys import ForeignError
from cmjax.interop.tokens import load_tokenizer
from cmjax.nets.blocks import attend
from cmjax.nets.clip import ClipText, TextEncoder
from tests.recorded_parts import assert_near, quick_jit

encode = quick_jit(lambda encoder, ids: encoder(ids))


@pytest.fixture(scope="module")
def sd(shared):
    return shared / "parity" / "sd"


@pytest.fixture(scope="module")
def recorded(sd):
    return np.load(sd / "text.npz")


@pytest.fixture(scope="module")
def prompts(sd):
    return json.loads((sd / "prompts.json").read_text())


@pytest.mark.parametrize("folder", ["pipeline/tokenizer", "variants/tokenizer_as_saved_now"])
def test_recorded_ids(sd, recorded, prompts, caplog, folder):
    tokenizer = load_tokenizer(sd / folder)
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(tokenizer(prompts), recorded["input_ids"])
    (warning,) = caplog.messages  # of the one prompt that is too long
    assert "146 tokens is cut to 77" in warning
    cut = warning.partition("without ")[2].strip("'")
    assert prompts[9].endswith(cut)
    # it begins within a word here: what is left of that word has another last token
    kept = tokenizer([prompts[9].removesuffix(cut)])[0]
    np.testing.assert_array_equal(kept[:75], recorded["input_ids"][9, :75])
    assert kept[75] != tokenizer.end


def test_recorded_ids_of_a_tokenizer_that_pads_by_a_character(sd, prompts):
    ids = load_tokenizer(sd / "sd2" / "tokenizer")(prompts)
    np.testing.assert_array_equal(ids, np.load(sd / "sd2.npz")["text/input_ids"])


def test_recorded_outputs(sd, recorded):
    encoder = load_text_encoder(sd / "pipeline" / "text_encoder")
    out = encode(encoder, recorded["input_ids"])
    assert_near(out.last, recorded["last_hidden_state"])
    assert_near(out.pooled, recorded["pooler_output"])
    for i, hidden in enumerate(out.hidden):
        assert_near(hidden[:3], recorded[f"hidden_state_{i}"])
    assert out.projected is None
    assert_near(encoder(recorded["unpadded_ids"]).last, recorded["unpadded_last_hidden_state"])
    assert_near(encoder(recorded["input_ids"][:3], skip=1).last, recorded["clip_skip_1"])
    # Weights so small that the eps of norms shows.
    weak = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf if "norm" in jax.tree_util.keystr(path) else leaf / 32, encoder
    )
    assert_near(encode(weak, recorded["input_ids"][:4]).last, recorded["scaled_down/last_hidden_state"])


def test_recorded_outputs_with_the_exact_gelu(sd):
    recorded = np.load(sd / "sd2.npz")
    out = encode(load_text_encoder(sd / "sd2" / "text_encoder"), recorded["text/input_ids"])
    assert_near(out.last, recorded["text/last_hidden_state"])
    assert_near(out.pooled, recorded["text/pooler_output"])


@pytest.mark.parametrize("folder", ["fp16/text_encoder", "text_encoder_unprefixed"])
def test_variants_of_the_files_are_the_same_weights(sd, folder):
    ours, other = (load_text_encoder(sd / name) for name in ("pipeline/text_encoder", f"variants/{folder}"))
    jax.tree.map(np.testing.assert_array_equal, ours.params, other.params)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("clip-vit-l-text", {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}),
        (
            "clip-vit-bigG-text",
            {
                "hidden_size": 1280,
                "intermediate_size": 5120,
                "num_hidden_layers": 32,
                "num_attention_heads": 20,
                "hidden_act": "gelu",
                "projection_dim": 1280,
            },
        ),
    ],
)
def test_full_size_names_and_shapes(shared, name, fields):
    keys = json.loads((shared / "keys" / f"{name}.json").read_text())
    config = {"architectures": ["CLIPTextModel"], **fields}
    module = text_module(config, name, projects=PROJECTION in keys)
    ours = {
        text_key(path): leaf.shape[::-1] if path[-1] == "kernel" else leaf.shape
        for path, leaf in text_shapes(module).items()
    }
    assert ours == {key.removeprefix("text_model."): tuple(shape) for key, shape in keys.items()}


def small(**fields):
    """A small encoder of random weights, of 5 tokens and an end."""
    module = ClipText(**{"tokens": 6, "positions": 4, "width": 8, "inner": 8, "layers": 2, "heads": 2} | fields)
    return TextEncoder(module.init(jax.random.key(0), jnp.zeros((1, 4), int))["params"], module)


def test_pooling_takes_the_first_end_and_the_projection_is_a_matrix():
    ids = jnp.array([[0, 3, 5, 5], [0, 3, 4, 3]])
    largest, named = small(), small(eos_id=3, projection=5)
    out = largest(ids)
    np.testing.assert_array_equal(out.pooled, out.last[jnp.arange(2), jnp.array([2, 2])])
    out = named(ids)
    np.testing.assert_array_equal(out.pooled, out.last[:, 1])
    assert_near(out.projected, out.pooled @ named.params["text_projection"]["kernel"], 1e-6)


def test_no_token_sees_a_later_one():
    encoder = small()
    one, other = (encoder(jnp.array([[0, 3, token, 5]])).last for token in (1, 2))
    np.testing.assert_array_equal(one[:, :2], other[:, :2])
    assert not np.allclose(one[:, 2:], other[:, 2:])
    q, k, v = jax.random.normal(jax.random.key(1), (3, 2, 5, 2, 4))
    assert_near(attend(q, k, v, causal=True), jax.nn.dot_product_attention(q, k, v, is_causal=True))


def test_bfloat16_is_near(sd, recorded):
    encoder = load_text_encoder(sd / "pipeline" / "text_encoder", dtype="bfloat16")
    out = encode(encoder, recorded["input_ids"][:2])
    assert out.last.dtype == jnp.float32
    assert_near(out.last, recorded["last_hidden_state"][:2], 0.05)


def test_wrong_calls(sd, recorded):
    encoder = small()
    with pytest.raises(ValueError, match="ids has 5 tokens a text; this encoder reads 4"):
        encoder(jnp.zeros((1, 5), int))
    with pytest.raises(ValueError, match="skip=2 must lie in 0 … 1"):
        encoder(jnp.zeros((1, 4), int), skip=2)
    with pytest.raises(TypeError, match="prompts must be a list of texts, got 'a cat'"):
        load_tokenizer(sd / "pipeline" / "tokenizer")("a cat")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"architectures": ["T5EncoderModel"], "model_type": "t5"},
            "is of the class T5EncoderModel; CLIPTextM",
        ),
        ({"hidden_act": "relu"}, "hidden_act='relu' must be one of quick_gelu, gelu"),
        ({"num_attention_heads": 3}, "num_attention_heads=3 does not divide hidden_size=40"),
        ({"num_hidden_layers": 2}, "left over encoder.layers.2.layer_norm1.bias"),
    ],
)
def test_what_is_no_text_encoder_is_refused(sd, tmp_path, changes, message):
    shutil.copytree(sd / "pipeline" / "text_encoder", tmp_path / "text")
    config = json.loads((tmp_path / "text" / "config.json").read_text())
    (tmp_path / "text" / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(ForeignError, match=message):
        load_text_encoder(tmp_path / "text")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("merges.txt", None, "has neither tokenizer.json nor merges.txt"),
        ("merges.txt", "#version: 0.2\na b c\n", "merges.txt has a line that is no pair: 'a b c'"),
        ("merges.txt", "#version: 0.2\na qqqq\n", "holds no tokenizer that can be read"),
        ("vocab.json", "[", "holds no vocabulary that can be read"),
        ("vocab.json", '{"a": "b"}', "vocab.json holds no ids of tokens"),
        ("vocab.json", '{"a": 0}', r"has no token <\|startoftext\|> and <\|endoftext\|>"),
        ("tokenizer_config.json", '{"model_max_length": "long"}', "model_max_length='long' must be the number"),
        ("tokenizer_config.json", '{"bos_token": 3}', "bos_token=3 must be a text"),
    ],
)
def test_what_is_no_tokenizer_is_refused(sd, tmp_path, name, content, message):
    shutil.copytree(sd / "pipeline" / "tokenizer", tmp_path / "tokenizer")
    file = tmp_path / "tokenizer" / name
    file.unlink() if content is None else file.write_text(content)
    with pytest.raises(ForeignError, match=message):
        load_tokenizer(tmp_path / "tokenizer")

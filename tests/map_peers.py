"""The toy network on which the numbers of flow maps were recorded, as parity/README.md defines it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

NULL = 4
"""The label of no class."""


def parts(recorded, flat):
    """The arrays of the network by their names; biases are rows."""
    names = recorded["net/names"].tolist()
    shapes = [tuple(recorded[f"net/shape/{name}"]) for name in names]
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes])
    pieces = jnp.split(flat, ends[:-1])
    shapes = [(1,) * (len(shape) == 1) + shape for shape in shapes]
    return {name: piece.reshape(shape) for name, piece, shape in zip(names, pieces, shapes, strict=True)}


def waves(t):
    return jnp.stack([t, jnp.sin(2 * t), 1 - jnp.cos(3 * t)], 1)


def hidden(recorded, flat, x, slots, label):
    """The hidden layer's output (b, 16), and the arrays of the heads. label: None adds nothing, -1 is no class."""
    w = parts(recorded, flat)
    a = x.reshape(len(x), -1) @ w["w1x"] + sum(waves(t) @ w["w1s"][place] for place, t in slots.items()) + w["b1"]
    if label is not None:
        a = a + w["emb"][jnp.where(label < 0, NULL, label)]
    return jnp.tanh(jnp.tanh(a) @ w["w2"] + w["b2"]), w


def output(recorded, flat, x, slots, label=None, head="w3"):
    """The network's output, of the shape of x."""
    h, w = hidden(recorded, flat, x, slots, label)
    return (h @ w[head] + w[head.replace("w", "b")]).reshape(x.shape)


def log_weight(recorded, flat, slots):
    """The learned log weight (b,)."""
    w = parts(recorded, flat)
    return sum(jnp.sum(waves(t) * w["wl"][place][None], axis=1) for place, t in slots.items()) + w["bl"][0, 0]


def check(recorded, prefix, each, *, loss="loss_i", gradient="grad", rtol=1e-9):
    """Holds the losses (b,) of the flat parameters and the gradient of their mean to the recorded ones.

    loss: the recorded array of the losses; None where theirs has another value and the same gradient.
    """
    value, slope = jax.jit(lambda flat: (each(flat), jax.grad(lambda w: each(w).mean())(flat)))(
        jnp.asarray(recorded["net/online"])
    )
    if loss is not None:
        np.testing.assert_allclose(value, recorded[f"{prefix}/{loss}"], rtol=rtol, atol=1e-14)
    np.testing.assert_allclose(slope, recorded[f"{prefix}/{gradient}"], rtol=rtol, atol=1e-13)
    return slope


def check_step(recorded, prefix, gradient, rule):
    """Holds one update by an optimizer's rule from a fresh state to the recorded one."""
    theta = jnp.asarray(recorded["net/online"])
    updates, _ = rule.update(gradient, rule.init(theta), theta)
    np.testing.assert_allclose(theta + updates, recorded[f"{prefix}/step_theta"], rtol=1e-9)
    np.testing.assert_allclose(optax.tree.norm(gradient), recorded[f"{prefix}/grad_norm"], rtol=1e-9)


COUNT = 200_000


def check_quantiles(recorded, name, sampled):
    """Of 200,000 samples against as many: at each probability their empirical distribution, to 5 standard errors."""
    probs, theirs = recorded["probs"], recorded[name]
    inner = (probs > 0) & (probs < 1)
    below = np.mean(np.asarray(sampled)[:, None] <= theirs[None], axis=0)
    error = np.sqrt(probs * (1 - probs) * (1 / len(sampled) + 1 / (COUNT / 4)))
    assert np.all(np.abs(below - probs)[inner] < 5 * error[inner] + 1e-12), (name, below, probs)

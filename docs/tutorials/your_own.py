# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Your own network, data and loss
#
# cmjax asks little of your code. A **network** is any function of parameters, a noised sample and a time. **Data** are
# arrays. A **loss** is a function that gives one number for each sample. This page brings all three: a Flax NNX module,
# a small data set, and a loss that is not in the library.
#
# Everything is trained while this page is built, on a CPU.

# %%
from functools import partial

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits

import cmjax

plt.rcParams["figure.dpi"] = 120

# %% [markdown]
# ## Data
#
# Any array will do: images $(b, h, w, c)$ in $[-1, 1]$, points, latents. Here they are scikit-learn's 8×8 digits, which
# need no download.

# %%
data = load_digits()
images = jnp.asarray(data.images[..., None] / 8 - 1, jnp.float32)
labels = jnp.asarray(data.target)
print(images.shape, float(images.min()), float(images.max()))

# %% [markdown]
# ## Network
#
# The library calls `net(params, x, c_noise, *, key=None, **conditions)`. `x` is the noised sample, already scaled to
# unit variance, `c_noise` $(b,)$ tells the time, and `conditions` are further inputs of your own; here it is `label`.
# The result has the shape of `x`. `key` is for dropout; this network has none.


# %%
class Block(nnx.Module):
    """A residual block whose features are scaled and shifted by the embedding."""

    def __init__(self, width, rngs):
        self.norm = nnx.LayerNorm(width, use_scale=False, use_bias=False, rngs=rngs)
        self.modulation = nnx.Linear(width, 2 * width, rngs=rngs)
        self.inner = nnx.Linear(width, width, rngs=rngs)

    def __call__(self, h, embedding):
        gain, shift = jnp.split(self.modulation(embedding), 2, axis=1)
        return h + nnx.silu(self.inner(self.norm(h) * (1 + gain) + shift))


class DigitNet(nnx.Module):
    """F(x, c_noise, label) of the shape of x, (b, 8, 8, 1)."""

    def __init__(self, rngs, *, width=192, depth=2):
        self.first = nnx.Linear(64, width, rngs=rngs)
        self.time = nnx.Linear(32, width, rngs=rngs)
        self.label = nnx.Embed(10, width, rngs=rngs)
        self.blocks = nnx.List([Block(width, rngs) for _ in range(depth)])
        self.last = nnx.Linear(width, 64, kernel_init=nnx.initializers.zeros, rngs=rngs)

    def __call__(self, x, c_noise, label):
        angles = c_noise[:, None] * jnp.geomspace(0.25, 16, 16)[None]
        waves = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=1)
        embedding = nnx.silu(self.time(waves) + self.label(label))
        h = self.first(x.reshape(len(x), -1))
        for block in self.blocks:
            h = block(h, embedding)
        return self.last(nnx.silu(h)).reshape(x.shape)


graph, params = nnx.split(DigitNet(nnx.Rngs(0)))


def net(params, x, c_noise, *, label, key=None):
    return nnx.merge(graph, params)(x, c_noise, label)


# %% [markdown]
# The same few lines fit Flax Linen (`module.apply({"params": params}, …)`) and Equinox (`eqx.combine(params, static)`).
#
# ## Model
#
# A `Model` is a network with a path, which says what the times mean, and its scalings, which make the network a
# denoiser or a consistency function. Here it is the consistency function of Song et al. on the path $x_t = x_0 + t\,z$.

# %%
T_MIN, T_MAX, SIGMA_DATA = 0.002, 80.0, 0.5
scalings = partial(cmjax.preconditioning.consistency, sigma_data=SIGMA_DATA, t_min=T_MIN)
model = cmjax.Model(net, cmjax.paths.ve, scalings)

x = images[:4]
same = model(params, x, T_MIN, label=labels[:4])
print("f(x, t_min) = x:", bool(jnp.allclose(same, x, atol=1e-6)))

# %% [markdown]
# ## A batch, and a loss of the library
#
# A `Batch` holds everything random: clean data, noise, times. Its `conditions` go to the network. So a loss is a plain
# function of parameters and batch, $(b,)$ numbers. The times of consistency training are neighbours on a grid that
# becomes finer as training goes on.

# %%
STEPS, BATCH = 1500, 64
curriculum = cmjax.curricula.doubling(s0=10, s1=40, total_steps=STEPS)
draw_times = cmjax.pairs.grid_pairs(
    curriculum,
    t_min=T_MIN,
    t_max=T_MAX,
    rho=7.0,
    probabilities=partial(cmjax.pairs.lognormal_intervals, mean=-1.1, std=2.0),
)


@jax.jit
def draw_batch(key, step):
    rows_key, noise_key, times_key = jax.random.split(key, 3)
    rows = jax.random.randint(rows_key, (BATCH,), 0, len(images))
    noise = jax.random.normal(noise_key, (BATCH, *images.shape[1:]))
    return cmjax.Batch(images[rows], noise, draw_times(times_key, BATCH, step), {"label": labels[rows]})


distance = partial(cmjax.distances.pseudo_huber, c=0.03)
ct = partial(cmjax.losses.ct, distance=distance, weight=cmjax.weightings.inverse_gap)
batch = draw_batch(jax.random.key(0), 0)
print(jax.jit(partial(ct, model))(params, None, batch).shape)

# %% [markdown]
# ## A loss of your own
#
# A loss of the library has the signature `loss(model, params, key, batch, **choices) -> (b,)`, and yours can have it
# too. This one adds to CT a term that asks for the clean data at $t$, as a denoiser's loss does, with a weight
# that you choose. It is an example of how to write one, not a published method.


# %%
def anchored_ct(model, params, key, batch, *, fraction):
    """(1 − fraction)·CT + fraction·|f(x_t, t) − x0| with both distances pseudo-Huber, (b,)."""
    t = batch.times.t
    estimate = model(params, batch.noised(model.path, t), t, key=key, **batch.conditions)
    anchor = distance(estimate, batch.x0) / t  # the weight 1/t is of the size of 1/(t − r) on a coarse grid
    return (1 - fraction) * ct(model, params, key, batch) + fraction * anchor


# %% [markdown]
# ## Training
#
# `make_train_step` joins a model, a loss and an Optax optimizer to a pure function, which you jit. Samples are made
# with the average of the parameters, which the last part of the optimizer keeps.


# %%
def train(loss):
    optimizer = optax.adam(optax.warmup_cosine_decay_schedule(0.0, 1e-3, 50, STEPS))

    optimizer = optax.chain(optimizer, cmjax.track_averages({"ema": lambda step: 0.99}))
    train_step = jax.jit(cmjax.make_train_step(model, loss, optimizer))
    trained, state = params, optimizer.init(params)
    for step in range(STEPS):
        trained, state, _ = train_step(trained, state, None, draw_batch(jax.random.key(step), step))
    return cmjax.averages(state)["ema"]


own = train(partial(anchored_ct, fraction=0.1))

# %% [markdown]
# ## Samples
#
# `sample_fn` takes a function `flow_map(x, t, **conditions)`: the model with its parameters bound. `times` are the
# noise levels of the evaluations, one for each; everything after them goes to the network.

# %%
wanted = jnp.tile(jnp.arange(10), 4)


@jax.jit
def sample(params, times):
    return cmjax.sample_fn(
        partial(model, params), jax.random.key(2), (40, 8, 8, 1), times=times, t_min=T_MIN, label=wanted
    )


results = {"one step": sample(own, jnp.array([80.0])), "two steps": sample(own, jnp.array([80.0, 0.8]))}

# %%
figure, panels = plt.subplots(1, 2, figsize=(9, 2.4), layout="constrained")
for axes, (name, sampled) in zip(panels, results.items(), strict=True):
    framed = np.pad(np.asarray(sampled)[:, :, :, 0], ((0, 0), (0, 1), (0, 1)), constant_values=0.2)
    axes.imshow(framed.reshape(4, 10, 9, 9).transpose(0, 2, 1, 3).reshape(36, 90), cmap="gray", vmin=-1, vmax=1)
    axes.set(title=name, xticks=np.arange(10) * 9 + 3.5, yticks=[])
    axes.set_xticklabels(range(10))

# %% [markdown]
# Each column is one class. How well are the classes met? A nearest-neighbour classifier on the training images
# reads the samples:


# %%
def read(sampled):
    """The label of the nearest training image, (b,)."""
    squared = jnp.sum((sampled.reshape(-1, 1, 64) - images.reshape(1, -1, 64)) ** 2, axis=2)
    return labels[jnp.argmin(squared, axis=1)]


for name, sampled in results.items():
    print(f"{name}: {100 * float(jnp.mean(read(sampled) == wanted)):.0f} % are read as their class")

# %% [markdown]
# ## What else fits
#
# - Another method: replace `ct` and its times. [Methods](../methods.md) has the losses, and which times they take.
# - Distillation: `cmjax.losses.cd` takes a `teacher`, any function `(x, t, **conditions)` that estimates the clean
#   data.
# - Other paths: `cmjax.paths.trig`, `linear`, `vp`, `ddpm`, or a `Path` of your own.
# - Several devices: put the batch on a `jax.sharding.Mesh` and jit `update` as usual. The losses know nothing of
#   devices.

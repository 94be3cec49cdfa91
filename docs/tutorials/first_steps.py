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
# # First steps
#
# A consistency model makes an image of noise in one evaluation of a network. Here you train one on handwritten digits,
# sample it in one and two evaluations, go from one noise to another, and sample the larger model that comes with cmjax.
#
# ```text
# pip install git+https://github.com/cmjax/cmjax
# ```
#
# is all that it takes, with Python 3.11 or later. Nothing is downloaded besides: the digits are scikit-learn's.

# %%
import tempfile

import jax
import jax.numpy as jnp

import cmjax

# %% [markdown]
# ## Train
#
# A **recipe** is a whole configuration, and `digits_ct` is one of consistency training: it learns from data alone.
# Arguments change its fields, with `__` for each dot: here a smaller network, 1,500 updates in place of 5,000, and ten
# of them in each call of the device. The folder is temporary; in one that stays, such as `"runs/digits"`, the same line
# goes on with a run that was stopped.

# %%
folder = tempfile.mkdtemp()
summary = cmjax.train("digits_ct", folder, steps=1500, net__width=128, steps_per_call=10)

# %% [markdown]
# **The plot** is the loss of each step. It falls in stages because the recipe makes its grid of noise levels finer as
# it goes, and each of them is another task: a low loss does not say that the samples are good.
#
# **The grids** do. They are new samples, in one evaluation each and in two, and the table has numbers for them. The
# Fréchet distance `fd` compares 1,500 samples with held-out digits, the smaller the better: `training images` is the
# row of a perfect model, and `fitted Gaussian` that of a model that knows no more than mean and covariance. After so
# short a training the second evaluation adds errors of its own. The whole recipe reaches 1.44 in one evaluation and
# 1.42 in two, after two minutes on two CPU cores.
#
# ## Sample
#
# `cmjax.load` gives the trained model: a function of noised images and their noise level, which estimates the clean
# images.

# %%
flow_map = cmjax.load(folder)
print(flow_map)

# %% [markdown]
# `cmjax.sample_fn` begins with noise of level 80. `times` are the noise levels of the evaluations: one level, one
# evaluation. Its samples lie in $[-1, 1]$, and `cmjax.image_grid` shows them.

# %%
key = jax.random.key(1)
one = cmjax.sample_fn(flow_map, key, (48, 8, 8, 1), times=(80.0,))
cmjax.image_grid(one, columns=12)

# %% [markdown]
# With two levels the samples of the first evaluation get new noise, of level 0.8, and the network removes that. The
# digits stay what they are, and their strokes change:

# %%
two = cmjax.sample_fn(flow_map, key, (48, 8, 8, 1), times=(80.0, 0.8))
cmjax.image_grid(two, columns=12)

# %% [markdown]
# ## From one noise to another
#
# The model is a function of the noise alone, and neighbours in noise become neighbours in images. `slerp` goes between
# two noises along the sphere on which noise lies; each row is one such way, in twelve steps.

# %%
first, last = jax.random.normal(jax.random.key(2), (2, 4, 1, 8, 8, 1)).repeat(12, axis=2).reshape(2, 48, 8, 8, 1)
between = cmjax.editing.slerp(first, last, jnp.tile(jnp.linspace(0, 1, 12), 4))
cmjax.image_grid(flow_map(80.0 * between, 80.0), columns=12)

# %% [markdown]
# ## The model that comes with cmjax
#
# `cmjax://digits_ct` is the whole recipe, trained: a million parameters. It draws from the same noise as yours did, so
# compare the two, digit by digit.

# %%
flow_map = cmjax.load("cmjax://digits_ct")
cmjax.image_grid(cmjax.sample_fn(flow_map, key, (48, 8, 8, 1), times=(80.0, 0.8)), columns=12)

# %% [markdown]
# ## Next
#
# - [Distil, edit and evaluate](distil_edit_evaluate.py): a diffusion teacher, its student, and what a student can do.
# - [Consistency models from scratch](from_scratch.py): the idea, in 200 lines beside the exact answer.
# - [Your own network, data and loss](your_own.py), and [a folder of your own images](../howto/data.md).
# - [Which method?](../howto/which_method.md) compares them, and says what each one costs.

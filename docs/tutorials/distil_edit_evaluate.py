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
# # Distil, edit and evaluate
#
# A diffusion model needs many evaluations for an image. Distillation makes a consistency model of it, which needs one.
# Here a diffusion model learns handwritten digits and becomes the **teacher** of a **student**; you compare the two,
# and edit images with the student, which was never trained to edit.

# %%
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import cmjax
from cmjax.cli import evaluate
from cmjax.data.sources import digits

# %% [markdown]
# ## The teacher
#
# `digits_edm` is a recipe of EDM's diffusion models. A smaller network and fewer updates than the recipe's 6,000 are
# enough here; `metrics__num=0` leaves the metrics for later, and `report=False` leaves out the page about the run.

# %%
folder = Path(tempfile.mkdtemp())
smaller = {"net__width": 128, "steps_per_call": 10, "metrics__num": 0, "report": False}
teacher = cmjax.train("digits_edm", folder / "teacher", steps=1500, **smaller)

# %% [markdown]
# ## The student
#
# `digits_cd` is consistency distillation. The student starts as a copy of the teacher. In each update the teacher takes
# one step of its ODE, from a noise level to the next lower one of 18, and the student learns to give the same answer at
# both ends of the step.

# %%
student = cmjax.train("digits_cd", folder / "student", objective__teacher=teacher["workdir"], steps=1000, **smaller)

# %% [markdown]
# ## Side by side
#
# The Fréchet distance compares samples with held-out digits, the smaller the better. The last row of each table is
# that of real images. The teacher gets 18 noise levels by Heun's method, which are 35 evaluations, and then four, which
# are 7.

# %%
of_teacher = evaluate.run(teacher["workdir"], metrics=["fd"], steps=[18, 4])

# %%
of_student = evaluate.run(student["workdir"], metrics=["fd"], times=[80, (80, 0.8)])

# %% [markdown]
# The student needs one evaluation for what the teacher does in 35, where the teacher in 7 falls behind. A second
# evaluation helps a student that is trained for longer: the whole recipes reach 1.29 in one and 1.17 in two, and the
# teacher 1.21 ([Results](../results.md)).
#
# Both models are functions of the noise, and the student learned where the teacher's ODE goes. So the same noise gives
# the same digits: in the first row the teacher's in 35 evaluations, then the student's in one and in two, and last the
# teacher's in 7.

# %%
D, f = cmjax.load(teacher["workdir"]), cmjax.load(student["workdir"])
key, shape = jax.random.key(1), (12, 8, 8, 1)


def by_heun(levels):
    times = cmjax.karras_grid(levels, t_min=D.t_min, t_max=D.t_max, rho=7.0)[::-1]
    return cmjax.sample_denoiser(D, key, shape, times=times, path=D.path, solver=cmjax.solvers.heun)


one, two = (cmjax.sample_fn(f, key, shape, times=times) for times in ((80.0,), (80.0, 0.8)))
cmjax.image_grid(jnp.concatenate([by_heun(18), one, two, by_heun(4)]), columns=12)

# %% [markdown]
# ## Edit
#
# A consistency model completes what an image leaves unknown: noise is added, the model removes it, what is known is put
# back, at 40 noise levels from high to low. Ten held-out digits, one of each class, lose their lower half:

# %%
held_out = digits("test")
first_of_each = [int(np.argmax(held_out.labels == label)) for label in range(10)]
images = jnp.asarray(held_out.images[first_of_each] / 127.5 - 1, jnp.float32)
levels = cmjax.karras_grid(40, t_min=f.t_min, t_max=f.t_max, rho=7.0)[::-1]

upper_half = jnp.zeros((1, 8, 8, 1)).at[:, :4].set(1)
inpainting = cmjax.editing.inpainting(upper_half)
filled = [cmjax.editing.edit(f, jax.random.key(seed), images, inpainting, times=levels, clip=True) for seed in (0, 1)]
cmjax.image_grid(jnp.concatenate([images, inpainting.degrade(images), *filled]), columns=10)

# %% [markdown]
# The first row has the images, the second what is known of them (grey is unknown), the others two results with noise of
# their own. Where the upper half fits several digits, the results differ.
#
# **Super-resolution** is the same with another `Operator`: known is the mean of each square of 2×2 pixels.

# %%
finer = cmjax.editing.super_resolution(2)
sharpened = cmjax.editing.edit(f, jax.random.key(0), images, finer, times=levels, clip=True)
cmjax.image_grid(jnp.concatenate([images, finer.degrade(images), sharpened]), columns=10)

# %% [markdown]
# **Strokes** become digits: a rough painting gets a little noise, which hides how it was painted but not where, and the
# model makes a digit of it. Each row has a painting and nine results.

# %%
PAINTINGS = """
..####..  ...##...  ..#.#...
.....#..  ..#..#..  ..#.#...
.....#..  ..#..#..  ..#.#...
....#...  ...##...  ..####..
....#...  ..#..#..  ....#...
...#....  ..#..#..  ....#...
...#....  ..#..#..  ....#...
...#....  ...##...  ....#...
"""
pixels = np.array([[list(part) for part in line.split()] for line in PAINTINGS.strip().splitlines()])  # (8, 3, 8)
painted = jnp.asarray(np.where(pixels == "#", 1.0, -1.0), jnp.float32).transpose(1, 0, 2)[..., None]
strokes = jnp.repeat(painted, 10, axis=0)
nothing = cmjax.editing.nothing_known()
drawn = cmjax.editing.edit(f, jax.random.key(0), strokes, nothing, times=(0.7, 0.3), start=strokes, clip=True)
cmjax.image_grid(drawn.at[::10].set(painted), columns=10)

# %% [markdown]
# **Between two images**: find the noise from which the student makes each of them, and go from one noise to the other.
# The first and the last column are held-out digits, as near as the search came to them.

# %%
start = jax.random.normal(jax.random.key(3), images.shape)
noises, errors = cmjax.editing.invert(f, images, start, time=80.0, steps=200, learning_rate=0.05)
a, b = (jnp.repeat(noises[which], 10, axis=0) for which in (slice(0, 5), slice(5, 10)))
between = cmjax.editing.slerp(a, b, jnp.tile(jnp.linspace(0, 1, 10), 5))
cmjax.image_grid(f(80.0 * between, 80.0), columns=10)

# %% [markdown]
# ## Next
#
# - [Editing](../howto/editing.md) and [Evaluation](../howto/evaluation.md) do the same on the command line.
# - [Which method?](../howto/which_method.md) says when distillation pays, and [Methods](../methods.md) has the others.
# - [Draw](../draw/index.md) makes digits of your own strokes, in the browser.
# - [Your own network, data and loss](your_own.py) leaves the recipes.

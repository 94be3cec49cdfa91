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
# # Consistency models from scratch
#
# This page builds a consistency model in about 200 lines of JAX, and compares it with the right answer. The data are
# points in the plane: six Gaussians. For these data the ideal denoiser has a formula, so the ideal consistency function
# is known too, and every image below can show **exact** beside **learnt**.
#
# Everything is trained while this page is built, on a CPU. You need `jax`, `optax`, `matplotlib`, and `cmjax` for the
# ideal denoiser.

# %%
from functools import partial

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import cmjax

T_MIN, T_MAX, RHO, SIGMA_DATA = 0.002, 80.0, 7.0, 0.5
plt.rcParams["figure.dpi"] = 120

# %% [markdown]
# ## The data
#
# Five Gaussians on a ring and one in its middle, scaled to a standard deviation of 0.5 in each coordinate.

# %%
angles = 2 * np.pi * np.arange(5) / 5 + np.pi / 2
means = np.concatenate([np.zeros((1, 2)), np.stack([np.cos(angles), np.sin(angles)], axis=1)])
weights = np.array([0.2, 0.2, 0.14, 0.16, 0.14, 0.16])
means = means - weights @ means
scale = SIGMA_DATA / np.sqrt((weights @ means**2).mean() + 0.24**2)
mixture = {
    "weights": jnp.asarray(weights, jnp.float32),
    "means": jnp.asarray(scale * means, jnp.float32),
    "variances": jnp.full(6, (0.24 * scale) ** 2, jnp.float32),
}


def draw_data(key, count):
    """Points of the mixture, (count, 2)."""
    mode_key, noise_key = jax.random.split(key)
    modes = jax.random.categorical(mode_key, jnp.log(mixture["weights"]), shape=(count,))
    std = jnp.sqrt(mixture["variances"])[modes, None]
    return mixture["means"][modes] + std * jax.random.normal(noise_key, (count, 2))


# %% [markdown]
# ## From noise to data by an ODE
#
# Add Gaussian noise of standard deviation $t$ to the data, $x_t = x_0 + t \cdot z$. A **denoiser** estimates the clean
# data, $D(x, t) = \mathbb{E}[x_0 \mid x_t = x]$. It gives the *probability-flow ODE*
#
# $$\frac{dx}{dt} = \frac{x - D(x, t)}{t},$$
#
# which moves noise at $t = T = 80$ to data at $t = \varepsilon = 0.002$. A diffusion model learns $D$ and solves this
# ODE step by step. Here $D$ is known: `cmjax.oracles.mixture_denoiser`.

# %%
denoiser = partial(cmjax.oracles.mixture_denoiser, **mixture)


def velocity(x, t):
    """dx/dt of the probability-flow ODE.   x: (b, 2). t: (b,)."""
    return (x - denoiser(x, t)) / t[:, None]


def heun_step(x, t, r):
    """The state at r of the trajectory through x at t, by one step of second order.   t, r: (b,)."""
    step = (r - t)[:, None]
    slope = velocity(x, t)
    return x + step * (slope + velocity(x + step * slope, r)) / 2


def karras_grid(n):
    """n noise levels from T_MIN to T_MAX, evenly spaced in t^(1/rho).   [Karras et al. 2022, eq. 5]"""
    low, high = T_MIN ** (1 / RHO), T_MAX ** (1 / RHO)
    return jnp.asarray(np.linspace(low, high, n) ** RHO, jnp.float32)


@jax.jit
def exact(x):
    """The trajectories from x (b, 2) at T_MAX to T_MIN, (513, b, 2): 512 steps of Heun's method."""
    times = karras_grid(513)[::-1]

    def advance(x, step):
        t, r = (jnp.full(len(x), time) for time in step)
        x = heun_step(x, t, r)
        return x, x

    return jnp.concatenate([x[None], jax.lax.scan(advance, x, (times[:-1], times[1:]))[1]])


# %% [markdown]
# 4,096 points of noise and their trajectories. A point's colour is the direction of its noise, so the colours show
# where each point of noise goes. For the drawing, $x_t$ is divided by $\sqrt{t^2 + 0.5^2}$, so that all times fit; a
# dot is the end of a trajectory.

# %%
noise = jax.random.normal(jax.random.key(1), (4096, 2))
paths = exact(T_MAX * noise)
ends = paths[-1]
colours = plt.get_cmap("hsv")((np.arctan2(noise[:, 1], noise[:, 0]) / (2 * np.pi)) % 1)


def scatter(axes, points, title):
    axes.scatter(points[:, 0], points[:, 1], s=2, color=colours[: len(points)], linewidths=0)
    axes.set(xlim=(-1.5, 1.5), ylim=(-1.5, 1.5), aspect="equal", xticks=[], yticks=[], title=title)


def draw_paths(axes, title):
    shown = np.asarray(paths[::8, :500]) * SIGMA_DATA
    shown = shown / np.sqrt(np.asarray(karras_grid(513))[::-1][::8] ** 2 + SIGMA_DATA**2)[:, None, None]
    for i in range(shown.shape[1]):
        axes.plot(shown[:, i, 0], shown[:, i, 1], color=colours[i], linewidth=0.7)
    axes.scatter(shown[-1, :, 0], shown[-1, :, 1], s=5, color=colours[:500], linewidths=0)
    axes.set(xlim=(-1.5, 1.5), ylim=(-1.5, 1.5), aspect="equal", xticks=[], yticks=[], title=title)


figure, (left, middle, right) = plt.subplots(1, 3, figsize=(9, 3.3), layout="constrained")
scatter(left, SIGMA_DATA * noise, "noise, scaled")
draw_paths(middle, "trajectories of the ODE")
scatter(right, ends, "their ends: data")

# %% [markdown]
# ## The consistency function
#
# The **consistency function** $f(x, t)$ is the end of the trajectory through $x$ at time $t$. One evaluation of it
# replaces the whole integration. Two facts define it [Song et al. 2023]:
#
# - it is constant along each trajectory: $f(x_t, t) = f(x_r, r)$;
# - it is the identity where trajectories end: $f(x, \varepsilon) = x$.
#
# The second fact holds by construction if a network $F$ is scaled as
#
# $$f_\theta(x, t) = c_\text{skip}(t)\,x + c_\text{out}(t)\,F_\theta(c_\text{in}(t)\,x,\ c_\text{noise}(t)),$$
#
# with $c_\text{skip}(\varepsilon) = 1$ and $c_\text{out}(\varepsilon) = 0$.


# %%
def init_params(key, width=64, depth=3, waves=8):
    """A residual network on (x, time), as a pytree of arrays. The last layer starts at zero."""
    keys = iter(jax.random.split(key, 2 * depth + 1))

    def layer(rows, columns):
        return {"w": jax.random.normal(next(keys), (rows, columns)) / rows**0.5, "b": jnp.zeros(columns)}

    params = {"first": layer(2, width), "last": {"w": jnp.zeros((width, 2)), "b": jnp.zeros(2)}}
    params["blocks"] = [{"inner": layer(width, width), "time": layer(2 * waves, 2 * width)} for _ in range(depth)]
    return params


def dense(layer, x):
    return x @ layer["w"] + layer["b"]


def network(params, x, c_noise):
    """F(x, c_noise), (b, 2).   x: (b, 2). c_noise: (b,)."""
    waves = len(params["blocks"][0]["time"]["w"]) // 2
    angles = c_noise[:, None] * np.geomspace(0.25, 16, waves)
    time = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=1)
    h = dense(params["first"], x)
    for block in params["blocks"]:
        gain, shift = jnp.split(dense(block["time"], time), 2, axis=1)
        normed = (h - h.mean(1, keepdims=True)) / jnp.sqrt(h.var(1, keepdims=True) + 1e-6)
        h = h + jax.nn.silu(dense(block["inner"], normed * (1 + gain) + shift))
    return dense(params["last"], jax.nn.silu(h))


def f(params, x, t):
    """The consistency function, (b, 2).   [Song et al. 2023, eq. 5 and app. C]"""
    t = jnp.broadcast_to(t, len(x))[:, None]
    gap, std = t - T_MIN, jnp.sqrt(t**2 + SIGMA_DATA**2)
    c_skip, c_out = SIGMA_DATA**2 / (gap**2 + SIGMA_DATA**2), SIGMA_DATA * gap / std
    return c_skip * x + c_out * network(params, x / std, jnp.log(t[:, 0]) / 4)


# %% [markdown]
# ## Two losses
#
# Take two neighbouring times $r < t$ of a grid, a point $x_t$, and the point $x_r$ of the same trajectory. The student
# at $(x_t, t)$ learns the answer of a **target** at the less noisy $(x_r, r)$:
#
# $$\lambda(t, r)\; d\big(f_\theta(x_t, t),\ f_{\theta^-}(x_r, r)\big).$$
#
# $\theta^-$ are the student's own parameters, averaged, and no gradient flows through them. The distance $d$ is the
# pseudo-Huber distance. The two methods differ in $x_r$ alone:
#
# - **Consistency distillation** (CD): one step of the ODE from $x_t$ to $r$. It needs the denoiser.
# - **Consistency training** (CT): $x_r = x_0 + r\,z$, with the same data and noise as $x_t$. It needs data only.


# %%
def pseudo_huber(x, y, c=0.03):
    return jnp.sqrt(jnp.sum((x - y) ** 2, axis=1) + c**2) - c


def cd_target_point(x0, z, x_t, t, r):
    return heun_step(x_t, t, r)


def ct_target_point(x0, z, x_t, t, r):
    return x0 + r[:, None] * z


def loss(params, target_params, x0, z, t, r, target_point):
    """The loss of each sample, (b,).   [Song et al. 2023, eq. 7 and 10]"""
    x_t = x0 + t[:, None] * z
    target = f(target_params, target_point(x0, z, x_t, t, r), r)
    return pseudo_huber(f(params, x_t, t), jax.lax.stop_gradient(target))


# %% [markdown]
# ## Training
#
# The grid starts coarse, so that what is known at the clean end reaches the noisy end in a few steps. It doubles from
# 16 to 64 intervals, which brings the target nearer to the student and makes it more exact. One `lax.scan` is the whole
# training; the data, the noise and the times of all its steps are drawn before it.


# %%
def draw_times(key, intervals, batch_size):
    """Neighbours (t, r) of the grid with so many intervals, both (b,)."""
    n, grid = jax.random.randint(key, (batch_size,), 0, intervals), karras_grid(intervals + 1)
    return grid[n + 1], grid[n]


def train(target_point, key, *, steps=4500, batch_size=256, stages=(16, 32, 64)):
    """The averaged parameters, and the loss of each step."""
    data_key, noise_key, times_key, params_key = jax.random.split(key, 4)
    shape = (steps, batch_size, 2)
    x0 = draw_data(data_key, steps * batch_size).reshape(shape)
    z = jax.random.normal(noise_key, shape)
    drawn = [draw_times(times_key, intervals, x0[..., 0].size // len(stages)) for intervals in stages]
    t, r = (jnp.concatenate(times).reshape(shape[:2]) for times in zip(*drawn, strict=True))

    params = init_params(params_key)
    optimizer = optax.adam(optax.warmup_cosine_decay_schedule(0.0, 3e-3, 100, steps), b2=0.99)

    def update(state, inputs):
        params, target_params, average, optimizer_state = state

        def mean_loss(params):
            return loss(params, target_params, *inputs, target_point).mean()

        value, gradient = jax.value_and_grad(mean_loss)(params)
        change, optimizer_state = optimizer.update(gradient, optimizer_state)
        params = optax.apply_updates(params, change)
        target_params = optax.incremental_update(params, target_params, 0.05)
        average = optax.incremental_update(params, average, 0.01)
        return (params, target_params, average, optimizer_state), value

    start = (params, params, params, optimizer.init(params))
    (_, _, average, _), values = jax.jit(partial(jax.lax.scan, update))(start, (x0, z, t, r))
    return average, values


distilled, cd_losses = train(cd_target_point, jax.random.key(0))
trained, ct_losses = train(ct_target_point, jax.random.key(0))

# %% [markdown]
# ## Exact and learnt, side by side
#
# Each panel takes the same 4,096 points of noise. The error is the root mean square of the distance between learnt and
# exact end, in units of the data's standard deviation. A student that always answers the data's mean is at $\sqrt 2$.


# %%
def error(points):
    return float(jnp.sqrt(jnp.mean(jnp.sum((points - ends) ** 2, axis=1))) / SIGMA_DATA)


cd_samples, ct_samples = (jax.jit(f)(params, T_MAX * noise, T_MAX) for params in (distilled, trained))
errors = {"cd": error(cd_samples), "ct": error(ct_samples)}
print({name: round(value, 3) for name, value in errors.items()})

# %%
figure, panels = plt.subplots(1, 4, figsize=(12, 3.4), layout="constrained")
draw_paths(panels[0], "the ODE, from noise to data")
scatter(panels[1], ends, "exact: 512 steps")
scatter(panels[2], cd_samples, f"CD: one step, error {errors['cd']:.3f}")
scatter(panels[3], ct_samples, f"CT: one step, error {errors['ct']:.3f}")

# %% [markdown]
# CD has the exact trajectories to learn from. CT sees one sample of data and noise at a time, so its target is right on
# average only; its error is larger for the same number of steps.
#
# ## Where the error arises
#
# Along an exact trajectory a perfect $f$ is constant. The next image takes 4,096 exact trajectories and asks how far
# $f_\theta(x_t, t)$ is from their exact ends, for each $t$.

# %%
times = karras_grid(513)[::-1]
shown = np.arange(0, 513, 16)
figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
for name, params in (("CD", distilled), ("CT", trained)):
    axes.loglog(times[shown], [error(jax.jit(f)(params, paths[i], times[i])) for i in shown], label=name)
axes.set(xlabel="noise level t", ylabel="error")
axes.legend()
axes.grid(alpha=0.3)

# %% [markdown]
# ## Several steps
#
# Add noise to a sample, and map it to data again: **multistep consistency sampling** [Song et al. 2023, alg. 1]. The
# new noise moves the points, so they cannot be held against the exact ends one by one. The *energy distance* compares
# the two sets of points instead: the smaller, the more alike they are.


# %%
def second_step(params, key, x0, t):
    """Noise up to the level t, and the estimate from there."""
    return jax.jit(f)(params, x0 + jnp.sqrt(t**2 - T_MIN**2) * jax.random.normal(key, x0.shape), t)


@jax.jit
def energy_distance(points, others):
    """2·E|x − y| − E|x − x'| − E|y − y'|, over 2,048 points of each."""

    def mean_distance(a, b):
        return jnp.mean(jnp.linalg.norm(a[:2048, None] - b[None, :2048], axis=2))

    return 2 * mean_distance(points, others) - mean_distance(points, points) - mean_distance(others, others)


fresh = draw_data(jax.random.key(2), 4096)
for name, points in {
    "exact": ends,
    "CD, one step": cd_samples,
    "CD, two steps": second_step(distilled, jax.random.key(3), cd_samples, 0.8),
    "CT, one step": ct_samples,
    "CT, two steps": second_step(trained, jax.random.key(3), ct_samples, 0.8),
}.items():
    print(f"{name}: {float(energy_distance(points, fresh)):.4f}")

# %% [markdown]
# The row *exact* is what chance leaves between two sets of so many points. On the digits of [Methods](../methods.md) a
# second step helps most methods. On these data one step is nearly right, and a second step adds an error of its own.

# %% [markdown]
# ## The same with cmjax
#
# What was written out above is in the library, for any network, path and method. With the same parameters, data, noise
# and times its losses are the same numbers:

# %%
scalings = partial(cmjax.preconditioning.consistency, sigma_data=SIGMA_DATA, t_min=T_MIN)
model = cmjax.Model(lambda params, x, c_noise, *, key=None: network(params, x, c_noise), cmjax.paths.ve, scalings)
common = {"distance": partial(cmjax.distances.pseudo_huber, c=0.03), "weight": cmjax.weightings.uniform}

x0, z = draw_data(jax.random.key(4), 256), jax.random.normal(jax.random.key(5), (256, 2))
grid = cmjax.karras_grid(65, t_min=T_MIN, t_max=T_MAX, rho=RHO).astype(np.float32)
r, t = jnp.asarray(grid[np.arange(256) % 64]), jnp.asarray(grid[np.arange(256) % 64 + 1])
batch = cmjax.Batch(x0, z, cmjax.Times(t=t, r=r))


@partial(jax.jit, static_argnums=(1, 2))
def difference(params, target_point, library_loss):
    return jnp.abs(loss(params, params, x0, z, t, r, target_point) - library_loss(model, params, None, batch)).max()


ct = partial(cmjax.losses.ct, **common)
cd = partial(cmjax.losses.cd, teacher=denoiser, ode_step=cmjax.ode.heun_step, **common)
differences = {
    "ct": float(difference(trained, ct_target_point, ct)),
    "cd": float(difference(distilled, cd_target_point, cd)),
}
print(differences)

# %% [markdown]
# The sampler, too:

# %%
flow_map = partial(model, distilled)
draw = partial(cmjax.sample_fn, flow_map, shape=(4096, 2), times=(80.0, 0.8), t_min=T_MIN)
samples = jax.jit(draw)(jax.random.key(0))
print(f"{float(energy_distance(samples, fresh)):.4f}")

# %% [markdown]
# Next: [your own network, data and loss](your_own.py).

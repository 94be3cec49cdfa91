"""The train step: a pure function (state, frozen, batch) -> (state, metrics), and its jitted form on a mesh."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from cmjax.core.guidance import drop_labels
from cmjax.core.model import Model
from cmjax.core.paths import per_sample
from cmjax.core.typing import Params, PerSample, PRNGKey, Samples, Schedule
from cmjax.system.environment import platform, tracing_for
from cmjax.system.mesh import batch_sharding, over_steps, parameter_shardings, replicated
from cmjax.system.program import jaxpr_flops
from cmjax.training.average_rates import TARGET
from cmjax.training.method import Method
from cmjax.training.optimizer import averages
from cmjax.training.state import Examples, TrainState

Metrics = dict[str, Array]
TrainStep = Callable[[TrainState, Params, Examples], tuple[TrainState, Metrics]]


def make_method_step(
    model: Model,
    method: Method,
    optimizer: optax.GradientTransformation,
    *,
    prepare: Callable[[Examples, PRNGKey], tuple[Samples, dict[str, Array]]],
    seed: int,
    grad_accumulation: int = 1,
    skip_nonfinite: int = 0,
    schedules: Mapping[str, Schedule] | None = None,
    bins: int = 0,
    bin_of: Callable[[PerSample], Int[Array, " b"]] | None = None,
    whole: Callable[[Params, Mapping[str, Params]], Params] = lambda params, frozen: params,
) -> TrainStep:
    """Makes the step of one optimizer update by `method.loss`. Its randomness is a function of (seed, step), so that a
    resumed run repeats the original's.

    At a loss or gradient that is not finite the state stays as it was, and `loss` in the metrics is nan. The first
    `skip_nonfinite` such steps are counted, as `skipped`, and the next step has another batch; after them the state
    stays for good, and `finite` turns False.
    `frozen` holds what the loss uses and training leaves alone, such as the teacher's parameters.

    Args: prepare: (batch as stored, key) -> x0 and the network's conditions, such as `prepare_inputs` with its choices.
          grad_accumulation: the batch is processed in this many parts.
          schedules: functions of the step to report among the metrics.
          bins: how many parts the losses are summed in, (2, bins) sums and counts as `loss_bins` in the metrics;
          bin_of: times t (b,) -> the part that each sample belongs to.
          whole: (what is trained, frozen) -> the network's parameters.
    """

    def train_step(state, frozen, batch):
        # a function of the step alone, not of the keys before it: a resumed run samples as the whole one
        data_key, method_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), state.step))
        x0, inputs = prepare(batch, data_key)
        # None where the method's target is the student itself
        target_params = averages(state.opt_state).get(TARGET)

        def mean_loss(params, key, x0, conditions):
            params = whole(params, frozen)
            target = params if target_params is None else whole(target_params, frozen)
            batch, dropout_key = method.sample_batch(key, x0, state.step, conditions)
            arguments = method.arguments(state.step, target, frozen)
            # one key: student and target share their masks of dropout
            losses = method.loss(model, params, dropout_key, batch, **arguments)
            bin_sums = {} if bin_of is None else {"loss_bins": _sums_by_bin(losses, bin_of(batch.times.t), bins)}
            return jnp.mean(losses), bin_sums

        value_and_grad = jax.value_and_grad(mean_loss, has_aux=True)
        (loss, bin_sums), grads = _accumulate(
            value_and_grad, state.params, method_key, x0, inputs, parts=grad_accumulation
        )
        reported = {name: schedule(state.step) for name, schedule in (schedules or {}).items()}
        state, of_update = _update(state, optimizer, loss, grads, skip_nonfinite=skip_nonfinite)
        return state, {**of_update, **reported, **bin_sums}

    return train_step


def _update(state, optimizer, loss, grads, *, skip_nonfinite) -> tuple[TrainState, Metrics]:
    """Gives the state after the optimizer's update, or before it where the loss or the gradient is not finite."""
    grad_norm = optax.tree.norm(grads)
    # one number for all leaves: their norm is finite only if each of them is
    good = state.finite & jnp.isfinite(loss) & jnp.isfinite(grad_norm)
    # a skipped step is no end: the next batch may be finite
    finite = good | state.finite & (state.skipped < skip_nonfinite)

    def update(state):
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        return state.replace(params=optax.apply_updates(state.params, updates), opt_state=opt_state)

    metrics = {"loss": jnp.where(good, loss, jnp.nan), "grad_norm": grad_norm, "finite": finite}
    if skip_nonfinite:
        # `state` is the one from before this step
        metrics["skipped"] = state.skipped + (finite & ~good).astype(jnp.int32)
    if platform() == "cpu":  # a branch, in place: choosing between two states takes longer than Adam
        state = jax.lax.cond(good, update, lambda state: state, state)
    else:
        state = jax.tree.map(lambda new, old: jnp.where(good, new, old), update(state), state)
    return state.replace(step=state.step + finite.astype(jnp.int32), finite=finite), metrics


def prepare_inputs(
    batch: Examples,
    key: PRNGKey,
    *,
    preprocess: Callable[[Array, PRNGKey], Samples],
    augment: Callable[[Samples, PRNGKey], tuple[Samples, Array]] | None = None,
    conditions: Sequence[str] = (),
    label_dropout: float = 0.0,
    drop_first: bool = False,
    keep_labels: bool = False,
    empty: Mapping[str, Any] | None = None,
    negative: bool = False,
) -> tuple[Samples, dict[str, Array]]:
    """Computes x0 and the network's conditions from a batch as it is stored.

    Args: preprocess: (images as stored, key) -> x0. augment: (x0, key) -> (x0, labels (b, n)), which the network
          takes as the condition `augment`. conditions: what of the batch it takes beside x0, such as "label".
          label_dropout: the fraction of the labels, or prompts, that are left out; drop_first: those of the first
          samples. keep_labels: all labels are among the conditions too, as `kept_label`.
          empty: of a network that sees prompts, its inputs without one, as "context" (n, d), which stand in for those
          that are left out; with `negative` they are among the conditions too, of each sample.
    """
    preprocess_key, augment_key, label_key = jax.random.split(key, 3)
    x0 = preprocess(batch["image"], preprocess_key)
    inputs = {name: batch[name] for name in conditions}
    # before labels are left out below
    if keep_labels:
        inputs["kept_label"] = inputs["label"]
    if label_dropout and empty is None:
        inputs["label"] = drop_labels(label_key, inputs["label"], rate=label_dropout, first=drop_first)
    if empty is not None:
        inputs |= _without_prompts(label_key, inputs, empty, rate=label_dropout, negative=negative)
    if augment is not None:
        x0, inputs["augment"] = augment(x0, augment_key)
    return x0, inputs


def _without_prompts(
    key: PRNGKey, inputs: Mapping[str, Any], empty: Mapping[str, Any], *, rate: float, negative: bool
) -> dict[str, Any]:
    """Leaves out the fraction `rate` of the prompts among the inputs; with `negative` adds those without a prompt."""
    absent = {name: jnp.broadcast_to(jnp.asarray(value), inputs[name].shape) for name, value in empty.items()}
    dropped = jax.random.uniform(key, (len(inputs["context"]),)) < rate
    seen = {name: jnp.where(per_sample(dropped, value), value, inputs[name]) for name, value in absent.items()}
    return {**seen, **({"negative": absent} if negative else {})}


def _sums_by_bin(losses: PerSample, places: Int[Array, " b"], bins: int) -> Float[Array, "2 bins"]:
    """Sums the losses in each bin, and counts them."""
    # (bins, b): whether a sample lies in a bin
    within = places[None] == jnp.arange(bins)[:, None]
    return jnp.stack([jnp.sum(jnp.where(within, losses[None], 0), axis=1), jnp.sum(within, axis=1, dtype=losses.dtype)])


def _accumulate(value_and_grad, params, key, x0, conditions, *, parts):
    """Averages what `value_and_grad` gives for each of `parts` equal slices of the batch."""
    if parts == 1:
        return value_and_grad(params, key, x0, conditions)

    def slices(array):
        # strided, so that each slice stays spread over all devices
        return array.reshape(-1, parts, *array.shape[1:]).swapaxes(0, 1)

    def add(total, part):
        return jax.tree.map(jnp.add, total, value_and_grad(params, *part)), None

    inputs = (jax.random.split(key, parts), slices(x0), jax.tree.map(slices, conditions))
    # the shapes of one part's losses and gradients, from which the sum starts
    one = jax.eval_shape(value_and_grad, params, *jax.tree.map(lambda array: array[0], inputs))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), one)
    # A convolution's weight gradient inside a scan is some 50 times slower on a CPU: unrolled there.
    unroll = parts if platform() == "cpu" else 1
    # the sums of bins and their counts are divided as well: only their ratio is read
    return jax.tree.map(lambda total: total / parts, jax.lax.scan(add, zeros, inputs, unroll=unroll)[0])


def state_shapes(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """Gives the shapes of the state of a run with parameters, or shapes of parameters, like these. Nothing is
    computed."""
    return jax.eval_shape(partial(_first_state, optimizer), params)


def init_state(params: Params, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Makes the state at step 0, laid out over the mesh. `params` are host arrays that every process holds alike, or
    lie over the mesh; they are copied."""
    # laid out by what makes it: a state that is split over `fsdp` need not fit on one device
    shardings = parameter_shardings(state_shapes(params, optimizer), mesh)
    return jax.jit(partial(_first_state, optimizer), out_shardings=shardings)(params)


def _first_state(optimizer: optax.GradientTransformation, params: Params) -> TrainState:
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        # the train step is donated its state, and these parameters may still be another's
        params=jax.tree.map(jnp.copy, params),
        opt_state=optimizer.init(params),
        finite=jnp.ones((), bool),
    )


class CompiledStep:
    """Holds the executable of a train step for exactly these shapes: called with any other, it fails rather than
    compile again. With every step the processes vote on stopping, so that all of them stop at the same one."""

    def __init__(self, executable: Any, mesh: Mesh, *, flops: float):
        """Args: flops: operations of a step on all devices, those of matrix products and convolutions."""
        self.executable, self.flops, self._mesh = executable, flops, mesh
        self._votes: dict[int, Array] = {}

    def __call__(self, state: TrainState, frozen: Params, batch: Examples, stop: int = 0) -> tuple[TrainState, Metrics]:
        """One step. `stop`: what this process votes for, a signal's number or 0; the largest of all is among the
        metrics as `stop`."""
        # kept by signal, as most steps vote 0: no transfer in every step
        if stop not in self._votes:
            # one for each device, of which this process makes its own alone
            vote = np.full(1, stop, np.int32)
            sharding = batch_sharding(self._mesh)
            self._votes[stop] = jax.make_array_from_callback((self._mesh.size,), sharding, lambda index: vote)
        return self.executable(state, frozen, batch, self._votes[stop])


def compile_train_step(
    train_step: TrainStep, state: TrainState, frozen: Params, batch: Examples, mesh: Mesh, *, steps_per_call: int = 1
) -> CompiledStep:
    """Compile the train step for states, frozen parameters and batches like these arrays, or shapes.

    Where `steps_per_call` is above 1, one call does so many steps, of a batch (steps_per_call, b, ...), and its metrics
    have that axis too.
    """
    traced = trace_train_step(train_step, state, frozen, batch, mesh, steps_per_call=steps_per_call)
    return CompiledStep(traced.lower().compile(), mesh, flops=jaxpr_flops(traced.jaxpr.jaxpr) / steps_per_call)


def trace_train_step(
    train_step: TrainStep, state: TrainState, frozen: Params, batch: Examples, mesh: Mesh, *, steps_per_call: int = 1
) -> jax.stages.Traced:
    """Traces the train step for the devices of the mesh, here or not, as `compile_train_step` does.

    The state is donated; frozen parameters are an argument, never constants.
    """

    def train_step_with_votes(state, frozen, batch, votes):
        if steps_per_call > 1:
            state, metrics = jax.lax.scan(lambda state, batch: train_step(state, frozen, batch), state, batch)
        else:
            state, metrics = train_step(state, frozen, batch)
        # a maximum over the mesh: each process reads the same number
        return state, {**metrics, "stop": jnp.max(votes)}

    state_shardings, by_device = parameter_shardings(state, mesh), batch_sharding(mesh)
    jitted = jax.jit(
        train_step_with_votes,
        donate_argnums=0,
        in_shardings=(
            state_shardings,
            parameter_shardings(frozen, mesh),
            over_steps(by_device) if steps_per_call > 1 else by_device,
            by_device,
        ),
        out_shardings=(state_shardings, replicated(mesh)),
    )
    votes = jax.ShapeDtypeStruct((mesh.size,), jnp.int32)
    # a mesh of another machine's devices: networks ask for the platform while they are traced
    with tracing_for(mesh.devices.flat[0].platform):
        return jitted.trace(state, frozen, batch, votes)

"""ODEs to a tolerance, by diffrax: the one file of `core` that uses an optional library."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from cmjax.core.typing import Samples, Velocity


def solve_adaptive(
    velocity: Velocity,
    x: Samples,
    times: Float[Array, " n"],
    *,
    rtol: float,
    atol: float,
    max_steps: int = 4096,
) -> Samples:
    """The state at times[-1] of the solution through x at times[0], with as many steps as the tolerances ask for.

    Tsitouras' fifth-order Runge-Kutta method under a PI controller. All samples share their steps, which the sample
    with the largest error decides: the others' results depend on it, but by less than the tolerances.

    Args:   velocity: (x, t) -> dx/dt. times: the first and the last are used, in either order. rtol, atol: each
            sample's error of a step, as a root mean square, stays below atol + rtol·|x|.
    Raises: ValueError where a tolerance is negative or both are zero, ImportError where diffrax is not installed,
            RuntimeError (from diffrax) where max_steps do not do.
    """
    if min(rtol, atol) < 0 or max(rtol, atol) == 0:
        raise ValueError(f"rtol and atol must be at least 0, and one of them above, got {rtol} and {atol}")
    try:
        import diffrax
    except ImportError as error:
        raise ImportError("solving to a tolerance needs diffrax: pip install 'cmjax[ode]'") from error

    def largest_of_samples(scaled_error):
        return jnp.max(jnp.sqrt(jnp.mean(scaled_error.reshape(len(x), -1) ** 2, axis=1)))

    controller = diffrax.PIDController(rtol=rtol, atol=atol, pcoeff=0.3, icoeff=0.4, norm=largest_of_samples)
    states = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda t, x, args: velocity(x, t)),
        diffrax.Tsit5(),
        t0=times[0],
        t1=times[-1],
        dt0=None,
        y0=x,
        stepsize_controller=controller,
        max_steps=max_steps,
    ).ys
    return jnp.asarray(states)[-1]

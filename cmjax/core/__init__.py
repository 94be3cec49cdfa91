"""Pure functions of arrays: the mathematics of consistency models. Imports jax, numpy and jaxtyping only."""

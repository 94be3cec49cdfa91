"""What every test runs under: four CPU devices, no silent broadcasting, shapes in signatures checked."""

import os
from pathlib import Path

from tests.compiling import as_a_user, on_devices

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {on_devices(4)}"

import jax
import numpy as np
import pytest
from jaxtyping import install_import_hook

install_import_hook(
    ["cmjax.core", "cmjax.data", "cmjax.evaluation", "cmjax.metrics", "cmjax.nets"],
    "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))",  # an int is a float, as in signatures
)
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_configure(config):
    """A rerun finds its compiled programs in pytest's cache, those of the program's modes as well."""
    cache = str(config.rootpath / ".pytest_cache" / "jax")
    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", cache)
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")


SLOW = (
    "test_main", "test_interop", "test_processes", "test_continuous_losses", "test_readme", "test_edit", "test_faults",
    "test_solvers", "test_bucket_runs", "test_configs", "test_latents", "test_diagnosis",
)  # fmt: skip
"""The files that take longest; those that start processes stand beside others."""


def pytest_collection_modifyitems(items):
    """The slow files come first, so that none is begun when the other workers have ended."""
    items.sort(key=lambda item: SLOW.index(item.path.stem) if item.path.stem in SLOW else len(SLOW))


@pytest.fixture(scope="session")
def shared(request):
    """The folder with recorded numbers and data sets, shared/ beside the checkout unless CMJAX_SHARED names it."""
    folder = Path(os.environ.get("CMJAX_SHARED", request.config.rootpath.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no shared folder at {folder}; CMJAX_SHARED names it")
    return folder


@pytest.fixture(scope="session")
def openai(shared):
    """The numbers recorded from OpenAI's consistency_models; parity/README.md says what each is."""
    return np.load(shared / "parity" / "openai.npz")


@pytest.fixture(scope="session")
def edm(shared):
    """The numbers recorded from NVIDIA's EDM."""
    return np.load(shared / "parity" / "edm.npz")


@pytest.fixture
def compiled_as_a_user():
    """As `as_a_user`."""
    with as_a_user():
        yield


@pytest.fixture
def x64():
    """float64, for what is held to rounding."""
    with jax.enable_x64(True):
        yield

"""The versions of a run's libraries, the commit of its code, and its devices."""

import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


def provenance() -> dict[str, Any]:
    """The record's entries "versions" and "git_commit"."""
    packages = ("cmjax", "jax", "flax", "optax", "orbax-checkpoint", "numpy")
    return {"versions": {name: _version(name) for name in packages}, "git_commit": _git_commit()}


def devices() -> str:
    """Describe the devices of all processes, as `8 x TPU v4`."""
    import jax

    return f"{jax.device_count()} x {jax.devices()[0].device_kind}"


def _git_commit() -> str | None:
    """The commit of the checkout that runs; None for an installed package, or without git."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None

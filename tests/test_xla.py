"""XLA_FLAGS is changed where it helps, and left alone everywhere else."""

import os

import pytest

from cmjax.system import xla


@pytest.mark.parametrize(
    ("flags", "jaxlib", "plugins", "expected"),
    [
        ("", "0.10.2", [], f"{xla.FUSIONS}=LIBRARY_FUSION_TYPE_REDUCE"),
        ("--a=1", "0.10.2", [], f"--a=1 {xla.FUSIONS}=LIBRARY_FUSION_TYPE_REDUCE"),
        (f"{xla.FUSIONS}=", "0.10.2", [], f"{xla.FUSIONS}="),
        ("--a=1", "0.11.0", [], "--a=1"),
        ("--a=1", "0.10.2", ["libtpu"], "--a=1"),
        ("--a=1", "0.10.2", ["jax_plugins"], "--a=1"),
        ("--a=1", "", [], "--a=1"),
    ],
)
def test_flags(monkeypatch, flags, jaxlib, plugins, expected):
    monkeypatch.setenv("XLA_FLAGS", flags)
    monkeypatch.setattr(xla, "find_spec", lambda name: name in plugins or None)
    monkeypatch.setattr(xla, "_jaxlib", lambda: jaxlib)
    xla.prefer_fast_convolutions()
    assert os.environ["XLA_FLAGS"] == expected

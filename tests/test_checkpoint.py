"""Checkpoints: what is saved comes back, on any layout; what is damaged is noticed, and the one before is used."""

import contextlib
import resource

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cmjax.system import mesh
from cmjax.system.mesh import make_mesh
from cmjax.training.checkpoint import Checkpointer, CheckpointError
from cmjax.training.optimizer import make_optimizer
from cmjax.training.saved import CHECKSUMS, saved_steps
from cmjax.training.saved_averages import restore_average, save_average
from cmjax.training.step import init_state

OPTIMIZER = make_optimizer(
    optax.scale_by_radam(),
    learning_rate=lambda step: 1e-3,
    clip_norm=0.0,
    weight_decay=0.0,
    average_rates={"target": lambda step: 0.5, "ema0": lambda step: 0.9},
)


def state_at(step):
    params = {"a": {"kernel": jnp.arange(64.0).reshape(8, 8) + step}, "b": jnp.full(3, float(step))}
    return init_state(params, OPTIMIZER, make_mesh()).replace(step=jnp.int32(step))


def save(folder, steps, **options):
    with Checkpointer(folder, **options) as checkpointer:
        for step in steps:
            checkpointer.save(state_at(step), step)


def flip_a_bit(step_folder):
    largest = max((p for p in (step_folder / "params").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 4
    largest.write_bytes(content)


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def test_a_state_comes_back_on_another_layout(tmp_path, monkeypatch):
    monkeypatch.setattr(mesh, "SMALL", 0)
    save(tmp_path, [7])
    with Checkpointer(tmp_path) as checkpointer:
        restored = checkpointer.restore(state_at(0), make_mesh(fsdp=4))
    assert_same(restored, state_at(7))
    assert "fsdp" in str(restored.params["a"]["kernel"].sharding.spec)


def test_an_empty_folder_has_nothing_to_restore(tmp_path):
    with Checkpointer(tmp_path) as checkpointer:
        assert checkpointer.restore(state_at(0), make_mesh()) is None


def test_the_newest_are_kept_and_every_multiple(tmp_path):
    save(tmp_path, [2, 5, 6, 10, 12, 14], keep=2, keep_every=5)
    assert sorted(int(p.name) for p in tmp_path.iterdir() if p.name.isdigit()) == [5, 10, 12, 14]


@pytest.mark.parametrize("damage", [flip_a_bit, lambda step: (step / "optimizer" / "_METADATA").write_text("{")])
def test_a_damaged_checkpoint_is_put_aside_for_the_one_before(tmp_path, damage, caplog):
    save(tmp_path, [1, 2])
    damage(tmp_path / "2")
    with Checkpointer(tmp_path) as checkpointer:
        assert_same(checkpointer.restore(state_at(0), make_mesh()), state_at(1))
        checkpointer.save(state_at(2), 2)
    assert "cannot be read" in caplog.text
    assert (tmp_path / "damaged-2").is_dir()
    with Checkpointer(tmp_path) as checkpointer:
        assert_same(checkpointer.restore(state_at(0), make_mesh()), state_at(2))


def test_truncation_is_noticed_without_checksums(tmp_path):
    save(tmp_path, [1, 2])
    (tmp_path / "2" / CHECKSUMS).unlink()
    for file in (tmp_path / "2" / "params").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[:5])
    with Checkpointer(tmp_path) as checkpointer:
        assert_same(checkpointer.restore(state_at(0), make_mesh()), state_at(1))


def test_when_none_can_be_read_nothing_is_touched(tmp_path):
    save(tmp_path, [1, 2])
    for step in (1, 2):
        flip_a_bit(tmp_path / str(step))
    with Checkpointer(tmp_path) as checkpointer, pytest.raises(CheckpointError, match=r"\[2, 1\]"):
        checkpointer.restore(state_at(0), make_mesh())
    assert sorted(p.name for p in tmp_path.iterdir() if p.name[0] != ".") == ["1", "2"]


def test_one_average_is_read_alone(tmp_path):
    save(tmp_path, [3, 4])
    like = jax.eval_shape(lambda: state_at(0).params)
    assert_same(restore_average(tmp_path, lambda: like, "ema0"), state_at(4).params)
    assert_same(restore_average(tmp_path, lambda: like, "ema0", step=3), state_at(3).params)
    with pytest.raises(CheckpointError, match="of step 9"):
        restore_average(tmp_path, lambda: like, "ema0", step=9)


def test_an_average_that_no_training_made_is_one_file(tmp_path, monkeypatch):
    """It comes back on the host's first device and split over a mesh, without its shapes; a changed file is noticed."""
    monkeypatch.setattr(mesh, "SMALL", 0)
    params = {**state_at(5).params, "gain": np.float32(2)}
    save_average(tmp_path, params, "ema0")
    alone, split = (restore_average(tmp_path, pytest.fail, "ema0", mesh=over) for over in (None, make_mesh(fsdp=4)))
    for restored in (alone, split):
        assert_same(restored, params)
    assert len(alone["a"]["kernel"].devices()) == 1
    assert "fsdp" in str(split["a"]["kernel"].sharding.spec)
    assert saved_steps(tmp_path) == [0]
    (file,) = tmp_path.rglob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-4] + b"abcd")
    with pytest.raises(CheckpointError, match="none of the checkpoints"):
        restore_average(tmp_path, pytest.fail, "ema0")


LARGE = {"kernel": jnp.asarray(np.random.default_rng(0).normal(size=(512, 512)), jnp.float32)}


def large_state_at(step):
    return init_state(LARGE, OPTIMIZER, make_mesh()).replace(step=jnp.int32(step))


@contextlib.contextmanager
def full_disk():
    """No file may grow beyond 256 KiB, which the parameters do."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**18, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # TensorStore, of the loop it wrote in
def test_a_save_that_fails_is_said_and_the_next_one_works(tmp_path, caplog):
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(large_state_at(1), 1)
        checkpointer._settle()
        with full_disk():
            for step in (2, 3):
                checkpointer.save(large_state_at(step), step)
            checkpointer._settle()
        said = [record.message for record in caplog.records if "could not be saved" in record.message]
        assert [f"{tmp_path / str(step)} could not be saved" in line for step, line in zip((2, 3), said, strict=True)]
        assert "File too large" in said[0]
        checkpointer.save(large_state_at(4), 4)
        checkpointer.save(large_state_at(4), 4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "4"]
    assert (tmp_path / "4" / CHECKSUMS).exists()
    with Checkpointer(tmp_path) as checkpointer:
        assert_same(checkpointer.restore(large_state_at(0), make_mesh()), large_state_at(4))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_last_save_that_fails_is_an_error(tmp_path):
    save(tmp_path, [1])
    with full_disk():
        checkpointer = Checkpointer(tmp_path)
        checkpointer.save(large_state_at(2), 2)
        with pytest.raises(CheckpointError, match="File too large"):
            checkpointer.__exit__()
    with Checkpointer(tmp_path) as again:
        assert int(again.restore(state_at(0), make_mesh()).step) == 1


def test_what_a_kill_cut_short_is_removed(tmp_path):
    save(tmp_path, [1])
    (tmp_path / "2.orbax-checkpoint-tmp" / "params").mkdir(parents=True)
    with Checkpointer(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == ["1"]

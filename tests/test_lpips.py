"""LPIPS against the peers' recorded distances, and what a training loss needs of it."""

import os
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmjax.config.choices import DISTANCES
from cmjax.config.fields import Fields
from cmjax.config.readers import READERS, Objective
from cmjax.core.distances import curvature_speed
from cmjax.interop.features import load_lpips
from cmjax.nets.features.lpips import WIDTHS, lpips
from configs import imagenet64_cd, imagenet64_ct
from tests.recorded_parts import quick_jit

RECORDED = Path(os.environ.get("CMJAX_SHARED", Path(__file__).parents[2] / "shared")) / "parity" / "lpips.npz"
# Programs that run once: compiling them is what these tests cost.


def recipe() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Weights under the published files' keys, as the parity folder's README describes them."""
    random, vgg, channels, index = np.random.RandomState(1234), {}, 3, 0
    for widths in WIDTHS:
        for width in widths:
            weight = random.standard_normal((width, channels, 3, 3)) * np.sqrt(2 / (channels * 9))
            vgg[f"features.{index}.weight"] = weight.astype(np.float32)
            vgg[f"features.{index}.bias"] = (random.standard_normal(width) * 0.05).astype(np.float32)
            channels, index = width, index + 2
        index += 1
    random = np.random.RandomState(99)
    lins = [np.abs(random.standard_normal((1, widths[-1], 1, 1))) for widths in WIDTHS]
    return vgg, {f"lin{i}.model.1.weight": lin for i, lin in enumerate(lins)}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lpips")
    vgg, heads = recipe()
    np.savez(folder / "vgg16.npz", **vgg, **{"classifier.0.weight": np.zeros(1)})
    np.savez(folder / "heads.npz", **heads)
    return folder / "vgg16.npz", folder / "heads.npz"


@pytest.fixture(scope="module")
def params(files):
    return load_lpips(*files)


@pytest.mark.parametrize(
    ("key", "resize"), [("lpips_32", None), pytest.param("lpips_224", 224, marks=pytest.mark.slow)]
)
def test_recorded_distances(params, key, resize):
    if not RECORDED.exists():
        pytest.skip(f"needs the recorded numbers, {RECORDED}; CMJAX_SHARED names the folder that holds parity/")
    with np.load(RECORDED, allow_pickle=False) as recorded:
        x, y = (np.float32(recorded[name]).transpose(0, 2, 3, 1) for name in ("x", "y"))
        expected = recorded[key].ravel()
    distances = quick_jit(lambda params, x, y: lpips(params, x, y, resize=resize, pool="avg"))(params, x, y)
    np.testing.assert_allclose(distances, expected, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("pooling", "pool"), [("", "max"), (", pooling='average'", "avg")])
def test_a_recipe_chooses_the_pooling(params, files, pooling, pool):
    x = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (2, 16, 16, 3)), jnp.float32)
    text = f"lpips(vgg={str(files[0])!r}, heads={str(files[1])!r}, resize=16{pooling})"
    read = READERS["distance"](Objective(Fields({"distance": text}), None, 0))
    distance = read["by_frozen"]["distance"]({"lpips": read["frozen"]["lpips"].load()})
    np.testing.assert_allclose(distance(x, -x), lpips(params, x, -x, resize=16, pool=pool), rtol=1e-6)


def test_the_published_runs_on_imagenet_average():
    for recipe in (imagenet64_cd, imagenet64_ct):
        chosen = Fields(recipe.get_config().objective.to_dict()).choice("distance", DISTANCES)
        assert chosen.parameters["pooling"] == "average"


def test_gradient_is_finite_at_zero_distance_and_at_zero_features(params):
    # Biases below what any image can lift: the first tap is zero everywhere, and its length has no slope.
    dead = {**params, "convolutions": [[{**params["convolutions"][0][0], "bias": jnp.full(64, -1e3)}], *([[]] * 4)]}
    dead["heads"] = [params["heads"][0]] * 5
    x = jnp.linspace(-1, 1, 16 * 16 * 3).reshape(1, 16, 16, 3)

    def distance(weights, x, y):
        return lpips(weights, x, y, resize=None)[0]

    for weights in (params, dead):
        value, gradient = quick_jit(jax.value_and_grad(distance, argnums=1))(weights, x, x)
        assert value < 1e-12
        assert np.isfinite(gradient).all()
    assert (lpips(dead, x, -x, resize=None) == 0).all()


@pytest.mark.slow
def test_the_two_poolings_differ_and_small_images_are_enlarged(params):
    x = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (1, 16, 16, 3)), jnp.float32)
    plain = lpips(params, x, -x, resize=None)
    assert plain > 0
    assert abs(lpips(params, x, -x, resize=None, pool="avg") / plain - 1) > 1e-3
    assert abs(lpips(params, x, -x, resize=24) / plain - 1) > 1e-3
    assert lpips(params, x, -x, resize=16) == plain


def test_wrong_inputs_and_files_are_named(params, files, tmp_path):
    x = jnp.zeros((1, 16, 16, 3))
    with pytest.raises(ValueError, match="pool must be"):
        lpips(params, x, x, pool="min")
    with pytest.raises(ValueError, match="RGB"):
        lpips(params, x[..., :1], x[..., :1])
    heads = dict(np.load(files[1]))
    for change, message in (
        ({"lin1.model.1.weight": None}, "no lin1.model.1.weight"),
        ({"lin1.model.1.weight": np.zeros(3)}, "lin1.model.1.weight in .* must have shape"),
        ({"lin9": np.zeros(3)}, "unexpected keys .* lin9"),
    ):
        changed = {key: value for key, value in (heads | change).items() if value is not None}
        np.savez(tmp_path / "changed.npz", **changed)
        with pytest.raises(ValueError, match=message):
            load_lpips(files[0], tmp_path / "changed.npz")


def test_pytorch_files_are_read_as_data(files, params, tmp_path):
    torch = pytest.importorskip("torch")
    for path in files:
        arrays = {key: torch.from_numpy(value) for key, value in np.load(path).items()}
        torch.save(arrays, tmp_path / f"{path.stem}.pth")
    loaded = load_lpips(tmp_path / "vgg16.pth", tmp_path / "heads.pth")
    jax.tree.map(np.testing.assert_array_equal, loaded, params)


@pytest.mark.slow
def test_the_speed_is_the_distance_of_a_short_way_over_its_square(params):
    """Continuous-time losses take LPIPS by its curvature, with finite gradients by both of its inputs."""
    f, v = jax.random.uniform(jax.random.key(0), (2, 2, 32, 32, 3), minval=-1.0)
    speed = curvature_speed(partial(lpips, params, resize=32))
    value, (of_f, of_v) = quick_jit(jax.value_and_grad(lambda f, v: speed(f, v).sum(), argnums=(0, 1)))(f, v)
    short = 1e-2
    np.testing.assert_allclose(lpips(params, f + short * v, f, resize=32).sum() / short**2, value, rtol=0.05)
    np.testing.assert_allclose(jnp.sum(of_v * v) / 2, value, rtol=1e-4)  # of degree two
    assert np.all(np.isfinite(of_f))

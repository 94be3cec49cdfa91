"""The page that draws: what its JavaScript makes in a headless Chromium is what cmjax makes of the same noise."""

import json
import re
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import chromium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cmjax
from cmjax.core.editing import edit, inpainting, nothing_known, slerp
from cmjax.core.sampling import gaussian

DOCS = Path(__file__).parents[1] / "docs"
DRAW = DOCS / "draw"
NAMES = re.findall(r'(?m)^<div.* data-model="([\w ]+)"', (DRAW / "index.md").read_text())[0].split()
ABOUT = {name: json.loads((DRAW / f"{name}.json").read_text()) for name in NAMES}
in_a_browser = [
    pytest.mark.slow,
    pytest.mark.skipif(chromium.PROGRAM is None, reason="Chromium is not installed"),
]


def test_all_that_the_page_loads_is_below_8_mb():
    sizes = {path.name: path.stat().st_size for path in DRAW.rglob("*") if path.is_file()}
    assert sum(sizes.values()) < 8e6
    assert {"LICENSE", "ThirdPartyNotices.txt"} <= set(sizes)
    for name, about in ABOUT.items():
        loaded = [DRAW / f"{name}.onnx", *(DRAW / "vendor").glob("ort*")]
        assert about["megabytes"] == pytest.approx(sum(path.stat().st_size for path in loaded) / 1e6, abs=0.05)


def element(page):
    """The HTML of a page of the documentation that draws, without the site around it."""
    return "".join(re.findall(r"(?m)^<.*>$", (DOCS / page).read_text()))


class Handler(SimpleHTTPRequestHandler):
    def do_GET(self):
        if self.path not in ("/draw/", "/missing/"):
            return super().do_GET()
        body = element("draw/index.md")
        if "missing" in self.path:
            body = body.replace(" ".join(NAMES), "missing")
        head = '<base href="/draw/"><link rel="icon" href="data:,"><link rel="stylesheet" href="draw.css">'
        html = f'<!doctype html><html lang="en">{head}<body class="md-typeset">{body}'.encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(html)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def address():
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(DOCS))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


ROOT = "document.querySelector('.draw')"
IDLE = "document.querySelector('[aria-busy=true]') === null"
SHOWN = ".draw-model:not([hidden])"
SAID = f"document.querySelector('{SHOWN} .draw-said').value"


@pytest.fixture(scope="module")
def opened(address, tmp_path_factory):
    """The page, whose last model is loaded by the keyboard, the others by their choice; then the network is cut."""
    with chromium.chromium(tmp_path_factory.mktemp("chromium")) as page:
        page.view(1280, 900)
        page.send("Page.navigate", url=f"{address}/draw/")
        page.wait_for("document.querySelector('.draw[data-ready]') !== null")
        for key in ("Tab", *["ArrowRight"] * (len(NAMES) - 1), *["Tab"] * (len(NAMES) > 1)):
            page.press(key)
        assert page.evaluate(SAID) == f"The first click loads {ABOUT[NAMES[-1]]['megabytes']} MB. Nothing is sent."
        page.press("Enter")
        page.wait_for(f"{SAID}.includes(' ms')")
        for name in NAMES[:-1]:
            page.click(f"[value={name}]")
            page.wait_for(f"{SAID}.includes(' ms')")
        page.offline()
        yield page


@pytest.fixture(scope="module", params=NAMES)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def shape(name):
    return tuple(ABOUT[name]["shape"])


@pytest.fixture(scope="module")
def page(opened, name):
    """The page, where one of its models is chosen."""
    if len(NAMES) > 1:
        opened.click(f"[value={name}]")
    return opened


def set_field(page, name, value):
    field = f"document.querySelector('{SHOWN} [data-name={name}]')"
    page.evaluate(f"{field}.value = {json.dumps(str(value))}; {field}.dispatchEvent(new Event('input'))")


def result(page, name, shape, change):
    """The samples that a change on the page leads to, as the element has them afterwards."""
    page.wait_for(IDLE)
    page.evaluate(f"{ROOT}.{name} = null")
    change()
    page.wait_for(f"{ROOT}.{name} !== null && {IDLE}")
    return np.array(page.evaluate(f"[...{ROOT}.{name}]"), np.float32).reshape(-1, *shape)


@pytest.fixture(scope="module")
def flow_map(name):
    """The page's model as cmjax takes it, by onnxruntime."""
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(DRAW / f"{name}.onnx"))

    def estimate(x, t, label):
        times = np.full(len(x), t, np.float32)
        return session.run(None, {"x": np.asarray(x), "t": times, "label": np.asarray(label)})[0]

    def flow_map(x, t, label):
        return jax.pure_callback(estimate, jax.ShapeDtypeStruct(x.shape, x.dtype), x, t, label)

    flow_map.t_min, flow_map.t_max = ABOUT[name]["t_min"], ABOUT[name]["t_max"]
    return flow_map


class TestInABrowser:
    pytestmark = in_a_browser

    def test_its_noise_is_that_of_jax(self, opened):
        made = opened.evaluate("import('/draw/sampler.js').then(m => [...m.gaussian(4000000007, 3, 4096)])")
        wanted = gaussian(jax.random.key(4000000007), (64, 8, 8, 1), 3)
        np.testing.assert_allclose(made, np.ravel(wanted), atol=1e-4)

    @pytest.mark.parametrize(
        ("fields", "times"),
        [({"evaluations": 1}, [80.0]), ({"evaluations": 3, "second": 0.3, "mix": 35}, [80.0, 10**0.3, 10**0.3 / 2])],
        ids=["one evaluation", "three, between two seeds"],
    )
    def test_a_click_draws_what_sample_fn_draws(self, page, shape, flow_map, fields, times):
        for name, value in {"mix": 0, "from": 7, "to": 8, **fields}.items():
            set_field(page, name, value)
        samples = result(page, "samples", shape, lambda: page.click(f"{SHOWN} .draw-go"))
        noises = [
            slerp(*(gaussian(jax.random.key(seed), (64, *shape), i) for seed in (7, 8)), fields.get("mix", 0) / 100)
            for i in range(len(times))
        ]
        started = {"start": times[0] * noises[0], "noises": jnp.stack(noises)[1:]} if len(times) > 1 else {}
        label = jnp.arange(64, dtype=jnp.int32) % 10
        wanted = cmjax.sample_fn(flow_map, jax.random.key(7), (64, *shape), times=times, label=label, **started)
        np.testing.assert_allclose(samples, wanted, atol=1e-3)
        assert re.fullmatch(rf"64 .*digits in [\d.]+ ms, each by {len(times)} evaluations?", page.evaluate(SAID))

    def test_a_class_is_chosen(self, page, shape, flow_map):
        set_field(page, "evaluations", 1)
        set_field(page, "from", 5)
        set_field(page, "mix", 0)
        samples = result(page, "samples", shape, lambda: set_field(page, "label", 3))
        label = jnp.full(64, 3)
        wanted = cmjax.sample_fn(flow_map, jax.random.key(5), (64, *shape), times=[80.0], label=label)
        np.testing.assert_allclose(samples, wanted, atol=1e-3)
        result(page, "samples", shape, lambda: set_field(page, "label", ""))

    def test_strokes_are_edited_as_edit_does(self, page, shape, flow_map):
        set_field(page, "from", 2)
        page.click(f"{SHOWN} .draw-clear")
        left, top, width, height = page.box(f"{SHOWN} .draw-paint")
        side, apart = shape[0], shape[0] // 8
        brush = 2 if side == 28 else 1
        for row in range(apart, 7 * apart, apart):  # between these places the line is without gaps
            at = (left + (4 * apart + brush / 2) * width / side, top + (row + brush / 2) * height / side)
            page.mouse("mousePressed" if row == apart else "mouseMoved", *at)
        page.mouse("mouseReleased", *at)
        painted = np.zeros((1, *shape), np.float32)
        painted[0, apart : 6 * apart + brush, 4 * apart : 4 * apart + brush] = 1
        images = jnp.asarray(np.repeat(2 * painted - 1, 10, axis=0))
        common = {"label": jnp.arange(10, dtype=jnp.int32), "clip": True}
        key = jax.random.key(2)

        edited = result(page, "edited", shape, lambda: set_field(page, "strength", 0.2))
        times = [10**0.2, 10**0.2 * 2.24 / 5.38]
        wanted = edit(flow_map, key, images, nothing_known(), times=times, start=images, **common)
        np.testing.assert_allclose(edited, wanted, atol=1e-3)

        edited = result(page, "edited", shape, lambda: page.click(f"{SHOWN} [data-name=keep]"))
        times = cmjax.grids.karras_grid(20, t_min=0.02, t_max=80.0, rho=7.0)[::-1]
        wanted = edit(flow_map, key, images, inpainting(jnp.asarray(painted)), times=times, **common)
        np.testing.assert_allclose(edited, wanted, atol=1e-3)
        result(page, "edited", shape, lambda: page.click(f"{SHOWN} [data-name=keep]"))

    def test_the_keyboard_paints(self, page, shape):
        page.click(f"{SHOWN} .draw-clear")
        page.evaluate(f"document.querySelector('{SHOWN} .draw-paint').focus()")
        edited = result(page, "edited", shape, lambda: page.press(" "))
        page.press("ArrowUp")
        place = page.evaluate(f"document.querySelector('{SHOWN} .draw-place').value")
        more = result(page, "edited", shape, lambda: page.press(" "))
        assert re.fullmatch(r"Row \d+, column \d+, empty", place)
        assert np.abs(more - edited).max() > 0.1

    @pytest.mark.parametrize("width", [390, 1280])
    def test_nothing_is_wider_than_the_window(self, page, width):
        page.view(width, 900)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        for selector in (".draw-go", ".draw-grid", ".draw-paint", ".draw-edits", "[data-name=mix]"):
            left, _, wide, high = page.box(f"{SHOWN} {selector}")
            assert left >= 0
            assert left + wide <= width
            assert high > 10

    def test_scripts_had_no_error(self, page):
        assert page.errors == []


@pytest.mark.slow
@pytest.mark.skipif(chromium.PROGRAM is None, reason="Chromium is not installed")
def test_a_model_that_is_missing_is_said_in_one_line(address, tmp_path):
    with chromium.chromium(tmp_path) as page:
        page.send("Page.navigate", url=f"{address}/missing/")
        page.wait_for(f"{ROOT} && !{ROOT}.textContent.startsWith('It draws here')")
        said = page.evaluate(f"{ROOT}.textContent")
    assert said == "The page that draws cannot start: missing.json: the server answers 404"

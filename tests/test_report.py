"""`--mode=report`: what its page tells, what it leaves out, its size, and that browsers show it without an error."""

import base64
import json
import logging
import re
import shutil
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from cmjax.cli import report
from cmjax.config.fields import ConfigError
from cmjax.config.methods import read_model
from cmjax.config.recipes import load_recipe
from cmjax.data.base import ArraySource
from cmjax.data.sources import digits
from cmjax.generation.sampling import consistency_sampler, sample_images
from cmjax.plotting.plots import image_grid, save_png
from cmjax.reporting.curves import points
from cmjax.reporting.images import even_choice, exact, grids_of, shrink
from cmjax.reporting.nearest import images_of_grid, search
from cmjax.reporting.page import report_at_end
from cmjax.runs.record import write_record
from cmjax.runs.trained import open_trained
from cmjax.runs.weights import write_model
from cmjax.system.files import files_below, to_path, write_atomically
from cmjax.system.libraries import MissingLibrary
from cmjax.system.mesh import make_mesh

pytest_plugins = ["tests.buckets"]

ROOT = Path(__file__).parents[1]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FIVE_MB = 5_000_000


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch):
    pytest.importorskip("bokeh")
    monkeypatch.chdir(ROOT)


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def folder(path, *, steps=(1000, 2000, 3000), recipe="digits_ct", records=40, **changes):
    """A finished run on digits, whose samples are training images that it has learned by heart."""
    config = json.loads(json.dumps(load_recipe("configs/digits_ct.py").to_dict()))
    config["log"]["bins"] = 3
    config["optimizer"] |= changes
    write_record(path, config, (8, 8, 1), 10, recipe=recipe, device="4 x TPU v4")
    rows = [
        {
            "step": 100 * i, "loss": 1 / i, "learning_rate": 1e-3, "images_per_second": 2e3, "grad_norm": float("nan"),
            **{f"loss_bin_{b:02d}": (b + 1) / i for b in range(3)},
        } for i in range(1, records + 1)
    ]  # fmt: skip
    (path / "metrics.jsonl").write_text(lines(rows) + '{"step": 99999, "lo')
    known = digits("train").images
    for place, step in enumerate(steps):
        for sampler in ("1-step", "2-step"):
            save_png(path / "samples" / f"{step:07d}-{sampler}.png", image_grid(np.roll(known, place, axis=0)[:16]))
    figures = {"1-step": {"fd": 2.5, "recall": None}, "training images": {"fd": 0.75, "recall": 0.9}}
    (path / "summary.json").write_text(json.dumps({"steps": 6000, "parameters": 14_688, "metrics": figures}))
    return path


def page_of(*folders, **options):
    report.run(folders, **options)
    return (folders[0] / ("report.html" if len(folders) == 1 else "comparison.html")).read_text()


def cells(page):
    """The rows of all tables, each as its texts."""
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", page, re.DOTALL)
    return [re.findall(r"<t[hd]>(.*?)</t[hd]>", row, re.DOTALL) for row in rows]


def test_the_page_says_what_the_run_is_and_shows_its_metrics_beside_those_of_real_images(tmp_path, capsys):
    run = folder(tmp_path / "x", learning_rate=0.002)
    evaluated = {"step": 3000, "sampler": "2-step", "evaluations": 2, "num": 1500, "metrics": {"fd": 1.25, "fid": 3}}
    (run / "evaluation.jsonl").write_text(lines([{**evaluated, "real": {"fd": 0.5}}, {"step": "x"}]))
    page = page_of(run)
    rows = cells(page)
    assert ["run", "digits_ct: ct, network mlp, 14,688 parameters"] in rows
    assert ["device", "4 x TPU v4"] in rows
    assert ["log.bins", "0", "3"] in rows
    assert ["optimizer.learning_rate", "0.001", "0.002"] in rows
    assert "samples.times" not in page
    state = dict(row for row in rows if len(row) == 2)["state"]
    assert re.fullmatch(r"finished on \d{4}-\d\d-\d\d at \d\d:\d\d UTC", state)  # also true when it is read later
    assert re.findall(r'<section id="([a-z-]*)">', page)[:3] == ["samples", "metrics", "curves"]
    assert ["1-step", "2.500", "–"] in rows
    assert re.search(r'<tr class="real"><th>training images</th><td>0.750</td>', page)
    assert ["3,000", "2-step", "2", "1,500", "–", "1.250 (0.500)", "3.000"] in rows
    heads = next(row for row in rows if row[:2] == ["step", "sampler"])
    assert heads[-2:] == ["fd ↓", "fid ↓"]
    assert ["", "fd ↓", "recall pixels ↑"] in rows
    assert re.findall(r'class="plot"><figcaption>([^<]*)<', page) == [
        "loss", "learning rate", "images per second", "loss by noise level",
    ]  # fmt: skip
    assert f"{run}/report.html: " in capsys.readouterr().out
    assert not re.search(r"""<(?:script|link|img)[^>]*(?:src|href)=["'](?!data:)""", page)


def test_samples_of_all_steps_are_there_and_their_nearest_training_images(tmp_path):
    page = page_of(folder(tmp_path / "x"))
    assert json.loads(re.search(r'data-steps="([^"]*)"', page)[1]) == [1000, 2000, 3000]
    shown = re.findall(r'data-step="(\d+)" alt="samples by (\S+) at step \d+"( hidden)?', page)
    assert [(step, hidden) for step, sampler, hidden in shown if sampler == "2-step"] == [
        ("1000", " hidden"), ("2000", " hidden"), ("3000", ""),
    ]  # fmt: skip
    assert re.findall(r"<figcaption>([\d.]+)</figcaption>", page) == ["0.0"] * 8
    usual = float(re.search(r"nearest other: ([\d.]+) in the mean", page)[1])
    assert 10 < usual < 60
    assert "1,500 of 1,500 training images were searched." in page


def test_several_runs_stand_side_by_side(tmp_path):
    page = page_of(folder(tmp_path / "a"), folder(tmp_path / "b", steps=(500,), learning_rate=0.004))
    rows = cells(page)
    assert ["field", "a", "b"] in rows
    assert ["optimizer.learning_rate", "0.001", "0.004"] in rows
    assert ["b: training images", "0.750", "0.900"] in rows
    assert "<figcaption>loss</figcaption>" in page
    assert "<figcaption>loss by noise level: b</figcaption>" in page
    assert json.loads(re.search(r'data-steps="([^"]*)"', page)[1]) == [500, 1000, 2000, 3000]
    with pytest.raises(ConfigError, match="names a folder twice"):
        report.run([tmp_path / "a", tmp_path / "a"])


def test_no_name_of_a_run_becomes_a_part_of_the_page(tmp_path):
    run = folder(tmp_path / "<img src=x>&\"'", recipe="<script>alert(1)</script>")
    rows = [{"step": 1, "loss": 1.0, "</script><script>alert(2)": 3.0}]
    (run / "metrics.jsonl").write_text(lines(rows))
    other = folder(tmp_path / "<b>other")
    for page in (page_of(run), page_of(run, other)):
        assert "<script>alert" not in page
        assert "<img src=x" not in page
        assert "<b>other" not in page
        assert "&lt;script&gt;alert(1)" in page


def test_a_record_starts_no_recipe_but_those_of_the_folder(tmp_path):
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'done')!r}, 'w')\ndef get_config(): pass\n")
    page = page_of(folder(tmp_path / "x", recipe=str(tmp_path / "evil.py")))
    assert not (tmp_path / "done").exists()
    assert "no comparison with the recipe&#39;s file: configs/ has no recipe" in page


def test_what_is_missing_is_left_out_and_said(tmp_path):
    config = {"objective": {"name": "ct"}, "net": {"name": "mlp"}, "steps": 10}
    write_record(tmp_path / "fresh", config, (8, 8, 1), 10)
    page = page_of(tmp_path / "fresh")
    assert "There are no records yet." in page
    assert "no nearest training images" in page
    assert 'id="step"' not in page
    broken = folder(tmp_path / "broken")
    (broken / "samples" / "0001000-1-step.png").write_bytes(b"\x89PNG none")
    (broken / "diagnostics").mkdir()
    save_png(broken / "diagnostics" / "loss.png", np.zeros((40, 90, 3), np.uint8))
    save_png(broken / "gallery.png", np.zeros((40, 90, 3), np.uint8))
    page = page_of(broken)
    assert "0001000-1-step.png cannot be read" in page
    assert "Loss and gradient by noise level" in page
    assert 'id="editing"' in page


def test_a_wrong_folder_or_a_wrong_name_is_one_line(tmp_path, monkeypatch, caplog):
    with pytest.raises(ConfigError, match="is not a run's folder"):
        report.run([tmp_path])
    run = folder(tmp_path / "x")
    with pytest.raises(ConfigError, match=r"--out=page\.txt: must end in \.html"):
        report.run([run], out="page.txt")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"cannot be written: "):
        report.run([run], out=str(tmp_path / "file" / "x.html"))
    monkeypatch.setitem(sys.modules, "bokeh", None)
    with pytest.raises(MissingLibrary, match=r"^--mode=report needs bokeh: pip install 'cmjax\[report\]'$"):
        report.run([run])
    caplog.set_level(logging.INFO, logger="cmjax")
    assert report_at_end(run, digits("train")) is None
    assert caplog.messages == ["no report.html: it needs bokeh: pip install 'cmjax[report]'"]


def test_a_run_that_ends_leaves_its_page(tmp_path):
    run = folder(tmp_path / "x")
    few = ArraySource(digits("train").images[:40], None, None)
    assert report_at_end(run, few) == str(run / "report.html")
    assert "40 of 40 training images" in (run / "report.html").read_text()
    (run / "config.json").unlink()
    assert report_at_end(run, few) is None


def test_samples_by_more_evaluations_are_sampled_from_the_noise_of_the_runs_own(tmp_path):
    run, config = tmp_path / "x", load_recipe("configs/digits_ct.py")
    config.net.width, config.net.depth, config.samples.num, config.seed = 16, 1, 4, 7
    params = read_model(config.to_dict(), None).init(jax.random.key(0), (8, 8, 1))
    write_model(run, config.to_dict(), (8, 8, 1), None, params, imported=None, option="")
    report.run([run], evaluations=["3", "1"])
    page = (run / "report.html").read_text()
    assert re.findall(r"<figcaption>(\d-step), step", page) == ["1-step", "3-step"]
    trained = open_trained(run)
    one = consistency_sampler((80.0,), trained.samples)
    expected = image_grid(sample_images(one, trained.load(mesh=make_mesh()), 4, seed=7, conditions={}))
    step = trained.used_step
    plots_of = [np.asarray(Image.open(run / "samples" / f"{step:07d}-{n}-step.png")) for n in (1, 3)]
    np.testing.assert_array_equal(plots_of[0], expected)
    assert np.any(plots_of[1] != expected)
    with pytest.raises(ConfigError, match="--evaluations=0,x: must be numbers from 1 to 1000"):
        report.run([run], evaluations=["0", "x"])


@pytest.mark.filterwarnings("ignore:Sending a large body")  # by the client of buckets: 1 MB and more
def test_a_run_in_a_bucket_has_its_page_there(tmp_path, bucket, monkeypatch):
    for name, value in bucket.environment.items():
        monkeypatch.setenv(name, value)
    run = folder(tmp_path / "x")
    there = to_path(f"{bucket.url}/x")
    for path in files_below(run):
        write_atomically(there / path.relative_to(run).as_posix(), path.read_bytes())
    report.run([there])
    page = (there / "report.html").read_text()
    assert ["folder", str(there)] in cells(page)
    assert re.findall(r"<figcaption>([\d.]+)</figcaption>", page) == ["0.0"] * 8


def test_the_search_finds_the_nearest_image_and_never_the_query_itself():
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (300, 4, 5, 3), np.uint8)
    queries = np.concatenate([random.integers(0, 256, (3, 4, 5, 3), np.uint8), images[[7]]])
    found, distances = search(queries, np.array([-1, -1, -1, 7]), ArraySource(images, None, None), np.arange(300))
    differences = queries[:, None].astype(float) - images
    rms = np.sqrt((differences**2).mean((2, 3, 4)))
    rms[3, 7] = np.inf
    np.testing.assert_array_equal(found, rms.argmin(1))
    np.testing.assert_allclose(distances, rms.min(1), rtol=1e-12)


@pytest.mark.parametrize("shape", [(8, 8, 1), (32, 32, 3), (20, 70, 3)])
def test_the_images_of_a_grid_are_had_back(shape):
    images = np.random.default_rng(0).integers(0, 256, (10, *shape), np.uint8)
    encoded = BytesIO()
    Image.fromarray(image_grid(images)).save(encoded, format="PNG")
    found = images_of_grid(encoded.getvalue(), shape, 8)
    assert found is not None
    np.testing.assert_array_equal(found, images[:8])
    assert images_of_grid(encoded.getvalue(), (13, 11, shape[2]), 8) is None


def test_a_image_fits_its_room_and_is_exact_where_it_can_be():
    noise = np.random.default_rng(0).integers(0, 256, (400, 300, 3), np.uint8)
    encoded = BytesIO()
    Image.fromarray(noise).save(encoded, format="PNG")
    for limit in (1_000_000, 60_000, 10_000):
        image = shrink(encoded.getvalue(), limit)
        assert len(image.uri) <= limit + 30
        assert image.whole == (limit == 1_000_000)
    whole = Image.open(BytesIO(base64.b64decode(exact(noise).uri.partition(",")[2])))
    np.testing.assert_array_equal(np.asarray(whole), noise)


def test_choices_are_even_and_long_curves_are_means():
    assert even_choice(list(range(100)), 5) == [0, 25, 50, 74, 99]
    assert even_choice([3, 4], 5) == [3, 4]
    x, y = points(
        [{"step": i, "loss": float(i % 2)} for i in range(8000)] + [{"step": 9, "loss": float("inf")}], "loss"
    )
    assert len(x) == 800
    np.testing.assert_allclose(y, 0.5)


def test_the_samplers_stand_by_their_evaluations(tmp_path):
    for name in ("0000100-heun-18.png", "0000100-2-step.png", "0000050-1-step.png", "0000100-1-step.png", "x.png"):
        (tmp_path / "samples").mkdir(exist_ok=True)
        (tmp_path / "samples" / name).touch()
    found = grids_of(tmp_path)
    assert [(sampler, list(steps)) for sampler, steps in found.items()] == [
        ("1-step", [50, 100]), ("2-step", [100]), ("heun-18", [100]),
    ]  # fmt: skip


def test_a_run_with_many_images_and_records_stays_below_five_megabytes(tmp_path):
    run = folder(tmp_path / "x", records=3000)
    random = np.random.default_rng(0)
    for step in range(12):
        noise = random.integers(0, 256, (300, 300, 3), np.uint8)
        for sampler in ("1-step", "2-step"):
            save_png(run / "samples" / f"{step:07d}-{sampler}.png", noise)
    for name in ("gallery", "diagnostics/loss", "diagnostics/times"):
        save_png(run / f"{name}.png", random.integers(0, 256, (700, 600, 3), np.uint8))
    page = page_of(run)
    assert len(page.encode()) < FIVE_MB
    assert "1-step: samples of 12 of 15 steps are shown" in page


MOVES = """<script>addEventListener("load", () => setTimeout(() => {
  const slider = document.getElementById("step"), seen = [];
  for (const place of [0, 1, 2]) {
    slider.value = place;
    slider.dispatchEvent(new Event("input"));
    const images = [...document.querySelectorAll(".frames img")];
    const shown = images.filter((image) => image.offsetWidth && image.naturalWidth);
    seen.push([document.querySelector("output").textContent, ...shown.map((image) => image.dataset.step)]);
  }
  const root = document.documentElement;
  parent.postMessage({seen, plots: document.querySelectorAll(".bk-Figure").length, width: innerWidth,
    wide: root.scrollWidth}, "*");
}, 2000))</script>"""
FRAME = """<!doctype html><title>x</title><pre></pre><script>addEventListener("message", (event) => {
  document.querySelector("pre").textContent = JSON.stringify(event.data) })</script>
<iframe src="moves.html" width="%d" height="3000"></iframe>"""


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_it_without_an_error_and_the_slider_moves(tmp_path, width):
    page = page_of(folder(tmp_path / "x"))
    (tmp_path / "moves.html").write_text(page.replace("</body>", f"{MOVES}</body>"))
    (tmp_path / "frame.html").write_text(FRAME % width)
    done = subprocess.run(
        [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
            "--enable-logging=stderr", "--v=0", "--host-resolver-rules=MAP * ~NOTFOUND", "--window-size=1400,3200",
            "--virtual-time-budget=15000", "--dump-dom", f"file://{tmp_path / 'frame.html'}",
        ],
        capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert len(console) >= 1, done.stderr
    assert not [line for line in console if '"[bokeh' not in line]
    told = json.loads(re.search(r"<pre>(.*?)</pre>", done.stdout)[1])
    assert told["seen"] == [["1,000", "1000", "1000"], ["2,000", "2000", "2000"], ["3,000", "3000", "3000"]]
    assert told["plots"] == 4
    assert told["width"] == width
    assert told["wide"] <= width

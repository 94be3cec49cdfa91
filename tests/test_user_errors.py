"""What a user writes wrong, and the line that answers it; and anything at all, which ends in such a line or a run."""

import contextlib
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import cmjax.main
from cmjax.cli import train
from cmjax.cli.command_line import MODES

ROOT = Path(__file__).parents[1]
DIGITS = "--config=digits_ct"
RECIPES = {
    "raises.py": "def get_config():\n    return {}['x']\n",
    "syntax.py": "def get_config(:\n",
    "nothing.py": "x = 3\n",
    "number.py": "def get_config():\n    return 3\n",
    "leaves.py": "import sys\nsys.exit(3)\n",
}
LINES = [
    ("--config=README.md", r"--config=README\.md: a recipe is a Python file"),
    ("--config=FOLDER/raises.py", r"--config=.*raises\.py: .*raises\.py, line 2: KeyError: 'x'"),
    ("--config=FOLDER/syntax.py", r".*syntax\.py, line 1: SyntaxError: invalid syntax"),
    ("--config=FOLDER/nothing.py", r".*nothing\.py has no function get_config; configs/digits_ct\.py shows one"),
    ("--config=FOLDER/number.py", r".*get_config\(\) gave int, and not an ml_collections\.ConfigDict"),
    ("--config=FOLDER/leaves.py", r".*leaves\.py, line 2: SystemExit: 3"),
    ("--config=cifar_ct:huge", r".*the recipe has the variant :tiny alone, not :huge"),
    ("--config=digits_ct:huge", r".*the recipe has no variants, so no :huge"),
    ("--config=digit_ct", r"--config=digit_ct: there is no file configs/digit_ct\.py \(did you mean digits_ct\?\)"),
    ("--config=configs/", r"--config=configs/: is a folder; --list shows the recipes"),
    ("--config=", r"--config= is empty"),
    ("--config", r"Missing value for flag --config"),
    ("--config.steps=3", r"--config\.steps: of which recipe\? Name it"),
    ("", r"--config is missing: name a recipe"),
    (f"{DIGITS} --config.steps=abc", r"--config\.steps=abc: must be a number, as 5000"),
    (f"{DIGITS} --config.steps=1.5", r"config\.steps=1\.5: must be a whole number"),
    (f"{DIGITS} --config.steps=", r"--config\.steps=: must be a number"),
    (f"{DIGITS} --config.steps=-1", r"config\.steps=-1: must be at least 1"),
    (f"{DIGITS} --config.steps=1e12", r"config\.steps=1000000000000: must be at most 2147483647"),
    (f"{DIGITS} --config.samples.num=1e9", r"config\.samples\.num=1000000000: must be at most 10000"),
    (f"{DIGITS} --config.steps", r"--config\.steps: give it a value, as --config\.steps=5000"),
    (f"{DIGITS} --config.stepz=3", r"--config\.stepz: config has no field stepz \(did you mean steps\?\)"),
    (f"{DIGITS} --config.net.wdth=3", r"--config\.net\.wdth: config\.net has no field wdth \(did you mean width\?\)"),
    (f"{DIGITS} --config.net=3", r"config\.net='3': must be a section|--config\.net: it is a section"),
    (f"{DIGITS} --config.data=3", r"config\.data='3': must be a section|--config\.data: it is a section"),
    (f"{DIGITS} --config.net.width=0", r"config\.net\.width=0: must be at least 1"),
    (f"{DIGITS} --config.net.width=1000000", r"config\.net\.width=1000000: must be at most 16384"),
    (f"{DIGITS} --config.net.dtype=float16", r"config\.net\.dtype='float16': .*: use bfloat16"),
    (f"{DIGITS} --config.net.dropout=1", r"config\.net\.dropout=1\.0: must be below 1"),
    (f"{DIGITS} --config.log.wandb=maybe", r"--config\.log\.wandb=maybe: must be True or False"),
    (f"{DIGITS} --config.model.sigma_data=nan", r"config\.model\.sigma_data=nan: must be a finite number"),
    (f"{DIGITS} --config.model.t_min=90", r"config\.model\.t_min=90\.0: must be below t_max=80"),
    (f"{DIGITS} --config.optimizer.learning_rate=inf", r"config\.optimizer\.learning_rate=inf: must be a finite"),
    (f"{DIGITS} --config.samples.times=0.8,80", r"config\.samples\.times=\(0\.8, 80\): times must descend"),
    (f"{DIGITS} --config.samples.times=80,x", r"config\.samples\.times=\(80, 'x'\): must be one or more numbers"),
    (f"{DIGITS} --config.objective.distance.c=1", r".*distance='pseudo_huber\(c=1\.0\)' has no fields"),
    (f"{DIGITS} --config.objective.distance=pseudo_huber(c=-1)", r".*: c must be at least 0, not -1"),
    (f"{DIGITS} --config.objective.distance=pseudo_huber(d=1)", r".*: pseudo_huber takes c, not d"),
    (f"{DIGITS} --config.objective.distance=pseudohuber", r".*one of l1, l2, .*did you mean pseudo_huber"),
    (f"{DIGITS} --config.objective.name=ctt", r"config\.objective\.name='ctt': must be one of .*did you mean"),
    (f"{DIGITS} --config.optimizer.averages=ema(rate=1)", r".*: rate must be below 1, not 1"),
    (f"{DIGITS} --config.data.name=cifr10", r"config\.data\.name='cifr10': .*did you mean cifar10"),
    ("--config=digits_cd --config.objective.teacher=/none", r"config\.objective\.teacher='/none' is not"),
    ("sample --workdir=/none", r"/none is not a run's folder: it has no config\.json"),
    ("sample --workdir=README.md", r"README\.md.* cannot be read|.*is not a run's folder"),
    ("sample", r"--workdir is missing"),
    (f"{DIGITS} --workdir=s3://bucket/x", r"--workdir=s3://bucket/x: s3:// can be neither read nor written here"),
    (f"{DIGITS} --workdir=file:///x", r"--workdir=file:///x: write it without file://"),
    (f"{DIGITS} --workdir=~nosuchuser/x", r"--workdir=~nosuchuser/x: there is no user nosuchuser"),
    (f"{DIGITS} --config.data.data_dir=s3://x", r"config\.data\.data_dir='s3://x': s3:// can be neither"),
    ("--config=digits_cd --config.objective.teacher=s3://x", r"config\.objective\.teacher='s3://x': s3:// can be"),
    (f"{DIGITS} --config.init_from=teacher", r"config\.init_from='teacher': config\.objective distils no teacher"),
    (f"{DIGITS} --stopped_exit_code=999", r"--stopped_exit_code=999: must be .* at most 255"),
    ("sample --workdir=/none --out=s3://x/a.png", r"--out=s3://x/a\.png: s3:// can be neither"),
    ("evaluate --workdir=/none --images=ftp://x", r"--images=ftp://x: ftp:// can be neither"),
    ("sample --workdir=/none --checkpoint=last", r"--checkpoint=last: must be newest or a step, as 4000"),
    ("edit --workdir=configs --task=paint", r".*task.*inpainting"),
    ("plan --config=digits_ct --topology=v9", r"--topology=v9: is unknown: write a TPU and its slice, as v4:2x2x4"),
    ("average --workdir=configs", r"--std is missing"),
    ("import --workdir=FOLDER/new", r"--source is missing"),
    ("status --workdir=configs", r"configs is not a run's folder"),
]  # fmt: skip
"""A command line, and a pattern of the line that answers it."""
PROGRAM = """
import contextlib, io, json, sys
import cmjax.main

told = []
for arguments in json.loads(sys.argv[1]):
    sys.argv, error = ["cmjax", *arguments], io.StringIO()
    code = None
    with contextlib.redirect_stderr(error), contextlib.redirect_stdout(io.StringIO()):
        try:
            cmjax.main.main()
        except SystemExit as left:
            code = left.code
    from jax._src import xla_bridge

    told.append((code if isinstance(code, str) else error.getvalue(), code, xla_bridge.backends_are_initialized()))
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipes")
    for name, text in RECIPES.items():
        (folder / name).write_text(text)
    commands = [arguments.replace("FOLDER", str(folder)).split() for arguments, _ in LINES]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(commands)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("place", range(len(LINES)), ids=[arguments or "nothing" for arguments, _ in LINES])
def test_a_wrong_command_line_is_answered_in_a_line(told, place):
    text, code, _ = told[place]
    assert code not in (0, None)
    first, *more = text.strip().splitlines()
    assert re.match("error: " + LINES[place][1], first), text
    assert "Traceback" not in text
    assert all(line.startswith(("See ", "  ")) for line in more), text


def test_no_error_of_a_recipe_or_a_flag_started_a_backend(told):
    started = [arguments for (arguments, _), (_, _, backend) in zip(LINES, told, strict=True) if backend]
    assert not started


VALUES = ["", "0", "-1", "1e30", "nan", "inf", "None", "True", "x", "()", "(1, 2)", "l2", "../x", "{", "ema(", "[]"]
FLAGS = ["num", "times", "workdir", "out", "task", "image", "seed", "steps", "mode", "nothing", "help", "margin", "std"]
ANYTHING = st.one_of(
    st.sampled_from(VALUES),
    st.text(st.characters(codec="utf-8", exclude_characters="\x00\n"), max_size=12),
    st.integers(-3, 10**20).map(str),
    st.floats().map(str),
    st.builds("{}({}={})".format, st.sampled_from(["pseudo_huber", "doubling", "ema", "adam", "uniform"]),
              st.sampled_from(["c", "s0", "rate", "b1", "t_min"]), st.sampled_from(VALUES)),
)  # fmt: skip


def fields_of(section, path=""):
    for name, value in section.items():
        yield f"{path}{name}"
        if isinstance(value, dict):
            yield from fields_of(value, f"{path}{name}.")


@pytest.fixture(scope="module")
def recipes():
    from cmjax.config.recipes import load_recipe

    names = ("digits_ct", "digits_ect", "digits_scm_ct", "digits_meanflow", "digits_edm", "cifar_ct:tiny")
    return {name: list(fields_of(load_recipe(name).to_dict())) for name in names}


def answer(monkeypatch, arguments):
    """The exit code of the program, 0 where a run would have begun, and what it wrote to standard error."""
    monkeypatch.setattr(sys, "argv", ["cmjax", *arguments])
    error = io.StringIO()
    with contextlib.redirect_stderr(error), contextlib.redirect_stdout(io.StringIO()):
        try:
            cmjax.main.main()
        except SystemExit as left:
            if isinstance(left.code, str):
                return 1, left.code
            return left.code, error.getvalue()
    return 0, error.getvalue()


@pytest.fixture
def read_only(monkeypatch):
    """Training that ends where the recipe is read, and a program that leaves the signals to pytest."""
    monkeypatch.chdir(ROOT)
    for name in ("exit_on_signals", "_set_up_process"):  # what a process does to itself
        monkeypatch.setattr(cmjax.main, name, lambda *_: None)
    monkeypatch.setattr(train, "run", lambda config, *_, **__: train.read_run(config))
    return monkeypatch


MANY = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


@MANY
@given(data=st.data())
def test_any_field_with_any_value_ends_in_a_run_or_in_a_line(read_only, recipes, data):
    recipe = data.draw(st.sampled_from(sorted(recipes)))
    changes = data.draw(st.dictionaries(st.sampled_from(recipes[recipe]), ANYTHING, min_size=1, max_size=2))
    changed = [f"--config.{name}={text}" for name, text in changes.items()]
    check(*answer(read_only, [f"--config={recipe}", *changed]))


@MANY
@given(data=st.data())
def test_any_flags_end_in_a_line(read_only, data):
    written = data.draw(st.lists(st.builds("--{}={}".format, st.sampled_from(FLAGS), ANYTHING), min_size=1, max_size=3))
    mode = data.draw(st.sampled_from(sorted(set(MODES) - {"train", "plan"})))
    check(*answer(read_only, [mode, *written, "--workdir=/none"]))


def check(code, said):
    if code == 0:
        return
    assert code in (1, 2), said
    lines = said.strip().splitlines()
    assert lines, "it ended without a word"
    assert lines[0].startswith("error: "), said
    assert "Traceback" not in said

"""The command line: `python -m cmjax.main --config=configs/digits_ct.py`."""

import logging
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any, NoReturn

from absl import app, flags
from ml_collections import config_flags

from cmjax.config.fields import ConfigError
from cmjax.machine.files import ask_bucket, is_bucket, to_path
from cmjax.machine.lock import release_all
from cmjax.machine.quiet import quiet_libraries
from cmjax.machine.signals import leave_on_signals
from cmjax.machine.xla import prefer_fast_convolutions

_CONFIG = config_flags.DEFINE_config_file("config", None, "The recipe, as configs/digits_ct.py.")
_MODE = flags.DEFINE_enum(
    "mode",
    "train",
    ["train", "plan", "status", "sample", "edit", "gallery", "diagnose", "average", "import", "export"],
    "What to do.",
)
_WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder. Default: runs/<config name>.")
_NUM = flags.DEFINE_integer(
    "num",
    None,
    "sample: how many images (64); edit: how many results (1); diagnose: how many trajectories, and samples for each "
    "bin (256).",
    lower_bound=1,
)
_TIMES = flags.DEFINE_list(
    "times", None, "sample, edit, gallery: noise levels, as 80,0.8, or places on a Karras grid, as idx:0,22,39/40."
)
_SOLVER = flags.DEFINE_string(
    "solver",
    None,
    "sample: a denoiser's solver: ddim, euler, heun, midpoint, dpmpp_2m, churn(s_churn=10), ancestral or tsit5. "
    "Default: the run's.",
)
_STEPS = flags.DEFINE_integer("steps", None, "sample: noise levels of the solver's grid. Default: the run's.")
_LABEL = flags.DEFINE_integer(
    "label", None, "sample, edit: the class, of a class-conditional model. Default: all in turn; an edit must be told."
)
_GUIDANCE = flags.DEFINE_float(
    "guidance", None, "sample: scale of classifier-free guidance, of a model with classes; 1: none. Default: the run's."
)
_GAMMA = flags.DEFINE_float(
    "gamma",
    None,
    "sample: flow maps jump from time to time with this share of new noise, 0 to 1. Default: as consistency models.",
    0.0,
    1.0,
)
_SEED = flags.DEFINE_integer(
    "seed", 0, "sample, edit, gallery, diagnose: the same seed gives the same images.", lower_bound=0
)
_OUT = flags.DEFINE_string(
    "out",
    None,
    "sample: x.png for a grid, x.npz for images; edit, gallery: x.png; average: a new run's folder; "
    "diagnose: a folder (<workdir>/diagnostics); plan: a folder (<workdir>/plan); export: the file or folder.",
)
_TASK = flags.DEFINE_string(
    "task",
    None,
    "edit: inpainting, outpainting, colorization, super_resolution, strokes, blending, denoising or interpolation.",
)
_IMAGE = flags.DEFINE_list(
    "image", None, "edit: a PNG or JPEG file of any size, two for blending and interpolation; gallery: some."
)
_MASK = flags.DEFINE_string("mask", None, "edit: a picture whose white pixels are kept, for inpainting and blending.")
_PATCH = flags.DEFINE_integer("patch", 4, "edit: pixels that super_resolution makes one of, along each side.")
_SIGMA = flags.DEFINE_float("sigma", None, "edit: std of the noise that denoising removes; black to white is 2.")
_ADD_NOISE = flags.DEFINE_boolean("add_noise", False, "edit: denoising adds the noise of --sigma first.")
_MARGIN = flags.DEFINE_float("margin", 0.25, "edit: share of each side that outpainting adds.", 0.0, 0.49)
_SEEDS = flags.DEFINE_list("seeds", None, "edit: two seeds to interpolate between, as 3,8, in place of pictures.")
_CLIP = flags.DEFINE_boolean(
    "clip", True, "edit: clip every estimate to black and white; --noclip for models that do better without."
)
_STD = flags.DEFINE_list("std", None, "average: its width as a share of the training, as 0.08, or several.")
_TEACHER = flags.DEFINE_string(
    "teacher", None, "diagnose: the folder of a denoiser along whose trajectories the model is held. Default: its own."
)
_METRIC = flags.DEFINE_enum(
    "metric",
    "fd",
    ["fd", "precision", "recall", "density", "coverage"],
    "diagnose: what the second step's time is chosen by.",
)
_SOURCE = flags.DEFINE_string("source", None, "import: the checkpoint's file or folder.")
_FORMAT = flags.DEFINE_string(
    "format",
    None,
    "import: auto (the default), openai, openai_cifar, edm, edm2, diffusers or cmjax; "
    "export: safetensors (the default), npz or diffusers.",
)
_PROFILE = flags.DEFINE_string(
    "profile", None, "train: trace these steps for xprof and Perfetto, as 20:25, in <workdir>/profile."
)
_STOPPED_EXIT_CODE = flags.DEFINE_integer(
    "stopped_exit_code",
    0,
    "train: exit code of a run that SIGTERM stopped, saved; for launchers that take 0 as finished, as Kubernetes does.",
    0,
    255,
)
_TOPOLOGY = flags.DEFINE_string(
    "topology", None, "plan: a TPU slice that need not be there, as v5e:16x16. Default: the devices that are here."
)
_SAMPLERS = flags.DEFINE_bool("samplers", True, "plan: compile the samplers too, and not the train step alone.")
_ARCH = {
    "kind": flags.DEFINE_enum("arch-kind", None, ["denoiser", "consistency"], "import: what the network is."),
    "image_size": flags.DEFINE_integer("arch-image_size", None, "import: height and width of the images."),
    "head_channels": flags.DEFINE_integer("arch-head_channels", None, "import: width of an attention head."),
    "attention_resolutions": flags.DEFINE_list("arch-attention_resolutions", None, "import: as 32,16,8."),
    "resample_filter": flags.DEFINE_list("arch-resample_filter", None, "import: taps, as 1,3,3,1."),
}
"""What a checkpoint to be imported may not tell of its network."""
ALONE = ("plan", "average", "import", "export")
"""Modes that one process does in a moment."""


def dispatch() -> None:
    """Run the chosen mode. Heavy libraries are imported behind the command line, so that --help is quick."""
    if _MODE.value == "status":  # files are all it needs: it waits for no other process
        from cmjax.modes import status

        status.run(_workdir())
        return
    import jax

    from cmjax.machine.processes import join_processes
    from cmjax.modes import average as averaging
    from cmjax.modes import diagnose, edit, exporting, gallery, importing, plan, sample, train

    try:
        join_processes()
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if jax.distributed.is_initialized() and jax.process_index() > 0:
        logging.getLogger("cmjax").setLevel(logging.WARNING)  # one process speaks for all
    if _MODE.value in ALONE and jax.distributed.is_initialized() and jax.process_count() > 1:
        raise ConfigError(f"--mode={_MODE.value}: it runs in one process, and there are {jax.process_count()}")
    if _MODE.value in ("train", "plan") and _CONFIG.value is None:
        raise ConfigError("--config is missing: name a recipe, as --config=configs/digits_ct.py")
    if _MODE.value == "train":
        config = _recipe()
        train.run(config, _workdir(), recipe=_recipe_name(), profile=_PROFILE.value)
    elif _MODE.value == "plan":
        folder = Path(_OUT.value) if _OUT.value else _workdir() / "plan"
        plan.run(_recipe(), folder, _TOPOLOGY.value, _recipe_name(), samplers=_SAMPLERS.value)
    elif _MODE.value == "sample":
        sample.run(
            _workdir(),
            out=_OUT.value,
            num=_NUM.value or 64,
            seed=_SEED.value,
            times=_TIMES.value,
            solver=_SOLVER.value,
            steps=_STEPS.value,
            label=_LABEL.value,
            guidance=_GUIDANCE.value,
            gamma=_GAMMA.value,
        )
    elif _MODE.value == "edit":
        edit.run(
            _workdir(),
            task=_TASK.value,
            images=_IMAGE.value,
            mask=_MASK.value,
            out=_OUT.value,
            times=_TIMES.value,
            num=_NUM.value or (8 if _TASK.value == "interpolation" else 1),
            seeds=_SEEDS.value,
            label=_LABEL.value,
            seed=_SEED.value,
            patch=_PATCH.value,
            sigma=_SIGMA.value,
            add_noise=_ADD_NOISE.value,
            margin=_MARGIN.value,
            clip=_CLIP.value,
        )
    elif _MODE.value == "gallery":
        gallery.run(_workdir(), images=_IMAGE.value, out=_OUT.value, seed=_SEED.value, times=_TIMES.value)
    elif _MODE.value == "diagnose":
        diagnose.run(
            _workdir(),
            teacher=_TEACHER.value,
            metric=_METRIC.value,
            num=_NUM.value or 256,
            seed=_SEED.value,
            out=_OUT.value,
        )
    elif _MODE.value == "average":
        averaging.run(_workdir(), stds=_STD.value, out=_OUT.value)
    elif _MODE.value == "import":
        importing.run(_SOURCE.value, _FORMAT.value or "auto", _workdir(), _architecture())
    else:
        exporting.run(_workdir(), _FORMAT.value or "safetensors", _OUT.value)


def _architecture() -> dict[str, Any]:
    """The --arch- options that were given."""
    given = {}
    for name, flag in _ARCH.items():
        if flag.value is not None:
            try:
                given[name] = tuple(map(int, flag.value)) if isinstance(flag.value, list) else flag.value
            except ValueError:
                raise ConfigError(f"--arch-{name}={','.join(flag.value)}: must be whole numbers") from None
            if isinstance(given[name], int) and given[name] < 1:
                raise ConfigError(f"--arch-{name}={given[name]}: must be at least 1")
    return given


def _recipe() -> dict[str, Any]:
    """The configuration with the command line's changes; config_flags reports a file that fails only when asked."""
    try:
        return _CONFIG.value.to_dict()
    except (OSError, ValueError) as error:
        raise ConfigError(f"--config: {' '.join(str(error).split())}") from error


def _workdir() -> Path:
    """The run's folder; by default it has the recipe's file name, with its variant: `cifar_ct:tiny`, cifar_ct-tiny."""
    if _WORKDIR.value is not None:
        return _reachable(_WORKDIR.value)
    if _CONFIG.value is None:
        raise ConfigError("--workdir is missing: name the run's folder, as --workdir=runs/digits_ct")
    return Path("runs") / _recipe_name()


def _recipe_name() -> str:
    path, _, variant = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")
    return Path(path).stem + (f"-{variant}" if variant else "")


def _reachable(workdir: str) -> Path:
    """The folder; of a bucket, only when it answers."""
    try:
        path = to_path(workdir)
        if is_bucket(path):
            ask_bucket(path)
    except Exception as error:  # the libraries of buckets raise errors of many kinds
        raise ConfigError(f"--workdir={workdir} cannot be reached: {' '.join(repr(error).split())[:300]}") from error
    return path


def parse_flags(arguments: list[str]) -> list[str]:
    """absl's parser, with one line for what it and config_flags raise."""
    try:
        return flags.FLAGS(arguments)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {' '.join(str(error).split())}\nSee python -m cmjax.main --help")


def main(arguments: list[str]) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr, force=True)
    quiet_libraries()
    if len(arguments) > 1:
        sys.exit(f"error: {' '.join(arguments[1:])}: options are written --name=value")
    prefer_fast_convolutions()
    leave_on_signals(_leave)
    from cmjax.data.sources import DataError
    from cmjax.machine.processes import OtherProcessError
    from cmjax.training.checkpoint import CheckpointError
    from cmjax.training.loop import NonFiniteLoss, Stopped

    try:
        dispatch()
    except (ConfigError, DataError, CheckpointError, NonFiniteLoss) as error:
        _end(1, f"error: {error}")
    except OtherProcessError:
        _end(1, None)  # the first process says what it was
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(_STOPPED_EXIT_CODE.value if stopped.number == signal.SIGTERM else 128 + stopped.number)
    except Exception:
        _end(1, traceback.format_exc())


def _end(code: int, message: str | None) -> NoReturn:
    """Say why, and end; one of several processes does not wait for the others, which may be waiting for it."""
    import jax

    from cmjax.machine.processes import leave_at_once

    several = jax.distributed.is_initialized() and jax.process_count() > 1
    if message:
        print(f"process {jax.process_index()}: {message}" if several else message, file=sys.stderr)
    if several:
        leave_at_once(code)
    sys.exit(code)


def _leave(number: int, second: bool) -> None:
    """End at once by a signal: nothing has been computed since the last save, or the user asked twice."""
    trained = _MODE.value == "train"
    name, code = signal.Signals(number).name, 128 + number
    if second:
        message = f"left at once by a second {name}; what was not saved is lost"
    else:
        message = f"stopped by {name}; the same command {'starts again' if trained else 'goes on with what is missing'}"
        code = _STOPPED_EXIT_CODE.value if trained and number == signal.SIGTERM else code
    print(message, file=sys.stderr, flush=True)
    release_all()
    os._exit(code)


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)

"""`--mode=gallery`: edits held-out images by every task, in one image.

cmjax gallery --workdir=runs/mnist_ct
cmjax gallery --workdir=runs/mnist_ct --image=1.png,2.png,3.png,4.png --out=gallery.png
"""

from pathlib import Path

from cmjax.cli.flags import Flags, Options
from cmjax.config.fields import ConfigError
from cmjax.data.batches import to_uint8
from cmjax.generation.arguments import edit_times
from cmjax.generation.decoding import check_are_images, decoder_of
from cmjax.generation.editing import ALL_TASKS
from cmjax.generation.gallery import HEADINGS, gallery_images, gallery_rows
from cmjax.plotting.plots import save_png, sheet
from cmjax.runs.trained import open_for_sampling
from cmjax.runs.workdir import CHECKPOINT, output, writing
from cmjax.system.files import to_path
from cmjax.system.mesh import make_mesh
from cmjax.system.processes import on_first_process, say
from cmjax.system.progress import progress

LEFT_TO_RIGHT = "interpolation,\nleft to right"  # the caption of the row whose images are not what the headings say


def declare(flags: Flags) -> None:
    flags.group("The gallery")
    flags.checkpoint()
    flags.texts("image", "Images to begin with. Default: some of the run's held-out data.")
    flags.integer("seed", 0, "The same seed gives the same images.", at_least=0)
    flags.text("times", None, "Noise levels, as 80,0.8, or places on a Karras grid, as idx:0,22,39/40.")
    flags.autoencoder()
    flags.text("out", None, "x.png. Default: <workdir>/gallery.png.")


def start(options: Options) -> None:
    flags = options.flags
    run(options.model, images=flags.pop("image"), data_dir=options.data_dir, **flags)


def run(
    workdir: str | Path,
    *,
    images: list[str] | None = None,
    out: str | None = None,
    seed: int = 0,
    times: str | None = None,
    autoencoder: str | None = None,
    decode_dtype: str | None = None,
    decode_tile: int | None = None,
    data_dir: str | None = None,
) -> None:
    """Makes the gallery of a checkpoint, `workdir` or the newest of that folder: `run("runs/mnist_ct")`.

    images: files to edit; by default some of the run's held-out data. The other arguments are the mode's flags.
    """
    trained = open_for_sampling(workdir, data_dir=data_dir)
    path = to_path(out or trained.folder / f"{trained.named}gallery.png")
    if path.suffix != ".png":
        raise ConfigError(f"--out={out}: must end in .png")
    output(path)
    decoder = decoder_of(trained, autoencoder, dtype=decode_dtype, tile=decode_tile)
    shape = trained.shape if decoder is None else decoder.shape
    if trained.model.kind == "denoiser":
        raise ConfigError(f"--workdir={workdir}: a gallery needs a consistency model of images")
    check_are_images(trained, decoder)
    flow_map = trained.load(mesh=make_mesh())
    originals, labels = gallery_images(trained, images, seed, shape)
    rows = {}
    with progress("gallery", len(ALL_TASKS)) as update:
        by = {"seed": seed, "grid": edit_times(times, trained), "decoder": decoder}
        for task, row in gallery_rows(flow_map, trained, originals, labels, **by):
            rows[task] = to_uint8(row)
            update(len(rows), task)
    captions = [LEFT_TO_RIGHT if task == "interpolation" else task for task in rows]
    image = sheet(list(rows.values()), captions, headings=HEADINGS, title=f"{trained.title}: edits")
    with writing(path):
        on_first_process(lambda: save_png(path, image, **{CHECKPOINT: str(trained.used_step)}))
    say(f"{path}: a row for each of {', '.join(rows)}, of {trained.title}; {' | '.join(HEADINGS)}")

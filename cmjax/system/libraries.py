"""Optional libraries, and the extra of cmjax that installs each."""

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from cmjax.system.errors import UserError

EXTRAS = {
    "bokeh": "report",
    "diffrax": "ode",
    "flatbuffers": "stablehlo",
    "gcsfs": "gcs",
    "grain": "large",
    "huggingface_hub": "hub",
    "jax2onnx": "onnx",
    "libtpu": "tpu",
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "pyarrow": "tables",
    "safetensors": "interop",
    "tensorboardX": "tensorboard",
    "tokenizers": "text",
    "torch": "torch",
    "wandb": "wandb",
}
"""Library -> extra."""


class MissingLibrary(UserError, ImportError):
    """A library is not installed; the message says what needs it and how to install it."""


def is_installed(library: str) -> bool:
    """Says whether a library can be imported, without importing it."""
    try:
        return find_spec(library) is not None
    except ValueError:  # it is imported, and has no file
        return True


def version_of(package: str) -> str | None:
    """Gives the version that is installed; None where none is."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def require(library: str, what: str) -> None:
    """Raise MissingLibrary where `what` needs a library that is not installed."""
    if not is_installed(library):
        raise MissingLibrary(f"{what} needs {library}: {how_to_install(library)}")


def how_to_install(library: str) -> str:
    """Gives the command that installs it."""
    library = library.partition(".")[0]
    return f"pip install 'cmjax[{EXTRAS[library]}]'" if library in EXTRAS else f"pip install {library}"

"""Reads and writes reference statistics: means and covariances of features, in the files of several codes."""

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cmjax.system.files import write_atomically
from cmjax.system.npz import load_npz, npz_bytes
from cmjax.system.pickles import read_pickle

Pair = tuple[np.ndarray, np.ndarray]
"""Mean (d,) and covariance (d, d), float64."""

ARRAYS = {"features": (("mu", "sigma"), ("ref_mu", "ref_sigma"), ("m", "s")), "spatial": (("mu_s", "sigma_s"),)}
"""Names of a mean and a covariance in a .npz: EDM's and ADM's are the first, and ADM's spatial features."""

PICKLED = {"fid": "inception", "fd_dinov2": "dinov2"}
"""EDM2's names of what it measures -> the network whose features these are."""

OLD_NAMES = {"own": "dataset"}
"""Names of networks in files of earlier versions."""

OUR_NAME, OUR_KEY = "network", "features"
"""Arrays that our files have beside these: the network, where it is not Inception, and the key of its features."""

SMALLEST = 1e-6
"""The least eigenvalue of a covariance is at least minus this times its trace: what rounding to float32 makes."""


@dataclass(frozen=True)
class OfNetwork:
    """Holds the statistics of one network in a file. pairs: "features" or "spatial" -> mean and covariance. key:
    differs with the network's features; "" in the files of others, which name none."""

    pairs: dict[str, Pair]
    key: str = ""


def read_statistics(path: Path) -> dict[str, OfNetwork]:
    """Reads the statistics of a .npz, as of EDM, ADM and pytorch-fid, or of a .pkl, as of EDM2; no code in it is run.

    Returns: by network: "inception", which the files of others are of, "dinov2", …
    Raises:  ValueError saying what the file lacks, or why it holds no mean and covariance; OSError where it cannot be
             opened.
    """
    if path.suffix == ".pkl":
        content = read_pickle(path)
        if not isinstance(content, dict) or not content.keys() & PICKLED.keys():
            raise ValueError(f"{path} has no statistics: it needs one of {', '.join(PICKLED)}, as EDM2's files have")
        pickled = {network: content[name] for name, network in PICKLED.items() if isinstance(content.get(name), dict)}
        return {
            network: OfNetwork({"features": _pair(path, arrays, "mu", "sigma")}, str(arrays.get(OUR_KEY, "")))
            for network, arrays in pickled.items()
        }
    arrays = read_arrays(path)
    network = str(arrays[OUR_NAME]) if OUR_NAME in arrays else "inception"
    network = OLD_NAMES.get(network, network)
    pairs = {
        name: _pair(path, arrays, *names)
        for name, spellings in ARRAYS.items()
        for names in spellings
        if names[0] in arrays
    }
    if "features" not in pairs:
        raise ValueError(f"{path} has no statistics: it needs mu and sigma, and has {', '.join(arrays) or 'nothing'}")
    return {network: OfNetwork(pairs, str(arrays.get(OUR_KEY, "")))}


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Reads all arrays of a .npz but its images, which can be many. Raises: ValueError where it is none."""
    return load_npz(path, without=("arr_0", "images"))


def write_statistics(path: Path, statistics: dict[str, OfNetwork]) -> None:
    """Writes a .npz of one network, as EDM and ADM read it, or a .pkl of several, as EDM2 reads it.

    Raises: ValueError where the file cannot hold them.
    """
    if path.suffix == ".pkl":
        ours = {network: name for name, network in PICKLED.items()}
        if unknown := statistics.keys() - ours.keys():
            raise ValueError(f"{path}: EDM2's files are of {' and '.join(ours)}; write {', '.join(unknown)} to a .npz")
        arrays: dict[str, Any] = {}
        for network, of in statistics.items():
            mean, cov = of.pairs["features"]
            arrays[ours[network]] = {"mu": mean, "sigma": cov, OUR_KEY: of.key}
        content = pickle.dumps(arrays)
    elif path.suffix == ".npz":
        if len(statistics) != 1:
            raise ValueError(f"{path}: a .npz is of one network, not of {', '.join(statistics) or 'none'}")
        ((network, of),) = statistics.items()
        arrays = {OUR_KEY: np.array(of.key)}
        for name, pair in of.pairs.items():
            # under the first spelling, which EDM and ADM read
            arrays |= dict(zip(ARRAYS[name][0], pair, strict=True))
        content = npz_bytes(arrays | ({} if network == "inception" else {OUR_NAME: np.array(network)}))
    else:
        raise ValueError(f"{path}: statistics are written to a .npz or a .pkl")
    write_atomically(path, content)


def _pair(path: Path, arrays, mean_name: str, cov_name: str) -> Pair:
    if mean_name not in arrays or cov_name not in arrays:
        raise ValueError(f"{path} has only one of {mean_name} and {cov_name}")
    mean, cov = (np.asarray(arrays[name]) for name in (mean_name, cov_name))
    if mean.ndim != 1 or not mean.size or cov.shape != (len(mean), len(mean)):
        raise ValueError(f"{path}: {mean_name} {mean.shape} and {cov_name} {cov.shape} are no mean and covariance")
    for name, array in ((mean_name, mean), (cov_name, cov)):
        if array.dtype.kind not in "fiu":
            raise ValueError(f"{path}: {name} must be of real numbers, not {array.dtype}")
        if not np.all(np.isfinite(array)):
            raise ValueError(f"{path}: {name} has values that are not finite, as of fewer than two images")
    mean, cov = mean.astype(np.float64), cov.astype(np.float64)
    # rounding is relative to the trace: features may have any scale
    scale = float(np.abs(np.diag(cov)).sum())
    if not np.allclose(cov, cov.T, rtol=0, atol=SMALLEST * scale):
        raise ValueError(f"{path}: {cov_name} is no covariance: it is not symmetric")
    try:  # much faster than its eigenvalues
        np.linalg.cholesky(cov + (SMALLEST * scale or 1.0) * np.eye(len(cov)))
    except np.linalg.LinAlgError as error:
        raise ValueError(f"{path}: {cov_name} is no covariance: it has negative variances") from error
    return mean, cov

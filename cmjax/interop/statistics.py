"""Files of reference statistics: the means and covariances of features, as several codes write them."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np

from cmjax.interop.pickles import read_pickle
from cmjax.machine.files import write_atomically
from cmjax.machine.npz import load_npz, npz_bytes

Pair = tuple[np.ndarray, np.ndarray]
"""Mean (d,) and covariance (d, d), float64."""

ARRAYS = {"features": (("mu", "sigma"), ("ref_mu", "ref_sigma"), ("m", "s")), "spatial": (("mu_s", "sigma_s"),)}
"""Names of a mean and a covariance in a .npz: EDM's and ADM's are the first, and ADM's spatial features."""

PICKLED = {"fid": "inception", "fd_dinov2": "dinov2"}
"""EDM2's names of what it measures -> the network whose features these are."""

OUR_NAME = "network"
"""An array that our files have beside these: the network, where it is not Inception."""


def read_statistics(path: Path) -> dict[str, dict[str, Pair]]:
    """The statistics of a .npz, as of EDM, ADM and pytorch-fid, or of a .pkl, as of EDM2; no code in it is run.

    Returns: network ("inception", "dinov2", …) -> "features" or "spatial" -> mean and covariance.
    Raises:  ValueError saying what the file lacks; OSError where it cannot be opened.
    """
    if path.suffix == ".pkl":
        content = read_pickle(path)
        if not isinstance(content, dict) or not content.keys() & PICKLED.keys():
            raise ValueError(f"{path} has no statistics: it needs one of {', '.join(PICKLED)}, as EDM2's files have")
        found = {network: content[name] for name, network in PICKLED.items() if isinstance(content.get(name), dict)}
        return {network: {"features": _pair(path, arrays, "mu", "sigma")} for network, arrays in found.items()}
    arrays = read_arrays(path)
    network = str(arrays[OUR_NAME]) if OUR_NAME in arrays else "inception"
    pairs = {
        name: _pair(path, arrays, *names)
        for name, spellings in ARRAYS.items()
        for names in spellings
        if names[0] in arrays
    }
    if "features" not in pairs:
        raise ValueError(f"{path} has no statistics: it needs mu and sigma, and has {', '.join(arrays) or 'nothing'}")
    return {network: pairs}


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays of a .npz but its images, which can be many. Raises: ValueError where it is none."""
    return load_npz(path, without=("arr_0", "images"))


def write_statistics(path: Path, found: dict[str, dict[str, Pair]]) -> None:
    """Write a .npz of one network, as EDM and ADM read it, or a .pkl of several, as EDM2 reads it.

    Raises: ValueError where the file cannot hold them.
    """
    if path.suffix == ".pkl":
        ours = {network: name for name, network in PICKLED.items()}
        if unknown := found.keys() - ours.keys():
            raise ValueError(f"{path}: EDM2's files are of {' and '.join(ours)}; write {', '.join(unknown)} to a .npz")
        pairs = {ours[network]: pair["features"] for network, pair in found.items()}
        content = pickle.dumps({name: {"mu": mean, "sigma": cov} for name, (mean, cov) in pairs.items()})
    elif path.suffix == ".npz":
        if len(found) != 1:
            raise ValueError(f"{path}: a .npz is of one network, not of {', '.join(found) or 'none'}")
        ((network, pairs),) = found.items()
        arrays: dict[str, Any] = {}
        for name, pair in pairs.items():
            arrays |= dict(zip(ARRAYS[name][0], pair, strict=True))
        content = npz_bytes(arrays | ({} if network == "inception" else {OUR_NAME: np.array(network)}))
    else:
        raise ValueError(f"{path}: statistics are written to a .npz or a .pkl")
    write_atomically(path, content)


def _pair(path: Path, arrays, mean_name: str, cov_name: str) -> Pair:
    if mean_name not in arrays or cov_name not in arrays:
        raise ValueError(f"{path} has only one of {mean_name} and {cov_name}")
    mean, cov = (np.asarray(arrays[name], np.float64) for name in (mean_name, cov_name))
    if mean.ndim != 1 or cov.shape != (len(mean), len(mean)):
        raise ValueError(f"{path}: {mean_name} {mean.shape} and {cov_name} {cov.shape} are no mean and covariance")
    return mean, cov

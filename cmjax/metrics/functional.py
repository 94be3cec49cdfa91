"""Computes distances between a set of samples and a set of real data: pure functions of numpy arrays, in float64.

float32 is not enough here: at 2048 dimensions it moves a Fréchet distance by 1e-2.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Num, Shaped

Features = Num[np.ndarray, "_ _"]  # (n, d): one row for each image
Images = Shaped[np.ndarray, "_ _ _ _"]  # (n, h, w, c) uint8, 0 to 255
Samples = Shaped[np.ndarray, "_ ..."]  # images as above, or floats: signals (n, length, channels), points (n, features)
# 64 MiB of float64: large enough for the matrix product to run at full rate, small beside the data
BLOCK_ELEMENTS = 2**23


class Statistics(NamedTuple):
    """Holds the mean (d,) and the covariance (d, d), normalised by n − 1, of a set of features."""

    mean: Float64[np.ndarray, " d"]
    cov: Float64[np.ndarray, "d d"]


class Prdc(NamedTuple):
    """Precision, recall and coverage are in [0, 1]; density is not bounded by 1. All four grow with quality."""

    precision: float
    recall: float
    density: float
    coverage: float


def statistics(features: Features) -> Statistics:
    """Computes the mean and the covariance that `frechet_distance` compares, to keep for a reference set.

    Raises: ValueError for fewer than two rows or a value that is not finite.
    """
    features = _checked(features, "features", rows=2)
    return Statistics(features.mean(axis=0), np.atleast_2d(np.cov(features, rowvar=False)))


def frechet_distance(x: Features | Statistics, y: Features | Statistics) -> float:
    """Computes ‖μx − μy‖² + tr(Cx + Cy − 2(Cx Cy)^½), the squared 2-Wasserstein distance of two Gaussians.
    [Heusel et al. 2017, eq. 6]

    The trace of (Cx Cy)^½ is the sum of the roots of the eigenvalues of Cx^½ Cy Cx^½, which is symmetric and positive
    semi-definite, so covariances without full rank (fewer images than dimensions) need no special treatment.

    Args:    x, y: features (n, d) and (m, d), or their `statistics`. The order does not matter.
    Returns: >= 0, in squared units of the features.
    Raises:  ValueError for unequal d, fewer than two rows, or a value that is not finite.
    """
    x, y = (s if isinstance(s, Statistics) else statistics(s) for s in (x, y))
    if x.mean.shape != y.mean.shape:
        raise ValueError(f"x and y must have equally many dimensions, got {len(x.mean)} and {len(y.mean)}")
    # V, not V Vᵀ: rotating Cx^½ Cy Cx^½ into Cx's eigenvectors leaves its eigenvalues and saves two products
    variances, vectors = np.linalg.eigh(x.cov)
    # rounding takes the zero eigenvalues of a singular covariance below 0
    scaled = vectors * np.sqrt(np.maximum(variances, 0))
    product = np.linalg.eigvalsh(scaled.T @ y.cov @ scaled)
    cross = np.sum(np.sqrt(np.maximum(product, 0)))
    distance = np.sum((x.mean - y.mean) ** 2) + np.trace(x.cov) + np.trace(y.cov) - 2 * cross
    # of equal statistics rounding may leave a little less than 0
    return max(float(distance), 0.0)


def squared_radii(x: Features, *, k: int) -> Float64[np.ndarray, " n"]:
    """Computes the squared distance of every row of x (n, d) to its k-th nearest other row, (n,).
    [Kynkäänniemi et al. 2019, eq. 1]

    Raises: ValueError unless 1 <= k < n, or for a value that is not finite.
    """
    x = _checked(x, "x", rows=2)
    if not 1 <= k < len(x):
        raise ValueError(f"k must be at least 1 and less than the number of rows, {len(x)}, got {k}")
    radii = np.empty(len(x))
    for start, squared in _squared_distances(x, x):
        rows = np.arange(len(squared))
        squared[rows, start + rows] = np.inf  # a row is not its own neighbour
        radii[start + rows] = np.partition(squared, k - 1, axis=1)[:, k - 1]
    return radii


def prdc(real: Features, fake: Features, *, k: int = 5, real_radii: Float64[np.ndarray, " n"] | None = None) -> Prdc:
    """Computes improved precision and recall, density and coverage.
    [Kynkäänniemi et al. 2019, eq. 2; Naeem et al. 2020, sec. 3]

    With B(a) the closed ball around a that reaches its k-th nearest neighbour in a's own set: precision is the fraction
    of fakes in some B(real), recall the fraction of reals in some B(fake), density the mean number of B(real) around a
    fake divided by k, coverage the fraction of B(real) that hold a fake. The scale of the data does not matter, and
    integer data (pixels 0 to 255) are compared without rounding, so that copies of an image are at distance 0.

    Args:    real (n, d), fake (m, d): features; k < n and k < m. real_radii: `squared_radii(real, k=k)`, to save its
             computation where one reference meets many fakes.
    Returns: Prdc. The values depend on n, m and k: compare only values with the same three.
    Raises:  ValueError for unequal d, k out of range, or a value that is not finite.
    """
    real, fake = _checked_pair(real=real, fake=fake, rows=2)
    real_radii = squared_radii(real, k=k) if real_radii is None else real_radii
    if real_radii.shape != (len(real),):
        raise ValueError(f"real_radii must have one entry for each of {len(real)} reals, got {real_radii.shape}")
    fake_radii = squared_radii(fake, k=k)

    balls_around_fake = np.zeros(len(fake), np.int64)
    in_fake_ball = np.empty(len(real), bool)
    covered = np.empty(len(real), bool)
    # squared distances of some reals to all fakes, (rows, m): never all of (n, m) at once
    for start, squared in _squared_distances(real, fake):
        stop = start + len(squared)
        in_real_ball = squared <= real_radii[start:stop, None]
        balls_around_fake += in_real_ball.sum(axis=0)
        covered[start:stop] = in_real_ball.any(axis=1)
        in_fake_ball[start:stop] = (squared <= fake_radii[None]).any(axis=1)
    return Prdc(
        precision=float(np.mean(balls_around_fake > 0)),
        recall=float(np.mean(in_fake_ball)),
        density=float(np.mean(balls_around_fake) / k),
        coverage=float(np.mean(covered)),
    )


def inception_score(probabilities: Features, *, split_size: int = 5000) -> float:
    """Computes the mean over consecutive splits of exp E KL(p(y|x) ‖ E p(y|x)), between 1 and the number of classes.
    [Salimans et al. 2016, sec. 4; splits of 5000 as in Dhariwal & Nichol 2021]

    Args:   probabilities: (n, classes), rows summing to 1. split_size: images a split; the last may be smaller.
    Raises: ValueError for split_size < 1, or rows that are not probabilities.
    """
    p = _checked(probabilities, "probabilities", rows=1)
    if split_size < 1:
        raise ValueError(f"split_size must be at least 1, got {split_size}")
    if np.any(p < 0) or not np.allclose(p.sum(axis=1), 1, rtol=0, atol=1e-3):
        raise ValueError("probabilities must be at least 0 with rows summing to 1")
    splits = [p[start : start + split_size] for start in range(0, len(p), split_size)]
    return score_of_sums([probability_sums(split) for split in splits])


def probability_sums(p: np.ndarray) -> np.ndarray:
    """Sums probabilities (n, classes) for `score_of_sums`: n, Σ Σ_y p log p, and Σ p of each class."""
    p_log_p = p * np.log(np.where(p > 0, p, 1))  # 0 at p = 0
    return np.concatenate([[len(p), p_log_p.sum()], p.sum(axis=0)])


def score_of_sums(splits: Sequence[np.ndarray]) -> float:
    """Computes the Inception Score from the `probability_sums` of its splits."""
    scores = []
    for count, p_log_p, *by_class in splits:
        mean = np.array(by_class) / count
        # E KL(p(y|x) ‖ p(y)) = E Σ p ln p − Σ p(y) ln p(y), with 0·ln 0 = 0
        scores.append(np.exp(p_log_p / count - np.sum(mean * np.log(np.where(mean > 0, mean, 1)))))
    return float(np.mean(scores))


def kid(x: Features, y: Features) -> float:
    """Computes the unbiased squared MMD under the kernel (a·b/d + 1)³; unbiased, so it may be below 0.
    [Bińkowski et al. 2018, sec. 4]

    Published values average it over random subsets of 1000; using every row at once has the same expectation and
    less variance.

    Args:   x (n, d), y (m, d): features.
    Raises: ValueError for unequal d, fewer than two rows, or a value that is not finite.
    """
    x, y = _checked_pair(x=x, y=y, rows=2)

    def kernel_sum(a: np.ndarray, b: np.ndarray) -> float:
        return sum(float(np.sum((a[rows] @ b.T / a.shape[1] + 1) ** 3)) for rows in _row_blocks(len(a), len(b)))

    def within(a: np.ndarray) -> float:
        # the pairs of a row with itself, which the unbiased mean leaves out
        diagonal = np.sum((np.sum(a**2, axis=1) / a.shape[1] + 1) ** 3)
        return (kernel_sum(a, a) - float(diagonal)) / (len(a) * (len(a) - 1))

    return within(x) + within(y) - 2 * kernel_sum(x, y) / (len(x) * len(y))


def kid_of_subsets(x: Features, y: Features, *, subsets: int = 100, size: int = 1000, seed: int = 0) -> float:
    """Computes the mean `kid` of random subsets of `size` rows each, as published values have it.
    [Bińkowski et al. 2018, sec. 4]

    Raises: ValueError as `kid`.
    """
    x, y = _checked(x, "x", rows=2), _checked(y, "y", rows=2)
    size = min(size, len(x), len(y))
    if size == len(x) == len(y):  # all subsets are the whole
        return kid(x, y)
    rng = np.random.default_rng(seed)
    pairs = ((rng.choice(len(x), size, replace=False), rng.choice(len(y), size, replace=False)) for _ in range(subsets))
    return float(np.mean([kid(x[i], y[j]) for i, j in pairs]))


def cmmd(x: Features, y: Features) -> float:
    """Computes 1000 · MMD² under the kernel exp(−‖a − b‖²/(2·10²)), with means over all pairs: biased, never below 0.
    [Jayasumana et al. 2024, sec. 4, and the scale of the released code]

    Args:   x (n, d), y (m, d): CLIP's embeddings, of length 1.
    Raises: ValueError for unequal d, or a value that is not finite.
    """
    x, y = _checked_pair(x=x, y=y, rows=1)

    def mean_kernel(a: np.ndarray, b: np.ndarray) -> float:
        # expm1 keeps the digits that 1 − tiny loses; the ones cancel in k(x, x) + k(y, y) − 2k(x, y)
        sums = (float(np.sum(np.expm1(squared / -200))) for _, squared in _squared_distances(a, b))
        return sum(sums) / (len(a) * len(b))

    return 1000 * (mean_kernel(x, x) + mean_kernel(y, y) - 2 * mean_kernel(x, y))


def fitted_gaussian(images: Samples, n: int, seed: int) -> Samples:
    """Samples n times the Gaussian that has the mean and covariance of the images' pixels, rounded to uint8; or that of
    signals' or points' values, float32.

    The baseline that knows every second moment of the data and nothing else: a model must beat it.

    Args:   images: (N, h, w, c) uint8, or another `Samples`, N >= 2; memory grows with min(N, h·w·c)·h·w·c. n: >= 1.
    Raises: ValueError for images of another dtype or shape, N < 2, or n < 1.
    """
    check_samples(images, "images")
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    pixels = _checked(images.reshape(len(images), -1), "images", rows=2)
    mean = pixels.mean(axis=0)
    # RᵀR of the QR decomposition is the covariance, also where it lacks full rank and has no Cholesky factor
    factor = np.linalg.qr(pixels - mean, mode="r") / np.sqrt(len(pixels) - 1)
    noise = np.random.default_rng(seed).standard_normal((n, len(factor)))
    values = (mean + noise @ factor).reshape(n, *images.shape[1:])
    return np.clip(np.rint(values), 0, 255).astype(np.uint8) if images.ndim == 4 else values.astype(np.float32)


def check_images(images: np.ndarray, name: str) -> None:
    """Raises ValueError, calling the array `name`, unless it is (n, h, w, c) uint8 with n >= 1."""
    if images.dtype != np.uint8 or images.ndim != 4 or 0 in images.shape:
        raise ValueError(f"{name} must be (n, h, w, c) uint8 with n >= 1, got {images.shape} {images.dtype}")


def check_samples(samples: np.ndarray, name: str) -> None:
    """Raises ValueError, calling the array `name`, unless it is images (n, h, w, c) uint8, or floats: signals
    (n, length, channels) or points (n, features), with n >= 1."""
    if samples.ndim not in (2, 3) or samples.dtype.kind != "f" or 0 in samples.shape:
        check_images(samples, name)


def _checked(features: np.ndarray, name: str, *, rows: int) -> np.ndarray:
    features = np.asarray(features, np.float64)
    if features.ndim != 2 or len(features) < rows or features.shape[1] < 1:
        raise ValueError(f"{name} must be (n, d) with n >= {rows} and d >= 1, got shape {features.shape}")
    if not np.all(np.isfinite(features)):
        raise ValueError(f"{name} must be finite, got {int(np.sum(~np.isfinite(features)))} values that are not")
    return features


def _checked_pair(*, rows: int, **pair: np.ndarray) -> list[np.ndarray]:
    first, second = checked = [_checked(features, name, rows=rows) for name, features in pair.items()]
    if first.shape[1] != second.shape[1]:
        names = " and ".join(pair)
        raise ValueError(f"{names} must have equally many columns, got {first.shape[1]} and {second.shape[1]}")
    return checked


def _row_blocks(n: int, m: int) -> Iterator[slice]:
    size = max(1, BLOCK_ELEMENTS // m)
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def _squared_distances(x: np.ndarray, y: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yields (first row, ‖x_i − y_j‖² for a block of rows of x and all of y), as ‖x_i‖² + ‖y_j‖² − 2x_i·y_j."""
    # a common shift keeps the norms near the distances, so that little cancels; a whole one keeps integers exact
    shift = np.rint(y.mean(axis=0))
    x, y = x - shift, y - shift
    x_norms, y_norms = np.sum(x**2, axis=1), np.sum(y**2, axis=1)
    for rows in _row_blocks(len(x), len(y)):
        squared = x[rows] @ y.T
        squared *= -2  # in place: a block is the largest array here
        squared += x_norms[rows, None]
        squared += y_norms
        yield rows.start, np.maximum(squared, 0, out=squared)

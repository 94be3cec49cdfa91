// Consistency sampling and zero-shot editing, as in cmjax/core/sampling.py and cmjax/core/editing.py, on the `ve` path.
// `f(x, t)` is the consistency function: it takes a Float32Array of n samples and one noise level, and gives a promise of
// the estimate of the clean samples. `noise(i)` gives the i-th unit Gaussian of the same length.

const ROTATIONS = [[13, 15, 26, 6], [17, 29, 16, 24]];

/** Threefry-2x32 of 20 rounds, the counter-based generator of JAX.   [Salmon et al. 2011] */
export function threefry([k0, k1], x0, x1) {
  const keys = [k0, k1, k0 ^ k1 ^ 0x1bd11bda];
  x0 = (x0 + k0) | 0;
  x1 = (x1 + k1) | 0;
  for (let i = 0; i < 5; i++) {
    for (const r of ROTATIONS[i % 2]) {
      x0 = (x0 + x1) | 0;
      x1 = ((x1 << r) | (x1 >>> (32 - r))) ^ x0;
    }
    x0 = (x0 + keys[(i + 1) % 3]) | 0;
    x1 = (x1 + keys[(i + 2) % 3] + i + 1) | 0;
  }
  return [x0, x1];
}

// Giles' polynomials for the inverse error function in float32, as XLA has them: for w < 5, and from there on.
const CENTRE = [2.81022636e-8, 3.43273939e-7, -3.5233877e-6, -4.39150654e-6, 0.00021858087, -0.00125372503,
  -0.00417768164, 0.246640727, 1.50140941];
const TAIL = [-0.000200214257, 0.000100950558, 0.00134934322, -0.00367342844, 0.00573950773, -0.0076224613,
  0.00943887047, 1.00167406, 2.83297682];

function inverseErf(x) {
  const w = -Math.log1p(-x * x);
  const shifted = w < 5 ? w - 2.5 : Math.sqrt(w) - 3;
  return x * (w < 5 ? CENTRE : TAIL).reduce((sum, coefficient) => sum * shifted + coefficient);
}

/** The index-th Gaussian of a seed: jax.random.normal(jax.random.fold_in(jax.random.key(seed), index), (size,)). */
export function gaussian(seed, index, size) {
  const key = threefry([0, seed], 0, index);
  const out = new Float32Array(size), lowest = -1 + 2 ** -24;
  for (let i = 0; i < size; i++) {
    const [a, b] = threefry(key, 0, i);
    const uniform = ((a ^ b) >>> 9) * 2 ** -23; // 23 random bits, in [0, 1)
    out[i] = Math.SQRT2 * inverseErf(Math.max(lowest, Math.fround(2 * uniform + lowest)));
  }
  return out;
}

/** Spherical interpolation of Gaussian noise, sample by sample of `size` numbers: a at fraction 0, b at 1. */
export function slerp(a, b, fraction, size) {
  const out = new Float32Array(a.length);
  for (let start = 0; start < a.length; start += size) {
    let ab = 0, aa = 0, bb = 0;
    for (let i = start; i < start + size; i++) {
      ab += a[i] * b[i];
      aa += a[i] * a[i];
      bb += b[i] * b[i];
    }
    const angle = Math.acos(Math.min(1, Math.max(-1, ab / Math.sqrt(aa * bb))));
    const apart = Math.sin(angle) > 1e-6; // where the angle is 0, both weights take their limits
    const ofA = apart ? Math.sin((1 - fraction) * angle) / Math.sin(angle) : 1 - fraction;
    const ofB = apart ? Math.sin(fraction * angle) / Math.sin(angle) : fraction;
    for (let i = start; i < start + size; i++) out[i] = ofA * a[i] + ofB * b[i];
  }
  return out;
}

const added = (x, scale, z) => x.map((value, i) => value + scale * z[i]);

/** Multistep consistency sampling: x ← f(T·z, T); for each later t, x ← f(x + √(t² − t_min²)·z, t).
    [Song et al. 2023, alg. 1] */
export async function sample(f, noise, times, tMin) {
  let x = await f(noise(0).map((z) => times[0] * z), times[0]);
  for (let i = 1; i < times.length; i++) {
    x = await f(added(x, Math.sqrt(times[i] ** 2 - tMin ** 2), noise(i)), times[i]);
  }
  return x;
}

/** Zero-shot editing: at each t, x ← f(x + √(t² − t_min²)·z, t), clipped; then known pixels (1 in `known`) are those of
    `images` again. The first t adds t·z to `start`.   [Song et al. 2023, alg. 4] */
export async function edit(f, noise, images, known, start, times, tMin) {
  let x = start;
  for (let i = 0; i < times.length; i++) {
    const scale = i ? Math.sqrt(times[i] ** 2 - tMin ** 2) : times[0];
    x = await f(added(x, scale, noise(i)), times[i]);
    x = x.map((value, j) => (known[j] ? images[j] : Math.min(1, Math.max(-1, value))));
  }
  return x;
}

/** Noise levels from `highest` down to `lowest`, evenly spaced in t^(1/7).   [Karras et al. 2022, eq. 5] */
export function karras(count, lowest, highest) {
  const [a, b] = [highest ** (1 / 7), lowest ** (1 / 7)];
  return Array.from({ length: count }, (_, i) => (a + (i / (count - 1)) * (b - a)) ** 7);
}

// Loads a model of this folder, and onnxruntime-web to run it: once, and then without a network.

const HERE = new URL(".", import.meta.url);

/** The bytes of a file of this folder; `received` is called with how many more have come. */
async function bytes(name, received = () => {}) {
  const answer = await fetch(new URL(name, HERE));
  if (!answer.ok) throw new Error(`${name}: the server answers ${answer.status}`);
  const counting = new TransformStream({
    transform(part, stream) {
      received(part.length);
      stream.enqueue(part);
    },
  });
  return new Uint8Array(await new Response(answer.body.pipeThrough(counting)).arrayBuffer());
}

/** `content` unpacked, where the server has not done it. */
async function unpacked(content) {
  if (content[0] !== 0x1f || content[1] !== 0x8b) return content;
  const stream = new Blob([content]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** What the JSON of a model says: its samples' shape, its times, its classes. */
export async function describe(name) {
  return JSON.parse(new TextDecoder().decode(await bytes(`${name}.json`)));
}

/** onnxruntime-web, which all models of a page share. */
async function runtime(received) {
  const [ort, wasm] = await Promise.all([
    import(new URL("vendor/ort.wasm.bundle.min.mjs", HERE)),
    bytes("vendor/ort-wasm-simd-threaded.wasm.gz", received).then(unpacked),
  ]);
  ort.env.wasm.wasmBinary = wasm.buffer;
  ort.env.wasm.numThreads = 1; // threads want headers that a static host does not send
  return ort;
}

let running = null;

/** f(x, t, labels) of a model: a promise of the estimate of the clean samples, for x of n samples, one noise level and n
    classes. `progress` is called with the number of bytes that have come. */
export async function load(name, about, progress = () => {}) {
  let total = 0;
  const received = (count) => progress((total += count));
  running ??= runtime(received).catch((e) => ((running = null), Promise.reject(e)));
  const [ort, graph] = await Promise.all([running, bytes(`${name}.onnx`, received)]);
  const session = await ort.InferenceSession.create(graph, { executionProviders: ["wasm"] });
  const size = about.shape.reduce((a, b) => a * b);

  async function evaluate(x, t, labels) {
    const count = x.length / size;
    const inputs = {
      x: new ort.Tensor("float32", x, [count, ...about.shape]),
      t: new ort.Tensor("float32", new Float32Array(count).fill(t), [count]),
    };
    if (about.classes) inputs.label = new ort.Tensor("int32", Int32Array.from(labels), [count]);
    return (await session.run(inputs)).estimate.data;
  }
  let last = evaluate(new Float32Array(64 * size), about.t_max, new Array(64).fill(0)); // the first one is slower
  await last;
  return (...inputs) => (last = last.catch(() => {}).then(() => evaluate(...inputs))); // one at a time
}

// What the parts of the page share: fields by name, a canvas of samples, and work that may be asked for too often.

/** The fields of a model in the element `host`, and the model, which is loaded when it is first asked for. */
export class Panel {
  constructor(host, root, about, load) {
    Object.assign(this, { host, root, about, load, model: null });
    this.size = about.shape.reduce((a, b) => a * b);
  }

  one(selector) {
    return this.root.querySelector(selector);
  }

  field(name) {
    return this.one(`[data-name="${name}"]`);
  }

  number(name) {
    return Number(this.field(name).value);
  }

  /** A seed: what is in its field, brought into the range of JAX's keys. */
  seed(name) {
    return Math.min(2 ** 32 - 1, Math.max(0, Math.floor(this.number(name))));
  }

  /** Writes a slider's value beside it, and for who hears it. */
  write(name, text) {
    this.field(name).parentElement.querySelector("output").value = text;
    this.field(name).setAttribute("aria-valuetext", text);
  }

  /** The classes of `count` samples: the one that is chosen, or all in turn. */
  labels(count) {
    const chosen = this.field("label").value, classes = this.about.classes?.length ?? 1;
    return Array.from({ length: count }, (_, i) => (chosen === "" ? i % classes : Number(chosen)));
  }

  /** The model, or null where it cannot be loaded, which the page then says. */
  async open() {
    if (this.model) return this.model;
    const said = this.one(".draw-said");
    this.one(".draw-go").disabled = true;
    try {
      this.model = await this.load((count) => (said.value = `Loading: ${(count / 1e6).toFixed(1)} MB`));
      for (const fieldset of this.root.querySelectorAll("fieldset")) fieldset.disabled = false;
      said.value = "Loaded: the network is not needed any more.";
    } catch (error) {
      said.value = `The model cannot be loaded: ${error.message}`;
    }
    this.one(".draw-go").disabled = false;
    return this.model;
  }
}

/** Calls of `work`, which fills a canvas, one after another; of those that come meanwhile the last one alone is done. */
export function latest(canvas, work) {
  let running = null, again = false;
  const loop = async () => {
    while (again) {
      again = false;
      await work();
    }
  };
  return () => {
    again = true;
    canvas.ariaBusy = "true";
    return (running ??= loop().finally(() => {
      running = null;
      canvas.ariaBusy = "false";
    }));
  };
}

/** Shows samples (n, h, w, c) in [-1, 1] as squares on a canvas, one pixel apart, and says `text` of them. */
export function show(canvas, samples, [h, w, c], columns, text) {
  const rows = Math.ceil(samples.length / (h * w * c) / columns);
  canvas.width = columns * (w + 1) - 1;
  canvas.height = rows * (h + 1) - 1;
  const context = canvas.getContext("2d"), image = context.createImageData(canvas.width, canvas.height);
  for (let i = 0; i < samples.length / c; i++) {
    const [n, y, x] = [Math.floor(i / (h * w)), Math.floor(i / w) % h, i % w];
    const row = Math.floor(n / columns) * (h + 1) + y, column = (n % columns) * (w + 1) + x;
    const channels = [0, 1, 2].map((k) => 127.5 * (samples[i * c + (c === 3 ? k : 0)] + 1));
    image.data.set([...channels, 255], 4 * (row * canvas.width + column));
  }
  context.putImageData(image, 0, 0);
  canvas.setAttribute("aria-label", text);
}

export const several = (count, one) => `${count} ${one}${count === 1 ? "" : "s"}`;
export const short = (level) => String(Number(level.toPrecision(2)));

// Strokes that become samples: a canvas to paint on, and what the model makes of it.

import { latest, short, show, several } from "./panel.js";
import { edit, gaussian, karras } from "./sampler.js";

const EDITS = 10, COLUMNS = 5, SIDE = 672; // of the canvas to paint on
const RATIO = 2.24 / 5.38; // of the two noise levels of stroke-guided editing   [Song et al. 2023, app. D]

export const STROKES = `
  <h2>Paint</h2>
  <div class="draw-parts">
    <canvas class="draw-canvas draw-paint" tabindex="0" role="application"
      aria-label="Canvas: the arrow keys move, space paints, backspace erases"></canvas>
    <output class="draw-place" aria-live="polite"></output>
    <fieldset disabled>
      <canvas class="draw-canvas draw-edits" role="img"></canvas>
      <output class="draw-edited" aria-live="polite">Paint a few strokes, and ten samples follow them.</output>
      <label>Noise on the strokes <output></output>
        <input type="range" data-name="strength" min="-1" max="1.5" step="0.05" value="0.3"></label>
      <label class="draw-row"><input type="checkbox" data-name="keep"> Keep what is painted, complete the rest</label>
      <p class="draw-row"><button type="button" class="draw-clear md-button">Clear</button></p>
    </fieldset>
  </div>`;

/** Draws the canvas, with the square that the keyboard is at. */
function drawCanvas(canvas, [h, w], painted, at, brush) {
  const context = canvas.getContext("2d"), side = Math.round(SIDE / w), apart = brush > 1 ? 0 : 3;
  [canvas.width, canvas.height] = [w * side - apart, h * side - apart];
  for (let i = 0; i < h * w; i++) {
    context.fillStyle = painted[i] ? "#fff" : "#000";
    context.fillRect((i % w) * side, Math.floor(i / w) * side, side - apart, side - apart);
  }
  if (document.activeElement !== canvas) return;
  context.strokeStyle = "#888";
  context.lineWidth = 8;
  context.strokeRect((at % w) * side + 6, Math.floor(at / w) * side + 6, brush * side - 12, brush * side - 12);
}

async function complete(panel, painted) {
  const { host, about, size } = panel, channels = about.shape[2], kept = panel.field("keep").checked;
  const strength = 10 ** panel.number("strength");
  panel.write("strength", short(strength));
  panel.field("strength").disabled = kept;
  const f = await panel.open();
  if (!f) return;
  const value = (i, empty) => (painted[Math.floor((i % size) / channels)] ? 1 : empty);
  const filled = (empty) => Float32Array.from({ length: EDITS * size }, (_, i) => value(i, empty));
  const known = kept ? filled(0) : new Float32Array(EDITS * size);
  const times = kept ? karras(20, 0.02, about.t_max) : [strength, Math.max(about.t_min, RATIO * strength)];
  const labels = panel.labels(EDITS), noise = (i) => gaussian(panel.seed("from"), i, EDITS * size);
  host.edited = await edit((x, t) => f(x, t, labels), noise, filled(-1), known, filled(kept ? 0 : -1), times, about.t_min);
  const text = `${several(EDITS, about.noun)} of the strokes, each by ${several(times.length, "evaluation")}`;
  show(panel.one(".draw-edits"), host.edited, about.shape, COLUMNS, text);
  panel.one(".draw-edited").value = text;
}

/** Makes the canvas live. Returns: what makes the samples anew. */
export function startPainting(panel) {
  const canvas = panel.one(".draw-paint"), [h, w] = panel.about.shape, painted = new Uint8Array(h * w);
  const redraw = latest(panel.one(".draw-edits"), () => complete(panel, painted));
  const brush = Math.max(1, Math.round(w / 12)); // strokes are so many pixels wide
  let at = Math.floor(h / 2) * w + Math.floor(w / 2), ink = null;
  panel.write("strength", short(10 ** panel.number("strength")));
  show(panel.one(".draw-edits"), new Float32Array(EDITS * panel.size).fill(-1), panel.about.shape, COLUMNS, "Nothing yet");

  const within = (i, count) => Math.min(count - brush, Math.max(0, i));
  const redrawCanvas = () => drawCanvas(canvas, panel.about.shape, painted, at, brush);

  /** Paints, or erases, the squares of the brush on the line that ends at `place`. */
  function put(place, value, begin = place) {
    const [row, column, down, right] = [Math.floor(begin / w), begin % w, Math.floor(place / w), place % w];
    const steps = Math.max(1, Math.abs(down - row), Math.abs(right - column)), before = painted.slice();
    for (let i = 0; i <= steps; i++) {
      const y = Math.round(row + (i / steps) * (down - row)), x = Math.round(column + (i / steps) * (right - column));
      for (let k = y; k < Math.min(h, y + brush); k++) painted.fill(value, k * w + x, k * w + Math.min(w, x + brush));
    }
    at = place;
    redrawCanvas();
    if (painted.some((value, i) => value !== before[i])) redraw();
  }

  function placeOf(event) {
    const box = canvas.getBoundingClientRect();
    const along = (part, count) => within(Math.floor(part * count - (brush - 1) / 2), count);
    return along((event.clientY - box.top) / box.height, h) * w + along((event.clientX - box.left) / box.width, w);
  }

  function key(event) {
    const [row, column] = [Math.floor(at / w), at % w];
    const move = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    const value = { " ": 1, Enter: 1, Backspace: 0, Delete: 0 }[event.key];
    if (!move && value === undefined) return;
    event.preventDefault();
    if (!move) return put(at, value);
    at = within(row + brush * move[0], h) * w + within(column + brush * move[1], w);
    redrawCanvas();
    const place = `Row ${Math.floor(at / w) + 1}, column ${(at % w) + 1}`;
    panel.one(".draw-place").value = `${place}, ${painted[at] ? "painted" : "empty"}`;
  }

  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    ink = painted[placeOf(event)] ? 0 : 1; // a stroke that begins on paint erases
    put(placeOf(event), ink);
  });
  canvas.addEventListener("pointermove", (event) => ink !== null && put(placeOf(event), ink, at));
  for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => (ink = null));
  canvas.addEventListener("keydown", key);
  for (const change of ["focus", "blur"]) canvas.addEventListener(change, redrawCanvas);
  panel.one(".draw-clear").addEventListener("click", () => {
    painted.fill(0);
    put(at, 0);
    redraw();
  });
  for (const name of ["strength", "keep"]) panel.field(name).addEventListener("input", redraw);
  redrawCanvas();
  return () => (painted.some(Boolean) ? redraw() : undefined);
}

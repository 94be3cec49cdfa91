// The element <div class="draw" data-model="digits">: samples by one click, noise between two seeds, strokes that become
// digits. data-model="digits mnist" has both, and a choice; data-parts="samples" leaves the strokes out. What was made
// last is in the element's `samples` and `edited`.

import { describe, load } from "./engine.js";
import { startPainting, STROKES } from "./paint.js";
import { latest, Panel, several, short, show } from "./panel.js";
import { gaussian, sample, slerp } from "./sampler.js";

const COUNT = 64, COLUMNS = 8;
const loaded = new Map();

const choice = (names, abouts) => `
  <div class="draw-row draw-choice" role="radiogroup" aria-label="Model">
    ${names.map((name, i) => `
      <label><input type="radio" name="draw ${names}" value="${name}" ${i ? "" : "checked"}>
        ${abouts[i].noun}s, ${abouts[i].shape.slice(0, 2).join("×")}</label>`).join("")}
  </div>`;

const samplesPart = (about) => `
  <p class="draw-row">
    <button type="button" class="draw-go md-button md-button--primary">Draw ${several(COUNT, about.noun)}</button>
    <output class="draw-said" aria-live="polite">The first click loads ${about.megabytes} MB. Nothing is sent.</output>
  </p>
  <div class="draw-parts">
    <canvas class="draw-canvas draw-grid" role="img"></canvas>
    <fieldset disabled>
      <label ${about.classes ? "" : "hidden"}>Class
        <select data-name="label"><option value="">all, in turn</option>
          ${(about.classes ?? []).map((text, i) => `<option value="${i}">${text}</option>`).join("")}</select></label>
      <label>Evaluations, at noise levels <output></output>
        <input type="range" data-name="evaluations" min="1" max="5" value="1"></label>
      <label>Second noise level <output></output>
        <input type="range" data-name="second" min="-2" max="1.6" step="0.05" value="-0.1"></label>
      <label>From one noise to another <output></output>
        <input type="range" data-name="mix" min="0" max="100" value="0"></label>
      <p class="draw-row">
        <label>Seeds <input type="number" data-name="from" min="0" max="4294967295" value="0"></label>
        <label>and <input type="number" data-name="to" min="0" max="4294967295" value="1"></label>
        <button type="button" class="draw-new md-button">New</button>
      </p>
    </fieldset>
  </div>`;

/** t_max, then the second noise level, then half of the one before. */
function levels(panel) {
  const { t_min, t_max } = panel.about;
  const later = (i) => Math.max(t_min, 10 ** panel.number("second") / 2 ** (i - 1));
  return Array.from({ length: panel.number("evaluations") }, (_, i) => (i ? later(i) : t_max));
}

function writeFields(panel) {
  const times = levels(panel);
  panel.write("evaluations", times.map(short).join(", "));
  panel.write("second", short(10 ** panel.number("second")));
  panel.write("mix", `${panel.number("mix")} %`);
  panel.field("second").disabled = times.length < 2;
}

async function draw(panel) {
  const { host, about, size } = panel;
  writeFields(panel);
  const f = await panel.open();
  if (!f) return;
  const times = levels(panel), labels = panel.labels(COUNT), fraction = panel.number("mix") / 100;
  const seeds = [panel.seed("from"), panel.seed("to")];
  const began = performance.now();
  const noise = (i) => {
    const [a, b] = seeds.map((seed) => gaussian(seed, i, COUNT * size));
    return slerp(a, b, fraction, size);
  };
  host.samples = await sample((x, t) => f(x, t, labels), noise, times, about.t_min);
  const milliseconds = (performance.now() - began).toFixed(1);
  const text = `${several(COUNT, about.noun)} in ${milliseconds} ms, each by ${several(times.length, "evaluation")}`;
  show(panel.one(".draw-grid"), host.samples, about.shape, COLUMNS, text);
  panel.one(".draw-said").value = text;
}

/** Adds a model's panel to the element. Returns: the panel, whose `redraw` draws samples. */
function addPanel(host, name, about) {
  const root = document.createElement("div"), strokes = host.dataset.parts !== "samples";
  const once = (progress) => {
    if (!loaded.has(name)) loaded.set(name, load(name, about, progress).catch((e) => (loaded.delete(name), Promise.reject(e))));
    return loaded.get(name);
  };
  root.className = "draw-model";
  root.innerHTML = samplesPart(about) + (strokes ? STROKES : "");
  host.append(root);
  const panel = new Panel(host, root, about, once), redraw = latest(panel.one(".draw-grid"), () => draw(panel));
  writeFields(panel);
  show(panel.one(".draw-grid"), new Float32Array(COUNT * panel.size).fill(-1), about.shape, COLUMNS, "Nothing is drawn yet");
  const repaint = strokes ? startPainting(panel) : () => {};
  panel.one(".draw-go").addEventListener("click", redraw);
  panel.one(".draw-new").addEventListener("click", () => {
    for (const seed of ["from", "to"]) panel.field(seed).value = Math.floor(Math.random() * 1e6);
    redraw().then(repaint);
  });
  for (const name of ["evaluations", "second", "mix", "to"]) panel.field(name).addEventListener("input", redraw);
  for (const name of ["label", "from"]) panel.field(name).addEventListener("input", () => redraw().then(repaint));
  return Object.assign(panel, { redraw });
}

async function start(host) {
  const names = host.dataset.model.split(" "), abouts = await Promise.all(names.map(describe));
  host.innerHTML = names.length > 1 ? choice(names, abouts) : "";
  const panels = names.map((name, i) => addPanel(host, name, abouts[i]));
  const choose = (chosen) => {
    for (const panel of panels) panel.root.hidden = panel !== chosen;
    if (loaded.size && !chosen.model) chosen.redraw(); // who has drawn with one model need not ask for the other twice
  };
  choose(panels[0]);
  host.querySelector(".draw-choice")?.addEventListener("input", (e) => choose(panels[names.indexOf(e.target.value)]));
  host.dataset.ready = "";
}

for (const host of document.querySelectorAll(".draw[data-model]")) {
  start(host).catch((error) => (host.textContent = `The page that draws cannot start: ${error.message}`));
}

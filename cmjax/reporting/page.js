"use strict";
const slider = document.getElementById("step");
if (slider) {
  const steps = JSON.parse(slider.dataset.steps);
  const formatted = (step) => step.toLocaleString("en");
  const show = () => {
    const step = steps[Number(slider.value)];
    document.querySelector("output").textContent = formatted(step);
    for (const frames of document.querySelectorAll(".frames")) {
      const images = [...frames.querySelectorAll("img")];
      const before = images.filter((image) => Number(image.dataset.step) <= step);
      const chosen = before.at(-1) ?? images[0];
      for (const image of images) image.hidden = image !== chosen;
      frames.querySelector(".shown").textContent = formatted(Number(chosen.dataset.step));
    }
  };
  slider.addEventListener("input", show);
  show();
}

// Under a finger a plot lets the page scroll until one of its buttons is chosen.
const release = () => {
  const plots = window.Bokeh.documents.flatMap((shown) => shown.roots());
  if (!plots.length) return void setTimeout(release, 200);
  for (const plot of plots) for (const tool of plot.toolbar.tools) if (tool.type === "BoxZoomTool") tool.active = false;
};
if (window.Bokeh && matchMedia("(pointer: coarse)").matches) release();

"use strict";
const slider = document.getElementById("step");
if (slider) {
  const steps = JSON.parse(slider.dataset.steps);
  const told = (step) => step.toLocaleString("en");
  const show = () => {
    const step = steps[Number(slider.value)];
    document.querySelector("output").textContent = told(step);
    for (const frames of document.querySelectorAll(".frames")) {
      const images = [...frames.querySelectorAll("img")];
      const before = images.filter((image) => Number(image.dataset.step) <= step);
      const chosen = before.at(-1) ?? images[0];
      for (const image of images) image.hidden = image !== chosen;
      frames.querySelector(".shown").textContent = told(Number(chosen.dataset.step));
    }
  };
  slider.addEventListener("input", show);
  show();
}

"use strict";
(() => {
  const config = JSON.parse(document.getElementById("vega-config").textContent);

  // Charts in closed runs wait until these are opened: they have no width before.
  async function draw(chart) {
    if (chart.dataset.drawn !== undefined) return;
    chart.dataset.drawn = "begun";
    const spec = JSON.parse(document.getElementById(chart.dataset.spec).textContent);
    const holder = chart.appendChild(document.createElement("div"));
    try {
      await vegaEmbed(holder, spec, { config, renderer: "svg", actions: false, tooltip: { theme: "custom" } });
      chart.dataset.drawn = "done";
    } catch (error) {
      chart.dataset.drawn = "failed";
      chart.append("This picture could not be drawn; its table is below.");
      console.error(error);
    }
  }

  function drawVisible() {
    for (const chart of document.querySelectorAll(".chart")) {
      if (!chart.closest("details.run:not([open])")) draw(chart);
    }
  }

  // Every mark carries its values as a label; arrow keys go from one to the next and read it out.
  function step(chart, by) {
    const marks = [...chart.querySelectorAll('.role-mark:not(.mark-line, .mark-area) > [role="graphics-symbol"][aria-label]:not(text)')];
    if (!marks.length) return;
    const now = marks.findIndex((mark) => mark.classList.contains("chosen"));
    const next = now < 0 ? (by > 0 ? 0 : marks.length - 1) : Math.min(Math.max(now + by, 0), marks.length - 1);
    marks.forEach((mark, i) => mark.classList.toggle("chosen", i === next));
    chart.parentElement.querySelector(".readout").textContent = marks[next].getAttribute("aria-label");
  }

  function leave(chart) {
    chart.querySelectorAll(".chosen").forEach((mark) => mark.classList.remove("chosen"));
    chart.parentElement.querySelector(".readout").textContent = "";
  }

  const keys = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
  for (const chart of document.querySelectorAll(".chart")) {
    chart.addEventListener("keydown", (event) => {
      if (event.target !== chart || !(event.key in keys)) return;
      event.preventDefault();
      step(chart, keys[event.key]);
    });
    chart.addEventListener("blur", () => leave(chart));
  }
  document.querySelectorAll("details.run").forEach((part) => part.addEventListener("toggle", drawVisible));
  drawVisible();
})();

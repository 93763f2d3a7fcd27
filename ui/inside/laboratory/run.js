// Shows the steps of a recorded run (the values of ui/inside/laboratory/run.py). Runs once; `element`, `props` and `watch` come from Gradio.
const find = (selector) => element.querySelector(selector);
const parts = [".play", "[type=range]", ".chips", ".heat", ".glow", ".layer", ".head"];
const [play, slider, chips, heat, glow, layer, head] = parts.map(find);
const sheet = new Image(); // the heat of each layer, head and word
const chosen = () => find("[name=inside-word]:checked")?.value;
const lessMotion = matchMedia("(prefers-reduced-motion: reduce)");
let run = null;
let frames = []; // its steps
let held = false; // a step was chosen: the newest one does not replace it
let timer = null;

function chip(text, i) {
  const [label, radio, map, name] = ["label", "input", "img", "span"].map((tag) => document.createElement(tag));
  Object.assign(radio, { type: "radio", name: "inside-word", value: i });
  map.alt = "";
  name.textContent = text;
  label.append(radio, map, name);
  label.addEventListener("pointerenter", () => radio.click());
  return label;
}

// The heat of the chosen layer and head, over all steps.
function ofHead(count) {
  const { layers, side } = props.value.heads;
  const { first, low, high } = layers[layer.value];
  const row = Number(head.value || -1) + 1; // first stands the mean of all heads
  const canvas = Object.assign(document.createElement("canvas"), { width: side, height: side });
  return Array.from({ length: count }, (_, i) => {
    const pen = canvas.getContext("2d");
    pen.clearRect(0, 0, side, side);
    pen.drawImage(sheet, i * side, (first + row) * side, side, side, 0, 0, side, side);
    return { src: canvas.toDataURL(), low: low[row][i], high: high[row][i] };
  });
}

function where() {
  if (layer.value === "") return "";
  return ` of ${head.value === "" ? "layer" : `head ${Number(head.value) + 1} in layer`} ${Number(layer.value) + 1}, over all steps`;
}

function offer(select, texts) {
  select.replaceChildren(new Option("all", ""), ...texts.map((text, i) => new Option(text, i)));
  select.disabled = !texts.length;
}

function show() {
  const { words, scale } = props.value;
  const frame = frames[slider.value - 1];
  for (const img of element.querySelectorAll("[data-picture]")) {
    img.hidden = !frame[img.dataset.picture];
    img.src = frame[img.dataset.picture] || "";
  }
  find("output").textContent = `Step ${frame.index} of ${frame.total}, timestep ${frame.timestep}, seed ${frame.seed}`;
  slider.setAttribute("aria-valuetext", `step ${frame.index} of ${frame.total}`);
  find(".scale").textContent = `w = ${scale}`;
  const maps = layer.value === "" ? frame[glow.value || "mean"] : ofHead(words.length);
  chips.querySelectorAll("img").forEach((img, i) => (img.src = maps[i].src));
  const word = chosen();
  heat.hidden = word === undefined || !glow.value;
  if (word !== undefined) heat.src = maps[word].src;
  find(".told").textContent =
    word === undefined
      ? "This prompt has no words."
      : `“${words[word]}” gets between ${maps[word].low} % and ${maps[word].high} % of the attention${where()}.`;
  for (const svg of element.querySelectorAll("svg")) {
    const readings = [...svg.querySelectorAll(".at")];
    const here = readings.findLast((one) => Number(one.dataset.x) <= frame.index);
    readings.forEach((one) => one.classList.toggle("here", one === here));
  }
}

function pause() {
  clearInterval(timer);
  timer = null;
  play.textContent = "▶";
  play.setAttribute("aria-label", "Play the steps");
}

function start() {
  if (slider.value === slider.max) slider.value = 1;
  show();
  play.textContent = "❚❚";
  play.setAttribute("aria-label", "Pause");
  timer = setInterval(() => {
    slider.stepUp();
    show();
    if (slider.value === slider.max) pause();
  }, Math.max(150, 4000 / slider.max));
}

function update() {
  const { frame, frames: whole, words, charts, heads, run: id } = props.value || {};
  find(".record").hidden = !frame;
  find(".hint").hidden = Boolean(frame);
  if (!frame) return;
  if (id !== run) {
    [run, frames, held] = [id, [], false];
    pause();
    offer(layer, []);
    offer(head, []);
    chips.replaceChildren(...words.map(chip));
    const first = Math.max(0, words.findIndex((word) => word.length > 2));
    if (words.length) chips.querySelectorAll("input")[first].checked = true;
  }
  frames = whole ?? [...frames.filter(({ index }) => index !== frame.index), frame];
  slider.max = frames.length;
  if (!held) slider.value = frames.length;
  find(".charts").innerHTML = charts; // by ui/inside/laboratory/chart.py, from numbers and fixed labels
  play.hidden = frames.length < 2;
  show();
  if (!whole) return;
  if (heads) {
    sheet.src = heads.sheet;
    offer(layer, heads.layers.map(({ size }, i) => `${i + 1}: ${size}`));
  }
  if (held) return;
  // The run is over: play it once from its first step.
  slider.value = 1;
  if (lessMotion.matches) show();
  else start();
}

play.addEventListener("click", () => (timer ? pause() : start()));
element.addEventListener("input", ({ target }) => {
  if (target === slider) {
    pause();
    held = slider.value !== slider.max;
  }
  if (target === layer) {
    const { low } = props.value.heads.layers[layer.value] ?? { low: [] };
    offer(head, low.slice(1).map((_, i) => i + 1));
  }
  show();
});
watch("value", update);
update();

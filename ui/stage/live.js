// Draws the messages of ui/stage/live.py. Runs once for each live view; `element`, `props` and `watch` come from Gradio.
const find = (selector) => element.querySelector(selector);
const [root, guess, noise, split] = [".live", ".guess", ".noise", ".split"].map(find);
const [picture, noisy, covered] = [".x0 img", ".noise img", ".xt img"].map(find);
const [hint, status, steps, film] = [".hint", ".status", ".steps", ".film"].map(find);
const [play, speed, layer] = [".play", ".speed", ".layer"].map(find);
const NOTE = element.closest('[id$="-live"]').id;
const IDLE = "Your picture appears here, out of noise, step by step.";
const LAYERS = {x0: "what it sees in it", guided: "pushed by guidance", unguided: "what it sees without your words"};
const SPEEDS = {"1×": 60, slow: 500, "step by step": Infinity}; // milliseconds that a step is held
const [FIRST, LONG] = [5, 300]; // the first steps, in which the most happens, are held longer
const THUMB = 56;
const VISIT = 40; // runs that a visit remembers
const PHOTO = ["The photo that it was drawn from", "the photo"];
const still = matchMedia("(prefers-reduced-motion: reduce)").matches;

let run = null;
let frames = []; // by step; 0 is the noise before the first
let current = null; // the frame on the stage
let timer = null; // until the next frame is shown
let held = false; // a step was chosen: newer ones do not replace it
let ended = null; // the run's last message
let announced = 0; // quarters of the run that a screen reader was told of

const pictured = () => frames.filter((step) => step.x0);
const altOf = (what) => `${new URLSearchParams(root.dataset.link).get("prompt") || "The picture"}, ${what}`;
const button = (name) => document.getElementById(NOTE.replace("live", name));
const setFact = (name, text) => (find(`[data-fact="${name}"]`).textContent = text);

function setPicture(img, source, alt) {
  Object.assign(img, {src: source || "", alt: source ? alt : "", hidden: !source});
}

// The noise, or at the end the photo, stands beside the picture; without room for it, it lies left of the divider.
function setNoise(source, alt, caption) {
  for (const img of [noisy, covered]) setPicture(img, source, alt);
  noise.hidden = covered.parentElement.hidden = split.hidden = !source;
  noise.querySelector("figcaption").textContent = caption;
  split.ariaLabel = `Divider: ${caption} lies left of it`;
}

function divide(share) {
  if (share > 0) root.removeAttribute("data-opens");
  split.value = share;
  root.style.setProperty("--split", `${share}%`);
}

function count(step) {
  setFact("step", `${step.index} of ${step.total}`);
  find(".number").textContent = step.index ? `${step.index} / ${step.total}` : "";
  find("progress").value = step.index / step.total;
  const quarter = Math.floor((4 * step.index) / step.total);
  if (quarter > announced) status.textContent = `Step ${step.index} of ${step.total}`;
  announced = quarter;
}

function show(step) {
  current = step;
  count(step);
  const over = step.state !== "step";
  const layered = !over && step[layer.value] ? layer.value : "x0";
  const where = step.index ? `step ${step.index} of ${step.total}` : "the noise before the first step";
  setPicture(picture, step[layered], altOf(where));
  picture.dataset.layer = layered;
  const first = frames[0] ?? frames[1];
  root.toggleAttribute("data-photo", Boolean(over && step.photo));
  if (over && step.photo) setNoise(step.photo, ...PHOTO);
  else if (over) setNoise(first?.xt, "The noise that the picture came out of", "the noise it came out of");
  else setNoise(step.xt, `The noise at ${where}`, step.index ? "the noise it gets" : "the noise it begins with");
  guess.querySelector("figcaption").textContent = over ? "the picture" : LAYERS[layered];
  guess.querySelector("figcaption").hidden = noise.hidden;
  hint.textContent = "";
  for (const thumb of film.children) {
    const here = Number(thumb.dataset.index) === step.index;
    thumb.toggleAttribute("data-current", here);
    thumb.tabIndex = here ? 0 : -1; // the film is one stop of the tab key, and the arrow keys move inside it
  }
}

// Show the next frame that there is, and the one after it when this has been seen for long enough.
function advance() {
  timer = null;
  const seen = pictured();
  const next = still ? seen.at(-1) : seen.find((step) => step.index > (current?.index ?? -1));
  if (next && next.index !== current?.index) {
    show(next);
    if (ended && next.index === seen.at(-1).index) return finish();
    const hurry = !ended && seen.length - seen.indexOf(next) > FIRST ? 2 : 1; // catch up with a run that is ahead
    const pause = next.index <= FIRST ? Math.max(LONG, SPEEDS[speed.value]) : SPEEDS[speed.value] / hurry;
    if (pause < Infinity) timer = setTimeout(advance, pause);
  } else if (ended) finish();
  else {
    count(frames.at(-1));
    if (!current) hint.textContent = "No preview for this step.";
  }
  play.ariaPressed = String(timer !== null);
}

function pause() {
  clearTimeout(timer);
  timer = null;
  play.ariaPressed = "false";
}

function finish() {
  show(frames.at(-1));
  if (status.textContent !== ended.status) status.textContent = ended.status;
  root.dataset.state = ended.state;
  setFact("left", "");
  play.ariaPressed = "false";
  root.toggleAttribute("data-opens", true); // the divider moves aside
  divide(0);
}

function choose(chosen) {
  pause();
  held = true;
  show(chosen);
}

function turn(by) {
  const seen = pictured();
  const chosen = seen[seen.findIndex((step) => step.index === current?.index) + by];
  if (chosen) choose(chosen);
}

function toggle() {
  if (timer) {
    held = true;
    return pause();
  }
  held = false;
  if (ended && current?.index === frames.at(-1).index) {
    current = null;
    divide(50);
  }
  advance();
}

// The colours of a picture in few pixels, by which two pictures are compared.
function signature(img) {
  const canvas = Object.assign(document.createElement("canvas"), {width: 16, height: 16});
  const context = canvas.getContext("2d", {willReadFrequently: true});
  context.drawImage(img, 0, 0, 16, 16);
  return context.getImageData(0, 0, 16, 16).data;
}

function thumbOf(step) {
  const thumb = Object.assign(document.createElement("button"), {type: "button"});
  thumb.ariaLabel = step.index ? `Show step ${step.index}` : "Show the noise";
  thumb.dataset.index = step.index;
  const img = Object.assign(new Image(), {src: step.x0, alt: ""});
  img.addEventListener("load", () => {
    step.signature = signature(img);
    space();
  });
  thumb.append(img);
  thumb.addEventListener("click", () => choose(step));
  return thumb;
}

// Fill the strip with as many steps as are seen at once: the noise, the last, and between them steps of equal change,
// or of equal number where little changes.
function space() {
  const seen = pictured().filter((step) => step.signature);
  const change = (step, i) =>
    i && step.signature.reduce((sum, value, at) => sum + Math.abs(value - seen[i - 1].signature[at]), 0);
  const changes = seen.map(change);
  const mean = changes.reduce((sum, one) => sum + one, 0) / seen.length;
  let total = 0;
  const ways = changes.map((one, i) => (total += i && one + mean / 2));
  const room = Math.max(6, Math.floor(film.clientWidth / (THUMB + 4)) || 8);
  const wanted = seen.length <= room ? seen : Array.from({length: room}, (_, k) => {
    const goal = (total * k) / (room - 1);
    return seen[ways.findIndex((way) => way >= goal)] ?? seen.at(-1); // rounding may hide the last
  });
  const thumbs = [...new Set(wanted)].map((step) => step.thumb);
  if (thumbs.length === film.children.length && thumbs.every((thumb, i) => thumb === film.children[i])) return;
  const focused = document.activeElement;
  film.replaceChildren(...thumbs);
  if (film.contains(focused)) focused.focus();
}

// A preview may come after later steps: it replaces its own step.
function put(step) {
  if (step.start) put(step.start);
  const before = frames[step.index];
  if (before?.x0 === step.x0 && before?.state === step.state) return; // the film comes whole at the end
  frames[step.index] = step;
  if (step.x0) step.thumb = thumbOf(step);
}

function reset(id) {
  pause();
  [run, frames, current, held, ended, announced] = [id, [], null, false, null, 0];
  layer.value = "x0";
  divide(50);
  film.replaceChildren();
  steps.hidden = true;
}

// Each step of a sketch takes the place of the one before.
function sketch({x0, photo}) {
  setPicture(picture, x0, altOf("sketched"));
  root.toggleAttribute("data-photo", Boolean(photo));
  setNoise(photo, ...PHOTO);
  guess.querySelector("figcaption").textContent = "the picture";
  guess.querySelector("figcaption").hidden = !photo;
}

function clear() {
  setPicture(picture, null);
  setNoise(null, "", "");
  guess.querySelector("figcaption").hidden = true;
}

// Show a recorded run until the visitor's first.
async function open(address) {
  const recorded = await fetch(address).then((answer) => answer.json()).catch(() => null);
  if (run !== null || !recorded) return;
  reset("opening");
  recorded.frames.forEach(put);
  root.dataset.link = recorded.link;
  ended = {state: "idle", status: `A recorded run: ${altOf("from noise to picture")}`};
  steps.hidden = false;
  setFact("seed", recorded.seed);
  advance();
}

// Remember the run for ui/resume.py, as long as the browser's tab is open, and finished ones for the visit's pictures. A
// new view's first, idle message forgets nothing.
function note({state, run: id, replay}) {
  const found = {run: id, link: root.dataset.link};
  try {
    if (id && !replay && !["failed", "sketch"].includes(state)) sessionStorage.setItem(NOTE, JSON.stringify(found));
    else if (run !== null && run !== "opening") sessionStorage.removeItem(NOTE);
    if (!replay && ["finished", "stopped"].includes(state)) {
      const before = JSON.parse(localStorage.getItem("visit") || "[]");
      localStorage.setItem("visit", JSON.stringify([...new Set([id, ...before])].slice(0, VISIT)));
    }
  } catch {} // a browser may forbid storing
}

function update() {
  const value = props.value || {};
  const last = value.index !== undefined && value.state !== "step";
  root.dataset.state = last ? "step" : value.state; // `finish` follows when all steps have been seen
  if (value.link !== undefined) root.dataset.link = value.link;
  note(value);
  const busy = ["waiting", "step"].includes(value.state);
  if (button("generate")) button("generate").ariaBusy = String(busy);
  if (button("stop")) button("stop").disabled = !busy;
  if (value.state === "idle" && value.opening) {
    hint.textContent = IDLE;
    setNoise(null, "", "the noise it begins with");
    noise.hidden = false; // so that the picture stands where it will
    return open(value.opening);
  }
  if (value.run !== run) {
    reset(value.run);
    if (value.state === "sketch") divide(0);
  }
  // On a phone the view is below the form, out of sight.
  if (value.state === "waiting") root.scrollIntoView({block: "nearest", behavior: "smooth"});
  if (value.index === undefined) {
    // The picture before stays, dimmed, until the noise of the new run is there.
    hint.textContent = value.state === "idle" ? IDLE : value.text;
    status.textContent = value.status ?? "";
    if (value.x0) sketch(value);
    else if (value.state !== "waiting") clear();
    return;
  }
  (value.frames ?? []).forEach(put);
  put(value);
  steps.hidden = false;
  setFact("left", value.left && `${value.left} left`);
  setFact("seed", value.seed);
  if (last) ended = value;
  if (held && !ended) return;
  if (value.state === "stopped") {
    pause();
    return finish();
  }
  held = false;
  if (!timer && (speed.value !== "step by step" || !current)) advance();
}

function cycle(control, values) {
  control.value = values[(values.indexOf(control.value) + 1) % values.length];
  control.textContent = control === layer ? LAYERS[control.value] : `Speed: ${control.value}`;
}

// P shows the pictures as high as the window; arrows take a step, the space bar plays.
function present(on) {
  root.parentElement.toggleAttribute("data-present", on);
  document.body.style.overflow = on ? "hidden" : "";
}

const presenting = () => root.parentElement.hasAttribute("data-present");
const ACTIONS = {
  p: () => present(!presenting()),
  g: () => layer.click(),
  ArrowLeft: () => turn(-1),
  ArrowRight: () => turn(1),
  " ": toggle,
  Escape: () => present(false),
};

function onKey(event) {
  const typing = event.target.closest?.("input:not(.split), textarea, select, [contenteditable]");
  const here = presenting() || element.contains(event.target);
  if (typing || event.ctrlKey || event.metaKey || event.altKey || !element.offsetParent || steps.hidden) return;
  if (event.key !== "p" && event.key !== "g" && !here) return;
  if (event.target === split && event.key.startsWith("Arrow") && !presenting()) return;
  if (event.key === " " && event.target.closest?.("button") && !presenting()) return;
  if (event.key === "Escape" && !presenting()) return;
  const action = ACTIONS[event.key];
  if (!action) return;
  event.preventDefault();
  action();
}

document.addEventListener("keydown", onKey);
play.addEventListener("click", toggle);
speed.addEventListener("click", () => {
  cycle(speed, Object.keys(SPEEDS));
  if (!held && !timer && !ended) advance();
});
layer.addEventListener("click", () => {
  cycle(layer, Object.keys(LAYERS));
  if (current) show(current);
});
find(".present").addEventListener("click", () => present(!presenting()));
picture.addEventListener("load", () => root.style.setProperty("--ratio", picture.naturalWidth / picture.naturalHeight));
split.addEventListener("input", () => divide(split.value));
new ResizeObserver(space).observe(film);
[speed.value, speed.textContent] = ["1×", "Speed: 1×"];
[layer.value, layer.textContent] = ["x0", LAYERS.x0];
watch("value", update);
update();

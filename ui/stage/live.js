// Draws the messages of ui/stage/live.py. Runs once per live view; `element`, `props` and `watch` come from Gradio.
const find = (selector) => element.querySelector(selector);
const [root, frame, picture, noisy, split] = [".live", ".frame", ".x0 img", ".xt img", ".split"].map(find);
const [hint, status, steps, film, play] = [".hint", ".status", ".steps", ".film", ".play"].map(find);
const NOTE = element.closest('[id$="-live"]').id;
const IDLE = "Your picture appears here, out of noise, step by step.";
const FEW = 256; // pixels a side, of which each is seen

let run = null;
let frames = []; // by step; 0 is the noise before the first
let current = null; // the frame on the stage
let timer = null;
let held = false; // a step was chosen while the run goes on: it stays until the newest one is
let announced = 0; // per cent, in quarters

const pictured = () => frames.filter((shown) => shown.x0);
const divide = () => frame.style.setProperty("--split", `${split.value}%`);
const altOf = (what) => `${new URLSearchParams(root.dataset.link).get("prompt") || "The picture"}, ${what}`;
const setFact = ([name, text]) => (find(`[data-fact="${name}"]`).textContent = text);

function setPicture(img, source, alt) {
  Object.assign(img, {src: source || "", alt: source ? alt : "", hidden: !source});
}

// Noise lies left of the divider; without it, the picture is whole.
function setNoise(source, alt) {
  setPicture(noisy, source, alt);
  split.hidden = noisy.parentElement.hidden = find("figcaption").hidden = !source;
}

// The stage has the picture's shape. Where its pixels are few, each gets the same whole number of the screen's.
function fit() {
  const width = picture.naturalWidth / ("opening" in frame.dataset ? 2 : 1);
  frame.style.setProperty("--ratio", width / picture.naturalHeight);
  frame.style.setProperty("--unit", `${width <= FEW ? width / devicePixelRatio : 1}px`);
}

// A recorded run, with its noise on the left half.
function open({film: moving, still}) {
  const source = matchMedia("(prefers-reduced-motion: reduce)").matches ? still : moving;
  frame.dataset.opening = "";
  setPicture(picture, source, "A recorded run: the picture that the model sees in the noise");
  setNoise(source, "A recorded run: the noise of its steps");
}

function show(shown) {
  current = shown;
  setPicture(picture, shown.x0, altOf(`step ${shown.facts.step}`));
  setNoise(shown.state === "step" && shown.xt, `The noisy picture at step ${shown.facts.step}`);
  hint.textContent = shown.x0 ? "" : "No preview for this step.";
  Object.entries(shown.facts).forEach(setFact);
  for (const thumb of film.children) {
    const here = Number(thumb.dataset.index) === shown.index;
    thumb.toggleAttribute("data-current", here);
    thumb.tabIndex = here ? 0 : -1; // one stop for the tab key; arrows go on from there
    if (here) film.scrollLeft = thumb.offsetLeft - film.offsetLeft - film.clientWidth / 2;
  }
}

function choose(chosen) {
  pause();
  held = chosen !== frames.at(-1);
  show(chosen);
}

function thumbOf(shown) {
  const label = shown.index ? `Show step ${shown.index}` : "Show the noise";
  const button = Object.assign(document.createElement("button"), {type: "button", ariaLabel: label});
  button.dataset.index = shown.index;
  button.append(Object.assign(new Image(), {src: shown.x0, alt: ""}));
  button.addEventListener("click", () => choose(shown));
  return button;
}

// A picture may come after later steps were told: it takes its step's place.
function put(shown) {
  if (shown.start) put(shown.start);
  frames[shown.index] = shown;
  film.querySelector(`[data-index="${shown.index}"]`)?.remove();
  const later = [...film.children].find((thumb) => Number(thumb.dataset.index) > shown.index);
  if (shown.x0) film.insertBefore(thumbOf(shown), later ?? null);
}

function add(shown) {
  put(shown);
  const newest = frames.at(-1);
  if (!held) show(shown.x0 ? shown : pictured().findLast((other) => other.index <= shown.index) || shown);
  steps.hidden = false;
  Object.entries(newest.pace).forEach(setFact);
  find("progress").value = newest.index / newest.total;
  const quarter = 25 * Math.floor((4 * newest.index) / newest.total);
  if (quarter > announced) status.textContent = `${quarter} %`; // read aloud: not every step
  announced = quarter;
}

function reset(id) {
  pause();
  delete frame.dataset.opening;
  [run, frames, held, announced, split.value, find("progress").value] = [id, [], false, 0, 50, 0];
  divide();
  film.replaceChildren();
  steps.hidden = play.hidden = true;
  setPicture(picture, null);
  setNoise(null);
}

function pause() {
  clearInterval(timer);
  timer = null;
  play.ariaPressed = "false";
}

function startPlaying() {
  const seen = pictured();
  let next = (seen.indexOf(current) + 1) % seen.length;
  play.ariaPressed = "true";
  timer = setInterval(() => {
    show(seen[next]);
    next += 1;
    if (next === seen.length) pause();
  }, Math.max(60, 3000 / seen.length));
}

// For ui/runs/resume.py, as long as this tab of the browser is open. An idle view that has shown nothing yet forgets nothing.
function note({state, run: id, replay}) {
  const found = {run: id, link: root.dataset.link};
  if (id && !replay && !["failed", "sketch"].includes(state)) sessionStorage.setItem(NOTE, JSON.stringify(found));
  else if (run !== null) sessionStorage.removeItem(NOTE);
}

function update() {
  const value = props.value || {};
  root.dataset.state = value.state;
  if (value.link !== undefined) root.dataset.link = value.link;
  note(value);
  if (value.run !== run) reset(value.run);
  // On a phone the view is below the form.
  if (value.state === "waiting") root.scrollIntoView({block: "nearest", behavior: "smooth"});
  if (!value.facts) {
    hint.textContent = value.state === "idle" ? IDLE : value.text;
    status.textContent = value.status ?? "";
    if (value.x0) setPicture(picture, value.x0, altOf("sketched"));
    if (value.opening) open(value.opening);
    return;
  }
  if (value.frames) {
    reset(value.run);
    value.frames.forEach(put);
  }
  add(value);
  if (value.state === "step") return;
  held = false;
  play.hidden = pictured().length < 2;
  show(frames.at(-1));
  status.textContent = value.status;
}

play.addEventListener("click", () => (timer ? pause() : startPlaying()));
film.addEventListener("keydown", ({key, target}) => {
  const next = {ArrowLeft: target.previousElementSibling, ArrowRight: target.nextElementSibling}[key];
  next?.click();
  next?.focus();
});
picture.addEventListener("load", fit);
split.addEventListener("input", divide);
watch("value", update);
update();

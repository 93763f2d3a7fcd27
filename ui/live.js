// Draws the messages of ui/live.py. Runs once per live view; `element`, `props` and `watch` come from Gradio.
const root = element.querySelector(".live");
const find = (selector) => root.querySelector(selector);
const [picture, noisy, hint] = [find(".x0 img"), find(".xt img"), find(".hint")];
const [film, player, scrub, play] = [find(".film"), find(".player"), find(".scrub"), find(".play")];
const IDLE = "Your picture appears here, out of noise, step by step.";

const NOTE = element.closest('[id$="-live"]').id;
const split = find(".split");

let run = null;
let frames = [];
let timer = null;
let held = false; // a step was chosen while the run goes on: it stays until the newest one is

function seconds(value) {
  if (value < 59.5) return `${value.toFixed(value < 9.95 ? 1 : 0)} s`;
  const whole = Math.round(value);
  return `${Math.floor(whole / 60)} min ${whole % 60} s`;
}

function setPicture(img, source, alt) {
  img.hidden = !source;
  if (source) {
    img.src = source;
    img.alt = alt;
  } else {
    img.removeAttribute("src");
  }
}

// What is left of the divider is noise. It lies in the middle while a run goes on, and at its end the picture is whole.
function divide() {
  find(".stage").style.setProperty("--split", `${split.value}%`);
}

function open({film: source, still}) {
  find(".opening source").srcset = still;
  find(".opening img").src = source;
  find(".opening").hidden = false;
}

function setFact(name, text) {
  find(`[data-fact="${name}"]`).textContent = text;
}

function show(frame) {
  const [prompt, step] = [new URLSearchParams(root.dataset.link).get("prompt"), `step ${frame.index} of ${frame.total}`];
  setPicture(picture, frame.x0, `${prompt || "The picture"}, ${step}`);
  setPicture(noisy, frame.xt, `The noisy picture at ${step}`);
  hint.textContent = frame.x0 ? "" : "No preview for this step.";
  split.hidden = find(".xt").hidden = !frame.xt;
  setFact("step", `${frame.index} of ${frame.total}`);
  setFact("timestep", frame.timestep);
  setFact("sigma", frame.sigma === null ? "∞" : frame.sigma);
  setFact("seed", frame.seed);
  find(".facts").hidden = false;
  scrub.value = frame.index;
  scrub.setAttribute("aria-valuetext", `step ${frame.index} of ${frame.total}`);
  for (const thumb of film.children) {
    const current = Number(thumb.dataset.index) === frame.index;
    thumb.toggleAttribute("data-current", current);
    thumb.tabIndex = current ? 0 : -1; // one stop for the tab key; arrows go on from there
    if (current) film.scrollLeft = thumb.offsetLeft - film.offsetLeft - film.clientWidth / 2;
  }
}

function choose(frame) {
  pause();
  held = frame !== frames[frames.length - 1];
  show(frame);
}

function setProgress(share) {
  find(".bar i").style.width = `${100 * share}%`;
  find(".bar").setAttribute("aria-valuenow", Math.round(100 * share));
}

function thumbOf(frame) {
  const button = document.createElement("button");
  button.type = "button";
  button.dataset.index = frame.index;
  button.setAttribute("aria-label", `Show step ${frame.index}`);
  const img = document.createElement("img");
  img.src = frame.x0;
  img.alt = "";
  button.append(img);
  button.addEventListener("click", () => choose(frame));
  return button;
}

// A picture may come after later steps were told: it takes its step's place.
function put(frame) {
  const place = frames.findIndex((other) => other.index >= frame.index);
  const known = place >= 0 && frames[place].index === frame.index;
  frames.splice(place < 0 ? frames.length : place, known ? 1 : 0, frame);
  const thumbs = [...film.children];
  thumbs.find((thumb) => Number(thumb.dataset.index) === frame.index)?.remove();
  if (frame.x0) film.insertBefore(thumbOf(frame), thumbs.find((thumb) => Number(thumb.dataset.index) > frame.index) || null);
  film.hidden = !film.children.length;
}

function add(frame) {
  put(frame);
  if (!held) show(frame.x0 || !frames.some((other) => other.x0) ? frame : nearest(frame.index));
  const newest = frames[frames.length - 1];
  scrub.max = newest.total;
  setProgress(newest.index / newest.total);
  setFact("seconds", seconds(newest.seconds));
  setFact("left", seconds(newest.left));
}

function reset(id) {
  pause();
  find(".opening").hidden = true;
  split.hidden = find(".xt").hidden = true;
  split.value = 50;
  divide();
  run = id;
  held = false;
  frames = [];
  film.replaceChildren();
  film.hidden = player.hidden = find(".facts").hidden = true;
  setPicture(picture, null);
  setPicture(noisy, null);
  setProgress(0);
}

function pause() {
  clearInterval(timer);
  timer = null;
  play.textContent = "▶";
  play.setAttribute("aria-label", "Play the steps");
}

function nearest(index) {
  const seen = frames.filter((frame) => frame.x0);
  return seen.reduce((best, frame) => (Math.abs(frame.index - index) < Math.abs(best.index - index) ? frame : best), seen[0]);
}

function startPlaying() {
  const seen = frames.filter((frame) => frame.x0);
  let next = Number(scrub.value) >= seen[seen.length - 1].index ? 0 : seen.findIndex((frame) => frame.index > scrub.value);
  play.textContent = "❚❚";
  play.setAttribute("aria-label", "Pause");
  timer = setInterval(() => {
    show(seen[next]);
    next += 1;
    if (next === seen.length) pause();
  }, Math.max(60, 3000 / seen.length));
}

// For ui/resume.py, as long as this tab of the browser is open. An idle view that has shown nothing yet forgets nothing.
function note({state, run: id, replay}) {
  if (id && !replay && state !== "failed") sessionStorage.setItem(NOTE, JSON.stringify({run: id, link: root.dataset.link}));
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
  if (["idle", "waiting", "failed"].includes(value.state)) {
    find(".status").textContent = "";
    hint.textContent = value.state === "idle" ? IDLE : value.text;
    if (value.opening) open(value.opening);
    return;
  }
  if (value.frames) {
    reset(value.run);
    value.frames.forEach(put);
  }
  add(value);
  const over = value.state !== "step";
  player.hidden = !over || frames.filter((frame) => frame.x0).length < 2;
  if (!over) return;
  held = false;
  show(frames[frames.length - 1]);
  split.value = 0;
  divide();
  find(".status").textContent =
    value.state === "finished" ? `Finished in ${value.total} steps.` : `Stopped at step ${value.index} of ${value.total}.`;
}

play.addEventListener("click", () => (timer ? pause() : startPlaying()));
scrub.addEventListener("input", () => choose(nearest(Number(scrub.value))));
film.addEventListener("keydown", ({key, target}) => {
  const next = {ArrowLeft: target.previousElementSibling, ArrowRight: target.nextElementSibling}[key];
  next?.click();
  next?.focus();
});
split.addEventListener("input", divide);
watch("value", update);
update();

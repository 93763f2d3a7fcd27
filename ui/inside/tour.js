// Shows the stops of the tour (ui/inside/tour.py), one at a time. Runs once, with the scripts of the stops behind it;
// `element`, `props`, `trigger` and `watch` come from Gradio.
//
// STOPS[name](section, tour) sets a stop up when it is first seen, and returns its functions:
// draw(value): one value of its view; reset(): forget what was drawn, for another picture or question;
// start(): it came into view; key(event): a key that the tour has no use for.
const STOPS = {};
const [root, status, dots] = [".tour", ".status", ".dots span"].map((selector) => element.querySelector(selector));
const sections = [...element.querySelectorAll(".stop")];
const wanted = Number(new URLSearchParams(location.search).get("inside")); // the stop in the page's address
const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
let run = null; // {link, picture, prompt} of the visitor's picture; null for the recorded run
let recorded = null; // the values of each stop for the recorded run
let at = -1;
let asked = 0;
let asking = null; // the name of the stop whose question is on its way
let soon = null; // the timer of a question that is asked soon

const stopOf = new Map(); // by section: its functions, and the run that it has drawn
const nameOf = (section) => section.dataset.stop;

// What the scripts of the stops may use.
const tour = {
  still,
  get picture() { return run?.picture ?? recorded.picture; },
  get prompt() { return run?.prompt ?? recorded.prompt; },
  find: (section, ...selectors) => selectors.map((selector) => section.querySelector(selector)),
  make: (tag, values = {}) => Object.assign(document.createElement(tag), values),
  // Make a figure for a strip.
  figure(caption, picture) {
    const figure = tour.make("figure");
    figure.append(tour.make("img", picture), tour.make("figcaption", {textContent: caption}));
    return figure;
  },
  // Ask the stop's view; a newer question takes the place of one on its way.
  ask(section, question = {}) {
    if (asking) trigger("clear");
    asking = nameOf(section);
    asked += 1;
    section.ariaBusy = "true";
    props.value = {asked, stop: asking, question};
    trigger("submit");
  },
  // Ask once the controls have come to rest.
  askSoon(section, question) {
    clearTimeout(soon);
    soon = setTimeout(() => {
      soon = null;
      tour.ask(section, question);
    }, 150);
  },
  // Move a slider to and fro until it is touched.
  sway(slider, seconds = 5) {
    if (still || slider.dataset.touched) return;
    const begun = performance.now();
    const move = (now) => {
      if (slider.dataset.touched) return;
      if (slider.offsetParent === null) return (slider.swaying = false);
      const [low, high] = [Number(slider.min), Number(slider.max)]; // values may still arrive
      const phase = (1 - Math.cos(((now - begun) / (1000 * seconds)) * 2 * Math.PI)) / 2;
      slider.value = low + (high - low) * phase;
      slider.dispatchEvent(new Event("input", {bubbles: true}));
      requestAnimationFrame(move);
    };
    if (!slider.swaying) requestAnimationFrame(move);
    slider.swaying = true;
  },
};

function functionsOf(section) {
  if (!stopOf.has(section)) stopOf.set(section, {drawn: undefined, ...STOPS[nameOf(section)](section, tour)});
  return stopOf.get(section);
}

// Draw the stop in view for the picture at hand: its recorded values, or what its view answers.
function fill(section) {
  const stop = functionsOf(section);
  const key = run?.link ?? "recorded";
  if (stop.drawn === key) return;
  stop.drawn = key;
  stop.reset?.();
  if (run) tour.askSoon(section); // a stop that is only passed asks nothing
  else for (const value of recorded[nameOf(section)] ?? []) stop.draw(value);
}

// Note a stop in the page's address, or none.
function note(number) {
  const address = new URL(location);
  if (number) address.searchParams.set("inside", number);
  else address.searchParams.delete("inside");
  history.replaceState(history.state, "", address);
}

function go(to, focus = false) {
  if (to < 0 || to >= sections.length) return;
  if ((asking || soon) && at !== to) {
    if (asking) trigger("clear");
    clearTimeout(soon);
    stopOf.get(sections[at]).drawn = undefined;
    asking = soon = null;
  }
  at = to;
  const section = sections[at];
  sections.forEach((one) => (one.hidden = one !== section));
  element.querySelectorAll(".map li").forEach((one) => one.toggleAttribute("data-lit", one.dataset.part === section.dataset.part));
  [...dots.children].forEach((dot, i) => (i === at ? dot.setAttribute("aria-current", "step") : dot.removeAttribute("aria-current")));
  element.querySelector(".back").disabled = at === 0;
  element.querySelector(".on").disabled = at === sections.length - 1;
  status.textContent = "";
  note(at + 1);
  fill(section);
  functionsOf(section).start?.();
  if (matchMedia("(max-width: 760px)").matches) element.scrollIntoView();
  if (focus) section.querySelector("h2").focus({preventScroll: true});
}

function hear() {
  const {asked: answered, values, waiting, error, over, stop, run: about} = props.value ?? {};
  if (answered === undefined) {
    if (about !== undefined) arrive(about, stop);
    return;
  }
  if (answered !== asked || !asking || props.value.question) return; // our own question, or the answer to an older one
  const section = sections.find((one) => nameOf(one) === asking);
  status.textContent = error ?? waiting ?? "";
  for (const value of values ?? []) functionsOf(section).draw(value);
  if (!over) return;
  section.ariaBusy = "false";
  if (error) functionsOf(section).drawn = undefined;
  asking = null;
  functionsOf(section).over?.(); // which may ask again
}

function arrive(about, stop) {
  run = about;
  if (recorded) go(stop ? stop - 1 : Math.max(at, 0));
  else if (stop) at = stop - 1;
}

function present(on = !root.hasAttribute("data-presents")) {
  root.toggleAttribute("data-presents", on);
  element.querySelector(".present").ariaPressed = String(on);
}

const typing = (target) => target.matches("textarea, select, input:not([type=range]):not([type=checkbox]):not([type=radio])");

// Arrows go on and back; on a slider they move it, and Page Up and Page Down go on and back everywhere.
function onKey(event) {
  if (element.offsetParent === null || event.ctrlKey || event.metaKey || event.altKey) return;
  const elsewhere = !element.contains(event.target) && event.target !== document.body;
  if (elsewhere || typing(event.target)) return;
  const moves = event.target.matches("[type=range], [type=radio], [role=tab]");
  if (event.key === " " && event.target.matches("button, summary")) return; // it presses them
  const by = {PageDown: 1, PageUp: -1, ArrowRight: moves ? 0 : 1, ArrowLeft: moves ? 0 : -1}[event.key];
  if (by) go(at + by, true);
  else if (event.key === "p") present();
  else if (event.key === "Escape" && root.hasAttribute("data-presents")) present(false);
  else if (!functionsOf(sections[at]).key?.(event)) return;
  event.preventDefault();
}

async function open() {
  recorded = await fetch(props.recorded).then((answer) => answer.json());
  // After a click on the tab the arrow keys go on; after keys they still belong to the tabs.
  const byKeys = document.activeElement?.matches(":focus-visible");
  go(at >= 0 ? at : Math.min(Math.max(1, wanted || 1), sections.length) - 1, !byKeys);
}

// After the scripts of the stops.
function begin() {
  dots.replaceChildren(
    ...props.stops.map((title, i) => {
      const dot = tour.make("button", {type: "button", title, ariaLabel: `Stop ${i + 1}: ${title}`});
      dot.addEventListener("click", () => go(i, true));
      return dot;
    })
  );
  element.querySelector(".back").addEventListener("click", () => go(at - 1, true));
  element.querySelector(".on").addEventListener("click", () => go(at + 1, true));
  element.querySelector(".present").addEventListener("click", () => present());
  for (const type of ["pointerdown", "keydown"]) {
    element.addEventListener(type, ({target}) => {
      if (target.matches("[type=range]")) target.dataset.touched = "true";
    }, true);
  }
  document.addEventListener("keydown", onKey);
  watch("value", hear);
  let opening = null;
  new IntersectionObserver(([seen]) => {
    if (seen.isIntersecting) opening ??= open();
    else if (element.offsetParent === null) note(null); // another tab of the page
  }).observe(element);
}

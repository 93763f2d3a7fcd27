// Plays the versions of a network that is being taught (ui/inside/laboratory/learning.py). Runs once; `element` and `props` come from Gradio.
const find = (selector) => element.querySelector(selector);
const [play, version, which, remark, step, at] = [".play", ".version", ".which", ".remark", ".step", ".at"].map(find);
const { sheet, prompts, steps, versions } = props.value;
const columns = prompts.length * steps.length;
const seen = new Intl.NumberFormat("en");
let timer = null;

function show() {
  const { examples, date, note } = versions[version.value - 1];
  element.querySelectorAll(".tile").forEach((tile, i) => {
    const column = i * steps.length + Number(step.value) - 1;
    tile.style.backgroundImage = `url("${sheet}")`;
    tile.style.backgroundSize = `${100 * columns}% ${100 * versions.length}%`;
    tile.style.backgroundPosition = `${(100 * column) / (columns - 1)}% ${(100 * (version.value - 1)) / (versions.length - 1)}%`;
  });
  which.textContent = `${seen.format(examples)} examples seen`;
  remark.textContent = `Version ${version.value} of ${versions.length}, ${date}. ${note}`;
  at.textContent = `${steps[step.value - 1]} of ${steps.at(-1)}`;
  version.setAttribute("aria-valuetext", `version ${version.value}: ${which.textContent}`);
  step.setAttribute("aria-valuetext", `step ${at.textContent}`);
}

function pause() {
  clearInterval(timer);
  timer = null;
  play.textContent = "▶";
  play.setAttribute("aria-label", "Play the versions");
}

function start() {
  if (version.value === version.max) version.value = 1;
  show();
  play.textContent = "❚❚";
  play.setAttribute("aria-label", "Pause");
  timer = setInterval(() => {
    version.stepUp();
    show();
    if (version.value === version.max) pause();
  }, 1300);
}

version.max = versions.length;
step.max = steps.length;
step.value = steps.length;
play.addEventListener("click", () => (timer ? pause() : start()));
element.addEventListener("input", ({ target }) => {
  if (target === version) pause();
  show();
});
pause();
// The sheet is fetched when the view is seen, and the versions are played once.
new IntersectionObserver(([entry], observer) => {
  if (!entry.isIntersecting) return;
  observer.disconnect();
  if (matchMedia("(prefers-reduced-motion: reduce)").matches) show();
  else start();
}).observe(element);

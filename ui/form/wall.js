// Draws the wall of pictures of everything that the model knows by name (ui/form/chips.py) once it is in sight: a press
// puts the thing into the prompt and presses Generate.
const [search, kinds] = [".search", ".kinds"].map((name) => element.querySelector(name));
const view = element.closest(".areas");

function cellOf(name, prompt, sheet, x, y) {
  const cell = Object.assign(document.createElement("button"), {type: "button", title: name, ariaLabel: name});
  cell.dataset.name = name.toLowerCase();
  cell.style.background = `url("${sheet}") -${x}px -${y}px`;
  cell.addEventListener("click", () => drawPrompt(view, prompt));
  return cell;
}

function sectionOf([kind, things], {side, columns}) {
  const section = document.createElement("section");
  const cells = Object.entries(things).map(([name, prompt], i) =>
    cellOf(name, prompt, `${props.value}/${kind}.webp`, side * (i % columns), side * Math.floor(i / columns)));
  const title = Object.assign(document.createElement("h3"), {textContent: kind});
  const grid = Object.assign(document.createElement("div"), {className: "grid"});
  grid.append(...cells);
  section.append(title, grid);
  return section;
}

async function open() {
  const index = await fetch(`${props.value}/index.json`).then((answer) => answer.json());
  element.style.setProperty("--side", `${index.side}px`);
  kinds.replaceChildren(...Object.entries(index.kinds).map((kind) => sectionOf(kind, index)));
}

search.addEventListener("input", () => {
  const wanted = search.value.trim().toLowerCase();
  for (const section of kinds.children) {
    for (const cell of section.querySelectorAll("button")) cell.hidden = !cell.dataset.name.includes(wanted);
    section.hidden = !section.querySelector("button:not([hidden])");
  }
});
new IntersectionObserver(([seen], observer) => {
  if (!seen.isIntersecting) return;
  observer.disconnect();
  open();
}).observe(element);

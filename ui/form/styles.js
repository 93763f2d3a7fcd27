// Connects the styles below a prompt (ui/form/chips.py): pressing one names it in the prompt, or takes it out, and draws.
const buttons = [...element.querySelectorAll("button")];
const view = element.closest(".areas");
const names = buttons.flatMap(({dataset}) => dataset.names.split(", "));
names.sort((a, b) => b.length - a.length); // "old android style" is not "old" and "android style"
const named = names.join("|").replaceAll(" ", "[\\s-]+");
const said = new RegExp(`[,\\s]*(?:\\bin (?:an? |the )?)?\\b(${named})\\b`, "gi");

// Return the button of the style that a text names last: the page's own answer may be about an older text.
function chosenIn(text) {
  const name = [...text.matchAll(said)].at(-1)?.[1].toLowerCase().replace(/[\s-]+/g, " ");
  return buttons.find(({dataset}) => dataset.names.split(", ").includes(name));
}

function choose(button) {
  const box = view.querySelector('[id$="-prompt"] textarea');
  const bare = box.value.replace(said, "").replace(/^[,\s]+|[,\s]+$/g, "");
  const style = button === chosenIn(box.value) ? "" : `${button.dataset.style} style`;
  drawPrompt(view, [bare, style].filter(Boolean).join(", "));
}

function show() {
  for (const button of buttons) button.ariaPressed = String(button.dataset.style === props.value);
}

for (const button of buttons) button.addEventListener("click", () => choose(button));
watch("value", show);
show();

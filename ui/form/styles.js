// Connects the styles below a prompt (ui/form/chips.py): pressing one names it in the prompt, or takes it out, and draws.
const buttons = [...element.querySelectorAll("button")];
const view = element.closest(".areas");
const names = buttons.flatMap(({dataset}) => dataset.names.split(", "));
names.sort((a, b) => b.length - a.length); // "old android style" is not "old" and "android style"
const named = names.join("|").replaceAll(" ", "[\\s-]+");
const said = new RegExp(`[,\\s]*(?:\\bin (?:an? |the )?)?\\b(?:${named})\\b`, "gi");

function choose({dataset, ariaPressed}) {
  const box = view.querySelector('[id$="-prompt"] textarea');
  const bare = box.value.replace(said, "").replace(/^[,\s]+|[,\s]+$/g, "");
  const style = ariaPressed === "true" ? "" : `${dataset.style} style`;
  drawPrompt(view, [bare, style].filter(Boolean).join(", "));
}

function show() {
  for (const button of buttons) button.ariaPressed = String(button.dataset.style === props.value);
}

for (const button of buttons) button.addEventListener("click", () => choose(button));
watch("value", show);
show();

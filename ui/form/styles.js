// Connects the styles below a prompt (ui/form/chips.py): pressing one names it in the prompt, or takes it out, and draws.
const buttons = [...element.querySelectorAll("button")];
const view = element.closest(".areas");
const said = (style) => new RegExp(`[,\\s]*\\b${style} style\\b`, "gi");

function choose({dataset, ariaPressed}) {
  const box = view.querySelector('[id$="-prompt"] textarea');
  const bare = buttons.reduce((text, button) => text.replace(said(button.dataset.style), ""), box.value);
  const style = ariaPressed === "true" ? "" : `${dataset.style} style`;
  drawPrompt(view, [bare.trim(), style].filter(Boolean).join(", "));
}

function show() {
  for (const button of buttons) button.ariaPressed = String(button.dataset.style === props.value);
}

for (const button of buttons) button.addEventListener("click", () => choose(button));
watch("value", show);
show();

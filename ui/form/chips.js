// Draws the chips below a prompt (ui/form/chips.py): pressing one puts its prompt into the box and presses Generate.
const chips = element.querySelector(".chips");
const view = element.closest(".areas");

function choose(prompt) {
  const box = view.querySelector('[id$="-prompt"] textarea');
  box.value = prompt;
  box.dispatchEvent(new Event("input", {bubbles: true}));
  // Gradio sends a text box's value on input; the click follows once that is done.
  setTimeout(() => view.querySelector("button.generate").click(), 0);
}

function chipOf({label, prompt, picture}) {
  const chip = Object.assign(document.createElement("button"), {type: "button"});
  if (picture) {
    const thumb = document.createElement("span");
    thumb.style.background = `url("${picture.sheet}") -${picture.x / 2}px -${picture.y / 2}px / ${picture.width / 2}px`;
    chip.append(thumb);
  }
  chip.append(label);
  chip.addEventListener("click", () => choose(prompt));
  return chip;
}

const draw = () => chips.replaceChildren(...(props.value ?? []).map(chipOf));
watch("value", draw);
draw();

// Draws the chips below a prompt (ui/form/chips.py): pressing one puts its prompt into the box and presses Generate.
const chips = element.querySelector(".chips");
const view = element.closest(".areas");

function chipOf({label, prompt, picture}) {
  const chip = Object.assign(document.createElement("button"), {type: "button"});
  if (picture) {
    const thumb = document.createElement("span");
    thumb.style.background = `url("${picture.sheet}") -${picture.x / 2}px -${picture.y / 2}px / ${picture.width / 2}px`;
    chip.append(thumb);
  }
  chip.append(label);
  chip.addEventListener("click", () => drawPrompt(view, prompt));
  return chip;
}

const draw = () => chips.replaceChildren(...(props.value ?? []).map(chipOf));
watch("value", draw);
draw();

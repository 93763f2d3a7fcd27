// Enter in a prompt, or Ctrl+Enter (Cmd+Enter) anywhere, presses Generate of the visible tab. Shift+Enter begins a new
// line. Escape presses Stop, unless it closes a list.
const press = (selector) => {
  const button = [...document.querySelectorAll(selector)].find((found) => found.offsetParent !== null);
  if (button && !button.disabled) button.click();
};
// Put a prompt into the box of a tab, and press its Generate once Gradio has sent the box's value; for chips and the wall.
function drawPrompt(view, prompt) {
  const box = view.querySelector('[id$="-prompt"] textarea');
  box.value = prompt;
  box.dispatchEvent(new Event("input", {bubbles: true}));
  setTimeout(() => view.querySelector("button.generate").click(), 0);
}
const onKey = (event) => {
  const inPrompt = event.target.matches?.('[id$="-prompt"] textarea') && !event.isComposing;
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey || (inPrompt && !event.shiftKey))) {
    event.preventDefault();
    // Gradio sends a text box's value on input; the click follows once that is done.
    setTimeout(() => press("button.generate"), 0);
  } else if (event.key === "Enter" && inPrompt) {
    event.stopPropagation(); // Gradio would submit the box
  }
  if (event.key === "Escape" && event.target.getAttribute?.("aria-expanded") !== "true") press("button.stop");
};
for (const type of ["keydown", "keypress"]) document.addEventListener(type, onKey, true); // in the capture phase, before a list has closed

// Gradio sends a text box's input event only after letters, not after deleting, pasting, or typing on a phone.
document.addEventListener("input", ({target}) => {
  if (target.matches("textarea")) target.dispatchEvent(new KeyboardEvent("keypress", {bubbles: true}));
});

// A browser opens a picture that is dropped beside the boxes for files: restore its settings instead.
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => {
  if (event.defaultPrevented || !event.dataTransfer.files.length) return;
  event.preventDefault();
  const input = document.querySelector("#restore input[type=file]");
  input.files = event.dataTransfer.files;
  input.dispatchEvent(new Event("change", {bubbles: true}));
});

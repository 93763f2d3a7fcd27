// Enter in a prompt, or Ctrl+Enter (Cmd+Enter) anywhere, presses Generate of the tab in view, and Shift+Enter begins a new
// line; Escape presses Stop, unless it closes a list.
const press = (selector) => {
  const button = [...document.querySelectorAll(selector)].find((found) => found.offsetParent !== null);
  if (button && !button.disabled) button.click();
};
const onKey = (event) => {
  const inPrompt = event.target.matches?.('[id$="-prompt"] textarea') && !event.isComposing;
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey || (inPrompt && !event.shiftKey))) {
    event.preventDefault();
    // Gradio sends a text box's value on input; the click follows once that is done.
    setTimeout(() => press("button.generate"), 0);
  } else if (event.key === "Enter" && inPrompt) {
    event.stopPropagation(); // Gradio would take it for a submission
  }
  if (event.key === "Escape" && event.target.getAttribute?.("aria-expanded") !== "true") press("button.stop");
};
for (const type of ["keydown", "keypress"]) document.addEventListener(type, onKey, true); // before a list has closed

// Gradio tells of a text box's input at letters alone, not of what was deleted, pasted, or written by a phone's keyboard.
document.addEventListener("input", ({target}) => {
  if (target.matches("textarea")) target.dispatchEvent(new KeyboardEvent("keypress", {bubbles: true}));
});

// A picture dropped beside the boxes for files would be opened by the browser: it gives its settings back instead.
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => {
  if (event.defaultPrevented || !event.dataTransfer.files.length) return;
  event.preventDefault();
  const input = document.querySelector("#restore input[type=file]");
  input.files = event.dataTransfer.files;
  input.dispatchEvent(new Event("change", {bubbles: true}));
});

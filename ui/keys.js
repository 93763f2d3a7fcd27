// Ctrl+Enter (or Cmd+Enter) presses Generate of the tab in view; Escape presses Stop.
document.addEventListener("keydown", (event) => {
  const press = (selector) => {
    const button = [...document.querySelectorAll(selector)].find((found) => found.offsetParent !== null);
    if (button && !button.disabled) button.click();
  };
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    // Gradio sends a text box's value on input; the click follows once that is done.
    setTimeout(() => press("button.generate"), 0);
  }
  if (event.key === "Escape") press("button.stop");
});

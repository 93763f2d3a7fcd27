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
// Return what the browser has stored under a name; it may forbid storing.
function stored(store, name) {
  try {
    return window[store].getItem(name) || "";
  } catch {
    return "";
  }
}
// Show the message of a refusal, once it stands on the page, beside the field that it names.
function showRefusal() {
  setTimeout(() => {
    const told = document.querySelector(".toast-body .refusal");
    const field = told && document.getElementById(told.classList[1]);
    const box = field?.querySelector("textarea, input[type=number], input[role=listbox]");
    told?.removeAttribute("class"); // it is shown once
    if (!box) return field?.scrollIntoView({block: "nearest"});
    const mark = (text) => {
      box.setCustomValidity(text);
      box.ariaInvalid = String(Boolean(text));
    };
    mark(told.textContent);
    box.reportValidity(); // with the focus
    for (const over of ["input", "blur"]) box.addEventListener(over, () => mark(""), {once: true});
  }, 0);
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

// Arrow keys, Home and End go from tab to tab.
const TABS = {ArrowLeft: (i) => i - 1, ArrowRight: (i) => i + 1, Home: () => 0, End: () => -1};
document.addEventListener("keydown", ({target, key}) => {
  if (target.role !== "tab" || !TABS[key]) return;
  const tabs = [...target.parentElement.children].filter((tab) => tab.role === "tab");
  const next = tabs.at(TABS[key](tabs.indexOf(target)) % tabs.length);
  next.focus();
  next.click();
});

// Gradio calls the pictures of a gallery "Thumbnail 1 of 4": name them by their captions.
let named = 0;
document.addEventListener("load", ({target}) => {
  if (!target.alt || !target.matches(".thumbnail-item img")) return;
  target.id ||= `picture-${named++}`;
  target.parentElement.setAttribute("aria-labelledby", target.id);
}, true);

// A browser opens a picture that is dropped beside the boxes for files: restore its settings instead.
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => {
  if (event.defaultPrevented || !event.dataTransfer.files.length) return;
  event.preventDefault();
  const input = document.querySelector("#restore input[type=file]");
  input.files = event.dataTransfer.files;
  input.dispatchEvent(new Event("change", {bubbles: true}));
});

// Paints a mask over a photo, for ui/form/mask.py. Runs once; `element`, `props` and `watch` come from Gradio.
const find = (selector) => element.querySelector(selector);
const [root, sheet, photo, canvas, size, erase] = [".mask", ".sheet", "img", "canvas", ".size", ".erase"].map(find);
const pen = canvas.getContext("2d", {willReadFrequently: true});
const FITS = {crop: "cover", pad: "contain", stretch: "fill"};
let last = null;
let before = null; // the painting before this stroke

const painting = () => pen.getImageData(0, 0, canvas.width, canvas.height);

// The point of the whole photo that is seen there.
function place({clientX, clientY}) {
  const {left, top, width, height} = canvas.getBoundingClientRect();
  const scales = [width / canvas.width, height / canvas.height];
  const one = {crop: Math.max(...scales), pad: Math.min(...scales)}[props.fit];
  const [across, down] = one ? [one, one] : scales;
  return [
    (clientX - left - width / 2) / across + canvas.width / 2,
    (clientY - top - height / 2) / down + canvas.height / 2,
  ];
}

function stroke(event) {
  const here = place(event);
  pen.lineWidth = (size.value / 100) * Math.min(canvas.width, canvas.height);
  pen.globalCompositeOperation = erase.checked ? "destination-out" : "source-over";
  pen.beginPath();
  pen.moveTo(...last);
  pen.lineTo(here[0] + 0.01, here[1]); // a line of no length would be no dot
  pen.stroke();
  last = here;
}

function clear() {
  [canvas.width, canvas.height] = [photo.naturalWidth || 1, photo.naturalHeight || 1]; // which empties it
  pen.strokeStyle = "#ffd400"; // bright enough to count as white
  pen.lineCap = "round";
  tell();
}

// What is seen painted is what counts: nothing while the sheet is hidden, or if all was erased.
function tell() {
  const mask = !root.hidden && painting().data.some(Boolean) ? canvas.toDataURL() : null;
  if (props.value !== mask) props.value = mask;
}

canvas.addEventListener("pointerdown", (event) => {
  if (!event.isPrimary) return;
  canvas.setPointerCapture(event.pointerId);
  before = painting();
  last = place(event);
  stroke(event);
});
canvas.addEventListener("pointermove", (event) => last && event.isPrimary && stroke(event));
canvas.addEventListener("pointercancel", () => pen.putImageData(before, 0, 0)); // a second finger came, to zoom
canvas.addEventListener("lostpointercapture", () => {
  last = null;
  tell();
});
photo.addEventListener("load", clear);
find(".clear").addEventListener("click", clear);

function show() {
  root.hidden = !props.photo;
  sheet.style.setProperty("--ratio", props.ratio);
  sheet.style.setProperty("--fit", FITS[props.fit]);
  if (!props.photo || photo.src === props.photo) return tell();
  clear(); // now, and again at the new size when the photo is there
  photo.src = props.photo;
}
for (const name of ["photo", "fit", "ratio"]) watch(name, show);
show();

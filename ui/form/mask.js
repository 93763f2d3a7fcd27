// Paints a mask over a photo, for ui/form/mask.py. Runs once; `element`, `props` and `watch` come from Gradio.
const find = (selector) => element.querySelector(selector);
const [photo, canvas, size, erase] = [find("img"), find("canvas"), find(".size"), find(".erase")];
const pen = canvas.getContext("2d");
let last = null;

function place({clientX, clientY}) {
  const {left, top, width, height} = canvas.getBoundingClientRect();
  return [((clientX - left) * canvas.width) / width, ((clientY - top) * canvas.height) / height];
}

function stroke(event) {
  const here = place(event);
  pen.lineWidth = (size.value / 100) * Math.min(canvas.width, canvas.height);
  pen.globalCompositeOperation = erase.checked ? "destination-out" : "source-over";
  pen.beginPath();
  pen.moveTo(...last);
  pen.lineTo(...here);
  pen.stroke();
  last = here;
}

function clear() {
  [canvas.width, canvas.height] = [photo.naturalWidth, photo.naturalHeight]; // which empties it
  pen.strokeStyle = "#ffd400"; // bright enough to count as white
  pen.lineCap = "round";
  props.value = null;
}

canvas.addEventListener("pointerdown", (event) => {
  canvas.setPointerCapture(event.pointerId);
  last = place(event);
  stroke(event);
});
canvas.addEventListener("pointermove", (event) => last && stroke(event));
canvas.addEventListener("lostpointercapture", () => {
  last = null;
  const painted = pen.getImageData(0, 0, canvas.width, canvas.height).data.some(Boolean); // or all was erased
  props.value = painted ? canvas.toDataURL() : null;
});
photo.addEventListener("load", clear);
find(".clear").addEventListener("click", clear);

function show() {
  element.hidden = !props.photo;
  if (!props.photo || photo.src === props.photo) return;
  clear(); // now, and again at the new size when the photo is there
  photo.src = props.photo;
}
watch("photo", show);
show();

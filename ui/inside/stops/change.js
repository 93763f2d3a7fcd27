// Stop 6: a run that goes on with other words from a step on. Its pictures come from the last of the steps to the first.
STOPS.change = (section, tour) => {
  const [before, after, slider, output, strip, box, button] = tour.find(
    section, ".before", ".after", "[type=range]", "output", ".strip", "[type=text]", "button.act");
  const [own, changed] = section.querySelectorAll("figcaption");
  let [steps, total, other, pictures] = [[], 0, "", new Map()];

  function show() {
    const step = steps[slider.value];
    if (!step) return;
    output.textContent = slider.ariaValueText = `${step} of ${total}`;
    after.hidden = !pictures.has(step);
    if (!after.hidden) after.src = pictures.get(step);
    after.alt = `${tour.prompt}; from step ${step}: ${other}`;
    changed.textContent = `${step > 1 ? `from step ${step}:` : "from the start:"} ${other}`;
    [...strip.children].forEach((figure, i) => figure.toggleAttribute("data-lit", i === Number(slider.value)));
  }
  function begin(value) {
    ({steps, total, other} = value);
    pictures = new Map();
    [before.src, before.alt] = [tour.picture, tour.prompt];
    own.textContent = tour.prompt;
    box.value = other;
    slider.max = steps.length - 1;
    if (!slider.dataset.touched) slider.value = slider.max;
    strip.replaceChildren(...steps.map((step) => tour.figure(step, {alt: `From step ${step}`})));
  }
  function draw(value) {
    if (value.recorded) changed.textContent = `it draws the picture once more, step ${value.recorded} of ${value.total}`;
    else if (value.steps) begin(value);
    else {
      const place = steps.indexOf(value.step);
      pictures.set(value.step, value.picture);
      strip.children[place].firstChild.src = value.picture;
      if (!slider.dataset.touched) slider.value = place;
    }
    show();
  }
  const ask = () => box.value.trim() && tour.ask(section, {other: box.value.trim()});
  const sway = () => steps.length && pictures.size === steps.length && tour.sway(slider, 10);
  slider.addEventListener("input", show);
  button.addEventListener("click", ask);
  box.addEventListener("keydown", (event) => event.key === "Enter" && ask());
  return {
    draw,
    reset() {
      [steps, pictures] = [[], new Map()];
      strip.replaceChildren();
      [before.src, before.alt] = [tour.picture, tour.prompt];
      after.hidden = true;
    },
    start: sway,
    over: sway,
  };
};

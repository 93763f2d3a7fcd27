// Stop 5: eight futures with fresh noise from a step on, and bands of what was settled when.
STOPS.decided = (section, tour) => {
  const PARTS = ["pose", "colour", "detail"];
  const COUNT = 8;
  const [grid, caption, slider, output, bands, told, button, agree] = tour.find(
    section, ".futures", "figcaption", "input", "output", ".bands", ".settled", "button", ".agree");
  let [total, roll, timer] = [0, 0, null];
  let futures = new Map(); // by step: the pictures of this roll, and how much they agree with the run's

  grid.append(...Array.from({length: COUNT}, () => tour.make("img", {alt: ""})));

  const per = (share) => `${Math.round(100 * share)}\u00a0%`;
  function show() {
    const step = Number(slider.value);
    const {pictures, shares} = futures.get(step) ?? {pictures: []};
    output.textContent = slider.ariaValueText = `${step} of ${total}`;
    [...grid.children].forEach((image, i) => {
      if (pictures[i]) [image.src, image.alt] = [pictures[i], `${tour.prompt}, future ${i + 1} from step ${step}`];
      image.toggleAttribute("data-stale", !pictures[i]);
    });
    caption.textContent = `eight pictures with new noise from step ${step}`;
    agree.textContent = shares ? `They keep of the picture: ${PARTS.map((part, i) => `${part} ${per(shares[i])}`).join(", ")}.` : "";
  }
  // A band is solid from the step on at which its part is settled, and paler before, by the share that is there.
  function begin(value) {
    total = value.total;
    slider.max = total;
    if (!slider.dataset.touched) slider.value = value.steps[0];
    PARTS.forEach((part, row) => {
      const stops = value.shares.flatMap((shares, i) => {
        const solid = i + 1 >= value.settled[row] ? 1 : 0.6 * shares[row] ** 2;
        const colour = `color-mix(in srgb, var(--part) ${Math.round(100 * solid)}%, var(--background-fill-secondary))`;
        return [`${colour} ${(100 * i) / total}%`, `${colour} ${(100 * (i + 1)) / total}%`];
      });
      bands.children[row].style.backgroundImage = `linear-gradient(to right, ${stops.join(", ")})`;
      bands.children[row].dataset.part = part;
    });
    told.replaceChildren(
      "Settled from step",
      ...PARTS.map((part, row) => {
        const mark = tour.make("span", {textContent: `${part} ${value.settled[row]}`});
        mark.dataset.part = part;
        return mark;
      })
    );
  }
  function draw(value) {
    if (value.recorded) caption.textContent = `it draws the picture once more, step ${value.recorded} of ${value.total}`;
    else if (value.settled) {
      begin(value);
      for (const step of value.steps) futures.set(step, {pictures: []});
    } else if (value.pictures) value.pictures.forEach((picture, i) => (futures.get(value.step).pictures[value.first + i] = picture));
    else futures.get(value.step).shares = value.agree;
    if (!value.recorded) show();
  }
  const complete = () => futures.get(Number(slider.value))?.shares;
  function move() {
    show();
    if (total && !complete()) tour.askSoon(section, {steps: [Number(slider.value)], roll});
  }
  function again() {
    if (!total) return;
    slider.dataset.touched = "true";
    roll += 1;
    futures = new Map();
    show();
    tour.ask(section, {steps: [Number(slider.value)], roll});
  }
  // To and fro between the two first steps, until the slider is touched.
  function play() {
    clearInterval(timer);
    if (tour.still) return;
    timer = setInterval(() => {
      if (slider.dataset.touched || section.offsetParent === null) return clearInterval(timer);
      const steps = [...futures.keys()].filter((step) => futures.get(step).pictures.length);
      if (!steps.length) return;
      slider.value = steps[(steps.indexOf(Number(slider.value)) + 1) % steps.length];
      show();
    }, 2000);
  }
  slider.addEventListener("input", move);
  button.addEventListener("click", again);
  return {
    draw,
    reset() {
      [total, roll, futures] = [0, 0, new Map()];
      for (const image of grid.children) image.removeAttribute("src");
      agree.textContent = caption.textContent = "";
    },
    start: play,
    key: ({key}) => key === " " && (again(), true),
  };
};

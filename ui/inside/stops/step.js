// Stop 4: the steps of a run, one by one.
STOPS.step = (section, tour) => {
  const [xt, guess, slider, output, button, strip] = tour.find(section, ".xt", ".guess", "input", "output", "button.act", ".strip");
  let frames = [];
  let timer = null;

  function show() {
    const frame = frames[slider.value - 1];
    if (!frame) return;
    xt.src = frame.xt;
    guess.src = frame.guess;
    xt.alt = `Noisy latents at step ${frame.index}`;
    guess.alt = `${tour.prompt}, guessed at step ${frame.index}`;
    output.textContent = `${frame.index} of ${frame.total}`;
  }
  function next() {
    slider.value = Number(slider.value) >= frames.length ? 1 : Number(slider.value) + 1;
    show();
  }
  function step() {
    slider.dataset.touched = "true";
    next();
  }
  function play() {
    clearInterval(timer);
    if (tour.still) return;
    timer = setInterval(() => {
      if (slider.dataset.touched || section.hidden) return clearInterval(timer);
      next();
    }, 400);
  }
  // The step at which the guess changes most.
  const telling = () => 1 + frames.reduce((most, {change}, i) => (change > frames[most].change ? i : most), 0);
  slider.addEventListener("input", show);
  button.addEventListener("click", step);
  return {
    reset() {
      frames = [];
      strip.replaceChildren();
    },
    draw(value) {
      if (value.xt) {
        frames.push(value);
        slider.max = value.total;
        if (frames.length === 1) slider.value = 1;
        if (frames.length === value.total && !slider.dataset.touched) slider.value = telling();
        show();
      } else strip.append(tour.figure(value.steps, {src: value.picture, alt: `With ${value.steps} steps`}));
    },
    start: play,
    key: ({key}) => key === " " && (step(), true),
  };
};

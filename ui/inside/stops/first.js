// Stop 3: the first guess from several noises, which take turns until one is asked for.
STOPS.first = (section, tour) => {
  const [noise, guess, output, field, button] = tour.find(section, ".noise", ".guess", "output", "input", "button.act");
  let frames = [];
  let at = 0;
  let timer = null;

  function show() {
    const frame = frames[at];
    noise.src = frame.noise;
    guess.src = frame.guess;
    output.textContent = `${at + 1} of ${frames.length}`;
    noise.alt = `Pure noise, ${output.textContent}`;
    guess.alt = `${frame.words || "No words"}, guessed from pure noise`;
  }
  function turn() {
    if (!frames.length) return;
    at = (at + 1) % frames.length;
    show();
  }
  function play() {
    clearInterval(timer);
    if (tour.still || button.dataset.touched) return;
    timer = setInterval(() => (section.hidden ? clearInterval(timer) : turn()), 600);
  }
  function other() {
    clearInterval(timer);
    button.dataset.touched = "true";
    turn();
  }
  button.addEventListener("click", other);
  field.addEventListener("input", () => tour.askSoon(section, {words: field.value}));
  for (const choice of section.querySelectorAll("[data-words]"))
    choice.addEventListener("click", () => {
      field.value = choice.dataset.words;
      tour.ask(section, {words: field.value});
    });
  return {
    reset() {
      frames = [];
      field.value = tour.prompt;
    },
    draw(value) {
      if (value.index === 0) [frames, at] = [[], 0]; // the answer to other words
      frames.push(value);
      show();
    },
    start: play,
    key: ({key}) => key === " " && (other(), true),
  };
};

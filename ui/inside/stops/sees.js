// Stop 2: the picture with noise, and the guesses of it. The visitor says where the eye loses it; the network's place is
// the first noise at which it sees less than half, beyond what the words say alone.
STOPS.sees = (section, tour) => {
  const [noisy, seen, without, slider, output] = tour.find(section, ".noisy", ".with", ".without", "input", "output");
  const [caption, button] = tour.find(section, "figcaption", "button.act");
  const [you, network, wordless] = tour.find(section, ".you", ".network", ".wordless");
  const percent = (share, digits = share > 0.995 && share < 1 ? 2 : 0) => `${(100 * share).toFixed(digits)} %`;
  const HALF = 0.5;
  let frames = [];

  function show() {
    const frame = frames[slider.value];
    if (!frame) return;
    noisy.src = frame.noisy;
    seen.src = frame.with.picture;
    if (frame.without) without.src = frame.without.picture;
    without.closest("figure").hidden = !frame.without;
    const share = percent(Math.max(0, frame.with.seen), 0);
    output.textContent = percent(frame.noise);
    caption.textContent = frame.with.seen < HALF ? `the network sees ${share} and invents the rest` : `the network sees ${share}`;
    noisy.alt = `${tour.prompt}, with ${output.textContent} noise`;
    seen.alt = `The guess of the network: ${caption.textContent}`;
    without.alt = "The guess without words";
  }
  const lost = (half) => {
    const frame = frames.find((one) => one[half] && one[half].seen < HALF);
    return frame ? percent(frame.noise) : "…";
  };
  function mark() {
    if (!frames.length) return;
    slider.dataset.touched = "true";
    you.textContent = percent(frames[slider.value].noise);
  }
  slider.addEventListener("input", show);
  button.addEventListener("click", mark);
  return {
    reset() {
      frames = [];
      slider.max = slider.value = 0;
      for (const one of [you, network, wordless, output, caption]) one.textContent = "…";
    },
    draw(value) {
      if (value.recorded) return (output.textContent = `(your picture first: step ${value.recorded} of ${value.total})`);
      frames.push(value);
      slider.max = frames.length - 1;
      network.textContent = lost("with");
      wordless.textContent = lost("without");
      show();
    },
    start: () => tour.sway(slider, 8),
    key: ({key}) => key === " " && (mark(), true),
  };
};

// Stop 2: the picture with noise, and the guesses of it. The visitor says where the eye loses it; the network's place is
// the first noise at which less than half of its guess is right.
STOPS.sees = (section, tour) => {
  const [noisy, seen, without, slider] = tour.find(section, ".noisy", ".with", ".without", "input");
  const [noise, right, button] = tour.find(section, ".noise", ".right", "button.act");
  const [you, network, wordless] = tour.find(section, ".you", ".network", ".wordless");
  const percent = (share, digits = share > 0.995 && share < 1 ? 2 : 0) => `${(100 * share).toFixed(digits)} %`;
  let frames = [];

  function show() {
    const frame = frames[slider.value];
    if (!frame) return;
    noisy.src = frame.noisy;
    seen.src = frame.with.picture;
    if (frame.without) without.src = frame.without.picture;
    without.closest("figure").hidden = !frame.without;
    noise.textContent = percent(frame.noise);
    right.textContent = `${percent(Math.max(0, frame.with.right), 0)} right`;
    noisy.alt = `${tour.prompt}, with ${noise.textContent} noise`;
    seen.alt = `What the network sees in it, ${right.textContent}`;
    without.alt = "What it sees without its words";
  }
  const lost = (half) => {
    const frame = frames.find((one) => one[half] && one[half].right < 0.5);
    return frame ? `${percent(frame.noise)} noise` : "…";
  };
  function mark() {
    if (!frames.length) return;
    slider.dataset.touched = "true";
    you.textContent = `${percent(frames[slider.value].noise)} noise`;
  }
  slider.addEventListener("input", show);
  button.addEventListener("click", mark);
  return {
    reset() {
      frames = [];
      slider.max = slider.value = 0;
      for (const one of [you, network, wordless, noise, right]) one.textContent = "…";
    },
    draw(value) {
      if (value.step) return (noise.textContent = `(your picture first: step ${value.step} of ${value.total})`);
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

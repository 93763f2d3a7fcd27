// Stop 7: the picture at each guidance scale.
STOPS.push = (section, tour) => {
  const [pushed, without, withWords, slider, output] = tour.find(section, ".pushed", ".without", ".with", "input", "output");
  const [effect, arriving] = tour.find(section, ".effect", ".arriving");
  let frames = []; // by scale
  const effects = [
    [0, "The words don't count."],
    [0.99, "The picture lies between the two small ones."],
    [1, "It follows the words, without a push."],
    [3, "The push is small: the picture stays soft and pale."],
    [9, "The push is right: the picture shows what the words say."],
    [15, "The push is strong: the colours grow hard."],
    [Infinity, "The push is too strong: the colours burn."],
  ];

  function show() {
    const frame = frames[slider.value];
    if (!frame) return;
    pushed.src = frame.picture;
    output.textContent = frame.scale;
    pushed.alt = `${tour.prompt}, at guidance ${frame.scale}`;
    effect.textContent = effects.find(([most]) => frame.scale <= most)[1];
  }
  slider.addEventListener("input", show);
  return {
    reset() {
      frames = [];
      slider.max = slider.value = 0;
      for (const image of [without, withWords]) image.removeAttribute("src");
    },
    draw(value) {
      const seen = frames[slider.value] ?? value;
      frames = [...frames, value].sort((one, other) => one.scale - other.scale);
      slider.max = frames.length - 1;
      slider.value = frames.indexOf(seen); // the picture in view stays while others arrive beside it
      if (value.scale === 0) [without.src, without.alt] = [value.picture, `${tour.prompt}, without the words`];
      if (value.scale === 1) [withWords.src, withWords.alt] = [value.picture, `${tour.prompt}, with the words and no push`];
      for (const image of [without, withWords]) image.closest("figure").hidden = !value.halves;
      arriving.hidden = frames.length === value.scales;
      arriving.textContent = `${frames.length} of ${value.scales} pictures are drawn.`;
      show();
    },
    start: () => tour.sway(slider, 10),
  };
};

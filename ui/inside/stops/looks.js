// Stop 8: lights the place of a word on the picture, of two words side by side, or shows the picture without a word.
STOPS.looks = (section, tour) => {
  const [box, glow, pin, cross, form, asked] = tour.find(section, ".spoken", "[type=range]", ".pin", ".cross", "form", "[type=text]");
  const figures = [...section.querySelectorAll("figure")].map((figure) => ({
    figure, picture: figure.querySelector("img"), lit: figure.querySelector("canvas"), caption: figure.querySelector("figcaption"),
  }));
  const small = tour.make("canvas");
  let words = []; // {text, empty, heat}: those of the prompt, then those asked for
  let own = 0; // the number of words of the prompt
  let size = {};
  let chosen = 0;
  let pinned = null; // the number of the word that stays on the left
  let without = null; // the number of the word that is crossed out
  let picture = "";
  let low = true; // the glow is near 0
  let wanted = null; // the word that was asked for, until it comes

  // One word's heat over one picture: dark where the network does not look, warm where it does.
  function light({picture: image, lit, caption}, word) {
    image.src = picture;
    image.alt = tour.prompt;
    caption.textContent = word ? `bright where it looks for “${word.text}”` : "";
    lit.hidden = !word?.heat;
    if (lit.hidden) return;
    const [heat, strength] = [atob(word.heat), glow.value / 100];
    Object.assign(small, size);
    const pen = small.getContext("2d");
    const pixels = pen.createImageData(size.width, size.height);
    for (let i = 0; i < heat.length; i += 1) {
      const share = heat.charCodeAt(i) / 255;
      pixels.data.set([255 * share ** 2, 170 * share ** 2, 0, 255 * strength * (0.2 * share ** 3 + 0.97 * (1 - share))], 4 * i);
    }
    pen.putImageData(pixels, 0, 0);
    Object.assign(lit, {width: 8 * size.width, height: 8 * size.height});
    const fine = lit.getContext("2d");
    fine.imageSmoothingQuality = "high";
    fine.drawImage(small, 0, 0, lit.width, lit.height);
  }

  function show() {
    const [left, right] = figures;
    const beside = pinned !== null && pinned !== chosen;
    section.querySelector(".show").classList.toggle("pair", beside || without !== null);
    right.figure.hidden = !beside && without === null;
    light(left, without === null ? words[beside ? pinned : chosen] : null);
    if (without !== null) {
      left.caption.textContent = `with “${words[without].text}”`;
      right.caption.textContent = `without “${words[without].text}”`;
      right.lit.hidden = true;
    } else if (beside) light(right, words[chosen]);
    const text = words[chosen]?.text;
    pin.hidden = cross.hidden = !words.length;
    pin.ariaPressed = String(pinned !== null);
    pin.textContent = pinned === null ? "Pin" : "Unpin";
    pin.title = pinned === null ? `Keep “${text}” beside the next word` : `Let “${words[pinned].text}” go`;
    pin.disabled = without !== null;
    cross.disabled = chosen >= own && without === null;
    cross.textContent = without === null ? "× Cross out" : "Put it back";
    cross.title = without === null ? `The picture without “${text}”: key Delete` : "";
    [...box.children].forEach((label, i) => label.classList.toggle("crossed", i === without));
  }

  function choose(i) {
    chosen = i;
    const radio = box.children[i]?.firstElementChild;
    if (radio) radio.checked = true;
    show();
  }

  function chip({text, empty}, i) {
    const [label, radio] = [tour.make("label"), tour.make("input", {type: "radio", name: "looks-word"})];
    label.append(radio, tour.make("span", {textContent: text}));
    label.classList.toggle("empty", Boolean(empty));
    label.classList.toggle("asked", i >= own);
    radio.addEventListener("input", () => {
      hold();
      choose(i);
    });
    return label;
  }

  // The visitor takes over: what swayed stands still, bright enough to see.
  function hold() {
    if (!glow.dataset.touched) glow.value = 85;
    glow.dataset.touched = "true";
    without = null;
  }

  const fillBox = () => box.replaceChildren(...words.map(chip));

  function crossOut() {
    const put = without !== null;
    hold();
    if (!put && chosen < own) {
      without = chosen;
      Object.assign(figures[1].picture, {src: picture, alt: ""});
      tour.ask(section, {without});
    }
    show();
  }

  glow.addEventListener("input", () => {
    // As long as nobody touches it, each swell is another word's.
    if (!glow.dataset.touched && Number(glow.value) <= 1 && words.length && !low) {
      const full = words.map((_, i) => i).filter((i) => !words[i].empty);
      chosen = full[(full.indexOf(chosen) + 1) % full.length] ?? 0;
      choose(chosen);
    }
    low = Number(glow.value) <= 1;
    show();
  });
  pin.addEventListener("click", () => {
    hold();
    pinned = pinned === null ? chosen : null;
    show();
  });
  cross.addEventListener("click", crossOut);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const text = asked.value.trim();
    if (!text) return;
    hold();
    wanted = text;
    tour.ask(section, {word: text});
  });

  return {
    reset() {
      [words, own, chosen, pinned, without, wanted] = [[], 0, 0, null, null, null];
      picture = tour.picture;
      box.replaceChildren();
      show();
    },
    draw(value) {
      if (value.without !== undefined) {
        if (value.without === without) Object.assign(figures[1].picture, {src: value.picture ?? value.small, alt: `Without “${words[without].text}”`});
        return;
      }
      if (value.small || value.picture) picture = value.picture ?? value.small;
      if (value.words) {
        words = value.words;
        own = words.length;
        fillBox();
        chosen = Math.max(0, words.findIndex(({empty}) => !empty));
      }
      if (value.heat) {
        size = {width: value.width, height: value.height};
        if (value.asked) {
          let place = words.findIndex(({text}, i) => i >= own && text === value.asked);
          if (place < 0) {
            place = words.push({text: value.asked}) - 1;
            fillBox();
          }
          words[place].heat = value.heat[0];
          if (wanted === value.asked) [chosen, wanted] = [place, null];
        } else value.heat.forEach((heat, i) => (words[i].heat = heat));
      }
      choose(chosen);
    },
    start: () => tour.sway(glow, 5),
    key: ({key, target}) => {
      if ((key !== "Delete" && key !== "Backspace") || !target.matches("[type=radio]")) return false;
      crossOut();
      return true;
    },
  };
};

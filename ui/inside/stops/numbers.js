// Stop 9: the channels of the latents, to paint into; the server decodes them. Until it is touched, a patch in each
// channel shows what that one is about.
STOPS.numbers = (section, tour) => {
  const MOST_POINTS = 64;
  const MOST_STROKES = 32;
  const MOST_TOGETHER = 256; // points of all strokes: a call has room for 1,000 values
  const [picture, canvas, output, channels, colour, slider, undo] = tour.find(
    section, ".picture", ".channel", ".number", ".channels", ".colour", "[type=range]", ".undo");
  const pen = canvas.getContext("2d");
  let [shape, numbers, clean] = [[0, 0, 0], [], ""]; // channels, rows, columns; the run's numbers; and their picture
  let [strokes, patches, channel, at] = [[], [], 0, {x: 0, y: 0}];
  let [timer, waiting, late, stroke, touched] = [null, false, false, null, false];

  const radiusOf = () => Math.max(1.5, shape[1] / 12);
  // The colour of a number: -4 is blue, 0 white, 4 red.
  const shade = (number) => {
    const part = Math.min(1, Math.abs(number) / 4);
    const pale = Math.round(255 * (1 - part));
    return number > 0 ? `rgb(${255 - 40 * part}, ${pale}, ${pale})` : `rgb(${pale}, ${pale}, ${255 - 40 * part})`;
  };
  // The numbers of a channel with strokes, as the server paints them.
  function paintedWith(which, all) {
    const [, height, width] = shape;
    const found = numbers.slice(which * height * width, (which + 1) * height * width);
    for (const {channel: of, value, radius, points} of all) {
      if (of !== which) continue;
      for (const [x, y] of points)
        found.forEach((number, i) => {
          const square = ((i % width) + 0.5 - x) ** 2 + (Math.floor(i / width) + 0.5 - y) ** 2;
          if (square < radius ** 2) found[i] += (1 - square / radius ** 2) ** 2 * (value - number);
        });
    }
    return found;
  }
  function cells(board, values, side) {
    const [, height, width] = shape;
    const ink = board.getContext("2d");
    [board.width, board.height] = [width * side, height * side];
    values.forEach((number, i) => {
      ink.fillStyle = shade(number);
      ink.fillRect((i % width) * side, Math.floor(i / width) * side, side, side);
    });
  }
  function show() {
    const [count, height, width] = shape;
    if (!count) return;
    const shown = touched ? strokes : patches.filter((one) => one.channel === channel);
    const values = paintedWith(channel, shown);
    const side = Math.max(1, Math.round(768 / width));
    cells(canvas, values, side);
    if (canvas.clientWidth / width >= 24) {
      Object.assign(pen, {font: `${side * 0.36}px sans-serif`, textAlign: "center", textBaseline: "middle"});
      values.forEach((number, i) => {
        pen.fillStyle = Math.abs(number) > 2.4 ? "white" : "#222";
        pen.fillText(number.toFixed(1), ((i % width) + 0.5) * side, (Math.floor(i / width) + 0.5) * side);
      });
    }
    [...channels.querySelectorAll("canvas")].forEach((small, i) => cells(small, paintedWith(i, shown), 1));
    if (touched) {
      Object.assign(pen, {strokeStyle: "black", lineWidth: canvas.width / 200}).beginPath();
      pen.arc((at.x + 0.5) * side, (at.y + 0.5) * side, radiusOf() * side, 0, 2 * Math.PI);
      pen.stroke();
    }
    output.textContent = `channel ${channel + 1} of ${count}, column ${at.x + 1}, row ${at.y + 1}: ${values[at.y * width + at.x].toFixed(2)}`;
    canvas.ariaLabel = `Channel ${channel + 1}: arrows move the brush, Space paints`;
    colour.textContent = slider.value;
    colour.style.background = shade(slider.value);
    colour.style.color = Math.abs(slider.value) > 2.4 ? "white" : "#222";
    undo.disabled = !strokes.length;
  }
  function choose(which) {
    channel = which;
    channels.querySelectorAll("input")[which].checked = true;
    show();
  }
  // One patch after the other, until a visitor paints.
  function demonstrate() {
    clearInterval(timer);
    if (tour.still) return;
    let turn = 0;
    timer = setInterval(() => {
      if (touched || section.offsetParent === null) return clearInterval(timer);
      if (!patches.length) return;
      const patch = patches[turn++ % patches.length];
      picture.src = patch.picture;
      at = {x: Math.floor(patch.points[0][0]), y: Math.floor(patch.points[0][1])};
      choose(patch.channel);
    }, 1500);
  }
  function touch() {
    if (touched || !shape[0]) return;
    touched = true;
    picture.src = clean;
    show();
  }
  // Ask for the picture; what is painted while one is on its way is asked for after it.
  function ask() {
    late = waiting;
    if (waiting) return;
    waiting = strokes.length > 0;
    if (waiting) tour.ask(section, {strokes});
    else picture.src = clean;
  }
  function paint() {
    touch();
    if (strokes.reduce((sum, {points}) => sum + points.length, 0) === MOST_TOGETHER) return;
    if (!stroke || stroke.points.length === MOST_POINTS) {
      if (strokes.length === MOST_STROKES) return;
      stroke = {channel, value: Number(slider.value), radius: radiusOf(), points: []};
      strokes.push(stroke);
    }
    stroke.points.push([at.x + 0.5, at.y + 0.5]);
    show();
    ask();
  }
  function point(event) {
    const [, height, width] = shape;
    const box = canvas.getBoundingClientRect();
    const side = Math.min(box.width / width, box.height / height); // the canvas is fitted into its box
    const place = {
      x: Math.floor((event.clientX - box.left - (box.width - side * width) / 2) / side),
      y: Math.floor((event.clientY - box.top - (box.height - side * height) / 2) / side),
    };
    if (place.x < 0 || place.y < 0 || place.x >= width || place.y >= height) return false;
    const moved = place.x !== at.x || place.y !== at.y;
    at = place;
    return moved;
  }
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    point(event);
    stroke = null;
    paint();
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!shape[0] || !point(event)) return;
    if (event.buttons) paint();
    else show();
  });
  canvas.addEventListener("keydown", (event) => {
    const [dx, dy] = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]}[event.key] ?? [0, 0];
    if (!shape[0] || (!dx && !dy && event.key !== " ")) return;
    event.preventDefault();
    event.stopPropagation(); // the arrows move the brush, and not the tour
    touch();
    at = {x: Math.min(Math.max(at.x + dx, 0), shape[2] - 1), y: Math.min(Math.max(at.y + dy, 0), shape[1] - 1)};
    if (event.key === " ") {
      stroke = null;
      paint();
    } else show();
  });
  slider.addEventListener("input", () => (touch(), show()));
  undo.addEventListener("click", () => {
    strokes.pop();
    stroke = null;
    show();
    ask();
  });
  function begin(value) {
    [shape, clean] = [value.shape, value.picture];
    const bytes = Uint8Array.from(atob(value.numbers), (letter) => letter.charCodeAt(0));
    numbers = [...new Int16Array(bytes.buffer)].map((number) => number * value.unit);
    at = {x: shape[2] >> 1, y: shape[1] >> 1};
    channels.replaceChildren(
      ...Array.from({length: shape[0]}, (_, i) => {
        const label = tour.make("label");
        const radio = tour.make("input", {type: "radio", name: "channel", ariaLabel: `Channel ${i + 1}`});
        radio.addEventListener("change", () => (touch(), choose(i)));
        label.append(radio, tour.make("canvas", {className: "grain"}));
        return label;
      })
    );
    picture.src = clean;
    picture.alt = `${tour.prompt}, decoded`;
    choose(0);
  }
  return {
    reset() {
      [shape, strokes, patches] = [[0, 0, 0], [], []];
      [waiting, late, stroke, touched] = [false, false, null, false];
      channels.replaceChildren();
      [picture.src, picture.alt] = [tour.picture, tour.prompt];
    },
    draw(value) {
      if (value.recorded) output.textContent = `it draws the picture once more, step ${value.recorded} of ${value.total}`;
      else if (value.patch) patches.push({...value.patch, picture: value.picture});
      else if (value.numbers) begin(value);
      else if (strokes.length) picture.src = value.picture;
    },
    start: demonstrate,
    over() {
      waiting = false;
      if (late) ask();
    },
  };
};

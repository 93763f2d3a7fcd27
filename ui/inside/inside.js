// Draws the views of the Inside tab. Runs once a view; `element`, `props`, `watch` and `trigger` come from Gradio.
const root = element.querySelector(".inside");
const find = (selector) => root.querySelector(selector);

function make(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

// Text like x_t or x̂_0 with its index set low.
function symbols(text) {
  return text.split(/(_\w)/).map((part) => (part.startsWith("_") ? make("sub", {}, part.slice(1)) : part));
}

function showPictures(list) {
  find(".pictures").replaceChildren(
    ...list.map(({ src, title, note }) =>
      make(
        "figure",
        {},
        src ? make("img", { src, alt: title }) : make("div", { class: "none" }, "Not guided: w is 1 or less"),
        make("figcaption", {}, make("b", {}, ...symbols(title)), " ", ...symbols(note)),
      ),
    ),
  );
}

// Charts: lines over one axis, a marker, and under them the values at the marker or where the pointer is.

const [WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM] = [460, 220, 50, 12, 10, 38];

function draw(name, attributes, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

function ticks(low, high, count) {
  const rough = (high - low) / count || 1;
  const unit = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find((factor) => factor * unit >= rough) * unit;
  const first = Math.ceil(low / step - 1e-9);
  return Array.from({ length: Math.floor(high / step + 1e-9) - first + 1 }, (_, i) => (first + i) * step);
}

const digits = (value) => String(Number(value.toPrecision(3)));
const power = (exponent) => `10${[...String(exponent)].map((sign) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[sign] || "⁻").join("")}`;

function nearestPoint(points, x) {
  return points.reduce((best, point) => (Math.abs(point[0] - x) < Math.abs(best[0] - x) ? point : best));
}

function scales(spec) {
  const lift = spec.log ? Math.log10 : (y) => y;
  const points = spec.series.flatMap((line) => line.points);
  const [xs, ys] = [points.map(([x]) => x), points.map(([, y]) => lift(y))];
  const [left, right] = [Math.min(...xs), Math.max(...xs)];
  const [low, high] = [Math.min(...ys, spec.low ?? Infinity), Math.max(...ys, spec.high ?? -Infinity)];
  const spread = right - left || 1;
  const [floor, range] = high > low ? [low, (high - low) * 1.04] : [low - 0.5, 1];
  return {
    x: (x) => LEFT + ((x - left) / spread) * (WIDTH - LEFT - RIGHT),
    y: (y) => HEIGHT - BOTTOM - ((lift(y) - floor) / range) * (HEIGHT - TOP - BOTTOM),
    xAt: (pixel) => left + ((pixel - LEFT) / (WIDTH - LEFT - RIGHT)) * spread,
    xTicks: ticks(left, right, 6).filter(Number.isInteger),
    yTicks: spec.log ? ticks(floor, floor + range, 5).filter(Number.isInteger).map((e) => 10 ** e) : ticks(floor, floor + range, 4),
  };
}

function axes(spec, { x, y, xTicks, yTicks }) {
  const label = spec.log ? (value) => power(Math.round(Math.log10(value))) : digits;
  return [
    ...yTicks.flatMap((value) => [
      draw("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: y(value), y2: y(value) }),
      draw("text", { x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, label(value)),
    ]),
    ...xTicks.map((value) => draw("text", { x: x(value), y: HEIGHT - 20, "text-anchor": "middle" }, digits(value))),
    draw("text", { class: "axis", x: (LEFT + WIDTH - RIGHT) / 2, y: HEIGHT - 3, "text-anchor": "middle" }, spec.x),
  ];
}

function chart(host, spec) {
  const filled = { ...spec, series: spec.series.filter((line) => line.points.length) };
  host.hidden = !filled.series.length;
  host.querySelectorAll("svg, .readout").forEach((node) => node.remove());
  if (host.hidden) return;
  const scale = scales(filled);
  const lines = filled.series.map(({ points }, i) =>
    draw("polyline", { class: `line c${i % 9}`, points: points.map(([x, y]) => `${scale.x(x)},${scale.y(y)}`).join(" ") }),
  );
  const dots = filled.series.map((_, i) => draw("circle", { class: `dot c${i % 9}`, r: 4 }));
  const rule = draw("line", { class: "rule", y1: TOP, y2: HEIGHT - BOTTOM });
  const readout = make("div", { class: "readout" });
  const name = host.querySelector("figcaption").textContent;
  const picture = draw("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": name });
  picture.append(...axes(filled, scale), rule, ...lines, ...dots);
  const longest = filled.series.reduce((a, b) => (a.points.length >= b.points.length ? a : b)).points;
  const rest = filled.marker ?? longest[Math.floor(longest.length / 2)][0];

  function read(at) {
    const x = nearestPoint(longest, at)[0];
    rule.setAttribute("x1", scale.x(at));
    rule.setAttribute("x2", scale.x(at));
    const values = filled.series.map(({ label, points }, i) => {
      const [px, py] = nearestPoint(points, x);
      dots[i].setAttribute("cx", scale.x(px));
      dots[i].setAttribute("cy", scale.y(py));
      return make("span", { class: `value c${i % 9}` }, `${label} `, make("b", {}, digits(py)));
    });
    readout.replaceChildren(make("span", {}, `${spec.x} `, make("b", {}, digits(x))), ...values);
  }

  picture.addEventListener("pointermove", (event) => {
    const box = picture.getBoundingClientRect();
    read(nearestPoint(longest, scale.xAt(((event.clientX - box.left) / box.width) * WIDTH))[0]);
  });
  picture.addEventListener("pointerleave", () => read(rest));
  read(rest);
  host.append(picture, readout);
}

function showCharts(charts, marker) {
  for (const [name, spec] of Object.entries(charts || {})) chart(find(`[data-chart="${name}"]`), { marker, ...spec });
}

// Noise lab.

function noise(value) {
  if (!value.pictures) return;
  find(".hint").hidden = true;
  showPictures(value.pictures);
  find(".facts").replaceChildren(
    ...value.facts.map(([name, text]) => make("div", {}, make("dt", {}, ...symbols(name)), make("dd", {}, text))),
  );
  showCharts(value.charts);
}

// Inside a run: one slider chooses the step for all of it.

const chosen = { word: 0, mode: "mean", step: Infinity };
const GLOW = [[0, 0, 4], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]];

function glow(heat) {
  const place = Math.min(heat, 0.9999) * (GLOW.length - 1);
  const [below, above] = [GLOW[Math.floor(place)], GLOW[Math.floor(place) + 1]];
  return below.map((part, i) => part + (above[i] - part) * (place % 1));
}

function paintHeat(canvas, maps, word) {
  const [height, width] = maps.size;
  const bytes = Uint8Array.from(atob(maps.bytes), (sign) => sign.charCodeAt(0));
  Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  for (let i = 0; i < width * height; i += 1) {
    const heat = bytes[word * width * height + i] / 255;
    image.data.set([...glow(heat), 255 * (0.45 + 0.3 * heat)], 4 * i);
  }
  context.putImageData(image, 0, 0);
}

function showWord(value, frame) {
  const maps = frame[chosen.mode];
  const word = Math.min(chosen.word, value.words.length - 1);
  const canvas = find(".words canvas");
  find(".words img").src = frame.x0;
  find(".words img").alt = `The guess at step ${frame.index}`;
  canvas.hidden = word < 0;
  find(".words figcaption").textContent = "This prompt has no words.";
  [...find(".chips").children].forEach((chip, i) => {
    chip.setAttribute("aria-pressed", i === word);
    paintHeat(chip.querySelector("canvas"), maps, i);
  });
  if (word < 0) return;
  paintHeat(canvas, maps, word);
  const [low, high] = maps.ranges[word].map((share) => `${digits(share)} %`);
  find(".words figcaption").textContent = `“${value.words[word]}” gets ${low} of the attention where it gets least, ${high} where it gets most.`;
}

function chip(text, i) {
  const button = make("button", { type: "button", class: "chip" }, make("canvas"), make("span", {}, text));
  const choose = () => {
    chosen.word = i;
    run(props.value);
  };
  for (const name of ["click", "pointerenter", "focus"]) button.addEventListener(name, choose);
  return button;
}

function run(value) {
  const frames = value.frames || [];
  find(".record").hidden = !frames.length;
  find(".hint").hidden = frames.length > 0;
  if (!frames.length) return;
  const chips = find(".chips");
  if (chips.dataset.words !== JSON.stringify(value.words)) {
    chips.dataset.words = JSON.stringify(value.words);
    chips.replaceChildren(...value.words.map(chip));
    chosen.word = Math.max(0, value.words.findIndex((word) => word.length > 2));
  }
  const frame = frames[Math.min(chosen.step, frames.length) - 1];
  const scrub = find(".scrubber input");
  Object.assign(scrub, { max: frames.length, value: frame.index });
  find(".scrubber output").textContent = `Step ${frame.index} of ${frame.total}, timestep ${frame.timestep}, seed ${frame.seed}`;
  showWord(value, frame);
  showPictures([
    { src: frame.unconditional, title: "Without words", note: "unconditional" },
    { src: frame.conditional, title: "With words", note: "conditional" },
    { src: frame.x0, title: "Guided x̂_0", note: `w = ${value.scale}` },
  ]);
  showCharts(value.charts, frame.index);
}

function connectRun() {
  find(".scrubber input").addEventListener("input", (event) => {
    const step = Number(event.target.value);
    // At its right end the slider follows a run that is still going on.
    chosen.step = step === Number(event.target.max) ? Infinity : step;
    run(props.value);
  });
  root.querySelectorAll("[data-mode]").forEach((button) =>
    button.addEventListener("click", () => {
      chosen.mode = button.dataset.mode;
      root.querySelectorAll("[data-mode]").forEach((one) => one.setAttribute("aria-pressed", one === button));
      run(props.value);
    }),
  );
}

// Samplers side by side.

function strip(row) {
  const seen = row.frames.filter((frame) => frame.src);
  const last = row.frames[row.frames.length - 1];
  const pictures = seen.map(({ src, index }) => make("img", { src, alt: `${row.label}, evaluation ${index}`, title: `evaluation ${index}` }));
  const status = last.index === last.total ? `${last.total} evaluations` : `${last.index} of ${last.total}`;
  return make("div", { class: "strip" }, make("div", { class: "name" }, make("b", {}, row.label), status), make("div", { class: "film" }, ...pictures));
}

function samplers(value) {
  find(".hint").hidden = Boolean(value.rows);
  find(".strips").replaceChildren(...(value.rows || []).map(strip));
  showCharts(value.charts);
}

const views = { noise, run, samplers };
const update = () => views[root.dataset.view](props.value || {});
if (root.dataset.view === "run") connectRun();
watch("value", update);
update();
trigger("load");

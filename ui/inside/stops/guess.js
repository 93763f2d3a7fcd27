// Stop 10: a riddle. Frames come as fast as the server draws them, and are shown one by one. Behind it the end card.
STOPS.guess = (section, tour) => {
  const [image, caption, form, typed, verdict, rival, go, next, finish, score, link] = tour.find(
    section, "img", "figcaption", "form", "[type=text]", ".verdict", ".rival", ".go", ".next", ".finish", ".score", ".link"
  );
  const [game, end, formulas, print, again] = tour.find(section, ".game", ".end", ".formulas", ".print", ".back-to-game");
  const stops = [...section.parentNode.querySelectorAll(".stop")];
  const SURE = 0.5; // CLIP counts as knowing once the right name has more than half
  const sum = {you: 0, clip: 0, riddles: 0};
  let frames = []; // {picture, guesses}
  let riddle = {}; // {riddle, riddles, total, name, answers}
  let at = 0; // the frame in view, from 1
  let tries = 0;
  let told = false; // the answer is known
  let playing = !tour.still;
  let timer = null;
  let film = [];
  let day = false; // today's riddle was played
  let own = false; // a riddle was asked for here, and not by the tour

  const fold = (text) => text.normalize("NFKC").toLowerCase().replaceAll("ß", "ss").normalize("NFD").replace(/[\u0300-\u036f]/g, "").normalize("NFC");
  const bare = (text) => fold(text).replace(/[^\p{L}\p{M}\p{Extended_Pictographic}]/gu, "");

  // Whether a text names the thing: some of its words in a row are one of the answers.
  function isRight(text) {
    const answers = new Set(riddle.answers.map(bare));
    const words = fold(text).split(/[^\p{L}\p{M}\p{Extended_Pictographic}]+/u).filter(Boolean);
    return words.some((_, i) => words.some((_, j) => j >= i && answers.has(words.slice(i, j + 1).join(""))));
  }

  const clipKnew = () => 1 + frames.findIndex(({guesses}) => guesses?.[0][0] === riddle.name && guesses[0][1] >= SURE);
  const left = (step) => (step ? riddle.total - step : 0);

  function show() {
    const frame = frames[at - 1];
    image.hidden = !frame;
    if (frame) image.src = frame.picture;
    image.alt = told ? riddle.name : "A picture that clears up";
    caption.textContent = riddle.total ? `riddle ${riddle.riddle} of ${riddle.riddles}, step ${at} of ${riddle.total}` : "";
    rival.hidden = !frame?.guesses;
    rival.replaceChildren(
      ...(frame?.guesses ?? []).map(([name, share]) => {
        const line = tour.make("li");
        line.style.setProperty("--share", `${100 * share}%`);
        line.classList.toggle("right", told && name === riddle.name);
        // What CLIP is sure of is covered, so that nobody reads the answer there.
        const [word, number] = [told || share < SURE ? name : "a hidden name", `${Math.round(100 * share)} %`].map((textContent) => tour.make("span", {textContent}));
        line.append(word, number);
        return line;
      })
    );
    const over = at >= riddle.total;
    go.textContent = over ? (told ? "Once more" : "Tell me") : tour.still ? "One step" : playing ? "Pause" : "Go on";
    go.disabled = !frames.length;
    next.textContent = day ? "Another riddle" : "Today's riddle";
    link.href = `?inside=${stops.indexOf(section) + 1}&riddle=${riddle.riddle}`;
    score.textContent = sum.riddles ? `You ${sum.you}, CLIP ${sum.clip} points.` : "";
  }

  function play(pause = 900) {
    clearTimeout(timer);
    if (!playing || !end.hidden) return;
    timer = setTimeout(() => {
      if (section.offsetParent === null) return;
      if (at < frames.length) {
        at += 1;
        show();
      }
      if (at < riddle.total) play(pause);
    }, at ? pause : 0);
  }

  // Tell the answer, with who knew it first; step: when the visitor did, or 0.
  function tell(step) {
    told = true;
    const clip = clipKnew();
    const points = step ? Math.max(0, left(step) - tries) : 0;
    const clips = frames.some(({guesses}) => guesses) ? ` CLIP: ${clip ? `${left(clip)}, at step ${clip}` : "it did not see it"}.` : "";
    verdict.textContent = `${step ? `Yes, ${riddle.name}! ${points} points for you, at step ${step}.` : `It is ${riddle.name}.`}${clips}`;
    sum.you += points;
    sum.clip += left(clip);
    sum.riddles += 1;
    show();
  }

  // The answer needs all frames, to know when CLIP saw it.
  let wanted = null;
  function reveal(step) {
    wanted = null;
    if (frames.length < riddle.total) return (wanted = step);
    tell(step);
    if (step && !tour.still) {
      playing = true;
      play(120);
    }
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const text = typed.value.trim();
    if (!text || told || !riddle.answers || wanted !== null) return;
    if (isRight(text)) {
      verdict.textContent = "Yes!";
      reveal(at);
    } else {
      tries += 1;
      verdict.textContent = `Not “${text}”: one point less.`;
      typed.select();
    }
  });

  function ask(number) {
    reset();
    own = true;
    if (number === 0) day = true;
    tour.ask(section, {riddle: number, side: 256});
    show();
  }
  function press() {
    if (at >= riddle.total && !told) return reveal(0);
    if (at >= riddle.total) at = 0;
    if (tour.still) {
      at = Math.min(at + 1, frames.length);
    } else {
      playing = at === 0 || !playing;
      play();
    }
    show();
  }
  go.addEventListener("click", press);
  next.addEventListener("click", () => ask(day ? (riddle.riddle % riddle.riddles) + 1 : 0));

  function reset() {
    clearTimeout(timer);
    [frames, riddle, at, tries, told, wanted, playing, own] = [[], {}, 0, 0, false, null, !tour.still, false];
    verdict.textContent = typed.value = "";
    image.removeAttribute("src");
  }

  // The end card: the run again, and every stop's formula.
  function card(shown) {
    clearTimeout(timer);
    game.hidden = shown;
    end.hidden = !shown;
    for (const part of section.querySelectorAll(":scope > .words, :scope > details")) part.hidden = shown;
    if (!shown) return ask(0);
    film = [];
    caption.textContent = tour.prompt;
    image.hidden = false;
    image.alt = tour.prompt;
    image.src = tour.picture;
    formulas.replaceChildren(
      ...stops.map((stop) => {
        const [line, formula] = [tour.make("li"), tour.make("span")];
        const name = tour.make("b", {textContent: stop.querySelector("h2").textContent});
        formula.append(...stop.querySelector(".formula").cloneNode(true).childNodes);
        line.append(name, " ", formula);
        return line;
      })
    );
    tour.ask(section, {film: true});
    end.querySelector("h3").focus({preventScroll: true});
  }
  function roll(i = 0) {
    if (end.hidden || section.hidden || !film.length) return;
    image.src = film[Math.min(i, film.length - 1)];
    timer = setTimeout(() => roll((i + 1) % (film.length + 12)), 120); // it rests on its last picture
  }
  finish.addEventListener("click", () => card(true));
  again.addEventListener("click", () => card(false));
  print.addEventListener("click", () => {
    section.querySelector("iframe")?.remove();
    const page = tour.make("iframe", {title: "Print"});
    page.style.cssText = "position: fixed; width: 0; height: 0; border: 0";
    const style = "body { font: 15px/1.45 sans-serif; margin: 2em; } h1 { font-size: 22px; } li { margin: 8px 0; } i { display: block; color: #333; }";
    page.srcdoc = `<style>${style}</style>${section.querySelector(".sheet").outerHTML}<h1>Its formulas</h1>${formulas.outerHTML}`;
    page.addEventListener("load", () => page.contentWindow.print());
    section.append(page);
  });

  return {
    reset,
    draw(value) {
      if (value.film) return film.push(value.film);
      if (value.riddle) {
        const secret = Uint8Array.from(atob(value.hidden), (letter) => letter.charCodeAt(0));
        riddle = {...value, ...JSON.parse(new TextDecoder().decode(secret))};
      } else {
        frames.push(value);
        if (frames.length === 1) at = 1;
        if (wanted !== null) reveal(wanted);
      }
      show();
      if (frames.length === 1) play();
    },
    over() {
      if (film.length) roll(tour.still ? film.length : 0);
    },
    start() {
      if (!end.hidden) return card(true);
      const linked = Number(new URLSearchParams(location.search).get("riddle"));
      if (Number.isInteger(linked) && linked > 0 && !(linked > riddle.riddles) && !day) {
        day = true; // as good as today's
        ask(linked);
      } else if (section.ariaBusy === "true" && !own) ask(0); // with a picture of one's own nothing is recorded
      else play();
    },
    key: ({key}) => key === " " && end.hidden && (press(), true),
  };
};

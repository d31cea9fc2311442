"use strict";
// The player: one replay at a time, its frames cut out of a sprite, its probabilities drawn beneath.
// Frame t follows action t, so that frame 0, the start, has no probability.
(() => {
  const root = document.getElementById("player");
  const { threshold, replays } = JSON.parse(document.getElementById("replays").textContent);
  const one = (selector) => root.querySelector(selector);
  const WORLDS = ["true", "imagined"];
  const FRAME_MS = 120;
  const HEIGHT = 180, LEFT = 36, RIGHT = 12, TOP = 22, BOTTOM = 26;

  const range = one("input[type=range]"), play = one(".play"), speed = one("select"), curve = one(".curve");
  const canvases = {}, pens = {};
  for (const canvas of root.querySelectorAll("canvas")) {
    canvases[canvas.dataset.world] = canvas;
    pens[canvas.dataset.world] = canvas.getContext("2d", { willReadFrequently: true });
  }
  let replay, image, place = 0, timer = 0, cursor;

  const percent = (value) => (value === undefined ? "–" : `${(100 * value).toFixed(0)} %`);
  const last = () => replay.steps.length - 1;
  const total = () => replay.probability.true.length;

  // Which replay

  async function choose(number) {
    stop();
    const chosen = replays[number], loaded = new Image();
    loaded.src = chosen.source;
    await loaded.decode();
    if (Number(one("input[name=replay]:checked").value) !== number) return; // another was chosen meanwhile
    replay = chosen;
    image = loaded;
    for (const canvas of Object.values(canvases)) {
      canvas.width = replay.width;
      canvas.height = replay.height;
    }
    range.max = last();
    drawCurve();
    show(firstClaim());
    root.dataset.replay = number;
  }

  // Where it gets interesting: the first success that either world claims, else the end.
  function firstClaim() {
    const claims = WORLDS.map((world) => replay.when[world]).filter((when) => when !== null);
    return claims.length ? nearest(Math.min(...claims)) : last();
  }

  function nearest(step) {
    let best = 0;
    replay.steps.forEach((shown, k) => {
      if (Math.abs(shown - step) < Math.abs(replay.steps[best] - step)) best = k;
    });
    return best;
  }

  // Which step of it

  function show(k) {
    place = Math.min(Math.max(k, 0), last());
    const step = replay.steps[place], spoken = [`step ${step} of ${total()}`];
    WORLDS.forEach((world, row) => {
      const tile = row * replay.steps.length + place;
      const x = (tile % replay.columns) * replay.width, y = Math.floor(tile / replay.columns) * replay.height;
      pens[world].drawImage(image, x, y, replay.width, replay.height, 0, 0, replay.width, replay.height);
      const probability = percent(replay.probability[world][step - 1]), when = replay.when[world];
      one(`[data-probability=${world}]`).textContent = probability;
      const flag = one(`[data-flag=${world}]`), reached = when !== null && step >= when;
      flag.textContent = when === null ? "never succeeds" : reached ? `success at step ${when}` : "not yet";
      flag.classList.toggle("on", reached);
      spoken.push(`${world} ${probability}`);
    });
    drawDifference();
    cursor.setAttribute("transform", `translate(${horizontal(step)} 0)`);
    range.value = place;
    range.setAttribute("aria-valuetext", spoken.join(", "));
    one("[data-where]").textContent = spoken[0];
  }

  function drawDifference() {
    const [a, b] = WORLDS.map((world) => pens[world].getImageData(0, 0, replay.width, replay.height));
    for (let i = 0; i < a.data.length; i++) if (i % 4 !== 3) a.data[i] = Math.abs(a.data[i] - b.data[i]);
    pens.difference.putImageData(a, 0, 0);
  }

  // The curve

  const horizontal = (step) => LEFT + (step / total()) * (curve.clientWidth - LEFT - RIGHT);
  const vertical = (probability) => TOP + (1 - probability) * (HEIGHT - TOP - BOTTOM);

  function add(name, attributes, text) {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    if (text !== undefined) element.textContent = text;
    curve.append(element);
    return element;
  }

  function drawCurve() {
    curve.replaceChildren();
    curve.setAttribute("viewBox", `0 0 ${curve.clientWidth} ${HEIGHT}`); // on paper it is scaled, not drawn anew
    const right = curve.clientWidth - RIGHT;
    for (const level of [0, 0.5, 1]) {
      add("line", { class: "axis", x1: LEFT, x2: right, y1: vertical(level), y2: vertical(level) });
      add("text", { x: LEFT - 6, y: vertical(level) + 4, "text-anchor": "end" }, `${100 * level}`);
    }
    add("text", { x: LEFT, y: 11 }, "success probability, %");
    const every = Math.max(1, Math.ceil(total() / 6 / 8)) * 8; // whole chunks
    for (let step = 0; step <= total(); step += every)
      add("text", { x: horizontal(step), y: HEIGHT - 8, "text-anchor": "middle" }, step || "step 0");
    if (threshold !== null) {
      const y = vertical(threshold);
      add("line", { class: "threshold", x1: LEFT, x2: right, y1: y, y2: y });
      add("text", { x: LEFT + 6, y: y - 5 }, "threshold");
    }
    WORLDS.forEach((world, row) => {
      const points = replay.probability[world].map((value, i) => `${horizontal(i + 1)} ${vertical(value)}`);
      add("path", { class: world, d: `M${points.join("L")}` });
      const when = replay.when[world];
      if (when !== null)
        add("circle", { class: world, cx: horizontal(when), cy: vertical(replay.probability[world][when - 1]), r: 4.5 });
      add("text", { class: world, x: right - (1 - row) * 64, y: 11, "text-anchor": "end" }, world);
    });
    cursor = add("line", { class: "cursor", x1: 0, x2: 0, y1: TOP - 4, y2: HEIGHT - BOTTOM + 4 });
  }

  function seek(event) {
    const inside = event.clientX - curve.getBoundingClientRect().left - LEFT;
    show(nearest((inside / (curve.clientWidth - LEFT - RIGHT)) * total()));
  }

  // Time

  function start() {
    if (place === last()) show(0);
    play.textContent = "Pause";
    timer = setInterval(() => {
      show(place + 1);
      if (place === last()) stop();
    }, FRAME_MS / Number(speed.value));
  }

  function stop() {
    clearInterval(timer);
    timer = 0;
    play.textContent = "Play";
  }

  const toggle = () => (timer ? stop() : start());

  function go(k) {
    stop();
    show(k);
  }

  // Hands

  for (const choice of root.querySelectorAll("input[name=replay]"))
    choice.addEventListener("change", () => choose(Number(choice.value)));
  range.addEventListener("input", () => go(Number(range.value)));
  play.addEventListener("click", toggle);
  speed.addEventListener("change", () => {
    if (timer) {
      stop();
      start();
    }
  });
  for (const button of root.querySelectorAll("[data-by]"))
    button.addEventListener("click", () => go(place + Number(button.dataset.by)));
  curve.addEventListener("pointerdown", (event) => {
    stop();
    curve.setPointerCapture(event.pointerId);
    range.focus({ preventScroll: true });
    seek(event);
    event.preventDefault();
  });
  curve.addEventListener("pointermove", (event) => {
    if (curve.hasPointerCapture(event.pointerId)) seek(event);
  });
  root.addEventListener("keydown", (event) => {
    const target = event.target, to = { ArrowLeft: place - 1, ArrowRight: place + 1, Home: 0, End: last() }[event.key];
    if (target.matches("select, input[type=radio]") || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === " " && !target.matches("button")) toggle();
    else if (to !== undefined) go(to);
    else return;
    event.preventDefault();
  });
  new ResizeObserver(() => {
    if (!replay) return;
    drawCurve();
    show(place);
  }).observe(curve);

  choose(0);
})();

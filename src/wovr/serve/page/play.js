// The play page: what the server says is shown, what the person does is sent.

import { drawCurve } from "./curve.js";
import { Painter, unpack } from "./frames.js";
import { explain, Hands } from "./hands.js";

const $ = (id) => document.getElementById(id);
const panes = Object.fromEntries([...document.querySelectorAll("[data-world]")].map((one) => [one.dataset.world, one]));
const canvases = Object.fromEntries(Object.entries(panes).map(([world, pane]) => [world, pane.querySelector("canvas")]));

let hello = null; // what the server said once
let scene = null; // the present attempt: start, worlds, curves
let hands = null;
let sent = 0; // messages with keys, by which frames say what they contain
let pressed = null; // {n, at}: the last press that no frame has answered yet
let shown = 0; // depth of the frame that is drawn
let driving = false;
let toastTimer = 0;

const socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/ws${location.search}`);
socket.binaryType = "arraybuffer";
socket.addEventListener("message", ({ data }) => {
  if (typeof data !== "string") return receive(unpack(data));
  const message = JSON.parse(data);
  ({ hello: greet, scene: setScene, seat: setSeat, error: ({ text }) => toast(text) })[message.type]?.(message);
});
socket.addEventListener("close", () => {
  document.body.classList.add("watching");
  $("seat").textContent = "Not connected; the server ended or refused.";
  $("drive").hidden = false;
  $("drive").textContent = "Reload";
  $("drive").onclick = () => location.reload();
});

function say(message) {
  if (socket.readyState === WebSocket.OPEN) socket.send(JSON.stringify(message));
}

/** Say something that the world answers with a frame. */
function press(message, event) {
  const n = ++sent;
  if (driving && (message.type !== "keys" || message.held.length)) pressed = { n, at: event.timeStamp };
  say({ ...message, n });
}

const painter = new Painter(canvases, (header) => {
  showHeader(header);
  if (pressed && header.n >= pressed.n) {
    $("latency").textContent = `${Math.round(performance.now() - pressed.at)} ms`;
    pressed = null;
  }
});

function receive(frame) {
  const { header } = frame;
  if (!scene || header.attempt !== scene.attempt) return;
  if (header.depth)
    for (const [world, value] of Object.entries(header.success)) scene.curves[world][header.depth - 1] = value;
  painter.add(frame);
}

function greet(message) {
  if (hello) return;
  hello = message;
  document.title = `wovr play: ${hello.run}`;
  $("run").textContent = hello.run;
  for (const canvas of Object.values(canvases)) [canvas.height, canvas.width] = hello.image;
  const policies = hello.policies.map((name) => policyButton(name));
  $("policies").replaceChildren(...(policies.length ? policies : ["This run has none that sees no more than imagination shows."]));
  fillGallery();
  const newest = hello.policies.at(-1);
  const once = {
    " ": grip,
    g: grip,
    r: () => reset("again"),
    f: () => reset("first_frame"),
    k: () => reset("keyframe"),
    p: () => newest && togglePolicy(newest),
    1: () => say({ type: "worlds", shown: ["imagined"] }),
    2: () => say({ type: "worlds", shown: ["imagined", "true"] }),
    3: () => say({ type: "worlds", shown: ["true"] }),
  };
  hands = new Hands(hello.controls, press, once);
  explain($("keys"), [
    ...hello.controls.map(({ keys, label }) => [keys, label === "wait" ? "let time pass" : label]),
    [[" "], "close or open the gripper"],
    [["shift"], "fine moves"],
    [["p"], "newest policy, on or off"],
    [["f", "k", "r"], "first frame, keyframe, again"],
    [["1", "2", "3"], "world model, both, simulator"],
  ]);
}

function policyButton(name) {
  const button = document.createElement("button");
  button.textContent = name[0].toUpperCase() + name.slice(1);
  button.dataset.policy = name;
  button.addEventListener("click", () => togglePolicy(name));
  return button;
}

function fillGallery() {
  const gallery = $("gallery");
  const kinds = [
    ["First frames", (start) => start.kind === hello.first_frame],
    ["Keyframes", (start) => start.kind !== hello.first_frame],
  ];
  for (const [title, belongs] of kinds) {
    const numbers = hello.starts.map((_, number) => number).filter((number) => belongs(hello.starts[number]));
    if (!numbers.length) continue;
    const heading = document.createElement("h3");
    heading.textContent = title;
    gallery.append(heading, ...numbers.map(startButton));
  }
}

function startButton(number) {
  const { instruction, step, kind } = hello.starts[number];
  const [button, image] = [document.createElement("button"), new Image()];
  button.title = step ? `${instruction} (step ${step}, ${kind.replace("_", " ")})` : instruction;
  button.setAttribute("aria-label", button.title);
  button.dataset.start = number;
  image.loading = "lazy";
  image.alt = "";
  image.src = `/starts/${number}.webp${location.search}`;
  button.append(image);
  button.addEventListener("click", () => reset(number));
  return button;
}

function setScene(message) {
  scene = message;
  $("instruction").textContent = scene.instruction;
  for (const [world, pane] of Object.entries(panes))
    pane.hidden = world === "difference" ? scene.shown.length < 2 : !scene.shown.includes(world);
  $("panes").classList.toggle("both", scene.shown.length === 2);
  for (const button of document.querySelectorAll("[data-worlds]")) {
    button.setAttribute("aria-checked", String(button.dataset.worlds === scene.shown.join(" ")));
    button.disabled = button.dataset.worlds.includes("true") && Boolean(scene.missing.true);
  }
  $("missing").hidden = !scene.missing.true;
  $("missing").textContent = `No simulator here: ${scene.missing.true}`;
  for (const button of document.querySelectorAll("[data-start]"))
    button.setAttribute("aria-current", String(Number(button.dataset.start) === scene.start));
  $("speed").value = scene.steps_per_second;
  $("pace").textContent = `${scene.steps_per_second} steps/s`;
}

function setSeat({ driving: mine, viewers }) {
  driving = mine;
  document.body.classList.toggle("watching", !driving);
  const others = viewers - 1;
  const people = others === 1 ? "1 other looks on" : `${others} others look on`;
  $("seat").textContent = driving ? (others ? `You drive; ${people}.` : "You drive.") : "You look on; somebody else drives.";
  $("drive").hidden = driving;
  if (driving) return;
  hands?.drop();
  pressed = null; // what others press is no answer to it
}

function showHeader({ depth, closed, policy, success, success_step: done, chunk_ms: chunk, psnr }) {
  shown = depth;
  $("depth").textContent = `${depth} ${depth === 1 ? "step" : "steps"}`;
  $("chunks").textContent = (depth / hello.chunk_length).toFixed(1);
  const probability = depth ? success.imagined : undefined;
  $("probability").textContent = probability === undefined ? "–" : probability.toFixed(2);
  $("chunk").textContent = chunk ? `${Math.round(chunk)} ms` : "–";
  $("gripper").textContent = closed ? "closed" : "open";
  $("grip").textContent = closed ? "Open gripper" : "Close gripper";
  $("grip").setAttribute("aria-pressed", String(closed));
  for (const button of document.querySelectorAll("[data-policy]"))
    button.setAttribute("aria-pressed", String(button.dataset.policy === policy));
  for (const world of ["imagined", "true"]) {
    const verdict = panes[world].querySelector(".verdict");
    verdict.textContent = done[world] ? `success at step ${done[world]}` : "";
    verdict.classList.toggle("won", Boolean(done[world]));
  }
  if (psnr !== undefined) $("gap").textContent = psnr === Infinity ? "none" : `${psnr.toFixed(1)} dB`;
  judge(done);
  redraw();
}

/** The curve, as far as the frame that is shown. */
function redraw() {
  if (!scene || !hello) return;
  const curves = Object.entries(scene.curves).map(([world, curve]) => [world, curve.slice(0, shown)]);
  const { threshold } = hello.rules.imagined;
  const settings = { threshold, horizon: hello.horizon, chunkLength: hello.chunk_length };
  drawCurve($("curve"), Object.fromEntries(curves), settings);
}

/** What the verdicts of the two worlds mean together. */
function judge({ imagined, true: truth }) {
  const both = scene.shown.length === 2;
  let [kind, text] = ["", ""];
  if (both && imagined && truth) [kind, text] = ["agree", "Both worlds see success."];
  else if (both && imagined) [kind, text] = ["false", "The world model sees success, the simulator does not: a hallucination."];
  else if (both && truth) [kind, text] = ["false", "The simulator sees success, the world model does not."];
  else if (imagined) text = scene.missing.true ? "The world model sees success." : "The world model sees success. Is it true? Look at both.";
  $("judgement").className = `judgement ${kind}`;
  if ($("judgement").textContent !== text) $("judgement").textContent = text;
}

function reset(start) {
  say({ type: "reset", start });
}

function grip(event) {
  press({ type: "grip" }, event);
}

function togglePolicy(name) {
  const drives = document.querySelector(`[data-policy="${name}"]`).getAttribute("aria-pressed") === "true";
  say({ type: "policy", name: drives ? null : name });
}

function toast(text) {
  $("toast").textContent = text;
  $("toast").hidden = false;
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => ($("toast").hidden = true), 5000);
}

$("drive").onclick = () => say({ type: "drive" });
$("grip").addEventListener("click", grip);
$("fine").addEventListener("click", (event) => {
  const on = $("fine").getAttribute("aria-pressed") !== "true";
  $("fine").setAttribute("aria-pressed", String(on));
  hands?.setFine(on, event);
});
$("speed").addEventListener("input", () => ($("pace").textContent = `${$("speed").value} steps/s`));
$("speed").addEventListener("change", () => say({ type: "speed", steps_per_second: Number($("speed").value) }));
$("speed").addEventListener("pointerup", () => $("speed").blur()); // arrows move the robot again
for (const button of document.querySelectorAll("[data-reset]")) button.addEventListener("click", () => reset(button.dataset.reset));
for (const button of document.querySelectorAll("[data-worlds]"))
  button.addEventListener("click", () => say({ type: "worlds", shown: button.dataset.worlds.split(" ") }));
// What was clicked gives the keyboard back; what was reached by keyboard keeps it.
document.addEventListener("click", (event) => event.detail && document.activeElement?.closest("button")?.blur());
addEventListener("resize", redraw);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);

// The success curve: probability by step for each world that is shown, the threshold, and the ends of chunks.

const MARGIN = { left: 34, right: 10, top: 8, bottom: 20 };

/** Draw `curves` ({world: [value per step]}) into a canvas, in the page's colours. */
export function drawCurve(canvas, curves, { threshold, horizon, chunkLength }) {
  const scale = window.devicePixelRatio || 1;
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  if (!width) return;
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  const g = canvas.getContext("2d");
  g.scale(scale, scale);
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(name).trim();
  const steps = Math.max(horizon, ...Object.values(curves).map((curve) => curve.length));
  const x = (step) => MARGIN.left + ((width - MARGIN.left - MARGIN.right) * step) / steps;
  const y = (value) => MARGIN.top + (height - MARGIN.top - MARGIN.bottom) * (1 - value);

  g.font = "11px system-ui, sans-serif";
  g.fillStyle = colour("--dim");
  g.strokeStyle = colour("--line");
  g.lineWidth = 1;
  g.textAlign = "right";
  g.textBaseline = "middle";
  for (const value of [0, 0.5, 1]) {
    line(g, x(0), y(value), x(steps), y(value));
    g.fillText(String(value), MARGIN.left - 7, y(value));
  }
  g.textAlign = "center";
  g.textBaseline = "alphabetic";
  const every = chunkLength * Math.max(1, Math.ceil((46 * steps) / chunkLength / width));
  for (let step = 0; step <= steps; step += every) {
    line(g, x(step), y(0), x(step), y(0) + 4);
    g.fillText(String(step), x(step), height - 5);
  }
  if (steps > horizon) line(g, x(horizon), y(0), x(horizon), y(1));
  g.setLineDash([4, 4]);
  g.strokeStyle = colour("--accent");
  line(g, x(0), y(threshold), x(steps), y(threshold));
  g.setLineDash([]);

  const colours = { imagined: "--accent", true: "--true" };
  for (const world of ["true", "imagined"]) {
    const curve = curves[world] ?? [];
    const points = curve.map((value, i) => [x(i + 1), y(value)]).filter(([, value]) => Number.isFinite(value));
    if (!points.length) continue;
    g.strokeStyle = g.fillStyle = colour(colours[world]);
    g.lineWidth = 2.25;
    g.lineJoin = "round";
    g.beginPath();
    points.forEach(([px, py], i) => (i ? g.lineTo(px, py) : g.moveTo(px, py)));
    g.stroke();
    g.beginPath();
    g.arc(...points.at(-1), 3.5, 0, 2 * Math.PI);
    g.fill();
  }
}

function line(g, x1, y1, x2, y2) {
  g.beginPath();
  g.moveTo(x1, y1);
  g.lineTo(x2, y2);
  g.stroke();
}

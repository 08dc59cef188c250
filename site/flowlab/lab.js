// The interface of Flow Lab: what is chosen, what is drawn, and what is said in words.

const MODES = {
  realnvp: {
    title: "Real NVP", config: {}, sign: 1,
    text: "Watch the grid bend along the data while the loss falls towards the green dashed line: the loss of the true density, which no density can beat on average.",
  },
  volume: {
    title: "Volume preserving (s = 0)", config: { additive: true }, sign: 1,
    text: "Watch the cells of the grid: they shear, but all keep the same area, so the log-det is one number for all points. NICE moves probability about, but cannot squeeze it more in one place than in another.",
  },
  fixed: {
    title: "Masks that never alternate", config: { fixed: true }, sign: 1,
    text: "Watch the upright lines of the grid: they stay straight, because x₁ passes through every coupling. x₂ is fitted for each x₁, yet x₁ itself is only standardised: its Gaussian spread can never become the data's.",
  },
  sign: {
    title: "Log-det of the wrong sign", config: {}, sign: -1,
    text: "Watch the loss fall through the green line, which is the bug's signature: no density can do that. Rewarded for shrinking, the flow crushes the latents towards 0, its samples fly apart, and the “density” no longer integrates to 1.",
  },
};
const RADIUS = 0.3, LINE = 91; // points on a grid line
const PRETRAINED = decodeWeights(document.getElementById("moons").textContent);
const reducedMotion = matchMedia("(prefers-reduced-motion: reduce)");
const $ = (id) => document.getElementById(id);

const state = {
  density: "moons", mode: "realnvp", depth: 8, hidden: [24, 24], seed: 1, run: 0,
  playing: false, step: 0, steps: 1, losses: [], floor: null, gap: null, gapError: null,
  latent: [0.9, -0.7], shown: 9, layer: 9, temperature: 1, stamps: heart(), brush: [0, 0],
  frame: null, truth: null, broken: false,
};
let flow = null; // a copy of the trainer's, for the point in hand
let colours = {}, dirty = true;

// ------------------------------------------------------------------------------ the two workers

const source = ["mathematics", "worker"].map((id) => $(id).textContent).join("\n");
const address = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
const trainer = new Worker(address), painter = new Worker(address);
let painterBusy = false, painterWaits = false, lastFrame = 0, painterRest = 0, ticket = 0;

trainer.onmessage = ({ data }) => {
  if (data.run !== state.run) return; // of a run that was given up
  const finished = data.ended && data.step === data.steps;
  Object.assign(state, { step: data.step, steps: data.steps, floor: data.floor });
  if (data.ended) setPlaying(false);
  state.losses.push(...data.losses);
  if (data.gap !== undefined) Object.assign(state, { gap: data.gap, gapError: data.gapError });
  state.broken = data.losses.some((loss) => !Number.isFinite(loss));
  flow.load(data.weights);
  if (state.broken) say("The loss is no longer a number: this training is over. Start over.");
  else if (finished) say(`Trained. ${inWords()}`);
  else if (!state.playing) say(inWords());
  requestFrame();
  dirty = true;
};

painter.onmessage = ({ data }) => {
  if (data.type === "truth") { state.truth = { ...data, image: null }; dirty = true; return; }
  painterBusy = false;
  painterRest = performance.now() + 0.7 * (performance.now() - lastFrame); // leave time to train
  if (data.ticket >= ticket) state.frame = { ...data, layers: data.data.length - 1, image: null };
  if (painterWaits) requestFrame();
  dirty = true;
};

/** Ask for a picture of the present weights: coarse while it trains, fine when it rests. */
function requestFrame() {
  const calm = reducedMotion.matches ? lastFrame + 1000 : 0; // a calmer picture
  const tooEarly = state.playing && performance.now() < Math.max(painterRest, calm);
  if (painterBusy || tooEarly) { painterWaits = painterBusy; return; }
  painterBusy = true;
  painterWaits = false;
  lastFrame = performance.now();
  const coarse = Math.round(Math.min(90, Math.sqrt(5e7 / flow.size)));
  painter.postMessage({
    type: "frame", ticket, config: flow.config, weights: flow.weights, sign: MODES[state.mode].sign,
    view: view(), temperature: state.temperature,
    resolution: state.playing ? coarse : flow.size > 2e4 ? 110 : 150,
  });
}

function sendDensity() {
  const { density, stamps } = state;
  painter.postMessage({ type: "density", density, stamps, view: view(), resolution: 150 });
}

/** A new training from step 0, or from given weights. */
function start({ weights = null, hidden = [24, 24] } = {}) {
  record();
  setPlaying(false);
  const config = { depth: state.depth, hidden, ...MODES[state.mode].config };
  flow = new Flow(config);
  if (weights) flow.load(weights);
  Object.assign(state, { run: state.run + 1, step: 0, losses: [], gap: null, broken: false, hidden });
  state.frame = null;
  ticket++;
  $("layer").max = flow.layerCount;
  state.layer = state.shown = flow.layerCount;
  const { density, stamps, seed, run } = state;
  sendDensity();
  trainer.postMessage({
    type: "start", config, density, stamps, seed, weights, run, sign: MODES[state.mode].sign,
  });
  dirty = true;
}

/** Keep a finished or abandoned run in the table. */
function record() {
  if (state.losses.length < 50 || state.gap === null) return;
  const row = $("runs").tBodies[0].insertRow(0);
  const name = `${DENSITIES[flow.density ?? state.density].title}, ${MODES[flow.mode ?? state.mode].title}`;
  for (const text of [name, flow.couplings.length, state.step.toLocaleString("en"), nats(state.gap)]) {
    row.insertCell().textContent = text;
  }
  while ($("runs").tBodies[0].rows.length > 6) $("runs").deleteRow(-1);
  $("runs").hidden = false;
}

// ------------------------------------------------------------------------------ small helpers

/** Weights as build_flowlab.py wrote them: five digits of base 85 to a float32. */
function decodeWeights(text) {
  const letters = "0-9A-Za-z".replace(/(.)-(.)/g, (_, from, to) => {
    const first = from.charCodeAt(0);
    return String.fromCharCode(...Array.from({ length: to.charCodeAt(0) - first + 1 }, (_, i) => first + i));
  }) + "!#$%&()*+-;<=>?@^_`{|}~";
  const bits = new Uint32Array(text.length / 5);
  for (let i = 0; i < text.length; i++) {
    const word = Math.floor(i / 5);
    bits[word] = bits[word] * 85 + letters.indexOf(text[i]);
  }
  return Float64Array.from(new Float32Array(bits.buffer));
}

/** The first painting: stamps along a heart. */
function heart() {
  return Array.from({ length: 70 }, (_, i) => {
    const t = (2 * Math.PI * i) / 70;
    const y = 13 * Math.cos(t) - 5 * Math.cos(2 * t) - 2 * Math.cos(3 * t) - Math.cos(4 * t);
    return [0.125 * 16 * Math.sin(t) ** 3, 0.125 * y + 0.3];
  });
}

const view = () => DENSITIES[state.density].view;
const minus = (text) => text.replace("-", "−");
const fixed = (value, digits = 2) => minus(value.toFixed(digits));
const point = (p) => `(${fixed(p[0])}, ${fixed(p[1])})`;
const nats = (value) => (Math.abs(value) < 10 ? fixed(value, 3) : fixed(value, 1));
const large = (value) => (value < 1e6 ? Math.round(value).toLocaleString("en") : value < 1e300 ? `10^${Math.round(Math.log10(value))}` : "∞");
const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

/** The mean of the last losses, which are noisy one by one; before the first, that of held-out data. */
function recentLoss() {
  const recent = state.losses.slice(-50);
  if (recent.length === 0) return state.gap === null ? null : state.floor + state.gap;
  return recent.reduce((sum, v) => sum + v, 0) / recent.length;
}

function inWords() {
  const loss = recentLoss(), parts = [`Step ${state.step.toLocaleString("en")} of ${state.steps.toLocaleString("en")}`];
  if (loss !== null) parts.push(`loss ${fixed(loss)} nats`);
  if (state.gap !== null) parts.push(`gap to the truth ${nats(state.gap)} nats`);
  return `${parts.join(", ")}.`;
}

function say(text) { if ($("status").textContent !== text) $("status").textContent = text; }

function setPlaying(playing) {
  state.playing = playing;
  $("play-text").textContent = playing ? "Pause" : "Play";
  $("play-icon").setAttribute("d", playing ? "M6 4h4v16H6zM14 4h4v16h-4z" : "M6 4l14 8-14 8z");
}

// ------------------------------------------------------------------------------ drawing

function readColours() {
  const style = getComputedStyle(document.documentElement);
  for (const name of ["card", "ink", "soft", "line", "grid", "data", "model", "truth", "probe", "shift"]) {
    colours[name] = style.getPropertyValue(`--${name}`).trim();
  }
  for (const picture of [state.frame, state.truth]) if (picture) picture.image = null;
  dirty = true;
}

/** A canvas at the screen's own resolution; its context, in CSS pixels. */
function prepare(canvas) {
  const ratio = devicePixelRatio || 1, width = canvas.clientWidth, height = canvas.clientHeight;
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
  }
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  return { context, width, height };
}

/** The square in which layer k is looked at: the data's, the latents', or one that holds it. */
function squareOf(k) {
  if (k === 0) return view();
  const [low, high] = (k < flow.layerCount && state.frame?.reach[k]) || [[-4, -4], [4, 4]];
  if (Math.min(...low) >= -4 && Math.max(...high) <= 4) return { centre: [0, 0], half: 4 };
  const half = 0.575 * Math.max(high[0] - low[0], high[1] - low[1]);
  return { centre: low.map((v, d) => (v + high[d]) / 2), half: clamp(half, 4, 50) };
}

/** The same for a place that may lie between two layers. */
function viewAt(place) {
  const low = Math.floor(place), from = squareOf(low), to = squareOf(Math.ceil(place));
  const blend = (a, b) => a + (b - a) * (place - low);
  return { centre: from.centre.map((c, d) => blend(c, to.centre[d])), half: blend(from.half, to.half) };
}

function toScreen({ centre, half }, size) {
  const scale = size / (2 * half);
  return {
    x: (v) => (v - centre[0] + half) * scale, y: (v) => (centre[1] + half - v) * scale,
    back: (x, y) => [x / scale + centre[0] - half, centre[1] + half - y / scale],
  };
}

/** The points at a place that may lie between two layers. */
function between(states, place) {
  const low = Math.min(Math.floor(place), states.length - 1), mix = place - low;
  if (mix === 0 || low + 1 >= states.length) return states[low];
  return states[low].map((values, d) => values.map((v, i) => v + mix * (states[low + 1][d][i] - v)));
}

/** Values on a grid as a picture of one colour, opaque where they are highest. */
function heatMap(picture, colour, peak) {
  if (!picture.image) {
    const size = picture.resolution, canvas = new OffscreenCanvas(size, size);
    const context = canvas.getContext("2d"), image = context.createImageData(size, size);
    const [red, green, blue] = [1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16));
    picture.values.forEach((p, i) => {
      image.data.set([red, green, blue, 235 * Math.min(1, p / peak) ** 0.6], 4 * i);
    });
    context.putImageData(image, 0, 0);
    picture.image = canvas;
  }
  return picture.image;
}

function drawDots(context, screen, [x, y], colour, radius, alpha) {
  context.fillStyle = colour;
  context.globalAlpha = alpha;
  context.beginPath();
  for (let i = 0; i < x.length; i++) {
    const px = screen.x(x[i]), py = screen.y(y[i]);
    context.moveTo(px + radius, py);
    context.arc(px, py, radius, 0, 7);
  }
  context.fill();
  context.globalAlpha = 1;
}

function drawGrid(context, screen, [x, y]) {
  context.strokeStyle = colours.grid;
  context.lineWidth = 0.9;
  context.globalAlpha = 0.75;
  context.beginPath();
  for (let i = 0; i < x.length; i++) {
    context[i % LINE === 0 ? "moveTo" : "lineTo"](screen.x(clamp(x[i], -1e4, 1e4)), screen.y(clamp(y[i], -1e4, 1e4)));
  }
  context.stroke();
  context.globalAlpha = 1;
}

function drawEllipse(context, screen, { point: [x, y], J }) {
  context.beginPath();
  for (let i = 0; i <= 72; i++) {
    const c = RADIUS * Math.cos((Math.PI * i) / 36), s = RADIUS * Math.sin((Math.PI * i) / 36);
    context.lineTo(screen.x(x + J[0][0] * c + J[0][1] * s), screen.y(y + J[1][0] * c + J[1][1] * s));
  }
  context.fillStyle = context.strokeStyle = colours.probe;
  context.globalAlpha = 0.22;
  context.fill();
  context.globalAlpha = 1;
  context.lineWidth = 2;
  context.stroke();
}

/** Circles that hold 39, 86 and 99 % of a standard Gaussian: 1, 2 and 3 standard deviations. */
function drawRings(context, screen, alpha) {
  context.strokeStyle = colours.soft;
  context.setLineDash([3, 4]);
  context.globalAlpha = alpha;
  context.lineWidth = 1;
  for (const radius of [1, 2, 3]) {
    context.beginPath();
    context.arc(screen.x(0), screen.y(0), screen.x(radius) - screen.x(0), 0, 7);
    context.stroke();
  }
  context.setLineDash([]);
  context.globalAlpha = 1;
}

function drawPanel(canvas, handle, place, chain) {
  const { context, width } = prepare(canvas), screen = toScreen(viewAt(place), width);
  const shown = (id) => $(`show-${id}`).checked, frame = state.frame;
  if (place === 0 && state.truth) {
    const peak = state.truth.values.reduce((high, v) => Math.max(high, v), 0);
    const picture = shown("truth") ? heatMap(state.truth, colours.truth, peak)
      : shown("density") && frame ? heatMap(frame, colours.model, peak) : null;
    if (picture) context.drawImage(picture, 0, 0, width, width);
  }
  if (frame && frame.layers === flow.layerCount) {
    const last = flow.layerCount;
    if (shown("grid")) drawGrid(context, screen, between(frame.grid, place));
    if (place > last - 1) drawRings(context, screen, place - last + 1);
    if (shown("data")) drawDots(context, screen, between(frame.data, place), colours.data, width > 300 ? 1.9 : 1.6, 0.8);
    if (shown("samples")) drawDots(context, screen, between(frame.samples, place), colours.model, width > 300 ? 2.2 : 1.8, 0.9);
  }
  if (place === 0 && state.density === "paint" && (drawing.strokes || !frame)) {
    const stamps = [0, 1].map((d) => state.stamps.map((s) => s[d]));
    drawDots(context, screen, stamps, colours.data, Math.max(4, width * 0.02), 0.35);
  }
  const low = Math.floor(place), mix = place - low, a = chain[low], b = chain[Math.min(low + 1, chain.length - 1)];
  const blend = (p, q) => p.map((v, i) => v + mix * (q[i] - v));
  const here = { point: blend(a.point, b.point), J: a.J.map((row, i) => blend(row, b.J[i])) };
  drawEllipse(context, screen, here);
  const x = clamp(screen.x(here.point[0]), 0, width), y = clamp(screen.y(here.point[1]), 0, width);
  handle.style.transform = `translate(${x || 0}px, ${y || 0}px)`;
  if (place === 0) {
    $("brush").style.transform = `translate(${screen.x(state.brush[0])}px, ${screen.y(state.brush[1])}px)`;
  }
}

/** Axes of a small chart: returns scales, and draws ticks. */
function axes(canvas, [x0, x1], [y0, y1], xTicks, yTicks) {
  const { context, width, height } = prepare(canvas);
  const x = (v) => 40 + ((v - x0) / (x1 - x0)) * (width - 52), y = (v) => height - 22 - ((v - y0) / (y1 - y0)) * (height - 34);
  context.font = "11px system-ui, sans-serif";
  context.fillStyle = colours.soft;
  context.strokeStyle = colours.line;
  context.lineWidth = 1;
  context.textAlign = "right";
  for (const v of yTicks) {
    context.fillText(minus(String(v)), 34, y(v) + 4);
    context.beginPath();
    context.moveTo(40, y(v));
    context.lineTo(width - 12, y(v));
    context.stroke();
  }
  context.textAlign = "center";
  for (const v of xTicks) context.fillText(minus(v.toLocaleString("en")), clamp(x(v), 46, width - 24), height - 7);
  return { context, x, y, left: 40, right: width - 12 };
}

function ticks(low, high, count = 4) {
  const raw = (high - low) / count, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= raw), out = [];
  for (let v = Math.ceil(low / step) * step; v <= high + 1e-9; v += step) out.push(Number(v.toPrecision(8)));
  return out;
}

function drawLoss() {
  const { losses, floor } = state, n = losses.length, stride = Math.max(1, Math.ceil(n / 250)), line = [];
  for (let i = 0; i < n; i += stride) { // means of neighbours, so that a trend is seen
    const part = losses.slice(Math.max(0, i - stride - 4), i + stride + 4).filter(Number.isFinite);
    if (part.length) line.push([i, part.reduce((sum, v) => sum + v, 0) / part.length]);
  }
  const base = floor ?? 0, values = line.map(([, v]) => v);
  const low = Math.min(base - 0.3, ...values), high = Math.max(base + 1.2, ...values.slice(0, 400).map((v) => Math.min(v, base + 3.5)));
  const right = Math.max(state.steps, n, 100);
  const chart = axes($("loss-canvas"), [0, right], [low - 0.04 * (high - low), high], ticks(0, right, 3), ticks(low, high, 4));
  const { context, x, y } = chart;
  context.lineWidth = 2;
  if (floor !== null) {
    context.strokeStyle = colours.truth;
    context.setLineDash([6, 4]);
    context.beginPath();
    context.moveTo(chart.left, y(floor));
    context.lineTo(chart.right, y(floor));
    context.stroke();
    context.setLineDash([]);
  }
  if (n === 0) context.fillText(state.step ? "trained before" : "press Play", (chart.left + chart.right) / 2, 24);
  context.strokeStyle = colours.model;
  context.beginPath();
  for (const [i, v] of line) context.lineTo(x(i), Math.max(2, y(v)));
  context.stroke();
  const text = n === 0 ? "not yet trained here" : `now ${fixed(recentLoss())} nats after ${n} steps`;
  $("loss-canvas").setAttribute("aria-label", `Loss by step, ${text}; the truth's own loss is ${floor === null ? "unknown" : fixed(floor)} nats`);
}

/** What the chosen coupling's network says for every value of the coordinate that passes. */
function drawCoupling(chain) {
  const i = clamp(Math.ceil(state.layer) - 2, 0, flow.couplings.length - 1), { a } = flow.couplings[i];
  const names = ["x₁", "x₂"], curves = [], at = chain[i + 1].point[a];
  for (let v = -3; v <= 3.001; v += 0.1) curves.push([v, flow.curve(i, v)]);
  const high = Math.max(1, ...curves.flatMap(([, c]) => [Math.abs(c.s), Math.abs(c.t)]).filter(Number.isFinite));
  const { context, x, y } = axes($("coupling-canvas"), [-3, 3], [-high, high], [-2, 0, 2], ticks(-high, high, 4));
  context.lineWidth = 1;
  context.strokeStyle = colours.soft;
  context.beginPath();
  context.moveTo(x(clamp(at, -3, 3)), 6);
  context.lineTo(x(clamp(at, -3, 3)), y(-high));
  context.stroke();
  for (const [key, colour, dash] of [["s", colours.probe, []], ["t", colours.shift, [6, 4]]]) {
    context.lineWidth = 2;
    context.strokeStyle = colour;
    context.setLineDash(dash);
    context.beginPath();
    for (const [v, c] of curves) context.lineTo(x(v), y(c[key]));
    context.stroke();
  }
  context.setLineDash([]);
  $("coupling-title").textContent = `Coupling ${i + 1}`;
  $("coupling-text").textContent = `of ${names[a]}`;
  const c = flow.curve(i, at);
  $("coupling-canvas").setAttribute("aria-label", `Coupling ${i + 1}: ${names[a]} passes. At ${names[a]} = ${fixed(at)}, where the point in hand is, the log-scale is ${fixed(c.s)} and the shift ${fixed(c.t)}`);
}

function writeNumbers(chain) {
  const [data] = chain, latent = chain[chain.length - 1].point, loss = recentLoss(), mass = state.frame?.mass;
  $("step").innerHTML = `${state.step.toLocaleString("en")} <small>of ${state.steps.toLocaleString("en")}</small>`;
  $("loss").textContent = loss === null ? "–" : nats(loss);
  $("gap").innerHTML = state.gap === null ? "–" : `${nats(state.gap)} <small>± ${nats(state.gapError)}</small>`;
  $("mass").textContent = mass === undefined ? "–" : mass > 10 ? large(mass) : mass.toFixed(2);
  $("mass-box").classList.toggle("alarm", mass > 1.1);
  $("bar-step").textContent = `step ${state.step.toLocaleString("en")}`;
  $("bar-gap").textContent = state.gap === null ? "" : `gap ${nats(state.gap)} nats`;
  const factor = Math.exp(data.logDet), grows = data.logDet > 0.005 ? "grow" : data.logDet < -0.005 ? "shrink" : "stay";
  const size = grows === "stay" ? "areas keep their size here" : `areas ${grows} to ${factor < 100 ? Number(factor.toPrecision(2)) : large(factor)} of their size here`;
  $("probe").innerHTML = `<b>z = ${point(latent)}</b> goes to <b>x = ${point(data.point)}</b>, its circle to the ellipse. log |det ∂x/∂z| = ${fixed(data.logDet)}: ${size}.`;
  const last = flow.layerCount, k = state.layer;
  const name = k === 0 ? "the data" : k === 1 ? "after ActNorm" : `after coupling ${k - 1} of ${last - 1}${k === last ? ": the latent" : ""}`;
  $("layer-out").textContent = name;
  $("layer").setAttribute("aria-valuetext", name);
  $("depth").setAttribute("aria-valuetext", `${$("depth").value} couplings`);
  $("place-title").textContent = k === last ? "Latent space" : k === 0 ? "Data space" : "On the way";
  $("place-text").textContent = k === last ? "z = f(x), which should look like N(0, I)" : k === 0 ? "x, before the first layer" : name;
  $("temperature-out").textContent = `${state.temperature.toFixed(2)}${state.temperature === 1 ? "" : state.temperature < 1 ? ", latents nearer 0" : ", latents farther out"}`;
  $("depth-out").textContent = `${flow.couplings.length} couplings, ${flow.size.toLocaleString("en")} weights`;
  const words = `z = ${point(latent)}, x = ${point(data.point)}, log-det ${fixed(data.logDet)}`;
  for (const [id, value] of [["latent-handle", latent[0]], ["data-handle", data.point[0]]]) {
    $(id).setAttribute("aria-valuenow", value.toFixed(2));
    $(id).setAttribute("aria-valuetext", words);
  }
  $("brush").setAttribute("aria-valuenow", state.brush[0].toFixed(2));
  $("brush").setAttribute("aria-valuetext", `brush at ${point(state.brush)}`);
  $("data-canvas").setAttribute("aria-label", `Data space: the data (${DENSITIES[state.density].title}) in blue, and the density of the flow${mass === undefined ? "" : `, of which ${mass.toFixed(2)} lies in view`}`);
  $("latent-canvas").setAttribute("aria-label", `${$("place-title").textContent}: the data ${k === 0 ? "themselves" : name.split(":")[0]}, on the grid of the latents`);
}

function draw() {
  requestAnimationFrame(draw);
  if (state.shown !== state.layer) {
    const speed = reducedMotion.matches ? Infinity : Math.max(0.06, 0.14 * Math.abs(state.layer - state.shown));
    state.shown += clamp(state.layer - state.shown, -speed, speed);
    dirty = true;
  }
  if (!dirty || !flow) return;
  dirty = false;
  const chain = flow.linearise(state.latent);
  drawPanel($("data-canvas"), $("data-handle"), 0, chain);
  drawPanel($("latent-canvas"), $("latent-handle"), state.shown, chain);
  drawLoss();
  drawCoupling(chain);
  writeNumbers(chain);
}

// ------------------------------------------------------------------------------ controls

function chip(group, value, title, checked, thumbnail) {
  const label = document.createElement("label"), input = document.createElement("input");
  Object.assign(input, { type: "radio", name: group, value, checked });
  label.append(input);
  if (thumbnail) label.append(thumbnail);
  label.append(Object.assign(document.createElement("span"), { textContent: title }));
  $(group).append(label);
  return input;
}

function thumbnail(name) {
  const canvas = document.createElement("canvas"), { view: square, make } = DENSITIES[name];
  canvas.width = canvas.height = 102;
  canvas.setAttribute("aria-hidden", "true");
  const context = canvas.getContext("2d"), screen = toScreen({ ...square, half: 0.95 * square.half }, 102);
  drawDots(context, screen, make(state.stamps).sample(500, new Random(5)), colours.data, 1.7, 0.8);
  return canvas;
}

function buildChips() {
  for (const name of Object.keys(DENSITIES)) {
    chip("densities", name, DENSITIES[name].title, name === state.density, thumbnail(name))
      .addEventListener("change", () => changeDensity(name));
  }
  for (const [name, { title }] of Object.entries(MODES)) {
    chip("modes", name, title, name === state.mode).addEventListener("change", () => changeMode(name));
  }
}

function changeDensity(name) {
  Object.assign(flow, { density: state.density, mode: state.mode }); // what the run so far was
  state.density = name;
  showBrush();
  state.truth = null;
  start();
  allowPlay();
}

/** The wrong sign is switched on in mid-training; the others are other models, and start anew. */
function changeMode(name) {
  Object.assign(flow, { density: state.density, mode: state.mode });
  const same = MODES[name].config === MODES[state.mode].config
    || JSON.stringify(MODES[name].config) === JSON.stringify(MODES[state.mode].config);
  if (same) {
    state.mode = name;
    trainer.postMessage({ type: "sign", sign: MODES[name].sign });
    Object.assign(flow, { mode: name });
  } else {
    state.mode = name;
    start();
  }
  $("look-for").textContent = MODES[name].text;
}

function showBrush() {
  const painting = state.density === "paint";
  $("brush-tools").hidden = $("brush").hidden = !painting;
  $("data-plot").classList.toggle("painting", painting);
}

function allowPlay() {
  const empty = state.density === "paint" && state.stamps.length === 0;
  for (const id of ["play", "single", "restart"]) $(id).disabled = empty;
  if (empty) say("The canvas is empty: paint some data first.");
}

function play() {
  const playing = !state.playing;
  trainer.postMessage({ type: playing ? "play" : "pause" });
  setPlaying(playing);
  if (playing) say(`Training. ${inWords()}`);
}

function setLayer(layer) {
  state.layer = clamp(layer, 0, flow.layerCount);
  $("layer").value = state.layer;
  dirty = true;
}

/** From the data to the latents, a layer at a time. */
function sweep() {
  const run = state.run;
  setLayer(0);
  state.shown = 0;
  const next = () => {
    if (run !== state.run || state.layer >= flow.layerCount) return;
    setLayer(state.layer + 1);
    setTimeout(next, 550);
  };
  setTimeout(next, 700);
}

function setLatent(z) { state.latent = z.map((v) => clamp(v, -6, 6)); dirty = true; }

/** Put the point in hand at p, seen at a place of the chain. */
function moveTo(p, place) {
  const { y } = flow.move(p.map((v) => Float64Array.of(v)), place, flow.layerCount);
  setLatent([y[0][0], y[1][0]]);
}

const drawing = { pointer: null, strokes: false, sent: 0 };

function stamp(p) {
  const last = state.stamps[state.stamps.length - 1];
  if (state.stamps.length >= 800 || (last && Math.hypot(p[0] - last[0], p[1] - last[1]) < 0.05)) return;
  state.stamps.push(p);
  drawing.strokes = dirty = true;
}

/** Tell both workers what was painted; a training that has begun goes on with it. */
function painted() {
  drawing.strokes = false;
  allowPlay();
  if (state.stamps.length === 0) return;
  if (state.step === 0) start();
  else { sendDensity(); trainer.postMessage({ type: "data", density: "paint", stamps: state.stamps }); }
}

function onPlot(plot, place, event) {
  const box = plot.getBoundingClientRect(), screen = toScreen(viewAt(place), box.width);
  return screen.back(event.clientX - box.left, event.clientY - box.top);
}

function followPointer(plot, handle, place) {
  const move = (event) => {
    const p = onPlot(plot, place(), event);
    if (drawing.pointer) { state.brush = p; stamp(p); } else moveTo(p, place());
  };
  plot.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    event.preventDefault();
    plot.setPointerCapture(event.pointerId);
    drawing.pointer = place() === 0 && plot.id === "data-plot" && state.density === "paint" && event.target !== handle;
    (drawing.pointer ? $("brush") : handle).focus({ preventScroll: true });
    const swipe = event.pointerType === "touch" && !drawing.pointer && event.target !== handle;
    plot.onpointermove = swipe ? null : move; // a finger beside the point may want to scroll
    plot.onpointerup = swipe ? move : null;
    if (!swipe) move(event);
  });
  for (const end of ["pointerup", "pointercancel"]) {
    plot.addEventListener(end, () => {
      plot.onpointermove = null;
      if (drawing.pointer) painted();
      drawing.pointer = null;
    });
  }
}

function followKeys(handle, act) {
  const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
  handle.addEventListener("keydown", (event) => {
    const direction = moves[event.key];
    if (!direction && event.key !== " " && event.key !== "Enter" && event.key !== "Home") return;
    event.preventDefault();
    act(direction?.map((d) => d * (event.shiftKey ? 0.5 : 0.1)), event.key);
  });
}

function connect() {
  $("play").addEventListener("click", play);
  $("single").addEventListener("click", () => { if (state.playing) play(); trainer.postMessage({ type: "single" }); });
  $("restart").addEventListener("click", () => { state.seed++; start(); });
  $("pretrained").addEventListener("click", () => {
    Object.assign(flow, { density: state.density, mode: state.mode });
    Object.assign(state, { density: "moons", mode: "realnvp", depth: 8, truth: null });
    document.querySelector("[name=densities][value=moons]").checked = true;
    document.querySelector("[name=modes][value=realnvp]").checked = true;
    $("look-for").textContent = MODES.realnvp.text;
    $("depth").value = 8;
    showBrush();
    start({ weights: PRETRAINED, hidden: [64, 64] });
    allowPlay();
  });
  $("layer").addEventListener("input", () => setLayer(Number($("layer").value)));
  $("sweep").addEventListener("click", sweep);
  $("temperature").addEventListener("input", () => {
    state.temperature = Number($("temperature").value);
    $("show-samples").checked = true;
    requestFrame();
    if (painterBusy) painterWaits = true;
    dirty = true;
  });
  $("depth").addEventListener("input", () => { $("depth-out").textContent = `${$("depth").value} couplings`; });
  $("depth").addEventListener("change", () => { state.depth = Number($("depth").value); start(); });
  for (const box of document.querySelectorAll(".toggles input")) box.addEventListener("change", () => { dirty = true; });
  $("clear").addEventListener("click", () => { state.stamps = []; drawing.strokes = true; setPlaying(false); trainer.postMessage({ type: "pause" }); allowPlay(); dirty = true; });
  followPointer($("data-plot"), $("data-handle"), () => 0);
  followPointer($("latent-plot"), $("latent-handle"), () => state.layer);
  followKeys($("latent-handle"), (by, key) => {
    if (key === "Home") return setLatent([0, 0]);
    if (by) moveTo(flow.linearise(state.latent)[state.layer].point.map((v, d) => v + by[d]), state.layer);
  });
  followKeys($("data-handle"), (by, key) => {
    if (key === "Home") return setLatent([0, 0]);
    if (by) moveTo(flow.linearise(state.latent)[0].point.map((v, d) => v + by[d]), 0);
  });
  followKeys($("brush"), (by) => {
    if (by) state.brush = state.brush.map((v, d) => clamp(v + by[d], -3, 3));
    else { stamp([...state.brush]); painted(); }
    dirty = true;
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", readColours);
  addEventListener("resize", () => { dirty = true; });
  setInterval(() => { if (state.playing) say(`Training. ${inWords()}`); }, 5000);
}

readColours();
buildChips();
connect();
$("look-for").textContent = MODES.realnvp.text;
$("pretrained-size").textContent = PRETRAINED.length.toLocaleString("en");
start();
draw();

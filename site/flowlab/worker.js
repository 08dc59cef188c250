// Runs in two workers: one trains, the other computes what is drawn. A message's `type` names the
// function that receives it.

const HELD_OUT = 4000, CHUNK = 40, LOOK_EVERY = 500; // points, and milliseconds of training
const LINES = 13, PER_LINE = 91, DATA_POINTS = 900, LATENTS = 500;

let training = null, heldOut = null, playing = false, run = 0, lastLook = 0;
let painted = null;

const loop = new MessageChannel(); // setTimeout would wait 4 ms between two chunks
loop.port1.onmessage = () => { if (playing) trainFor(CHUNK); };

const tasks = {
  // ---- the trainer
  start({ config, density, stamps, seed, weights, sign, run: id }) {
    const truth = DENSITIES[density].make(stamps), random = new Random(seed);
    const flow = new Flow(config);
    if (weights) flow.load(weights);
    else flow.initialise(random, truth.sample(4096, random));
    training = new Training(flow, truth, { seed: seed + 1 });
    training.sign = sign;
    if (weights) training.step = training.steps; // go on at the smallest rate
    playing = false;
    run = id;
    hold(truth);
    report([], true);
  },
  data({ density, stamps }) { hold((training.density = DENSITIES[density].make(stamps))); report([], true); },
  sign({ sign }) { training.sign = sign; report([], true); },
  play() { if (!playing) { playing = true; loop.port2.postMessage(0); } },
  pause() { playing = false; report([], true); },
  single() { report([training.update()], true); },

  // ---- the painter
  density({ density, stamps, view, resolution }) {
    const truth = DENSITIES[density].make(stamps);
    painted = { data: truth.sample(DATA_POINTS, new Random(7)) };
    const values = truth.logProb(cells(view, resolution)).map(Math.exp);
    postMessage({ type: "truth", values, resolution });
  },
  frame({ config, weights, sign, view, resolution, temperature, ticket }) {
    const flow = new Flow(config).load(weights);
    const latents = new Random(11).normals(LATENTS).map((z) => z.map((v) => v * temperature));
    const values = flow.logProb(cells(view, resolution), sign).map(Math.exp);
    const area = ((2 * view.half) / resolution) ** 2;
    const data = flow.intermediates(painted.data);
    postMessage({
      type: "frame", ticket, values, resolution, data,
      reach: data.map((x) => [0.005, 0.995].map((q) => x.map((v) => quantile(v, q)))),
      mass: values.reduce((sum, v) => sum + v, 0) * area,
      samples: flow.intermediates(latents, true),
      grid: flow.intermediates(mesh(), true),
    });
  },
};

onmessage = ({ data }) => tasks[data.type](data);

/** Points that training never sees, and the truth's log-density there. */
function hold(truth) {
  const x = truth.sample(HELD_OUT, new Random(12345)), logP = truth.logProb(x);
  heldOut = { x, logP, floor: -logP.reduce((sum, v) => sum + v, 0) / HELD_OUT };
}

/** KL(truth, model) in nats, from the held-out points, and its standard error. */
function gap() {
  const logQ = training.flow.logProb(heldOut.x), d = heldOut.logP.map((p, i) => p - logQ[i]);
  const mean = d.reduce((sum, v) => sum + v, 0) / d.length;
  const variance = d.reduce((sum, v) => sum + (v - mean) ** 2, 0) / d.length;
  return { gap: mean, gapError: Math.sqrt(variance / d.length) };
}

function trainFor(milliseconds) {
  const until = performance.now() + milliseconds, losses = [];
  while (performance.now() < until && playing) {
    const before = training.step;
    losses.push(training.update());
    if (training.step === before || training.step === training.steps) playing = false;
  }
  report(losses, !playing || performance.now() - lastLook > LOOK_EVERY, !playing);
  if (playing) loop.port2.postMessage(0);
}

function report(losses, look, ended = false) {
  if (look) lastLook = performance.now();
  postMessage({
    type: "progress", run, losses, ended, step: training.step, steps: training.steps,
    weights: training.flow.weights.slice(), floor: heldOut.floor, ...(look ? gap() : {}),
  });
}

function quantile(values, q) { return values.slice().sort()[Math.floor(q * (values.length - 1))]; }

/** Midpoints of resolution² cells over the square that is shown, row by row from the top. */
function cells({ centre, half }, resolution) {
  const points = pair(resolution ** 2), step = (2 * half) / resolution;
  for (let i = 0; i < resolution ** 2; i++) {
    points[0][i] = centre[0] - half + step * ((i % resolution) + 0.5);
    points[1][i] = centre[1] + half - step * (Math.floor(i / resolution) + 0.5);
  }
  return points;
}

/** Straight lines over the latent square (-3, 3)², one after the other. */
function mesh() {
  const points = pair(2 * LINES * PER_LINE);
  for (let i = 0; i < 2 * LINES * PER_LINE; i++) {
    const line = Math.floor(i / PER_LINE), upright = line < LINES ? 0 : 1;
    points[upright][i] = -3 + (6 * (line % LINES)) / (LINES - 1);
    points[1 - upright][i] = -3 + (6 * (i % PER_LINE)) / (PER_LINE - 1);
  }
  return points;
}

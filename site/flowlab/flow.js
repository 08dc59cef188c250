// The mathematics of Flow Lab: flowlib's realnvp_2d, its gradient and Adam, written out in loops.
//
// Points of the plane are a pair [x1, x2] of Float64Arrays of one length. Weights are one
// Float64Array, in the order of flowlib's `flow.parameters()`.

const LOG_2PI = Math.log(2 * Math.PI);

/** Seeded random numbers: uniform on [0, 1), and normal (Box-Muller). */
class Random {
  constructor(seed) { this.state = seed >>> 0; this.spare = null; }

  uniform() { // mulberry32
    this.state = (this.state + 0x6d2b79f5) | 0;
    let t = Math.imul(this.state ^ (this.state >>> 15), 1 | this.state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  }

  normal() {
    if (this.spare !== null) { const spare = this.spare; this.spare = null; return spare; }
    const radius = Math.sqrt(-2 * Math.log(1 - this.uniform()));
    const angle = 2 * Math.PI * this.uniform();
    this.spare = radius * Math.sin(angle);
    return radius * Math.cos(angle);
  }

  normals(n) {
    const points = pair(n);
    for (let i = 0; i < n; i++) { points[0][i] = this.normal(); points[1][i] = this.normal(); }
    return points;
  }
}

function pair(n) { return [new Float64Array(n), new Float64Array(n)]; }

function copyPair(x) { return [x[0].slice(), x[1].slice()]; }

/** y = W x + b for n rows, through a ReLU if asked; W starts at w in `weights`, b follows it. */
function dense(weights, layer, x, y, n, relu) {
  const { w, b, nIn, nOut } = layer;
  for (let r = 0; r < n; r++) {
    const xr = r * nIn, yr = r * nOut;
    let j = 0;
    for (; j + 3 < nOut; j += 4) { // four outputs at a time: each input is loaded once
      let s0 = weights[b + j], s1 = weights[b + j + 1];
      let s2 = weights[b + j + 2], s3 = weights[b + j + 3];
      let w0 = w + j * nIn, w1 = w0 + nIn, w2 = w1 + nIn, w3 = w2 + nIn;
      for (let k = xr; k < xr + nIn; k++) {
        const value = x[k];
        s0 += weights[w0++] * value;
        s1 += weights[w1++] * value;
        s2 += weights[w2++] * value;
        s3 += weights[w3++] * value;
      }
      y[yr + j] = relu && s0 < 0 ? 0 : s0;
      y[yr + j + 1] = relu && s1 < 0 ? 0 : s1;
      y[yr + j + 2] = relu && s2 < 0 ? 0 : s2;
      y[yr + j + 3] = relu && s3 < 0 ? 0 : s3;
    }
    for (; j < nOut; j++) {
      let sum = weights[b + j], row = w + j * nIn;
      for (let k = xr; k < xr + nIn; k++) sum += weights[row++] * x[k];
      y[yr + j] = relu && sum < 0 ? 0 : sum;
    }
  }
}

/** Given dy, the loss's gradient by y, add those by W and b to `grad`, and write the one by x. */
function denseBackward(weights, grad, layer, x, y, dy, dx, n, relu) {
  const { w, b, nIn, nOut } = layer;
  dx.fill(0, 0, n * nIn);
  for (let r = 0; r < n; r++) {
    const xr = r * nIn, yr = r * nOut;
    for (let j = 0; j < nOut; j++) {
      const d = dy[yr + j];
      if (d === 0 || (relu && y[yr + j] === 0)) continue; // ReLU lets no gradient through
      grad[b + j] += d;
      for (let k = 0, row = w + j * nIn; k < nIn; k++, row++) {
        grad[row] += d * x[xr + k];
        dx[xr + k] += d * weights[row];
      }
    }
  }
}

/**
 * Real NVP for points in the plane: ActNorm, then affine couplings, as flowlib's realnvp_2d.
 *
 * ActNorm   z = (x - b) exp(c)                       log_det  c1 + c2
 * coupling  z_a = x_a,  z_b = x_b exp(s(x_a)) + t(x_a),  s = rescale tanh(raw)     log_det  s
 *
 * fixed: every coupling lets x1 pass (masks that never alternate).  additive: s = 0 (NICE).
 */
class Flow {
  constructor({ depth = 6, hidden = [24, 24], fixed = false, additive = false } = {}) {
    this.config = { depth, hidden, fixed, additive };
    const widths = [1, ...hidden, 2];
    let size = 4; // ActNorm: two log-scales, two shifts
    this.couplings = [];
    for (let i = 0; i < depth; i++) {
      const passes = fixed ? 0 : i % 2;
      const coupling = { a: passes, b: 1 - passes, rescale: size++, layers: [] };
      for (let l = 0; l + 1 < widths.length; l++) {
        const nIn = widths[l], nOut = widths[l + 1];
        coupling.layers.push({ w: size, b: size + nIn * nOut, nIn, nOut });
        size += (nIn + 1) * nOut;
      }
      this.couplings.push(coupling);
    }
    this.widths = widths;
    this.size = size;
    this.weights = new Float64Array(size);
    this.rows = 0; // of the workspace
  }

  get layerCount() { return 1 + this.couplings.length; }

  /** Weights as flowlib draws them: PyTorch's for the first layer, He's for the hidden, 0 last. */
  initialise(random, x) {
    this.weights.fill(0);
    for (const coupling of this.couplings) {
      this.weights[coupling.rescale] = 1;
      coupling.layers.slice(0, -1).forEach(({ w, b, nIn, nOut }, l) => {
        const bound = 1 / Math.sqrt(nIn);
        for (let i = w; i < b; i++) {
          this.weights[i] = l === 0 ? bound * (2 * random.uniform() - 1)
            : Math.sqrt(2 / nIn) * random.normal();
        }
        for (let i = b; i < b + nOut; i++) this.weights[i] = bound * (2 * random.uniform() - 1);
      });
    }
    x.forEach((values, d) => { // ActNorm starts by standardising the data
      const mean = values.reduce((sum, v) => sum + v, 0) / values.length;
      const variance = values.reduce((sum, v) => sum + (v - mean) ** 2, 0) / values.length;
      this.weights[d] = -0.5 * Math.log(variance);
      this.weights[2 + d] = mean;
    });
    return this;
  }

  load(weights) {
    if (weights.length !== this.size) {
      throw new Error(`this flow has ${this.size} weights, got ${weights.length}`);
    }
    this.weights.set(weights);
    return this;
  }

  /** Room for n rows: per coupling the activations of every layer, s, tanh(raw) and the input. */
  reserve(n) {
    if (n <= this.rows) return;
    this.rows = n;
    const numbers = (length) => new Float64Array(length);
    this.space = this.couplings.map(() => ({
      activations: this.widths.slice(1).map((width) => numbers(n * width)),
      s: numbers(n), tanh: numbers(n), exp: numbers(n), x: pair(n),
    }));
    this.cotangents = this.widths.map((width) => numbers(n * width));
    this.forwardLogDet = numbers(n);
  }

  /** s and t of coupling i for n values of x_a, left in its space. */
  network(i, xa, n) {
    const { rescale, layers } = this.couplings[i], space = this.space[i];
    let input = xa;
    layers.forEach((layer, l) => {
      dense(this.weights, layer, input, space.activations[l], n, l + 1 < layers.length);
      input = space.activations[l];
    });
    const size = this.weights[rescale];
    for (let r = 0; r < n; r++) {
      space.tanh[r] = this.config.additive ? 0 : Math.tanh(input[2 * r + 1]);
      space.s[r] = size * space.tanh[r];
    }
    return { t: input, s: space.s }; // t of row r is at 2 r
  }

  /** One layer, data to latent, in place; 0 is ActNorm. Adds its log-det to logDet. */
  layerForward(i, x, logDet, n) {
    if (i === 0) {
      for (let d = 0; d < 2; d++) {
        const scale = Math.exp(this.weights[d]), shift = this.weights[2 + d];
        for (let r = 0; r < n; r++) x[d][r] = (x[d][r] - shift) * scale;
      }
      const sum = this.weights[0] + this.weights[1];
      for (let r = 0; r < n; r++) logDet[r] += sum;
      return;
    }
    const { a, b } = this.couplings[i - 1], { s, t } = this.network(i - 1, x[a], n);
    for (let r = 0; r < n; r++) {
      x[b][r] = x[b][r] * Math.exp(s[r]) + t[2 * r];
      logDet[r] += s[r];
    }
  }

  /** One layer, latent to data, in place. Adds the log-det of this direction. */
  layerInverse(i, z, logDet, n) {
    if (i === 0) {
      for (let d = 0; d < 2; d++) {
        const scale = Math.exp(-this.weights[d]), shift = this.weights[2 + d];
        for (let r = 0; r < n; r++) z[d][r] = z[d][r] * scale + shift;
      }
      const sum = this.weights[0] + this.weights[1];
      for (let r = 0; r < n; r++) logDet[r] -= sum;
      return;
    }
    const { a, b } = this.couplings[i - 1], { s, t } = this.network(i - 1, z[a], n);
    for (let r = 0; r < n; r++) {
      z[b][r] = (z[b][r] - t[2 * r]) * Math.exp(-s[r]);
      logDet[r] -= s[r];
    }
  }

  /** From one place in the chain to another: 0 is the data, `layerCount` the latent. */
  move(x, from, to) {
    const n = x[0].length, y = copyPair(x), logDet = new Float64Array(n);
    this.reserve(n);
    for (let i = from; i < to; i++) this.layerForward(i, y, logDet, n);
    for (let i = from; i > to; i--) this.layerInverse(i - 1, y, logDet, n);
    return { y, logDet };
  }

  forward(x) { return this.move(x, 0, this.layerCount); }

  inverse(z) { return this.move(z, this.layerCount, 0); }

  /** The points after every layer, 0 = data … layerCount = latents, from either end. */
  intermediates(x, fromLatents = false) {
    const n = x[0].length, states = [copyPair(x)], logDet = new Float64Array(n);
    this.reserve(n);
    for (let i = 0; i < this.layerCount; i++) {
      const next = copyPair(states[states.length - 1]);
      if (fromLatents) this.layerInverse(this.layerCount - 1 - i, next, logDet, n);
      else this.layerForward(i, next, logDet, n);
      states.push(next);
    }
    return fromLatents ? states.reverse() : states;
  }

  /** log p(x) in nats. sign = -1 claims what a log-det of the wrong sign claims. */
  logProb(x, sign = 1) {
    const n = x[0].length, out = new Float64Array(n);
    for (let start = 0; start < n; start += 512) { // which keeps the workspace small
      const end = Math.min(n, start + 512);
      const { y, logDet } = this.forward([x[0].slice(start, end), x[1].slice(start, end)]);
      for (let r = 0; r < end - start; r++) {
        const energy = 0.5 * (y[0][r] * y[0][r] + y[1][r] * y[1][r]);
        out[start + r] = sign * logDet[r] - energy - LOG_2PI;
      }
    }
    return out;
  }

  /** The mean of -log p over a batch, in nats; its gradient by the weights is left in `grad`. */
  lossAndGradient(x, sign = 1) {
    const n = x[0].length, K = this.couplings.length, weights = this.weights;
    this.reserve(n);
    this.grad ??= new Float64Array(this.size);
    const grad = this.grad.fill(0), logDet = this.forwardLogDet.fill(0, 0, n);
    const y = copyPair(x);
    this.layerForward(0, y, logDet, n);
    for (let i = 0; i < K; i++) {
      this.space[i].x[0].set(y[0]);
      this.space[i].x[1].set(y[1]);
      this.layerForward(i + 1, y, logDet, n);
    }
    let loss = LOG_2PI;
    for (let r = 0; r < n; r++) {
      loss += (0.5 * (y[0][r] * y[0][r] + y[1][r] * y[1][r]) - sign * logDet[r]) / n;
    }

    const dy = [y[0].map((v) => v / n), y[1].map((v) => v / n)], dLogDet = -sign / n;
    for (let i = K - 1; i >= 0; i--) this.couplingBackward(i, y, dy, dLogDet, n);
    for (let d = 0; d < 2; d++) { // y is now what ActNorm gave
      const scale = Math.exp(weights[d]);
      for (let r = 0; r < n; r++) {
        grad[d] += dy[d][r] * y[d][r] + dLogDet;
        grad[2 + d] -= dy[d][r] * scale;
      }
    }
    return loss;
  }

  /** Take y and dy from a coupling's output to its input, and add its weights' gradients. */
  couplingBackward(i, y, dy, dLogDet, n) {
    const { a, b, rescale, layers } = this.couplings[i], space = this.space[i];
    const size = this.weights[rescale], last = layers.length - 1, dOut = this.cotangents[last + 1];
    const xb = space.x[b];
    for (let r = 0; r < n; r++) {
      const scale = Math.exp(space.s[r]), d = dy[b][r], tanh = space.tanh[r];
      const ds = this.config.additive ? 0 : d * xb[r] * scale + dLogDet;
      this.grad[rescale] += ds * tanh;
      dOut[2 * r] = d;
      dOut[2 * r + 1] = ds * size * (1 - tanh * tanh);
      dy[b][r] = d * scale;
    }
    y[0].set(space.x[0].subarray(0, n));
    y[1].set(space.x[1].subarray(0, n));
    for (let l = last; l >= 0; l--) {
      const input = l === 0 ? y[a] : space.activations[l - 1];
      denseBackward(this.weights, this.grad, layers[l], input, space.activations[l],
        this.cotangents[l + 1], this.cotangents[l], n, l < last);
    }
    for (let r = 0; r < n; r++) dy[a][r] += this.cotangents[0][r];
  }

  /** s, t and their slopes at one value of x_a: the chain rule through the network, forwards. */
  curve(i, xa) {
    const { rescale, layers } = this.couplings[i], weights = this.weights;
    let values = [xa], slopes = [1];
    layers.forEach(({ w, b, nIn, nOut }, l) => {
      const nextValues = [], nextSlopes = [];
      for (let j = 0; j < nOut; j++) {
        let value = weights[b + j], slope = 0;
        for (let k = 0; k < nIn; k++) {
          value += weights[w + j * nIn + k] * values[k];
          slope += weights[w + j * nIn + k] * slopes[k];
        }
        const off = l + 1 < layers.length && value < 0;
        nextValues.push(off ? 0 : value);
        nextSlopes.push(off ? 0 : slope);
      }
      [values, slopes] = [nextValues, nextSlopes];
    });
    const size = this.config.additive ? 0 : weights[rescale], tanh = Math.tanh(values[1]);
    return { t: values[0], dt: slopes[0], s: size * tanh, ds: size * (1 - tanh * tanh) * slopes[1] };
  }

  /**
   * From one latent back to the data. For every place k in the chain (0 = data): the point, the
   * Jacobian J of the way from the latent to there, and log |det J|.
   */
  linearise(z) {
    const steps = [{ point: [...z], J: [[1, 0], [0, 1]], logDet: 0 }];
    for (let i = this.layerCount - 1; i >= 0; i--) {
      const { point, J, logDet } = steps[0];
      const next = { point: [...point], J: [[...J[0]], [...J[1]]], logDet };
      if (i === 0) {
        for (let d = 0; d < 2; d++) {
          const scale = Math.exp(-this.weights[d]);
          next.point[d] = point[d] * scale + this.weights[2 + d];
          next.J[d] = J[d].map((v) => v * scale);
          next.logDet -= this.weights[d];
        }
      } else { // x_b = (z_b - t) exp(-s), so d x_b = exp(-s) (d z_b - dt) - x_b ds
        const { a, b } = this.couplings[i - 1], { s, ds, t, dt } = this.curve(i - 1, point[a]);
        const scale = Math.exp(-s);
        next.point[b] = (point[b] - t) * scale;
        next.J[b] = J[b].map((v, c) => scale * (v - dt * J[a][c]) - next.point[b] * ds * J[a][c]);
        next.logDet -= s;
      }
      steps.unshift(next);
    }
    return steps;
  }
}

/**
 * Maximum likelihood as flowlib's `fit` does it: fresh points every step, Adam, warm-up and
 * cosine, a clipped gradient. Beyond `steps` the rate stays at `floor` of its peak.
 */
class Training {
  constructor(flow, density, { seed = 0, steps = 4000, batch = 128, lr = 5e-3, floor = 0.02 } = {}) {
    Object.assign(this, { flow, density, steps, batch, lr, floor });
    this.random = new Random(seed);
    this.step = 0;
    this.sign = 1;
    this.mean = new Float64Array(flow.size);
    this.square = new Float64Array(flow.size);
  }

  rate() {
    const progress = Math.min(1, this.step / this.steps);
    const cosine = 0.5 * (1 + Math.cos(Math.PI * progress));
    return this.lr * Math.min(1, (20 * (this.step + 1)) / this.steps) * Math.max(this.floor, cosine);
  }

  /** One update; returns the loss before it. */
  update() {
    const loss = this.flow.lossAndGradient(this.density.sample(this.batch, this.random), this.sign);
    if (Number.isFinite(loss)) this.adam();
    return loss;
  }

  adam(beta1 = 0.9, beta2 = 0.99, clip = 100) {
    const { grad, weights } = this.flow, rate = this.rate(), { mean, square } = this;
    let norm = 0;
    for (let i = 0; i < grad.length; i++) norm += grad[i] * grad[i];
    const factor = Math.min(1, clip / (Math.sqrt(norm) + 1e-6));
    this.step++;
    const correct1 = 1 - beta1 ** this.step, correct2 = Math.sqrt(1 - beta2 ** this.step);
    for (let i = 0; i < grad.length; i++) {
      const g = grad[i] * factor;
      mean[i] = beta1 * mean[i] + (1 - beta1) * g;
      square[i] = beta2 * square[i] + (1 - beta2) * g * g;
      weights[i] -= ((rate / correct1) * mean[i]) / (Math.sqrt(square[i]) / correct2 + 1e-8);
    }
  }
}

// Densities whose truth is known: sample(n, random) and logProb(x), as in flowlib's data.toys.

/** Nodes and weights of the Gauss-Legendre rule on [-1, 1], by Newton's method. */
function gaussLegendre(n) {
  const nodes = [], weights = [];
  for (let i = 0; i < n; i++) {
    let x = Math.cos((Math.PI * (i + 0.75)) / (n + 0.5)), slope = 1;
    for (let iteration = 0; iteration < 50; iteration++) {
      let previous = 1, p = x;
      for (let k = 2; k <= n; k++) [previous, p] = [p, ((2 * k - 1) * x * p - (k - 1) * previous) / k];
      slope = (n * (x * p - previous)) / (x * x - 1);
      x -= p / slope;
    }
    nodes.push(x);
    weights.push(2 / ((1 - x * x) * slope * slope));
  }
  return { nodes, weights };
}

/** A mixture of round Gaussians of one width; weights sum to 1. */
class Mixture {
  constructor(centres, noise, weights = null) {
    this.centres = centres;
    this.noise = noise;
    this.weights = weights ?? new Float64Array(centres[0].length).fill(1 / centres[0].length);
  }

  draw(random) {
    const i = Math.floor(random.uniform() * this.centres[0].length);
    return [this.centres[0][i], this.centres[1][i]];
  }

  sample(n, random) {
    const x = pair(n);
    for (let r = 0; r < n; r++) {
      const [u, v] = this.draw(random);
      x[0][r] = u + this.noise * random.normal();
      x[1][r] = v + this.noise * random.normal();
    }
    return x;
  }

  logProb(x) {
    const [u, v] = this.centres, m = u.length, distances = new Float64Array(m);
    const scale = -0.5 / this.noise ** 2, constant = -Math.log(2 * Math.PI * this.noise ** 2);
    return x[0].map((x1, r) => {
      const x2 = x[1][r];
      let nearest = Infinity, sum = 0;
      for (let i = 0; i < m; i++) {
        const d = (x1 - u[i]) * (x1 - u[i]) + (x2 - v[i]) * (x2 - v[i]);
        distances[i] = d;
        if (d < nearest) nearest = d;
      }
      for (let i = 0; i < m; i++) {
        const exponent = scale * (distances[i] - nearest);
        if (exponent > -40) sum += this.weights[i] * Math.exp(exponent);
      }
      return Math.log(sum) + scale * nearest + constant;
    });
  }
}

/**
 * Points spread evenly (in t) along one of several curves, plus Gaussian noise: for its density a
 * mixture of Gaussians at the nodes of a quadrature, panels at most four noise widths long.
 */
class NoisyCurves extends Mixture {
  constructor(curves, [low, high], noise, speed) {
    const panels = Math.ceil((speed * (high - low)) / (4 * noise));
    const half = (high - low) / (2 * panels), rule = gaussLegendre(16);
    const u = [], v = [], weights = [];
    for (const curve of curves) {
      for (let p = 0; p < panels; p++) {
        rule.nodes.forEach((node, i) => {
          const [x1, x2] = curve(low + half * (2 * p + 1 + node));
          u.push(x1);
          v.push(x2);
          weights.push(rule.weights[i] / (2 * curves.length * panels));
        });
      }
    }
    super([Float64Array.from(u), Float64Array.from(v)], noise, Float64Array.from(weights));
    Object.assign(this, { curves, low, high });
  }

  draw(random) {
    const t = this.low + (this.high - this.low) * random.uniform();
    return this.curves[Math.floor(random.uniform() * this.curves.length)](t);
  }
}

/** y = sin x + noise, x uniform on (-pi, pi). */
class Sinusoid {
  constructor(noise) { this.noise = noise; }

  sample(n, random) {
    const x = pair(n);
    for (let r = 0; r < n; r++) {
      x[0][r] = Math.PI * (2 * random.uniform() - 1);
      x[1][r] = Math.sin(x[0][r]) + this.noise * random.normal();
    }
    return x;
  }

  logProb(x) {
    const constant = -Math.log(this.noise) - 1.5 * LOG_2PI;
    return x[0].map((x1, r) => (Math.abs(x1) > Math.PI ? -Infinity
      : constant - 0.5 * ((x[1][r] - Math.sin(x1)) / this.noise) ** 2));
  }
}

/** Uniform on the eight dark unit squares of a 4 x 4 board over (-2, 2)^2. */
class Checkerboard {
  sample(n, random) {
    const x = pair(n);
    for (let r = 0; r < n; r++) {
      const column = Math.floor(4 * random.uniform());
      const row = 2 * Math.floor(2 * random.uniform()) + (column % 2);
      x[0][r] = column - 2 + random.uniform();
      x[1][r] = row - 2 + random.uniform();
    }
    return x;
  }

  logProb(x) {
    return x[0].map((x1, r) => {
      const column = Math.floor(x1) + 2, row = Math.floor(x[1][r]) + 2;
      const inside = Math.min(column, row) >= 0 && Math.max(column, row) < 4;
      return inside && (column + row) % 2 === 0 ? -Math.log(8) : -Infinity;
    });
  }
}

const circle = (radius, t) => [radius * Math.cos(t), radius * Math.sin(t)];
const spiral = (sign) => (t) => circle(sign * (0.3 + (0.9 * t) / Math.PI), t);
const EIGHT = Array.from({ length: 8 }, (_, i) => circle(2, (Math.PI * i) / 4));

/** name -> title, view (centre and half-width of the square that is shown), and how to make it. */
const DENSITIES = {
  moons: {
    title: "Moons", view: { centre: [0.5, 0.25], half: 1.75 },
    make: () => new NoisyCurves([circle.bind(null, 1), (t) => {
      const [x1, x2] = circle(1, t);
      return [1 - x1, 0.5 - x2];
    }], [0, Math.PI], 0.05, 1),
  },
  sinusoid: {
    title: "Sine wave", view: { centre: [0, 0], half: 3.7 }, make: () => new Sinusoid(0.1),
  },
  eight: {
    title: "Gaussians", view: { centre: [0, 0], half: 3 },
    make: () => new Mixture([0, 1].map((d) => Float64Array.from(EIGHT, (c) => c[d])), 0.2),
  },
  rings: {
    title: "Rings", view: { centre: [0, 0], half: 3.8 },
    make: () => new NoisyCurves([1, 2, 3].map((r) => circle.bind(null, r)), [0, 2 * Math.PI], 0.08, 3),
  },
  spirals: {
    title: "Spirals", view: { centre: [0, 0], half: 3.7 },
    make: () => new NoisyCurves([spiral(1), spiral(-1)], [0, 3 * Math.PI], 0.1, 3.1),
  },
  checkerboard: {
    title: "Checkerboard", view: { centre: [0, 0], half: 2.6 }, make: () => new Checkerboard(),
  },
  paint: {
    title: "Paint", view: { centre: [0, 0], half: 3 },
    make: (stamps) => new Mixture([0, 1].map((d) => Float64Array.from(stamps, (s) => s[d])), 0.12),
  },
};

// The second-best place of a heatmap, as distill.export.alternatives computes it.

/** Returns the softmax of scores divided by a temperature. */
export function softmax(scores, temperature = 1) {
  let highest = -Infinity;
  for (const score of scores) highest = Math.max(highest, score);
  const result = Float64Array.from(scores, (score) => Math.exp((score - highest) / temperature));
  const sum = result.reduce((a, b) => a + b, 0);
  return result.map((value) => value / sum);
}

/**
 * Returns {x, y, share} of the highest local maximum outside of the window around the highest cell, or null.
 *
 * x, y are fractions of the picture's sides; share is the probability of its window by that of the highest cell's.
 */
export function secondBest(probability, rows, columns, radius, leastShare) {
  const distance = (a, b) => Math.max(Math.abs((a % columns) - (b % columns)), Math.abs(Math.floor(a / columns) - Math.floor(b / columns)));
  let peak = 0, second = -1;
  probability.forEach((value, cell) => (peak = value > probability[peak] ? cell : peak));
  for (let cell = 0; cell < probability.length; cell++) {
    if (distance(cell, peak) > radius && (second < 0 || probability[cell] > probability[second]) && isMaximum(probability, rows, columns, cell)) second = cell;
  }
  if (second < 0) return null;
  let first = 0, mass = 0, x = 0, y = 0;
  for (let cell = 0; cell < probability.length; cell++) {
    if (distance(cell, peak) <= radius) first += probability[cell];
    else if (distance(cell, second) <= radius) {
      mass += probability[cell];
      x += probability[cell] * ((cell % columns) + 0.5);
      y += probability[cell] * (Math.floor(cell / columns) + 0.5);
    }
  }
  const share = mass / first;
  return share >= leastShare ? { x: x / mass / columns, y: y / mass / rows, share } : null;
}

function isMaximum(probability, rows, columns, cell) {
  const x = cell % columns, y = Math.floor(cell / columns);
  for (let v = Math.max(0, y - 1); v <= Math.min(rows - 1, y + 1); v++) {
    for (let u = Math.max(0, x - 1); u <= Math.min(columns - 1, x + 1); u++) {
      if (probability[v * columns + u] > probability[cell]) return false;
    }
  }
  return true;
}

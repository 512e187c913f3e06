// Antialiased bilinear resizing as torch's interpolate(mode="bilinear", antialias=True) and Pillow's BILINEAR do it.

/** Returns for each of `count` output cells the first input cell and the weights of it and those after it. */
export function triangleWeights(length, count) {
  const scale = length / count, support = Math.max(scale, 1);
  return Array.from({ length: count }, (_, cell) => {
    const centre = scale * (cell + 0.5);
    const first = Math.max(Math.trunc(centre - support + 0.5), 0);
    const last = Math.min(Math.trunc(centre + support + 0.5), length);
    const weights = [];
    for (let at = first; at < last; at++) weights.push(Math.max(0, 1 - Math.abs((at - centre + 0.5) / support)));
    const sum = weights.reduce((a, b) => a + b, 0);
    return { first, weights: weights.map((weight) => weight / sum) };
  });
}

/** Collects the rows of an image, from the top down, and resizes them to (3, side, side) floats in [0, 1]. */
export class SquareResizer {
  constructor(width, height, side) {
    this.side = side;
    this.across = triangleWeights(width, side);
    this.row = new Float32Array(3 * side);
    this.result = new Float32Array(3 * side * side);
    this.users = Array.from({ length: height }, () => []); // of each row: the output rows that it adds to
    triangleWeights(height, side).forEach(({ first, weights }, cell) =>
      weights.forEach((weight, step) => weight && this.users[first + step].push([cell, weight])),
    );
  }

  /** Adds row `y`, given as RGBA bytes from `offset` on. */
  add(y, rgba, offset) {
    if (!this.users[y].length) return;
    const { side, row, result } = this;
    for (let x = 0; x < side; x++) {
      const { first, weights } = this.across[x];
      let red = 0, green = 0, blue = 0;
      for (let step = 0, at = offset + 4 * first; step < weights.length; step++, at += 4) {
        red += weights[step] * rgba[at];
        green += weights[step] * rgba[at + 1];
        blue += weights[step] * rgba[at + 2];
      }
      row[x] = red / 255;
      row[side + x] = green / 255;
      row[2 * side + x] = blue / 255;
    }
    for (const [cell, weight] of this.users[y]) {
      for (let channel = 0; channel < 3; channel++) {
        const to = (channel * side + cell) * side;
        for (let x = 0; x < side; x++) result[to + x] += weight * row[channel * side + x];
      }
    }
  }
}

/** Returns (3, side, side) pixels, each row in reverse order. */
export function flipped(pixels, side) {
  const result = pixels.slice();
  for (let from = 0; from < result.length; from += side) result.subarray(from, from + side).reverse();
  return result;
}

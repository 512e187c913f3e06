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

const PADDING_GREY = 124; // of distill.core.squares

/** Rounds as Python does: halves to the even neighbour. */
function rounded(value) {
  const low = Math.floor(value);
  return value - low === 0.5 ? low + (low % 2) : Math.round(value);
}

/** Returns [x0, y0, x1, y1], px: where a picture lies in the square, as distill.core.squares.content_box has it. */
export function contentBox(width, height, side, resize) {
  if (resize !== "letterbox") return [0, 0, side, side];
  const [w, h] = [width, height].map((length) => Math.max(1, rounded((side * length) / Math.max(width, height))));
  const x0 = Math.floor((side - w) / 2), y0 = Math.floor((side - h) / 2);
  return [x0, y0, x0 + w, y0 + h];
}

/** Maps a point, px, so that the box `from` comes to lie on the box `to`. */
export function mapPoint([x, y], from, to) {
  const along = (value, axis) => ((value - from[axis]) * (to[axis + 2] - to[axis])) / (from[axis + 2] - from[axis]) + to[axis];
  return [along(x, 0), along(y, 1)];
}

/** Collects the rows of an image, from the top down, and resizes them to `box` of (3, side, side) floats in [0, 1]. */
export class SquareResizer {
  constructor(width, height, side, [x0, y0, x1, y1] = [0, 0, side, side]) {
    Object.assign(this, { side, x0, columns: x1 - x0 });
    this.across = triangleWeights(width, x1 - x0);
    this.row = new Float32Array(3 * this.columns);
    this.result = new Float32Array(3 * side * side).fill(PADDING_GREY / 255);
    for (let line = 0; line < 3 * side; line++) {
      if (line % side >= y0 && line % side < y1) this.result.fill(0, line * side + x0, line * side + x1);
    }
    this.users = Array.from({ length: height }, () => []); // of each row: the output rows that it adds to
    triangleWeights(height, y1 - y0).forEach(({ first, weights }, cell) =>
      weights.forEach((weight, step) => weight && this.users[first + step].push([y0 + cell, weight])),
    );
  }

  /** Adds row `y`, given as RGBA bytes from `offset` on. */
  add(y, rgba, offset) {
    if (!this.users[y].length) return;
    const { side, x0, columns, row, result } = this;
    for (let x = 0; x < columns; x++) {
      const { first, weights } = this.across[x];
      let red = 0, green = 0, blue = 0;
      for (let step = 0, at = offset + 4 * first; step < weights.length; step++, at += 4) {
        red += weights[step] * rgba[at];
        green += weights[step] * rgba[at + 1];
        blue += weights[step] * rgba[at + 2];
      }
      row[x] = red / 255;
      row[columns + x] = green / 255;
      row[2 * columns + x] = blue / 255;
    }
    for (const [cell, weight] of this.users[y]) {
      for (let channel = 0; channel < 3; channel++) {
        const to = (channel * side + cell) * side + x0;
        for (let x = 0; x < columns; x++) result[to + x] += weight * row[channel * columns + x];
      }
    }
  }
}

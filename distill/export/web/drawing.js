// Pictures with points, the heatmap, answers and second-best places.

export const colour = (number) => `hsl(${(number * 137.5 + 200) % 360} 85% 50%)`;

/** Draws a picture in a canvas at the screen's resolution; calls `over` with a function from px of the picture to the canvas's. */
export function draw(canvas, picture, over) {
  const context = canvas.getContext("2d"), { shown, width, height } = picture, unit = window.devicePixelRatio || 1;
  const columns = Math.max(1, Math.round(canvas.clientWidth * unit)), rows = Math.max(1, Math.round((columns * height) / width));
  if (canvas.width !== columns || canvas.height !== rows) Object.assign(canvas, { width: columns, height: rows });
  context.fillStyle = "white";
  context.fillRect(0, 0, columns, rows);
  context.drawImage(shown, 0, 0, columns, rows);
  over(context, ([x, y]) => [(x * columns) / width, (y * rows) / height], unit);
}

export function disc(context, [x, y], unit, fill, label) {
  context.beginPath();
  context.arc(x, y, 7 * unit, 0, 2 * Math.PI);
  Object.assign(context, { fillStyle: fill, strokeStyle: "white", lineWidth: 2 * unit });
  context.fill();
  context.stroke();
  caption(context, [x + 10 * unit, y - 8 * unit], unit, fill, label);
}

export function ring(context, [x, y], unit, stroke, label) {
  context.setLineDash([4 * unit, 3 * unit]);
  for (const [width, style] of [[5, "white"], [2.5, stroke]]) {
    context.beginPath();
    context.arc(x, y, 9 * unit, 0, 2 * Math.PI);
    Object.assign(context, { strokeStyle: style, lineWidth: width * unit });
    context.stroke();
  }
  context.setLineDash([]);
  caption(context, [x + 12 * unit, y - 8 * unit], unit, stroke, label);
}

export function cross(context, [x, y], unit) {
  for (const [width, style] of [[4, "white"], [1.5, "black"]]) {
    context.beginPath();
    context.moveTo(x - 12 * unit, y);
    context.lineTo(x + 12 * unit, y);
    context.moveTo(x, y - 12 * unit);
    context.lineTo(x, y + 12 * unit);
    Object.assign(context, { strokeStyle: style, lineWidth: width * unit });
    context.stroke();
  }
}

function caption(context, [x, y], unit, fill, label) {
  Object.assign(context, { font: `bold ${13 * unit}px system-ui, sans-serif`, strokeStyle: "white", lineWidth: 4 * unit, fillStyle: fill });
  context.strokeText(label, x, y);
  context.fillStyle = "black";
  context.fillText(label, x, y);
}

/**
 * Lays a heatmap over the canvas: the likelier a cell, the redder and the less transparent.
 *
 * `shown` is the part of the heatmap that the canvas shows, [x0, y0, x1, y1] in fractions of its sides: without the padding.
 */
export function heat(context, { probability, rows, columns, shown: [x0, y0, x1, y1] }) {
  const highest = Math.max(...probability), image = new ImageData(columns, rows);
  probability.forEach((value, cell) => {
    const share = Math.sqrt(value / highest);
    image.data.set([255, Math.round(220 * (1 - share)), 0, Math.round(200 * share)], 4 * cell);
  });
  const small = new OffscreenCanvas(columns, rows);
  small.getContext("2d").putImageData(image, 0, 0);
  context.imageSmoothingEnabled = true;
  const part = [x0 * columns, y0 * rows, (x1 - x0) * columns, (y1 - y0) * rows];
  context.drawImage(small, ...part, 0, 0, context.canvas.width, context.canvas.height);
}

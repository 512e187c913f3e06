"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const images = new Map(); // pictures by number, decoded when they are first shown
let shown = []; // the pairs that pass the filters, in the chosen order
let place = 0; // of the current pair in them
let point = 0; // of the current pair's

/* Tables: a click on a header sorts by its column, the highest first, and text by the alphabet; another click turns the order round. */

function sortTable(header) {
  const table = header.closest("table");
  const column = [...header.parentNode.children].indexOf(header);
  const value = (row) => row.children[column].dataset.value;
  const numbers = [...table.tBodies[0].rows].every((row) => !isNaN(value(row)));
  const descending = header.getAttribute("aria-sort") === "none" ? numbers : header.getAttribute("aria-sort") === "ascending";
  const rows = [...table.tBodies[0].rows].sort((first, second) => {
    const [a, b] = [value(first), value(second)];
    if (a === "" || b === "") return (a === "") - (b === ""); // what was not measured comes last
    const order = isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b;
    return descending ? -order : order;
  });
  for (const other of header.parentNode.children) other.setAttribute("aria-sort", "none");
  header.setAttribute("aria-sort", descending ? "descending" : "ascending");
  table.tBodies[0].append(...rows);
}

for (const header of document.querySelectorAll("th")) {
  header.setAttribute("aria-sort", "none");
  header.querySelector("button").addEventListener("click", () => sortTable(header));
}

/* Pairs: which are shown, and in which order. */

/** Returns the distance of two points of the target in tolerance bases. */
function distance(pair, a, b) {
  return Math.hypot((a[0] - b[0]) / pair.tolerance[0], (a[1] - b[1]) / pair.tolerance[1]);
}

/** Returns the largest distance between any two matchers' answers to a point, in tolerance bases. */
function disagreement(pair, index) {
  const answers = pair.answers.map((answer) => answer.points[index]);
  let largest = 0;
  answers.forEach((a, i) => answers.slice(i + 1).forEach((b) => (largest = Math.max(largest, distance(pair, a, b)))));
  return largest;
}

const isRight = (pair, matcher, index) => pair.answers[matcher].right[index] === 1;

/** Returns the choices of the filter, each with a condition that a point of a pair meets. */
function filters() {
  const found = [["all points", () => true]];
  found.push([`answers more than ${data.alpha} apart`, (pair, i) => disagreement(pair, i) > data.alpha]);
  if (!data.scored) return found;
  data.matchers.forEach(({ name }, m) => {
    const others = data.matchers.map((_, other) => other).filter((other) => other !== m);
    found.push([`${name} wrong`, (pair, i) => !isRight(pair, m, i)]);
    found.push([`only ${name} wrong`, (pair, i) => !isRight(pair, m, i) && others.every((o) => isRight(pair, o, i))]);
    if (m !== data.reference) {
      const reference = data.matchers[data.reference].name;
      found.push([`${name} right, ${reference} wrong`, (pair, i) => isRight(pair, m, i) && !isRight(pair, data.reference, i)]);
    }
  });
  found.push(["all wrong", (pair, i) => pair.answers.every((answer) => !answer.right[i])]);
  return found;
}

/** Returns the choices of the order, each with a figure of a pair; the highest comes first. */
function orders() {
  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
  const found = [["as in the data", null]];
  found.push(["most disagreement first", (pair) => mean(pair.points.map((_, i) => disagreement(pair, i)))]);
  data.matchers.forEach(({ name }, m) => {
    if (data.scored) found.push([`${name}: worst first`, (pair) => -mean(pair.answers[m].right)]);
    else found.push([`${name}: least sure first`, (pair) => -mean(pair.answers[m].confidence)]);
  });
  return found;
}

const FILTERS = filters();
const ORDERS = orders();

function fill(select, names) {
  names.forEach((name, index) => select.append(new Option(name, index)));
  select.addEventListener("change", choosePairs);
}

const categories = ["all", ...new Set(data.pairs.map((pair) => pair.category))];

/** Returns the points of a pair that meet the filter. */
function matching(pair) {
  const meets = FILTERS[byId("wrong").value][1];
  return pair.points.map((_, i) => i).filter((i) => meets(pair, i));
}

function choosePairs() {
  const category = Number(byId("category").value);
  const figure = ORDERS[byId("order").value][1];
  shown = data.pairs.filter((pair) => (category === 0 || pair.category === categories[category]) && matching(pair).length);
  if (figure) {
    const figures = new Map(shown.map((pair) => [pair, figure(pair)]));
    shown.sort((a, b) => figures.get(b) - figures.get(a));
  }
  showPair(0);
}

function showPair(number) {
  place = Math.max(0, Math.min(number, shown.length - 1));
  byId("previous").disabled = place === 0;
  byId("next").disabled = place >= shown.length - 1;
  byId("place").textContent = shown.length ? `${place + 1} of ${shown.length}` : "none";
  byId("viewer").replaceChildren();
  byId("names").textContent = "";
  if (!shown.length) return;
  const pair = shown[place];
  byId("names").textContent = `${pair.category}: ${pair.srcId} → ${pair.trgId} (pair ${pair.number})`;
  point = matching(pair)[0];
  draw();
}

/* Pictures: the source with its points, and the target once for each matcher. */

function picture(number) {
  if (!images.has(number)) {
    const image = new Image();
    image.src = data.images[number];
    images.set(number, image.decode().then(() => image));
  }
  return images.get(number);
}

function panel(caption, kind) {
  const figure = document.createElement("figure");
  const canvas = document.createElement("canvas");
  figure.className = kind;
  figure.append(canvas, caption);
  byId("viewer").append(figure);
  return canvas;
}

function caption(parts) {
  const element = document.createElement("figcaption");
  for (const [text, kind] of parts) {
    const part = document.createElement("span");
    part.textContent = text;
    part.className = kind;
    element.append(part, " ");
  }
  return element;
}

/** Prepares a canvas of 480 px width with an image on it, and returns its context. */
function paint(canvas, image) {
  canvas.width = 480;
  canvas.height = Math.round((480 * image.naturalHeight) / image.naturalWidth);
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0, canvas.width, canvas.height);
  return context;
}

function dot(context, [x, y], colour, radius, ring) {
  context.beginPath();
  context.arc(x * context.canvas.width, y * context.canvas.height, radius, 0, 2 * Math.PI);
  context.lineWidth = 2.5;
  context.fillStyle = context.strokeStyle = colour;
  if (!ring) {
    context.fill();
    context.strokeStyle = "white";
  }
  context.stroke();
}

/** Draws the truth as a cross, with the tolerance around it. */
function drawTruth(context, pair) {
  const { width, height } = context.canvas;
  const [x, y] = [pair.truth[point][0] * width, pair.truth[point][1] * height];
  for (const [colour, line] of [["black", 5], ["white", 2]]) {
    context.strokeStyle = colour;
    context.lineWidth = line;
    context.beginPath();
    context.moveTo(x - 9, y - 9);
    context.lineTo(x + 9, y + 9);
    context.moveTo(x + 9, y - 9);
    context.lineTo(x - 9, y + 9);
    context.stroke();
    context.beginPath();
    context.ellipse(x, y, data.alpha * pair.tolerance[0] * width, data.alpha * pair.tolerance[1] * height, 0, 0, 2 * Math.PI);
    context.stroke();
  }
}

/** Lays a heatmap over the target, where the matcher saw it: from clear at the lowest score to orange at the highest. */
function drawHeat(context, pair, answer) {
  const [rows, columns] = answer.cells;
  const cells = new OffscreenCanvas(columns, rows);
  const pixels = new ImageData(columns, rows);
  [...answer.heat[point]].forEach((letter, i) => {
    const level = data.levels.indexOf(letter) / 63;
    pixels.data.set([255, 140, 0, 200 * level ** 3], 4 * i);
  });
  cells.getContext("2d").putImageData(pixels, 0, 0);
  const { width, height } = context.canvas;
  const [left, top, across, down] = answer.frame;
  context.drawImage(cells, left * width, top * height, across * width, down * height);
}

/** Adds the source; a click chooses the nearest point. */
async function drawSource(pair) {
  const canvas = panel(caption([[`source, point ${point + 1} of ${pair.points.length}`, ""]]), "source");
  canvas.addEventListener("click", (event) => {
    const box = canvas.getBoundingClientRect();
    const apart = pair.points.map(([x, y]) =>
      Math.hypot(x * box.width - (event.clientX - box.left), y * box.height - (event.clientY - box.top)),
    );
    point = apart.indexOf(Math.min(...apart));
    draw();
  });
  const context = paint(canvas, await picture(pair.src));
  const chosen = new Set(matching(pair));
  pair.points.forEach((at, i) => dot(context, at, chosen.has(i) ? "#f0e442" : "#9aa3ad", 6, false));
  dot(context, pair.points[point], "#f0e442", 13, true);
}

/** Adds the target with one matcher's answer. */
async function drawAnswer(pair, number) {
  const { name, colour } = data.matchers[number];
  const answer = pair.answers[number];
  const parts = [[name, ""], [`confidence ${answer.confidence[point].toFixed(2)}`, "small"]];
  if (data.scored) {
    const off = distance(pair, answer.points[point], pair.truth[point]).toFixed(2);
    parts.push(answer.right[point] ? [`right, ${off} off`, "right"] : [`wrong, ${off} off`, "wrong"]);
  }
  const context = paint(panel(caption(parts), "target"), await picture(pair.trg));
  if (byId("heat").checked && answer.heat.length) drawHeat(context, pair, answer);
  for (const other of pair.others) dot(context, other, "#ffffff99", 2, false);
  if (data.scored) drawTruth(context, pair);
  dot(context, answer.points[point], colour, 8, false);
}

function draw() {
  const pair = shown[place];
  byId("viewer").replaceChildren();
  const drawn = [drawSource(pair), ...data.matchers.map((_, number) => drawAnswer(pair, number))];
  Promise.all(drawn).then(() => (byId("viewer").dataset.drawn = `${pair.number}/${point}`));
}

fill(byId("category"), categories);
fill(byId("wrong"), FILTERS.map(([name]) => name));
fill(byId("order"), ORDERS.map(([name]) => name));
byId("heat").addEventListener("change", () => shown.length && draw());
byId("previous").addEventListener("click", () => showPair(place - 1));
byId("next").addEventListener("click", () => showPair(place + 1));
document.addEventListener("keydown", (event) => {
  if (!shown.length || event.target.matches("select, input")) return;
  const count = shown[place].points.length;
  const moves = {
    ArrowLeft: () => ((point = (point + count - 1) % count), draw()),
    ArrowRight: () => ((point = (point + 1) % count), draw()),
    ArrowUp: () => showPair(place - 1),
    ArrowDown: () => showPair(place + 1),
  };
  const inside = byId("pairs").getBoundingClientRect();
  if (moves[event.key] && inside.top < window.innerHeight / 2) {
    event.preventDefault();
    moves[event.key]();
  }
});
choosePairs();

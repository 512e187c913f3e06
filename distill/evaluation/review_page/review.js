"use strict";
// Points in the order of their confidence. Coordinates are COCO's: the centre of the top-left pixel is (0, 0).
const data = JSON.parse(document.getElementById("data").textContent);
const element = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";

const photos = data.photos.map((photo) => {
  const category = data.categories.find((entry) => entry.id === photo.annotation.category_id);
  const confidence = photo.annotation.keypoint_confidence || [];
  const values = photo.annotation.keypoints;
  const points = category.keypoints.map((part, k) => ({
    part: String(part), x: values[3 * k], y: values[3 * k + 1], visibility: values[3 * k + 2],
    confidence: confidence[k] ?? null,
  }));
  return { ...photo, points, touched: false };
});
const queue = photos.flatMap((photo, p) => photo.points.map((point, k) => ({ p, k, confidence: point.confidence })))
  .filter((entry) => entry.confidence !== null)
  .sort((a, b) => a.confidence - b.confidence);
const done = new Set(); // numbers in the queue that a person has looked at
const past = []; // earlier states of points, for undo
let at = 0, place = queue[0], unsaved = false;

const photo = () => photos[place.p];
const point = () => photo().points[place.k];

function change(values) {
  past.push({ place, at, before: { ...point() }, touched: photo().touched, done: new Set(done) });
  Object.assign(point(), values, { confidence: null });
  photo().touched = unsaved = true;
  const number = queue.findIndex((entry) => entry.p === place.p && entry.k === place.k);
  if (number >= 0) done.add(number);
}

function set(x, y) {
  const inside = (value, side) => Math.min(Math.max(value, -0.5), side - 0.5);
  change({ x: inside(x, photo().width), y: inside(y, photo().height), visibility: 2 });
  show();
}

function next() { // the least sure point that nobody has looked at: from here on, or else from the start
  const open = [...queue.keys()].filter((number) => !done.has(number));
  go(open.find((number) => number >= at) ?? open[0] ?? queue.length);
}

function go(number) { // behind the last point only once all have been looked at
  const last = done.size < queue.length ? queue.length - 1 : queue.length;
  at = Math.min(Math.max(0, number), last);
  if (at < queue.length) place = queue[at];
  show();
}

function confirm() {
  if (at >= queue.length) return;
  if (point().confidence !== null) change(point().visibility > 0 ? { visibility: 2 } : {});
  next();
}

function hide() {
  if (at >= queue.length && point().confidence === null) return;
  change({ x: 0, y: 0, visibility: 0 });
  next();
}

function undo() {
  const last = past.pop();
  if (!last) return;
  place = last.place;
  at = last.at;
  Object.assign(point(), last.before);
  photo().touched = last.touched;
  unsaved = true;
  done.clear();
  last.done.forEach((number) => done.add(number));
  show();
}

function drawn(svg, picture, width, height, marks) {
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  const image = document.createElementNS(SVG, "image");
  image.setAttribute("href", picture);
  image.setAttribute("width", width);
  image.setAttribute("height", height);
  image.setAttribute("preserveAspectRatio", "none");
  const circles = marks.map(({ x, y, kind, part }) => {
    const circle = document.createElementNS(SVG, "circle");
    circle.setAttribute("cx", x + 0.5);
    circle.setAttribute("cy", y + 0.5);
    circle.setAttribute("r", Math.max(width, height) * (kind.includes("current") ? 0.018 : 0.01));
    circle.setAttribute("class", kind);
    const title = document.createElementNS(SVG, "title");
    title.textContent = part;
    circle.append(title);
    return circle;
  });
  svg.replaceChildren(image, ...circles);
}

function kindOf(entry, current) {
  const who = entry.confidence === null ? "person" : entry.visibility === 1 ? "unsure" : "matcher";
  return `${who}${current ? " current" : ""}${entry.visibility === 0 ? " hidden" : ""}`;
}

function show() {
  const over = at >= queue.length;
  const { points, name, width, height, picture, group } = photo();
  const marks = points.filter((entry) => entry.visibility > 0)
    .map((entry) => ({ ...entry, kind: kindOf(entry, entry === point()) }));
  drawn(element("target"), picture, width, height, marks.sort((a, b) => a.kind.includes("current") - b.kind.includes("current")));
  const sure = point().confidence === null ? "set by you" : `confidence ${point().confidence.toFixed(2)}`;
  element("asked").textContent = over ? "All points have been looked at; save the corrections." : `${point().part}: ${sure}`;
  element("name").textContent = name;
  element("count").textContent = `${done.size} of ${queue.length} points looked at`;
  const buttons = points.map((entry, k) => {
    const item = document.createElement("li"), button = document.createElement("button");
    button.type = "button";
    button.textContent = entry.part;
    button.className = kindOf(entry, entry === point());
    button.addEventListener("click", () => { place = { p: place.p, k }; show(); });
    item.append(button);
    return item;
  });
  element("parts").replaceChildren(...buttons);
  const example = data.sources.find((source) => source.group === group && source.points[point().part]);
  element("example").hidden = !example;
  if (example) {
    const [x, y] = example.points[point().part];
    drawn(element("source"), example.picture, example.width, example.height, [{ x, y, kind: "person current", part: point().part }]);
    element("source-name").textContent = `${point().part} in ${example.name}`;
  }
}

function corrected({ annotation, points }) {
  const keypoints = points.flatMap(({ x, y, visibility }) => [x, y, visibility]);
  const confidence = points.map((entry) => entry.confidence);
  const count = points.filter((entry) => entry.visibility > 0).length;
  return { ...annotation, keypoints, keypoint_confidence: confidence, num_keypoints: count };
}

function save() {
  const touched = photos.filter((entry) => entry.touched);
  const content = {
    images: touched.map((entry) => entry.image), annotations: touched.map(corrected), categories: data.categories,
  };
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(content, null, 1)], { type: "application/json" }));
  link.download = "corrections.json";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  unsaved = false;
}

element("target").addEventListener("click", (event) => {
  const box = element("target").createSVGPoint();
  box.x = event.clientX;
  box.y = event.clientY;
  const found = box.matrixTransform(element("target").getScreenCTM().inverse());
  set(found.x - 0.5, found.y - 0.5);
});
const nudge = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const keys = {
  Enter: confirm, " ": confirm, x: hide, X: hide, u: undo, U: undo, n: () => go(at + 1), p: () => go(at - 1),
  ArrowRight: () => go(at + 1), ArrowLeft: () => go(at - 1),
};
addEventListener("keydown", (event) => {
  if ((event.ctrlKey || event.metaKey) && event.key === "s") { event.preventDefault(); save(); return; }
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target instanceof HTMLButtonElement && ["Enter", " "].includes(event.key)) return; // presses the button
  if (event.shiftKey && nudge[event.key]) {
    event.preventDefault();
    if (point().visibility > 0) set(point().x + nudge[event.key][0], point().y + nudge[event.key][1]);
  } else if (keys[event.key]) {
    event.preventDefault();
    keys[event.key]();
  }
});
addEventListener("beforeunload", (event) => { if (unsaved) event.preventDefault(); });
for (const [id, action] of [["confirm", confirm], ["hide", hide], ["undo", undo], ["save", save]]) {
  element(id).addEventListener("click", () => { action(); element(id).blur(); });
}
show();

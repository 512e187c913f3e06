// The page: pictures are chosen, points are set, answers are shown. The worker computes.
import { colour, cross, disc, draw, heat, ring } from "./drawing.js";

const MOST = 100; // points on the page
const element = (id) => document.getElementById(id);
const canvases = { source: document.querySelector("#source canvas"), target: document.querySelector("#target canvas") };
const pictures = {}; // by place: {shown, width, height}
let answers = [], chosen = -1, cursor = null, about = null;

const worker = new Worker("worker.js", { type: "module" }), waiting = new Map();
let asked = 0;
worker.onmessage = ({ data: { id, result, error, refused } }) => {
  const { resolve, reject } = waiting.get(id);
  waiting.delete(id);
  if (error === undefined) resolve(result);
  else reject(new Error(refused ? error : `The computation failed: ${error}`));
};
worker.onerror = (event) => {
  const error = new Error(`Expected a browser of 2023 or later but the page's worker failed: ${event.message ?? "no module workers"}.`);
  waiting.forEach(({ reject }) => reject(error));
};

function ask(kind, request = {}) {
  return new Promise((resolve, reject) => {
    waiting.set(++asked, { resolve, reject });
    worker.postMessage({ id: asked, kind, ...request });
  });
}

function say(place, text) {
  element(place).textContent = text;
  element(place).hidden = place === "error" && !text;
}

let last = Promise.resolve(); // settles with what was asked for last

/** Runs what a person asked for, once the network is open and all asked for before is done; a refusal is shown, and the page goes on. */
function attempt(action) {
  last = last.then(async () => {
    say("error", "");
    try {
      await opened;
      await action();
    } catch (error) {
      say("error", error.message);
    }
  });
}

/** Adds a point, px, to the first picture that is shown now, unless another one is there when its turn comes. */
function addHere(point) {
  const { source } = pictures;
  attempt(async () => {
    if (source === pictures.source) await add([point]);
  });
}

async function show(place, blob, name) {
  say("status", `Reading ${name}.`);
  try {
    const { shown, width, height, milliseconds } = await ask("picture", { place, blob, name });
    pictures[place] = { shown, width, height };
    say("status", `${name}: ${width} x ${height} px, described in ${milliseconds.toFixed(0)} ms.`);
  } catch (error) {
    say("status", "The picture was not changed.");
    throw error;
  }
  if (place === "source") {
    answers = [];
    cursor = null;
  }
  await again(answers.map((answer) => answer.source));
}

/** Matches points anew, in place of the answers so far. */
async function again(points) {
  const found = points.length ? await ask("match", { points }) : { answers: [] };
  answers = found.answers;
  chosen = Math.min(chosen, answers.length - 1);
  if (chosen < 0) chosen = answers.length - 1;
  render();
}

async function add(points) {
  if (!pictures.source || !pictures.target) throw new Error("Expected two pictures; choose both first.");
  if (answers.length + points.length > MOST) {
    throw new Error(`Expected at most ${MOST} points but got ${answers.length + points.length}; clear some, or add fewer.`);
  }
  const found = await ask("match", { points });
  answers.push(...found.answers);
  chosen = answers.length - 1;
  document.documentElement.dataset.milliseconds = found.milliseconds.toFixed(1);
  const { confidence, target: [x, y] } = answers[chosen];
  say("status", `Point ${answers.length}: ${x.toFixed(1)}, ${y.toFixed(1)} px, confidence ${confidence.toFixed(2)}, ${found.milliseconds.toFixed(0)} ms.`);
  render();
}

function render() {
  if (pictures.source) {
    draw(canvases.source, pictures.source, (context, place, unit) => {
      answers.forEach((answer, number) => disc(context, place(answer.source), unit, colour(number), String(number + 1)));
      if (cursor && document.activeElement === canvases.source) cross(context, place(cursor), unit);
    });
  }
  if (pictures.target) {
    draw(canvases.target, pictures.target, (context, place, unit) => {
      if (answers[chosen] && element("heat").checked) heat(context, answers[chosen].heatmap);
      answers.forEach((answer, number) => {
        const label = String(number + 1);
        if (answer.other && element("others").checked && number === chosen) ring(context, place(answer.other.target), unit, colour(number), `${label}?`);
        disc(context, place(answer.target), unit, colour(number), label);
      });
    });
  }
  table();
}

function table() {
  const body = element("answers").tBodies[0], shown = ([x, y]) => `${x.toFixed(1)}, ${y.toFixed(1)}`;
  element("answers").hidden = !answers.length;
  body.replaceChildren(
    ...answers.map((answer, number) => {
      const row = document.createElement("tr"), button = document.createElement("button");
      Object.assign(button, { type: "button", textContent: String(number + 1), onclick: () => ((chosen = number), render()) });
      button.setAttribute("aria-pressed", String(number === chosen));
      button.setAttribute("aria-label", `Show the heatmap of point ${number + 1}`);
      row.className = number === chosen ? "chosen" : "";
      row.insertCell().append(button);
      const other = answer.other ? `${shown(answer.other.target)} (${answer.other.confidence.toFixed(2)})` : "none";
      for (const text of [shown(answer.source), shown(answer.target), answer.confidence.toFixed(2), other]) row.insertCell().textContent = text;
      return row;
    }),
  );
}

function fromPointer(event) {
  const box = canvases.source.getBoundingClientRect(), { width, height } = pictures.source;
  const within = (value, most) => Math.min(most, Math.max(0, value));
  return [within(((event.clientX - box.left) / box.width) * width, width), within(((event.clientY - box.top) / box.height) * height, height)];
}

function move(event) {
  const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }, { width, height } = pictures.source;
  cursor ??= [width / 2, height / 2];
  if (steps[event.key]) {
    const size = Math.max(width, height) / (event.shiftKey ? 200 : 40);
    cursor = cursor.map((value, axis) => Math.min([width, height][axis], Math.max(0, value + size * steps[event.key][axis])));
  } else if (event.key === "Enter" || event.key === " ") addHere(cursor);
  else if (event.key === "Delete" || event.key === "Backspace") attempt(undo);
  else return;
  event.preventDefault();
  render();
}

function undo() {
  answers.pop();
  chosen = answers.length - 1;
  render();
}

const NUMBER = /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i; // Number() takes "" for 0, and "0x20"

/** Returns points from lines of text, "x, y" or "x y". */
function parsed(text) {
  const lines = text.split("\n").filter((line) => line.trim());
  if (!lines.length || lines.length > MOST) throw new Error(`Expected 1 to ${MOST} points but got ${lines.length}; add fewer.`);
  return lines.map((line) => {
    const words = line.trim().split(/[\s,;]+/), values = words.map(Number);
    if (words.length !== 2 || !words.every((word) => NUMBER.test(word)) || !values.every(Number.isFinite)) throw new Error(`Expected two numbers, x, y, on each line but got ${line.slice(0, 60)}.`);
    return values;
  });
}

async function examples() {
  for (const [place, { file, name }] of [["source", about.examples[0]], ["target", about.examples[1]]]) {
    const answer = await fetch(file);
    if (!answer.ok) throw new Error(`Expected the example ${file} but got ${answer.status}; copy the whole folder.`);
    await show(place, await answer.blob(), name);
  }
}

async function swap() {
  const points = answers.map((answer) => answer.target);
  await ask("swap");
  [pictures.source, pictures.target] = [pictures.target, pictures.source];
  [answers, cursor] = [[], null];
  await again(points);
}

for (const place of ["source", "target"]) {
  const figure = element(place), input = figure.querySelector("input");
  input.onchange = () => {
    const [file] = input.files;
    input.value = ""; // the same file may be chosen again
    if (file) attempt(() => show(place, file, file.name));
  };
  figure.ondragover = (event) => (event.preventDefault(), figure.classList.add("over"));
  figure.ondragleave = () => figure.classList.remove("over");
  figure.ondrop = (event) => {
    event.preventDefault();
    figure.classList.remove("over");
    const [file] = event.dataTransfer.files;
    attempt(async () => {
      if (!file) throw new Error("Expected a picture file but what was dropped is none; drop a file.");
      await show(place, file, file.name);
    });
  };
}
canvases.source.onclick = (event) => addHere(pictures.source && fromPointer(event));
canvases.source.onkeydown = (event) => pictures.source && move(event);
canvases.source.onfocus = canvases.source.onblur = render;
element("examples").onclick = () => attempt(examples);
element("swap").onclick = () => attempt(swap);
element("undo").onclick = () => attempt(undo);
element("clear").onclick = () => attempt(() => again([]));
element("heat").onchange = element("others").onchange = render;
element("typed").onsubmit = (event) => {
  event.preventDefault();
  attempt(async () => {
    await add(parsed(element("coordinates").value));
    element("coordinates").value = "";
  });
};
addEventListener("resize", render);

/** Opens the network; every action waits for it, and is refused with its error. */
async function open() {
  const wanted = new URLSearchParams(location.search).get("backend");
  say("status", "Loading the network.");
  let found;
  try {
    found = await ask("open", { backend: ["wasm", "webgpu"].includes(wanted) ? wanted : null });
  } catch (error) {
    say("status", "The network was not loaded.");
    throw error;
  }
  about = found.about;
  const where = found.backend === "webgpu" ? "graphics card (WebGPU)" : "processor (WebAssembly)";
  element("about").textContent = `${about.description} Computed on the ${where}; on the examples within ${found.differs.toFixed(3)} px of Python's answers.`;
  document.documentElement.dataset.backend = found.backend;
}

const opened = open();
attempt(async () => {
  await examples();
  say("status", "Click a point of the first picture.");
  document.documentElement.dataset.ready = "true";
});

// Pictures and the network, away from the page, which stays responsive. Requests are answered one after the other.
import { secondBest, softmax } from "./alternatives.js";
import { Network } from "./network.js";
import { readPicture } from "./picture.js";
import { Refusal } from "./refusal.js";
import { mapPoint } from "./resize.js";

const MOST_POINTS = 200;
let network, about;
const pictures = {}; // by place, "source" and "target": {width, height, box, pixels, described}

async function adapterIsThere() {
  try {
    return Boolean(await navigator.gpu?.requestAdapter());
  } catch {
    return false;
  }
}

const requests = {
  /** Opens the files, on the graphics card where there is one and its answers are those of Python. */
  async open({ backend }) {
    const answer = await fetch("model.json");
    if (!answer.ok) throw new Refusal(`Expected model.json beside the page but got ${answer.status}; copy the whole folder.`);
    about = await answer.json();
    const wanted = backend ?? ((await adapterIsThere()) ? "webgpu" : "wasm");
    for (const name of wanted === "webgpu" ? ["webgpu", "wasm"] : ["wasm"]) {
      try {
        network = await Network.open(about, name);
        const differs = await selfTest();
        if (differs <= about.check.tolerance_px) return { about, backend: name, differs };
        throw new Refusal(`Expected the answers that Python gives but ${name} differs by ${differs.toFixed(2)} px.`);
      } catch (error) {
        if (name === "wasm") throw error;
        console.warn(`WebGPU is not used: ${error.message ?? error}`);
      }
    }
  },

  async picture({ place, blob, name }) {
    const read = await readPicture(blob, name, about.size, about.resize);
    const { width, height, box, pixels, shown } = read, start = performance.now();
    const described = await network.describe(pixels);
    pictures[place] = { width, height, box, pixels, described };
    return { width, height, shown, milliseconds: performance.now() - start };
  },

  async swap() {
    const { source, target } = pictures;
    if (!source || !target) throw new Refusal("Expected two pictures to swap; choose both first.");
    Object.assign(pictures, { source: target, target: source });
    return {};
  },

  async match({ points }) {
    const { source, target } = pictures;
    if (!source || !target) throw new Refusal("Expected two pictures; choose both first.");
    checkPoints(points, source);
    const start = performance.now(), answers = await match(source, target, points);
    return { answers, milliseconds: performance.now() - start };
  },
};

function checkPoints(points, { width, height }) {
  if (!points.length || points.length > MOST_POINTS) {
    throw new Refusal(`Expected 1 to ${MOST_POINTS} points at once but got ${points.length}; add fewer.`);
  }
  const wrong = points.find(([x, y]) => !(x >= 0 && x <= width && y >= 0 && y <= height));
  if (wrong) throw new Refusal(`Expected points inside the first picture of ${width} x ${height} px but got ${wrong.join(", ")}.`);
}

const whole = ({ width, height }) => [0, 0, width, height];

/** Moves a point on the padding of a letterboxed picture to the picture's border. */
function bordered([x, y], { width, height }) {
  if (about.resize !== "letterbox") return [x, y];
  return [Math.min(width, Math.max(0, x)), Math.min(height, Math.max(0, y))];
}

async function match(source, target, points) {
  const side = about.size, inside = points.map((point) => mapPoint(point, whole(source), source.box));
  const inTarget = (x, y) => bordered(mapPoint([x, y], target.box, whole(target)), target);
  const found = await network.match(source.described, target.described, inside), cells = found.rows * found.columns;
  return points.map((point, number) => {
    const probability = softmax(found.heatmap.slice(number * cells, (number + 1) * cells), about.temperature);
    const other = secondBest(probability, found.rows, found.columns, about.radius_cells, about.least_share);
    return {
      source: point,
      target: inTarget(found.points[2 * number], found.points[2 * number + 1]),
      confidence: found.confidence[number],
      heatmap: { probability, rows: found.rows, columns: found.columns, shown: target.box.map((edge) => edge / side) },
      other: other && { target: inTarget(other.x * side, other.y * side), confidence: found.confidence[number] * other.share },
    };
  });
}

/** Returns by how many px at most the answers on the examples differ from those that were written down on export. */
async function selfTest() {
  const read = {};
  for (const [place, { file }] of [["source", about.examples[0]], ["target", about.examples[1]]]) {
    const picture = await readPicture(await (await fetch(file)).blob(), file, about.size, about.resize);
    picture.shown.close();
    read[place] = { ...picture, described: await network.describe(picture.pixels) };
  }
  const answers = await match(read.source, read.target, about.check.points);
  return Math.max(...answers.map(({ target: [x, y] }, number) => Math.hypot(x - about.check.answers[number][0], y - about.check.answers[number][1])));
}

let last = Promise.resolve();
self.onmessage = ({ data: { id, kind, ...request } }) => {
  last = last.then(async () => {
    try {
      const result = await requests[kind](request);
      self.postMessage({ id, result }, result.shown ? [result.shown] : []);
    } catch (error) {
      self.postMessage({ id, refused: error instanceof Refusal, error: error.message ?? String(error) });
    }
  });
};

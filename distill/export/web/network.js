// The exported student, run by ONNX Runtime: descriptors once a picture, then any number of matches.
export class Network {
  /** Loads the runtime and the files that `about` (model.json) names; `backend` is "webgpu" or "wasm". */
  static async open(about, backend) {
    const runtime = about.runtime[backend], address = (file) => new URL(file, self.location.href).href;
    const ort = await import(address(runtime.script));
    ort.env.wasm.wasmPaths = { mjs: address(runtime.module), wasm: address(runtime.wasm) };
    // Threads need headers that static hosts do not send; the page works without.
    ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency || 1) : 1;
    ort.env.logLevel = "error";
    const open = (file, provider) => ort.InferenceSession.create(address(file), { executionProviders: [provider], graphOptimizationLevel: "all", logSeverityLevel: 3 });
    const network = new Network();
    Object.assign(network, { ort, about, backend });
    // Correlating costs little, and its exponentials are better off in the processor's arithmetic.
    if (about.files.match) network.whole = await open(about.files.match, backend);
    else {
      network.encoder = await open(about.files.encode, backend);
      network.correlator = await open(about.files.correlate, "wasm");
    }
    return network;
  }

  tensor(data, shape) {
    return new this.ort.Tensor("float32", data, shape);
  }

  /** Returns what is kept of (3, side, side) pixels. */
  async describe(pixels) {
    const side = this.about.size;
    if (this.whole) return { pixels };
    const { descriptors } = await this.encoder.run({ images: this.tensor(pixels, [1, 3, side, side]) });
    return { map: this.tensor(await descriptors.getData(), descriptors.dims) };
  }

  /** Returns {points, confidence, heatmap, rows, columns} for points [[x, y], ...] in px of the square source. */
  async match(source, target, points) {
    const side = this.about.size, asked = this.tensor(Float32Array.from(points.flat()), [1, points.length, 2]);
    let found;
    if (this.whole) {
      const [src_img, trg_img] = [source, target].map(({ pixels }) => this.tensor(pixels, [1, 3, side, side]));
      found = await this.whole.run({ src_img, trg_img, src_kps: asked });
    } else {
      found = await this.correlator.run({ src_map: source.map, trg_map: target.map, src_kps: asked });
    }
    const [trg, confidence, heatmap] = await Promise.all(["trg_kps", "confidence", "heatmap"].map((name) => found[name].getData()));
    const [rows, columns] = found.heatmap.dims.slice(2);
    return { points: trg, confidence, heatmap, rows, columns };
  }
}

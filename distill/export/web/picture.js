// From a file to what the network takes and what the page shows. Orientation, transparency and colour are treated as
// distill.data.images does: EXIF orientation applied, transparency on white, colour profiles not applied.
import { checkedSize, LIMITS } from "./image_header.js";
import { upright } from "./orientation.js";
import { Refusal } from "./refusal.js";
import { contentBox, SquareResizer } from "./resize.js";

const STRIP = 64; // rows at a time, which bounds the memory of large pictures
const SHOWN = 1200; // px of the longer side of the picture that the page shows

/**
 * Returns {width, height, box, pixels (3, side, side), shown} of a file; throws a Refusal for what is no picture.
 *
 * `side` is that of the square, px, `resize` how pictures are brought to it, `box` where the picture lies there.
 */
export async function readPicture(blob, name, side, resize = "squash") {
  if (!blob.size) throw new Refusal(`Expected a picture but ${name} is empty; choose another.`);
  if (blob.size > LIMITS.bytes) {
    throw new Refusal(`Expected a file of at most ${LIMITS.bytes / 2 ** 20} MiB but ${name} has ${Math.ceil(blob.size / 2 ** 20)}; make it smaller.`);
  }
  const bytes = new Uint8Array(await blob.arrayBuffer());
  const { type, orientation } = checkedSize(bytes, name);
  let bitmap;
  try {
    // The type is that of the bytes, not of the name: nothing else is decoded than what was measured.
    const imageOrientation = orientation ? "none" : "from-image";
    bitmap = await createImageBitmap(new Blob([bytes], { type }), { imageOrientation, colorSpaceConversion: "none" });
    bitmap = upright(bitmap, orientation ?? 1);
  } catch {
    throw new Refusal(`Expected a whole picture but ${name} cannot be decoded; save it again.`);
  }
  try {
    const { width, height } = bitmap, box = contentBox(width, height, side, resize);
    return { width, height, box, pixels: toSquare(bitmap, side, box), shown: await reduced(bitmap) };
  } finally {
    bitmap.close();
  }
}

function toSquare(bitmap, side, box) {
  const { width, height } = bitmap, resizer = new SquareResizer(width, height, side, box);
  const canvas = new OffscreenCanvas(width, Math.min(STRIP, height));
  const context = canvas.getContext("2d", { willReadFrequently: true });
  for (let top = 0; top < height; top += canvas.height) {
    const rows = Math.min(canvas.height, height - top);
    context.fillStyle = "white";
    context.fillRect(0, 0, width, rows);
    context.drawImage(bitmap, 0, top, width, rows, 0, 0, width, rows);
    const rgba = context.getImageData(0, 0, width, rows).data;
    for (let row = 0; row < rows; row++) resizer.add(top + row, rgba, 4 * width * row);
  }
  return resizer.result.map((value) => Math.min(1, Math.max(0, value)));
}

function reduced(bitmap) {
  const factor = Math.min(1, SHOWN / Math.max(bitmap.width, bitmap.height));
  const [resizeWidth, resizeHeight] = [bitmap.width, bitmap.height].map((length) => Math.max(1, Math.round(length * factor)));
  return createImageBitmap(bitmap, { resizeWidth, resizeHeight, resizeQuality: "high" });
}

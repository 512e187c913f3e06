// The size of a picture from its header, before anything is decoded: a small file may ask for gigabytes of pixels.
import { webpOrientation } from "./orientation.js";
import { Refusal } from "./refusal.js";

export const LIMITS = { bytes: 64 * 2 ** 20, pixels: 64e6, side: 16384, shortest: 8, ratio: 10 };

/**
 * Returns {type, width, height} of the bytes of a JPEG, PNG or WebP file, and of the latter its "orientation"; throws a Refusal for
 * others, and for those that are too large, too small or too long for the page.
 */
export function checkedSize(bytes, name) {
  const found = jpeg(bytes) ?? png(bytes) ?? webp(bytes);
  if (!found) throw new Refusal(`Expected a JPEG, PNG or WebP picture but ${name} is none or is damaged; save it as one of these.`);
  const { width, height } = found;
  if (width * height > LIMITS.pixels || Math.max(width, height) > LIMITS.side) {
    throw new Refusal(
      `Expected a picture of at most ${LIMITS.pixels / 1e6} megapixels and ${LIMITS.side} px a side but ${name} has ` +
        `${width} x ${height} px (${((width * height) / 1e6).toFixed(1)} megapixels); make it smaller.`,
    );
  }
  if (Math.min(width, height) < LIMITS.shortest) {
    throw new Refusal(`Expected a picture of at least ${LIMITS.shortest} px a side but ${name} has ${width} x ${height} px.`);
  }
  if (Math.max(width, height) > LIMITS.ratio * Math.min(width, height)) {
    throw new Refusal(
      `Expected a picture whose longer side is at most ${LIMITS.ratio} times the shorter one but ${name} has ` +
        `${width} x ${height} px; cut a part out of it.`,
    );
  }
  return found;
}

const text = (bytes, from, length) => String.fromCharCode(...bytes.subarray(from, from + length));
const view = (bytes) => new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);

function png(bytes) {
  if (bytes.length < 33 || text(bytes, 0, 8) !== "\x89PNG\r\n\x1a\n" || text(bytes, 12, 4) !== "IHDR") return null;
  return { type: "image/png", width: view(bytes).getUint32(16), height: view(bytes).getUint32(20) };
}

// Every frame header of the file is looked at, thumbnails in APP segments are skipped with their segment; the largest counts.
function jpeg(bytes) {
  if (bytes.length < 4 || bytes[0] !== 0xff || bytes[1] !== 0xd8) return null;
  const data = view(bytes);
  for (let at = 2; at + 9 < bytes.length; ) {
    if (bytes[at] !== 0xff) return null;
    const marker = bytes[at + 1];
    if (marker === 0xff) at += 1;
    else if (marker === 0x01 || (marker >= 0xd0 && marker <= 0xd8)) at += 2;
    else if (marker === 0xda || marker === 0xd9) return null;
    else if (marker >= 0xc0 && marker <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(marker)) {
      return { type: "image/jpeg", width: data.getUint16(at + 7), height: data.getUint16(at + 5) };
    } else at += 2 + data.getUint16(at + 2);
  }
  return null;
}

function webp(bytes) {
  if (bytes.length < 30 || text(bytes, 0, 4) !== "RIFF" || text(bytes, 8, 4) !== "WEBP") return null;
  const data = view(bytes), kind = text(bytes, 12, 4), type = "image/webp";
  const three = (at) => 1 + (bytes[at] | (bytes[at + 1] << 8) | (bytes[at + 2] << 16));
  if (kind === "VP8X") return { type, width: three(24), height: three(27), orientation: webpOrientation(bytes) };
  if (kind === "VP8L") {
    const bits = data.getUint32(21, true);
    return { type, width: 1 + (bits & 0x3fff), height: 1 + ((bits >>> 14) & 0x3fff) };
  }
  if (kind === "VP8 ") return { type, width: data.getUint16(26, true) & 0x3fff, height: data.getUint16(28, true) & 0x3fff };
  return null;
}

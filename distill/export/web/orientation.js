// The EXIF orientation of WebP files, which browsers do not apply, unlike that of JPEG and PNG files.

/** Returns how a WebP picture lies in its file, 1 to 8; 1, upright, where the file does not say. */
export function webpOrientation(bytes) {
  const data = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  for (let at = 12; at + 8 <= bytes.length; ) {
    const length = data.getUint32(at + 4, true);
    if (data.getUint32(at) === 0x45584946) return exifOrientation(bytes.subarray(at + 8, at + 8 + length)); // "EXIF"
    at += 8 + length + (length % 2);
  }
  return 1;
}

function exifOrientation(bytes) {
  const marked = String.fromCharCode(...bytes.subarray(0, 6)) === "Exif\0\0"; // some programs write the mark of JPEG files
  const exif = marked ? bytes.subarray(6) : bytes;
  const data = new DataView(exif.buffer, exif.byteOffset, exif.byteLength);
  if (data.byteLength < 8) return 1;
  const little = data.getUint16(0) === 0x4949, directory = data.getUint32(4, little);
  const count = directory + 2 <= data.byteLength ? data.getUint16(directory, little) : 0;
  for (let number = 0; number < count; number++) {
    const entry = directory + 2 + 12 * number;
    if (entry + 12 > data.byteLength) break;
    if (data.getUint16(entry, little) !== 0x0112) continue;
    const value = data.getUint16(entry + 8, little);
    return value >= 1 && value <= 8 ? value : 1;
  }
  return 1;
}

/** Returns an ImageBitmap as viewers show a picture of this orientation; the given one is closed where it is another. */
export function upright(bitmap, orientation) {
  if (orientation === 1) return bitmap;
  const { width: w, height: h } = bitmap, onSide = orientation > 4;
  const canvas = new OffscreenCanvas(onSide ? h : w, onSide ? w : h), context = canvas.getContext("2d");
  context.imageSmoothingEnabled = false;
  const transforms = {
    2: [-1, 0, 0, 1, w, 0],
    3: [-1, 0, 0, -1, w, h],
    4: [1, 0, 0, -1, 0, h],
    5: [0, 1, 1, 0, 0, 0],
    6: [0, 1, -1, 0, h, 0],
    7: [0, -1, -1, 0, h, w],
    8: [0, -1, 1, 0, 0, w],
  };
  context.setTransform(...transforms[orientation]);
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  return canvas.transferToImageBitmap();
}

// Checks that base64 is the PNG, JPEG or GIF that it says, and of a size that a page can show.

const MOST_PIXELS = 40_000_000;

/** Return width and height of a picture; null if it is none that can be shown. */
export function sizeOf(mime, base64) {
  let data;
  try {
    data = Uint8Array.from(atob(base64.replace(/\s/g, "")), (character) => character.charCodeAt(0));
  } catch {
    return null;
  }
  const view = new DataView(data.buffer);
  const size = READERS[mime]?.(data, view) ?? null;
  return size !== null && size.width > 0 && size.height > 0 && size.width * size.height <= MOST_PIXELS ? size : null;
}

const starts = (data, ...bytes) => bytes.every((byte, index) => data[index] === byte);

const READERS = {
  "image/png": (data, view) =>
    starts(data, 0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a) && data.length > 33
      ? { width: view.getUint32(16), height: view.getUint32(20) }
      : null,
  "image/gif": (data, view) =>
    starts(data, 0x47, 0x49, 0x46, 0x38) && data.length > 13
      ? { width: view.getUint16(6, true), height: view.getUint16(8, true) }
      : null,
  "image/jpeg": (data, view) => (starts(data, 0xff, 0xd8, 0xff) ? frameOf(data, view) : null),
};

/** Find the frame header of a JPEG, which has its size. */
function frameOf(data, view) {
  let at = 2;
  while (at + 9 < data.length && data[at] === 0xff) {
    const marker = data[at + 1];
    const isFrame = marker >= 0xc0 && marker <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(marker);
    if (isFrame) return { width: view.getUint16(at + 7), height: view.getUint16(at + 5) };
    at += 2 + Math.max(2, view.getUint16(at + 2));
  }
  return null;
}

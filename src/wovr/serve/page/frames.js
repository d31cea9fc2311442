// Frames: how a binary message is read, and how its pictures come onto the canvases, in order and none twice.

const MOST = 8; // frames that may wait to be drawn; in a hidden tab nothing is drawn

/** {header, images: {world: Blob}} of one message. */
export function unpack(buffer) {
  const length = new DataView(buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  const images = {};
  let offset = 4 + length;
  for (const [world, bytes] of Object.entries(header.images)) {
    images[world] = new Blob([new Uint8Array(buffer, offset, bytes)], { type: "image/webp" });
    offset += bytes;
  }
  return { header, images };
}

/** Draws frames one after the other, each before a repaint of its own, and says so. */
export class Painter {
  constructor(canvases, drawn) {
    this.canvases = canvases;
    this.drawn = drawn;
    this.waiting = [];
    this.busy = false;
  }

  add(frame) {
    this.waiting.push(frame);
    if (this.waiting.length > MOST) this.waiting.shift();
    if (!this.busy) this.paint();
  }

  async paint() {
    this.busy = true;
    while (this.waiting.length) {
      const { header, images } = this.waiting.shift();
      const worlds = Object.keys(images);
      const bitmaps = await Promise.all(worlds.map((world) => createImageBitmap(images[world])));
      await new Promise(requestAnimationFrame);
      worlds.forEach((world, i) => put(this.canvases[world], bitmaps[i]));
      if (worlds.length === 2) header.psnr = compare(this.canvases);
      this.drawn(header);
    }
    this.busy = false;
  }
}

function put(canvas, bitmap) {
  if (canvas.width !== bitmap.width) [canvas.width, canvas.height] = [bitmap.width, bitmap.height];
  canvas.getContext("2d", { willReadFrequently: true }).drawImage(bitmap, 0, 0);
  bitmap.close();
}

/** Fill the canvas `difference`; returns the PSNR of the two worlds' frames in dB. */
function compare({ imagined, true: truth, difference }) {
  const [a, b] = [imagined, truth].map((canvas) =>
    canvas.getContext("2d", { willReadFrequently: true }).getImageData(0, 0, canvas.width, canvas.height)
  );
  [difference.width, difference.height] = [a.width, a.height];
  const between = new ImageData(a.width, a.height);
  let squares = 0;
  for (let i = 0; i < a.data.length; i++) {
    if (i % 4 === 3) {
      between.data[i] = 255;
      continue;
    }
    const gap = Math.abs(a.data[i] - b.data[i]);
    squares += gap * gap;
    between.data[i] = Math.min(255, 2 * gap);
  }
  difference.getContext("2d").putImageData(between, 0, 0);
  const mean = squares / (0.75 * a.data.length);
  return mean ? 10 * Math.log10((255 * 255) / mean) : Infinity;
}

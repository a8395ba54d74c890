// Where two pictures differ: the second one turned and mirrored as it fits the first best.

const SMALL = 48; // px, at which the eight ways are compared
const STRONGER = 3; // times the difference, so that little is seen

// The pixels of a picture, squashed to a size, after `turns` quarter turns and perhaps a mirror.
function pixels(image, width, height, turns = 0, mirror = false) {
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.translate(width / 2, height / 2);
  context.scale(mirror ? -1 : 1, 1);
  context.rotate((turns * Math.PI) / 2);
  const [w, h] = turns % 2 ? [height, width] : [width, height];
  context.drawImage(image, -w / 2, -h / 2, w, h);
  return context.getImageData(0, 0, width, height);
}

function distance(one, other) {
  let sum = 0;
  for (let i = 0; i < one.data.length; i++) sum += Math.abs(one.data[i] - other.data[i]);
  return sum;
}

// {turns, mirror} with which `other` is most like `image`.
export function best(image, other) {
  const known = pixels(image, SMALL, SMALL);
  let found = { turns: 0, mirror: false, far: Infinity };
  for (const mirror of [false, true]) {
    for (const turns of [0, 1, 2, 3]) {
      const far = distance(known, pixels(other, SMALL, SMALL, turns, mirror));
      if (far < found.far) found = { turns, mirror, far };
    }
  }
  return found;
}

// Draw the difference on a canvas that takes the size of the first picture.
export function difference(image, other, canvas) {
  const [width, height] = [image.naturalWidth, image.naturalHeight];
  const { turns, mirror } = best(image, other);
  const [one, two] = [pixels(image, width, height), pixels(other, width, height, turns, mirror)];
  for (let i = 0; i < one.data.length; i++) {
    if (i % 4 < 3) one.data[i] = Math.min(255, STRONGER * Math.abs(one.data[i] - two.data[i]));
  }
  Object.assign(canvas, { width, height });
  canvas.getContext("2d").putImageData(one, 0, 0);
}

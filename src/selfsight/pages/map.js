// The map of all items, drawn point by point, so that a hundred thousand need no graphics card: zoomed, moved, and
// chosen from by a line drawn around points.

const RADIUS = [1, 5]; // px of a point, of many and of few
const REACH = 8; // px, within which a point is pointed at
const DIM = 40; // of 255: what was dropped

export class Plane {
  // chosen(places): the points within the line. pointed(place, x, y): the one under the pointer, -1 for none.
  constructor(canvas, chosen, pointed) {
    Object.assign(this, { canvas, chosen, pointed, x: [], y: [], colours: null, dropped: new Uint8Array(), selected: new Uint8Array(), line: null });
    this.context = canvas.getContext("2d");
    new ResizeObserver(() => this.draw()).observe(canvas);
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.zoom(Math.exp(-event.deltaY / (event.deltaMode ? 10 : 300)), event.offsetX, event.offsetY);
    }, { passive: false });
    canvas.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      canvas.setPointerCapture(event.pointerId);
      if (event.shiftKey) this.held = [event.offsetX, event.offsetY];
      else this.line = [[event.offsetX, event.offsetY]];
    });
    canvas.addEventListener("pointermove", (event) => this.moved(event.offsetX, event.offsetY));
    canvas.addEventListener("pointerleave", () => pointed(-1));
    for (const end of ["pointerup", "pointercancel"]) {
      canvas.addEventListener(end, () => {
        this.held = null;
        const line = this.line;
        this.line = null;
        if (line) this.choose(line.length > 2 ? this.within(line) : []);
      });
    }
  }

  // x, y: in [0, 1]. The order of the points is that of the items.
  show(x, y) {
    Object.assign(this, { x, y, dropped: new Uint8Array(x.length), selected: new Uint8Array(x.length) });
    this.fit();
  }

  fit() {
    [this.scale, this.left, this.top] = [1, 0, 0];
    this.draw();
  }

  zoom(factor, px = this.canvas.clientWidth / 2, py = this.canvas.clientHeight / 2) {
    const scale = Math.min(500, Math.max(0.5, this.scale * factor));
    this.left = px - ((px - this.left) * scale) / this.scale;
    this.top = py - ((py - this.top) * scale) / this.scale;
    this.scale = scale;
    this.draw();
  }

  moved(px, py) {
    if (this.held) {
      this.left += px - this.held[0];
      this.top += py - this.held[1];
      this.held = [px, py];
      this.draw();
    } else if (this.line) {
      this.line.push([px, py]);
      this.draw();
    } else this.pointed(this.nearest(px, py), px, py);
  }

  // Screen pixels: [side of the square, its left edge, its upper edge].
  frame() {
    const { clientWidth: width, clientHeight: height } = this.canvas;
    const side = Math.min(width, height) - 24;
    return [side * this.scale, this.left + ((width - side) / 2) * this.scale, this.top + ((height - side) / 2) * this.scale];
  }

  nearest(px, py) {
    const [side, left, top] = this.frame();
    let [best, far] = [-1, REACH * REACH];
    for (let i = 0; i < this.x.length; i++) {
      const distance = (left + side * this.x[i] - px) ** 2 + (top + side * this.y[i] - py) ** 2;
      if (distance < far) [best, far] = [i, distance];
    }
    return best;
  }

  // The points within a closed line, by how often a ray from them crosses it.
  within(line) {
    const [side, left, top] = this.frame();
    const [low, high] = [[0, 1].map((axis) => Math.min(...line.map((at) => at[axis]))), [0, 1].map((axis) => Math.max(...line.map((at) => at[axis])))];
    const found = [];
    for (let i = 0; i < this.x.length; i++) {
      const px = left + side * this.x[i];
      const py = top + side * this.y[i];
      if (px < low[0] || py < low[1] || px > high[0] || py > high[1]) continue;
      let inside = false;
      for (let a = 0, b = line.length - 1; a < line.length; b = a++) {
        const [from, to] = [line[a], line[b]];
        if (from[1] > py !== to[1] > py && px < ((to[0] - from[0]) * (py - from[1])) / (to[1] - from[1]) + from[0]) inside = !inside;
      }
      if (inside) found.push(i);
    }
    return found;
  }

  choose(places) {
    this.selected.fill(0);
    for (const place of places) this.selected[place] = 1;
    this.draw();
    this.chosen(places);
  }

  draw() {
    const { canvas, context } = this;
    const ratio = devicePixelRatio;
    const [width, height] = [Math.round(canvas.clientWidth * ratio), Math.round(canvas.clientHeight * ratio)];
    if (!width || !height) return;
    Object.assign(canvas, { width, height });
    const image = context.createImageData(width, height);
    const bytes = new Uint32Array(image.data.buffer);
    const [side, left, top] = this.frame().map((value) => value * ratio);
    const radius = Math.round(Math.max(RADIUS[0], Math.min(RADIUS[1], (400 / Math.sqrt(this.x.length + 1)) * Math.sqrt(this.scale))) * ratio);
    for (const front of [0, 1]) { // what is chosen lies on top
      for (let i = 0; i < this.x.length; i++) {
        if (this.selected[i] !== front) continue;
        const [px, py] = [Math.round(left + side * this.x[i]), Math.round(top + side * this.y[i])];
        if (px < -radius || py < -radius || px >= width + radius || py >= height + radius) continue;
        const colour = this.colour(i);
        for (let y = Math.max(0, py - radius + 1); y < Math.min(height, py + radius); y++) {
          for (let x = Math.max(0, px - radius + 1); x < Math.min(width, px + radius); x++) bytes[y * width + x] = colour;
        }
      }
    }
    context.putImageData(image, 0, 0);
    if (!this.line) return;
    context.strokeStyle = "#fff";
    context.lineWidth = 1.5 * ratio;
    context.beginPath();
    for (const [x, y] of this.line) context.lineTo(x * ratio, y * ratio);
    context.closePath();
    context.stroke();
  }

  // As a number 0xAABBGGRR.
  colour(place) {
    if (this.selected[place]) return 0xffffffff;
    const [red, green, blue] = this.colours ? this.colours[place] : [127, 178, 229];
    return (((this.dropped[place] ? DIM : 255) << 24) | (blue << 16) | (green << 8) | red) >>> 0;
  }
}

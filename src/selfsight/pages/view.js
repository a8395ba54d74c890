// One large picture: fitted, zoomed about a point, moved.

import { made } from "./ask.js";

const LARGEST = 40; // screen pixels a pixel
const STEP = 1.25;

export class View {
  constructor(element, zoomed) {
    this.element = element;
    this.brush = null; // {down, move, up}: what a drag does, at points of the picture; Shift moves the picture all the same
    this.zoomed = zoomed; // called with screen pixels a pixel of the picture that was sent
    this.image = made("img");
    this.image.alt = "";
    this.image.draggable = false;
    this.note = made("p", "soft");
    this.canvas = made("canvas"); // on top of the picture, pixel on pixel
    this.canvas.width = 0;
    this.layers = [this.image, this.canvas];
    element.append(this.image, this.canvas, this.note);
    this.image.addEventListener("load", () => this.fit());
    new ResizeObserver(() => this.fit()).observe(element);
    element.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.zoom(Math.exp(-event.deltaY / (event.deltaMode ? 10 : 300)), event);
    }, { passive: false });
    element.addEventListener("dblclick", (event) => {
      if (this.brush) return;
      if (this.scale > this.whole() * 1.01) this.fit();
      else this.zoom(4, event);
    });
    element.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      element.setPointerCapture(event.pointerId);
      if (this.brush && !event.shiftKey) this.brush.down(this.point(event));
      else this.held = [event.clientX, event.clientY];
    });
    element.addEventListener("pointermove", (event) => {
      if (this.brush && !this.held) return this.brush.move(this.point(event));
      if (!this.held) return;
      this.move(event.clientX - this.held[0], event.clientY - this.held[1]);
      this.held = [event.clientX, event.clientY];
    });
    for (const end of ["pointerup", "pointercancel"]) {
      element.addEventListener(end, () => {
        this.held = null;
        this.brush?.up();
      });
    }
  }

  show(address) {
    this.note.textContent = "";
    this.image.hidden = false;
    this.image.src = address;
  }

  say(text) {
    this.image.hidden = true;
    this.image.removeAttribute("src");
    this.note.textContent = text;
  }

  whole() {
    const { width, height } = this.element.getBoundingClientRect();
    return Math.min(width / (this.image.naturalWidth || 1), height / (this.image.naturalHeight || 1), LARGEST);
  }

  fit() {
    if (!this.image.naturalWidth) return;
    this.scale = this.whole();
    this.x = this.y = 0; // from the middle, in screen pixels
    this.draw();
  }

  zoom(factor, at) {
    if (!this.image.naturalWidth) return;
    const box = this.element.getBoundingClientRect();
    const [px, py] = at ? [at.clientX - box.x - box.width / 2, at.clientY - box.y - box.height / 2] : [0, 0];
    const scale = Math.min(LARGEST, Math.max(Math.min(1, this.whole()) / 2, this.scale * factor));
    this.x = px - ((px - this.x) * scale) / this.scale;
    this.y = py - ((py - this.y) * scale) / this.scale;
    this.scale = scale;
    this.draw();
  }

  // Where the picture begins, in screen pixels of the element.
  corner() {
    const { width, height } = this.element.getBoundingClientRect();
    const [w, h] = [this.image.naturalWidth * this.scale, this.image.naturalHeight * this.scale];
    return { x: width / 2 - w / 2 + this.x, y: height / 2 - h / 2 + this.y };
  }

  // The point of the picture under a pointer, in pixels of the picture that was sent.
  point(event) {
    const [box, corner] = [this.element.getBoundingClientRect(), this.corner()];
    return { x: (event.clientX - box.x - corner.x) / this.scale, y: (event.clientY - box.y - corner.y) / this.scale };
  }

  screen(point) {
    const corner = this.corner();
    return { x: corner.x + point.x * this.scale, y: corner.y + point.y * this.scale };
  }

  larger() { this.zoom(STEP); }

  smaller() { this.zoom(1 / STEP); }

  move(dx, dy) {
    this.x += dx;
    this.y += dy;
    this.draw();
  }

  draw() {
    const { image, scale } = this;
    const box = this.element.getBoundingClientRect();
    const [w, h] = [image.naturalWidth * scale, image.naturalHeight * scale];
    this.x = Math.max(-w / 2, Math.min(w / 2, this.x)); // a part of it stays in sight
    this.y = Math.max(-h / 2, Math.min(h / 2, this.y));
    for (const layer of this.layers) {
      layer.style.width = `${w}px`;
      layer.style.height = `${h}px`;
      layer.style.transform = `translate(${box.width / 2 - w / 2 + this.x}px, ${box.height / 2 - h / 2 + this.y}px)`;
    }
    image.classList.toggle("blocks", scale >= 3);
    this.zoomed(scale);
  }
}

// The page on which people paint masks. A map says of each pixel which region it belongs to: of a class, or one object.

import { made } from "./ask.js";
import { $, Marking } from "./marking.js";
import { decode, encode } from "./runs.js";

const BACKGROUND = "background";
const COLOURS = [[127, 178, 229], [235, 163, 106], [124, 199, 154], [229, 138, 160], [183, 155, 230], [214, 192, 98], [108, 198, 201], [197, 154, 119], [163, 199, 100], [180, 185, 193]];
const GREY = [70, 74, 80];
const OPAQUE = 120;

let map = null; // [height * width] the number of a region, 0 for what nobody painted
let regions = []; // {name, told}; number 1 is the first
let strokes = []; // {at, old}: what each changed
let stroke = null;
let number = 0; // of the region that the brush paints
let radius = 6;
let last = null; // point of the stroke
let guessed = false; // whether a head's guess is shown, which nobody took yet

const desk = new Marking({
  address: (id) => `api/items/${id}?height=${height()}&width=${width()}`,
  begun() {
    map = null;
    view.canvas.width = 0;
  },
  opened,
  leave() {},
  left: () => false,
  chosen(name) {
    if (name !== desk.name) number = 0;
  },
  zoomed: () => ring(),
  badge: (classes) => classes.filter((of) => of !== BACKGROUND).join(" | ") || "mask",
  rows: [[BACKGROUND, "b"], ["", "e"]],
  said,
  paint: () => ($("brush").textContent = `${2 * radius} px`),
  keys: {
    " ": next, Enter: next, ".": next, b: () => desk.choose(BACKGROUND), e: () => desk.choose(""), n: object, f: fill, z: undo,
    "[": () => thicker(1 / 1.3), "]": () => thicker(1.3),
  },
  buttons: { fill, object, thinner: () => thicker(1 / 1.3), thicker: () => thicker(1.3) },
  nothing: "Nothing is left here: every item has its mask.",
});
const { view } = desk;
const cursor = made("div", "ring");
view.element.append(cursor);
view.brush = { down, move, up };

const width = () => view.image.naturalWidth;
const height = () => view.image.naturalHeight;

// -- the map and its picture --

function opened(found) {
  view.canvas.width = width();
  view.canvas.height = height();
  map = new Uint16Array(width() * height());
  [regions, strokes, guessed, number] = [[], [], !found.regions && !!found.guess, 0];
  for (const each of found.regions || found.guess || []) {
    decode(each.counts, map, width(), height(), regions.push({ name: each.name, told: each.told }));
    desk.known(each.name);
  }
  repaint(0, 0, width(), height());
}

function colour(value) {
  if (!value) return [0, 0, 0, 0];
  const { name: of } = regions[value - 1];
  if (of === BACKGROUND) return [...GREY, OPAQUE];
  const [r, g, b] = COLOURS[desk.hue(of)];
  const shade = regions[value - 1].told ? 0.5 + 0.5 * ((value * 0.618) % 1) : 1; // objects side by side differ
  return [r * shade, g * shade, b * shade, OPAQUE];
}

function repaint(x0, y0, x1, y1) {
  [x0, y0, x1, y1] = [Math.max(0, x0), Math.max(0, y0), Math.min(width(), x1), Math.min(height(), y1)];
  if (x1 <= x0 || y1 <= y0) return;
  const colours = [[0, 0, 0, 0], ...regions.map((_, i) => colour(i + 1))];
  const part = new ImageData(x1 - x0, y1 - y0);
  for (let y = y0, to = 0; y < y1; y++) for (let x = x0; x < x1; x++, to += 4) part.data.set(colours[map[y * width() + x]], to);
  view.canvas.getContext("2d").putImageData(part, x0, y0);
}

function set(place, value) {
  if (map[place] === value) return;
  stroke.at.push(place);
  stroke.old.push(map[place]);
  map[place] = value;
}

function region() {
  const { name } = desk;
  if (!name) return 0;
  if (number && regions[number - 1].name === name) return number;
  const told = regions.some((each) => each.name === name && each.told); // then no stroke undoes that objects are apart
  number = (told ? 0 : regions.findIndex((each) => each.name === name) + 1) || regions.push({ name, told });
  return number;
}

// A line of the brush's width from the last point to this one.
function line(to) {
  const value = region();
  const from = last || to;
  const [x0, x1] = [Math.min(from.x, to.x) - radius, Math.max(from.x, to.x) + radius].map(Math.round);
  const [y0, y1] = [Math.min(from.y, to.y) - radius, Math.max(from.y, to.y) + radius].map(Math.round);
  const [dx, dy] = [to.x - from.x, to.y - from.y];
  const long = dx * dx + dy * dy || 1;
  for (let y = Math.max(0, y0); y <= Math.min(height() - 1, y1); y++) {
    for (let x = Math.max(0, x0); x <= Math.min(width() - 1, x1); x++) {
      const [px, py] = [x + 0.5 - from.x, y + 0.5 - from.y];
      const along = Math.min(1, Math.max(0, (px * dx + py * dy) / long));
      const [ox, oy] = [px - along * dx, py - along * dy];
      if (ox * ox + oy * oy <= radius * radius) set(y * width() + x, value);
    }
  }
  last = to;
  repaint(x0, y0, x1 + 1, y1 + 1);
}

function down(point) {
  if (!map || desk.broken) return;
  if (!desk.name && !desk.classes.length) return desk.note("Make a class first: press /.");
  stroke = { at: [], old: [] };
  last = null;
  line(point);
}

function move(point) {
  ring(point);
  if (stroke) line(point);
}

function up() {
  if (!stroke) return;
  if (stroke.at.length) changed(stroke);
  stroke = null;
  last = null;
}

function changed(done) {
  if (done) strokes.push(done);
  guessed = false;
  save();
  desk.paint();
}

function undo() {
  const done = strokes.pop();
  if (!done) return desk.note("There is no stroke to take back on this picture.");
  for (let i = done.at.length - 1; i >= 0; i--) map[done.at[i]] = done.old[i];
  repaint(0, 0, width(), height());
  changed(null);
}

function fill() {
  if (!map) return;
  const kept = [desk.name, number];
  [desk.name, number] = [BACKGROUND, 0];
  stroke = { at: [], old: [] };
  const value = region();
  for (let place = 0; place < map.length; place++) if (!map[place]) set(place, value);
  [desk.name, number] = kept;
  repaint(0, 0, width(), height());
  if (stroke.at.length) changed(stroke);
  stroke = null;
}

function object() {
  const { name } = desk;
  if (!name || name === BACKGROUND) return desk.note("Choose a class first: objects are of a class.");
  if (!map) return;
  for (const each of regions) if (each.name === name) each.told = true;
  number = regions.push({ name, told: true });
  desk.note(`The next strokes are a new object of ${name}.`);
}

function ring(point) {
  const side = 2 * radius * (view.scale || 1);
  cursor.style.width = cursor.style.height = `${side}px`;
  if (!point) return;
  const { x, y } = view.screen(point);
  cursor.style.transform = `translate(${x - side / 2}px, ${y - side / 2}px)`;
}

function save() {
  if (!map) return;
  const present = new Set(map);
  const told = regions.map((each, i) => ({ ...each, counts: present.has(i + 1) ? encode(map, width(), height(), i + 1) : "" }));
  desk.save("api/mask", { id: desk.id, height: height(), width: width(), regions: told.filter((each) => each.counts) });
}

function next() {
  if (guessed) changed(null);
  desk.next();
}

function said() {
  if (guessed) return [made("span", "good", "The head's guess: Enter takes it, a stroke corrects it.")];
  const { late, failed } = desk.detail || {};
  if (failed) return [made("span", "warn", failed)];
  return [made("span", "soft", late ? "The head takes long for this one: its guess is here when you come back, or paint." : "Paint with the left button.")];
}

function thicker(factor) {
  radius = Math.min(200, Math.max(0.5, Math.round(2 * (factor > 1 ? Math.max(radius * factor, radius + 0.5) : Math.min(radius * factor, radius - 0.5))) / 2));
  ring();
  desk.paint();
}

desk.start();

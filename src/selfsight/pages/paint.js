// The page on which people paint masks. A map says of each pixel which region it belongs to: of a class, or one object.

import { ask, made, Pictures, tell } from "./ask.js";
import { Grid } from "./grid.js";
import { decode, encode } from "./runs.js";
import { View } from "./view.js";

const $ = (id) => document.getElementById(id);
const BACKGROUND = "background";
const KEYS = [..."1234567890"]; // of classes
const HUES = [[127, 178, 229], [235, 163, 106], [124, 199, 154], [229, 138, 160], [183, 155, 230], [214, 192, 98], [108, 198, 201], [197, 154, 119], [163, 199, 100], [180, 185, 193]];
const GREY = [70, 74, 80];
const OPAQUE = 120;

let state = { order: [], now: { masked: {}, classes: {} } };
let at = 0;
let detail = null; // of the item that is shown
let map = null; // [height * width] the number of a region, 0 for what nobody painted
let regions = []; // {name, told}; number 1 is the first
let strokes = []; // {at, old}: what each changed
let stroke = null;
let classes = []; // their names, in the order of their keys
let name = ""; // that the brush paints; "" erases
let number = 0; // of the region that the brush paints
let radius = 6;
let last = null; // point of the stroke
let guessed = false; // whether a head's guess is shown, which nobody took yet
let refused = false;
let saving = Promise.resolve();
let unsaved = 0;
let broken = false;
let noted = 0;

const small = new Pictures("small", 800, 4);
const large = new Pictures("large", 12, 2);
const grid = new Grid($("grid"), small, dress, go);
const view = new View($("view"), (scale) => {
  const sent = view.image.naturalWidth || 1;
  $("zoom").textContent = `${Math.round((100 * scale * sent) / (detail?.width || sent))} %`;
  ring();
});
const cursor = made("div", "ring");
view.element.append(cursor);
view.image.addEventListener("load", opened);
view.brush = { down, move, up };

const current = () => state.order[at];
const width = () => view.canvas.width;
const height = () => view.canvas.height;

// -- the map and its picture --

async function opened() {
  const id = current();
  await saving; // what is kept of this picture
  if (id !== current()) return;
  view.canvas.width = view.image.naturalWidth;
  view.canvas.height = view.image.naturalHeight;
  map = new Uint16Array(width() * height());
  [regions, strokes, guessed, number] = [[], [], false, 0];
  const found = await ask(`api/items/${id}?height=${height()}&width=${width()}`).catch((error) => note(error.message));
  if (id !== current() || !found) return;
  detail = found;
  guessed = !found.regions && !!found.guess;
  for (const each of found.regions || found.guess || []) {
    decode(each.counts, map, width(), height(), regions.push({ name: each.name, told: each.told }));
    known(each.name);
  }
  repaint(0, 0, width(), height());
  paint();
}

function colour(value) {
  if (!value) return [0, 0, 0, 0];
  const { name: of } = regions[value - 1];
  if (of === BACKGROUND) return [...GREY, OPAQUE];
  const [r, g, b] = HUES[classes.indexOf(of) % HUES.length];
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
  if (!map || !detail || broken) return;
  if (!name && !classes.length) return note("Make a class first: press /.");
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
  paint();
}

function undo() {
  const done = strokes.pop();
  if (!done) return note("There is no stroke to take back on this picture.");
  for (let i = done.at.length - 1; i >= 0; i--) map[done.at[i]] = done.old[i];
  repaint(0, 0, width(), height());
  changed(null);
}

function fill() {
  if (!map || !detail) return;
  const kept = [name, number];
  [name, number] = [BACKGROUND, 0];
  stroke = { at: [], old: [] };
  const value = region();
  for (let place = 0; place < map.length; place++) if (!map[place]) set(place, value);
  [name, number] = kept;
  repaint(0, 0, width(), height());
  if (stroke.at.length) changed(stroke);
  stroke = null;
}

function object() {
  if (!name || name === BACKGROUND) return note("Choose a class first: objects are of a class.");
  if (!map) return;
  for (const each of regions) if (each.name === name) each.told = true;
  number = regions.push({ name, told: true });
  note(`The next strokes are a new object of ${name}.`);
}

function ring(point) {
  const side = 2 * radius * (view.scale || 1);
  cursor.style.width = cursor.style.height = `${side}px`;
  if (!point) return;
  const { x, y } = view.screen(point);
  cursor.style.transform = `translate(${x - side / 2}px, ${y - side / 2}px)`;
}

// -- the server --

function save() {
  if (!map || broken) return;
  const present = new Set(map);
  const told = regions.map((each, i) => ({ ...each, counts: present.has(i + 1) ? encode(map, width(), height(), i + 1) : "" }));
  const body = { id: current(), height: height(), width: width(), regions: told.filter((each) => each.counts) };
  unsaved += 1;
  $("saved").textContent = "saving…";
  saving = saving.then(async () => {
    if (broken) return;
    const said = await tell("api/mask", body);
    state.now = said.now;
    paint();
    refused = false;
  }).catch((error) => {
    if (!error.mistake) return fail(error);
    refused = true; // of what is painted nothing is lost: the next stroke tries again
    note(error.message);
  }).finally(() => {
    unsaved -= 1;
    $("saved").textContent = broken || refused ? "not saved" : unsaved ? "saving…" : "saved";
  });
}

function fail(error) {
  broken = true;
  $("banner").firstElementChild.textContent = error.message;
  $("banner").hidden = false;
}

async function load() {
  state = await ask("api/state");
  broken = false;
  $("banner").hidden = true;
  $("location").textContent = $("location").title = state.location;
  $("by").textContent = state.by;
  document.title = `label · ${state.location.split(/[\\/]/).filter(Boolean).pop() || ""}`;
  Object.keys(state.now.classes).forEach(known);
  if (!name && classes.length) choose(classes[0]);
  grid.list(state.order);
  const open = state.order.findIndex((id) => !state.now.masked[id]);
  go(Math.max(0, open));
}

// -- what is shown --

function known(of) {
  if (of !== BACKGROUND && !classes.includes(of)) classes.push(of);
}

function choose(of) {
  if (of) known(of);
  if (of !== name) number = 0;
  name = of;
  paint();
}

function go(index) {
  if (index < 0 || index >= state.order.length) return;
  at = index;
  [detail, map] = [null, null];
  view.canvas.width = 0;
  grid.go(index);
  const id = current();
  large.get(id).then((url) => id === current() && view.show(url), (error) => id === current() && view.say(error.message));
  if (state.order[index + 1]) large.get(state.order[index + 1]).catch(() => {});
  paint();
}

function next() {
  if (guessed) changed(null);
  const masked = (id) => state.now.masked[id] || id === current();
  for (let step = 1; step <= state.order.length; step++) {
    const index = (at + step) % state.order.length;
    if (!masked(state.order[index])) return go(index);
  }
  note("Nothing is left here: every item has its mask.");
}

function dress(cell, id) {
  const masked = state.now.masked[id];
  cell.lastElementChild.textContent = masked ? masked.filter((of) => of !== BACKGROUND).join(" | ") || "mask" : "";
  cell.classList.toggle("labelled", !!masked);
}

function paint() {
  const count = state.order.filter((id) => state.now.masked[id]).length;
  $("labelled").textContent = count.toLocaleString("en");
  $("asked").textContent = state.order.length.toLocaleString("en");
  $("progress").value = state.order.length ? count / state.order.length : 0;
  $("brush").textContent = `${2 * radius} px`;
  $("name").textContent = $("name").title = detail ? detail.uri + (detail.page === null ? "" : ` #${detail.page}`) : "";
  $("size").textContent = detail ? `${detail.width} × ${detail.height}${detail.depth > 8 ? ` · ${detail.depth} bit` : ""}` : "";
  $("suggestion").replaceChildren(made("span", guessed ? "good" : "soft", guessed ? "The head's guess: Enter takes it, a stroke corrects it." : "Paint with the left button."));
  const rows = [...classes.map((of, i) => [of, KEYS[i] || ""]), [BACKGROUND, "b"], ["", "e"]];
  $("classes").replaceChildren(...rows.map(([of, key]) => {
    const row = made("button", "class", made("kbd", key ? "" : "none", key || " "), made("i"), made("span", "cut", of || "erase"));
    if (of && of !== BACKGROUND) row.querySelector("i").dataset.hue = classes.indexOf(of) % HUES.length;
    row.append(made("span", "soft figures", of ? (state.now.classes[of] || 0).toLocaleString("en") : ""));
    row.setAttribute("aria-pressed", of === name);
    row.addEventListener("click", () => choose(of));
    return row;
  }));
  $("notes").replaceChildren(...(state.now.damaged ? [made("p", "warn", `${state.now.damaged} lines of the journal are cut or damaged and left out. All others count.`)] : []));
  grid.paint();
}

function note(text) {
  clearTimeout(noted);
  $("note").textContent = text;
  noted = setTimeout(() => ($("note").textContent = ""), 2000 + 60 * text.length);
}

function thicker(factor) {
  radius = Math.min(200, Math.max(0.5, Math.round(2 * (factor > 1 ? Math.max(radius * factor, radius + 0.5) : Math.min(radius * factor, radius - 0.5))) / 2));
  ring();
  paint();
}

// -- keys --

function typed(event) {
  const field = $("new");
  if (event.key === "Escape" || event.key === "Enter") {
    const made_ = event.key === "Enter" && field.value.trim();
    field.value = "";
    field.blur();
    if (made_) choose(classes.find((each) => each.toLowerCase() === made_.toLowerCase()) || made_);
  }
  event.stopPropagation();
}

const actions = {
  " ": next, Enter: next, ".": next, b: () => choose(BACKGROUND), e: () => choose(""), n: object, f: fill, z: undo,
  "[": () => thicker(1 / 1.3), "]": () => thicker(1.3),
  "/": () => $("new").focus(),
  "?": () => $("keys").showModal(),
  "+": () => view.larger(), "=": () => view.larger(), "-": () => view.smaller(), Escape: () => view.fit(),
  ArrowLeft: () => go(at - 1), ArrowRight: () => go(at + 1), ArrowUp: () => go(at - grid.columns), ArrowDown: () => go(at + grid.columns),
};
const moves = { ArrowLeft: [80, 0], ArrowRight: [-80, 0], ArrowUp: [0, 80], ArrowDown: [0, -80] };

function pressed(event) {
  if ($("keys").open || event.target === $("new")) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if ((event.ctrlKey || event.metaKey) && key !== "z") return;
  if (event.altKey || ((key === " " || key === "Enter") && event.target.closest("button"))) return;
  const place = KEYS.indexOf(key);
  if (event.shiftKey && moves[key]) view.move(...moves[key]);
  else if (actions[key]) actions[key]();
  else if (place >= 0 && place < classes.length) choose(classes[place]);
  else return;
  event.preventDefault();
}

document.addEventListener("keydown", pressed);
document.addEventListener("click", (event) => event.target.closest("button")?.blur());
window.addEventListener("beforeunload", (event) => unsaved && event.preventDefault());
$("new").addEventListener("keydown", typed);
for (const [id, does] of Object.entries({
  undo, next, fill, object, help: actions["?"], in: actions["+"], out: actions["-"], zoom: actions.Escape,
  thinner: actions["["], thicker: actions["]"], again: () => load().catch(fail),
})) $(id).addEventListener("click", does);
load().catch(fail);

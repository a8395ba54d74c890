// The page on which people decide of what a curation doubts: cases one by one, by keyboard, and the map of all items.

import { ask, made, Pictures, tell } from "./ask.js";
import { difference } from "./difference.js";
import { Grid } from "./grid.js";
import { Plane } from "./map.js";
import { View } from "./view.js";

const $ = (id) => document.getElementById(id);
const MAP = "map";
const HUES = 10;
const SCALE = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]]; // of numbers, low to high
const words = (name) => (name === MAP ? "Map" : state.kinds[name][0]);

let state = { cases: [], kinds: {}, classes: [] }; // kinds: {name: [title, sentence, how many are thought to be real]}
let kind = ""; // that is shown, or the map
let numbers = []; // of its cases
let at = 0; // the place among them
let facts = []; // of the items that are shown
let saving = Promise.resolve(); // the last of what the server was told
let unsaved = 0;
let broken = false;
let noted = 0; // the timer of the note
let plan = null; // the points of the map
let chosen = []; // places of points
let places = new Map(); // {id: place} of points

const small = new Pictures("small", 800, 4);
const large = new Pictures("large", 12, 2);
const left = new View($("left"), () => link(left, right));
const right = new View($("right"), () => link(right, left));
const grid = new Grid($("grid"), { get: (number) => small.get(state.cases[number].items[0]) }, dress, go);
const plane = new Plane($("map"), select, point);
let linking = false;

const current = () => (kind === MAP ? undefined : state.cases[numbers[at]]);
const pair = () => current()?.items.length === 2;
const kinds = () => Object.keys(state.kinds).filter((name) => state.cases.some((each) => each.kind === name));

// -- from the server --

async function load() {
  state = await ask("api/state");
  broken = false;
  $("banner").hidden = true;
  $("location").textContent = $("location").title = state.location;
  $("by").textContent = state.by;
  document.title = `review · ${state.location.split(/[\\/]/).filter(Boolean).pop() || ""}`;
  $("names").replaceChildren(...state.classes.map((name) => Object.assign(made("option"), { value: name })));
  const open = kinds().find((name) => state.cases.some((each) => each.kind === name && !each.outcome));
  await show(kind || open || kinds()[0] || MAP);
}

function fail(error) {
  broken = true;
  $("banner").firstElementChild.textContent = error.message;
  $("banner").hidden = false;
}

// One after the other, in the order in which they were given; after one that failed none is sent.
function later(task) {
  unsaved += 1;
  $("saved").textContent = "saving…";
  saving = saving.then(async () => {
    if (!broken) await task();
  }).catch((error) => (error.mistake ? note(error.message) : fail(error))).finally(() => {
    unsaved -= 1;
    $("saved").textContent = broken ? "not saved" : unsaved ? "saving…" : "saved";
  });
  return saving;
}

function take(said) {
  for (const [number, outcome] of Object.entries(said.outcomes)) state.cases[number].outcome = outcome;
  for (const [id, item] of Object.entries(said.items)) {
    if (places.has(id)) plane.dropped[places.get(id)] = item.state === "dropped";
    for (const fact of facts) if (fact?.id === id) Object.assign(fact, item);
  }
  paint();
}

// -- decisions --

function decide(ids, action, label = "") {
  if (broken || !ids.length) return;
  const [number, before] = [numbers[at], current()?.outcome];
  const settles = current() && (action !== "label" || current().kind === "label_errors");
  later(async () => {
    const told = tell("api/decide", { ids, action, label });
    const said = await told.catch((error) => {
      if (settles && error.mistake) state.cases[number].outcome = before;
      paint();
      throw error;
    });
    take(said);
    if (label && !state.classes.includes(label)) {
      state.classes.push(label);
      $("names").append(Object.assign(made("option"), { value: label }));
    }
    if (kind === MAP || !settles) note(`${ids.length.toLocaleString("en")} item${ids.length === 1 ? "" : "s"} ${{ keep: "kept", drop: "dropped", label: `labelled ${label}` }[action]}.`);
  });
  if (!settles) return;
  state.cases[number].outcome ||= "…"; // what the server says of it follows
  next();
}

const targets = () => (kind === MAP ? chosen.map((place) => plan.ids[place]) : current()?.items || []);
const keep = () => decide(targets(), "keep");
const drop = () => (pair() ? note("Which one? l drops the left, r the right.") : decide(targets(), "drop"));
const side = (place) => (pair() ? decide([current().items[place]], "drop") : note("This is not a pair: x drops it."));

function accept() {
  const suggested = current()?.suggested;
  if (suggested) return decide(current().items, "label", suggested);
  return note("There is no suggested label here.");
}

function undo() {
  later(async () => {
    const said = await tell("api/undo", {});
    if (!said.ids.length) return note("There is nothing to take back on this page.");
    take(said);
    const back = Object.keys(said.outcomes).map(Number);
    const here = kind === MAP ? -1 : numbers.findIndex((number) => back.includes(number));
    if (here >= 0) return go(here);
    if (kind === MAP || !back.length) return note("Taken back.");
    await show(state.cases[back[0]].kind);
    return go(numbers.indexOf(back[0]));
  });
}

function next() {
  for (let step = 1; step <= numbers.length; step++) {
    const place = (at + step) % numbers.length;
    if (!state.cases[numbers[place]].outcome) return go(place);
  }
  paint();
  const open = kinds().find((name) => state.cases.some((each) => each.kind === name && !each.outcome));
  return note(open ? `Nothing is left of this kind. Tab: ${words(open).toLowerCase()}.` : "Nothing is left: every case is decided.");
}

function note(text) {
  clearTimeout(noted);
  $("note").textContent = text;
  noted = setTimeout(() => ($("note").textContent = ""), 2000 + 60 * text.length);
}

// -- what is shown --

async function show(name) {
  kind = name;
  $("plane").hidden = $("colour").hidden = kind !== MAP;
  $("sides").hidden = kind === MAP;
  numbers = state.cases.flatMap((each, number) => (each.kind === kind ? [number] : []));
  grid.list(numbers);
  if (kind === MAP) return openMap();
  const open = numbers.findIndex((number) => !state.cases[number].outcome);
  return go(Math.max(0, open));
}

async function go(place) {
  if (place < 0 || place >= numbers.length) return;
  at = place;
  const { items } = current();
  facts = items.map((id) => ({ id }));
  grid.go(place);
  $("other").hidden = !pair();
  clear();
  paint();
  const coming = state.cases[numbers[place + 1]]?.items || [];
  for (const id of coming) large.get(id).catch(() => {});
  items.forEach(async (id, number) => {
    const view = [left, right][number];
    const here = () => current()?.items[number] === id;
    large.get(id).then((url) => here() && view.show(url), (error) => here() && view.say(error.message));
    const known = await ask(`api/items/${id}`).catch((error) => (error.mistake ? {} : fail(error)));
    if (!here() || !known) return;
    facts[number] = { ...known, id };
    paint();
  });
}

function link(view, other) {
  if (linking || !pair() || !view.image.naturalWidth || !other.image.naturalWidth) return;
  linking = true;
  other.scale = (other.whole() * view.scale) / view.whole();
  [other.x, other.y] = [view.x, view.y];
  other.draw();
  linking = false;
}

function clear() {
  left.canvas.width = 0;
  left.canvas.dataset.shown = "";
}

function compare() {
  if (!pair()) return note("Two pictures differ: here is one.");
  if (left.canvas.dataset.shown) return clear();
  if (!left.image.naturalWidth || !right.image.naturalWidth) return note("The pictures are not there yet.");
  difference(left.image, right.image, left.canvas);
  left.canvas.dataset.shown = "difference";
  return left.draw();
}

function dress(cell, number) {
  const { outcome } = state.cases[number];
  const badge = cell.lastElementChild;
  if (badge.textContent !== outcome) badge.textContent = outcome;
  cell.classList.toggle("labelled", outcome !== "");
}

function paint() {
  const done = state.cases.filter((each) => each.outcome).length;
  $("decided").textContent = done.toLocaleString("en");
  $("asked").textContent = state.cases.length.toLocaleString("en");
  $("progress").value = state.cases.length ? done / state.cases.length : 0;
  paintKinds();
  grid.paint();
  paintCase();
  paintActions();
  const notes = [];
  if (state.damaged) notes.push(made("p", "warn", `${state.damaged} lines of the journal are cut or damaged and left out. All others count.`));
  if (state.lost) notes.push(made("p", "soft", `${state.lost.toLocaleString("en")} cases are of items that are not here any more. Run curate again.`));
  $("notes").replaceChildren(...notes);
}

function paintKinds() {
  $("kinds").replaceChildren(...[...kinds(), ...(state.map ? [MAP] : [])].map((name) => {
    const open = state.cases.filter((each) => each.kind === name && !each.outcome).length;
    const tab = made("button", name === kind ? "on" : "", words(name), made("span", "soft figures", name === MAP ? "" : open.toLocaleString("en")));
    if (name !== MAP) tab.title = `${state.kinds[name][1]} About ${state.kinds[name][2].toLocaleString("en")} are thought to be real.`;
    tab.setAttribute("role", "tab");
    tab.setAttribute("aria-selected", name === kind);
    tab.addEventListener("click", () => show(name).catch(fail));
    return tab;
  }));
}

function paintCase() {
  const each = current();
  if (!each) return;
  [[$("name"), $("about"), $("left")], [$("name2"), $("about2"), $("right")]].forEach(([name, about, box], number) => {
    const fact = facts[number];
    name.textContent = name.title = fact?.uri ? fact.uri + (fact.page === null ? "" : ` #${fact.page}`) : "";
    about.textContent = fact?.width ? `${fact.width} × ${fact.height}` : "";
    box.classList.toggle("dropped", fact?.state === "dropped");
  });
  $("why").textContent = `${words(each.kind)}, ${at + 1} of ${numbers.length}, score ${each.score.toFixed(3)}`;
  $("key").replaceChildren();
  const rows = [each.outcome ? made("b", "good", each.outcome) : made("b", "", "Open")];
  facts.forEach((fact, number) => {
    const which = pair() ? `${["left", "right"][number]}: ` : "";
    const said = ["split", "group", "site"].filter((name) => fact[name]).map((name) => `${name} ${fact[name]}`);
    if (fact.label?.length) said.unshift(`label ${fact.label.join(", ")}`);
    if (fact.state) said.push(fact.state);
    if (said.length) rows.push(made("p", "soft", which + said.join(" · ")));
  });
  $("facts").replaceChildren(...rows);
}

function paintActions() {
  const each = current();
  const rows = [];
  if (each?.suggested) rows.push(["Space", `Label: ${each.suggested}`, accept, "on"]);
  if (pair()) rows.push(["l", "Drop the left", () => side(0)], ["r", "Drop the right", () => side(1)], ["k", "Keep both", keep], ["d", "Difference", compare]);
  else if (each?.kind === "label_errors") rows.push(["k", "The label is right", keep], ["x", "Drop", drop]);
  else if (each || chosen.length) rows.push(["k", "Keep", keep], ["x", "Drop", drop]);
  $("actions").replaceChildren(...rows.map(([key, text, does, mark]) => {
    const button = made("button", mark || "", made("kbd", "", key), made("span", "cut", text));
    button.addEventListener("click", does);
    return button;
  }));
  if (kind !== MAP) return;
  $("facts").replaceChildren();
  if (!plan) return;
  const said = chosen.length ? `${chosen.length.toLocaleString("en")} chosen` : "None chosen";
  const many = plan.ids.length.toLocaleString("en");
  $("facts").replaceChildren(made("b", "", said), made("p", "soft", chosen.length ? "Keep them, drop them, or / to label them." : "Drag around points to choose them. Shift and drag moves the map."));
  $("why").textContent = `${many} items, ${plan.how === "umap" ? "UMAP" : "principal components"}`;
}

// -- the map --

async function openMap() {
  chosen = [];
  paint();
  if (!plan) {
    $("why").textContent = "Drawing the map…";
    plan = await ask("api/map");
    places = new Map(plan.ids.map((id, place) => [id, place]));
    $("column").replaceChildren(...Object.keys(plan.columns).map((name) => made("option", "", name)), made("option", "", "none"));
    plane.show(plan.x, plan.y);
    for (const [id, said] of Object.entries(plan.states)) plane.dropped[places.get(id)] = said === "dropped";
  }
  colour();
  paint();
}

function colour() {
  const column = plan.columns[$("column").value];
  const style = getComputedStyle(document.documentElement);
  const hues = [...Array(HUES).keys()].map((hue) => [1, 3, 5].map((place) => parseInt(style.getPropertyValue(`--h${hue}`).trim().slice(place, place + 2), 16)));
  if (!column) plane.colours = null;
  else if (column.numbers) plane.colours = scaled(column.numbers);
  else plane.colours = column.codes.map((code) => hues[code % HUES]);
  $("key").replaceChildren(...(column?.key || []).map(([code, text]) => {
    const dot = made("i");
    dot.dataset.hue = code % HUES;
    return made("span", "", dot, text);
  }));
  plane.draw();
}

function scaled(values) {
  const known = values.filter((value) => value !== null);
  const [low, high] = known.reduce(([least, most], value) => [Math.min(least, value), Math.max(most, value)], [Infinity, -Infinity]);
  return values.map((value) => {
    if (value === null) return [120, 120, 120];
    const place = high > low ? ((value - low) / (high - low)) * (SCALE.length - 1) : 0;
    const [from, part] = [Math.min(SCALE.length - 2, Math.floor(place)), place - Math.min(SCALE.length - 2, Math.floor(place))];
    return SCALE[from].map((value, channel) => Math.round(value + part * (SCALE[from + 1][channel] - value)));
  });
}

function select(found) {
  chosen = found;
  paint();
}

let pointing = -1;
function point(place, x, y) {
  $("peek").hidden = place < 0;
  if (place < 0 || place === pointing) {
    pointing = place;
    return;
  }
  pointing = place;
  const id = plan.ids[place];
  const [image, words] = $("peek").children;
  Object.assign($("peek").style, { left: `${Math.min(x + 16, $("map").clientWidth - 230)}px`, top: `${Math.min(y + 16, $("map").clientHeight - 230)}px` });
  image.removeAttribute("src");
  words.textContent = "";
  small.get(id).then((url) => pointing === place && (image.src = url), () => {});
  ask(`api/items/${id}`).then((fact) => {
    if (pointing === place) words.textContent = [fact.uri, fact.label.join(", "), fact.state].filter(Boolean).join(" · ");
  }, () => {});
}

// -- keys --

function typed(event) {
  const field = $("new");
  if (event.key === "Escape" || event.key === "Enter") {
    const name = field.value.trim();
    field.value = "";
    field.blur();
    if (event.key === "Enter" && name) decide(targets(), "label", name);
  }
  event.stopPropagation();
}

function turn(step) {
  const all = [...kinds(), ...(state.map ? [MAP] : [])];
  return show(all[(all.indexOf(kind) + step + all.length) % all.length]).catch(fail);
}

const zoomed = (does, factor) => (kind === MAP ? plane.zoom(factor) : left[does]());
const fit = () => {
  if (kind !== MAP) return left.fit();
  if (chosen.length) return plane.choose([]);
  return plane.fit();
};
const actions = {
  k: keep, x: drop, l: () => side(0), r: () => side(1), " ": accept, Enter: accept, d: compare, z: undo, ".": next,
  "/": () => $("new").focus(), "?": () => $("keys").showModal(), "+": () => zoomed("larger", 1.25), "=": () => zoomed("larger", 1.25),
  "-": () => zoomed("smaller", 0.8), Escape: fit, ArrowLeft: () => go(at - 1), ArrowRight: () => go(at + 1),
  ArrowUp: () => go(at - grid.columns), ArrowDown: () => go(at + grid.columns),
};

function pressed(event) {
  if ($("keys").open || event.target.closest("input, select")) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (((event.ctrlKey || event.metaKey) && key !== "z") || event.altKey) return;
  if (key === "Tab") turn(event.shiftKey ? -1 : 1);
  else if (actions[key] && !(event.repeat && "kxlr ".includes(key))) actions[key]();
  else return;
  event.preventDefault();
}

document.addEventListener("keydown", pressed);
document.addEventListener("click", (event) => event.target.closest("button")?.blur()); // keys go to the page
$("new").addEventListener("keydown", typed);
$("column").addEventListener("change", () => {
  colour();
  $("column").blur();
});
for (const [id, does] of Object.entries({
  undo, next, help: actions["?"], in: actions["+"], out: actions["-"], fit, again: () => load().catch(fail),
})) $(id).addEventListener("click", does);
load().catch(fail);

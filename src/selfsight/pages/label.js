// The page on which people label: what is shown, what keys do. The server keeps everything.

import { ask, made, Pictures, tell } from "./ask.js";
import { Grid } from "./grid.js";
import { View } from "./view.js";

const $ = (id) => document.getElementById(id);
const KEYS = [..."1234567890abcdefghijklmnopqrstuvwxy"]; // of classes; z takes back
const HUES = 10; // colours of classes, see page.css
const QUEUES = {
  asked: ["Items", "What was asked for"],
  second: ["Second look", "Labelled by others and not by you: their label is hidden until you gave yours"],
  disputed: ["Differ", "Labelled differently by two people: the next answer settles it"],
};
const FRESH = 30_000; // ms, after which others may have labelled too
const LIKELY = 0.5; // of several classes, those suggested as likely as this are marked beforehand

let state = { order: [], labels: {}, mine: {}, kind: "class", now: null };
let queue = "asked";
let ids = []; // of the queue
let at = 0; // the place in it
let detail = null; // of the item that is shown
let marked = new Set(); // of several classes, before they are saved
let saving = Promise.resolve(); // the last of what the server was told
let second = new Set(); // ids of what others labelled and this person did not
let disputed = new Set(); // ids of what people differ about
const pending = new Map(); // {id: label} of answers that the server has not confirmed
let unsaved = 0;
let broken = false;
let noted = 0; // the timer of the note
const keys = new Map(); // {class: key}, once given
const times = []; // ms, of the last answers

const small = new Pictures("small", 800, 4);
const large = new Pictures("large", 12, 2);
const grid = new Grid($("grid"), small, dress, go);
const view = new View($("view"), (scale) => {
  const sent = view.image.naturalWidth || 1;
  $("zoom").textContent = `${Math.round((100 * scale * sent) / (detail?.width || sent))} %`;
});

const current = () => ids[at];
const several = () => state.kind === "classes";
const hidden = (id) => second.has(id) && !disputed.has(id); // what others said, until this person said something
const shown = (id) => (hidden(id) ? [] : state.labels[id] || []);
const hue = (name) => state.now.classes.findIndex((each) => each.name === name) % HUES;

// -- from the server --

async function load() {
  pending.clear();
  state = await ask("api/state");
  broken = false;
  $("banner").hidden = true;
  $("location").textContent = $("location").title = state.location;
  $("by").textContent = state.by;
  document.title = `label · ${state.location.split(/[\\/]/).filter(Boolean).pop() || ""}`;
  $("save").hidden = !several();
  choose(queue, true);
}

function take(now) {
  state.now = now;
  [second, disputed] = [new Set(now.second), new Set(now.disputed)];
  expect();
  for (const { name } of now.classes) {
    if (keys.has(name)) continue;
    const taken = new Set(keys.values());
    const free = KEYS.filter((key) => !taken.has(key));
    keys.set(name, free.includes(name) ? name : free.find((key) => !now.classes.some((each) => each.name === key)) || "");
  }
  paint();
}

// What is pending counts here already.
function expect() {
  for (const [id, names] of pending) {
    state.labels[id] = state.mine[id] = names;
    second.delete(id);
    disputed.delete(id);
  }
}

function fail(error) {
  broken = true;
  $("banner").firstElementChild.textContent = error.message;
  $("banner").hidden = false;
}

// A name that no class can have, an answer that somebody else replaced: the page is as before it.
async function refused(error, id) {
  if (!error.mistake) throw error;
  pending.delete(id);
  await refresh();
  if (id && ids.includes(id)) go(ids.indexOf(id));
  note(error.message);
}

async function refresh() {
  const fresh = await ask("api/state");
  [state.labels, state.mine] = [fresh.labels, fresh.mine];
  take(fresh.now);
}

// One after the other, in the order in which they were given; after one that failed none is sent.
function later(task) {
  unsaved += 1;
  $("saved").textContent = "saving…";
  saving = saving.then(async () => {
    if (!broken) await task();
  }).catch(fail).finally(() => {
    unsaved -= 1;
    $("saved").textContent = broken ? "not saved" : unsaved ? "saving…" : "saved";
  });
  return saving;
}

// -- answers --

function answer(names) {
  if (broken || !current()) return;
  const id = current();
  pending.set(id, names);
  expect();
  times.push(Date.now());
  later(async () => {
    const told = tell("api/answer", { id, labels: names });
    const said = await told.catch((error) => refused(error, id)).finally(() => pending.delete(id));
    if (!said) return;
    [state.labels[id], state.mine[id]] = [said.label, said.mine];
    take(said.now);
  });
  paint();
  next();
}

function undo() {
  later(async () => {
    const said = await tell("api/undo", {}).catch(refused);
    if (!said) return;
    if (said.id === null) return note("There is nothing to take back on this page.");
    if (said.label.length) state.labels[said.id] = said.label;
    else delete state.labels[said.id];
    if (said.mine.length) state.mine[said.id] = said.mine;
    else delete state.mine[said.id];
    times.pop();
    take(said.now);
    if (!ids.includes(said.id)) choose("asked");
    go(ids.indexOf(said.id));
  });
}

function pick(name) {
  if (!several()) return answer([name]);
  if (!marked.delete(name)) marked.add(name);
  paintClasses();
}

function confirm() {
  if (several()) {
    if (marked.size) return answer([...marked]);
    return note("Mark a class first: its key, or / for a new one.");
  }
  const first = detail?.suggestions[0];
  if (first && !shown(current()).length) return answer([first.name]);
  if (shown(current()).length) return next();
  return note(state.suggests ? "There is no suggestion to confirm." : "Press the key of a class, or / for a new one.");
}

const wanting = {
  asked: (id) => !state.labels[id],
  second: (id) => !state.mine[id],
  disputed: (id) => disputed.has(id),
};

function next() {
  const wanted = wanting[queue];
  for (let step = 1; step <= ids.length; step++) {
    const index = (at + step) % ids.length;
    if (wanted(ids[index])) return go(index);
  }
  go(Math.min(at, ids.length - 1));
  note("Nothing is left here: every item has its label.");
}

function note(text) {
  clearTimeout(noted);
  $("note").textContent = text;
  noted = setTimeout(() => ($("note").textContent = ""), 2000 + 60 * text.length);
}

// -- what is shown --

function choose(name, first = false) {
  const kept = current();
  queue = name;
  ids = name === "asked" ? state.order : [...state.now[name]];
  if (!ids.length && name !== "asked") return choose("asked");
  grid.list(ids);
  take(state.now);
  const same = first && kept ? ids.indexOf(kept) : -1;
  const open = ids.findIndex(wanting[queue]);
  go(same >= 0 ? same : Math.max(0, open));
}

async function go(index) {
  if (index < 0 || index >= ids.length) return;
  at = index;
  const id = current();
  detail = null;
  marked = new Set(shown(id));
  grid.go(index);
  paint();
  for (const coming of [ids[index + 1], ids[index + 2]]) if (coming) large.get(coming).catch(() => {});
  large.get(id).then((url) => id === current() && view.show(url), (error) => id === current() && view.say(error.message));
  await saving; // so that the last answer counts for the suggestion
  const found = await ask(`api/items/${id}`).catch(fail);
  if (id !== current() || !found) return;
  detail = found;
  if (several() && !marked.size) {
    marked = new Set(found.suggestions.filter((each) => each.probability >= LIKELY).map((each) => each.name));
  }
  paintItem();
  paintClasses();
}

function dress(cell, id) {
  const names = shown(id);
  const badge = cell.lastElementChild;
  const text = names.join(" | ") || (hidden(id) ? "•" : "");
  if (badge.textContent !== text) badge.textContent = text;
  badge.dataset.hue = names.length === 1 ? hue(names[0]) : "";
  cell.classList.toggle("labelled", names.length > 0);
  cell.classList.toggle("disputed", disputed.has(id));
}

function paint() {
  if (!state.now) return;
  const { now, order } = state;
  const count = order.filter((id) => state.labels[id]).length;
  $("labelled").textContent = count.toLocaleString("en");
  $("asked").textContent = order.length.toLocaleString("en");
  $("progress").value = order.length ? count / order.length : 0;
  $("rate").textContent = pace(order.length - count);
  paintQueues();
  grid.paint();
  paintItem();
  paintClasses();
  const notes = [];
  if (now.damaged) {
    const lines = now.damaged === 1 ? "1 line of the journal is" : `${now.damaged} lines of the journal are`;
    notes.push(made("p", "warn", `${lines} cut or damaged and left out. All others count.`));
  }
  if (now.change) {
    const { labels, share, items, enough } = now.change;
    const said = `The last ${labels} answers changed the suggestion of ${percent(share)} of ${items.toLocaleString("en")} items without a label.`;
    notes.push(made("p", enough ? "good" : "soft", said + (enough ? " More labels may add little." : "")));
  }
  for (const { first, second, items, same, kappa } of now.agreement) {
    const said = `${first} and ${second} agree on ${percent(same)} of ${items.toLocaleString("en")} items`;
    notes.push(made("p", "soft", kappa === null ? `${said}.` : `${said}, kappa ${kappa.toFixed(2)}.`));
  }
  $("notes").replaceChildren(...notes);
}

const percent = (share) => `${(100 * share).toFixed(share < 0.1 ? 1 : 0)} %`;

function pace(left) {
  const last = times.slice(-20);
  if (last.length < 5) return "";
  const rate = ((last.length - 1) * 60_000) / Math.max(1, last[last.length - 1] - last[0]);
  const minutes = Math.ceil(left / rate);
  return `${Math.round(rate)} a minute${left ? ` · ${minutes} min left` : ""}`;
}

function paintQueues() {
  const tabs = Object.entries(QUEUES).filter(([name]) => name === "asked" || name === queue || state.now[name].length);
  $("queues").replaceChildren(...tabs.map(([name, [title, help]]) => {
    const number = name === "asked" ? state.order.length : state.now[name].length;
    const tab = made("button", name === queue ? "on" : "", title, made("span", "soft", ` ${number.toLocaleString("en")}`));
    tab.title = help;
    tab.setAttribute("role", "tab");
    tab.setAttribute("aria-selected", name === queue);
    tab.addEventListener("click", () => choose(name));
    return tab;
  }));
}

function paintItem() {
  const first = detail?.suggestions[0];
  $("name").textContent = $("name").title = detail ? detail.uri + (detail.page === null ? "" : ` #${detail.page}`) : "";
  $("size").textContent = detail ? `${detail.width} × ${detail.height}${detail.depth > 8 ? ` · ${detail.depth} bit` : ""}` : "";
  const box = $("suggestion");
  box.hidden = !state.suggests;
  if (!state.suggests) return;
  const label = shown(current());
  if (!first) {
    box.replaceChildren(made("span", "soft", detail ? "No suggestion yet: it takes labels of two classes." : " "));
  } else if (several()) {
    box.replaceChildren(made("span", "soft", label.length ? " " : "What is likely is marked. Change it, then save."));
  } else {
    const use = made("button", label.length ? "suggested done" : "suggested");
    if (!label.length) use.append(made("kbd", "", "Space"));
    use.append(made("b", "cut", first.name), made("span", "figures", percent(first.probability)));
    use.addEventListener("click", () => (label.length ? pick(first.name) : confirm()));
    box.replaceChildren(made("span", "soft", label.length ? "Suggestion" : "Suggested"), use);
  }
}

function paintClasses() {
  const label = new Set(several() ? marked : shown(current()));
  const typed = $("new").value.trim().toLowerCase();
  const likely = new Map((detail?.suggestions || []).map((each) => [each.name, each.probability]));
  const rows = state.now.classes.filter(({ name }) => name.toLowerCase().includes(typed));
  $("classes").replaceChildren(...rows.map(({ name, count }) => {
    const key = keys.get(name);
    const row = made("button", "class", made("kbd", key ? "" : "none", key || " "), made("i"), made("span", "cut", name));
    row.append(made("span", "soft figures", count.toLocaleString("en")), made("u"));
    row.querySelector("i").dataset.hue = hue(name);
    row.querySelector("u").style.width = percent(likely.get(name) || 0).replace(" ", "");
    row.title = name;
    row.setAttribute("aria-pressed", label.has(name));
    row.addEventListener("click", () => pick(name));
    return row;
  }));
  const opinions = Object.entries(detail?.opinions || {});
  const rest = opinions.length > 1 || (opinions.length && opinions[0][0] !== state.by) ? opinions : [];
  $("opinions").replaceChildren(...rest.map(([by, names]) => made("p", "", made("span", "soft", `${by} says `), names.join(" | "))));
}

// -- keys --

function typed(event) {
  const field = $("new");
  if (event.key === "Escape") {
    field.value = "";
    field.blur();
    paintClasses();
  } else if (event.key === "Enter") {
    const name = field.value.trim();
    if (!name) return;
    const same = state.now.classes.find((each) => each.name.toLowerCase() === name.toLowerCase());
    field.value = "";
    field.blur();
    if (!same) state.now.classes.push({ name, count: 0 });
    pick(same ? same.name : name);
  }
  event.stopPropagation();
}

const down = () => grid.columns;
const actions = {
  " ": confirm,
  Enter: confirm,
  ".": next,
  "/": () => $("new").focus(),
  "?": () => $("keys").showModal(),
  "+": () => view.larger(),
  "=": () => view.larger(),
  "-": () => view.smaller(),
  Escape: () => view.fit(),
  ArrowLeft: () => go(at - 1),
  ArrowRight: () => go(at + 1),
  ArrowUp: () => go(at - down()),
  ArrowDown: () => go(at + down()),
  z: undo,
};
const moves = { ArrowLeft: [80, 0], ArrowRight: [-80, 0], ArrowUp: [0, 80], ArrowDown: [0, -80] };

function pressed(event) {
  if ($("keys").open || event.target === $("new")) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if ((event.ctrlKey || event.metaKey) && key !== "z") return;
  if (event.altKey || ((key === " " || key === "Enter") && event.target.closest("button"))) return;
  const name = [...keys].find(([, of]) => of === key)?.[0];
  if (event.shiftKey && moves[key]) view.move(...moves[key]);
  else if (actions[key]) actions[key]();
  else if (name !== undefined && !event.repeat) pick(name);
  else return;
  event.preventDefault();
}

document.addEventListener("keydown", pressed);
document.addEventListener("click", (event) => event.target.closest("button")?.blur()); // keys go to the page
$("new").addEventListener("keydown", typed);
$("new").addEventListener("input", paintClasses);
for (const [id, does] of Object.entries({
  undo, next, save: confirm, help: actions["?"], in: actions["+"], out: actions["-"], zoom: actions.Escape,
  again: () => load().catch(fail),
})) $(id).addEventListener("click", does);
setInterval(() => {
  if (!broken && !document.hidden && !unsaved) later(refresh);
}, FRESH);
load().catch(fail);

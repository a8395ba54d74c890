// What both pages on which people draw have in common: the items, the classes and their keys, what is saved and said.

import { ask, made, Pictures, tell } from "./ask.js";
import { Grid } from "./grid.js";
import { View } from "./view.js";

export const $ = (id) => document.getElementById(id);
export const HUES = 10; // colours of classes, see page.css
const KEYS = [..."1234567890"]; // of classes
const MOVES = { ArrowLeft: [80, 0], ArrowRight: [-80, 0], ArrowUp: [0, 80], ArrowDown: [0, -80] };

export class Marking {
  // page: what it does of its own.
  //   address(id), begun(), opened(found): where what is known of an item is, before and after it is there
  //   leave(): before another item is shown, and when the server is back. left(): whether something is not saved yet
  //   chosen(name): a class was chosen. zoomed(): the scale is another one
  //   badge(classes): what the grid says of an item. rows: [[class, key]] beside the classes
  //   said(): elements that say what to do. paint(): what else is shown
  //   keys, buttons: {key or id: what it does}. nothing: what is said where no item is left
  constructor(page) {
    Object.assign(this, { page, state: { order: [], marked: {}, classes: {} }, at: 0, detail: null, classes: [], name: "" });
    Object.assign(this, { saving: Promise.resolve(), unsaved: 0, broken: false, refused: false, noted: 0 });
    this.small = new Pictures("small", 800, 4);
    this.large = new Pictures("large", 12, 2);
    this.grid = new Grid($("grid"), this.small, (cell, id) => this.dress(cell, id), (index) => this.go(index));
    this.view = new View($("view"), (scale) => {
      const sent = this.view.image.naturalWidth || 1;
      $("zoom").textContent = `${Math.round((100 * scale * sent) / (this.detail?.width || sent))} %`;
      page.zoomed();
    });
    this.view.image.addEventListener("load", () => this.opened());
    this.actions = {
      "/": () => $("new").focus(), "?": () => $("keys").showModal(),
      "+": () => this.view.larger(), "=": () => this.view.larger(), "-": () => this.view.smaller(), Escape: () => this.view.fit(),
      ArrowLeft: () => this.go(this.at - 1), ArrowRight: () => this.go(this.at + 1),
      ArrowUp: () => this.go(this.at - this.grid.columns), ArrowDown: () => this.go(this.at + this.grid.columns),
    };
  }

  get id() {
    return this.state.order[this.at];
  }

  start() {
    const { page } = this;
    Object.assign(this.actions, page.keys);
    document.addEventListener("keydown", (event) => this.pressed(event));
    document.addEventListener("click", (event) => event.target.closest("button")?.blur());
    window.addEventListener("beforeunload", (event) => (this.unsaved || page.left()) && event.preventDefault());
    $("new").addEventListener("keydown", (event) => this.typed(event));
    const load = () => this.load().catch((error) => this.fail(error));
    const { "?": help, "+": larger, "-": smaller, z: undo, Enter: next } = this.actions;
    const buttons = { help, in: larger, out: smaller, zoom: () => this.view.fit(), undo, next, again: load, ...page.buttons };
    for (const [id, does] of Object.entries(buttons)) $(id).addEventListener("click", does);
    load();
  }

  // -- the server --

  async load() {
    this.state = await ask("api/state");
    this.broken = false;
    this.page.leave();
    $("banner").hidden = true;
    $("location").textContent = $("location").title = this.state.location;
    $("by").textContent = this.state.by;
    document.title = `label · ${this.state.location.split(/[\\/]/).filter(Boolean).pop() || ""}`;
    Object.keys(this.state.classes).forEach((of) => this.known(of));
    if (!this.name && this.classes.length) this.choose(this.classes[0]);
    this.grid.list(this.state.order);
    const open = this.state.order.findIndex((id) => !this.state.marked[id]);
    this.show(Math.max(0, open));
  }

  // One after the other; what is refused is not lost: the page has it still.
  save(path, body, done = () => {}, refused = () => {}) {
    if (this.broken) return;
    this.unsaved += 1;
    this.status();
    this.saving = this.saving.then(async () => {
      if (this.broken) return;
      const said = await tell(path, body);
      this.refused = false;
      if (said.marked) this.state.marked[said.id] = said.marked;
      else delete this.state.marked[said.id];
      this.state.classes = said.classes;
      done(said);
      this.paint();
    }).catch((error) => {
      if (!error.mistake) return this.fail(error);
      this.refused = true;
      refused();
      this.note(error.message);
    }).finally(() => {
      this.unsaved -= 1;
      this.status();
    });
  }

  status() {
    $("saved").textContent = this.broken || this.refused ? "not saved" : this.unsaved ? "saving…" : this.page.left() ? "Enter saves" : "saved";
  }

  fail(error) {
    this.broken = true;
    $("banner").firstElementChild.textContent = error.message;
    $("banner").hidden = false;
  }

  // -- items and classes --

  known(of) {
    if (!this.classes.includes(of) && !this.page.rows.some(([name]) => name === of)) this.classes.push(of);
  }

  choose(of) {
    if (of) this.known(of);
    this.page.chosen(of);
    this.name = of;
    this.paint();
  }

  hue(of) {
    return this.classes.indexOf(of) % HUES;
  }

  go(index) {
    if (index < 0 || index >= this.state.order.length) return;
    this.page.leave();
    this.show(index);
  }

  show(index) {
    this.at = index;
    this.detail = null;
    this.page.begun();
    this.grid.go(index);
    const { id } = this;
    this.large.get(id).then((url) => id === this.id && this.view.show(url), (error) => id === this.id && this.view.say(error.message));
    if (this.state.order[index + 1]) this.large.get(this.state.order[index + 1]).catch(() => {});
    this.paint();
  }

  async opened() {
    const { id } = this;
    await this.saving; // what is kept of this picture
    if (id !== this.id) return;
    const found = await ask(this.page.address(id)).catch((error) => this.note(error.message));
    if (id !== this.id || !found) return;
    this.detail = found;
    this.page.opened(found);
    this.paint();
  }

  // The place of the next item without an answer, -1 for none.
  get following() {
    const { order, marked } = this.state;
    const places = order.map((_, step) => (this.at + step + 1) % order.length);
    return places.find((place) => order[place] !== this.id && !marked[order[place]]) ?? -1;
  }

  next() {
    if (this.following >= 0) return this.go(this.following);
    this.note(this.page.nothing);
  }

  // -- what is shown --

  dress(cell, id) {
    const marked = this.state.marked[id];
    cell.lastElementChild.textContent = marked ? this.page.badge(marked) : "";
    cell.classList.toggle("labelled", !!marked);
  }

  paint() {
    const { state, detail } = this;
    const count = state.order.filter((id) => state.marked[id]).length;
    $("labelled").textContent = count.toLocaleString("en");
    $("asked").textContent = state.order.length.toLocaleString("en");
    $("progress").value = state.order.length ? count / state.order.length : 0;
    $("name").textContent = $("name").title = detail ? detail.uri + (detail.page === null ? "" : ` #${detail.page}`) : "";
    $("size").textContent = detail ? `${detail.width} × ${detail.height}${detail.depth > 8 ? ` · ${detail.depth} bit` : ""}` : "";
    $("suggestion").replaceChildren(...this.page.said());
    const rows = [...this.classes.map((of, i) => [of, KEYS[i] || ""]), ...this.page.rows];
    $("classes").replaceChildren(...rows.map(([of, key]) => this.row(of, key)));
    $("notes").replaceChildren(...(state.damaged ? [made("p", "warn", `${state.damaged} lines of the journal are cut or damaged and left out. All others count.`)] : []));
    this.page.paint();
    this.grid.paint();
  }

  row(of, key) {
    const row = made("button", "class", made("kbd", key ? "" : "none", key || " "), made("i"), made("span", "cut", of || "erase"));
    if (this.classes.includes(of)) row.querySelector("i").dataset.hue = this.hue(of);
    row.append(made("span", "soft figures", of ? (this.state.classes[of] || 0).toLocaleString("en") : ""));
    row.setAttribute("aria-pressed", of === this.name);
    row.addEventListener("click", () => this.choose(of));
    return row;
  }

  note(text) {
    clearTimeout(this.noted);
    $("note").textContent = text;
    this.noted = setTimeout(() => ($("note").textContent = ""), 2000 + 60 * text.length);
  }

  // -- keys --

  typed(event) {
    const field = $("new");
    if (event.key === "Escape" || event.key === "Enter") {
      const named = event.key === "Enter" && field.value.trim();
      field.value = "";
      field.blur();
      if (named) this.choose(this.classes.find((each) => each.toLowerCase() === named.toLowerCase()) || named);
    }
    event.stopPropagation();
  }

  pressed(event) {
    if ($("keys").open || event.target === $("new")) return;
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if ((event.ctrlKey || event.metaKey) && key !== "z") return;
    if (event.altKey || ((key === " " || key === "Enter") && event.target.closest("button"))) return;
    const place = KEYS.indexOf(key);
    if (event.shiftKey && MOVES[key]) this.view.move(...MOVES[key]);
    else if (this.actions[key]) this.actions[key]();
    else if (place >= 0 && place < this.classes.length) this.choose(this.classes[place]);
    else return;
    event.preventDefault();
  }
}

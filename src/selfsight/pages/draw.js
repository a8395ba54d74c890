// The page on which people draw boxes. Boxes are in pixels of the upright file, whatever the size of the picture that
// was sent. Lists of boxes are never changed but replaced, so that a step back is the list of before.

import { ask, made } from "./ask.js";
import { $, Marking } from "./marking.js";

const EDGES = ["x0", "y0", "x1", "y1"];
const GRIP = 6; // screen pixels from an edge, within which it is taken
const STILL = 3; // screen pixels that a click may move
const LEAST = 1; // px of a box
const CURSORS = { x: "ew-resize", y: "ns-resize", x0y0: "nwse-resize", x1y1: "nwse-resize", x0y1: "nesw-resize", x1y0: "nesw-resize" };

let boxes = []; // {label, x0, y0, x1, y1} and the flags that are set
let guesses = []; // of the head that nobody answered yet: the same and their score, the surest first
let kept = boxes; // what the server has
let strokes = []; // {boxes, guesses} before each step
let picked = null; // the box that is selected
let drag = null; // {from, grip, box, moved}
let waiting = false; // whether the head still looks at this picture
let failed = ""; // why it has no guess
let sure = false; // whether Enter was pressed, and asked about
const drafts = new Map(); // {id: {boxes, guesses, strokes, state}}: what was sent here; state: sending, saved or open

const desk = new Marking({
  address: (id) => `api/items/${id}`,
  begun() {
    boxes = kept = [];
    [guesses, strokes] = [[], []];
    [picked, drag, waiting, failed, sure] = [null, null, false, "", false];
    draw();
  },
  opened,
  leave,
  left,
  chosen(name) {
    if (!picked || picked.label === name) return;
    const other = { ...picked, label: name };
    change(boxes.map((box) => (box === picked ? other : box)), guesses, other);
  },
  zoomed: () => draw(),
  badge: (classes) => classes.join(" | ") || "background",
  rows: [],
  said,
  paint() {
    $("guesses").hidden = !guesses.length;
    $("remove").disabled = !picked;
    draw();
  },
  keys: {
    " ": next, Enter: next, z: undo, Delete: remove, Backspace: remove,
    y: yes, n: no, a: all, Escape: escape,
  },
  buttons: { remove, yes, no, all },
  nothing: "Nothing is left here: every picture has its answer.",
});
const { view } = desk;
const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
svg.setAttribute("preserveAspectRatio", "none");
view.element.append(svg);
view.layers.push(svg);
view.brush = { down, move, up };

// -- the server --

function opened(found) {
  const draft = drafts.get(desk.id);
  if (draft && draft.state !== "saved") {
    ({ boxes, guesses, strokes } = draft);
    kept = strokes.length ? strokes[0].boxes : boxes;
  } else {
    kept = boxes = found.boxes || [];
  }
  know(boxes);
  const fresh = !draft || !(draft.strokes.length || draft.guesses.length);
  if (!found.boxes && fresh && desk.state.guesses) look(found);
  if (left()) desk.status();
}

// Guesses come when they are there; meanwhile people draw.
async function look(found) {
  waiting = true;
  let said = { late: true };
  while (said.late && desk.detail === found) {
    said = await ask(`api/guesses/${desk.id}`).catch((error) => ({ objects: [], failed: error.message }));
  }
  if (desk.detail !== found) return;
  [waiting, failed, guesses] = [false, said.failed, said.objects];
  strokes.forEach((before) => (before.guesses = guesses));
  know(guesses);
  desk.paint();
  if (desk.following >= 0) ask(`api/guesses/${desk.state.order[desk.following]}`).catch(() => {}); // so that it is there soon
}

function know(some) {
  some.forEach((each) => desk.known(each.label));
  if (!desk.name && desk.classes.length) desk.choose(desk.classes[0]);
}

function left() {
  return !!desk.detail && boxes !== kept;
}

function leave() {
  if (!desk.unsaved) for (const [id, draft] of drafts) if (draft.state === "sending") post(id, draft); // the server was gone
  if (left()) send();
}

function send() {
  const draft = { boxes, guesses, strokes, state: "sending" };
  drafts.set(desk.id, draft);
  kept = boxes;
  post(desk.id, draft);
}

function post(id, draft) {
  desk.save("api/boxes", { id, boxes: draft.boxes }, ({ aside }) => {
    draft.state = "saved";
    if (aside.length) desk.note(`Not kept: ${aside.join(", ")}.`);
  }, () => {
    draft.state = "open";
    desk.go(desk.state.order.indexOf(id));
  });
}

function next() {
  if (!desk.detail && !view.image.hidden) return desk.note("The picture is not here yet.");
  if (desk.detail && !boxes.length && (guesses.length || waiting) && !sure) {
    sure = true;
    const why = waiting ? "The head still looks at this picture" : `No guess was taken${guesses.length > 1 ? `, of ${guesses.length}` : ""}`;
    return desk.note(`${why}. Press Enter again if nothing is there.`);
  }
  if (desk.detail) send();
  desk.next();
}

function undo() {
  const draft = drafts.get(desk.id);
  const sent = draft && draft.state !== "open" && draft.boxes === boxes; // then the last step was to save
  if (strokes.length && !sent) {
    ({ boxes, guesses } = strokes[strokes.length - 1]);
    strokes = strokes.slice(0, -1);
    [picked, drag] = [null, null];
    desk.status();
    return desk.paint();
  }
  desk.save("api/undo", {}, ({ id }) => {
    if (id === null) return desk.note("There is nothing to take back on this page.");
    if (drafts.has(id)) drafts.get(id).state = "open";
    desk.go(desk.state.order.indexOf(id));
  });
}

// -- boxes --

function change(now, open = guesses, selected = null) {
  if (!desk.detail) return;
  strokes = [...strokes, { boxes, guesses }];
  [boxes, guesses, picked, sure] = [now, open, selected, false];
  desk.status();
  desk.paint();
}

const rounded = (box) => ({ ...box, ...Object.fromEntries(EDGES.map((edge) => [edge, Math.round(100 * box[edge]) / 100])) });

function take(...some) {
  const taken = some.map(({ score, ...box }) => rounded(box));
  if (taken.length) change([...boxes, ...taken], guesses.filter((each) => !some.includes(each)));
}

function yes() {
  take(...guesses.slice(0, 1));
}

function no() {
  if (guesses.length) change(boxes, guesses.slice(1));
}

function all() {
  take(...guesses);
}

function remove() {
  if (picked) change(boxes.filter((box) => box !== picked));
}

function escape() {
  if (!drag && !picked) return view.fit();
  [drag, picked] = [null, null];
  desk.paint();
}

// -- the mouse --

// Pixels of the file that a pixel of the picture that was sent is, across and down.
const scales = () => ({ x: desk.detail.width / view.image.naturalWidth, y: desk.detail.height / view.image.naturalHeight });

// A point of the picture that was sent, in pixels of the file, within it.
function inFile(point) {
  const { x, y } = scales();
  return { x: Math.min(desk.detail.width, Math.max(0, point.x * x)), y: Math.min(desk.detail.height, Math.max(0, point.y * y)) };
}

const reach = (screen) => ({ x: (screen * scales().x) / view.scale, y: (screen * scales().y) / view.scale });

// The edges of the selected box that a point takes: {x, y}, each the name of one or "".
function gripped(at) {
  const far = reach(GRIP);
  const inside = picked && at.x > picked.x0 - far.x && at.x < picked.x1 + far.x && at.y > picked.y0 - far.y && at.y < picked.y1 + far.y;
  if (!inside) return null;
  const near = (axis) => {
    const [low, high] = [`${axis}0`, `${axis}1`].map((edge) => ({ edge, off: Math.abs(at[axis] - picked[edge]) }));
    const nearest = low.off < high.off ? low : high;
    return nearest.off < far[axis] ? nearest.edge : "";
  };
  const grip = { x: near("x"), y: near("y") };
  return grip.x || grip.y ? grip : null;
}

function down(point) {
  if (!desk.detail || desk.broken) return;
  const at = inFile(point);
  const grip = gripped(at);
  drag = { from: at, start: point, grip, box: grip && picked, moved: false };
}

function move(point) {
  if (!desk.detail) return;
  const at = inFile(point);
  if (!drag) {
    const grip = gripped(at);
    view.element.style.cursor = grip ? CURSORS[grip.x + grip.y] || CURSORS[grip.x ? "x" : "y"] : "";
    return;
  }
  drag.moved ||= Math.hypot(point.x - drag.start.x, point.y - drag.start.y) * view.scale > STILL;
  if (!drag.moved) return;
  const { from, grip } = drag;
  if (!grip && !desk.name) {
    drag = null;
    $("new").focus();
    return desk.note("Name the class first, and press Enter.");
  }
  drag.box = grip
    ? { ...picked, ...(grip.x && { [grip.x]: at.x }), ...(grip.y && { [grip.y]: at.y }) }
    : { label: desk.name, x0: from.x, y0: from.y, x1: at.x, y1: at.y };
  draw();
}

function up() {
  if (!drag) return;
  const { box, from, grip, moved } = drag;
  drag = null;
  if (!moved) return click(from);
  const [x0, x1, y0, y1] = [Math.min(box.x0, box.x1), Math.max(box.x0, box.x1), Math.min(box.y0, box.y1), Math.max(box.y0, box.y1)];
  const done = rounded({ ...box, x0, y0, x1, y1 });
  if (x1 - x0 < LEAST || y1 - y0 < LEAST) {
    draw();
    return desk.note("A box is a pixel wide and high, or more.");
  }
  if (grip) change(boxes.map((each) => (each === picked ? done : each)), guesses, done);
  else change([...boxes, done]);
}

const area = (box) => (box.x1 - box.x0) * (box.y1 - box.y0);

// The smallest of what is there; at the next click the one below it.
function click(at) {
  const there = [...boxes, ...guesses].filter((box) => at.x >= box.x0 && at.x <= box.x1 && at.y >= box.y0 && at.y <= box.y1);
  there.sort((one, other) => area(one) - area(other));
  const chosen = there[(there.indexOf(picked) + 1) % there.length];
  if (guesses.includes(chosen)) return take(chosen);
  picked = chosen || null;
  desk.paint();
}

// -- what is shown --

function rect(box, className, parent = svg) {
  const shape = document.createElementNS(svg.namespaceURI, "rect");
  const [x, y] = [Math.min(box.x0, box.x1), Math.min(box.y0, box.y1)];
  for (const [name, value] of Object.entries({ x, y, width: Math.abs(box.x1 - box.x0), height: Math.abs(box.y1 - box.y0), class: className })) shape.setAttribute(name, value);
  if (box.label !== undefined) shape.dataset.hue = desk.hue(box.label);
  parent.append(shape);
}

function draw() {
  svg.replaceChildren();
  if (!desk.detail) return;
  svg.setAttribute("viewBox", `0 0 ${desk.detail.width} ${desk.detail.height}`);
  const drawn = boxes.filter((box) => !drag || !drag.grip || box !== picked);
  for (const box of guesses) rect(box, box === guesses[0] ? "guess first" : "guess");
  for (const box of drawn) {
    rect({ ...box, label: undefined }, "halo");
    rect(box, box === picked ? "picked" : "box");
  }
  if (drag?.moved && drag.box) rect(drag.box, "picked");
  else if (picked) grips(picked);
}

function grips({ x0, y0, x1, y1 }) {
  const { x, y } = reach(4);
  for (const cx of [x0, (x0 + x1) / 2, x1]) {
    for (const cy of [y0, (y0 + y1) / 2, y1]) {
      const middle = cx !== x0 && cx !== x1 && cy !== y0 && cy !== y1;
      if (!middle) rect({ x0: cx - x, y0: cy - y, x1: cx + x, y1: cy + y }, "grip");
    }
  }
}

const percent = (share) => `${(100 * share).toFixed(0)} %`;

function said() {
  if (picked) {
    const sides = `${Math.round(picked.x1 - picked.x0)} × ${Math.round(picked.y1 - picked.y0)} px`;
    return [made("b", "cut", picked.label), made("span", "soft", `${sides}. Drag an edge or a corner; a number is another class.`)];
  }
  if (guesses.length) {
    const [{ label, score }] = guesses;
    const many = guesses.length === 1 ? "1 guess" : `${guesses.length} guesses`;
    return [made("span", "good", `${many} of the head, dashed: click on those that are right.`), made("span", "", `The bold one: ${label}, ${percent(score)}`)];
  }
  if (failed) return [made("span", "warn", failed)];
  if (waiting) return [made("span", "soft", "The head looks. You may draw meanwhile.")];
  if (desk.state.marked[desk.id] && !boxes.length && desk.detail && !left()) return [made("span", "soft", "Nothing is here, as was said. Drag to draw a box.")];
  return [made("span", "soft", "Drag a box around each object. Enter without a box: nothing is there.")];
}

desk.start();

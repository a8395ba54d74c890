// The page of a service: an image is dropped, and what a head says of it is shown.
import { ask, made, send } from "./ask.js";

const at = (id) => document.getElementById(id);
const percent = (value) => `${(100 * value).toFixed(value > 0.0995 ? 0 : 1)} %`;
document.title = "selfsight";
let heads = [];
let last = null; // the file that is shown
let turn = 0; // answers to what was dropped before are of no interest
const addresses = { own: null, found: null };

function tellOff(words) {
  at("banner").hidden = !words;
  at("banner").firstElementChild.textContent = words || "";
}

function chosen() {
  return heads[at("head").selectedIndex];
}

function about() {
  at("use").textContent = chosen().intended_use;
  at("digest").textContent = chosen().head_digest;
}

function show() {
  const found = at("drawn").checked && addresses.found;
  at("picture").src = found || addresses.own || addresses.found || "";
  at("picture").hidden = !at("picture").src;
}

function address(kind, blob) {
  if (addresses[kind]) URL.revokeObjectURL(addresses[kind]);
  addresses[kind] = blob ? URL.createObjectURL(blob) : null;
}

const png = (text) => new Blob([Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0))], { type: "image/png" });

function pair(name, value) {
  return [made("span", "cut", name), made("span", "figures", value)];
}

function classes(row, head) {
  const likeliest = row.probabilities.map((value, place) => [value, head.classes[place]]).sort((a, b) => b[0] - a[0]);
  const rows = likeliest.slice(0, 8).flatMap(([value, name]) => {
    const bar = made("progress");
    Object.assign(bar, { max: 1, value });
    return [...pair(name, percent(value)), bar];
  });
  const alike = row.why.flatMap((one) => pair(`${one.label}  ${one.uri}`, one.similarity.toFixed(3)));
  return [...rows, made("h3", "", "Most like, of what it learnt from"), ...alike];
}

// [the answer in large, what to know of it, rows]
function words(row, head) {
  if ("defect" in row) {
    const notes = `${percent(row.p)} of good parts score as high or higher.`;
    return [row.defect ? "defect" : "good", notes, pair("score", row.score.toFixed(3))];
  }
  if ("objects" in row) {
    const counts = new Map();
    for (const one of row.objects) counts.set(one.label, (counts.get(one.label) || 0) + 1);
    const rows = [...counts].flatMap(([name, count]) => pair(name, String(count)));
    return [`${row.objects.length} object${row.objects.length === 1 ? "" : "s"}`, `It is ${percent(row.score)} sure of a pixel.`, rows];
  }
  if ("value" in row) return [row.value.toPrecision(4), `between ${row.low.toPrecision(4)} and ${row.high.toPrecision(4)}`, []];
  const open = row.abstain ? `It leaves it open: ${row.set && row.set.length ? row.set.join(", ") : "nothing like it was learnt"}. ` : "";
  const name = "label" in row ? row.label : row.labels.join(", ") || "none";
  return [name, `${open}${percent(row.novel)} of what it learnt from is as unusual.`, classes(row, head)];
}

async function answer() {
  const [file, mine] = [last, (turn += 1)];
  at("name").textContent = file.name;
  at("hint").hidden = true;
  at("zone").classList.add("full");
  address("own", file.type.startsWith("image/") && file.type !== "image/tiff" ? file : null);
  address("found", null);
  show();
  at("answer").textContent = "…";
  const began = performance.now();
  try {
    const said = await send(`v1/heads/${chosen().name}/predict?pictures=true`, file);
    if (mine !== turn) return;
    tellOff("");
    const row = said.predictions[0];
    if (row.overlay) address("found", png(row.overlay));
    at("shows").hidden = !row.overlay;
    show();
    const [large, notes, rows] = words(row, chosen());
    at("answer").textContent = large;
    at("answer").className = "defect" in row ? (row.defect ? "warn" : "good") : row.abstain ? "warn" : "";
    at("notes").textContent = notes;
    at("rows").replaceChildren(...rows);
    at("time").textContent = `${Math.round(performance.now() - began)} ms`;
    const short = (key, value) => (typeof value === "string" && value.length > 400 ? `${value.slice(0, 40)}…` : value);
    at("json").textContent = JSON.stringify(said, short, 1);
  } catch (error) {
    if (mine !== turn) return;
    at("answer").textContent = "No answer";
    at("notes").textContent = "";
    at("rows").replaceChildren();
    at("json").textContent = "";
    tellOff(error.message);
  }
}

function take(files) {
  if (!files.length) return;
  [last] = files;
  answer();
}

at("file").addEventListener("change", () => take(at("file").files));
at("drawn").addEventListener("change", show);
at("head").addEventListener("change", () => {
  about();
  if (last) answer();
});
at("picture").addEventListener("load", () => at("picture").classList.toggle("blocks", at("picture").naturalWidth < 300));
for (const name of ["dragenter", "dragover"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    at("zone").classList.add("over");
  });
}
document.addEventListener("dragleave", () => at("zone").classList.remove("over"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  at("zone").classList.remove("over");
  take(event.dataTransfer.files);
});
document.addEventListener("paste", (event) => take(event.clipboardData.files));

try {
  heads = (await ask("card")).heads;
  at("head").replaceChildren(...heads.map((head) => made("option", "", head.name)));
  about();
} catch (error) {
  tellOff(error.message);
}

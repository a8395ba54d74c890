"use strict";
const drawings = JSON.parse(document.getElementById("drawings").textContent);
const peek = document.getElementById("peek");
const touch = matchMedia("(pointer: coarse)").matches;

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

// -- the map by a column: a colour a value, or a scale of numbers --

const chooser = document.getElementById("map-column");

function mapMarker() {
  const column = chooser && drawings.columns[chooser.value];
  if (!column) return null;
  if (column.numbers) return { color: column.numbers, colorscale: "Viridis", showscale: true, colorbar: { thickness: 12 } };
  return { color: column.codes.map((code) => colour("--m" + code)) };
}

function mapKey() {
  const key = document.getElementById("map-key");
  if (!key) return;
  const column = drawings.columns[chooser.value];
  key.replaceChildren(...((column && column.key) || []).map(([code, text]) => {
    const entry = document.createElement("span");
    const dot = document.createElement("b");
    dot.textContent = "● ";
    dot.style.color = `var(--m${code})`;
    entry.append(dot, text);
    return entry;
  }));
}

// Colours come from the style sheet, so charts follow light and dark like the rest.
function dressed(figure, id) {
  const data = figure.data.map((trace) => {
    const tint = colour("--c" + (trace.meta.slot % 8));
    const marker = Object.assign({ size: 5 }, trace.marker, (id === "map" && mapMarker()) || { color: tint });
    return Object.assign({}, trace, { line: { color: tint, width: 2 }, marker });
  });
  const axis = { gridcolor: colour("--line"), linecolor: colour("--line"), zeroline: false, automargin: true };
  // A finger must scroll the page, not the chart; curves are read, the map is explored with a mouse.
  const fixed = { fixedrange: touch || id !== "map" };
  const layout = Object.assign({}, figure.layout, {
    xaxis: Object.assign({}, axis, fixed, figure.layout.xaxis),
    yaxis: Object.assign({}, axis, fixed, figure.layout.yaxis),
    font: { color: colour("--soft"), size: 12, family: "system-ui, sans-serif" },
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    margin: { l: 44, r: 10, t: 8, b: 36 },
    legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("--soft"), activecolor: colour("--ink") },
    hoverlabel: { bgcolor: colour("--card"), font: { color: colour("--ink") } },
    dragmode: touch || id !== "map" ? false : "pan",
  });
  return [data, layout];
}

function draw() {
  for (const [id, figure] of Object.entries(drawings.figures)) {
    const [data, layout] = dressed(figure, id);
    const config = { responsive: true, displaylogo: false, displayModeBar: id === "map" && !touch, scrollZoom: false };
    // plotly.js 7 offers by default to upload the chart to its maker. Named buttons only, and no address to send to.
    config.modeBarButtons = [["zoomIn2d", "zoomOut2d", "resetScale2d", "toImage"]];
    config.showSendToCloud = false;
    config.plotlyServerURL = "";
    Plotly.react(id, data, layout, config);
  }
  mapKey();
}

function showPeek(event) {
  const index = event.points[0].pointIndex;
  const image = peek.querySelector("img");
  image.hidden = !drawings.pictures.length;
  if (!image.hidden) image.src = drawings.pictures[index];
  peek.querySelector("p").textContent = drawings.names[index];
  peek.hidden = image.hidden && !drawings.names[index]; // on a page without pictures and names
  const { clientX: x, clientY: y } = event.event.touches ? event.event.touches[0] || event.event : event.event;
  const box = peek.getBoundingClientRect();
  const left = x + 16 + box.width > innerWidth ? x - 16 - box.width : x + 16;
  peek.style.left = Math.max(4, Math.min(left, innerWidth - box.width - 4)) + "px";
  peek.style.top = Math.max(4, Math.min(y - box.height / 2, innerHeight - box.height - 4)) + "px";
}

function hidePeek() {
  peek.hidden = true;
}

draw();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
if (chooser) chooser.addEventListener("change", draw);
const map = document.getElementById("map");
if (map) {
  map.on("plotly_hover", showPeek);
  map.on("plotly_click", showPeek);
  if (!touch) map.on("plotly_unhover", hidePeek);
  // The picture stays where it was drawn, so scrolling hides it; plotly must forget the point, or it would not
  // tell of it again when the mouse moves on it.
  addEventListener("scroll", () => {
    if (peek.hidden) return;
    hidePeek();
    Plotly.Fx.unhover(map);
  }, { passive: true });
}

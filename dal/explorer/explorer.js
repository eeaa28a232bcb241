"use strict";
// Everything drawn here is in the page already: nothing is fetched. Text of records only ever becomes text nodes.
const view = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const still = matchMedia("(prefers-reduced-motion: reduce)");
const dark = matchMedia("(prefers-color-scheme: dark)");
const LETTERS = "ABCDEFGH";
const SHADES = "abcdefgh";
const STEP_MS = 1400, MOVE_MS = 420;

// -- values -----------------------------------------------------------------------------------------------------------

function bytes(text) {
  const raw = atob(text), out = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) out[i] = raw.charCodeAt(i);
  return out;
}
const floats = (text) => text && new Float32Array(bytes(text).buffer);
const records = {
  ids: view.records.ids,
  labels: new Int16Array(bytes(view.records.labels).buffer),
  x: floats(view.records.x),
  y: floats(view.records.y),
  texts: view.records.texts,
  images: view.records.images && { ...view.records.images, data: bytes(view.records.images.data) },
};
const map = view.map && { ...view.map, density: bytes(view.map.density) };
const panels = view.panels.map((panel) => ({ ...panel, views: panel.views.map(bytes) }));
const classes = view.classes.map((each) => ({ ...each, rgb: rgbOf(each.color) }));
const shadeOf = (name) => SHADES[view.strategies.findIndex((each) => each.name === name) % SHADES.length];
const letterOf = (name) => LETTERS[view.strategies.findIndex((each) => each.name === name) % LETTERS.length];
const rounds = Math.max(1, ...(panels.length ? panels.map((p) => p.rounds.length) : view.strategies.map((s) => s.labels.length)));

// In which round each panel asked each record: for hovering, and for what is labelled by now.
for (const panel of panels) {
  panel.askedIn = new Map();
  panel.rounds.forEach((round, number) => round.asked.forEach((record) => panel.askedIn.set(record, number)));
}

const state = { round: 0, playing: false, large: null, hover: null, pictures: false, target: view.needed ? view.needed.start : 0 };

function rgbOf(color) {
  const value = parseInt(color.slice(1), 16);
  return [value >> 16, (value >> 8) & 255, value & 255];
}
// Whether black is read better on it than white: by relative luminance, as contrast is defined.
function bright(rgb) {
  const [r, g, b] = rgb.map((v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.179;
}
function css(name) { return getComputedStyle(document.body).getPropertyValue(name).trim(); }
function percent(value, digits = 1) { return value === null || value === undefined ? "–" : (100 * value).toFixed(digits) + " %"; }
function number(value) { return value.toLocaleString("en-US", { maximumFractionDigits: 0 }); }
function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "class") node.className = value; else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}
function drawn(tag, attributes = {}, text) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text !== undefined) node.textContent = text;
  return node;
}
function badge(name) {
  const node = make("span", { class: "badge", "aria-hidden": "true" }, letterOf(name));
  node.style.setProperty("--shade", `var(--${shadeOf(name)})`);
  return node;
}

// -- markers: the second cue beside colour ----------------------------------------------------------------------------

const POLYGONS = {
  square: [[-1, -1], [1, -1], [1, 1], [-1, 1]],
  triangle: [[0, -1.25], [1.15, 0.9], [-1.15, 0.9]],
  inverted_triangle: [[0, 1.25], [1.15, -0.9], [-1.15, -0.9]],
  diamond: [[0, -1.4], [1.1, 0], [0, 1.4], [-1.1, 0]],
  hex: [0, 1, 2, 3, 4, 5].map((i) => [1.2 * Math.cos(i * Math.PI / 3), 1.2 * Math.sin(i * Math.PI / 3)]),
  star: [...Array(10).keys()].map((i) => {
    const r = i % 2 ? 0.6 : 1.45, a = i * Math.PI / 5 - Math.PI / 2;
    return [r * Math.cos(a), r * Math.sin(a)];
  }),
  square_pin: [[-1.2, -1.2], [0, -0.6], [1.2, -1.2], [0.6, 0], [1.2, 1.2], [0, 0.6], [-1.2, 1.2], [-0.6, 0]],
  triangle_pin: [[0, -1.5], [0.4, 0.1], [1.4, 1.1], [0, 0.7], [-1.4, 1.1], [-0.4, 0.1]],
};
function trace(pen, marker, x, y, r) {
  const polygon = POLYGONS[marker];
  pen.beginPath();
  if (!polygon) { pen.arc(x, y, r * 1.1, 0, 2 * Math.PI); return; }
  polygon.forEach(([dx, dy], i) => (i ? pen.lineTo(x + dx * r, y + dy * r) : pen.moveTo(x + dx * r, y + dy * r)));
  pen.closePath();
}
function markerIcon(code) {
  const icon = drawn("svg", { viewBox: "-1.6 -1.6 3.2 3.2", "aria-hidden": "true" });
  const polygon = POLYGONS[classes[code].marker];
  icon.append(polygon
    ? drawn("polygon", { points: polygon.map((p) => p.join(",")).join(" "), fill: classes[code].color })
    : drawn("circle", { r: 1.1, fill: classes[code].color }));
  return icon;
}

// -- the map ----------------------------------------------------------------------------------------------------------

function canvasOf(width, height) {
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(width)); canvas.height = Math.max(1, Math.round(height));
  return canvas;
}
function placer(width, height) {
  const [left, right, bottom, top] = map.extent;
  return (record) => [
    (records.x[record] - left) / (right - left) * width,
    height - (records.y[record] - bottom) / (top - bottom) * height,
  ];
}
let densityImage = null;
function density() {
  if (densityImage) return densityImage;
  const n = map.bins, image = new ImageData(n, n), grey = dark.matches ? 215 : 60;
  for (let row = 0; row < n; row++) {
    for (let column = 0; column < n; column++) {
      const to = 4 * ((n - 1 - row) * n + column), value = map.density[row * n + column];
      image.data[to] = image.data[to + 1] = grey; image.data[to + 2] = grey + 12;
      image.data[to + 3] = value * (dark.matches ? 0.42 : 0.36);
    }
  }
  densityImage = canvasOf(n, n);
  densityImage.getContext("2d").putImageData(image, 0, 0);
  return densityImage;
}
// What the model that chose this round's records thought: that of the labels of the rounds before.
function thought(panel, round) { return round > 0 && panel.views.length ? panel.views[Math.min(round - 1, panel.views.length - 1)] : null; }

// How far a probability is from a blind guess, 0 to 1.
function sure(level) {
  const guess = 1 / classes.length;
  return Math.max(0, (level / 255 - guess) / (1 - guess));
}
function paintRegions(pen, seen, width, height) {
  const n = map.grid, image = new ImageData(n, n);
  for (let row = 0; row < n; row++) {
    for (let column = 0; column < n; column++) {
      const from = row * n + column, to = 4 * ((n - 1 - row) * n + column), code = seen[2 * from];
      if (code >= classes.length) continue;
      image.data.set(classes[code].rgb, to);
      image.data[to + 3] = 18 + 120 * sure(seen[2 * from + 1]);
    }
  }
  const small = canvasOf(n, n);
  small.getContext("2d").putImageData(image, 0, 0);
  pen.imageSmoothingEnabled = true; pen.imageSmoothingQuality = "high";
  pen.drawImage(small, 0, 0, width, height);
  paintBoundary(pen, seen, n, width, height);
}
// Where neighbours differ runs the decision boundary: nearer to the one that is less sure.
function paintBoundary(pen, seen, n, width, height) {
  pen.beginPath();
  const w = width / n, h = height / n;
  const at = (row, column) => {
    const from = 2 * (row * n + column);
    return { code: seen[from], sure: sure(seen[from + 1]) + 0.01, x: (column + 0.5) * w, y: height - (row + 0.5) * h };
  };
  const crossing = (p, q) => {
    const share = p.sure / (p.sure + q.sure);
    return [p.x + share * (q.x - p.x), p.y + share * (q.y - p.y)];
  };
  for (let row = 0; row + 1 < n; row++) {
    for (let column = 0; column + 1 < n; column++) {
      // The corners of a square, in turn: each side whose ends differ is crossed once.
      const corners = [at(row, column), at(row, column + 1), at(row + 1, column + 1), at(row + 1, column)], hits = [];
      corners.forEach((p, i) => { const q = corners[(i + 1) % 4]; if (p.code !== q.code) hits.push(crossing(p, q)); });
      if (hits.length === 2) { pen.moveTo(...hits[0]); pen.lineTo(...hits[1]); }
      else for (const hit of hits) { pen.moveTo((column + 1) * w, height - (row + 1) * h); pen.lineTo(...hit); }
    }
  }
  pen.strokeStyle = dark.matches ? "#ffffffd0" : "#1c2127c0";
  pen.lineWidth = 1.6 * (devicePixelRatio || 1); pen.lineJoin = pen.lineCap = "round"; pen.stroke();
}
function paintThoughts(pen, seen, place, ratio) {
  for (let record = 0; record < Math.min(map.sample, seen.length / 2); record++) {
    const code = seen[2 * record], certain = sure(seen[2 * record + 1]);
    const [x, y] = place(record);
    if (code >= classes.length || !Number.isFinite(x)) continue;
    pen.globalAlpha = 0.14 + 0.4 * certain;
    pen.fillStyle = classes[code].color;
    pen.beginPath(); pen.arc(x, y, 2.2 * ratio, 0, 2 * Math.PI); pen.fill();
  }
  pen.globalAlpha = 1;
}
function labelledBefore(panel, round) {
  const out = [];
  for (let r = 0; r < Math.min(round, panel.rounds.length); r++) out.push(...panel.rounds[r].asked);
  return out;
}
// All but what moves: one picture a round, kept while the pointer hovers and the rings close in.
function paintStage(panel) {
  const { width, height } = panel.canvas, ratio = devicePixelRatio || 1;
  const layer = canvasOf(width, height), pen = layer.getContext("2d"), place = placer(width, height);
  const seen = thought(panel, state.round);
  pen.imageSmoothingEnabled = true;
  if (!(map.grid && seen)) pen.globalAlpha = seen ? 0.55 : 1;
  if (!(map.grid && seen)) pen.drawImage(density(), 0, 0, width, height);
  pen.globalAlpha = 1;
  if (seen && map.grid) { paintRegions(pen, seen, width, height); pen.globalAlpha = 0.5; pen.drawImage(density(), 0, 0, width, height); pen.globalAlpha = 1; }
  if (seen && !map.grid) paintThoughts(pen, seen, place, ratio);
  pen.lineWidth = 1.1 * ratio; pen.strokeStyle = css("--card");
  for (const record of labelledBefore(panel, state.round)) {
    const label = records.labels[record];
    if (label < 0) continue;
    trace(pen, classes[label].marker, ...place(record), 3.6 * ratio);
    pen.fillStyle = classes[label].color; pen.fill(); pen.stroke();
  }
  panel.layer = layer;
}
function paintPanel(panel, progress = 1) {
  if (!panel.canvas || !panel.canvas.width) return;
  const { width, height } = panel.canvas, ratio = devicePixelRatio || 1, pen = panel.canvas.getContext("2d");
  const place = placer(width, height), round = panel.rounds[Math.min(state.round, panel.rounds.length - 1)];
  pen.clearRect(0, 0, width, height);
  if (panel.layer) pen.drawImage(panel.layer, 0, 0);
  const ease = 1 - (1 - progress) ** 3, ring = css("--ring"), card = css("--card");
  const asked = state.round < panel.rounds.length ? round.asked : [];
  for (const record of asked) {
    const [x, y] = place(record), label = records.labels[record];
    pen.globalAlpha = ease;
    if (state.pictures && records.images && imageOf(record)) {
      const side = 26 * ratio * (1.6 - 0.6 * ease);
      pen.imageSmoothingEnabled = false;
      pen.drawImage(imageOf(record), x - side / 2, y - side / 2, side, side);
      pen.lineWidth = 2 * ratio; pen.strokeStyle = label >= 0 ? classes[label].color : ring;
      pen.strokeRect(x - side / 2, y - side / 2, side, side);
      continue;
    }
    if (label >= 0) { trace(pen, classes[label].marker, x, y, 3.2 * ratio); pen.fillStyle = classes[label].color; pen.fill(); }
    pen.beginPath(); pen.arc(x, y, ratio * (7 + 16 * (1 - ease)), 0, 2 * Math.PI);
    pen.lineWidth = 4 * ratio; pen.strokeStyle = card; pen.stroke();
    pen.lineWidth = 2.2 * ratio; pen.strokeStyle = ring; pen.stroke();
  }
  pen.globalAlpha = 1;
  if (state.hover !== null && records.x && Number.isFinite(records.x[state.hover])) {
    const [x, y] = place(state.hover);
    pen.beginPath(); pen.arc(x, y, 11 * ratio, 0, 2 * Math.PI);
    pen.lineWidth = 2.5 * ratio; pen.strokeStyle = css("--ink"); pen.stroke();
    pen.beginPath(); pen.moveTo(x - 17 * ratio, y); pen.lineTo(x - 11 * ratio, y); pen.moveTo(x + 11 * ratio, y); pen.lineTo(x + 17 * ratio, y);
    pen.moveTo(x, y - 17 * ratio); pen.lineTo(x, y - 11 * ratio); pen.moveTo(x, y + 11 * ratio); pen.lineTo(x, y + 17 * ratio); pen.stroke();
  }
}

// -- records as themselves --------------------------------------------------------------------------------------------

const pictures = new Map();
function imageOf(record) {
  const images = records.images;
  if (!images || record < images.first) return null;
  if (pictures.has(record)) return pictures.get(record);
  const { height, width, channels } = images, size = height * width;
  const image = new ImageData(width, height), from = (record - images.first) * size * channels;
  for (let i = 0; i < size; i++) {
    for (let c = 0; c < 3; c++) {
      const level = images.data[from + i * channels + (channels === 3 ? c : 0)];
      image.data[4 * i + c] = images.ink ? 255 - level : level;
    }
    image.data[4 * i + 3] = 255;
  }
  const canvas = canvasOf(width, height);
  canvas.getContext("2d").putImageData(image, 0, 0);
  pictures.set(record, canvas);
  return canvas;
}
function copyOf(picture) {
  const canvas = canvasOf(picture.width, picture.height);
  canvas.getContext("2d").drawImage(picture, 0, 0);
  return canvas;
}
const className = (code) => (code >= 0 && code < classes.length ? classes[code].name : "not known");
function described(record) {
  return `record ${records.ids[record]}, ${className(records.labels[record])}`;
}
function fillChosen(panel) {
  const round = panel.rounds[state.round];
  panel.chosen.replaceChildren();
  if (!round) { panel.chosen.append(make("p", {}, "The replay has ended: the pool, or its budget, is exhausted.")); return; }
  const list = make("ol", { "aria-label": `chosen by ${panel.name} in round ${state.round + 1}` });
  panel.chosen.classList.toggle("texts", Boolean(records.texts));
  for (const record of round.asked) {
    const label = records.labels[record], picture = imageOf(record);
    const item = make("li", { title: described(record) });
    const shade = label >= 0 ? classes[label].color : "";
    if (picture) {
      const canvas = copyOf(picture);
      canvas.setAttribute("role", "img"); canvas.setAttribute("aria-label", described(record));
      canvas.style.borderBottomColor = shade;
      item.append(canvas);
    } else {
      const name = make("i", {}, className(label));
      // The class of a text stands before it: behind it, it would be cut off with a long one.
      const text = make("span", { class: "text" }, ...(records.texts ? [name, "  ", records.texts[record].replaceAll("\n", " · ")] : [`record ${records.ids[record]}  `, name]));
      text.style.borderLeftColor = shade;
      item.append(text);
    }
    item.dataset.record = record;
    list.append(item);
  }
  panel.chosen.append(list);
}

// -- panels -----------------------------------------------------------------------------------------------------------

function buildPanels() {
  $("panels").style.setProperty("--columns", panels.length);
  document.body.classList.toggle("single", panels.length === 1);
  panels.forEach((panel, index) => {
    panel.score = make("span", { class: "score" });
    const large = make("button", { title: `large, or all (${index + 1})` }, badge(panel.name), make("b", {}, panel.name), panel.score);
    large.addEventListener("click", () => focusOn(index));
    const head = make("h2", {}, large);
    panel.node = make("article", { class: "panel", "aria-label": panel.name }, head);
    if (map) {
      panel.canvas = make("canvas", { role: "img" });
      panel.cold = make("div", { class: "cold" });
      const stage = make("div", { class: "stage" }, panel.canvas, panel.cold);
      stage.addEventListener("pointermove", (event) => point(panel, event));
      stage.addEventListener("pointerdown", (event) => point(panel, event));
      stage.addEventListener("pointerleave", () => hover(null));
      panel.node.append(stage);
    }
    // It scrolls, so it can be reached by Tab.
    panel.chosen = make("div", { class: "chosen", tabindex: 0, role: "group", "aria-label": `chosen by ${panel.name}` });
    panel.chosen.addEventListener("pointermove", (event) => {
      const item = event.target.closest("li");
      hover(item ? Number(item.dataset.record) : null, event);
    });
    panel.chosen.addEventListener("pointerleave", () => hover(null));
    panel.node.append(panel.chosen);
    $("panels").append(panel.node);
  });
}
function fit() {
  const ratio = devicePixelRatio || 1;
  for (const panel of panels) {
    if (!panel.canvas) continue;
    const box = panel.canvas.getBoundingClientRect();
    const width = Math.round(box.width * ratio), height = Math.round(box.height * ratio);
    if (!width || (panel.canvas.width === width && panel.canvas.height === height)) continue;
    panel.canvas.width = width; panel.canvas.height = height;
    paintStage(panel);
  }
}
function focusOn(index) {
  if (index >= panels.length) return;
  state.large = state.large === index ? null : index;
  document.body.classList.toggle("large", state.large !== null);
  panels.forEach((panel, i) => panel.node.classList.toggle("focus", i === state.large));
  redraw();
}
function point(panel, event) {
  const box = panel.canvas.getBoundingClientRect(), place = placer(box.width, box.height);
  const px = event.clientX - box.left, py = event.clientY - box.top;
  let nearest = null, distance = 14 * 14;
  // What is drawn on top is what is meant: rings, then labels, then the sample below.
  const look = (candidates, bonus) => {
    for (const record of candidates) {
      const [x, y] = place(record), d = (x - px) ** 2 + (y - py) ** 2 - bonus;
      if (d < distance) { distance = d; nearest = record; }
    }
  };
  const round = panel.rounds[state.round];
  look(round ? round.asked : [], 60);
  look(labelledBefore(panel, state.round), 30);
  look(Array(map.sample).keys(), 0);
  hover(nearest, event);
}
function hover(record, event) {
  const changed = record !== state.hover;
  state.hover = record;
  if (record === null) { $("tip").hidden = true; } else { if (changed) fillTip(record); moveTip(event); }
  if (changed) {
    for (const panel of panels) {
      if (map) paintPanel(panel);
      for (const item of panel.chosen.querySelectorAll("li")) item.classList.toggle("on", Number(item.dataset.record) === record);
    }
  }
}
function fillTip(record) {
  const tip = $("tip"), label = records.labels[record], picture = imageOf(record);
  tip.replaceChildren();
  if (picture) tip.append(copyOf(picture));
  if (records.texts) tip.append(make("pre", {}, records.texts[record]));
  const head = make("div", {});
  if (label >= 0) { const icon = markerIcon(label); icon.setAttribute("width", 13); head.append(icon); }
  head.append(make("b", {}, className(label)), make("span", { class: "id" }, "record " + records.ids[record]));
  tip.append(head);
  for (const panel of panels) {
    const at = panel.askedIn.get(record), seen = thought(panel, state.round);
    const asked = at === undefined ? "never asked" : `asked in round ${at + 1}`;
    let thinks = "";
    if (seen && !map.grid && record < map.sample && seen[2 * record] < classes.length) {
      thinks = `, predicted ${className(seen[2 * record])} (${Math.round(seen[2 * record + 1] / 2.55)} %)`;
    } else if (at !== undefined) {
      const i = panel.rounds[at].asked.indexOf(record), code = panel.rounds[at].predicted[i], score = panel.rounds[at].scores[i];
      if (code >= 0) thinks = `, predicted ${className(code)}` + (score === null ? "" : `, score ${score.toFixed(2)}`);
    }
    tip.append(make("div", {}, badge(panel.name), asked + thinks));
  }
}
function moveTip(event) {
  const tip = $("tip");
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  tip.style.left = Math.max(4, event.clientX + 16 + width > innerWidth ? event.clientX - width - 14 : event.clientX + 16) + "px";
  tip.style.top = Math.max(4, Math.min(event.clientY + 14, innerHeight - height - 6)) + "px";
}

// -- learning curves --------------------------------------------------------------------------------------------------

const plot = { width: 640, height: 250, left: 46, right: 26, top: 8, bottom: 34 };
function scales() {
  const all = view.strategies.flatMap((s) => [...s.low, ...s.high, ...s.accuracy]).filter((v) => v !== null);
  const labels = view.strategies.flatMap((s) => s.labels);
  const span = [Math.min(...all, 1), Math.max(...all, 0)];
  const step = [0.01, 0.02, 0.05, 0.1, 0.2].find((s) => (span[1] - span[0]) / s <= 6) || 0.2;
  const low = Math.max(0, Math.floor(span[0] / step) * step), high = Math.min(1, Math.ceil(span[1] / step) * step) || 1;
  const first = Math.min(...labels), last = Math.max(...labels), wide = last - first || 1;
  return {
    low, high, step, first, last,
    x: (v) => plot.left + (v - first) / wide * (plot.width - plot.left - plot.right),
    y: (v) => plot.height - plot.bottom - (v - low) / (high - low || 1) * (plot.height - plot.top - plot.bottom),
  };
}
function ticks(first, last) {
  const rough = (last - first) / 6 || 1, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough), out = [];
  for (let v = Math.ceil(first / step) * step; v <= last; v += step) out.push(v);
  return out;
}
function drawCurves() {
  const place = document.querySelector("#curves .plot"), box = place.getBoundingClientRect();
  plot.width = Math.max(280, box.width || 640);
  const s = scales(), svg = drawn("svg", { viewBox: `0 0 ${plot.width} ${plot.height}`, role: "img", "aria-label": "accuracy against labels, a curve for each strategy" });
  for (let v = s.low; v <= s.high + 1e-9; v += s.step) {
    svg.append(drawn("line", { class: "grid", x1: plot.left, x2: plot.width - plot.right, y1: s.y(v), y2: s.y(v) }));
    svg.append(drawn("text", { x: plot.left - 6, y: s.y(v) + 4, "text-anchor": "end" }, v.toFixed(2)));
  }
  for (const v of ticks(s.first, s.last)) svg.append(drawn("text", { x: s.x(v), y: plot.height - plot.bottom + 16, "text-anchor": "middle" }, number(v)));
  svg.append(drawn("text", { x: (plot.left + plot.width - plot.right) / 2, y: plot.height - 3, "text-anchor": "middle" }, "labels"));
  const ends = [];
  const many = view.strategies.some((each) => each.low.some((v, i) => v !== null && v < each.accuracy[i]));
  $("bands").hidden = !many;
  for (const each of view.strategies) {
    const shade = `var(--${shadeOf(each.name)})`, known = each.labels.map((_, i) => i).filter((i) => each.accuracy[i] !== null);
    const spread = known.filter((i) => each.low[i] !== null);
    if (!document.body.classList.contains("no-bands") && spread.length > 1) {
      const edge = [...spread.map((i) => [s.x(each.labels[i]), s.y(each.high[i])]), ...spread.reverse().map((i) => [s.x(each.labels[i]), s.y(each.low[i])])];
      const area = drawn("polygon", { points: edge.map((p) => p.join(",")).join(" "), class: "band" });
      area.style.fill = shade; area.style.opacity = 0.15;
      svg.append(area);
    }
    const line = drawn("polyline", { points: known.map((i) => `${s.x(each.labels[i])},${s.y(each.accuracy[i])}`).join(" "), fill: "none", "stroke-width": 2.4, "stroke-linejoin": "round" });
    line.style.stroke = shade; svg.append(line);
    for (const i of known) {
      const dot = drawn("circle", { cx: s.x(each.labels[i]), cy: s.y(each.accuracy[i]), r: 3 });
      dot.style.fill = shade; svg.append(dot);
    }
    if (known.length) { const i = known[known.length - 1]; ends.push({ name: each.name, y: s.y(each.accuracy[i]) }); }
  }
  // Letters at the ends of the lines, pushed apart.
  ends.sort((a, b) => a.y - b.y);
  ends.forEach((end, i) => {
    if (i) end.y = Math.max(end.y, ends[i - 1].y + 15);
    const letter = drawn("text", { x: plot.width - plot.right + 8, y: end.y + 5, "font-weight": 700, "font-size": 14 }, letterOf(end.name));
    letter.style.fill = `var(--${shadeOf(end.name)})`; svg.append(letter);
  });
  plot.cursor = drawn("line", { class: "cursor", y1: plot.top, y2: plot.height - plot.bottom });
  plot.target = drawn("line", { class: "target", x1: plot.left, x2: plot.width - plot.right });
  svg.append(plot.target, plot.cursor);
  svg.addEventListener("click", (event) => {
    const bounds = svg.getBoundingClientRect(), at = (event.clientX - bounds.left) / bounds.width * plot.width;
    const labels = longest().labels;
    let best = 0;
    labels.forEach((v, i) => { if (Math.abs(s.x(v) - at) < Math.abs(s.x(labels[best]) - at)) best = i; });
    go(best);
  });
  plot.scale = s;
  place.replaceChildren(svg);
  placeCursor();
}
const longest = () => view.strategies.reduce((a, b) => (b.labels.length > a.labels.length ? b : a));
function placeCursor() {
  const labels = longest().labels, x = plot.scale.x(labels[Math.min(state.round, labels.length - 1)]);
  plot.cursor.setAttribute("x1", x); plot.cursor.setAttribute("x2", x);
  plot.target.style.display = view.needed ? "" : "none";
  if (view.needed) {
    const y = plot.scale.y(view.needed.targets[state.target]);
    plot.target.setAttribute("y1", y); plot.target.setAttribute("y2", y);
  }
}

// -- labels needed, balance, overlap ----------------------------------------------------------------------------------

function buildNeeded() {
  const body = document.querySelector("#needed .body");
  $("needed").hidden = !view.needed;
  if (!view.needed) return;
  const slide = make("input", { type: "range", min: 0, max: view.needed.targets.length - 1, value: state.target, "aria-label": "target accuracy" });
  const shown = make("b", {});
  const table = make("table", {});
  const update = () => {
    state.target = Number(slide.value);
    const target = view.needed.targets[state.target];
    shown.textContent = percent(target);
    slide.setAttribute("aria-valuetext", percent(target));
    table.replaceChildren(make("tr", {}, make("th", {}, "strategy"), make("th", { class: "number" }, "labels"), make("th", { class: "number" }, view.baseline ? `against ${view.baseline}` : "")));
    for (const each of view.strategies) {
      const [labels, reached, seeds, difference, half] = view.needed.strategies[each.name][state.target];
      const name = make("td", {}, badge(each.name), each.name);
      const needs = labels === null ? (seeds === 1 ? "never" : `${reached} of ${seeds} seeds reached it`) : number(labels);
      const versus = make("td", { class: "number" });
      if (difference !== null) {
        const clear = half !== null && Math.abs(difference) > half;
        const sign = difference > 0 ? "+" : "−";
        versus.append(make("span", clear ? { class: difference < 0 ? "better" : "worse" } : {}, sign + number(Math.abs(difference))));
        versus.append(half === null ? "" : ` ± ${number(half)}`);
      }
      table.append(make("tr", {}, name, make("td", { class: "number" }, needs), versus));
    }
    if (plot.scale) placeCursor();
  };
  slide.addEventListener("input", update);
  const seeds = view.strategies[0].seeds.length;
  body.append(make("div", {}, "to reach an accuracy of ", shown), slide, table,
    make("p", { class: "hint" }, seeds > 1
      ? `Means over ${seeds} seeds; differences are paired by seed, ± is their 95 % interval.`
      : "One seed: no interval. Comparing strategies needs several."));
  update();
}
function fillBalance() {
  const body = document.querySelector("#balance .body"), grid = make("div", { class: "balance" });
  const room = Math.max(100, body.clientWidth - 130); // pixels of a bar, beside the names
  const bar = (name, shares, counts) => {
    const strip = make("div", { class: "bar" });
    const told = shares.map((share, code) => `${classes[code].name} ${counts ? number(counts[code]) : percent(share)}`).join(", ");
    strip.setAttribute("role", "img"); strip.setAttribute("aria-label", told); strip.title = told;
    shares.forEach((share, code) => {
      if (!share) return;
      const part = make("span", {}, share * room > 7 * classes[code].name.length + 4 ? classes[code].name : "");
      part.style.width = 100 * share + "%"; part.style.background = classes[code].color;
      part.style.color = bright(classes[code].rgb) ? "#000" : "#fff";
      strip.append(part);
    });
    grid.append(name, strip);
  };
  for (const panel of panels) {
    const counts = (panel.rounds[Math.min(state.round, panel.rounds.length - 1)] || { counts: [] }).counts;
    const all = counts.reduce((a, b) => a + b, 0) || 1;
    bar(make("span", { class: "name" }, badge(panel.name), panel.name), counts.map((n) => n / all), counts);
  }
  if (view.shares) bar(make("span", { class: "name" }, view.estimated ? "the pool, estimated" : "the pool"), view.shares, null);
  body.replaceChildren(grid);
  $("balance").hidden = !panels.length;
}
function fillOverlap() {
  const body = document.querySelector("#overlap .body");
  $("overlap").hidden = panels.length < 2;
  if (panels.length < 2) return;
  const shares = view.overlap[Math.min(state.round, view.overlap.length - 1)];
  const table = make("table", {}, make("tr", {}, make("th", {}, make("span", { class: "spoken" }, "strategy")), ...panels.map((p) => make("th", {}, badge(p.name), make("span", { class: "spoken" }, p.name)))));
  panels.forEach((panel, i) => {
    const row = make("tr", {}, make("td", {}, badge(panel.name), panel.name));
    panels.forEach((_, j) => {
      const cell = make("td", { class: "cell" }, i === j ? "" : percent(shares[i][j], 0));
      if (i !== j) cell.style.background = `color-mix(in srgb, var(--accent) ${Math.round(45 * shares[i][j])}%, transparent)`;
      row.append(cell);
    });
    table.append(row);
  });
  body.replaceChildren(table, make("p", { class: "hint" }, "Share of common records among all that the two strategies have asked so far."));
}

// -- moving through the rounds ----------------------------------------------------------------------------------------

let moved = 0;
function go(round) {
  round = Math.max(0, Math.min(rounds - 1, round));
  const changed = round !== state.round;
  state.round = round;
  if (changed) hover(null);
  update();
  if (changed && !still.matches) animate(); else panels.forEach((panel) => map && paintPanel(panel));
}
function animate() {
  const began = performance.now(), turn = ++moved;
  const frame = (now) => {
    if (turn !== moved) return;
    const progress = Math.min(1, (now - began) / MOVE_MS);
    panels.forEach((panel) => map && paintPanel(panel, progress));
    if (progress < 1) requestAnimationFrame(frame);
  };
  requestAnimationFrame(frame);
}
function update() {
  const slider = $("round");
  slider.max = rounds; slider.value = state.round + 1;
  slider.setAttribute("aria-valuetext", `round ${state.round + 1} of ${rounds}`);
  $("where").textContent = `round ${state.round + 1} of ${rounds}`;
  for (const panel of panels) {
    const at = Math.min(state.round, panel.labels.length - 1), accuracy = panel.accuracy[at];
    panel.score.replaceChildren(percent(accuracy), " ", make("small", {}, scoreNote(panel, at)));
    if (map) {
      panel.canvas.setAttribute("aria-label", `${panel.name}, round ${state.round + 1}: ${percent(accuracy)} with ${number(panel.labels[at])} labels`);
      panel.cold.textContent = thought(panel, state.round) ? "" : "No labels yet: chosen without a model.";
      if (panel.canvas.width) paintStage(panel);
    }
    fillChosen(panel);
  }
  fillBalance(); fillOverlap();
  if (plot.scale) placeCursor();
  if (!state.playing) {
    $("live").textContent = `Round ${state.round + 1}. ` + panels.map((p) => `${p.name} ${percent(p.accuracy[Math.min(state.round, p.accuracy.length - 1)])}`).join(", ");
  }
}
// A share of few answers is nothing without its interval.
function scoreNote(panel, at) {
  const labels = `with ${number(panel.labels[at])} labels`;
  if (!view.estimated || panel.accuracy[at] === null) return labels;
  const curve = view.strategies[0];
  return `(${percent(curve.low[at], 0)} to ${percent(curve.high[at], 0)}) ${labels}`;
}
let timer = null;
function play(on) {
  if (on && state.round >= rounds - 1) go(0);
  state.playing = on;
  $("play").classList.toggle("playing", on);
  $("play").setAttribute("aria-label", on ? "pause" : "play");
  clearInterval(timer);
  if (on) timer = setInterval(() => { go(state.round + 1); if (state.round >= rounds - 1) play(false); }, STEP_MS);
}
function step(by) { play(false); go(state.round + by); }
function toggle(id, name) {
  const off = document.body.classList.toggle(name);
  $(id).setAttribute("aria-pressed", String(!off));
}
function togglePictures() {
  if (!records.images || !map) return;
  state.pictures = !state.pictures;
  $("pictures").setAttribute("aria-pressed", String(state.pictures));
  panels.forEach((panel) => paintPanel(panel));
}
function toggleStrip() { toggle("strip", "no-strip"); redraw(); }
function toggleBands() { toggle("bands", "no-bands"); drawCurves(); }
function redraw() {
  fit();
  panels.forEach((panel) => map && paintPanel(panel));
  drawCurves();
}

const KEYS = {
  " ": () => play(!state.playing), ArrowLeft: () => step(-1), ArrowRight: () => step(1),
  Home: () => step(-rounds), End: () => step(rounds),
  p: togglePictures, t: toggleStrip, b: toggleBands, "?": () => $("keys").showModal(),
  1: () => focusOn(0), 2: () => focusOn(1), 3: () => focusOn(2), 4: () => focusOn(3),
};
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || $("keys").open) return;
  // A focused slider and a focused button have keys of their own.
  const tag = event.target.tagName, own = tag === "INPUT" && event.target.id !== "round";
  if (own || (event.key === " " && tag === "BUTTON" && event.target.id !== "play")) return;
  const act = KEYS[event.key];
  if (act) { event.preventDefault(); act(); }
});

function start() {
  $("title").textContent = view.title;
  $("lead").textContent = view.lead || [map ? `${number(map.rows)} records` : "", `accuracy on ${view.measured}`, panels.length ? `maps and lists show seed ${panels[0].seed}` : ""].filter(Boolean).join(" · ");
  for (const note of view.notes) $("notes").append(make("li", {}, note));
  if (panels.length) {
    classes.forEach((each, code) => $("key").append(make("li", {}, markerIcon(code), each.name)));
    const ring = drawn("svg", { viewBox: "-1.6 -1.6 3.2 3.2", "aria-hidden": "true" });
    const circle = drawn("circle", { r: 1.3, fill: "none", "stroke-width": 0.6 });
    circle.style.stroke = "var(--ring)"; ring.append(circle);
    if (map) $("key").append(make("li", {}, ring, "asked in this round"), make("li", {}, map.grid ? "shade: what the model that chose them thinks, pale where it is unsure" : "small dots: what the model that chose them thinks of other records, pale where it is unsure"));
  }
  for (const each of view.tables) {
    const table = make("table", {}, make("tr", {}, ...each.header.map((text) => make("th", {}, text))));
    for (const row of each.rows) table.append(make("tr", {}, ...row.map((text) => make("td", {}, text))));
    $("tables").append(make("figure", {}, make("figcaption", {}, each.title), make("div", { class: "wide" }, table)));
  }
  $("pictures").hidden = !records.images || !map;
  $("strip").hidden = !panels.length;
  buildPanels();
  buildNeeded();
  $("first").onclick = () => step(-rounds); $("back").onclick = () => step(-1); $("play").onclick = () => play(!state.playing);
  $("forward").onclick = () => step(1); $("last").onclick = () => step(rounds);
  $("round").oninput = () => { play(false); go(Number($("round").value) - 1); };
  $("pictures").onclick = togglePictures; $("strip").onclick = toggleStrip; $("bands").onclick = toggleBands;
  $("help").onclick = () => $("keys").showModal();
  update();
  redraw();
  new ResizeObserver(redraw).observe($("panels"));
  dark.addEventListener("change", () => { densityImage = null; update(); redraw(); });
}
start();

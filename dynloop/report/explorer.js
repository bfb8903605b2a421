"use strict";
(() => {
const data = JSON.parse(document.getElementById("data").textContent);
const get = id => document.getElementById(id);
const bytes = text => Uint8Array.from(atob(text), c => c.charCodeAt(0));
const maps = {distance: new Float32Array(bytes(data.maps.distance).buffer), step: new Float32Array(bytes(data.maps.step).buffer)};
const paths = new Uint16Array(bytes(data.paths).buffer), plots = bytes(data.plots);
const colours = {cividis: bytes(data.colours.cividis), viridis: bytes(data.colours.viridis)};
const n = data.tokens.length, T = data.recurrences.length, side = data.plot_recurrences.length;
const GREY = [150, 150, 150];
const state = {token: 0, step: T - 1, map: "distance"};

const clamp = (value, most) => Math.max(0, Math.min(most, value));
const digits = value => {  // of log10
  if (!Number.isFinite(value)) return "none";
  const number = 10 ** value;
  return number >= 1e-3 && number < 1e5 ? String(Number(number.toPrecision(3))) : number.toExponential(1);
};
const short = value => value === 0 ? "0" : Math.abs(value) >= 1e-2 && Math.abs(value) < 1e4 ?
  String(Number(value.toPrecision(2))) : value.toExponential(0);
const colour = (name, share) => {
  const at = 3 * Math.round(255 * Math.max(0, Math.min(1, share)));
  return [colours[name][at], colours[name][at + 1], colours[name][at + 2]];
};
const css = rgb => `rgb(${rgb.join(",")})`;
const range = values => {
  let low = Infinity, high = -Infinity;
  for (const value of values) if (Number.isFinite(value)) { low = Math.min(low, value); high = Math.max(high, value); }
  return low <= high ? [low, high] : [0, 1];
};
const scales = {distance: range(maps.distance), step: range(maps.step)};
const shade = (map, value) => {
  const [low, high] = scales[map];
  return Number.isFinite(value) ? colour("cividis", high > low ? (value - low) / (high - low) : 0.5) : GREY;
};
const paint = (canvas, width, height, at) => {
  canvas.width = width; canvas.height = height;
  const context = canvas.getContext("2d"), image = context.createImageData(width, height);
  for (let y = 0; y < height; y++) for (let x = 0; x < width; x++) {
    const [r, g, b] = at(x, y);
    image.data.set([r, g, b, 255], 4 * (y * width + x));
  }
  context.putImageData(image, 0, 0);
};
const add = (parent, tag, attributes, text) => {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  parent.append(element);
  return element;
};
const named = token => `token ${token.token}${token.text ? ` “${token.text}”` : ""}`;

// ---- the prompt

const options = data.tokens.map((token, i) => {
  const option = document.createElement("span");
  option.id = `token-${i}`;
  option.setAttribute("role", "option");
  option.setAttribute("aria-label", named(token));
  option.textContent = token.text || String(token.token);
  option.addEventListener("click", () => choose(i, state.step));
  get("text").append(option);
  return option;
});
const MOVES = {ArrowLeft: -1, ArrowRight: 1, ArrowUp: -1, ArrowDown: 1, PageUp: -10, PageDown: 10, Home: -n, End: n};
get("text").addEventListener("keydown", event => {
  if (!(event.key in MOVES)) return;
  event.preventDefault();
  choose(state.token + MOVES[event.key], state.step);
  options[state.token].focus();
});

// ---- the map

const map = get("map"), canvas = map.querySelector("canvas");
canvas.style.height = `${Math.max(180, Math.min(560, 7 * n))}px`;
map.setAttribute("aria-valuemax", n);
map.addEventListener("pointerdown", event => {
  const box = canvas.getBoundingClientRect();
  choose(Math.floor((event.clientY - box.top) / box.height * n), Math.floor((event.clientX - box.left) / box.width * T));
});
map.addEventListener("keydown", event => {
  if (!(event.key in MOVES)) return;
  event.preventDefault();
  const sideways = event.key === "ArrowLeft" || event.key === "ArrowRight";
  choose(state.token + (sideways ? 0 : MOVES[event.key]), state.step + (sideways ? MOVES[event.key] : 0));
});
get("tick-first").textContent = data.recurrences[0];
get("tick-last").textContent = data.recurrences[T - 1];
for (const radio of document.querySelectorAll("input[name=map]"))
  radio.addEventListener("change", () => { state.map = radio.value; drawMap(); show(); });
const drawMap = () => {
  paint(canvas, T, n, (x, y) => shade(state.map, maps[state.map][y * T + x]));
  paint(get("scale"), 256, 1, x => colour("cividis", x / 255));
  const [low, high] = scales[state.map];
  get("scale-low").textContent = digits(low);
  get("scale-high").textContent = digits(high);
  get("scale-note").textContent = (state.map === "distance" ? "Distance to the last state, over its norm" :
    "Length of the step into each state, over its norm") + ", log scale. The bar below every token of the prompt has " +
    "the colour of the chosen recurrence.";
};

// ---- the orbit

const WIDTH = 300, FRAME = {left: 44, right: 292, top: 10, bottom: 208};  // in units of the viewBox
const axes = (svg, across, upright) => {
  svg.replaceChildren();
  add(svg, "path", {d: `M${FRAME.left} ${FRAME.top}V${FRAME.bottom}H${FRAME.right}`, class: "axis"});
  add(svg, "text", {x: (FRAME.left + FRAME.right) / 2, y: 240, "text-anchor": "middle"}, across);
  if (upright) add(svg, "text", {transform: `translate(11 ${(FRAME.top + FRAME.bottom) / 2}) rotate(-90)`,
                                 "text-anchor": "middle"}, upright);
};
const tickX = (svg, x, text, anchor = "middle") => add(svg, "text", {x, y: FRAME.bottom + 14, "text-anchor": anchor}, text);
const tickY = (svg, y, text) => add(svg, "text", {x: FRAME.left - 4, y: y + 4, "text-anchor": "end"}, text);

const drawPath = token => {
  const svg = get("path"), plane = token.plane;
  if (!plane) {
    svg.replaceChildren();
    add(svg, "text", {x: WIDTH / 2, y: 120, "text-anchor": "middle"}, "It does not move in two dimensions.");
    get("path-caption").textContent = "Path in its principal plane";
    svg.setAttribute("aria-label", `Path of ${named(token)}: it does not move in two dimensions.`);
    return;
  }
  const share = plane.variance.map(v => `${(100 * v).toFixed(1)} %`);
  axes(svg, `component 1 (${share[0]} of variance)`, `component 2 (${share[1]})`);
  const points = [];
  for (let t = 0; t < T && data.recurrences[t] <= token.length; t++) {
    const at = 2 * (state.token * T + t);
    points.push([FRAME.left + 8 + paths[at] / 65535 * (FRAME.right - FRAME.left - 16),
                 FRAME.bottom - 8 - paths[at + 1] / 65535 * (FRAME.bottom - FRAME.top - 16)]);
  }
  const [x0, x1, y0, y1] = plane.window;
  tickX(svg, FRAME.left + 8, short(x0), "start"); tickX(svg, FRAME.right - 8, short(x1), "end");
  tickY(svg, FRAME.bottom - 8, short(y0)); tickY(svg, FRAME.top + 8, short(y1));
  add(svg, "polyline", {points: points.map(p => p.map(v => v.toFixed(1)).join(",")).join(" "), class: "walk"});
  points.forEach(([x, y], t) => add(svg, "circle", {cx: x.toFixed(1), cy: y.toFixed(1), r: 3,
    fill: css(colour("viridis", t / Math.max(1, points.length - 1)))}));
  const now = points[Math.min(state.step, points.length - 1)];
  add(svg, "circle", {cx: now[0], cy: now[1], r: 7, class: "here"});
  get("path-caption").textContent = "Path in its principal plane, from dark (first) to yellow (last)";
  svg.setAttribute("aria-label", `Path of ${named(token)} in its two leading principal components, which hold ` +
    `${share[0]} and ${share[1]} of its variance; the ring is recurrence ${data.recurrences[state.step]}.`);
};

const drawCurve = token => {
  const svg = get("curve");
  axes(svg, "recurrence", "relative to the norm");
  const own = name => maps[name].subarray(state.token * T, (state.token + 1) * T);
  const [low, high] = range([...own("distance"), ...own("step")]).map((v, i) => i ? Math.ceil(v) : Math.floor(v));
  const x = t => FRAME.left + (data.recurrences[t] - 1) / Math.max(1, data.n_steps - 1) * (FRAME.right - FRAME.left);
  const y = v => FRAME.bottom - (v - low) / Math.max(1, high - low) * (FRAME.bottom - FRAME.top - 14);
  const every = Math.max(1, Math.ceil((high - low) / 5));
  for (let v = low; v <= high; v += every) {
    add(svg, "path", {d: `M${FRAME.left} ${y(v)}H${FRAME.right}`, class: "grid"});
    tickY(svg, y(v), v === 0 ? "1" : `1e${v}`);
  }
  tickX(svg, FRAME.left, "1"); tickX(svg, FRAME.right, data.n_steps, "end");
  const ends = {};
  for (const [name, kind] of [["distance", "first"], ["step", "second"]]) {
    let d = "", open = false;
    own(name).forEach((v, t) => {
      if (Number.isFinite(v)) { d += `${open ? "L" : "M"}${x(t).toFixed(1)} ${y(v).toFixed(1)}`; ends[name] = v; }
      open = Number.isFinite(v);
    });
    if (d) add(svg, "path", {d, class: kind});
  }
  add(svg, "path", {d: `M${x(state.step)} ${FRAME.top}V${FRAME.bottom}`, class: "here"});
  add(svg, "text", {x: FRAME.right - 4, y: FRAME.top + 8, "text-anchor": "end", class: "first"}, "— distance to the last state");
  add(svg, "text", {x: FRAME.right - 4, y: FRAME.top + 23, "text-anchor": "end", class: "second"}, "- - length of the step");
  get("curve-caption").textContent = "Distance and steps, log scale";
  svg.setAttribute("aria-label", `Distance of ${named(token)} from its last state, from ${digits(own("distance")[0])} to ` +
    `${digits(ends.distance)}, and length of its steps, at the end ${digits(ends.step)}, over ${token.length} recurrences.`);
};
get("curve").addEventListener("pointerdown", event => {
  const box = get("curve").getBoundingClientRect(), at = (event.clientX - box.left) / box.width * WIDTH;
  const wanted = 1 + (at - FRAME.left) / (FRAME.right - FRAME.left) * (data.n_steps - 1);
  let best = 0;
  data.recurrences.forEach((r, t) => { if (Math.abs(r - wanted) < Math.abs(data.recurrences[best] - wanted)) best = t; });
  choose(state.token, best);
});

const drawPlot = token => {
  const {at, unknown} = data.code, size = side * (side + 1) / 2, own = plots.subarray(state.token * size, (state.token + 1) * size);
  const code = (i, j) => own[i * side - i * (i - 1) / 2 + j - i];  // i <= j
  const known = own.filter(v => v !== unknown && v > 0), [low, high] = range(known);
  paint(get("plot"), side, side, (x, row) => {
    const y = side - 1 - row, value = code(Math.min(x, y), Math.max(x, y));
    if (value === unknown) return GREY;
    if (x > y) return value < at ? [0, 0, 0] : [255, 255, 255];
    return colour("cividis", high > low ? (value - low) / (high - low) : 0);
  });
  const rate = token.recurrence_rate === null ? "no recurrence rate" : `recurrence rate ${token.recurrence_rate.toPrecision(3)}`;
  get("plot-caption").textContent = `Recurrence plot; both axes recurrence 1 to ${data.n_steps}; ${rate}`;
  get("plot").setAttribute("aria-label", `Recurrence plot of ${named(token)}: ${rate} at a threshold of ` +
    `${data.threshold} of the orbit's rms distance.`);
};

const show = () => {
  const token = data.tokens[state.token], now = state.token * T + state.step, recurrence = data.recurrences[state.step];
  options.forEach((option, i) => {
    const chosen = i === state.token;
    if (option.getAttribute("aria-selected") !== String(chosen)) {
      option.setAttribute("aria-selected", chosen);
      option.tabIndex = chosen ? 0 : -1;
    }
    option.style.borderBottomColor = css(shade(state.map, maps[state.map][i * T + state.step]));
  });
  const row = get("row"), column = get("column");
  row.style.top = `${100 * state.token / n}%`; row.style.height = `${100 / n}%`;
  column.style.left = `${100 * state.step / T}%`; column.style.width = `${100 / T}%`;
  map.setAttribute("aria-valuenow", state.token + 1);
  const where = `${named(token)}, recurrence ${recurrence} of ${data.n_steps}`;
  map.setAttribute("aria-valuetext", where);
  get("recurrence").value = state.step;
  get("recurrence").setAttribute("aria-valuetext", `recurrence ${recurrence}`);
  get("recurrence-out").textContent = recurrence;
  get("said").textContent = `${where[0].toUpperCase()}${where.slice(1)}: distance to the last state ` +
    `${digits(maps.distance[now])}, step ${digits(maps.step[now])} of the norm. ${token.facts[0][0]}: ${token.facts[0][1]}.`;
  get("facts").replaceChildren(...token.facts.flatMap(([name, text]) => {
    const dt = document.createElement("dt"), dd = document.createElement("dd");
    dt.textContent = name; dd.textContent = text;
    return [dt, dd];
  }));
  drawPath(token); drawCurve(token); drawPlot(token);
};
const choose = (token, step) => {
  state.token = clamp(token, n - 1); state.step = clamp(step, T - 1);
  show();
  const box = options[state.token], list = get("text");  // within the list alone: the page stays where it is
  if (box.offsetTop < list.scrollTop + list.offsetTop) list.scrollTop = box.offsetTop - list.offsetTop;
  else if (box.offsetTop + box.offsetHeight > list.scrollTop + list.offsetTop + list.clientHeight)
    list.scrollTop = box.offsetTop + box.offsetHeight - list.offsetTop - list.clientHeight;
  history.replaceState(null, "", `#token=${data.tokens[state.token].token}&recurrence=${data.recurrences[state.step]}`);
};
get("recurrence").max = T - 1;
get("recurrence").addEventListener("input", event => choose(state.token, Number(event.target.value)));

const asked = new URLSearchParams(location.hash.slice(1));
const token = data.tokens.findIndex(t => String(t.token) === asked.get("token"));
const step = data.recurrences.indexOf(Number(asked.get("recurrence")));
if (token >= 0) state.token = token;
state.step = step >= 0 ? step : Math.min(7, T - 1);
drawMap();
show();
})();

// The viewer of `minibert explain`. Its data are in the page, in the element "data": see page.py.
//
// Every text of the data reaches the page as textContent or on a canvas, never as markup. Styles are set through
// element.style, because the policy of the page allows no style attributes in markup.
"use strict";

const DATA = JSON.parse(document.getElementById("data").textContent);
const SIZE = DATA.hidden / DATA.heads; // of a head
const STEPS = DATA.steps; // the names of all results, in the order of computing

const state = {
  view: "pass",
  text: 0, // which text
  step: 0, // which result: an index of STEPS
  layer: 0,
  head: 0,
  cell: null, // the row and the column of the number that is looked at in the forward pass
  show: "weights", // or "norms": what the maps of attention show
  measure: "length", // or "likeness", "turn": what the map of tokens through the layers shows
  pairs: "words", // or "vectors": what the map of pairs shows
  theme: null, // "dark" or "light"; null: as the system says
};

const $ = (id) => document.getElementById(id);

// ---------------------------------------------------------------- the results as matrices

/** Return the bytes of text in base64. */
function bytesOf(text) {
  return Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
}

/** Return the number of 16 bits: a sign, 5 bits of exponent, 10 of mantissa (IEEE 754 binary16). */
function half(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const mantissa = bits & 1023;
  if (exponent === 0) return sign * mantissa * 2 ** -24;
  if (exponent === 31) return mantissa ? NaN : sign * Infinity;
  return sign * 2 ** (exponent - 15) * (1 + mantissa / 1024);
}

/** Decode an array, on first use, and return it: {shape, values}. */
function decoded(array) {
  if (!array.values) {
    const bytes = bytesOf(array.data);
    const view = new DataView(bytes.buffer);
    const wide = array.type === "f4";
    const count = bytes.length / (wide ? 4 : 2);
    const at = wide ? (i) => view.getFloat32(4 * i, true) : (i) => half(view.getUint16(2 * i, true));
    array.values = Float32Array.from({ length: count }, (_, i) => at(i));
    delete array.data;
  }
  return array;
}

/** Return a matrix: its size, and a function of row and column. */
function matrix(rows, columns, at) {
  return { rows, columns, at };
}

/** Return a matrix of an array of two dimensions, or of one head of an array of three. */
function matrixOf(array, head = 0) {
  const { shape, values } = decoded(array);
  const [rows, columns] = shape.slice(-2);
  const start = shape.length === 3 ? head * rows * columns : 0;
  return matrix(rows, columns, (i, j) => values[start + i * columns + j]);
}

/** Return a vector as a matrix of several rows, so that it can be seen; the last row may end early, with NaN. */
function wrapped(values, columns) {
  const rows = Math.ceil(values.length / columns);
  return matrix(rows, columns, (i, j) => (i * columns + j < values.length ? values[i * columns + j] : NaN));
}

const listOf = (array) => [...decoded(array).values];
const text = () => DATA.texts[state.text];
const resultOf = (name) => text().results[name];
const rowOf = (m, i) => Array.from({ length: m.columns }, (_, j) => m.at(i, j));
const columnOf = (m, j) => Array.from({ length: m.rows }, (_, i) => m.at(i, j));
const sum = (list) => list.reduce((a, b) => a + b, 0);
const dot = (a, b) => a.reduce((total, x, k) => total + x * b[k], 0);
const lengthOf = (list) => Math.sqrt(dot(list, list));

/** Return the name of a result without the number of its layer: the key of what is said about it. */
function keyOf(name) {
  return name.replace(/^layers\.\d+\./, "layers.");
}

/** Return another result of the same layer. */
function sibling(name, last) {
  return name.replace(/[^.]+$/, last);
}

/** Return the name of what enters a layer. */
function inputOf(name) {
  const layer = Number(name.split(".")[1]);
  return layer ? `layers.${layer - 1}.x` : "embeddings.x";
}

// ---------------------------------------------------------------- numbers and words

/** Return a number with about three digits. */
function show(value) {
  if (!Number.isFinite(value)) return String(value);
  const size = Math.abs(value);
  const digits = size >= 256 ? 0 : size >= 32 ? 1 : size >= 4 ? 2 : 3; // what float16 can tell apart
  return minus(size >= 0.0095 || size === 0 ? value.toFixed(digits) : value.toExponential(1));
}

/** Return a number with its sign, in digits after the point. */
function signed(value, digits) {
  const fixed = value.toFixed(digits);
  return minus(value > 0 ? `+${fixed}` : fixed);
}

const minus = (number) => number.replace(/^-/, "\u2212");
const percent = (value) => `${minus((100 * value).toFixed(1))}%`;
const hundredths = (value) => minus((100 * value).toFixed(1).replace(/^-0\.0$/, "0.0"));
const two = (value) => minus(value.toFixed(Math.abs(value) < 9.995 ? 2 : 1).replace(/^-0\.00$/, "0.00"));
const count = (number, word) => `${number} ${word}${number === 1 ? "" : "s"}`;
const quoted = (token) => `\u201c${token}\u201d`;

/** Return a label of at most so many characters. */
function shortened(label, most) {
  const characters = [...label];
  return characters.length > most ? `${characters.slice(0, most - 1).join("")}\u2026` : label;
}

/** Return what a part of the model is called. */
function partInWords(name) {
  const [kind, layer, what, head] = name.split(".");
  if (kind !== "layers") return { words: "words", types: "token types", positions: "positions" }[kind] || kind;
  if (what === "outer") return `FFN ${layer}`;
  return head === undefined ? `heads ${layer}` : `head ${layer}.${head}`;
}

// ---------------------------------------------------------------- numbers, computed again

/** How a number of a result is computed from the results before it, by the key of the result. */
const AGAIN = {
  "embeddings.x": (name, i, j) =>
    normalizedSum("embeddings", ["words", "types", "positions"].map((last) => sibling(name, last)), i, j),
  "layers.scores": scoreAgain,
  "layers.weights": weightAgain,
  "layers.heads": headAgain,
  "layers.attended": (name, i, j) => normalizedSum(name, [inputOf(name), sibling(name, "multihead")], i, j),
  "layers.x": (name, i, j) => normalizedSum(name, [sibling(name, "attended"), sibling(name, "outer")], i, j),
};

/** Return the nodes that say how a number follows from results before it. */
function computedAgain(name, ...index) {
  const again = DATA.modules[name] ? moduleAgain(name, ...index) : AGAIN[keyOf(name)]?.(name, ...index);
  if (!again) return [];
  if (again.not) return [element("div", {}, again.not)];
  return [element("div", {}, "Computed again here: ", again.how, " = ",
    element("b", { className: "again" }, show(again.value)))];
}

/** Return whether each of the results is in this page. */
function have(...names) {
  return names.every(resultOf);
}

/** Return Q[i] . K[j] / sqrt(d), in MPNet with the bias of the distance from i to j. */
function scoreAgain(name, i, j) {
  const [q, k] = [sibling(name, "Q"), sibling(name, "K")];
  if (!have(q, k)) return missing("Q and K");
  const product = dot(rowOf(matrixOf(resultOf(q), state.head), i), rowOf(matrixOf(resultOf(k), state.head), j));
  const how = `Q[${i}] \u00b7 K[${j}] / \u221a${SIZE} = ${show(product)} / ${two(Math.sqrt(SIZE))}`;
  if (!DATA.bias) return { how, value: product / Math.sqrt(SIZE) };
  const biases = matrixOf(DATA.bias);
  const bias = biases.at(state.head, j - i + (biases.columns - 1) / 2);
  return { how: `${how} + ${show(bias)}, the bias of this distance`, value: product / Math.sqrt(SIZE) + bias };
}

/** Return exp(scores[i, j]) over the sum of exp(scores[i]). */
function weightAgain(name, i, j) {
  const scores = sibling(name, "scores");
  if (!have(scores)) return missing("scores");
  if (isCut()) return partOnly();
  const list = rowOf(matrixOf(resultOf(scores), state.head), i);
  const most = Math.max(...list);
  const powers = list.map((score) => Math.exp(score - most));
  return { how: `exp(${show(list[j])}) / sum of exp(scores[${i}])`, value: powers[j] / sum(powers) };
}

/** Return weights[i] . V[:, j]. */
function headAgain(name, i, j) {
  const [weights, V] = [sibling(name, "weights"), sibling(name, "V")];
  if (!have(weights, V)) return missing("weights and V");
  if (isCut()) return partOnly();
  const value = dot(rowOf(matrixOf(resultOf(weights), state.head), i), columnOf(matrixOf(resultOf(V), state.head), j));
  return { how: `weights[${i}] \u00b7 V[:, ${j}]`, value };
}

/** Return a number of LayerNorm(the sum of results). */
function normalizedSum(norm, names, i, j) {
  if (!have(...names)) return missing(names.join(", "));
  const rows = names.map((each) => rowOf(matrixOf(resultOf(each)), i));
  const total = rows[0].map((_, k) => sum(rows.map((row) => row[k])));
  const mean = sum(total) / total.length;
  const deviation = Math.sqrt(sum(total.map((x) => (x - mean) ** 2)) / total.length + DATA.eps);
  const { weight, bias } = DATA.norms[norm];
  const [scale, shift] = [decoded(weight).values[j], decoded(bias).values[j]];
  const terms = rows.map((row) => show(row[j])).join(" + ");
  return {
    how: `${names.map((each) => each.split(".").pop()).join(" + ")} = ${terms} = ${show(total[j])}; minus the mean ` +
      `${show(mean)} of this token, divided by the standard deviation ${show(deviation)}, times ${show(scale)}, ` +
      `plus ${show(shift)}`,
    value: ((total[j] - mean) / deviation) * scale + shift,
  };
}

/** Return a number of a vector after the transformer, from the results before it; null if it cannot be computed. */
function moduleAgain(name, j) {
  const { kind, before } = DATA.modules[name];
  if (kind === "Pooling" && text().pooling) return pooledAgain(j);
  if (kind !== "Normalize" || !before) return null;
  const values = decoded(resultOf(before)).values;
  const length = lengthOf(values);
  return { how: `${show(values[j])} / ${show(length)}, the length of the vector before`, value: values[j] / length };
}

/** Return a number of the pooled vector: each mode of pooling gives as many dimensions as the token vectors have. */
function pooledAgain(j) {
  const last = `layers.${DATA.layers - 1}.x`;
  if (isCut()) return partOnly();
  const weights = text().pooling[Math.floor(j / DATA.hidden)];
  const dimension = j % DATA.hidden;
  const value = dot(weights, columnOf(matrixOf(resultOf(last)), dimension));
  const used = weights.filter((weight) => weight !== 0);
  const how = used.every((weight) => weight === used[0])
    ? `${show(used[0] || 0)} times the sum of ${last}[:, ${dimension}], over ${count(used.length, "token")}`
    : `the sum of weight times ${last}[:, ${dimension}], over ${count(used.length, "token")}`;
  return { how, value };
}

const missing = (what) => ({ not: `It is not computed again here: ${what} of this layer is not in this page.` });
const isCut = () => text().count > text().tokens.length;
const partOnly = () => ({
  not: `It is not computed again here: it needs all ${text().count} tokens, and this page has ` +
    `the first ${text().tokens.length}.`,
});

// ---------------------------------------------------------------- elements

/** Return an element with properties and children. Strings become text, never markup. */
function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(properties)) {
    if (key === "style") Object.assign(made.style, value);
    else if (key === "key") made.dataset.key = value;
    else if (/^(aria-|role$|scope$|for$|data-)/.test(key)) made.setAttribute(key, value);
    else made[key] = value;
  }
  made.append(...children);
  return made;
}

/** Return an SVG element with attributes and children. */
function drawing(tag, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function button(label, key, onclick, properties = {}) {
  return element("button", { type: "button", key, onclick, ...properties }, label);
}

/** Return buttons of which one is pressed. `options` are pairs of a value and a label. */
function choice(label, key, options, current, pick) {
  const buttons = options.map(([value, words]) =>
    button(words, `${key}-${value}`, () => pick(value), { "aria-pressed": String(value === current) }));
  return element("div", { className: "bar choice", role: "group", "aria-label": label }, ...buttons);
}

/** Return a list to select from, with its label. */
function selection(label, key, options, current, pick) {
  const list = element("select", { key, onchange: () => pick(Number(list.value)), "aria-label": label },
    ...options.map(([value, words]) => new Option(words, value)));
  list.value = current;
  return list;
}

function badge(kind, words = kind) {
  return element("span", { className: `badge ${kind}` }, words);
}

function heading(words, ...more) {
  return element("h2", {}, words, " ", ...more);
}

function paragraph(...words) {
  return element("p", { className: "small" }, ...words);
}

/** Say something to screen readers. */
function say(words) {
  $("live").textContent = words;
}

// ---------------------------------------------------------------- colours

let palette = {};

/** Read the colours of the theme, for canvases. */
function readPalette() {
  const style = getComputedStyle(document.documentElement);
  for (const name of ["positive", "negative", "zero", "amount", "ink", "soft", "accent", "panel"]) {
    const hex = style.getPropertyValue(`--${name}`).trim();
    palette[name] = [1, 3, 5].map((start) => parseInt(hex.slice(start, start + 2), 16));
  }
}

const css = (colour) => `rgb(${colour.join(", ")})`;

/** Return the colour of a value: near the colour of zero for small values. */
function colourOf(value, scale, isSigned) {
  const part = Math.min(1, Math.abs(value) / scale || 0) ** 0.8;
  const end = palette[isSigned ? (value < 0 ? "negative" : "positive") : "amount"];
  return palette.zero.map((from, k) => Math.round(from + (end[k] - from) * part));
}

/** Return the relative luminance of a colour, as WCAG 2 defines it. */
function luminance(colour) {
  const linear = colour.map((c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
}

/** Return black or white, whichever has more contrast with a colour: it is at least 4.5. */
function inkOn(colour) {
  return luminance(colour) > 0.179 ? "#000000" : "#ffffff";
}

/** Return the value with the full colour. In wide maps it is not the largest: one number would pale all others. */
function scaleOf(m) {
  const all = [];
  for (let i = 0; i < m.rows; i++) for (let j = 0; j < m.columns; j++) all.push(Math.abs(m.at(i, j)));
  const finite = all.filter(Number.isFinite).sort((a, b) => a - b);
  return finite[Math.floor((finite.length - 1) * (m.columns > 60 ? 0.995 : 1))] || 1;
}

// ---------------------------------------------------------------- maps

const FONT = "ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace";
const CHARACTER = 7.6; // the width of a character of 12.5 pixels, at most

/**
 * A map of a matrix: a canvas with labels and a cursor, which arrow keys and pointers move.
 *
 * Options: label; rows, columns: labels (columns may be null); signed; scale; numbers: a function of a value, if the
 * cells have numbers; most: the largest width of a cell; height: of a cell; bars: a number for each row, and
 * barText; say: a function of row, column and value that returns what is said about them; hint; legend: what is said
 * beside the scale of colours, which is left out without it; start: the cell where the cursor is at first; moved: it is
 * told where the cursor goes.
 */
class HeatMap {
  constructor(parent, m, options) {
    this.parent = parent;
    this.matrix = m;
    this.options = { signed: true, most: 40, ...options };
    this.scale = options.scale || scaleOf(m);
    this.cursor = null;
    this.measure(parent.clientWidth - 42);
    this.output = element("output", { className: "readout" }, options.hint || "");
    this.makeCanvas();
    this.image = this.paintCells();
    const box = element("div", { className: "scroll", key: `scroll-${parent.id}` }, this.canvas);
    const scale = options.legend === undefined ? [] : [legend(this.scale, this.options.signed, options.legend)];
    parent.append(box, this.output, ...scale, ...this.asTable());
    if (options.start && options.start[0] < m.rows && options.start[1] < m.columns) this.go(...options.start, false);
    else this.draw();
  }

  /** Choose the sizes, from the width that there is. */
  measure(width) {
    const { rows, columns, numbers, bars, most, height } = this.options;
    const longest = (labels) => Math.max(0, ...labels.map((label) => [...label].length));
    const characters = Math.max(4, Math.floor((width * 0.34) / CHARACTER));
    this.labels = rows.map((label) => shortened(label, Math.min(24, characters)));
    this.tops = columns && columns.map((label) => shortened(label, 14));
    this.left = longest(this.labels) ? longest(this.labels) * CHARACTER + 12 : 2;
    this.top = this.tops ? longest(this.tops) * 5.6 + 18 : 2;
    this.bar = width < 420 ? 14 : 44;
    const right = bars ? this.bar + 66 : 4;
    const fit = (width - this.left - right) / this.matrix.columns;
    this.numbers = fit >= 27 ? numbers : null; // narrower cells have no room for them
    this.cell = Math.max(columns ? 15 : 1, Math.min(most, fit));
    this.row = height || (this.tops ? Math.max(15, Math.min(this.cell, 34)) : 22);
    const lean = this.tops && this.tops.length ? Math.max(0, [...this.tops.at(-1)].length * 4.8 - this.cell * 0.4) : 0;
    this.width = this.left + this.cell * this.matrix.columns + Math.max(right, lean + 6);
    this.height = this.top + this.row * this.matrix.rows + 3;
  }

  makeCanvas() {
    const ratio = Math.min(window.devicePixelRatio || 1, 8000 / Math.max(this.width, this.height));
    this.canvas = element("canvas", {
      tabIndex: 0,
      key: `map-${this.parent.id}`,
      role: "application",
      "aria-roledescription": "map of numbers",
      "aria-label": `${this.options.label}: ${count(this.matrix.rows, "row")}, ` +
        `${count(this.matrix.columns, "column")}. Move with the arrow keys.`,
      width: Math.round(this.width * ratio),
      height: Math.round(this.height * ratio),
      style: { width: `${this.width}px`, height: `${this.height}px`, maxWidth: "none" },
    });
    this.context = this.canvas.getContext("2d");
    this.context.setTransform(ratio, 0, 0, ratio, 0, 0);
    this.canvas.onpointermove = (event) => event.pointerType === "mouse" && this.point(event);
    this.canvas.onpointerdown = (event) => this.point(event);
    this.canvas.onkeydown = (event) => this.press(event);
    this.canvas.onfocus = () => !this.cursor && this.canvas.matches(":focus-visible") && this.go(0, 0);
  }

  /** Return a picture with one pixel for each cell: scaled up at once, it is much faster than a rectangle for each. */
  paintCells() {
    return pixels(this.matrix, this.scale, this.options.signed);
  }

  draw() {
    this.context.clearRect(0, 0, this.width, this.height);
    this.context.textBaseline = "middle";
    this.drawCells();
    this.drawRowLabels();
    if (this.tops) this.drawColumnLabels();
    if (this.numbers) this.drawNumbers();
    if (this.options.bars) this.drawBars();
    if (this.cursor) this.drawCursor();
  }

  drawCells() {
    const { context, matrix: m } = this;
    context.imageSmoothingEnabled = false;
    context.drawImage(this.image, this.left, this.top, this.cell * m.columns, this.row * m.rows);
    context.fillStyle = css(palette.panel);
    const [width, height] = [this.cell * m.columns, this.row * m.rows];
    for (let i = 1; i <= m.rows; i++) context.fillRect(this.left, this.top + i * this.row - 1, width, 1);
    if (this.cell < 5) return; // no room between columns
    for (let j = 1; j <= m.columns; j++) context.fillRect(this.left + j * this.cell - 1, this.top, 1, height);
  }

  drawRowLabels() {
    const { context } = this;
    context.font = `12.5px ${FONT}`;
    context.textAlign = "right";
    this.labels.forEach((label, i) => {
      context.fillStyle = css(this.cursor && this.cursor[0] === i ? palette.accent : palette.ink);
      context.fillText(label, this.left - 8, this.top + (i + 0.5) * this.row);
    });
  }

  drawColumnLabels() {
    const { context } = this;
    context.font = `12.5px ${FONT}`;
    context.textAlign = "left";
    this.tops.forEach((label, j) => {
      context.save();
      context.translate(this.left + (j + 0.42) * this.cell, this.top - 7);
      context.rotate(-Math.PI / 3.4);
      context.fillStyle = css(this.cursor && this.cursor[1] === j ? palette.accent : palette.ink);
      context.fillText(label, 0, 0);
      context.restore();
    });
  }

  drawNumbers() {
    const { context, matrix: m } = this;
    context.font = `11px ${FONT}`;
    context.textAlign = "center";
    for (let i = 0; i < m.rows; i++) {
      for (let j = 0; j < m.columns; j++) {
        context.fillStyle = inkOn(colourOf(m.at(i, j), this.scale, this.options.signed));
        const [x, y] = [this.left + (j + 0.5) * this.cell - 0.5, this.top + (i + 0.5) * this.row];
        context.fillText(this.numbers(m.at(i, j)), x, y);
      }
    }
  }

  drawBars() {
    const { context } = this;
    const { bars, barText = show } = this.options;
    const most = Math.max(...bars.map(Math.abs)) || 1;
    const start = this.left + this.cell * this.matrix.columns + 6;
    context.font = `12px ${FONT}`;
    context.textAlign = "left";
    bars.forEach((value, i) => {
      const [length, middle] = [(this.bar * Math.abs(value)) / most, this.top + (i + 0.5) * this.row];
      context.fillStyle = css(palette[value < 0 ? "negative" : this.options.signed ? "positive" : "amount"]);
      context.fillRect(start, middle - 4, length, 8);
      context.fillStyle = css(palette.soft);
      context.fillText(barText(value), start + length + 4, middle);
    });
  }

  drawCursor() {
    const [i, j] = this.cursor;
    this.context.strokeStyle = css(palette.accent);
    this.context.lineWidth = 2;
    const [x, y] = [this.left + j * this.cell, this.top + i * this.row];
    this.context.strokeRect(x - 1, y - 1, Math.max(this.cell, 3) + 1, this.row + 1);
  }

  /** Put the cursor on a cell, and say what is there. */
  go(i, j, tell = true) {
    const within = (index, size) => Math.max(0, Math.min(size - 1, index));
    this.cursor = [within(i, this.matrix.rows), within(j, this.matrix.columns)];
    const value = this.matrix.at(...this.cursor);
    const words = Number.isNaN(value) ? ["There is no number here."] : this.options.say(...this.cursor, value);
    this.output.replaceChildren(...[words].flat());
    this.draw();
    if (tell && this.options.moved) this.options.moved(...this.cursor);
  }

  point(event) {
    const box = this.canvas.getBoundingClientRect();
    const i = Math.floor((event.clientY - box.top - this.top) / this.row);
    const j = Math.floor((event.clientX - box.left - this.left) / this.cell);
    if (i < 0 || j < 0 || i >= this.matrix.rows || j >= this.matrix.columns) return;
    if (!this.cursor || i !== this.cursor[0] || j !== this.cursor[1]) this.go(i, j);
  }

  press(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const { rows, columns } = this.matrix;
    const [i, j] = this.cursor || [0, 0];
    const to = {
      ArrowUp: [i - 1, j],
      ArrowDown: [i + 1, j],
      ArrowLeft: [i, j - 1],
      ArrowRight: [i, j + 1],
      Home: [i, 0],
      End: [i, columns - 1],
      PageUp: [0, j],
      PageDown: [rows - 1, j],
    }[event.key];
    if (!to) return;
    event.preventDefault();
    this.go(...to);
    this.reveal();
  }

  /** Scroll the map so that its cursor can be seen. */
  reveal() {
    const box = this.canvas.parentElement;
    const [x, y] = [this.left + this.cursor[1] * this.cell, this.top + this.cursor[0] * this.row];
    if (x + this.cell > box.scrollLeft + box.clientWidth) box.scrollLeft = x + this.cell - box.clientWidth + 10;
    if (x < box.scrollLeft + this.left) box.scrollLeft = x - this.left;
    if (y + this.row > box.scrollTop + box.clientHeight) box.scrollTop = y + this.row - box.clientHeight + 10;
    if (y < box.scrollTop + this.top) box.scrollTop = y - this.top;
  }

  /** Return a button, and the place for the table that it shows and hides. */
  asTable() {
    const place = element("div", { className: "scroll", hidden: true, tabIndex: 0, role: "region",
      "aria-label": `${this.options.label}, as a table` });
    const toggle = () => {
      place.hidden = !place.hidden;
      shown.setAttribute("aria-expanded", String(!place.hidden));
      place.replaceChildren(...(place.hidden ? [] : [this.table()]));
    };
    const shown = button("As a table", `table-${this.options.label}`, toggle, {
      className: "small as-table", "aria-expanded": "false", "aria-label": `${this.options.label}, as a table` });
    return [shown, place];
  }

  table() {
    const { rows, columns, label, bars, numbers = show, barText = show } = this.options;
    const [height, width] = [Math.min(this.matrix.rows, 64), Math.min(this.matrix.columns, 128)];
    const name = (j) => (columns ? columns[j] : String(j));
    const across = [...Array(width).keys()];
    const head = element("tr", {}, element("td"), ...across.map((j) => element("th", { scope: "col" }, name(j))),
      ...(bars ? [element("th", { scope: "col" }, this.options.barName || "length")] : []));
    const body = [...Array(height).keys()].map((i) => element("tr", {}, element("th", { scope: "row" }, rows[i] || ""),
      ...across.map((j) => element("td", {}, Number.isNaN(this.matrix.at(i, j)) ? "" : numbers(this.matrix.at(i, j)))),
      ...(bars ? [element("td", {}, barText(bars[i]))] : [])));
    const all = height === this.matrix.rows && width === this.matrix.columns;
    const cut = all ? "" : `: the first ${count(height, "row")} and ${count(width, "column")}`;
    return element("table", { className: "values" }, element("caption", {}, label + cut), element("thead", {}, head),
      element("tbody", {}, ...body));
  }
}

/** Return a canvas with one pixel for each number. */
function pixels(m, scale, isSigned) {
  const canvas = element("canvas", { width: m.columns, height: m.rows });
  const context = canvas.getContext("2d");
  const image = context.createImageData(m.columns, m.rows);
  for (let i = 0; i < m.rows; i++) {
    for (let j = 0; j < m.columns; j++) {
      if (Number.isNaN(m.at(i, j))) continue;
      image.data.set([...colourOf(m.at(i, j), scale, isSigned), 255], 4 * (i * m.columns + j));
    }
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

function legend(scale, isSigned, words) {
  const stops = isSigned ? [palette.negative, palette.zero, palette.positive] : [palette.zero, palette.amount];
  const strip = element("i", { style: { background: `linear-gradient(90deg, ${stops.map(css).join(", ")})` } });
  const least = isSigned ? `\u2212${show(scale)}` : "0";
  return element("div", { className: "legend" }, element("span", {}, least), strip, element("span", {}, show(scale)),
    element("span", {}, words));
}

// ---------------------------------------------------------------- the forward pass: the source

const KEYWORDS = /^(def|return|for|in|if|else|lambda|None|import|from)$/;

/** Return a line of Python as nodes. It knows as much of Python as the shown files need. */
function highlighted(line) {
  const nodes = [];
  for (const [piece] of line.matchAll(/#.*$|tap\("\w+",|\w+|[^\w#]+?(?=\w|#|tap\(|$)|./gu)) {
    const result = piece.match(/^tap\("(\w+)",$/);
    if (result) {
      const [open, close] = ["tap(", ","].map((words) => element("span", { className: "tap" }, words));
      nodes.push(open, element("span", { className: "result" }, `"${result[1]}"`), close);
    } else if (piece.startsWith("# ")) nodes.push(element("span", { className: "quiet" }, piece));
    else if (KEYWORDS.test(piece)) nodes.push(element("span", { className: "keyword" }, piece));
    else nodes.push(piece);
  }
  return nodes;
}

/** Build the list of source lines, once. Lines that compute a result are buttons. */
function buildSource() {
  for (const { file, start, lines, results } of DATA.source) {
    const pre = element("pre");
    let inDocstring = false;
    lines.forEach((line, k) => {
      const quotes = line.split('"""').length - 1;
      const quiet = inDocstring || quotes > 0;
      if (quotes === 1) inDocstring = !inDocstring;
      const words = quiet ? [element("span", { className: "quiet" }, line)] : highlighted(line);
      const content = [element("span", { className: "number" }, String(start + k)), ...words];
      pre.append(sourceLine(results[start + k], content, start + k));
    });
    $("code").append(element("h3", { className: "mono" }, file), pre);
  }
  $("code").onkeydown = pressInSource;
}

function sourceLine(result, content, number) {
  if (!result) return element("span", { className: "line" }, ...content, "\n");
  return element("button", {
    type: "button", className: "line", tabIndex: -1, "data-result": result, "data-number": number,
    onclick: () => select(nearest(result)),
  }, ...content);
}

/** Move from line to line with the arrow keys. */
function pressInSource(event) {
  const by = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (!by) return;
  event.preventDefault();
  select(state.step + by);
  $("code").querySelector("[aria-current]")?.focus({ preventScroll: true });
}

/** Return the step of a line, in the layer that is looked at. */
function nearest(result) {
  const inLayer = STEPS.indexOf(result.replace(/^layers\./, `layers.${state.layer}.`));
  return inLayer >= 0 ? inLayer : STEPS.indexOf(result);
}

/** Mark the line of the step, and scroll to it. */
function markLine() {
  const key = keyOf(STEPS[state.step]);
  const box = $("code");
  for (const line of box.querySelectorAll("button")) {
    const current = line.dataset.result === key;
    line.tabIndex = current ? 0 : -1;
    if (!current) line.removeAttribute("aria-current");
    else {
      line.setAttribute("aria-current", "step");
      const y = line.getBoundingClientRect().top - box.getBoundingClientRect().top + box.scrollTop;
      if (y < box.scrollTop + 50 || y > box.scrollTop + box.clientHeight - 60) box.scrollTop = y - box.clientHeight / 3;
    }
  }
}

// ---------------------------------------------------------------- the forward pass: the result

/** Go to a step. */
function select(step) {
  state.step = Math.max(0, Math.min(STEPS.length - 1, step));
  update();
  const name = STEPS[state.step];
  say(`${name}, step ${state.step + 1} of ${STEPS.length}${resultOf(name) ? `, ${text().shapes[name]}` : ""}`);
}

function drawPass() {
  const name = STEPS[state.step];
  if (name.startsWith("layers.")) state.layer = Number(name.split(".")[1]);
  const box = $("value");
  const parts = name.split(".");
  const last = parts.pop();
  const line = $("code").querySelector(`[data-result="${keyOf(name)}"]`)?.dataset.number;
  box.replaceChildren(stepControls(name),
    element("div", { className: "name mono" }, element("span", {}, `${parts.join(".")}.`), last));
  if (resultOf(name)) {
    const where = line ? ` \u00b7 line ${line}` : "";
    box.append(element("div", { className: "soft small shape" }, text().shapes[name] + where));
  }
  box.append(element("p", {}, aboutResult(name)));
  if (resultOf(name)) drawResult(box, name);
  else box.append(element("p", { className: "note" }, "This result is left out, so that the page stays small."));
  markLine();
}

function aboutResult(name) {
  const about = DATA.modules[name];
  return about ? `${about.kind}: ${about.words}` : DATA.about[keyOf(name)];
}

function stepControls(name) {
  const go = (label, key, by) =>
    button(label, key, () => select(state.step + by), { disabled: !STEPS[state.step + by] });
  const layers = [...Array(DATA.layers).keys()].map((layer) => [layer, `layer ${layer}`]);
  return element("div", { className: "bar steps" }, go("\u25c0 Previous", "previous", -1), go("Next \u25b6", "next", 1),
    selection("Layer", "layer", layers, state.layer, goToLayer),
    element("span", { className: "soft small" }, `${state.step + 1} of ${STEPS.length}`));
}

/** Show the same result of another layer. */
function goToLayer(layer) {
  state.layer = Math.max(0, Math.min(DATA.layers - 1, layer));
  const name = STEPS[state.step];
  if (state.view !== "pass") return update();
  const last = name.startsWith("layers.") ? name.split(".").pop() : "Q";
  return select(STEPS.indexOf(`layers.${state.layer}.${last}`));
}

function headControls() {
  if (DATA.heads === 1) return [];
  const heads = [...Array(DATA.heads).keys()].map((head) => [head, `head ${head}`]);
  return [choice("Head", "head", heads, state.head, (head) => { state.head = head; update(); })];
}

function drawResult(box, name) {
  const shape = resultOf(name).shape;
  if (shape.length === 3) box.append(...headControls());
  if (shape.length === 0) box.append(paragraph(show(decoded(resultOf(name)).values[0])));
  else if (shape.length === 1) drawVector(box, name);
  else if (/\.(scores|weights)$/.test(name)) drawSquare(box, name);
  else drawRows(box, name);
}

/** Draw scores or weights: tokens by tokens. */
function drawSquare(box, name) {
  const { tokens } = text();
  const m = matrixOf(resultOf(name), state.head);
  const isWeights = name.endsWith("weights");
  new HeatMap(box, m, {
    label: `${name}, head ${state.head}`, rows: tokens, columns: tokens, signed: !isWeights, most: 46,
    numbers: m.columns <= 14 ? (isWeights ? two : (value) => minus(value.toFixed(1))) : null,
    legend: "row: the token that attends; column: the token that it attends to",
    start: state.cell || strongest(m), moved: rememberCell,
    say: (i, j, value) => sayPair(name, i, j, value),
  });
}

function sayPair(name, i, j, value) {
  const { tokens } = text();
  const words = name.endsWith("weights")
    ? `${quoted(tokens[i])} takes ${percent(value)} of its values from ${quoted(tokens[j])}: weights[${i}, ${j}] = `
    : `${quoted(tokens[i])} attends to ${quoted(tokens[j])}: scores[${i}, ${j}] = `;
  return [element("div", {}, words, element("b", { className: "now" }, show(value))),
    ...computedAgain(name, i, j)];
}

/** Draw a result with a vector for each token. */
function drawRows(box, name) {
  const { tokens } = text();
  const m = matrixOf(resultOf(name), state.head);
  new HeatMap(box, m, {
    label: resultOf(name).shape.length === 3 ? `${name}, head ${state.head}` : name, rows: tokens, columns: null,
    bars: tokens.map((_, i) => lengthOf(rowOf(m, i))), start: state.cell || [0, 0], moved: rememberCell,
    legend: "row: a token; column: a dimension; bar: the length of the token's vector",
    say: (i, j, value) => [
      element("div", {}, `${quoted(tokens[i])}, dimension ${j}: `, element("b", { className: "now" }, show(value))),
      ...computedAgain(name, i, j)],
  });
}

/** Draw one vector, in rows of up to 64 dimensions. */
function drawVector(box, name) {
  const values = decoded(resultOf(name)).values;
  const columns = Math.min(64, values.length, box.clientWidth < 500 ? 32 : 64);
  const m = wrapped(values, columns);
  new HeatMap(box, m, {
    label: name, rows: [...Array(m.rows).keys()].map((i) => String(i * columns)), columns: null, start: [0, 0],
    legend: `each cell is a dimension, ${columns} in a row; length of the vector: ${show(lengthOf([...values]))}`,
    say: (i, j, value) => [
      element("div", {}, `Dimension ${i * columns + j}: `, element("b", { className: "now" }, show(value))),
      ...computedAgain(name, i * columns + j)],
  });
}

function rememberCell(i, j) {
  state.cell = [i, j];
  writeAddress();
}

/** Return the cell of the largest number; between words, where there are two. */
function strongest(m) {
  const special = text().special;
  const words = special.flatMap((is, i) => (is ? [] : [i]));
  const among = words.length > 1 ? words : special.map((_, i) => i);
  let best = [among[0] || 0, among[0] || 0];
  for (const i of among) for (const j of among) if (m.at(i, j) > m.at(...best)) best = [i, j];
  return best;
}

// ---------------------------------------------------------------- attention

/** Return the weights of a head, or weights times the lengths of what each token gives. */
function attention(layer, head) {
  const weights = matrixOf(resultOf(`layers.${layer}.weights`), head);
  if (state.show === "weights") return weights;
  const norms = matrixOf(text().valueNorms[layer]);
  return matrix(weights.rows, weights.columns, (i, j) => weights.at(i, j) * norms.at(head, j));
}

function drawAttention() {
  drawHeads($("heads"));
  drawHead($("head"));
}

function drawHeads(box) {
  const explained = {
    weights: "The stronger the colour, the more of its values the token of the row takes from the token of the column.",
    norms: "A weight, times the length of what this head can take from that token (V times W_O). A token with a " +
      "large weight and a short vector gives little (Kobayashi et al. 2020).",
  };
  const grid = element("div", { className: "grid", role: "group", "aria-label": "Heads", style: {
    gridTemplateColumns: `repeat(${gridColumns(box)}, minmax(0, ${DATA.heads > 3 ? "1fr" : "150px"}))` } });
  const all = [...Array(DATA.layers * DATA.heads).keys()].map((k) => [Math.floor(k / DATA.heads), k % DATA.heads]);
  const scale = Math.max(...all.map((head) => scaleOf(attention(...head))));
  grid.append(...all.map((head) => headButton(...head, scale)));
  box.replaceChildren(
    heading("All heads", badge("exact")),
    paragraph(`${count(DATA.layers, "layer")} of ${count(DATA.heads, "head")}. Row: the token that attends. ` +
      "Column: the token that it attends to. Below each map is its number, layer.head, and where most of the " +
      "attention of the words goes: a token, the next or previous token, or \u201cspread\u201d if none has more than " +
      "35%. All maps have one scale."),
    choice("What is shown", "show", [["weights", "weights"], ["norms", "weights \u00d7 \u2016V W_O\u2016"]], state.show,
      (what) => { state.show = what; update(); }),
    paragraph(explained[state.show]),
    element("div", { className: "scroll", key: "grid" }, grid),
  );
}

/** Return how many small maps fit beside each other: a divisor of the number of heads, where one fits well. */
function gridColumns(box) {
  const fit = Math.max(2, Math.floor((box.clientWidth - 34) / 84));
  for (let columns = Math.min(fit, DATA.heads); columns > fit / 2; columns--) {
    if (DATA.heads % columns === 0) return columns;
  }
  return Math.min(fit, DATA.heads);
}

function headButton(layer, head, scale) {
  const m = attention(layer, head);
  const habit = text().habits[layer][head];
  const made = button(pixels(m, scale, false), `cell-${layer}-${head}`,
    () => { Object.assign(state, { layer, head }); update(); }, { className: "cell",
      "aria-pressed": String(layer === state.layer && head === state.head),
      "aria-label": `${layer}.${head} ${habit}` });
  made.append(element("span", {}, `${layer}.${head} ${habit}`));
  return made;
}

function habitInWords(habit) {
  if (habit === "no words") return "The text has no words.";
  return habit === "spread" ? "The attention of the words is spread." : `Most attention of the words: ${habit}.`;
}

function drawHead(box) {
  const { tokens } = text();
  const m = attention(state.layer, state.head);
  const layers = [...Array(DATA.layers).keys()].map((layer) => [layer, `layer ${layer}`]);
  const heads = [...Array(DATA.heads).keys()].map((head) => [head, `head ${head}`]);
  const pick = (what) => (value) => { state[what] = value; update(); };
  box.replaceChildren(
    heading(`Layer ${state.layer}, head ${state.head}`),
    element("div", { className: "bar steps" }, selection("Layer", "layer", layers, state.layer, pick("layer")),
      selection("Head", "head", heads, state.head, pick("head"))),
    paragraph(habitInWords(text().habits[state.layer][state.head])),
  );
  const lines = tokens.length <= 24 ? attentionLines(m, box.clientWidth - 34) : null;
  if (lines) box.append(lines.svg);
  const isWeights = state.show === "weights";
  new HeatMap(box, m, {
    label: `Attention, layer ${state.layer}, head ${state.head}`, rows: tokens, columns: tokens, signed: false,
    most: 46, numbers: m.columns <= 14 ? two : null, start: strongest(m), moved: (i) => lines && lines.draw(i),
    legend: isWeights ? "weight" : "weight times length",
    say: (i, j, value) => `${quoted(tokens[i])} takes ${isWeights ? `${percent(value)} of its values` : show(value)} ` +
      `from ${quoted(tokens[j])}.`,
  });
}

/** Return a drawing of lines from each token to the tokens it attends to, and a function that draws one token's. */
function attentionLines(m, width) {
  const tokens = text().tokens.map((token) => shortened(token, 12));
  const [step, widest] = [22, Math.max(...tokens.map((token) => [...token].length)) * CHARACTER + 10];
  const all = Math.min(width, 2 * widest + 170);
  const scale = scaleOf(m);
  const svg = drawing("svg", { viewBox: `0 0 ${all} ${tokens.length * step}`, width: all, role: "img",
    "aria-label": "Lines from each token, on the left, to the tokens it attends to. The map below has the numbers." });
  const line = (i, j) => {
    const part = Math.min(1, m.at(i, j) / scale);
    const [from, to] = [(i + 0.5) * step, (j + 0.5) * step];
    const path = `M${widest},${from} C${all * 0.42},${from} ${all * 0.58},${to} ${all - widest},${to}`;
    return part < 0.04 ? [] : [drawing("path", { d: path, fill: "none", stroke: css(palette.amount),
      "stroke-width": (0.5 + 4.5 * part).toFixed(2), opacity: (0.1 + 0.8 * part).toFixed(2) })];
  };
  const label = (token, i, x, anchor) => drawing("text", { x, y: (i + 0.5) * step + 4, "text-anchor": anchor }, token);
  const draw = (query) => {
    const rows = query === null ? [...tokens.keys()] : [query];
    svg.replaceChildren(...rows.flatMap((i) => [...tokens.keys()].flatMap((j) => line(i, j))),
      ...tokens.map((token, i) => label(token, i, widest - 8, "end")),
      ...tokens.map((token, i) => label(token, i, all - widest + 8, "start")));
  };
  draw(null);
  return { svg, draw };
}

// ---------------------------------------------------------------- tokens

function drawTokens() {
  drawShares($("shares"));
  drawParts($("parts"));
  drawProgress($("progress"));
  drawVectorPanel($("vector"));
}

/** Draw what each token gives to the pooled vector. */
function drawShares(box) {
  const { parts, tokens } = text();
  box.replaceChildren(heading("What each token gives to the vector", ...(parts.reason ? [] : [badge("exact")])));
  if (parts.reason) return box.append(paragraph(parts.reason));
  box.append(
    paragraph("The vector of the text is a sum of one term for each token. Each term is cut into a part along the " +
      "vector and a part across it. The parts along it sum to 100%; these are they. A negative part points away."),
    barTable("What each token gives", tokens, listOf(parts.tokens)));
}

/** Return a table with a bar for each row. */
function barTable(caption, labels, values) {
  const most = Math.max(...values.map(Math.abs)) || 1;
  const bar = (value) => element("i", { style: {
    width: `${(75 * Math.abs(value)) / most}%`, background: css(palette[value < 0 ? "negative" : "positive"]) } });
  const rows = values.map((value, i) => element("tr", {}, element("th", { scope: "row", className: "mono" },
    element("bdi", {}, labels[i])), element("td", {}, bar(value), percent(value))));
  return element("div", { className: "scroll", tabIndex: 0, role: "region", "aria-label": caption,
    style: { maxHeight: "420px" } }, element("table", { className: "bars" },
    element("caption", { className: "hidden" }, caption), element("tbody", {}, ...rows)));
}

/** Draw what each part of the model gives, at each token. */
function drawParts(box) {
  const { parts, tokens } = text();
  box.replaceChildren(heading("What each part of the model gives", ...(parts.reason ? [] : [badge("exact")])));
  if (parts.reason) return box.append(paragraph(parts.reason));
  const names = parts.names.map(partInWords);
  box.append(paragraph("What a head or a feed-forward layer adds to a token can be followed to the end: a layer " +
    "normalization, with the mean and the deviation that it had in this text, is linear. So the vector is also a sum " +
    "over the parts of the model. All numbers of the map sum to 100%. What a later layer makes of a part counts for " +
    `the later layer. ${names.some((name) => name.startsWith("heads")) ? "The heads of a layer are summed."
      : "Heads are numbered layer.head."} FFN is a feed-forward layer.`));
  new HeatMap(box, matrixOf(parts.shares), {
    label: "Parts of the vector, in percent", rows: names, columns: tokens, most: 48, height: 25,
    numbers: tokens.length <= 14 ? hundredths : null, bars: listOf(parts.totals), barText: percent,
    barName: "all tokens",
    legend: "bar: sum over all tokens", hint: "Choose a cell.",
    say: (i, j, value) => `${names[i]}, at ${quoted(tokens[j])}: ${percent(value)} of the vector`,
  });
}

const MEASURES = {
  length: ["length", "The length of the vector of each token, after each layer."],
  likeness: ["likeness", "The cosine of the vector of each token with the mean of all tokens in the same layer. Near " +
    "1, the tokens have become alike."],
  turn: ["turn", "How far a layer turned the vector of each token: 1 minus the cosine of before and after."],
};

function drawProgress(box) {
  const { progress, tokens } = text();
  const stages = ["embeddings", ...[...Array(DATA.layers).keys()].map((layer) => `layer ${layer}`)];
  const rows = state.measure === "turn" ? stages.slice(1) : stages;
  box.replaceChildren(heading("Each token, layer by layer", badge("exact")),
    choice("What is shown", "measure", Object.entries(MEASURES).map(([key, [name]]) => [key, name]), state.measure,
      (measure) => { state.measure = measure; update(); }),
    paragraph(MEASURES[state.measure][1]));
  new HeatMap(box, matrixOf(progress[state.measure]), {
    label: `Tokens by layer: ${MEASURES[state.measure][0]}`, rows, columns: tokens, height: 25, most: 48,
    signed: state.measure === "likeness", legend: "", numbers: tokens.length <= 14 ? two : null, hint: "Choose a cell.",
    say: (i, j, value) => `${quoted(tokens[j])}, ${rows[i]}: ${show(value)}`,
  });
}

/** Draw the vector after each module that follows the transformer. */
function drawVectorPanel(box) {
  const names = STEPS.filter((name) => DATA.modules[name] && resultOf(name)?.shape.length === 1);
  box.replaceChildren(heading("The vector of the text", badge("exact")));
  if (!names.length) return box.append(paragraph("No vector of the text is in this page."));
  const chosen = names.includes(state.vector) ? state.vector : names.at(-1);
  const words = (name) => [name, DATA.modules[name].kind];
  box.append(paragraph("The modules after the transformer, in their order. The last vector is what encode returns."),
    choice("Vector after", "vector", names.map(words), chosen, (name) => { state.vector = name; update(); }),
    paragraph(`${DATA.modules[chosen].words} ${text().shapes[chosen]}.`));
  drawVector(box, chosen);
}

// ---------------------------------------------------------------- similarity

function drawSimilarity() {
  drawPairs($("pairs"));
  drawWithoutTokens($("without-token"));
  drawByLayer($("by-layer"));
  drawWithoutHeads($("without-head"));
}

const scoreName = () => (DATA.similarity.function === "dot" ? "dot product" : "cosine");
const tokensOf = (which) => DATA.texts[which].tokens;

function drawPairs(box) {
  const { score, words, vectors } = DATA.similarity;
  const shown = state.pairs === "words" ? words : vectors;
  box.replaceChildren(
    element("div", { className: "big" }, minus(score.toFixed(3))),
    paragraph(scoreName() === "cosine"
      ? "is the cosine of the two vectors: 1 for the same direction, 0 for a right angle. How low it is for " +
        "unrelated texts depends on the model."
      : "is the dot product of the two vectors."),
    heading(state.pairs === "words" ? "Pairs of words" : "Pairs of token vectors",
      ...(shown.reason ? [] : [badge(state.pairs === "words" ? "approximate" : "exact")])),
    choice("Explanation", "pairs", [["words", "pairs of words"], ["vectors", "pairs of token vectors"]], state.pairs,
      (pairs) => { state.pairs = pairs; update(); }),
  );
  if (shown.reason) return box.append(paragraph(shown.reason));
  box.append(paragraph(...(state.pairs === "words" ? aboutWords(words) : aboutVectors(vectors))));
  const [kept, m] = withoutSpecial(matrixOf(shown.pairs), state.pairs === "words");
  if (!m.rows || !m.columns) return box.append(paragraph("A text has no words, so there are no pairs of words."));
  return drawPairMap(box, kept, m);
}

function aboutWords({ sum: total, rest, error }) {
  return [`The words of both texts are faded in, from [MASK] to what they are. What each word adds on the way is ` +
    `measured and summed (integrated Jacobians, M\u00f6ller et al. 2023). All pairs sum to ${show(total)}. Texts of ` +
    `[MASK] alone account for ${show(rest)}. Together this is ${show(total + rest)}: it misses the ${scoreName()} by `,
    element("b", {}, error === 0 ? "0" : Math.abs(error).toExponential(1)), "."];
}

function aboutVectors({ sum: total }) {
  return [`The pooled vectors are sums of token vectors, so their ${scoreName()} is a sum over pairs of them. ` +
    `All pairs sum to ${show(total)}. Each token vector already contains much of its whole text: this map says where ` +
    "the vectors agree, not which words are the reason."];
}

/** Return the indices of the tokens to show, for both texts, and their matrix. */
function withoutSpecial(m, leaveOut) {
  const kept = [0, 1].map((which) => DATA.texts[which].special.flatMap((is, i) => (leaveOut && is ? [] : [i])));
  return [kept, matrix(kept[0].length, kept[1].length, (i, j) => m.at(kept[0][i], kept[1][j]))];
}

function drawPairMap(box, kept, m) {
  const [a, b] = kept.map((indices, which) => indices.map((i) => tokensOf(which)[i]));
  new HeatMap(box, m, {
    label: state.pairs === "words" ? "Pairs of words" : "Pairs of token vectors", rows: a, columns: b, most: 48,
    numbers: m.columns <= 14 ? hundredths : null, bars: a.map((_, i) => sum(rowOf(m, i))), barText: (v) => show(v),
    barName: "sum", hint: strongestPairs(a, b, m),
    legend: "rows: text A; columns: text B; numbers in cells: hundredths; bars: sums of rows; orange makes the texts " +
      "more similar, blue less similar",
    say: (i, j, value) => `${quoted(a[i])} with ${quoted(b[j])}: ${signed(value, 4)} of ` +
      `${minus(DATA.similarity.score.toFixed(4))}`,
  });
}

/** Return a sentence on the largest shares. */
function strongestPairs(a, b, m) {
  const all = a.flatMap((first, i) => b.map((second, j) => [m.at(i, j), `${quoted(first)} with ${quoted(second)}`]));
  const best = all.sort(([x], [y]) => y - x).slice(0, 3).filter(([value]) => value > 0);
  return `Largest: ${best.map(([value, pair]) => `${pair} ${signed(value, 3)}`).join(", ") || "none above 0"}.`;
}

function drawWithoutTokens(box) {
  const { withoutToken } = DATA.similarity;
  box.replaceChildren(heading("Without one token", ...(withoutToken.reason ? [] : [badge("exact")])));
  if (withoutToken.reason) return box.append(paragraph(withoutToken.reason));
  box.append(paragraph("The model computes each text again without the token, a word or a part of a long word. The " +
    "number is the change of the " +
    `${scoreName()}: orange if it falls, blue if it rises. This may disagree with the map: a cosine is divided by ` +
    "the lengths of the vectors, and a token without a partner makes the vector of its text longer."));
  const both = withoutToken.falls.map(listOf);
  const most = Math.max(...both.flat().map(Math.abs), 0) || 1;
  both.forEach((falls, which) => box.append(
    element("h3", { className: "small" }, `Text ${letter(which)}`),
    element("ul", { className: "chips" }, ...falls.map((fall, i) => chip(which, i, fall, most)))));
}

function chip(which, i, fall, most) {
  const token = element("bdi", { className: "mono" }, tokensOf(which)[i]);
  if (DATA.texts[which].special[i]) return element("li", { className: "soft" }, token);
  const colour = colourOf(fall, most, true);
  return element("li", { style: { background: css(colour), color: inkOn(colour) } }, token, " ", signed(-fall, 2));
}

function drawByLayer(box) {
  const { byLayer } = DATA.similarity;
  const { reason } = byLayer;
  box.replaceChildren(heading("Layer by layer", ...(reason ? [] : [badge("exact")])));
  if (reason) return box.append(paragraph(reason));
  const values = listOf(byLayer);
  const names = values.map((_, k) => (k ? `layer ${k - 1}` : "embeddings"));
  box.append(paragraph("The cosine of the two texts, if the pooling takes the token vectors after each layer."),
    layerChart(values, Math.min(470, box.clientWidth - 36)));
  if (scoreName() === "cosine" && Math.abs(values[values.length - 1] - DATA.similarity.score) > 1e-4) {
    box.append(paragraph("Other modules and truncation are left out here, so the last number is not the score."));
  }
  const m = matrix(1, values.length, (_, j) => values[j]);
  box.append(...HeatMap.prototype.asTable.call({ matrix: m, table: HeatMap.prototype.table,
    options: { label: "Cosine by layer", rows: ["cosine"], columns: names } }));
}

/** Return a chart of the cosine by layer. */
function layerChart(values, width) {
  const [height, low] = [150, Math.min(0, ...values)];
  const x = (k) => 52 + (k * (width - 82)) / Math.max(1, values.length - 1);
  const y = (value) => height - 26 - ((value - low) / (1 - low)) * (height - 46);
  const every = Math.ceil(values.length / (width / 60));
  const rule = (value) => [
    drawing("line", { x1: 34, x2: width - 16, y1: y(value), y2: y(value), stroke: css(palette.soft), opacity: 0.5 }),
    drawing("text", { x: 26, y: y(value) + 4, "text-anchor": "end" }, String(value))];
  const points = values.map((value, k) => `${x(k)},${y(value)}`).join(" ");
  const label = (words, k, at) => drawing("text", { x: x(k), y: at, "text-anchor": "middle" }, words);
  return drawing("svg", { viewBox: `0 0 ${width} ${height}`, width, role: "img",
    "aria-label": `Cosine by layer, the embeddings first: ${values.map(two).join(", ")}` },
  ...rule(0), ...rule(1),
  drawing("polyline", { points, fill: "none", stroke: css(palette.accent), "stroke-width": 2.5 }),
  ...values.map((value, k) => drawing("circle", { cx: x(k), cy: y(value), r: 4, fill: css(palette.accent) })),
  ...values.flatMap((value, k) => (k % every ? [] : [label(two(value), k, y(value) - 10),
    label(k ? `layer ${k - 1}` : "emb.", k, height - 6)])));
}

function drawWithoutHeads(box) {
  const { withoutHead, score } = DATA.similarity;
  box.replaceChildren(heading("Without one head", ...(withoutHead.reason ? [] : [badge("exact")])));
  if (withoutHead.reason) return box.append(paragraph(withoutHead.reason));
  box.append(paragraph("The model computes both texts again with the result of one head set to 0. The number is the " +
    `change of the ${scoreName()}, in hundredths: orange if it falls, blue if it rises.`));
  const m = matrixOf(withoutHead.falls);
  new HeatMap(box, m, {
    label: "Without one head", rows: rowLabels(m.rows, "layer"), columns: rowLabels(m.columns, "head"), most: 52,
    height: 28, numbers: (fall) => hundredths(-fall), hint: "Choose a cell.",
    say: (layer, head, fall) => `Without head ${head} of layer ${layer}, the ${scoreName()} is ` +
      `${minus((score - fall).toFixed(4))}: ${signed(-fall, 4)}.`,
  });
}

const rowLabels = (size, word) => [...Array(size).keys()].map((k) => `${word} ${k}`);
const letter = (which) => String.fromCharCode(65 + which);

// ---------------------------------------------------------------- the state, and its address

const VIEWS = { pass: drawPass, attention: drawAttention, tokens: drawTokens, similarity: drawSimilarity };
const views = () => Object.keys(VIEWS).filter((view) => view !== "similarity" || DATA.similarity);

/** Draw the view again, after a change of the state. Focus and scrolled positions stay. */
function update() {
  const key = document.activeElement?.dataset?.key;
  const scrolled = keyed(".scroll").map(([name, box]) => [name, box.scrollLeft, box.scrollTop]);
  for (const view of Object.keys(VIEWS)) $(view).hidden = view !== state.view;
  for (const tab of document.querySelectorAll("[role=tab]")) {
    const current = tab.dataset.view === state.view;
    tab.setAttribute("aria-selected", String(current));
    tab.tabIndex = current ? 0 : -1;
  }
  [...$("texts").children].forEach((each, k) =>
    each.setAttribute("aria-pressed", String(k === state.text && state.view !== "similarity")));
  $("theme").textContent = isDark() ? "Light" : "Dark";
  VIEWS[state.view]();
  const after = new Map(keyed(""));
  for (const [name, left, top] of scrolled) Object.assign(after.get(name) || {}, { scrollLeft: left, scrollTop: top });
  if (key && document.activeElement?.dataset?.key !== key) after.get(key)?.focus({ preventScroll: true });
  writeAddress();
}

/** Return the elements of the view that have a key, with it. */
function keyed(selector) {
  return [...$(state.view).querySelectorAll(`${selector}[data-key]`)].map((each) => [each.dataset.key, each]);
}

/** Put the state into the address, a little later: browsers limit how often it may change. */
function writeAddress() {
  clearTimeout(writeAddress.later);
  writeAddress.later = setTimeout(() => {
    const { view, text: which, layer, head, cell, show: what, measure, pairs, theme } = state;
    const query = new URLSearchParams({ view, at: STEPS[state.step], text: letter(which), layer, head });
    if (cell) query.set("cell", cell.join("."));
    if (view === "attention") query.set("show", what);
    if (view === "tokens") query.set("measure", measure);
    if (view === "similarity") query.set("pairs", pairs);
    if (theme) query.set("theme", theme);
    if (location.hash.slice(1) !== query.toString()) history.replaceState(null, "", `#${query}`);
  }, 120);
}

/** Take the state from the address, as far as it makes sense. */
function readAddress() {
  const query = new URLSearchParams(location.hash.slice(1));
  const pick = (key, allowed) => {
    if (allowed.includes(query.get(key))) state[key] = query.get(key);
  };
  const index = (key, size) => {
    const value = Number(query.get(key));
    if (query.has(key) && Number.isInteger(value) && value >= 0 && value < size) state[key] = value;
  };
  pick("view", views());
  pick("show", ["weights", "norms"]);
  pick("measure", Object.keys(MEASURES));
  pick("pairs", ["words", "vectors"]);
  pick("theme", ["dark", "light"]);
  index("layer", DATA.layers);
  index("head", DATA.heads);
  if (STEPS.includes(query.get("at"))) state.step = STEPS.indexOf(query.get("at"));
  const which = DATA.texts.findIndex((_, k) => letter(k) === query.get("text"));
  if (which >= 0) state.text = which;
  if (/^\d+\.\d+$/.test(query.get("cell") || "")) state.cell = query.get("cell").split(".").map(Number);
}

// ---------------------------------------------------------------- the theme, texts, keys

const prefersDark = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (state.theme ? state.theme === "dark" : prefersDark.matches);

function applyTheme(dark = isDark()) {
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  readPalette();
  update();
}

function toggleTheme() {
  state.theme = isDark() ? "light" : "dark";
  applyTheme();
  say(state.theme);
}

function buildTexts() {
  const several = DATA.texts.length > 1;
  DATA.texts.forEach((each, k) => {
    const name = several ? [element("b", {}, letter(k))] : [];
    $("texts").append(element("button", { type: "button", key: `text-${k}`, onclick: () => chooseText(k) }, ...name,
      element("bdi", { dir: "auto" }, each.text || "(empty)"),
      element("span", { className: "count" }, count(each.count, "token"))));
  });
  if (DATA.notes.length) $("notes").append(element("p", { className: "note" }, DATA.notes.join(" ")));
}

function chooseText(which) {
  state.text = which;
  update();
  say(`Text ${letter(which)}`);
}

function openView(view) {
  state.view = view;
  update();
  say(document.querySelector(`[data-view=${view}]`).textContent);
}

/** What each key does. */
const KEYS = {
  j: () => state.view === "pass" && select(state.step + 1),
  k: () => state.view === "pass" && select(state.step - 1),
  "[": () => goToHead(state.head - 1),
  "]": () => goToHead(state.head + 1),
  "{": () => goToLayer(state.layer - 1),
  "}": () => goToLayer(state.layer + 1),
  t: () => DATA.texts.length > 1 && chooseText((state.text + 1) % DATA.texts.length),
  d: toggleTheme,
  "?": () => $("help").showModal(),
};

function goToHead(head) {
  state.head = (head + DATA.heads) % DATA.heads;
  update();
  say(`head ${state.head}`);
}

function press(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.tagName === "SELECT" || $("help").open) return;
  if (!$("single").checked) return;
  const view = views()[Number(event.key) - 1];
  if (view) openView(view);
  else if (Object.hasOwn(KEYS, event.key)) KEYS[event.key]();
}

/** Move from tab to tab with the arrow keys. */
function pressInTabs(event) {
  const all = views();
  const now = all.indexOf(state.view);
  const to = { ArrowRight: now + 1, ArrowLeft: now - 1, Home: 0, End: all.length - 1 }[event.key];
  if (to === undefined) return;
  event.preventDefault();
  openView(all[(to + all.length) % all.length]);
  document.querySelector(`[data-view=${state.view}]`).focus();
}

function start() {
  const { layers, heads, hidden } = DATA;
  if (DATA.similarity?.words.reason) state.pairs = "vectors";
  $("model").append("\u00b7 ", element("bdi", {}, DATA.name),
    `: ${count(layers, "layer")}, ${count(heads, "head")}, ${count(hidden, "dimension")}`);
  document.title = `${shortened(DATA.texts[0].text || "(empty)", 60)} \u00b7 minibert explain`;
  if (!DATA.similarity) $("tab-similarity").remove();
  state.step = Math.max(0, STEPS.indexOf("layers.0.weights"));
  buildTexts();
  buildSource();
  readAddress();
  for (const tab of document.querySelectorAll("[role=tab]")) tab.onclick = () => openView(tab.dataset.view);
  document.querySelector("[role=tablist]").onkeydown = pressInTabs;
  $("theme").onclick = toggleTheme;
  $("ask").onclick = KEYS["?"];
  addEventListener("keydown", press);
  addEventListener("hashchange", () => { readAddress(); applyTheme(); });
  prefersDark.addEventListener("change", () => applyTheme());
  addEventListener("beforeprint", () => applyTheme(false));
  addEventListener("afterprint", () => applyTheme());
  let width = innerWidth;
  addEventListener("resize", () => {
    if (innerWidth === width) return; // a phone's bars come and go
    width = innerWidth;
    clearTimeout(start.later);
    start.later = setTimeout(update, 120);
  });
  applyTheme();
}

start();

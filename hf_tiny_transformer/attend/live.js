// The drawing of a live page: everything on it follows from `state` and the model of live_model.js.
const $ = (selector) => document.querySelector(selector);
const data = JSON.parse($("#data").textContent);
const tokenizer = new Tokenizer(data.tokenizer), model = new Model(data);
const { layers: LAYERS, heads: HEADS, causal: CAUSAL } = data.config, D = model.headWidth, WIDTH = data.config.width;
const state = { ids: [], masked: new Set(), layer: LAYERS - 1, head: 0, query: 1, key: 1, focus: null, off: new Set(), positions: true };
let current, original, colors, cell, palette;

const escaped = (text) => text.replace(/[&<>"]/g, (letter) => `&#${letter.charCodeAt(0)};`);
const pieceOf = (id) => data.tokenizer.pieces[id] ?? `#${id}`;
const percent = (share) => share > 0 && share < 0.0005 ? "< 0.1 %" : `${(100 * share).toFixed(1)} %`;
const rounded = (weight) => weight === 0 ? "0" : weight < 0.0005 ? "< 0.001" : weight.toFixed(3);
const clamp = (value, count) => Math.max(0, Math.min(count - 1, value));
const isSpecial = (id) => tokenizer.special.has(id);
const isAltered = () => state.off.size > 0 || !state.positions;
const mapOf = (layer, head) => current.layers[layer].weights[head];
const tokenAt = (t) => pieceOf(current.ids[t]);

function html(parent, text) {
  parent.innerHTML = text;
  return parent;
}

// 1. Compute

function compute(altered) {
  const ids = state.ids.map((id, t) => state.masked.has(t) ? data.tokenizer.mask : id);
  return { ids, ...model.run(ids, altered ? state : {}) };
}

function update() {
  const start = performance.now();
  current = compute(true);
  if (!isAltered()) original = current;
  else if (!original || String(original.ids) !== String(current.ids)) original = compute(false);
  readPalette();
  for (const draw of [drawTokens, drawPrediction, drawThumbnails, drawMap, drawLines, drawSteps]) draw();
  live.milliseconds = performance.now() - start;
  const { cut } = tokenizer.encode($("#text").value, data.room);
  const length = `${state.ids.length} tokens, computed and drawn in ${live.milliseconds.toFixed(0)} ms`;
  $("#note").textContent = cut ? `${length}. The text is too long for this page: the rest is not read.` : length;
  if (data.task === "labels") leaveOneOut();
}

function read() {  // the text has changed; masks in its unchanged beginning and end remain
  const before = state.ids, ids = tokenizer.encode($("#text").value, data.room).ids;
  let first = 0, last = 0;
  while (first < Math.min(ids.length, before.length) && ids[first] === before[first]) first++;
  while (last < Math.min(ids.length, before.length) - first && ids.at(-1 - last) === before.at(-1 - last)) last++;
  const moved = [...state.masked].map((t) => t < first ? t : t >= before.length - last ? t + ids.length - before.length : -1);
  state.masked = new Set(moved.filter((t) => t > 0 && !isSpecial(ids[t])));
  state.ids = ids;
  state.focus = null;
  state.query = clamp(state.query, ids.length);
  state.key = clamp(state.key, ids.length);
  update();
}

// 2. Tokens and predictions

function predicted() {  // the position whose word is predicted, or -1
  const T = current.ids.length;
  if (data.task === "causal") return state.focus ?? T - 1;
  if (data.task === "labels") return -1;
  return current.ids[state.focus] === data.tokenizer.mask ? state.focus : current.ids.indexOf(data.tokenizer.mask);
}

function drawTokens() {
  const place = predicted(), parent = $("#tokens"), focused = [...parent.children].indexOf(document.activeElement);
  parent.replaceChildren(...state.ids.map((id, t) => {
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: tokenAt(t), dir: "auto" });
    const original = pieceOf(id);
    if (data.task === "masked") {
      button.disabled = isSpecial(id) && id !== data.tokenizer.mask;
      button.ariaPressed = String(current.ids[t] === data.tokenizer.mask);
      button.ariaLabel = state.masked.has(t) ? `${original}, masked` : original;
      button.title = state.masked.has(t) ? `${original}: select to show the word again` : `Select to mask ${original}`;
    } else if (data.task === "causal") {
      button.ariaPressed = String(t === place);
      button.title = `Predict the word after ${original}`;
    } else {
      button.ariaPressed = String(t === state.query);
      button.title = `Show the attention of ${original}`;
    }
    button.addEventListener("click", () => press(t));
    return button;
  }));
  parent.children[focused]?.focus();
}

function press(t) {
  if (data.task === "masked" && !isSpecial(state.ids[t])) {
    if (state.masked.has(t)) state.masked.delete(t); else state.masked.add(t);
  }
  state.focus = t;
  state.query = t;
  update();
}

function bar(word, share, before, highest, { mark = false, action = false } = {}) {
  const tag = action ? "button type=button" : "span", change = isAltered() ? `, was ${percent(before)}` : "";
  const tick = isAltered() ? `<b style="left:clamp(0px, ${100 * before / highest}% - 1.5px, 100% - 3px)"></b>` : "";
  return `<li><${tag} class="word ${mark ? "true" : ""}" dir=auto>${escaped(word)}</${tag.split(" ")[0]}><span class=track aria-hidden=true>` +
    `<i style="width:${100 * share / highest}%"></i>${tick}</span><span class="number muted">${percent(share)}${change}</span></li>`;
}

function drawPrediction() {
  if (data.task === "labels") return drawLabels();
  const place = predicted(), bars = $("#bars");
  $("#degrees").textContent = Number($("#temperature").value).toFixed(1);
  if (place < 0) {
    $("#asked").textContent = "Which word is hidden?";
    $("#answer").textContent = "Select a word above to mask it. The model then predicts it from the other words.";
    return bars.replaceChildren();
  }
  const heat = data.task === "causal" ? Number($("#temperature").value) : 1;
  const shares = model.words(current.hidden, place, heat);
  const before = original === current ? shares : model.words(original.hidden, place, heat);
  const best = Array.from(shares.keys()).sort((a, b) => shares[b] - shares[a]).slice(0, 10);
  const highest = Math.max(...best.map((id) => Math.max(shares[id], before[id])));
  const truth = data.task === "masked" && state.masked.has(place) ? state.ids[place] : -1, action = data.task === "causal";
  html(bars, best.map((id) => bar(pieceOf(id), shares[id], before[id], highest, { mark: id === truth, action })).join(""));
  $("#asked").textContent = action ? `The word after “${tokenAt(place)}”` : "The ten most likely words for [MASK]";
  let answer = `Most likely: ${pieceOf(best[0])}, ${percent(shares[best[0]])}.`;
  if (truth >= 0) {
    const rank = shares.reduce((count, share) => count + (share > shares[truth]), 1);
    answer += ` The hidden word is “${pieceOf(truth)}”: ${percent(shares[truth])}, rank ${rank} of ${shares.length}.`;
  }
  $("#answer").textContent = isAltered() ? `${answer} The marks show the whole model.` : answer;
  if (action) [...bars.children].forEach((li, i) => li.firstChild.addEventListener("click", () => append(best[i])));
}

function append(id) {  // a piece to the text, as its next word or as the end of its last one
  const piece = pieceOf(id), box = $("#text"), { prefix } = data.tokenizer;
  const text = box.value.trimEnd();
  box.value = piece.startsWith(prefix) ? text + piece.slice(prefix.length) : `${text} ${piece}`;
  read();
}

function draw(shares) {  // one of the numbers 0, 1, ... with these probabilities
  let left = Math.random();
  return Math.max(0, shares.findIndex((share) => (left -= share) < 0));
}

// 3. Labels, and what each word changes

function drawLabels() {
  const shares = model.labels(current.hidden), before = original === current ? shares : model.labels(original.hidden);
  const best = shares.indexOf(Math.max(...shares));
  html($("#bars"), data.config.labels.map((label, i) => bar(label, shares[i], before[i], 1, { mark: i === best })).join(""));
  $("#asked").textContent = "Label of the text";
  $("#answer").textContent = `${data.config.labels[best]}, ${percent(shares[best])}`;
}

let round = 0;
function leaveOneOut() {  // word by word, so that typing stays fast
  const mine = ++round, full = model.labels(current.hidden), best = full.indexOf(Math.max(...full));
  const words = [];
  current.ids.forEach((id, t) => {
    if (isSpecial(id)) return;
    if (pieceOf(id).startsWith(data.tokenizer.prefix) && words.length) words.at(-1).places.push(t); else words.push({ places: [t] });
  });
  const next = (at) => {
    if (mine !== round) return;
    if (at === words.length) return drawEffects(words, data.config.labels[best]);
    const ids = current.ids.filter((_, t) => !words[at].places.includes(t));
    words[at].text = words[at].places.map((t, i) => tokenAt(t).slice(i ? data.tokenizer.prefix.length : 0)).join("");
    words[at].effect = full[best] - model.labels(model.run(ids, state).hidden)[best];
    setTimeout(next, 0, at + 1);
  };
  setTimeout(next, 120, 0);
}

function drawEffects(words, label) {
  const sorted = words.toSorted((a, b) => Math.abs(b.effect) - Math.abs(a.effect)).slice(0, 10);
  const highest = Math.max(1e-9, ...sorted.map((word) => Math.abs(word.effect)));
  $("#removed").textContent = `Change of the probability of “${label}” that is due to the word: the text is read again without it.`;
  html($("#effects"), sorted.map(({ text, effect }) => `<li><span class=word dir=auto>${escaped(text)}</span>` +
    `<span class=track aria-hidden=true><i class="${effect < 0 ? "less" : ""}" style="width:${100 * Math.abs(effect) / highest}%"></i></span>` +
    `<span class="number muted">${effect < 0 ? "−" : "+"}${(100 * Math.abs(effect)).toFixed(1)} points</span></li>`).join(""));
}

// 4. Heads

function readPalette() {  // 256 steps through the three stops of the style, and its other colors
  const style = getComputedStyle(document.documentElement), value = (name) => style.getPropertyValue(name).trim();
  const stops = [0, 1, 2].map((i) => [1, 3, 5].map((at) => parseInt(value(`--heat-${i}`).slice(at, at + 2), 16)));
  palette = Array.from({ length: 256 }, (_, i) => {
    const at = i / 127.5, low = Math.min(1, Math.floor(at));
    return [...[0, 1, 2].map((c) => Math.round(stops[low][c] * (1 - at + low) + stops[low + 1][c] * (at - low))), 255];
  });
  colors = { accent: value("--accent"), rule: value("--rule") };
}
const highestOf = (map) => map.reduce((a, b) => Math.max(a, b), 1e-9);
const colorOf = (share) => palette[Math.round(255 * Math.sqrt(share))];

function buildHeads() {
  html($("#heads"), Array.from({ length: LAYERS * HEADS }, (_, i) => {
    const name = `layer ${Math.floor(i / HEADS)}, head ${i % HEADS}`;
    return `<div><button type=button aria-label="Show ${name}" title="${name}"><canvas></canvas></button>` +
      `<label class=check title="Switch ${name} on or off"><input type=checkbox checked aria-label="${name}">${Math.floor(i / HEADS)}.${i % HEADS}</label></div>`;
  }).join(""));
  [...$("#heads").children].forEach((box, i) => {
    const layer = Math.floor(i / HEADS), head = i % HEADS;
    box.querySelector("button").addEventListener("click", () => { Object.assign(state, { layer, head }); $("#steps").open = true; update(); });
    box.querySelector("input").addEventListener("change", (event) => {
      if (event.target.checked) state.off.delete(`${layer}.${head}`); else state.off.add(`${layer}.${head}`);
      update();
    });
  });
}

function drawThumbnails() {
  const T = current.ids.length;
  [...$("#heads").children].forEach((box, i) => {
    const layer = Math.floor(i / HEADS), head = i % HEADS, map = mapOf(layer, head), highest = highestOf(map);
    const canvas = Object.assign(box.querySelector("canvas"), { width: T, height: T }), context = canvas.getContext("2d");
    const pixels = context.createImageData(T, T);
    for (let at = 0; at < T * T; at++) pixels.data.set(colorOf(map[at] / highest), 4 * at);
    context.putImageData(pixels, 0, 0);
    box.querySelector("button").ariaPressed = String(layer === state.layer && head === state.head);
    box.classList.toggle("off", state.off.has(`${layer}.${head}`));
    box.querySelector("input").checked = !state.off.has(`${layer}.${head}`);
  });
  $("#positions").checked = state.positions;
  $("#reset").hidden = !isAltered();
}

function labelCells(parent, property) {
  parent.replaceChildren(...current.ids.map((id, t) => {
    const span = Object.assign(document.createElement("span"), { textContent: pieceOf(id), dir: "auto" });
    Object.assign(span.style, { [property]: `${cell}px`, lineHeight: `${cell}px`, fontSize: `${Math.min(14, Math.max(9, cell - 2))}px` });
    if (property === "height") span.classList.toggle("chosen", t === state.query);
    return span;
  }));
}

function drawMap() {
  const T = current.ids.length, map = mapOf(state.layer, state.head), highest = highestOf(map), canvas = $("#map");
  cell = Math.max(14, Math.min(40, Math.floor(($(".scroll").clientWidth - 100) / T)));
  labelCells($(".columns"), "width");
  labelCells($(".rows"), "height");
  const ratio = window.devicePixelRatio || 1, size = T * cell, context = canvas.getContext("2d");
  Object.assign(canvas, { width: size * ratio, height: size * ratio });
  Object.assign(canvas.style, { width: `${size}px`, height: `${size}px` });
  context.scale(ratio, ratio);
  context.strokeStyle = colors.rule;
  for (let at = 0; at < T * T; at++) {
    const x = (at % T) * cell, y = Math.floor(at / T) * cell;
    if (CAUSAL && x > y) {  // hidden by the causal mask
      context.beginPath();
      context.moveTo(x + 3, y + cell - 4);
      context.lineTo(x + cell - 4, y + 3);
      context.stroke();
      continue;
    }
    context.fillStyle = `rgb(${colorOf(map[at] / highest).slice(0, 3).join(" ")})`;
    context.fillRect(x, y, cell - 1, cell - 1);
  }
  context.strokeStyle = colors.accent;
  context.lineWidth = 2;
  context.strokeRect(1, state.query * cell + 1, size - 2, cell - 2);
  const name = `layer ${state.layer}, head ${state.head}`;
  $("#highest").textContent = highest.toFixed(3);
  $("#which").textContent = `Attention of ${name}`;
  canvas.ariaLabel = `Attention weights of ${name}. Arrow keys move over the cells.`;
}

function drawLines() {
  const T = current.ids.length, row = 26, weights = mapOf(state.layer, state.head).subarray(state.query * T, (state.query + 1) * T);
  const most = highestOf(weights), svg = $(".lines svg"), width = svg.clientWidth, focused = $("#queries").contains(document.activeElement);
  html($("#queries"), current.ids.map((id, t) =>
    `<li role=option dir=auto aria-selected=${t === state.query} tabindex=${t === state.query ? 0 : -1}>${escaped(pieceOf(id))}</li>`).join(""));
  html($("#keys"), current.ids.map((id, t) => `<li dir=auto data-weight="${rounded(weights[t])}" title="${rounded(weights[t])}" style="background:` +
    `color-mix(in srgb, var(--accent) ${Math.round(32 * weights[t] / most)}%, transparent)">${escaped(pieceOf(id))}</li>`).join(""));
  html(svg, Array.from(weights, (weight, t) => {
    const share = weight / most, y0 = (state.query + 0.5) * row, y1 = (t + 0.5) * row;
    return share < 0.01 ? "" : `<path d="M2,${y0} C${width / 2},${y0} ${width / 2},${y1} ${width - 2},${y1}" ` +
      `stroke-width="${(0.4 + share * 9).toFixed(2)}" stroke-opacity="${(0.25 + 0.6 * share).toFixed(2)}"/>`;
  }).join(""));
  if (focused) $("#queries").children[state.query].focus();
  const best = Array.from(weights.keys()).sort((a, b) => weights[b] - weights[a]).slice(0, 4);
  $("#asking").textContent = `“${tokenAt(state.query)}” attends to`;
  $("#strongest").textContent = "Most: " + best.map((t) => `${tokenAt(t)} ${rounded(weights[t])}`).join(" · ");
}

// 5. Step by step

const fixed = (value) => value.toFixed(2).replace(/^-0\.00$/, "0.00").replace("-", "−");
function signed(value, most) {
  const share = Math.round(60 * Math.min(1, Math.abs(value) / most));
  const style = share > 2 ? ` style="background:color-mix(in srgb, var(--series-${value < 0 ? 1 : 0}) ${share}%, transparent)"` : "";
  return `<td${style}>${fixed(value)}</td>`;
}

function numberTable(table, caption, rows) {  // [name, values, class] of each row
  const most = Math.max(1e-9, ...rows.map(([, values]) => values.reduce((a, b) => Math.max(a, Math.abs(b)), 0)));
  html(table, `<caption><span>${caption}</span></caption><tbody>${rows.map(([name, values, kind = ""]) =>
    `<tr class="${kind}"><th scope=row>${escaped(name)}</th>${Array.from(values, (value) => signed(value, most)).join("")}</tr>`).join("")}</tbody>`);
}

function drawSteps() {
  if (!$("#steps").open) return;
  const book = $("#textbook").checked, T = current.ids.length, { q, k, v } = current.layers[state.layer];
  const part = (states, t) => states.slice(t * WIDTH + state.head * D, t * WIDTH + (state.head + 1) * D);
  const query = part(q, state.query), names = book ? ["Thinking", "Machines"] : [...current.ids.keys()].map(tokenAt);
  const dot = (t) => part(k, t).reduce((sum, value, i) => sum + value * query[i], 0);
  const visible = names.map((_, t) => book || !CAUSAL || t <= state.query);
  const dots = book ? [112, 96] : names.map((_, t) => dot(t)), width = book ? 64 : D, scores = dots.map((value) => value / Math.sqrt(width));
  const shares = softmax(scores.map((score, t) => visible[t] ? score : -Infinity));
  const asks = escaped(names[book ? 0 : state.query]), key = book ? 0 : Math.min(state.key, visible.lastIndexOf(true));
  $("#stepped").textContent = book ? "Scores of “Thinking” for the keys “Thinking” and “Machines”, with 64 numbers per query and key." :
    `Layer ${state.layer}, head ${state.head}. The query is “${names[state.query]}”; select it in the list above, and a key in the second table.` +
    (data.config.inverse && state.positions ? " Queries and keys are already rotated by their positions." : "");
  for (const id of ["#product", "#weighted"]) $(id).hidden = book;
  if (!book) {
    const product = part(k, key).map((value, i) => value * query[i]);
    numberTable($("#product"), `1. Multiply the query of “${asks}” by the key of “${escaped(names[key])}”, number by number. The sum, <b>q · k = ${fixed(dots[key])}</b>, is the score.`,
      [["query q", query], ["key k", part(k, key)], ["q × k", product, "sum"]]);
  }
  html($("#softmax"), `<caption><span>2. Divide each score by √${width} = ${Math.sqrt(width).toFixed(2)}. Softmax turns the results into weights that sum to 1.</span></caption>` +
    `<thead><tr><th scope=col>key</th><th scope=col>q · k</th><th scope=col>÷ √${width}</th><th scope=col>softmax</th><td></td></tr></thead><tbody>` +
    names.map((name, t) => visible[t] ? `<tr aria-selected=${t === key} ${book ? "" : `tabindex=${t === key ? 0 : -1}`}><th scope=row>${escaped(name)}</th>` +
      `<td>${fixed(dots[t])}</td><td>${fixed(scores[t])}</td><td>${rounded(shares[t])}</td>` +
      `<td><span class=track style="display:block"><i style="width:${100 * shares[t]}%"></i></span></td></tr>` : "").join("") +
    (visible.includes(false) ? "<tr><td colspan=5 style=text-align:left>The causal mask hides the later tokens.</td></tr>" : "") + "</tbody>");
  if (book) return;
  const rows = names.map((name, t) => [name, part(v, t).map((value) => value * shares[t])]);
  const sum = rows.reduce((total, [, values]) => plus(total, values), new Float32Array(D));
  const off = state.off.has(`${state.layer}.${state.head}`) ? " This head is switched off, so that its result is replaced by zeros." : "";
  numberTable($("#weighted"), `3. Multiply the value of each token by its weight. The sum is the result of this head for “${asks}”; tokens with weights below 0.005 are in the sum, but not listed.${off}`,
    [...rows.filter((_, t) => shares[t] >= 0.005), ["sum", sum, "sum"]]);
}

// 6. Events

function choose(query, key = state.key) {
  Object.assign(state, { query: clamp(query, current.ids.length), key: clamp(key, current.ids.length) });
  for (const draw of [drawMap, drawLines, drawSteps]) draw();
}

function tip(query, key, x, y) {
  const box = $("#tip"), T = current.ids.length;
  box.textContent = `${tokenAt(query)} → ${tokenAt(key)}: ${rounded(mapOf(state.layer, state.head)[query * T + key])}`;
  box.hidden = false;
  box.style.left = `${Math.max(4, Math.min(x + 14, window.innerWidth - box.offsetWidth - 8))}px`;
  box.style.top = `${Math.max(4, y - box.offsetHeight - 10)}px`;
}

const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
const cellAt = (event) => [event.offsetY, event.offsetX].map((at) => clamp(Math.floor(at / cell), current.ids.length));
const on = (selector, type, action) => $(selector).addEventListener(type, action);
const withMove = (action) => (event) => {
  if (!moves[event.key]) return;
  event.preventDefault();
  action(...moves[event.key]);
};
on("#text", "input", read);
on("#map", "pointermove", (event) => tip(...cellAt(event), event.clientX, event.clientY));
on("#map", "click", (event) => choose(...cellAt(event)));
on("#map", "keydown", withMove((down, right) => {
  choose(state.query + down, state.key + right);
  const box = $("#map").getBoundingClientRect();
  tip(state.query, state.key, box.left + (state.key + 0.5) * cell, box.top + state.query * cell);
}));
for (const type of ["pointerleave", "blur"]) on("#map", type, () => { $("#tip").hidden = true; });
const childAt = (parent, event) => [...$(parent).children].findIndex((child) => child.contains(event.target));
on("#queries", "click", (event) => { const t = childAt("#queries", event); if (t >= 0) choose(t); });
on("#queries", "keydown", withMove((down, right) => choose(state.query + (down || right))));
const chooseKey = (t) => { if (!$("#textbook").checked) choose(state.query, t); };
on("#softmax", "click", (event) => { const t = childAt("#softmax tbody", event); if (t >= 0) chooseKey(t); });
on("#softmax", "keydown", withMove((down, right) => {
  chooseKey(state.key + (down || right));
  $("#softmax tbody").children[state.key]?.focus();
}));
on("#steps", "toggle", drawSteps);
on("#textbook", "change", drawSteps);
on("#temperature", "input", drawPrediction);
on("#more", "click", () => append(draw(model.words(current.hidden, current.ids.length - 1, Number($("#temperature").value)))));
on("#positions", "change", (event) => { state.positions = event.target.checked; update(); });
on("#reset", "click", () => { state.off.clear(); state.positions = true; update(); });
window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", update);
window.addEventListener("resize", update);

const what = { masked: "masked word", causal: "next word", labels: "label" }[data.task];
const live = { data, tokenizer, model, state, update, milliseconds: 0 };  // for tests, and for a look from the console
window.live = live;
$("#name").textContent = `Live: ${data.name}`;
$("#intro").textContent = `This page holds the whole model, ${data.bits === 8 ? "with 8-bit weights" : "in full precision"}. ` +
  `It computes attention and the ${what} in your browser while you type; nothing is sent anywhere.`;
$("#sampling").hidden = data.task !== "causal";
$("#influence").hidden = data.task !== "labels";
$("#with-positions").hidden = data.config.positionKind === "none";
$("#text").value = data.text;
buildHeads();
state.ids = tokenizer.encode(data.text, data.room).ids;
if (data.task === "masked" && !state.ids.includes(data.tokenizer.mask)) state.masked.add(clamp(4, state.ids.length - 1));
state.query = clamp(4, state.ids.length);
state.key = state.query;
read();

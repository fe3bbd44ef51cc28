// Tokenizer and forward pass of a live page, without drawing: the same code runs in a browser and in node.
"use strict";

function bytesOf(text) {
  const raw = atob(text), bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  return bytes;
}

// A tensor of the page as Float32Array: fp32, or int8 with one scale per row.
function unpack({ shape, data, scales }) {
  const bytes = bytesOf(data);
  if (!scales) return new Float32Array(bytes.buffer);
  const small = new Int8Array(bytes.buffer), perRow = new Float32Array(bytesOf(scales).buffer);
  const width = shape[1], values = new Float32Array(small.length);
  for (let row = 0; row < shape[0]; row++) {
    for (let i = row * width; i < (row + 1) * width; i++) values[i] = small[i] * perRow[row];
  }
  return values;
}

// WordPiece with BERT's normalizer and word splitting.
class Tokenizer {
  constructor(settings) {
    this.settings = settings;
    this.ids = new Map(settings.pieces.map((piece, id) => [piece, id]));
    this.special = new Set(settings.special);
    const escaped = settings.added.map((token) => token.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"));
    this.added = escaped.length ? new RegExp(`(${escaped.sort((a, b) => b.length - a.length).join("|")})`) : /(?!)/;
  }

  normalize(text) {
    const { clean, spaceCjk, stripAccents, lowercase } = this.settings;
    if (clean) text = text.replace(/[^\P{C}\t\n\r\p{Cn}]|\u0000|\ufffd/gu, "").replace(/\p{White_Space}/gu, " ");
    if (spaceCjk) {
      const cjk = /[\u4e00-\u9fff\u3400-\u4dbf\uf900-\ufaff\u{20000}-\u{2a6df}\u{2a700}-\u{2b73f}\u{2b740}-\u{2b81f}\u{2b920}-\u{2ceaf}\u{2f800}-\u{2fa1f}]/gu;
      text = text.replace(cjk, " $& ");
    }
    if (stripAccents) text = text.normalize("NFD").replace(/\p{Mn}/gu, "");
    return lowercase ? Array.from(text, (letter) => letter.toLowerCase()).join("") : text;
  }

  pieces(word) {  // the longest piece first, again and again; a word that cannot be split is unknown
    const { prefix, longest, unknown } = this.settings, letters = Array.from(word), found = [];
    if (letters.length > longest) return [unknown];
    for (let start = 0; start < letters.length;) {
      let end = letters.length, id;
      while (end > start && (id = this.ids.get((start ? prefix : "") + letters.slice(start, end).join(""))) === undefined) end--;
      if (end === start) return [unknown];
      found.push(id);
      start = end;
    }
    return found;
  }

  encode(text, room = Infinity) {  // ids with [CLS] and [SEP]; `cut` is true if the text was too long
    const { before, after } = this.settings, ids = [];
    text.split(this.added).forEach((part, i) => {
      if (i % 2) return ids.push(this.ids.get(part));
      const words = this.normalize(part).match(/[\p{P}!-\/:-@[-`{-~]|[^\p{P}!-\/:-@[-`{-~\p{White_Space}]+/gu) ?? [];
      for (const word of words) ids.push(...this.pieces(word));
    });
    const most = room - before.length - after.length;
    return { ids: [...before, ...ids.slice(0, most), ...after], cut: ids.length > most };
  }
}

function erf(x) {  // error below 1.2e-7 (Press et al., Numerical Recipes, erfcc)
  const t = 1 / (1 + 0.5 * Math.abs(x));
  const terms = [0.17087277, -0.82215223, 1.48851587, -1.13520398, 0.27886807, -0.18628806, 0.09678418, 0.37409196, 1.00002368, -1.26551223];
  const tail = t * Math.exp(-x * x + terms.reduce((sum, term) => sum * t + term, 0));
  return x >= 0 ? 1 - tail : tail - 1;
}
const ACTIVATIONS = {
  gelu: (x) => 0.5 * x * (1 + erf(x * Math.SQRT1_2)),
  gelu_new: (x) => 0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x * x * x))),
  relu: (x) => Math.max(0, x),
  silu: (x) => x / (1 + Math.exp(-x)),
  tanh: Math.tanh,
};
Object.assign(ACTIVATIONS, { gelu_pytorch_tanh: ACTIVATIONS.gelu_new, swish: ACTIVATIONS.silu });

function softmax(values, temperature = 1) {
  let highest = -Infinity, sum = 0;
  for (const value of values) highest = Math.max(highest, value);
  const shares = Float64Array.from(values, (value) => Math.exp((value - highest) / temperature));
  for (const share of shares) sum += share;
  return shares.map((share) => share / sum);
}

// x (T, D) times weight (O, D) transposed, plus bias (O). Four tokens at a time: each weight is read once for all four.
function linear(x, weight, bias, width) {
  const count = x.length / width, outputs = weight.length / width, y = new Float32Array(count * outputs);
  if (count === 1) {
    for (let o = 0, at = 0; o < outputs; o++) {
      let a = bias ? bias[o] : 0, b = 0;
      for (let i = 0; i < width - 1; i += 2, at += 2) {
        a += x[i] * weight[at];
        b += x[i + 1] * weight[at + 1];
      }
      y[o] = a + b + (width % 2 ? x[width - 1] * weight[at++] : 0);
    }
    return y;
  }
  for (let t = 0; t < count; t += 4) {
    const x0 = t * width, x1 = Math.min(t + 1, count - 1) * width;
    const x2 = Math.min(t + 2, count - 1) * width, x3 = Math.min(t + 3, count - 1) * width;
    for (let o = 0; o < outputs; o++) {
      const row = o * width;
      let a = 0, b = 0, c = 0, d = 0;
      for (let i = 0; i < width; i++) {
        const w = weight[row + i];
        a += x[x0 + i] * w;
        b += x[x1 + i] * w;
        c += x[x2 + i] * w;
        d += x[x3 + i] * w;
      }
      const at = t * outputs + o, start = bias ? bias[o] : 0;
      y[at] = a + start;
      if (t + 1 < count) y[at + outputs] = b + start;
      if (t + 2 < count) y[at + 2 * outputs] = c + start;
      if (t + 3 < count) y[at + 3 * outputs] = d + start;
    }
  }
  return y;
}

function layerNorm(x, weight, bias, eps) {
  const width = weight.length, y = new Float32Array(x.length);
  for (let at = 0; at < x.length; at += width) {
    let mean = 0, variance = 0;
    for (let i = 0; i < width; i++) mean += x[at + i] / width;
    for (let i = 0; i < width; i++) variance += (x[at + i] - mean) ** 2 / width;
    const scale = 1 / Math.sqrt(variance + eps);
    for (let i = 0; i < width; i++) y[at + i] = (x[at + i] - mean) * scale * weight[i] + (bias ? bias[i] : 0);
  }
  return y;
}

const plus = (a, b) => a.map((value, i) => value + b[i]);

class Model {
  constructor(data) {
    this.config = data.config;
    this.tensors = Object.fromEntries(Object.entries(data.tensors).map(([name, tensor]) => [name, unpack(tensor)]));
    this.act = ACTIVATIONS[data.config.act];
    this.headWidth = data.config.width / data.config.heads;
  }

  linear(name, x, width = this.config.width) {
    return linear(x, this.tensors[`${name}.weight`], this.tensors[`${name}.bias`], width);
  }

  norm(name, x) {
    const weight = this.tensors[`${name}.weight`];
    return weight ? layerNorm(x, weight, this.tensors[`${name}.bias`], this.config.eps) : x;  // the first layer has none
  }

  embed(ids, positions) {
    const { width, family, positionKind } = this.config, words = this.tensors["model.embed_tokens.weight"];
    const learned = this.tensors["model.embed_positions.weight"], types = this.tensors["model.embed_token_types.weight"];
    const x = new Float32Array(ids.length * width);
    ids.forEach((id, t) => {
      for (let i = 0; i < width; i++) {
        let value = words[id * width + i] + (types ? types[i] : 0);
        if (positions && learned) value += learned[t * width + i];
        if (positions && positionKind === "sinusoidal") {
          const angle = t / 10000 ** (2 * (i >> 1) / width);
          value += i % 2 ? Math.cos(angle) : Math.sin(angle);
        }
        x[t * width + i] = value;
      }
    });
    return this.norm("model.embed_norm", x);
  }

  rotate(x) {  // in place, each pair of features of each head by the angle of its position (RoFormer)
    const { width, inverse, scale } = this.config, half = this.headWidth / 2;
    for (let t = 0; t < x.length / width; t++) {
      for (let i = 0; i < half; i++) {
        const cos = Math.cos(t * inverse[i]) * scale, sin = Math.sin(t * inverse[i]) * scale;
        for (let at = t * width + i; at < (t + 1) * width; at += this.headWidth) {
          const first = x[at], second = x[at + half];
          x[at] = first * cos - second * sin;
          x[at + half] = second * cos + first * sin;
        }
      }
    }
  }

  attend(layer, x, off, positions) {
    const { width, heads, causal, inverse } = this.config, D = this.headWidth, T = x.length / width;
    const [q, k, v] = ["q", "k", "v"].map((part) => this.linear(`model.layers.${layer}.attention.${part}_proj`, x));
    if (inverse && positions) [q, k].forEach((states) => this.rotate(states));
    const mixed = new Float32Array(T * width), weights = [];
    for (let head = 0; head < heads; head++) {
      const map = new Float32Array(T * T), from = head * D;
      for (let t = 0; t < T; t++) {
        const seen = causal ? t + 1 : T, scores = new Float64Array(seen);
        for (let s = 0; s < seen; s++) {
          for (let i = from; i < from + D; i++) scores[s] += q[t * width + i] * k[s * width + i];
          scores[s] /= Math.sqrt(D);
        }
        map.set(softmax(scores), t * T);
        if (off.has(`${layer}.${head}`)) continue;  // a head that is switched off adds nothing
        for (let s = 0; s < seen; s++) {
          for (let i = from; i < from + D; i++) mixed[t * width + i] += map[t * T + s] * v[s * width + i];
        }
      }
      weights.push(map);
    }
    return { q, k, v, weights, output: this.linear(`model.layers.${layer}.attention.o_proj`, mixed) };
  }

  feedForward(name, x) {
    const up = this.linear(`${name}.up_proj`, x), gate = this.config.family === "bert" ? up : this.linear(`${name}.gate_proj`, x);
    const inner = gate.map(this.act);
    if (gate !== up) for (let i = 0; i < inner.length; i++) inner[i] *= up[i];
    return this.linear(`${name}.down_proj`, inner, this.config.inner);
  }

  // The last hidden states (T, width), and of every layer q, k, v (T, width) and the weights (T, T) of each head.
  run(ids, { off = new Set(), positions = true } = {}) {
    const layers = [];
    let x = this.embed(ids, positions);
    for (let layer = 0; layer < this.config.layers; layer++) {
      const name = `model.layers.${layer}`, post = this.config.family === "bert";
      const attended = this.attend(layer, post ? x : this.norm(`${name}.attention_norm`, x), off, positions);
      layers.push(attended);
      x = plus(x, attended.output);
      if (post) x = this.norm(`${name}.attention_norm`, x);
      x = plus(x, this.feedForward(`${name}.mlp`, post ? x : this.norm(`${name}.mlp_norm`, x)));
      if (post) x = this.norm(`${name}.mlp_norm`, x);
    }
    return { layers, hidden: this.norm("model.norm", x) };
  }

  transform(x) {
    return this.tensors["transform.dense.weight"] ? this.norm("transform.norm", this.linear("transform.dense", x).map(this.act)) : x;
  }

  words(hidden, position, temperature = 1) {  // probabilities of all words at a position
    const { width } = this.config, x = this.transform(hidden.subarray(position * width, (position + 1) * width));
    const weight = this.tensors["lm_head.weight"] ?? this.tensors["model.embed_tokens.weight"];
    return softmax(linear(x, weight, this.tensors["lm_head.bias"], width), temperature);
  }

  labels(hidden) {  // probabilities of the labels of the text
    const { width, pooling, several } = this.config, T = hidden.length / width;
    const at = pooling === "last" ? T - 1 : 0;
    let pooled = hidden.slice(at * width, (at + 1) * width);
    if (pooling === "mean") pooled = pooled.map((_, i) => { let sum = 0; for (let t = 0; t < T; t++) sum += hidden[t * width + i]; return sum / T; });
    if (pooling === "pooler") pooled = this.linear("model.pooler.dense", pooled).map(Math.tanh);
    const logits = this.linear("classifier", this.transform(pooled));
    return several ? Float64Array.from(logits, (logit) => 1 / (1 + Math.exp(-logit))) : softmax(logits);
  }
}

if (typeof module !== "undefined") module.exports = { Tokenizer, Model, softmax, ACTIVATIONS };

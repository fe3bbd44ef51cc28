// node live_runner.js PAGE REQUESTS: answers each request with the numbers that the page would show, as JSON.
const { readFileSync } = require("node:fs");
const [page, requests] = process.argv.slice(2).map((path) => readFileSync(path, "utf8"));
const [, json, script] = page.match(/<script type="application\/json" id="data">(.*?)<\/script>\s*<script>(.*)<\/script>/s);
const engine = { exports: {} };
new Function("module", script.split("// The drawing of a live page")[0])(engine);
const data = JSON.parse(json), tokenizer = new engine.exports.Tokenizer(data.tokenizer), model = new engine.exports.Model(data);
const answers = JSON.parse(requests).map(({ text, ids, place, off = [], positions = true }) => {
  if (place === undefined && !ids) return { ids: tokenizer.encode(text).ids };
  const start = performance.now();
  ids ??= tokenizer.encode(text, data.room).ids;
  const { layers, hidden } = model.run(ids, { off: new Set(off), positions });
  const shares = data.task === "labels" ? model.labels(hidden) : model.words(hidden, place);
  const milliseconds = performance.now() - start;
  return { ids, shares: [...shares], milliseconds, weights: layers.map((layer) => layer.weights.map((map) => [...map])) };
});
console.log(JSON.stringify(answers));

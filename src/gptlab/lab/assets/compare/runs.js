// The page of gptlab compare. DATA is what lab/page.py's page_data returns.

const RUNS = DATA.runs,
  GROUPS = DATA.groups.map((label, index) => ({ label, index, runs: RUNS.filter((run) => run.group === index) }));
const FINISHED = ["finished", "stopped early"];
const isFinished = (run) => FINISHED.includes(run.state);
const higher = new Set(DATA.higherIsBetter);
const MAIN = DATA.mainMetric;
const grouped = GROUPS.length > 1 && GROUPS.some((group) => group.runs.length > 1);
const configOf = (run, key) => (key in run.config ? run.config[key] : DATA.config[key]);
const shown = (value) =>
  value === undefined
    ? ""
    : value === null
      ? "null"
      : typeof value === "string"
        ? value
        : typeof value === "number"
          ? `${+value.toPrecision(7)}`
          : JSON.stringify(value);
// The last part of a key says enough where no other key ends alike.
const leaf = (key) => key.split(".").pop();
const shortKey = (key) => (DATA.keys.filter((other) => leaf(other.key) === leaf(key)).length === 1 ? leaf(key) : key);
const brief = (value) => (isNumber(value) ? `${+value.toPrecision(4)}` : shown(value));
const shareOf = (key) => DATA.importance[MAIN]?.values[key] ?? 0;
DATA.keys.sort((a, b) => shareOf(b.key) - shareOf(a.key)); // what decides most comes first, everywhere

// Keys that change together, as the shapes of two models, say the same: the first stands for all of them.
const patternOf = (key) => {
  const seen = new Map();
  return GROUPS.map((group) => {
    const value = JSON.stringify(configOf(group.runs[0], key)) ?? "";
    if (!seen.has(value)) seen.set(value, seen.size);
    return seen.get(value);
  }).join();
};
const TELLING = []; // keys, each with those that change together with it
for (const { key } of DATA.keys) {
  const pattern = patternOf(key),
    same = TELLING.find((one) => one.pattern === pattern);
  if (same) same.others.push(key);
  else TELLING.push({ key, pattern, others: [] });
}
for (const group of GROUPS) {
  const named = TELLING.map(({ key, pattern, others }) => {
    // A preset's name says more than one of the values that it sets.
    const tag = others.length ? ["model_tag", "data_tag"].find((name) => patternOf(name) === pattern) : undefined;
    return tag ? `${tag.slice(0, -4)}=${configOf(group.runs[0], tag)}` : [key, configOf(group.runs[0], key)];
  });
  const values = named
    .filter((one) => typeof one === "string" || one[1] !== undefined)
    .map((one) => (typeof one === "string" ? one : `${shortKey(one[0])}=${brief(one[1])}`))
    .join(", ");
  group.short = values && values.length < group.label.length ? values : group.label;
}

// A short name for a run in the address: it stays when other runs come or go.
function mark(text) {
  let hash = 5381;
  for (let i = 0; i < text.length; i++) hash = ((hash * 33) ^ text.charCodeAt(i)) >>> 0;
  return hash.toString(36);
}
RUNS.forEach((run, index) => {
  run.index = index;
  run.mark = mark(run.folder);
});

// ---- what a person chose

const hidden = new Set(recall("hide", "").split(".").filter(Boolean));
const isShown = (run) => !hidden.has(run.mark);
function setHidden(runs, off) {
  for (const run of runs)
    if (off) hidden.add(run.mark);
    else hidden.delete(run.mark);
  remember("hide", [...hidden].filter((one) => RUNS.some((run) => run.mark === one)).join("."));
  changed();
}
const showOnly = (runs) => {
  hidden.clear();
  for (const run of RUNS) if (!runs.includes(run)) hidden.add(run.mark);
  setHidden([], false);
};
const choice = {
  x: recall("x", "tokens"),
  logX: recall("logx") === "1",
  logY: recall("logy") === "1",
  smooth: +recall("smooth", 0) || 0,
  robust: recall("robust") === "1",
  lines: recall("lines", grouped ? "groups" : "runs"),
  band: recall("band", "sd"),
  color: recall("color", GROUPS.length > 10 ? mostImportant() : "group"),
  metrics: recall(
    "metrics",
    ["val/loss", "train/loss"].filter((name) => DATA.metrics.includes(name)).join(" ") ||
      DATA.metrics.slice(0, 2).join(" "),
  )
    .split(" ")
    .filter((name) => DATA.metrics.includes(name)),
};
// More groups than colors that can be told apart are colored by what decides the metric.
function mostImportant() {
  const first = DATA.keys[0]?.key;
  return first && shareOf(first) ? first : "group";
}
const listeners = [];
let waiting = false;
function changed() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    for (const listener of listeners) listener();
  });
}
let hot = null; // the highlighted run or group, as "run 3" or "group 1"
const hotListeners = [];
function highlight(id) {
  if (id === hot) return;
  hot = id;
  for (const listener of hotListeners) listener(id);
}
const isHot = (run) => hot === `run ${run.index}` || hot === `group ${run.group}`;

// ---- colors of runs

const distinct = (values) => [...new Map(values.map((value) => [JSON.stringify(value) ?? "", value])).values()];
const byValue = (a, b) =>
  typeof a === "number" && typeof b === "number" ? a - b : shown(a).localeCompare(shown(b), "en", { numeric: true });
function scaleOf(fact, values) {
  const there = values.filter(isNumber),
    low = Math.min(...there),
    high = Math.max(...there);
  const of = (value) => (fact.log ? Math.log(value) : value);
  return { low, high, at: (value) => (high === low ? 0.5 : (of(value) - of(low)) / (of(high) - of(low))) };
}
let coloring = null;
function makeColoring() {
  const fact = DATA.keys.find(({ key }) => key === choice.color);
  const values = fact ? distinct(RUNS.map((run) => configOf(run, fact.key))).sort(byValue) : [];
  if (fact?.numeric && values.filter(isNumber).length > 2) {
    const scale = scaleOf(fact, values);
    coloring = {
      scale,
      fact,
      of: (run) => (isNumber(configOf(run, fact.key)) ? sequential(scale.at(configOf(run, fact.key))) : "var(--soft)"),
    };
  } else if (fact) {
    const places = new Map(values.map((value, i) => [JSON.stringify(value) ?? "", i]));
    coloring = { of: (run) => categorical(places.get(JSON.stringify(configOf(run, fact.key)) ?? ""), values.length) };
  } else if (choice.color === "run") coloring = { of: (run) => categorical(run.index, RUNS.length) };
  else coloring = { of: (run) => categorical(run.group, GROUPS.length) };
}
const colorOf = (run) => coloring.of(run);
makeColoring();

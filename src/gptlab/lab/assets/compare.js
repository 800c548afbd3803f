// The page of gptlab compare. DATA is what lab/page.py's page_data returns.

const RUNS = DATA.runs, GROUPS = DATA.groups.map((label, index) => ({ label, index, runs: RUNS.filter((run) => run.group === index) }));
const FINISHED = ["finished", "stopped early"];
const isFinished = (run) => FINISHED.includes(run.state);
const higher = new Set(DATA.higherIsBetter);
const MAIN = DATA.mainMetric;
const grouped = GROUPS.length > 1 && GROUPS.some((group) => group.runs.length > 1);
const configOf = (run, key) => (key in run.config ? run.config[key] : DATA.config[key]);
const shown = (value) => (value === undefined ? "" : value === null ? "null" : typeof value === "string" ? value : typeof value === "number" ? `${+value.toPrecision(7)}` : JSON.stringify(value));
// The last part of a key says enough where no other key ends alike.
const leaf = (key) => key.split(".").pop();
const shortKey = (key) => (DATA.keys.filter((other) => leaf(other.key) === leaf(key)).length === 1 ? leaf(key) : key);
const brief = (value) => (isNumber(value) ? `${+value.toPrecision(4)}` : shown(value));
const shareOf = (key) => DATA.importance[MAIN]?.values[key] ?? 0;
for (const group of GROUPS) {
  // What decides most comes first: a name may be cut off.
  const keys = DATA.keys.map(({ key }) => key).filter((key) => configOf(group.runs[0], key) !== undefined).sort((a, b) => shareOf(b) - shareOf(a));
  const values = keys.map((key) => `${shortKey(key)}=${brief(configOf(group.runs[0], key))}`).join(", ");
  group.short = values && values.length < group.label.length ? values : group.label;
}

// A short name for a run in the address: it stays when other runs come or go.
function mark(text) {
  let hash = 5381;
  for (let i = 0; i < text.length; i++) hash = ((hash * 33) ^ text.charCodeAt(i)) >>> 0;
  return hash.toString(36);
}
RUNS.forEach((run, index) => { run.index = index; run.mark = mark(run.folder); });

// ---- what a person chose

const hidden = new Set(recall("hide", "").split(".").filter(Boolean));
const isShown = (run) => !hidden.has(run.mark);
function setHidden(runs, off) {
  for (const run of runs) if (off) hidden.add(run.mark); else hidden.delete(run.mark);
  remember("hide", [...hidden].filter((one) => RUNS.some((run) => run.mark === one)).join("."));
  changed();
}
const showOnly = (runs) => {
  hidden.clear();
  for (const run of RUNS) if (!runs.includes(run)) hidden.add(run.mark);
  setHidden([], false);
};
const choice = {
  x: recall("x", "tokens"), logX: recall("logx") === "1", logY: recall("logy") === "1", smooth: +recall("smooth", 0) || 0,
  robust: recall("robust") === "1", lines: recall("lines", grouped ? "groups" : "runs"), band: recall("band", "sd"), color: recall("color", GROUPS.length > 10 ? mostImportant() : "group"),
  metrics: recall("metrics", ["val/loss", "train/loss"].filter((name) => DATA.metrics.includes(name)).join(" ") || DATA.metrics.slice(0, 2).join(" ")).split(" ").filter((name) => DATA.metrics.includes(name)),
};
// More groups than colors that can be told apart are colored by what decides the metric.
function mostImportant() {
  const [first] = DATA.keys.map(({ key }) => key).sort((a, b) => shareOf(b) - shareOf(a));
  return first && shareOf(first) ? first : "group";
}
const listeners = [];
let waiting = false;
function changed() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => { waiting = false; for (const listener of listeners) listener(); });
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
const byValue = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : shown(a).localeCompare(shown(b), "en", { numeric: true }));
function scaleOf(fact, values) {
  const there = values.filter(isNumber), low = Math.min(...there), high = Math.max(...there);
  const of = (value) => (fact.log ? Math.log(value) : value);
  return { low, high, at: (value) => (high === low ? 0.5 : (of(value) - of(low)) / (of(high) - of(low))) };
}
let coloring = null;
function makeColoring() {
  const fact = DATA.keys.find(({ key }) => key === choice.color);
  const values = fact ? distinct(RUNS.map((run) => configOf(run, fact.key))).sort(byValue) : [];
  if (fact?.numeric && values.filter(isNumber).length > 2) {
    const scale = scaleOf(fact, values);
    coloring = { scale, fact, of: (run) => (isNumber(configOf(run, fact.key)) ? sequential(scale.at(configOf(run, fact.key))) : "var(--soft)") };
  } else if (fact) {
    const places = new Map(values.map((value, i) => [JSON.stringify(value) ?? "", i]));
    coloring = { of: (run) => categorical(places.get(JSON.stringify(configOf(run, fact.key)) ?? ""), values.length) };
  } else if (choice.color === "run") coloring = { of: (run) => categorical(run.index, RUNS.length) };
  else coloring = { of: (run) => categorical(run.group, GROUPS.length) };
}
const colorOf = (run) => coloring.of(run);
makeColoring();

// ---- curves

function bytesOf(text) {
  const binary = atob(text), bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
  return bytes.buffer;
}
function unpackSteps(packed) {
  if (typeof packed !== "string") return Float64Array.from({ length: packed[2] }, (_, i) => packed[0] + i * packed[1]);
  const differences = new { u1: Uint8Array, u2: Uint16Array, u4: Uint32Array }[packed.slice(0, 2)](bytesOf(packed.slice(3)));
  const steps = new Float64Array(differences.length);
  let step = 0;
  for (let i = 0; i < steps.length; i++) steps[i] = step += differences[i];
  return steps;
}
const unpackValues = (packed) => Float64Array.from(new { f4: Float32Array, f8: Float64Array }[packed.slice(0, 2)](bytesOf(packed.slice(3))));

// The points of a run's curve, and what is smoothed and averaged in their place where points were left out.
function curveOf(run, metric) {
  const packed = run.curves[metric];
  if (!packed) return null;
  if (!packed.read) {
    const points = { steps: unpackSteps(packed.s), values: unpackValues(packed.v) };
    packed.read = { points, means: packed.ms === undefined ? points : { steps: unpackSteps(packed.ms), values: unpackValues(packed.mv) }, measured: packed.n || points.steps.length };
  }
  return packed.read;
}

function between(steps, values, at) {
  if (at <= steps[0]) return values[0];
  let low = 0, high = steps.length - 1;
  if (at >= steps[high]) return values[high];
  while (high - low > 1) { const middle = (low + high) >> 1; if (steps[middle] <= at) low = middle; else high = middle; }
  return values[low] + ((at - steps[low]) / (steps[high] - steps[low])) * (values[high] - values[low]);
}
const AXES = {
  tokens: { label: "tokens", kind: "count", has: (run) => run.clock, of: (run, step) => between(...run.clock.tokens, step) },
  steps: { label: "steps", kind: "count", has: (run) => run.clock, of: (run, step) => step },
  flops: { label: "training FLOPs", kind: "flops", has: (run) => run.clock && run.flopsPerToken, of: (run, step) => between(...run.clock.tokens, step) * run.flopsPerToken },
  time: { label: "training time", kind: "seconds", has: (run) => run.clock?.seconds, of: (run, step) => between(...run.clock.seconds, step) },
};
if (!(choice.x in AXES) || !RUNS.some(AXES[choice.x].has)) choice.x = "tokens";

// An exponential mean forwards and one backwards, averaged: without the lag that one alone has. On a logarithmic axis it
// spans a ratio of steps, since a span of steps would flatten the beginning.
function smoothed(ofSteps, values, share) {
  const steps = choice.logX ? ofSteps.map((step) => Math.log(Math.max(step, 0.5))) : ofSteps;
  const n = steps.length, range = steps[n - 1] - steps[0], time = share * range;
  if (!(time > 0)) return values;
  const sums = new Float64Array(n), weights = new Float64Array(n);
  for (const direction of [1, -1]) {
    let sum = 0, weight = 0, last = null;
    for (let k = 0; k < n; k++) {
      const i = direction > 0 ? k : n - 1 - k, gap = last === null ? range / n : Math.abs(steps[i] - last), decay = Math.exp(-gap / time);
      last = steps[i];
      sum *= decay; weight *= decay;
      if (!Number.isNaN(values[i])) { sum += (1 - decay) * values[i]; weight += 1 - decay; }
      sums[i] += sum; weights[i] += weight;
    }
  }
  return sums.map((sum, i) => (Number.isNaN(values[i]) ? NaN : sum / weights[i]));
}
const smoothing = () => (choice.smooth / 100) ** 2 * 0.25; // of the run's length
const DENSE = 60; // points; a curve with fewer is no noise that should be smoothed

function linesOfRuns(metric) {
  const axis = AXES[choice.x], there = RUNS.filter((run) => isShown(run) && run.curves[metric] && axis.has(run)), lines = [];
  const many = there.length > 40;
  for (const run of there) {
    const { points, means, measured } = curveOf(run, metric), smooth = smoothing() > 0 && measured > DENSE && points.steps.length > DENSE / 2;
    const color = colorOf(run), dash = isFinished(run) ? null : run.state === "running" ? null : [5, 3];
    const steps = smooth ? means.steps : points.steps, values = smooth ? smoothed(means.steps, means.values, smoothing()) : points.values;
    if (smooth && there.length <= 12)
      lines.unshift({ id: `run ${run.index}`, name: run.name, color, xs: points.steps.map((step) => axis.of(run, step)), ys: points.values, width: 1, alpha: 0.22, faint: true });
    const detail = smooth ? (i) => `measured ${number(points.values[nearestIndex(points.steps, steps[i])])}` : null;
    lines.push({ id: `run ${run.index}`, name: run.name, color, dash, steps, xs: steps.map((step) => axis.of(run, step)), ys: values, width: many ? 1 : 1.6, alpha: many ? 0.75 : 1, marks: measured <= DENSE && !many, detail });
  }
  return lines;
}

// The mean over the runs of a group at each step, and their deviation.
function meanOf(runs, metric, axis) {
  const there = runs.map((run) => ({ run, curve: curveOf(run, metric) })).filter(({ run, curve }) => curve && axis.has(run));
  if (!there.length) return null;
  const found = there.map(({ run, curve }) => ({ run, ...curve.means, dense: curve.measured > DENSE }));
  const longest = found.reduce((a, b) => (b.steps[b.steps.length - 1] > a.steps[a.steps.length - 1] || (b.steps.length > a.steps.length && b.steps[b.steps.length - 1] === a.steps[a.steps.length - 1]) ? b : a));
  const equal = found.every(({ steps }) => steps.length === longest.steps.length && steps.every((step, i) => step === longest.steps[i]));
  const dense = found.every((one) => one.dense);
  const of = found.map(({ steps, values }) => (smoothing() > 0 && dense ? smoothed(steps, values, smoothing()) : values));
  const result = { steps: longest.steps, xs: [], mean: [], sd: [], low: [], high: [], n: [], dense };
  longest.steps.forEach((step, i) => {
    const values = [], xs = [];
    found.forEach(({ run, steps }, j) => {
      if (!equal && (step < steps[0] || step > steps[steps.length - 1])) return;
      const value = equal ? of[j][i] : between(steps, of[j], step);
      if (Number.isNaN(value)) return;
      values.push(value);
      xs.push(axis.of(run, step));
    });
    const { mean, sd } = statistics(values);
    result.xs.push(xs.length ? statistics(xs).mean : NaN);
    result.mean.push(values.length ? mean : NaN);
    result.sd.push(sd);
    result.n.push(values.length);
    const [low, high] = choice.band === "range" ? [Math.min(...values), Math.max(...values)] : [mean - sd, mean + sd];
    result.low.push(values.length > 1 ? low : mean);
    result.high.push(values.length > 1 ? high : mean);
  });
  return result;
}
function statistics(values) {
  const n = values.length, mean = values.reduce((a, b) => a + b, 0) / n;
  return { n, mean, sd: n > 1 ? Math.sqrt(values.reduce((sum, value) => sum + (value - mean) ** 2, 0) / (n - 1)) : 0 };
}
function linesOfGroups(metric) {
  const axis = AXES[choice.x], lines = [];
  for (const group of GROUPS) {
    const runs = group.runs.filter(isShown);
    if (!runs.length) continue;
    const result = meanOf(runs, metric, axis);
    if (!result) continue;
    const detail = (i) => (result.n[i] > 1 ? `\u00b1 ${number(result.sd[i], 2)} (${result.n[i]})` : "(1)");
    lines.push({ id: `group ${group.index}`, name: group.short, color: colorOf(runs[0]), steps: result.steps, xs: result.xs, ys: result.mean, width: 1.8, detail,
      marks: !result.dense, band: runs.length > 1 && choice.band !== "none" ? { xs: result.xs, low: result.low, high: result.high } : null });
  }
  return lines;
}

const CHARTS = new Map(); // by metric
let sharedZoom = null;
function drawCurves(host) {
  for (const [metric, chart] of CHARTS) if (!choice.metrics.includes(metric)) { chart.figure.remove(); CHARTS.delete(metric); }
  for (const metric of choice.metrics) {
    if (!CHARTS.has(metric)) {
      const chart = new LineChart(host, {
        name: metric.replace("/", "-"), onHover: highlight, onPick: (id) => openRow(id),
        onZoom: (range) => { sharedZoom = range; for (const other of CHARTS.values()) if (other !== chart) { other.zoomX = range; if (!range) other.zoomY = null; setTimeout(() => other.build()); } },
      });
      chart.zoomX = sharedZoom;
      CHARTS.set(metric, chart);
    }
    const chart = CHARTS.get(metric), axis = AXES[choice.x];
    host.append(chart.figure); // in the order in which they were chosen
    chart.show(choice.lines === "groups" ? linesOfGroups(metric) : linesOfRuns(metric), {
      title: metric, xLabel: axis.label, xKind: axis.kind, logX: choice.logX, logY: choice.logY, robust: choice.robust,
      xText: (x, line) => `${choice.x === "time" ? duration(x) : choice.x === "flops" ? short(x) : number(Math.round(x))}${choice.x === "steps" || !line.steps ? "" : `, step ${number(line.steps[nearestIndex(line.xs, x)])}`}`,
    });
  }
}
function curvesSection() {
  const host = el("div", { class: "grid" }), color = el("span", { class: "small soft" }), chips = el("div", { class: "chips" });
  const axes = Object.entries(AXES).filter(([, axis]) => RUNS.some(axis.has)).map(([key, axis]) => [key, axis.label]);
  const set = (key, value, redraw = true) => { choice[key] = value; remember({ logX: "logx", logY: "logy" }[key] || key, value); if (redraw) changed(); };
  const toggle = (key, text, title) => el("button", { "aria-pressed": choice[key], title, id: `switch-${key}`, onclick: (event) => { set(key, !choice[key]); event.target.setAttribute("aria-pressed", choice[key]); } }, text);
  const unzoom = () => { sharedZoom = null; for (const chart of CHARTS.values()) chart.zoomX = chart.zoomY = null; };
  const missing = el("p", { class: "small soft" });
  const section = el("section", { id: "curves" }, el("div", { class: "card controls" }, el("div", { class: "bar" },
    el("label", {}, "x ", select(axes, choice.x, (value) => { unzoom(); set("x", value); }, "x axis")),
    toggle("logX", "log x"), toggle("logY", "log y"), toggle("robust", "clip top", "the y axis leaves out the highest 5% of the points"),
    el("label", {}, "smooth ", el("input", { type: "range", min: 0, max: 100, value: choice.smooth, "aria-label": "smoothing", title: "curves with more than 60 points", oninput: (event) => set("smooth", +event.target.value) })),
    el("label", {}, "lines ", select([["runs", "each run"], ["groups", "mean over seeds"]], choice.lines, (value) => { set("lines", value); bandBox.hidden = value !== "groups"; }, "lines")),
    (() => bandBox)(),
    el("label", {}, "color ", select([["group", "group"], ["run", "run"], ...DATA.keys.map(({ key }) => [key, key])], choice.color, (value) => { set("color", value); }, "color")), color), chips), missing, host);
  const draw = () => {
    makeColoring();
    color.replaceChildren(...(coloring.scale ? [`${shown(coloring.scale.low)} `, el("span", { class: "gradient", style: `background:linear-gradient(90deg, ${[0, 0.25, 0.5, 0.75, 1].map(sequential).join(",")})` }), ` ${shown(coloring.scale.high)}`] : []));
    chips.replaceChildren(...(DATA.metrics.length > 2 ? DATA.metrics.map((metric) => el("button", { "aria-pressed": choice.metrics.includes(metric), onclick: () => {
      set("metrics", choice.metrics.includes(metric) ? choice.metrics.filter((one) => one !== metric) : [...choice.metrics, metric], false);
      remember("metrics", choice.metrics.join(" "));
      changed();
    } }, metric)) : []));
    const without = RUNS.filter((run) => isShown(run) && !AXES[choice.x].has(run));
    missing.hidden = !without.length;
    missing.textContent = `${without.length} of the chosen runs ${without.length === 1 ? "has" : "have"} no ${AXES[choice.x].label}: ${without.slice(0, 3).map((run) => run.name).join(", ")}${without.length > 3 ? ", ..." : ""}`;
    drawCurves(host);
  };
  listeners.push(draw);
  hotListeners.push((id) => { for (const chart of CHARTS.values()) chart.highlight(chart.lines.some((line) => line.id === id) ? id : groupOf(id)); });
  themed.push(changed);
  return section;
}
const bandBox = el("label", { hidden: choice.lines !== "groups" }, "band ", select([["sd", "\u00b1 1 sd"], ["range", "lowest to highest"], ["none", "none"]], choice.band, (value) => { choice.band = value; remember("band", value); changed(); }, "band"));
// Where a chart has no line of a run, that of its group.
const groupOf = (id) => (id?.startsWith("run ") ? `group ${RUNS[+id.slice(4)].group}` : id);

// ---- the list of runs, which is the legend of all charts

const better = (metric) => (a, b) => (b === null || b === undefined ? -1 : a === null || a === undefined ? 1 : higher.has(metric) ? b - a : a - b);
const judged = (run) => asNumber(run.best[MAIN] ?? run.last[MAIN]);
const groupValue = (group) => { const values = group.runs.filter(isFinished).map(judged).filter(isNumber); return values.length ? statistics(values) : null; };
function runsPanel() {
  const list = el("div", { class: "list" });
  let wanted = "";
  const open = new Set();
  const ranked = [...GROUPS].sort((a, b) => better(MAIN)(groupValue(a)?.mean, groupValue(b)?.mean));
  const matches = (run) => !wanted || `${run.name} ${DATA.groups[run.group]} ${run.state}`.toLowerCase().includes(wanted);
  const box = (runs, label) => {
    const on = runs.filter(isShown).length;
    const input = el("input", { type: "checkbox", checked: on > 0, "aria-label": label, onchange: () => setHidden(runs, on === runs.length) });
    input.indeterminate = on > 0 && on < runs.length;
    return input;
  };
  const entryOf = (run, inner) => el("div", { class: `entry ${inner ? "inner" : ""} ${isShown(run) ? "" : "off"}`, "data-run": run.index, onmouseenter: () => highlight(`run ${run.index}`), onmouseleave: () => highlight(null) },
    box([run], run.name), dot(colorOf(run)), el("span", { class: "name", title: `${run.name}\n${DATA.groups[run.group]}` }, inner ? nameWithin(run) : run.name),
    isFinished(run) ? null : el("span", { class: `state ${run.state}` }, run.state), el("span", { class: "number small" }, number(judged(run))));
  const draw = () => {
    const rows = [];
    for (const group of ranked) {
      const runs = group.runs.filter(matches);
      if (!runs.length) continue;
      if (group.runs.length === 1 || GROUPS.length === 1) { rows.push(...[...runs].sort((a, b) => better(MAIN)(judged(a), judged(b))).map((run) => entryOf(run, false))); continue; }
      const value = groupValue(group), isOpen = open.has(group.index) || (wanted && runs.length < group.runs.length);
      rows.push(el("div", { class: `entry ${runs.some(isShown) ? "" : "off"}`, "data-group": group.index, onmouseenter: () => highlight(`group ${group.index}`), onmouseleave: () => highlight(null) },
        box(runs, group.label), dot(colorOf(group.runs[0])), el("span", { class: "name", title: group.label }, group.short),
        el("span", { class: "number small", title: value ? `mean of ${value.n} finished runs, sample standard deviation ${number(value.sd, 3)}` : "no finished run" }, value ? number(value.mean) : ""),
        el("button", { class: "quiet small", title: "its runs", "aria-expanded": !!isOpen, onclick: () => { if (open.has(group.index)) open.delete(group.index); else open.add(group.index); draw(); } }, isOpen ? "\u25be" : `\u25b8${runs.length}`)));
      if (isOpen) rows.push(...runs.map((run) => entryOf(run, true)));
    }
    list.replaceChildren(...rows);
    count.textContent = `${RUNS.filter(isShown).length} of ${RUNS.length} shown`;
  };
  const count = el("span", { class: "small soft" });
  const button = (text, title, act) => el("button", { class: "small", title, onclick: act }, text);
  const panel = el("aside", { class: "runs card" }, el("div", { class: "bar" }, el("h3", {}, "Runs"), el("span", { class: "spacer" }), count),
    el("input", { type: "search", placeholder: "filter by name, value, state", "aria-label": "filter runs", oninput: (event) => { wanted = event.target.value.trim().toLowerCase(); draw(); } }),
    el("div", { class: "bar" }, button("all", "show all that match", () => setHidden(RUNS.filter(matches), false)), button("none", "hide all that match", () => setHidden(RUNS.filter(matches), true)),
      button("only these", "show those that match, and no others", () => showOnly(RUNS.filter(matches))),
      RUNS.length > 10 ? button("best 10", `by ${MAIN}`, () => showOnly([...RUNS].filter((run) => isNumber(judged(run))).sort((a, b) => better(MAIN)(judged(a), judged(b))).slice(0, 10))) : null),
    el("div", { class: "small soft" }, MAIN ? `${grouped ? "mean of the " : ""}best ${MAIN}` : ""), list);
  listeners.push(draw);
  hotListeners.push(() => { for (const entry of list.children) entry.classList.toggle("hot", hot !== null && (entry.dataset.run !== undefined ? isHot(RUNS[+entry.dataset.run]) : hot === `group ${entry.dataset.group}` || groupOf(hot) === `group ${entry.dataset.group}`)); });
  return panel;
}
// Within its group a run is known by its seed, unless two have the same.
const nameWithin = (run) => (GROUPS[run.group].runs.filter((other) => other.seed === run.seed).length === 1 ? `seed ${run.seed}` : run.name);

// ---- the table

let tableSort = recall("sort", "");
let tableBy = recall("rows", "runs");
function openRow(id) {
  const index = id.startsWith("run ") ? +id.slice(4) : GROUPS[+id.slice(6)].runs[0].index;
  const row = document.querySelector(`#table tr[data-run="${index}"]`);
  row?.scrollIntoView({ block: "center", behavior: "smooth" });
}
function columns() {
  const judgedMetrics = DATA.metrics.filter((name) => /^(val|test|train_eval)\//.test(name));
  const metric = (name, of, label) => ({ key: `${of} ${name}`, label, metric: name, digits: 6, value: (run) => asNumber(run[of][name]) });
  return [
    ...DATA.keys.map(({ key }) => ({ key: `config ${key}`, label: key, config: true, value: (run) => configOf(run, key), text: shown })),
    ...(MAIN && judgedMetrics.includes(MAIN) ? [metric(MAIN, "best", `best ${MAIN}`), { key: "best at", label: "at step", value: (run) => run.bestStep[MAIN] }] : []),
    ...judgedMetrics.map((name) => metric(name, "last", name)),
    ...(DATA.metrics.includes("train/loss") ? [metric("train/loss", "last", "train/loss")] : []),
    { key: "tokens", label: "tokens", value: (run) => run.tokens, text: (value) => shortCount(value) },
    { key: "seconds", label: "time", value: (run) => run.seconds ?? undefined, text: duration },
    { key: "flops", label: "FLOPs", value: (run) => run.flops ?? undefined, text: short },
  ].filter((column) => RUNS.some((run) => column.value(run) !== undefined));
}
function tableSection() {
  const all = columns(), table = el("table"), note = el("p", { class: "small soft" });
  const orderBy = (rows, value) => {
    const [key, down] = [tableSort.replace(/^-/, ""), tableSort.startsWith("-")];
    const column = all.find((one) => one.key === key);
    const of = key === "name" ? (row) => row.name ?? row.label : key === "state" ? (row) => row.state ?? "" : key === "seed" ? (row) => row.seed : column ? (row) => value(row, column) : null;
    if (!of) return rows;
    const missing = (one) => one === undefined || one === null || Number.isNaN(one);
    return [...rows].sort((a, b) => (missing(of(a)) ? (missing(of(b)) ? 0 : 1) : missing(of(b)) ? -1 : byValue(of(a), of(b)) * (down ? -1 : 1)));
  };
  const head = (key, label, isNumeric, title) => el("th", { class: isNumeric ? "number" : "", "aria-sort": tableSort === key ? "ascending" : tableSort === `-${key}` ? "descending" : null, title },
    el("button", { onclick: () => { tableSort = tableSort === key ? `-${key}` : key; remember("sort", tableSort); draw(); } }, label));
  const bestOf = (rows, column, value) => {
    if (!column.metric) return null;
    const values = rows.map((row) => value(row, column)).filter(isNumber);
    return values.length > 1 ? (higher.has(column.metric) ? Math.max(...values) : Math.min(...values)) : null;
  };
  const shownText = (column, value) => (value === undefined || value === null ? "" : (column.text || ((one) => number(one, column.digits)))(value));
  const isNumeric = (column) => !column.config || DATA.keys.find(({ key }) => `config ${key}` === column.key).numeric;
  const draw = () => {
    const visible = RUNS.filter(isShown);
    if (tableBy === "groups") {
      const groups = GROUPS.map((group) => ({ ...group, visible: group.runs.filter(isShown) })).filter((group) => group.visible.length)
        .map((group) => ({ ...group, ended: group.visible.filter(isFinished) }));
      const stat = (group, column) => { const values = group.ended.map(column.value).filter(isNumber); return values.length ? statistics(values) : null; };
      const value = (group, column) => (column.config ? column.value(group.runs[0]) : stat(group, column)?.mean);
      const shownColumns = all.filter((column) => column.key !== "best at");
      table.replaceChildren(el("thead", {}, el("tr", {}, head("name", "group"), el("th", { class: "number" }, "n"), shownColumns.map((column) => head(column.key, column.label, isNumeric(column))))),
        el("tbody", {}, orderBy(groups, value).map((group) => el("tr", { "data-group": group.index, onmouseenter: () => highlight(`group ${group.index}`), onmouseleave: () => highlight(null) },
          el("td", { title: group.label }, dot(colorOf(group.visible[0])), group.short),
          el("td", { class: "number" }, group.ended.length === group.visible.length ? group.ended.length : `${group.ended.length} of ${group.visible.length}`),
          shownColumns.map((column) => {
            const best = bestOf(groups, column, value), mean = value(group, column), of = column.config ? null : stat(group, column);
            const spread = of && of.n > 1 ? ` \u00b1 ${column.text ? column.text(of.sd) : number(of.sd, 2)}` : "";
            return el("td", { class: `${isNumeric(column) ? "number" : ""} ${best !== null && mean === best ? "best" : ""}`, title: of ? `mean ${of.mean}, sample standard deviation ${of.sd}, n ${of.n}` : null }, shownText(column, mean), spread);
          })))));
      note.textContent = "Means and sample standard deviations over the finished runs of each group.";
    } else {
      const value = (run, column) => column.value(run);
      table.replaceChildren(el("thead", {}, el("tr", {}, head("name", "run"), head("state", "state"), head("seed", "seed", true), all.map((column) => head(column.key, column.label, isNumeric(column))))),
        el("tbody", {}, orderBy(visible, value).map((run) => el("tr", { "data-run": run.index, onmouseenter: () => highlight(`run ${run.index}`), onmouseleave: () => highlight(null) },
          el("td", {}, dot(colorOf(run)), el("a", { href: run.href, title: run.folder }, run.name)),
          el("td", {}, el("span", { class: `state ${run.state}` }, run.state)), el("td", { class: "number" }, run.seed),
          all.map((column) => {
            const one = column.value(run), best = bestOf(visible.filter(isFinished), column, value);
            return el("td", { class: `${isNumeric(column) ? "number" : ""} ${best !== null && one === best && isFinished(run) ? "best" : ""}`, "data-column": column.key, "data-value": one === undefined || one === null ? null : String(one), title: typeof one === "number" ? String(one) : null }, shownText(column, one));
          })))));
      note.textContent = "Numbers are those of metrics.csv; hold the pointer over one for all its digits. Names lead to the run folders.";
    }
  };
  const quoted = (value) => (/[",\n\r]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value);
  const save = () => download("runs.csv", new Blob([[["run", "folder", "state", "seed", ...all.map((column) => column.label)],
    ...RUNS.filter(isShown).map((run) => [run.name, run.folder, run.state, run.seed, ...all.map((column) => column.value(run))])]
    .map((row) => row.map((cell) => quoted(cell === undefined || cell === null ? "" : typeof cell === "string" ? cell : typeof cell === "object" ? JSON.stringify(cell) : String(cell))).join(",")).join("\n") + "\n"], { type: "text/csv" }));
  listeners.push(draw);
  hotListeners.push(() => { for (const row of table.querySelectorAll("tbody tr")) row.classList.toggle("hot", hot !== null && (row.dataset.run !== undefined ? isHot(RUNS[+row.dataset.run]) : groupOf(hot) === `group ${row.dataset.group}`)); });
  return el("section", { id: "table" }, el("div", { class: "card" }, el("div", { class: "bar" }, el("h2", {}, "Table"), el("span", { class: "spacer" }),
    grouped ? el("label", {}, "rows ", select([["runs", "each run"], ["groups", "seeds grouped"]], tableBy, (value) => { tableBy = value; remember("rows", value); draw(); }, "rows")) : null,
    el("button", { class: "quiet small", onclick: save, title: "save the table" }, "CSV")), note, el("div", { class: "scroll" }, table)));
}

// ---- hyperparameters

function sweepSection() {
  const metrics = Object.keys(DATA.importance).filter((name) => RUNS.some((run) => isNumber(asNumber(run.best[name] ?? run.last[name]))));
  if (!DATA.keys.length || RUNS.length < 2 || !metrics.length) return null;
  let metric = recall("target", "");
  if (!metrics.includes(metric)) metric = metrics.includes(MAIN) ? MAIN : metrics[0];
  const value = (run) => asNumber(run.best[metric] ?? run.last[metric]);
  const extra = [["parameters", "parameters", (run) => run.parameters], ["flops", "training FLOPs", (run) => run.flops]].map(([key, label, of]) => {
    const values = RUNS.map(of).filter(isNumber);
    return { key, label, of, numeric: true, log: values.length && Math.min(...values) > 0 && Math.max(...values) / Math.min(...values) >= 10, varies: distinct(values).length > 1 };
  }).filter((axis) => axis.varies);
  const axes = [...DATA.keys.map((fact) => ({ ...fact, label: fact.key, of: (run) => configOf(run, fact.key) })), ...extra];
  const host = el("div"), brushes = new Map();
  let ticking = 0;
  const section = el("section", { id: "sweep" }, el("div", { class: "bar controls" }, el("h2", {}, "Hyperparameters"), el("span", { class: "spacer" }),
    el("label", {}, "best ", select(metrics.map((name) => [name, name]), metric, (chosen) => { metric = chosen; remember("target", chosen); draw(); }, "metric"))), host);
  const draw = () => {
    const runs = RUNS.filter((run) => isShown(run) && isNumber(value(run)));
    if (!runs.length) { host.replaceChildren(el("p", { class: "soft" }, `none of the chosen runs has ${metric}`)); return; }
    const grid = el("div", { class: "grid" }), wide = el("div", { style: "margin-bottom:.8rem" });
    host.replaceChildren(wide, grid);
    parallel(wide, axes.slice(0, DATA.keys.length), runs, metric, value, brushes);
    importanceFigure(grid, metric);
    for (const axis of axes) scatter(grid, axis, runs, metric, value);
  };
  let built = false;
  whenSeen(section, () => { built = true; draw(); });
  listeners.push(() => { if (built) { const now = ++ticking; setTimeout(() => { if (now === ticking) draw(); }, 60); } });
  return section;
}

// The place of a run on an axis: numbers by their size, everything else by its values in order.
function axisScale(axis, runs, low, high) {
  const values = distinct(runs.map(axis.of)).sort(byValue);
  const numbers = values.filter(isNumber);
  if (axis.numeric && numbers.length === values.filter((one) => one !== undefined && one !== null).length && numbers.length > 1) {
    const [from, to] = [Math.min(...numbers), Math.max(...numbers)], of = (one) => (axis.log ? Math.log(one) : one);
    const at = (one) => low + ((of(one) - of(from)) / (of(to) - of(from))) * (high - low);
    const few = numbers.length <= 6;
    const ticks = few ? numbers : ticksOf(from, to, 5, axis.log);
    const labels = few ? numbers.map((one) => (Math.abs(one) >= 1e4 ? short(one) : shown(one))) : tickLabels(ticks, axis.key === "flops" ? "flops" : undefined);
    // The labels that have room: the ends first.
    const room = Math.abs(high - low) > 0 ? 34 : 0, taken = [], kept = [];
    for (const i of [0, ticks.length - 1, ...ticks.keys()]) if (!kept.includes(i) && taken.every((place) => Math.abs(place - at(ticks[i])) >= Math.min(room, axis.upright ? 13 : 34))) { taken.push(at(ticks[i])); kept.push(i); }
    kept.sort((a, b) => a - b);
    return { at: (one) => (isNumber(one) ? at(one) : NaN), ticks: kept.map((i) => [at(ticks[i]), labels[i]]) };
  }
  const places = new Map(values.map((one, i) => [JSON.stringify(one) ?? "", low + ((i + 0.5) / values.length) * (high - low)]));
  const every = Math.ceil(values.length / 12);
  return { at: (one) => places.get(JSON.stringify(one) ?? ""), ticks: values.map((one, i) => [places.get(JSON.stringify(one) ?? ""), shown(one) || "-"]).filter((_, i) => i % every === 0) };
}

function figureWith(host, title, name, drawing, controls = []) {
  const tip = el("div", { class: "tip", hidden: true }), plot = el("div", { class: "plot" }, drawing);
  const figure = el("div", { class: "figure card" }, el("header", {}, el("h3", {}, title), controls, saveButtons(name, () => plot.querySelector("svg"))), plot, tip);
  host.append(figure);
  const say = (event, ...lines) => {
    tip.replaceChildren(...lines.map((line) => el("div", {}, line)));
    tip.hidden = false;
    const box = figure.getBoundingClientRect(), x = event.clientX - box.left, y = event.clientY - box.top;
    tip.style.left = `${Math.max(4, Math.min(box.width - tip.offsetWidth - 4, x + 14))}px`;
    tip.style.top = `${y + 16}px`;
  };
  return { figure, plot, say, quiet: () => { tip.hidden = true; } };
}
const cut = (text, length) => (text.length > length ? `${text.slice(0, length - 1)}\u2026` : text);

function scatter(host, axis, runs, metric, value) {
  const there = runs.filter((run) => axis.of(run) !== undefined && axis.of(run) !== null);
  if (distinct(there.map(axis.of)).length < 2) return;
  const [width, height, left, right, top, bottom] = [420, 270, 58, 410, 12, 226];
  const x = axisScale(axis, there, left + 12, right - 12);
  const [low, high] = [Math.min(...there.map(value)), Math.max(...there.map(value))];
  const room = (high - low) * 0.06 || Math.abs(high) * 0.05 || 1, y = (one) => bottom - ((one - low + room) / (high - low + 2 * room)) * (bottom - top);
  const ticks = ticksOf(low - room, high + room, 5, false), labels = tickLabels(ticks);
  const drawing = svg("svg", { viewBox: `0 0 ${width} ${height}`, width: "100%" },
    ticks.map((tick, i) => [svg("path", { d: `M${left} ${y(tick)}H${right}`, stroke: "var(--grid)" }), svg("text", { x: left - 6, y: y(tick) + 4, "text-anchor": "end", "font-size": 11, fill: "var(--soft)" }, labels[i])]),
    x.ticks.map(([place, label]) => [svg("path", { d: `M${place} ${bottom}v4`, stroke: "var(--line)" }), svg("text", { x: place, y: bottom + 16, "text-anchor": "middle", "font-size": 11, fill: "var(--soft)" }, cut(label, Math.max(5, Math.floor(60 / x.ticks.length))))]),
    svg("path", { d: `M${left} ${top}V${bottom}H${right}`, fill: "none", stroke: "var(--line)" }),
    svg("text", { x: (left + right) / 2, y: height - 8, "text-anchor": "middle", "font-size": 12, fill: "var(--soft)" }, `${axis.label}${axis.log ? " (log)" : ""}`));
  // The mean at each value, where several runs share it.
  const levels = distinct(there.map(axis.of)).sort(byValue).map((level) => [level, there.filter((run) => isFinished(run) && JSON.stringify(axis.of(run)) === JSON.stringify(level)).map(value)]).filter(([, values]) => values.length);
  if (levels.length < there.length && levels.some(([, values]) => values.length > 1)) {
    const means = levels.map(([level, values]) => [x.at(level), y(statistics(values).mean)]);
    if (axis.numeric) drawing.append(svg("path", { d: `M${means.map((place) => place.map((one) => one.toFixed(1)).join(" ")).join("L")}`, fill: "none", stroke: "var(--soft)", "stroke-width": 1.2, "stroke-dasharray": "4 3" }));
    for (const [px, py] of means) drawing.append(svg("path", { d: `M${px - 9} ${py}h18`, stroke: "var(--ink)", "stroke-width": 2 }));
  }
  const { figure, say, quiet } = figureWith(host, `${metric} by ${axis.label}`, `${metric}-by-${axis.label}`, drawing);
  const notes = [levels.some(([, values]) => values.length > 1) ? "bars: means of equal values" : "", there.every(isFinished) ? "" : "hollow: not finished"].filter(Boolean);
  if (notes.length) figure.append(el("p", { class: "small soft" }, notes.join("; ")));
  const count = new Map();
  for (const run of there) {
    // Points of a category lie beside each other, in a fixed order.
    const key = JSON.stringify(axis.of(run)), nth = count.get(key) || 0;
    count.set(key, nth + 1);
    const aside = axis.numeric ? 0 : ((nth % 7) - 3) * 2.2;
    const point = svg("circle", { class: "hit", cx: x.at(axis.of(run)) + aside, cy: y(value(run)), r: there.length > 80 ? 3 : 4, fill: isFinished(run) ? colorOf(run) : "var(--card)", stroke: colorOf(run), "fill-opacity": 0.8, "data-run": run.index });
    point.addEventListener("mousemove", (event) => { highlight(`run ${run.index}`); say(event, el("b", {}, run.name), `${metric} ${number(value(run), 6)}${isFinished(run) ? "" : ` (${run.state})`}`, `${axis.label} ${isNumber(axis.of(run)) ? number(axis.of(run)) : shown(axis.of(run))}`); });
    point.addEventListener("mouseleave", () => { highlight(null); quiet(); });
    point.addEventListener("click", () => openRow(`run ${run.index}`));
    drawing.append(point);
  }
}

function importanceFigure(host, metric) {
  const { values, reason } = DATA.importance[metric], entries = Object.entries(values).slice(0, 14);
  if (!entries.length) { host.append(el("div", { class: "figure card" }, el("h3", {}, "Importance"), el("p", { class: "soft" }, `Importance ${reason}.`))); return; }
  const height = 20 + entries.length * 24, drawing = svg("svg", { viewBox: `0 0 420 ${height}`, width: "100%" });
  entries.forEach(([key, share], i) => drawing.append(
    svg("text", { x: 176, y: 26 + 24 * i, "text-anchor": "end", "font-size": 12, fill: "var(--ink)" }, cut(key, 28)),
    svg("rect", { x: 184, y: 14 + 24 * i, width: Math.max(1, 180 * share), height: 16, rx: 3, fill: "var(--accent)" }),
    svg("text", { x: 190 + 180 * share, y: 26 + 24 * i, "font-size": 11, fill: "var(--soft)" }, `${Math.round(100 * share)}%`)));
  const { figure } = figureWith(host, `importance for ${metric}`, `importance-${metric}`, drawing);
  figure.append(el("p", { class: "small soft" }, "Share of each hyperparameter in what sets the best tenth of the finished runs apart (PED-ANOVA)."));
}

function parallel(host, axes, runs, metric, value, brushes) {
  const target = { key: "target", label: metric, numeric: true, log: false, of: value }, all = [...axes, target];
  const step = Math.max(84, ((host.clientWidth || 800) - 190) / Math.max(1, all.length - 1)), width = Math.round(step * (all.length - 1) + 150), [top, bottom, height] = [48, 268, 286];
  const sorted = runs.map(value).sort((a, b) => a - b), rank = scaleOf({ log: false }, [sorted[0], sorted[Math.min(sorted.length - 1, Math.floor(0.9 * sorted.length))]]);
  const colorBy = (run) => { const at = Math.max(0, Math.min(1, rank.at(value(run)))); return sequential(higher.has(metric) ? at : 1 - at); };
  const scales = all.map((axis) => axisScale({ ...axis, upright: true }, runs, axis === target && !higher.has(metric) ? top : bottom, axis === target && !higher.has(metric) ? bottom : top));
  const places = (run) => all.map((axis, i) => [50 + i * step, scales[i].at(axis.of(run) ?? null) ?? scales[i].at(axis.of(run))]);
  const drawing = svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height }), lines = svg("g");
  drawing.append(lines);
  const only = el("button", { class: "quiet small", hidden: true, onclick: () => { const chosen = runs.filter(inside); brushes.clear(); showOnly(chosen); } });
  const clear = el("button", { class: "quiet small", hidden: true, onclick: () => { brushes.clear(); dim(); } }, "clear ranges");
  const { figure, say, quiet } = figureWith(host, "parallel coordinates", `parallel-${metric}`, drawing, [only, clear]);
  figure.querySelector(".plot").classList.add("parallel");
  const inside = (run) => places(run).every(([, y], i) => { const range = brushes.get(all[i].key); return !range || (y >= range[0] && y <= range[1]); });
  const order = [...runs].sort((a, b) => better(metric)(value(b), value(a))); // the best above all others
  const paths = order.map((run) => {
    const there = places(run).filter(([, y]) => !Number.isNaN(y) && y !== undefined);
    const path = svg("path", { class: "hit", d: `M${there.map(([x, y]) => `${x.toFixed(1)} ${y.toFixed(1)}`).join("L")}`, fill: "none", stroke: colorBy(run), "stroke-width": 1.6, "stroke-opacity": 0.75, "stroke-dasharray": isFinished(run) ? null : "5 3", "data-run": run.index });
    path.addEventListener("mousemove", (event) => { highlight(`run ${run.index}`); say(event, el("b", {}, run.name), ...all.map((axis) => `${axis.label} ${isNumber(axis.of(run)) ? number(axis.of(run)) : shown(axis.of(run))}`)); });
    path.addEventListener("mouseleave", () => { highlight(null); quiet(); });
    path.addEventListener("click", () => openRow(`run ${run.index}`));
    lines.append(path);
    return path;
  });
  const bars = [];
  all.forEach((axis, i) => {
    const x = 50 + i * step;
    drawing.append(svg("path", { d: `M${x} ${top}V${bottom}`, stroke: "var(--line)", "stroke-width": 1.5 }),
      svg("text", { x, y: 18, "text-anchor": i === 0 ? "start" : i === all.length - 1 ? "end" : "middle", "font-size": 12, "font-weight": 600, fill: "var(--ink)", transform: i === 0 ? "translate(-40 0)" : i === all.length - 1 ? "translate(90 0)" : null }, cut(axis === target ? metric : shortKey(axis.key), Math.floor(step / 7)), svg("title", {}, axis.label)));
    if (axis.log) drawing.append(svg("text", { x, y: 33, "text-anchor": "middle", "font-size": 10, fill: "var(--soft)" }, "log"));
    for (const [y, label] of scales[i].ticks) drawing.append(svg("path", { d: `M${x} ${y}h4`, stroke: "var(--line)" }),
      svg("text", { x: x + 7, y: y + 4, "font-size": 11, fill: "var(--ink)", stroke: "var(--card)", "stroke-width": 3, "paint-order": "stroke", "pointer-events": "none" }, cut(label, Math.floor(step / 8))));
    const bar = svg("rect", { x: x - 7, width: 14, y: top, height: 0, fill: "var(--accent)", "fill-opacity": 0.3, "pointer-events": "none" });
    const grip = svg("rect", { x: x - 10, width: 20, y: top - 8, height: bottom - top + 16, fill: "transparent", style: "cursor:ns-resize;touch-action:none" }, svg("title", {}, "drag to choose a range"));
    const at = (event) => Math.max(top - 4, Math.min(bottom + 4, (event.clientY - drawing.getBoundingClientRect().top) * (height / drawing.getBoundingClientRect().height)));
    grip.addEventListener("pointerdown", (event) => {
      const from = at(event);
      grip.setPointerCapture(event.pointerId);
      const move = (moved) => { const to = at(moved); if (Math.abs(to - from) > 3) brushes.set(axis.key, [Math.min(from, to), Math.max(from, to)]); else brushes.delete(axis.key); dim(); };
      grip.addEventListener("pointermove", move);
      grip.addEventListener("pointerup", (up) => { move(up); grip.removeEventListener("pointermove", move); }, { once: true });
    });
    drawing.append(bar, grip);
    bars.push(bar);
  });
  const dim = () => {
    const n = runs.filter(inside).length;
    paths.forEach((path, i) => { const on = inside(order[i]); path.setAttribute("stroke-opacity", on ? 0.75 : 0.06); path.style.pointerEvents = on ? "" : "none"; });
    bars.forEach((bar, i) => { const range = brushes.get(all[i].key); bar.setAttribute("y", range ? range[0] : top); bar.setAttribute("height", range ? range[1] - range[0] : 0); });
    only.hidden = clear.hidden = !brushes.size;
    only.textContent = `show only these ${n}`;
  };
  dim();
  figure.append(el("p", { class: "small soft" }, `A line is a run; bright lines have the better ${metric}${higher.has(metric) ? "" : ", which is at the top of its axis"}. Drag along an axis to choose a range.`));
}
hotListeners.push(() => {
  for (const path of document.querySelectorAll("#sweep path[data-run]")) path.setAttribute("stroke-width", hot !== null && isHot(RUNS[+path.dataset.run]) ? 4 : 1.6);
  for (const point of document.querySelectorAll("#sweep circle[data-run]")) point.setAttribute("stroke-width", hot !== null && isHot(RUNS[+point.dataset.run]) ? 6 : 1);
});

// ---- configs

function configSection() {
  const section = el("section", { id: "config" });
  whenSeen(section, () => {
    const differing = el("div");
    if (DATA.keys.length) differing.append(el("div", { class: "scroll" }, el("table", {}, el("thead", {}, el("tr", {}, el("th", {}, "key"), el("th", {}, "values, and how many runs have each; choose one to show these alone"))),
      el("tbody", {}, DATA.keys.map(({ key }) => el("tr", {}, el("td", {}, el("code", {}, key)), el("td", {}, distinct(RUNS.map((run) => configOf(run, key))).sort(byValue).slice(0, 60).map((value) => {
        const runs = RUNS.filter((run) => JSON.stringify(configOf(run, key)) === JSON.stringify(value));
        return el("button", { class: "value", onclick: () => showOnly(runs) }, value === undefined ? "not set" : shown(value), el("span", { class: "soft" }, ` (${runs.length})`));
      }))))))));
    else differing.append(el("p", { class: "soft" }, RUNS.length > 1 ? "All runs have one config, seeds left out." : "There is one run."));
    let [first, second] = [0, RUNS.findIndex((run) => run.group !== RUNS[0]?.group)];
    if (second < 0) second = Math.min(1, RUNS.length - 1);
    let everything = false;
    const table = el("table"), choices = RUNS.map((run) => [String(run.index), run.name]);
    const draw = () => {
      const [a, b] = [RUNS[first], RUNS[second]];
      const keys = [...new Set([...Object.keys(DATA.config), ...Object.keys(a.config), ...Object.keys(b.config)])].sort();
      const differs = (key) => JSON.stringify(configOf(a, key)) !== JSON.stringify(configOf(b, key));
      const chosen = keys.filter((key) => everything || differs(key));
      table.replaceChildren(el("thead", {}, el("tr", {}, el("th", {}, "key"), el("th", {}, cut(a.name, 40)), el("th", {}, cut(b.name, 40)))),
        el("tbody", {}, chosen.length ? chosen.map((key) => el("tr", {}, el("td", {}, el("code", {}, key)), [a, b].map((run) => el("td", { class: everything && differs(key) ? "changed" : "" }, configOf(run, key) === undefined ? el("span", { class: "soft" }, "not set") : shown(configOf(run, key))))))
          : el("tr", {}, el("td", { colspan: 3, class: "soft" }, "no difference"))));
    };
    section.append(el("div", { class: "card" }, el("h2", {}, "Config"), differing, RUNS.length ? [el("div", { class: "bar", style: "margin:.9rem 0 .4rem" }, el("h3", {}, "Two runs"),
      select(choices, String(first), (value) => { first = +value; draw(); }, "first run"), select(choices, String(second), (value) => { second = +value; draw(); }, "second run"),
      el("label", {}, el("input", { type: "checkbox", onchange: (event) => { everything = event.target.checked; draw(); } }), "all keys")), el("div", { class: "scroll" }, table)] : null));
    if (RUNS.length) draw();
  });
  return section;
}

// ---- samples

function samplesSection() {
  const with_ = RUNS.filter((run) => run.samples.length);
  if (!with_.length) return null;
  const section = el("section", { id: "samples" });
  whenSeen(section, () => {
    const ranked = [...with_].sort((a, b) => better(MAIN)(judged(a), judged(b)));
    const chosen = [...new Set([0, (ranked.length - 1) >> 1, ranked.length - 1])].map((i) => ranked[i]);
    const host = el("div", { class: "samples" });
    let at = 100;
    const most = Math.max(...with_.map((run) => run.samples[run.samples.length - 1][0]));
    const where = el("span", { class: "small soft number" });
    const draw = () => {
      const step = Math.round((at / 100) * most);
      where.textContent = at === 100 ? "the last" : `about step ${number(step)}`;
      host.replaceChildren(...chosen.map((run, place) => {
        const [of, losses, text] = run.samples.reduce((a, b) => (Math.abs(b[0] - step) <= Math.abs(a[0] - step) ? b : a));
        return el("div", { class: "card" }, el("div", { class: "bar" }, dot(colorOf(run)), el("div", { style: "flex:1;min-width:0" }, select(with_.map((one) => [String(one.index), one.name]), String(run.index), (value) => { chosen[place] = RUNS[+value]; draw(); }, "run")),
          chosen.length > 1 ? el("button", { class: "quiet", title: "remove", "aria-label": "remove", onclick: () => { chosen.splice(place, 1); draw(); } }, "\u00d7") : null),
          el("p", { class: "small soft" }, `step ${number(of)}${losses ? `, ${losses}` : ""}`), el("pre", {}, text || " "));
      }));
      add.hidden = chosen.length >= Math.min(6, with_.length);
    };
    const add = el("button", { onclick: () => { chosen.push(ranked.find((run) => !chosen.includes(run))); draw(); } }, "add a run");
    section.append(el("div", { class: "bar controls" }, el("h2", {}, "Samples"), el("span", { class: "spacer" }),
      with_.some((run) => run.samples.length > 1) ? el("label", {}, "step ", el("input", { type: "range", min: 0, max: 100, value: 100, "aria-label": "step of the samples", oninput: (event) => { at = +event.target.value; draw(); } }), where) : null, add), host);
    draw();
  });
  return section;
}

// ---- the page

function start() {
  const app = byId("app"), counts = new Map();
  for (const run of RUNS) counts.set(run.state, (counts.get(run.state) || 0) + 1);
  const sections = [["curves", "Curves", RUNS.some((run) => Object.keys(run.curves).length) ? curvesSection() : null], ["table", "Table", tableSection()], ["sweep", "Hyperparameters", sweepSection()],
    ["config", "Config", configSection()], ["samples", "Samples", samplesSection()]].filter(([, , section]) => section);
  const live = DATA.reloadSeconds ? liveButton(DATA.reloadSeconds) : null;
  app.append(el("header", {}, el("div", { class: "bar" }, el("h1", {}, DATA.title), el("span", { class: "spacer" }), live, themeButton()),
    el("nav", { "aria-label": "parts of the page" }, sections.map(([id, name]) => el("a", { href: `#${id}`, onclick: (event) => { event.preventDefault(); byId(id).scrollIntoView({ behavior: "smooth" }); } }, name)))),
    el("div", { class: "lead" }, el("div", { class: "soft" }, `${[...counts].map(([state, n]) => `${n} ${state}`).join(", ")}${grouped ? `; ${GROUPS.length} groups of equal configs with different seeds` : ""}; written ${DATA.written}`),
      DATA.verdicts.length ? el("ul", { class: "verdicts" }, DATA.verdicts.map((sentence) => el("li", {}, sentence))) : null),
    el("div", { class: "layout" }, runsPanel(), el("div", { style: "min-width:0" }, sections.map(([, , section]) => section))));
  for (const listener of listeners) listener();
  const scroll = +recall("at", 0);
  if (scroll) { remember("at", null); requestAnimationFrame(() => scrollTo(0, scroll)); }
}

// While runs go on, the file is read again, unless somebody is at work on the page.
function liveButton(seconds) {
  let paused = recall("paused") === "1", busy = 0;
  for (const kind of ["pointerdown", "pointermove", "keydown", "wheel"]) addEventListener(kind, () => { busy = Date.now(); }, { passive: true });
  const button = el("button", { class: "quiet small", title: "whether this page reads its file again while runs go on", onclick: () => { paused = !paused; remember("paused", paused); say(); } });
  const say = () => { button.textContent = paused ? "paused" : `live: every ${seconds} s`; };
  setInterval(() => {
    if (paused || document.hidden || Date.now() - busy < 4000) return;
    remember("at", String(Math.round(scrollY)));
    location.reload();
  }, seconds * 1000);
  say();
  return button;
}

start();

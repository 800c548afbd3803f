// Curves.

function bytesOf(text) {
  const binary = atob(text),
    bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
  return bytes.buffer;
}
function unpackSteps(packed) {
  if (typeof packed !== "string") return Float64Array.from({ length: packed[2] }, (_, i) => packed[0] + i * packed[1]);
  const differences = new { u1: Uint8Array, u2: Uint16Array, u4: Uint32Array }[packed.slice(0, 2)](
    bytesOf(packed.slice(3)),
  );
  const steps = new Float64Array(differences.length);
  let step = 0;
  for (let i = 0; i < steps.length; i++) steps[i] = step += differences[i];
  return steps;
}
const unpackValues = (packed) =>
  Float64Array.from(new { f4: Float32Array, f8: Float64Array }[packed.slice(0, 2)](bytesOf(packed.slice(3))));

// The points of a run's curve, and what is smoothed and averaged in their place where points were left out.
function curveOf(run, metric) {
  const packed = run.curves[metric];
  if (!packed) return null;
  if (!packed.read) {
    const points = { steps: unpackSteps(packed.s), values: unpackValues(packed.v) };
    packed.read = {
      points,
      means: packed.ms === undefined ? points : { steps: unpackSteps(packed.ms), values: unpackValues(packed.mv) },
      measured: packed.n || points.steps.length,
    };
  }
  return packed.read;
}

function between(steps, values, at) {
  if (at <= steps[0]) return values[0];
  let low = 0,
    high = steps.length - 1;
  if (at >= steps[high]) return values[high];
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (steps[middle] <= at) low = middle;
    else high = middle;
  }
  return values[low] + ((at - steps[low]) / (steps[high] - steps[low])) * (values[high] - values[low]);
}
const AXES = {
  tokens: {
    label: "tokens",
    kind: "count",
    has: (run) => run.clock,
    of: (run, step) => Math.round(between(...run.clock.tokens, step)),
  },
  steps: { label: "steps", kind: "count", has: (run) => run.clock, of: (run, step) => step },
  flops: {
    label: "training FLOPs",
    kind: "flops",
    has: (run) => run.clock && run.flopsPerToken,
    of: (run, step) => between(...run.clock.tokens, step) * run.flopsPerToken,
  },
  time: {
    label: "training time",
    kind: "seconds",
    has: (run) => run.clock?.seconds,
    of: (run, step) => between(...run.clock.seconds, step),
  },
};
if (!(choice.x in AXES) || !RUNS.some(AXES[choice.x].has)) choice.x = "tokens";

// At each step a line is fitted, with weights that fall exponentially to both sides: without the lag of an exponential
// mean, and without its bias at both ends of a curve that falls. The sums are carried from point to point. On a
// logarithmic axis the weights fall with the ratio of steps, since those by steps would flatten the beginning.
function smoothed(ofSteps, values, share) {
  const steps = choice.logX ? ofSteps.map((step) => Math.log(Math.max(step, 0.5))) : ofSteps;
  const n = steps.length;
  const time = share * (steps[n - 1] - steps[0]);
  if (!(time > 0) || n < 3) return values;
  const at = steps.map((step) => (step - steps[0]) / time);
  // A point stands for the steps around it: thinned curves have more points where they begin.
  const width = at.map((place, i) => (at[Math.min(i + 1, n - 1)] - at[Math.max(i - 1, 0)]) / 2);
  // Weights, weights times distance and its square, weights times value, and that times distance.
  const sums = Array.from({ length: 5 }, () => new Float64Array(n));
  for (const direction of [1, -1]) {
    let [w, wd, wdd, wy, wdy] = [0, 0, 0, 0, 0];
    for (let k = 0; k < n; k++) {
      const i = direction > 0 ? k : n - 1 - k;
      if (k > 0) {
        const gap = at[i - direction] - at[i]; // where the point before lies, from here
        const decay = Math.exp(-Math.abs(gap));
        [wdd, wd, wdy] = [wdd + gap * (2 * wd + gap * w), wd + gap * w, wdy + gap * wy].map((sum) => sum * decay);
        w *= decay;
        wy *= decay;
      }
      // The point itself is counted once.
      const there = !Number.isNaN(values[i]);
      if (there && direction > 0) {
        w += width[i];
        wy += width[i] * values[i];
      }
      [w, wd, wdd, wy, wdy].forEach((sum, s) => (sums[s][i] += sum));
      if (there && direction < 0) {
        w += width[i];
        wy += width[i] * values[i];
      }
    }
  }
  return Float64Array.from(values, (value, i) => {
    const [w, wd, wdd, wy, wdy] = sums.map((sum) => sum[i]);
    const spread = w * wdd - wd * wd;
    if (Number.isNaN(value)) return NaN;
    return spread > 1e-9 * w * w ? (wdd * wy - wd * wdy) / spread : wy / w;
  });
}
const smoothing = () => (choice.smooth / 100) ** 2 * 0.25; // of the run's length
const DENSE = 60; // points; a curve with fewer is no noise that should be smoothed

function linesOfRuns(metric) {
  const axis = AXES[choice.x],
    there = RUNS.filter((run) => isShown(run) && run.curves[metric] && axis.has(run)),
    lines = [];
  const many = there.length > 40;
  for (const run of there) {
    const { points, means, measured } = curveOf(run, metric),
      smooth = smoothing() > 0 && measured > DENSE && points.steps.length > DENSE / 2;
    const color = colorOf(run),
      dash = isFinished(run) ? null : run.state === "running" ? null : [5, 3];
    const steps = smooth ? means.steps : points.steps,
      values = smooth ? smoothed(means.steps, means.values, smoothing()) : points.values;
    if (smooth && there.length <= 12)
      lines.unshift({
        id: `run ${run.index}`,
        name: run.name,
        color,
        xs: points.steps.map((step) => axis.of(run, step)),
        ys: points.values,
        width: 1,
        alpha: 0.22,
        faint: true,
      });
    const detail = smooth ? (i) => `measured ${number(points.values[nearestIndex(points.steps, steps[i])])}` : null;
    lines.push({
      id: `run ${run.index}`,
      name: run.name,
      color,
      dash,
      steps,
      xs: steps.map((step) => axis.of(run, step)),
      ys: values,
      width: many ? 1 : 1.6,
      alpha: many ? 0.75 : 1,
      marks: measured <= DENSE && !many,
      detail,
    });
  }
  return lines;
}

// The mean over the runs of a group at each step, and their deviation.
function meanOf(runs, metric, axis) {
  const there = runs
    .map((run) => ({ run, curve: curveOf(run, metric) }))
    .filter(({ run, curve }) => curve && axis.has(run));
  if (!there.length) return null;
  const found = there.map(({ run, curve }) => ({ run, ...curve.means, dense: curve.measured > DENSE }));
  const longest = found.reduce((a, b) =>
    b.steps[b.steps.length - 1] > a.steps[a.steps.length - 1] ||
    (b.steps.length > a.steps.length && b.steps[b.steps.length - 1] === a.steps[a.steps.length - 1])
      ? b
      : a,
  );
  const equal = found.every(
    ({ steps }) => steps.length === longest.steps.length && steps.every((step, i) => step === longest.steps[i]),
  );
  const dense = found.every((one) => one.dense);
  const of = found.map(({ steps, values }) =>
    smoothing() > 0 && dense ? smoothed(steps, values, smoothing()) : values,
  );
  const result = { steps: longest.steps, xs: [], mean: [], sd: [], low: [], high: [], n: [], dense };
  longest.steps.forEach((step, i) => {
    const values = [],
      xs = [];
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
  const n = values.length,
    mean = values.reduce((a, b) => a + b, 0) / n;
  return { n, mean, sd: n > 1 ? Math.sqrt(values.reduce((sum, value) => sum + (value - mean) ** 2, 0) / (n - 1)) : 0 };
}
function linesOfGroups(metric) {
  const axis = AXES[choice.x],
    lines = [];
  for (const group of GROUPS) {
    const runs = group.runs.filter(isShown);
    if (!runs.length) continue;
    const result = meanOf(runs, metric, axis);
    if (!result) continue;
    const detail = (i) => (result.n[i] > 1 ? `\u00b1 ${number(result.sd[i], 2)} (${result.n[i]})` : "(1)");
    lines.push({
      id: `group ${group.index}`,
      name: group.short,
      color: colorOf(runs[0]),
      steps: result.steps,
      xs: result.xs,
      ys: result.mean,
      width: 1.8,
      detail,
      marks: !result.dense,
      band: runs.length > 1 && choice.band !== "none" ? { xs: result.xs, low: result.low, high: result.high } : null,
    });
  }
  return lines;
}

const CHARTS = new Map(); // by metric
let sharedZoom = null;
function drawCurves(host) {
  for (const [metric, chart] of CHARTS)
    if (!choice.metrics.includes(metric)) {
      chart.figure.remove();
      CHARTS.delete(metric);
    }
  for (const metric of choice.metrics) {
    if (!CHARTS.has(metric)) {
      const chart = new LineChart(host, {
        name: metric.replace("/", "-"),
        onHover: highlight,
        onPick: (id) => openRow(id),
        onZoom: (range) => {
          sharedZoom = range;
          for (const other of CHARTS.values())
            if (other !== chart) {
              other.zoomX = range;
              if (!range) other.zoomY = null;
              setTimeout(() => other.build());
            }
        },
      });
      chart.zoomX = sharedZoom;
      CHARTS.set(metric, chart);
    }
    const chart = CHARTS.get(metric),
      axis = AXES[choice.x];
    host.append(chart.figure); // in the order in which they were chosen
    chart.show(choice.lines === "groups" ? linesOfGroups(metric) : linesOfRuns(metric), {
      title: metric,
      xLabel: axis.label,
      xKind: axis.kind,
      logX: choice.logX,
      logY: choice.logY,
      robust: choice.robust,
      xText: (x, line) =>
        `${choice.x === "time" ? duration(x) : choice.x === "flops" ? short(x) : number(Math.round(x))}${choice.x === "steps" || !line.steps ? "" : `, step ${number(line.steps[nearestIndex(line.xs, x)])}`}`,
    });
  }
}
function curvesSection() {
  const host = el("div", { class: "grid" }),
    color = el("span", { class: "small soft" }),
    chips = el("div", { class: "chips" });
  const axes = Object.entries(AXES)
    .filter(([, axis]) => RUNS.some(axis.has))
    .map(([key, axis]) => [key, axis.label]);
  const set = (key, value, redraw = true) => {
    choice[key] = value;
    remember({ logX: "logx", logY: "logy" }[key] || key, value);
    if (redraw) changed();
  };
  const toggle = (key, text, title) =>
    el(
      "button",
      {
        "aria-pressed": choice[key],
        title,
        id: `switch-${key}`,
        onclick: (event) => {
          set(key, !choice[key]);
          event.target.setAttribute("aria-pressed", choice[key]);
        },
      },
      text,
    );
  const unzoom = () => {
    sharedZoom = null;
    for (const chart of CHARTS.values()) chart.zoomX = chart.zoomY = null;
  };
  const missing = el("p", { class: "small soft" });
  const section = el(
    "section",
    { id: "curves" },
    el(
      "div",
      { class: "card controls" },
      el(
        "div",
        { class: "bar" },
        el(
          "label",
          {},
          "x ",
          select(
            axes,
            choice.x,
            (value) => {
              unzoom();
              set("x", value);
            },
            "x axis",
          ),
        ),
        toggle("logX", "log x"),
        toggle("logY", "log y"),
        toggle("robust", "clip top", "the y axis leaves out the highest 5% of the points"),
        el(
          "label",
          {},
          "smooth ",
          el("input", {
            type: "range",
            min: 0,
            max: 100,
            value: choice.smooth,
            "aria-label": "smoothing",
            title: "curves with more than 60 points",
            oninput: (event) => set("smooth", +event.target.value),
          }),
        ),
        el(
          "label",
          {},
          "lines ",
          select(
            [
              ["runs", "each run"],
              ["groups", "mean over seeds"],
            ],
            choice.lines,
            (value) => {
              set("lines", value);
              bandBox.hidden = value !== "groups";
            },
            "lines",
          ),
        ),
        (() => bandBox)(),
        el(
          "label",
          {},
          "color ",
          select(
            [["group", "group"], ["run", "run"], ...DATA.keys.map(({ key }) => [key, key])],
            choice.color,
            (value) => {
              set("color", value);
            },
            "color",
          ),
        ),
        color,
      ),
      chips,
    ),
    missing,
    host,
  );
  const draw = () => {
    makeColoring();
    color.replaceChildren(
      ...(coloring.scale
        ? [
            `${shown(coloring.scale.low)} `,
            el("span", {
              class: "gradient",
              style: `background:linear-gradient(90deg, ${[0, 0.25, 0.5, 0.75, 1].map(sequential).join(",")})`,
            }),
            ` ${shown(coloring.scale.high)}`,
          ]
        : []),
    );
    chips.replaceChildren(
      ...(DATA.metrics.length > 2
        ? DATA.metrics.map((metric) =>
            el(
              "button",
              {
                "aria-pressed": choice.metrics.includes(metric),
                onclick: () => {
                  set(
                    "metrics",
                    choice.metrics.includes(metric)
                      ? choice.metrics.filter((one) => one !== metric)
                      : [...choice.metrics, metric],
                    false,
                  );
                  remember("metrics", choice.metrics.join(" "));
                  changed();
                },
              },
              metric,
            ),
          )
        : []),
    );
    const without = RUNS.filter((run) => isShown(run) && !AXES[choice.x].has(run));
    missing.hidden = !without.length;
    missing.textContent = `${without.length} of the chosen runs ${without.length === 1 ? "has" : "have"} no ${AXES[choice.x].label}: ${without
      .slice(0, 3)
      .map((run) => run.name)
      .join(", ")}${without.length > 3 ? ", ..." : ""}`;
    drawCurves(host);
  };
  listeners.push(draw);
  hotListeners.push((id) => {
    for (const chart of CHARTS.values()) chart.highlight(chart.lines.some((line) => line.id === id) ? id : groupOf(id));
  });
  themed.push(changed);
  return section;
}
const bandBox = el(
  "label",
  { hidden: choice.lines !== "groups" },
  "band ",
  select(
    [
      ["sd", "\u00b1 1 sd"],
      ["range", "lowest to highest"],
      ["none", "none"],
    ],
    choice.band,
    (value) => {
      choice.band = value;
      remember("band", value);
      changed();
    },
    "band",
  ),
);
// Where a chart has no line of a run, that of its group.
const groupOf = (id) => (id?.startsWith("run ") ? `group ${RUNS[+id.slice(4)].group}` : id);

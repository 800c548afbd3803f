// Forecasts beside what came out.

const percentOf = (share) => (Math.abs(share) >= 0.1 ? Math.round(100 * share) : +(100 * share).toPrecision(2));
const offBy = (error) =>
  isNumber(error) ? `${error >= 0 ? "+" : "\u2212"}${percentOf(Math.abs(error)).toLocaleString("en-US")}%` : "";
const medianOf = (values) => {
  const sorted = [...values].sort((a, b) => a - b);
  return (sorted[(sorted.length - 1) >> 1] + sorted[sorted.length >> 1]) / 2;
};

function forecastsSection() {
  const all = RUNS.filter((run) => run.forecast);
  if (!all.length) return null;
  const section = el("section", { id: "forecasts" }),
    host = el("div");
  section.append(el("div", { class: "bar controls" }, el("h2", {}, "Forecasts")), host);
  const draw = () => {
    const runs = all.filter(isShown),
      errors = (name) => runs.map((run) => run.forecast.errors[name]).filter(isNumber);
    const judged = runs.filter((run) => typeof run.forecast.errors.held === "boolean"),
      held = judged.filter((run) => run.forecast.errors.held).length;
    const said = [];
    if (judged.length)
      said.push(
        `final loss at a fifth of the run: ${offBy(medianOf(errors("loss").map(Math.abs))).slice(1)} off at the median; ` +
          `the 80% interval held ${held} of ${judged.length}`,
      );
    for (const [name, text] of [
      ["seconds_before", "time before the first step"],
      ["seconds", "time at a fifth of the run"],
      ["memory", "memory"],
    ])
      if (errors(name).length)
        said.push(`${text}: ${offBy(medianOf(errors(name).map(Math.abs))).slice(1)} off at the median`);
    const grid = el("div", { class: "grid" });
    host.replaceChildren(
      said.length
        ? el(
            "ul",
            { class: "verdicts" },
            said.map((line) => el("li", {}, line)),
          )
        : "",
      grid,
    );
    const metrics = distinct(judged.map((run) => run.forecast.outcome.metric));
    for (const metric of metrics)
      forecastFigure(
        grid,
        metric,
        judged.filter((run) => run.forecast.outcome.metric === metric),
      );
    errorsOnTheWay(grid, runs);
    host.append(
      el("div", { class: "card", style: "margin-top:.8rem" }, el("div", { class: "scroll tall" }, forecastTable(runs))),
    );
  };
  let built = false;
  whenSeen(section, () => {
    built = true;
    draw();
  });
  listeners.push(() => built && draw());
  return section;
}

// How far each run's forecasts of its final loss were off, from the first one to the last.
let errorChart = null;
function errorsOnTheWay(host, runs) {
  const lines = [];
  for (const run of runs) {
    const { before, outcome } = run.forecast;
    const there = run.forecast.loss.filter((one) => outcome && one.metric === outcome.metric && isNumber(one.loss));
    if (!there.length || !isNumber(outcome.loss)) continue;
    const percent = (value) => 100 * (value / outcome.loss - 1);
    lines.push({
      id: `run ${run.index}`,
      name: run.name,
      color: colorOf(run),
      xs: there.map((one) => (100 * one.step) / before.steps),
      ys: there.map((one) => percent(one.loss)),
      marks: true,
      detail: (i) => `% (${number(percent(there[i].low), 2)} to ${number(percent(there[i].high), 2)})`,
    });
  }
  if (!lines.length) return;
  errorChart?.figure.remove();
  errorChart = new LineChart(host, { name: "forecast-errors", onHover: highlight, onPick: openRow });
  errorChart.show(lines, { title: "error of the loss forecast, in %", xLabel: "% of the run", height: 300 });
}
hotListeners.push((id) => errorChart?.highlight(id));

function forecastTable(runs) {
  const last = (run) => run.forecast.loss[run.forecast.loss.length - 1];
  const cell = (content, title) => el("td", { class: "number", title }, content);
  return el(
    "table",
    { class: "sticky" },
    el(
      "thead",
      {},
      el(
        "tr",
        {},
        el("th", {}, "run"),
        [
          "loss forecast",
          "80% interval",
          "outcome",
          "off by",
          "time forecast",
          "took",
          "off by",
          "memory planned",
          "measured",
          "off by",
        ].map((label) => el("th", { class: "number" }, label)),
      ),
    ),
    el(
      "tbody",
      {},
      runs.map((run) => {
        const { before, outcome, errors, fifth } = run.forecast,
          one = fifth || last(run);
        const seconds = fifth?.seconds ?? before.seconds;
        return el(
          "tr",
          {},
          el("td", {}, dot(colorOf(run)), ` ${run.name}`),
          cell(one ? number(one.loss) : "", one ? `${one.metric} at step ${one.step}` : null),
          cell(one ? `${number(one.low)} to ${number(one.high)}` : ""),
          cell(outcome ? number(outcome.loss) : run.state),
          cell([offBy(errors.loss), errors.held === false ? el("span", { class: "state failed" }, "outside") : ""]),
          cell(duration(seconds), fifth?.seconds ? `at step ${fifth.step}` : "before the first step"),
          cell(outcome ? duration(outcome.seconds) : ""),
          cell(offBy(errors.seconds ?? errors.seconds_before)),
          cell(bytes(before.memory_bytes)),
          cell(outcome ? bytes(outcome.memory_bytes) : ""),
          cell(offBy(errors.memory)),
        );
      }),
    ),
  );
}

function forecastFigure(host, metric, runs) {
  const [width, height, left, right, top, bottom] = [420, 300, 58, 406, 12, 250];
  const values = runs.flatMap(({ forecast: { fifth, outcome } }) => [fifth.loss, outcome.loss]);
  const [least, most] = [Math.min(...values), Math.max(...values)],
    room = (most - least) * 0.08 || 0.1;
  const low = least - room,
    high = most + room;
  const x = (value) => left + ((value - low) / (high - low)) * (right - left);
  const y = (value) => bottom - ((Math.min(Math.max(value, low), high) - low) / (high - low)) * (bottom - top);
  const ticks = ticksOf(low, high, 5, false),
    labels = tickLabels(ticks);
  const small = { "font-size": 11, fill: "var(--soft)" };
  const drawing = svg(
    "svg",
    { viewBox: `0 0 ${width} ${height}`, width: "100%" },
    ticks.map((tick, i) => [
      svg("path", { d: `M${left} ${y(tick)}H${right}M${x(tick)} ${top}V${bottom}`, stroke: "var(--grid)" }),
      svg("text", { x: left - 6, y: y(tick) + 4, "text-anchor": "end", ...small }, labels[i]),
      svg("text", { x: x(tick), y: bottom + 16, "text-anchor": "middle", ...small }, labels[i]),
    ]),
    svg("path", { d: `M${left} ${bottom}L${right} ${top}`, stroke: "var(--soft)", "stroke-dasharray": "4 3" }),
    svg("path", { d: `M${left} ${top}V${bottom}H${right}`, fill: "none", stroke: "var(--line)" }),
    svg("text", { x: (left + right) / 2, y: height - 10, "text-anchor": "middle", ...small }, `${metric} at the end`),
    svg("text", { x: 14, y: 130, "text-anchor": "middle", transform: "rotate(-90 14 130)", ...small }, "forecast"),
  );
  const { figure, say, quiet } = figureWith(host, `${metric}: forecast and outcome`, `forecast-${metric}`, drawing);
  figure.append(
    el(
      "p",
      { class: "small soft" },
      "Forecasts at a fifth of each run, with their 80% intervals; on the line they were right.",
    ),
  );
  for (const run of runs) {
    const { fifth, outcome } = run.forecast,
      at = x(outcome.loss);
    const mark = svg(
      "g",
      { class: "hit" },
      svg("path", {
        d: `M${at} ${y(fifth.low)}V${y(fifth.high)}`,
        stroke: colorOf(run),
        "stroke-width": 2,
        "stroke-opacity": 0.5,
      }),
      svg("circle", { cx: at, cy: y(fifth.loss), r: 4, fill: colorOf(run) }),
    );
    mark.addEventListener("mousemove", (event) => {
      highlight(`run ${run.index}`);
      say(
        event,
        el("b", {}, run.name),
        `forecast at step ${number(fifth.step)}: ${number(fifth.loss)} (${number(fifth.low)} to ${number(fifth.high)})`,
        `outcome ${number(outcome.loss)}, ${offBy(run.forecast.errors.loss)}`,
      );
    });
    mark.addEventListener("mouseleave", () => {
      highlight(null);
      quiet();
    });
    drawing.append(mark);
  }
}

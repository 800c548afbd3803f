// Hyperparameters.

const MAX_AXES = 10; // that are drawn at once

function sweepSection() {
  const metrics = Object.keys(DATA.importance).filter((name) =>
    RUNS.some((run) => isNumber(asNumber(run.best[name] ?? run.last[name]))),
  );
  if (!DATA.keys.length || RUNS.length < 2 || !metrics.length) return null;
  let metric = recall("target", "");
  if (!metrics.includes(metric)) metric = metrics.includes(MAIN) ? MAIN : metrics[0];
  const value = (run) => asNumber(run.best[metric] ?? run.last[metric]);
  const extra = [
    ["parameters", "parameters", (run) => run.parameters],
    ["flops", "training FLOPs", (run) => run.flops],
  ]
    .map(([key, label, of]) => {
      const values = RUNS.map(of).filter(isNumber);
      return {
        key,
        label,
        of,
        numeric: true,
        log: values.length && Math.min(...values) > 0 && Math.max(...values) / Math.min(...values) >= 10,
        varies: distinct(values).length > 1,
      };
    })
    .filter((axis) => axis.varies);
  const axisOf = (key) => {
    const fact = DATA.keys.find((one) => one.key === key);
    return { ...fact, label: key, of: (run) => configOf(run, key) };
  };
  const telling = TELLING.map(({ key }) => axisOf(key));
  const rest = TELLING.flatMap(({ others }) => others.map(axisOf));
  const host = el("div"),
    brushes = new Map();
  let every = false;
  let ticking = 0;
  const section = el(
    "section",
    { id: "sweep" },
    el(
      "div",
      { class: "bar controls" },
      el("h2", {}, "Hyperparameters"),
      el("span", { class: "spacer" }),
      el(
        "label",
        {},
        "best ",
        select(
          metrics.map((name) => [name, name]),
          metric,
          (chosen) => {
            metric = chosen;
            remember("target", chosen);
            draw();
          },
          "metric",
        ),
      ),
    ),
    host,
  );
  const draw = () => {
    const runs = RUNS.filter((run) => isShown(run) && isNumber(value(run)));
    if (!runs.length) {
      host.replaceChildren(el("p", { class: "soft" }, `none of the chosen runs has ${metric}`));
      return;
    }
    const grid = el("div", { class: "grid" }),
      wide = el("div", { style: "margin-bottom:.8rem" });
    host.replaceChildren(wide, grid);
    parallel(wide, telling.slice(0, MAX_AXES), runs, metric, value, brushes);
    importanceFigure(grid, metric);
    const all = [...telling, ...extra, ...rest],
      first = every ? all : [...telling.slice(0, MAX_AXES), ...extra];
    for (const axis of first) scatter(grid, axis, runs, metric, value);
    const together = TELLING.filter(({ others }) => others.length);
    for (const { key, others } of together)
      wide.append(el("p", { class: "small soft" }, `${others.join(", ")}: these change together with ${key}`));
    if (first.length < all.length) {
      const show = () => {
        every = true;
        draw();
      };
      grid.append(
        el(
          "div",
          { class: "figure card" },
          el("button", { onclick: show }, `${all.length - first.length} more hyperparameters`),
        ),
      );
    }
  };
  let built = false;
  whenSeen(section, () => {
    built = true;
    draw();
  });
  listeners.push(() => {
    if (built) {
      const now = ++ticking;
      setTimeout(() => {
        if (now === ticking) draw();
      }, 60);
    }
  });
  return section;
}

// The place of a run on an axis: numbers by their size, everything else by its values in order.
function axisScale(axis, runs, low, high) {
  const values = distinct(runs.map(axis.of)).sort(byValue);
  const numbers = values.filter(isNumber);
  if (
    axis.numeric &&
    numbers.length === values.filter((one) => one !== undefined && one !== null).length &&
    numbers.length > 1
  ) {
    const [from, to] = [Math.min(...numbers), Math.max(...numbers)],
      of = (one) => (axis.log ? Math.log(one) : one);
    const at = (one) => low + ((of(one) - of(from)) / (of(to) - of(from))) * (high - low);
    const few = numbers.length <= 6;
    const ticks = few ? numbers : ticksOf(from, to, 5, axis.log);
    const labels = few
      ? numbers.map((one) => (Math.abs(one) >= 1e4 ? short(one) : shown(one)))
      : tickLabels(ticks, axis.key === "flops" ? "flops" : undefined);
    // The labels that have room: the ends first.
    const room = Math.abs(high - low) > 0 ? 34 : 0,
      taken = [],
      kept = [];
    for (const i of [0, ticks.length - 1, ...ticks.keys()])
      if (
        !kept.includes(i) &&
        taken.every((place) => Math.abs(place - at(ticks[i])) >= Math.min(room, axis.upright ? 13 : 34))
      ) {
        taken.push(at(ticks[i]));
        kept.push(i);
      }
    kept.sort((a, b) => a - b);
    return { at: (one) => (isNumber(one) ? at(one) : NaN), ticks: kept.map((i) => [at(ticks[i]), labels[i]]) };
  }
  const places = new Map(
    values.map((one, i) => [JSON.stringify(one) ?? "", low + ((i + 0.5) / values.length) * (high - low)]),
  );
  const every = Math.ceil(values.length / 12);
  return {
    at: (one) => places.get(JSON.stringify(one) ?? ""),
    ticks: values
      .map((one, i) => [places.get(JSON.stringify(one) ?? ""), shown(one) || "-"])
      .filter((_, i) => i % every === 0),
  };
}

function figureWith(host, title, name, drawing, controls = []) {
  const tip = el("div", { class: "tip", hidden: true }),
    plot = el("div", { class: "plot" }, drawing);
  const figure = el(
    "div",
    { class: "figure card" },
    el(
      "header",
      {},
      el("h3", {}, title),
      controls,
      saveButtons(name, () => plot.querySelector("svg")),
    ),
    plot,
    tip,
  );
  host.append(figure);
  const say = (event, ...lines) => {
    tip.replaceChildren(...lines.map((line) => el("div", {}, line)));
    tip.hidden = false;
    const box = figure.getBoundingClientRect(),
      x = event.clientX - box.left,
      y = event.clientY - box.top;
    tip.style.left = `${Math.max(4, Math.min(box.width - tip.offsetWidth - 4, x + 14))}px`;
    tip.style.top = `${y + 16}px`;
  };
  return {
    figure,
    plot,
    say,
    quiet: () => {
      tip.hidden = true;
    },
  };
}
const cut = (text, length) => (text.length > length ? `${text.slice(0, length - 1)}\u2026` : text);

function scatter(host, axis, runs, metric, value) {
  const there = runs.filter((run) => axis.of(run) !== undefined && axis.of(run) !== null);
  if (distinct(there.map(axis.of)).length < 2) return;
  const [width, height, left, right, top, bottom] = [420, 270, 58, 410, 12, 226];
  const x = axisScale(axis, there, left + 12, right - 12);
  const [low, high] = [Math.min(...there.map(value)), Math.max(...there.map(value))];
  const room = (high - low) * 0.06 || Math.abs(high) * 0.05 || 1,
    y = (one) => bottom - ((one - low + room) / (high - low + 2 * room)) * (bottom - top);
  const ticks = ticksOf(low - room, high + room, 5, false),
    labels = tickLabels(ticks);
  const drawing = svg(
    "svg",
    { viewBox: `0 0 ${width} ${height}`, width: "100%" },
    ticks.map((tick, i) => [
      svg("path", { d: `M${left} ${y(tick)}H${right}`, stroke: "var(--grid)" }),
      svg(
        "text",
        { x: left - 6, y: y(tick) + 4, "text-anchor": "end", "font-size": 11, fill: "var(--soft)" },
        labels[i],
      ),
    ]),
    x.ticks.map(([place, label]) => [
      svg("path", { d: `M${place} ${bottom}v4`, stroke: "var(--line)" }),
      svg(
        "text",
        { x: place, y: bottom + 16, "text-anchor": "middle", "font-size": 11, fill: "var(--soft)" },
        cut(label, Math.max(5, Math.floor(60 / x.ticks.length))),
      ),
    ]),
    svg("path", { d: `M${left} ${top}V${bottom}H${right}`, fill: "none", stroke: "var(--line)" }),
    svg(
      "text",
      { x: (left + right) / 2, y: height - 8, "text-anchor": "middle", "font-size": 12, fill: "var(--soft)" },
      `${axis.label}${axis.log ? " (log)" : ""}`,
    ),
  );
  // The mean at each value, where several runs share it.
  const levels = distinct(there.map(axis.of))
    .sort(byValue)
    .map((level) => [
      level,
      there.filter((run) => isFinished(run) && JSON.stringify(axis.of(run)) === JSON.stringify(level)).map(value),
    ])
    .filter(([, values]) => values.length);
  if (levels.length < there.length && levels.some(([, values]) => values.length > 1)) {
    const means = levels.map(([level, values]) => [x.at(level), y(statistics(values).mean)]);
    if (axis.numeric)
      drawing.append(
        svg("path", {
          d: `M${means.map((place) => place.map((one) => one.toFixed(1)).join(" ")).join("L")}`,
          fill: "none",
          stroke: "var(--soft)",
          "stroke-width": 1.2,
          "stroke-dasharray": "4 3",
        }),
      );
    for (const [px, py] of means)
      drawing.append(svg("path", { d: `M${px - 9} ${py}h18`, stroke: "var(--ink)", "stroke-width": 2 }));
  }
  const { figure, say, quiet } = figureWith(host, `${metric} by ${axis.label}`, `${metric}-by-${axis.label}`, drawing);
  const notes = [
    levels.some(([, values]) => values.length > 1) ? "bars: means of equal values" : "",
    there.every(isFinished) ? "" : "hollow: not finished",
  ].filter(Boolean);
  if (notes.length) figure.append(el("p", { class: "small soft" }, notes.join("; ")));
  const count = new Map();
  for (const run of there) {
    // Points of a category lie beside each other, in a fixed order.
    const key = JSON.stringify(axis.of(run)),
      nth = count.get(key) || 0;
    count.set(key, nth + 1);
    const aside = axis.numeric ? 0 : ((nth % 7) - 3) * 2.2;
    const point = svg("circle", {
      class: "hit",
      cx: x.at(axis.of(run)) + aside,
      cy: y(value(run)),
      r: there.length > 80 ? 3 : 4,
      fill: isFinished(run) ? colorOf(run) : "var(--card)",
      stroke: colorOf(run),
      "fill-opacity": 0.8,
      "data-run": run.index,
    });
    point.addEventListener("mousemove", (event) => {
      highlight(`run ${run.index}`);
      say(
        event,
        el("b", {}, run.name),
        `${metric} ${number(value(run), 6)}${isFinished(run) ? "" : ` (${run.state})`}`,
        `${axis.label} ${isNumber(axis.of(run)) ? number(axis.of(run)) : shown(axis.of(run))}`,
      );
    });
    point.addEventListener("mouseleave", () => {
      highlight(null);
      quiet();
    });
    point.addEventListener("click", () => openRow(`run ${run.index}`));
    drawing.append(point);
  }
}

function importanceFigure(host, metric) {
  const { values, reason } = DATA.importance[metric],
    entries = Object.entries(values).slice(0, 14);
  if (!entries.length) {
    host.append(
      el(
        "div",
        { class: "figure card" },
        el("h3", {}, "Importance"),
        el("p", { class: "soft" }, `Importance ${reason}.`),
      ),
    );
    return;
  }
  const height = 20 + entries.length * 24,
    drawing = svg("svg", { viewBox: `0 0 420 ${height}`, width: "100%" });
  entries.forEach(([key, share], i) =>
    drawing.append(
      svg("text", { x: 176, y: 26 + 24 * i, "text-anchor": "end", "font-size": 12, fill: "var(--ink)" }, cut(key, 28)),
      svg("rect", {
        x: 184,
        y: 14 + 24 * i,
        width: Math.max(1, 180 * share),
        height: 16,
        rx: 3,
        fill: "var(--accent)",
      }),
      svg(
        "text",
        { x: 190 + 180 * share, y: 26 + 24 * i, "font-size": 11, fill: "var(--soft)" },
        `${Math.round(100 * share)}%`,
      ),
    ),
  );
  const { figure } = figureWith(host, `importance for ${metric}`, `importance-${metric}`, drawing);
  figure.append(
    el(
      "p",
      { class: "small soft" },
      "Share of each hyperparameter in what sets the best tenth of the finished runs apart (PED-ANOVA).",
    ),
  );
}

function parallel(host, axes, runs, metric, value, brushes) {
  const target = { key: "target", label: metric, numeric: true, log: false, of: value },
    all = [...axes, target];
  const step = Math.max(84, ((host.clientWidth || 800) - 190) / Math.max(1, all.length - 1)),
    width = Math.round(step * (all.length - 1) + 150),
    [top, bottom, height] = [48, 268, 286];
  const sorted = runs.map(value).sort((a, b) => a - b),
    rank = scaleOf({ log: false }, [sorted[0], sorted[Math.min(sorted.length - 1, Math.floor(0.9 * sorted.length))]]);
  const colorBy = (run) => {
    const at = Math.max(0, Math.min(1, rank.at(value(run))));
    return sequential(higher.has(metric) ? at : 1 - at);
  };
  const scales = all.map((axis) =>
    axisScale(
      { ...axis, upright: true },
      runs,
      axis === target && !higher.has(metric) ? top : bottom,
      axis === target && !higher.has(metric) ? bottom : top,
    ),
  );
  const places = (run) =>
    all.map((axis, i) => [50 + i * step, scales[i].at(axis.of(run) ?? null) ?? scales[i].at(axis.of(run))]);
  const drawing = svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height }),
    lines = svg("g");
  drawing.append(lines);
  const only = el("button", {
    class: "quiet small",
    hidden: true,
    onclick: () => {
      const chosen = runs.filter(inside);
      brushes.clear();
      showOnly(chosen);
    },
  });
  const clear = el(
    "button",
    {
      class: "quiet small",
      hidden: true,
      onclick: () => {
        brushes.clear();
        dim();
      },
    },
    "clear ranges",
  );
  const { figure, say, quiet } = figureWith(host, "parallel coordinates", `parallel-${metric}`, drawing, [only, clear]);
  figure.querySelector(".plot").classList.add("parallel");
  const inside = (run) =>
    places(run).every(([, y], i) => {
      const range = brushes.get(all[i].key);
      return !range || (y >= range[0] && y <= range[1]);
    });
  const order = [...runs].sort((a, b) => better(metric)(value(b), value(a))); // the best above all others
  const paths = order.map((run) => {
    const there = places(run).filter(([, y]) => !Number.isNaN(y) && y !== undefined);
    const path = svg("path", {
      class: "hit",
      d: `M${there.map(([x, y]) => `${x.toFixed(1)} ${y.toFixed(1)}`).join("L")}`,
      fill: "none",
      stroke: colorBy(run),
      "stroke-width": 1.6,
      "stroke-opacity": 0.75,
      "stroke-dasharray": isFinished(run) ? null : "5 3",
      "data-run": run.index,
    });
    path.addEventListener("mousemove", (event) => {
      highlight(`run ${run.index}`);
      say(
        event,
        el("b", {}, run.name),
        ...all.map((axis) => `${axis.label} ${isNumber(axis.of(run)) ? number(axis.of(run)) : shown(axis.of(run))}`),
      );
    });
    path.addEventListener("mouseleave", () => {
      highlight(null);
      quiet();
    });
    path.addEventListener("click", () => openRow(`run ${run.index}`));
    lines.append(path);
    return path;
  });
  const bars = [];
  all.forEach((axis, i) => {
    const x = 50 + i * step;
    drawing.append(
      svg("path", { d: `M${x} ${top}V${bottom}`, stroke: "var(--line)", "stroke-width": 1.5 }),
      svg(
        "text",
        {
          x,
          y: 18,
          "text-anchor": i === 0 ? "start" : i === all.length - 1 ? "end" : "middle",
          "font-size": 12,
          "font-weight": 600,
          fill: "var(--ink)",
          transform: i === 0 ? "translate(-40 0)" : i === all.length - 1 ? "translate(90 0)" : null,
        },
        cut(axis === target ? metric : shortKey(axis.key), Math.floor(step / 7)),
        svg("title", {}, axis.label),
      ),
    );
    if (axis.log)
      drawing.append(svg("text", { x, y: 33, "text-anchor": "middle", "font-size": 10, fill: "var(--soft)" }, "log"));
    // Left of the first axis are no lines, and room for short labels.
    const outside = i === 0 && scales[i].ticks.every(([, label]) => label.length <= 6);
    for (const [y, label] of scales[i].ticks)
      drawing.append(
        svg("path", { d: `M${x} ${y}h${outside ? -4 : 4}`, stroke: "var(--line)" }),
        svg(
          "text",
          {
            x: x + (outside ? -7 : 7),
            y: y + 4,
            "text-anchor": outside ? "end" : "start",
            "font-size": 11,
            fill: "var(--ink)",
            stroke: "var(--card)",
            "stroke-width": 5,
            "stroke-linejoin": "round",
            "paint-order": "stroke",
            "pointer-events": "none",
          },
          cut(label, Math.floor(step / 8)),
        ),
      );
    const bar = svg("rect", {
      x: x - 7,
      width: 14,
      y: top,
      height: 0,
      fill: "var(--accent)",
      "fill-opacity": 0.3,
      "pointer-events": "none",
    });
    const grip = svg(
      "rect",
      {
        x: x - 10,
        width: 20,
        y: top - 8,
        height: bottom - top + 16,
        fill: "transparent",
        style: "cursor:ns-resize;touch-action:none",
      },
      svg("title", {}, "drag to choose a range"),
    );
    const at = (event) =>
      Math.max(
        top - 4,
        Math.min(
          bottom + 4,
          (event.clientY - drawing.getBoundingClientRect().top) * (height / drawing.getBoundingClientRect().height),
        ),
      );
    grip.addEventListener("pointerdown", (event) => {
      const from = at(event);
      grip.setPointerCapture(event.pointerId);
      const move = (moved) => {
        const to = at(moved);
        if (Math.abs(to - from) > 3) brushes.set(axis.key, [Math.min(from, to), Math.max(from, to)]);
        else brushes.delete(axis.key);
        dim();
      };
      grip.addEventListener("pointermove", move);
      grip.addEventListener(
        "pointerup",
        (up) => {
          move(up);
          grip.removeEventListener("pointermove", move);
        },
        { once: true },
      );
    });
    drawing.append(bar, grip);
    bars.push(bar);
  });
  const dim = () => {
    const n = runs.filter(inside).length;
    paths.forEach((path, i) => {
      const on = inside(order[i]);
      path.setAttribute("stroke-opacity", on ? 0.75 : 0.06);
      path.style.pointerEvents = on ? "" : "none";
    });
    bars.forEach((bar, i) => {
      const range = brushes.get(all[i].key);
      bar.setAttribute("y", range ? range[0] : top);
      bar.setAttribute("height", range ? range[1] - range[0] : 0);
    });
    only.hidden = clear.hidden = !brushes.size;
    only.textContent = `show only these ${n}`;
  };
  dim();
  figure.append(
    el(
      "p",
      { class: "small soft" },
      `A line is a run; bright lines have the better ${metric}${higher.has(metric) ? "" : ", which is at the top of its axis"}. Drag along an axis to choose a range.`,
    ),
  );
}
hotListeners.push(() => {
  for (const path of document.querySelectorAll("#sweep path[data-run]"))
    path.setAttribute("stroke-width", hot !== null && isHot(RUNS[+path.dataset.run]) ? 4 : 1.6);
  for (const point of document.querySelectorAll("#sweep circle[data-run]"))
    point.setAttribute("stroke-width", hot !== null && isHot(RUNS[+point.dataset.run]) ? 6 : 1);
});

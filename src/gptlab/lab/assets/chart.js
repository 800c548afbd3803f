// Line charts with zoom, hover and export. uPlot gives axes, cursor and selection; the lines are drawn here, because each
// has its own x values, and because the same code then draws them into an SVG file.

const UNITS = {
  count: [...COUNT_UNITS, [1, ""]],
  flops: [...SI_UNITS, [1, ""]],
  seconds: [
    [86400, " d"],
    [3600, " h"],
    [60, " min"],
    [1, " s"],
  ],
};
// The unit in which a person reads a number of this kind: two days are 48 hours, and 12,000 are 12k.
function unitOf(size, kind) {
  const least = kind === "seconds" ? 1.5 : kind ? 0.99999 : 10;
  const units = UNITS[kind] || UNITS.count;
  return (
    units.find(([unit]) => size >= (unit === 1 ? 0 : unit * (unit === 86400 ? 2 : least))) || units[units.length - 1]
  );
}

function ticksOf(low, high, count, log, kind) {
  if (log && high / low >= 8) {
    const decades = Math.log10(high / low);
    const mantissas = 3 * decades <= 1.6 * count ? [1, 2, 5] : [1];
    const every = Math.max(1, Math.ceil(decades / count));
    const found = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += every)
      for (const mantissa of mantissas) found.push(mantissa * 10 ** power);
    return found.filter((tick) => tick >= low * 0.999999 && tick <= high * 1.000001);
  }
  const [unit] = kind === "seconds" ? unitOf(Math.max(Math.abs(low), Math.abs(high)), kind) : [1];
  const rough = (high - low) / unit / Math.max(1, count);
  if (!(rough > 0)) return [low];
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = unit * [1, 2, 5, 10].find((mantissa) => mantissa * power >= rough * 0.8) * power;
  const found = [];
  for (let i = Math.ceil(low / step - 1e-6); i * step <= high + step * 1e-6 && found.length < 100; i++)
    found.push(i * step);
  return found;
}

// Labels with as many decimals as tell neighbors apart: in one unit, or on a logarithmic axis each in its own.
function tickLabels(ticks, kind) {
  const sizes = ticks.map(Math.abs),
    n = ticks.length;
  const even = n < 3 || Math.abs(ticks[1] - ticks[0]) > 0.9 * Math.abs(ticks[n - 1] - ticks[n - 2]);
  const step = n > 1 ? Math.abs(ticks[1] - ticks[0]) : Math.max(sizes[0] / 100, 1e-12);
  return ticks.map((tick, i) => {
    const largest = even ? Math.max(...sizes) : sizes[i];
    const finest = even ? step : 10 ** Math.floor(Math.log10(sizes[i]) + 1e-9);
    if (tick === 0) return "0";
    if (largest < 1e-4) {
      const digits = Math.floor(Math.log10(sizes[i]) + 1e-6) - Math.floor(Math.log10(finest) + 1e-6);
      return tick.toExponential(Math.max(0, Math.min(8, digits))).replace(/\.?0+e/, "e");
    }
    const [unit, letter] = unitOf(largest, kind);
    const decimals = Math.max(0, Math.min(8, -Math.floor(Math.log10(finest / unit) + 1e-6)));
    const text = (tick / unit).toFixed(decimals);
    return `${kind && text.includes(".") ? +text : text}${letter}`;
  });
}

// The index of the value nearest to `at` in ascending values.
function nearestIndex(values, at) {
  let low = 0,
    high = values.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (values[middle] < at) low = middle;
    else high = middle;
  }
  return at - values[low] < values[high] - at ? low : high;
}

// The methods of a canvas that lines need, written down as SVG.
class SvgContext {
  constructor() {
    Object.assign(this, {
      group: svg("g"),
      path: "",
      dash: [],
      strokeStyle: "",
      fillStyle: "",
      lineWidth: 1,
      globalAlpha: 1,
    });
  }
  beginPath() {
    this.path = "";
  }
  moveTo(x, y) {
    this.path += `M${x.toFixed(1)} ${y.toFixed(1)}`;
  }
  lineTo(x, y) {
    this.path += `L${x.toFixed(1)} ${y.toFixed(1)}`;
  }
  closePath() {
    this.path += "Z";
  }
  setLineDash(dash) {
    this.dash = dash;
  }
  arc(x, y, radius) {
    this.path += `M${(x - radius).toFixed(1)} ${y.toFixed(1)}a${radius} ${radius} 0 1 0 ${2 * radius} 0a${radius} ${radius} 0 1 0 ${-2 * radius} 0`;
  }
  add(attributes) {
    if (this.path)
      this.group.append(
        svg("path", { d: this.path, opacity: this.globalAlpha === 1 ? null : this.globalAlpha, ...attributes }),
      );
  }
  stroke() {
    this.add({
      fill: "none",
      stroke: this.strokeStyle,
      "stroke-width": this.lineWidth,
      "stroke-linejoin": "round",
      "stroke-dasharray": this.dash.join(" ") || null,
    });
  }
  fill() {
    this.add({ fill: this.fillStyle });
  }
}

/* A chart. `options`:
     title, name (of a saved file), xLabel, yLabel, xKind, yKind ("count", "flops", "seconds" or none), logX, logY,
     height, robust (leave out the highest points when the y axis is chosen), legend (below a saved figure)
     onHover(id or null), onPick(id), onZoom([low, high] or null) of the x axis
   A line: { id, name, color, xs (ascending), ys, width, alpha, dash, faint (no hover), marks (a dot at each point),
     band: {xs, low, high}, detail(i): more text for the tooltip, id of what is highlighted with it }. */
class LineChart {
  constructor(host, options) {
    Object.assign(this, { options, lines: [], zoomX: null, zoomY: null, highlighted: null, plot: null });
    this.resetButton = el(
      "button",
      { class: "quiet small", hidden: true, title: "or double-click", onclick: () => this.reset() },
      "reset zoom",
    );
    this.heading = el("h3");
    this.area = el("div", { class: "plot" });
    this.tip = el("div", { class: "tip", hidden: true });
    this.wide = el(
      "button",
      {
        class: "quiet small",
        title: "the whole width",
        onclick: () => {
          this.figure.style.gridColumn = this.figure.style.gridColumn ? "" : "1 / -1";
        },
      },
      "wide",
    );
    this.figure = el(
      "div",
      { class: "figure card" },
      el(
        "header",
        {},
        this.heading,
        this.resetButton,
        this.wide,
        saveButtons(options.name, () => this.drawing()),
      ),
      this.area,
      this.tip,
    );
    host.append(this.figure);
    new ResizeObserver(() => {
      if (this.plot && Math.abs(this.area.clientWidth - this.plot.width) > 1) this.build();
    }).observe(this.area);
  }

  show(lines, options) {
    Object.assign(this.options, options);
    this.lines = lines;
    this.build();
  }

  reset() {
    this.zoomX = this.zoomY = null;
    this.options.onZoom?.(null);
    this.build();
  }

  // The limits of both axes: where a person zoomed, else around all that is shown.
  limits() {
    const { logX, logY } = this.options;
    let [x0, x1, y0, y1] = [Infinity, -Infinity, Infinity, -Infinity];
    const all = [];
    for (const { xs } of this.lines)
      for (const x of xs)
        if (Number.isFinite(x) && (!logX || x > 0)) {
          if (x < x0) x0 = x;
          if (x > x1) x1 = x;
        }
    if (x0 > x1) [x0, x1] = logX ? [1, 10] : [0, 1];
    if (x0 === x1) [x0, x1] = logX ? [x0 / 2, x1 * 2] : [x0 - 1, x1 + 1];
    const x = this.zoomX || [x0, x1];
    for (const line of this.lines) {
      // A band may leave the picture: one run that failed would make it so wide that nothing else is seen.
      for (let i = 0; i < line.xs.length; i++) {
        const y = line.ys[i];
        if (!(line.xs[i] >= x[0] && line.xs[i] <= x[1]) || !Number.isFinite(y) || (logY && y <= 0)) continue;
        if (y < y0) y0 = y;
        if (y > y1) y1 = y;
        if (this.options.robust) all.push(y);
      }
    }
    if (y0 > y1) [y0, y1] = logY ? [1, 10] : [0, 1];
    if (all.length > 20) y1 = all.sort((a, b) => a - b)[Math.floor(0.95 * (all.length - 1))];
    if (y0 === y1) {
      const room = Math.abs(y0) / 10 || 1;
      [y0, y1] = logY ? [y0 / 1.1, y1 * 1.1] : [y0 - room, y1 + room];
    } else if (logY) {
      const room = (y1 / y0) ** 0.04;
      [y0, y1] = [y0 / room, y1 * room];
    } else {
      const room = (y1 - y0) * 0.04;
      [y0, y1] = [y0 - room, y1 + room];
    }
    return { x, y: this.zoomY || [y0, y1] };
  }

  build() {
    const { options } = this,
      width = this.area.clientWidth;
    this.heading.textContent = options.title;
    this.resetButton.hidden = !(this.zoomX || this.zoomY);
    this.tip.hidden = true;
    if (!width) return; // not shown
    this.plot?.destroy();
    const view = this.limits(),
      height = options.height || Math.round(Math.max(240, Math.min(380, width * 0.55)));
    this.view = view;
    const axis = (limits, log, label, kind, room, size) => ({
      stroke: css("--soft"),
      grid: { stroke: css("--grid"), width: 1 },
      ticks: { stroke: css("--line"), width: 1, size: 4 },
      font: "11px system-ui, sans-serif",
      labelFont: "12px system-ui, sans-serif",
      label,
      labelSize: 18,
      size,
      gap: 4,
      splits: (u, which) =>
        ticksOf(
          ...limits,
          Math.max(2, Math.floor((which ? u.bbox.height : u.bbox.width) / devicePixelRatio / room)),
          log,
          kind,
        ),
      values: (u, splits) => tickLabels(splits, kind),
      filter: (u, splits) => splits,
    });
    this.plot = new uPlot(
      {
        width,
        height,
        padding: [8, 12, 0, 0],
        scales: {
          x: { time: false, distr: options.logX ? 3 : 1, range: () => view.x },
          y: { distr: options.logY ? 3 : 1, range: () => view.y },
        },
        axes: [
          axis(view.x, options.logX, options.xLabel, options.xKind, 80, 28),
          axis(view.y, options.logY, options.yLabel, options.yKind, 42, 50),
        ],
        series: [{}, { paths: () => null, points: { show: false } }],
        legend: { show: false },
        cursor: {
          points: { show: false },
          drag: { x: true, y: true, uni: 20, dist: 6, setScale: false },
          bind: { dblclick: () => () => this.reset() },
        },
        hooks: {
          draw: [(u) => this.paintCanvas(u)],
          setCursor: [(u) => this.hover(u)],
          setSelect: [(u) => this.zoom(u)],
        },
      },
      [[...view.x], [...view.y]],
      this.area,
    );
    this.above = el("canvas", { class: "above" });
    this.plot.over.append(this.above);
    let pressed = null;
    this.plot.over.addEventListener("mousedown", (event) => {
      pressed = [event.clientX, event.clientY];
    });
    this.plot.over.addEventListener("mouseup", (event) => {
      const still = pressed && Math.hypot(event.clientX - pressed[0], event.clientY - pressed[1]) < 4;
      if (still && this.nearest !== null && this.nearest !== undefined) options.onPick?.(this.nearest);
    });
    this.listenToTouch();
    this.highlight(this.highlighted);
  }

  // A finger that moves sideways selects as a mouse does; up and down it scrolls the page.
  listenToTouch() {
    const { over } = this.plot;
    over.style.touchAction = "pan-y";
    const as = (kind, event) =>
      over.dispatchEvent(
        new MouseEvent(kind, { clientX: event.clientX, clientY: event.clientY, button: 0, buttons: 1, bubbles: true }),
      );
    for (const [kind, mouse] of [
      ["pointerdown", "mousedown"],
      ["pointermove", "mousemove"],
      ["pointerup", "mouseup"],
      ["pointercancel", "mouseup"],
    ])
      over.addEventListener(kind, (event) => {
        if (event.pointerType !== "touch") return;
        if (kind === "pointerdown") {
          over.setPointerCapture(event.pointerId);
          as("mousemove", event);
        }
        as(mouse, event);
      });
  }

  zoom(u) {
    const { left, top, width, height } = u.select;
    if (!(width > 0 || height > 0)) return;
    // What covers the whole height is a selection along x alone, and the other way round.
    const ofX = width < u.over.clientWidth - 1,
      ofY = height < u.over.clientHeight - 1;
    const x = [u.posToVal(left, "x"), u.posToVal(left + width, "x")],
      y = [u.posToVal(top + height, "y"), u.posToVal(top, "y")];
    u.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
    if (ofY && y[1] > y[0]) this.zoomY = y;
    if (ofX && x[1] > x[0]) {
      this.zoomX = x;
      this.options.onZoom?.(x);
    }
    setTimeout(() => this.build()); // not while uPlot is at work
  }

  // Functions from values to places in a frame of pixels.
  placing({ left, top, width, height }) {
    const { logX, logY } = this.options,
      { x, y } = this.view;
    const of = (value, log) => (log ? (value > 0 ? Math.log10(value) : NaN) : value);
    const [x0, x1, y0, y1] = [of(x[0], logX), of(x[1], logX), of(y[0], logY), of(y[1], logY)];
    const [byX, byY] = [width / (x1 - x0), height / (y1 - y0)];
    return {
      px: logX
        ? (value) => (value > 0 ? left + (Math.log10(value) - x0) * byX : NaN)
        : (value) => left + (value - x0) * byX,
      // Below a log axis lies everything that is not positive: a line that goes there leaves the picture.
      py: logY
        ? (value) => (value > 0 ? top + height - (Math.log10(value) - y0) * byY : value <= 0 ? top + 2 * height : NaN)
        : (value) => top + height - (value - y0) * byY,
    };
  }

  paint(context, frame, ratio, lines) {
    const { px, py } = this.placing(frame),
      right = frame.left + frame.width;
    for (const { band, color, alpha } of lines) {
      if (!band || band.xs.length < 2) continue;
      context.globalAlpha = 0.18 * (alpha ?? 1);
      context.fillStyle = resolved(color);
      context.beginPath();
      let begun = false;
      for (let i = 0; i < band.xs.length; i++) {
        const [x, y] = [px(band.xs[i]), py(band.high[i])];
        if (Number.isNaN(x + y)) continue;
        if (begun) context.lineTo(x, y);
        else context.moveTo(x, y);
        begun = true;
      }
      for (let i = band.xs.length - 1; i >= 0; i--) {
        const [x, y] = [px(band.xs[i]), py(band.low[i])];
        if (!Number.isNaN(x + y)) context.lineTo(x, y);
      }
      if (begun) context.closePath();
      context.fill();
    }
    for (const line of lines) {
      const { xs, ys } = line;
      context.globalAlpha = line.alpha ?? 1;
      context.strokeStyle = context.fillStyle = resolved(line.color);
      context.lineWidth = (line.width || 1.5) * ratio;
      context.setLineDash((line.dash || []).map((part) => part * ratio));
      context.beginPath();
      let [drawing, before] = [false, null];
      for (let i = 0; i < xs.length; i++) {
        const x = px(xs[i]),
          y = py(ys[i]);
        if (Number.isNaN(x) || Number.isNaN(y)) {
          drawing = false;
          before = null;
          continue;
        }
        if (x < frame.left) {
          before = [x, y];
          continue;
        } // only the last point before the picture matters
        if (!drawing && before) {
          context.moveTo(...before);
          context.lineTo(x, y);
        } else if (drawing) context.lineTo(x, y);
        else context.moveTo(x, y);
        drawing = true;
        if (x > right) break;
      }
      context.stroke();
      if (line.marks && xs.length <= 60) {
        context.beginPath();
        for (let i = 0; i < xs.length; i++) {
          const x = px(xs[i]),
            y = py(ys[i]);
          if (Number.isNaN(x + y) || x < frame.left || x > right) continue;
          context.moveTo(x + 2.2 * ratio, y);
          context.arc(x, y, 2.2 * ratio, 0, 2 * Math.PI);
        }
        context.fill();
      }
    }
    context.globalAlpha = 1;
    context.setLineDash([]);
  }

  paintCanvas(u) {
    const { ctx, bbox } = u;
    ctx.save();
    ctx.beginPath();
    ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
    ctx.clip();
    ctx.lineJoin = "round";
    this.paint(ctx, bbox, devicePixelRatio, this.lines);
    ctx.restore();
  }

  // Draw the lines of one run or group above all others, here and, through onHover, in the other charts.
  highlight(id) {
    this.highlighted = id;
    if (!this.plot) return;
    const { over } = this.plot,
      ratio = devicePixelRatio,
      context = this.above.getContext("2d");
    if (
      this.above.width !== Math.round(over.clientWidth * ratio) ||
      this.above.height !== Math.round(over.clientHeight * ratio)
    ) {
      this.above.width = Math.round(over.clientWidth * ratio);
      this.above.height = Math.round(over.clientHeight * ratio);
    }
    context.clearRect(0, 0, this.above.width, this.above.height);
    const chosen = this.lines.filter((line) => line.id === id && !line.faint);
    if (id === null || !chosen.length) return;
    const frame = { left: 0, top: 0, width: this.above.width, height: this.above.height };
    context.lineJoin = "round";
    const plain = chosen.map((line) => ({ ...line, band: null, alpha: 1 }));
    this.paint(
      context,
      frame,
      ratio,
      plain.map((line) => ({ ...line, color: "var(--card)", width: 5, marks: false, dash: [] })),
    );
    this.paint(
      context,
      frame,
      ratio,
      plain.map((line) => ({ ...line, width: 2.6 })),
    );
  }

  hover(u) {
    const { left, top } = u.cursor,
      frame = { left: 0, top: 0, width: u.over.clientWidth, height: u.over.clientHeight };
    if (left === null || left === undefined || left < 0) {
      if (!this.tip.hidden || this.nearest !== null) this.options.onHover?.(null);
      this.nearest = null;
      this.tip.hidden = true;
      return;
    }
    const at = u.posToVal(left, "x"),
      { px, py } = this.placing(frame),
      found = [];
    for (const line of this.lines) {
      const { xs, ys } = line;
      if (line.faint || !xs.length) continue;
      const i = nearestIndex(xs, at),
        x = px(xs[i]),
        y = py(ys[i]);
      if (Number.isNaN(x + y) || x < -2 || x > frame.width + 2) continue;
      // The height of the line under the cursor, between its two points.
      const other = xs[i] < at ? i + 1 : i - 1;
      let height = y;
      if (other >= 0 && other < xs.length) {
        const [x2, y2] = [px(xs[other]), py(ys[other])];
        if (x2 !== x && !Number.isNaN(x2 + y2)) height = y + ((left - x) / (x2 - x)) * (y2 - y);
      } else if (Math.abs(x - left) > 40) continue; // the line has ended before
      found.push({ line, i, x, y, distance: Math.abs(height - top) });
    }
    found.sort((a, b) => a.distance - b.distance);
    const [nearest] = found,
      shown = found.slice(0, 8).sort((a, b) => a.y - b.y);
    const id = nearest && nearest.distance < 60 ? nearest.line.id : null;
    if (id !== this.nearest) this.options.onHover?.(id);
    this.nearest = id;
    if (!nearest) {
      this.tip.hidden = true;
      return;
    }
    const { options } = this;
    this.tip.replaceChildren(
      el(
        "div",
        { class: "soft" },
        `${options.xLabel} ${options.xText ? options.xText(nearest.line.xs[nearest.i], nearest.line) : number(nearest.line.xs[nearest.i])}`,
      ),
      ...shown.map(({ line, i }) =>
        el(
          "div",
          {
            class: line === nearest.line ? "nearest" : "",
            "data-id": line.id,
            "data-x": line.xs[i],
            "data-y": line.ys[i],
          },
          dot(line.color),
          el("span", { class: "name" }, line.name),
          el(
            "span",
            { class: "number" },
            number(line.ys[i]),
            line.detail ? el("span", { class: "soft" }, ` ${line.detail(i)}`) : null,
          ),
        ),
      ),
      found.length > shown.length ? el("div", { class: "soft" }, `and ${found.length - shown.length} more`) : "",
    );
    this.tip.hidden = false;
    const [x, y] = [u.over.offsetLeft + left, this.area.offsetTop + u.over.offsetTop + top];
    // Beside the pointer where the window has room, else below it.
    const from = this.figure.getBoundingClientRect().left,
      room = document.documentElement.clientWidth - from - this.tip.offsetWidth - 4;
    const right = x + 18 <= room,
      toLeft = x - this.tip.offsetWidth - 14;
    const beside = right ? x + 18 : toLeft >= 4 - from ? toLeft : null;
    this.tip.style.left = `${beside ?? Math.max(4 - from, Math.min(room, x - this.tip.offsetWidth / 2))}px`;
    this.tip.style.top = beside === null ? `${y + 24}px` : `${Math.max(34, y - this.tip.offsetHeight / 2)}px`;
  }

  // The chart as it is shown, as an SVG element with its legend.
  drawing() {
    const { options } = this,
      named = [];
    for (const line of this.lines)
      if (!line.faint && !named.some((other) => other.name === line.name && other.color === line.color))
        named.push(line);
    const entries = options.legend || named.slice(0, 16),
      columns = 2,
      rows = Math.ceil(entries.length / columns);
    const more = !options.legend && named.length > entries.length ? 1 : 0;
    const frame = { left: 64, top: 40, width: 812, height: 420 },
      bottom = frame.top + frame.height,
      full = bottom + 58 + 18 * (rows + more);
    const { px, py } = this.placing(frame),
      context = new SvgContext();
    this.paint(context, frame, 1, this.lines);
    const text = (x, y, content, attributes) =>
      svg("text", { x, y, "font-size": 12, fill: "var(--soft)", ...attributes }, content);
    const axes = svg("g");
    const { x, y } = this.view,
      xs = ticksOf(...x, 9, options.logX, options.xKind),
      ys = ticksOf(...y, 9, options.logY, options.yKind);
    tickLabels(xs, options.xKind).forEach((label, i) =>
      axes.append(
        svg("path", { d: `M${px(xs[i]).toFixed(1)} ${frame.top}v${frame.height}`, stroke: "var(--grid)" }),
        text(px(xs[i]), bottom + 18, label, { "text-anchor": "middle" }),
      ),
    );
    tickLabels(ys, options.yKind).forEach((label, i) =>
      axes.append(
        svg("path", { d: `M${frame.left} ${py(ys[i]).toFixed(1)}h${frame.width}`, stroke: "var(--grid)" }),
        text(frame.left - 8, py(ys[i]) + 4, label, { "text-anchor": "end" }),
      ),
    );
    const clip = `clip-${options.name.replace(/\W+/g, "-")}`;
    context.group.setAttribute("clip-path", `url(#${clip})`);
    return svg(
      "svg",
      { viewBox: `0 0 900 ${full}` },
      svg(
        "defs",
        {},
        svg(
          "clipPath",
          { id: clip },
          svg("rect", { x: frame.left, y: frame.top, width: frame.width, height: frame.height }),
        ),
      ),
      axes,
      context.group,
      svg("rect", {
        x: frame.left,
        y: frame.top,
        width: frame.width,
        height: frame.height,
        fill: "none",
        stroke: "var(--line)",
      }),
      text(frame.left, 24, options.title, { "font-size": 15, "font-weight": 600, fill: "var(--ink)" }),
      text(frame.left + frame.width / 2, bottom + 38, options.xLabel, { "text-anchor": "middle" }),
      text(18, frame.top + frame.height / 2, options.yLabel || "", {
        "text-anchor": "middle",
        transform: `rotate(-90 18 ${frame.top + frame.height / 2})`,
      }),
      entries.map((line, i) => [
        svg("rect", {
          x: frame.left + 406 * (i % columns),
          y: bottom + 49 + 18 * Math.floor(i / columns),
          width: 18,
          height: 4,
          rx: 2,
          fill: line.color,
        }),
        text(
          frame.left + 26 + 406 * (i % columns),
          bottom + 55 + 18 * Math.floor(i / columns),
          line.name.length > 58 ? `${line.name.slice(0, 57)}\u2026` : line.name,
          { fill: "var(--ink)" },
        ),
      ]),
      more ? text(frame.left, bottom + 55 + 18 * rows, `and ${named.length - entries.length} more`) : null,
    );
  }
}

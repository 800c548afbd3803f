// What temperature, filters and the repetition penalty make of the next token's distribution.

const TEMPERATURES = [5, 2, 1, 0.5, 0.1, 0.01];
const N_BARS = 20,
  N_STACKED = 8;

function softmax(logits) {
  let most = -Infinity;
  for (const value of logits) if (value > most) most = value;
  const found = Float64Array.from(logits, (value) => Math.exp(value - most));
  let sum = 0;
  for (const value of found) sum += value;
  return found.map((value) => value / sum);
}

// Tokens from the most likely on; of equals the first one first.
const descending = (values) => Array.from(values.keys()).sort((a, b) => values[b] - values[a] || a - b);

const applyTemperature = (logits, temperature) => {
  let most = 0;
  for (let i = 1; i < logits.length; i++) if (logits[i] > logits[most]) most = i;
  if (temperature === 0) return logits.map((_, i) => (i === most ? 0 : -Infinity));
  return logits.map((value) => (value - logits[most]) / temperature);
};
const keepTopK = (logits, k) => {
  if (k >= logits.length) return logits;
  const least = Float64Array.from(logits).sort()[logits.length - k];
  return logits.map((value) => (value < least ? -Infinity : value));
};
const keepTopP = (logits, p) => {
  if (p === 1) return logits;
  const probabilities = softmax(logits),
    found = Float64Array.from(logits);
  let before = 0; // the mass of more likely tokens
  for (const token of descending(probabilities)) {
    if (before >= p) found[token] = -Infinity;
    before += probabilities[token];
  }
  return found;
};
const keepMinP = (logits, p) => {
  const probabilities = softmax(logits),
    least = p * probabilities.reduce((a, b) => Math.max(a, b), 0);
  return logits.map((value, i) => (probabilities[i] < least ? -Infinity : value));
};
const penalizeRepetition = (logits, seen, penalty) => {
  const found = Float64Array.from(logits);
  for (const token of new Set(seen))
    if (token < found.length) found[token] = logits[token] < 0 ? logits[token] * penalty : logits[token] / penalty;
  return found;
};

// The logits of the model and after each setting that changes them, in the order of generation.
function samplingStages(logits, settings, seen) {
  const { repetition_penalty = 1, temperature = 1, top_k = null, top_p = null, min_p = null } = settings,
    stages = [["model", Float64Array.from(logits)]],
    add = (name, change, ...more) => stages.push([`${name}=${settings[name]}`, change(stages.at(-1)[1], ...more)]);
  if (repetition_penalty !== 1) add("repetition_penalty", penalizeRepetition, seen, repetition_penalty);
  if (temperature !== 1) add("temperature", applyTemperature, temperature);
  const n = stages.length; // of those that leave out no token, but at temperature 0
  if (top_k !== null) add("top_k", keepTopK, top_k);
  if (top_p !== null) add("top_p", keepTopP, top_p);
  if (min_p !== null) add("min_p", keepMinP, min_p);
  const all = stages.map(([name, values]) => ({ name, probabilities: softmax(values) }));
  return { stages: all, before: all[n - 1].probabilities, after: all.at(-1).probabilities };
}

const entropyOf = (probabilities) => -probabilities.reduce((sum, p) => sum + (p > 0 ? p * Math.log(p) : 0), 0);

DRAW.sampling = (data) => {
  const carried = Float64Array.from(new Float32Array(bytesOf(data.logits).buffer)),
    settings = {},
    bars = el("div", {}),
    said = el("p", { class: "kept", role: "status" }),
    stageTable = el("div", {}),
    stacked = el("div", {});
  let logits = carried,
    seen = data.seen,
    textOf = (token) => spaced(data.texts[token] ?? `<token ${token}>`),
    label = textOf;

  // From the place of a slider to a value and back; the number beside it is the value.
  const logSteps = (n) => ({ to: (x) => Math.round(n ** (x / 100)), from: (k) => (100 * Math.log(k)) / Math.log(n) });
  const SETTINGS = [
    { name: "temperature", off: 1, min: 0, max: 5, step: 0.01, scale: { to: (x) => +((5 * (x / 100) ** 2).toFixed(2)), from: (t) => 100 * Math.sqrt(Math.min(t, 5) / 5) }, hint: "divides the logits; 0 is greedy" },
    { name: "top_k", off: null, min: 1, step: 1, scale: null, hint: "only the k most likely tokens" },
    { name: "top_p", off: null, min: 0.01, max: 1, step: 0.01, rest: 1, hint: "the fewest tokens with so much of the mass" },
    { name: "min_p", off: null, min: 0, max: 1, step: 0.01, rest: 0, hint: "tokens at least so likely as a part of the most likely one" },
    { name: "repetition_penalty", off: 1, min: 0.5, max: 2, step: 0.01, hint: "above 1: tokens of the text become less likely" },
  ];
  const inputs = [];
  const control = ({ name, off, min, max, step, rest, scale, hint }) => {
    const ofK = () => logSteps(Math.max(2, logits.length)),
      own = name === "top_k" ? { to: (x) => ofK().to(x), from: (k) => ofK().from(k) } : scale,
      top = () => (name === "top_k" ? logits.length : (rest ?? off)),
      slider = el("input", {
        type: "range",
        "aria-label": `${name}, slider`,
        min: own ? 0 : min,
        max: own ? 100 : max,
        step: own ? 0.5 : step,
      }),
      typed = el("input", { type: "number", "aria-label": name, min, step: "any" });
    const set = (value, from) => {
      settings[name] = name !== "top_k" && value === off ? off : value === top() ? off : value;
      if (from !== slider) slider.value = own ? own.from(value) : value;
      if (from !== typed) typed.value = value;
    };
    slider.addEventListener("input", () => {
      set(own ? own.to(+slider.value) : +slider.value, slider);
      show();
    });
    typed.addEventListener("input", () => {
      const value = name === "top_k" ? Math.round(+typed.value) : +typed.value;
      const fits = typed.value !== "" && value >= min && (max === undefined || name === "temperature" || value <= max);
      typed.setAttribute("aria-invalid", String(!fits));
      if (!fits || (name === "repetition_penalty" && value <= 0)) return;
      set(name === "top_k" ? Math.min(value, logits.length) : value, typed);
      show();
    });
    const reset = () => set(top());
    inputs.push(reset);
    reset();
    return el("div", { class: "setting" }, el("span", { class: "name" }, name), slider, typed, el("span", { class: "soft small" }, hint));
  };

  const barFigure = (found) => {
    const { before, after } = found,
      order = descending(before).slice(0, N_BARS),
      width = 480,
      row = 22,
      left = 128,
      right = 134,
      rows = [...order.map((token) => [label(token), before[token], after[token]])],
      rest = [0, 0];
    const shown = new Set(order);
    for (let i = 0; i < before.length; i++)
      if (!shown.has(i)) {
        rest[0] += before[i];
        rest[1] += after[i];
      }
    if (before.length > order.length) rows.push([`the other ${number(before.length - order.length)}`, ...rest]);
    // The mass of all others may be far above that of any token: their bar ends where there is no more room.
    const most = Math.max(...rows.slice(0, order.length).map((one) => Math.max(one[1], one[2])), 1e-12),
      x = (p) => (width - left - right) * Math.min(1, p / most),
      height = row * rows.length + 24,
      text = (attributes, content) => svg("text", { "font-size": 11, fill: "var(--ink)", ...attributes }, content);
    const draw = () =>
      svg(
        "svg",
        { viewBox: `0 0 ${width} ${height}`, width, role: "img", "aria-label": "probabilities of the next token" },
        rows.map(([name, p, q], i) => {
          const y = i * row + 3,
            gone = q === 0;
          return svg(
            "g",
            { class: "bar-row", opacity: gone ? 0.55 : 1 },
            svg("title", {}, `${name}: ${percent(p)} before the filters, ${percent(q)} after`),
            text({ x: left - 6, y: y + 12, "text-anchor": "end", "font-family": "monospace" }, name.length > 17 ? `${name.slice(0, 16)}…` : name),
            svg("rect", { x: left, y, width: Math.max(0.5, x(p)), height: 7, fill: "var(--c8)", opacity: 0.6 }),
            gone ? null : svg("rect", { x: left, y: y + 7, width: Math.max(0.5, x(q)), height: 9, fill: "var(--c0)" }),
            text({ x: width - right + 6, y: y + 12, fill: "var(--soft)" }, `${percent(p)} → ${gone ? "left out" : percent(q)}`),
          );
        }),
        svg("rect", { x: left, y: height - 14, width: 10, height: 10, fill: "var(--c8)", opacity: 0.6 }),
        text({ x: left + 14, y: height - 5, fill: "var(--soft)" }, "before the filters"),
        svg("rect", { x: left + 130, y: height - 14, width: 10, height: 10, fill: "var(--c0)" }),
        text({ x: left + 144, y: height - 5, fill: "var(--soft)" }, "after them, as tokens are drawn"),
      );
    return figure("Probabilities of the next token", draw);
  };

  const stackedFigure = () => {
    const width = 560,
      height = 300,
      left = 46,
      right = 170,
      bottom = 40,
      top = 8,
      order = descending(logits).slice(0, N_STACKED),
      plot = height - top - bottom,
      step = (width - left - right) / TEMPERATURES.length,
      text = (attributes, content) => svg("text", { "font-size": 11, fill: "var(--soft)", ...attributes }, content),
      color = (i) => (i < order.length ? categorical(i, 10) : "var(--c8)"),
      names = [...order.map(label), ...(logits.length > order.length ? ["all others"] : [])];
    const draw = () =>
      svg(
        "svg",
        { viewBox: `0 0 ${width} ${height}`, width, role: "img", "aria-label": "the distribution at six temperatures" },
        [0, 0.25, 0.5, 0.75, 1].map((at) => [
          svg("line", { x1: left, x2: width - right, y1: top + plot * (1 - at), y2: top + plot * (1 - at), stroke: "var(--grid)" }),
          text({ x: left - 5, y: top + plot * (1 - at) + 4, "text-anchor": "end" }, `${100 * at}%`),
        ]),
        TEMPERATURES.map((temperature, n) => {
          const probabilities = softmax(applyTemperature(logits, temperature)),
            parts = order.map((token) => probabilities[token]),
            all = parts.reduce((a, b) => a + b, 0);
          let y = top + plot;
          return [
            [...parts, ...(names.length > order.length ? [Math.max(0, 1 - all)] : [])].map((p, i) => {
              y -= plot * p;
              return svg(
                "rect",
                { x: left + n * step + 4, y, width: step - 8, height: plot * p, fill: color(i), opacity: i < order.length ? 1 : 0.4 },
                svg("title", {}, `temperature ${temperature}, ${names[i]}: ${percent(p)}`),
              );
            }),
            text({ x: left + (n + 0.5) * step, y: height - bottom + 15, "text-anchor": "middle" }, temperature),
          ];
        }),
        text({ x: left + (width - left - right) / 2, y: height - 8, "text-anchor": "middle" }, "temperature"),
        names.map((name, i) => [
          svg("rect", { x: width - right + 12, y: top + 18 * i, width: 10, height: 10, fill: color(i), opacity: i < order.length ? 1 : 0.4 }),
          text({ x: width - right + 27, y: top + 18 * i + 9, "font-family": "monospace" }, name.length > 19 ? `${name.slice(0, 18)}…` : name),
        ]),
      );
    return figure("Six temperatures, without filters", draw);
  };

  const show = () => {
    const found = samplingStages(logits, settings, seen),
      { before, after, stages } = found;
    let kept = 0,
      mass = 0;
    for (let i = 0; i < after.length; i++)
      if (after[i] > 0) {
        kept++;
        mass += before[i];
      }
    said.textContent =
      `${number(kept)} of ${number(after.length)} tokens are kept, with ${percent(mass)} of the mass; ` +
      `their probabilities are divided by it. Entropy ${number(entropyOf(before), 4)} nats before the filters, ${number(entropyOf(after), 4)} after.` +
      (settings.temperature === 0 ? " Temperature 0 is greedy decoding: filters have no effect." : "");
    bars.replaceChildren(barFigure(found));
    const first = descending(before).slice(0, 5);
    stageTable.replaceChildren(
      tableOf(
        ["after", "tokens left", ...first.map(label)],
        stages.map(({ name, probabilities }) => [
          name,
          number(probabilities.reduce((n, p) => n + (p > 0), 0)),
          ...first.map((token) => percent(probabilities[token])),
        ]),
      ),
    );
    DRAW.sampling.shown = { settings: { ...settings }, before, after, mass, kept };
  };
  const restart = () => {
    for (const reset of inputs) reset();
    stacked.replaceChildren(stackedFigure());
    show();
  };
  const own = el("input", { type: "text", "aria-label": "logits of your own", placeholder: "1.5, -1.8, 0.9, -3.2" });
  own.addEventListener("input", () => {
    const values = own.value.split(/[\s,;]+/).filter((one) => one !== "").map(Number),
      usable = values.length > 1 && values.every(Number.isFinite);
    own.setAttribute("aria-invalid", String(own.value.trim() !== "" && !usable));
    if (!usable && own.value.trim() !== "") return;
    [logits, seen] = usable ? [Float64Array.from(values), []] : [carried, data.seen];
    label = usable ? (i) => `${i + 1}: ${values[i]}` : textOf;
    restart();
  });
  const controls = el("div", { class: "card settings" }, SETTINGS.map(control), el("button", { onclick: restart }, "as the model has it"));
  restart();
  const last = DATA.tokens.slice(Math.max(0, data.position - 11), data.position + 1).join("");
  return [
    note(
      `What the model would write after “${data.position > 11 ? "…" : ""}${last}”: settings act in the order of gptlab generate, ` +
        "repetition penalty, temperature, top-k, top-p, min-p. The page has the logits of the whole vocabulary, so the numbers are exact.",
    ),
    el("div", { class: "charts sampling" }, el("div", {}, controls, said, stageTable), bars, stacked),
    el("label", { class: "own" }, "logits of your own instead:", own),
  ];
};

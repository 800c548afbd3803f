// What the parts of the page of a model draw with. A part's own file sets DRAW[its name]: a function of its data that
// gives elements.

const DRAW = {};
const SIGNIFICANT = 4;

// Numbers that are stored as bytes in base64.
function bytesOf(text) {
  const raw = atob(text),
    found = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) found[i] = raw.charCodeAt(i);
  return found;
}

const note = (...text) => el("p", { class: "soft" }, text);

// A figure of the page with its title and the buttons that save it; `draw` gives an SVG element.
const figure = (title, draw, ...after) =>
  el(
    "div",
    { class: "card figure" },
    el("header", {}, el("h3", {}, title), saveButtons(title.replace(/\W+/g, "-"), draw)),
    el("div", { class: "scroll" }, draw()),
    after,
  );

function ticksOf(low, high, log) {
  if (log && high / low > 10) {
    const found = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++)
      for (const factor of high / low > 1e3 ? [1] : [1, 2, 5]) {
        const at = factor * 10 ** power;
        if (at >= low * 0.999 && at <= high * 1.001) found.push(at);
      }
    return found;
  }
  const rough = (high - low) / 4 || 1,
    power = 10 ** Math.floor(Math.log10(rough)),
    step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough),
    found = [];
  for (let at = Math.ceil(low / step) * step; at <= high + step * 1e-9; at += step) found.push(+at.toPrecision(12));
  return found;
}

// Lines over layers or other named places: `lines` are {name, values}, a value of null leaves a gap.
function lineFigure(title, places, lines, { log = false, unit = "", zero = !log } = {}) {
  const width = 520,
    height = 240,
    left = 58,
    right = 10,
    top = 10,
    bottom = 40 + 16 * Math.ceil(lines.length / 2);
  const usable = (value) => isNumber(value) && (!log || value > 0),
    all = lines.flatMap((line) => line.values.filter(usable));
  if (!all.length) return null;
  let low = Math.min(...all, ...(zero ? [0] : [])),
    high = Math.max(...all, ...(zero ? [0] : []));
  if (low === high) [low, high] = log ? [low / 2, high * 2] : [low - 1, high + 1];
  const scale = log ? Math.log : (value) => value,
    plot = height - top - bottom,
    x = (i) => left + ((width - left - right) * (i + 0.5)) / places.length,
    y = (value) => top + plot * (1 - (scale(value) - scale(low)) / (scale(high) - scale(low))),
    longest = Math.max(...places.map((name) => String(name).length)),
    every = Math.ceil((places.length * (6.2 * longest + 8)) / (width - left - right));
  const text = (attributes, content) => svg("text", { "font-size": 11, fill: "var(--soft)", ...attributes }, content);
  const draw = () =>
    svg(
      "svg",
      { viewBox: `0 0 ${width} ${height}`, width, role: "img", "aria-label": title },
      ticksOf(low, high, log).map((at) => [
        svg("line", { x1: left, x2: width - right, y1: y(at), y2: y(at), stroke: "var(--grid)" }),
        text({ x: left - 5, y: y(at) + 4, "text-anchor": "end" }, short(at)),
      ]),
      places.map((name, i) =>
        i % every ? null : text({ x: x(i), y: top + plot + 15, "text-anchor": "middle" }, name),
      ),
      unit ? text({ x: (left + width) / 2, y: top + plot + 30, "text-anchor": "middle" }, unit) : null,
      lines.map((line, n) => {
        const points = line.values.map((value, i) => (usable(value) ? [x(i), y(value), value, i] : null));
        const path = points
          .map((point, i) => (point ? `${i && points[i - 1] ? "L" : "M"}${point[0].toFixed(1)} ${point[1].toFixed(1)}` : ""))
          .join("");
        const color = categorical(n, lines.length);
        return [
          svg("path", { d: path, fill: "none", stroke: color, "stroke-width": 1.8, "stroke-dasharray": line.dashed ? "5 4" : null }),
          points.map((point) =>
            point
              ? svg(
                  "circle",
                  { cx: point[0], cy: point[1], r: places.length > 60 ? 2 : 3, fill: color },
                  svg("title", {}, `${line.name}, ${places[point[3]]}: ${number(point[2], SIGNIFICANT)}`),
                )
              : null,
          ),
          svg("rect", { x: left + (n % 2) * 230, y: height - bottom + 36 + 16 * Math.floor(n / 2), width: 10, height: 10, fill: color }),
          text({ x: left + 15 + (n % 2) * 230, y: height - bottom + 45 + 16 * Math.floor(n / 2) }, line.name),
        ];
      }),
    );
  return figure(title, draw);
}

// A name of a module, shortened where a page has little room.
const shortName = (name) => name.replace(/blocks\./g, "");

// Spaces that are seen, in the text of a token by itself.
const spaced = (text) => text.replaceAll(" ", "·");

// Blue below zero, red above; `at` is from -1 to 1.
const signedColor = (at) => {
  const share = Math.min(1, Math.abs(at)),
    end = at < 0 ? [33, 102, 172] : [178, 24, 43];
  return `rgb(${end.map((value) => Math.round(247 + (value - 247) * share)).join(" ")})`;
};

const percent = (p) => (p === 0 ? "0" : p < 1e-6 ? "<0.0001%" : `${+(100 * p).toPrecision(p < 0.001 ? 2 : 4)}%`);

"use strict";
// What all pages share: the data, elements, numbers, colors, the state in the address, downloads.

const DATA = JSON.parse(document.getElementById("data").textContent);

// ---- elements. Text is only ever set as text, so nothing in the data can become markup.

function addTo(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || (value === false && !name.startsWith("aria-"))) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "text") element.textContent = value;
    else element.setAttribute(name, value === true && !name.startsWith("aria-") ? "" : value);
  }
  for (const child of children.flat(Infinity))
    if (child !== null && child !== undefined && child !== false) element.append(child);
  return element;
}
const el = (tag, attributes, ...children) => addTo(document.createElement(tag), attributes, children);
const svg = (tag, attributes, ...children) =>
  addTo(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
const byId = (id) => document.getElementById(id);
const dot = (color) => el("span", { class: "dot", style: `background:${color}` });

function select(options, value, onchange, label) {
  const box = el("select", { "aria-label": label, onchange: () => onchange(box.value) });
  for (const [key, text] of options) box.append(el("option", { value: key, selected: key === value }, text));
  return box;
}

// ---- numbers, as a person reads them

const isNumber = (value) => typeof value === "number" && Number.isFinite(value);
// JSON has no NaN or infinity: the data has their names.
const asNumber = (value) => (["NaN", "Infinity", "-Infinity"].includes(value) ? Number(value) : value);

function number(value, digits = 5) {
  value = asNumber(value);
  if (value === null || value === undefined) return "";
  if (typeof value !== "number") return String(value);
  if (!Number.isFinite(value)) return String(value);
  if (Number.isInteger(value) && Math.abs(value) < 1e15) return value.toLocaleString("en-US");
  const size = Math.abs(value);
  if (size >= 1e6 || size < 1e-3)
    return value
      .toExponential(digits - 2)
      .replace(/\.?0+e/, "e")
      .replace("e+", "e");
  if (size >= 1000) return value.toLocaleString("en-US", { maximumFractionDigits: 1 });
  return value.toPrecision(digits);
}

const SI_UNITS = [
  [1e24, "Y"],
  [1e21, "Z"],
  [1e18, "E"],
  [1e15, "P"],
  [1e12, "T"],
  [1e9, "G"],
  [1e6, "M"],
  [1e3, "k"],
];
// A billion of tokens is B; a billion of operations is G.
const COUNT_UNITS = SI_UNITS.map(([unit, letter]) => [unit, letter === "G" ? "B" : letter]);

function short(value, units = SI_UNITS) {
  const size = Math.abs(value);
  if (size === 0) return "0";
  for (const [least, letter] of units)
    if (size >= least * 0.99999) return `${+(value / least).toPrecision(4)}${letter}`;
  return size < 1e-3 ? value.toExponential(3).replace(/\.?0+e/, "e") : `${+value.toPrecision(4)}`;
}
const shortCount = (value) => short(value, COUNT_UNITS);

function duration(seconds) {
  if (!isNumber(seconds)) return "";
  if (seconds < 60) return `${+seconds.toPrecision(3)} s`;
  if (seconds < 3600) return `${+(seconds / 60).toPrecision(3)} min`;
  if (seconds < 172800) return `${+(seconds / 3600).toPrecision(3)} h`;
  return `${+(seconds / 86400).toPrecision(3)} d`;
}

function bytes(size) {
  if (!isNumber(size)) return "";
  const [unit, name] = size >= 2 ** 40 ? [2 ** 40, "TiB"] : size >= 2 ** 30 / 10 ? [2 ** 30, "GiB"] : [2 ** 20, "MiB"];
  return `${+(size / unit).toPrecision(3)} ${name}`;
}

// ---- the state of the view: in the address, so that a reload and a link keep it

const VIEW = new URLSearchParams(location.hash.slice(1));
function remember(key, value) {
  if (value === null || value === undefined || value === "" || value === false) VIEW.delete(key);
  else VIEW.set(key, value === true ? "1" : value);
  history.replaceState(null, "", `#${VIEW}`);
}
const recall = (key, otherwise) => (VIEW.has(key) ? VIEW.get(key) : otherwise);

// ---- dark and light: the system's, until a person chooses

const systemIsDark = matchMedia("(prefers-color-scheme: dark)");
const themed = []; // functions that draw again
function applyTheme() {
  const chosen = recall("theme", "");
  document.documentElement.dataset.theme = chosen || (systemIsDark.matches ? "dark" : "light");
  for (const draw of themed) draw();
}
function themeButton() {
  const button = el("button", {
    class: "quiet",
    onclick: () => {
      remember("theme", document.documentElement.dataset.theme === "dark" ? "light" : "dark");
      applyTheme();
    },
  });
  const show = () => {
    const dark = document.documentElement.dataset.theme === "dark";
    button.textContent = dark ? "light" : "dark";
    button.title = `show this page ${dark ? "light" : "dark"}`;
  };
  themed.push(show);
  show();
  return button;
}
systemIsDark.addEventListener("change", applyTheme);
applyTheme();

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
// Colors may be written as var(--c0); a canvas and a file need what that is now.
const resolved = (color) => color.replace(/var\((--[\w-]+)\)/g, (_, name) => css(name));

// Ten colors that can be told apart; more are spread over the hues.
function categorical(index, count) {
  if (count <= 10) return `var(--c${index})`;
  const dark = document.documentElement.dataset.theme === "dark";
  return `hsl(${Math.round((index * 360) / count)} ${dark ? 70 : 65}% ${[dark ? 66 : 40, dark ? 55 : 52][index % 2]}%)`;
}
// Viridis (van der Walt and Smith), of which equal steps look equal; `at` is from 0 to 1.
const VIRIDIS = [
  [68, 1, 84],
  [71, 44, 122],
  [59, 81, 139],
  [44, 113, 142],
  [33, 144, 141],
  [39, 173, 129],
  [92, 200, 99],
  [170, 220, 50],
  [253, 231, 37],
];
function sequential(at) {
  const dark = document.documentElement.dataset.theme === "dark";
  // The end that would vanish in the background is left out.
  const place = (dark ? 0.18 + 0.82 * at : 0.88 * at) * (VIRIDIS.length - 1);
  const low = Math.min(Math.floor(place), VIRIDIS.length - 2);
  return `rgb(${VIRIDIS[low].map((from, i) => Math.round(from + (place - low) * (VIRIDIS[low + 1][i] - from))).join(" ")})`;
}

// ---- files that a person takes away

function download(name, blob) {
  const address = URL.createObjectURL(blob);
  const anchor = el("a", { href: address, download: name.replace(/[^\w.=+-]+/g, "-") });
  document.body.append(anchor);
  anchor.click();
  anchor.remove();
  setTimeout(() => URL.revokeObjectURL(address), 10000);
}
const asText = (element) => new XMLSerializer().serializeToString(element);

// A drawing as a file: colors as they are now, on a background.
function svgText(drawing) {
  const copy = drawing.cloneNode(true);
  copy.setAttribute("xmlns", "http://www.w3.org/2000/svg");
  copy.setAttribute("font-family", "system-ui, Helvetica, Arial, sans-serif");
  const [, , width, height] = copy.getAttribute("viewBox").split(" ");
  copy.setAttribute("width", width);
  copy.setAttribute("height", height);
  copy.removeAttribute("style");
  copy.prepend(svg("rect", { width, height, fill: "var(--card)" }));
  return resolved(asText(copy));
}

async function pngOf(text) {
  const image = new Image();
  image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(text)}`;
  await image.decode();
  const canvas = el("canvas", { width: 2 * image.width, height: 2 * image.height });
  const context = canvas.getContext("2d");
  context.scale(2, 2);
  context.drawImage(image, 0, 0);
  return new Promise((done) => canvas.toBlob(done, "image/png"));
}

// Buttons that save a figure; `draw` gives it as an SVG element.
function saveButtons(name, draw) {
  return [
    el(
      "button",
      {
        class: "quiet small",
        title: "save this figure as SVG",
        onclick: () => download(`${name}.svg`, new Blob([svgText(draw())], { type: "image/svg+xml" })),
      },
      "SVG",
    ),
    el(
      "button",
      {
        class: "quiet small",
        title: "save this figure as PNG",
        onclick: async () => download(`${name}.png`, await pngOf(svgText(draw()))),
      },
      "PNG",
    ),
  ];
}

// A part of the page is built when it is about to be seen: a page with many runs opens at once.
function whenSeen(element, build) {
  const watcher = new IntersectionObserver(
    (entries) => {
      if (!entries.some((entry) => entry.isIntersecting)) return;
      watcher.disconnect();
      build();
    },
    { rootMargin: "600px" },
  );
  watcher.observe(element);
}

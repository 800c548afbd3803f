"use strict";
// What both pages of gptlab inspect are made of.

function pageOf(sections) {
  const there = sections.filter(([, , section]) => section);
  byId("app").append(
    el(
      "header",
      {},
      el("div", { class: "bar" }, el("h1", {}, DATA.title), el("span", { class: "spacer" }), themeButton()),
      el(
        "nav",
        { "aria-label": "parts of the page" },
        there.map(([id, name]) =>
          el(
            "a",
            {
              href: `#${id}`,
              onclick: (event) => {
                event.preventDefault();
                byId(id).scrollIntoView({ behavior: "smooth" });
              },
            },
            name,
          ),
        ),
      ),
    ),
    el("div", { class: "lead soft" }, `written ${DATA.written}`),
    el(
      "main",
      {},
      there.map(([id, name, section]) => el("section", { id }, el("h2", {}, name), section)),
    ),
  );
}

const facts = (pairs) =>
  el(
    "dl",
    { class: "facts" },
    pairs.map(([name, text]) => [el("dt", {}, name), el("dd", {}, text)]),
  );

// A table; a cell is a text, a number, or an element. Numbers end at the right.
function tableOf(head, rows) {
  const numeric = head.map((_, i) => rows.length > 0 && rows.every((row) => row[i] === null || isNumber(asNumber(row[i])) || /^[+-]?[\d,.]+$/.test(row[i])));
  const cell = (value, i) => {
    if (value instanceof Node) return value.tagName === "TD" ? value : el("td", {}, value);
    return el("td", { class: numeric[i] ? "number" : "name" }, numeric[i] ? number(value, 4) : (value ?? ""));
  };
  return el(
    "div",
    { class: "scroll" },
    el(
      "table",
      {},
      el(
        "thead",
        {},
        el(
          "tr",
          {},
          head.map((name, i) => el("th", { class: numeric[i] ? "number" : null }, name)),
        ),
      ),
      el(
        "tbody",
        {},
        rows.map((row) => el("tr", {}, row.map(cell))),
      ),
    ),
  );
}

// A text whose tokens have the color of their loss; `scale` is that of the strongest one.
const lossColor = (nats, scale) => {
  const share = Math.max(0, Math.min(1, asNumber(nats) === Infinity ? 1 : nats / scale));
  return `color-mix(in srgb, var(--bad) ${Math.round(75 * share)}%, transparent)`;
};

function tokensOf(text, scale) {
  return text.map(([piece, nats]) =>
    nats === null
      ? el("span", { class: "soft" }, piece)
      : el("span", { class: "token", style: `background:${lossColor(nats, scale)}`, title: `${number(nats, 4)} nats` }, piece),
  );
}

const lossLegend = (scale) =>
  el(
    "p",
    { class: "legend soft" },
    "0",
    el("span", {
      class: "ramp",
      style: "background:linear-gradient(to right, transparent, color-mix(in srgb, var(--bad) 75%, transparent))",
    }),
    `${number(scale, 3)} nats or more, the loss of a guess among all tokens`,
  );

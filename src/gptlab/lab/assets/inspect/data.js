// The page of what is in the data.

const percent = (share) => `${number(100 * share, 3)}%`;

// Bars of counts under their names; every bin has the same width, so bins of powers of two are a logarithmic axis.
function bars(title, names, counts, unit) {
  const width = 420,
    height = 190,
    left = 46,
    bottom = 34,
    top = 8;
  const most = Math.max(1, ...counts),
    step = (width - left - 4) / Math.max(1, counts.length),
    y = (count) => top + (height - top - bottom) * (1 - count / most);
  const draw = () =>
    svg(
      "svg",
      { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": title },
      [0, 0.5, 1].map((share) => [
        svg("line", { x1: left, x2: width, y1: y(share * most), y2: y(share * most), stroke: "var(--grid)" }),
        svg(
          "text",
          { x: left - 5, y: y(share * most) + 4, "text-anchor": "end", "font-size": 11, fill: "var(--soft)" },
          shortCount(share * most),
        ),
      ]),
      counts.map((count, i) =>
        svg(
          "rect",
          {
            x: left + i * step + 1,
            y: y(count),
            width: Math.max(1, step - 2),
            height: Math.max(count ? 1 : 0, height - bottom - y(count)),
            fill: "var(--c0)",
          },
          svg("title", {}, `${names[i]} ${unit}: ${number(count)}`),
        ),
      ),
      names.map((name, i) =>
        i % Math.ceil(names.length / 9) === 0
          ? svg(
              "text",
              {
                x: left + (i + 0.5) * step,
                y: height - bottom + 14,
                "text-anchor": "middle",
                "font-size": 11,
                fill: "var(--soft)",
              },
              name,
            )
          : null,
      ),
      svg(
        "text",
        { x: left + (width - left) / 2, y: height - 4, "text-anchor": "middle", "font-size": 11, fill: "var(--soft)" },
        unit,
      ),
    );
  return el(
    "div",
    { class: "card figure" },
    el("header", {}, el("h3", {}, title), saveButtons(title.replaceAll(" ", "-"), draw)),
    draw(),
  );
}

const LOOK = DATA.look;
const binName = ([from]) => shortCount(from);
const lengthBars = (name, lengths) =>
  bars(name, lengths.bins.map(binName), lengths.bins.map((bin) => bin[2]), "tokens or more, up to twice as many");
const piece = (text) => el("td", { class: "text" }, text);

const lengthsSection = () =>
  el(
    "div",
    { class: "charts" },
    lengthBars(LOOK.sources.length > 1 ? "documents of all sources" : "documents by their length", LOOK.lengths),
    LOOK.sources.length > 1 ? LOOK.sources.map((one) => lengthBars(`documents of ${one.name}`, one.lengths)) : null,
  );

const sourcesSection = () =>
  tableOf(
    [
      ...(LOOK.sources.length > 1 ? ["source"] : []),
      "text",
      "read",
      "documents",
      "bytes",
      "tokens",
      "bytes per token",
      "tokens of all",
      ...(LOOK.sources.some((one) => one.weights) ? ["share of a run"] : []),
    ],
    LOOK.sources.map((one) => [
      ...(LOOK.sources.length > 1 ? [one.name] : []),
      one.description,
      one.how,
      one.n_documents,
      one.n_bytes,
      one.n_tokens,
      one.n_bytes / Math.max(1, one.n_tokens),
      one.total_tokens === null ? "unknown" : `${one.is_estimate ? "about " : ""}${number(one.total_tokens)}`,
      ...(LOOK.sources.some((other) => other.weights)
        ? [
            one.weights[0] === one.weights[1]
              ? percent(one.weights[0])
              : `${percent(one.weights[0])}, at the end ${percent(one.weights[1])}`,
          ]
        : []),
    ]),
  );

const cutsSection = () => [
  facts(DATA.cuts),
  el(
    "div",
    { class: "charts" },
    bars(
      "documents in a sequence",
      LOOK.cuts.bins.map(([k], i) => (i === LOOK.cuts.bins.length - 1 && k >= 9 ? `${k}+` : `${k}`)),
      LOOK.cuts.bins.map(([, count]) => count),
      "documents, wholly or in part",
    ),
  ),
];

const tokensSection = () => [
  facts(DATA.tokens),
  tableOf(
    ["token", "text", "count", "share"],
    LOOK.frequent.map(([token, text, count, share]) => [token, piece(text), count, percent(share)]),
  ),
  LOOK.outside.length
    ? [
        el("p", {}, "Characters that the vocabulary lacks; they were left out:"),
        tableOf(
          ["character", "count"],
          LOOK.outside.map(([text, count]) => [piece(text), count]),
        ),
      ]
    : null,
];

const repeatedSection = () => [
  facts(DATA.repeated),
  LOOK.repeated_documents.length
    ? tableOf(
        ["times", "document"],
        LOOK.repeated_documents.map((one) => [one.count, piece(one.text)]),
      )
    : null,
  LOOK.repeated_ngrams.length
    ? tableOf(
        ["times", `${LOOK.n_gram} tokens`],
        LOOK.repeated_ngrams.map((one) => [one.count, piece(one.text)]),
      )
    : null,
];

const shownSection = () =>
  el(
    "div",
    { class: "documents" },
    LOOK.shown.map((one) =>
      el(
        "div",
        { class: "card" },
        el("h3", {}, `${one.source ? `${one.source}: ` : ""}${one.name}`),
        el("p", { class: "small soft" }, `${number(one.n_tokens)} tokens, ${number(one.n_characters)} characters`),
        el("pre", {}, one.text),
        one.text.length < one.n_characters ? el("p", { class: "small soft" }, "the rest is not shown") : null,
      ),
    ),
  );

pageOf([
  ["summary", "Summary", facts(DATA.summary)],
  ["sources", "Sources", sourcesSection()],
  ["lengths", "Lengths", lengthsSection()],
  ["sequences", "Sequences", cutsSection()],
  ["tokens", "Tokens", tokensSection()],
  ["repetition", "Repetition", repeatedSection()],
  ["documents", "Documents", shownSection()],
]);

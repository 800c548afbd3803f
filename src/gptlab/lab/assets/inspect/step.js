// The page of a training step: the documents that it read, and the loss of each token.

function documentsSection() {
  if (!DATA.documents.length) return null;
  const scored = DATA.documents.some((one) => one.loss !== null);
  const named = DATA.documents.some((one) => one.name);
  const signed = (value) => (isNumber(value) ? `${value < 0 ? "" : "+"}${value.toFixed(4)}` : number(value));
  const mixture = DATA.documents.some((one) => one.source);
  const head = [
    ...(mixture ? ["source"] : []),
    "document",
    ...(named ? ["file or record"] : []),
    ...(scored ? ["loss", "raises the loss by", "targets"] : []),
    "tokens of it",
    "examples",
    "text",
  ];
  const rows = DATA.documents.map((one) => [
    ...(mixture ? [one.source] : []),
    one.document === null ? "?" : number(one.document),
    ...(named ? [one.name] : []),
    ...(scored ? [number(one.loss, 4), signed(one.raises), one.n_targets] : []),
    one.where,
    one.examples,
    el("td", { class: "text" }, one.text),
  ]);
  return [
    el("p", { class: "soft" }, DATA.documentsNote),
    tableOf(head, rows),
    DATA.leftOut ? el("p", { class: "soft" }, `${number(DATA.leftOut)} more documents are not shown`) : null,
  ];
}

function tokensSection() {
  if (!DATA.examples.length) return null;
  return [
    DATA.scored
      ? lossLegend(DATA.scale)
      : null,
    el(
      "div",
      { class: "examples" },
      DATA.examples.map((one) =>
        el(
          "div",
          { class: "card" },
          el("h3", {}, one.head),
          Object.entries(one.texts).map(([name, text]) => [
            Object.keys(one.texts).length > 1 ? el("p", { class: "small soft" }, name) : null,
            el("pre", {}, tokensOf(text, DATA.scale)),
          ]),
        ),
      ),
    ),
  ];
}

pageOf([
  ["step", "The step", facts(DATA.facts)],
  ["documents", "Documents", documentsSection()],
  ["tokens", DATA.scored ? "Loss of each token" : "Examples", tokensSection()],
]);

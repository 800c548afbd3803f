// The loss of each token of the text.

DRAW.token_loss = (data) => [
  note(
    `Cross-entropy ${number(data.loss, 5)} nats per token, the mean over ${number(data.rows.length)} predicted tokens; ` +
      `perplexity ${number(data.perplexity, 5)}, which is e to its power.`,
  ),
  lossLegend(data.scale),
  el("div", { class: "card" }, el("pre", { class: "wrap" }, tokensOf(data.text, data.scale))),
  el(
    "details",
    {},
    el("summary", {}, "each predicted token as a row"),
    tableOf(
      ["token", "loss in nats", "probability", "rank", "most likely", "its probability"],
      data.rows.map((row) => [
        el("td", { class: "text" }, spaced(row.token)),
        number(row.nats, 4),
        percent(row.p),
        row.rank,
        el("td", { class: "text" }, spaced(row.best)),
        percent(row.best_p),
      ]),
    ),
  ),
];

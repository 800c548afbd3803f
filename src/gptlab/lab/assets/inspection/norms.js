// Sizes of activations, weights and gradients by layer.

DRAW.norms = (data) => {
  const { activations, parameters } = data,
    blocks = activations.map((one) => shortName(one.name.replace(/^blocks\./, ""))),
    of = (what) => activations.map((one) => one[what] ?? null),
    names = { rms: "the block's output", attn: "attention", cross: "cross-attention", ffn: "feedforward" },
    parts = parameters.map((one) => shortName(one.name.replace(/^blocks\./, "")));
  return [
    note(
      data.loss === null
        ? "The model predicts no tokens of this text, so there is no loss and no gradient."
        : `One step on the loss of the text: ${number(data.loss, 5)} nats per token, norm of the whole gradient ${number(data.gradient, 4)}. Nothing is updated.`,
    ),
    el(
      "div",
      { class: "charts" },
      lineFigure(
        "activations by block, RMS",
        blocks,
        Object.entries(names)
          .filter(([what]) => of(what).some(isNumber))
          .map(([what, name]) => ({ name, values: of(what) })),
        { log: true },
      ),
      data.loss === null ? null : lineFigure("gradient of the block's output, norm", blocks, [{ name: "gradient", values: of("gradient") }], { log: true }),
      lineFigure(
        "weights and their gradients, norm",
        parts,
        [
          { name: "weights", values: parameters.map((one) => one.weights) },
          ...(data.loss === null ? [] : [{ name: "gradient", values: parameters.map((one) => one.gradient) }]),
        ],
        { log: true },
      ),
    ),
    el(
      "details",
      {},
      el("summary", {}, "each part"),
      tableOf(
        ["part", "parameters", "norm of the weights", "norm of the gradient"],
        parameters.map((one) => [el("td", { class: "name" }, one.name), one.n, one.weights, one.gradient]),
      ),
    ),
  ];
};

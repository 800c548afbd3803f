// Sizes of attention scores by layer and head, and what softmax makes of them.

DRAW.scores = (data) => {
  // Of an encoder-decoder its three kinds of attention one after the other, with a gap between them.
  const kinds = ["source", "self", "cross"].map((kind) => data.layers.filter((layer) => layer.kind === kind)),
    layers = kinds.flat(),
    spaced = (values) => {
      let at = 0;
      return kinds
        .filter((own) => own.length)
        .flatMap((own, n) => [...(n ? [null] : []), ...values.slice(at, (at += own.length))]);
    },
    places = spaced(layers.map((layer) => shortName(layer.name))).map((name) => name ?? ""),
    heads = (layer, of) => layer.heads.map(of),
    mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length,
    by = (of) => spaced(layers.map((layer) => mean(heads(layer, of))));
  const names = [...new Set(layers.flatMap((layer) => Object.keys(layer.scalings)))];
  const effect = (what, title, options, more = []) =>
    lineFigure(
      title,
      places,
      [
        ...names.map((name) => ({
          name,
          values: spaced(
            layers.map((layer) => (layer.scalings[name] ? mean(heads(layer, (one) => one.softmax[name][what])) : null)),
          ),
        })),
        ...more,
      ],
      options,
    );
  const own = [...new Set(layers.map((layer) => layer.own))];
  return [
    note(
      "A query times a key is a sum over the d_head channels. If these are independent of each other, centered and of unit variance, the sum has the standard deviation sqrt(d_head): without a scale, softmax would become sharper as heads get wider, and its gradient would vanish. ",
      `This model's own scores are ${own.join(" and ")}. Means over the heads of each layer.`,
    ),
    el(
      "div",
      { class: "charts" },
      lineFigure("standard deviation of q · k", places, [
        { name: "unscaled", values: by((one) => one.std) },
        { name: "sqrt(d_head)", values: spaced(layers.map((layer) => layer.sqrt_d_head)), dashed: true },
        { name: "if channels were independent", values: by((one) => one.std_independent), dashed: true },
        { name: "divided by sqrt(d_head)", values: spaced(layers.map((layer) => mean(heads(layer, (one) => one.std)) / layer.sqrt_d_head)) },
      ], { log: true }),
      effect("entropy", "entropy of softmax, nats", {}, [
        { name: "uniform", values: spaced(layers.map((layer) => layer.entropy_limit)), dashed: true },
      ]),
      effect("largest", "largest probability", {}),
      effect("gradient", "size of softmax's gradient", {}),
    ),
    note("The size of the gradient is the Frobenius norm of softmax's Jacobian diag(p) − p pᵀ: 0 where one key has all the weight, and a gradient cannot pass."),
    el(
      "details",
      {},
      el("summary", {}, "each head"),
      tableOf(
        ["layer", "head", "std of q · k", "sqrt(d_head)", "if independent", ...names.flatMap((name) => [`entropy, ${name}`, `largest, ${name}`, `gradient, ${name}`])],
        layers.flatMap((layer) =>
          layer.heads.map((one, head) => [
            el("td", { class: "name" }, layer.name),
            head,
            one.std,
            layer.sqrt_d_head,
            one.std_independent,
            ...names.flatMap((name) => ["entropy", "largest", "gradient"].map((what) => one.softmax[name]?.[what] ?? null)),
          ]),
        ),
      ),
    ),
  ];
};

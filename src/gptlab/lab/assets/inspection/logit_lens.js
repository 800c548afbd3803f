// Logit lens: the most likely token of each layer at each position.

DRAW.logit_lens = (data) => {
  const layers = [...data.layers].reverse(), // the last one above, as BertViz and others show it
    measures = {
      probability: ["probability of the token", (value) => value],
      entropy: [`entropy, of up to ${number(data.uniform, 3)} nats`, (value) => 1 - value / data.uniform],
      kl: ["divergence from the last layer, nats", (value) => 1 / (1 + asNumber(value))],
      ...(data.targets ? { loss: ["loss of the target, nats", (value) => 1 - Math.min(1, value / data.uniform)] } : {}),
    };
  let measure = measures[recall("lens", "")] ? recall("lens", "") : "probability";
  const holder = el("div", { class: "scroll" });
  const visible = (text) => text.replaceAll(" ", "·") || "∅";
  function draw() {
    const [, shade] = measures[measure];
    holder.replaceChildren(
      el(
        "table",
        { class: "lens" },
        el(
          "thead",
          {},
          el("tr", {}, el("th", { scope: "row" }, "read"), data.read.map((label) => el("th", {}, visible(label)))),
          data.targets
            ? el("tr", {}, el("th", { scope: "row" }, "target"), data.targets.map((label) => el("th", {}, label === null ? "" : visible(label))))
            : null,
        ),
        el(
          "tbody",
          {},
          layers.map((layer) =>
            el(
              "tr",
              {},
              el("th", { scope: "row" }, shortName(layer.name)),
              layer.text.map((text, i) => {
                const value = layer[measure][i],
                  share = value === null ? 0 : Math.max(0, Math.min(1, shade(value))),
                  facts = [
                    `${layer.name}, position ${i}`,
                    `token ${layer.token[i]}: ${text}`,
                    `probability ${number(layer.probability[i], 4)}`,
                    `entropy ${number(layer.entropy[i], 4)} nats`,
                    `divergence ${number(layer.kl[i], 4)} nats`,
                    ...(layer.loss && layer.loss[i] !== null ? [`loss of the target ${number(layer.loss[i], 4)} nats`] : []),
                  ];
                return el(
                  "td",
                  {
                    title: facts.join("\n"),
                    class: data.targets && data.targets[i] === text ? "right" : null,
                    style: `background:color-mix(in srgb, var(--accent) ${Math.round(70 * share)}%, transparent)`,
                  },
                  visible(text),
                );
              }),
            ),
          ),
        ),
      ),
    );
  }
  draw();
  const mean = (what) => data.layers.map((layer) => average(layer[what]));
  return [
    note(
      "What the output head would predict if each layer were the last: below, the embedding; above, the model itself. ",
      data.is_causal ? "Each column predicts the token after the one read. " : "An encoder reads masks where it predicts a target. ",
      "A token that is the target is underlined.",
    ),
    el(
      "div",
      { class: "bar" },
      el(
        "label",
        {},
        "color",
        select(
          Object.entries(measures).map(([key, [name]]) => [key, name]),
          measure,
          (value) => {
            measure = value;
            remember("lens", value === "probability" ? "" : value);
            draw();
          },
          "color of the logit lens",
        ),
      ),
    ),
    el("div", { class: "card" }, holder),
    el(
      "div",
      { class: "charts" },
      lineFigure("divergence from the last layer, nats", data.layers.map((layer) => shortName(layer.name.replace(/^blocks\./, ""))), [
        { name: "mean over positions", values: mean("kl") },
      ]),
      lineFigure("entropy and loss, nats", data.layers.map((layer) => shortName(layer.name.replace(/^blocks\./, ""))), [
        { name: "entropy", values: mean("entropy") },
        ...(data.targets ? [{ name: "loss of the targets", values: mean("loss") }] : []),
      ]),
    ),
  ];
};

function average(values) {
  const known = values.map(asNumber).filter(isNumber);
  return known.length ? known.reduce((sum, value) => sum + value, 0) / known.length : null;
}

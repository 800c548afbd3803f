// Scales and shifts of LayerNorm and RMSNorm: a histogram for each norm, on one axis.

DRAW.norm_weights = (data) => {
  const rows = ({ edges, layers }, title) => {
    const width = 560,
      row = 30,
      left = 150,
      right = 110,
      top = 4,
      height = top + row * layers.length + 34,
      low = edges[0],
      high = edges[edges.length - 1],
      x = (value) => left + ((width - left - right) * (value - low)) / (high - low || 1);
    const text = (attributes, content) => svg("text", { "font-size": 10.5, fill: "var(--soft)", ...attributes }, content);
    const draw = () =>
      svg(
        "svg",
        { viewBox: `0 0 ${width} ${height}`, width, role: "img", "aria-label": title },
        ticksOf(low, high, false).map((at) => [
          svg("line", { x1: x(at), x2: x(at), y1: top, y2: height - 28, stroke: "var(--grid)" }),
          text({ x: x(at), y: height - 14, "text-anchor": "middle" }, short(at)),
        ]),
        layers.map((layer, i) => {
          const most = Math.max(...layer.counts),
            base = top + row * (i + 1) - 3;
          return svg(
            "g",
            {},
            svg(
              "title",
              {},
              `${layer.name}: ${number(layer.n)} values from ${number(layer.least, SIGNIFICANT)} to ${number(layer.most, SIGNIFICANT)}, mean ${number(layer.mean, SIGNIFICANT)}, standard deviation ${number(layer.std, SIGNIFICANT)}`,
            ),
            svg("rect", { x: 0, y: base - row + 3, width, height: row, fill: "transparent" }),
            svg("line", { x1: left, x2: width - right, y1: base, y2: base, stroke: "var(--line)" }),
            layer.counts.map((count, bin) =>
              count
                ? svg("rect", {
                    x: x(edges[bin]),
                    y: base - Math.max(1, ((row - 6) * count) / most),
                    width: Math.max(1, x(edges[bin + 1]) - x(edges[bin]) - 0.5),
                    height: Math.max(1, ((row - 6) * count) / most),
                    fill: "var(--c0)",
                  })
                : null,
            ),
            text({ x: left - 6, y: base - 4, "text-anchor": "end" }, shortName(layer.name)),
            text({ x: width - right + 6, y: base - 4 }, `${number(layer.mean, 3)} ± ${number(layer.std, 3)}`),
          );
        }),
      );
    return figure(title, draw);
  };
  return [
    note("A row for each norm, in the order of the model, with the mean and the standard deviation of its values; the highest bars of all rows are alike."),
    el("div", { class: "charts" }, rows(data.scale, "scales"), data.shift ? rows(data.shift, "shifts") : null),
  ];
};

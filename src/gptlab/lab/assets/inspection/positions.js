// How positions enter: the table that is added, rotary frequencies, or biases by distance.

// A picture of signed bytes, row by row, as a figure with axes.
function heatFigure(title, bytes, { rows, columns, down, across, unit }) {
  const values = new Int8Array(bytesOf(bytes).buffer),
    width = 460,
    left = 50,
    top = 8,
    bottom = 38,
    right = 12,
    plotWidth = width - left - right,
    plotHeight = Math.max(140, Math.min(360, (plotWidth * rows.length) / columns.length)),
    height = top + plotHeight + bottom,
    canvas = el("canvas", { width: columns.length, height: rows.length }),
    context = canvas.getContext("2d"),
    image = context.createImageData(columns.length, rows.length);
  values.forEach((value, i) => {
    const [red, green, blue] = signedColor(value / 127).match(/\d+/g);
    image.data.set([red, green, blue, 255], 4 * i);
  });
  context.putImageData(image, 0, 0);
  const address = canvas.toDataURL(),
    text = (attributes, content) => svg("text", { "font-size": 11, fill: "var(--soft)", ...attributes }, content),
    marks = (all, n) => Array.from({ length: n + 1 }, (_, i) => Math.round(((all.length - 1) * i) / n));
  const draw = () =>
    svg(
      "svg",
      { viewBox: `0 0 ${width} ${height}`, width, role: "img", "aria-label": title },
      svg("image", { href: address, x: left, y: top, width: plotWidth, height: plotHeight, preserveAspectRatio: "none", style: "image-rendering:pixelated" }),
      marks(columns, 4).map((i) => text({ x: left + ((i + 0.5) * plotWidth) / columns.length, y: top + plotHeight + 14, "text-anchor": "middle" }, columns[i])),
      marks(rows, 4).map((i) => text({ x: left - 4, y: top + ((i + 0.5) * plotHeight) / rows.length + 4, "text-anchor": "end" }, rows[i])),
      text({ x: left + plotWidth / 2, y: height - 8, "text-anchor": "middle" }, across),
      text({ transform: `translate(11 ${top + plotHeight / 2}) rotate(-90)`, "text-anchor": "middle" }, down),
    );
  return figure(title, draw, note(`blue is below zero, red above; the strongest color is ${unit}`));
}

const thinned = (values, limit = 64) => values.map((_, i) => i).filter((i) => i % Math.ceil(values.length / limit) === 0);

function byDistance(title, { distances, cosine_by_distance: cosines }) {
  const kept = thinned(distances);
  return lineFigure(title, kept.map((i) => distances[i]), [{ name: "mean cosine", values: kept.map((i) => cosines[i]) }], {
    unit: "distance in tokens",
  });
}

DRAW.positions = ({ table, rotary, biases }) => {
  const parts = [];
  if (table) {
    parts.push(
      note(
        table.kind === "sinusoidal"
          ? "Sinusoidal encodings: sines and cosines of the position at frequencies that fall from channel to channel; nothing is learned."
          : "Learned encodings: a vector for each position, which is added to the token's embedding.",
      ),
      el(
        "div",
        { class: "charts" },
        heatFigure("Encodings", table.values, { rows: table.rows, columns: table.columns, down: "position", across: "channel", unit: number(table.largest, 3) }),
        heatFigure("Cosines between positions", table.cosines, { rows: table.rows, columns: table.rows, down: "position", across: "position", unit: "1" }),
        byDistance("Cosine by distance", table),
      ),
    );
  }
  if (rotary) {
    const { frequencies, wavelengths, context } = rotary,
      places = frequencies.map((_, i) => i),
      turning = wavelengths.filter((length) => length <= context).length;
    parts.push(
      note(
        `Rotary positions turn ${number(frequencies.length)} pairs of channels of each query and key, each at its own frequency (base ${number(rotary.theta)}). ` +
          `${number(turning)} of them make a whole turn within the context of ${number(context)} tokens.`,
      ),
      el(
        "div",
        { class: "charts" },
        lineFigure("Tokens that a whole turn takes", places, [{ name: "wavelength", values: wavelengths }, { name: "context", values: wavelengths.map(() => context), dashed: true }], {
          log: true,
          unit: "pair of channels",
        }),
        byDistance("What turning leaves of the score of two equal vectors", rotary),
      ),
    );
  }
  for (const { name, distances, heads } of biases || []) {
    const kept = thinned(distances);
    parts.push(
      note(`Biases of ${name}: what is added to the scores of each head, by the key's position less the query's.`),
      el(
        "div",
        { class: "charts" },
        lineFigure(
          `Bias by distance, ${name}`,
          kept.map((i) => distances[i]),
          heads.map((values, head) => ({ name: `head ${head}`, values: kept.map((i) => values[i]) })),
          { unit: "key less query, in tokens" },
        ),
      ),
    );
  }
  return parts;
};

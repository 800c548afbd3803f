// Embeddings of the text's tokens: how alike they are, their nearest neighbours, and any other token where it is known.

const angleOf = (cosine) => (Math.acos(Math.max(-1, Math.min(1, cosine))) * 180) / Math.PI;

// The rows of a table of embeddings in 8 bits, and the tokens nearest to one of them.
function neighboursOf({ values, width, texts }, token, n) {
  const table = new Int8Array(bytesOf(values).buffer),
    norm = (i) => {
      let sum = 0;
      for (let k = i * width; k < (i + 1) * width; k++) sum += table[k] * table[k];
      return Math.sqrt(sum) || 1;
    },
    own = norm(token),
    found = [];
  for (let i = 0; i < texts.length; i++) {
    if (i === token) continue;
    let sum = 0;
    for (let k = 0; k < width; k++) sum += table[token * width + k] * table[i * width + k];
    found.push([i, sum / (own * norm(i))]);
  }
  return found.sort((a, b) => b[1] - a[1]).slice(0, n);
}

DRAW.embeddings = (data) => {
  const { cosines } = data,
    tokens = data.tokens.map(spaced),
    cell = 22,
    left = 110,
    top = 90,
    width = left + cell * tokens.length + 10,
    height = top + cell * tokens.length + 6,
    cut = (text) => (text.length > 14 ? `${text.slice(0, 13)}…` : text);
  const draw = () =>
    svg(
      "svg",
      { viewBox: `0 0 ${width} ${height}`, width, role: "img", "aria-label": "cosines between embeddings" },
      tokens.map((name, i) => [
        svg("text", { x: left - 5, y: top + cell * i + 15, "text-anchor": "end", "font-size": 11, "font-family": "monospace", fill: "var(--ink)" }, cut(name)),
        svg(
          "text",
          { transform: `translate(${left + cell * i + 15} ${top - 5}) rotate(-60)`, "font-size": 11, "font-family": "monospace", fill: "var(--ink)" },
          cut(name),
        ),
        tokens.map((other, j) =>
          svg(
            "rect",
            { x: left + cell * j, y: top + cell * i, width: cell - 1, height: cell - 1, fill: signedColor(cosines[i][j]) },
            svg("title", {}, `${name} and ${other}: cosine ${number(cosines[i][j], 3)}, ${number(angleOf(cosines[i][j]), 3)} degrees`),
          ),
        ),
      ]),
    );
  const near = (list) => list.map(({ token, degrees }) => el("span", { class: "near" }, `${spaced(token)} ${degrees.toFixed(1)}°`));
  const found = el("p", { role: "status" }),
    names = data.table ? data.table.texts : [],
    search = () => {
      const text = asked.value;
      if (text === "") return found.replaceChildren();
      let token = names.findIndex((name) => name === text);
      if (token < 0) token = names.findIndex((name) => name.trim() === text.trim());
      if (token < 0) return found.replaceChildren(el("span", { class: "soft" }, `no token is ${text}; a word may be several tokens`));
      const list = neighboursOf(data.table, token, 10).map(([i, cosine]) => ({ token: names[i], degrees: angleOf(cosine) }));
      found.replaceChildren(el("b", {}, `${spaced(names[token])} (${token}): `), near(list));
    },
    asked = el("input", { type: "search", "aria-label": "a token", oninput: () => search() });
  return [
    note(
      "Embeddings are compared by the angle between them: a cosine of 1 is the same direction, 0 a right angle. " +
        `The mean length of all is ${number(data.mean_norm, 4)}.`,
    ),
    el(
      "div",
      { class: "charts" },
      figure("Cosines between the text's tokens", draw),
      el(
        "div",
        { class: "tall" },
        tableOf(
          ["token", "length", "nearest tokens, with their angles"],
          tokens.map((name, i) => [el("td", { class: "text" }, name), number(data.norms[i], 4), el("td", { class: "text" }, near(data.neighbours[i]))]),
        ),
      ),
    ),
    data.table
      ? el("div", { class: "card" }, el("label", {}, "the nearest to a token of your own: ", asked), found)
      : note("The table of this model is too large to go along with the page: another prompt=... shows other tokens."),
  ];
};

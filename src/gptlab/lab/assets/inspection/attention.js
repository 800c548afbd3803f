// Attention maps: all heads as small pictures, and one of them large, with the tokens.

DRAW.attention = (data) => {
  const sequences = { tokens: DATA.tokens, source: DATA.source };
  const weightAt = (group, layer, head, query, key) => {
    const { causal, n_queries, n_keys } = group,
      size = causal ? (n_queries * (n_queries + 1)) / 2 : n_queries * n_keys;
    if (causal && key > query) return null;
    layer.bytes ||= bytesOf(layer.maps);
    return layer.bytes[head * size + (causal ? (query * (query + 1)) / 2 + key : query * n_keys + key)];
  };

  // From the background to the accent, by the square root of the weight, as it is stored.
  const channels = (color) => {
    const canvas = el("canvas", { width: 1, height: 1 }).getContext("2d");
    canvas.fillStyle = color;
    canvas.fillRect(0, 0, 1, 1);
    return canvas.getImageData(0, 0, 1, 1).data;
  };
  const colors = () => {
    const from = channels(css("--card")),
      to = channels(css("--accent"));
    return Array.from({ length: 256 }, (_, i) => [0, 1, 2].map((c) => from[c] + ((to[c] - from[c]) * i) / 255));
  };
  // A picture with a pixel for each pair of tokens.
  const picture = (canvas, group, layer, head) => {
    const { n_queries, n_keys } = group;
    [canvas.width, canvas.height] = [n_keys, n_queries];
    const context = canvas.getContext("2d"),
      image = context.createImageData(n_keys, n_queries),
      palette = colors();
    for (let query = 0; query < n_queries; query++)
      for (let key = 0; key < n_keys; key++) {
        const color = palette[weightAt(group, layer, head, query, key) || 0];
        image.data.set([...color, 255], 4 * (query * n_keys + key));
      }
    context.putImageData(image, 0, 0);
  };

  const section = (group, g) => {
    const place = `head${g}`,
      state = { layer: 0, head: 0, query: null };
    const [layer, head] = recall(place, "").split(".").map(Number);
    if (group.layers[layer] && head >= 0 && head < group.layers[layer].n_head) Object.assign(state, { layer, head });
    const queries = sequences[group.queries],
      keys = sequences[group.keys];

    const large = el("canvas", { role: "img", tabindex: 0 }),
      tip = el("div", { class: "tip", hidden: true }),
      heading = el("h3", {}),
      measured = el("p", { class: "soft small" }),
      text = el("pre", { class: "attended" }),
      holder = el("div", { class: "plot scroll map" }, large, tip);
    let cell = 1,
      left = 0,
      top = 0;
    const small = el("canvas", {});

    function drawLarge() {
      const own = group.layers[state.layer],
        room = Math.min(holder.clientWidth || 600, 760), // so that it fits a screen
        cells = Math.max(group.n_keys, 1);
      const needed = (names, n) => 10 + 6.8 * Math.min(14, Math.max(...names.slice(0, n).map((label) => label.length)));
      left = Math.min(needed(queries, group.n_queries), room * 0.3);
      cell = Math.max(2, Math.min(22, Math.floor((room - left - 2) / cells)));
      const labels = cell >= 9;
      if (!labels) {
        left = 0;
        cell = Math.max(2, Math.floor((room - 2) / cells));
      }
      top = labels ? needed(keys, group.n_keys) : 0;
      const width = left + cell * group.n_keys,
        height = top + cell * group.n_queries,
        ratio = window.devicePixelRatio || 1;
      [large.width, large.height] = [width * ratio, height * ratio];
      Object.assign(large.style, { width: `${width}px`, height: `${height}px` });
      Object.assign(large.dataset, { left, top, cell });
      const context = large.getContext("2d");
      context.scale(ratio, ratio);
      picture(small, group, own, state.head);
      context.imageSmoothingEnabled = false;
      context.drawImage(small, left, top, cell * group.n_keys, cell * group.n_queries);
      context.strokeStyle = css("--line");
      context.strokeRect(left + 0.5, top + 0.5, cell * group.n_keys - 1, cell * group.n_queries - 1);
      if (labels) {
        context.fillStyle = css("--soft");
        context.font = `${Math.min(11, cell)}px ${css("--mono")}`;
        context.textBaseline = "middle";
        context.textAlign = "right";
        const shown = (label) => (label.length > 14 ? `${label.slice(0, 13)}…` : label.replaceAll(" ", "·"));
        for (let i = 0; i < group.n_queries; i++) context.fillText(shown(queries[i]), left - 4, top + (i + 0.5) * cell);
        context.textAlign = "left";
        for (let i = 0; i < group.n_keys; i++) {
          context.save();
          context.translate(left + (i + 0.5) * cell, top - 4);
          context.rotate(-Math.PI / 2.6);
          context.fillText(shown(keys[i]), 0, 0);
          context.restore();
        }
      }
      if (state.query !== null) {
        context.strokeStyle = css("--c1");
        context.strokeRect(left + 0.5, top + state.query * cell + 0.5, cell * group.n_keys - 1, cell - 1);
      }
      const one = own.heads[state.head],
        facts = [`mean entropy ${number(one.entropy, 3)} nats`, `first token ${percentOf(one.first)}`];
      if (isNumber(one.own)) facts.push(`own token ${percentOf(one.own)}`);
      if (isNumber(one.previous)) facts.push(`previous token ${percentOf(one.previous)}`);
      heading.textContent = `${own.name}, head ${state.head}`;
      large.setAttribute("aria-label", `attention map of ${heading.textContent}`);
      measured.textContent = `Over all queries: ${facts.join(", ")}.`;
      drawText();
    }

    function drawText() {
      const own = group.layers[state.layer],
        query = state.query ?? group.n_queries - 1;
      const spans = keys.slice(0, group.n_keys).map((label, key) => {
        const byte = weightAt(group, own, state.head, query, key),
          weight = byte === null ? null : (byte / 255) ** 2;
        return el(
          "span",
          {
            class: `token${group.queries === group.keys && key === query ? " hit" : ""}`,
            style: weight === null ? "color:var(--soft)" : `background:color-mix(in srgb, var(--accent) ${Math.round((byte / 255) * 80)}%, transparent)`,
            title: weight === null ? "not seen" : weight.toFixed(4),
            onclick: group.queries === group.keys ? () => choose(key) : null,
          },
          label.replaceAll(" ", "·"),
        );
      });
      text.replaceChildren(
        el("span", { class: "soft" }, `query ${query}, ${queries[query].replaceAll(" ", "·")}, attends to: `),
        ...spans,
      );
    }

    function choose(query) {
      state.query = query;
      drawLarge();
    }

    large.addEventListener("pointermove", (event) => {
      const box = large.getBoundingClientRect(),
        key = Math.floor((event.clientX - box.left - left) / cell),
        query = Math.floor((event.clientY - box.top - top) / cell);
      tip.hidden = key < 0 || query < 0 || key >= group.n_keys || query >= group.n_queries;
      if (tip.hidden) return;
      const byte = weightAt(group, group.layers[state.layer], state.head, query, key);
      tip.replaceChildren(
        el("div", { "data-query": query, "data-key": key }, `query ${query}: ${queries[query]}`),
        el("div", {}, `key ${key}: ${keys[key]}`),
        el("div", { class: "number" }, byte === null ? "not seen" : `weight ${((byte / 255) ** 2).toFixed(3)}`),
      );
      const x = Math.min(event.clientX - box.left + 14, Math.max(0, holder.clientWidth - 190));
      Object.assign(tip.style, { left: `${x + holder.scrollLeft}px`, top: `${event.clientY - box.top + 14}px` });
    });
    large.addEventListener("pointerleave", () => (tip.hidden = true));
    large.addEventListener("click", (event) => {
      const query = Math.floor((event.clientY - large.getBoundingClientRect().top - top) / cell);
      if (query >= 0 && query < group.n_queries) choose(query);
    });
    large.addEventListener("keydown", (event) => {
      const by = { ArrowUp: -1, ArrowDown: 1 }[event.key];
      if (!by) return;
      event.preventDefault();
      choose(Math.max(0, Math.min(group.n_queries - 1, (state.query ?? 0) + by)));
    });

    const buttons = [];
    const most = Math.max(...group.layers.map((own) => own.n_head));
    const thumbnails = el(
      "div",
      { class: "scroll" },
      el(
        "table",
        { class: "heads" },
        el("thead", {}, el("tr", {}, el("th", {}, "layer"), Array.from({ length: most }, (_, head) => el("th", {}, head)))),
        el(
          "tbody",
          {},
          group.layers.map((own, layer) =>
            el(
              "tr",
              {},
              el("th", { scope: "row" }, shortName(own.name)),
              own.heads.map((_, head) => {
                const canvas = el("canvas", {});
                const button = el(
                  "button",
                  {
                    "aria-label": `${own.name}, head ${head}`,
                    title: `${own.name}, head ${head}`,
                    "aria-pressed": String(layer === state.layer && head === state.head),
                    onclick: () => {
                      Object.assign(state, { layer, head });
                      remember(place, `${layer}.${head}`);
                      for (const other of buttons) other.button.setAttribute("aria-pressed", String(other.button === button));
                      drawLarge();
                    },
                  },
                  canvas,
                );
                buttons.push({ button, draw: () => picture(canvas, group, own, head) });
                return el("td", {}, button);
              }),
            ),
          ),
        ),
      ),
    );
    const whole = el(
      "div",
      { class: "attention" },
      data.groups.length > 1 ? el("h3", {}, group.title) : null,
      el("div", { class: "card" }, thumbnails),
      el(
        "div",
        { class: "card figure" },
        el(
          "header",
          {},
          heading,
          el(
            "button",
            {
              class: "quiet small",
              title: "save this map as PNG",
              onclick: () => large.toBlob((blob) => download(`${heading.textContent}.png`, blob)),
            },
            "PNG",
          ),
        ),
        measured,
        holder,
        text,
      ),
    );
    const drawAll = () => {
      for (const { draw } of buttons) draw();
      drawLarge();
    };
    let seen = false;
    whenSeen(whole, () => {
      seen = true;
      drawAll();
    });
    themed.push(() => seen && drawAll());
    window.addEventListener("resize", () => seen && drawLarge());
    return whole;
  };

  return [
    note(
      "Rows are queries, columns keys; a stronger color is a larger weight, by its square root. Choose a head among the small maps, and a query by a click in the large one, which marks what it attends to in the text below. Weights are stored in 8 bits, to 0.004 or better.",
      data.cut_to ? ` The maps hold the first ${data.cut_to} tokens alone, so that the page stays small.` : null,
    ),
    data.groups.map(section),
  ];
};

const percentOf = (share) => `${number(100 * share, 3)}%`;

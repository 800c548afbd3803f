// Configs.

function configSection() {
  const section = el("section", { id: "config" });
  whenSeen(section, () => {
    const differing = el("div");
    if (DATA.keys.length)
      differing.append(
        el(
          "div",
          { class: "scroll" },
          el(
            "table",
            {},
            el(
              "thead",
              {},
              el(
                "tr",
                {},
                el("th", {}, "key"),
                el("th", {}, "values, and how many runs have each; choose one to show these alone"),
              ),
            ),
            el(
              "tbody",
              {},
              DATA.keys.map(({ key }) =>
                el(
                  "tr",
                  {},
                  el("td", {}, el("code", {}, key)),
                  el(
                    "td",
                    {},
                    distinct(RUNS.map((run) => configOf(run, key)))
                      .sort(byValue)
                      .slice(0, 60)
                      .map((value) => {
                        const runs = RUNS.filter((run) => JSON.stringify(configOf(run, key)) === JSON.stringify(value));
                        return el(
                          "button",
                          { class: "value", onclick: () => showOnly(runs) },
                          value === undefined ? "not set" : shown(value),
                          el("span", { class: "soft" }, ` (${runs.length})`),
                        );
                      }),
                  ),
                ),
              ),
            ),
          ),
        ),
      );
    else if (RUNS.length > 1) differing.append(el("p", { class: "soft" }, "All runs have one config, seeds left out."));
    let [first, second] = [0, RUNS.findIndex((run) => run.group !== RUNS[0]?.group)];
    if (second < 0) second = Math.min(1, RUNS.length - 1);
    const alone = RUNS.length === 1;
    let everything = alone;
    const table = el("table"),
      choices = RUNS.map((run) => [String(run.index), run.name]);
    const draw = () => {
      const [a, b] = [RUNS[first], RUNS[second]];
      const keys = [
        ...new Set([...Object.keys(DATA.config), ...Object.keys(a.config), ...Object.keys(b.config)]),
      ].sort();
      const differs = (key) => JSON.stringify(configOf(a, key)) !== JSON.stringify(configOf(b, key));
      const chosen = keys.filter((key) => everything || differs(key));
      table.replaceChildren(
        el(
          "thead",
          {},
          el(
            "tr",
            {},
            el("th", {}, "key"),
            (alone ? [a] : [a, b]).map((run) => el("th", {}, cut(run.name, 40))),
          ),
        ),
        el(
          "tbody",
          {},
          chosen.length
            ? chosen.map((key) =>
                el(
                  "tr",
                  {},
                  el("td", {}, el("code", {}, key)),
                  (alone ? [a] : [a, b]).map((run) =>
                    el(
                      "td",
                      { class: everything && differs(key) ? "changed" : "" },
                      configOf(run, key) === undefined
                        ? el("span", { class: "soft" }, "not set")
                        : shown(configOf(run, key)),
                    ),
                  ),
                ),
              )
            : el("tr", {}, el("td", { colspan: 3, class: "soft" }, "no difference")),
        ),
      );
    };
    section.append(
      el(
        "div",
        { class: "card" },
        el("h2", {}, "Config"),
        differing,
        RUNS.length
          ? [
              el(
                "div",
                { class: "bar", style: "margin:.9rem 0 .4rem", hidden: alone },
                el("h3", {}, "Two runs"),
                select(
                  choices,
                  String(first),
                  (value) => {
                    first = +value;
                    draw();
                  },
                  "first run",
                ),
                select(
                  choices,
                  String(second),
                  (value) => {
                    second = +value;
                    draw();
                  },
                  "second run",
                ),
                el(
                  "label",
                  {},
                  el("input", {
                    type: "checkbox",
                    onchange: (event) => {
                      everything = event.target.checked;
                      draw();
                    },
                  }),
                  "all keys",
                ),
              ),
              el("div", { class: "scroll" }, table),
            ]
          : null,
      ),
    );
    if (RUNS.length) draw();
  });
  return section;
}

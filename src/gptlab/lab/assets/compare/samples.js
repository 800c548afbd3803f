// Samples.

function samplesSection() {
  const with_ = RUNS.filter((run) => run.samples.length);
  if (!with_.length) return null;
  const section = el("section", { id: "samples" });
  whenSeen(section, () => {
    const ranked = [...with_].sort((a, b) => better(MAIN)(judged(a), judged(b)));
    const chosen = [...new Set([0, (ranked.length - 1) >> 1, ranked.length - 1])].map((i) => ranked[i]);
    const host = el("div", { class: "samples" });
    let at = 100;
    const most = Math.max(...with_.map((run) => run.samples[run.samples.length - 1][0]));
    const where = el("span", { class: "small soft number" });
    const draw = () => {
      const step = Math.round((at / 100) * most);
      where.textContent = at === 100 ? "the last" : `about step ${number(step)}`;
      host.replaceChildren(
        ...chosen.map((run, place) => {
          const [of, losses, text] = run.samples.reduce((a, b) =>
            Math.abs(b[0] - step) <= Math.abs(a[0] - step) ? b : a,
          );
          return el(
            "div",
            { class: "card" },
            el(
              "div",
              { class: "bar" },
              dot(colorOf(run)),
              el(
                "div",
                { style: "flex:1;min-width:0" },
                select(
                  with_.map((one) => [String(one.index), one.name]),
                  String(run.index),
                  (value) => {
                    chosen[place] = RUNS[+value];
                    draw();
                  },
                  "run",
                ),
              ),
              chosen.length > 1
                ? el(
                    "button",
                    {
                      class: "quiet",
                      title: "remove",
                      "aria-label": "remove",
                      onclick: () => {
                        chosen.splice(place, 1);
                        draw();
                      },
                    },
                    "\u00d7",
                  )
                : null,
            ),
            el("p", { class: "small soft" }, `step ${number(of)}${losses ? `, ${losses}` : ""}`),
            el("pre", {}, text || " "),
          );
        }),
      );
      add.hidden = chosen.length >= Math.min(6, with_.length);
    };
    const add = el(
      "button",
      {
        onclick: () => {
          chosen.push(ranked.find((run) => !chosen.includes(run)));
          draw();
        },
      },
      "add a run",
    );
    section.append(
      el(
        "div",
        { class: "bar controls" },
        el("h2", {}, "Samples"),
        el("span", { class: "spacer" }),
        with_.some((run) => run.samples.length > 1)
          ? el(
              "label",
              {},
              "step ",
              el("input", {
                type: "range",
                min: 0,
                max: 100,
                value: 100,
                "aria-label": "step of the samples",
                oninput: (event) => {
                  at = +event.target.value;
                  draw();
                },
              }),
              where,
            )
          : null,
        add,
      ),
      host,
    );
    draw();
  });
  return section;
}

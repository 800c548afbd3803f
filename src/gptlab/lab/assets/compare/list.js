// The list of runs, which is the legend of all charts.

const better = (metric) => (a, b) =>
  b === null || b === undefined ? -1 : a === null || a === undefined ? 1 : higher.has(metric) ? b - a : a - b;
const judged = (run) => asNumber(run.best[MAIN] ?? run.last[MAIN]);
const groupValue = (group) => {
  const values = group.runs.filter(isFinished).map(judged).filter(isNumber);
  return values.length ? statistics(values) : null;
};
function runsPanel() {
  const list = el("div", { class: "list" });
  let wanted = "";
  const open = new Set();
  const ranked = [...GROUPS].sort((a, b) => better(MAIN)(groupValue(a)?.mean, groupValue(b)?.mean));
  const matches = (run) =>
    !wanted || `${run.name} ${DATA.groups[run.group]} ${run.state}`.toLowerCase().includes(wanted);
  const box = (runs, label) => {
    const on = runs.filter(isShown).length;
    const input = el("input", {
      type: "checkbox",
      checked: on > 0,
      "aria-label": label,
      onchange: () => setHidden(runs, on === runs.length),
    });
    input.indeterminate = on > 0 && on < runs.length;
    return input;
  };
  const entryOf = (run, inner) =>
    el(
      "div",
      {
        class: `entry ${inner ? "inner" : ""} ${isShown(run) ? "" : "off"}`,
        "data-run": run.index,
        onmouseenter: () => highlight(`run ${run.index}`),
        onmouseleave: () => highlight(null),
      },
      box([run], run.name),
      dot(colorOf(run)),
      el(
        "span",
        { class: "name", title: `${run.name}\n${DATA.groups[run.group]}` },
        inner ? nameWithin(run) : run.name,
      ),
      isFinished(run) ? null : el("span", { class: `state ${run.state}` }, run.state),
      el("span", { class: "number small" }, number(judged(run))),
    );
  const draw = () => {
    const rows = [];
    for (const group of ranked) {
      const runs = group.runs.filter(matches);
      if (!runs.length) continue;
      if (group.runs.length === 1 || GROUPS.length === 1) {
        rows.push(...[...runs].sort((a, b) => better(MAIN)(judged(a), judged(b))).map((run) => entryOf(run, false)));
        continue;
      }
      const value = groupValue(group),
        isOpen = open.has(group.index) || (wanted && runs.length < group.runs.length);
      rows.push(
        el(
          "div",
          {
            class: `entry ${runs.some(isShown) ? "" : "off"}`,
            "data-group": group.index,
            onmouseenter: () => highlight(`group ${group.index}`),
            onmouseleave: () => highlight(null),
          },
          box(runs, group.label),
          dot(colorOf(group.runs[0])),
          el("span", { class: "name", title: group.label }, group.short),
          el(
            "span",
            {
              class: "number small",
              title: value
                ? `mean of ${value.n} finished runs, sample standard deviation ${number(value.sd, 3)}`
                : "no finished run",
            },
            value ? number(value.mean) : "",
          ),
          el(
            "button",
            {
              class: "quiet small",
              title: "its runs",
              "aria-expanded": !!isOpen,
              onclick: () => {
                if (open.has(group.index)) open.delete(group.index);
                else open.add(group.index);
                draw();
              },
            },
            isOpen ? "\u25be" : `\u25b8${runs.length}`,
          ),
        ),
      );
      if (isOpen) rows.push(...runs.map((run) => entryOf(run, true)));
    }
    list.replaceChildren(...rows);
    count.textContent = `${RUNS.filter(isShown).length} of ${RUNS.length} shown`;
  };
  const count = el("span", { class: "small soft" });
  const button = (text, title, act) => el("button", { class: "small", title, onclick: act }, text);
  const panel = el(
    "aside",
    { class: "runs card" },
    el("div", { class: "bar" }, el("h3", {}, "Runs"), el("span", { class: "spacer" }), count),
    el("input", {
      type: "search",
      placeholder: "filter by name, value, state",
      "aria-label": "filter runs",
      oninput: (event) => {
        wanted = event.target.value.trim().toLowerCase();
        draw();
      },
    }),
    el(
      "div",
      { class: "bar" },
      button("all", "show all that match", () => setHidden(RUNS.filter(matches), false)),
      button("none", "hide all that match", () => setHidden(RUNS.filter(matches), true)),
      button("only these", "show those that match, and no others", () => showOnly(RUNS.filter(matches))),
      RUNS.length > 10
        ? button("best 10", `by ${MAIN}`, () =>
            showOnly(
              [...RUNS]
                .filter((run) => isNumber(judged(run)))
                .sort((a, b) => better(MAIN)(judged(a), judged(b)))
                .slice(0, 10),
            ),
          )
        : null,
    ),
    el("div", { class: "small soft" }, MAIN ? `${grouped ? "mean of the " : ""}best ${MAIN}` : ""),
    list,
  );
  listeners.push(draw);
  hotListeners.push(() => {
    for (const entry of list.children)
      entry.classList.toggle(
        "hot",
        hot !== null &&
          (entry.dataset.run !== undefined
            ? isHot(RUNS[+entry.dataset.run])
            : hot === `group ${entry.dataset.group}` || groupOf(hot) === `group ${entry.dataset.group}`),
      );
  });
  return panel;
}
// Within its group a run is known by its seed, unless two have the same.
const nameWithin = (run) =>
  GROUPS[run.group].runs.filter((other) => other.seed === run.seed).length === 1 ? `seed ${run.seed}` : run.name;

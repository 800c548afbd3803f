// The table.

// The best come first.
let tableSort = recall("sort", `${higher.has(MAIN) ? "-" : ""}best ${MAIN}`);
let tableBy = recall("rows", "runs");
function openRow(id) {
  const index = id.startsWith("run ") ? +id.slice(4) : GROUPS[+id.slice(6)].runs[0].index;
  const row = document.querySelector(`#table tr[data-run="${index}"]`);
  row?.scrollIntoView({ block: "center", behavior: "smooth" });
}
function columns() {
  const metric = (name, of, label) => ({
    key: `${of} ${name}`,
    label,
    metric: name,
    digits: 6,
    value: (run) => asNumber(run[of][name]),
  });
  const configs = DATA.keys.map(({ key }) => ({
    key: `config ${key}`,
    label: key,
    config: true,
    value: (run) => configOf(run, key),
    text: shown,
  }));
  // Where many keys differ, as between two models, most of them come after what a reader looks for.
  return [
    ...configs.slice(0, 4),
    ...(MAIN && DATA.judged.includes(MAIN)
      ? [metric(MAIN, "best", `best ${MAIN}`), { key: "best at", label: "at step", value: (run) => run.bestStep[MAIN] }]
      : []),
    ...DATA.judged.map((name) => metric(name, "last", name)),
    ...(DATA.metrics.includes("train/loss") ? [metric("train/loss", "last", "train/loss")] : []),
    { key: "tokens", label: "tokens", value: (run) => run.tokens, text: (value) => shortCount(value) },
    { key: "seconds", label: "time", value: (run) => run.seconds ?? undefined, text: duration },
    { key: "flops", label: "FLOPs", value: (run) => run.flops ?? undefined, text: short },
    ...configs.slice(4),
  ].filter((column) => RUNS.some((run) => column.value(run) !== undefined));
}
function tableSection() {
  const all = columns(),
    table = el("table", { class: "sticky" }),
    note = el("p", { class: "small soft" });
  const orderBy = (rows, value) => {
    const [key, down] = [tableSort.replace(/^-/, ""), tableSort.startsWith("-")];
    const column = all.find((one) => one.key === key);
    const of =
      key === "name"
        ? (row) => row.name ?? row.label
        : key === "state"
          ? (row) => row.state ?? ""
          : key === "seed"
            ? (row) => row.seed
            : column
              ? (row) => value(row, column)
              : null;
    if (!of) return rows;
    const missing = (one) => one === undefined || one === null || Number.isNaN(one);
    return [...rows].sort((a, b) =>
      missing(of(a)) ? (missing(of(b)) ? 0 : 1) : missing(of(b)) ? -1 : byValue(of(a), of(b)) * (down ? -1 : 1),
    );
  };
  const head = (key, label, isNumeric, title) =>
    el(
      "th",
      {
        class: isNumeric ? "number" : "",
        "aria-sort": tableSort === key ? "ascending" : tableSort === `-${key}` ? "descending" : null,
        title,
      },
      el(
        "button",
        {
          onclick: () => {
            tableSort = tableSort === key ? `-${key}` : key;
            remember("sort", tableSort);
            draw();
          },
        },
        label,
      ),
    );
  const bestOf = (rows, column, value) => {
    if (!column.metric) return null;
    const values = rows.map((row) => value(row, column)).filter(isNumber);
    return values.length > 1 ? (higher.has(column.metric) ? Math.max(...values) : Math.min(...values)) : null;
  };
  const shownText = (column, value) =>
    value === undefined || value === null ? "" : (column.text || ((one) => number(one, column.digits)))(value);
  const isNumeric = (column) => !column.config || DATA.keys.find(({ key }) => `config ${key}` === column.key).numeric;
  const draw = () => {
    const visible = RUNS.filter(isShown);
    if (tableBy === "groups") {
      const groups = GROUPS.map((group) => ({ ...group, visible: group.runs.filter(isShown) }))
        .filter((group) => group.visible.length)
        .map((group) => ({ ...group, ended: group.visible.filter(isFinished) }));
      const stat = (group, column) => {
        const values = group.ended.map(column.value).filter(isNumber);
        return values.length ? statistics(values) : null;
      };
      const value = (group, column) => (column.config ? column.value(group.runs[0]) : stat(group, column)?.mean);
      const shownColumns = all.filter((column) => column.key !== "best at");
      table.replaceChildren(
        el(
          "thead",
          {},
          el(
            "tr",
            {},
            head("name", "group"),
            el("th", { class: "number" }, "n"),
            shownColumns.map((column) => head(column.key, column.label, isNumeric(column))),
          ),
        ),
        el(
          "tbody",
          {},
          orderBy(groups, value).map((group) =>
            el(
              "tr",
              {
                "data-group": group.index,
                onmouseenter: () => highlight(`group ${group.index}`),
                onmouseleave: () => highlight(null),
              },
              el("td", { title: group.label }, dot(colorOf(group.visible[0])), group.short),
              el(
                "td",
                { class: "number" },
                group.ended.length === group.visible.length
                  ? group.ended.length
                  : `${group.ended.length} of ${group.visible.length}`,
              ),
              shownColumns.map((column) => {
                const best = bestOf(groups, column, value),
                  mean = value(group, column),
                  of = column.config ? null : stat(group, column);
                const spread = of && of.n > 1 ? ` \u00b1 ${column.text ? column.text(of.sd) : number(of.sd, 2)}` : "";
                return el(
                  "td",
                  {
                    class: `${isNumeric(column) ? "number" : ""} ${best !== null && mean === best ? "best" : ""}`,
                    title: of ? `mean ${of.mean}, sample standard deviation ${of.sd}, n ${of.n}` : null,
                  },
                  shownText(column, mean),
                  spread,
                );
              }),
            ),
          ),
        ),
      );
      note.textContent = "Means and sample standard deviations over the finished runs of each group.";
    } else {
      const value = (run, column) => column.value(run);
      table.replaceChildren(
        el(
          "thead",
          {},
          el(
            "tr",
            {},
            head("name", "run"),
            head("state", "state"),
            head("seed", "seed", true),
            all.map((column) => head(column.key, column.label, isNumeric(column))),
          ),
        ),
        el(
          "tbody",
          {},
          orderBy(visible, value).map((run) =>
            el(
              "tr",
              {
                "data-run": run.index,
                onmouseenter: () => highlight(`run ${run.index}`),
                onmouseleave: () => highlight(null),
              },
              el("td", {}, dot(colorOf(run)), el("a", { href: run.href, title: run.folder }, run.name)),
              el("td", {}, el("span", { class: `state ${run.state}` }, run.state)),
              el("td", { class: "number" }, run.seed),
              all.map((column) => {
                const one = column.value(run),
                  best = bestOf(visible.filter(isFinished), column, value);
                return el(
                  "td",
                  {
                    class: `${isNumeric(column) ? "number" : ""} ${best !== null && one === best && isFinished(run) ? "best" : ""}`,
                    "data-column": column.key,
                    "data-value": one === undefined || one === null ? null : String(one),
                    title: typeof one === "number" ? String(one) : null,
                  },
                  shownText(column, one),
                );
              }),
            ),
          ),
        ),
      );
      note.textContent =
        "Numbers are those of metrics.csv; hold the pointer over one for all its digits. Names lead to the run folders.";
    }
  };
  const quoted = (value) => (/[",\n\r]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value);
  const save = () =>
    download(
      "runs.csv",
      new Blob(
        [
          [
            ["run", "folder", "state", "seed", ...all.map((column) => column.label)],
            ...RUNS.filter(isShown).map((run) => [
              run.name,
              run.folder,
              run.state,
              run.seed,
              ...all.map((column) => column.value(run)),
            ]),
          ]
            .map((row) =>
              row
                .map((cell) =>
                  quoted(
                    cell === undefined || cell === null
                      ? ""
                      : typeof cell === "string"
                        ? cell
                        : typeof cell === "object"
                          ? JSON.stringify(cell)
                          : String(cell),
                  ),
                )
                .join(","),
            )
            .join("\n") + "\n",
        ],
        { type: "text/csv" },
      ),
    );
  listeners.push(draw);
  hotListeners.push(() => {
    for (const row of table.querySelectorAll("tbody tr"))
      row.classList.toggle(
        "hot",
        hot !== null &&
          (row.dataset.run !== undefined
            ? isHot(RUNS[+row.dataset.run])
            : groupOf(hot) === `group ${row.dataset.group}`),
      );
  });
  return el(
    "section",
    { id: "table" },
    el(
      "div",
      { class: "card" },
      el(
        "div",
        { class: "bar" },
        el("h2", {}, "Table"),
        el("span", { class: "spacer" }),
        grouped
          ? el(
              "label",
              {},
              "rows ",
              select(
                [
                  ["runs", "each run"],
                  ["groups", "seeds grouped"],
                ],
                tableBy,
                (value) => {
                  tableBy = value;
                  remember("rows", value);
                  draw();
                },
                "rows",
              ),
            )
          : null,
        el("button", { class: "quiet small", onclick: save, title: "save the table" }, "CSV"),
      ),
      note,
      el("div", { class: "scroll tall" }, table),
    ),
  );
}

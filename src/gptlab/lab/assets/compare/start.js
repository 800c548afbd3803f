// The page.

// What groups show of the baseline. The first sentences; more of them are folded up.
function verdicts() {
  if (!DATA.verdicts) return null;
  const { metric, values, baseline, sentences, notes } = DATA.verdicts;
  const named = (label) => {
    const group = GROUPS.find((one) => one.label === label);
    return [dot(colorOf(group.runs[0])), " ", el("b", { title: label }, group.short)];
  };
  const entries = Object.entries(sentences);
  const list = (some) =>
    el(
      "ul",
      { class: "verdicts" },
      some.map(([label, sentence]) => el("li", {}, named(label), ": ", sentence)),
    );
  return [
    entries.length ? el("p", {}, `${metric} against `, named(baseline), ` (${values}):`) : null,
    list(entries.slice(0, 4)),
    entries.length > 4
      ? el("details", {}, el("summary", { class: "soft" }, `${entries.length - 4} more`), list(entries.slice(4)))
      : null,
    notes.map((note) => el("p", { class: "soft" }, note)),
  ];
}

function start() {
  const app = byId("app"),
    counts = new Map();
  for (const run of RUNS) counts.set(run.state, (counts.get(run.state) || 0) + 1);
  const sections = [
    ["curves", "Curves", RUNS.some((run) => Object.keys(run.curves).length) ? curvesSection() : null],
    ["table", "Table", tableSection()],
    ["sweep", "Hyperparameters", sweepSection()],
    ["config", "Config", configSection()],
    ["samples", "Samples", samplesSection()],
    ["forecasts", "Forecasts", forecastsSection()],
  ].filter(([, , section]) => section);
  const verdictBox = el("div");
  listeners.push(() => verdictBox.replaceChildren(...[verdicts()].flat(Infinity).filter(Boolean))); // colors may change
  const live = DATA.reloadSeconds ? liveButton(DATA.reloadSeconds) : null;
  app.append(
    el(
      "header",
      {},
      el("div", { class: "bar" }, el("h1", {}, DATA.title), el("span", { class: "spacer" }), live, themeButton()),
      el(
        "nav",
        { "aria-label": "parts of the page" },
        sections.map(([id, name]) =>
          el(
            "a",
            {
              href: `#${id}`,
              onclick: (event) => {
                event.preventDefault();
                byId(id).scrollIntoView({ behavior: "smooth" });
              },
            },
            name,
          ),
        ),
      ),
    ),
    el(
      "div",
      { class: "lead" },
      el(
        "div",
        { class: "soft" },
        `${[...counts].map(([state, n]) => `${n} ${state}`).join(", ")}${grouped ? `; ${GROUPS.length} groups of equal configs with different seeds` : ""}; written ${DATA.written}`,
      ),
      verdictBox,
    ),
    el(
      "div",
      { class: "layout" },
      runsPanel(),
      el(
        "div",
        { style: "min-width:0" },
        sections.map(([, , section]) => section),
      ),
    ),
  );
  for (const listener of listeners) listener();
  const scroll = +recall("at", 0);
  if (scroll) {
    remember("at", null);
    requestAnimationFrame(() => scrollTo(0, scroll));
  }
}

// While runs go on, the file is read again, unless somebody is at work on the page.
function liveButton(seconds) {
  let paused = recall("paused") === "1",
    busy = 0;
  for (const kind of ["pointerdown", "pointermove", "keydown", "wheel"])
    addEventListener(
      kind,
      () => {
        busy = Date.now();
      },
      { passive: true },
    );
  const button = el("button", {
    class: "quiet small",
    title: "whether this page reads its file again while runs go on",
    onclick: () => {
      paused = !paused;
      remember("paused", paused);
      say();
    },
  });
  const say = () => {
    button.textContent = paused ? "paused" : `live: every ${seconds} s`;
  };
  setInterval(() => {
    if (paused || document.hidden || Date.now() - busy < 4000) return;
    remember("at", String(Math.round(scrollY)));
    location.reload();
  }, seconds * 1000);
  say();
  return button;
}

start();

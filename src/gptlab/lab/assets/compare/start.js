// The page.

// The first sentences; more of them are folded up.
function verdicts(sentences) {
  if (!sentences.length) return null;
  const list = (some) =>
    el(
      "ul",
      { class: "verdicts" },
      some.map((sentence) => el("li", {}, sentence)),
    );
  const [shownFirst, rest] = [sentences.slice(0, 4), sentences.slice(4)];
  return [
    DATA.aboutVerdicts ? el("p", {}, DATA.aboutVerdicts) : null,
    list(shownFirst),
    rest.length ? el("details", {}, el("summary", { class: "soft" }, `${rest.length} more`), list(rest)) : null,
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
      verdicts(DATA.verdicts),
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

// The page of a model: its parts, one below the other.

pageOf([
  ["model", "Model", facts(DATA.facts)],
  ...DATA.parts.map(({ name, title }) => [name, title, DRAW[name](DATA[name])]),
]);

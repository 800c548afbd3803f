// Sizes by layer over training, from layers.csv.

const SIZES = {
  activation_rms: "Activations: root mean square of each block's output",
  gradient_norm: "Gradients: 2-norm by layer, before clipping",
  weight_norm: "Weights: 2-norm by layer",
};
const N_LINES = 12;

DRAW.over_training = ({ steps, kinds }) => [
  note("Every so many steps, as callbacks.inspect.every_steps says; metrics.csv has the norm of all gradients together."),
  el(
    "div",
    { class: "charts" },
    Object.entries(kinds).map(([kind, layers]) => {
      const all = Object.entries(layers),
        every = Math.ceil(all.length / N_LINES),
        lines = all.filter((_, i) => i % every === 0 || i === all.length - 1).map(([name, values]) => ({ name, values }));
      return lineFigure(SIZES[kind] || kind, steps, lines, { log: true, unit: "step" });
    }),
  ),
];

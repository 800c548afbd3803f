"""Which hyperparameters decided a metric: PED-ANOVA of Optuna, on runs however they were chosen."""

import math
import warnings
from collections.abc import Sequence
from typing import Any

from gptlab.lab.collect import RunRecord, higher_is_better

MIN_RUNS = 10
DECADE = 10.0  # a range that spans one is divided on a logarithmic axis


def importances(records: Sequence[RunRecord], keys: Sequence[str], metric: str) -> tuple[dict[str, float], str]:
    """The importance of each config key for the best value of a metric, in sum 1; or, without any, the reason.

    Keys are ranked by how much the runs in the best tenth differ in them from all runs (Watanabe et al. 2023, arXiv
    2304.10255). Runs that have not ended are left out.
    """
    pairs = [(record, record.best(metric)) for record in records if record.is_finished]
    ended = [(record, value) for record, value in pairs if value is not None and math.isfinite(value)]
    keys = [key for key in keys if len({repr(record.config.get(key)) for record, _ in ended}) > 1]
    if len(ended) < MIN_RUNS:
        return {}, f"needs {MIN_RUNS} runs that ended with {metric}; there are {len(ended)}"
    if not keys:
        return {}, "no hyperparameter differs"
    if len({value for _, value in ended}) == 1:
        return {}, f"{metric} is the same in all runs"
    try:
        import optuna
    except ModuleNotFoundError:
        return {}, "needs Optuna: pip install 'gptlab[sweep]'"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        distributions = {key: _distribution([record.config.get(key) for record, _ in ended]) for key in keys}
        before = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        try:
            study = optuna.create_study(direction="maximize" if higher_is_better(metric) else "minimize")
            study.add_trials(
                optuna.trial.create_trial(
                    params={key: _parameter(record.config.get(key), distributions[key]) for key in keys},
                    distributions=distributions,
                    value=value,
                )
                for record, value in ended
            )
            found = optuna.importance.get_param_importances(
                study, evaluator=optuna.importance.PedAnovaImportanceEvaluator()
            )
        finally:
            optuna.logging.set_verbosity(before)
    return {key: float(value) for key, value in found.items()}, ""


def spans_decades(values: Sequence[float]) -> bool:
    """Whether positive numbers are compared by their ratios."""
    return min(values) > 0 and max(values) / min(values) >= DECADE


def are_numbers(values: Sequence[Any]) -> bool:
    """Whether all values are finite numbers, and no booleans."""
    return all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in values)


def _distribution(values: list[Any]) -> Any:
    import optuna

    if are_numbers(values):
        low, high = float(min(values)), float(max(values))
        return optuna.distributions.FloatDistribution(low, high, log=spans_decades(values))
    return optuna.distributions.CategoricalDistribution(sorted({repr(value) for value in values}))


def _parameter(value: Any, distribution: Any) -> Any:
    return float(value) if hasattr(distribution, "low") else repr(value)

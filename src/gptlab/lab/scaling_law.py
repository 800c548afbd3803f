"""Scaling laws: L(N, D) = E + A / N^alpha + B / D^beta, fitted to runs, with intervals, optima and isoFLOP profiles.

`LawForm.norm` has ((A / N^alpha)^p + (B / D^beta)^p)^(1/p) in place of the sum of both terms, which it is for p = 1.
With E = 0 and p = 1 / beta it is equation 1.5 of Kaplan et al. (arXiv:2001.08361). The larger p, the more the larger of
the two terms alone counts: parameters are of little use before there are tokens for them.

The fit is approach 3 of Hoffmann et al. (arXiv:2203.15556, section 3.3 and appendix D.3): the Huber loss with
delta = 1e-3 on residuals of log L, where log L is a log-sum-exp of log E, log A - alpha log N and log B - beta log D.
N are parameters, D training tokens, L nats per token.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from gptlab.errors import UserError
from gptlab.files import write_text_atomic
from gptlab.units import plural

CONSTANTS = ("E", "A", "B", "alpha", "beta", "p")  # the last of LawForm.norm alone
DELTA = 1e-3  # of the Huber loss, in log L
MIN_DISTINCT = 3  # sizes, and token counts: two would let any exponent fit
COLLINEAR = 0.999  # correlation of log N and log D
N_BOOTSTRAP = 1000
LEVEL = 0.95
# In the coordinates of the solver: logs of the three terms at the geometric means of N and D, and the exponents.
EXPONENTS = (0.01, 3.0)
NORMS = (0.25, 16.0)  # of p
SMALLEST_TERM = 1e-4  # of the lowest loss
GRID = np.geomspace(0.03, 1.5, 12)  # exponents from which fits start
NORM_GRID = (1.0, 3.0)  # p, likewise
N_REFINED = 8  # of the starts
N_STEPS = 1000
BOOTSTRAP_STEPS = 120
CHUNK = 100  # bootstrap fits at a time
SIX_ND = (6.0, 1.0)
SAME_BUDGET = 1.1  # runs whose FLOPs differ by no more are one isoFLOP profile
MIN_PROFILE = 4  # sizes: through three a parabola always passes
BIAS_SOURCE = "arXiv:2603.22339"


class LawForm(Enum):
    """How the terms of parameters and of tokens are put together."""

    sum = "sum"  # E + A / N^alpha + B / D^beta (arXiv:2203.15556)
    norm = "norm"  # E + ((A / N^alpha)^p + (B / D^beta)^p)^(1/p)

    @property
    def n_constants(self) -> int:
        return len(CONSTANTS) - (self is LawForm.sum)

    @property
    def formula(self) -> str:
        terms = {"sum": "A / N^alpha + B / D^beta", "norm": "((A / N^alpha)^p + (B / D^beta)^p)^(1/p)"}
        return f"L(N, D) = E + {terms[self.value]}"


class ParameterCount(Enum):
    """Which parameters N are."""

    # Chinchilla counts them all (arXiv:2203.15556). At small sizes, where lookup tables are a large part, another count
    # gives another exponent, which explains most of the difference between the two papers (arXiv:2406.12907).
    total = "total"
    non_embedding = "non_embedding"  # as Kaplan et al.: without token and position embeddings, nor an untied head
    active = "active"  # of a mixture of experts those that a token meets, with embeddings


@dataclass(frozen=True, slots=True)
class Interval:
    """A value with its 95% interval."""

    value: float
    low: float
    high: float

    def plain(self) -> dict[str, float]:
        return {"value": self.value, "low": self.low, "high": self.high}


@dataclass(frozen=True, slots=True)
class Optimum:
    """The size and the tokens with the lowest loss for a compute budget."""

    flops: float
    parameters: Interval
    tokens: Interval
    loss: Interval


@dataclass(frozen=True, slots=True)
class Observations:
    """What a law is fitted to: parameters, tokens and loss of each run, and its FLOPs where they were counted."""

    parameters: np.ndarray
    tokens: np.ndarray
    losses: np.ndarray
    names: tuple[str, ...] = ()
    flops: np.ndarray | None = None  # None: 6 N D

    def __len__(self) -> int:
        return len(self.losses)

    @property
    def compute(self) -> np.ndarray:
        """Training FLOPs, as counted or 6 N D."""
        return 6 * self.parameters * self.tokens if self.flops is None else self.flops

    def only(self, chosen: np.ndarray) -> "Observations":
        """The chosen runs, by a mask or by indices."""
        places = np.arange(len(self))[chosen]
        return Observations(
            self.parameters[places],
            self.tokens[places],
            self.losses[places],
            tuple(self.names[i] for i in places) if self.names else (),
            None if self.flops is None else self.flops[places],
        )


@dataclass(frozen=True, eq=False)
class ScalingLaw:
    """A fitted law with the bootstrap's fits, from which every interval is taken."""

    theta: np.ndarray  # (5,) or (6,): log E, log A, log B, alpha, beta, and p of LawForm.norm
    draws: np.ndarray  # (S, 5 or 6), the same of each bootstrap fit
    residuals: np.ndarray  # (n,), log of measured over fitted loss
    observations: Observations
    flops_per_token: tuple[float, float] = SIX_ND  # c and k of FLOPs per token = c N^k
    n_agreeing: int = 0  # of the refined starts, those that ended at this fit
    at_bound: tuple[str, ...] = ()  # constants that the runs do not determine
    counted: str = "total"  # which parameters N are
    notes: tuple[str, ...] = field(default=())

    @property
    def form(self) -> LawForm:
        return next(form for form in LawForm if form.n_constants == len(self.theta))

    @property
    def constants(self) -> dict[str, Interval]:
        """E, A, B, alpha and beta, and p of LawForm.norm, each with its 95% interval."""
        values, (low, high) = _natural(self.theta), _ends(_natural(self.draws))
        columns = zip(CONSTANTS, values, low, high, strict=False)
        return {name: Interval(float(value), float(a), float(b)) for name, value, a, b in columns}

    @property
    def standard_errors(self) -> dict[str, float]:
        """The standard deviation of each constant over the bootstrap fits."""
        return dict(zip(CONSTANTS, map(float, _natural(self.draws).std(0)), strict=False))

    @property
    def spread(self) -> float:
        """The standard deviation of a run's loss about the law, relative, estimated from the residuals."""
        n = len(self.residuals)
        return float(np.sqrt((self.residuals**2).sum() / (n - len(self.theta))))

    def loss(self, parameters: ArrayLike, tokens: ArrayLike) -> np.ndarray:
        """Nats per token that the law gives for N parameters and D tokens."""
        return np.exp(_log_loss(self.theta, np.log(parameters), np.log(tokens)))

    def predict(self, parameters: float, tokens: float, *, one_run: bool = False) -> Interval:
        """The loss with its interval; with `one_run` that of a single run, which scatters about the law as these do."""
        drawn = _log_loss(self.draws, math.log(parameters), math.log(tokens))
        low, high = _ends(drawn)
        if one_run:
            n = len(self.residuals)
            scale = math.sqrt(n / (n - len(self.theta)))
            drawn = drawn + scale * np.random.default_rng(0).choice(self.residuals, len(drawn))
            # Residuals of one sign, or few draws, would move an end inwards; a run is no more certain than the law.
            ends = _ends(drawn)
            low, high = min(low, ends[0]), max(high, ends[1])
        return Interval(float(self.loss(parameters, tokens)), float(np.exp(low)), float(np.exp(high)))

    def optimum(self, flops: float, flops_per_token: tuple[float, float] | None = None) -> Optimum:
        """The compute-optimal parameters and tokens for a budget, with intervals.

        FLOPs per token are c N^k with `flops_per_token` = (c, k); (6, 1) is C = 6 N D.
        """
        cost = flops_per_token or self.flops_per_token
        value, drawn = (_optimum(theta, flops, cost) for theta in (self.theta, self.draws))
        ends = [_ends(column) for column in drawn]
        found = [Interval(float(v), float(low), float(high)) for v, (low, high) in zip(value, ends, strict=True)]
        return Optimum(flops, *found)

    @property
    def exponents(self) -> dict[str, Interval]:
        """The exponents of the frontier: optimal N and D grow as C to these powers, by C = 6 N D."""
        found = {}
        for name, i, j in (("parameters", 4, 3), ("tokens", 3, 4)):
            value, drawn = (t[..., i] / (t[..., i] + t[..., j]) for t in (self.theta, self.draws))
            found[name] = Interval(float(value), *map(float, _ends(drawn)))
        return found

    def plain(self) -> dict[str, Any]:
        """All of the law as plain values, from which `read_law` makes it again."""
        runs = self.observations
        return {
            "form": self.form.formula,
            "parameters": self.counted,
            "constants": {name: one.plain() for name, one in self.constants.items()},
            "standard_errors": self.standard_errors,
            "exponents": {name: one.plain() for name, one in self.exponents.items()},
            "relative_spread_of_runs": self.spread,
            "flops_per_token": {"factor": self.flops_per_token[0], "exponent": self.flops_per_token[1]},
            "notes": list(self.notes),
            "theta": _rounded(self.theta),
            "draws": _rounded(self.draws),
            "residuals": _rounded(self.residuals),
            "runs": {
                "names": list(runs.names),
                "parameters": _rounded(runs.parameters),
                "tokens": _rounded(runs.tokens),
                "losses": _rounded(runs.losses),
                "flops": None if runs.flops is None else _rounded(runs.flops),
            },
        }

    def write(self, path: str | Path) -> None:
        """Write the law as JSON, atomically."""
        write_text_atomic(path, json.dumps(self.plain()) + "\n")


def read_law(path: str | Path) -> ScalingLaw:
    """The law of a file that `ScalingLaw.write` made; UserError where it is none."""
    path = Path(path).expanduser()
    if path.is_dir():
        path = path / "law.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        runs = found["runs"]
        law = ScalingLaw(
            np.array(found["theta"], float),
            np.array(found["draws"], float),
            np.array(found["residuals"], float),
            Observations(
                *(np.array(runs[name], float) for name in ("parameters", "tokens", "losses")),
                names=tuple(map(str, runs["names"])),
                flops=None if runs["flops"] is None else np.array(runs["flops"], float),
            ),
            (float(found["flops_per_token"]["factor"]), float(found["flops_per_token"]["exponent"])),
            counted=ParameterCount(found["parameters"]).value,
            notes=tuple(map(str, found["notes"])),
        )
    except OSError as error:
        what = error.strerror or error
        raise UserError(f"law={path} cannot be read: {what}; name a law.json of gptlab scaling fit") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"law={path} holds no fit; name a law.json of gptlab scaling fit") from None
    if not _is_sound(law):
        raise UserError(f"law={path} is damaged; make it again with gptlab scaling fit")
    return law


def _is_sound(law: ScalingLaw) -> bool:
    """Whether a law has the shapes and the numbers that a fit has."""
    n, runs = len(law.observations), law.observations
    is_known = law.theta.shape in [(form.n_constants,) for form in LawForm]
    shapes = is_known and law.draws.ndim == 2 and law.draws.shape[1] == len(law.theta) and len(law.draws) > 1
    columns = [runs.parameters, runs.tokens, runs.losses, *([] if runs.flops is None else [runs.flops])]
    if not shapes or n <= len(law.theta) or any(column.shape != (n,) for column in (*columns, law.residuals)):
        return False
    positive = [*columns, law.theta[3:], law.draws[:, 3:], np.array(law.flops_per_token)]
    finite = [law.theta, law.draws, law.residuals, *positive]
    return all(bool(np.isfinite(values).all()) for values in finite) and all(
        bool((values > 0).all()) for values in positive
    )


def fit_law(
    parameters: ArrayLike,
    tokens: ArrayLike,
    losses: ArrayLike,
    *,
    flops: ArrayLike | None = None,
    names: Sequence[str] = (),
    counted: str = "total",
    form: LawForm = LawForm.sum,
    delta: float = DELTA,
    n_bootstrap: int = N_BOOTSTRAP,
    seed: int = 0,
    progress: bool = False,
) -> ScalingLaw:
    """Fit the form of a law to runs: parameters N, tokens D, losses in nats per token.

    The Huber loss of log residuals is minimized from the best of a grid of exponents, for each of which E, A and B
    follow by linear least squares (variable projection); with LawForm.norm those are of the sum, and p is on the grid
    too. Intervals are percentiles over fits to runs that were drawn with replacement, each begun at the fit to all of
    them. `flops` are training FLOPs of each run; without them a token costs 6 N. UserError where the runs cannot
    determine the constants.
    """
    runs = Observations(
        *(np.asarray(values, float).ravel() for values in (parameters, tokens, losses)),
        names=tuple(names),
        flops=None if flops is None else np.asarray(flops, float).ravel(),
    )
    check_values(runs)
    _check(runs, form)
    cost = _cost(runs)
    if n_bootstrap < 2:
        raise UserError(f"bootstrap={n_bootstrap} gives no interval; use at least 2, and for a result 1000")
    x, z, y = np.log(runs.parameters), np.log(runs.tokens), np.log(runs.losses)
    problem = _Problem(x, z, y, delta, form)
    theta, n_agreeing = problem.solve()
    drawn = problem.bootstrap(theta, n_bootstrap, np.random.default_rng(seed), progress=progress)
    law = ScalingLaw(
        theta=problem.uncentered(theta),
        draws=problem.uncentered(drawn),
        residuals=-problem.residuals(theta[None], y[None])[0],
        observations=runs,
        flops_per_token=cost,
        n_agreeing=n_agreeing,
        at_bound=problem.at_bound(theta),
        counted=counted,
    )
    object.__setattr__(law, "notes", tuple(_notes(law)))
    return law


def check_values(runs: Observations) -> None:
    """UserError for a run whose parameters, tokens, loss or FLOPs are not finite and above 0."""
    for name in ("parameters", "tokens", "losses", *(["flops"] if runs.flops is not None else [])):
        values = getattr(runs, name)
        if len(values) != len(runs):
            raise ValueError(f"{name} has {len(values)} values, and there are {len(runs)} losses")
        wrong = np.flatnonzero(~(np.isfinite(values) & (values > 0)))
        if len(wrong):
            which = runs.names[wrong[0]] if runs.names else f"number {wrong[0] + 1}"
            raise UserError(f"run {which} has {name}={values[wrong[0]]:g}; a law needs numbers above 0: leave it out")


def _check(runs: Observations, form: LawForm) -> None:
    n = form.n_constants
    if len(runs) <= n:
        do = "does" if len(runs) == 1 else "do"
        raise UserError(f"{plural(len(runs), 'run')} {do} not determine {n} constants; fit {n + 1} or more, better 12")
    for name in ("parameters", "tokens"):
        n = len(np.unique(np.round(np.log(getattr(runs, name)), 2)))
        if n < MIN_DISTINCT:
            values = plural(n, "different value")
            raise UserError(f"the runs have {values} of {name}; an exponent needs {MIN_DISTINCT} or more")
    if abs(np.corrcoef(np.log(runs.parameters), np.log(runs.tokens))[0, 1]) > COLLINEAR:
        raise UserError(
            "tokens follow from parameters in these runs, so that A / N^alpha and B / D^beta cannot be told apart; "
            "train sizes with several budgets each"
        )


def _cost(runs: Observations) -> tuple[float, float]:
    """c and k of FLOPs per token = c N^k, by least squares over the runs' own FLOPs; UserError where they fall."""
    if runs.flops is None:
        return SIX_ND
    exponent, log_factor = np.polyfit(np.log(runs.parameters), np.log(runs.flops / runs.tokens), 1)
    if exponent <= 0:  # the larger the better, at any budget: there is no optimum
        raise UserError(
            f"FLOPs per token fall with parameters in these runs, as N^{exponent:.2f}: is this column FLOPs? name it "
            "with flops_column=NAME; runs of a mixture of experts need parameters=active"
        )
    return float(np.exp(log_factor)), float(exponent)


def _notes(law: ScalingLaw) -> list[str]:
    found = [
        f"{name} is at the end of its range: these runs do not determine it, and what rests on it is a guess"
        for name in law.at_bound
    ]
    if law.n_agreeing < N_REFINED:
        found.append(f"{law.n_agreeing} of {N_REFINED} starts ended at this fit, the others at worse ones")
    for name in CONSTANTS[3 : len(law.theta)]:
        one, (least, most) = law.constants[name], NORMS if name == "p" else EXPONENTS
        if name not in law.at_bound and (one.low < 1.01 * least or one.high > 0.99 * most):
            found.append(
                f"the interval of {name} reaches the end of its range: these runs hardly determine it, and predictions "
                "beyond them are worth little"
            )
    low = law.constants["E"].low
    if low < 0.1 * law.constants["E"].value:
        found.append("the interval of E reaches down to nearly nothing: the runs are far from the irreducible loss")
    return found


class _Problem:
    """The minimization in coordinates where it is well conditioned: terms at the geometric means of N and D."""

    def __init__(self, x: np.ndarray, z: np.ndarray, y: np.ndarray, delta: float, form: LawForm):
        self.centers = np.array([0, x.mean(), z.mean()])
        self.x, self.z, self.y, self.delta = x - x.mean(), z - z.mean(), y, delta
        top, bottom = float(y.max()), float(y.min())
        least = bottom + math.log(SMALLEST_TERM)
        self.form, n = form, form.n_constants
        self.low = np.array([least, least, least, EXPONENTS[0], EXPONENTS[0], NORMS[0]])[:n]
        self.high = np.array([top, top, top, EXPONENTS[1], EXPONENTS[1], NORMS[1]])[:n]

    def uncentered(self, theta: np.ndarray) -> np.ndarray:
        """log E, log A, log B and the exponents of what the solver found."""
        found = theta.copy()
        found[..., 1] += found[..., 3] * self.centers[1]
        found[..., 2] += found[..., 4] * self.centers[2]
        return found

    def solve(self) -> tuple[np.ndarray, int]:
        """The fit, and how many of the refined starts ended there."""
        starts = self._starts()
        _, rough = self.minimize(starts, self.y[None], np.ones((1, len(self.y))), 20)
        best = starts[np.argsort(rough)[:N_REFINED]]
        found, costs = self.minimize(best, self.y[None], np.ones((1, len(self.y))), N_STEPS, 1e-12)
        place = int(np.argmin(costs))
        same = (np.abs(found - found[place]).max(1) < 1e-3) | (costs <= costs[place] * (1 + 1e-4))
        return found[place], int(same.sum())

    def _starts(self) -> np.ndarray:
        """Of each pair of exponents, E, A and B by least squares of L / measured L, none below the smallest term."""
        losses, found = np.exp(self.y), []
        for alpha in GRID:
            for beta in GRID:
                terms = np.stack([np.ones_like(self.x), np.exp(-alpha * self.x), np.exp(-beta * self.z)], 1)
                solution, *_ = np.linalg.lstsq(terms / losses[:, None], np.ones_like(losses), rcond=None)
                of_sum = [*np.log(np.maximum(solution, SMALLEST_TERM * losses.min())), alpha, beta]
                found += [of_sum] if self.form is LawForm.sum else [[*of_sum, p] for p in NORM_GRID]
        return np.clip(np.array(found), self.low, self.high)

    def bootstrap(self, theta: np.ndarray, n: int, rng: np.random.Generator, *, progress: bool) -> np.ndarray:
        """Fits (n, 5 or 6) to runs drawn with replacement."""
        from gptlab.evaluation.progress import progress as bar

        found = []
        with bar("bootstrap fits", n, show=progress) as advance:
            for begin in range(0, n, CHUNK):
                size = min(CHUNK, n - begin)
                weights = self._weights(size, rng)
                found.append(self.minimize(np.tile(theta, (size, 1)), self.y[None], weights, BOOTSTRAP_STEPS, 1e-6)[0])
                advance(size)
        return np.concatenate(found)

    def _weights(self, size: int, rng: np.random.Generator) -> np.ndarray:
        """How often each run was drawn (size, n); draws that could not determine the constants are made again."""
        n = len(self.y)
        sizes, tokens = (np.round(values, 2) for values in (self.x, self.z))
        found = []
        for _ in range(100 * size):
            weights = rng.multinomial(n, np.full(n, 1 / n))
            there = weights > 0
            if there.sum() >= self.form.n_constants and all(
                len(np.unique(values[there])) >= MIN_DISTINCT for values in (sizes, tokens)
            ):
                found.append(weights)
            if len(found) == size:
                return np.array(found, float)
        raise UserError("hardly any draw of these runs has three sizes and token counts; train more of them")

    def residuals(self, theta: np.ndarray, y: np.ndarray) -> np.ndarray:
        return self._forward(theta)[0] - y

    def _forward(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """log L (S, n), and its derivatives by the constants (S, n, 5 or 6)."""
        a = theta[:, 1:2] - theta[:, 3:4] * self.x
        b = theta[:, 2:3] - theta[:, 4:5] * self.z
        p = theta[:, 5:] if self.form is LawForm.norm else np.ones((len(theta), 1))
        both = np.logaddexp(p * a, p * b) / p
        fitted = np.logaddexp(theta[:, :1], both)
        share = np.exp(both - fitted)  # of both in L
        of_a, of_b = (share * np.exp(p * (term - both)) for term in (a, b))
        found = [1 - share, of_a, of_b, -of_a * self.x, -of_b * self.z]
        if self.form is LawForm.norm:
            found.append((of_a * a + of_b * b - share * both) / p)
        return fitted, np.stack(found, 2)

    def _cost(self, residuals: np.ndarray, weights: np.ndarray) -> np.ndarray:
        size, delta = np.abs(residuals), self.delta
        return (weights * np.where(size <= delta, size**2 / 2, delta * (size - delta / 2))).sum(1)

    def minimize(
        self, start: np.ndarray, y: np.ndarray, weights: np.ndarray, n_steps: int, tolerance: float = 1e-9
    ) -> tuple[np.ndarray, np.ndarray]:
        """Minimize many weighted problems at once: Levenberg-Marquardt on least squares that are reweighted for Huber.

        `start` is (S, 5 or 6), `weights` (S or 1, n). Returns the minima, of its shape, and their costs.
        """
        theta = start.copy()
        y, weights = (np.broadcast_to(values, (len(theta), len(self.x))) for values in (y, weights))
        damping = np.full(len(theta), 1e-3)
        active = np.arange(len(theta))
        costs = self._cost(self.residuals(theta, y), weights)
        for _ in range(n_steps):
            now, seen, weight = theta[active], y[active], weights[active]
            fitted, jacobian = self._forward(now)
            residuals = fitted - seen
            huber = weight * np.minimum(1, self.delta / np.maximum(np.abs(residuals), 1e-300))
            weighted = (jacobian * huber[:, :, None]).transpose(0, 2, 1)
            hessian, gradient = weighted @ jacobian, (weighted @ residuals[:, :, None])[:, :, 0]
            diagonal = np.einsum("sii->si", hessian)
            damped = damping[active][:, None] * (diagonal + 1e-12 * diagonal.max(1, keepdims=True) + 1e-300)
            step = np.linalg.solve(hessian + damped[:, :, None] * np.eye(len(self.low)), -gradient[:, :, None])[:, :, 0]
            tried = np.clip(now + step, self.low, self.high)
            tried_costs = self._cost(self.residuals(tried, seen), weight)
            better = tried_costs < costs[active]
            gains = (costs[active] - tried_costs) / np.maximum(costs[active], 1e-300)
            theta[active[better]], costs[active[better]] = tried[better], tried_costs[better]
            damping[active] = np.where(better, np.maximum(damping[active] / 5, 1e-12), damping[active] * 8)
            active = active[~((better & (gains < tolerance)) | (damping[active] > 1e8))]
            if not len(active):
                break
        return theta, costs

    def at_bound(self, theta: np.ndarray) -> tuple[str, ...]:
        near = 1e-6 * (self.high - self.low)
        on = (theta <= self.low + near) | (theta >= self.high - near)
        return tuple(name for name, is_on in zip(CONSTANTS, on, strict=False) if is_on)


def _split(theta: np.ndarray) -> tuple[np.ndarray, ...]:
    """log E, log A, log B, alpha, beta and p, which is 1 in a sum, of one law or of many (S, 5 or 6)."""
    found = tuple(np.moveaxis(theta, -1, 0))
    return found if len(found) == len(CONSTANTS) else (*found, np.ones_like(found[0]))


def _log_loss(theta: np.ndarray, x: ArrayLike, z: ArrayLike) -> np.ndarray:
    """log L of one law at many places, or of many laws at one place."""
    e, a, b, alpha, beta, p = _split(theta)
    both = np.logaddexp(p * (a - alpha * np.asarray(x)), p * (b - beta * np.asarray(z))) / p
    return np.logaddexp(e, both)


def _natural(theta: np.ndarray) -> np.ndarray:
    """E, A, B and the exponents of log E, log A, log B and the exponents."""
    return np.concatenate([np.exp(theta[..., :3]), theta[..., 3:]], -1)


def _ends(draws: np.ndarray) -> np.ndarray:
    """The ends of the 95% interval (2, ...) of draws (S, ...)."""
    return np.percentile(draws, [100 * (1 - LEVEL) / 2, 100 * (1 + LEVEL) / 2], axis=0)


def _optimum(theta: np.ndarray, flops: float, cost: tuple[float, float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """N, D and L where the loss with D = C / (c N^k) is lowest over N: its derivative is 0."""
    _, a, b, alpha, beta, p = _split(theta)
    log_budget = math.log(flops / cost[0])
    power = cost[1]
    log_n = (np.log(alpha / (power * beta)) / p + a - b + beta * log_budget) / (alpha + power * beta)
    log_d = log_budget - power * log_n
    return np.exp(log_n), np.exp(log_d), np.exp(_log_loss(theta, log_n, log_d))


def _rounded(values: np.ndarray) -> Any:
    """Nested lists of numbers with ten significant digits, as JSON has them."""
    return json.loads(
        json.dumps(np.asarray(values, float).tolist()), parse_float=lambda text: float(f"{float(text):.10g}")
    )


@dataclass(frozen=True, slots=True)
class Profile:
    """The runs of one compute budget, and the parabola through their losses over log N."""

    flops: float  # the geometric mean
    runs: Observations
    coefficients: np.ndarray  # of log N squared, log N and 1
    parameters: float  # where the parabola is lowest
    tokens: float
    loss: float
    inside: bool  # whether the lowest point is among the sizes


@dataclass(frozen=True, slots=True)
class IsoFlops:
    """Approach 2: a parabola through each budget's losses, and a power law through their lowest points."""

    profiles: tuple[Profile, ...]
    exponent: float | None  # a of N_opt ~ C^a; None of fewer than two profiles
    factor: float | None
    bias: float | None  # of N_opt on noise-free losses of a law at these runs: the largest relative error inside them
    exponent_bias: float | None  # of the exponent, there

    def optimum(self, flops: float) -> float | None:
        """The optimal parameters by the power law."""
        return None if self.exponent is None or self.factor is None else self.factor * flops**self.exponent


def isoflops(runs: Observations, law: ScalingLaw | None = None) -> IsoFlops:
    """The isoFLOP profiles of the runs: approach 2 of arXiv:2203.15556, section 3.2.

    Its parabolas are biased even without noise: the wider the sizes of a budget, the less centered on the optimum, and
    the more alpha and beta differ (arXiv:2603.22339). With a `law`, `bias` says by how much here: the same parabolas
    through the law's own losses, compared with its exact optima.
    """
    profiles = tuple(found for group in _budgets(runs) if (found := _profile(runs.only(group))) is not None)
    exponent, factor = _power_law(profiles)
    bias = exponent_bias = None
    if law is not None and profiles:
        ideal, errors = [], []
        for one in profiles:
            exact = law.loss(one.runs.parameters, one.runs.tokens)
            clean = _profile(Observations(one.runs.parameters, one.runs.tokens, exact, flops=one.runs.compute))
            if clean is not None and clean.inside:
                ideal.append(clean)
                errors.append(clean.parameters / law.optimum(clean.flops).parameters.value - 1)
        bias = max(errors, key=abs, default=None)
        true = law.theta[4] / (law.theta[3] + law.flops_per_token[1] * law.theta[4])
        found, _ = _power_law(ideal)
        exponent_bias = None if found is None else float(found - true)
    return IsoFlops(profiles, exponent, factor, None if bias is None else float(bias), exponent_bias)


def _budgets(runs: Observations) -> list[np.ndarray]:
    """Indices of runs whose FLOPs are the same within a tenth."""
    order = np.argsort(runs.compute)
    groups, first = [], 0
    for place in range(1, len(order) + 1):
        if place == len(order) or runs.compute[order[place]] > SAME_BUDGET * runs.compute[order[first]]:
            groups.append(order[first:place])
            first = place
    return groups


def _profile(runs: Observations) -> Profile | None:
    """The parabola of one budget; None where the sizes are too few or it opens downwards."""
    x = np.log(runs.parameters)
    if len(np.unique(np.round(x, 2))) < MIN_PROFILE:
        return None
    middle = x.mean()
    a, b, c = np.polyfit(x - middle, runs.losses, 2)
    if a <= 0:
        return None
    lowest = middle - b / (2 * a)
    flops = float(np.exp(np.log(runs.compute).mean()))
    # Tokens of that size at the budget: FLOPs per token between those of the sizes there.
    slope, offset = np.polyfit(x, np.log(runs.compute / runs.tokens), 1)
    return Profile(
        flops=flops,
        runs=runs,
        coefficients=np.array([a, b - 2 * a * middle, c - b * middle + a * middle**2]),
        parameters=float(np.exp(lowest)),
        tokens=float(flops / np.exp(slope * lowest + offset)),
        loss=float(c - b**2 / (4 * a)),
        inside=bool(x.min() <= lowest <= x.max()),
    )


def _power_law(profiles: Sequence[Profile]) -> tuple[float | None, float | None]:
    """Exponent and factor of N_opt = factor C^exponent."""
    used = [one for one in profiles if one.inside]
    if len(used) < 2:
        return None, None
    exponent, log_factor = np.polyfit(np.log([one.flops for one in used]), np.log([one.parameters for one in used]), 1)
    return float(exponent), float(np.exp(log_factor))


def describe(law: ScalingLaw) -> Mapping[str, str]:
    """The constants as a person reads them, by name."""
    return {name: f"{one.value:.4g} [{one.low:.4g}, {one.high:.4g}]" for name, one in law.constants.items()}

"""The command `gptlab plan`: what a run would cost; nothing is trained."""

import json
import math
import shlex
import typing
from dataclasses import asdict, dataclass, fields, replace
from enum import Enum
from typing import Any

from gptlab.cli.options import carry_out, compose
from gptlab.distributed.hardware import Hardware, find, known
from gptlab.errors import UserError
from gptlab.fields import bounded
from gptlab.generation.config import OutputFormat
from gptlab.training.config import FLOAT8
from gptlab.units import bytes_text, count_text, duration, flops_text, grid, plural, significant, table

if typing.TYPE_CHECKING:
    from gptlab.lab.plan import Devices, Planner

HELP = """gptlab plan [group.key=value ...] [device=NAME]

Parameters, FLOPs, memory, time, energy and cost of a run, on devices that need not be here. Nothing is trained.
It takes what gptlab train takes, as model=gpt124m trainer.devices=8 strategy=fsdp micro_batch_size=8, and:

    device            {devices}
                      (cpu, whose speed no table knows: give tokens_per_second); or another name with the next three
    peak_tflops       of a device that is not in the table, or of yours: dense TFLOP/s
    memory_gb         its memory, in GB of 10^9 bytes
    watts             its power
    mfu               fraction of the peak that training reaches (0.4, assumed)
    tokens_per_second instead: what all devices together were measured to reach
    price_per_hour    of one device, in dollars
    layers            true: layer by layer, with shapes, parameters and multiply-adds (false)
    compare           side by side: precision, strategy, or [precision,strategy]
    strategy          ? proposes the cheapest layout that fits the devices, and says why others do not
    accounting        gptlab, or zero_paper: the 2 + 2 + 12 bytes a parameter of arXiv:1910.02054 (gptlab)
    compute           FLOPs, as 1e21: the parameters and tokens that Chinchilla holds optimal for them
    law               a law.json of gptlab scaling fit: the loss that it expects of the run, and the best size for as
                      many FLOPs; with compute=, the optimum by that law
    known             true: published models, their tokens, and Chinchilla's (false)
    output            text, or json with nothing else on standard output (text)
    plugins           modules that register components of your own, as [MODULE]

FLOPs are those of matrix products and attention, a multiply-add being two; attention scores count in full, masked or
not, the embedding lookup is none, the backward pass is twice the forward pass, and recomputation does not count.
"""


class Comparison(Enum):
    """What is shown side by side."""

    precision = "precision"
    strategy = "strategy"


@dataclass(kw_only=True, slots=True)
class _Options:
    device: str = "cpu"
    peak_tflops: float | None = bounded(None, gt=0, le=1e9)
    memory_gb: float | None = bounded(None, gt=0, le=1e9)
    watts: float | None = bounded(None, gt=0, lt=math.inf)
    mfu: float = bounded(0.4, gt=0, le=1)
    tokens_per_second: float | None = bounded(None, gt=0, lt=math.inf)
    price_per_hour: float | None = bounded(None, ge=0, lt=math.inf)
    layers: bool = False
    compare: str | None = None
    accounting: str = "gptlab"
    compute: float | None = bounded(None, gt=0, lt=math.inf)
    law: str | None = None
    known: bool = False
    output: OutputFormat = OutputFormat.text


OPTIONS = typing.get_type_hints(_Options)
PROPOSE = "strategy=?"


def main(arguments: list[str]) -> int:
    """Print what the arguments ask for; returns the exit code."""
    return carry_out(
        arguments, _Options, _answer, of="gptlab plan", help=lambda: HELP.format(devices=", ".join(known()))
    )


def _answer(own: _Options, overrides: list[str]) -> None:
    compared = _comparisons(own.compare)
    _refuse_together(own, compared, propose=PROPOSE in overrides)
    if own.known or own.compute is not None:
        return _without_model(own, overrides)
    from gptlab.lab.scaling_law import read_law

    law = None if own.law is None else read_law(own.law)
    kind = _hardware(own)
    given = [one for one in overrides if one != PROPOSE]
    if not any(one.partition("=")[0] == "trainer.accelerator" for one in given) and kind.is_cpu:
        given.insert(0, "trainer.accelerator=cpu")  # first, since --config-dir takes what follows it
    config = compose(given, "gptlab plan")

    from gptlab.counting import without_compiler
    from gptlab.lab import plan as lab

    count = (config.trainer.device_count() or 1) * config.trainer.num_nodes
    devices = lab.Devices(kind, count, config.trainer.num_nodes, own.mfu, own.tokens_per_second, own.price_per_hour)
    try:
        accounting = lab.Accounting(own.accounting)
    except ValueError:
        raise UserError(f"accounting={own.accounting} is unknown; use gptlab or zero_paper") from None
    with without_compiler():
        planner = lab.Planner(config, devices, accounting)
        if own.layers:
            return _print_layers(own, planner)
        if PROPOSE in overrides:
            return _print_proposals(own, planner, given)
        if compared:
            return _print_comparisons(own, planner, compared)
        found = planner.summary() | ({} if law is None else {"scaling_law": planner.by_law(law)})
    if own.output is OutputFormat.json:
        return print(json.dumps(found))
    print(_text(found, devices, own.law))


def _comparisons(text: str | None) -> list[Comparison]:
    if text is None:
        return []
    inside = text[1:-1] if text[:1] == "[" and text[-1:] == "]" else text
    try:
        return [Comparison(name.strip()) for name in inside.split(",")]
    except ValueError:
        raise UserError(f"compare={text} is unknown; use precision, strategy or [precision,strategy]") from None


def _refuse_together(own: _Options, compared: list[Comparison], *, propose: bool) -> None:
    """One question at a time: what would be left unanswered is refused."""
    if own.law is not None and not own.law.strip():
        raise UserError("law= is empty; name a law.json of gptlab scaling fit, or leave it out")
    asked = {"layers=true": own.layers, "compare=": bool(compared), PROPOSE: propose, "known=true": own.known}
    asked["compute="] = own.compute is not None
    names = [name for name, given in asked.items() if given]
    if own.law is not None and (others := [name for name in names if name != "compute="]):
        raise UserError(f"law= says what the run would reach, which {others[0]} does not show; leave one of them out")
    if len(names) > 1:
        raise UserError(f"{' and '.join(names)} are questions of their own; ask one at a time")
    if own.tokens_per_second is not None and own.mfu != _Options().mfu:
        raise UserError("mfu= and tokens_per_second= both say how fast training is; leave one out")


def _hardware(own: _Options) -> Hardware:
    """The device that is meant, with what the user knows better."""
    given = own.peak_tflops, own.memory_gb, own.watts
    kind = find(own.device) if own.device in known() or given == (None, None, None) else Hardware(own.device)
    if own.peak_tflops is not None:
        kind = replace(kind, peak=dict.fromkeys(("fp8", "bf16", "fp16", "fp32"), own.peak_tflops * 1e12))
    if own.memory_gb is not None:
        kind = replace(kind, memory_bytes=round(own.memory_gb * 1e9))
    return kind if own.watts is None else replace(kind, watts=own.watts)


def _without_model(own: _Options, overrides: list[str]) -> None:
    """What has to do with no config."""
    which = "known=true" if own.known else "compute="
    if overrides or (own.known and own.compute is not None):
        raise UserError(f"{which} is about no run; leave out {overrides[0] if overrides else 'compute='}")
    usual = _Options()
    for f in fields(own):
        if f.name not in ("known", "compute", "law", "output") and getattr(own, f.name) != getattr(usual, f.name):
            raise UserError(f"{which} is about no device and no run; leave out {f.name}=")
    if own.known:
        from gptlab.lab.plan import known_models

        found = known_models()
        if own.output is OutputFormat.json:
            return print(json.dumps(found))
        head = ["model", "parameters", "active", "tokens", "20 a parameter", "tokens / that", "6 N D", "source"]
        rows = [
            [
                one["name"],
                count_text(one["parameters"]),
                count_text(one["active"]) if one["active"] != one["parameters"] else "",
                count_text(one["tokens"]),
                count_text(one["chinchilla_tokens"]),
                f"{one['tokens'] / one['chinchilla_tokens']:.2f}",
                flops_text(one["flops"]),
                one["source"],
            ]
            for one in found
        ]
        return print(grid(head, rows))
    from gptlab.lab.chinchilla import optimal_allocation

    assert own.compute is not None
    if own.law is not None:
        return _optimum_by_law(own.law, own.compute, own.output)
    found = optimal_allocation(own.compute)
    if own.output is OutputFormat.json:
        return print(json.dumps({name: {"parameters": n, "tokens": d} for name, (n, d) in found.items()}))
    rows = [[name, count_text(n), count_text(d), f"{d / n:.1f}"] for name, (n, d) in found.items()]
    print(f"{flops_text(own.compute)} ({own.compute:.3g} FLOP = 6 N D), optimal by Chinchilla (arXiv:2203.15556):\n")
    print(grid(["", "parameters N", "tokens D", "D / N"], rows))


def _optimum_by_law(file: str, compute: float, output: OutputFormat) -> None:
    from gptlab.lab.scaling import optima
    from gptlab.lab.scaling_law import read_law

    law = read_law(file)
    best = law.optimum(compute)
    if output is OutputFormat.json:
        return print(json.dumps({name: getattr(best, name).plain() for name in ("parameters", "tokens", "loss")}))
    print(f"optimal by {file}, whose N are {law.counted} parameters:\n\n{optima(law, [compute])}")


def _by_law(found: dict[str, Any], file: str | None) -> list[str]:
    """What a scaling law says of the planned run."""
    if "scaling_law" not in found:
        return []
    said = found["scaling_law"]
    best, loss, run = said["optimum"], said["loss"], said["one_run"]
    n, d = best["parameters"], best["tokens"]
    rows = [
        (
            "expected loss",
            f"{loss['value']:.4f}",
            f"{loss['low']:.4f} to {loss['high']:.4f}; of one run {run['low']:.4f} to {run['high']:.4f}",
        ),
        (
            "optimal size",
            count_text(n["value"]),
            f"{count_text(n['low'])} to {count_text(n['high'])} for the same FLOPs",
        ),
        ("with tokens", count_text(d["value"]), f"{count_text(d['low'])} to {count_text(d['high'])}"),
        ("and loss", f"{best['loss']['value']:.4f}", f"{best['loss']['low']:.4f} to {best['loss']['high']:.4f}"),
    ]
    lines = ["", f"by the scaling law {file} (95% intervals; it holds for its text, tokenizer and recipe)"]
    lines += [f"  {name:<14} {value:>7}   {details}" for name, value, details in rows]
    outside = [f"{which} {times:,.1f} times the largest" for which, times in said["beyond"].items() if times > 1]
    outside += [f"{which} 1/{times:,.1f} of the smallest" for which, times in said["below"].items() if times > 1]
    if outside:
        lines.append(f"  extrapolated: {' and '.join(outside)} that it was fitted to")
    return lines


def _text(found: dict[str, Any], devices: "Devices", law: str | None = None) -> str:
    parameters, compute, memory, time = (found[name] for name in ("parameters", "compute", "memory", "time"))
    inference = found["inference"]
    parts = ", ".join(f"{k} {n:,}" for k, n in parameters.items() if n and k not in ("total", "active", "trained"))
    if parameters["active"] < parameters["total"]:
        parts += f"; {parameters['active']:,} active"
    if parameters["trained"] < parameters["total"]:
        parts += f"; {parameters['trained']:,} trained"
    limit = found["device"]["memory"]
    sizes = ", ".join(f"{name} {bytes_text(size)}" for name, size in memory.items() if size and name != "total")
    if found["recomputed_blocks"] is not None:
        sizes += f"; {found['recomputed_blocks']} of {plural(found['recomputable_blocks'], 'block')} recomputed"
    fits = "" if limit is None else f" of {bytes_text(limit)}"
    if found["memory_budget_gib"] is not None:
        fits += f", by a budget of {found['memory_budget_gib']:g} GiB"
    if found["fits"] is False:
        fits += ", too large"
    layout = " x ".join(f"{n} {name}" for name, n in found["layout"].items() if n > 1) or "1 device"
    precision = found["precision"]
    if precision == FLOAT8 and found["device"]["name"] == "cpu":
        precision += " (emulated)"
    rows = [
        ("model", f"{parameters['total']:,} parameters", f"{found['model']}: {parts}"),
        (
            "data",
            f"{compute['tokens']:,} tokens",
            f"{significant(compute['tokens'] / parameters['total'])} a parameter",
        ),
        (
            "compute",
            flops_text(compute["flops"]),
            f"{flops_text(compute['flops_per_token'])} per token; 6 N: {flops_text(compute['flops_6n'])}",
        ),
        ("layout", plural(found["device"]["count"], "device"), f"{found['strategy']}: {layout}, {precision}"),
        ("memory", bytes_text(memory["total"]), f"per device{fits}: {sizes} ({_accounting(found)})"),
        ("micro-batch", plural(found["micro_batch_size"], "sequence"), _largest(found, limit)),
        *_time_rows(found, devices),
    ]
    weights = ", ".join(f"{name} {bytes_text(size)}" for name, size in inference["weights"].items())
    lines = [table(rows), "", "inference"]
    lines.append(f"  weights        {weights}")
    cache = inference["cache_per_token"]
    if cache is not None:
        length = inference["context_length"]
        text = ", ".join(f"{name} {bytes_text(size * length)}" for name, size in cache.items() if name != "int8")
        lines.append(f"  KV cache       {text} for a sequence of {length:,} tokens")
    lines.append(f"  forward pass   {flops_text(inference['flops_per_token'])} per token of the prompt")
    lines += ["", "tokens that Chinchilla (arXiv:2203.15556) holds optimal for this size"]
    names = max(map(len, found["chinchilla"]))
    lines += [f"  {name:<{names}}  {count_text(n):>5}" for name, n in found["chinchilla"].items()]
    lines += _by_law(found, law)
    assert time is not None
    lines += ["", f"next: gptlab train ... starts it; gptlab plan {_next(found)}"]
    return "\n".join(lines)


def _next(found: dict[str, Any]) -> str:
    if found["device"]["count"] > 1:
        return "... strategy=? proposes a layout, layers=true lists the layers"
    return "... layers=true lists the layers, device=h100 price_per_hour=2 plans for a GPU"


def _accounting(found: dict[str, Any]) -> str:
    if found["accounting"] == "zero_paper":
        return "accounting of the ZeRO paper: 2 + 2 + 12 bytes a parameter, model states alone"
    return "accounting=gptlab"


def _largest(found: dict[str, Any], limit: int | None) -> str:
    if limit is None or found["accounting"] == "zero_paper":
        return "per device and pass"
    largest = found["largest_micro_batch"]
    return "per device and pass; " + (f"up to {largest} fit" if largest else "not even one fits: try strategy=?")


def _time_rows(found: dict[str, Any], devices: "Devices") -> list[tuple[str, str, str]]:
    time, name = found["time"], found["device"]["name"]
    if time["seconds"] is None:
        reason = f"no peak FLOP/s of {name} in {found['precision']} is known, so there is no MFU"
        return [("time", "unknown", f"{reason}; give tokens_per_second= or peak_tflops=")]
    mfu = "" if time["mfu"] is None else f", MFU {time['mfu']:.0%} {time['mfu_is']}"
    peak = "" if time["peak_flops"] is None else f" of {significant(time['peak_flops'] / 1e12)} TFLOP/s"
    days = time["device_hours"] / 24
    rows = [("time", duration(time["seconds"]), f"{days:,.1f} device-days on {devices.count} x {name}{peak}{mfu}")]
    if time["kwh"] is not None:
        rows.append(("energy", f"{significant(time['kwh'])} kWh", f"{found['device']['watts']:,.0f} W a device"))
    if time["cost"] is not None:
        rows.append(("cost", f"${time['cost']:,.2f}", f"at ${devices.price_per_hour:,.2f} a device-hour"))
    return rows


def _print_layers(own: _Options, planner: "Planner") -> None:
    from gptlab.lab.layers import layers

    found = layers(planner.model, planner.config.context_length, target_length=planner.about["target_length"])
    if own.output is OutputFormat.json:
        return print(json.dumps([asdict(layer) for layer in found]))
    rows = [["layer", "type", "input", "output", "count", "parameters", "multiply-adds"]]
    for layer in found:
        name = "  " * layer.name.count(".") + layer.name if layer.kind != "LMHead" else layer.name
        shapes = (" x ".join(map(str, shape or ())) for shape in (layer.input, layer.output))
        rows.append([name, layer.kind, *shapes, str(layer.count), f"{layer.parameters:,}", f"{layer.multiply_adds:,}"])
    print(grid(rows[0], rows[1:], n_left=4))
    total = planner.parameters["total"]
    print(
        f"\n{total:,} parameters. Figures are of one layer, with those inside it; `count` says how many are alike.\n"
        "Multiply-adds are of a forward pass over one sequence; attention scores count in full."
    )


def _print_proposals(own: _Options, planner: "Planner", overrides: list[str]) -> None:
    from gptlab.lab.plan import proposals

    found = proposals(planner)
    if own.output is OutputFormat.json:
        plain = [
            {"overrides": one.overrides, "memory": one.memory, "micro_batch_size": one.micro_batch_size}
            | {"layout": asdict(one.layout), "fits": not one.reason, "reason": one.reason}
            for one in found
        ]
        return print(json.dumps(plain))
    limit = planner.devices.kind.memory_bytes
    assert limit is not None
    rows = [["layout", "memory per device", ""]]
    for one in found:
        memory = "" if one.memory is None else bytes_text(one.memory["total"])
        rows.append([" ".join(one.overrides), memory, one.reason or "fits"])
    print(
        f"{planner.config.model_tag} on {planner.devices.count} x {planner.devices.kind.name} ({bytes_text(limit)}):\n"
    )
    print(grid(rows[0], rows[1:], n_left=3))
    best = found[-1]
    if best.reason:
        print("\nnone fits: use more devices, a shorter context or a smaller model")
    else:
        replaced = {one.partition("=")[0] for one in best.overrides}
        replaced |= {"strategy.tensor_parallel", "strategy.replicas", "strategy.cpu_offload"}
        kept = [one for one in overrides if one.partition("=")[0] not in replaced]  # options of the command too
        print(f"\nnext: gptlab train {shlex.join([*kept, *best.overrides])}")


def _print_comparisons(own: _Options, planner: "Planner", compared: list[Comparison]) -> None:
    from gptlab.lab.plan import compare_precisions, compare_strategies

    found: dict[str, dict[str, dict[str, int]]] = {}
    for what in compared:
        make = compare_precisions if what is Comparison.precision else compare_strategies
        found[what.value] = make(planner)
    inference = planner.inference()
    if own.output is OutputFormat.json:
        return print(json.dumps(found | {"inference": inference}))
    limit = planner.limit_bytes
    for what, kinds in found.items():
        names = [
            name for name in next(iter(kinds.values())) if name != "total" and any(m[name] for m in kinds.values())
        ]
        rows = [["training" if what == "precision" else what, *names, "total", *(["fits"] if limit else [])]]
        for name, memory in kinds.items():
            fits = [] if limit is None else ["yes" if memory["total"] <= limit else "no"]
            rows.append([name, *(bytes_text(memory[part]) for part in names), bytes_text(memory["total"]), *fits])
        print(grid(rows[0], rows[1:]) + "\n")
    if Comparison.precision in compared:
        cache, length = inference["cache_per_token"], inference["context_length"]
        rows = [["inference", "weights", f"KV cache of {length:,} tokens"]]
        for name, size in inference["weights"].items():
            rows.append([name, bytes_text(size), "" if cache is None else bytes_text(cache[name] * length)])
        print(grid(rows[0], rows[1:]))

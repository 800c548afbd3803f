"""The matrix products of experts on a CPU: grouped, against two loops over the experts.

    python benchmarks/experts.py [--rounds 15] [--output experts.json]

Three contenders multiply the same tokens, sorted by expert, with the same stacked weights, as an MoE layer of 16
experts does:

    grouped    torch's grouped matrix product, which gptlab uses where it runs
    loop       split and unbind, one product per expert, concatenated: what gptlab uses elsewhere
    slices     a slice of tokens and a slice of weights per expert, written into one result

They take turns, so that other load on the machine affects all alike. Printed are medians, and the median over rounds
of each loop's time divided by the grouped product's.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from gptlab.nn import moe

N_EXPERT = 16
SHAPES = ((512, 64, 128), (2048, 128, 256), (4096, 256, 512), (2048, 512, 1024))  # tokens, in, out


def slices(x: Tensor, weight: Tensor, bias: None, ends: Tensor) -> Tensor:
    """The obvious loop."""
    result, start = x.new_empty(len(x), weight.shape[1]), 0
    for expert, end in enumerate(ends.tolist()):
        result[start:end] = F.linear(x[start:end], weight[expert])
        start = end
    return result


CONTENDERS = {"grouped": moe.grouped, "loop": moe.one_by_one, "slices": slices}


def measure(n_tokens: int, d_in: int, d_out: int, rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds of each contender, forward and forward + backward, and the loops' ratios to the grouped product."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n_tokens, d_in, generator=generator, requires_grad=True)
    weight = torch.randn(N_EXPERT, d_out, d_in, generator=generator, requires_grad=True)
    n_chosen = torch.randint(N_EXPERT, (n_tokens,), generator=generator).bincount(minlength=N_EXPERT)
    ends, upstream = n_chosen.cumsum(0).int(), torch.randn(n_tokens, d_out, generator=generator)
    assert moe.runs_grouped(x, weight)

    def forward(product) -> None:
        with torch.no_grad():
            product(x, weight, None, ends)

    def both(product) -> None:
        torch.autograd.grad(product(x, weight, None, ends), (x, weight), upstream)

    found = {}
    for way in (forward, both):
        times = {name: [] for name in CONTENDERS}
        for round_ in range(rounds + 2):
            for name in list(CONTENDERS)[round_ % 3 :] + list(CONTENDERS)[: round_ % 3]:
                start = time.perf_counter()
                way(CONTENDERS[name])
                if round_ >= 2:  # the first two warm up
                    times[name].append(1e3 * (time.perf_counter() - start))
        row = {name: statistics.median(values) for name, values in times.items()}
        for name in ("loop", "slices"):
            pairs = zip(times[name], times["grouped"], strict=True)
            row[f"{name}/grouped"] = statistics.median(a / b for a, b in pairs)
        found["forward" if way is forward else "forward + backward"] = row
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    print(f"torch {torch.__version__}, threads: {torch.get_num_threads()}, {N_EXPERT} experts, float32")
    results = {}
    for n_tokens, d_in, d_out in SHAPES:
        shape = f"{n_tokens} tokens, {d_in} to {d_out}"
        results[shape] = measure(n_tokens, d_in, d_out, options.rounds)
        for way, row in results[shape].items():
            times = ", ".join(f"{name} {row[name]:.2f} ms" for name in CONTENDERS)
            ratios = ", ".join(f"{name} {row[f'{name}/grouped']:.2f}x" for name in ("loop", "slices"))
            print(f"{shape:<26} {way:<18} {times}; over grouped: {ratios}")
    if options.output is not None:
        options.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    from ending import finish

    finish(main)

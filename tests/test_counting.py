import subprocess
import sys

# In a process of its own: this one may have the compiler already.
COUNTED = """
import sys, torch
from gptlab.counting import without_compiler

def elementwise():
    return torch.nn.functional.gelu(torch.arange(6.0, device="meta") + 1)

with without_compiler():
    elementwise()
    assert not any(name.startswith("torch._dynamo.") for name in sys.modules), "the compiler was imported"
assert "torch._dynamo" not in sys.modules and "_dynamo" not in vars(torch)
"""


def run(code):
    subprocess.run([sys.executable, "-c", code], check=True)


def test_meta_kernels_do_without_the_compiler_which_works_afterwards():
    again = "assert torch.compile(lambda x: x.abs() + 1, backend='eager')(torch.tensor(-2.0)) == 3\nelementwise()"
    run(COUNTED + again)


def test_who_needs_the_compiler_gets_it():
    inside = "with without_compiler():\n    elementwise()\n    import torch._dynamo.config\n    torch._dynamo.reset()"
    run(f"{COUNTED}{inside}\nassert torch._dynamo.__file__\nassert torch._dynamo is sys.modules['torch._dynamo']")


def test_an_error_while_counting_leaves_no_trace():
    fails = "try:\n    with without_compiler():\n        elementwise()\n        raise KeyError\nexcept KeyError: pass"
    run(f"{COUNTED}{fails}\nassert 'torch._dynamo' not in sys.modules")

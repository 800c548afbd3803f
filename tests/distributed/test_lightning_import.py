import subprocess
import sys

import pytest

PROGRAM = """
import sys
from gptlab.distributed.lightning_import import LEFT_OUT, import_lightning_alone
if {alone}:
    import_lightning_alone()
import lightning.pytorch, torchmetrics
print(*sorted(LEFT_OUT & set(sys.modules)))
import matplotlib.pyplot, scipy.signal
from lightning_utilities.core.imports import RequirementCache, package_available
print(package_available("scipy"), bool(RequirementCache("matplotlib")))
print(torchmetrics.MeanMetric()(3.0).item())
"""


@pytest.mark.parametrize("alone", [True, False])
def test_what_lightning_brings_along(alone):
    command = [sys.executable, "-c", PROGRAM.format(alone=alone)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    brought, found, metric = done.stdout.splitlines()
    assert (brought == "") if alone else {"matplotlib", "scipy"} <= set(brought.split())
    assert (found, metric) == ("True True", "3.0"), "nothing is left out for others"

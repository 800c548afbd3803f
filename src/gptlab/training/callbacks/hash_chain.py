"""The run's hash chain: which steps get a checksum of the weights, and when entries are written."""

from collections.abc import Mapping

from lightning.pytorch.callbacks import Callback

from gptlab.runs import chain, checkpoint
from gptlab.runs.chain import Chain, RowChain
from gptlab.runs.folder import RunFolder, read_metrics
from gptlab.runs.weight_sums import model_sum
from gptlab.training.config import ChainConfig


class HashChain(Callback):
    """Seals rows of metrics.csv with checksums of the weights, which all ranks compute together.

    `record` is the chain that rank 0 writes; None on the others. A checksum is taken right after its step, and its
    entry written once the row of that step is.
    """

    def __init__(self, settings: ChainConfig, folder: RunFolder, record: Chain | None):
        self.settings = settings
        self.folder = folder
        self.record = record
        self.rows = RowChain()
        self.summed_step: int | None = None  # of the newest checksum
        self._sums: dict[int, str] = {}  # by step, whose entries are not written yet

    @property
    def head(self) -> str | None:
        """The hash of the newest entry; None on other ranks than 0."""
        return None if self.record is None else self.record.head

    def read_rows(self) -> None:
        """Begin with the rows that metrics.csv holds."""
        if self.record is not None:
            self.rows = RowChain(read_metrics(self.folder.path / "metrics.csv"))

    def rewritten(self) -> None:
        """Begin again with these rows, as the last one was taken out to be written again."""
        self.read_rows()
        if self.record is not None:
            self.record.append(chain.REWRITTEN, step=-1 if self.rows.step is None else self.rows.step)

    def add(self, row: Mapping[str, float | int]) -> None:
        """Take up a row that was written to metrics.csv."""
        if self.record is not None:
            self.rows.add(row)

    def is_due(self, step: int, *, validates: bool) -> bool:
        """Whether the weights after this step get a checksum beside those of saves and of the last step."""
        every = self.settings.every_steps
        return validates or (every is not None and step % every == 0)

    def measure(self, trainer, module) -> None:
        """Take the checksum of the weights as they are now; all ranks do."""
        step = module.finished_steps
        if self.summed_step == step:
            return
        self.summed_step = step
        found = model_sum(
            module.model, rank=trainer.global_rank, world_size=trainer.world_size, device=trainer.strategy.root_device
        )
        if self.record is not None:
            self._sums[step] = found

    @property
    def waits(self) -> bool:
        """Whether the checksum of the newest row's step has no entry yet."""
        return self.record is not None and (self.rows.step or 0) in self._sums

    def write(self) -> None:
        """Write the entry of the newest row's step; the row has to be in the file itself."""
        if self.record is not None:
            step = self.rows.step or 0
            facts = {"row": self.rows.step, "rows": self.rows.head, "tags": self.rows.take_tags()}
            self.record.append(chain.WEIGHTS, step=step, weights=self._sums.pop(step), **facts)

    def saved(self, step: int, path) -> None:
        """Seal a checkpoint that is on the disk."""
        if self.record is not None:
            self.record.append(chain.SAVED, step=step, checkpoint=path.name, files=checkpoint.sums_of(path))

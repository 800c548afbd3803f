"""Sizes by layer over training, from the run's layers.csv."""

import torch

from gptlab.data.tokenizers.byte import ByteTokenizer
from gptlab.lab.inspection.over_training import N_STEPS, over_training
from gptlab.lab.inspection.subject import Subject
from gptlab.models.build import build_model
from gptlab.models.decoder.config import DecoderConfig


def test_columns_by_what_they_measure(tmp_path):
    model = build_model(DecoderConfig(n_layer=1, n_head=2, d_model=16), 257, seed=0)
    subject = Subject(name="", model=model, tokenizer=ByteTokenizer(), tokens=torch.tensor([[1]]))
    assert over_training(subject) is None
    subject.folder = tmp_path
    assert over_training(subject) is None
    lines = ["step,tokens,activation_rms/blocks.0,gradient_norm/tok_emb,weight_norm/gone"]
    lines += [f"{step},{step * 10},{step / 2},{'' if step == 3 else step * 2},,"[:-1] for step in range(1, 1001)]
    (tmp_path / "layers.csv").write_text("\n".join(lines) + "\n")
    found = over_training(subject)
    assert found["steps"][0] == 1 and found["steps"][-1] == 1000 and len(found["steps"]) <= N_STEPS + 1
    assert set(found["kinds"]) == {"activation_rms", "gradient_norm"}
    assert found["kinds"]["activation_rms"]["blocks.0"] == [step / 2 for step in found["steps"]]

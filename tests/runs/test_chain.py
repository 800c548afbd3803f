"""The hash chain's arithmetic, written out."""

import hashlib
import json

import torch

from gptlab.models.build import build_model
from gptlab.models.decoder.config import DecoderConfig
from gptlab.runs.chain import Chain, RowChain, read_chain
from gptlab.runs.weight_sums import model_sum, weights_sum

ZERO = hashlib.sha256(b"gptlab chain 1").hexdigest()


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def test_each_row_is_hashed_with_the_one_before_whatever_the_columns_are():
    rows = RowChain()
    first = rows.add({"step": 1, "tokens": 128, "train/loss": 2.5})
    second = rows.add({"train/loss": 2, "tokens": 256, "step": 2, "val/loss": float("nan")})
    assert first == sha(f"{ZERO}\nstep=1,tokens=128,train/loss=2.5")
    assert second == sha(f"{first}\nstep=2,tokens=256,train/loss=2.0,val/loss=nan") == rows.head
    assert rows.take_tags() == first[:8] + second[:8] and rows.take_tags() == ""


def test_an_entry_is_hashed_with_the_one_before_and_seals_the_events(tmp_path):
    chain = Chain(tmp_path)
    (tmp_path / "events.jsonl").write_text("abc\n")
    head = chain.append("rewritten", step=3)
    content = {"entry": "rewritten", "events": [4, sha("abc\n")], "step": 3}
    assert head == sha(f"{ZERO}\n{json.dumps(content)}")
    with open(tmp_path / "events.jsonl", "a") as file:
        file.write("d\n")
    again = Chain(tmp_path)  # of a run that goes on
    assert again.head == head
    content = {"entry": "another kind", "events": [6, sha("abc\nd\n")], "step": 4}
    assert again.append("another kind", step=4) == sha(f"{head}\n{json.dumps(content)}")
    assert [entry["step"] for entry in read_chain(tmp_path).entries] == [3, 4]
    with open(tmp_path / "chain.jsonl", "a") as file:
        file.write(json.dumps({"entry": "weights", "head": head}) + "\n" + '{"entr')
    found = read_chain(tmp_path)
    assert len(found.entries) == 2 and found.broken == 3 and found.torn


def test_an_entry_that_lacks_what_its_kind_has_breaks_the_chain(tmp_path):
    for number, (entry, facts) in enumerate(
        [("weights", {"step": 1}), ("rewritten", {}), ("saved", {"step": 1, "files": 3})], 1
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        Chain(folder).append(entry, **facts)
        assert read_chain(folder).broken == 1


def test_the_checksum_of_weights_is_one_of_names_types_shapes_and_bytes():
    model = build_model(DecoderConfig(n_layer=1, n_head=2, d_model=8, context_length=4), 11, seed=0)
    parts = ""
    for name, value in sorted(model.state_dict().items()):
        about = f"{name} F32 {list(value.shape)}\n".encode()
        parts += f"{name} {hashlib.sha256(about + value.numpy().tobytes()).hexdigest()}\n"
    assert weights_sum(model.state_dict()) == sha(parts)
    assert model_sum(model, rank=0, world_size=1, device=torch.device("cpu")) == sha(parts)
    with torch.no_grad():
        next(iter(model.parameters())).view(-1)[0] += 1e-6
    assert weights_sum(model.state_dict()) != sha(parts)

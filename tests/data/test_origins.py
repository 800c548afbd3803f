"""The files of documents: what stands in the token file at a document's number is the text of the file."""

import json
import re

import numpy as np
import pytest

from gptlab.data.documents import Documents
from gptlab.data.origins import origins
from gptlab.data.prepare import prepare
from gptlab.data.sources.config import TableConfig, TextConfig
from gptlab.data.tokenizers.config import ByteConfig


@pytest.mark.parametrize("split", ["document", "fraction"])
def test_each_document_is_that_of_its_file(tmp_path, split):
    texts = tmp_path / "texts"
    texts.mkdir()
    for i in range(20):
        (texts / f"{i:02}.txt").write_text(f"text {i % 15} " * (1 + i % 3))  # some are equal
    data = TextConfig(path=str(texts), val_fraction=0.3, split=split)
    prepared = prepare(data, ByteConfig(), progress=False)
    index = Documents(prepared.train, prepared.tokenizer.eot)
    spans = index.within(0, prepared.train.n_tokens)
    found, reason = origins(data, ByteConfig(), prepared, "train", {span.number for span in spans})
    assert reason is None and len(found) == len(spans) == prepared.train.n_documents
    for span in spans:
        text = prepared.tokenizer.decode(np.array(prepared.train.tokens[span.begin : span.end]))
        assert (texts / found[span.number]).read_text().startswith(text) and text


def test_each_example_is_that_of_its_record(tmp_path):
    table = tmp_path / "a table.jsonl"
    questions = [f"question {i % 17}?" for i in range(25)]
    table.write_text("".join(json.dumps({"q": q, "a": f"answer {i}"}) + "\n" for i, q in enumerate(questions)))
    data = TableConfig(path=str(table), prompt="{q}", response=" {a}", val_fraction=0.3)
    prepared = prepare(data, ByteConfig(), progress=False)
    examples = prepared.examples["train"]
    found, reason = origins(data, ByteConfig(), prepared, "train", range(len(examples)))
    assert reason is None and len(found) == len(examples) < 25
    for n, name in found.items():
        number = int(re.match(r"record (\d+) of .*a table", name)[1])
        (example,) = examples.gather(np.array([n]))
        text = prepared.tokenizer.decode(example.tokens[:-1])
        assert text == f"{questions[number - 1]} answer {number - 1}"

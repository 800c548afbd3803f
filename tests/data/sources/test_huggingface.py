"""The presets of data sets on the hub read folders with the layout of these data sets."""

import gzip
import json

import datasets
import pytest

from gptlab.composition import compose
from gptlab.errors import UserError

STORIES = ["Once upon a time, NA.", "The end.", "null"]
WIKITEXT = ["", " = Homarus gammarus = \n", "", " It is a lobster . \n"]


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()


def parquet(file, **columns):
    file.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict(columns).to_parquet(str(file))


def card(folder, *configs):
    """The part of a data set's README.md that says which files are which subset and split."""
    lines = ["---", "configs:"]
    for name, files in configs:
        lines += [f"- config_name: {name}", "  data_files:"]
        lines += [line for split, path in files.items() for line in (f"  - split: {split}", f"    path: {path}")]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]))


def tinystories(folder):
    parquet(folder / "data" / "train-00000-of-00004-2d5a1467fff1081b.parquet", text=STORIES[:2])
    parquet(folder / "data" / "train-00001-of-00004-5852b56a2bd28fd9.parquet", text=STORIES[2:])
    parquet(folder / "data" / "validation-00000-of-00001-869c898b519ad725.parquet", text=["another"])
    return STORIES


def wikitext103(folder):
    for subset, lines in (("wikitext-103-raw-v1", WIKITEXT), ("wikitext-2-raw-v1", ["wrong"])):
        for split in ("train", "validation", "test"):
            parquet(folder / subset / f"{split}-00000-of-00001.parquet", text=lines if split == "train" else ["held"])
    names = ("wikitext-103-raw-v1", "wikitext-2-raw-v1")
    card(folder, *((name, {split: f"{name}/{split}-*" for split in ("train", "validation", "test")}) for name in names))
    return [line for line in WIKITEXT if line]


def openwebtext(folder):
    parquet(folder / "plain_text" / "train-00000-of-00080.parquet", text=STORIES)
    card(folder, ("plain_text", {"train": "plain_text/train-*"}))
    return STORIES


def fineweb_edu(folder):
    others = {"id": ["1", "2", "3"], "url": ["u"] * 3, "language_score": [0.9] * 3, "int_score": [3] * 3}
    parquet(folder / "sample" / "10BT" / "000_00000.parquet", text=STORIES, **others)
    parquet(folder / "data" / "CC-MAIN-2024-10" / "train-00000-of-00002.parquet", text=["wrong"] * 3, **others)
    card(folder, ("default", {"train": "data/*/*"}), ("sample-10BT", {"train": "sample/10BT/*"}))
    return STORIES


def c4(folder):
    (folder / "en").mkdir(parents=True)
    (folder / "realnewslike").mkdir()
    for file, texts in (("en/c4-train.00000-of-01024", STORIES), ("realnewslike/c4-train.00000-of-00512", ["wrong"])):
        lines = [json.dumps({"text": text, "timestamp": "2019-04-25T12:57:54Z", "url": "u"}) + "\n" for text in texts]
        (folder / f"{file}.json.gz").write_bytes(gzip.compress("".join(lines).encode()))
    (folder / "en" / "c4-validation.00000-of-00008.json.gz").write_bytes(gzip.compress(b'{"text": "held"}\n'))
    card(
        folder,
        ("en", {"train": "en/c4-train.*.json.gz", "validation": "en/c4-validation.*.json.gz"}),
        ("realnewslike", {"train": "realnewslike/c4-train.*.json.gz"}),
    )
    return STORIES


@pytest.mark.parametrize("layout", [tinystories, wikitext103, openwebtext, fineweb_edu, c4], ids=lambda f: f.__name__)
def test_a_preset_reads_a_copy_of_its_data_set(tmp_path, layout):
    wanted = layout(tmp_path / "a copy")
    path = str(tmp_path / "a copy")
    preset = f"data={layout.__name__}"
    corpus = compose(preset, f"data.path={path}").data.build(progress=False)
    assert [text for _, text in corpus.documents()] == wanted
    two = compose(preset, f"data.path={path}", "data.max_documents=2").data.build(progress=False)
    assert [text for _, text in two.documents()] == wanted[: 1 if layout is wikitext103 else 2]
    if layout is wikitext103:
        assert corpus.left_out == ["2 records without text"]
    on_the_hub = compose(preset).data
    assert on_the_hub.dataset and on_the_hub.path is None


def test_without_the_card_the_folder_of_the_subset_is_given(tmp_path):
    wanted = c4(tmp_path / "c4")
    (tmp_path / "c4" / "README.md").unlink()
    with pytest.raises(UserError, match=r"subset=en.*cannot be opened"):
        list(compose("data=c4", f"data.path={tmp_path}/c4").data.build(progress=False).documents())
    corpus = compose("data=c4", f"data.path={tmp_path}/c4/en", "data.subset=null").data.build(progress=False)
    assert [text for _, text in corpus.documents()] == wanted


def test_only_a_name_on_the_hub_is_told_of_the_network(tmp_path):
    with pytest.raises(UserError, match=r"data\.dataset=no/such .*cannot be opened.*data\.path=FOLDER"):
        list(compose("data=huggingface", "data.dataset=no/such").data.build(progress=False).documents())

import csv
import gzip
import json

import pytest

from gptlab.data.sources.huggingface import HubDataset
from gptlab.data.sources.table_file import read_table, spelled

ROWS = [{"text": 'one, "two"\nthree', "n": 1}, {"text": "ünï\ttab", "n": None}, {"text": "", "n": 2.5}]


def rows(path, content: str | bytes):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(read_table(path))


@pytest.mark.parametrize("zipped", [False, True])
def test_json_keeps_the_values(tmp_path, zipped):
    pack = (lambda text: gzip.compress(text.encode())) if zipped else str.encode
    ending = ".gz" if zipped else ""
    assert rows(tmp_path / f"a.json{ending}", pack(json.dumps(ROWS, indent=1))) == ROWS
    lines = "\n\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS)
    assert rows(tmp_path / f"a.jsonl{ending}", pack(lines)) == ROWS


@pytest.mark.parametrize(("ending", "dialect"), [(".csv", "excel"), (".tsv", "excel-tab")])
def test_csv_as_the_standard_library_writes_it(tmp_path, ending, dialect):
    path = tmp_path / f"a{ending}"
    with open(path, "w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, ["text", "n"], dialect=dialect)
        writer.writeheader()
        writer.writerows(ROWS)
    assert list(read_table(path)) == [
        {"text": row["text"], "n": "" if row["n"] is None else str(row["n"])} for row in ROWS
    ]


def test_a_value_may_be_as_long_as_it_is(tmp_path):
    text = "word " * 100_000
    assert rows(tmp_path / "a.csv", f'text,n\n"{text}",1\n') == [{"text": text, "n": "1"}]


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("a.jsonl", "", "a.jsonl is empty"),
        ("a.jsonl", "\n\n", "a.jsonl has no records"),
        ("a.json", "[]", "a.json has no records"),
        ("a.csv", "a,b\n", "a.csv has no records"),
        ("a.jsonl", '{"a": 1}\n[1]\n', "a.jsonl, line 2: holds a list, not an object"),
        ("a.jsonl", '{"a": 1}\n{"a": \n', "a.jsonl, line 2: not JSON .Expecting value at column"),
        ("a.jsonl", '{"a": 1, "a": 2}\n', "a.jsonl, line 1: an object has 'a' twice"),
        ("a.jsonl", b'{"a": 1}\n{"a": "\xff"}\n', "a.jsonl, line 2: not UTF-8 text .*convert"),
        ("a.jsonl", "[" * 100_000, "a.jsonl, line 1: JSON nested too deeply"),
        ("a.json", '[{"a": 1},\n 3]', "a.json, object 2 of its list: holds a number"),
        ("a.json", '[{"a": 1},\n {"a": x}]', "a.json, line 2: not JSON"),
        ("a.json", '{"a": 1}', "a.json, line 1: holds an object, not a list of objects.*jsonl"),
        ("a.json", '{"a": 1}\n{"a": 2', "a.json, line 2: not JSON"),
        ("a.csv", "a,b\n1,2\n1,2,3\n", "a.csv, line 3: 3 values for 2 columns .a, b.; quote .*a comma"),
        ("a.tsv", "a\tb\n1\n", "a.tsv, line 2: 1 values for 2 columns .*a tab"),
        ("a.csv", 'a,b\n"x\ny",2\n"x,2\n', "a.csv, line 4: unexpected end of data; fix the quotes"),
        ("a.csv", "a,b,a\n1,2,3\n", "a.csv, line 1: the column 'a' appears twice"),
        ("a.csv", b"a,b\n1,\xe4\n", "a.csv, line 2: not UTF-8 text"),
        ("a.csv.gz", b"a,b\n1,2\n", "is not a valid gzip file"),
        ("a.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 999, mtime=0)[:-9], "is not a valid gzip file"),
        ("a.parquet", "x", "a.parquet is not a table; give a file ending in .jsonl, .json, .csv, .tsv"),
    ],
)
def test_a_bad_table_is_refused_by_file_and_line(tmp_path, name, content, why):
    with pytest.raises(ValueError, match=why) as caught:
        rows(tmp_path / name, content)
    assert str(caught.value).startswith(str(tmp_path / name))


def test_a_missing_table_is_refused_at_once(tmp_path):
    with pytest.raises(ValueError, match=r"no\.csv does not exist; give a table"):
        read_table(tmp_path / "no.csv")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(ValueError, match=r"cannot be read \(Is a directory"):
        list(read_table(tmp_path / "folder.csv"))


def test_records_of_a_data_set(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hf"))
    datasets.disable_progress_bars()
    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "saved"))
    table = HubDataset(path=str(tmp_path / "saved"))
    assert list(table.records()) == ROWS
    assert list(table.records(column="n", limit=2)) == [{"n": 1}, {"n": None}]
    with pytest.raises(ValueError, match=r"data\.path=/no/such does not exist"):
        HubDataset(path="/no/such")
    with pytest.raises(ValueError, match=r"data\.dataset is not set.* with data\.path="):
        HubDataset()


def test_labels_are_as_the_file_spells_them(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"a": true, "b": 1.10, "c": 3, "d": "1.10"}\n')
    (record,) = read_table(tmp_path / "t.jsonl")
    assert [spelled(value) for value in record.values()] == ["true", "1.10", "3", "1.10"]
    assert record["b"] == 1.1

"""Tables from files: every cell as it stands there, and mistakes told with their place."""

import gzip

import pandas
import pytest

from modeling_elmo.tables import read_table_file
from modeling_elmo.text_files import DataError


def read(folder, name: str, content: str) -> list[dict]:
    data = content.encode()
    (folder / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return read_table_file(str(folder / name)).to_list()


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz"])
def test_cells_of_csv_are_text(tmp_path, name):
    rows = read(tmp_path, name, '\ufefftext,label\r\nNA,01\r\n"a, ""b""\nc",1.50\r\n\r\nnull,None\r\n,true\r\n')
    cells = [("NA", "01"), ('a, "b"\nc', "1.50"), ("null", "None"), ("", "true")]
    assert rows == [{"text": text, "label": label} for text, label in cells]


def test_kinds_of_cells_do_not_change_in_the_middle(tmp_path):
    labels = ["1"] * 20_000 + ["1.5", "x"]
    rows = read(tmp_path, "a.csv", "text,label\n" + "".join(f"a,{label}\n" for label in labels))
    assert [row["label"] for row in rows] == labels


def test_quotation_marks_of_tsv_are_signs_unless_they_are_around_cells(tmp_path):
    stray = 'text\tlabel\n"good day\tpos\nfine\tpos\n"bad thing\tneg\n'
    assert [row["text"] for row in read(tmp_path, "a.tsv", stray)] == ['"good day', "fine", '"bad thing']
    across = 'text\tlabel\n"It rains .\tneg\nAgain .\tneg\nhe said . "\tneg\n'
    assert [row["text"] for row in read(tmp_path, "b.tsv", across)] == ['"It rains .', "Again .", 'he said . "']
    frame = pandas.DataFrame({"text": ['he said "so"', "a\tb"], "label": ["x", "y"]})
    frame.to_csv(tmp_path / "c.tsv", sep="\t", index=False)
    assert read_table_file(str(tmp_path / "c.tsv")).to_list() == frame.to_dict("records")
    frame = pandas.DataFrame({"text": ["one\ntwo", "three"], "label": ["x", "y"]})
    frame.to_csv(tmp_path / "d.tsv", sep="\t", index=False)
    assert read_table_file(str(tmp_path / "d.tsv")).to_list() == frame.to_dict("records")
    pair = 'first\tsecond\tlabel\n"Yes , he said .\tHe said yes "\t1\na\tb\t0\n'
    assert read(tmp_path, "e.tsv", pair)[0] == {"first": '"Yes , he said .', "second": 'He said yes "', "label": "1"}


def test_columns_without_a_name_have_a_number(tmp_path):
    assert read(tmp_path, "a.csv", "label,text,,\nham,hi,,\n") == [
        {"label": "ham", "text": "hi", "column 3": "", "column 4": ""}
    ]


def test_kinds_are_told_by_the_file_and_not_by_its_folder(tmp_path):
    (tmp_path / "my.tsv.d").mkdir()
    assert read(tmp_path / "my.tsv.d", "train.csv", "text,label\na,0\n") == [{"text": "a", "label": "0"}]
    assert read(tmp_path, "A.CSV", "text,label\na,0\n") == [{"text": "a", "label": "0"}]
    (tmp_path / "B.TSV.GZ").write_bytes(gzip.compress(b"text\tlabel\na\t0\n"))
    assert read_table_file(str(tmp_path / "B.TSV.GZ")).to_list() == [{"text": "a", "label": "0"}]


@pytest.mark.parametrize("ending", ["csv.gz", "tsv.gz"])
def test_a_file_that_was_cut_off(tmp_path, ending):
    data = gzip.compress("".join(f"a{number}\tb\n" for number in range(9999)).encode())
    for cut in (data[: len(data) // 2], data[:100] + bytes(50) + data[150:]):
        (tmp_path / f"a.{ending}").write_bytes(cut)
        with pytest.raises(DataError, match=f"a.{ending} is damaged"):
            read_table_file(str(tmp_path / f"a.{ending}"))


def test_names_of_files_are_no_patterns(tmp_path):
    (tmp_path / "run[1]").mkdir()
    for name, word in (("t[1].jsonl", "right"), ("t1.jsonl", "wrong")):
        (tmp_path / "run[1]" / name).write_text(f'{{"text": "{word}"}}\n')
    assert read_table_file(str(tmp_path / "run[1]" / "t[1].jsonl"))["text"][:] == ["right"]


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (None, "none.csv", "is no file"),
        ("x", "a.docx", r"must end in \.json"),
        ("{not json", "a.json", "cannot be read"),
        ("", "a.jsonl", r"a\.jsonl is empty"),
        ("text,label\n", "a.csv", r"a\.csv has no rows"),
        ("text,label\na b, and c,0\n", "a.csv", "row 0: 3 columns, but 2 have names: put cells with commas in quot"),
        ('text,label\n"a" b,0\n', "a.csv", "put cells with quotation marks in such"),
        ("text\tlabel\na\nb\t0\n", "a.tsv", "row 0: 1 columns, but 2 have names: cells have no tabs or line breaks"),
        ("text,text\na,b\n", "a.csv", "two columns have one name: text, text"),
        (b"text\n\xe9\n", "a.csv", "is not UTF-8"),
        ("text\na\n", "a.csv.gz", "is damaged"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, content, name, message):
    if content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=message):
        read_table_file(str(tmp_path / name))


def test_a_cache_that_cannot_be_written_is_not_laid_to_the_table(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "a.json" / "cache"))  # below a file
    with pytest.raises(DataError, match=r"^the cache of `datasets` cannot be written \(.*HF_DATASETS_CACHE$"):
        read(tmp_path, "a.json", '[{"text": "a"}]')

"""Reading lines from files, compressed files, Parquet files and data sets; what is damaged; and hashing."""

import bz2
import gzip
import lzma
import os
import random
import tracemalloc
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from modeling_elmo import text_files
from modeling_elmo.text_files import (
    DataError,
    ReadingReport,
    content_hash,
    decode,
    find_files,
    lines_of_dataset,
    read_lines,
)


def zstd(data: bytes) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


COMPRESS = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstd, ".zstd": zstd}
WORDS = [str(number) for number in range(100_000)]
TEXT = ("\n".join(" ".join(WORDS[i : i + 20]) for i in range(0, 100_000, 20)) + "\n").encode()


def read(path: Path, **options) -> tuple[list[str], ReadingReport]:
    report = ReadingReport()
    return list(read_lines([str(path)], report, **options)), report


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def write_parquet(path: Path, columns: dict, **options) -> Path:
    pyarrow.parquet.write_table(pyarrow.table(columns), path, **options)
    return path


# ---------------------------------------------------------------------------------------------------------------------
# Text files


def test_files_globs_and_gz_are_read_once_and_in_order(tmp_path):
    (tmp_path / "b.txt").write_text("two words\n\n  \nlast line without end")
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"one\r\n"))
    files = find_files([str(tmp_path / "*.txt*"), str(tmp_path / "b.txt")])
    assert [Path(name).name for name in files] == ["a.txt.gz", "b.txt"]
    report = ReadingReport()
    assert list(read_lines(files, report)) == ["one", "two words", "", "  ", "last line without end"]
    assert report.lines == 5 and report.problems() == []


def test_a_name_that_is_a_file_is_no_pattern(tmp_path):
    (tmp_path / "a[1].txt").write_text("x")
    assert find_files([str(tmp_path / "a[1].txt")]) == [str(tmp_path / "a[1].txt")]


@pytest.mark.parametrize("name", ["nothing*.txt", "", "x" * 300, "\x00"])
def test_names_of_no_file_are_errors(tmp_path, name):
    with pytest.raises(DataError, match=r"no file is named .*"):
        find_files([str(tmp_path / name)])


def test_a_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match=r"pipe' is a pipe or a device, .*: make a file of it"):
        find_files([str(tmp_path / "pipe")])


def test_invalid_utf8_and_control_bytes_are_counted_and_reported_and_not_fatal(tmp_path):
    data = (
        b"good \xff\xfe bytes\nnul\x00byte\x07 bell\nreal \xef\xbf\xbd replacement\n\xe2\x82 cut\nna\xc3\xafve\ttab\n"
    )
    lines, report = read(write(tmp_path / "bad.txt", data))
    assert lines == ["good \ufffd\ufffd bytes", "nul byte  bell", "real \ufffd replacement", "\ufffd cut", "naïve\ttab"]
    assert (report.lines_with_invalid_utf8, report.invalid_utf8_sequences, report.control_characters) == (2, 3, 2)
    problems = report.problems()
    assert len(problems) == 2 and "3 invalid UTF-8 sequences in 2 lines" in problems[0]
    assert "2 control characters" in problems[1]


def test_decode_knows_all_controls_and_keeps_white_space():
    report = ReadingReport()
    codes = [*range(0x20), *range(0x7F, 0xA0)]
    text = decode("".join(map(chr, codes)).encode(), report)
    assert [ord(after) for after in text] == [code if 0x09 <= code <= 0x0D else 0x20 for code in codes]
    assert report.control_characters == len(codes) - 5 and report.lines == 1


def test_a_byte_order_mark_at_the_start_of_each_file_and_windows_line_ends_are_dropped(tmp_path):
    mark = b"\xef\xbb\xbf"
    a = write(tmp_path / "a.txt", mark + b"one\r\n\r\ntwo " + mark + b"\r\n")
    b = write(tmp_path / "b.txt.gz", gzip.compress(mark + b"three"))
    assert list(read_lines([str(a), str(b)], ReadingReport())) == ["one", "", "two \ufeff", "three"]


@pytest.mark.parametrize("suffix", COMPRESS)
def test_compressed_files_read_as_plain_ones(tmp_path, suffix):
    for name in (f"text.txt{suffix}", f"TEXT.TXT{suffix.upper()}"):
        lines, report = read(write(tmp_path / name, COMPRESS[suffix](TEXT)))
        assert lines == TEXT.decode().splitlines()
        assert report.lines == len(lines)
    assert read(write(tmp_path / f"none{suffix}", COMPRESS[suffix](b"")))[0] == []


@pytest.mark.parametrize("name", ["a.fasta", "A.FAS.GZ", "a.faa", "a.fna.xz"])
def test_fasta_files_are_read_a_sequence_a_record(tmp_path, name):
    text = b"\n>P1 first\r\nSEQ\r\nWEN \nCE\n\n>P2\n>P3\nMK*"
    pack = COMPRESS.get(Path(name.lower()).suffix, bytes)
    assert read(write(tmp_path / name, pack(text)))[0] == ["SEQWENCE", "", "MK*"]
    assert read(write(tmp_path / name, pack(b"")))[0] == []
    with pytest.raises(DataError, match=rf"{name} does not begin with a line of FASTA .*: call it \.txt if"):
        read(write(tmp_path / name, pack(b"A sentence .\n> quoted\n")))
    assert read(write(tmp_path / "persian.fa", text))[0][:2] == ["", ">P1 first"]


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
@pytest.mark.parametrize("text", [TEXT, b""], ids=["text", "empty"])
def test_what_is_compressed_under_another_name_is_told(tmp_path, suffix, text):
    path = write(tmp_path / "text.txt", COMPRESS[suffix](text))
    with pytest.raises(DataError, match=rf"those of a {suffix} file, not of text: call it text.txt{suffix}$"):
        read(path)
    path = write(tmp_path / "text.txt.GZ", gzip.compress(COMPRESS[suffix](text)))
    with pytest.raises(DataError, match=rf"text.txt.GZ are those of a {suffix} file, not of text: unpack it$"):
        read(path)


def test_texts_may_begin_as_compressed_files_and_tables_do(tmp_path):
    for line in ("PAR1 is a receptor .", "BZh9 and its neighbours"):
        assert read(write(tmp_path / "text.txt", f"{line}\n".encode()))[0] == [line]


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("damage", ["cut", "end", "garbage", "text"])
def test_damaged_archives_are_errors_that_name_the_file(tmp_path, suffix, damage):
    whole = COMPRESS[suffix](TEXT)
    data = {
        "cut": whole[: len(whole) // 2],
        "end": whole[:-3],
        "garbage": random.Random(0).randbytes(5000),
        "text": TEXT,
    }[damage]
    path = write(tmp_path / f"text{suffix}", data)
    with pytest.raises(DataError, match=rf"text{suffix} is damaged \(.+\): make or fetch it again"):
        read(path)


def test_files_that_cannot_be_read_are_errors_that_name_them(tmp_path):
    for path in (tmp_path, tmp_path / "gone.txt", tmp_path / "gone.gz", tmp_path / "gone.parquet"):
        with pytest.raises(DataError, match=rf"{path} cannot be read \((Is a directory|No such file)"):
            read(path)
    for name in ("folder.gz", "folder.parquet"):
        (tmp_path / name).mkdir()
        with pytest.raises(DataError, match=f"{name} (cannot be read|is damaged)"):
            read(tmp_path / name)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_files_without_permission_are_errors(tmp_path):
    path = write(tmp_path / "secret.txt", b"x")
    path.chmod(0)
    with pytest.raises(DataError, match=r"secret.txt cannot be read \(Permission denied"):
        read(path)


# ---------------------------------------------------------------------------------------------------------------------
# Long lines


def test_a_line_of_ten_million_characters_is_read_whole(tmp_path):
    line = "word " * 2_000_000
    lines, report = read(write(tmp_path / "long.txt", f"before\n{line}\nafter\n".encode()))
    assert lines == ["before", line, "after"]
    assert report.long_lines == 0


@pytest.mark.parametrize("suffix", ["", *COMPRESS])
def test_longer_lines_are_cut_at_white_space_and_counted(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(text_files, "MAX_LINE_BYTES", 64)
    long = " ".join(WORDS[:300])
    data = f"short\n{long}\nshort\n\n{long}\n{long}".encode()
    lines, report = read(write(tmp_path / f"x{suffix}", COMPRESS.get(suffix, bytes)(data)))
    assert " ".join(lines).split() == ["short", *WORDS[:300], "short", *WORDS[:300] * 2]
    assert max(len(line) for line in lines) <= 64
    assert report.long_lines == 3 and report.lines == len(lines)
    assert report.problems() == ["3 lines of more than 64 bytes were cut into several"]


@pytest.mark.parametrize("character", ["x", "é", "中", "😀"])
@pytest.mark.parametrize("offset", range(4))
def test_runs_without_white_space_are_cut_between_characters(tmp_path, monkeypatch, character, offset):
    monkeypatch.setattr(text_files, "MAX_LINE_BYTES", 32)
    text = "a" * offset + character * 100
    lines, report = read(write(tmp_path / "run.txt", f"{text}\nnext".encode()))
    assert "".join(lines[:-1]) == text and lines[-1] == "next"
    assert all(len(line.encode()) >= 27 for line in lines[:-2])
    assert (report.long_lines, report.invalid_utf8_sequences) == (1, 0)


def test_no_bytes_are_lost_at_any_limit(tmp_path, monkeypatch):
    choose = random.Random(0)
    for limit in range(8, 24):
        monkeypatch.setattr(text_files, "MAX_LINE_BYTES", limit)
        data = "".join(choose.choice(["a", "bc", " ", "\t", "\u3000", "中", "\n", "\r\n"]) for _ in range(500))
        lines, report = read(write(tmp_path / "any.txt", data.encode()))
        assert "".join("".join(lines).split()) == "".join(data.split())
        assert report.invalid_utf8_sequences == 0
        longest = max(len(line.encode()) for line in data.split("\n"))
        assert (report.long_lines > 0) == (longest >= limit)


def test_a_file_without_line_ends_does_not_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "MAX_LINE_BYTES", 2**16)
    path = write(tmp_path / "x.gz", gzip.compress(b"x" * 2**25))
    tracemalloc.start()
    try:
        total = sum(len(line) for line in read_lines([str(path)], ReadingReport()))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert total == 2**25
    assert peak < 2**22


# ---------------------------------------------------------------------------------------------------------------------
# Progress


@pytest.mark.parametrize("suffix", ["", *COMPRESS])
def test_bytes_are_told_on_the_way_and_add_up_to_the_size(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(text_files, "BUFFER_BYTES", 2**12)
    path = write(tmp_path / f"text{suffix}", COMPRESS.get(suffix, bytes)(TEXT))
    told: list[int] = []
    halfway = 0
    for number, _ in enumerate(read_lines([str(path), str(path)], ReadingReport(), on_bytes=told.append)):
        if number == 4999:  # the last line of the first file
            halfway = sum(told)
    assert sum(told) == 2 * path.stat().st_size
    assert 0 < halfway <= path.stat().st_size
    assert len(told) > 4


# ---------------------------------------------------------------------------------------------------------------------
# Parquet files


def test_cells_of_the_first_text_column_or_of_a_chosen_one_are_read(tmp_path):
    columns = {"id": [1, 2, 3, 4], "text": ["a\r\nb\n", None, "", "naïve\x00"], "other": ["c", "d", "e", "f"]}
    path = write_parquet(tmp_path / "x.parquet", columns)
    lines, report = read(path)
    assert lines == ["a", "b", "", "naïve "]
    assert (report.lines, report.control_characters) == (4, 1)
    assert read(path, text_column="other")[0] == ["c", "d", "e", "f"]


def test_tables_are_known_by_their_name_in_any_case_and_by_their_first_bytes(tmp_path):
    for cells in (["a", "b"], pyarrow.array([], pyarrow.string())):
        path = write_parquet(tmp_path / "X.PARQUET", {"text": cells})
        assert read(path)[0] == list(cells)
        with pytest.raises(DataError, match=r"those of a .parquet file, not of text: call it x.txt.parquet"):
            read(path.rename(tmp_path / "x.txt"))


def test_large_strings_and_invalid_utf8_of_parquet_files_are_read(tmp_path):
    data = pyarrow.array([b"a \xff b", b"c"], pyarrow.binary()).cast(pyarrow.string(), safe=False)
    write_parquet(tmp_path / "bad.parquet", {"x": data})
    write_parquet(tmp_path / "large.parquet", {"x": pyarrow.array(["d"], pyarrow.large_string())})
    report = ReadingReport()
    names = [str(tmp_path / name) for name in ("bad.parquet", "large.parquet")]
    assert list(read_lines(names, report)) == ["a \ufffd b", "c", "d"]
    assert report.invalid_utf8_sequences == 1


def test_long_cells_are_cut_as_lines_are(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "MAX_LINE_BYTES", 16)
    lines, report = read(write_parquet(tmp_path / "x.parquet", {"x": ["one two three four five\nsix"]}))
    assert [line.strip() for line in lines] == ["one two three", "four five", "six"]
    assert report.long_lines == 1


def test_columns_that_are_not_there_or_not_text_are_errors(tmp_path):
    path = write_parquet(tmp_path / "x.parquet", {"id": [1], "text": ["a"], "other": ["b"]})
    for column in ("nothing", "id"):
        with pytest.raises(DataError, match=rf"x.parquet has no text column '{column}'.*\['text', 'other'\]"):
            read(path, text_column=column)
    with pytest.raises(DataError, match=r"no column of text, only \['id'\]"):
        read(write_parquet(tmp_path / "y.parquet", {"id": [1]}))


def test_damaged_parquet_files_are_errors_that_name_the_file(tmp_path):
    path = write_parquet(tmp_path / "x.parquet", {"text": WORDS})
    whole = path.read_bytes()
    middle = len(whole) // 2
    for data in (whole[:middle], whole[: middle - 50] + bytes(100) + whole[middle + 50 :], b"garbage" * 100, b""):
        with pytest.raises(DataError, match=r"x.parquet is damaged"):
            read(write(path, data))


def test_bytes_of_parquet_files_are_told_on_the_way_and_add_up_to_the_size(tmp_path):
    path = write_parquet(tmp_path / "x.parquet", {"text": WORDS})
    empty = write_parquet(tmp_path / "y.parquet", {"text": pyarrow.array([], pyarrow.string())})
    told: list[int] = []
    for number, _ in enumerate(read_lines([str(path), str(empty)], ReadingReport(), on_bytes=told.append)):
        if number == len(WORDS) // 2:
            assert sum(told) == pytest.approx(path.stat().st_size / 2, rel=0.01)
    assert sum(told) == path.stat().st_size + empty.stat().st_size
    assert min(told) >= 0 and len(told) > 100


def test_parquet_files_are_read_in_memory_that_does_not_grow(tmp_path):
    cells = [random.Random(i).randbytes(5000).hex() for i in range(4000)]  # 40 million bytes in one group of rows
    path = write_parquet(tmp_path / "x.parquet", {"text": cells}, use_dictionary=False)
    size = sum(map(len, cells))
    del cells
    pool = pyarrow.default_memory_pool()
    before, peak, total = pool.bytes_allocated(), 0, 0
    for line in read_lines([str(path)], ReadingReport()):
        total += len(line)
        peak = max(peak, pool.bytes_allocated() - before)
    assert total == size
    assert peak < size / 3


# ---------------------------------------------------------------------------------------------------------------------
# Data sets


@pytest.fixture
def local_set(tmp_path) -> str:
    """A data set of two splits in a local folder."""
    folder = tmp_path / "set"
    folder.mkdir()
    write_parquet(folder / "train.parquet", {"id": [1, 2, 3], "text": ["a\nb", None, "c\x00"], "note": ["d", "e", "f"]})
    write_parquet(folder / "test.parquet", {"id": [4], "text": ["z"], "note": ["y"]})
    return str(folder)


@pytest.mark.parametrize("streaming", [False, True])
def test_data_sets_are_read_and_mended_as_files_are(local_set, streaming):
    report = ReadingReport()
    assert list(lines_of_dataset(local_set, None, "train", None, report, streaming)) == ["a", "b", "c "]
    assert (report.lines, report.control_characters) == (3, 1)
    assert list(lines_of_dataset(local_set, None, "test", "note", ReadingReport(), streaming)) == ["y"]


@pytest.mark.parametrize("kind", ["jsonl", "csv", "txt"])
@pytest.mark.parametrize("streaming", [False, True])
def test_data_sets_without_known_types_are_read(tmp_path, kind, streaming):
    text = {"jsonl": '{"n": 1, "text": "one"}\n{"n": 2, "text": "two"}\n', "csv": "n,text\n1,one\n2,two\n"}
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / f"train.{kind}").write_text(text.get(kind, "one\ntwo\n"))
    report = ReadingReport()
    assert list(lines_of_dataset(str(folder), None, "train", None, report, streaming)) == ["one", "two"]


@pytest.mark.parametrize("streaming", [False, True])
def test_what_a_data_set_does_not_have_is_told_in_one_line_with_what_it_has(local_set, tmp_path, streaming):
    def message(name: str, config: str | None, split: str, column: str | None) -> str:
        with pytest.raises(DataError) as error:
            list(lines_of_dataset(name, config, split, column, ReadingReport(), streaming))
        assert "\n" not in str(error.value) and name in str(error.value)
        return str(error.value)

    validation = message(local_set, None, "validation", None)
    assert "'validation'" in validation and "train" in validation and "test" in validation
    assert "['text', 'note']" in message(local_set, None, "train", "id")
    assert "(nothing)" in message(local_set, "nothing", "train", None)
    assert "cannot be read" in message(str(tmp_path / "nowhere"), None, "train", None)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_data_set_of_damaged_files_is_an_error(local_set, streaming):
    path = Path(local_set) / "train.parquet"
    path.write_bytes(b"garbage" * 100)
    with pytest.raises(DataError, match=r"cannot be read, split 'train': .*[Pp]arquet"):
        list(lines_of_dataset(local_set, None, "train", None, ReadingReport(), streaming))


def test_being_offline_is_told(monkeypatch):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"data set 'no/such-set' cannot be read, split 'train': .*Hub"):
        list(lines_of_dataset("no/such-set", None, "train", None, ReadingReport()))


# ---------------------------------------------------------------------------------------------------------------------


def test_the_hash_depends_on_contents_order_and_boundaries_and_not_on_names(tmp_path):
    a, b, ab, none = (str(write(tmp_path / str(i), data)) for i, data in enumerate((b"a", b"b", b"ab", b"")))
    other_a = str(write(tmp_path / "other", b"a"))
    hashes = [content_hash(files) for files in ([a, b], [b, a], [ab], [a], [a, none], [none, a], [a, a], [])]
    assert len(set(hashes)) == len(hashes)
    assert content_hash([a, b]) == content_hash([other_a, b])
    assert all(len(digits) == 32 and int(digits, 16) >= 0 for digits in hashes)


def test_the_hash_sees_a_byte_beyond_the_first_chunk(tmp_path):
    data = bytearray(3 * 2**20)
    before = content_hash([str(write(tmp_path / "x", data))])
    data[-1] = 1
    assert content_hash([str(write(tmp_path / "x", data))]) != before


def test_hashing_what_is_not_there_is_an_error(tmp_path, capsys):
    with pytest.raises(DataError, match=r"gone cannot be read \(No such file"):
        content_hash([str(tmp_path / "gone")])
    content_hash([str(write(tmp_path / "x", b"x"))])
    assert capsys.readouterr().err == ""  # too short for a bar


@pytest.mark.data
def test_brown_is_read_whole(shared):
    report = ReadingReport()
    words = sum(len(line.split()) for line in read_lines([str(shared / "fixtures/bilm_tf_brown/train.txt.gz")], report))
    assert (report.lines, words + report.lines) == (55_072, 1_169_908)
    assert report.problems() == []


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.jsonl.gz", "a.tar.gz", "a.zip"])
def test_what_is_no_lines_of_text_is_refused_by_its_name(tmp_path, name):
    (tmp_path / name).write_bytes(b"{}\n")
    with pytest.raises(DataError, match="not lines of text: write its texts into a text file"):
        list(read_lines([str(tmp_path / name)], ReadingReport()))


@pytest.mark.parametrize("name", ["paper.pdf.txt", "news.doc.txt", "corpus.csv.lines"])
def test_texts_may_be_called_by_what_they_were_made_of(tmp_path, name):
    (tmp_path / name).write_text("one\n")
    assert list(read_lines([str(tmp_path / name)], ReadingReport())) == ["one"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32"])
def test_other_encodings_are_refused(tmp_path, encoding):
    (tmp_path / "a.txt").write_text("It rains in Bern .\n" * 100, encoding=encoding)
    with pytest.raises(DataError, match="is no text in UTF-8"):
        list(read_lines([str(tmp_path / "a.txt")], ReadingReport()))

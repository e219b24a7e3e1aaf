"""Published weights by their address, from a server on this machine."""

import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from unittest.mock import Mock
from urllib.parse import quote

import pytest
from legacy_files import write_legacy

from modeling_elmo import ElmoModel
from modeling_elmo.allennlp_format import ConversionError
from modeling_elmo.convert import main
from modeling_elmo.downloads import fetched


class Handler(SimpleHTTPRequestHandler):
    """The files of a folder; of those whose name begins with "cut" the last byte never comes."""

    def copyfile(self, source, outputfile):
        content = source.read()
        outputfile.write(content[:-1] if "/cut" in self.path else content)

    def log_message(self, *_):
        pass


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder, and the address under which a server has it; the cache is empty."""
    monkeypatch.setenv("MODELING_ELMO_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "site"
    folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def kept(tmp_path: Path) -> list[str]:
    """Names of what lies in the cache of downloads."""
    return [path.name for path in (tmp_path / "cache" / "downloads").rglob("*") if path.is_file()]


def test_files_are_fetched_once_and_named_as_they_were(site, tmp_path, capsys):
    folder, address = site
    legacy = write_legacy(folder / "legacy")
    sources = ["--options", f"{address}/legacy/options.json", "--weights", f"{address}/legacy/weights.hdf5?version=2"]
    assert main([*sources, str(tmp_path / "first")]) == 0
    assert "weights.hdf5: 100%" in capsys.readouterr().err
    (legacy / "weights.hdf5").unlink()
    assert main([*sources, str(tmp_path / "second")]) == 0
    assert "%" not in capsys.readouterr().err
    ElmoModel.from_pretrained(tmp_path / "second")
    card = (tmp_path / "second" / "README.md").read_text()
    assert "`weights.hdf5`" in card and str(tmp_path) not in card
    assert sorted(kept(tmp_path)) == ["options.json", "weights.hdf5"]
    (folder / "more").mkdir()
    (folder / "more" / "weights.hdf5").write_bytes(b"another")
    assert fetched(f"{address}/more/weights.hdf5").read_bytes() == b"another"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("none.zip", "cannot be fetched: HTTP Error 404: File not found"),
        ("cut.zip", "cannot be fetched: 9 bytes came of 10: try again"),
        ("page.zip", "is neither a folder nor an archive"),
    ],
)
def test_what_did_not_come_is_told_and_not_kept(site, tmp_path, capsys, path, message):
    folder, address = site
    for name in ("cut.zip", "page.zip"):
        (folder / name).write_text("0123456789")
    assert main([f"{address}/{path}", str(tmp_path / "dst")]) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith("error: ") and message in told
    assert ("(to fetch it again, remove " in told) == (path == "page.zip")
    assert kept(tmp_path) == (["page.zip"] if path == "page.zip" else []) and not (tmp_path / "dst").exists()


@pytest.mark.parametrize("address", ["http://127.0.0.1:1/a.zip", "http://[/a.zip", "https://"])
def test_an_address_that_nobody_answers(site, tmp_path, capsys, address):
    assert main([address, str(tmp_path / "dst")]) == 2
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize("name", ["модель 2.zip", "模" * 82 + ".zip"])
def test_names_in_any_script(site, name):
    folder, address = site
    (folder / name).write_text("content")
    path = fetched(f"{address}/{name}")
    assert path.read_text() == "content" and fetched(f"{address}/{quote(name)}") == path
    assert path.suffix == ".zip"


def test_an_address_that_is_not_unicode(site):
    with pytest.raises(ConversionError, match="cannot be fetched: 'utf-8' codec can't encode"):
        fetched("http://127.0.0.1:1/\udcff")


def test_a_user_without_a_home_is_told(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(Path, "home", Mock(side_effect=RuntimeError("Could not determine home directory.")))
    assert main(["http://127.0.0.1:1/a.zip", str(tmp_path / "dst")]) == 2
    assert "cannot be fetched: Could not determine home" in capsys.readouterr().err
    assert main([str(write_legacy(tmp_path / "legacy", vocabulary=[])), str(tmp_path / "dst")]) == 2  # not fetched


def test_no_name_leaves_the_cache(site, tmp_path):
    folder, address = site
    (folder / "file").write_text("content")
    for end in ("file?%2F..", "file#/..", "./file", "%66ile"):
        path = fetched(f"{address}/{end}")
        assert path.read_text() == "content" and path.parents[1] == tmp_path / "cache" / "downloads"
    assert fetched(f"{address}/%2e%2e").name == "download"  # the folder itself, as a page
    assert fetched(f"HTTP{address[4:]}/file").name == "file"
    assert fetched("file.zip") == Path("file.zip") and fetched(folder) == folder

"""Every command as `python -m` starts it."""

import io
import os
import runpy
import signal
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
from filelock import FileLock
from safetensors import SafetensorError
from tqdm import tqdm
from training_runs import load_script

import modeling_elmo
from modeling_elmo import finetuning_report
from modeling_elmo.arguments import ArgumentsError
from modeling_elmo.commands import new_folder, run_command, unlock, whole_file

SOURCES = Path(modeling_elmo.__file__).parent.glob("*.py")
COMMANDS = sorted(path.stem for path in SOURCES if "\ndef main(" in path.read_text(encoding="utf-8"))


@pytest.mark.filterwarnings("ignore:.* found in sys.modules:RuntimeWarning")  # other tests have imported it
@pytest.mark.parametrize("command", COMMANDS)
def test_it_starts_as_a_module_and_tells_how_it_is_used(command, monkeypatch, capsys):
    for arguments, code in ((["--help"], 0), (["--no-such-flag"], 2)):
        monkeypatch.setattr(sys, "argv", [command, *arguments])
        with pytest.raises(SystemExit) as ended:
            runpy.run_module(f"modeling_elmo.{command}", run_name="__main__")
        assert ended.value.code == code
    told = capsys.readouterr()
    assert told.out.startswith(f"usage: python -m modeling_elmo.{command}") and "Traceback" not in told.err
    assert f"python -m modeling_elmo.{command} " in told.out.partition("\n\n")[2], "an example, in the description"


def test_there_are_commands():
    assert {"convert", "embed", "perplexity", "publish"} <= set(COMMANDS)


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (MemoryError(), 2, "error: there is not enough memory"),
        (OSError("a\nb"), 2, "error: a b"),
        (LookupError("mine"), 2, "error: mine"),
        (SafetensorError("File too large"), 2, "error: File too large"),
        (KeyboardInterrupt(), 130, "stopped"),
    ],
    ids=repr,
)
def test_mistakes_end_with_a_line_and_a_code(error, code, told, capsys):
    def run():
        raise error

    assert run_command(run, LookupError) == code
    assert capsys.readouterr().err == f"{told}\n"
    with pytest.raises(ZeroDivisionError):
        run_command(lambda: 1 / 0, LookupError)


def test_sigterm_leaves_no_scratch_files(tmp_path):
    before = signal.getsignal(signal.SIGTERM)

    def run():
        with whole_file(tmp_path / "whole") as scratch:
            scratch.write_text("half")
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit) as stopped:
        run_command(run)
    assert stopped.value.code == 143 and not list(tmp_path.iterdir())
    assert signal.getsignal(signal.SIGTERM) is before


def test_processes_that_write_one_file_have_scratch_files_of_their_own(tmp_path, monkeypatch):
    target = tmp_path / "whole"
    with whole_file(target) as mine:
        mine.write_text("mine")
        monkeypatch.setattr(os, "getpid", lambda: -1)
        with whole_file(target) as others:
            others.write_text("others")
    assert target.read_text() == "mine" and list(tmp_path.iterdir()) == [target]


def test_a_lock_that_was_let_go_is_held_by_nobody_and_leaves_no_file(tmp_path):
    lock = FileLock(tmp_path / "lock")
    with lock:
        unlock(lock)
        assert not lock.is_locked and not list(tmp_path.iterdir())
    unlock(lock)


def test_a_lock_is_let_go_where_a_locked_file_cannot_be_deleted(tmp_path, monkeypatch):
    def refuse(path: Path, missing_ok: bool):
        raise PermissionError(f"[WinError 32] {path} is being used by another process")

    with FileLock(tmp_path / "lock") as lock:
        monkeypatch.setattr(Path, "unlink", refuse)
        unlock(lock)
        assert not lock.is_locked


def test_characters_that_cannot_be_shown_are_escaped(monkeypatch):
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding="ascii"))
    assert run_command(lambda: print("na\u00efve \u4e2d", flush=True)) == 0
    assert shown.getvalue().split() == [rb"na\xefve", rb"\u4e2d"]


@pytest.mark.parametrize("name", ["train", "finetune_ner"])
@pytest.mark.parametrize("stderr", [None, Mock(write=Mock(side_effect=OSError), flush=Mock(side_effect=OSError))])
def test_a_script_ends_by_nothing_that_it_cannot_tell(name, stderr, monkeypatch):
    """Of train.py and those for fine-tuning, up to a mistake in their arguments."""

    def parse_arguments(*_, **__):
        print("na\u00efve \u4e2d", flush=True)
        for _ in tqdm(range(3)):
            pass
        raise ArgumentsError("a mistake")

    script, shown = load_script(name), io.BytesIO()
    monkeypatch.setattr(script if name == "train" else finetuning_report, "parse_arguments", parse_arguments)
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding="cp1252"))
    monkeypatch.setattr(sys, "stderr", stderr)
    assert script.main() == 2 and sys.stderr is stderr
    assert shown.getvalue().startswith(b"na\xefve \\u4e2d")


@pytest.mark.parametrize("replace", [False, True])
def test_a_new_folder_takes_the_place_of_an_empty_one_and_of_what_it_may_replace(tmp_path, replace):
    target = tmp_path / "result"
    target.mkdir()
    with new_folder(target, replace) as folder:
        (folder / "mine").touch()
        if replace:
            (target / "old").touch()
    assert [path.name for path in target.iterdir()] == ["mine"] and list(tmp_path.iterdir()) == [target]


def test_a_folder_that_cannot_be_replaced_stays(tmp_path, monkeypatch):
    target = tmp_path / "result"
    target.mkdir()
    (target / "old").touch()
    rename = Path.rename
    monkeypatch.setattr(Path, "rename", lambda path, to: 1 / 0 if path.name == "new" else rename(path, to))
    with pytest.raises(ZeroDivisionError), new_folder(target, replace=True):
        pass
    assert [path.name for path in target.iterdir()] == ["old"] and list(tmp_path.iterdir()) == [target]


def test_a_new_folder_leaves_one_alone_that_came_meanwhile(tmp_path):
    target = tmp_path / "result"
    with pytest.raises(FileExistsError, match="choose another"), new_folder(target):
        target.mkdir()
        (target / "precious").touch()
    assert [path.name for path in target.iterdir()] == ["precious"] and list(tmp_path.iterdir()) == [target]
    with pytest.raises(FileExistsError, match="choose another"), new_folder(target):
        raise AssertionError("it must not begin")

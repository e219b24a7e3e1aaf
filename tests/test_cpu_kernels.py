"""Compiling kernels, and doing without a compiler. That a layer's numbers are right is tested in test_lstm.py."""

import importlib
import os
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training_runs import fork_server

from modeling_elmo import cpu_kernels
from modeling_elmo.c_library import c_library
from modeling_elmo.corpus import cache_folder
from modeling_elmo.recurrence_kernel import recurrence_kernel

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")


@pytest.fixture(autouse=True)
def fresh(monkeypatch, tmp_path):
    """A cache of this test's own, and nothing remembered from or for other tests."""
    monkeypatch.setenv("MODELING_ELMO_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MODELING_ELMO_KERNELS", raising=False)
    forget()
    yield
    forget()


def forget():
    for remembered in (c_library, cpu_kernels.cell_kernels, recurrence_kernel):
        remembered.cache_clear()


@needs_compiler
def test_compiled_once_and_kept(tmp_path, monkeypatch):
    assert cpu_kernels.cell_kernels(torch.float32) is not None
    (library,) = (tmp_path / "cache").iterdir()
    assert stat.S_IMODE(library.parent.stat().st_mode) == 0o700
    forget()
    runs = []
    run = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda command, **kwargs: runs.append(command) or run(command, **kwargs))
    assert cpu_kernels.cell_kernels(torch.bfloat16) is not None
    assert [command[1:] for command in runs] == [["--version"]], "only the compiler's version was asked for"


@needs_compiler
@pytest.mark.parametrize("share", [0.3, 0.001])
def test_a_broken_library_is_compiled_anew(tmp_path, monkeypatch, share):
    """Also one whose head is whole, so that loading it would end the process."""
    assert cpu_kernels.cell_kernels(torch.float32) is not None
    (library,) = (tmp_path / "cache").iterdir()
    content = library.read_bytes()
    library = tmp_path / "other" / library.name  # the system knows that path by now
    library.parent.mkdir(mode=0o700)
    library.write_bytes(content[: int(share * len(content))])
    monkeypatch.setenv("MODELING_ELMO_CACHE", str(library.parent))
    forget()
    assert cpu_kernels.cell_kernels(torch.float32) is not None and len(list(library.parent.iterdir())) == 1
    assert library.stat().st_size > 1000


def test_other_dtypes_have_no_kernel():
    for dtype in (torch.float64, torch.float16):
        assert cpu_kernels.cell_kernels(dtype) is None and recurrence_kernel(dtype) is None


def activated(x: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """sigmoid(x) and tanh(x) as the kernel leaves them in its gates: (numbers,) each."""
    gates, zeros = x.repeat(4).view(1, 1, -1), torch.zeros(1, 1, 4 * len(x))
    cell = torch.zeros(1, 1, len(x))
    kernel = cpu_kernels.cell_kernels(torch.float32)
    kernel.forward(gates, zeros, zeros[0], cell, cell, torch.empty_like(cell), float("inf"), keep=True)
    i, f, g, o = gates.view(4, -1).numpy()  # (numbers,) each
    np.testing.assert_array_equal(i, f)
    np.testing.assert_array_equal(i, o)
    return i, g


@needs_compiler
def test_activations_are_exact_to_3_ulp():
    sizes = torch.logspace(-30, 2, 100_003)  # not a multiple of what a register holds
    x = torch.cat([sizes, -sizes]).clamp(-86, 86)
    sigmoid, tanh = activated(x)
    expected = torch.sigmoid(x.double()).numpy(), torch.tanh(x.double()).numpy()
    for actual, wanted in zip((sigmoid, tanh), expected, strict=True):
        assert (np.abs(actual - wanted) <= 3 * np.spacing(np.abs(wanted).astype(np.float32))).all()
    sigmoid, tanh = activated(torch.tensor([float("inf"), float("-inf"), float("nan"), -1e30]))
    np.testing.assert_array_equal(tanh, np.array([1, -1, np.nan, -1], np.float32))
    np.testing.assert_allclose(sigmoid, np.array([1, 0, np.nan, 0]), rtol=0, atol=2e-38)


@needs_compiler
def test_the_recurrence_is_a_library_of_its_own(tmp_path):
    kernel = recurrence_kernel(torch.float32)
    (library,) = (tmp_path / "cache").iterdir()
    assert library.name.startswith("recurrence-") and recurrence_kernel(torch.float32) is kernel


def test_switched_off(monkeypatch, tmp_path):
    monkeypatch.setenv("MODELING_ELMO_KERNELS", "0")
    assert cpu_kernels.cell_kernels(torch.float32) is None and recurrence_kernel(torch.float32) is None
    assert not (tmp_path / "cache").exists()


def test_without_a_compiler(monkeypatch):
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.warns(UserWarning, match="no C compiler"):
        assert cpu_kernels.cell_kernels(torch.float32) is None


def test_on_windows_a_compiler_must_be_named(monkeypatch):
    monkeypatch.delenv("CC", raising=False)
    with monkeypatch.context() as windows:
        windows.setattr("os.name", "nt")
        assert c_library.__wrapped__("cell", "no C at all") is None


@needs_compiler
@pytest.mark.parametrize("value", ["", " ", "FOLDER/my compiler"])
def test_names_of_compilers(monkeypatch, tmp_path, value):
    compiler = tmp_path / "my compiler"
    compiler.write_text('#!/bin/sh\nexec cc "$@"\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", value.replace("FOLDER", str(tmp_path)))
    assert cpu_kernels.cell_kernels(torch.float32) is not None


def test_with_a_compiler_that_fails(monkeypatch, tmp_path):
    compiler = tmp_path / "broken"
    compiler.write_text('#!/bin/sh\ntest "$1" = --version && exit 0\necho cannot do that >&2\nexit 1\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    with pytest.warns(UserWarning, match="cannot do that"):
        assert cpu_kernels.cell_kernels(torch.float32) is None
    assert not list((tmp_path / "cache").iterdir()), "nothing half-made stays behind"


@needs_compiler
@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702], ids=oct)
def test_a_folder_that_others_can_write_to_is_not_trusted(mode, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    cache.mkdir()
    cache.chmod(mode)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    assert cpu_kernels.cell_kernels(torch.float32) is not None
    assert not list(cache.iterdir()) and not list((tmp_path / "temporary").iterdir())


@needs_compiler
def test_the_cache_is_its_owners_whoever_makes_it(tmp_path):
    before = os.umask(0o002)  # with it folders are made for a group, too
    try:
        cache_folder().mkdir(parents=True)  # of corpora
    finally:
        os.umask(before)
    assert cpu_kernels.cell_kernels(torch.float32) is not None
    assert sorted(path.suffix for path in (tmp_path / "cache").iterdir()) == ["", ".so"]


@needs_compiler
def test_a_user_without_a_home(monkeypatch):
    monkeypatch.delenv("MODELING_ELMO_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("Could not determine home")))
    assert cpu_kernels.cell_kernels(torch.float32) is not None


@needs_compiler
def test_a_compiler_with_arguments_and_a_version_in_another_encoding(monkeypatch, tmp_path):
    compiler = tmp_path / "latin"
    compiler.write_bytes(b'#!/bin/sh\ntest "$1" = --version && { printf "\\351\\n"; exit 0; }\nexec cc "$@"\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", f"env {compiler}")
    assert cpu_kernels.cell_kernels(torch.float32) is not None


def test_all_that_a_library_depends_on_is_in_its_name(monkeypatch, tmp_path):
    """Else an older one would be loaded. This compiler knows nothing of the processor that it runs on."""
    compiler, version = tmp_path / "old", tmp_path / "version"
    compiler.write_text(
        f'#!/bin/sh\ncase "$*" in *--version) exec cat {version};; *-march=native*) exit 1;; esac\n'
        "exec touch library.so\n"
    )
    compiler.chmod(0o755)
    version.write_text("1")
    module = importlib.import_module("modeling_elmo.c_library")

    def made(*arguments: str, source: str = "") -> Path:
        return module._compiled([str(compiler), *arguments], "kernel", source, tmp_path)

    libraries = [made(), made("-m64"), made(source="int one;")]
    version.write_text("2")
    libraries.append(made())
    changes = {"FLAGS": ["-O1"], "CANDIDATE_FLAGS": [["-fopenmp"]], "_processor": lambda: "another"}
    for name, change in changes.items():
        monkeypatch.setattr(module, name, change)
        libraries.append(made())
    assert made() == libraries[-1] and len(set(libraries)) == len(libraries) == 7
    assert all(path.is_file() for path in libraries)


def compile_in_process(cache: Path, start: Any):
    os.environ["MODELING_ELMO_CACHE"] = str(cache)
    start.wait()
    assert cpu_kernels.cell_kernels(torch.float32)


@needs_compiler
def test_processes_that_compile_at_once(tmp_path):
    context = fork_server()
    start = context.Barrier(3)
    processes = [context.Process(target=compile_in_process, args=(tmp_path / "cache", start)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=120)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len(list((tmp_path / "cache").iterdir())) == 1

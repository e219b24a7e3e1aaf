"""Runs every block of code in README.md and docs/ as a reader would: page by page, in order, beside what they name.

A block that needs what is not here has a comment in front: `<!-- not run: why -->`. One that needs a package of no
extra of ours has `<!-- needs: package -->`, and runs where that is installed.
"""

import gzip
import json
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from datasets import Dataset

ROOT = Path(__file__).parents[2]
GUIDES = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", *GUIDES]
BLOCK = re.compile(r"(?P<comment><!--[^>]*-->\n)?^```(?P<kind>\w*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    line: int
    kind: str
    code: str
    why_not: str | None


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text()
    found = []
    for match in BLOCK.finditer(text):
        comment = match["comment"] or ""
        why_not = comment.removeprefix("<!-- not run:").removesuffix("-->\n").strip() if "not run" in comment else None
        if (needed := re.match(r"<!-- needs: (\w+) -->", comment)) and find_spec(needed[1]) is None:
            why_not = f"there is no {needed[1]}"
        found.append(Block(text[: match.start()].count("\n") + 1, match["kind"], match["code"], why_not))
    return found


@pytest.fixture(scope="session")
def template(tmp_path_factory) -> Path:
    """A folder with what the pages name, as a reader who followed the README has it."""
    from modeling_elmo import ElmoConfig, ElmoForPreTraining, ElmoTokenizer
    from modeling_elmo.convert import convert_to_allennlp

    folder = tmp_path_factory.mktemp("reader")
    scripts = ("train.py", "finetune_glue.py", "finetune_ner.py", "finetune_squad.py", "examples")
    for name in (*scripts, "configs", "modeling_elmo"):
        (folder / name).symlink_to(ROOT / name)
    lines = [f"The color of word{number % 11} is {['red', 'green', 'blue'][number % 3]} ." for number in range(300)]
    (folder / "corpus.txt").write_text("\n".join(lines) + "\n")
    (folder / "pairs.tsv").write_text("".join(f"{line}\t{line.lower()}\n" for line in lines))
    (folder / "heldout.txt").write_text("\n".join(lines[:20]) + "\n")
    (folder / "corpus").mkdir()
    for name in ("corpus.txt.gz", "corpus/1.txt.gz", "corpus/2.txt.gz"):
        with gzip.open(folder / name, "wt") as file:
            file.write("\n".join(lines) + "\n")
    Dataset.from_dict({"text": lines[:20]}).to_parquet(folder / "texts.parquet")
    torch.manual_seed(0)
    tokenizer = ElmoTokenizer().train_new_from_iterator(lines)
    config = ElmoConfig(
        char_embedding_dim=4, cnn_filters=[[1, 8], [2, 8], [3, 8]], num_highway_layers=1, lstm_dim=16, projection_dim=8,
        lm_vocab_size=tokenizer.lm_vocab_size, num_negative_samples=8,
    )  # fmt: skip
    ElmoForPreTraining(config).save_pretrained(folder / "my-elmo")
    tokenizer.save_pretrained(folder / "my-elmo")
    shutil.copytree(folder / "my-elmo", folder / "demo_output/model")
    convert_to_allennlp(folder / "my-elmo", folder / "legacy")
    shutil.make_archive(str(folder / "legacy"), "zip", folder / "legacy")
    shutil.copy(folder / "legacy.zip", folder / "seqvec.zip")
    (folder / "proteins.fasta").write_text(">P1 the first\nSEQWEN\nCE\n>P2\nmkv\n")
    shutil.copytree(ROOT / "tests" / "bilm_tf_checkpoint", folder / "save_dir")
    write_many_langs(folder / "zht.model")
    for name in ("train", "validation"):
        texts = "".join(f"a {word} day,{label}\n" for word, label in [("good", "yes"), ("bad", "no")] * 20)
        (folder / f"{name}.csv").write_text(f"sentence,label\n{texts}")
        (folder / f"{name}.conll").write_text("Anna B-PER\nlives O\nin O\nBerlin B-LOC\n. O\n\n" * 30)
        answer = {"text": "Berlin", "answer_start": 14}
        question = {"id": name, "question": "Where does Anna live?", "answers": [answer]}
        paragraph = {"context": "Anna lives in Berlin .", "qas": [question]}
        squad = {"version": "1.1", "data": [{"title": "Anna", "paragraphs": [paragraph]}]}
        (folder / f"{name}.json").write_text(json.dumps(squad))
    return folder


def write_many_langs(folder: Path):
    """A model as ELMoForManyLangs leaves it, by its own package, whose decorator `overrides` is out of date."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "overrides", SimpleNamespace(overrides=lambda method: method))
        from test_many_langs import write_model

        write_model(folder)


@pytest.fixture
def world(template, tmp_path) -> Path:
    """The same folder for each page, so that none leans on another."""
    return shutil.copytree(template, tmp_path / "reader", symlinks=True)


def environment() -> dict[str, str]:
    bin_folder = str(Path(sys.executable).parent)
    return {**os.environ, "PATH": f"{bin_folder}:{os.environ['PATH']}", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def run(arguments: list[str], folder: Path, what: str):
    done = subprocess.run(arguments, cwd=folder, env=environment(), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{what}\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_runs(page, world):
    python, is_new = "", False  # one program a page, begun anew where a command comes in between
    for block in [*blocks_of(page), Block(0, "end", "", None)]:
        if block.why_not is not None:
            assert block.why_not, f"{page.name}, line {block.line}: say why it is not run"
            continue
        if block.kind == "python":
            python, is_new = f"{python}\n{block.code}", True
            continue
        if is_new:  # what was shown before a command runs before it
            (world / "page.py").write_text(python)
            run([sys.executable, "page.py"], world, f"{page.name}, Python before line {block.line}")
            is_new = False
        if block.kind == "bash":
            run(["bash", "-euo", "pipefail", "-c", block.code], world, f"{page.name}, line {block.line}")
        else:
            assert block.kind in ("text", "end"), f"{page.name}, line {block.line}: a block of kind {block.kind!r}"


def test_the_reference_has_every_public_name(tmp_path):
    """Built from docstrings that all parse, for `--strict` fails at the first warning."""
    import modeling_elmo

    settings = str(ROOT / "docs/reference/mkdocs.yml")
    run([sys.executable, "-m", "mkdocs", "build", "--strict", "-f", settings, "-d", str(tmp_path)], ROOT, "mkdocs")
    pages = "".join(page.read_text() for page in (tmp_path / "reference").glob("*.html"))
    ids = set(re.findall(r'id="[\w.]*?(\w+)"', pages))
    assert set(modeling_elmo.__all__) <= ids
    forwards = {name for name in modeling_elmo.__all__ if name.startswith(("ElmoFor", "ElmoModel"))}
    assert forwards == {name for name in forwards if f'.{name}.forward"' in pages}


def test_every_guide_is_in_the_index():
    index = (ROOT / "docs/README.md").read_text()
    assert all(f"({page.name})" in index for page in GUIDES if page.name != "README.md")
    assert sum(len(blocks_of(page)) for page in GUIDES) > 20

"""Runs every block of code in docs/ as a reader would: page by page, in order, beside the files that the pages name.

A block that needs what is not here has a comment in front: `<!-- not run: why -->`.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))
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
        found.append(Block(text[: match.start()].count("\n") + 1, match["kind"], match["code"], why_not))
    return found


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> Path:
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
    torch.manual_seed(0)
    tokenizer = ElmoTokenizer().train_new_from_iterator(lines)
    config = ElmoConfig(
        char_embedding_dim=4, cnn_filters=[[1, 8], [2, 8], [3, 8]], num_highway_layers=1, lstm_dim=16, projection_dim=8,
        lm_vocab_size=tokenizer.lm_vocab_size, num_negative_samples=8,
    )  # fmt: skip
    ElmoForPreTraining(config).save_pretrained(folder / "my-elmo")
    tokenizer.save_pretrained(folder / "my-elmo")
    convert_to_allennlp(folder / "my-elmo", folder / "legacy")
    shutil.make_archive(str(folder / "legacy"), "zip", folder / "legacy")
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


def environment() -> dict[str, str]:
    bin_folder = str(Path(sys.executable).parent)
    return {**os.environ, "PATH": f"{bin_folder}:{os.environ['PATH']}", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def run(arguments: list[str], folder: Path, what: str):
    done = subprocess.run(arguments, cwd=folder, env=environment(), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{what}\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_runs(page, world):
    python: list[str] = []  # one program a page, begun anew where a command comes in between
    for block in [*blocks_of(page), Block(0, "end", "", None)]:
        if block.why_not is not None:
            continue
        if block.kind == "python":
            python.append(block.code)
            continue
        if python:  # what was shown before a command runs before it
            (world / "page.py").write_text("\n".join(python))
            run([sys.executable, "page.py"], world, f"{page.name}, Python before line {block.line}")
        if block.kind == "bash":
            run(["bash", "-euo", "pipefail", "-c", block.code], world, f"{page.name}, line {block.line}")
        else:
            assert block.kind in ("text", "end"), f"{page.name}, line {block.line}: a block of kind {block.kind!r}"


def test_every_page_is_in_the_index():
    index = (ROOT / "docs/README.md").read_text()
    assert all(f"({page.name})" in index for page in PAGES if page.name != "README.md")
    assert sum(len(blocks_of(page)) for page in PAGES) > 20

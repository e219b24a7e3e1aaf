"""Real English that every machine has: the documentation of Python's standard library, as running sentences.

Read are the texts of `pydoc_data.topics`, and the docstrings and block comments of the library's modules. Files are
parsed and never run; only modules that are compiled into the interpreter are imported. Written are `train.txt` and
`validation.txt`, one raw sentence a line. Code, doctests, tables, signatures and markup are left out.

    python examples/demo_corpus.py demo_output/text
"""

import argparse
import ast
import importlib
import inspect
import random
import re
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

# Tests, tables of characters, grammars, and what other packages have put there.
SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "idle_test", "idlelib", "encodings", "lib2to3"}
SKIPPED_FOLDERS |= {"__pycache__", "__phello__", "pydoc_data", "lib-dynload", "ensurepip", "turtledemo"}
# Behind these a full stop does not end a sentence, even where a capital follows.
ABBREVIATIONS = {
    "e.g.",
    "i.e.",
    "vs.",
    "cf.",
    "dr.",
    "mr.",
    "mrs.",
    "st.",
    "no.",
    "inc.",
    "fig.",
    "sec.",
    "approx.",
    "al.",
}
# Words that nearly every English sentence has one of; lines of code and tables seldom do.
_WORDS = """
    a an the this that these those it its is are was were be been being has have had do does did not no of to in on at
    by for from with without as if when where while which who what how than then there and or but so can could may might
    must should will would you we they your their our all any each only also
"""
FUNCTION_WORDS = set(_WORDS.split())


# --- Where the text is -------------------------------------------------------------------------------------------


def topics() -> Iterator[tuple[str, str]]:
    """(name, text) of each topic of Python's language reference."""
    from pydoc_data.topics import topics as texts

    for name in sorted(texts):
        yield f"topic {name}", texts[name]


def library_files(root: Path) -> Iterator[tuple[str, str]]:
    """(name, docstrings and block comments) of each Python file below `root`, in order of path."""
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        if SKIPPED_FOLDERS.isdisjoint(name.parts):
            try:
                source = path.read_bytes().decode("utf-8")
                yield str(name), "\n\n".join([*docstrings(source), *block_comments(source)])
            except (SyntaxError, ValueError, RecursionError):
                continue  # other encodings, files that are broken on purpose


def docstrings(source: str) -> Iterator[str]:
    """The docstrings of a module, its classes and its functions."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield ast.get_docstring(node) or ""


def block_comments(source: str) -> Iterator[str]:
    """Comments of two or more lines."""
    block: list[str] = []
    for line in [*source.splitlines(), ""]:
        if line.lstrip().startswith("#"):
            block.append(line.lstrip().lstrip("#"))
        else:
            if len(block) > 1:
                yield inspect.cleandoc("\n" + "\n".join(block))
            block = []


def compiled_modules() -> Iterator[tuple[str, str]]:
    """(name, docstrings) of the modules that are part of the interpreter itself, as `builtins`."""
    for name in sorted(sys.builtin_module_names):
        module = importlib.import_module(name)
        members = [member for _, member in sorted(vars(module).items(), key=lambda item: item[0])]
        for cls in [member for member in members if isinstance(member, type)]:
            members += [member for _, member in sorted(vars(cls).items())]
        texts = [
            member.__doc__ for member in [module, *members] if callable(member) or inspect.isdatadescriptor(member)
        ]
        yield f"module {name}", "\n\n".join(inspect.cleandoc(text) for text in texts if isinstance(text, str))


# --- From documentation to sentences -----------------------------------------------------------------------------


def paragraphs(text: str) -> Iterator[str]:
    """The paragraphs of a text, each as one line: split at blank lines, list items and changes of indentation."""
    lines: list[str] = []
    indent = 0
    for line in [*text.expandtabs().splitlines(), ""]:
        stripped = line.strip()
        item = re.match(r"([*+o•-]|\(?\w[.)]|\d+[.)]|:[\w ]+:|[@.]{1,2} ?\w+(:+| \w+:))\s+", stripped)
        moved = len(line) - len(line.lstrip()) != indent and lines and (len(lines[-1]) < 45 or lines[-1][-1] in ".:")
        if (not stripped or item or moved) and lines:
            yield from [" ".join(lines)] if is_running_text(lines) else []
            lines = []
        indent = len(line) - len(line.lstrip())
        if stripped:
            lines.append(stripped[item.end() :] if item else stripped)


def is_running_text(lines: list[str]) -> bool:
    """Whether lines are a paragraph: not a doctest, a heading with its underline, a table or a drawing."""
    return not any(
        re.match(r">>>|\.\.\. |[^\w\s]{3,}|\W*$|[|+]", line) or re.search(r"\S {3,}\S", line) for line in lines
    )


MARKUP = [
    (r"[“”]|\"\"", '"'),
    (r"[\u2018\u2019]", "'"),
    (r"…", "..."),
    (r":[\w:]+:`~?([^`<]+?)( <[^`]*>)?`", r"\1"),  # :class:`text <target>`
    (r"`(\w[^`']*)'", r"\1"),  # `text'
    (r"``?([^`]+?)`?`_{0,2}", r"\1"),
    (r"\*\*?(\w[^*]*?)\*\*?", r"\1"),
    (r"""(?<![\w"'])(["'])(\w[\w.\-]*(?:\(\))?)\1(?![\w"'])""", r"\2"),  # a quoted name: "TypeError", 'key'
    (r"::(?=\s|$)", ":"),
    (r"\s+", " "),
]


def sentences(paragraph: str) -> Iterator[str]:
    """The English sentences of a paragraph, without markup."""
    for pattern, replacement in MARKUP:
        paragraph = re.sub(pattern, replacement, paragraph)
    start = 0
    for end in re.finditer(r"[.!?][\"')\]]*(?=\s+[\"'(\[]*[A-Z0-9_])|$", paragraph):
        words = paragraph[start : end.end()].split()
        last = words[-1].lstrip("(") if words and end.group() else ""
        if last.lower() in ABBREVIATIONS or re.fullmatch(r"[A-Z]\.", last):
            continue
        if is_sentence(words):
            yield " ".join(words)
        start = end.end()


def is_sentence(words: list[str]) -> bool:
    """Whether words read as English: enough of them, few names of code, and words that hold a sentence together."""
    text = " ".join(words)
    if not 4 <= len(words) <= 80 or not re.match(r"[\"'(]?\w", text) or not re.search(r"[\w)\"'.!?:]$", text):
        return False
    if re.search(r"https?:|::|--?>|[<>=]{1,2}|[{}\\|@$^~%#]|\[\]|XXX|FIXME|(?i:\btodo\b)|\*|,\S|\.\.\.", text):
        return False
    plain = [
        word for word in words if re.fullmatch(r"[(\"']?[A-Za-z]+(?:['/-][A-Za-z]+)*(?:'s)?[\"')]?[.,;:!?]?\)?", word)
    ]
    glue = sum(word.lower().strip("(\"'.,;:") in FUNCTION_WORDS for word in words)
    if len(plain) < 0.75 * len(words) or glue < 1 + len(words) // 10:
        return False
    if text.count("(") != text.count(")") or text.count('"') % 2 or re.search(r"^\S+ (?:--?|:) ", text):
        return False
    if text[-1].isalnum() and words[-1].lower() in FUNCTION_WORDS:
        return False  # went on behind a piece of code
    return text[0].isupper() or text[-1] in ".!?"


# --- From sentences to files -------------------------------------------------------------------------------------


def documents(texts: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """The sentences of each text; one that has come before is left out, so that no two documents share any."""
    seen: set[str] = set()
    result: dict[str, list[str]] = {}
    for name, text in texts:
        found = [sentence for paragraph in paragraphs(text) for sentence in sentences(paragraph)]
        new = [sentence for sentence in dict.fromkeys(found) if sentence not in seen]
        seen.update(new)
        if new:
            result[name] = new
    return result


def split(texts: dict[str, list[str]], share: float, seed: int) -> tuple[list[str], list[str]]:
    """Sentences for training and for validation: whole documents, at random, about `share` of the words held out."""
    names = sorted(texts)
    random.Random(seed).shuffle(names)
    sizes = {name: count_words(texts[name]) for name in names}
    wanted = share * sum(sizes.values())
    held_out: set[str] = set()
    for name in names:
        # No document is more than a fifth of the validation text, so that it is not about one thing.
        if sizes[name] <= min(wanted / 5, wanted - sum(sizes[other] for other in held_out)):
            held_out.add(name)
    train = [sentence for name in names if name not in held_out for sentence in texts[name]]
    return train, [sentence for name in names if name in held_out for sentence in texts[name]]


def count_words(lines: Iterable[str]) -> int:
    return sum(len(line.split()) for line in lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("output_dir", type=Path)
    parser.add_argument("--validation_share", type=float, default=0.03)
    parser.add_argument("--seed", type=int, default=0, help="of the choice of documents for validation")
    arguments = parser.parse_args()
    root = Path(sysconfig.get_path("stdlib"))
    texts = documents([*topics(), *compiled_modules(), *library_files(root)])
    parts = split(texts, arguments.validation_share, arguments.seed)
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    print(f"{len(texts):,} documents of Python {sys.version.split()[0]}")
    for name, lines in zip(("train.txt", "validation.txt"), parts, strict=True):
        path = arguments.output_dir / name
        path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        print(f"{path}: {len(lines):,} sentences, {count_words(lines):,} words")


if __name__ == "__main__":
    main()

# make demo   install into .venv, pretrain a tiny ELMo on the texts of Python's own documentation, show what it learnt
# make test   install into .venv, run the tests
# make bench  install AllenNLP beside it, print how fast both are (BENCH_ARGS= for the long run)

PYTHON ?= python3
# More arguments for pip, such as an index with CPU builds of torch.
PIP_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
DEMO := demo_output
BENCH_ARGS ?= --short
ALLENNLP := .cache/allennlp

.PHONY: venv demo test test-hf test-docs docs bench lint format clean

venv: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(PIP_ARGS) -e '.[dev]'
	touch $@

demo: venv
	$(BIN)/python examples/demo_corpus.py $(DEMO)/text
	$(BIN)/python train.py configs/recipes/demo.yaml --train_file $(DEMO)/text/train.txt \
		--validation_file $(DEMO)/text/validation.txt --output_dir $(DEMO)/model --overwrite_output_dir
	$(BIN)/python -m modeling_elmo.reporting $(DEMO)/model/log.jsonl
	$(BIN)/python examples/demo_words.py $(DEMO)/model $(DEMO)/text/train.txt

# Two processes of one thread each: tiny models gain nothing from more threads.
test: venv
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

# transformers' own common model tests, from its source distribution (needs the package index once).
test-hf: venv
	$(BIN)/python -m pytest tests/hf

# Every block of code in README.md and docs/.
test-docs: venv
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 tests/docs

# The guides and a reference made from docstrings, to be read from build/docs/index.html.
docs: venv
	$(BIN)/mkdocs build --strict -f docs/reference/mkdocs.yml

bench: venv $(ALLENNLP)/installed
	$(BIN)/python -W ignore benchmarks/bench.py $(BENCH_ARGS) --allennlp $(ALLENNLP)/bin/python --plot speed.png

# The last AllenNLP, in an environment of its own: it needs an older transformers.
$(ALLENNLP)/installed:
	test -x $(ALLENNLP)/bin/python || $(PYTHON) -m venv $(ALLENNLP)
	$(ALLENNLP)/bin/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) 'torch==2.13.0' \
		'transformers<5' 'huggingface_hub<1' spacy cached-path lmdb dill base58 more_itertools fairscale h5py
	$(ALLENNLP)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps 'allennlp==2.10.1'
	touch $@

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: venv
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(DEMO) build .cache .pytest_cache .ruff_cache .mypy_cache

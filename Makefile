# make demo   install into .venv, pretrain a tiny ELMo on the texts of Python's own documentation, show what it learnt
# make test   install into .venv, run the tests

PYTHON ?= python3
# More arguments for pip, such as an index with CPU builds of torch.
PIP_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
DEMO := demo_output

.PHONY: venv demo test test-hf lint format clean

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

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: venv
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(DEMO) .cache .pytest_cache .ruff_cache .mypy_cache

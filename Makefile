# Two commands do all set-up on a machine with git, make and Python 3.11 or newer: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help demo test tests lint wheel-test reference gallery docs clean
help: ## print this list
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

demo: .venv/ready ## set up .venv, run the flagship scenario, leave figures in out/
	$(BIN)/sramsim run scenarios/llama2-70b-lpu-vs-h100.yaml --out out --plots

# Side by side, since types are checked on one core.
test: .venv/ready ## check format, lint, types and layers, and run all tests
	$(MAKE) --no-print-directory --jobs=2 lint tests

tests: .venv/ready
	$(BIN)/pytest -n auto --dist worksteal

lint: .venv/ready ## only the checks
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The page of all keys, from the classes that read them.
reference: .venv/ready ## write scenarios/REFERENCE.md from the classes
	$(BIN)/sramsim schema --reference > scenarios/REFERENCE.md

# The figures of docs/pages/gallery.md.
SWEEPS := latency-vs-load pareto strong-scaling users
gallery: .venv/ready ## draw the figures of the pages again (minutes)
	for sweep in $(SWEEPS); do $(BIN)/sramsim sweep scenarios/$$sweep.yaml --out out/$$sweep && \
		$(BIN)/sramsim plot out/$$sweep && cp out/$$sweep/$$sweep.png docs/pages/figures/ || exit 1; done
	$(BIN)/sramsim run llama2-70b-lpu-vs-h100 --out out/gallery --plots
	cp out/gallery/speed.png out/gallery/token-latency.png docs/pages/figures/
	$(BIN)/sramsim run jia-2024 --out out/jia-2024 --plots
	cp out/jia-2024/crossover.png docs/pages/figures/
	$(BIN)/sramsim sweep jia-2024 --out out/jia-sweep && $(BIN)/sramsim plot out/jia-sweep && cp out/jia-sweep/card-price.png docs/pages/figures/
	$(BIN)/sramsim plan llama2-70b-lpu-vs-h100 --figure docs/pages/figures/memory.png
	$(BIN)/sramsim trace llama2-70b-lpu-vs-h100 --system lpu --figure docs/pages/figures/gantt.png
	$(BIN)/sramsim sensitivity llama3-8b-lpu-vs-h100 --figure docs/pages/figures/tornado.png > out/gallery/tornado.txt
	$(BIN)/sramsim validate --figure docs/pages/figures/agreement.png > out/gallery/validation.txt
	$(BIN)/sramsim validate sram-replies --figure docs/pages/figures/prefill.png > out/gallery/replies.txt
	$(BIN)/sramsim sweep claims/lpx --out out/lpx && $(BIN)/sramsim plot out/lpx && cp out/lpx/frontier.png docs/pages/figures/
	$(BIN)/sramsim validate afd --figure docs/pages/figures/ratio.png > out/gallery/afd.txt

docs: .venv/ready ## build docs/ as a site into out/docs; warnings are errors
	$(BIN)/pip install --quiet --group docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --config-file docs/mkdocs.yml

# The installed wheel: that it is whole, and what reads its files (catalogue, tables, page, figures, reference), from a folder
# where the checkout cannot be imported by accident, and beside no package that only the developers have.
OF_FILES := $(addprefix $(CURDIR)/tests/,test_architecture.py catalogue cli/test_completion.py report/test_schema.py report/test_page.py validation/test_points.py)
wheel-test: .venv/ready ## test the installed wheel, from another folder
	rm -rf dist .venv-wheel
	$(BIN)/pip wheel --quiet --no-deps --wheel-dir dist .
	$(PYTHON) -m venv .venv-wheel
	.venv-wheel/bin/pip install --quiet --upgrade "pip>=25.1"
	.venv-wheel/bin/pip install --quiet --group test dist/sramsim-*.whl
	cd "$$(mktemp -d)" && $(CURDIR)/.venv-wheel/bin/sramsim run llama3-8b-lpu-vs-h100 --out out --plots && \
		SRAMSIM_INSTALLED=1 $(CURDIR)/.venv-wheel/bin/pytest -n auto --dist worksteal --rootdir $(CURDIR) -c $(CURDIR)/pyproject.toml $(OF_FILES)

.venv/ready: pyproject.toml
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/pip install --quiet --editable . --group dev
	touch $@

clean: ## remove what make made
	rm -rf .venv .venv-wheel dist out

# make demo   set up, make the data set, train and evaluate, show a table and pictures
# make test   set up, run the whole suite
# make test-long  the tests that take minutes: runs killed at random moments, real schedulers
# make test-gpu  the operations and the backbone on this machine's GPU, which the others leave alone
# make setup  the environment alone; STACK=maintained (default) or classic, PYTHON=...,
#             MMCV_WHEELS=... index, page or folder with prebuilt wheels of mmcv
# make docs   the site, into site/; make docs-serve shows it while you write
# make lint   ruff
# make clean  remove everything that was made here

STACK ?= maintained
PYTHON ?=
MMCV_WHEELS ?=
VENV ?= $(if $(filter maintained,$(STACK)),.venv,.venv-$(STACK))
RUN = $(VENV)/bin/python

# Modules from elsewhere would hide those of the environment.
unexport PYTHONPATH

.PHONY: demo test test-long test-gpu docs docs-serve setup lint clean

demo: setup
	$(RUN) dev/demo.py

test: setup
	$(RUN) -m pytest -n 2 --dist worksteal

test-long: setup
	$(RUN) -m pytest -m long -s

test-gpu: setup
	MMPOOLFORMER_TEST_GPU=1 $(RUN) -m pytest tests/ops

docs: setup
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict

docs-serve: setup
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs serve

lint: setup
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

setup:
	@python3 dev/setup_env.py --stack $(STACK) --venv $(VENV) $(if $(PYTHON),--python $(PYTHON)) \
		$(if $(MMCV_WHEELS),--mmcv-wheels '$(MMCV_WHEELS)')

clean:
	rm -rf .venv .venv-classic build dist site *.egg-info work_dirs data/digits .pytest_cache .ruff_cache

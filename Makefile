# Needs Python 3.11 or newer, make and git. Every target makes the virtual environment it runs in.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.installed
PEERS := .venv/.peers
LINT := .venv/.lint
DOCS := .venv/.docs
# Exact versions, of CI too; `make CONSTRAINTS= test` takes the newest.
CONSTRAINTS ?= --constraint constraints.txt
# Bytecode is written by the first import, of what is imported alone: half of the time.
INSTALL := $(BIN)/python -m pip install --quiet --no-compile $(CONSTRAINTS) --editable

# One module each, in experiments/paper, peers, imaging and networks. SMOKE=1: small, on packaged data, to see that they run.
# RESUME=1: go on with the log.
PAPER := quadratic crossover tv tv_starts foe mnist
COMPARISONS := one peers
IMAGING := bsd68_choice bsd68 bsd68_levels bsd68_time kodak256 colour inverse blind
STATISTICS := penalties floors lasso groups wide
SCALE := cleaning sampled
NETWORKS := exactness optima ablation fashion lstm tune
MODE := $(if $(SMOKE),--smoke,$(if $(RESUME),--resume))

# Nearly all of a smoke run is compiling, some of it the same in several: half of it goes without optimisations. Other
# runs have neither, for they time what they compile. `make --jobs 2 reproduce SMOKE=1` has two experiments at a time.
ifdef SMOKE
export JAX_DISABLE_MOST_OPTIMIZATIONS := 1
ifneq ($(CONSTRAINTS),)  # flags of the version of XLA that is pinned: another may not know them, and then ends
export XLA_FLAGS := --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1
endif
export JAX_COMPILATION_CACHE_DIR := $(CURDIR)/.jax_cache
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS := 0
export JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES := 0
endif

# The demo is run again and again, by people who wait for it.
demo: export JAX_COMPILATION_CACHE_DIR := $(CURDIR)/.jax_cache
demo: export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS := 0.1

.PHONY: help demo demo-figure test test-full lint attack attack-imaging bench bench-full reproduce networks responses front-door first-order growth devices gallery tables docs docs-check try-wheel test-lowest release docs-examples $(PAPER) $(COMPARISONS) $(IMAGING) $(STATISTICS) $(SCALE) $(NETWORKS) imaging statistics scale clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 19

# Written last, so that an interrupted installation is done again.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer needed: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(INSTALL) '.[test,experiments]'
	@touch $@

$(LINT): $(READY)
	$(INSTALL) '.[lint]'
	@touch $@

$(DOCS): $(READY)
	$(INSTALL) '.[docs]'
	@touch $@

# What only the comparisons need.
$(PEERS): $(READY)
	$(INSTALL) '.[peers]'
	@touch $@

demo: $(READY)  ## learn a TV denoiser from photographs; prints a table, draws a figure in experiments/demo
	$(BIN)/python -m experiments.demo

demo-figure: $(READY)  ## the same, for the log and the figure that are committed
	$(BIN)/python -m experiments.demo --record

test: $(READY)  ## run the tests, a file at a time on each core; options go in ARGS="-k certificate"
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile $(ARGS)

test-full: $(READY)  ## the same and the long checks, marked `full`, with LLVM's optimisations
	JAX_DISABLE_MOST_OPTIMIZATIONS=0 $(BIN)/python -m pytest --numprocesses auto --dist loadfile -m "" $(ARGS)

lint: $(LINT)  ## ruff: rules and format; codespell: spelling; pyright: the examples' calls of the public interface, as installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell *.md *.toml *.py Makefile bilevel docs experiments problems tests
	@rm -rf .types build
	@$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --target .types .
	$(BIN)/pyright --project pyproject.toml --pythonpath $(BIN)/python

attack: $(READY)  ## the certificates against references in 80-bit floats: 29 000 draws, a quarter of an hour; SMOKE=1: a few
	$(BIN)/python -m experiments.attack.attack $(MODE)

attack-imaging: $(READY)  ## the same of image restoration, every operator with every regulariser: 3 000 draws, minutes
	$(BIN)/python -m experiments.attack.attack_imaging $(MODE)

bench: $(PEERS)  ## speed of kernels and lower-level solvers; cost and seconds to target, methods x problems, in minutes
	$(BIN)/python -m experiments.benchmarks.bench_kernels
	$(BIN)/python -m experiments.benchmarks.bench_lower
	$(BIN)/python -m experiments.benchmarks.bench_methods $(MODE)
	$(BIN)/python -m experiments.benchmarks.bench_default $(MODE)
	$(BIN)/python -m experiments.benchmarks.bench_memory $(MODE)

bench-full: $(PEERS)  ## the same with Fields of Experts, MNIST and the default's parts left out, in hours
	$(BIN)/python -m experiments.benchmarks.bench_full $(MODE)
	$(BIN)/python -m experiments.benchmarks.bench_stn $(MODE)

reproduce: $(PAPER) $(COMPARISONS)  ## all experiments, hours; SMOKE=1: in minutes; BILEVEL_DATA=folder: with the paper's data

imaging: $(IMAGING)  ## learnt denoisers on BSD68, total variation on Kodak, operators, without clean images, two hours; SMOKE=1: in one; BILEVEL_DATA=folder: with the field's data

statistics: $(STATISTICS)  ## what many penalties are worth on six tables; Lasso, kernels beside their peers; wide tables, hours; SMOKE=1: in minutes

scale: $(SCALE)  ## data hyper-cleaning on MNIST beside four methods made for it, mini-batches before a certified run, hours; BILEVEL_DATA=folder

networks: $(NETWORKS)  ## the experiments with self-tuning networks, hours; SMOKE=1: in minutes

front-door: $(READY)  ## solve() without tol on two dozen problems, beside SciPy over the same objectives, in minutes
	$(BIN)/python -m experiments.benchmarks.front_door $(MODE)

first-order: $(READY)  ## hypergradients without Hessian products beside the adjoint's: cost, accuracy, a minute
	$(BIN)/python -m experiments.benchmarks.first_order $(MODE)

growth: $(READY)  ## seconds, cost and memory against images, pixels, hyperparameters, a quarter of an hour; SMOKE=1: in one
	$(BIN)/python -m experiments.scale.growth $(MODE)

devices: $(READY)  ## the same calls on every backend that JAX has here, and whether what they certify holds; a quarter of an hour
	$(BIN)/python -m experiments.scale.devices $(MODE)

responses: $(READY)  ## what best responses of the lower level are worth, beside MAID
	$(BIN)/python -m experiments.networks.responses $(MODE)

gallery: $(DOCS)  ## run the examples of the gallery that changed, minutes; SMOKE=1: with few steps; EXAMPLES="lasso mri": these
	$(BIN)/python docs/run_gallery.py $(EXAMPLES)

tables: $(READY)  ## write the tables of the pages about experiments anew, from the logs
	$(BIN)/python docs/tables.py

docs: gallery  ## build the site, into site/, with the gallery; warnings are errors, and tables that no log has
	$(BIN)/python docs/tables.py --check
	cd docs && NO_MKDOCS_2_WARNING=1 ../$(BIN)/python -m mkdocs build --strict --quiet
	$(BIN)/python docs/check_site.py site

docs-check: docs  ## every page of the site in Chromium, if there is one: consoles, pictures, widths of a desktop and a phone
	$(BIN)/python -m pip install --quiet "playwright>=1.50"
	$(BIN)/python docs/check_browser.py site

# Of Python 3.11 and newer, those that are here; those that are not are left out.
PYTHONS ?= $(foreach version,3.11 3.12 3.13,$(shell python$(version) -c 'print("python$(version)")' 2>/dev/null))

try-wheel: docs  ## the wheel in empty environments, one for each Python that is here: README, quick start, five pages; minutes
	@rm -rf build dist
	$(INSTALL) '.[release]'
	$(BIN)/python -m build --wheel --outdir dist .
	$(BIN)/python docs/try_wheel.py dist/*.whl $(PYTHONS)

LOWEST ?= tests/test_readme.py tests/test_boxed.py tests/test_inputs.py tests/test_data.py tests/test_stn_layers.py

# Of all that pyproject.toml names, the lowest version that it allows; of what these need, what pip takes.
test-lowest:  ## the core of the tests with the lowest versions that are allowed, in an environment of its own
	$(PYTHON) -m venv .lowest
	$(PYTHON) -c 'import re; print(*(f"{n}=={v}" for n, v in re.findall(r"\"([\w.-]+)(?:\[\w+\])?>=([\d.]+)\"", open("pyproject.toml").read())), sep="\n")' > .lowest/constraints.txt
	.lowest/bin/python -m pip install --quiet --constraint .lowest/constraints.txt --editable '.[test]'
	.lowest/bin/python -m pytest $(LOWEST)

release: $(DOCS) lint test docs  ## build and check wheel and sdist, tag the version; uploads nothing
	@test -z "$$(git status --porcelain)" || (echo 'uncommitted changes: commit them first' && exit 1)
	@rm -rf build dist
	$(INSTALL) '.[release]'
	$(BIN)/python -m build --outdir dist .
	$(BIN)/python -m twine check --strict dist/*
	git tag "v$$($(BIN)/python -c 'import bilevel; print(bilevel.__version__)')"

docs-examples: $(READY)  ## a direction, an optax step, a search, a solver, an operator, a preconditioner of one's own: docs/, minutes
	set -e; for page in docs/extend_*.py; do MPLBACKEND=Agg $(BIN)/python $$page; done

$(PAPER): FOLDER := paper
$(COMPARISONS): FOLDER := peers
$(IMAGING): FOLDER := imaging
$(NETWORKS): FOLDER := networks
$(STATISTICS): FOLDER := statistics
$(PAPER) $(COMPARISONS) $(IMAGING) $(STATISTICS) $(NETWORKS): $(PEERS)
	$(BIN)/python -m experiments.$(FOLDER).$@ $(MODE)

$(SCALE): FOLDER := scale
$(SCALE): $(READY)
	$(BIN)/python -m experiments.$(FOLDER).$@ $(MODE)

clean:  ## remove the environment, caches and build leftovers
	rm -rf .venv .lowest .pytest_cache .ruff_cache .jax_cache .types build dist site docs/made *.egg-info experiments/demo experiments/smoke
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# make demo: first light.  make test: of each test's cases those in which each value is, or two.  make thorough: all cases of all tests.
# make check: lint and types.  make soak: a job, disturbed for 10 minutes.
# make peers: graphs and interventions beside circuit-tracer's, which is installed into an environment of its own; PEER=... is another
# circuit-tracer, such as a folder with its source.
# make torture: thousands of random calls against torch.func.
# make explorer: build the explorer's page from its source, with npm.  make same-explorer: whether what is built is of this source.
# make docs: the documentation site, into site/; make docs SCRIPTS=--tiny runs the examples on a random model, which takes seconds.
# make browser: Chromium for the tests of the page, from Debian.
# make wheels: what is published, in dist/, and whether it holds what it should.
# make pythons: tests of every room on each Python that attrib is for, of their cases those of make test, with the newest versions of what
# it depends on; PYTHONS=3.13 for one of them. make oldest: the same with the oldest versions that pyproject.toml allows. Environments of
# their own, of some GB each.
# Each sets up .venv by itself.
PYTHON ?= python3
BIN := .venv/bin
# Where Python is told to write no bytecode, each of the hundreds of processes that tests begin compiles every module anew
unexport PYTHONDONTWRITEBYTECODE
READY := .venv/.ready

.PHONY: demo test thorough check docs soak torture peers explorer same-explorer browser wheels pythons oldest format clean

demo: $(READY)
	$(BIN)/attrib fetch smollm2-135m
	$(BIN)/attrib run examples/demo.toml --out demo.h5
	$(BIN)/attrib show demo.h5 --top 5 --first-position 1
	$(BIN)/attrib graph "The opposite of hot is" -m smollm2-135m $(foreach layer,7 8 9,-t smollm2-135m/blocks.$(layer).mlp.hook_in) \
	    -o demo-graph.h5 --overwrite
	$(BIN)/attrib view demo-graph.h5 --html demo.html --overwrite

# One thread a process: several processes side by side finish sooner than threads within one, and one more of them than there
# are cores, since tests of jobs wait for others. A file is one process's, in the order of tests/conftest.py, so that what its
# tests share is made once
PROCESSES = $(shell $(PYTHON) -c "import os; print(min(4, (os.cpu_count() or 1) + 1))")
SIDE_BY_SIDE = OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(PROCESSES) --dist loadfile --no-loadscope-reorder
test: $(READY)
	$(SIDE_BY_SIDE) --some

thorough: $(READY)
	$(SIDE_BY_SIDE)

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Every warning is an error, a link that leads nowhere among them
docs: $(READY)
	$(if $(SCRIPTS),,$(BIN)/attrib fetch smollm2-135m)
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore docs/site/make.py $(SCRIPTS)

soak: $(READY)
	$(BIN)/attrib fetch smollm2-135m
	$(BIN)/python -m bench.jobs.soak --minutes 10 --prompts 200

torture: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore -m tests.support.torture --seed 0 --count 3000
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore -m tests.support.torture --seed 0 --count 1000 --bare

PEER := circuit-tracer==0.5.0
PEERS := .venv-peers
WHICH := $(PEERS)/.ready-$(word 1,$(shell echo '$(PEER)' | cksum))
peers: $(READY) $(WHICH)
	OMP_NUM_THREADS=1 $(PEERS)/bin/python -W ignore -m bench.peers.circuit_tracer graph $(PEERS)/graphs
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore -m bench.peers.circuit_tracer compare $(PEERS)/graphs
	OMP_NUM_THREADS=1 $(PEERS)/bin/python -W ignore -m bench.peers.interventions intervene $(PEERS)/interventions
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore -m bench.peers.interventions compare $(PEERS)/interventions

# Made anew for each PEER, so that no other one is taken for it
$(WHICH): bench/peers/requirements.txt
	$(PYTHON) -m venv --clear $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check '$(PEER)' --requirement bench/peers/requirements.txt
	touch $(WHICH)

WEB := attrib/view/explorer/web
explorer:
	cd $(WEB) && npm ci --silent && npx tsc --noEmit && node build.mjs

same-explorer:
	rm -rf $(WEB)/node_modules/.built
	cd $(WEB) && npm ci --silent && npx tsc --noEmit && node build.mjs node_modules/.built
	diff --recursive $(WEB)/node_modules/.built attrib/view/explorer/built

browser:
	apt-get update --quiet=2
	apt-get install --yes --quiet=2 --no-install-recommends chromium

wheels: $(READY)
	rm -rf dist
	$(BIN)/python -m build --no-isolation --outdir dist .
	$(BIN)/python -m build --no-isolation --wheel --outdir dist/of-tree .
	$(BIN)/python -m build --no-isolation --wheel --outdir dist attrib/shipped
	$(BIN)/python -m tests.support.wheels dist

PYTHONS := 3.11 3.12 3.13
UV := .venv-uv/bin/uv
EACH_ROOM := core/test_types.py core/test_edges.py core/test_sparse.py models/test_model.py dictionaries/test_dictionary.py \
    adapters/test_sources.py adapters/test_silent_configs.py adapters/test_shipping.py passes/test_cached.py engine/test_segment.py \
    engine/test_adjoint.py paths/test_path.py attribution/test_sites.py attribution/test_rules.py graph/test_graph.py graph/test_rows.py \
    graph/test_files_networks.py graph/test_prune.py store/test_store.py stats/test_stats.py export/test_export.py runs/test_prompts.py \
    latents/test_survey.py causal/test_intervene.py causal/test_sampling.py training/test_training_values.py jobs/test_jobs_queue.py \
    view/test_figures.py view/test_explorer_payload.py cli/test_cli_heads.py kernels/test_kernels_mlp.py test_release.py
pythons: $(PYTHONS:%=on-%)
oldest: on-oldest
on-%: .venv-%/.ready
	OMP_NUM_THREADS=1 .venv-$*/bin/python -m pytest --some $(EACH_ROOM:%=tests/%)

.PRECIOUS: .venv-%/.ready
.venv-%/.ready: pyproject.toml $(UV)
	$(UV) venv --quiet --clear --python $(subst oldest,$(firstword $(PYTHONS)),$*) .venv-$*
	$(UV) pip install --quiet --python .venv-$*/bin/python $(if $(filter oldest,$*),--resolution lowest-direct) --editable ".[dev]"
	touch $@

$(UV):
	$(PYTHON) -m venv .venv-uv
	.venv-uv/bin/python -m pip install --quiet --disable-pip-version-check uv

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	# known circuits for tests/truth: of tracr's requirements, jax among them, its compiler needs none that is not there
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps tracr-pypi
	touch $(READY)

clean:
	rm -rf .venv .venv-* dist .mypy_cache .ruff_cache .pytest_cache .hypothesis demo.h5 demo-graph.h5 demo.html site out/docs

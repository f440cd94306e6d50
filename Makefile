# `make demo` and `make test` do all of their own set-up, from a bare Debian machine on; `make` lists every target.
MAKEFLAGS += --no-print-directory --no-builtin-rules
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
# Without bytecode each of the suite's processes compiles what it imports: pytest takes 10 s of CPU to collect, not 5.
unexport PYTHONDONTWRITEBYTECODE

# Any Python from 3.11 on: make PYTHON=python3.12 …
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.complete
DOCS_VENV := .venv-docs
DOCS_STAMP := $(DOCS_VENV)/.complete
# Two at once, since most tests wait for the engine; those of one file and runtime in one process, which then starts
# fewer kernels (tests/filescheduling.py). In the order of the files: the short ones, in tests/unit, fill up the end.
# Then, one after another, the tests that measure or look at the whole machine.
define run_tests
@$(BIN)/python -m pytest --numprocesses 2 --dist loadgroup --no-loadscope-reorder -m "not alone" $(1); together=$$?; \
	$(BIN)/python -m pytest -m alone $(1) && exit $$together
endef
UV_COMPILE := $(BIN)/uv pip compile --quiet --upgrade --generate-hashes --python-version 3.11 \
	--no-emit-index-url --no-emit-find-links --no-annotate --custom-compile-command "make lock"

.PHONY: help demo test test-runtimes test-modern conformance placement clusters cluster-demo cluster-faults cluster-test jobs serving brokers full-image check lint bench bench-peers soak reactions usage schedule service-times history blobs blob-stores crashes sessions screenshots chromium vendor state-table docs verify fuzz fuzz-server seccomp-record engine engine-stop image venv lock clean notebooks notebook-tokens fuzz-openapi FORCE

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: image ## three agents analyse a workbook, each in its own locked kernel
	@$(BIN)/python examples/spreadsheet_agents.py

test: image chromium ## the whole test suite, on real containers
	$(call run_tests)

test-runtimes: image ## the tests of what the host decides, under each runtime; `make test` runs them under one
	@CELLBLOCK_TEST_EVERY_RUNTIME=1 $(BIN)/python -m pytest -m one_runtime

check: lint ## every check that needs no engine: lint, types, imports, unit and contract tests
	$(call run_tests,tests/unit tests/contract)

lint: $(STAMP) ## lint, format, types and import rules
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy --strict
	@$(BIN)/lint-imports

# RUNS says how often; a published figure is the range of three runs
bench: image ## measure latency, cold start, throughput and memory beside a plain local kernel
	@$(BIN)/python -m benchmarks.latency --runs $(or $(RUNS),1) --json out/bench.json --plot docs/pictures/bench.svg

clusters: image ## measure a cell through a node beside one in the process, and with a distant database; about four minutes
	@$(BIN)/python -m benchmarks.clusters

cluster-demo: image ## 30 agents analyse workbooks on three simulated hosts, one of which is killed in the midst; about four minutes
	@$(BIN)/python -m tests.cluster.demo

cluster-test: image ## the tests of clusters whole: Ray's nodes on three simulated hosts, and every call over one node; about fifteen minutes
	@$(BIN)/python -m pytest tests/cluster
	@$(BIN)/python -m pytest tests/cluster/suite_*.py
	@CELLBLOCK_TEST_NODES=1 $(BIN)/python -m pytest tests/cluster/test_cluster_*.py tests/cluster/suite_[cft]*.py

soak: image ## 2,000 leases and 20,000 cells with random faults: does anything grow; about a quarter of an hour
	@MALLOC_ARENA_MAX=2 $(BIN)/python -m benchmarks.soak

bench-peers: image ## measure Cellblock beside llm-sandbox, smolagents, autogen-ext and gateway_provisioners; about ten minutes
	@$(BIN)/python -m benchmarks.peers --json out/peers/figures.json --svg docs/pictures/peers.svg

reactions: image ## measure how soon a timeout, an interrupt, a cancellation and a killed kernel are reported
	@$(BIN)/python -m benchmarks.reactions

usage: image ## measure what it costs to watch 100 kernels; about five minutes
	@$(BIN)/python -m benchmarks.usage

# TIMES and SEED say how often, and when
crashes: image ## kill a working orchestrator 200 times, and look for what is orphaned or lost; about twenty minutes
	@$(BIN)/python -m tests.faults.crashes --times $(or $(TIMES),200) --seed $(or $(SEED),1)

sessions: image ## 200 sessions over four kernels: does each find its own state, and what does a wake cost
	@$(BIN)/python -m benchmarks.sessions

schedule: $(STAMP) ## simulate 10,000 agents over 1,000 kernels: who waits how long, beside first come first served; and the shares of groups over a cluster
	@$(BIN)/python -m benchmarks.scheduling
	@$(BIN)/python -m benchmarks.clusterscheduling

cluster-faults: image ## kill, freeze, cut off and fill the nodes of a working cluster and its database 500 times, and check what clients were told; about two hours
	@$(BIN)/python -m tests.cluster.clusterfaults --times $(or $(TIMES),500) --seed $(or $(SEED),1)

placement: $(STAMP) ## simulate where sessions go in a cluster of 1,000 nodes of 100 kernels; a few minutes
	@$(BIN)/python -m benchmarks.placement

jobs: image ## measure commands, files and tools beside a local process, cat and a trivial cell; about five minutes
	@$(BIN)/python -m benchmarks.jobs

serving: image ## measure the server beside a manager in the process, and under 200 clients; about seven minutes
	@MALLOC_ARENA_MAX=2 $(BIN)/python -m benchmarks.serving

brokers: image ## measure stock Jupyter clients over the broker beside a stock kernel, and beside clients that misbehave; two minutes
	@$(BIN)/python -m benchmarks.brokers

full-image: image ## build the full image, and run a notebook of 40 cells over it under each runtime; about four minutes
	@$(BIN)/cellblock image build --requirements full
	@$(BIN)/python -m tests.fullnotebook

notebook-tokens: image ## measure the tokens of an agent's work on a notebook of 200 cells
	@$(BIN)/python -m benchmarks.longnotebook

# SEQUENCES says how many
notebooks: $(STAMP) ## 10,000 random sequences of operations on notebooks, against a model; about ten minutes
	@CELLBLOCK_NOTEBOOK_SEQUENCES=$(or $(SEQUENCES),10000) $(BIN)/python -m pytest tests/unit/test_notebook_document.py

history: $(STAMP) ## measure the history beside 10,000 and 10 million cells; about five minutes
	@$(BIN)/python -m benchmarks.history

blobs: $(STAMP) ## measure checkpoints in a folder, PostgreSQL and an S3 server; about ten minutes
	@$(BIN)/python -m benchmarks.blobstores

# MB says how large
blob-stores: $(STAMP) ## the faults of blob stores with blobs of 300 MB; a few minutes
	@CELLBLOCK_TEST_BLOB_MB=$(or $(MB),300) $(BIN)/python -m pytest -s tests/faults/test_blob_stores.py

service-times: image ## measure on real kernels what the simulation is made of
	@$(BIN)/python -m benchmarks.servicetimes

screenshots: image chromium ## make the pictures in docs/pictures, of real commands on real kernels
	@$(BIN)/python -m docs.screenshots
	@$(BIN)/python -m docs.dashboardpictures
	@$(BIN)/python -m docs.jupyterpictures

# The tests of the dashboard look at it in a real browser; without one they fail.
chromium: ## install the browser in which the dashboard is tested (as root, on Debian)
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null || { \
		[ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && echo "chromium: installing the browser" \
		&& apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
			chromium fonts-dejavu-core >/dev/null; } \
		|| { echo "make: no Chromium found; as root on Debian: apt-get install chromium" >&2; exit 1; }

vendor: $(STAMP) ## renew the libraries that come with the dashboard, from the npm registry
	@$(BIN)/python -m tests.dashboard.vendored

state-table: $(STAMP) ## make docs/state.md of the table of state kinds that the tests try
	@$(BIN)/python -m docs.statetable

docs: $(DOCS_STAMP) ## build the documentation's site into out/site; a broken link or reference fails
	@NO_MKDOCS_2_WARNING=1 $(DOCS_VENV)/bin/mkdocs build --strict --quiet
	@echo "docs: open out/site/index.html"

# A virtual environment of its own: what the site needs is not what the tests need.
$(DOCS_STAMP): docs/requirements.txt $(STAMP)
	@echo "docs: installing $$(grep -c '^[a-z].*==' docs/requirements.txt) locked packages into $(DOCS_VENV)"
	@$(BIN)/python -m venv --clear $(DOCS_VENV)
	@$(DOCS_VENV)/bin/python -m pip install -qq --disable-pip-version-check --require-hashes -r docs/requirements.txt
	@touch $@

verify: image ## probe every promise on this host, and every probe on containers that must fail it
	@$(BIN)/cellblock verify --self-test

# SUITES says which: make conformance SUITES="inspect fastmcp", or a part of one: SUITES=jupyter:nbclient
conformance: image ## run the suites of inspect_ai, pydantic_ai, FastMCP and Jupyter's projects over sandboxes, and JupyterLab's library for Node, which needs npm
	@$(BIN)/python -m tests.conformance $(SUITES)
	@[ -n "$(SUITES)" ] || $(BIN)/python -m pytest -q tests/gateway/suite_labservices.py

# CASES and SEED say how many, and which: make fuzz CASES=500000 SEED=7
fuzz: image ## send seeded nonsense from hostile kernels, 200,000 cases under each runtime
	@CELLBLOCK_FUZZ_CASES=$(or $(CASES),200000) CELLBLOCK_FUZZ_SEED=$(or $(SEED),1) \
		$(BIN)/python -m pytest -s tests/isolation/test_wire_fuzz.py tests/isolation/test_fuzz_seeds.py

fuzz-server: image ## send seeded requests at random to a server, 100,000 of them; about twenty minutes
	@CELLBLOCK_FUZZ_REQUESTS=$(or $(CASES),100000) CELLBLOCK_FUZZ_SEED=$(or $(SEED),1) \
		$(BIN)/python -m pytest -s tests/server/test_request_fuzz.py

fuzz-openapi: image ## send seeded requests made of the server's OpenAPI description by schemathesis; a few minutes
	@CELLBLOCK_OPENAPI_CASES=$(or $(CASES),100) CELLBLOCK_OPENAPI_SEED=$(or $(SEED),1) \
		$(BIN)/python -m pytest -s tests/server/test_description.py

seccomp-record: image ## record the system calls of a kernel at work, beside what the seccomp profile allows
	@command -v strace >/dev/null || { echo "seccomp-record: as root: apt-get install strace" >&2; exit 1; }
	@$(BIN)/python -m tests.isolation.record_syscalls

# TESTS says which tests, VERIFY=no leaves out the probes
test-modern: image ## verify and the tests of sessions and outcomes in a virtual machine with systemd and cgroup v2; slow
	@.ci/modern $(TESTS)

engine: $(STAMP) ## bring up a Docker engine where none answers (as root, on Debian)
	@$(BIN)/cellblock engine start

engine-stop: $(STAMP) ## end the engine that `make engine` started
	@$(BIN)/cellblock engine stop

image: engine ## build the sandbox image, unless it matches its sources
	@$(BIN)/cellblock image build

venv: $(STAMP) ## the virtual environment, from the lock file
	@:

# A stamp that is missing tells of an interrupted installation, which is begun anew; an old one, of a changed lock.
$(STAMP): requirements-dev.txt pyproject.toml $(if $(shell $(BIN)/python --version 2>/dev/null),,FORCE)
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11 or newer found; name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
		&& echo "venv: installing python3-venv" && apt-get update -qq \
		&& DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends python3-venv >/dev/null; } \
		|| { echo "make: $(PYTHON) has no ensurepip; as root on Debian: apt-get install python3-venv" >&2; exit 1; }
	@echo "venv: installing $$(grep -c '^[a-z].*==' requirements-dev.txt) locked packages into $(VENV)"
	@if [ -e $@ ] && $(BIN)/python --version >/dev/null 2>&1; then rm $@; else $(PYTHON) -m venv --clear $(VENV); fi
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --require-hashes -r requirements-dev.txt
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation -e '.[cli]'
	@touch $@

lock: $(STAMP) ## renew every lock file to the newest versions
	@$(UV_COMPILE) --python-platform linux --no-emit-package debugpy -o sandbox_image/requirements.txt sandbox_image/requirements.in
	@$(UV_COMPILE) --python-platform linux --constraint sandbox_image/requirements.txt \
		-o sandbox_image/full.txt sandbox_image/full.in
	@$(UV_COMPILE) --universal --extra cli --extra client --extra mcp --extra server --group dev -o requirements-dev.txt pyproject.toml
	@$(UV_COMPILE) --python-platform linux --constraint sandbox_image/requirements.txt --no-emit-package debugpy \
		-o benchmarks/peers/image/requirements.txt benchmarks/peers/image/requirements.in
	@for peer in llm_sandbox smolagents autogen gateway_provisioners; do $(UV_COMPILE) --universal \
		-o benchmarks/peers/drivers/$$peer.txt benchmarks/peers/drivers/$$peer.in || exit 1; done
	@$(UV_COMPILE) --universal -o docs/requirements.txt docs/requirements.in

clean: ## remove the virtual environment and every cache; engine and image stay
	@rm -rf $(VENV) $(DOCS_VENV) dist out .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

FORCE:

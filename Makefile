# make run     sets up and runs the article's search on MNIST (about a minute on two cores)
# make test    sets up and runs all tests, on SQLite and on a real PostgreSQL
# make test-fast  the same without those marked slow (drills, processes of their own, whole searches): for every save
# make coverage   all tests but the drills, and which lines none of them has run: build/coverage/index.html
# make faults  every fault drill at full size, and each with its guarantee broken (about twenty minutes on two
#              cores); writes docs/reliability.md
# make check   the linters: ruff, mypy (the tests' types as well), import-linter
# make docs    the documentation as a site, any warning being an error: build/site/index.html
# make sbom    writes build/sbom.cdx.json: what is shipped, by version and hash (CycloneDX)
# make audit   is what is installed what was locked, and has any of it a known weakness? Fails where nobody can be asked
# make lock    pins the dependencies anew, by hash
.DEFAULT_GOAL := run
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed
JOBS ?= auto
LOCK := --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url --quiet

# One BLAS thread a process: a second one gains nothing on networks this small.
export OPENBLAS_NUM_THREADS := 1
export OMP_NUM_THREADS := 1
# Whatever the shell says: without .pyc files, each of the hundreds of servers and commands in the tests compiles all anew.
unexport PYTHONDONTWRITEBYTECODE

$(INSTALLED): requirements-dev.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; PYTHON=python3.12 make … names another")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

.PHONY: setup run test test-fast coverage faults check docs sbom audit lock clean
setup: $(INSTALLED)

run: $(INSTALLED)
	$(BIN)/hpo run studies/mnist.toml

test: $(INSTALLED)
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal

test-fast: $(INSTALLED)
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m "not slow"

coverage: $(INSTALLED)
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal --ignore tests/faults/test_drills.py \
		--cov --cov-report=term:skip-covered --cov-report=html

faults: $(INSTALLED)
	$(BIN)/python tests/faults/run.py --full

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint Dockerfile deploy/proxy.Dockerfile
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker-compose.yml examples/several_machines/workers.yml
	$(BIN)/docker-compose -f docker-compose.yml --profile dashboard --profile tls --profile tools config -q

docs: $(INSTALLED)
	$(BIN)/python -m tests.docs.site_source build/site-source
	$(BIN)/zensical build --clean --strict

sbom: $(INSTALLED)
	@mkdir -p build
	$(BIN)/python -W ignore -m cyclonedx_py requirements requirements.lock --pyproject pyproject.toml \
		--output-reproducible --validate -o build/sbom.cdx.json

audit: $(INSTALLED)
	$(BIN)/python tests/supply_chain/lock_files.py

lock:
	uv pip compile pyproject.toml --extra all --extra build $(LOCK) -o requirements.lock
	uv pip compile pyproject.toml --extra all --extra build --extra dev -c requirements.lock $(LOCK) -o requirements-dev.lock

clean:
	rm -rf .venv *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache .coverage* build/coverage

# make demo   the whole path on a demo hospital: records -> manifest -> training -> report (2 minutes on 2 cores)
# make test   the tests; make check adds lint and types; make bench PART=slides|ingest|cohort|step|training|evaluate|features measures
PYTHON ?= python3
DEVICE ?= cpu
SEED ?= 7
TILE_PX ?= 224
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: demo test check lint types bench downstream giant-step lock clean
.DEFAULT_GOAL := demo

$(INSTALLED): pyproject.toml requirements.lock
	test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c requirements.lock -e '.[dev,lis,dask]'
	if [ "$$(uname -s)" = Linux ]; then $(BIN)/pip install --quiet --disable-pip-version-check --no-deps -c requirements.lock cucim-cu13 click lazy-loader; fi
	touch $@

# One aggregator rank and two encoder ranks on CPU; on GPUs one rank each, and a single one does everything.
ifeq ($(DEVICE),cuda)
RANKS ?= gpu
LAYOUT ?= shared
else
RANKS ?= 3
LAYOUT ?= dedicated
endif

demo: $(INSTALLED)
	rm -rf build/demo
	$(BIN)/python -m ingest demo build/demo/hospital --seed $(SEED)
	$(BIN)/python -m ingest run -c manifests/demo.toml
	OMP_NUM_THREADS=1 $(BIN)/torchrun --nproc-per-node $(RANKS) -m pretrain train -c manifests/demo.toml \
		--set run.device=$(DEVICE) --set step.layout=$(LAYOUT)
	$(BIN)/python -m evaluate run build/demo/run -c manifests/demo.toml --license cc0-1.0

test: $(INSTALLED)
	$(BIN)/python -m pytest

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED)
	$(BIN)/mypy

check: lint types test

bench: $(INSTALLED)
	@test -n "$(PART)" || { echo "say which part: make bench PART=slides|ingest|cohort|step|training|evaluate|features"; exit 2; }
	$(BIN)/python -m tests.benchmarks.bench_$(PART)

# Exports and features in other people's software, each in build/downstream/TOOL: timm-oldest, timm-newest, timm-early,
# transformers, lazyslide, onnx, torch_program ...; without TOOL all of them (1 GB, the first time a few minutes).
downstream: $(INSTALLED)
	$(BIN)/python -m pytest -s -m downstream $(if $(TOOL),-k "$(TOOL)") tests/downstream

giant-step: $(INSTALLED)
	$(BIN)/python -m tests.benchmarks.giant_step --tile-px $(TILE_PX)

clean:
	rm -rf build .pytest_cache .mypy_cache .ruff_cache

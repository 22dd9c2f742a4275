# Every target does its own set-up in .venv; PYTHON chooses the interpreter it is made with.
PYTHON ?= python3
BIN := .venv/bin
export SEGAUDIT_DATA ?= $(abspath ../shared/data)

.PHONY: demo test test-real lint bench docs experiments clean

demo: .venv/ready
	$(BIN)/segaudit demo --out runs/demo

test: .venv/ready
	$(BIN)/pytest

test-real: .venv/ready
	$(BIN)/pytest -m real

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: .venv/ready .venv/peers
	$(BIN)/python benchmarks/overhead.py
	$(BIN)/python benchmarks/peers.py pgd segpgd cospgd
	$(BIN)/python benchmarks/crf.py
	$(BIN)/python benchmarks/defended.py
	$(BIN)/python benchmarks/inversion.py
	$(BIN)/python benchmarks/shadows.py

# The studies of experiments/ on $$SEGAUDIT_DATA, and their tables; some hours on two cores.
RESULTS := experiments/results
DEFENSES := camvid-scales camvid-multiscale camvid-transforms camvid-crf camvid-masking camvid-purified kvasir-purified
DEFENSES += mnist-autoencoder mnist-purified mnist-distillation mnist-inversion mnist-manifold mnist-generative cifar10
PRIVACY := kvasir-privacy kvasir-joint kvasir-overfitted kvasir-poison kvasir-shuffled kvasir-given camvid-privacy camvid-order
# Networks that these need and that are not kept in benchmarks/weights.
TRAINED := mnist-distilled-teacher mnist-distilled mnist-distilled-twice mnist-cwgan mnist-diffusion
TRAINED += mnist-siamese kvasir-purifier cifar10-vgg16 cifar10-purifier cifar10-autoencoder-gelu cifar10-autoencoder-gelu-noisy
experiments: .venv/ready
	for s in $(TRAINED); do $(BIN)/segaudit train experiments/train/$$s.yaml || exit 1; done
	for s in camvid-arnab camvid-architectures camvid-adversarial kvasir camvid-sea camvid-asma camvid-scaling $(DEFENSES); do $(BIN)/segaudit run experiments/$$s.yaml --out runs/$$s || exit 1; done
	for q in miou iou_ratio accuracy miou_8bit; do \
	  $(BIN)/segaudit table runs/camvid-arnab --quantity $$q > $(RESULTS)/camvid-arnab-$$q.md || exit 1; done
	for f in transfer classes; do \
	  $(BIN)/segaudit table runs/camvid-arnab --form $$f > $(RESULTS)/camvid-arnab-$$f.md || exit 1; done
	$(BIN)/segaudit table runs/camvid-arnab --format latex > $(RESULTS)/camvid-arnab-miou.tex
	for s in camvid-arnab camvid-architectures camvid-adversarial kvasir camvid-sea camvid-asma; do $(BIN)/segaudit table runs/$$s --format csv > $(RESULTS)/$$s.csv || exit 1; done
	for q in miou accuracy; do \
	  $(BIN)/segaudit table runs/camvid-sea --quantity $$q > $(RESULTS)/camvid-sea-$$q.md || exit 1; done
	for q in goal_miou goal_accuracy; do \
	  $(BIN)/segaudit table runs/camvid-asma --quantity $$q > $(RESULTS)/camvid-asma-$$q.md || exit 1; done
	$(BIN)/segaudit table runs/camvid-scaling --form scaling > $(RESULTS)/camvid-scaling.md
	$(BIN)/segaudit table runs/camvid-scaling --form scaling_detectors > $(RESULTS)/camvid-scaling-detectors.md
	for q in miou dice; do $(BIN)/segaudit table runs/kvasir --quantity $$q > $(RESULTS)/kvasir-$$q.md || exit 1; done
	$(BIN)/segaudit table runs/camvid-adversarial > $(RESULTS)/camvid-adversarial.md
	$(BIN)/python experiments/architectures.py
	$(BIN)/python experiments/sea.py
	$(BIN)/python experiments/asma.py
	$(BIN)/python experiments/defenses.py $(DEFENSES)
	$(BIN)/python experiments/generator.py mnist-cwgan
	for s in $(PRIVACY); do \
	  $(BIN)/segaudit run experiments/$$s.yaml --out runs/$$s || exit 1; \
	  $(BIN)/segaudit table runs/$$s --form privacy > $(RESULTS)/$$s.md || exit 1; \
	  $(BIN)/segaudit table runs/$$s --form privacy --format csv > $(RESULTS)/$$s.csv || exit 1; done
	$(BIN)/segaudit table runs/kvasir-joint --form joint > $(RESULTS)/kvasir-joint-robustness.md
	$(BIN)/segaudit table runs/kvasir-poison --form poison > $(RESULTS)/kvasir-poison-success.md
	for f in classes groups; do \
	  $(BIN)/segaudit table runs/camvid-privacy --form privacy_$$f > $(RESULTS)/camvid-privacy-$$f.md || exit 1; done
	$(BIN)/segaudit run experiments/camvid-certified.yaml --out runs/camvid-certified
	$(BIN)/segaudit table runs/camvid-certified --form certified > $(RESULTS)/camvid-certified.md

docs: .venv/ready
	$(BIN)/python docs/build.py

.venv/ready: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

# The peers in benchmarks/ pin old requests: they are installed without their dependencies.
.venv/peers: .venv/ready
	$(BIN)/python -m pip install --quiet --no-deps torchattacks adv-lib cospgd pydensecrf2
	touch $@

clean:
	rm -rf .venv runs .mypy_cache .ruff_cache .pytest_cache

# make demo: the main job on embedded data. make test: lint, types, all tests. Both make their own .venv first.
SHELL := /bin/bash
.SHELLFLAGS := -e -o pipefail -c
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
BUNDLE := bundles/conrec_pretraining
GRADING := bundles/fundus_dr_grading
DEMO := demo_output
DATA ?= ../data
PRESET ?= cpu
SYNTHETIC_RESULTS ?= output/synthetic_64px

.PHONY: demo test lint types format bench table1 figure3 sweep recipe report grading aptos-64px synthetic-64px example-weights clean
.DELETE_ON_ERROR:

$(VENV)/installed: pyproject.toml setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed, found " + sys.version.split()[0] + ": make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

demo: $(VENV)/installed
	@if [ -e $(DEMO)/evaluation/metrics.json ]; then rm -rf $(DEMO); fi; mkdir -p $(DEMO)  # one that was stopped goes on
	@echo "Pretraining on 600 drawn fundus photographs; make demo goes on after an interruption ..."
	@$(BIN)/python -W ignore -m monai.bundle run --config_file $(BUNDLE)/configs/train.json --bundle_root $(BUNDLE) \
	  --dataset_dir phantom:n=600,size=128,seed=0 --output_dir $(DEMO) \
	  --batch_size 32 --max_epochs 30 --probe_every 0 --pictures_every 10 --resume True \
	  2>&1 | tee -i -a $(DEMO)/train.log; exit $${PIPESTATUS[0]}
	@echo "Scoring the frozen encoder on 600 other drawn photographs ..."
	@$(BIN)/python -W ignore -m monai.bundle run --config_file $(BUNDLE)/configs/evaluate.json --bundle_root $(BUNDLE) \
	  --dataset_dir phantom:n=600,size=128,seed=1 --output_dir $(DEMO) 2>&1 | tee -i $(DEMO)/evaluate.log; exit $${PIPESTATUS[0]}
	@echo
	@echo "Pictures (input, reconstruction, target): $(DEMO)/pictures/"
	@echo "Encoder:    $(DEMO)/encoder.pt      Checkpoint: $(DEMO)/checkpoint.pt"
	@echo "Metrics:    $(DEMO)/metrics.csv     TensorBoard: $(BIN)/tensorboard --logdir $(DEMO)/tensorboard"
	@echo "Log:        $(DEMO)/train.log"

test: lint types
	$(BIN)/python -m pytest -q

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/installed
	$(BIN)/mypy

format: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# docs/results/table1.md and figure3.md; see experiments/README.md. Both go on where they were stopped.
#   make table1 PRESET=cpu|gpu DATA=../data RESULTS=output/table1 [COLUMNS="aptos flowers"] [ROWS="conrec"] [EPOCHS=100]
#     [SUPERVISED_EPOCHS=10] [DENSENET=densenet121-a639ec97.pth]
table1 figure3: RESULTS ?= output/table1
table1 figure3: $(VENV)/installed
	$(BIN)/python experiments/$@.py --preset $(PRESET) --data "$(DATA)" --results "$(RESULTS)" \
	  $(if $(COLUMNS),--columns $(COLUMNS)) $(if $(ROWS),--rows $(ROWS)) \
	  $(if $(EPOCHS),--epochs $(EPOCHS)) \
	  $(if $(SUPERVISED_EPOCHS),--supervised-epochs $(SUPERVISED_EPOCHS)) $(if $(DENSENET),--densenet "$(DENSENET)")

# Settings of the pretraining against each other (docs/recipe.md), one training at a time; goes on where it was stopped.
#   make sweep CONFIG=experiments/sweeps/levers.json DATA=../data RESULTS=output/sweep
sweep: RESULTS ?= output/sweep
sweep: $(VENV)/installed
	@[ -n "$(CONFIG)" ] || { echo "CONFIG is not given: make sweep CONFIG=experiments/sweeps/NAME.json"; exit 1; }
	$(BIN)/python -W ignore experiments/sweep.py "$(CONFIG)" --data "$(DATA)" --results "$(RESULTS)"

# docs/results/recipe: a sweep's trainings, scored on what chose nothing; DATA holds aptos2019 and idrid.
recipe: RESULTS ?= output/sweep
recipe: CONFIG ?= experiments/sweeps/final.json
recipe: $(VENV)/installed
	$(BIN)/python -W ignore experiments/recipe.py "$(CONFIG)" --data "$(DATA)" --results "$(RESULTS)"

# Pages about the runs of make table1 and make figure3: docs/results/report (photographs of RetinaMNIST alone), and
# RESULTS/report.html with those of all sets, which is not for passing on.
REPORT = $(BIN)/python -m conrec_monai report
report: RESULTS ?= output/table1
report: RETINAMNIST = Photographs: RetinaMNIST of MedMNIST v2 (Yang et al., 2023), from DeepDRiD (Liu et al., 2022), CC BY 4.0.
report: $(VENV)/installed
	rm -f $(RESULTS)/audit_aptos2019.json
	$(BIN)/python -m conrec_monai audit $(DATA)/aptos2019 --output $(RESULTS)/audit_aptos2019.json \
	  || [ -s $(RESULTS)/audit_aptos2019.json ]  # it fails where a split leaks
	$(REPORT) $(RESULTS)/evaluations/{aptos,aptos-normalized}/{frozen,fractions} --pictures none \
	  --audit $(RESULTS)/audit_aptos2019.json --output docs/results/report/aptos2019.html
	$(REPORT) $(RESULTS)/evaluations/retinamnist/frozen --credit "$(RETINAMNIST)" \
	  --output docs/results/report/retinamnist.html
	$(REPORT) $(RESULTS)/evaluations/{aptos,aptos-normalized,flowers,dogs,retinamnist}/frozen \
	  --audit $(RESULTS)/audit_aptos2019.json --output $(RESULTS)/report.html

# docs/results/throughput: all benchmarks, some 35 minutes on 2 quiet cores; that of the data where DATA holds aptos2019.
BENCH = $(BIN)/python -W ignore benchmarks
bench: RESULTS ?= docs/results/throughput
bench: THREADS ?= $(shell $(PYTHON) -c 'import os; print(os.cpu_count())')
bench: $(VENV)/installed
	mkdir -p $(RESULTS)
	$(BENCH)/step.py --threads $(THREADS) --output $(RESULTS)/step.json
	$(BENCH)/options.py --threads $(THREADS) --output $(RESULTS)/options.json
	$(BENCH)/views.py --output $(RESULTS)/views.json
	$(BENCH)/nt_xent.py --threads $(THREADS) --output $(RESULTS)/nt_xent.json
	$(BENCH)/lars.py --threads $(THREADS) --output $(RESULTS)/lars.json
	$(BENCH)/embedding.py --threads $(THREADS) --output $(RESULTS)/embedding.json
	$(BENCH)/grading.py --threads $(THREADS) --output $(RESULTS)/grading.json
	$(BENCH)/growth.py --output $(RESULTS)/growth.json --plot $(RESULTS)/growth.png
	if [ -d "$(DATA)/aptos2019" ]; then \
	  $(BENCH)/data.py --threads $(THREADS) --data "$(DATA)/aptos2019" --output $(RESULTS)/data.json; fi
	$(BENCH)/table.py $(RESULTS)

# docs/results/aptos_64px.md: 16 epochs on APTOS 2019 at 64 px; DATA holds the folder aptos2019. Resumes where it stopped.
aptos-64px: RESULTS ?= output/aptos_64px
aptos-64px: $(VENV)/installed
	$(BIN)/python -W ignore -m monai.bundle run --config_file $(BUNDLE)/configs/train.json --bundle_root $(BUNDLE) \
	  --dataset_dir $(DATA)/aptos2019 --output_dir $(RESULTS) --recipe paper --image_size 64 --cache_size 64 \
	  --features "[16,32,64,128]" --batch_size 16 --optimizer lars --learning_rate 0.3 --schedule constant \
	  --alpha 100.0 --seed 0 --max_epochs 16 --probe_every 0 --pictures_every 5 --resume True
	$(BIN)/python -W ignore -m monai.bundle run --config_file $(BUNDLE)/configs/evaluate.json --bundle_root $(BUNDLE) \
	  --dataset_dir $(DATA)/aptos2019 --output_dir $(RESULTS)

# docs/results/synthetic_64px.md: the two synthetic sets, three methods at equal settings. Some 2 hours on 2 cores.
SMALL = --recipe paper --image_size 64 --features "[16,32,64,128]" --max_epochs 60 --batch_size 32 --optimizer adamw \
  --schedule warmup_cosine --probe_every 20 --pictures_every 20 --seed 0 --resume True
SIMCLR = --decoder False --masked_views 0
SYNTHETIC := $(foreach s,circle-square rectangle-triangle,$(foreach m,conrec simclr simclr-attention,$(s)/$(m)))

synthetic-64px: $(SYNTHETIC:%=$(SYNTHETIC_RESULTS)/%/evaluation/metrics.json)

$(SYNTHETIC_RESULTS)/%/evaluation/metrics.json: | $(VENV)/installed
	$(BIN)/python -W ignore -m monai.bundle run --config_file $(BUNDLE)/configs/train.json --bundle_root $(BUNDLE) \
	  --dataset_dir $(patsubst %/,%,$(dir $*)) --output_dir $(SYNTHETIC_RESULTS)/$* $(SMALL) \
	  $(if $(findstring simclr,$*),$(SIMCLR)) $(if $(filter simclr,$(notdir $*)),--pooling average)
	$(BIN)/python -W ignore -m monai.bundle run --config_file $(BUNDLE)/configs/evaluate.json --bundle_root $(BUNDLE) \
	  --dataset_dir $(patsubst %/,%,$(dir $*)) --output_dir $(SYNTHETIC_RESULTS)/$*

# models/model.pt of both bundles: an encoder of the photographs of IDRiD, then a network of their grades, of which a fifth
# is kept for the score. DATA holds the folder idrid. Goes on where it was stopped; some 15 minutes on 2 cores.
WEIGHTS = output/example_weights
example-weights: $(VENV)/installed
	$(BIN)/python -W ignore -m monai.bundle run --config_file $(BUNDLE)/configs/train.json --bundle_root $(BUNDLE) \
	  --dataset_dir $(DATA)/idrid --section train --output_dir $(WEIGHTS)/encoder --max_epochs 100 --probe_every 0 --resume True
	$(BIN)/python -W ignore -m monai.bundle run --config_file $(GRADING)/configs/train.json --bundle_root $(GRADING) \
	  --dataset_dir $(DATA)/idrid --section train --encoder $(WEIGHTS)/encoder/encoder.pt \
	  --output_dir $(WEIGHTS)/grading --resume True
	$(BIN)/python -W ignore -m monai.bundle run --config_file $(GRADING)/configs/evaluate.json --bundle_root $(GRADING) \
	  --dataset_dir $(DATA)/idrid --section train --output_dir $(WEIGHTS)/grading
	mkdir -p $(BUNDLE)/models $(GRADING)/models
	$(BIN)/python -c 'import torch; from conrec_monai import load_encoder, load_model; \
	  torch.save(load_encoder("$(WEIGHTS)/encoder/encoder.pt").state_dict(), "$(BUNDLE)/models/model.pt"); \
	  torch.save(load_model("$(WEIGHTS)/grading/model.pt").state_dict(), "$(GRADING)/models/model.pt")'

# docs/results/grading: fine-tuning against the frozen encoder and random weights, with all and a tenth of the labels of
# APTOS 2019, and on RetinaMNIST; DATA holds both. Goes on where it was stopped; some 2.5 hours on 2 cores.
TUNED = linear fine_tune supervised --fine-tuning learning_rate=0.001 schedule=warmup_cosine
grading: RESULTS ?= output/grading
grading: $(VENV)/installed
	$(BIN)/python -W ignore -m monai.bundle run --config_file $(BUNDLE)/configs/train.json --bundle_root $(BUNDLE) \
	  --dataset_dir $(DATA)/aptos2019 --output_dir $(RESULTS)/aptos_pretraining --max_epochs 63 --probe_every 0 --resume True
	$(BIN)/python -W ignore -m monai.bundle run --config_file $(BUNDLE)/configs/train.json --bundle_root $(BUNDLE) \
	  --dataset_dir $(DATA)/retinamnist/retinamnist.npz --section train --image_size 32 --cache_size 32 \
	  --field_of_view normalize --output_dir $(RESULTS)/retinamnist_pretraining --probe_every 0 --resume True
	$(BIN)/python -m conrec_monai evaluate ConRec=$(RESULTS)/retinamnist_pretraining/encoder.pt \
	  --dataset $(DATA)/retinamnist/retinamnist.npz --output $(RESULTS)/retinamnist --protocols $(TUNED) epochs=30
	$(BIN)/python -m conrec_monai evaluate ConRec=$(RESULTS)/aptos_pretraining/encoder.pt --dataset $(DATA)/aptos2019 \
	  --output $(RESULTS)/aptos_10 --protocols $(TUNED) epochs=100 --fractions 0.1 --fraction-repeats 1
	$(BIN)/python -m conrec_monai evaluate ConRec=$(RESULTS)/aptos_pretraining/encoder.pt --dataset $(DATA)/aptos2019 \
	  --output $(RESULTS)/aptos --protocols $(TUNED) epochs=12

clean:
	rm -rf $(VENV) $(DEMO) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

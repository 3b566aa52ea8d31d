#!/bin/sh
# chr-fit: its plan is the trainers' own, what it proposes fits and one more does not, the global
# batch stays, corrections are learned from raw plans only.
. "$(dirname "$0")/lib.sh"
[ "$bld" = "$top/build" ] || skip_all "a sanitizer takes memory of its own"
world "$tmp/w"
cd "$tmp/w" || exit 1
head -20 datasets/chat.jsonl > chat.jsonl
head -20 datasets/prefs.jsonl > prefs.jsonl
head -10 datasets/prompts.jsonl > prompts.jsonl

key()		# FILE KEY: of the last record that has it
{
	sed -n 's/.*"'"$2"'":\([^,}]*\).*/\1/p' "$1" | tail -1
}
step()		# STEP KEY: of the last record of that step
{
	grep '"step":"'"$1"'"' fit > one
	key one "$2"
}
fit()
{
	chr-fit -q "$@" > fit
}
items()		# FILE: of the plan, but for the program
{
	tail -1 "$1" | sed 's/.*"items":{\([^}]*\)}.*/\1/' | tr , '\n' | grep -v '"program'
}
# same NAME STAGE DATA OPTIONS...: all items as --dry-run has them, but what each program is itself,
# which differs by little
same()
{
	name=$1
	stage=$2
	data=$3
	shift 3
	chr-"$stage" -q "$@" --dry-run -o no "$data" > dry
	fit --stage "$stage" "$@" "$data"
	is "$name: the items of --dry-run" "$(items fit)" "$(items dry)"
	ok "$name: and as much in all: $(key fit total), $(key dry total)" awk 'BEGIN {
		d = '"$(key fit total) - $(key dry total)"'; exit !(d > -700000 && d < 700000) }'
}

tail -n +21 datasets/chat.jsonl > other.jsonl
tail -n +11 datasets/prompts.jsonl > more.jsonl
same pretrain pretrain in.jsonl -c config.json -t tokenizer.json -b 4 --accum 2 --seq 64
same "held-out data" pretrain datasets/pretrain.jsonl -c config.json -t tokenizer.json -b 4 \
	--seq 64 --eval datasets/heldout.jsonl
same "data that are not kept" pretrain datasets/pretrain.jsonl -c config.json -t tokenizer.json \
	-b 4 --seq 64 --data-ram 4K
same sft sft chat.jsonl -m model -b 2 --seq 192 --eval other.jsonl
same "an adapter" sft chat.jsonl -m model -b 2 --seq 64 --lora-rank 4
same "frozen parts" sft chat.jsonl -m model -b 2 --seq 64 --freeze '*.mlp.gate.weight'
same dpo dpo prefs.jsonl -m model -b 3 --seq 96
same "log-probs of the reference in a file" dpo prefs.jsonl -m model -b 3 --seq 96 \
	--precompute-ref ref.safetensors
same orpo orpo prefs.jsonl -m model -b 1 --seq 96 --eval datasets/prefs.jsonl
same grpo grpo prompts.jsonl -m model -b 2 -G 3 --accum 2 --seq 96 --parallel 5 --new 8 \
	--reward toy --eval more.jsonl
same "a model that judges" grpo prompts.jsonl -m model -b 2 -G 3 --seq 96 --new 8 \
	--reward lm:packed --reward toy
same distill distill in.jsonl -m model --teacher packed -b 2 --seq 64
same "a teacher within a limit" distill in.jsonl -m model --teacher packed --teacher-ram 2M -b 2 \
	--seq 64
chr-score -q -m model --topk 3 in.jsonl > topk.jsonl
same "a teacher in a file" distill topk.jsonl -m model --topk 3 -b 2 --seq 64
for stage in sft dpo grpo; do
	case $stage in
	sft) in=chat.jsonl extra='' ;;
	dpo) in=prefs.jsonl extra='' ;;
	grpo) in=prompts.jsonl extra='--reward toy' ;;
	esac
	# shellcheck disable=SC2086
	chr-$stage -q -m model $extra --dry-run -o no $in > dry
	# shellcheck disable=SC2086
	fit --stage $stage -m model $extra $in
	is "$stage without options: the same batch and sequence" "$(items fit)" "$(items dry)"
done
sed 's/"chronos_format": 2, //' config.json > one.json
same "format 1" pretrain in.jsonl -c one.json -t tokenizer.json -b 2 --seq 64
status "a file that is not there: 66" 66 chr-fit -q -c config.json -t tokenizer.json nosuch.jsonl

# Limits
status "what fits: 0" 0 chr-fit -q -m model --stage sft -b 2 --seq 64 --ram 1G
fit -m model --stage sft -b 12 --accum 2 --seq 128 --ram 24M
is "what does not: 1" $? 1
is "activations are computed again first" "$(grep -o '"step":"[a-z]*"' fit | sed -n '3p')" \
	'"step":"recompute"'
is "the global batch stays" $(($(key fit batch) * $(key fit accum))) 24
is "what is proposed fits" "$(key fit fits)" true
ok "in less than the limit" [ "$(key fit bytes)" -le $((24 * 1048576 * 95 / 100)) ]
is "the sequence stays" "$(key fit seq)" 128
most=$(step largest_batch batch)
long=$(step longest_seq seq)
ok "the largest batch is less than what was asked for: $most" [ "$most" -gt 0 -a "$most" -lt 12 ]
# What a process holds besides is never quite the same twice.
fit -m model --stage sft -b "$most" --accum 2 --seq 128 --ram 24900K
is "the largest batch fits" $? 0
fit -m model --stage sft -b $((most + 1)) --accum 2 --seq 128 --ram 24200K
is "one more does not" $? 1
fit -m model --stage sft -b 12 --accum 2 --seq "$long" --ram 24900K
is "the longest sequence fits: $long" $? 0
fit -m model --stage sft -b 12 --accum 2 --seq $((long + 8)) --ram 24200K
is "a longer one does not" $? 1
fit -m model --stage sft -b 1 --seq 1024 --ram 14M
is "without leave the sequence is not changed" "$(key fit seq) $(key fit fits)" "1024 false"
fit -m model --stage sft -b 1 --seq 1024 --ram 14M --allow-seq
ok "with leave it is: $(key fit seq)" [ "$(key fit seq)" -lt 1024 -a "$(key fit fits)" = true ]
fit -m model --stage sft -b 1 --seq 64 --ram 1M --lora-rank 8 --allow-rank
is "nothing helps: the least that was tried" "$(key fit rank) $(key fit fits)" "1 false"
fit -m model --stage sft -b 8 --seq 128 --margin 50 --ram 48M
is "a margin of 50 %" "$(step limits limit)" $((24 * 1048576))
fit -m model --stage sft -b 8 --seq 128 --ram 1G --vram 4M
is "a device that is too small" "$(step asked fits)" false
fit -m model --stage sft -b 8 --seq 128
ok "this machine's limit" [ "$(step limits limit)" -gt 0 ]
chr-sft -q -m model -n 1 --save-every 1 -b 2 --seq 128 --ram 24M -o proposed chat.jsonl > log
status "what the trainer planned is enough for ours" 0 chr-fit -q -m model --stage sft -b 2 \
	--seq 128 --data 40K --margin 0 \
	--ram "$(($(key log mem_plan) * 108 / 100))"

# Generating
fit -m packed --stage generate --ram 64M --seq 256
is "a packed model: all experts in memory" "$(step asked slots)" "$(step asked experts)"
chr-generate -q -m packed --context 256 --dry-run < /dev/null > dry
for i in '"dense weights"' '"KV caches"' '"activations"' '"position tables"'; do
	is "as chr-generate: $i" "$(items fit | grep "$i")" "$(items dry | grep "$i")"
done
fit -m packed --stage generate --ram 64M --seq 256 -b 3 --kv-type q8
chr-generate -q -m packed -b 3 --context 256 --kv-type q8 --dry-run < /dev/null > dry
is "and with caches of 9 bits" "$(items fit | grep KV)" "$(items dry | grep KV)"
# With a limit, and what is known before a prompt
chr-pretrain -q -c config.json --set moe_intermediate_size=2048 -t tokenizer.json -n 1 -b 1 \
	--seq 32 -o wide in.jsonl > log
chr-actlog -q -m wide in.jsonl > wide.act
head -12 datasets/chat.jsonl | chr-actlog -q -m wide > chat.act
chr-intent -q -m wide -n 1 chat.act > log
chr-cluster -q wide.act | chr-pack -q -m wide -o wide.packed > log
for o in "--ram 28M" "--ram 28M --predict intent,gate" "--ram 28M --heat heat.json" \
	"--predict all -b 3"; do
	# shellcheck disable=SC2086
	chr-generate -q -m wide.packed --context 256 $o --dry-run < /dev/null > dry
	# shellcheck disable=SC2086
	fit -m wide.packed --stage generate --seq 256 --margin 0 $o
	is "generate $o: the items of --dry-run" "$(items fit | grep -v store)" \
		"$(items dry | grep -v store)"
	ok "and as many experts, or one more or less" awk 'BEGIN {
		d = '"$(key fit 'expert store') - $(key dry 'expert store')"'; exit !(d > -800000 &&
			d < 800000) }'
	[ "${o#--ram}" = "$o" ] || ok "not all" [ "$(step asked slots)" -lt 16 ]
done
ok "what is known before a prompt takes memory" [ \
	"$(fit -m wide.packed --stage generate --predict intent; key fit predictor)" -gt \
	"$(fit -m wide.packed --stage generate; key fit predictor)" ]
large="-c config.json --set moe_intermediate_size=2048 --packed --stage generate --seq 256 --margin 0"
# shellcheck disable=SC2086
fit $large --ram 1G
all=$(key fit total)
# shellcheck disable=SC2086
fit $large --ram $((all + 400000))
is "a limit just above it: still all" "$(step asked slots)" 16
# shellcheck disable=SC2086
fit $large --ram $((all - 1200000))
ok "a little less: fewer slots" [ "$(step asked slots)" -ge 13 -a "$(step asked slots)" -le 15 \
	-a "$(step asked fits)" = true ]
fit -m packed --stage generate --ram 1M
is "next to nothing: 1" $? 1
fit -m model --stage generate -b 64 --seq 1024 --ram 14M
is "fewer sequences at a time" "$(key fit batch) $(key fit fits)" "$(step largest_batch batch) true"
fit -c config.json --packed --stage generate --seq 256 --ram 64M
items fit > a
fit -m packed --stage generate --seq 256 --ram 64M
is "a configuration is planned as the model packed from it" "$(cat a)" "$(items fit)"
fit -c config.json --packed --quant q4 --stage generate --seq 256 --ram 64M
q4=$(items fit)
chr-pack -q -m model --quant q4 -o quant manifest.json > /dev/null
fit -m quant --stage generate --seq 256 --ram 64M
is "and of 4 bits" "$q4" "$(items fit)"
chr-bench replay --budget 4,8 --drive 0.1,3GB --ram-bw 60GB act.jsonl > replay.jsonl
fit -m packed --stage generate --seq 256 --ram 64M --replay replay.jsonl
is "speeds: of both budgets, four policies" "$(grep -c '"step":"speed"' fit)" 8
is "their slots" "$(grep '"step":"speed"' fit | grep -o '"slots":[0-9]*' | sort -u | tr '\n' ' ')" \
	'"slots":4 "slots":8 '
for speed in $(grep '"step":"speed"' fit | grep -o '"tok_per_s":[0-9.]*' | cut -d: -f2); do
	grep -o "\"tok_per_s_planned\":$speed," replay.jsonl | head -1
done > speeds
is "and the speed that was planned for each" "$(grep -c . speeds)" 8
for key in slots tok_per_s_planned read_bytes_per_token; do
	sed 's/"'$key'":\([0-9.e+-]*\)/"'$key'":"\1"/' replay.jsonl > words.jsonl
	status "--replay, \"$key\" a string: 65" 65 chr-fit -q -m packed --stage generate \
		--replay words.jsonl
done
status "--replay of another file: 65" 65 chr-fit -q -m packed --stage generate --replay act.jsonl
status "--replay of a plain model: 64" 64 chr-fit -q -m model --stage generate --replay replay.jsonl

# Corrections
run()		# PLAN PEAK STEPS
{
	for s in $(seq "$3"); do
		echo '{"type":"step","stage":"sft","step":'"$s"',"mem_plan":'"$1"',"mem_peak":'$(($2 - $3 + s))'}'
	done
}
run 1000 1100 3 > a
run 1000 1300 2 > b
run 2000 2400 4 > c
status "two runs are too few: 65" 65 chr-fit -l a b
chr-fit -l a b c > cal.json
is "the median ratio of the peaks" \
	"$(sed 's/.*"ratio":\([0-9.]*\).*"runs":\([0-9]*\).*/\1 \2/' cal.json)" "1.2 3"
fit -m model --stage sft -b 2 --seq 64 --ram 1G
plain=$(step asked bytes)
fit -m model --stage sft -b 2 --seq 64 --ram 1G --calibration cal.json
ok "a plan is multiplied by it" awk \
	'BEGIN { r = '"$(step asked bytes) / $plain"'; exit !(r > 1.1 && r < 1.3) }'
ok "what is written down stays as planned" [ "$(key fit total)" -lt $((plain * 11 / 10)) ]
fit -m model --stage dpo --calibration cal.json --ram 1G
is "of a stage it has not: as planned" $? 0
cat fit fit fit > own
status "its own records teach nothing: 65" 65 chr-fit -l own
echo '{"stages":{"sft":{"ratio":1e9}}}' > mad
status "a ratio of 1e9: 65" 65 chr-fit -q -m model --stage sft --calibration mad
echo '[1]' > mad
status "no calibration: 65" 65 chr-fit -q -m model --stage sft --calibration mad

# A rank of a job
if (have_ranks); then
	(have_ranks && mpirun -n 4 chr-sft -q -m model --expert-parallel 2 -b 2 --seq 64 \
		--anchor-lambda 0.1 --dry-run -o no \
		datasets/chat.jsonl > dry)
	fit --stage sft -m model --ranks 4 --expert-parallel 2 -b 2 --seq 64 datasets/chat.jsonl
	is "one of four ranks: the items of --dry-run" "$(items fit | grep -v data)" \
		"$(items dry | grep -v data)"
else
	skip "ranks" "no MPI"
fi
ok "args for divided experts" sh \
	-c 'chr-fit -q -m model --ranks 2 --expert-parallel 2 | grep -q "args.*--expert-parallel 2"'
status "3 ranks in pairs: 64" 64 chr-fit -m model --ranks 3 --expert-parallel 2
status "rollouts with divided experts: 64" 64 chr-fit -m model --stage grpo --ranks 2 \
	--expert-parallel 2

# Forecasts
fc()		# OPTIONS...
{
	chr-fit -q -j 1 "$@" > fit
}
nth()		# N KEY: of the n-th forecast
{
	grep '"type":"forecast"' fit | sed -n "$1p" | sed 's/.*"'"$2"'":\([^,}]*\).*/\1/'
}
fc -c tests/data/qwen3-30b-a3b.json --quant q4 --quant-dense q4 --drive 3GB,0.1 \
	--budgets 4G,8G,32G --seq 1024
is "a configuration of what is not here" $? 0
is "budgets that hold it, or not" "$(nth 1 fits) $(nth 2 fits) $(nth 3 fits)" "true true true"
is "an expert of 4.5 bits" "$(nth 2 expert_bytes)" $((3 * 768 * 2048 * 18 / 32))
is "even routing: hits are the share that fits" "$(nth 2 curve) $(nth 3 hit_rate)" '"even" 1.0'
ok "at 8 GiB, too" awk 'BEGIN { h = '"$(nth 2 hit_rate)"'; exit !(h == h && (h - \
	'"$(nth 2 slots)"' / (48 * 128)) ^ 2 < 1e-9) }'
ok "and the rest is read" awk 'BEGIN { r = '"$(nth 2 read_bytes_per_token)"' / (48 * 8 * \
	(1 - '"$(nth 2 hit_rate)"') * '"$(nth 2 expert_bytes)"'); exit !(r > 0.999 && r < 1.001) }'
ok "more memory is no slower" awk 'BEGIN { exit !('"$(nth 1 decode_tok_per_s)"' <= \
	'"$(nth 2 decode_tok_per_s)"' && '"$(nth 2 decode_tok_per_s)"' <= \
	'"$(nth 3 decode_tok_per_s)"') }'
cat > formula.pl <<'END'
use JSON::PP;
while (<>) {
	my $o = decode_json $_;
	my $d = $o->{decode} or next;
	my ($K, $Ls, $h) = (8, 48, $o->{hit_rate});
	my ($w, $c, $r) = (1 - $h ** $K, $d->{experts_s} / $K / $Ls, $d->{reads_s} / $Ls);
	my ($wait, $all) = ($r + $w * $c, $K * $c);
	my $t = $d->{dense_s} + $d->{attention_s} + $d->{layers_s} +
		$Ls * ($wait > $all ? $wait : $all);
	my $reads = $w * 1e-4 + $K * (1 - $h) * $o->{expert_bytes} / 3e9;
	exit 1 if abs($t * $o->{decode_tok_per_s} - 1) > 1e-6 || abs($reads - $r) > 1e-8;
}
END
ok "a token takes what its parts take" perl formula.pl fit
is "what was assumed" "$(sed -n '2s/.*"assumed":\(\[.*\]\).*/\1/p' fit)" \
	'["packed","even routing","no gain from reading ahead","drive","context half full"]'
fc -c tests/data/qwen3-30b-a3b.json --drive 3GB --budgets 1G
is "next to nothing: no" "$? $(nth 1 fits)" "1 false"
fc -m packed --drive 1GB --budgets 64M --seq 256
chr-generate -q -m packed --context 256 --dry-run < /dev/null > dry
for i in '"dense weights"' '"KV caches"' '"activations"' '"expert store"'; do
	is "a packed model: $i of chr-generate" \
		"$(sed 's/.*"items":{\([^}]*\)}.*/\1/' fit | tail -1 | tr , '\n' | grep "$i")" \
		"$(items dry | grep "$i")"
done
fc -m wide.packed --log wide.act --drive 1GB --budgets 28M --seq 256 --kv-type q8
chr-bench replay --budget "$(nth 1 slots)" wide.act | grep '"policy":"auto"' > replay.jsonl
is "hits by the log: $(nth 1 slots) of 16" "$(nth 1 hit_rate) $(nth 1 curve)" \
	"$(sed 's/.*"hit_rate":\([^,]*\),"read.*/\1/' replay.jsonl) \"log\""
fc -m model --quant q4 --drive 1GB --budgets 64M --seq 256
a=$(nth 1 bytes)
fc -m quant --drive 1GB --budgets 64M --seq 256
ok "a directory is planned as packed from it" awk \
	'BEGIN { d = '"$a - $(nth 1 bytes)"'; exit !(d > -700000 && d < 700000) }'
fc -m packed --budgets 64M --seq 256
ok "the drive is measured where the model is" grep -q '"drive_from":"packed","drive_direct"' fit
is "and no file is left there" "$(find packed -name '.chr-fit*')" ''
status "a log of another model: 65" 65 chr-fit -q -c tests/data/qwen3-30b-a3b.json --log act.jsonl
status "budgets of no bytes: 64" 64 chr-fit -q -m packed --drive 1G --budgets 0
status "budgets that are no numbers: 64" 64 chr-fit -q -m packed --drive 1G --budgets 8G,x
status "a drive of 0: 64" 64 chr-fit -q -m packed --drive 0 --budgets 8G
status "a drive with a latency below 0: 64" 64 chr-fit -q -m packed --drive 1G,-1 --budgets 8G
if [ -d "$shared/golden/families" ]; then
	f=$shared/golden/families
	for m in qwen3_moe-bf16-shards deepseek_v3 gpt_oss qwen3_next llama; do
		fc -m "$f/$m" --drive 1GB
		is "$m, without another option: $(nth 3 decode_tok_per_s) tok/s" \
			"$? $(nth 3 fits) $(grep -c '"type":"forecast"' fit)" "0 true 3"
	done
	status "a published model for training: as before" 0 chr-fit -q -m "$f/olmoe" --stage sft \
		-b 1 --seq 64 --ram 1G
fi
# Headers are all that is read of shards of 170 MB.
cat > shards.pl <<'END'
use JSON::PP;
my ($D, $F, $V, $i, %map) = (1024, 16384, 32768, 0);
my $l = "model.layers.0";
my %shape = ("model.embed_tokens.weight" => [$V, $D], "model.norm.weight" => [$D],
	"$l.input_layernorm.weight" => [$D], "$l.post_attention_layernorm.weight" => [$D],
	"$l.mlp.down_proj.weight" => [$D, $F]);
$shape{"$l.mlp.${_}_proj.weight"} = [$F, $D] for qw(gate up);
$shape{"$l.self_attn.${_}_proj.weight"} = [$D, $D] for qw(q k v o);
mkdir "shards";
for my $n (sort keys %shape) {
	my ($b, $f) = (2, sprintf("model-%05d.safetensors", ++$i));
	$b *= $_ for @{$shape{$n}};
	my $h = encode_json {$n => {dtype => "BF16", shape => $shape{$n}, data_offsets => [0, $b]}};
	open F, ">", "shards/$f";
	print F pack("Q<", length $h), $h, "\0" x $b;
	close F;
	$map{$n} = $f;
}
open F, ">", "shards/model.safetensors.index.json";
print F encode_json {weight_map => \%map};
open F, ">", "shards/config.json";
print F encode_json {model_type => "llama", hidden_size => $D, intermediate_size => $F,
	num_hidden_layers => 1, num_attention_heads => 16, num_key_value_heads => 16,
	vocab_size => $V, max_position_embeddings => 2048, rms_norm_eps => 1e-6,
	tie_word_embeddings => JSON::PP::true};
END
perl shards.pl
sync shards/*
for i in shards/*.safetensors; do
	dd if="$i" iflag=nocache count=0 2> log
done
fc -m shards --budgets 4G --drive 1GB
ok "of $(du -sm shards | cut -f 1) MB so many bytes were read: $(key fit disk_bytes)" \
	[ "$(sed -n '1s/.*"disk_bytes":\([0-9]*\).*/\1/p' fit)" -lt 4000000 ]
sed -n 1p fit > one
ok "a dense model has no drive of its own" grep -q '"drive_from":"--drive"' one

# Another server. Qwen3-30B-A3B: 30532122624 parameters, 48 layers of 4 heads of 128.
q30=tests/data/qwen3-30b-a3b.json
for_()		# OPTIONS...
{
	chr-fit -q -c "$q30" "$@" > fit
}
weights()
{
	sed 's/.*"weights":\([0-9]*\),"weights_f.*/\1/' fit
}
for_ --for vllm --vram 80G --seqs 4 --context 40960
is "vllm: it fits" $? 0
is "weights of 2 bytes" "$(weights) $(key fit weights_from)" '61064245248 "config"'
is "keys and values of a token" "$(key fit kv_bytes_per_token)" $((48 * 2 * 4 * 128 * 2))
is "of four sequences" "$(key fit 'keys and values')" $((48 * 2 * 4 * 128 * 2 * 4 * 40960))
is "as planned in all" "$(key fit total)" $((61064245248 + $(key fit 'keys and values') +
	$(key fit activations) + 3 * 512 * 1048576))
share=$(sed 's/.*utilization \([0-9.]*\).*/\1/' fit)
ok "the share is enough, and no more: $share" awk 'BEGIN { s = '"$share"' * 80 * 2 ^ 30
	t = '"$(key fit total)"'; exit !(s >= t && s < t + 90e6) }'
for_ --for vllm --vram 80G --seqs 5 --context 40960
is "one more: no" "$? $(key fit fits)" "1 false"
over=$(key fit over)
is "by how much" "$over" $(($(key fit total) - $(sed 's/.*"limit":\([0-9]*\).*/\1/' fit)))
ok "and what helps" grep -q '"flag":"--kv-cache-dtype fp8","saves":[0-9]*,"enough":true' fit
ok "which is what it proposes" grep -q 'args.*--max-num-seqs 5 .*--kv-cache-dtype fp8"' fit
for_ --for vllm --vram 80G --context 32768
most=$(key fit sequences)
is "as many as fit: $most" "$(for_ --for vllm --vram 80G --context 32768 --seqs "$most"; echo $?) $(
	for_ --for vllm --vram 80G --context 32768 --seqs $((most + 1)); echo $?)" "0 1"
for_ --for vllm --vram 24G
is "weights that do not fit: no" $? 1
ok "to the host with what is too much" grep -q 'args.*--cpu-offload-gb [0-9.]*"' fit
for_ --for sglang --vram 80G --seqs 4 --context 32768
ok "sglang" grep -q 'args.*--context-length 32768 --max-running-requests 4 .*--mem-fraction-static' fit
for_ --for llama.cpp --vram 24G --context 8192
is "llama.cpp: experts of the first layers stay with the host" $? 0
n=$(sed 's/.*--n-cpu-moe \([0-9]*\).*/\1/' fit)
is "no more than need be: $n" "$(key fit weights)" \
	$((48 * (128 * 3 * 768 * 2048 * 2 + 2 * 2048 * (32 + 4) * 128 * 2 + 128 * 2048 * 4 +
	(2 * 2048 + 2 * 128) * 4) + 151936 * 2048 * 2 + 2048 * 4 - n * 128 * 3 * 768 * 2048 * 2))
ok "one fewer would not fit" [ $(($(key fit total) + 128 * 3 * 768 * 2048 * 2)) -gt \
	$((24 * 1073741824 * 95 / 100)) ]
for_ --for llama.cpp --vram 24G --quant q4 --context 32768 --kv-type q8
ok "blocks of 4 bits fit, and a cache of 8" grep -q 'c 32768 -np 1 .*-ngl 49 -fa on -ctk q8_0' fit
is "blocks of 34 bytes" "$(key fit kv_bytes_per_token)" $((48 * 2 * 4 * 128 / 32 * 34))
for_ --for llama.cpp --vram 24G --ram 32G
is "more than card and host hold: no" $? 1
status "--for without --vram: 64" 64 chr-fit -q -c "$q30" --for vllm
status "--seqs without --for: 64" 64 chr-fit -q -c "$q30" --seqs 2
status "of a family of our own: 65" 65 chr-fit -q -m model --for vllm --vram 1G
status "a packed model: 65" 65 chr-fit -q -m packed --for vllm --vram 1G
if [ -d "$shared/golden/families" ]; then
	f=$shared/golden/families
	chr-fit -q -m "$f/deepseek_v3" --for vllm --vram 2G --seqs 1 --context 512 > fit
	is "a latent and a key that is turned" "$(key fit kv_bytes_per_token)" $((3 * (32 + 8) * 2))
	chr-fit -q -m "$f/qwen3_next" --for llama.cpp --vram 2G > fit
	ok "states of layers without keys" [ "$(key fit state_bytes_per_sequence)" -gt 0 ]
	chr-fit -q -m "$f/qwen3_moe-bf16-shards" --for vllm --vram 2G > fit
	is "weights as the shards hold them" "$(weights)" "$(sed -n 's/.*"total_size": *//p' \
		"$f/qwen3_moe-bf16-shards/model.safetensors.index.json")"
fi

# Mistakes
status "no model: 64" 64 chr-fit
status "a model that is not there: 66" 66 chr-fit -q -m nowhere
status "more tokens than positions: 64" 64 chr-fit -q -m model --seq 2048
status "a pattern that names nothing: 64" 64 chr-fit -q -m model --freeze 'x*'
status "distilling without a teacher: 64" 64 chr-fit -m model --stage distill
status "a trainer's data for generate: 64" 64 chr-fit -m model --stage generate in.jsonl
done_testing

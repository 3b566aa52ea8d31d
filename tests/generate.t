#!/bin/sh
# chr-generate: streamed is resident, byte for byte; counters say what happened; limits hold;
# corruption is named.
# shellcheck disable=SC2154
. "$(dirname "$0")/lib.sh"
world "$tmp/w"
cd "$tmp/w" || exit 1

# A model with enough experts that streaming matters: 4 layers of 16, about 100 KiB each.
cat > big.json <<END
{"chronos_format": 2, "vocab_size": 320, "hidden_size": 96, "num_hidden_layers": 4,
"num_attention_heads": 4,
"num_key_value_heads": 2, "head_dim": 24, "moe_intermediate_size": 90, "num_experts": 16,
"num_experts_per_tok": 2,
"num_shared_experts": 1, "kv_latent_dim": 24, "rope_dim": 8, "sliding_window_size": 12,
"max_position_embeddings": 1024, "lookahead_steps": 2}
END
chr-pretrain -q -c big.json -t tokenizer.json -n 3 -b 2 --seq 32 -l 1e-6 \
	-o big datasets/pretrain.jsonl > /dev/null &&
	chr-actlog -q -m big in.jsonl > big.act &&
	chr-cluster -q --layout louvain big.act | chr-pack -q -m big -o louvain > /dev/null &&
	chr-cluster -q --layout layer big.act | chr-pack -q -m big -o layer > /dev/null ||
	{ echo "Bail out! no model"; exit 1; }
head -4 datasets/prompts.jsonl > prompts.jsonl

# gen FILE OPTIONS...: completions without their timing in FILE, token records in FILE.stats
gen()
{
	gen_out=$1
	shift
	chr-generate -q -n 40 -s 5 --context 100 --chunk 32 --stats "$gen_out.stats" \
		"$@" prompts.jsonl > "$gen_out.all" &&
		sed 's/,"timing":{.*//' "$gen_out.all" > "$gen_out"
}

# field FILE KEY: a number of the summary
field()
{
	tail -n 1 "$1.stats" | sed "s/.*\"$2\":\([-0-9.e+]*\).*/\1/"
}

# total FILE KEY: its sum over the records before the summary
total()
{
	sed '$d' "$1.stats" | sed "s/.*\"$2\":\([-0-9.e+]*\).*/\1/" |
		awk '{ s += $1 } END { print s + 0 }'
}

within()	# LOW VALUE HIGH
{
	echo "$1 <= $2 <= $3"
	[ "$1" -le "$2" ] && [ "$2" -le "$3" ]
}

ok "resident" gen want -m big -j 1
is "resident reads nothing" "$(field want read_bytes)" 0
ok "four at a time" gen b4 -m big -j 2 -b 4
ok "a batch gives the same bytes" cmp want b4
ok "small chunks" gen c3 -m big -j 2 --chunk 3
ok "so do small chunks" cmp want c3

# The smallest limit that is accepted, in MiB, from the message that refuses 1 MiB.
chr-generate -q -m louvain -n 40 --context 100 --chunk 32 -j 2 \
	--ram 1M prompts.jsonl > /dev/null 2> refused
least=$(sed -n 's/.*use --ram \([0-9]*\)M.*/\1/p' refused)
least=$((${least:-20} + 1))
for predict in none gate lookahead all; do
	ok "streamed, $predict" gen "s.$predict" -m louvain -j 2 --ram ${least}M --predict $predict
	ok "$predict: streamed is resident" cmp want "s.$predict"
	ok "$predict: some experts were read more than once" [ \
		"$(field "s.$predict" reads)" -gt 64 ]
done
ok "layer order" gen layer.out -m layer -j 1 --ram $((least + 2))M --readers 1 --buffered -b 3
ok "another layout, limit and number of readers: the same bytes" cmp want layer.out
ok "a slow drive" gen slow.out -m layer -j 1 --ram ${least}M --sim-ssd 0.5,100M
ok "a slow drive: the same bytes" cmp want slow.out

# What the counters say
for run in want s.none s.all layer.out; do
	for key in hits misses late; do
		is "$run: $key of all records are those of the summary" "$(total $run $key)" \
			"$(field $run $key)"
	done
done
is "demands do not depend on where experts are, one sequence at a time" \
	$(($(field s.all hits) + $(field s.all misses) + $(field s.all late))) "$(field want hits)"
bytes=$(field s.all read_bytes)
reads=$(field s.all reads)
size=$(field s.all expert_bytes)
ok "read_bytes is reads of whole experts, rounded up to blocks" within $((reads * size)) \
	"$bytes" $((reads * (size + 4095)))
# What io_uring reads is in the kernel's count of bytes from the drive alone, which holds when no
# cache was in between.
if grep -q '"io":"io_uring","direct":true' s.all.stats; then
	ok "read_bytes is what the kernel says came from the drive" within "$bytes" \
		"$(field s.all disk_bytes)" \
		$((bytes + 3 * 1048576 + size + 4096))
else
	skip "no io_uring past the page cache here"
fi
# Besides experts only /proc/self/io itself is read; read ahead, one read for each reader may just
# be under way.
ok "threads read, too" gen t.all -m louvain -j 2 --ram "${least}M" --predict all --io threads
ok "and give the same bytes" cmp want t.all
bytes=$(field t.all read_bytes)
ok "read_bytes is what the kernel says was read" within "$bytes" \
	"$(field t.all rchar)" $((bytes + 4 * (size + 4096) + 4000))
gen t.none -m louvain -j 2 --ram "${least}M" --predict none --io threads
bytes=$(field t.none read_bytes)
ok "and to the byte without prediction" within "$bytes" "$(field t.none rchar)" $((bytes + 4000))
ok "without prediction only misses are read" [ "$(field s.none reads)" = "$(field s.none misses)" ]
ok "heat is left for the next" gen h1 -m louvain -j 2 --ram "${least}M" --heat heat.json
ok "which reads the warmest first, pins some" gen h2 -m louvain -j 2 --ram "${least}M" \
	--heat heat.json --pin 2
ok "and says the same" cmp want h2
ok "guesses in its name were made" grep -q '"heat":\[\[' heat.json
sed 's/"fingerprint":"./"fingerprint":"x/' heat.json > other.json
status "heat of another model is refused" 65 chr-generate -q -m louvain \
	--heat other.json prompts.jsonl
echo '{"type":"heat","version":1}' > other.json
status "what is no heat is refused" 65 chr-generate -q -m louvain --heat other.json prompts.jsonl
status "pins that leave nothing are refused" 71 chr-generate -q -m louvain -n 40 --context 100 \
	--chunk 32 --ram "${least}M" \
	--heat heat.json --pin 100000 prompts.jsonl
status "a source nobody knows" 64 chr-generate -q -m louvain --predict oracle prompts.jsonl
gen c -m louvain -j 2 --ram "${least}M" --predict all,control
is "a router asked about its own input is always right" \
	"$(tail -n 1 c.stats | sed 's/.*"control":{"slots":\([^,]*\),"whole":\([^,]*\),.*/\1 \2/')" "1.0 1.0"
ok "the bytes wasted are within --waste" within 0 \
	"$(field c wasted_bytes)" $(($(field c read_bytes) / 25 + 2 * size))
gen biased -m louvain -j 2 --ram "${least}M" --route-bias 4
ok "biased routing says how much it replaced" sh \
	-c 'tail -n 1 biased.stats | grep -q "\"replaced_mass\":0\.[0-9]*[1-9]"'
ok "and reads less" [ "$(field biased read_bytes)" -lt "$(field s.none read_bytes)" ]
memory "peak memory is within --ram" within 1 "$(field s.all peak_rss)" $((least << 20))
ok "and the plan says so before" sh \
	-c "chr-generate -m louvain --ram ${least}M --context 100 --chunk 32 -j 2 --dry-run < /dev/null |
	grep -q '^{\"type\":\"mem_plan\",\"total\":'"
plan=$(chr-generate -q -m big --context 100 --chunk 32 -j 2 --dry-run < /dev/null |
	sed 's/.*"total":\([0-9]*\).*/\1/')
ok "a limit of what --dry-run says is enough" gen planned -m big -j 2 --ram "$plan"
status "a limit below one token's experts is refused" 71 chr-generate -q -m louvain \
	--ram 1M prompts.jsonl
chr-generate -q -m big --ram 1M prompts.jsonl > out 2> err
is "a plain directory that does not fit is refused" $? 71
ok "and the remedy is named" grep -q chr-pack err

# Soft misses
ok "on-miss shared" gen soft -m louvain -j 2 --ram ${least}M --on-miss shared --sim-ssd 2
ok "and says how much it replaced" [ "$(field soft replaced_mass)" != 0.0 ]

# Sampling and ends
one() { chr-generate -q -m big -n 12 --raw -p 'The' "$@"; }
is "greedy does not depend on the seed" "$(one --temperature 0 -s 1)" "$(one --temperature 0 -s 2)"
ok "draws do" [ "$(one --temperature 3 --top-k 0 -s 1)" != "$(one --temperature 3 --top-k 0 -s 2)" ]
whole=$(one --temperature 0)
third=$(printf '%s' "$whole" | cut -c 3-4)
is "a stop text ends it and is left out" "$(one --temperature 0 --stop "$third")" \
	"${whole%%"$third"*}"
printf '{"prompt":"a","id":7,"seed":1}\n{"messages":[{"role":"user","content":"b"}]}\n{"tokens":[5,6]}\n' > three.jsonl
chr-generate -q -m big -n 3 three.jsonl > three.out
is "fields are carried through" "$(grep -c '"id":7,"seed":1,"completion":' three.out)" 1
is "as many records out as in" "$(wc -l < three.out)" 3
printf '{"prompt":"a"}\n{"tokens":[99999]}\n{"prompt":"b"}\n' > bad.jsonl
chr-generate -q -m big -n 2 bad.jsonl > out 2> err
is "a bad record stops it" $? 65
ok "naming file and line" grep -q '^chr-generate: bad.jsonl:2: ' err
is "or is passed over" "$(chr-generate -q -m big -n 2 --skip-bad bad.jsonl 2> /dev/null | wc -l)" 2

# Seeds: the draws of a record depend on the record, not on what stands around it
draws()		# PROMPT [OPTION...] < records: the tokens of the records with this prompt
{
	draws_of=$1
	shift
	chr-generate -q -m big -n 8 --temperature 3 --top-k 0 -s 5 "$@" |
		grep "^{\"prompt\":\"$draws_of\"" | grep -o '"tokens":\[[0-9,]*\]'
}
alone=$(echo '{"prompt":"b"}' | draws b)
ok "a record alone draws 8 tokens" [ "$(echo "$alone" | tr -cd , | wc -c)" -eq 7 ]
is "and the same ones behind others" "$(printf '{"prompt":"a"}\n{"prompt":"c"}\n{"prompt":"b"}\n' |
	draws b)" "$alone"
is "and one at a time" "$(printf '{"prompt":"a"}\n{"prompt":"b"}\n' | draws b -b 1)" "$alone"
ok "a seed of its own draws others" \
	[ "$(echo '{"prompt":"b","seed":6}' | draws b)" != "$alone" ]
for seed in '"7"' 5.5 true '[7]'; do
	echo "{\"prompt\":\"b\",\"seed\":$seed}" | chr-generate -q -m big -n 2 > out 2> err
	is "a seed $seed is bad data" $? 65
	ok "and $seed is named" grep -q '^chr-generate: <stdin>:1: "seed"' err
done

# A signal: what was made so far is written, status 75
yes '{"prompt":"a"}' | head -2000 > many.jsonl
chr-generate -q -m louvain -n 50 --ram ${least}M --context 100 --chunk 32 -j 2 \
	--sim-ssd 10 many.jsonl > cut.jsonl &
pid=$!
sleep 1
kill -TERM $pid
wait $pid
is "a signal ends it with 75" $? 75
ok "and what was made is written in whole lines" [ "$(grep -c '"finish":.*}$' cut.jsonl)" = \
	"$(wc -l < cut.jsonl)" ]

# Corruption
cp -r louvain corrupt
for f in corrupt/*.ctsr; do
	printf 'XXXXXXXXXXXXXXXX' |
		dd of="$f" bs=1 seek=$(($(wc -c < "$f") / 2)) conv=notrunc 2> /dev/null
done
chr-generate -q -m corrupt -n 100 --temperature 2 --top-k 0 prompts.jsonl > /dev/null 2> corrupt.err
is "a corrupt expert is bad data" $? 65
ok "named by file, layer and expert" grep \
	-Eq 'cluster_[0-9]+\.ctsr: layer [0-9]+, expert [0-9]+' corrupt.err

# Logits that are not finite give no tokens: NaN in the second half of the weights
cp -r big nan
size=$(wc -c < nan/model.safetensors)
dd if=/dev/zero bs=4096 count=$((size / 8192)) 2> noise | tr "\0" "\377" |
	dd of=nan/model.safetensors bs=4096 seek=$((size / 8192)) conv=notrunc 2> noise
chr-generate -q -m nan -n 4 -p The > out 2> err
is "logits that are not finite are bad data" $? 65
ok "and are named" grep -q 'not finite' err
done_testing

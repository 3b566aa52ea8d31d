#!/bin/sh
# chr-bench: every workload runs; capsules have what they should and agree with themselves and with
# the kernel's counters; tables, pictures and comparisons; mistakes are refused.
. "$(dirname "$0")/lib.sh"
world "$tmp/w"
cd "$tmp/w" || exit 1

field() { sed -n "s/.*\"$1\":\([-0-9.e+]*\).*/\1/p" "$2" | head -n 1; }
# check NAME FILE EXPRESSION: true of every record $r of FILE (there is at least one)
check()
{
	# shellcheck disable=SC2016
	ok "$1" perl -MJSON::PP -e '
		my ($code, $n) = (shift, 0);
		while (<>) { my $r = decode_json($_); $n++;
			eval $code or do { print "not so: $code $@\n", substr($_, 0, 2000);
				exit 1 } }
		exit($n ? 0 : 1)' "$3" "$2"
}

# ---- replay and drive ----
chr-bench replay --budget 25%,6 --drive 0.1,1G --ram-bw 20G --dense-bytes 1M act.jsonl \
	> replay.jsonl
is "five policies at two budgets" "$(grep -c '"workload":"replay"' replay.jsonl)" 10
for key in policy slots experts tokens demands hits hit_rate read_bytes_per_token \
	tok_per_s_planned command version; do
	is "every replay record has $key" "$(grep -c "\"$key\":" replay.jsonl)" 10
done
# shellcheck disable=SC2016
ok "more memory never finds less, and nobody beats Belady" perl -MJSON::PP -e '
	my %h;
	while (<>) { my $r = decode_json($_); $h{$r->{slots}}{$r->{policy}} = $r->{hits}; }
	for my $s (keys %h) { for my $p (keys %{$h{$s}}) { exit 1 if $h{$s}{$p} > $h{$s}{belady} } }
	my ($few, $many) = sort { $a <=> $b } keys %h;
	exit($h{$many}{belady} >= $h{$few}{belady} ? 0 : 1)' replay.jsonl
ok "from a pipe" sh -c "chr-bench replay < act.jsonl | grep -q belady"
gzip -k act.jsonl
ok "from gzip" sh -c "chr-bench replay --budget 6 act.jsonl.gz | grep -q lru"
status "no workload" 64 chr-bench
status "another workload" 64 chr-bench dance
status "a bad budget" 64 chr-bench replay --budget 25%,x act.jsonl
status "a budget below a layer" 65 chr-bench replay --budget 1 act.jsonl
status "half a machine" 64 chr-bench replay --drive 0.1,1G act.jsonl
head -n 1 act.jsonl > empty.jsonl
status "no tokens" 65 chr-bench replay empty.jsonl
chr-bench drive --block 64K -r 3 "$bld/libchronos.a" > drive.jsonl
is "one and four at a time" "$(grep -c '"workload":"drive"' drive.jsonl)" 2
ok "a speed" sh -c "[ $(field bytes_per_s drive.jsonl | cut -d. -f1 | tr -dc 0-9) -gt 0 ]"
printf x > small
status "a file smaller than a block" 65 chr-bench drive small
status "no file" 66 chr-bench drive nowhere

# ---- a model ----
# Experts of 288 KiB: half of them are more than what a plan rounds, and than what
# a run has less to begin with than --dry-run.
chr-pretrain -q -c config.json --set moe_intermediate_size=768 -t tokenizer.json -n 1 -b 1 \
	--seq 16 -o wide in.jsonl > log.jsonl &&
	chr-actlog -q -m wide in.jsonl | chr-cluster -q |
		chr-pack -q -m wide -o wide-packed > pack.json ||
			{ echo "Bail out! no model"; exit 1; }
bench() { chr-bench --memory 1M -m wide-packed -p 12 -n 6 "$@"; }
total=$(bench --dry-run decode | tee plan.jsonl | sed -n 's/.*"total":\([0-9]*\).*/\1/p')
experts=$(sed -n 's/.*"expert store":\([0-9]*\).*/\1/p' plan.jsonl)
half=$((total - experts / 2))
# A sanitizer takes memory of its own, never quite the same: then all may fit.
streamed=check
unstreamed() { skip "$1" "a sanitizer takes memory of its own"; }
[ "$bld" = "$top/build" ] || streamed=unstreamed
is "a plan" "$(grep -c '"type":"mem_plan"' plan.jsonl)" 1
if bench load -r 1 --cold > cold.jsonl 2> cold.err; then
	cold=--cold
	check "cold: nothing was in the page cache" cold.jsonl \
		'$r->{cache}{state} eq "cold" && $r->{cache}{safetensors} == 0 &&
		$r->{cache}{ctsr} == 0'
	check "load: the first token after the opening, and the least it could take" cold.jsonl \
		'$r->{ttft_s} >= $r->{open_s} && $r->{metric}{better} eq "less" &&
		$r->{roofline}{times_floor} > 0'
	check "load: what was read is the model" cold.jsonl \
		'$r->{samples}[0]{disk_bytes} >= $r->{samples}[0]{prefill}{read_bytes}'
else
	cold=
	skip "cold runs" "$(cat cold.err)"
fi
bench decode -r 3 --ram $half $cold --vs "--predict none --readers 2" > decode.jsonl
bench prefill -r 1 --ram $half $cold > prefill.jsonl
is "one record for each configuration" "$(wc -l < decode.jsonl | tr -d ' ')" 2
cat decode.jsonl prefill.jsonl > both.jsonl
check "self-contained" both.jsonl \
	'$r->{type} eq "bench" && $r->{version} == 1 &&
	$r->{commit} =~ /^([0-9a-f]+(-dirty)?|unknown)$/ &&
	ref $r->{command} eq "ARRAY" && $r->{machine}{cores} > 0 && $r->{machine}{memory} > 0 &&
		@{$r->{machine}{release}} || $r->{machine}{release}'
check "the model" both.jsonl \
	'length $r->{model}{fingerprint} == 32 && $r->{model}{packed} &&
	$r->{model}{parameters} > 0'
check "the configuration" both.jsonl \
	'$r->{config}{ram} == '$half' && $r->{config}{prompt} == 12 && !exists $r->{config}{model}'
check "as many samples as repetitions" decode.jsonl \
	'@{$r->{samples}} == 3 && @{$r->{metric}{samples}} == 3'
check "the summary is that of the samples" decode.jsonl \
	'my @v = sort { $a <=> $b } map { $_->{decode}{tok_per_s} } @{$r->{samples}};
	$r->{tok_per_s} == $v[1] && $r->{metric}{least} == $v[0] && $r->{metric}{most} == $v[2]'
check "each token timed, and all together make the time" decode.jsonl \
	'my $d = $r->{samples}[0]{decode}; my $t = 0; $t += $_ for @{$d->{token_s}};
	@{$d->{token_s}} == 6 && $d->{tokens} == 6 && abs($t - $d->{wall}) < 1e-6'
check "compute and stall make the time" both.jsonl \
	'my $p = $r->{samples}[0]{prefill}; $p->{tokens} == 12 &&
	abs($p->{compute} + $p->{stall} - $p->{wall}) < 1e-6'
$streamed "experts streamed" both.jsonl \
	'$r->{store}{slots} < $r->{store}{experts} && $r->{samples}[0]{prefill}{misses} > 0'
check "and nothing was replaced" both.jsonl \
	'$r->{replaced_mass} == 0 && $r->{config}{"on-miss"} eq "wait"'
check "as many demands as layers and choices" decode.jsonl \
	'my $d = $r->{samples}[0]{decode}; $d->{hits} + $d->{late} + $d->{misses} == 6 * 2 * 2'
if grep -q '"direct":false' decode.jsonl; then
	skip "the store's bytes are the kernel's" \
		"the file system refuses reads past the page cache"
else
	check "the store's bytes are the kernel's" both.jsonl 'my ($a, $b) = (0, 0);
		for my $s (@{$r->{samples}}) { for (grep { $_ } @$s{"prefill", "decode"}) { $a += $_->{read_bytes}; $b += $_->{disk_bytes} } }
		$a > 0 && abs($a - $b) <= 0.05 * $a'
fi
$streamed "fractions of the ceilings" both.jsonl \
	'my $f = $r->{roofline}; my $reads = $r->{read_bytes_per_token} * $r->{tok_per_s};
	$f->{drive_bytes_per_s}{median} > 0 && $f->{memory_bytes_per_s}{median} > 0 &&
		$f->{ops_per_s}{median} > 0 && $f->{weight_bytes_per_token} > 0 &&
	abs($f->{drive_fraction} - $reads / $f->{drive_bytes_per_s}{most}) <= 1e-6 * (1 + $f->{drive_fraction})'
is "the second configuration has its options" \
	"$(sed -n 2p decode.jsonl | grep -c '"predict":"none".*"readers":2.*"versus"')" 1
is "the first keeps its own" "$(sed -n 1p decode.jsonl | sed 's/.*"config"//' |
	grep -c '"predict":"none"\|"readers":2\|"versus"')" 0
ok "both generate the same" sh -c 'sed -n 2p decode.jsonl | grep -q "\"same_tokens\":true"'
bench decode -m wide -r 1 > resident.jsonl
check "in memory: nothing read, and a share of the speed of memory" resident.jsonl \
	'$r->{read_bytes_per_token} == 0 && $r->{hit_rate} == 1 &&
	$r->{roofline}{memory_fraction} > 0 && !defined $r->{roofline}{drive_fraction} &&
		$r->{cache}{state} eq "warm" && $r->{cache}{safetensors} >= 0.9'
is "and the same tokens" "$(sed 's/.*"tokens_digest":"\([0-9a-f]*\)".*/\1/' resident.jsonl)" \
	"$(sed -n '1s/.*"tokens_digest":"\([0-9a-f]*\)".*/\1/p' decode.jsonl)"
bench decode -r 1 --sim-ssd 0,20M --ram $half --predict none > sim.jsonl
check "the ceiling is no more than a simulated drive gives" sim.jsonl \
	'my $reads = $r->{read_bytes_per_token} * $r->{tok_per_s};
	my $most = $r->{roofline}{drive_bytes_per_s}{most};
		$most = 20 * 1048576 if $most > 20 * 1048576;
	abs($r->{roofline}{drive_fraction} - $reads / $most) <= 1e-6 * (1 + $r->{roofline}{drive_fraction})'
bench prefill -r 1 in.jsonl > prompts.jsonl
check "prompts of a file" prompts.jsonl \
	'$r->{samples}[0]{prompts} == 5 && $r->{samples}[0]{prefill}{tokens} == 60'
if bench decode -r 1 --cgroup 256M > group.jsonl 2> group.err; then
	check "a control group" group.jsonl \
		'$r->{cgroup}{limit} == 268435456 && $r->{cgroup}{peak} > 0 &&
		$r->{cgroup}{peak} <= 268435456'
	status "a run that its group cannot hold" 71 bench decode -r 1 --cgroup 1M
else
	status "a control group that cannot be made" 69 bench decode -r 1 --cgroup 256M
	ok "and why" grep -q 'control group\|limit memory' group.err
fi
status "no model" 64 chr-bench decode
status "no such model" 66 chr-bench decode -m nowhere
status "options of the second that are none" 64 bench decode --vs "--dance"
status "a file among them" 64 bench decode --vs "act.jsonl"
status "an impossible budget" 71 bench decode --ram 1M
status "no prompts" 65 bench decode /dev/null
status "a kernel of a file" 64 chr-bench kernel small

# ---- training ----
train() { chr-bench train -b 2 --seq 32 --steps 2 "$@"; }
train -c config.json -r 2 --profile --vs "--recompute --set num_experts_per_tok=2" > train.jsonl
is "train: one record for each configuration" "$(wc -l < train.jsonl | tr -d ' ')" 2
check "the record of others" train.jsonl \
	'$r->{type} eq "bench" && $r->{version} == 1 && $r->{workload} eq "train" &&
	$r->{machine}{cores} > 0 && ref $r->{command} eq "ARRAY" &&
		$r->{metric}{name} eq "tok_per_s" && $r->{peak_rss} > 0 &&
	$r->{mem_plan} > 0 && length $r->{model}{fingerprint} == 32 &&
		$r->{model}{config}{num_experts} == 8'
check "each step is timed, and the one for warmth is not counted" train.jsonl \
	'@{$r->{samples}} == 2 && ! grep {
	my $t = 0; $t += $_ for @{$_->{step_s}}; @{$_->{step_s}} != 2 ||
		$_->{tokens} != 2 * 2 * 32 || abs($t - $_->{wall}) > 1e-6 ||
	abs($_->{tok_per_s} * $_->{wall} / $_->{tokens} - 1) > 1e-6 } @{$r->{samples}}'
check "the summary is that of the samples" train.jsonl \
	'my @v = sort { $a <=> $b } map { $_->{tok_per_s} } @{$r->{samples}};
	abs($r->{tok_per_s} / (($v[0] + $v[1]) / 2) - 1) < 1e-6 && $r->{metric}{least} == $v[0] &&
		$r->{metric}{most} == $v[1]'
check "the share of what the kernels do" train.jsonl \
	'my $f = $r->{roofline}; abs($f->{compute_fraction} * $f->{f32_ops_per_s}{most} /
	$r->{ops_per_s} - 1) < 1e-6 && @{[grep { $_->{wall} > 0 } @{$r->{samples}}]} == 2 &&
		$f->{bf16_ops_per_s}{least} > 0'
check "6 N for each token" train.jsonl \
	'my $n = $r->{model}{active_parameters}; $r->{roofline}{model_ops_per_token} == 6 * $n &&
	abs($r->{samples}[0]{model_ops_per_s} / $r->{samples}[0]{tok_per_s} / 6 / $n - 1) < 1e-6'
check "parts make the time and the work" train.jsonl \
	'my ($s, $w) = (0, 0); my $x = $r->{samples}[0];
	for (@{$x->{parts}}) { $s += $_->{seconds}; $w += 1e9 * ($_->{gflop} // 0) }
	abs($s / $x->{wall} - 1) < 0.05 && abs($w / $x->{ops} - 1) < 1e-6 &&
		@{$r->{parts}} == @{$x->{parts}} &&
	2 == grep { $_->{part} =~ /^experts/ && $_->{compute_fraction} > 0 } @{$r->{parts}}'
ok "to compute again is more work for the same loss" sh \
	-c 'sed -n 2p train.jsonl | grep -q "\"same_loss\":true"'
check "or so they say" train.jsonl \
	'our ($ops, $loss); my $more = $r->{roofline}{ops_per_token} / ($ops // 1);
	my $same = !$loss || $loss == $r->{loss};
	($ops, $loss) = ($r->{roofline}{ops_per_token}, $r->{loss}); $same && $more > 1'
is "settings of the second are not the first's" \
	"$(sed -n 's/.*"config":{"set":\(\[[^]]*\]\).*/\1/p' train.jsonl | tr -d '\n')" \
	'[]["num_experts_per_tok=2"]'
train -c config.json -t tokenizer.json -s 42 -r 1 --compute bf16 \
	--vs "--compute f32" in.jsonl > steps.jsonl
ok "bf16 has another loss" sh -c 'sed -n 2p steps.jsonl | grep -q "\"same_loss\":false"'
chr-pretrain -q -c config.json -t tokenizer.json -s 42 -b 2 --seq 32 -n 3 --warmup 500 \
	-o three in.jsonl > three.jsonl
is "steps are those of chr-pretrain" \
	"$(sed -n '2s/.*"loss":\([0-9.]*\),"mem_plan":[0-9.]*,"peak_rss":[0-9.]*,"summary".*/\1/p' \
	steps.jsonl)" \
	"$(sed -n 's/.*"step":3,.*"loss":\([0-9.]*\),.*/\1/p' three.jsonl)"
check "on documents" steps.jsonl \
	'$r->{config}{data}[0]{file} eq "in.jsonl" && length $r->{config}{data}[0]{sha256} == 64'
train -m model -r 1 > random.jsonl
active=$(chr-ls model | sed -n 's/.*"active_params":\([0-9]*\).*/\1/p')
check "a model as chr-ls knows it" random.jsonl \
	'$r->{model}{active_parameters} == '"$active"' && $r->{config}{data} eq "random" &&
	$r->{config}{compute} eq "f32"'
train -m model --dry-run > plan.jsonl
is "a plan, and no steps" "$(grep -c '"type":"mem_plan"' plan.jsonl) $(wc -l < plan.jsonl |
	tr -d ' ')" "1 1"
status "no model to train" 64 train
status "nor such a one" 66 train -c nowhere
status "nor room" 71 train -c config.json --ram 1M
status "no such file" 66 train -c config.json -t tokenizer.json nowhere.jsonl
status "settings of the second that are wrong" 64 train -c config.json -r 1 \
	--vs "--set num_experts=-1"
ok "nothing is written" sh -c '! ls -d model/checkpoint* train 2> /dev/null'

# ---- kernel ----
chr-bench kernel -r 1 --memory 4M > kernel.jsonl
check "kernels have a rate" kernel.jsonl \
	'$r->{workload} eq "kernel" && $r->{metric}{median} > 0 && $r->{config}{what}'
is "memory, floats, three kinds of blocks" \
	"$(grep -v '"backend":"blas"' kernel.jsonl | grep -c 'memory read\|product F32\|experts Q')" 14

# ---- quality, tables, pictures ----
status "chr-diff: streamed token by token, the same" 0 sh \
	-c 'chr-diff -q --with "--ram 4M --predict none" wide wide-packed in.jsonl > diff.jsonl'
status "chr-diff: with shared experts standing in, not" 1 sh -c \
	'chr-diff -q --with "--ram 4M --predict none --on-miss shared --sim-ssd 2" wide wide-packed in.jsonl > lossy.jsonl'
check "and how far" lossy.jsonl '$r->{kl} > 0 && $r->{top1} < 1'
status "chr-diff: flags that are none" 64 chr-diff --with "wide" wide wide-packed in.jsonl
bench decode -r 1 --ram $half --quality diff.jsonl > quality.jsonl
check "quality beside speed" quality.jsonl \
	'$r->{quality}{kl} == 0 && $r->{quality}{top1} == 1 && $r->{quality}{ppl} > 1'
status "not the quality of anything" 65 bench decode -r 1 --quality act.jsonl
chr-bench table decode.jsonl resident.jsonl replay.jsonl kernel.jsonl drive.jsonl steps.jsonl \
	> table.md
is "a table for each workload" "$(grep -c '^|---' table.md)" 5
is "and a row for each record" \
	"$(grep -c '^| ' table.md)" $((3 + 10 + 2 + $(wc -l < kernel.jsonl) + 2 + 5))
ok "rows are as wide as their heads" awk \
	-F'|' '/^\|---/ { n = NF } /^$/ { n = 0 } n && NF != n { exit 1 }' table.md
ok "the settings that differ head the columns" grep \
	-q '^| model | cache | ram | predict | readers | .*tok/s | hit %' table.md
ok "of training, speed beside the kernels'" grep \
	-q '^| compute | tok/s | .*GFLOP/s | .*% of arithmetic' table.md
chr-bench table train.jsonl > parts.md
ok "and each part" sh \
	-c '[ $(grep -c "^| part | ms | % of the step | GFLOP/s" parts.md) = 2 ] &&
		[ $(grep -c "^| experts, backward | [0-9]" parts.md) = 2 ]'
ok "the rows of parts are as wide as their heads" awk \
	-F'|' '/^\|---/ { n = NF } /^$/ { n = 0 } n && NF != n { exit 1 }' parts.md
ok "the same from a pipe, and from the run itself" sh \
	-c 'chr-bench table < replay.jsonl | grep -v "^replay" > a &&
	chr-bench replay --table --budget 25%,6 --drive 0.1,1G --ram-bw 20G --dense-bytes 1M act.jsonl | grep -v "^replay" > b && cmp a b'
status "a table of something else" 65 chr-bench table act.jsonl
status "a table of nothing" 65 chr-bench table /dev/null
chr-bench table --plot sweep.svg decode.jsonl resident.jsonl > table.txt
is "a picture of three panels" "$(grep -c 'font-weight="bold"' sweep.svg)" 3
is "with a line for each kind of run" "$(grep -o 'stroke-width="3"' sweep.svg | wc -l |
	tr -d ' ')" 3
ok "that is XML" perl \
	-e 'local $/; $_ = <>; my @open; while (/<(\/?)(\w+)[^>]*?(\/?)>/g) { $1 ? pop @open eq $2 || exit 1 : $3 || push @open, $2 } exit @open' sweep.svg
chr-bench table --plot quality.svg quality.jsonl decode.jsonl > table.txt
is "and of five where the quality is known" "$(grep -c 'font-weight="bold"' quality.svg)" 5
status "a picture of what has no speed against memory" 65 chr-bench table --plot no.svg drive.jsonl
status "a picture that cannot be written" 73 chr-bench table --plot nowhere/x.svg decode.jsonl

# ---- comparisons ----
# faster FACTOR: decode.jsonl with other speeds
faster()
{
	# shellcheck disable=SC2016
	perl -MJSON::PP \
		-e 'my $f = shift; while (<>) { my $r = decode_json($_); my $m = $r->{metric};
		$_ *= $f for @{$m->{samples}}, $m->{median}, $m->{least}, $m->{most};
			print encode_json($r), "\n" }' "$1" decode.jsonl
}
faster 100 > fast.jsonl
faster 0.01 > slow.jsonl
verdicts() { sed -n 's/.*"verdict":"\([a-z]*\)".*/\1/p; s/.*| \([a-z]*\) |$/\1/p' "$1" |
	grep -v verdict | sort | uniq -c | tr -s ' \n' ' '; }
status "nothing slower than itself" 0 sh \
	-c 'chr-bench table --compare decode.jsonl decode.jsonl > out'
is "all the same" "$(verdicts out)" " 2 same "
status "slower by far" 1 sh -c 'chr-bench table --compare fast.jsonl decode.jsonl > out'
is "both slower" "$(verdicts out)" " 2 slower "
status "faster is no regression" 0 sh -c 'chr-bench table --compare slow.jsonl decode.jsonl > out'
is "both faster" "$(verdicts out)" " 2 faster "
faster 1.000001 > spread.jsonl
status "within the spread" 0 sh -c 'chr-bench table --compare spread.jsonl decode.jsonl > out'
is "is the same" "$(verdicts out)" " 2 same "
sed 's/"least":[0-9.e+]*/"least":"fast"/g; s/"most":[0-9.e+]*/"most":null/g' decode.jsonl \
	> words.jsonl
status "numbers that are none say nothing" 0 sh \
	-c 'chr-bench table --compare words.jsonl decode.jsonl > out'
ok "and that is said" grep -q 'unsure' out
status "too few samples say nothing" 0 sh \
	-c 'chr-bench table --compare resident.jsonl resident.jsonl > out'
is "unsure" "$(verdicts out)" " 1 unsure "
status "other work does not compare" 65 chr-bench table --compare resident.jsonl decode.jsonl
status "hit rates are exact" 0 chr-bench replay --budget 25%,6 --compare replay.jsonl act.jsonl
sed 's/"hit_rate","better":"more","median":[^,]*,"least":[^,]*,"most":[^,]*/"hit_rate","better":"more","median":1,"least":1,"most":1/' replay.jsonl > best.jsonl
status "and any loss counts" 1 chr-bench replay --budget 25%,6 --compare best.jsonl act.jsonl
status "no file to compare with" 66 chr-bench table --compare nowhere decode.jsonl

# ---- scripts/bench-all ----
if [ "$bld" != "$top/build" ]; then
	skip "bench-all" "it measures the programs in build/"
else
	export SHAPE="hidden_size=64 num_hidden_layers=2 num_experts=16 num_experts_per_tok=2 moe_intermediate_size=512 vocab_size=500" QUANTS=q8
	status "bench-all" 0 "$top/scripts/bench-all" -q -r 1 \
		-R "$tmp/w/results.tsv" all sweep lossy
	is "capsules of all budgets" \
		"$(grep -c '"workload":"decode"' all/sweep.jsonl) $(grep -c '"workload":"prefill"' \
		all/sweep.jsonl)" "5 5"
	check "switches with their price" all/lossy.jsonl 'defined $r->{quality}{kl}'
	check "and the lossless for nothing" all/lossy.jsonl \
		'$r->{config}{"on-miss"} ne "wait" || $r->{config}{"route-bias"} ||
		!$r->{config}{ram} || $r->{quality}{kl} == 0'
	ok "tables and pictures" sh \
		-c 'grep -q "^| warm | 0 | " all/sweep.md && grep -q "</svg>" all/sweep.svg'
	is "a line of results for each" "$(awk -F'\t' 'NF == 7' results.tsv | wc -l | tr -d ' ')" \
		"$(cat all/*.jsonl | grep -c '"type":"bench"')"
	is "the models are gone" "$(ls -d all/*/ 2> /dev/null)" ""
	status "bench-all: no such part" 64 "$top/scripts/bench-all" -q all dance
	status "bench-all: nowhere to work" 64 "$top/scripts/bench-all" -q
	SHAPE="hidden_size=64 num_hidden_layers=1 num_experts=8 vocab_size=300" PYTHON=false \
		status "bench-train" 0 sh \
		-c '"$0/scripts/bench-train" -q -r 2 -s 1 -o sides.jsonl > sides.md' "$top"
	is "everybody in each round, and no PyTorch" \
		"$(grep -c '"contender":"ours"' sides.jsonl) $(grep -c '"contender":"torch"' \
		sides.jsonl)" "4 0"
	ok "f32 and bf16 beside the speed of products" sh \
		-c 'grep -q "^| chronos f32 | [0-9]* \[[0-9]*-[0-9]*\] |" sides.md &&
			grep -q "^bf16 by f32: [0-9.]* times" sides.md'
	status "bench-train takes no operand" 64 "$top/scripts/bench-train" -q now
fi
done_testing

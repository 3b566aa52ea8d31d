#!/bin/sh
# The recipe: its graph, a short run of it all, interruptions; scripts/again, the Slurm jobs, the
# report of scripts/compare.
. "$(dirname "$0")/lib.sh"
recipe=scripts/recipes/gsm8k.mk
out=$tmp/run

# plan VARIABLE=VALUE... TARGET: what make would do
plan() { make -n -f $recipe OUT="$out" "$@"; }
# order: the stages in the order of their programs in $tmp/plan
order() { sed -n 's/.*again chr-\([a-z]*\) .*/\1/p' "$tmp/plan" | tr '\n' ' '; }

for size in small tiny; do
	plan DATA=datasets SIZE=$size > "$tmp/plan" 2> "$tmp/log"
	is "$size: all stages, in an order that can be" "$(order)" \
		"pretrain sft dpo grpo distill orpo "
	ok "$size: experts of the model and of its student go to disk" \
		[ "$(grep -c 'chr-pack -q' "$tmp/plan")$(grep -c 'chr-generate -q' "$tmp/plan")" = \
		22 ]
done
plan DATA=datasets POLICY=orpo BASE=some/model generate > "$tmp/plan" 2> "$tmp/log"
is "from another model, through orpo" "$(order)" ""
mkdir -p "$tmp/model" && cp scripts/recipes/tiny.json "$tmp/model/config.json" &&
	: > "$tmp/model/tokenizer.json"
plan DATA=datasets POLICY=orpo BASE="$tmp/model" SET='--set lambda_temporal=0' ANCHOR=0 generate \
	> "$tmp/plan" 2> "$tmp/log"
is "from another model, through orpo" "$(order)" "sft orpo grpo distill "
ok "the anchor's weight goes to the stages" grep -q 'chr-sft .*--anchor-lambda 0 ' "$tmp/plan"
ok "and terms to new models" grep -q 'chr-distill .*--set lambda_temporal=0 ' "$tmp/plan"
ok "data of other names" sh \
	-c "make -n -f $recipe OUT='$out' DATA=datasets SFT_DATA=tests/data/x.jsonl.gz data 2>&1 |
	grep -q 'No rule to make target .tests/data/x.jsonl.gz'"
status "no data" 2 make -n -f $recipe OUT="$out" DATA="$tmp"
if [ -d "$shared/data" ]; then
	plan DATA="$shared/data" > "$tmp/plan" 2> "$tmp/log"
	is "data with the names of the recipe" "$(order)" "pretrain sft dpo grpo distill orpo "
else
	skip "data with the names of the recipe" "no shared data"
fi
ok "help" sh -c "make -s -f $recipe help | grep -q DATA=DIR"

# All of it, two steps each, stopped after every step of sft.
run() { make -s -f $recipe OUT="$out" DATA=datasets SIZE=tiny J=2 \
	FLAGS='-q -n 2 --eval-batches 1 --seq 128' "$@"; }
ok "a short run of it all" run FLAGS_sft='--stop-after 1' all alone
for s in pretrain sft dpo orpo grpo distill alone; do
	is "$s: its steps and an evaluation" \
		"$(grep -c '"type":"step"' "$out/$s.jsonl") $(grep -c '"type":"eval"' \
		"$out/$s.jsonl")" "2 1"
done
is "text from packed models" \
	"$(cat "$out/grpo.completions.jsonl" "$out/distill.completions.jsonl" |
	grep -c '"completion":')" 16
is "nothing is left to do" "$(run -n all | grep -c again)" 0
is "the report has a line for each stage" "$(run report | grep -c '"type":"eval"')" 6
rm "$out/orpo.ok"
ok "what is done but not marked" run orpo
rm "$out/grpo.ok"
run -n all > "$tmp/plan" 2> "$tmp/log"
is "what is not marked is done again, and what comes of it" "$(order)" "grpo distill "
touch "$out/data/prefs.train.jsonl"
run -n all > "$tmp/plan" 2> "$tmp/log"
is "what comes of newer data is made anew" "$(order)" "dpo grpo distill orpo "

# again: status 75 is run again, a signal is passed on once and ends it.
cat > "$tmp/job" <<'END'
#!/bin/sh
trap 'echo signal >> log; exit 75' TERM
trap 'echo save >> log' USR1
echo run >> log
[ "$(grep -c run log)" -lt "$1" ] && exit 75
[ "$2" = wait ] && for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do sleep 0.2; done
exit "$2"
END
chmod +x "$tmp/job"
mkdir "$tmp/again" && mv "$tmp/job" "$tmp/again" && cd "$tmp/again" || exit 1
status "again: until it is done" 3 "$top/scripts/again" ./job 3 3
is "again: three times" "$(grep -c run log)" 3
: > log
"$top/scripts/again" ./job 1 wait &
pid=$!
for _ in 1 2 3 4 5 6 7 8 9 10; do grep -q run log || sleep 0.2; done
kill -USR1 $pid
sleep 0.3
kill -TERM $pid
kill -TERM $pid
wait $pid
is "again: SIGTERM ends it with its status" $? 75
is "again: each signal once" "$(tr '\n' ' ' < log)" "run save signal "
cd "$top" || exit 1

# Slurm, as far as it can be seen from here
mkdir "$tmp/bin"
cat > "$tmp/bin/sbatch" <<END
#!/bin/sh
n=\$((\$(wc -l < "$tmp/jobs") + 1))
echo "\$*" >> "$tmp/jobs"
echo "\$n;cluster"
END
cat > "$tmp/bin/scontrol" <<END
#!/bin/sh
echo "\$*" > "$tmp/scontrol"
END
chmod +x "$tmp/bin/sbatch" "$tmp/bin/scontrol"
: > "$tmp/jobs"
ok "jobs are sent" env PATH="$tmp/bin:$PATH" scripts/slurm/submit -s '--mem=1G -c 4' DATA=datasets
is "each after those that it needs" \
	"$(sed -n 's/.*--job-name=chronos-\([a-z]*\) --dependency=afterok:\([0-9]*\) .*/\1<\2/p' \
	"$tmp/jobs" |
	tr '\n' ' ')" "pretrain<1 sft<2 dpo<3 orpo<3 grpo<4 distill<6 pack<7 "
ok "with the options for sbatch, and variables" grep -q \
	-- '--mem=1G -c 4 scripts/slurm/stage.sbatch sft DATA=datasets$' "$tmp/jobs"
status "no data, no jobs" 64 scripts/slurm/submit SIZE=tiny
status "a job" 0 env SLURM_SUBMIT_DIR="$top" SLURM_CPUS_PER_TASK=2 sh scripts/slurm/stage.sbatch \
	-s OUT="$out" DATA=datasets data
env PATH="$tmp/bin:$PATH" SLURM_JOB_ID=77 SLURM_SUBMIT_DIR="$top" sh scripts/slurm/stage.sbatch \
	-s OUT="$tmp/long" DATA=datasets \
	SIZE=tiny FLAGS='-q -n 100000' pretrain > "$tmp/log" 2>&1 &
pid=$!
for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do [ \
	-s "$tmp/long/pretrain.jsonl" ] || sleep 0.3; done
kill -TERM $pid
wait $pid
is "a job whose time is up goes back into the queue" "$(cat "$tmp/scontrol")" "requeue 77"
ok "with a checkpoint" sh -c "ls -d '$tmp'/long/pretrain/checkpoint-*"

# The report
measure() { printf \
	'{"type":"measure","arm":"%s","seed":%d,"stage":"%s","metric":"%s","value":%s}\n' "$@"; }
for seed in 1 2 3; do
	measure plain $seed sft text.b.ppl $((seed * 2))
	measure 'new <&' $seed sft text.b.ppl 5
	measure plain $seed dpo eval.accuracy 0.75
	measure plain $seed grpo lru.hit_250 0.$seed
done > "$tmp/measures.jsonl"
scripts/compare-report "$tmp/measures.jsonl" "$tmp/plot.svg" > "$tmp/table.md"
ok "table: mean and deviation" grep -q '| sft | 4.00 ± 2.00 | 5.00 ± 0.00 |' "$tmp/table.md"
ok "table: what was not measured" grep -q '| dpo | 75.0 ± 0.0 | - |' "$tmp/table.md"
# shellcheck disable=SC2016
ok "plot: well formed" perl -0777 -ne '
	s/<\?.*?\?>//gs;
	my @open;
	while (/<(\/?)([a-z]+)(?:\s[^<>]*?)?(\/?)>|([<&])/g) {
		my ($close, $name, $empty, $bare) = ($1, $2, $3, $4);
		if (defined $bare) {
			substr($_, pos() - 1, 5) =~ /^&(lt|amp);/ or die "a bare $bare\n";
		} elsif ($close) {
			(pop @open // "") eq $name or die "$name is not open\n";
		} elsif (!$empty) {
			push @open, $name;
		}
	}
	die "@open are not closed\n" if @open || !/<circle/' "$tmp/plot.svg"
echo '{"type":"step"}' > "$tmp/bad.jsonl"
status "what is no measure is bad data" 65 scripts/compare-report "$tmp/bad.jsonl" "$tmp/plot.svg"
status "compare: unknown arms" 65 scripts/compare -o "$tmp/cmp" -a other
status "compare: usage" 64 scripts/compare -Q
done_testing

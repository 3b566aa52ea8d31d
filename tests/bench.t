#!/bin/sh
# chr-bench: records have what they should, replay agrees with what the store did, mistakes are refused.
. "$(dirname "$0")/lib.sh"
world "$tmp/w"
cd "$tmp/w" || exit 1

field() { sed -n "s/.*\"$1\":\([-0-9.e+]*\).*/\1/p" "$2" | head -n 1; }
chr-bench replay --budget 25%,6 --drive 0.1,1G --ram-bw 20G --dense-bytes 1M act.jsonl > replay.jsonl
is "five policies at two budgets" "$(grep -c '"workload":"replay"' replay.jsonl)" 10
for key in policy slots experts tokens demands hits hit_rate read_bytes_per_token tok_per_s command version; do
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
done_testing

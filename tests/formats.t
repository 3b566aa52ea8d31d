#!/bin/sh
# The pages of section 5 say what the programs write: every key of every record in chr-jsonl.5,
# under the name of its type; every key of config.json, every tensor and every key of the metadata
# in chr-model.5.
. "$(dirname "$0")/lib.sh"
world "$tmp/w"
page=$top/man
cd "$tmp/w" || exit 1

ok "programs write records" sh -e -c '
	chr-pretrain -q -c config.json -t tokenizer.json -n 2 -b 2 --seq 32 --eval in.jsonl -o again in.jsonl > 1
	chr-pretrain -q -c config.json -t tokenizer.json -n 2 -b 2 --seq 32 --dry-run -o no in.jsonl > 2
	chr-tokenize -t tokenizer.json --mask datasets/chat.jsonl > 3
	chr-tokenize -t tokenizer.json -o shard.safetensors in.jsonl > 4
	chr-score -q -m model in.jsonl > 5
	chr-actlog -q -m model --generate 2 in.jsonl > 6
	chr-pack -q -m packed --unpack -o plain > 7
	head -n 2 datasets/openings.jsonl > prompts.jsonl
	chr-generate -q -m model -n 4 --stats s8 prompts.jsonl > 9
	chr-generate -q -m packed -n 4 --stats s10 prompts.jsonl > 11
	chr-ls model > 12
	chr-ls --check model > 13
	cp pack.json 14
	chr-ls packed > 15
	chr-diff -q model packed in.jsonl > 16
	head -n 4 datasets/prefs.jsonl > prefs.jsonl
	chr-dpo -q -m model -n 1 -b 1 --seq 128 --eval prefs.jsonl -o dpo prefs.jsonl > 17
	chr-orpo -q -m model -n 1 -b 1 --seq 128 --eval prefs.jsonl -o orpo prefs.jsonl > 18
	head -n 2 datasets/prompts.jsonl > sums.jsonl
	chr-grpo -q -m model -n 1 -b 1 --seq 96 --new 4 --reward toy --reward number --log-samples 1 --eval sums.jsonl \
		-o grpo sums.jsonl > 19
	chr-bench replay --budget 50% --drive 0.1,3GB --ram-bw 60GB act.jsonl > replay.jsonl
	{ chr-fit -q -m packed --stage generate --ram 64M --replay replay.jsonl || [ $? = 1 ];
		} > 20
	{ chr-fit -q -m model --stage sft -b 8 --lora-rank 4 --ram 20M --vram 10M --allow-rank ||
		[ $? = 1 ]; } >> 20
	cat 1 1 1 | chr-fit -l > 21'

# shellcheck disable=SC2016
ok "every key is in chr-jsonl.5" perl -MJSON::PP -e '
	open my $f, "<", shift or die;
	my ($part, %doc, %have) = "";
	while (<$f>) {
		$part = "" if /^\.Sh/;
		if (/^\.Ss (.*)/) { $part = $1; $have{$_} = 1 for split / , /, $1 }
		next unless /^\.(?:It )?Ic (.*)/;
		for my $k (split / *, *| /, $1) { $doc{$_}{$k} = 1 for $part eq "" ? "" : split / , /, $part }
	}
	%{$doc{eval}} = (%{$doc{step}}, %{$doc{eval}});
	%{$doc{total}} = (%{$doc{score}}, %{$doc{total}});
	%{$doc{summary}} = (%{$doc{token}}, %{$doc{summary}});
	%{$doc{diff}} = (%{$doc{step}}, %{$doc{score}}, %{$doc{diff}});
	my (%carried, %seen) = map { $_ => 1 } qw(type prompt text messages answer);
	while (<>) {
		my $r = decode_json($_);
		my $t = $r->{type} // (exists $r->{completion} ? "completion" : "");
		$t eq "" || $have{$t} or $bad{"no section $t"} = 1;
		for my $k (keys %$r, $t eq "completion" ? keys %{$r->{timing}} : (), ref $r->{recall} ? keys %{$r->{recall}} : (),
		    map { ref $_ eq "HASH" ? keys %$_ : () } @{$r}{"a", "b"}) {
			my $name = $k =~ s/^(recall|repeat)[2-9]/${1}1/r;
			$seen{$t}++;
			$doc{$t}{$name} || $carried{$k} or $bad{"type \"$t\": $k"} = 1;
		}
	}
	for my $t (qw(step eval mem_plan shard score total model act pack unpack prefill token summary completion file metadata
	    ancestry tensor check diff fit calibration)) { $seen{$t} or $bad{"no record $t was written"} = 1 }
	print "$_\n" for sort keys %bad;
	exit(%bad > 0)' "$page/chr-jsonl.5" 1 2 3 4 5 6 7 s8 9 s10 11 12 13 14 15 16 17 18 19 20 21

# shellcheck disable=SC2016
ok "config.json, tensors and metadata are in chr-model.5" perl -MJSON::PP -0777 -e '
	my ($page, @rest) = map { open my $f, "<", $_ or die "$_: $!"; <$f> } @ARGV;
	my $config = decode_json($rest[0]);
	$page =~ /\Q$_\E/ or $bad{"config.json: $_"} = 1 for keys %$config;
	for (map { decode_json($_) } split /\n/, $rest[1]) {
		if ($_->{type} eq "tensor") {
			my $n = $_->{name} =~ s/^model\.layers\.\d+\.//r =~ s/experts\.\d+/experts.{e}/r =~ s/(shared_experts)\.\{e\}.*/$1/r;
			$page =~ /\Q$n\E/ or $bad{"tensor $n"} = 1;
		} elsif ($_->{type} eq "metadata") {
			$page =~ /^\.It Li \Q$_\E$/m or $bad{"metadata $_"} = 1 for keys %{$_->{metadata}};
		}
	}
	print "$_\n" for sort keys %bad;
	exit(%bad > 0)' "$page/chr-model.5" model/config.json 12
sed 's/{/{"model_type": "qwen3_moe", "_my_note": [1, 2],/' config.json > noted.json
ok "what config.json says besides is kept, in packed directories too" sh -e -c '
	chr-pretrain -q -c noted.json -t tokenizer.json -n 1 -b 1 --seq 32 -o noted in.jsonl
	chr-actlog -q -m noted in.jsonl | chr-cluster -q | chr-pack -q -m noted -o notedpack
	for d in noted notedpack; do
		tr -d " \n" < $d/config.json | grep "\"_my_note\":\[1,2\]"
		tr -d " \n" < $d/config.json | grep "\"model_type\":\"qwen3_moe\""
	done'
done_testing

#!/bin/sh
# The embedded corpus: its program gives the committed bytes, and the files keep what
# datasets/README.md promises.
. "$(dirname "$0")/lib.sh"
files="pretrain heldout chat prefs prompts openings"

ok "make-corpus compiles" "${CC:-cc}" -std=c11 -O1 -Wall -Wextra -Werror \
	-o "$tmp/make-corpus" datasets/make-corpus.c
mkdir "$tmp/again"
ok "make-corpus runs" "$tmp/make-corpus" "$tmp/again"
for f in $files; do
	ok "$f.jsonl is what make-corpus writes" cmp "datasets/$f.jsonl" "$tmp/again/$f.jsonl"
done

total=$(cat datasets/*.jsonl | wc -c)
ok "100 to 400 kB in all ($total)" test "$total" -ge 100000 -a "$total" -le 400000
# shellcheck disable=SC2016
ok "no record of pretrain.jsonl is in heldout.jsonl" sh \
	-c 'test -z "$(sort datasets/pretrain.jsonl datasets/heldout.jsonl | uniq -d)"'
# Multiplication and division are one fact, and so are addition and subtraction: see held_out() in
# make-corpus.c.
# shellcheck disable=SC2016
ok "records have their keys, sums are right, held-out sums occur nowhere else" perl -MJSON::PP -e '
	my (%train, %held);
	sub bad { print "$ARGV:$.: @_\n"; $bad = 1 }
	sub note {
		my ($into, $a, $op, $b) = @_;
		my @f = $op =~ /plus|\+/ ? ("+", $a, $b) : $op =~ /minus|^-/ ? ("+", $a - $b, $b)
		    : $op =~ /times|\*/ ? ("*", $a, $b) : ("*", $a / $b, $b);
		$into->{join " ", $f[0], sort { $a <=> $b } @f[1, 2]} = 1;
	}
	my %keys = (pretrain => "text", heldout => "text", chat => "messages",
		prefs => "chosen prompt rejected",
	    prompts => "answer prompt", openings => "prompt");
	while (<>) {
		my ($name) = $ARGV =~ m{(\w+)\.jsonl$};
		my $into = $name =~ m{^(prompts|heldout)$} ? \%held : \%train;
		my $r = eval { decode_json($_) } or bad("not JSON");
		join(" ", sort keys %$r) eq $keys{$name} or bad("keys");
		for my $m (map { ref $r->{$_} ? @{$r->{$_}} : () } keys %$r) {
			$m->{role} =~ /^(system|user|assistant)$/ &&
				length $m->{content} or bad("message");
		}
		delete $r->{rejected};
		my $text = encode_json($r);
		my $sums = qr{(\d+) (plus|minus|times|divided by|[-+*]|\\?/) (\d+)};
		while ($text =~ m{$sums (?:=|is|makes|equals) (\d+)}g) {
			my ($a, $op, $b, $c) = ($1, $2, $3, $4);
			my $want = $op =~ /plus|\+/ ? $a + $b : $op =~ /minus|-/ ? $a - $b : $op =~ /times|\*/ ? $a * $b : $a / $b;
			$c == $want or bad("$a $op $b is not $c");
			$checked++;
		}
		note($into, $1, $2, $3) while $text =~ m{$sums}g;
		if ($name eq "prompts" && $text =~ $sums) {
			my ($a, $op, $b) = ($1, $2, $3);
			my $want = $op =~ /plus|\+/ ? $a + $b : $op =~ /minus|-/ ? $a - $b : $op =~ /times|\*/ ? $a * $b : $a / $b;
			$r->{answer} eq $want or bad("answer");
		}
	} continue { close ARGV if eof }
	print "only $checked sums\n" if $checked < 300;
	for (keys %held) { print "$_ is in both\n" if $train{$_} }
	exit($bad || $checked < 300 || grep { $train{$_} } keys %held)' datasets/*.jsonl
done_testing

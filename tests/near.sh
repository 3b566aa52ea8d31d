# Two runs of a trainer that differ by rounding only; for tests of several ranks, after lib.sh.
# shellcheck shell=sh
# near A B: the largest difference between the tensors of two files is at most 1e-5, and there are
# the same tensors
near()
{
	perl -MJSON::PP -e '
		sub tensors {
			local $/; open my $f, "<:raw", $_[0] or die "$_[0]: $!"; my $b = <$f>;
				my $n = unpack "Q<", $b;
			my $h = decode_json substr $b, 8, $n; delete $h->{__metadata__};
			return map { my ($i, $j) = @{$h->{$_}{data_offsets}};
				$_ => [unpack "f<*", substr $b, 8 + $n + $i, $j - $i] } keys %$h;
		}
		my (%a, %b, $most) = (); %a = tensors($ARGV[0]); %b = tensors($ARGV[1]); $most = 0;
		join(",", sort keys %a) eq join(",", sort keys %b) or die "not the same tensors\n";
		for my $k (keys %a) {
			@{$a{$k}} == @{$b{$k}} && @{$a{$k}} > 0 or die "$k: not the same size\n";
			for (0 .. $#{$a{$k}}) { my $d = abs($a{$k}[$_] - $b{$k}[$_]);
				$most = $d if !($d <= $most) }
		}
		print "largest difference $most\n"; exit !($most <= 1e-5)' "$1" "$2"
}
# losses A B: the records of two runs have the same steps, losses within 1e-5
losses()
{
	for f in "$1" "$2"; do
		sed -n 's/.*"type":"\([a-z]*\)".*"step":\([0-9]*\),"loss":\([^,]*\),.*/\1 \2 \3/p' \
			"$f" > "$f.loss"
	done
	paste -d ' ' "$1.loss" "$2.loss" |
		awk '{ d = $3 - $6; if ($1 $2 != $4 $5 || d > 1e-5 || d < -1e-5) { print;
			bad = 1 } }
		END { exit bad || NR == 0 }'
}

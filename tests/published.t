#!/bin/sh
# FP8 and MXFP4 as they are published: the same answers as from floats, the same bits packed and
# unpacked, and bad ones refused by every way in.
. "$(dirname "$0")/lib.sh"
families=$shared/golden/families
if [ ! -d "$families/deepseek_v3-fp8" ] || [ ! -d "$families/gpt_oss-mxfp4" ]; then
	skip "published blocks" "no $families"
	done_testing
	exit
fi
families=$(cd "$families" && pwd)
world "$tmp/w"
cd "$tmp/w" || exit 1
head -n 3 in.jsonl > three.jsonl
head -n 2 datasets/chat.jsonl > chat.jsonl

# edit FROM TO CODE: a copy of a model after perl has changed its tensors, $t{NAME} = { dtype, shape,
# data }, and its config, $c
edit()
{
	rm -rf "$2"; mkdir "$2" && perl -MJSON::PP -e '
		our ($from, $to, $code) = @ARGV; local $/;
		sub read_file { open my $f, "<:raw", "$from/$_[0]" or die; <$f> }
		sub write_file { open my $f, ">:raw", "$to/$_[0]" or die; print $f $_[1] }
		my $b = read_file("model.safetensors"); my $n = unpack("Q<", $b);
		our $h = decode_json(substr($b, 8, $n)); delete $h->{__metadata__};
		our $c = decode_json(read_file("config.json"));
		our %t = map { my ($x, $y) = @{$h->{$_}{data_offsets}};
			$_ => { %{$h->{$_}}, data => substr($b, 8 + $n + $x, $y - $x) } } keys %$h;
		eval $code; die $@ if $@;
		my ($o, $d) = ({}, "");
		for (sort keys %t) {
			my $x = length $d; $d .= $t{$_}{data};
			$o->{$_} = { dtype => $t{$_}{dtype}, shape => [map { $_ + 0 } @{$t{$_}{shape}}],
				data_offsets => [$x, length $d] };
		}
		my $j = encode_json($o); $j .= " " x (-length($j) % 8);
		write_file("model.safetensors", pack("Q<", length $j) . $j . $d);
		write_file("config.json", encode_json($c))' "$1" "$2" "$3"
}

# Values by their definitions, as floats.
floats='
	sub e4m3 { my $u = shift; my ($e, $m) = ($u >> 3 & 15, $u & 7);
		($u & 128 ? -1 : 1) * ($e ? (8 + $m) * 2 ** ($e - 10) : $m * 2 ** -9) }
	sub e2m1 { (0, .5, 1, 1.5, 2, 3, 4, 6)[$_[0] & 7] * ($_[0] & 8 ? -1 : 1) }
	delete $c->{quantization_config};
	for my $k (grep { $t{$_}{dtype} eq "F8_E4M3" } keys %t) {
		my $s = delete $t{"${k}_scale_inv"}; my ($rows, $cols) = @{$t{$k}{shape}};
		my ($high, $wide) = ($H || 128, $W || 128); my $across = int(($cols - 1) / $wide) + 1;
		my @s = unpack "f<*", $s->{data}; my @v = unpack "C*", $t{$k}{data};
		$t{$k}{data} = pack "f<*", map { e4m3($v[$_]) * $s[int(int($_ / $cols) / $high) *
			$across + int($_ % $cols / $wide)] } 0 .. $#v;
		$t{$k}{dtype} = "F32";
	}
	for my $k (grep { /_blocks$/ } keys %t) {
		(my $n = $k) =~ s/_blocks$//; my $b = delete $t{$k}; my $s = delete $t{"${n}_scales"};
		my ($E, $R, $nb) = @{$b->{shape}}; my @s = unpack "C*", $s->{data};
		my @v = map { my $x = $_; map { e2m1($_) * 2 ** ($s[$x >> 4] - 127) }
			(vec($b->{data}, $x, 8) & 15, vec($b->{data}, $x, 8) >> 4) } 0 .. $E * $R * $nb * 16 - 1;
		my $C = $nb * 32; my @turned;
		for my $e (0 .. $E - 1) { for my $col (0 .. $C - 1) {
			push @turned, map { $v[($e * $R + $_) * $C + $col] } 0 .. $R - 1 } }
		$t{$n} = { dtype => "F32", shape => [$E, $C, $R], data => pack("f<*", @turned) };
	}'
# Other rectangles, so that several fit in a matrix; the values stay within FP8.
grid='
	my ($high, $wide) = ($H, $W); $c->{quantization_config}{weight_block_size} = [$H, $W];
	for my $k (grep { $t{$_}{dtype} eq "F8_E4M3" } keys %t) {
		my ($rows, $cols) = @{$t{$k}{shape}};
		my ($down, $across) = (int(($rows - 1) / $high) + 1, int(($cols - 1) / $wide) + 1);
		$t{"${k}_scale_inv"} = { dtype => "F32", shape => [$down, $across],
			data => pack("f<*", map { 0.001 * (1 + $_ % 7) } 1 .. $down * $across) };
	}'

scores() { chr-score -q -m "$1" -t tokenizer.json three.jsonl | sed 's/,"seconds.*//' > "$2"; }

# same NAME MODEL FLOATS
same()
{
	# shellcheck disable=SC2016
	ok "$1: the bytes of the same model in floats, packed and unpacked too" sh -e -c '
		scores() { chr-score -q -m "$1" -t tokenizer.json $3 three.jsonl |
			sed "s/,\"seconds.*//" > "$2"; }
		scores "$1" a; scores "$2" b; cmp a b
		rm -rf p u f && chr-pack -q -m "$1" --layout layer -o p > /dev/null
		scores p b "--ram 64M"; cmp a b
		chr-pack -q -m p --unpack -o u > /dev/null
		scores u b; cmp a b
		chr-convert -q --dtype f32 "$1" -o f > /dev/null
		scores f b; cmp a b
		! grep -q quantization_config f/config.json
		chr-ls --check "$1" > log; chr-ls --check p > log; chr-ls --check u > log
		chr-diff -q "$1" u > log
		chr-fit -q -m "$1" --stage generate > log' sh "$2" "$3"
}

cp -r "$families/deepseek_v3-fp8" f8; cp -r "$families/gpt_oss-mxfp4" mx
edit f8 f8f "$floats"; same "FP8" f8 f8f
edit mx mxf "$floats"; same "MXFP4" mx mxf
for hw in 48,32 32,64 16,96 20,24; do
	# shellcheck disable=SC2016
	edit f8 g "(\$H, \$W) = ($hw); $grid"
	edit g gf "(\$H, \$W) = ($hw); $floats"
	same "FP8, a scale for $hw" g gf
done

# bits FROM PACKED: every value and scale of FP8, as perl finds them in panels, is the published one
# shellcheck disable=SC2016
bits='
	sub tensors { my $f = shift; local $/; open my $h, "<:raw", $f or die; my $b = <$h>;
		my $n = unpack "Q<", $b; my $t = JSON::PP::decode_json(substr($b, 8, $n));
		my %t; for (grep { !/^__/ } keys %$t) { my ($x, $y) = @{$t->{$_}{data_offsets}};
			$t{$_} = { %{$t->{$_}}, data => substr($b, 8 + $n + $x, $y - $x) } } \%t }
	my $src = tensors("$ARGV[0]/model.safetensors"); my $n = 0; my %p;
	%p = (%p, %{tensors($_)}) for glob("$ARGV[1]/*.ctsr");
	for my $k (grep { /experts\.\d+\..*weight$/ } keys %$src) {
		my ($l, $e, $w) = $k =~ /layers\.(\d+)\.mlp\.experts\.(\d+)\.(.*)/;
		my $q = $p{"l${l}_e${e}__$w"}{data}; my ($R, $C) = @{$src->{$k}{shape}};
		my $nb = int(($C + 31) / 32); my $head = int(($nb * 4 + 63) / 64) * 64;
		my $bytes = $head + $nb * 512;
		for my $r (0 .. $R - 1) { for my $c (0 .. $C - 1) {
			my $at = int($r / 16) * $bytes;
			die "$k $r $c" if substr($q, $at + $head + int($c / 32) * 512 + $r % 16 * 32 +
				$c % 32, 1) ne substr($src->{$k}{data}, $r * $C + $c, 1) ||
				substr($q, $at + int($c / 32) * 4, 4) ne $src->{"${k}_scale_inv"}{data};
			$n++ } }
	}
	die "nothing" if !$n'
chr-pack -q -m f8 --layout layer -o pk > /dev/null
ok "FP8: the bits in .ctsr files are those of the source" perl -MJSON::PP -e "$bits" f8 pk

status "FP8 is nothing that floats are made of" 64 \
	chr-pack -q -m f8 --layout layer --quant-for '*=f8' -o out

# refused NAME WORD [CHECK]: what is in m, by every way in; chr-ls --check says CHECK, if not WORD;
# nothing where that is empty: it looks at tensors one by one
refused()
{
	# shellcheck disable=SC2016
	ok "$1" sh -c '
		for line in "chr-score -q -m m -t tokenizer.json three.jsonl" \
			"chr-pack -q -m m --layout layer -o out" "chr-convert -q --dtype f32 m -o out" \
			"chr-sft -q -m m -t tokenizer.json -n 1 -b 1 --seq 64 -o out chat.jsonl"; do
			$line > got 2> why < /dev/null; rc=$?
			if [ $rc != 65 ] || ! grep -q "$1" why || [ "$(wc -l < why)" != 1 ] ||
				[ -e out ]; then
				echo "$line: $rc"; cat why; exit 1
			fi
		done
		[ -n "$2" ] || exit 0
		chr-ls --check m > got 2> why; [ $? = 1 ] && cat got why | grep -q "$2"' \
		sh "$2" "${3-$2}"
}

W=model.layers.1.mlp.experts.3.up_proj.weight
X=model.layers.1.mlp.experts
edit f8 m "delete \$t{'${W}_scale_inv'}"
refused "FP8 without its scales" "needs scales, and .*$W.*scale_inv.* is missing"
edit f8 m "\$t{'${W}_scale_inv'} = { dtype => 'F32', shape => [5, 7], data => \"\\0\" x 140 }"
refused "FP8 with scales of another shape" "${W}_scale_inv.* has not the shape"
edit f8 m "\$t{'${W}_scale_inv'} = { dtype => 'I32', shape => [1, 1], data => \"\\1\" x 4 }"
refused "FP8 with scales of another type" "${W}_scale_inv.* is not F32"
edit f8 m "substr(\$t{'$W'}{data}, 100, 1) = \"\\x7f\""
refused "FP8 with a NaN" "$W.* not a finite number" "$W"
edit f8 m "\$t{'${W}_scale_inv'}{data} = pack('f<', 9**9**9)"
refused "FP8 with a scale that is infinite" "${W}_scale_inv.* not a finite number" "${W}_scale_inv"
edit f8 m "\$t{'${W}_scale_inv'}{data} = pack('f<', 3e36)"
refused "FP8 with a scale that makes its values so" "${W}_scale_inv.* not a finite number" ""
edit f8 m '$c->{quantization_config}{weight_block_size} = [0, 128]'
refused "rectangles of no size" "quantization_config"
edit f8 m '$c->{quantization_config}{quant_method} = "compressed-tensors"'
refused "another method" "compressed-tensors.* is not supported"
edit mx m "delete \$t{'$X.down_proj_scales'}"
refused "MXFP4 without its scales" "down_proj_scales.* is missing"
edit mx m "my \$s = \$t{'$X.down_proj_scales'}; \$s->{shape} = [8, 2, 64]"
refused "MXFP4 with scales of another shape" "down_proj_scales.* has not the type or the shape"
edit mx m "substr(\$t{'$X.down_proj_scales'}{data}, 7, 1) = \"\\xff\""
refused "MXFP4 with a scale that is no number" "down_proj_scales.* not a finite number" \
	down_proj_scales
edit mx m "\$t{'$X.down_proj_blocks'}{shape} = [8, 64, 1, 32]"
refused "MXFP4 in another shape" "down_proj_blocks.* has not the shape"
done_testing

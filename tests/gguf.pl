#!/usr/bin/perl
# gguf.pl DIR OUT [OPTION...]: a published directory of float32 as a GGUF file, by the conventions
# of the converters that people use. Options: kv_b (DeepSeek: not apart), fused (gate and up of
# experts in one tensor), old (Qwen3-Next: one projection), llama3 (frequencies in a tensor),
# spoil (them), q8_0, q4_0 (matrices whose rows divide by 32), split=N (files), tok=FILE
# (tokenizer.json), pre=NAME, spm (a tokenizer of pieces; spm=bare: no space before), extra=KEY.
use strict;
use warnings;
use JSON::PP;

my ($dir, $out, @opt) = @ARGV;
my %opt = map { /^(\w+)=(.*)/ ? ($1, $2) : ($_, 1) } @opt;
my $c = JSON::PP->new->decode(slurp("$dir/config.json"));
my (%t, @kv, @tensors);

sub slurp { open my $f, '<:raw', $_[0] or die "$_[0]: $!\n"; local $/; <$f> }

# name -> [[shape], [values]]
{
	my $s = slurp("$dir/model.safetensors");
	my $n = unpack 'Q<', $s;
	my $h = JSON::PP->new->decode(substr $s, 8, $n);
	delete $h->{__metadata__};
	for (keys %$h) {
		my ($a, $b) = @{$h->{$_}{data_offsets}};
		die "$_ is $h->{$_}{dtype}\n" if $h->{$_}{dtype} ne 'F32';
		$t{$_} = [$h->{$_}{shape}, [unpack 'f<*', substr $s, 8 + $n + $a, $b - $a]];
	}
}

my $type = $c->{model_type};
my $layers = $c->{num_hidden_layers};
my %arch = (mixtral => 'llama', qwen2_moe => 'qwen2moe', qwen3_moe => 'qwen3moe',
	deepseek_v2 => 'deepseek2', deepseek_v3 => 'deepseek2', glm4_moe_lite => 'deepseek2',
	glm4_moe => 'glm4moe', gpt_oss => 'gpt-oss', qwen3_next => 'qwen3next',
	qwen3_5_moe_text => 'qwen35moe');
my $arch = $arch{$type} // $type;
my $delta = $arch =~ /^qwen3(next|5moe)$/;

# ---- metadata ----

sub str { pack('Q<', length $_[0]) . $_[0] }
sub kv { my ($k, $t, $v) = @_; push @kv, str($k) . pack('V', $t) . $v }
sub text { kv($_[0], 8, str($_[1])) }
sub u32 { kv($_[0], 4, pack 'V', $_[1]) if defined $_[1] }
sub f32 { kv($_[0], 6, pack 'f<', $_[1]) if defined $_[1] }
sub truth { kv($_[0], 7, pack 'C', $_[1] ? 1 : 0) if defined $_[1] }
sub list { my ($k, $t, $n, $v) = @_; kv($k, 9, pack('VQ<', $t, $n) . $v) }

my $rope = $c->{rope_parameters} // {};
my $mla = defined $c->{kv_lora_rank} && $arch eq 'deepseek2';
my $head = $c->{head_dim} // $c->{hidden_size} / $c->{num_attention_heads};
$head = $c->{qk_nope_head_dim} + $c->{qk_rope_head_dim} if $mla;
my $experts = $c->{num_experts} // $c->{num_local_experts} // $c->{n_routed_experts};

text('general.architecture', $arch);
u32("$arch.block_count", $layers);
u32("$arch.context_length", $c->{max_position_embeddings});
u32("$arch.embedding_length", $c->{hidden_size});
u32("$arch.feed_forward_length", $c->{intermediate_size});
u32("$arch.attention.head_count", $c->{num_attention_heads});
u32("$arch.attention.head_count_kv", $mla ? ($opt{kv_b} ? $c->{num_attention_heads} : 1)
	: $c->{num_key_value_heads});
f32("$arch.attention.layer_norm_rms_epsilon", $c->{rms_norm_eps});
f32("$arch.rope.freq_base", $rope->{rope_theta} // $c->{rope_theta});
u32("$arch.expert_count", $experts);
u32("$arch.expert_used_count", $c->{num_experts_per_tok});
u32("$arch.expert_feed_forward_length", $c->{moe_intermediate_size} //
	($arch eq 'gpt-oss' ? $c->{intermediate_size} : undef));
u32("$arch.expert_shared_feed_forward_length", $c->{shared_expert_intermediate_size});
u32("$arch.attention.sliding_window", $c->{sliding_window}) if $arch eq 'gpt-oss';
if ($mla) {
	u32("$arch.rope.dimension_count", $c->{qk_rope_head_dim});
	u32("$arch.attention.q_lora_rank", $c->{q_lora_rank});
	u32("$arch.attention.kv_lora_rank", $c->{kv_lora_rank});
	if ($opt{kv_b}) {
		u32("$arch.attention.key_length", $head);
		u32("$arch.attention.value_length", $c->{v_head_dim});
	} else {
		u32("$arch.attention.key_length", $c->{kv_lora_rank} + $c->{qk_rope_head_dim});
		u32("$arch.attention.value_length", $c->{kv_lora_rank});
		u32("$arch.attention.key_length_mla", $head);
		u32("$arch.attention.value_length_mla", $c->{v_head_dim});
	}
} else {
	u32("$arch.attention.key_length", $head);
	u32("$arch.attention.value_length", $head);
	u32("$arch.rope.dimension_count", $head * ($rope->{partial_rotary_factor} //
		$c->{partial_rotary_factor} // ($arch eq 'glm4moe' ? 0.5 : 1)));
}
if ($arch eq 'deepseek2' || $arch eq 'glm4moe') {
	u32("$arch.leading_dense_block_count", $c->{first_k_dense_replace} //
		scalar grep { $_ eq 'dense' } @{$c->{mlp_layer_types}});
	u32("$arch.expert_shared_count", $c->{n_shared_experts});
	u32("$arch.expert_group_count", $c->{n_group});
	u32("$arch.expert_group_used_count", $c->{topk_group});
	f32("$arch.expert_weights_scale", $c->{routed_scaling_factor});
	truth("$arch.expert_weights_norm", $c->{norm_topk_prob}) if $type ne 'deepseek_v2';
	u32("$arch.expert_gating_func", $type eq 'deepseek_v2' ? 1 : 2);
}
if (($rope->{rope_type} // 'default') eq 'yarn') {
	text("$arch.rope.scaling.type", 'yarn');
	f32("$arch.rope.scaling.factor", $rope->{factor});
	u32("$arch.rope.scaling.original_context_length",
		$rope->{original_max_position_embeddings});
	f32("$arch.rope.scaling.yarn_log_multiplier", 0.1 * $rope->{mscale_all_dim})
		if $rope->{mscale_all_dim};
}
if ($delta) {
	u32("$arch.ssm.conv_kernel", $c->{linear_conv_kernel_dim});
	u32("$arch.ssm.state_size", $c->{linear_key_head_dim});
	u32("$arch.ssm.group_count", $c->{linear_num_key_heads});
	u32("$arch.ssm.time_step_rank", $c->{linear_num_value_heads});
	u32("$arch.ssm.inner_size", $c->{linear_num_value_heads} * $c->{linear_value_head_dim});
	u32("$arch.full_attention_interval", 4);
}
u32("$arch.$opt{extra}", 1) if $opt{extra};
tokenizer($opt{tok}) if $opt{tok};
pieces() if $opt{spm};

# SentencePiece's BPE: bytes, then a few pieces; "ba" is more likely than "ab".
sub pieces {
	my $mark = "\xe2\x96\x81";
	my @more = ([$mark, -5], ['a', -6], ['b', -7], ['ab', -1], ["${mark}ab", -2], ['ba', -0.5]);
	my @tok = ('<unk>', '<s>', '</s>', (map { sprintf '<0x%02X>', $_ } 0 .. 255),
		(map { $_->[0] } @more), '<|x|>');

	text('tokenizer.ggml.model', 'llama');
	list('tokenizer.ggml.tokens', 8, scalar @tok, join '', map { str($_) } @tok);
	list('tokenizer.ggml.scores', 6, scalar @tok, pack 'f<*', (0) x 259,
		(map { $_->[1] } @more), 0);
	list('tokenizer.ggml.token_type', 5, scalar @tok, pack 'V*', 2, 3, 3, (6) x 256,
		(1) x @more, 4);
	u32('tokenizer.ggml.bos_token_id', 1);
	u32('tokenizer.ggml.eos_token_id', 2);
	u32('tokenizer.ggml.unknown_token_id', 0);
	truth('tokenizer.ggml.add_space_prefix', 0) if $opt{spm} eq 'bare';
}

# Byte-level BPE of GPT-2's pattern.
sub tokenizer {
	my $o = JSON::PP->new->utf8->decode(slurp($_[0]));
	my (@tok, @kind);
	my $v = $o->{model}{vocab};
	($tok[$v->{$_}], $kind[$v->{$_}]) = ($_, 1) for keys %$v;
	for (@{$o->{added_tokens}}) {
		$tok[$_->{id}] = $_->{content};
		$kind[$_->{id}] = $_->{special} ? 3 : 4;
	}
	my @merges = map { ref $_ ? "@$_" : $_ } @{$o->{model}{merges}};
	my $pack = sub { my @s = @_; utf8::encode($_) for @s; join '', map { str($_) } @s };
	text('tokenizer.ggml.model', 'gpt2');
	text('tokenizer.ggml.pre', $opt{pre} // 'gpt-2');
	list('tokenizer.ggml.tokens', 8, scalar @tok, $pack->(map { $_ // '' } @tok));
	list('tokenizer.ggml.token_type', 5, scalar @kind, pack 'V*', map { $_ // 5 } @kind);
	list('tokenizer.ggml.merges', 8, scalar @merges, $pack->(@merges));
}

# ---- tensors ----

sub rows_of {		# a tensor as a list of rows
	my ($x) = @_;
	my $n = $x->[0][0];
	my $w = @{$x->[1]} / $n;
	return map { [@{$x->[1]}[$_ * $w .. ($_ + 1) * $w - 1]] } 0 .. $n - 1;
}

sub of_rows { my ($shape, @r) = @_; [$shape, [map { @$_ } @r]] }
sub put { my ($name, $x) = @_; push @tensors, [$name, $x] }
sub get { my ($name) = @_; my $x = delete $t{$name}; $x }

# Rows i and i + d/2 of each head beside each other.
sub paired {
	my ($x) = @_;
	my @r = rows_of($x);
	my @p;
	for (my $h = 0; $h < @r; $h += $head) {
		push @p, $r[$h + $_], $r[$h + $_ + $head / 2] for 0 .. $head / 2 - 1;
	}
	return of_rows($x->[0], @p);
}

# Value heads of each key head no longer together.
sub tiled {
	my ($width, @r) = @_;
	my ($G, $per) = ($c->{linear_num_key_heads},
		$c->{linear_num_value_heads} / $c->{linear_num_key_heads});
	my @p;
	for my $j (0 .. $per - 1) {
		for my $g (0 .. $G - 1) {
			push @p, @r[($g * $per + $j) * $width .. ($g * $per + $j + 1) * $width - 1];
		}
	}
	return @p;
}

sub plus_one { my ($x) = @_; [$x->[0], [map { $_ + 1 } @{$x->[1]}]] }

sub turned {		# (E, a, b) to (E, b, a), or a matrix
	my ($x) = @_;
	my ($E, $a, $b) = @{$x->[0]} == 3 ? @{$x->[0]} : (1, @{$x->[0]});
	my @v;
	for my $e (0 .. $E - 1) {
		for my $j (0 .. $b - 1) {
			push @v, map { $x->[1][($e * $a + $_) * $b + $j] } 0 .. $a - 1;
		}
	}
	return [[@{$x->[0]} == 3 ? ($E, $b, $a) : ($b, $a)], \@v];
}

sub stacked {		# of tensors of single experts
	my ($format) = @_;
	my @x = map { get(sprintf $format, $_) } 0 .. $experts - 1;
	return undef if grep { !defined } @x;
	return [[$experts, @{$x[0][0]}], [map { @{$_->[1]} } @x]];
}

sub every_other {	# columns or rows 0, 2, .. (or 1, 3, ..) of the last dimension but `from`
	my ($x, $odd) = @_;
	my @shape = @{$x->[0]};
	my $w = $shape[-1];
	$shape[-1] /= 2;
	return [\@shape, [map { my $r = $_; map { $x->[1][$r * $w + 2 * $_ + $odd] } 0 .. $w / 2 - 1 }
		0 .. @{$x->[1]} / $w - 1]];
}

sub half {		# of the second of three dimensions
	my ($x, $which) = @_;
	my ($E, $a, $b) = @{$x->[0]};
	my $n = $a / 2 * $b;
	return [[$E, $a / 2, $b], [map { my $o = $_ * 2 * $n + $which * $n;
		@{$x->[1]}[$o .. $o + $n - 1] } 0 .. $E - 1]];
}

my $one = $delta ? \&plus_one : sub { $_[0] };
put('token_embd.weight', get('model.embed_tokens.weight'));
put('output_norm.weight', $one->(get('model.norm.weight')));
my $tied = get('lm_head.weight');
put('output.weight', $tied) if $tied && !$c->{tie_word_embeddings};
if ($opt{llama3}) {	# factor 8, low 1, high 4, of 256 positions
	my @f;
	for my $i (0 .. $head / 2 - 1) {
		my $wave = 2 * 3.14159265358979323846 * 10000 ** ($i / ($head / 2));
		my $s = (256 / $wave - 1) / 3;
		push @f, $wave > 256 ? 8 : $wave < 64 ? 1 : 1 / ((1 - $s) / 8 + $s);
	}
	$f[0] = 1.5 if $opt{spoil};
	put('rope_freqs.weight', [[scalar @f], \@f]);
}

sub delta_layer {
	my ($l, $from) = @_;
	my ($G, $H, $dk, $dv) = @$c{qw(linear_num_key_heads linear_num_value_heads
		linear_key_head_dim linear_value_head_dim)};
	my $tile = $arch eq 'qwen35moe';
	my $tile_if = sub { my ($w, @r) = @_; $tile ? tiled($w, @r) : @r };
	my $D = $c->{hidden_size};
	my $q = $G * $dk;
	my $vec = sub { my ($x) = @_; my @r = $tile_if->(1, map { [$_] } @{$x->[1]});
		[[$H], [map { @$_ } @r]] };

	my $log = get("$from.A_log");
	put("blk.$l.ssm_a", $vec->([[$H], [map { -exp $_ } @{$log->[1]}]]));
	put("blk.$l.ssm_dt.bias", $vec->(get("$from.dt_bias")));
	put("blk.$l.ssm_norm.weight", get("$from.norm.weight"));
	my @conv = rows_of(get("$from.conv1d.weight"));
	put("blk.$l.ssm_conv1d.weight", of_rows([scalar @conv, $c->{linear_conv_kernel_dim}],
		@conv[0 .. 2 * $q - 1], $tile_if->($dv, @conv[2 * $q .. $#conv])));
	my $mix = get("$from.out_proj.weight");
	my $t = turned($mix);
	put("blk.$l.ssm_out.weight", $tile ? turned(of_rows($t->[0], tiled($dv, rows_of($t))))
		: $mix);
	if ($tile) {
		my @r = rows_of(get("$from.in_proj_qkv.weight"));
		put("blk.$l.attn_qkv.weight", of_rows([scalar @r, $D], @r[0 .. 2 * $q - 1],
			tiled($dv, @r[2 * $q .. $#r])));
		@r = rows_of(get("$from.in_proj_z.weight"));
		put("blk.$l.attn_gate.weight", of_rows([scalar @r, $D], tiled($dv, @r)));
		put("blk.$l.ssm_beta.weight", of_rows([$H, $D],
			tiled(1, rows_of(get("$from.in_proj_b.weight")))));
		put("blk.$l.ssm_alpha.weight", of_rows([$H, $D],
			tiled(1, rows_of(get("$from.in_proj_a.weight")))));
		return;
	}
	put("blk.$l.ssm_ba.weight", get("$from.in_proj_ba.weight"));
	my $all = get("$from.in_proj_qkvz.weight");
	return put("blk.$l.ssm_in.weight", $all) if $opt{old};
	my @r = rows_of($all);
	my $v = $H / $G * $dv;
	my (@q, @k, @v, @z);
	for my $g (0 .. $G - 1) {
		push @q, splice @r, 0, $dk;
		push @k, splice @r, 0, $dk;
		push @v, splice @r, 0, $v;
		push @z, splice @r, 0, $v;
	}
	put("blk.$l.attn_qkv.weight", of_rows([@q + @k + @v, $D], @q, @k, @v));
	put("blk.$l.attn_gate.weight", of_rows([scalar @z, $D], @z));
}

sub experts {
	my ($l, $from) = @_;
	my ($gate, $up, $down);

	if (my $both = get("$from.gate_up_proj")) {
		$down = get("$from.down_proj");
		if ($arch eq 'gpt-oss') {	# (E, D, 2F), gate and up in turns
			($gate, $up) = (turned(every_other($both, 0)), turned(every_other($both, 1)));
			$down = turned($down);
			my $bias = get("$from.gate_up_proj_bias");
			put("blk.$l.ffn_gate_exps.bias", every_other($bias, 0));
			put("blk.$l.ffn_up_exps.bias", every_other($bias, 1));
			put("blk.$l.ffn_down_exps.bias", get("$from.down_proj_bias"));
		} else {
			($gate, $up) = (half($both, 0), half($both, 1));
		}
	} else {
		my @n = exists $t{"$from.0.w1.weight"} ? qw(w1 w3 w2) : qw(gate_proj up_proj down_proj);
		($gate, $up, $down) = map { stacked("$from.%d.$_.weight") } @n;
	}
	return if !$gate;
	if ($opt{fused}) {
		my ($E, $F, $D) = @{$gate->[0]};
		my $n = $F * $D;
		put("blk.$l.ffn_gate_up_exps.weight", [[$E, 2 * $F, $D], [map { my $o = $_ * $n;
			(@{$gate->[1]}[$o .. $o + $n - 1], @{$up->[1]}[$o .. $o + $n - 1]) }
			0 .. $E - 1]]);
	} else {
		put("blk.$l.ffn_gate_exps.weight", $gate);
		put("blk.$l.ffn_up_exps.weight", $up);
	}
	put("blk.$l.ffn_down_exps.weight", $down);
}

my $norm2 = $delta || $arch =~ /^(gpt-oss|glm4moe)$/ ? 'post_attention_norm' : 'ffn_norm';
my %plain = ('self_attn.v_proj.weight' => 'attn_v.weight',
	'self_attn.o_proj.weight' => 'attn_output.weight',
	'self_attn.q_proj.bias' => 'attn_q.bias', 'self_attn.k_proj.bias' => 'attn_k.bias',
	'self_attn.v_proj.bias' => 'attn_v.bias', 'self_attn.o_proj.bias' => 'attn_output.bias',
	'self_attn.q_a_proj.weight' => 'attn_q_a.weight',
	'self_attn.q_b_proj.weight' => 'attn_q_b.weight',
	'self_attn.q_a_layernorm.weight' => 'attn_q_a_norm.weight',
	'self_attn.kv_a_proj_with_mqa.weight' => 'attn_kv_a_mqa.weight',
	'self_attn.kv_a_layernorm.weight' => 'attn_kv_a_norm.weight',
	'self_attn.sinks' => 'attn_sinks.weight',
	'mlp.gate_proj.weight' => 'ffn_gate.weight', 'mlp.up_proj.weight' => 'ffn_up.weight',
	'mlp.down_proj.weight' => 'ffn_down.weight', 'mlp.gate.weight' => 'ffn_gate_inp.weight',
	'block_sparse_moe.gate.weight' => 'ffn_gate_inp.weight',
	'mlp.router.weight' => 'ffn_gate_inp.weight', 'mlp.router.bias' => 'ffn_gate_inp.bias',
	'mlp.gate.e_score_correction_bias' => 'exp_probs_b.bias',
	'mlp.shared_expert_gate.weight' => 'ffn_gate_inp_shexp.weight');
for my $s (qw(shared_expert shared_experts)) {
	$plain{"mlp.$s.${_}_proj.weight"} = "ffn_${_}_shexp.weight" for qw(gate up down);
}
for my $l (0 .. $layers - 1) {
	my $p = "model.layers.$l";

	put("blk.$l.attn_norm.weight", $one->(get("$p.input_layernorm.weight")));
	put("blk.$l.$norm2.weight", $one->(get("$p.post_attention_layernorm.weight")));
	for (qw(q k)) {
		my $x = get("$p.self_attn.${_}_proj.weight") or next;
		put("blk.$l.attn_$_.weight", $arch eq 'llama' ? paired($x) : $x);
		$x = get("$p.self_attn.${_}_norm.weight") or next;
		put("blk.$l.attn_${_}_norm.weight", $one->($x));
	}
	delta_layer($l, "$p.linear_attn") if $t{"$p.linear_attn.A_log"};
	if (my $kv = get("$p.self_attn.kv_b_proj.weight")) {
		if ($opt{kv_b}) {
			put("blk.$l.attn_kv_b.weight", $kv);
		} else {
			my ($H, $N, $V) = @$c{qw(num_attention_heads qk_nope_head_dim v_head_dim)};
			my @r = rows_of($kv);
			my (@k, @v);
			for (1 .. $H) {
				push @k, splice @r, 0, $N;
				push @v, splice @r, 0, $V;
			}
			my $C = $c->{kv_lora_rank};
			put("blk.$l.attn_k_b.weight", turned(of_rows([$H, $N, $C], @k)));
			put("blk.$l.attn_v_b.weight", of_rows([$H, $V, $C], @v));
		}
	}
	experts($l, "$p.mlp.experts") if $experts;
	experts($l, "$p.block_sparse_moe.experts") if $experts;
	for (sort keys %plain) {
		my $x = get("$p.$_") or next;
		$x->[0] = [$x->[0][1]] if @{$x->[0]} == 2 && $x->[0][0] == 1;
		put("blk.$l.$plain{$_}", $x);
	}
}
die "left over: ", join(' ', sort keys %t), "\n" if %t;

# ---- writing ----

sub half_bits {		# of a power of two between 2^-14 and 2^15, or 0
	my ($x) = @_;
	return 0 if $x == 0;
	my $e = int(log($x) / log(2) + ($x < 1 ? -0.5 : 0.5));
	return ($e + 15) << 10;
}

sub power { my ($x) = @_; my $p = 2 ** -14; $p *= 2 while $p < $x; $p }

sub data_of {
	my ($x) = @_;
	my ($shape, $v) = @$x;
	my $w = $shape->[-1];

	return (0, pack 'f<*', @$v) if @$shape < 2 || $w % 32 || !($opt{q8_0} || $opt{q4_0});
	my $most = $opt{q8_0} ? 127 : 7;
	my $bytes = '';
	for (my $i = 0; $i < @$v; $i += 32) {
		my @b = @$v[$i .. $i + 31];
		my ($m) = sort { $b <=> $a } map { abs } @b;
		my $d = power($m / $most);
		my @q = map { int($_ / $d + ($_ < 0 ? -0.5 : 0.5)) } @b;
		$bytes .= pack 'v', half_bits($d);
		$bytes .= $opt{q8_0} ? pack 'c*', @q
			: pack 'C*', map { $q[$_] + 8 | ($q[$_ + 16] + 8) << 4 } 0 .. 15;
	}
	return ($opt{q8_0} ? 8 : 2, $bytes);
}

sub write_file {
	my ($path, $kv, @list) = @_;
	my ($info, $data) = ('', '');

	for (@list) {
		my ($name, $x) = @$_;
		my ($type, $bytes) = data_of($x);
		$info .= str($name) . pack('V', scalar @{$x->[0]}) .
			pack('Q<*', reverse @{$x->[0]}) . pack('VQ<', $type, length $data);
		$data .= $bytes . "\0" x (-length($bytes) % 32);
	}
	my $head = 'GGUF' . pack('VQ<Q<', 3, scalar @list, scalar @$kv) . join('', @$kv) . $info;
	open my $f, '>:raw', $path or die "$path: $!\n";
	print $f $head . "\0" x (-length($head) % 32) . $data;
	close $f or die "$path: $!\n";
}

my $n = $opt{split} // 1;
if ($n == 1) {
	write_file($out, \@kv, @tensors);
	exit;
}
my $per = int((@tensors + $n - 1) / $n);
my $count = @tensors;
for my $i (0 .. $n - 1) {
	@kv = () if $i > 0;
	kv('split.no', 2, pack 'v', $i);
	kv('split.count', 2, pack 'v', $n);
	kv('split.tensors.count', 5, pack 'V', $count);
	write_file(sprintf('%s-%05d-of-%05d.gguf', $out, $i + 1, $n), \@kv,
		splice @tensors, 0, $per);
}

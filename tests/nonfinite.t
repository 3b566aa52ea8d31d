#!/bin/sh
# Weights that are no numbers, or become none in another type: refused with the tensor's name, and
# nothing is written.
. "$(dirname "$0")/lib.sh"
[ -x "$bld/chr-pack" ] || skip_all "the programs are not built"
world "$tmp/w"
cd "$tmp/w" || exit 1
chr-sft -q -m model -o adapter -n 1 -b 1 --seq 32 --lora-rank 2 \
	--lora-target '*_proj.weight' datasets/chat.jsonl > noise

# plant FILE TENSOR BYTES: its second element becomes that (printf's octal)
plant()
{
	at=$(chr-ls "$1" | sed -n 's/.*"name":"'"$2"'".*"offset":\([0-9]*\).*/\1/p')
	# shellcheck disable=SC2059
	printf "$3" | dd of="$1" bs=1 seek=$((at + 4)) conv=notrunc 2> "$tmp/noise"
}
# refuses NAME PATTERN COMMAND...: status 65, a message with the pattern, and no directory `out` nor
# one being written
refuses()
{
	name=$1 pattern=$2
	shift 2
	rm -rf out
	"$@" > noise 2> "$tmp/log"
	got=$?
	[ $got = 65 ] && grep -q "$pattern" "$tmp/log" && [ -z "$(ls -d out out.* 2> noise)" ]
	result "$name" $?
}
nan='\000\000\300\177' million='\000\044\164\111' infinite='\000\000\200\377'
expert=model.layers.1.mlp.experts.3.up_proj.weight dense=model.layers.0.self_attn.o_proj.weight
norm=model.norm.weight

for tensor in $expert $dense $norm; do
	for value in "$nan" "$infinite"; do
		rm -rf m && cp -r model m
		plant m/model.safetensors $tensor "$value"
		for how in "" "--dtype f32" "--dtype bf16" "--dtype f16" "--quant q8" "--quant q4" \
			"--quant q4a" \
			"--quant-dense q8" "--quant-for *=bf16"; do
			set -f
			# shellcheck disable=SC2086
			refuses "chr-pack $how, $tensor" "$tensor has a value that is not finite" \
				chr-pack -q -m m -o out $how manifest.json
			set +f
		done
		refuses "chr-merge, $tensor" "$tensor has a value that is not finite" chr-merge \
			-m m -o out --force adapter
	done
done
rm -rf m && cp -r packed m
plant m/model.safetensors $dense "$nan"
refuses "chr-pack --unpack" "$dense" chr-pack -q --unpack -m m -o out
rm -rf m && cp -r model m
plant m/model.safetensors $dense "$million"
refuses "chr-merge to f16" "$dense has a value that is too large for F16" chr-merge -m m -o out \
	--dtype f16 --force adapter
ok "to bf16 it goes" chr-merge -m m -o bf16 --dtype bf16 --force adapter
refuses "chr-pack --quant-for q4" "$dense has values up to 1e+06, too large for Q4, whose scales" \
	chr-pack -q -m m -o out --quant-for "$dense=q4" manifest.json
refuses "chr-pack --quant-dense q4a" "$dense has values up to 1e+06, too large for Q4A" \
	chr-pack -q -m m -o out --quant-dense q4a manifest.json
refuses "chr-pack --quant-for f16" "$dense has values up to 1e+06, too large for F16" \
	chr-pack -q -m m -o out --quant-for "$dense=f16" manifest.json
ok "chr-pack --quant-for q8 takes it" chr-pack -q -m m -o q8 --quant-for "$dense=q8" manifest.json
plant m/model.safetensors $expert "$million"
refuses "chr-pack --quant q4, an expert" "$expert has values up to 1e+06" chr-pack -q -m m -o out \
	--quant q4 manifest.json
part=$(chr-ls adapter/adapter_model.safetensors |
	sed -n 's/.*"name":"\([^"]*lora_B.weight\)".*/\1/p' | head -1)
cp -r adapter a
plant a/adapter_model.safetensors "$part" "$nan"
refuses "chr-merge, NaN in the adapter" "$part: has a value that is not finite" chr-merge -m model \
	-o out a
rm -rf a && cp -r adapter a
mv a/adapter_model.safetensors a/adapter_model.bin
status "an adapter that is a pickle" 66 chr-merge -m model -o out a
for alpha in 0 0.0 null false true '"8"' '[8]' '{}' 1e999; do
	for key in lora_alpha r; do		# neither may be 0, or be taken for it
		rm -rf a && cp -r adapter a
		sed 's/"'$key'": *[0-9.]*/"'$key'": '"$alpha/" adapter/adapter_config.json \
			> a/adapter_config.json
		refuses "$key $alpha" "a/adapter_" chr-merge -m model -o out a
	done
done
rm -rf a && cp -r adapter a
sed 's/"lora_alpha": *[0-9.]*,//' adapter/adapter_config.json > a/adapter_config.json
refuses "no lora_alpha" 'missing "lora_alpha"' chr-merge -m model -o out a
sed 's/"lora_alpha": *[0-9.]*/"lora_alpha": 1e300/' adapter/adapter_config.json \
	> a/adapter_config.json
refuses "lora_alpha 1e300" "is not finite with this adapter" chr-merge -m model -o out a
sed 's/"init_lora_weights": *true/"init_lora_weights": "pissa_niter_16"/' \
	adapter/adapter_config.json > a/adapter_config.json
refuses "PiSSA" 'init_lora_weights" is "pissa_niter_16"' chr-merge -m model -o out a
ok "the adapter as it was" chr-merge -m model -o good adapter

# A matrix of which little is left is named with its number.
rm -rf m && cp -r model m
at=$(chr-ls m/model.safetensors | sed -n 's/.*"name":"'$dense'".*"offset":\([0-9]*\).*/\1/p')
bytes=$(chr-ls m/model.safetensors | sed -n 's/.*"name":"'$dense'".*"bytes":\([0-9]*\).*/\1/p')
perl -e 'print pack("f<", 1e-9 * (1 + $_ % 7)) for 1 .. $ARGV[0] / 4' "$bytes" |
	dd of=m/model.safetensors bs=1 seek="$at" conv=notrunc 2> "$tmp/noise"
for type in q8 q4 f16; do
	rm -rf out
	chr-pack -q -m m -o out --quant-for "$dense=$type" manifest.json > noise 2> said
	is "$type of values that are too small" \
		"$(grep -c "$dense keeps little of itself .* relative error 1 " said)" 1
done
chr-pack -q -m model -o quiet --quant q4 --quant-dense q4 manifest.json > noise 2> said
is "no word of ordinary rounding" "$(cat said)" ""
done_testing

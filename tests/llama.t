#!/bin/sh
# chr-convert --to gguf: llama.cpp and ik_llama.cpp compute what we do, make the same tokens of a text,
# and the gguf package reads the same values. Skipped where their Python packages are not
# (make check-hf has them).
. "$(dirname "$0")/lib.sh"
py=${PYTHON:-python3}
ask() { "$py" "$top/tests/llama.py" "$@" 2> "$tmp/err"; }
engines=
missing=
for engine in llama ik; do
	if ask has $engine; then engines="$engines $engine"; else missing="$missing $engine"; fi
done
ask has gguf && [ "$engines" ] ||
	skip_all "no gguf package, or neither llama-cpp-python nor ik-llama-cpp-python here"
for engine in $missing; do
	skip "$engine" "its Python package is not here"
done
families=$(cd "$shared/golden/families" 2> /dev/null && pwd)
cp -r datasets "$tmp" && cd "$tmp" || exit 1

doc_tokens 48 > doc.jsonl
cut -d , -f 1-12 doc.jsonl | sed 's/$/]}/' > start.jsonl
chr-tokenize -q --train -v 320 -o tokenizer.json datasets/pretrain.jsonl
# What differs between tokenizers, if anything does
cat > stress.txt <<'END'
Hello, world!  I'll don't WE'VE they'd
12345 1,234.56  0x1F 3e-9
   leading and trailing   
naïve café ÅÄÖ ß ﬁ e\u0301 é x̂
你好，世界。こんにちは 안녕하세요
Привет, мир! Ёлки-палки مرحبا שלום
😀👩‍👩‍👧‍👦🇫🇷 ❤️
f(x) = x**2 + y_1; // comment -- ok?!?! '''"""```~~~@@@###$$$
ⅣⅤ ½ ² ٣٤٥ १२३ ΑΒΓ ∑∏∫√∞ ≤≥≠
CamelCaseWord snake_case_word kebab-case http://example.org/a?b=c&d=%20e#f
a   b      c d e　f
<|im_start|>user<|im_end|>
END
sed 's/\\/\\\\/g; s/"/\\"/g; s/^/{"text":"/; s/$/"}/' stress.txt > stress.jsonl

say()		# NAME: what llama.py said, as tests
{
	grep '^ok \|^BAD ' said > answers	# and what these libraries say on standard output
	[ -s answers ] || { cp err log; result "$1: an answer" 1; }
	while read -r word rest; do
		cp said log
		[ "$word" = ok ]
		result "$1: $rest" $?
	done < answers
}
tokens()	# NAME ENGINE FILE MODEL
{
	chr-tokenize -q -t "$4" stress.jsonl > ids.jsonl
	ask tokens "$2" "$3" stress.txt ids.jsonl > said
	say "$1"
}
# both NAME MODEL: its text at F32 from each engine that knows it
both()
{
	chr-convert -q --to gguf --dtype f32 -o m.gguf --force "$2" > rec 2> err || cat err
	chr-score -q -m "$2" --dump m.st doc.jsonl > rec 2> err
	chr-generate -q -m "$2" --temperature 0 -n 40 start.jsonl > greedy.jsonl 2> err
	for engine in $engines; do
		case $engine:$1 in	# what 0.1.5 of ik-llama-cpp-python does not compute
		ik:olmoe)	why="has no such architecture" ;;
		ik:deepseek* | ik:glm4_moe_lite)
				why="takes latents of DeepSeek's own sizes only" ;;
		ik:llama3)	why="passes over frequencies of this form" ;;
		ik:mixtral)	why="computes another model" ;;
		*)		why= ;;
		esac
		if [ "$why" ]; then
			skip "$1 in $engine" "it $why"
			continue
		fi
		ask greedy "$engine" m.gguf m.st doc.jsonl start.jsonl greedy.jsonl > said
		say "$1 in $engine"
	done
}

endless()	# DIR: so that all 40 tokens come
{
	sed -i 's/"eos_token_id": *[-0-9]*/"eos_token_id": 319/' "$1/config.json"
	sed -i 's/<|im_end|>/<|im_over|>/g' "$1/tokenizer.json"
	echo '{"bos_token": "<|im_start|>", "eos_token": null}' > "$1/tokenizer_config.json"
}

# A model of ours, and its blocks
cat > config.json <<'END'
{"chronos_format": 2, "vocab_size": 320, "hidden_size": 64, "num_hidden_layers": 3,
"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "moe_intermediate_size": 64,
"num_experts": 8, "num_experts_per_tok": 2, "num_shared_experts": 0,
"use_hybrid_attention": false, "max_position_embeddings": 1024, "lookahead_steps": 1}
END
chr-pretrain -q -c config.json -t tokenizer.json -n 60 -b 4 --seq 128 -l 3e-3 --warmup 5 -o ours \
	datasets/pretrain.jsonl > log.jsonl
endless ours
both ours ours
for engine in $engines; do
	tokens "tokens of ours in $engine" "$engine" m.gguf ours
done
for t in q8_0=0.01 q4_1=0.1 q4_0=0.1; do
	chr-convert -q --to gguf --dtype "${t%=*}" -o b.gguf --force ours > rec 2> err
	for engine in $engines; do
		ask kl "$engine" b.gguf m.st doc.jsonl "${t#*=}" > said
		say "${t%=*} in $engine"
	done
	chr-convert -q -o back --force b.gguf > rec
	chr-convert -q --to gguf -o f.gguf --force back > rec 2> err
	ask same b.gguf f.gguf > said
	say "${t%=*}, read by the gguf package"
done

[ "$families" ] || { skip "published families" "no shared/golden/families"; done_testing; exit; }
for f in llama mixtral qwen2 qwen3 qwen2_moe qwen3_moe deepseek_v2 deepseek_v3 glm4_moe \
	glm4_moe_lite gpt_oss qwen3_next qwen3_5_moe_text; do
	rm -rf f && cp -r "$families/$f" f && chmod -R u+w f && cp tokenizer.json f
	sed -i 's/"truncate": false/"truncate": true/' f/config.json	# llama.cpp rounds
	endless f
	both $f f
done
# Positions that are stretched
stretched()	# NAME FAMILY PARAMETERS
{
	rm -rf f && cp -r "$families/$2" f && chmod -R u+w f && cp tokenizer.json f
	awk -v new="\"rope_parameters\":{$3}," '/"rope_parameters"/ { print new; on = 1 }
		!on { print } on && /}/ { on = 0 }' "$families/$2/config.json" > f/config.json
	endless f
	both "$1" f
}
stretched llama3 llama '"rope_type":"llama3","rope_theta":10000,"factor":8,"low_freq_factor":1,
	"high_freq_factor":4,"original_max_position_embeddings":64'
stretched linear qwen3_moe '"rope_type":"linear","rope_theta":10000,"factor":4'
stretched yarn qwen3 '"rope_type":"yarn","rope_theta":10000,"factor":4,
	"original_max_position_embeddings":64'
stretched deepseek_yarn deepseek_v3 '"rope_type":"yarn","rope_theta":10000,"factor":4,
	"original_max_position_embeddings":64,"mscale":0.707,"mscale_all_dim":0.707'
# A latent of DeepSeek's own sizes
cat > config.json <<'END'
{"model_type": "deepseek_v3", "vocab_size": 320, "hidden_size": 64, "intermediate_size": 96,
"moe_intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
"num_key_value_heads": 4, "n_routed_experts": 8, "num_experts_per_tok": 2, "n_shared_experts": 1,
"first_k_dense_replace": 1, "n_group": 1, "topk_group": 1, "routed_scaling_factor": 1.0,
"norm_topk_prob": true, "q_lora_rank": 32, "kv_lora_rank": 512, "qk_nope_head_dim": 128,
"qk_rope_head_dim": 64, "v_head_dim": 128, "max_position_embeddings": 512, "rms_norm_eps": 1e-6,
"rope_theta": 10000, "tie_word_embeddings": false, "bos_token_id": 1, "eos_token_id": 2}
END
chr-pretrain -q -c config.json -o own -n 30 -b 2 --seq 48 -l 5e-3 --warmup 1 -t tokenizer.json \
	datasets/pretrain.jsonl > log.jsonl
endless own
both own_sizes own
sed 's/"num_key_value_heads": 2/"num_key_value_heads": 4/' "$families/olmoe/config.json" > olmoe.json
chr-pretrain -q -c olmoe.json -o olmoe -n 3 -b 2 --seq 48 -l 3e-3 --warmup 1 doc.jsonl > log.jsonl
cp tokenizer.json olmoe
endless olmoe
both olmoe olmoe
done_testing

#!/bin/sh
# chr-foresee: from texts to heads in the model directory, which the programs that stream experts
# use; packed models keep them; what is not of the model is refused. The oracle, from a log of the
# same run.
. "$(dirname "$0")/lib.sh"
families=$shared/golden/families
[ ! -d "$families" ] || families=$(cd "$families" && pwd)
mkdir "$tmp/w" && cd "$tmp/w" || exit 1
ln -s "$top/datasets" datasets
# Experts of 192 KiB, so that a limit in MiB leaves room for some of them; a router that nothing
# trained to be foreseen.
cat > config.json <<-END
	{"chronos_format": 2, "vocab_size": 320, "hidden_size": 32, "num_hidden_layers": 4,
	"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
	"moe_intermediate_size": 512, "num_experts": 8, "num_experts_per_tok": 2,
	"num_shared_experts": 1, "kv_latent_dim": 16, "rope_dim": 4, "sliding_window_size": 32,
	"max_position_embeddings": 1024, "lookahead_steps": 0}
END
head -5 datasets/pretrain.jsonl > in.jsonl
{
	chr-tokenize -q --train -v 320 -o tokenizer.json datasets/pretrain.jsonl &&
	chr-pretrain -q -c config.json --set lambda_temporal=0 --set lambda_router_locality=0 \
		-t tokenizer.json -n 20 -b 4 --seq 64 -o model datasets/pretrain.jsonl &&
	chr-actlog -q -m model in.jsonl > act.jsonl && chr-cluster -q act.jsonl > manifest.json
} > noise || exit 1

# field RECORD KEY [IN]: of the record that matches, the number under the key, within IN's object
field()
{
	grep "$1" log | head -1 |
		sed -n "s/.*\"${3:+$3\":{[^\}]*\"}$2\":\([-0-9.e+]*\).*/\1/p"
}
more() { awk -v a="$1" -v b="$2" 'BEGIN { exit !(a != "" && b != "" && a + 0 > b + 0) }'; }
# says NAME STATUS TEXT COMMAND...: it ends with that status and one line that has the text
says()
{
	name=$1 want=$2 text=$3
	shift 3
	status "$name" "$want" sh -c '"$@" > out 2> err; got=$?; cat err; exit $got' sh "$@"
	ok "... it says so" grep -q -e "$text" err
	is "... in one line" "$(wc -l < err)" 1
}
fit() { chr-foresee -q -n 3k --width 16 --epochs 4 -j 1 "$@" datasets/pretrain.jsonl; }

# The records
ok "trained" sh -c 'chr-foresee -q -m model -n 3k --width 16 --epochs 4 -j 1 \
	datasets/pretrain.jsonl > log'
is "a step for each layer, a record for each of its horizons and itself" \
	"$(for i in step recall eval; do grep -c "\"type\":\"$i\"" log; done | paste -s -d' ')" \
	"4 20 9"
is "its own router is always right" \
	"$(grep '"horizon":0' log | grep -v '"control":1.0,"control_whole":1.0')" ""
is "... of each layer and of all" "$(grep -c '"control"' log)" 5
share() { grep "$1" log | sed -n "s/.*\"$2\":\([0-9.]*\).*/\1/p"; }
within='"eval".*"horizon":2,"next_token":false'
ok "two layers on it names more than the router ahead of time" \
	more "$(share "$within" foresee)" "$(share "$within" gate)"
ok "... and more than the token before" \
	more "$(share "$within" foresee)" "$(share "$within" previous)"
is "of the next token routers cannot be asked" \
	"$(grep '"next_token":true' log | grep -c '"gate"')" 0
ok "the heads are there" grep -q '"next_token":true,.*"foresee":' log
is "no file is left of the activations" "$(find model -name '.*')" ""

# The file
is "ancestry" "$(chr-ls model/foresee.safetensors | grep '"type":"ancestry"' |
	grep -o '"program":"[a-z-]*"' | paste -s -d' ')" \
	'"program":"chr-pretrain" "program":"chr-foresee"'
ok "nothing else changed in the model" chr-ls -q --check model
# Tensors alone: the command line is in the metadata.
values() { tail -c 19456 "$1" > "$2"; }
values model/foresee.safetensors a
fit -m model -j 2 > again
values model/foresee.safetensors b
ok "the same seed gives the same bytes, with two threads" cmp a b
ok "and the same records" sh -c \
	'for i in log again; do sed "s/,\"mem_bytes.*//" $i > $i.cut; done; cmp log.cut again.cut'
fit -m model -s 1 > noise
values model/foresee.safetensors b
ok "another seed does not" sh -c '! cmp -s a b'

# Packed
ok "packed, it comes along" sh -c 'chr-pack -q -m model -o packed manifest.json > noise &&
	cmp model/foresee.safetensors packed/foresee.safetensors'
ok "and unpacked" sh -c 'chr-pack -q --unpack -m packed -o back > noise &&
	cmp model/foresee.safetensors back/foresee.safetensors'
# room_of COMMAND...: a limit a little above the least that it takes
room_of()
{
	least=$("$@" --ram 1M 2>&1 > noise | sed -n 's/.*use --ram \([0-9]*\)M.*/\1/p')
	echo $((least + 1))M
}
ok "a packed model is trained within a limit" fit -m packed --ram "$(room_of fit -m packed)"
values packed/foresee.safetensors b
ok "... the same" cmp a b
room=$(room_of chr-generate -q -m packed --context 64 --chunk 32 -j 1 datasets/openings.jsonl)

# Generation
say()	# FILE OPTIONS...
{
	file=$1
	shift
	chr-generate -q -n 16 --context 64 --chunk 32 -j 1 --stats "$file.stats" \
		"$@" > "$file.raw" &&
		sed 's/,"timing":{.*//' "$file.raw" > "$file"
}
summary() { tail -n 1 "$1.stats" | sed -n "s/.*\"$2\":\([0-9.e+-]*\).*/\1/p"; }
say resident -m model datasets/openings.jsonl
say none -m packed --ram "$room" --predict none datasets/openings.jsonl
ok "generating by the heads" say by -m packed --ram "$room" --predict foresee --waste 0.5 \
	datasets/openings.jsonl
ok "... says the same as without" cmp none by
ok "... and as with all in memory" cmp resident by
ok "... by what they said" grep -q '"recall":{"foresee":0\.[1-9]' by.stats
ok "... of which some was read" more "$(summary by predicted_used)" 0
rm packed/foresee.safetensors
say without -m packed --ram "$room" --predict foresee datasets/openings.jsonl
is "without the file nothing is foreseen" "$(grep -c '"foresee":' without.stats)" 0
cp model/foresee.safetensors packed

# What is not of the model
chr-pretrain -q -c config.json -t tokenizer.json -n 1 -b 1 --seq 32 -o other in.jsonl > noise
cp model/foresee.safetensors other
chr-actlog -q -m other in.jsonl | chr-cluster -q > other.json
rm other/foresee.safetensors
chr-pack -q -m other -o strange other.json > noise
cp model/foresee.safetensors strange
says "the heads of another model" 65 'of another model' \
	chr-generate -q -n 2 -m strange --context 64 --chunk 32 -j 1 --ram "$room" in.jsonl
d='"dense"'
sed "s/\"num_experts\": 8/\"mlp_layer_types\": [$d, $d, $d, $d], &/" config.json > dense.json
chr-pretrain -q -c dense.json -t tokenizer.json -n 1 -b 1 --seq 32 -o dense in.jsonl > noise
says "a model without experts" 65 'no layer has experts' chr-foresee -q -m dense in.jsonl
status "a file that is not there" 66 chr-foresee -q -m model nowhere.jsonl
says "nothing to learn from" 65 'nothing to learn from' sh -c \
	'echo "{\"tokens\":[3]}" | chr-foresee -q -m model'
status "a directory for activations that is not there" 73 \
	chr-foresee -q -m model --spool nowhere in.jsonl
ok "--dry-run" sh -c 'chr-foresee -q -m model --dry-run > plan 2>&1'
ok "... prints the plan" grep -q '"type":"mem_plan","total":' plan

# Nothing is written when it stops early
cp model/foresee.safetensors before
mkfifo texts
(
	chr-foresee -q -m model --epochs 1000000 texts > log2 2> err2 &
	pid=$!
	cat in.jsonl > texts		# until it reads them
	sleep 1
	kill -TERM $pid
	wait $pid
	echo $? > status2
)
is "a signal stops it" "$(cat status2)" 75
ok "and nothing was written" cmp before model/foresee.safetensors
ls -A model > names
says "no room for activations" 74 'model: no room for [0-9]* bytes of activations' \
	sh -c "trap '' XFSZ; ulimit -f 20
	exec chr-foresee -q -m model -n 3k in.jsonl"
status "no room for the heads" 74 sh -c "trap '' XFSZ; ulimit -f 128
	exec chr-foresee -q -m model --width 128 --seq 32 -n 64 in.jsonl"
ok "nothing was written" cmp before model/foresee.safetensors
is "and nothing left" "$(ls -A model)" "$(cat names)"

# The oracle
head -3 datasets/openings.jsonl > prompts.jsonl
chr-actlog -q -m packed --generate 16 prompts.jsonl > run.act
say plain -m packed --ram "$room" --predict none prompts.jsonl
ok "generating by a log of the same run" say known -m packed --ram "$room" --predict oracle \
	--waste 0.5 --oracle run.act prompts.jsonl
ok "... says the same" cmp plain known
ok "... with fewer misses" more "$(summary plain misses)" "$(summary known misses)"
oracle="chr-generate -q -n 16 --context 64 --chunk 32 -j 1 -m packed --ram $room"
tail -3 datasets/openings.jsonl > others.jsonl
says "other prompts" 65 'no sequence in the log begins with this prompt' \
	$oracle --predict oracle --oracle run.act others.jsonl
says "another temperature" 65 'the log is of another run' \
	$oracle --predict oracle --oracle run.act --temperature 2 prompts.jsonl
status "a log that nobody asks" 64 $oracle --oracle run.act prompts.jsonl
status "nobody's log" 64 $oracle --predict oracle prompts.jsonl
status "a log that is not there" 66 $oracle --predict oracle --oracle nowhere prompts.jsonl
status "a log without tokens" 65 sh -c 'sed "s/\"token\":[0-9]*,//" run.act > no.act
	exec "$@"' sh chr-generate -q -m packed --predict oracle --oracle no.act prompts.jsonl

# Published routers: of sigmoids, in groups with a bias for the choice; with a bias of the logits.
awk 'BEGIN {
	for (i = 0; i < 12; i++) {
		s = ""
		for (j = 0; j < 40; j++)
			s = s (j ? "," : "") 3 + (i * 37 + j * j * 11) % 300
		print "{\"tokens\":[" s "]}"
	}
}' > tokens.jsonl
for i in deepseek_v3 gpt_oss; do
	if [ ! -d "$families/$i" ]; then
		skip "$i" "no $families"
		continue
	fi
	cp -r "$families/$i" . && chmod -R u+w $i
	ok "$i" sh -c 'chr-foresee -q -m $1 --holdout 0.25 --width 8 --epochs 1 \
		tokens.jsonl > log' sh $i
	ok "... its own router is always right" grep \
		-q '"eval".*"horizon":0.*"control":1.0,"control_whole":1.0' log
done
if chr-convert -q --to gguf -o model.gguf gpt_oss > noise 2>&1; then
	says "a GGUF file" 64 'model.gguf: a GGUF file has no place for heads' \
		chr-foresee -q -m model.gguf tokens.jsonl
else
	skip "a GGUF file" "none could be made"
fi
done_testing

# Values of a safetensors file, changed in place. Sourced by tests.
# shellcheck shell=sh disable=SC2059
# where FILE TENSOR: its first byte
where()
{
	head=$(od -An -tu8 -N8 "$1" | tr -d ' ')
	at=$(head -c $((8 + head)) "$1" | tail -c "$head" | tr '{' '\n' | sed -n "/\"$2\"/{n;s/.*offsets\":\[\([0-9]*\),.*/\1/p;}")
	echo $((8 + head + at))
}
# poke FILE TENSOR OCTAL [VALUE]: four bytes of that value of the tensor, from 0
poke()
{
	printf "$3" | dd of="$1" bs=1 seek="$(($(where "$1" "$2") + 4 * ${4:-0}))" conv=notrunc 2> /dev/null
}

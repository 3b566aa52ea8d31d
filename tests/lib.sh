# TAP from shell. A test starts with
#	. "$(dirname "$0")/lib.sh"
# which goes to the top of the tree, puts the programs of $BUILD first in PATH and makes $tmp, removed at the end;
# and it ends with done_testing.
# shellcheck shell=sh disable=SC2034
cd "$(dirname "$0")/.." || exit 1
top=$PWD
bld=$(cd "${BUILD:-build}" && pwd) || exit 1
PATH=$bld:$PATH
shared=${CHR_SHARED:-../shared}
tmp=$(mktemp -d) || exit 1
trap 'rm -rf "$tmp"' EXIT
trap 'exit 1' HUP INT TERM
tap_n=0
tap_failed=0

# result NAME 0|1: one line; what the command printed ($tmp/log) follows a failure
result()
{
	tap_n=$((tap_n + 1))
	if [ "$2" = 0 ]; then
		echo "ok $tap_n - $1"
	else
		echo "not ok $tap_n - $1"
		tap_failed=1
		head -20 "$tmp/log" 2> /dev/null | cut -c 1-300 | sed 's/^/# /'
	fi
}

# ok NAME COMMAND...: passes when the command does
ok()
{
	tap_name=$1
	shift
	if "$@" > "$tmp/log" 2>&1; then result "$tap_name" 0; else result "$tap_name" 1; fi
}

# status NAME WANT COMMAND...: passes when the command exits with status WANT
status()
{
	tap_name=$1
	tap_want=$2
	shift 2
	"$@" > "$tmp/log" 2>&1
	tap_got=$?
	[ "$tap_got" = "$tap_want" ] || echo "status $tap_got, want $tap_want: $*" >> "$tmp/log"
	result "$tap_name" $((tap_got != tap_want))
}

# is NAME GOT WANT: passes when the strings are equal
is()
{
	printf 'got:  %s\nwant: %s\n' "$2" "$3" > "$tmp/log"
	if [ "$2" = "$3" ]; then result "$1" 0; else result "$1" 1; fi
}

# skip NAME WHY: a test that cannot run here
skip()
{
	tap_n=$((tap_n + 1))
	echo "ok $tap_n - $1 # SKIP $2"
}

# skip_all WHY: nothing in this file can run here
skip_all()
{
	echo "1..0 # SKIP $1"
	exit 0
}

done_testing()
{
	echo "1..$tap_n"
	exit $tap_failed
}

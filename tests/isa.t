#!/bin/sh
# The same tests under every instruction set of this machine: CHR_ISA forces a path.
. "$(dirname "$0")/lib.sh"
for isa in portable avx2 avx512; do
	export CHR_ISA=$isa
	if [ $isa != portable ] && ! grep -q "$isa" /proc/cpuinfo; then
		skip "$isa" "not on this machine"
		continue
	fi
	for t in model golden decode rng; do
		ok "$t with $isa" "$bld/tests/$t"
	done
done
done_testing

#!/bin/sh
# Finds the libraries and prints make variables. With FILE (config.mk) it writes them there, and
# only when what it finds is not what it found when FILE was written; so make asks at each start,
# and a library that was installed or removed meanwhile is noticed. Edit config.mk to overrule: an
# edited file stays as it is until something else is found (then it is kept as config.mk.old), and
# for good without its first line.
#
#	scripts/probe.sh [FILE]
set -eu

probe()
{
	need="zlib jansson libpcre2-8 libutf8proc"
	features=
	for p in $need; do
		v=$(pkg-config --modversion "$p") ||
			{ echo "probe: $p not found by pkg-config (see INSTALL)" >&2; return 1; }
		features="$features${features:+, }$p $v"
	done
	uring=
	if pkg-config --exists liburing; then
		need="$need liburing"
		features="$features, liburing $(pkg-config --modversion liburing)"
		uring=-DHAVE_URING
	fi
	mpi=
	for p in ompi-c mpi-c mpich; do
		[ -n "$mpi" ] || ! pkg-config --exists $p || mpi=$p
	done
	[ -z "$mpi" ] || features="$features, $mpi $(pkg-config --modversion "$mpi")"
	# shellcheck disable=SC2086
	cat <<-END
		DEP_CFLAGS := $uring${uring:+ }$(pkg-config --cflags $need)
		DEP_LIBS := $(pkg-config --libs $need)
		FEATURES := $features
	END
	if pkg-config --exists openblas; then
		echo "OPENBLAS_CFLAGS := -DHAVE_OPENBLAS $(pkg-config --cflags openblas)"
		echo "OPENBLAS_LIBS := $(pkg-config --libs openblas)"
	fi
	if [ -n "$mpi" ]; then
		echo "MPI_CFLAGS := -DHAVE_MPI $(pkg-config --cflags "$mpi")"
		echo "MPI_LIBS := -Wl,--as-needed $(pkg-config --libs "$mpi") -Wl,--no-as-needed"
	fi
}
sum() { cksum | tr ' ' -; }

[ $# -gt 0 ] || { probe; exit; }
file=$1
mark="# Written by scripts/probe.sh from what was found:"
if [ -e "$file" ]; then
	was=$(sed -n "1s|^$mark ||p" "$file")
	[ -n "$was" ] || exit 0
	found=$(probe) || { echo "probe: $file stays as it is" >&2; exit 0; }
	now=$(echo "$found" | sum)
	[ "$was" != "$now" ] || exit 0
	echo "probe: other libraries than before, $file is written again" >&2
	if [ "$(sed 1d "$file" | sum)" != "$was" ]; then
		cp "$file" "$file.old"
		echo "probe: what was edited in it is in $file.old" >&2
	fi
else
	found=$(probe) || exit 1
	now=$(echo "$found" | sum)
fi
{ echo "$mark $now"; echo "$found"; } > "$file.tmp"
mv "$file.tmp" "$file"

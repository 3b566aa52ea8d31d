#!/bin/sh
# Finds the libraries and prints make variables (config.mk). Edit config.mk to overrule.
set -eu
need="zlib jansson libpcre2-8 libutf8proc"
features=
for p in $need; do
	v=$(pkg-config --modversion "$p") || { echo "probe: $p not found by pkg-config (see INSTALL)" >&2; exit 1; }
	features="$features${features:+, }$p $v"
done
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
cat <<END
DEP_CFLAGS := ${uring:-}${uring:+ }$(pkg-config --cflags $need)
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

#!/bin/sh
# Finds the libraries and prints make variables (config.mk). Edit config.mk to overrule.
set -eu
need="zlib jansson libpcre2-8"
for p in $need; do
	pkg-config --exists "$p" || { echo "probe: $p not found by pkg-config (see INSTALL)" >&2; exit 1; }
done
echo "DEP_CFLAGS := $(pkg-config --cflags $need)"
echo "DEP_LIBS := $(pkg-config --libs $need)"
echo "FEATURES := $(for p in $need; do echo "$p $(pkg-config --modversion "$p"),"; done | tr '\n' ' ' | sed 's/, $//')"

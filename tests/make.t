#!/bin/sh
# What make is told of the machine follows the machine, and a run of tests ends with what was
# skipped.
. "$(dirname "$0")/lib.sh"

# A pkg-config that knows the packages that are named in the file "there".
mkdir "$tmp/bin"
cat > "$tmp/bin/pkg-config" <<'END'
#!/bin/sh
for last; do :; done
case $1 in
--exists) grep -qx "$last" "$THERE" ;;
--modversion) grep -qx "$last" "$THERE" && echo 1.0 ;;
--libs) shift; printf -- '-l%s ' "$@" ;;
esac
END
chmod +x "$tmp/bin/pkg-config"
export THERE="$tmp/there"
cfg=$tmp/config.mk
mpis() { grep -c 'HAVE_MPI' "$cfg"; }
probe() { PATH=$tmp/bin:$PATH sh scripts/probe.sh "$cfg" 2>> "$tmp/said"; }
sed -n 's|^.need="\(zlib.*\)"|\1|p' scripts/probe.sh | tr ' ' '\n' > "$THERE"

ok "config.mk is written" probe
is "without MPI" "$(mpis)" 0
touch -d '2001-01-01' "$cfg"
ok "asked again" probe
is "and left alone while nothing else is found" "$(find "$cfg" -newermt 2002-01-01)" ""
echo ompi-c >> "$THERE"
ok "MPI is installed" probe
is "and is in it at the next start" "$(mpis)" 1
is "said once" "$(grep -c 'other libraries than before' "$tmp/said")" 1
echo 'MPI_LIBS := -lmine' >> "$cfg"
ok "an edited file" probe
ok "stays while nothing else is found" grep -q lmine "$cfg"
sed -i /ompi-c/d "$THERE"
ok "MPI is removed" probe
is "and gone from it" "$(mpis)" 0
ok "and what was edited is kept" grep -q lmine "$cfg.old"
echo 'DEP_LIBS := -lz' > "$cfg"
ok "a file without the first line" probe
is "is somebody's own" "$(cat "$cfg")" 'DEP_LIBS := -lz'
ok "the Makefile asks at each start" grep -qx 'config.mk: FORCE' Makefile

cat > "$tmp/a.t" <<'END'
echo 1..3; echo "ok 1"; echo "ok 2 - x # SKIP no torch here"; echo "ok 3 # SKIP no torch here"
END
echo 'echo "1..0 # SKIP no Slurm here"' > "$tmp/b.t"
printf 'echo 1..2; echo "ok 1 # skip no torch here"; echo "ok 2 # SKIP"\n' > "$tmp/c.t"
printf 'echo 1..1; echo "ok 1"\n' > "$tmp/d.t"
printf 'echo 1..1; echo "not ok 1"\n' > "$tmp/e.t"
skips() { (cd "$tmp" && PERL5LIB=$top/tests prove --formatter Skips -e sh "$@" 2>&1 | tail -n 2); }
is "skipped tests are counted, each with its reason and files" "$(skips a.t b.t c.t d.t)" \
	"Result: PASS
skipped: 4 tests and 1 whole file, not tested here: no Slurm here (b.t);\
 no reason given (1 test of c.t); no torch here (3 tests of a.t c.t)"
is "nothing skipped" "$(skips d.t)" "Result: PASS
skipped: nothing"
is "nothing but skips is no pass" "$(skips b.t)" "Result: NOTESTS
skipped: 1 whole file, not tested here: no Slurm here (b.t)"
is "a failure is one" "$(skips a.t e.t | sed 's/skipped: 2.*/2/')" "Result: FAIL
2"
ok "make check prints it" grep -q '^PROVE := .*--formatter Skips' Makefile
done_testing

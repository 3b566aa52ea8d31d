/* err, opt, file, mem, sig: what every program leans on. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/err.h"
#include "base/file.h"
#include "base/json.h"
#include "base/mem.h"
#include "base/opt.h"
#include "base/plain.h"
#include "base/sig.h"
#include "base/sniff.h"
#include "tap.h"

static char dir[] = "/tmp/chr-base-XXXXXX";

/* --- numbers --- */

static void number(int (*parse)(const char *, int64_t *, const char **), const char *s,
    int64_t want)
{
	const char *why = NULL;
	int64_t v = -777;
	int rc = parse(s, &v, &why);

	ok(want == -777 ? rc == -1 && why : rc == 0 && v == want, "'%s' %s", s, want == -777
	    ? "refused" : "read");
}

static void test_numbers(void)
{
	static const char *const bad[] = { "", " 1", "1 ", "4x", "x", "K", "-", "--1", "+1",
	    "1.2.3", "1e3", "0x10",
		"inf", "nan", ".5", "1,5", "99999999999999999999", "9223372036854775808", "1 K",
		    "1KK", "0.5" };
	double d = 0;
	const char *why;

	for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
		number(opt_bytes, bad[i], -777);
		number(opt_count, bad[i], -777);
	}
	number(opt_bytes, "0", 0);
	number(opt_bytes, "-5", -5);
	number(opt_bytes, "64K", 65536);
	number(opt_bytes, "64M", 64 << 20);
	number(opt_bytes, "1.5G", (int64_t)3 << 29);
	number(opt_bytes, "2T", (int64_t)2 << 40);
	number(opt_bytes, "3KB", 3000);
	number(opt_bytes, "3TB", 3000000000000);
	number(opt_bytes, "9223372036854775807", INT64_MAX);
	number(opt_bytes, "9000000T", -777);
	number(opt_bytes, "1k", -777);
	number(opt_count, "6400", 6400);
	number(opt_count, "2k", 2000);
	number(opt_count, "1.5M", 1500000);
	number(opt_count, "1G", 1000000000);
	number(opt_count, "1K", -777);
	ok(!opt_float("-3e-4", &d, &why) && d == -3e-4, "-3e-4");
	ok(opt_float("1e999", &d, &why) && opt_float("inf", &d, &why) && opt_float("0x1", &d, &why)
		&& opt_float("", &d, &why) && opt_float("1e", &d, &why), "floats refused");
}

/* --- options --- */

static struct {
	int threads, mode;
	int64_t steps, ram;
	double lr;
	bool resume, check;
	const char *out;
	struct opt_list set;
} o;

static const struct opt shared[] = {
	{ .kind = OPT_GROUP, .help = "Shared" },
	{ 'l', "lr", OPT_FLOAT, &o.lr, -1, 1, "X", "learning rate" },
	{ 'n', "steps", OPT_COUNT, &o.steps, 1, 1e9, "N", "to be replaced" },
	{ 0 }
};
static const struct opt table[] = {
	{ 'j', "threads", OPT_INT, &o.threads, 0, 256, "N", "threads" },
	{ .kind = OPT_TABLE, .value = (void *)(uintptr_t)shared },
	{ 'n', "steps", OPT_COUNT, &o.steps, 1, 100000, "N", "steps to take" },
	{ 0, "ram", OPT_BYTES, &o.ram, 0, 0, "SIZE", "memory limit" },
	{ 0, "check", OPT_FLAG, &o.check, 0, 0, NULL, "verify" },
	{ 'r', "resume", OPT_FLAG, &o.resume, 0, 0, NULL, "go on" },
	{ 'm', "mode", OPT_CHOICE, &o.mode, 0, 0, "wait|shared|low", "what to do" },
	{ 'o', "output", OPT_STR, &o.out, 0, 0, "FILE", "where to" },
	{ 'v', "vocab", OPT_COUNT, &o.steps, 0, 0, "N", "takes the letter v" },
	{ 0, "set", OPT_LIST, &o.set, 0, 0, "KEY=VALUE", "override" },
	{ 0 }
};
static const struct opt_prog prog = { "chr-base", "[options] [FILE...]", "test", "The notes.",
    false };

/* Parses a command line in a child (parsing may exit); its exit status, and what it printed. */
static int parse(const char *line, char *out, size_t size)
{
	char words[256], *argv[32] = { "chr-base" }, *save;
	int argc = 1, p[2], status;
	ssize_t n;
	pid_t pid;

	snprintf(words, sizeof words, "%s", line);
	for (char *w = strtok_r(words, " ", &save); w; w = strtok_r(NULL, " ", &save))
		argv[argc++] = w;
	if (pipe(p) || (pid = fork()) < 0)
		return -1;
	if (pid == 0) {
		dup2(p[1], 1);
		dup2(p[1], 2);
		optind = 1;
		o.threads = 4; o.lr = 3e-4; o.check = true; o.ram = 64 << 20; o.steps = 20000;
		int first = opt_parse(argc, argv, table, &prog);

		printf("j%d l%g n%lld ram%lld check%d r%d m%d o%s set%d rest", o.threads, o.lr,
		    (long long)o.steps,
			(long long)o.ram, o.check, o.resume, o.mode, o.out ? o.out : "-", o.set.n);
		for (int i = first; i < argc; i++)
			printf(" %s", argv[i]);
		err_close_stdout();
		_exit(0);
	}
	close(p[1]);
	for (*out = '\0'; (n = read(p[0], out, size - 1)) > 0; out += n, size -= (size_t)n)
		out[n] = '\0';
	close(p[0]);
	waitpid(pid, &status, 0);
	return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void parse_is(const char *line, int status, const char *want)
{
	char out[8192];
	int rc = parse(line, out, sizeof out);
	int good = rc == status && strstr(out, want);

	ok(good, "options: %s", line);
	if (!good)
		printf("# status %d, want %d; printed: %s\n", rc, status, out);
}

static void test_options(void)
{
	parse_is("", 0, "j4 l0.0003 n20000 ram67108864 check1 r0 m0 o- set0 rest");
	parse_is("a -j 2 b --lr=-0.5 -- -x", 0, "j2 l-0.5 n20000 ram67108864 check1 r0 m0 o- set0 "
	    "rest a b -x");
	parse_is("-l -1e-3 -rn5 --no-check -m shared -o f --set a=1 --set b=2 -", 0,
		"l-0.001 n5 ram67108864 check0 r1 m1 of set2 rest -");
	parse_is("-v 2k --ram 1.5G", 0, "n2000 ram1610612736");
	parse_is("-j 4x", 64, "chr-base: --threads: 4x is not a whole number");
	parse_is("-j 257", 64, "is not between 0 and 256");
	parse_is("-j 99999999999999999999", 64, "out of range");
	parse_is("--steps 100001", 64, "is not between 1 and 100000");
	parse_is("-l 2", 64, "is not between -1 and 1");
	parse_is("-l nan", 64, "not a number");
	parse_is("--ram 3Q", 64, "unit");
	parse_is("--mode lo", 64, "lo is none of wait|shared|low");
	parse_is("--mode", 64, "--mode needs an argument");
	parse_is("-j", 64, "-j needs an argument");
	parse_is("--resume=1", 64, "takes no argument");
	parse_is("--nonsense", 64, "unknown option --nonsense");
	parse_is("-Z", 64, "unknown option -Z");
	parse_is("-V", 0, "chr-base " CHR_VERSION);
	parse_is("--help", 0, "-n, --steps N               steps to take (20k)");
	parse_is("-h", 0, "      --ram SIZE              memory limit (64M)");
	parse_is("-h", 0, "      --check                 verify (on; --no-check)");
	parse_is("-h", 0, "what to do (wait)");
	parse_is("-h", 0, "      --verbose ");
	parse_is("-h", 0, "The notes.");
	parse_is("-j 7 -h", 0, "threads (7)");
}

/* --- errors --- */

static void test_err(void)
{
	struct err e = {0};
	char out[64];
	int p[2], status;
	pid_t pid;

	errno = ENOENT;
	ok(err_set(&e, EX_NOINPUT, "%s:", "a/b") == -1 && e.status == 66
		&& !strcmp(e.msg, "a/b: No such file or directory"),
		    "err_set adds strerror after a colon");
	err_set(&e, EX_DATAERR, "%0600d", 1);
	ok(strlen(e.msg) == sizeof e.msg - 1, "long messages are cut");
	if (pipe(p) || (pid = fork()) < 0)
		return;
	if (pid == 0) {
		dup2(p[1], 2);
		err_init("/usr/bin/chr-x");
		err_die(EX_DATAERR, "bad");
	}
	ok(read(p[0], out, sizeof out) == 11 && !memcmp(out, "chr-x: bad\n", 11),
	    "err_die prints program and message");
	waitpid(pid, &status, 0);
	ok(WEXITSTATUS(status) == EX_DATAERR, "and exits");
	close(p[0]);
	close(p[1]);
	pid = fork();
	if (pid == 0) {
		if (!freopen("/dev/full", "w", stdout) || !freopen("/dev/null", "w", stderr))
			_exit(EX_IOERR);
		printf("lost");
		err_close_stdout();
		_exit(0);
	}
	waitpid(pid, &status, 0);
	ok(WEXITSTATUS(status) == EX_IOERR, "a lost write to stdout is 74");
}

/* --- files --- */

static int holds(const char *path, const char *want)
{
	struct err e = {0};
	char *buf;
	size_t len;
	int good = !file_get(path, &buf, &len, &e) && len == strlen(want) && !strcmp(buf, want);

	free(buf);
	return good;
}

static int count_files(const char *path)
{
	char cmd[300];
	int n = -1;
	FILE *f;

	snprintf(cmd, sizeof cmd, "ls -A '%s' | wc -l", path);
	f = popen(cmd, "r");
	if (!f || fscanf(f, "%d", &n) != 1)
		n = -1;
	if (f)
		pclose(f);
	return n;
}

static void test_put(void)
{
	char *path = file_join(dir, "file"), *link = file_join(dir, "link"),
	    *sub = file_join(dir, "no/file");
	struct err e = {0};
	struct stat st;

	umask(022);
	ok(!file_put(path, "old", 3, &e) && holds(path, "old"), "file_put, file_get");
	ok(stat(path, &st) == 0 && (st.st_mode & 0777) == 0644, "mode follows the umask");
	ok(symlink("file", link) == 0 && !file_put(link, "new", 3, &e) && holds(path, "new")
		&& lstat(link, &st) == 0 && S_ISLNK(st.st_mode), "through a symbolic link");
	ok(!file_put(path, "", 0, &e) && holds(path, ""), "empty file");
	ok(file_put(sub, "x", 1, &e) == -1 && e.status == EX_CANTCREAT, "no such directory: 73");
	ok(file_put(dir, "x", 1, &e) == -1 && e.status == EX_CANTCREAT, "a directory: 73");
	if (access("/dev/full", W_OK) == 0)
		ok(file_put("/dev/full", "x", 1, &e) == -1 && e.status == EX_IOERR
			&& stat("/dev/full", &st) == 0 && S_ISCHR(st.st_mode),
			    "a full device: 74, and it stays a device");
	ok(count_files(dir) == 2, "nothing temporary stays");
	free(path); free(link); free(sub);
}

/* Whoever shares the directory can guess the temporary name. */
static void test_put_planted(void)
{
	char *path = file_join(dir, "shared"), *victim = file_join(dir, "victim"), link[200];
	struct err e = {0};

	file_put(victim, "precious", 8, &e);
	for (int i = 0; i < 3; i++) {
		snprintf(link, sizeof link, "%s.%ld.%d.tmp", path, (long)getpid(), i);
		if (symlink("victim", link))
			break;
	}
	snprintf(link, sizeof link, "%s.%ld.tmp", path, (long)getpid());
	ok(symlink("victim", link) == 0 && !file_put(path, "mine", 4, &e) && holds(path, "mine"),
	    "with links under the temporary names: %s", e.msg);
	ok(holds(victim, "precious"), "what they lead to is not written");
	ok(!file_copy(victim, path, &e) && holds(path, "precious"), "nor copied over");
	free(path); free(victim);
}

static void test_within(void)
{
	char *repo = file_join(dir, "models--x"), *snap = file_join(repo, "snapshots/1"),
	    *blobs = file_join(repo, "blobs"), *blob = file_join(blobs, "b"),
	    *link = file_join(snap, "link"), *out = file_join(snap, "out"),
	    *own = file_join(snap, "own"), *loop = file_join(snap, "inner"),
	    *sub = file_join(snap, "sub"), *deep = file_join(sub, "deep");
	struct err e = {0};

	ok(!file_mkdirs(snap, &e) && !file_mkdirs(blobs, &e) && !file_put(blob, "b", 1, &e) &&
	    !file_put(own, "o", 1, &e) && !symlink("../../blobs/b", link) &&
	    !symlink("/etc/passwd", out) && !symlink("own", loop), "a snapshot of a cache");
	ok(file_within(snap, own) && file_within(snap, loop), "its own file, and a link to it");
	ok(file_within(snap, link), "a link to a blob beside it");
	ok(!file_within(snap, out), "not one that leads elsewhere");
	ok(file_within(blobs, link) && !file_within(blobs, own), "a blob is in the blobs");
	ok(!file_within(snap, "/nonexistent"), "nor what is not there");
	ok(!file_mkdirs(sub, &e) && !symlink("../../../blobs/b", deep) && file_within(sub, deep) &&
	    !file_within(sub, own), "a folder of the snapshot");
	free(repo); free(snap); free(blobs); free(blob); free(link); free(out); free(own);
	free(loop); free(sub); free(deep);
}

static void test_kinds(void)
{
	char *fifo = file_join(dir, "fifo"), *zero = file_join(dir, "zero"), *buf;
	struct err e = {0};
	size_t len;

	ok(mkfifo(fifo, 0666) == 0 && file_get_regular(fifo, &buf, &len, &e) == -1 &&
	    e.status == EX_NOINPUT && strstr(e.msg, "named pipe"), "a pipe does not hang: %s",
	    e.msg);
	ok(symlink("/dev/zero", zero) == 0 && file_get_regular(zero, &buf, &len, &e) == -1 &&
	    strstr(e.msg, "a device"), "nor a device: %s", e.msg);
	ok(file_get(zero, &buf, &len, &e) == -1 && e.status == EX_DATAERR &&
	    strstr(e.msg, "larger than"), "one without an end is too large: %s", e.msg);
	ok(file_get_regular(dir, &buf, &len, &e) == -1 && strstr(e.msg, "a directory"), "%s",
	    e.msg);
	unlink(fifo), unlink(zero);
	free(fifo); free(zero);
}

/* The wait for somebody at the other end of a pipe is one that a signal ends. */
static void test_waits(void)
{
	char *fifo = file_join(dir, "fifo"), *buf;
	struct err e = {0};
	size_t len;
	int status;
	pid_t pid;

	ok(mkfifo(fifo, 0666) == 0, "a pipe that nobody opens");
	for (int writing = 0; writing < 2; writing++) {
		pid = fork();
		if (pid == 0) {
			sig_install();
			_exit(writing ? file_create(fifo, &e) < 0 && e.status == EX_TEMPFAIL :
			    file_get(fifo, &buf, &len, &e) < 0 && e.status == EX_TEMPFAIL);
		}
		usleep(100000);
		kill(pid, SIGTERM);
		waitpid(pid, &status, 0);
		ok(WIFEXITED(status) && WEXITSTATUS(status) == 1, "%s it stops on SIGTERM",
		    writing ? "writing" : "reading");
	}
	pid = fork();
	if (pid == 0)
		_exit(file_put(fifo, "through", 7, &e) != 0);
	ok(file_get(fifo, &buf, &len, &e) == 0 && len == 7 && memcmp(buf, "through", 7) == 0,
	    "and from one to the other: %s", e.msg);
	waitpid(pid, &status, 0);
	free(buf);
	unlink(fifo);
	free(fifo);
}

static void plain(const char *in, const char *want)
{
	char s[64];

	snprintf(s, sizeof s, "%s", in);
	ok(plain_text(s) == strlen(want) && strcmp(s, want) == 0, "plain: %s", s);
}

static void test_plain(void)
{
	struct err e = {0};
	json_t *in = json_pack("{s:[s,i]}", "a\x1b", "\xe2\x80\xaegpj", 5), *p = plain_json(in);
	char *text = json_dumps(p, JSON_COMPACT);

	plain("Größe 東京 \xf0\x9f\x98\x80", "Größe 東京 \xf0\x9f\x98\x80");
	plain("\x1b[31mred\x07\r\n\t\x7f", "?[31mred?????");
	plain("\xc2\x9b" "31m C1", "?31m C1");
	plain("\x9b" "31m raw", "?31m raw");
	plain("\xe2\x80\xae" "a\xe2\x80\xa8" "b\xe2\x81\xa6" "c\xd8\x9c" "d", "?a?b?c?d");
	plain("cut \xe6\x9d", "cut ??");
	plain("\xc0\x9b\xed\xa0\x80\xf4\x90\x80\x80", "?????????");
	err_set(&e, EX_DATAERR, "%s: near '%s'", "\x1b]0;title\x07", "\xe2\x80\xae");
	ok(strcmp(e.msg, "?]0;title?: near '?'") == 0, "messages: %s", e.msg);
	ok(strcmp(text, "{\"a?\":[\"?gpj\",5]}") == 0, "keys and strings of JSON: %s", text);
	free(text);
	json_decref(in);
	json_decref(p);
}

static void is_what(const char *head, size_t n, const char *want)
{
	const char *what = sniff(head, n);

	ok(want ? what && strstr(what, want) : !what, "sniffed: %s", what ? what : "nothing");
}

static void test_sniff(void)
{
	static const char lfs[] = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n";

	is_what(lfs, sizeof lfs - 1, "Git LFS");
	is_what("", 0, "empty");
	is_what(" \n<!doctype HTML>", 17, "web page");
	is_what("<html lang=en>", 14, "web page");
	is_what("GGUF\3\0\0\0", 8, "GGUF");
	is_what("PK\3\4\24\0\0\0", 8, "ZIP");
	is_what("\x80\2}q\0", 5, "pickle");
	is_what("\xff\xfe{\0\"\0", 6, "UTF-16");
	is_what("{\0\"\0a\0", 6, "UTF-16");
	is_what("\0{\0\"\0a", 6, "UTF-16");
	is_what("{\"a\": 1}", 8, NULL);
	is_what("\xef\xbb\xbf{}", 5, NULL);
	is_what("\x80\2\0\0\0\0\0\0{\"a\"", 12, NULL);
	is_what("\x1f\x8b\0\0\0\0\0\0{\"a\"", 12, NULL);
}

/* A file size limit stands in for a full disk: write() fails half-way. */
static void test_put_full(void)
{
	char *path = file_join(dir, "kept"), *big = calloc(1, 1 << 16);
	struct err e = {0};
	int status, before;
	pid_t pid;

	file_put(path, "precious", 8, &e);
	before = count_files(dir);
	pid = fork();
	if (pid == 0) {
		struct rlimit l = { 4096, 4096 };

		signal(SIGXFSZ, SIG_IGN);
		setrlimit(RLIMIT_FSIZE, &l);
		_exit(file_put(path, big, 1 << 16, &e) == -1 ? e.status : 0);
	}
	waitpid(pid, &status, 0);
	ok(WEXITSTATUS(status) == EX_IOERR, "disk full: 74");
	ok(holds(path, "precious") && count_files(dir) == before,
	    "the old file is intact, the temporary one gone");
	free(path);
	free(big);
}

static void test_trees(void)
{
	char *a = file_join(dir, "a/b//c"), *top = file_join(dir, "a"), *f = file_join(a, "f"),
	    *g = file_join(a, "g");
	struct err e = {0};
	char *buf;
	size_t len;

	ok(!file_mkdirs(a, &e) && !file_mkdirs(a, &e), "file_mkdirs, twice");
	ok(!file_put(f, "data", 4, &e) && !file_copy(f, g, &e) && holds(g, "data"), "file_copy");
	ok(file_mkdirs(f, &e) == -1 && e.status == EX_CANTCREAT, "a file in the way: 73");
	ok(file_get("/nonexistent", &buf, &len, &e) == -1 && e.status == EX_NOINPUT && !buf,
	    "missing: 66");
	ok(file_get(dir, &buf, &len, &e) == -1 && e.status == EX_NOINPUT,
	    "reading a directory: 66");
	ok(!file_remove_tree(top, &e) && access(top, F_OK), "file_remove_tree");
	ok(!file_remove_tree(top, &e), "twice");
	free(a); free(top); free(f); free(g);
}

/* --- memory --- */

static void test_mem(void)
{
	struct mem_plan p = {0};
	struct err e = {0};
	json_t *j;
	char *x;

	mem_plan_add(&p, "weights", 100 << 20);
	mem_plan_add(&p, "cache", 20 << 20);
	mem_plan_add(&p, "weights", 8 << 20);
	ok(p.n == 2 && mem_plan_total(&p) == 128 << 20, "plan adds up");
	ok(!mem_plan_check(&p, 0, "", &e) && !mem_plan_check(&p, 128 << 20, "", &e),
	    "within the limit");
	ok(mem_plan_check(&p, (128 << 20) - 1, "use --ram", &e) == -1 && e.status == EX_OSERR
		&& strstr(e.msg, "128.0 MiB") && strstr(e.msg, "use --ram"),
		    "above: 71 with plan and hint");
	j = mem_plan_json(&p);
	ok(json_integer_value(json_object_get(j, "total")) == 128 << 20
		&& json_integer_value(json_object_get(json_object_get(j, "items"), "cache")) ==
		    20 << 20, "plan record");
	json_decref(j);
	x = mem_alloc(100);
	ok((uintptr_t)x % 64 == 0 && !x[0] && !x[99], "mem_alloc");
	mem_free(x);
	ok(mem_peak_rss() > 1 << 20, "peak memory");
}

static void test_sig(void)
{
	int status;
	pid_t pid = fork();

	if (pid == 0) {
		sig_install();
		raise(SIGUSR1);
		raise(SIGTERM);
		if (!sig_save || sig_stop != SIGTERM)
			_exit(1);
		raise(SIGINT);
		_exit(2);
	}
	waitpid(pid, &status, 0);
	ok(WIFSIGNALED(status) && WTERMSIG(status) == SIGINT,
	    "the first stop signal sets a flag, the second kills");
}

int main(void)
{
	struct err e = {0};

	err_init("chr-base");
	if (!mkdtemp(dir))
		return 1;
	test_numbers();
	test_options();
	test_err();
	test_put();
	test_put_planted();
	test_within();
	test_kinds();
	test_waits();
	test_plain();
	test_sniff();
	test_put_full();
	test_trees();
	test_mem();
	test_sig();
	file_remove_tree(dir, &e);
	return tap_done();
}

/* Patterns: what tokenizers 0.23.3 (Oniguruma 6.9.10) cuts, whatever version of Unicode the PCRE2
 * of this machine has; what tiktoken's dialect reads otherwise; what is refused. */
#include <string.h>

#include "tap.h"
#include "text/pattern.h"
#include "text/uniset.h"

/* The matches, each in brackets, with what is between them. */
static void cut(struct pattern *p, const char *s, char *out)
{
	size_t a, b, done = 0, len = strlen(s);

	pattern_begin(p, s, len);
	while (pattern_next(p, &a, &b)) {
		out += sprintf(out, "%.*s[%.*s]", (int)(a - done), s + done, (int)(b - a), s + a);
		done = b;
	}
	strcpy(out, s + done);
}

static void cuts(enum pattern_dialect d, const char *pattern, const char *text, const char *want)
{
	struct err e = { 0 };
	struct pattern *p = pattern_open(pattern, strlen(pattern), d, &e), *own;
	char got[400] = "";

	if (!ok(p != NULL, "%s is read", pattern)) {
		printf("# %s\n", e.msg);
		return;
	}
	own = pattern_share(p);
	cut(p, text, got);
	ok(strcmp(got, want) == 0, "%s cuts", pattern);
	cut(own, text, got);
	ok(strcmp(got, want) == 0, "%s cuts in another thread", pattern);
	pattern_close(own);
	pattern_close(p);
}

static void ruby(void)
{
	static const char *const c[][3] = {
		{ "\\p{N}{1,3}", "1234567", "[123][456][7]" },
		{ "\\p{N}{1,3}+", "1234567", "[1234567]" },
		{ "a{2}?", "aaaab", "[aa][aa]b" },
		{ "[]a]+", "x]a", "x[]a]" },
		{ "a{1,2}", "aaab", "[aa][a]b" },
		{ "[a-z&&[^b]]+", "abc", "[a]b[c]" },
		{ "[^a&&b]+", "abc", "[abc]" },
		{ "(?m:.)+", "a\nb", "[a\nb]" },
		{ "a++", "aaab", "[aaa]b" },
		{ "^b", "a\nb\n", "a\n[b]\n" },
		{ "a$", "a\nb", "[a]\nb" },
		{ "\\Aa", "aa", "[a]a" },
		{ "[\\w-]+", "a-b c", "[a-b] [c]" },
		{ "\\h+", "af gz", "[af] gz" },
		{ "\\R", "a\r\nb", "a[\r\n]b" },
		{ "[^\\x00-\\x7f]+", "a\xc3\xa9" "b", "a[\xc3\xa9]b" },
		{ "\\u00e9", "a\xc3\xa9" "b", "a[\xc3\xa9]b" },
		{ "(?<=a)b", "abb", "a[b]b" },
		{ "[[:^alpha:]]+", "ab12c", "ab[12]c" },
		{ "\\p{^L}+", "ab12c", "ab[12]c" },
		{ "\\p{letter}+", "12ab", "12[ab]" },
		{ "\\pL+", "pLab", "[pL]ab" },
		{ "(?i)\xc3\x89", "\xc3\xa9", "[\xc3\xa9]" },
		{ "\\v", "a\x0b" "b\n", "a[\x0b]b\n" },
		{ "(?i:'s|'LL)", "it's 'S '\xc5\xbf they'll",
		    "it['s] ['S] ['\xc5\xbf] they['ll]" },
		{ "\\bb", "b ab cb-b", "[b] ab cb-[b]" },
		{ "a|(?i)b|c", "aBC", "[a][B][C]" },
		{ "\\s+(?!\\S)|\\s+", "a   b  ", "a[  ][ ]b[  ]" },
		{ "\\d+|x?", "1\xc3\xa9" "2", "[1]\xc3\xa9[2]" },
		/* letters of Unicode 15.0, 15.1 and 16.0, a mark, digits, and those of 17.0 */
		{ "\\p{L}+", "\xf0\x9e\x93\x90 \xf0\xae\xaf\xb0 \xf0\x90\xb5\x90",
		    "[\xf0\x9e\x93\x90] [\xf0\xae\xaf\xb0] [\xf0\x90\xb5\x90]" },
		{ "\\p{M}", "\xe0\xa2\x97", "[\xe0\xa2\x97]" },
		{ "\\p{N}+", "\xf0\x90\xb5\x80 \xf0\x91\xb7\xa0",
		    "[\xf0\x90\xb5\x80] \xf0\x91\xb7\xa0" },
		{ "\\p{Han}+", "a\xe6\xbc\xa2\xe3\x80\x87", "a[\xe6\xbc\xa2\xe3\x80\x87]" },
	};

	for (size_t i = 0; i < sizeof c / sizeof *c; i++)
		cuts(PATTERN_RUBY, c[i][0], c[i][1], c[i][2]);
}

static void rust(void)
{
	static const char *const c[][3] = {
		{ "\\p{N}{1,3}+", "1234567", "[123][456][7]" },
		{ "\\pL+", "pLab1", "[pLab]1" },
		{ "(?s:.)+", "a\nb", "[a\nb]" },
		{ "^b|a$", "a\nb", "a\nb" },
		{ "(?m)^b|a$", "a\nb", "[a]\n[b]" },
		{ "a(?i)b|c", "aBCab", "[aB][C][ab]" },
		{ "\\p{Script=Han}+", "a\xe6\xbc\xa2", "a[\xe6\xbc\xa2]" },
		{ "\\w+", "a\xc2\xb2\xe2\x80\x8d", "[a]\xc2\xb2[\xe2\x80\x8d]" },
		{ "[\\p{Lu}\\p{Lo}&&[^\\p{Han}]]+", "A\xe6\xbc\xa2\xe3\x81\x82",
		    "[A]\xe6\xbc\xa2[\xe3\x81\x82]" },
	};

	for (size_t i = 0; i < sizeof c / sizeof *c; i++)
		cuts(PATTERN_RUST, c[i][0], c[i][1], c[i][2]);
	cuts(PATTERN_LITERAL, "a.", "a.aba.", "[a.]ab[a.]");
}

static void refuses(const char *pattern, const char *why)
{
	struct err e = { 0 };
	struct pattern *p = pattern_open(pattern, strlen(pattern), PATTERN_RUBY, &e);

	if (!ok(p == NULL && e.status == EX_DATAERR && strstr(e.msg, why), "refused: %.40s",
	    pattern))
		printf("# %s\n", e.msg);
	pattern_close(p);
}

static void refusals(void)
{
	static char deep[4000];

	refuses("(", "parenthesis");
	refuses("a)", "parenthesis");
	refuses("[a", "without its end");
	refuses("*", "quantifier of nothing");
	refuses("a{3,2}", "numbers of a quantifier");
	refuses("a{99999999999999999999}", "numbers of a quantifier");
	refuses("[b-a]", "before its beginning");
	refuses("[a-\\d]", "ends in a class");
	refuses("(a)\\1", "escape");
	refuses("\\p{Klingon}", "property");
	refuses("\\p{", "property");
	refuses("\\xe9", "byte");
	refuses("\\x{110000}", "number");
	refuses("a\\", "end too soon");
	refuses("(?x: a)", "mode");
	refuses("(?s:.)", "mode");
	refuses("(?<=a*)b", "lookbehind");
	memset(deep, '(', sizeof deep - 1);
	refuses(deep, "too deep");
	memset(deep, '[', sizeof deep - 1);
	refuses(deep, "too deep");
	for (int i = 0; i < 300; i++)
		sprintf(deep + 4 * i, "%c%c%c|", 0xe4, 0x80 | (i >> 6 & 63), 0x80 | (i & 63));
	refuses(deep, "kinds of characters");
}

int main(void)
{
	ruby();
	rust();
	refusals();
	return tap_done();
}

/*
 * Templates: what jinja2 3.1 gave for the cases of tests/data/jinja (in transformers'
 * environment), where bytes come from, and bounds.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/file.h"
#include "base/json.h"
#include "tap.h"
#include "text/jinja.h"

static const char *const messages = "{\"messages\":[{\"role\":\"user\",\"content\":\"héllo\","
    "\"f\":1.10,"
    "\"n\":1000000000000000},{\"role\":\"assistant\",\"content\":\"ok\"}]}";

/* 0 and the text, or -1. */
static int render(const char *source, const json_t *own, const json_t *given, struct jinja_text *t,
    struct err *e)
{
	struct jinja *j = jinja_open(source, strlen(source), "test", e);
	int rc = j != NULL ? jinja_render(j, own, given, t, e) : -1;

	jinja_close(j);
	return rc;
}

static void test_cases(void)
{
	json_t *given = json_loads(messages, 0, NULL);
	FILE *f = fopen("tests/data/jinja/cases.jsonl", "r");
	char line[16384];
	int n = 0;

	while (f != NULL && fgets(line, sizeof line, f) != NULL) {
		json_t *o = json_loads(line, 0, NULL);
		const char *source = json_string_value(json_object_get(o, "source"));
		const char *want = json_string_value(json_object_get(o, "text"));
		struct err e = { 0 };
		struct jinja_text t;
		int rc = render(source, NULL, given, &t, &e);

		n++;
		if (want == NULL)
			ok(rc < 0 && e.status == EX_DATAERR, "case %d is refused", n);
		else
			ok(rc == 0 && strcmp(t.text, want) == 0, "case %d", n);
		if (rc == 0)
			jinja_text_free(&t);
		json_decref(o);
	}
	ok(f != NULL && feof(f), "all cases were read");
	if (f != NULL)
		fclose(f);
	json_decref(given);
}

/* What a user says never counts as the template's, through whatever it goes. */
static void test_from(void)
{
	static const char source[] = "<s>{{ bos }}{% for m in messages %}{{ '[' + (m.content | "
	    "trim)[:1] | upper + ']' }}"
	    "{% generation %}{{ m.content | tojson }}!{% endgeneration %}{% endfor %}";
	json_t *given = json_loads(messages, 0, NULL), *own = json_pack("{s:s}", "bos", "B");
	/* <s>B [H] "héllo"! [O] "ok"! */
	static const char want[] = "1111" "101" "44444444" "5" "121" "4664" "5";
	struct err e = { 0 };
	struct jinja_text t;
	bool same = false;

	if (render(source, own, given, &t, &e) == 0) {
		same = t.len == strlen(want);
		for (size_t i = 0; same && i < t.len; i++)
			same = t.from[i] == want[i] - '0';
		jinja_text_free(&t);
	}
	ok(same, "where each byte comes from");
	json_decref(given);
	json_decref(own);
}

/* The end of a template, run with other values, is what whole renderings differ by. */
static void test_tails(void)
{
	static const char once[] = "{% for m in messages %}{{ m.content }}{% endfor %}"
	    "{% if add_generation_prompt %}P{% if enable_thinking is defined and not "
	    "enable_thinking %}T{% endif %}{% endif %}";
	static const char *const other[] = {
		"{% if add_generation_prompt %}P{% endif %}x",
		"{% if not add_generation_prompt %}x{% endif %}{% if add_generation_prompt %}P"
		    "{% endif %}",
		"{% set enable_thinking = true %}{% if add_generation_prompt %}P{% endif %}",
		"{% set ns = namespace(a=1) %}{% if add_generation_prompt %}{{ ns.a }}{% endif %}",
		"{% macro f() %}P{% endmacro %}{% if add_generation_prompt %}{{ f() }}{% endif %}",
		"{% if add_generation_prompt %}{% set x = 1 %}{% endif %}", "a",
	};
	json_t *given = json_loads(messages, 0, NULL), *again[3];
	struct jinja_text t, tail[3];
	struct err e = { 0 };
	struct jinja *j = jinja_open(once, strlen(once), "test", &e);

	again[0] = json_pack("{s:b}", "add_generation_prompt", 1);
	again[1] = json_pack("{s:b, s:b}", "add_generation_prompt", 1, "enable_thinking", 0);
	again[2] = json_pack("{s:b}", "add_generation_prompt", 0);
	ok(jinja_render_tails(j, NULL, given, &t, 3, again, tail, &e) == 0, "an end of its own");
	ok(strcmp(t.text, "h\xc3\xa9llook") == 0 && strcmp(tail[0].text, "P") == 0 &&
	    strcmp(tail[1].text, "PT") == 0 && tail[2].len == 0, "with other values");
	for (int i = 0; i < 3; i++) {
		jinja_text_free(&tail[i]);
		json_decref(again[i]);
	}
	jinja_text_free(&t);
	jinja_close(j);
	for (size_t i = 0; i < sizeof other / sizeof *other; i++) {
		j = jinja_open(other[i], strlen(other[i]), "test", &e);
		ok(jinja_render_tails(j, NULL, given, &t, 0, again, tail, &e) == 1, "none: %s",
		    other[i]);
		jinja_close(j);
	}
	json_decref(given);
}

static void test_bounds(void)
{
	static const char *const source[] = {
		"{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
		"{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "{{ 'x' * 1000000000 }}",
		"{% set ns = namespace(s='xxxxxxxxxxxxxxxx') %}{% for i in range(60) %}{% set ns.s "
		    "= ns.s + ns.s %}{% endfor %}",
		"{% for i in range(99999) %}{{ 'y' * 100000 }}{% endfor %}",
		    "{{ range(1000000000) }}", "{{ 2 ** 1000000000 }}",
		"{{ '%99999999d' % 1 }}", "{{ 'a'.ljust(1000000000) }}",
	};

	for (size_t i = 0; i < sizeof source / sizeof *source; i++) {
		struct err e = { 0 };
		struct jinja_text t;
		clock_t began = clock();

		ok(render(source[i], NULL, NULL, &t, &e) < 0, "bounded: %.50s", source[i]);
		ok((double)(clock() - began) / CLOCKS_PER_SEC < 10, "soon: %s", e.msg);
	}
}

static void test_deep(void)
{
	static char source[100001];
	struct err e = { 0 };
	struct jinja_text t;

	for (int i = 0; i < 5; i++) {
		memset(source, "(-[{\""[i], sizeof source - 1);
		memcpy(source, "{{", 2);
		ok(render(source, NULL, NULL, &t, &e) < 0, "a hundred thousand of %c", "(-[{\""[i]);
	}
	ok(render("{{ x", NULL, NULL, &t, &e) < 0 && strstr(e.msg, "test:1: "),
	    "an error has a line: %s", e.msg);
}

/* For tests/pypi.py: the template of a file, rendered with each context of standard input. */
static int render_lines(const char *path)
{
	struct err e = { 0 };
	char *source, *line = NULL;
	size_t len, cap = 0;

	if (file_get(path, &source, &len, &e) < 0)
		err_exit(&e);
	while (getline(&line, &cap, stdin) > 0) {
		json_t *o = json_loads(line, 0, NULL), *said = json_object();
		struct jinja_text t;

		if (render(source, json_object_get(o, "own"), json_object_get(o, "given"), &t,
		    &e) == 0) {
			json_object_set_new(said, "text", json_stringn(t.text, t.len));
			jinja_text_free(&t);
		} else
			json_object_set_new(said, "error", json_string(e.msg));
		json_dumpf(said, stdout, JSON_COMPACT);
		putchar('\n');
		json_decref(said);
		json_decref(o);
	}
	free(line);
	free(source);
	return 0;
}

int main(int argc, char **argv)
{
	if (argc > 1)
		return render_lines(argv[1]);
	test_cases();
	test_from();
	test_tails();
	test_bounds();
	test_deep();
	return tap_done();
}

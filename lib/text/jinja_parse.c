/*
 * A template's source to a tree. Text between tags is cut as Jinja does with trim_blocks and
 * lstrip_blocks; expressions are read by recursive descent, in Jinja's order of precedence.
 */
#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "text/jinja_int.h"
#include "text/tok_impl.h"

enum tok_kind { T_END, T_NAME, T_STR, T_INT, T_FLOAT, T_OP };

struct lex {
	struct run *r;
	const char *p, *end;		/* what is left of the source */
	bool line_starts;		/* the text at p begins a line */
	bool *marks;
	/* within a tag */
	enum tok_kind kind;
	const char *at;			/* the token's text */
	size_t len;
	struct val value;		/* of T_STR, T_INT, T_FLOAT */
	char close;			/* '%' or '}': what ends this tag */
	int nest;			/* open brackets */
	int loops;			/* loops that this is in */
};

static struct node *expr(struct lex *x);
static struct node *body_until(struct lex *x, const char *const *ends, const struct str **which);

static struct node *node(struct lex *x, enum nkind k)
{
	struct node *n = jinja_alloc(x->r, sizeof *n);

	*n = (struct node){ .k = k, .line = x->r->line };
	return n;
}

static void deeper(struct lex *x)
{
	if (++x->r->depth > JINJA_DEPTH)
		jinja_fail(x->r, "nested more than %d deep", JINJA_DEPTH);
}

/* --- tokens of a tag --- */

static void count_lines(struct lex *x, const char *from, const char *to)
{
	for (; from < to; from++)
		x->r->line += *from == '\n';
}

static int hex_digits(const char *p, int n)
{
	for (int i = 0; i < n; i++)
		if (!isxdigit((unsigned char)p[i]))
			return 0;
	return n;
}

/* One escape of a string literal, after the backslash. The source ends with a NUL. */
static const char *escape(const char *p, char **to)
{
	static const char from[] = "ntrbfav", is[] = "\n\t\r\b\f\a\v";
	const char *f = *p != '\0' ? strchr(from, *p) : NULL;
	int digits = *p == 'u' ? hex_digits(p + 1, 4) : *p == 'x' ? hex_digits(p + 1, 2)
	    : *p == 'U' ? hex_digits(p + 1, 8) : 0;
	char hex[9] = "";
	uint32_t c;

	if (digits > 0) {
		memcpy(hex, p + 1, (size_t)digits);
		c = (uint32_t)strtoul(hex, NULL, 16);
		*to += utf8_put(*to, c > 0x10ffff || (c >= 0xd800 && c < 0xe000) ? 0xfffd : c);
		return p + 1 + digits;
	}
	if (f == NULL && strchr("\\'\"\n", *p) == NULL)
		*(*to)++ = '\\';
	if (*p != '\n')
		*(*to)++ = f != NULL ? is[f - from] : *p;
	return p + 1;
}

static void string(struct lex *x)
{
	char quote = *x->p++, *buf = jinja_alloc(x->r, (size_t)(x->end - x->p) + 4), *to = buf;

	while (x->p < x->end && *x->p != quote) {
		x->r->line += *x->p == '\n';
		if (*x->p == '\\' && x->end - x->p > 1)
			x->p = escape(x->p + 1, &to);
		else
			*to++ = *x->p++;
	}
	if (x->p >= x->end)
		jinja_fail(x->r, "a string does not end");
	x->p++;
	x->kind = T_STR;
	x->value = jinja_val_str(jinja_str_new(x->r, buf, (size_t)(to - buf), JINJA_OWN));
}

static const char *digits(const char *p)
{
	while (isdigit((unsigned char)*p) || (*p == '_' && isdigit((unsigned char)p[1])))
		p++;
	return p;
}

static void number(struct lex *x)
{
	const char *end = digits(x->p), *more;
	char text[64];
	size_t n = 0;
	bool real = *end == '.' && isdigit((unsigned char)end[1]);

	if (real)
		end = digits(end + 1);
	more = end + 1 + (*end != '\0' && (end[1] == '+' || end[1] == '-'));
	if ((*end == 'e' || *end == 'E') && isdigit((unsigned char)*more)) {
		end = digits(more);
		real = true;
	}
	for (; x->p < end; x->p++)
		if (*x->p != '_' && n < sizeof text - 1)
			text[n++] = *x->p;
	text[n] = '\0';
	x->kind = real ? T_FLOAT : T_INT;
	x->value = real ? (struct val){ .k = V_FLOAT, .f = strtod(text, NULL) }
	    : jinja_val_int(strtoll(text, NULL, 10));
}

static bool tag_ends(const struct lex *x)
{
	const char *p = x->p + (*x->p == '-' || *x->p == '+');

	return x->nest == 0 && x->end - p >= 2 && p[0] == x->close && p[1] == '}';
}

static void operator(struct lex *x)
{
	static const char *const two[] = { "==", "!=", "<=", ">=", "//", "**" };

	x->len = 1;
	for (size_t i = 0; i < sizeof two / sizeof *two; i++)
		if (x->end - x->p >= 2 && memcmp(x->p, two[i], 2) == 0)
			x->len = 2;
	if (strchr("+-*/%~<>=!()[]{},:.|", *x->p) == NULL || (*x->p == '!' && x->len == 1))
		jinja_fail(x->r, "unexpected character '%c'", *x->p);
	x->nest += strchr("([{", *x->p) != NULL;
	x->nest -= strchr(")]}", *x->p) != NULL && x->nest > 0;
	x->kind = T_OP;
	x->p += x->len;
}

static void next(struct lex *x)
{
	while (x->p < x->end && isspace((unsigned char)*x->p))
		x->r->line += *x->p++ == '\n';
	if (x->p >= x->end)
		jinja_fail(x->r, "a tag does not end");
	x->at = x->p;
	if (tag_ends(x)) {
		x->kind = T_END;
		x->len = 0;
	} else if (isalpha((unsigned char)*x->p) || *x->p == '_' || *x->p & 0x80) {
		while (x->p < x->end && (isalnum((unsigned char)*x->p) || *x->p == '_' ||
		    *x->p & 0x80))
			x->p++;
		x->len = (size_t)(x->p - x->at);
		x->kind = T_NAME;
	} else if (*x->p == '"' || *x->p == '\'')
		string(x);
	else if (isdigit((unsigned char)*x->p))
		number(x);
	else
		operator(x);
}

static bool is(const struct lex *x, const char *word)
{
	return (x->kind == T_NAME || x->kind == T_OP) && x->len == strlen(word) &&
	    memcmp(x->at, word, x->len) == 0;
}

static bool take(struct lex *x, const char *word)
{
	if (!is(x, word))
		return false;
	next(x);
	return true;
}

static void want(struct lex *x, const char *word)
{
	if (!take(x, word))
		jinja_fail(x->r, "expected '%s', got '%.*s'", word,
		    (int)(x->kind == T_END ? 2 : x->len), x->at);
}

static const struct str *name(struct lex *x)
{
	const struct str *s;

	if (x->kind != T_NAME)
		jinja_fail(x->r, "expected a name, got '%.*s'",
		    (int)(x->kind == T_END ? 2 : x->len), x->at);
	s = jinja_str_new(x->r, x->at, x->len, JINJA_OWN);
	next(x);
	return s;
}

/* --- expressions --- */

/* Arguments up to the bracket that closes: each with its value in a, and the name of a keyword. */
static struct node *arguments(struct lex *x)
{
	struct node *first = NULL, **tail = &first;

	while (!take(x, ")")) {
		struct node *arg = node(x, E_LIST);

		arg->a = expr(x);
		if (arg->a->k == E_NAME && take(x, "=")) {
			arg->name = arg->a->name;
			arg->a = expr(x);
		}
		*tail = arg;
		tail = &arg->next;
		if (!is(x, ")"))
			want(x, ",");
	}
	return first;
}

static struct node *subscript(struct lex *x, struct node *of)
{
	struct node *n = node(x, E_ITEM);

	n->a = of;
	if (!is(x, ":"))
		n->b = expr(x);
	if (take(x, "]"))
		return n;
	n->k = E_SLICE;
	n->kids = node(x, E_LIST);	/* a: stop, b: step */
	want(x, ":");
	if (!is(x, ":") && !is(x, "]"))
		n->kids->a = expr(x);
	if (take(x, ":") && !is(x, "]"))
		n->kids->b = expr(x);
	want(x, "]");
	return n;
}

static struct node *postfix(struct lex *x, struct node *n)
{
	for (;;) {
		struct node *m;

		if (take(x, ".")) {
			m = node(x, E_ATTR);
			m->a = n;
			if (x->kind == T_INT) {
				m->k = E_ITEM;
				m->b = node(x, E_CONST);
				m->b->value = x->value;
				next(x);
			} else
				m->name = name(x);
		} else if (take(x, "["))
			m = subscript(x, n);
		else if (take(x, "(")) {
			m = node(x, E_CALL);
			m->a = n;
			m->kids = arguments(x);
		} else
			return n;
		n = m;
	}
}

/* a, b, c up to `close`, after the opening bracket. */
static struct node *sequence(struct lex *x, enum nkind k, const char *close)
{
	struct node *n = node(x, k), **tail = &n->kids;

	while (!take(x, close)) {
		struct node *item = node(x, E_LIST);

		item->a = expr(x);
		*tail = item;
		tail = &item->next;
		if (!is(x, close)) {
			n->flag = true;		/* a comma */
			want(x, ",");
		}
	}
	return n;
}

static struct node *dictionary(struct lex *x)
{
	struct node *n = node(x, E_DICT), **tail = &n->kids;

	while (!take(x, "}")) {
		struct node *item = node(x, E_LIST);

		item->a = expr(x);
		want(x, ":");
		item->b = expr(x);
		*tail = item;
		tail = &item->next;
		if (!is(x, "}"))
			want(x, ",");
	}
	return n;
}

static bool constant(struct lex *x, struct node *n)
{
	static const struct { const char *word; enum vkind k; bool b; } words[] =
	    { { "true", V_BOOL, true },
	    { "True", V_BOOL, true }, { "false", V_BOOL, false }, { "False", V_BOOL, false },
	    { "none", V_NONE, false },
	    { "None", V_NONE, false } };

	for (size_t i = 0; i < sizeof words / sizeof *words; i++)
		if (is(x, words[i].word)) {
			n->value = (struct val){ .k = words[i].k, .b = words[i].b };
			next(x);
			return true;
		}
	return false;
}

static struct node *primary(struct lex *x)
{
	struct node *n = node(x, E_CONST);

	if (x->kind == T_STR || x->kind == T_INT || x->kind == T_FLOAT) {
		bool text = x->kind == T_STR;

		n->value = x->value;
		next(x);
		while (text && x->kind == T_STR) {
			n->value = jinja_val_str(jinja_str_join(x->r, n->value.s, x->value.s));
			next(x);
		}
		return n;
	}
	if (take(x, "(")) {
		n = sequence(x, E_TUPLE, ")");
		return n->kids != NULL && n->kids->next == NULL && !n->flag ? n->kids->a : n;
	}
	if (take(x, "["))
		return sequence(x, E_LIST, "]");
	if (take(x, "{"))
		return dictionary(x);
	if (constant(x, n))
		return n;
	n->k = E_NAME;
	n->name = name(x);
	return n;
}

static struct node *filter(struct lex *x, struct node *of)
{
	struct node *n = node(x, E_FILTER);

	n->a = of;
	n->name = name(x);
	if (take(x, "("))
		n->kids = arguments(x);
	return n;
}

static bool test_argument(const struct lex *x)
{
	static const char *const not_one[] = { "else", "or", "and", "is", "not", "if", "in" };

	for (size_t i = 0; i < sizeof not_one / sizeof *not_one; i++)
		if (is(x, not_one[i]))
			return false;
	return x->kind == T_NAME || x->kind == T_STR || x->kind == T_INT || x->kind == T_FLOAT ||
	    is(x, "[") || is(x, "{");
}

static struct node *test(struct lex *x, struct node *of)
{
	struct node *n = node(x, E_TEST), *no;
	bool negated = take(x, "not");

	n->a = of;
	n->name = name(x);
	if (take(x, "("))
		n->kids = arguments(x);
	else if (test_argument(x)) {
		struct node *v = postfix(x, primary(x));

		n->kids = node(x, E_LIST);
		n->kids->a = v;
	}
	if (!negated)
		return n;
	no = node(x, E_NOT);
	no->a = n;
	return no;
}

static struct node *filtered(struct lex *x, struct node *n)
{
	for (;;)
		if (take(x, "|"))
			n = filter(x, n);
		else if (take(x, "is"))
			n = test(x, n);
		else if (is(x, "("))
			n = postfix(x, n);
		else
			return n;
}

static struct node *unary(struct lex *x, bool filters)
{
	struct node *n;

	deeper(x);
	if (is(x, "-") || is(x, "+")) {
		n = node(x, is(x, "-") ? E_NEG : E_POS);
		next(x);
		n->a = unary(x, false);
	} else
		n = postfix(x, primary(x));
	x->r->depth--;
	return filters ? filtered(x, n) : n;
}

struct level { const char *word[5]; char op[5]; };

static struct node *binary(struct lex *x, int level)
{
	static const struct level levels[] = {
		{ { "+", "-" }, "+-" }, { { "~" }, "~" }, { { "*", "/", "//", "%" }, "*/;%" },
		    { { "**" }, "p" },
	};
	struct node *n;

	if (level == 4)
		return unary(x, true);
	n = binary(x, level + 1);
	for (int i = 0; i < 5 && levels[level].word[i] != NULL; i++)
		if (is(x, levels[level].word[i])) {
			struct node *m = node(x, E_BIN);

			next(x);
			m->op = levels[level].op[i];
			m->a = n;
			m->b = binary(x, level + 1);
			n = m;
			i = -1;
		}
	return n;
}

/* Which comparison comes; 0: none. */
static char comparison(struct lex *x)
{
	static const char *const word[] = { "==", "!=", "<=", ">=", "<", ">", "in" };

	for (int i = 0; i < 7; i++)
		if (take(x, word[i]))
			return "=!lg<>i"[i];
	if (is(x, "not")) {
		const struct lex back = *x;
		int line = x->r->line;

		next(x);
		if (take(x, "in"))
			return 'n';
		*x = back;
		x->r->line = line;
	}
	return 0;
}

/* a, then kids: each with op and a */
static struct node *compare(struct lex *x)
{
	struct node *n = binary(x, 0), *all = NULL, **tail = NULL;
	char op;

	while ((op = comparison(x)) != 0) {
		struct node *k = node(x, E_LIST);

		if (all == NULL) {
			all = node(x, E_COMPARE);
			all->a = n;
			tail = &all->kids;
		}
		k->op = op;
		k->a = binary(x, 0);
		*tail = k;
		tail = &k->next;
	}
	return all != NULL ? all : n;
}

static struct node *negation(struct lex *x)
{
	struct node *n;

	if (!is(x, "not"))
		return compare(x);
	deeper(x);
	n = node(x, E_NOT);
	next(x);
	n->a = negation(x);
	x->r->depth--;
	return n;
}

static struct node *logic(struct lex *x, bool or)
{
	struct node *n = or ? logic(x, false) : negation(x);

	while (take(x, or ? "or" : "and")) {
		struct node *m = node(x, or ? E_OR : E_AND);

		m->a = n;
		m->b = or ? logic(x, false) : negation(x);
		n = m;
	}
	return n;
}

/* b if a else c */
static struct node *expr(struct lex *x)
{
	struct node *n;

	deeper(x);
	n = logic(x, true);
	while (take(x, "if")) {
		struct node *m = node(x, E_COND);

		m->b = n;
		m->a = logic(x, true);
		if (take(x, "else"))
			m->c = expr(x);
		n = m;
	}
	x->r->depth--;
	return n;
}

/* first, and what follows it after commas: a tuple */
static struct node *tuple_of(struct lex *x, struct node *first)
{
	struct node *n, **tail;

	if (!is(x, ","))
		return first;
	n = node(x, E_TUPLE);
	for (tail = &n->kids; first != NULL; tail = &(*tail)->next) {
		*tail = node(x, E_LIST);
		(*tail)->a = first;
		first = take(x, ",") && x->kind != T_END ? expr(x) : NULL;
	}
	return n;
}

static struct node *tuple(struct lex *x)
{
	return tuple_of(x, expr(x));
}

/* --- text between tags --- */

static void text_node(struct lex *x, const char *p, size_t n, struct node ***tail)
{
	struct node *t;

	if (n == 0)
		return;
	t = node(x, N_TEXT);
	t->name = jinja_str_new(x->r, p, n, JINJA_OWN);
	**tail = t;
	*tail = &t->next;
}

/* The length of the text before a tag that begins after it: '{%' and '{#' take the blanks of
 * their line with them. */
static size_t before_tag(const struct lex *x, const char *p, size_t n, char kind, char sign)
{
	size_t line = n;

	if (sign == '-') {
		while (n > 0 && isspace((unsigned char)p[n - 1]))
			n--;
		return n;
	}
	if (kind == '{' || sign == '+')
		return n;
	while (line > 0 && p[line - 1] != '\n' && isspace((unsigned char)p[line - 1]))
		line--;
	return line == 0 ? (x->line_starts ? 0 : n) : p[line - 1] == '\n' ? line : n;
}

/* After a tag: what '-' and trim_blocks take. */
static void after_tag(struct lex *x, char kind, char sign)
{
	const char *from = x->p;

	if (sign == '-')
		while (x->p < x->end && isspace((unsigned char)*x->p))
			x->p++;
	else if (kind != '{' && sign != '+' && x->p < x->end && *x->p == '\n')
		x->p++;
	count_lines(x, from, x->p);
	x->line_starts = x->p > from && x->p[-1] == '\n';
}

static void end_tag(struct lex *x)
{
	char sign = *x->at;

	if (x->kind != T_END)
		jinja_fail(x->r, "unexpected '%.*s'", (int)x->len, x->at);
	x->p = x->at + (sign == '-' || sign == '+') + 2;
	after_tag(x, x->close == '%' ? '%' : '{', sign);
}

static void begin_tag(struct lex *x, char close)
{
	x->close = close;
	x->nest = 0;
	next(x);
}

static const char *find(const char *p, const char *end, const char *what)
{
	return end > p ? memmem(p, (size_t)(end - p), what, strlen(what)) : NULL;
}

static void comment(struct lex *x)
{
	const char *close = find(x->p, x->end, "#}");

	if (close == NULL)
		jinja_fail(x->r, "a comment does not end");
	count_lines(x, x->p, close);
	x->p = close + 2;
	after_tag(x, '#', close[-1]);
}

/* --- statements --- */

static struct node *block(struct lex *x, const char *const *ends, const struct str **which)
{
	end_tag(x);
	return body_until(x, ends, which);
}

static void close_block(struct lex *x)
{
	while (x->kind == T_NAME)	/* {% endmacro name %} */
		next(x);
	end_tag(x);
}

static void check_target(struct lex *x, const struct node *t)
{
	if (t->k == E_TUPLE || t->k == E_LIST)
		for (const struct node *k = t->kids; k != NULL; k = k->next)
			check_target(x, k->a);
	else if (t->k != E_NAME && !(t->k == E_ATTR && t->a->k == E_NAME))
		jinja_fail(x->r, "cannot assign to this");
}

/* A name, an attribute of a namespace, or several of them. */
static struct node *target(struct lex *x)
{
	struct node *first = postfix(x, primary(x)), *all, **tail;

	if (is(x, ",")) {
		all = node(x, E_TUPLE);
		tail = &all->kids;
		do {
			*tail = node(x, E_LIST);
			(*tail)->a = first;
			tail = &(*tail)->next;
		} while (take(x, ",") && (first = postfix(x, primary(x))) != NULL);
		first = all;
	}
	check_target(x, first);
	return first;
}

/* a: what is gone through, c: body; kids: a target, b condition, c what else; flag: recursive */
static struct node *for_loop(struct lex *x)
{
	static const char *const ends[] = { "else", "endfor", NULL }, *const last[] =
	    { "endfor", NULL };
	struct node *n = node(x, N_FOR), *parts = node(x, E_LIST);
	const struct str *which;

	n->kids = parts;
	parts->a = target(x);
	want(x, "in");
	n->a = tuple_of(x, logic(x, true));
	if (take(x, "if"))
		parts->b = expr(x);
	if (take(x, "recursive"))
		jinja_fail(x->r, "recursive loops are not supported");
	x->loops++;
	n->c = block(x, ends, &which);
	x->loops--;
	if (jinja_str_is(which, "else"))
		parts->c = block(x, last, &which);
	close_block(x);
	return n;
}

/* a: condition, c: body; else: b another N_IF, or kids */
static struct node *if_block(struct lex *x)
{
	static const char *const ends[] = { "elif", "else", "endif", NULL }, *const last[] =
	    { "endif", NULL };
	struct node *n = node(x, N_IF);
	const struct str *which;

	deeper(x);
	n->a = tuple(x);
	n->c = block(x, ends, &which);
	if (jinja_str_is(which, "elif"))
		n->b = if_block(x);
	else if (jinja_str_is(which, "else")) {
		n->kids = block(x, last, &which);
		close_block(x);
	} else
		close_block(x);
	x->r->depth--;
	return n;
}

/* kids target; a value, or c a body, with filters around it in a (their innermost operand is
 * NULL) */
static struct node *set(struct lex *x)
{
	static const char *const ends[] = { "endset", NULL };
	struct node *n = node(x, N_SET);
	const struct str *which;

	n->kids = target(x);
	if (take(x, "=")) {
		n->a = tuple(x);
		end_tag(x);
		return n;
	}
	n->k = N_SETBLOCK;
	while (take(x, "|"))
		n->a = filter(x, n->a);
	n->c = block(x, ends, &which);
	close_block(x);
	return n;
}

/* Parameters: name, a its default or NULL. */
static struct node *parameters(struct lex *x)
{
	struct node *first = NULL, **tail = &first;

	while (!take(x, ")")) {
		struct node *p = node(x, E_LIST);

		p->name = name(x);
		if (take(x, "="))
			p->a = expr(x);
		*tail = p;
		tail = &p->next;
		if (!is(x, ")"))
			want(x, ",");
	}
	return first;
}

static struct node *macro(struct lex *x)
{
	static const char *const ends[] = { "endmacro", NULL };
	struct node *n = node(x, N_MACRO);
	const struct str *which;
	int loops = x->loops;

	n->name = name(x);
	want(x, "(");
	n->kids = parameters(x);
	x->loops = 0;
	n->c = block(x, ends, &which);
	x->loops = loops;
	close_block(x);
	return n;
}

/* {% call(x) m(..) %}: a the call, kids parameters */
static struct node *call_block(struct lex *x)
{
	static const char *const ends[] = { "endcall", NULL };
	struct node *n = node(x, N_CALLBLOCK);
	const struct str *which;

	if (take(x, "("))
		n->kids = parameters(x);
	n->a = expr(x);
	if (n->a->k != E_CALL)
		jinja_fail(x->r, "{%% call %%} needs a call");
	n->c = block(x, ends, &which);
	close_block(x);
	return n;
}

static struct node *filter_block(struct lex *x)
{
	static const char *const ends[] = { "endfilter", NULL };
	struct node *n = node(x, N_FILTERBLOCK);
	const struct str *which;

	do
		n->a = filter(x, n->a);
	while (take(x, "|"));
	n->c = block(x, ends, &which);
	close_block(x);
	return n;
}

static struct node *generation(struct lex *x)
{
	static const char *const ends[] = { "endgeneration", NULL };
	struct node *n = node(x, N_GENERATION);
	const struct str *which;

	*x->marks = true;
	n->c = block(x, ends, &which);
	close_block(x);
	return n;
}

static struct node *with_block(struct lex *x)
{
	static const char *const ends[] = { "endwith", NULL };
	struct node *n = node(x, N_WITH), **tail = &n->kids;
	const struct str *which;

	while (x->kind == T_NAME) {
		struct node *p = node(x, E_LIST);

		p->name = name(x);
		want(x, "=");
		p->a = expr(x);
		*tail = p;
		tail = &p->next;
		if (!take(x, ","))
			break;
	}
	n->c = block(x, ends, &which);
	close_block(x);
	return n;
}

static struct node *leave_loop(struct lex *x, enum nkind k)
{
	if (x->loops == 0)
		jinja_fail(x->r, "'%s' outside of a loop", k == N_BREAK ? "break" : "continue");
	end_tag(x);
	return node(x, k);
}

static struct node *statement(struct lex *x)
{
	if (take(x, "for"))
		return for_loop(x);
	if (take(x, "if"))
		return if_block(x);
	if (take(x, "set"))
		return set(x);
	if (take(x, "macro"))
		return macro(x);
	if (take(x, "call"))
		return call_block(x);
	if (take(x, "filter"))
		return filter_block(x);
	if (take(x, "generation"))
		return generation(x);
	if (take(x, "with"))
		return with_block(x);
	if (take(x, "break"))
		return leave_loop(x, N_BREAK);
	if (take(x, "continue"))
		return leave_loop(x, N_CONTINUE);
	jinja_fail(x->r, "unknown tag '%.*s'", (int)x->len, x->at);
}

/* {% raw %}: its text is not looked at. */
static void raw(struct lex *x, struct node ***tail)
{
	const char *from, *p;

	end_tag(x);
	from = p = x->p;
	for (;;) {
		const char *tag = find(p, x->end, "{%"), *q;

		if (tag == NULL)
			jinja_fail(x->r, "{%% raw %%} does not end");
		q = tag + 2 + (tag[2] == '-' || tag[2] == '+');
		while (q < x->end && isspace((unsigned char)*q))
			q++;
		if (x->end - q > 6 && memcmp(q, "endraw", 6) == 0) {
			text_node(x, from, before_tag(x, from, (size_t)(tag - from), '%', tag[2]),
			    tail);
			count_lines(x, from, q);
			x->p = q + 6;
			begin_tag(x, '%');
			end_tag(x);
			return;
		}
		p = tag + 2;
	}
}

/* Everything up to a tag that one of the ends names, which is taken; ends NULL: to the end of
 * the source. */
static struct node *body_until(struct lex *x, const char *const *ends, const struct str **which)
{
	struct node *first = NULL, **tail = &first;

	deeper(x);
	for (;;) {
		const char *from = x->p, *tag = from;
		char kind, sign;

		while ((tag = find(tag, x->end, "{")) != NULL && tag + 1 < x->end &&
		    strchr("{%#", tag[1]) == NULL)
			tag++;
		if (tag == NULL || tag + 1 >= x->end) {
			if (ends != NULL)
				jinja_fail(x->r, "the template ends before {%% %s %%}", ends[0]);
			text_node(x, from, (size_t)(x->end - from), &tail);
			break;
		}
		kind = tag[1];
		sign = tag + 2 < x->end ? tag[2] : '\0';
		text_node(x, from, before_tag(x, from, (size_t)(tag - from), kind, sign), &tail);
		count_lines(x, from, tag);
		x->p = tag + 2 + (sign == '-' || sign == '+');
		if (kind == '#') {
			comment(x);
			continue;
		}
		begin_tag(x, kind == '%' ? '%' : '}');
		if (kind == '{') {
			struct node *n = node(x, N_OUT);

			n->a = tuple(x);
			end_tag(x);
			*tail = n;
			tail = &n->next;
			continue;
		}
		for (int i = 0; ends != NULL && ends[i] != NULL; i++)
			if (is(x, ends[i])) {
				*which = name(x);
				x->r->depth--;
				return first;
			}
		if (take(x, "raw")) {
			raw(x, &tail);
			continue;
		}
		*tail = statement(x);
		tail = &(*tail)->next;
	}
	x->r->depth--;
	return first;
}

struct node *jinja_parse(struct run *r, const char *source, size_t n, bool *marks)
{
	struct lex x = { .r = r, .p = source, .end = source + n, .line_starts = true,
	    .marks = marks };

	if (n > 0 && source[n - 1] == '\n')
		x.end--;
	r->line = 1;
	return body_until(&x, NULL, NULL);
}

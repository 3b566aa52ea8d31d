/* Walks the tree of a template. A scope is a frame of names; a loop's round, a macro and a block
 * that is kept have their own. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "text/jinja_int.h"

enum { OUTPUT = 64 << 20 };		/* bytes of a rendering */

static struct val eval(struct run *r, struct frame *f, const struct node *n);
static enum leave run(struct run *r, struct frame *f, const struct node *n);

void jinja_write(struct run *r, const struct str *s)
{
	struct sink *o = r->out;

	if (s->n == 0)
		return;
	if (s->n > OUTPUT || o->n + s->n > OUTPUT)
		jinja_fail(r, "the template writes more than %d MiB", OUTPUT >> 20);
	if (o->n + s->n >= o->cap) {
		size_t cap = 2 * (o->n + s->n) + 256;
		char *p = jinja_alloc(r, cap);
		uint8_t *from = jinja_alloc(r, cap);

		if (o->n > 0) {
			memcpy(p, o->p, o->n);
			memcpy(from, o->from, o->n);
		}
		o->p = p, o->from = from, o->cap = cap;
	}
	memcpy(o->p + o->n, s->p, s->n);
	for (size_t i = 0; i < s->n; i++)
		o->from[o->n + i] = (uint8_t)((s->from ? s->from[i] : s->origin) | (r->learn
		    ? JINJA_LEARN : 0));
	o->n += s->n;
}

/* --- names --- */

static struct val *find(struct frame *f, const struct str *name)
{
	for (; f != NULL; f = f->up)
		for (int i = f->n - 1; i >= 0; i--)
			if (jinja_str_same(f->name[i], name))
				return &f->v[i];
	return NULL;
}

static void define(struct run *r, struct frame *f, const struct str *name, struct val v)
{
	for (int i = 0; i < f->n; i++)
		if (jinja_str_same(f->name[i], name)) {
			f->v[i] = v;
			return;
		}
	if (f->n == f->cap) {
		const struct str **names = jinja_alloc(r, (size_t)(2 * f->cap + 4) * sizeof *names);
		struct val *values = jinja_alloc(r, (size_t)(2 * f->cap + 4) * sizeof *values);

		if (f->n > 0) {
			memcpy(names, f->name, (size_t)f->n * sizeof *names);
			memcpy(values, f->v, (size_t)f->n * sizeof *values);
		}
		f->name = names, f->v = values, f->cap = 2 * f->cap + 4;
	}
	f->name[f->n] = name;
	f->v[f->n++] = v;
}

static struct frame *inner(struct run *r, struct frame *up)
{
	struct frame *f = jinja_alloc(r, sizeof *f);

	*f = (struct frame){ .up = up };
	return f;
}

static struct val undefined(struct run *r, const struct str *name)
{
	char *text = jinja_alloc(r, name->n + 1);

	memcpy(text, name->p, name->n);
	text[name->n] = '\0';
	return jinja_val_undef(text);
}

static struct val lookup(struct run *r, struct frame *f, const struct str *name)
{
	struct val *v = find(f, name);
	int func;

	if (v != NULL)
		return *v;
	if ((func = jinja_lib_find_func(name)) >= 0)
		return (struct val){ .k = V_FUNC, .func = func };
	return undefined(r, name);
}

/* --- attributes and elements --- */

static struct val loop_attr(struct run *r, const struct loop *l, const struct str *name)
{
	int n = l->items->n;

	if (jinja_str_is(name, "index0"))
		return jinja_val_int(l->at);
	if (jinja_str_is(name, "index"))
		return jinja_val_int(l->at + 1);
	if (jinja_str_is(name, "revindex0"))
		return jinja_val_int(n - l->at - 1);
	if (jinja_str_is(name, "revindex"))
		return jinja_val_int(n - l->at);
	if (jinja_str_is(name, "first"))
		return jinja_val_bool(l->at == 0);
	if (jinja_str_is(name, "last"))
		return jinja_val_bool(l->at == n - 1);
	if (jinja_str_is(name, "length"))
		return jinja_val_int(n);
	if (jinja_str_is(name, "depth") || jinja_str_is(name, "depth0"))
		return jinja_val_int(l->depth - (name->n == 6));
	if (jinja_str_is(name, "previtem"))
		return l->at > 0 ? l->items->v[l->at - 1]
		    : jinja_val_undef("there is no previous item");
	if (jinja_str_is(name, "nextitem"))
		return l->at + 1 < n ? l->items->v[l->at + 1]
		    : jinja_val_undef("there is no next item");
	if (jinja_str_is(name, "cycle")) {
		struct method *m = jinja_alloc(r, sizeof *m);

		*m = (struct method){ { .k = V_LOOP, .loop = l }, name };
		return (struct val){ .k = V_METHOD, .bound = m };
	}
	return jinja_val_undef("loop has no such attribute");
}

static struct val bound(struct run *r, struct val v, const struct str *name)
{
	struct method *m = jinja_alloc(r, sizeof *m);

	*m = (struct method){ v, name };
	return (struct val){ .k = V_METHOD, .bound = m };
}

static void need_defined(struct run *r, struct val v)
{
	if (v.k == V_UNDEF)
		jinja_fail(r, "'%s' is undefined", v.name);
}

/* v.name: an attribute or a method, else an element */
struct val jinja_attr(struct run *r, struct val v, const struct str *name)
{
	struct val *item = NULL;

	need_defined(r, v);
	if (v.k == V_LOOP)
		return loop_attr(r, v.loop, name);
	if (v.k == V_NS)
		item = jinja_dict_find(v.d, name);
	else if (jinja_lib_has_method(v, name))
		return bound(r, v, name);
	else if (v.k == V_DICT)
		item = jinja_dict_find(v.d, name);
	else if (v.k == V_MACRO && jinja_str_is(name, "name"))
		return jinja_val_str(v.m->def->name);
	return item != NULL ? *item : undefined(r, name);
}

/* An index that counts from the end when it is negative; -1: outside. */
static int64_t index_in(int64_t i, int64_t n)
{
	i += i < 0 ? n : 0;
	return i >= 0 && i < n ? i : -1;
}

static struct val item_at(struct run *r, struct val v, struct val key)
{
	int64_t i;
	struct val *item;

	need_defined(r, v);
	if (v.k == V_DICT || v.k == V_NS) {
		item = key.k == V_LIST || key.k == V_DICT || key.k == V_UNDEF ? NULL
		    : jinja_dict_get(v.d, key);
		if (item != NULL)
			return *item;
	} else if ((v.k == V_LIST || v.k == V_STR) && (key.k == V_INT || key.k == V_BOOL)) {
		int64_t n = v.k == V_LIST ? v.l->n : jinja_str_count(v.s);

		i = index_in(key.k == V_INT ? key.i : key.b, n);
		if (i >= 0 && v.k == V_LIST)
			return v.l->v[i];
		if (i >= 0) {
			size_t at = jinja_str_at(v.s, i);

			return jinja_val_str(jinja_str_slice(r, v.s, at, jinja_str_at(v.s, i + 1) -
			    at));
		}
	}
	return key.k == V_STR && jinja_lib_has_method(v, key.s) ? bound(r, v, key.s)
	    : jinja_val_undef("element");
}

static int64_t bound_of(struct run *r, struct frame *f, const struct node *n, int64_t absent)
{
	struct val v;

	if (n == NULL)
		return absent;
	v = eval(r, f, n);
	if (v.k == V_NONE)
		return absent;
	if (v.k != V_INT)
		jinja_fail(r, "the bound of a slice is %s", jinja_val_type(v));
	return v.i;
}

static int64_t clip(int64_t i, int64_t n, int64_t low, int64_t high)
{
	i += i < 0 ? n : 0;
	return i < low ? low : i > high ? high : i;
}

static struct val slice(struct run *r, struct frame *f, const struct node *n)
{
	struct val v = eval(r, f, n->a), out;
	int64_t step = bound_of(r, f, n->kids->b, 1), len, from, to;
	struct list *l;

	need_defined(r, v);
	if (v.k != V_STR && v.k != V_LIST)
		jinja_fail(r, "%s cannot be sliced", jinja_val_type(v));
	if (step == 0)
		jinja_fail(r, "the step of a slice is zero");
	len = v.k == V_STR ? jinja_str_count(v.s) : v.l->n;
	from = bound_of(r, f, n->b, step > 0 ? 0 : len - 1);
	to = bound_of(r, f, n->kids->a, step > 0 ? len : -1 - len);
	from = step > 0 ? clip(from, len, 0, len) : clip(from, len, -1, len - 1);
	to = step > 0 ? clip(to, len, 0, len) : clip(to, len, -1, len - 1);
	if (v.k == V_STR && step == 1) {
		size_t at = jinja_str_at(v.s, from);

		return jinja_val_str(jinja_str_slice(r, v.s, at, to > from ? jinja_str_at(v.s, to) -
		    at : 0));
	}
	l = jinja_val_items(r, v);
	out = v.k == V_STR ? jinja_val_str(jinja_str_of(r, "")) : jinja_val_list(r, v.l->tuple);
	for (int64_t i = from; step > 0 ? i < to : i > to; i += step) {
		jinja_step(r, 1);
		if (v.k == V_STR)
			out.s = jinja_str_join(r, out.s, l->v[i].s);
		else
			jinja_list_push(r, out.l, l->v[i]);
	}
	return out;
}

/* --- operators --- */

static bool numeric(struct val v) { return v.k == V_INT || v.k == V_FLOAT || v.k == V_BOOL; }
static double real_of(struct val v)
{
	return v.k == V_FLOAT ? v.f : v.k == V_BOOL ? v.b : (double)v.i;
}
static int64_t int_of(struct val v) { return v.k == V_BOOL ? v.b : v.i; }

static struct val real(double f) { return (struct val){ .k = V_FLOAT, .f = f }; }

static int64_t floor_div(int64_t a, int64_t b)
{
	return a / b - (a % b != 0 && (a < 0) != (b < 0));
}

static struct val int_power(struct run *r, int64_t a, int64_t b)
{
	int64_t v = 1;

	if (b < 0)
		return real(pow((double)a, (double)b));
	for (int64_t i = 0; i < b; i++) {
		jinja_step(r, 1);
		if (__builtin_mul_overflow(v, a, &v))
			jinja_fail(r, "a number is too large");
	}
	return jinja_val_int(v);
}

static struct val int_math(struct run *r, char op, int64_t a, int64_t b)
{
	int64_t v = 0;
	bool over = false;

	if (strchr("/;%", op) != NULL && b == 0)
		jinja_fail(r, "division by zero");
	if (b == -1 && strchr(";%", op) != NULL)
		return op == '%' ? jinja_val_int(0) : int_math(r, '*', a, -1);
	switch (op) {
	case '+': over = __builtin_add_overflow(a, b, &v); break;
	case '-': over = __builtin_sub_overflow(a, b, &v); break;
	case '*': over = __builtin_mul_overflow(a, b, &v); break;
	case '/': return real((double)a / (double)b);
	case ';': v = floor_div(a, b); break;
	case '%': v = a - floor_div(a, b) * b; break;
	default: return int_power(r, a, b);
	}
	if (over)
		jinja_fail(r, "a number is too large");
	return jinja_val_int(v);
}

static struct val real_math(struct run *r, char op, double a, double b)
{
	if (strchr("/;%", op) != NULL && b == 0)
		jinja_fail(r, "division by zero");
	switch (op) {
	case '+': return real(a + b);
	case '-': return real(a - b);
	case '*': return real(a * b);
	case '/': return real(a / b);
	case ';': return real(floor(a / b));
	case '%': return real(a - floor(a / b) * b);
	default: return real(pow(a, b));
	}
}

static struct val repeat(struct run *r, struct val v, int64_t times)
{
	struct val out = v.k == V_STR ? jinja_val_str(jinja_str_of(r, ""))
	    : jinja_val_list(r, v.l->tuple);
	size_t size = v.k == V_STR ? v.s->n : (size_t)v.l->n;

	if (times > 0 && size > 0 && (size_t)times > (1 << 20) / size)
		jinja_fail(r, "a repeated %s is too long", jinja_val_type(v));
	for (int64_t i = 0; i < times && size > 0; i++)
		if (v.k == V_STR)
			out.s = jinja_str_join(r, out.s, v.s);
		else
			for (int k = 0; k < v.l->n; k++)
				jinja_list_push(r, out.l, v.l->v[k]);
	return out;
}

static struct val join_lists(struct run *r, const struct list *a, const struct list *b)
{
	struct val out = jinja_val_list(r, a->tuple);

	for (int i = 0; i < a->n; i++)
		jinja_list_push(r, out.l, a->v[i]);
	for (int i = 0; i < b->n; i++)
		jinja_list_push(r, out.l, b->v[i]);
	return out;
}

/* "..." % values: %s, %d, %f and the like. */
static struct val percent(struct run *r, const struct str *fmt, struct val v)
{
	const struct str *out = jinja_str_of(r, "");
	int next = 0;

	for (size_t i = 0; i < fmt->n; i++) {
		char spec[24] = "%", buf[400];
		size_t k = 1;
		struct val arg = v;

		if (fmt->p[i] != '%' || (i + 1 < fmt->n && fmt->p[i + 1] == '%')) {
			out = jinja_str_join(r, out, jinja_str_slice(r, fmt, i, 1));
			i += fmt->p[i] == '%';
			continue;
		}
		for (i++; i < fmt->n && strchr("0123456789.+- #", fmt->p[i]) != NULL && k < 12; i++)
			spec[k++] = fmt->p[i];
		if (v.k == V_LIST && v.l->tuple) {
			if (next >= v.l->n)
				jinja_fail(r, "not enough values for a format");
			arg = v.l->v[next++];
		}
		if (i >= fmt->n || strchr("sdifrgex", fmt->p[i]) == NULL || atoi(spec + 1) > 300)
			jinja_fail(r, "this format is not supported");
		if (fmt->p[i] == 's' || fmt->p[i] == 'r') {
			out = jinja_str_join(r, out, fmt->p[i] == 's' ? jinja_val_text(r, arg)
			    : jinja_val_repr(r, arg));
			continue;
		}
		if (!numeric(arg))
			jinja_fail(r, "a number is wanted, not %s", jinja_val_type(arg));
		if (strchr("dix", fmt->p[i]) != NULL) {
			memcpy(spec + k, fmt->p[i] == 'x' ? "llx" : "lld", 4);
			snprintf(buf, sizeof buf, spec,
			    (long long)(arg.k == V_FLOAT ? (int64_t)arg.f : int_of(arg)));
		} else {
			spec[k] = fmt->p[i];
			snprintf(buf, sizeof buf, spec, real_of(arg));
		}
		out = jinja_str_join(r, out, jinja_str_new(r, memcpy(jinja_alloc(r, strlen(buf)),
		    buf, strlen(buf)), strlen(buf),
		    JINJA_DATA));
	}
	return jinja_val_str(out);
}

static struct val binary(struct run *r, char op, struct val a, struct val b)
{
	if (op == '~')
		return jinja_val_str(jinja_str_join(r, jinja_val_text(r, a), jinja_val_text(r, b)));
	need_defined(r, a);
	if (op == '%' && a.k == V_STR)
		return percent(r, a.s, b);
	need_defined(r, b);
	if (op == '+' && a.k == V_STR && b.k == V_STR)
		return jinja_val_str(jinja_str_join(r, a.s, b.s));
	if (op == '+' && a.k == V_LIST && b.k == V_LIST && a.l->tuple == b.l->tuple)
		return join_lists(r, a.l, b.l);
	if (op == '*' && (a.k == V_STR || a.k == V_LIST) && (b.k == V_INT || b.k == V_BOOL))
		return repeat(r, a, int_of(b));
	if (op == '*' && (b.k == V_STR || b.k == V_LIST) && (a.k == V_INT || a.k == V_BOOL))
		return repeat(r, b, int_of(a));
	if (!numeric(a) || !numeric(b))
		jinja_fail(r, "'%c' is not for %s and %s", op, jinja_val_type(a),
		    jinja_val_type(b));
	if (a.k == V_FLOAT || b.k == V_FLOAT)
		return real_math(r, op, real_of(a), real_of(b));
	return int_math(r, op, int_of(a), int_of(b));
}

static bool contains(struct run *r, struct val in, struct val v)
{
	if (in.k == V_STR) {
		if (v.k != V_STR)
			jinja_fail(r, "'in' a string needs a string, not %s", jinja_val_type(v));
		return v.s->n == 0 || memmem(in.s->p, in.s->n, v.s->p, v.s->n) != NULL;
	}
	if (in.k == V_DICT)
		return v.k != V_LIST && v.k != V_DICT && v.k != V_UNDEF &&
		    jinja_dict_get(in.d, v) != NULL;
	if (in.k == V_UNDEF)
		return false;
	if (in.k != V_LIST)
		jinja_fail(r, "'in' is not for %s", jinja_val_type(in));
	for (int i = 0; i < in.l->n; i++)
		if (jinja_val_equal(r, in.l->v[i], v))
			return true;
	return false;
}

static bool holds(struct run *r, char op, struct val a, struct val b)
{
	int order;

	switch (op) {
	case '=': return jinja_val_equal(r, a, b);
	case '!': return !jinja_val_equal(r, a, b);
	case 'i': return contains(r, b, a);
	case 'n': return !contains(r, b, a);
	}
	need_defined(r, a);
	need_defined(r, b);
	order = jinja_val_order(r, a, b);
	return op == '<' ? order < 0 : op == '>' ? order > 0 : op == 'l' ? order <= 0 : order >= 0;
}

static struct val compare(struct run *r, struct frame *f, const struct node *n)
{
	struct val a = eval(r, f, n->a);

	for (const struct node *k = n->kids; k != NULL; k = k->next) {
		struct val b = eval(r, f, k->a);

		if (!holds(r, k->op, a, b))
			return jinja_val_bool(false);
		a = b;
	}
	return jinja_val_bool(true);
}

/* --- calls --- */

static struct args arguments(struct run *r, struct frame *f, const struct node *list)
{
	struct args a = { 0 };
	int n = 0;

	for (const struct node *k = list; k != NULL; k = k->next)
		n++;
	a.v = jinja_alloc(r, (size_t)(n + 1) * sizeof *a.v);
	a.kwv = jinja_alloc(r, (size_t)(n + 1) * sizeof *a.kwv);
	a.kw = jinja_alloc(r, (size_t)(n + 1) * sizeof *a.kw);
	for (const struct node *k = list; k != NULL; k = k->next)
		if (k->name != NULL) {
			a.kw[a.nkw] = k->name;
			a.kwv[a.nkw++] = eval(r, f, k->a);
		} else
			a.v[a.n++] = eval(r, f, k->a);
	return a;
}

/* Runs a body and returns what it writes. */
static struct val captured(struct run *r, struct frame *f, const struct node *body)
{
	struct sink own = { 0 }, *before = r->out;
	struct str *s = jinja_alloc(r, sizeof *s);

	r->out = &own;
	run(r, f, body);
	r->out = before;
	for (size_t i = 0; i < own.n; i++)
		own.from[i] &= JINJA_FROM;
	*s = (struct str){ .p = own.p ? own.p : "", .from = own.from, .n = own.n };
	return jinja_val_str(s);
}

static const struct val *keyword(const struct args *a, const struct str *name)
{
	for (int i = 0; i < a->nkw; i++)
		if (jinja_str_same(a->kw[i], name))
			return &a->kwv[i];
	return NULL;
}

static struct val call_macro(struct run *r, const struct macro *m, const struct args *a)
{
	struct frame *f = inner(r, m->home);
	struct val varargs = jinja_val_list(r, true), kwargs = jinja_val_dict(r);
	const struct val *caller;
	int i = 0;

	for (const struct node *p = m->def->kids; p != NULL; p = p->next, i++) {
		const struct val *v = i < a->n ? &a->v[i] : keyword(a, p->name);

		define(r, f, p->name, v != NULL ? *v : p->a != NULL ? eval(r, f, p->a)
		    : jinja_val_undef("parameter"));
	}
	for (; i < a->n; i++)
		jinja_list_push(r, varargs.l, a->v[i]);
	for (int k = 0; k < a->nkw; k++)
		jinja_dict_set(r, kwargs.d, jinja_val_str(a->kw[k]), a->kwv[k]);
	define(r, f, jinja_str_of(r, "varargs"), varargs);
	define(r, f, jinja_str_of(r, "kwargs"), kwargs);
	if ((caller = keyword(a, jinja_str_of(r, "caller"))) != NULL)
		define(r, f, jinja_str_of(r, "caller"), *caller);
	return captured(r, f, m->def->c);
}

struct val jinja_call(struct run *r, struct val fn, const struct args *a)
{
	struct val v;

	if (++r->depth > JINJA_DEPTH)
		jinja_fail(r, "calls nested more than %d deep", JINJA_DEPTH);
	if (fn.k == V_MACRO)
		v = call_macro(r, fn.m, a);
	else if (fn.k == V_FUNC)
		v = jinja_lib_func(r, fn.func, a);
	else if (fn.k == V_METHOD)
		v = jinja_lib_method(r, fn.bound, a);
	else if (fn.k == V_UNDEF)
		jinja_fail(r, "'%s' is undefined", fn.name);
	else
		jinja_fail(r, "'%s' cannot be called", jinja_val_type(fn));
	r->depth--;
	return v;
}

static struct val call(struct run *r, struct frame *f, const struct node *n)
{
	struct val fn = eval(r, f, n->a);
	struct args a = arguments(r, f, n->kids);

	r->line = n->line;
	return jinja_call(r, fn, &a);
}

/* --- expressions --- */

static struct val sequence(struct run *r, struct frame *f, const struct node *n)
{
	struct val v = jinja_val_list(r, n->k == E_TUPLE);

	for (const struct node *k = n->kids; k != NULL; k = k->next)
		jinja_list_push(r, v.l, eval(r, f, k->a));
	return v;
}

static struct val dictionary(struct run *r, struct frame *f, const struct node *n)
{
	struct val v = jinja_val_dict(r);

	for (const struct node *k = n->kids; k != NULL; k = k->next) {
		struct val key = eval(r, f, k->a);

		jinja_dict_set(r, v.d, key, eval(r, f, k->b));
	}
	return v;
}

static struct val negative(struct run *r, struct val v, bool plus)
{
	if (!numeric(v))
		jinja_fail(r, "a sign is not for %s", jinja_val_type(v));
	if (v.k == V_FLOAT)
		return real(plus ? v.f : -v.f);
	return int_math(r, plus ? '+' : '-', 0, int_of(v));
}

static struct val filtered(struct run *r, struct frame *f, const struct node *n)
{
	struct val v = eval(r, f, n->a);
	struct args a = arguments(r, f, n->kids);

	r->line = n->line;
	return jinja_lib_filter(r, n->name, v, &a);
}

static struct val tested(struct run *r, struct frame *f, const struct node *n)
{
	struct val v = eval(r, f, n->a);
	struct args a = arguments(r, f, n->kids);

	r->line = n->line;
	return jinja_val_bool(jinja_lib_test(r, n->name, v, &a));
}

static struct val eval_one(struct run *r, struct frame *f, const struct node *n)
{
	struct val v;

	switch (n->k) {
	case E_CONST: return n->value;
	case E_NAME: return lookup(r, f, n->name);
	case E_LIST: case E_TUPLE: return sequence(r, f, n);
	case E_DICT: return dictionary(r, f, n);
	case E_ATTR: return jinja_attr(r, eval(r, f, n->a), n->name);
	case E_ITEM:
		v = eval(r, f, n->a);
		return item_at(r, v, eval(r, f, n->b));
	case E_SLICE: return slice(r, f, n);
	case E_CALL: return call(r, f, n);
	case E_FILTER: return filtered(r, f, n);
	case E_TEST: return tested(r, f, n);
	case E_NOT: return jinja_val_bool(!jinja_val_true(eval(r, f, n->a)));
	case E_NEG: case E_POS: return negative(r, eval(r, f, n->a), n->k == E_POS);
	case E_BIN:
		v = eval(r, f, n->a);
		return binary(r, n->op, v, eval(r, f, n->b));
	case E_AND:
		v = eval(r, f, n->a);
		return jinja_val_true(v) ? eval(r, f, n->b) : v;
	case E_OR:
		v = eval(r, f, n->a);
		return jinja_val_true(v) ? v : eval(r, f, n->b);
	case E_COND:
		if (jinja_val_true(eval(r, f, n->a)))
			return eval(r, f, n->b);
		return n->c != NULL ? eval(r, f, n->c)
		    : jinja_val_undef("the inline if without else");
	default: return compare(r, f, n);
	}
}

static struct val eval(struct run *r, struct frame *f, const struct node *n)
{
	struct val v;

	r->line = n->line;
	jinja_step(r, 1);
	if (++r->depth > JINJA_DEPTH)
		jinja_fail(r, "nested more than %d deep", JINJA_DEPTH);
	v = eval_one(r, f, n);
	r->depth--;
	return v;
}

/* --- statements --- */

static void assign(struct run *r, struct frame *f, const struct node *target, struct val v)
{
	struct list *l;
	int i = 0;

	if (target->k == E_NAME) {
		define(r, f, target->name, v);
		return;
	}
	if (target->k == E_ATTR) {
		struct val ns = eval(r, f, target->a);

		if (ns.k != V_NS)
			jinja_fail(r, "cannot assign an attribute of %s: it is no namespace",
			    jinja_val_type(ns));
		jinja_dict_set(r, ns.d, jinja_val_str(target->name), v);
		return;
	}
	l = jinja_val_items(r, v);
	for (const struct node *k = target->kids; k != NULL; k = k->next, i++) {
		if (i >= l->n)
			jinja_fail(r, "not enough values to take apart (got %d)", l->n);
		assign(r, f, k->a, l->v[i]);
	}
	if (i < l->n)
		jinja_fail(r, "too many values to take apart (expected %d)", i);
}

static const struct list *chosen(struct run *r, struct frame *f, const struct node *n)
{
	const struct list *all = jinja_val_items(r, eval(r, f, n->a));
	struct list *some;

	if (n->kids->b == NULL)
		return all;
	some = jinja_val_list(r, false).l;
	for (int i = 0; i < all->n; i++) {
		struct frame *own = inner(r, f);

		assign(r, own, n->kids->a, all->v[i]);
		if (jinja_val_true(eval(r, own, n->kids->b)))
			jinja_list_push(r, some, all->v[i]);
	}
	return some;
}

static void loop(struct run *r, struct frame *f, const struct node *n)
{
	struct loop *l = jinja_alloc(r, sizeof *l);
	const struct str *name = jinja_str_of(r, "loop");
	const struct val *around = find(f, name);

	*l = (struct loop){ .items = chosen(r, f, n),
	    .depth = around != NULL && around->k == V_LOOP ? around->loop->depth + 1 : 1 };
	if (l->items->n == 0)
		run(r, inner(r, f), n->kids->c);
	for (; l->at < l->items->n; l->at++) {
		struct frame *own = inner(r, f);

		jinja_step(r, 1);
		define(r, own, name, (struct val){ .k = V_LOOP, .loop = l });
		assign(r, own, n->kids->a, l->items->v[l->at]);
		if (run(r, own, n->c) == LEAVE_LOOP)
			return;
	}
}

static enum leave branch(struct run *r, struct frame *f, const struct node *n)
{
	for (; !jinja_val_true(eval(r, f, n->a)); n = n->b)
		if (n->b == NULL)
			return run(r, f, n->kids);
	return run(r, f, n->c);
}

/* The filters of a block, around what it wrote. */
static struct val apply(struct run *r, struct frame *f, const struct node *filter, struct val v)
{
	struct args a;

	if (filter == NULL)
		return v;
	v = apply(r, f, filter->a, v);
	a = arguments(r, f, filter->kids);
	return jinja_lib_filter(r, filter->name, v, &a);
}

static struct val new_macro(struct run *r, struct frame *f, const struct node *n)
{
	struct macro *m = jinja_alloc(r, sizeof *m);

	*m = (struct macro){ n, f };
	return (struct val){ .k = V_MACRO, .m = m };
}

static void call_block(struct run *r, struct frame *f, const struct node *n)
{
	struct val fn = eval(r, f, n->a->a);
	struct args a = arguments(r, f, n->a->kids);

	a.kw[a.nkw] = jinja_str_of(r, "caller");
	a.kwv[a.nkw++] = new_macro(r, f, n);
	jinja_write(r, jinja_val_text(r, jinja_call(r, fn, &a)));
}

static void generation(struct run *r, struct frame *f, const struct node *n)
{
	bool before = r->learn;

	r->learn = true;
	run(r, inner(r, f), n->c);
	r->learn = before;
}

static void with_block(struct run *r, struct frame *f, const struct node *n)
{
	struct frame *own = inner(r, f);

	for (const struct node *k = n->kids; k != NULL; k = k->next)
		define(r, own, k->name, eval(r, f, k->a));
	run(r, own, n->c);
}

static enum leave run_one(struct run *r, struct frame *f, const struct node *n)
{
	switch (n->k) {
	case N_TEXT: jinja_write(r, n->name); break;
	case N_OUT: jinja_write(r, jinja_val_text(r, eval(r, f, n->a))); break;
	case N_FOR: loop(r, f, n); break;
	case N_IF: return branch(r, f, n);
	case N_SET: assign(r, f, n->kids, eval(r, f, n->a)); break;
	case N_SETBLOCK: assign(r, f, n->kids, apply(r, f, n->a, captured(r, inner(r, f), n->c)));
	    break;
	case N_MACRO: define(r, f, n->name, new_macro(r, f, n)); break;
	case N_CALLBLOCK: call_block(r, f, n); break;
	case N_FILTERBLOCK:
		jinja_write(r, jinja_val_text(r,
		    apply(r, f, n->a, captured(r, inner(r, f), n->c))));
		break;
	case N_GENERATION: generation(r, f, n); break;
	case N_WITH: with_block(r, f, n); break;
	case N_BREAK: return LEAVE_LOOP;
	default: return NEXT_ROUND;
	}
	return GO_ON;
}

static enum leave run(struct run *r, struct frame *f, const struct node *n)
{
	for (; n != NULL; n = n->next) {
		enum leave l;

		jinja_step(r, 1);
		r->line = n->line;
		if ((l = run_one(r, f, n)) != GO_ON)
			return l;
	}
	return GO_ON;
}

/* --- opening and rendering --- */

/* Alone in its function, so that what longjmp finds is not in registers. */
static int parse(struct run *r, struct jinja *t, size_t n)
{
	if (setjmp(r->fail) != 0)
		return -1;
	t->body = jinja_parse(r, t->source, n, &t->marks);
	t->tail = jinja_tail(t->body);
	return 0;
}

struct jinja *jinja_open(const char *source, size_t len, const char *name, struct err *e)
{
	struct jinja *t = calloc(1, sizeof *t);
	struct run r = { .name = name, .e = e };
	size_t n = 0;

	if (t == NULL || (t->source = malloc(len + 1)) == NULL || (t->name = strdup(name)) == NULL)
		err_die(EX_OSERR, "out of memory");
	for (size_t i = 0; i < len; i++)		/* lines end as Jinja's do */
		if (source[i] != '\r')
			t->source[n++] = source[i];
		else if (i + 1 == len || source[i + 1] != '\n')
			t->source[n++] = '\n';
	t->source[n] = '\0';
	t->arena.limit = JINJA_BYTES;
	r.arena = &t->arena;
	if (parse(&r, t, n) == 0)
		return t;
	jinja_close(t);
	return NULL;
}

void jinja_close(struct jinja *t)
{
	if (t == NULL)
		return;
	jinja_arena_free(&t->arena);
	free(t->name);
	free(t->source);
	free(t);
}

int jinja_marks(const struct jinja *t) { return t->marks; }

static void variables(struct run *r, const json_t *o, uint8_t origin)
{
	const char *key;
	json_t *v;

	json_object_foreach((json_t *)o, key, v)
		define(r, r->globals, jinja_str_of(r, key), jinja_val_json(r, v, origin));
}

static void copy_out(const struct sink *s, struct jinja_text *out)
{
	out->text = malloc(s->n + 1);
	out->from = malloc(s->n + 1);
	if (out->text == NULL || out->from == NULL)
		err_die(EX_OSERR, "out of memory");
	if (s->n > 0) {
		memcpy(out->text, s->p, s->n);
		memcpy(out->from, s->from, s->n);
	}
	out->text[s->n] = '\0';
	out->len = s->n;
}

/* What a template's end writes with other values. */
struct tails { int n; json_t *const *again; struct sink *sink; };

static int render(struct run *r, const struct jinja *t, const json_t *own, const json_t *given,
    const struct tails *tails)
{
	if (setjmp(r->fail) != 0)
		return -1;
	r->globals = inner(r, NULL);
	variables(r, own, JINJA_OWN);
	variables(r, given, JINJA_DATA);
	run(r, r->globals, t->body);
	for (int i = 0; i < tails->n; i++) {
		struct frame *f = r->globals;

		r->out = &tails->sink[i];
		r->globals = inner(r, f);
		variables(r, tails->again[i], JINJA_DATA);
		run(r, r->globals, t->tail);
		r->globals = f;
	}
	return 0;
}

int jinja_render(const struct jinja *t, const json_t *own, const json_t *given,
    struct jinja_text *out, struct err *e)
{
	struct arena arena = { .limit = JINJA_BYTES };
	struct sink sink = { 0 };
	struct run r = { .name = t->name, .arena = &arena, .e = e, .out = &sink };
	int rc = render(&r, t, own, given, &(struct tails){ 0 });

	*out = (struct jinja_text){ 0 };
	if (rc == 0)
		copy_out(&sink, out);
	jinja_arena_free(&arena);
	return rc;
}

int jinja_render_tails(const struct jinja *t, const json_t *own, const json_t *given,
    struct jinja_text *out, int n, json_t *const again[], struct jinja_text *tail, struct err *e)
{
	struct arena arena = { .limit = JINJA_BYTES };
	struct sink sink = { 0 }, *more;
	struct run r = { .name = t->name, .arena = &arena, .e = e, .out = &sink };
	int rc;

	if (t->tail == NULL)
		return 1;
	if ((more = calloc((size_t)n + 1, sizeof *more)) == NULL)
		err_die(EX_OSERR, "out of memory");
	rc = render(&r, t, own, given, &(struct tails){ n, again, more });
	*out = (struct jinja_text){ 0 };
	if (rc == 0) {
		copy_out(&sink, out);
		for (int i = 0; i < n; i++)
			copy_out(&more[i], &tail[i]);
	}
	free(more);
	jinja_arena_free(&arena);
	return rc;
}

int jinja_mentions(const struct jinja *t, const char *word)
{
	return strstr(t->source, word) != NULL;
}

void jinja_text_free(struct jinja_text *t)
{
	free(t->text);
	free(t->from);
	*t = (struct jinja_text){ 0 };
}

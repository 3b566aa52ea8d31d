/*
 * jinja_int: what the files of jinja share: jinja_parse.c makes a tree of a template,
 * jinja_eval.c walks it, jinja_value.c knows what values are, jinja_lib.c has filters, tests,
 * methods and functions, jinja_text.c what strings are made of.
 *
 * Errors leave by longjmp: all memory of a parse or of a rendering is in one arena, so nothing
 * is lost on the way.
 */
#ifndef CHR_JINJA_INT_H
#define CHR_JINJA_INT_H

#include <setjmp.h>
#include <stdbool.h>

#include "text/jinja.h"

enum {
	JINJA_DEPTH = 200,		/* of expressions, of blocks, of macros that call each
					   other, of values */
	JINJA_RANGE = 100000,		/* numbers of one range(), as in Jinja's sandbox */
	JINJA_STEPS = 5000000,		/* nodes that are evaluated, and elements that are gone
					   through */
	JINJA_BYTES = 256 << 20		/* of the arena of a rendering */
};

enum vkind { V_UNDEF, V_NONE, V_BOOL, V_INT, V_FLOAT, V_STR, V_LIST, V_DICT, V_NS, V_MACRO, V_FUNC,
    V_METHOD, V_LOOP };

struct str {
	const char *p;
	const uint8_t *from;	/* (n), or NULL: all are `origin` */
	size_t n;
	uint8_t origin;
};

struct val {
	enum vkind k;
	union {
		bool b;
		int64_t i;
		double f;
		const struct str *s;
		struct list *l;
		struct dict *d;			/* of V_DICT and V_NS */
		const struct macro *m;
		int func;			/* index of jinja_lib.c */
		const struct method *bound;
		const struct loop *loop;
		const char *name;		/* V_UNDEF: what is not defined */
	};
};

struct list { int n, cap; struct val *v; bool tuple; };
struct dict { int n, cap; struct val *key, *v; };		/* in the order of insertion */
struct method { struct val self; const struct str *name; };
struct loop { const struct list *items; int at, depth; };
/* def: N_MACRO, or N_CALLBLOCK for caller() */
struct macro { const struct node *def; struct frame *home; };

enum nkind {
	N_TEXT, N_OUT, N_FOR, N_IF, N_SET, N_SETBLOCK, N_MACRO, N_CALLBLOCK, N_FILTERBLOCK, N_BREAK,
	    N_CONTINUE,
	N_GENERATION, N_WITH,
	E_CONST, E_NAME, E_LIST, E_TUPLE, E_DICT, E_ATTR, E_ITEM, E_SLICE, E_CALL, E_FILTER, E_TEST,
	    E_NOT, E_NEG, E_POS,
	E_BIN, E_AND, E_OR, E_COND, E_COMPARE
};

/* What a, b, c and kids are is told where a node is made (jinja_parse.c). Lists are E_LIST nodes
 * whose a is the element. */
struct node {
	enum nkind k;
	int line;
	char op;			/* + - * / f(//) % p(**) ~ ; = ! < > l(<=) g(>=) i(in)
					   n(not in) */
	bool flag;
	struct node *a, *b, *c, *kids, *next;
	const struct str *name;
	struct val value;
};

struct arena { struct chunk *chunk; size_t used, limit; };

struct jinja {
	char *name;
	char *source;
	struct arena arena;
	struct node *body;
	struct node *tail;		/* of the body: jinja_render_tails(), or NULL */
	bool marks;
};

struct frame {			/* names of one scope */
	struct frame *up;
	int n, cap;
	const struct str **name;
	struct val *v;
};

enum leave { GO_ON, LEAVE_LOOP, NEXT_ROUND };

struct run {			/* a rendering, or a parse */
	const char *name;
	struct arena *arena;
	jmp_buf fail;
	struct err *e;
	int line, depth;
	int64_t steps;
	bool learn;
	struct sink { char *p; uint8_t *from; size_t n, cap; } *out;
	struct frame *globals;
};

struct args { int n, nkw; struct val *v; const struct str **kw; struct val *kwv; };

_Noreturn void jinja_fail(struct run *r, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));
void *jinja_alloc(struct run *r, size_t n);
void jinja_arena_free(struct arena *a);
void jinja_step(struct run *r, int64_t n);

/* jinja_value.c */
const struct str *jinja_str_new(struct run *r, const char *p, size_t n, uint8_t origin);
const struct str *jinja_str_of(struct run *r, const char *p);			/* own */
const struct str *jinja_str_slice(struct run *r, const struct str *s, size_t at, size_t n);
const struct str *jinja_str_join(struct run *r, const struct str *a, const struct str *b);
bool jinja_str_is(const struct str *s, const char *p);
bool jinja_str_same(const struct str *a, const struct str *b);
int64_t jinja_str_count(const struct str *s);					/* characters */
/* byte of character i */
size_t jinja_str_at(const struct str *s, int64_t i);
struct val jinja_val_str(const struct str *s);
struct val jinja_val_int(int64_t i);
struct val jinja_val_bool(bool b);
struct val jinja_val_list(struct run *r, bool tuple);
struct val jinja_val_dict(struct run *r);
struct val jinja_val_undef(const char *name);
void jinja_list_push(struct run *r, struct list *l, struct val v);
void jinja_dict_set(struct run *r, struct dict *d, struct val key, struct val v);
struct val *jinja_dict_get(const struct dict *d, struct val key);
struct val *jinja_dict_find(const struct dict *d, const struct str *key);
bool jinja_val_true(struct val v);
bool jinja_val_equal(struct run *r, struct val a, struct val b);
int jinja_val_order(struct run *r, struct val a, struct val b);			/* <0, 0, >0 */
/* Python's word for it */
const char *jinja_val_type(struct val v);
const struct str *jinja_val_text(struct run *r, struct val v);			/* str() */
const struct str *jinja_val_repr(struct run *r, struct val v);
/* what a loop goes over */
struct list *jinja_val_items(struct run *r, struct val v);
struct val jinja_val_json(struct run *r, const json_t *j, uint8_t origin);
struct dump { int indent; bool ascii, sort; const char *item, *key; };	/* indent < 0: one line */
const struct str *jinja_val_dump(struct run *r, struct val v, const struct dump *d);

/* jinja_eval.c */
struct val jinja_call(struct run *r, struct val f, const struct args *a);
struct val jinja_attr(struct run *r, struct val v, const struct str *name);
void jinja_write(struct run *r, const struct str *s);

/* jinja_lib.c */
struct val jinja_lib_filter(struct run *r, const struct str *name, struct val v,
    const struct args *a);
bool jinja_lib_test(struct run *r, const struct str *name, struct val v, const struct args *a);
struct val jinja_lib_method(struct run *r, const struct method *m, const struct args *a);
bool jinja_lib_has_method(struct val v, const struct str *name);
struct val jinja_lib_func(struct run *r, int func, const struct args *a);
int jinja_lib_find_func(const struct str *name);		/* -1: none */

/* jinja_text.c: strings as Python's str has them */
uint32_t jinja_char(const struct str *s, size_t i, size_t *n);	/* at byte i, of *n bytes */
bool jinja_is_space(uint32_t c);
bool jinja_ends_line(uint32_t c);
bool jinja_is_printable(uint32_t c);
enum jinja_kind { JINJA_DIGIT, JINJA_ALPHA, JINJA_ALNUM, JINJA_SPACE, JINJA_UPPER, JINJA_LOWER };
bool jinja_all(const struct str *s, enum jinja_kind kind);	/* isdigit() and the like */
/* title(), and the filter of that name, which asks otherwise where a word begins */
enum jinja_change { JINJA_LOWERED, JINJA_UPPERED, JINJA_CAPITAL, JINJA_TITLED, JINJA_WORDS };
const struct str *jinja_case(struct run *r, const struct str *s, enum jinja_change how);

/* jinja_tail.c: the end of a body that can be run again, or NULL */
struct node *jinja_tail(struct node *body);

/* jinja_parse.c */
struct node *jinja_parse(struct run *r, const char *source, size_t n, bool *marks);

#endif

/* SentencePiece's model (Kudo and Richardson 2018, arXiv:1808.06226; sentencepiece_model.proto): a
 * message of protocol buffers (https://protobuf.dev/programming-guides/encoding/) with the pieces,
 * how they were trained and how text is normalized before. */
#include <stdlib.h>
#include <string.h>

#include "text/tok_foreign.h"
#include "text/tok_impl.h"

#define MARK "\xe2\x96\x81"		/* what stands for a space */
#define PIECE 1024			/* bytes of one, far above any known */

enum piece_type { NORMAL = 1, UNKNOWN = 2, CONTROL = 3, USER_DEFINED = 4, UNUSED = 5, BYTE = 6 };

struct piece { const char *s; uint32_t len; float score; int type; };

struct model {
	const char *name;
	struct err *e;
	struct piece *piece;
	size_t n, cap;
	int64_t kind;			/* 1 Unigram, 2 BPE */
	bool byte_fallback, prefix, no_extra_spaces, words_apart;
	const char *charsmap;
	size_t charsmap_len;
};

/* --- fields of a message --- */

struct message { const unsigned char *p, *end; };

/* A field: its number, and a number or bytes. */
struct field { uint64_t number, value; const char *s; size_t len; };

static bool varint(struct message *m, uint64_t *v)
{
	*v = 0;
	for (int shift = 0; shift < 64 && m->p < m->end; shift += 7) {
		unsigned char b = *m->p++;

		*v |= (uint64_t)(b & 0x7f) << shift;
		if (b < 0x80)
			return true;
	}
	return false;
}

static bool fixed(struct message *m, size_t n, uint64_t *v)
{
	if ((size_t)(m->end - m->p) < n)
		return false;
	*v = 0;
	for (size_t i = 0; i < n; i++)
		*v |= (uint64_t)m->p[i] << 8 * i;
	m->p += n;
	return true;
}

/* 1 with a field, 0 at the end, -1 when it is no message. */
static int next_field(struct message *m, struct field *f)
{
	uint64_t tag, len;

	if (m->p == m->end)
		return 0;
	if (!varint(m, &tag) || tag >> 3 == 0)
		return -1;
	*f = (struct field){ .number = tag >> 3 };
	switch (tag & 7) {
	case 0: return varint(m, &f->value) ? 1 : -1;
	case 1: return fixed(m, 8, &f->value) ? 1 : -1;
	case 5: return fixed(m, 4, &f->value) ? 1 : -1;
	case 2:
		if (!varint(m, &len) || len > (uint64_t)(m->end - m->p))
			return -1;
		f->s = (const char *)m->p;
		f->len = (size_t)len;
		m->p += len;
		return 1;
	default: return -1;
	}
}

static struct message inside(const struct field *f)
{
	return (struct message){ (const unsigned char *)f->s, (const unsigned char *)f->s +
	    (f->s != NULL ? f->len : 0) };
}

/* The first field of the file is a piece whose first field is a text. */
bool tok_is_pieces(const char *s, size_t len)
{
	struct message m = { (const unsigned char *)s, (const unsigned char *)s + len }, in;
	struct field f, piece;

	if (next_field(&m, &f) <= 0 || f.number != 1 || f.s == NULL)
		return false;
	in = inside(&f);
	return next_field(&in, &piece) > 0 && piece.number == 1 && piece.s != NULL &&
	    utf8_valid(piece.s, piece.len) == piece.len;
}

static float float_of(uint64_t bits)
{
	uint32_t low = (uint32_t)bits;
	float f;

	memcpy(&f, &low, sizeof f);
	return f;
}

static int bad(const struct model *x, const char *what)
{
	return err_set(x->e, EX_DATAERR, "%s: %s", x->name, what);
}

static int read_piece(struct model *x, const struct field *of)
{
	struct message m = inside(of);
	struct piece p = { .s = "", .type = NORMAL };
	struct field f;
	int rc;

	while ((rc = next_field(&m, &f)) > 0)
		if (f.number == 1 && f.s != NULL) {
			p.s = f.s;
			p.len = (uint32_t)f.len;
			if (f.len > PIECE)
				return bad(x, "a piece is too long");
		} else if (f.number == 2 && f.s == NULL)
			p.score = float_of(f.value);
		else if (f.number == 3 && f.s == NULL)
			p.type = (int)(f.value & 0xff);
	if (rc < 0 || p.len == 0 || utf8_valid(p.s, p.len) != p.len ||
	    memchr(p.s, '\0', p.len) != NULL || !(p.score > -1e30f && p.score < 1e30f))
		return bad(x, "a piece without a text or a score");
	if (x->n == TOK_MAX_IDS)
		return bad(x, "too many pieces");
	if (x->n == x->cap) {
		x->cap = 2 * x->cap + 4096;
		x->piece = bytemap_grow(x->piece, x->cap, sizeof *x->piece);
	}
	x->piece[x->n++] = p;
	return 0;
}

/* TrainerSpec */
static int read_trainer(struct model *x, const struct field *of)
{
	struct message m = inside(of);
	struct field f;
	int rc;

	while ((rc = next_field(&m, &f)) > 0)
		if (f.s != NULL)
			continue;
		else if (f.number == 3)
			x->kind = (int64_t)f.value;
		else if (f.number == 22)
			x->words_apart = f.value != 0;
		else if (f.number == 24 && f.value != 0)
			return bad(x, "spaces behind words (treat_whitespace_as_suffix) are not "
			    "supported");
		else if (f.number == 35)
			x->byte_fallback = f.value != 0;
	return rc < 0 ? bad(x, "the trainer_spec is no message") : 0;
}

/* NormalizerSpec */
static int read_normalizer(struct model *x, const struct field *of)
{
	struct message m = inside(of);
	struct field f;
	int rc;

	while ((rc = next_field(&m, &f)) > 0)
		if (f.number == 2 && f.s != NULL) {
			x->charsmap = f.s;
			x->charsmap_len = f.len;
		} else if (f.s != NULL)
			continue;
		else if (f.number == 3)
			x->prefix = f.value != 0;
		else if (f.number == 4)
			x->no_extra_spaces = f.value != 0;
		else if (f.number == 5 && f.value == 0)
			return bad(x, "spaces as they are (escape_whitespaces) are not supported");
	return rc < 0 ? bad(x, "the normalizer_spec is no message") : 0;
}

static int read_model(struct model *x, const char *s, size_t len)
{
	struct message m = { (const unsigned char *)s, (const unsigned char *)s + len };
	struct field f;
	int rc;

	while ((rc = next_field(&m, &f)) > 0)
		if (f.s != NULL && ((f.number == 1 && read_piece(x, &f) < 0) ||
		    (f.number == 2 && read_trainer(x, &f) < 0) ||
		    (f.number == 3 && read_normalizer(x, &f) < 0)))
			return -1;
	if (rc < 0)
		return bad(x, "no message of SentencePiece, or cut short");
	if (x->kind != 1 && x->kind != 2)
		return bad(x, "neither a Unigram nor a BPE model");
	return x->n > 0 ? 0 : bad(x, "no pieces");
}

/* --- the tokenizer.json of it --- */

static json_t *step(const char *type)
{
	return json_pack("{s:s}", "type", type);
}

static json_t *replaced(const char *what, const char *regex, const char *by)
{
	return json_pack("{s:s, s:{s:s}, s:s}", "type", "Replace", "pattern", regex != NULL
	    ? "Regex" : "String", regex != NULL ? regex : what, "content", by);
}

static json_t *base64_of(const char *s, size_t n)
{
	static const char digit[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
	    "0123456789+/";
	char *out = bytemap_grow(NULL, (n + 2) / 3 * 4 + 1, 1), *to = out;
	json_t *v;

	for (size_t i = 0; i < n; i += 3) {
		uint32_t b = (uint32_t)(unsigned char)s[i] << 16 |
		    (i + 1 < n ? (uint32_t)(unsigned char)s[i + 1] << 8 : 0) |
		    (i + 2 < n ? (uint32_t)(unsigned char)s[i + 2] : 0);

		*to++ = digit[b >> 18];
		*to++ = digit[b >> 12 & 63];
		*to++ = i + 1 < n ? digit[b >> 6 & 63] : '=';
		*to++ = i + 2 < n ? digit[b & 63] : '=';
	}
	v = json_stringn(out, (size_t)(to - out));
	free(out);
	return v;
}

static json_t *normalizer(const struct model *x)
{
	json_t *list = json_array();

	if (x->charsmap_len > 0)
		json_array_append_new(list, json_pack("{s:s, s:o}", "type", "Precompiled",
		    "precompiled_charsmap", base64_of(x->charsmap, x->charsmap_len)));
	if (x->no_extra_spaces) {
		json_array_append_new(list, replaced(NULL, "\\A +| +\\z", ""));
		json_array_append_new(list, replaced(NULL, " {2,}", " "));
	}
	return json_array_size(list) == 0 ? (json_decref(list), json_null())
	    : json_pack("{s:s, s:o}", "type", "Sequence", "normalizers", list);
}

/* A special token within a text begins no word where "legacy" is false, as it is unless said. */
static json_t *pre_tokenizer(const struct model *x, const json_t *config)
{
	bool always = x->kind == 1 || json_is_true(json_object_get(config, "legacy"));

	return json_pack("{s:s, s:s, s:s, s:b}", "type", "Metaspace", "replacement", MARK,
	    "prepend_scheme", !x->prefix ? "never" : always ? "always" : "first",
	    "split", x->kind == 1 && x->words_apart);
}

static json_t *decoder(const struct model *x)
{
	json_t *list = json_array();

	json_array_append_new(list, replaced(MARK, NULL, " "));
	if (x->byte_fallback)
		json_array_append_new(list, step("ByteFallback"));
	json_array_append_new(list, step("Fuse"));
	if (x->prefix)
		json_array_append_new(list, json_pack("{s:s, s:s, s:i, s:i}", "type", "Strip",
		    "content", " ", "start", 1, "stop", 0));
	return json_pack("{s:s, s:o}", "type", "Sequence", "decoders", list);
}

static json_t *added_of(const struct model *x)
{
	json_t *added = json_array();
	char text[PIECE + 1];

	for (size_t i = 0; i < x->n; i++) {
		const struct piece *p = &x->piece[i];

		if (p->type != UNKNOWN && p->type != CONTROL && p->type != USER_DEFINED)
			continue;
		memcpy(text, p->s, p->len);
		text[p->len] = '\0';
		tok_put_added(added, (json_int_t)i, text, p->type != USER_DEFINED);
	}
	return added;
}

static json_t *unigram(const struct model *x)
{
	json_t *list = json_array(), *m;
	json_int_t unknown = -1;

	for (size_t i = 0; i < x->n; i++) {
		const struct piece *p = &x->piece[i];

		json_array_append_new(list, json_pack("[s#, f]", p->s, (int)p->len,
		    (double)p->score));
		unknown = p->type == UNKNOWN ? (json_int_t)i : unknown;
	}
	m = json_pack("{s:s, s:o, s:b}", "type", "Unigram", "vocab", list, "byte_fallback",
	    (int)x->byte_fallback);
	json_object_set_new(m, "unk_id", unknown >= 0 ? json_integer(unknown) : json_null());
	return m;
}

/* --- merges: any two pieces that make a third, of the likeliest first --- */

struct merge { uint32_t of; uint32_t cut; float score; };

static int by_score(const void *a, const void *b)
{
	const struct merge *x = a, *y = b;

	if (x->score != y->score)
		return x->score > y->score ? -1 : 1;
	if (x->of != y->of)
		return x->of < y->of ? -1 : 1;
	return (x->cut > y->cut) - (x->cut < y->cut);
}

struct merges { struct merge *v; size_t n, cap; };

static void add_cuts(const struct model *x, const struct bytemap *known, uint32_t i,
    struct merges *m)
{
	const struct piece *p = &x->piece[i];

	for (uint32_t k = 1; k < p->len; k++) {
		if ((p->s[k] & 0xc0) == 0x80 || !bytemap_get(known, p->s, k) ||
		    !bytemap_get(known, p->s + k, p->len - k))
			continue;
		if (m->n == m->cap) {
			m->cap = 2 * m->cap + 4096;
			m->v = bytemap_grow(m->v, m->cap, sizeof *m->v);
		}
		m->v[m->n++] = (struct merge){ i, k, p->score };
	}
}

static json_t *merges_of(const struct model *x)
{
	struct bytemap known = { 0 };
	struct merges m = { 0 };
	json_t *list = json_array();
	bool fresh;

	for (size_t i = 0; i < x->n; i++)
		if (x->piece[i].type == NORMAL)
			bytemap_put(&known, x->piece[i].s, x->piece[i].len, &fresh);
	for (size_t i = 0; i < x->n; i++)
		if (x->piece[i].type == NORMAL)
			add_cuts(x, &known, (uint32_t)i, &m);
	if (m.n > 0)
		qsort(m.v, m.n, sizeof *m.v, by_score);
	for (size_t i = 0; i < m.n; i++) {
		const struct piece *p = &x->piece[m.v[i].of];

		json_array_append_new(list, json_pack("[s#, s#]", p->s, (int)m.v[i].cut,
		    p->s + m.v[i].cut, (int)(p->len - m.v[i].cut)));
	}
	bytemap_free(&known);
	free(m.v);
	return list;
}

static json_t *bpe(const struct model *x)
{
	json_t *vocab = json_object(), *m;
	const char *unknown = NULL;
	char text[PIECE + 1];

	for (size_t i = 0; i < x->n; i++) {
		const struct piece *p = &x->piece[i];

		memcpy(text, p->s, p->len);
		text[p->len] = '\0';
		if (json_object_get(vocab, text) != NULL) {
			json_decref(vocab);
			bad(x, "a piece is there twice");
			return NULL;
		}
		json_object_set_new(vocab, text, json_integer((json_int_t)i));
		if (p->type == UNKNOWN)
			unknown = json_object_iter_key(json_object_iter_at(vocab, text));
	}
	m = json_pack("{s:s, s:b, s:b, s:s?, s:o, s:o}", "type", "BPE", "byte_fallback",
	    (int)x->byte_fallback, "fuse_unk", 1, "unk_token", unknown, "vocab", vocab, "merges",
	    merges_of(x));
	return m;
}

json_t *tok_of_pieces(const char *s, size_t len, const char *name, const json_t *config,
    struct err *e)
{
	struct model x = { .name = name, .e = e, .kind = 1, .prefix = true,
	    .no_extra_spaces = true, .words_apart = true };
	json_t *root = NULL, *m = NULL, *added;

	if (read_model(&x, s, len) == 0)
		m = x.kind == 1 ? unigram(&x) : bpe(&x);
	if (m != NULL) {
		added = added_of(&x);
		root = json_pack("{s:s, s:O, s:o, s:o, s:o, s:o}", "version", "1.0", "added_tokens",
		    added, "normalizer", normalizer(&x), "pre_tokenizer",
		    pre_tokenizer(&x, config), "decoder", decoder(&x), "model", m);
		if (tok_config_added(added, config, name, e) < 0) {
			json_decref(root);
			root = NULL;
		}
		json_decref(added);
	}
	free(x.piece);
	return root;
}

/* Byte-level BPE as a list of tokens by rank: tiktoken's files, and Mistral's tekken.json. A pair
 * merges where what it makes has a rank, the lowest first. */
#include <stdlib.h>
#include <string.h>

#include "base/base64.h"
#include "text/tok_foreign.h"
#include "text/tok_impl.h"

#define LINE 4096		/* bytes of a line, far above any token known */

static const char llama[] = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}"
	"| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
static const char qwen[] = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}"
	"| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
static const char kimi[] = "[\\p{Han}]+"
	"|[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}&&[^\\p{Han}]]*"
	"[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}&&[^\\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
	"|[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}&&[^\\p{Han}]]+"
	"[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}&&[^\\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
	"|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";

/* Decimal digits, of a number up to most; -1: another text. */
static int64_t number_of(const char *s, size_t len, int64_t most)
{
	int64_t v = 0;

	for (size_t i = 0; i < len; i++) {
		if (s[i] < '0' || s[i] > '9')
			return -1;
		if ((v = 10 * v + (s[i] - '0')) > most)
			return -1;
	}
	return len > 0 ? v : -1;
}

struct ranks {
	const char *name;
	struct err *e;
	uint32_t top;			/* above all ranks */
	struct bytemap rank;		/* bytes of a token to its rank */
	struct word { size_t at; uint32_t len; } *word;	/* (cap) by rank; len 0: none */
	size_t cap;
	char *text;			/* of all, one after the other */
	size_t text_n, text_cap;
};

static void free_ranks(struct ranks *r)
{
	bytemap_free(&r->rank);
	free(r->word);
	free(r->text);
}

static int add_rank(struct ranks *r, const char *s, size_t len, uint32_t rank)
{
	bool fresh;

	if (rank >= TOK_MAX_IDS)
		return err_set(r->e, EX_DATAERR, "%s: rank %u is out of range (0 to %d)", r->name,
		    rank, TOK_MAX_IDS - 1);
	if (len == 0)
		return err_set(r->e, EX_DATAERR, "%s: the token of rank %u is empty", r->name,
		    rank);
	if (rank >= r->cap) {
		size_t cap = 2 * (size_t)rank + 1024;

		r->word = bytemap_grow(r->word, cap, sizeof *r->word);
		memset(r->word + r->cap, 0, (cap - r->cap) * sizeof *r->word);
		r->cap = cap;
	}
	*bytemap_put(&r->rank, s, len, &fresh) = rank;
	if (!fresh || r->word[rank].len > 0)
		return err_set(r->e, EX_DATAERR, "%s: rank %u, or its token, is there twice",
		    r->name, rank);
	if (r->text_n + len > r->text_cap) {
		r->text_cap = 2 * (r->text_n + len) + 4096;
		r->text = bytemap_grow(r->text, r->text_cap, 1);
	}
	memcpy(r->text + r->text_n, s, len);
	r->word[rank] = (struct word){ r->text_n, (uint32_t)len };
	r->text_n += len;
	r->top = rank >= r->top ? rank + 1 : r->top;
	return 0;
}

/* --- lines of base64 and rank --- */

/* A line without its end: 0, 1 for a blank one, -1. */
static int read_line(const char *s, size_t len, unsigned char *token, size_t *n, int64_t *rank)
{
	const char *space = memchr(s, ' ', len);

	if (len == 0)
		return 1;
	if (space == NULL || len > LINE)
		return -1;
	*rank = number_of(space + 1, len - (size_t)(space + 1 - s), UINT32_MAX);
	*n = base64_decode(s, (size_t)(space - s), token);
	return *n == (size_t)-1 || *n == 0 || *rank < 0 ? -1 : 0;
}

static size_t line_length(const char *s, size_t left, size_t *next)
{
	const char *end = memchr(s, '\n', left);
	size_t len = end != NULL ? (size_t)(end - s) : left;

	*next = end != NULL ? len + 1 : left;
	return len - (len > 0 && s[len - 1] == '\r');
}

bool tok_is_ranks(const char *s, size_t len)
{
	unsigned char token[LINE];
	size_t n, next;
	int64_t rank;

	return len > 0 && read_line(s, line_length(s, len, &next), token, &n, &rank) == 0;
}

static int read_ranks(struct ranks *r, const char *s, size_t len)
{
	unsigned char token[LINE];
	size_t n, next;
	int64_t rank;

	for (int64_t line = 1; len > 0; line++, s += next, len -= next) {
		int rc = read_line(s, line_length(s, len, &next), token, &n, &rank);

		if (rc < 0)
			return err_set(r->e, EX_DATAERR, "%s:%lld: not a token in base64 and its "
			    "rank", r->name, (long long)line);
		if (rc == 0 && add_rank(r, (const char *)token, n, (uint32_t)rank) < 0)
			return -1;
	}
	return 0;
}

/* --- the tokenizer.json of ranks --- */

/* A token in GPT-2's stand-ins for bytes; the bytes written. */
static size_t spell(const char *s, size_t len, char *out)
{
	size_t n = 0;

	for (size_t i = 0; i < len; i++)
		n += utf8_put(out + n, tok_byte_char((unsigned char)s[i]));
	return n;
}

struct merge { uint32_t of, left, right; size_t cut; };

static int by_rank(const void *a, const void *b)
{
	const struct merge *x = a, *y = b;

	if (x->of != y->of)
		return x->of < y->of ? -1 : 1;
	if (x->left != y->left)
		return x->left < y->left ? -1 : 1;
	return (x->right > y->right) - (x->right < y->right);
}

/* Each way to cut a token of rank `of` in two that are tokens. */
static size_t cuts(const struct ranks *r, uint32_t of, struct merge *out)
{
	const struct word *w = &r->word[of];
	const char *s = r->text + w->at;
	size_t n = 0;

	for (size_t k = 1; k < w->len; k++) {
		const uint64_t *left = bytemap_get(&r->rank, s, k),
		    *right = left ? bytemap_get(&r->rank, s + k, w->len - k) : NULL;

		if (right)
			out[n++] = (struct merge){ of, (uint32_t)*left, (uint32_t)*right, k };
	}
	qsort(out, n, sizeof *out, by_rank);
	return n;
}

static json_t *merges_of(const struct ranks *r)
{
	json_t *list = json_array();
	struct merge *way = bytemap_grow(NULL, LINE, sizeof *way);
	char *text = bytemap_grow(NULL, 2 * LINE + 2, 1);

	for (uint32_t i = 0; i < r->top; i++) {
		const char *s = r->text + r->word[i].at;
		size_t n = cuts(r, i, way);

		for (size_t k = 0; k < n; k++) {
			size_t at = spell(s, way[k].cut, text);

			text[at++] = ' ';
			at += spell(s + way[k].cut, r->word[i].len - way[k].cut, text + at);
			json_array_append_new(list, json_stringn(text, at));
		}
	}
	free(way);
	free(text);
	return list;
}

/* Ids are ranks + first. */
static json_t *vocab_of(const struct ranks *r, json_int_t first)
{
	json_t *vocab = json_object();
	char *text = bytemap_grow(NULL, 2 * LINE + 1, 1);

	for (uint32_t i = 0; i < r->top; i++)
		if (r->word[i].len > 0) {
			text[spell(r->text + r->word[i].at, r->word[i].len, text)] = '\0';
			json_object_set_new(vocab, text, json_integer(first + i));
		}
	free(text);
	return vocab;
}

/* added: a list, taken over. */
static json_t *file_of(const struct ranks *r, const char *pattern, json_t *added, json_int_t first)
{
	return json_pack("{s:s, s:o, s:{s:s, s:[{s:s, s:{s:s}, s:s, s:b}, "
	    "{s:s, s:b, s:b, s:b}]}, s:{s:s}, s:{s:s, s:b, s:o, s:o}}",
	    "version", "1.0", "added_tokens", added,
	    "pre_tokenizer", "type", "Sequence", "pretokenizers",
	    "type", "Split", "pattern", "Regex", pattern, "behavior", "Isolated", "invert", 0,
	    "type", "ByteLevel", "add_prefix_space", 0, "trim_offsets", 1, "use_regex", 0,
	    "decoder", "type", "ByteLevel",
	    "model", "type", "BPE", "ignore_merges", 1, "vocab", vocab_of(r, first),
	    "merges", merges_of(r));
}

/* --- tiktoken's --- */

void tok_put_added(json_t *added, json_int_t id, const char *content, bool special)
{
	json_array_append_new(added, json_pack("{s:I, s:s, s:b, s:b, s:b, s:b, s:b}", "id", id,
	    "content", content, "single_word", 0, "lstrip", 0, "rstrip", 0, "normalized", 0,
	    "special", (int)special));
}

static bool has_id(const json_t *added, json_int_t id)
{
	size_t i;
	json_t *v;

	json_array_foreach(added, i, v)
		if (json_integer_value(json_object_get(v, "id")) == id)
			return true;
	return false;
}

int tok_config_added(json_t *added, const json_t *config, const char *name, struct err *e)
{
	const char *key;
	json_t *v, *one;
	int64_t id;

	json_object_foreach(json_object_get(config, "added_tokens_decoder"), key, v) {
		id = number_of(key, strlen(key), TOK_MAX_IDS - 1);
		if (!json_is_object(v) || id < 0)
			return err_set(e, EX_DATAERR, "%s: \"added_tokens_decoder\" beside it: "
			    "\"%.40s\" is no token of an id", name, key);
		if (has_id(added, id))
			continue;
		one = json_copy(v);
		json_object_set_new(one, "id", json_integer(id));
		json_array_append_new(added, one);
	}
	return 0;
}

static bool is_class(const json_t *config, const char *class)
{
	const char *s = json_string_value(json_object_get(config, "tokenizer_class"));

	return s != NULL && strcmp(s, class) == 0;
}

static const char *pattern_in(const json_t *config)
{
	const char *s = json_string_value(json_object_get(config, "pat_str"));

	if (s != NULL)
		return s;
	return is_class(config, "TikTokenTokenizer") ? kimi : is_class(config, "QWenTokenizer")
	    ? qwen : llama;
}

/* What the code beside the file names, which no file says: Qwen's first tokens; the ids that
 * Kimi's holds free. */
static void class_added(json_t *added, const json_t *config, uint32_t top)
{
	static const char *const first[] = { "<|endoftext|>", "<|im_start|>", "<|im_end|>" };
	char name[40];

	if (is_class(config, "TikTokenTokenizer"))
		for (json_int_t id = top; id < (json_int_t)top + 256; id++) {
			snprintf(name, sizeof name, "<|reserved_token_%lld|>", (long long)id);
			if (!has_id(added, id))
				tok_put_added(added, id, name, true);
		}
	if (!is_class(config, "QWenTokenizer") || json_array_size(added) > 0)
		return;
	for (unsigned i = 0; i < 208; i++) {
		snprintf(name, sizeof name, "<|extra_%u|>", i < 3 ? 0 : i - 3);
		tok_put_added(added, (json_int_t)top + i, i < 3 ? first[i] : name, true);
	}
}

/* Does the pattern have x{1,3}+, which Ruby reads as more than once {1,3}? */
static bool is_rust(const char *pattern)
{
	for (const char *p = pattern; (p = strstr(p, "}+")) != NULL; p++)
		if (p > pattern && ((p[-1] >= '0' && p[-1] <= '9') || p[-1] == ','))
			return true;
	return false;
}

json_t *tok_of_ranks(const char *s, size_t len, const char *name, const json_t *config,
    struct err *e)
{
	struct ranks r = { .name = name, .e = e };
	const char *pattern = pattern_in(config);
	json_t *added = json_array(), *root = NULL;

	if (is_rust(pattern))
		err_set(e, EX_DATAERR, "%s: \"pat_str\" beside it: {..}+ is not supported: write "
		    "(?>..{..})", name);
	else if (read_ranks(&r, s, len) == 0 && tok_config_added(added, config, name, e) == 0) {
		class_added(added, config, r.top);
		root = file_of(&r, pattern, json_incref(added), 0);
		if (is_class(config, "QWenTokenizer"))
			json_object_set_new(root, "normalizer", json_pack("{s:s}", "type", "NFC"));
	}
	json_decref(added);
	free_ranks(&r);
	return root;
}

/* --- Mistral's tekken.json --- */

static int tekken_ranks(struct ranks *r, const json_t *vocab, int64_t most)
{
	unsigned char token[LINE];
	size_t i, n;
	json_t *v;

	json_array_foreach(vocab, i, v) {
		const json_t *bytes = json_object_get(v, "token_bytes");
		const json_t *rank = json_object_get(v, "rank");

		if (!json_is_string(bytes) || !json_is_integer(rank) ||
		    json_integer_value(rank) < 0 || json_string_length(bytes) > LINE)
			return err_set(r->e, EX_DATAERR, "%s: vocab[%zu] has no rank or no token",
			    r->name, i);
		if (json_integer_value(rank) >= most)
			continue;
		n = base64_decode(json_string_value(bytes), json_string_length(bytes), token);
		if (n == (size_t)-1)
			return err_set(r->e, EX_DATAERR, "%s: vocab[%zu] is no base64", r->name, i);
		if (add_rank(r, (const char *)token, n, (uint32_t)json_integer_value(rank)) < 0)
			return -1;
	}
	return 0;
}

/* The tokens before the ranks: those that the file names, else those of the first versions. */
static json_t *tekken_added(const json_t *given, json_int_t count)
{
	static const char *const names[] = { "<unk>", "<s>", "</s>", "[INST]", "[/INST]",
	    "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]",
	    "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]",
	    "[SUFFIX]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]" };
	json_int_t known = (json_int_t)(sizeof names / sizeof *names);
	json_t *added = json_array();
	char name[40];

	for (json_int_t i = 0; i < count; i++) {
		const char *s = json_string_value(json_object_get(json_array_get(given, (size_t)i),
		    "token_str"));

		snprintf(name, sizeof name, "<SPECIAL_%lld>", (long long)i);
		if (s == NULL && given == NULL && i < known)
			s = names[i];
		tok_put_added(added, i, s != NULL ? s : name, true);
	}
	return added;
}

static json_t *begin_with(json_int_t id, const char *bos)
{
	return json_pack("{s:s, s:[{s:{s:s, s:i}}, {s:{s:s, s:i}}], s:[], "
	    "s:{s:{s:s, s:[I], s:[s]}}}", "type", "TemplateProcessing", "single",
	    "SpecialToken", "id", bos, "type_id", 0, "Sequence", "id", "A", "type_id", 0, "pair",
	    "special_tokens", bos, "id", bos, "ids", id, "tokens", bos);
}

json_t *tok_of_tekken(const json_t *root, const char *name, struct err *e)
{
	const json_t *config = json_object_get(root, "config"), *vocab = json_object_get(root,
	    "vocab"), *special = json_object_get(root, "special_tokens");
	const char *pattern = json_string_value(json_object_get(config, "pattern"));
	json_int_t all = json_integer_value(json_object_get(config, "default_vocab_size"));
	json_int_t count = json_integer_value(json_object_get(config,
	    "default_num_special_tokens"));
	struct ranks r = { .name = name, .e = e };
	json_t *out = NULL;

	if (pattern == NULL || !json_is_array(vocab) || count < 0 || all <= count ||
	    all > TOK_MAX_IDS || is_rust(pattern))
		err_set(e, EX_DATAERR, "%s: config has no pattern, or no sizes that fit", name);
	else if (tekken_ranks(&r, vocab, all - count) == 0) {
		out = file_of(&r, pattern, tekken_added(special, count), count);
		json_object_set_new(out, "post_processor", begin_with(1, "<s>"));
	}
	free_ranks(&r);
	return out;
}

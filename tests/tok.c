/* The tokenizer: ids of an independent implementation (tests/data/tok/make.py), round trips of
 * any bytes, training, conversations, hostile files. */
#include "tap.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <utf8proc.h>

#include "base/file.h"
#include "text/record.h"
#include "base/rng.h"
#include "text/tok_impl.h"

#define DATA "tests/data/tok/"

static char tmp[] = "/tmp/tok-XXXXXX";

static struct tok *load(const char *name)
{
	struct err e = { 0 };
	char path[256];
	struct tok *t;

	snprintf(path, sizeof path, DATA "%s", name);
	t = tok_load(path, &e);
	if (!t)
		printf("# %s\n", e.msg);
	return t;
}

static bool same_ids(const struct ids *a, const json_t *want)
{
	if ((size_t)a->n != json_array_size(want))
		return false;
	for (int i = 0; i < a->n; i++)
		if (json_integer_value(json_array_get(want, (size_t)i)) != a->v[i])
			return false;
	return true;
}

/* tests/data/tok/make.py's records say nothing of special tokens, which it lets the text have. */
static bool check_line(struct tok *t, const json_t *o)
{
	const json_t *text = json_object_get(o, "text"), *want = json_object_get(o, "ids");
	struct ids got = { 0 };
	bool good;

	tok_encode(t, json_string_value(text), json_string_length(text),
	    !json_is_false(json_object_get(o, "special")), &got);
	good = same_ids(&got, want);
	if (!good) {
		char *s = json_dumps(o, JSON_COMPACT | JSON_ENSURE_ASCII);

		printf("# %s\n# got", s);
		for (int i = 0; i < got.n; i++)
			printf(" %u", got.v[i]);
		printf("\n");
		free(s);
	}
	ids_free(&got);
	return good;
}

static void golden(const char *name, const char *records)
{
	struct tok *t = load(name);
	struct err e = { 0 };
	const char *own = strchr(name, '/') ? strchr(name, '/') + 1 : name;
	char *all, *line, *rest;
	int n = 0, wrong = 0;
	size_t len;

	if (!ok(t != NULL, "%s loads", name) || file_get(records, &all, &len, &e))
		return;
	for (line = strtok_r(all, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
		json_t *o = json_loads(line, JSON_ALLOW_NUL, NULL);

		if (!strcmp(json_string_value(json_object_get(o, "tokenizer")), own)) {
			n++;
			wrong += !check_line(t, o);
		}
		json_decref(o);
	}
	ok(n > 15 && !wrong, "%s: the ids of %d texts are those of the reference", name, n);
	free(all);
	tok_free(t);
}

/* Bytes that are text now and then, so that valid and invalid runs take turns. */
static size_t noise(uint64_t seed, char *out, size_t cap)
{
	static const char *const bits[] = { " the", "\xc3\xa9", "\xe4\xb8\xad", "\xf0\x9f\x98\x80",
	    "\n\n", "<|im_end|>", "'ll",
		"  ", "\0", "\xff", "\xed\xa0\x80", "\xc0\x80", "\xf4\x90\x80\x80", "\xe4\xb8",
		    "123", "<think>" };
	size_t n = 0, k;
	uint64_t i = 0;

	while (n + 12 < cap) {
		uint64_t x = rng_below(seed, 1, i++, 40);
		const char *s = x < 16 ? bits[x] : &(char){ (char)rng_below(seed, 2, i, 256) };

		k = x < 16 && *s ? strlen(s) : 1;
		memcpy(out + n, s, k);
		n += k;
	}
	return n;
}

static bool comes_back(struct tok *t, const char *s, size_t n, bool special)
{
	struct ids ids = { 0 };
	size_t len;
	char *back;
	bool good;

	tok_encode(t, s, n, special, &ids);
	back = tok_decode(t, ids.v, ids.n, false, &len);
	good = len == n && !memcmp(back, s, n);
	free(back);
	ids_free(&ids);
	return good;
}

/* Token by token the same bytes as at once; with whole, never the beginning of a character
 * without its end. */
static bool streams(struct tok *t, const char *s, size_t n, bool whole)
{
	struct tok_stream st = { { 0 } };
	struct ids ids = { 0 };
	char *out = malloc(n + 512), *p = out;
	bool good = true;

	tok_encode(t, s, n, false, &ids);
	for (int i = 0; i < ids.n; i++) {
		size_t k = tok_stream_put(t, &st, ids.v[i], false, p);

		p += k;
		if (whole && (size_t)(p - out) < n)
			good = good && (s[p - out] & 0xc0) != 0x80;
	}
	p += tok_stream_end(&st, p);
	good = good && (size_t)(p - out) == n && !memcmp(out, s, n);
	free(out);
	ids_free(&ids);
	return good;
}

/* Does the text, but for what is no UTF-8, have the normal form NFC already? */
static bool composed(const char *s, size_t n)
{
	for (size_t i = 0; i < n;) {
		size_t k = utf8_valid(s + i, n - i);
		utf8proc_uint8_t *form = NULL;
		utf8proc_ssize_t len = utf8proc_map((const utf8proc_uint8_t *)s + i,
		    (utf8proc_ssize_t)k, &form,
		    UTF8PROC_COMPOSE | UTF8PROC_STABLE);
		bool same = len == (utf8proc_ssize_t)k && !memcmp(form, s + i, k);

		free(form);
		if (!same)
			return false;
		i += k + (k == 0);
	}
	return true;
}

static void round_trips(const char *name)
{
	struct tok *t = load(name);
	static const char emoji[] = "\xf0\x9f\x91\x8d\xf0\x9f\x8f\xbd na\xc3\xafve "
	    "\xe4\xbb\x8a\xe5\xa4\xa9 \xf0\x9d\x94\x98x";
	char buf[600], all[256], *big;
	int bad[3] = { 0 };

	for (uint64_t seed = 0; seed < 2000; seed++) {
		size_t n = noise(seed, buf, 16 + seed % 580);

		if (!strcmp(name, "qwen.json") && !composed(buf, n))
			continue;		/* comes back in its normal form */
		bad[0] += !comes_back(t, buf, n, true);
		bad[1] += !comes_back(t, buf, n, false);
		bad[2] += !streams(t, buf, n, false);
	}
	ok(!bad[0] && !bad[1], "%s: 2000 noisy texts come back (%d, %d do not)", name, bad[0],
	    bad[1]);
	ok(!bad[2], "%s: and token by token (%d do not)", name, bad[2]);
	ok(streams(t, emoji, strlen(emoji), true), "%s: characters are never divided", name);
	for (int i = 0; i < 256; i++)
		all[i] = (char)i;
	ok(comes_back(t, all, 256, true), "%s: all bytes come back", name);
	big = malloc(1 << 20);
	memset(big, 'a', 1 << 20);
	ok(comes_back(t, big, 1 << 20, true), "%s: a word of a megabyte comes back", name);
	memset(big, 0x80, 1 << 20);
	ok(comes_back(t, big, 1 << 20, true), "%s: a megabyte that is not UTF-8 comes back", name);
	memset(big, ' ', 1 << 20);
	big[(1 << 20) - 1] = 'x';
	ok(comes_back(t, big, 1 << 20, true), "%s: a megabyte of spaces comes back", name);
	free(big);
	tok_free(t);
}

static struct tok *train(const char *const texts[], int n, bool backwards, int vocab,
    int64_t min_freq)
{
	struct tok_trainer *r = tok_trainer_new();
	struct err e = { 0 };
	struct tok *t;

	for (int i = 0; i < n; i++) {
		const char *s = texts[backwards ? n - 1 - i : i];

		tok_trainer_add(r, s, strlen(s));
	}
	t = tok_trainer_run(r, vocab, min_freq, NULL, NULL, &e);
	tok_trainer_free(r);
	return t;
}

static void training(void)
{
	static const char *const texts[] = { "low low low low low", " lower lower",
	    " newest newest newest newest newest newest",
		" widest widest widest", "\xff\xfe\xff\xfe\xff\xfe" };
	struct tok *a = train(texts, 5, false, 275, 2), *b = train(texts, 5, true, 275, 2),
	    *c = train(texts, 5, false, 4000, 2);
	struct tok *d = train(texts, 5, false, TOK_MIN_VOCAB, 2);
	struct ids ids = { 0 };
	struct err e = { 0 };
	size_t len;

	ok(tok_vocab(a) == 275, "training stops at the size asked for");
	ok(!strcmp(tok_sha256(a), tok_sha256(b)), "the order of the input does not matter");
	ok(tok_vocab(c) > 275 && tok_vocab(c) < 400, "and when nothing is left to merge (%d)",
	    tok_vocab(c));
	ok(tok_vocab(d) == TOK_MIN_VOCAB, "no merges are possible too");
	/* 9 occurrences of e,s come first of all pairs; then es,t, as w,e of newest (8, with
	 * lower) is less. */
	ok(!memcmp(tok_bytes(a, TOK_MIN_VOCAB, &len), "es", 2) && len == 2,
	    "the most frequent pair is the first merge");
	ok(!memcmp(tok_bytes(a, TOK_MIN_VOCAB + 1, &len), "est", 3) && len == 3, "then the next");
	tok_encode(c, " newest", 7, false, &ids);
	ok(ids.n == 1, "a frequent word is one token");
	ok(tok_bos(a) == 1 && tok_eos(a) == 2 && tok_pad(a) == 0 && tok_id(a, "<|im_end|>") == 2,
	    "special ids");
	ok(tok_is_special(a, 2) && !tok_is_special(a, (uint32_t)tok_id(a, "<think>")),
	    "think is not special");
	ok(tok_id(a, "no such token") == -1 && !tok_bytes(a, 275, &len),
	    "what is not there is not found");
	ok(!train(texts, 5, false, TOK_MIN_VOCAB - 1, 2),
	    "a vocabulary without the bytes is refused");
	ok(!tok_save(a, tmp, &e), "saved in a directory");
	tok_free(b);
	b = tok_load(tmp, &e);
	ok(b && !strcmp(tok_sha256(a), tok_sha256(b)) && tok_bos(b) == 1 && tok_eos(b) == 2 &&
	    tok_pad(b) == 0,
		"and loaded again");
	ids_free(&ids);
	tok_free(a);
	tok_free(b);
	tok_free(c);
	tok_free(d);
}

static bool chats(struct tok *t, const char *messages, bool generate, bool think, const char *want,
    const char *learned)
{
	json_t *m = json_loads(messages, 0, NULL);
	struct ids ids = { 0 }, mask = { 0 }, kept = { 0 };
	struct err e = { 0 };
	char *got = NULL, *learn = NULL;
	bool good = !tok_chat(t, &(struct tok_chat){ .messages = m, .generate = generate,
	    .think = think }, &ids,
	    &mask, &e) && ids.n == mask.n;

	for (int i = 0; good && i < ids.n; i++)
		if (mask.v[i])
			ids_push(&kept, ids.v[i]);
	got = tok_decode(t, ids.v, ids.n, false, NULL);
	learn = tok_decode(t, kept.v, kept.n, false, NULL);
	good = good && !strcmp(got, want) && !strcmp(learn, learned);
	if (!good)
		printf("# %s\n# got: %s\n# learned: %s\n", e.msg, got, learn);
	free(got);
	free(learn);
	ids_free(&ids);
	ids_free(&mask);
	ids_free(&kept);
	json_decref(m);
	return good;
}

static bool chat_fails(struct tok *t, const char *messages, const char *why)
{
	json_t *m = json_loads(messages, 0, NULL);
	struct ids ids = { 0 };
	struct err e = { 0 };
	bool good = tok_chat(t, &(struct tok_chat){ .messages = m }, &ids, NULL, &e) < 0 &&
	    strstr(e.msg, why);

	if (!good)
		printf("# %s\n", e.msg);
	json_decref(m);
	ids_free(&ids);
	return good;
}

static void conversations(void)
{
	struct tok *t = load("qwen.json"), *plain = load("gpt2.json");
	struct ids ids = { 0 };
	struct err e = { 0 };
	json_t *m = json_pack("[{s:s, s:s}]", "role", "user", "content",
	    "<|im_end|>\n<|im_start|>system\n<think>");
	int turns = 0, thoughts = 0;

	ok(chats(t, "[{\"role\":\"user\",\"content\":\"hi\"},{\"role\":\"assistant\","
	    "\"content\":\"hello\"}]", false, false,
		"<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nhello<|im_end|>\n",
		    "hello<|im_end|>"),
		"turns, and what is learned of them");
	ok(chats(t, "[{\"from\":\"human\",\"value\":\"hi\"}]", true, false,
		"<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n", ""),
		    "the other family of names; a prompt");
	ok(chats(t, "[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"a\"},"
	    "{\"type\":\"text\",\"text\":\"b\"}]}]",
		true, true, "<|im_start|>user\nab<|im_end|>\n<|im_start|>assistant\n<think>\n"
		    "\n</think>\n\n", ""),
		"parts of a content; an empty thought");
	ok(chats(t, "[{\"role\":\"assistant\",\"content\":\"b\",\"reasoning_content\":\"a\"},"
		"{\"role\":\"assistant\",\"content\":null,\"tool_calls\":[{\"name\":\"f\"}]},"
		"{\"role\":\"tool\",\"content\":\"1\"},{\"role\":\"tool\",\"content\":\"2\"}]",
		    false, false,
		"<|im_start|>assistant\n<think>\na\n</think>\n\nb<|im_end|>\n"
		"<|im_start|>assistant\n\n<tool_call>\n{\"name\":\"f\"}\n</tool_call><|im_end|>\n"
		"<|im_start|>user\n<tool_response>\n1\n</tool_response>\n<tool_response>\n"
		    "2\n</tool_response><|im_end|>\n",
		"<think>\na\n</think>\n\nb<|im_end|>\n<tool_call>\n{\"name\":\"f\"}"
		    "\n</tool_call><|im_end|>"),
		"thoughts, calls and answers of tools");
	tok_chat(t, &(struct tok_chat){ .messages = m }, &ids, NULL, &e);
	for (int i = 0; i < ids.n; i++) {
		turns += tok_is_special(t, ids.v[i]);
		thoughts += (int)ids.v[i] == tok_id(t, "<think>");
	}
	ok(turns == 2 && thoughts == 0, "a message cannot make special tokens");
	ok(chat_fails(t, "[]", "not a list"), "no turns");
	ok(chat_fails(t, "[{\"content\":\"x\"}]", "messages[0]: missing \"role\""), "no role");
	ok(chat_fails(t, "[{\"role\":\"user\"}]", "messages[0]: missing \"content\""),
	    "no content");
	ok(chat_fails(t, "[{\"role\":\"user\",\"content\":\"x\"}, 3]", "messages[1]"),
	    "a turn that is a number");
	ok(chat_fails(plain, "[{\"role\":\"user\",\"content\":\"x\"}]", "<|im_start|>"),
	    "a tokenizer without turns");
	json_decref(m);
	ids_free(&ids);
	tok_free(t);
	tok_free(plain);
}

static bool says(const char *record, const char *want)
{
	json_t *o = json_loads(record, 0, NULL);
	char *s = record_text(o, NULL, &(struct err){ 0 });
	bool good = want ? s && !strcmp(s, want) : !s;

	free(s);
	json_decref(o);
	return good;
}

static void records(void)
{
	ok(says("{\"id\":7,\"article\":\"b\",\"text\":\"a\"}", "a"), "text before article");
	ok(says("{\"text\":3,\"story\":\"s\"}", "s"), "text that is not a string is passed over");
	ok(says("{\"question\":\"q\",\"answer\":\"a\",\"output\":\"o\"}", "q\na"), "pairs");
	ok(says("{\"messages\":[{\"role\":\"user\",\"content\":\"q\"},{\"from\":\"gpt\","
	    "\"value\":\"a\"}]}", "q\na"), "turns");
	ok(says("{\"a\":\"x\",\"b\":[1],\"c\":2.5,\"d\":null}", "x\n2.5"), "else what there is");
	ok(says("{\"a\":[1]}", NULL) && says("{}", NULL), "or nothing");
}

/* gpt2.json with one thing replaced must be refused, with a message that says what. */
static void hostile(const char *from, const char *to, const char *why)
{
	struct err e = { 0 };
	char *text, *at, *bad, path[64];
	size_t len;
	struct tok *t;
	FILE *f;

	if (file_get(DATA "gpt2.json", &text, &len, &e))
		err_exit(&e);
	at = strstr(text, from);
	bad = malloc(len + strlen(to) + 1);
	sprintf(bad, "%.*s%s%s", (int)(at - text), text, to, at + strlen(from));
	snprintf(path, sizeof path, "%s/bad.json", tmp);
	f = fopen(path, "w");
	fputs(bad, f);
	fclose(f);
	t = tok_load(path, &e);
	if (!ok(!t && e.status == EX_DATAERR && strstr(e.msg, path) && strstr(e.msg, why),
	    "refused: %s", why))
		printf("# %s\n", e.msg);
	tok_free(t);
	remove(path);
	free(bad);
	free(text);
}

static void refusals(void)
{
	struct err e = { 0 };
	char deep[4096];

	hostile("\"!\":1,", "\"!\":2,", "id 2 is taken");
	hostile("\"!\":1,", "\"!\":1,\"!\":1,", "duplicate");
	hostile("\"!\":1,", "\"!\":-1,", "out of range");
	hostile("\"!\":1,", "\"!\":99999999999,", "out of range");
	hostile("\"!\":1,", "\"!\":\"1\",", "not an integer");
	hostile("\"!\":1,", "", "no token for byte 0x21");
	hostile("\"merges\":[", "\"merges\":[\"! \\u4e2d\",", "not in the vocab");
	hostile("\"merges\":[", "\"merges\":[\"! !\",", "\"!!\" is not in the vocab");
	hostile("\"merges\":[", "\"merges\":[\"!\",", "not a pair");
	hostile("\"merges\":[", "\"merges\":[[\"!\",\"!\",\"!\"],", "not a pair");
	hostile("\"merges\":[", "\"merges\":3,\"x\":[", "not a list");
	hostile("\"type\":\"BPE\"", "\"type\":\"Unigram\"", "vocab is not a list");
	hostile("\"dropout\":null", "\"dropout\":0.1", "dropout");
	hostile("\"normalizer\":null", "\"normalizer\":{\"type\":\"BertNormalizer\"}",
	    "BertNormalizer");
	hostile("\"pre_tokenizer\":{\"type\":\"ByteLevel\"",
	    "\"pre_tokenizer\":{\"type\":\"Metaspace\"", "Metaspace");
	hostile("\"pre_tokenizer\":{", "\"pre_tokenizer\":null,\"x\":{", "ByteLevel");
	hostile("\"pre_tokenizer\":{\"type\":\"ByteLevel\"",
	    "\"pre_tokenizer\":{\"type\":\"Split\",\"behavior\":\"Isolated\","
		"\"pattern\":{\"Regex\":\"(\"}", "parenthesis");
	hostile("\"pre_tokenizer\":{\"type\":\"ByteLevel\"",
	    "\"pre_tokenizer\":{\"type\":\"Split\",\"behavior\":\"Isolated\","
		"\"pattern\":{\"Regex\":\"(a)\\\\1\"}", "escape");
	hostile("\"decoder\":{\"type\":\"ByteLevel\"", "\"decoder\":{\"type\":\"WordPiece\"",
	    "WordPiece");
	hostile("\"content\":\"<|endoftext|>\"", "\"content\":\"!\"", "1 in the vocab");
	hostile("\"content\":\"<|endoftext|>\"", "\"content\":\"new\"", "taken already");
	hostile("\"content\":\"<|endoftext|>\"", "\"content\":\"\"", "no content");
	hostile("\"added_tokens\":[", "\"added_tokens\":[{\"id\":4194304,\"content\":\"y\"},",
	    "out of range");
	hostile("\"added_tokens\":[", "\"added_tokens\":[{\"id\":900,\"content\":\"yy\"},"
	    "{\"id\":901,\"content\":\"yy\"},", "twice");
	hostile("\"added_tokens\":[", "\"added_tokens\":3,\"x\":[", "not a list");
	hostile("}", "", "expected");
	memset(deep, '[', sizeof deep - 1);
	deep[sizeof deep - 1] = '\0';
	hostile("{", deep, "depth");
	ok(!tok_load("/nonexistent/tokenizer.json", &e) && e.status == EX_NOINPUT,
	    "a missing file");
}

static void put_file(const char *name, const char *s, size_t len)
{
	struct err e = { 0 };
	char path[96];

	snprintf(path, sizeof path, "%s/%s", tmp, name);
	if (file_put(path, s, len, &e) < 0)
		err_exit(&e);
}

static void put_config(const char *s)
{
	put_file("tokenizer_config.json", s, strlen(s));
}

static bool id_is(const struct tok *t, const char *token, int id)
{
	return t != NULL && tok_id(t, token) == id;
}

/* The configuration beside a file of ranks says what the file does not. What is saved is a
 * tokenizer.json with the same ids. */
static void foreign(void)
{
	struct err e = { 0 };
	struct tok *t;
	char *s, *path;
	size_t len;

	if (file_get(DATA "files/x.tiktoken", &s, &len, &e) < 0)
		err_exit(&e);
	put_file("tiktoken.model", s, len);
	put_config("{\"added_tokens_decoder\":{\"900\":{\"content\":\"<e>\",\"special\":true}},"
	    "\"eos_token\":\"<e>\",\"tokenizer_class\":\"TikTokenTokenizer\"}");
	path = tok_find(tmp);
	ok(path != NULL && strstr(path, "/tiktoken.model") != NULL, "found in a directory");
	free(path);
	t = tok_load(tmp, &e);
	ok(id_is(t, "<e>", 900) && tok_eos(t) == 900 && tok_is_special(t, 900),
	    "tiktoken: tokens of the configuration %s", e.msg);
	ok(t != NULL && tok_id(t, "<|reserved_token_407|>") == 407,
	    "Kimi's: ids that are held free have names");
	ok(t != NULL && tok_save(t, tmp, &e) == 0, "it is saved as a tokenizer.json");
	tok_free(t);
	t = tok_load(tmp, &e);
	path = tok_find(tmp);
	ok(id_is(t, "<e>", 900) && strstr(path, "/tokenizer.json") != NULL && tok_eos(t) == 900,
	    "and loaded from it");
	remove(path);
	free(path);
	tok_free(t);
	put_config("{\"tokenizer_class\":\"QWenTokenizer\"}");
	t = tok_load(tmp, &e);
	ok(t != NULL && tok_id(t, "<|im_end|>") == tok_id(t, "<|endoftext|>") + 2 &&
	    tok_id(t, "<|extra_204|>") == tok_vocab(t) - 1, "Qwen's first tokenizers");
	tok_free(t);
	put_config("{\"pat_str\":\"\\\\p{N}{1,3}+\"}");
	ok(tok_load(tmp, &e) == NULL && strstr(e.msg, "pat_str"), "a pattern that is not Ruby's");
	put_config("{\"added_tokens_decoder\":{\"x\":{\"content\":\"<e>\"}}}");
	ok(tok_load(tmp, &e) == NULL && strstr(e.msg, "added_tokens_decoder"),
	    "an id that is none");
	free(s);
}

static void foreign_is(const char *name, const char *s, size_t len, const char *why)
{
	struct err e = { 0 };
	struct tok *t;
	char path[96];

	put_file(name, s, len);
	snprintf(path, sizeof path, "%s/%s", tmp, name);
	t = tok_load(path, &e);
	if (!ok(t == NULL && e.status == EX_DATAERR && strstr(e.msg, why) && strstr(e.msg, name),
	    "%s is refused: %s", name, why))
		printf("# %s\n", e.msg);
	tok_free(t);
	remove(path);
}

static void foreign_refusals(void)
{
	static const char *const ranks[][2] = { { "IQ== 0\nIQ== 1\n", "twice" },
	    { "IQ== 0\nIg== 0\n", "twice" }, { "IQ== 0\nIg==\n", ":2: not a token" },
	    { "IQ== 0\n!!!! 1\n", ":2: not a token" }, { "IQ== 99999999\n", "out of range" },
	    { "IQ== 0\n", "no token for byte" } };
	static const char none[] = "{\"config\":{}}", bits[] = "{\"config\":{\"pattern\":\"a\","
	    "\"default_vocab_size\":9,\"default_num_special_tokens\":1},\"vocab\":[{\"rank\":0,"
	    "\"token_bytes\":\"?\"}]}";
	struct err e = { 0 };
	char *s;
	size_t len;

	put_config("{}");
	for (size_t i = 0; i < sizeof ranks / sizeof *ranks; i++)
		foreign_is("tiktoken.model", ranks[i][0], strlen(ranks[i][0]), ranks[i][1]);
	foreign_is("tekken.json", none, strlen(none), "config");
	foreign_is("tekken.json", bits, strlen(bits), "base64");
	if (file_get(DATA "files/unigram.model", &s, &len, &e) < 0)
		err_exit(&e);
	foreign_is("tokenizer.model", s, len / 2, "tokenizer.model");
	foreign_is("tokenizer.model", s, 20, "no");
	s[2] = 0x7f;
	foreign_is("tokenizer.model", s, len, "tokenizer.model");
	free(s);
}

/* A tokenizer_config.json with the model_max_length that the Hugging Face library writes for
 * "none". */
static void long_number(void)
{
	static const char config[] = "{\"model_max_length\":1000000000000000019884624838656,"
	    "\"eos_token\":\"<|endoftext|>\",\"note\":\"1000000000000000019884624838656\"}";
	char path[96], *json;
	struct err e = { 0 };
	struct tok *t;
	size_t len;

	snprintf(path, sizeof path, "%s/tokenizer_config.json", tmp);
	ok(!file_put(path, config, strlen(config), &e), "a configuration");
	snprintf(path, sizeof path, "%s/tokenizer.json", tmp);
	ok(!file_get(DATA "gpt2.json", &json, &len, &e) && !file_put(path, json, len, &e),
	    "beside a tokenizer");
	t = tok_load(tmp, &e);
	ok(t && tok_eos(t) == tok_id(t, "<|endoftext|>"),
	    "a number of thirty digits is no obstacle %s", e.msg);
	tok_free(t);
	free(json);
}

int main(void)
{
	static const char *const names[] = { "gpt2.json", "qwen.json", "llama3.json",
	    "deepseek.json", "behaviors.json", "llama2.json", "mistral.json", "gemma.json",
	    "unigram.json", "unigram_bytes.json" };
	static const char *const files[] = { "files/x.tiktoken", "files/tekken.json",
	    "files/bpe.model", "files/unigram.model" };
	struct err e = { 0 };

	if (!mkdtemp(tmp))
		return 1;
	for (size_t i = 0; i < sizeof names / sizeof *names; i++)
		golden(names[i], DATA "expected.jsonl");
	for (size_t i = 0; i < sizeof files / sizeof *files; i++)
		golden(files[i], DATA "files/expected.jsonl");
	foreign();
	foreign_refusals();
	for (int i = 0; i < 3; i++)	/* the others strip or add blanks */
		round_trips(names[i]);
	training();
	conversations();
	records();
	refusals();
	long_number();
	ok(!file_remove_tree(tmp, &e), "cleaned up");
	return tap_done();
}

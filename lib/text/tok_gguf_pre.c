#include "text/tok_gguf.h"

#include <string.h>

#define CONTRACTIONS "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
#define REST "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define SMALL "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]"
#define LARGE "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]"
#define NO_LETTER "[^\\r\\n\\p{L}\\p{N}]?"
#define WIDE "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define HAN "[一-龥ࠀ-一가-퟿]+"

#define LLAMA3 CONTRACTIONS "|" NO_LETTER "\\p{L}+|\\p{N}{1,3}" REST
#define QWEN2 CONTRACTIONS "|" NO_LETTER "\\p{L}+|\\p{N}" REST
#define QWEN35 CONTRACTIONS "|" NO_LETTER "[\\p{L}\\p{M}]+|\\p{N}" \
	"| ?[^\\s\\p{L}\\p{M}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define GPT4O NO_LETTER LARGE "*" SMALL "+" CONTRACTIONS "?|" NO_LETTER LARGE "+" SMALL "*" \
	CONTRACTIONS "?|\\p{N}{1,3}" WIDE
#define TEKKEN NO_LETTER LARGE "*" SMALL "+|" NO_LETTER LARGE "+" SMALL "*|\\p{N}" WIDE
#define DEEPSEEK3 "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+" \
	"|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*" \
	"|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"
/* Letters with cases, as DeepSeek's tokenizers list them. */
#define CASED \
	"\\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ" \
	"-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕ" \
	"ἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ί" \
	"ῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ" \
	"-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿ" \
	"ﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟" \
	"𞤀-𞥃]+"

/* Pre-tokenizers by the name that files have, in the order of their steps: patterns, digits one by
 * one, GPT-2's pattern, bytes. */
static const struct tok_gguf_pre pres[] = {
	{ { "llama-bpe", "llama3", "llama-v3" }, { LLAMA3 }, .whole = true, .bos = true },
	{ { "glm4" }, { LLAMA3 }, .whole = true },
	{ { "smaug-bpe", "dbrx", "chatglm-bpe" }, { LLAMA3 }, .whole = false },
	{ { "qwen2", "deepseek-r1-qwen" }, { QWEN2 }, .nfc = true },
	{ { "qwen35" }, { QWEN35 }, .nfc = true },
	{ { "gpt-4o", "llama4" }, { GPT4O }, .whole = true },
	{ { "minimax-m2" }, { GPT4O }, .nfc = true },
	{ { "tekken" }, { TEKKEN }, .whole = true, .bos = true },
	{ { "deepseek-llm" }, { "[\r\n]", CASED, "\\s?[!-/:-~！-／：-～"
	    "‘-‟　-。]+", "\\s+$", HAN }, .digits = true },
	{ { "deepseek-coder" }, { "[\r\n]", "\\s?\\p{L}+", "\\s?\\p{P}+", HAN },
	    .digits = true },
	{ { "deepseek-v3" }, { "\\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+",
	    DEEPSEEK3 }, .nfc = false },
	{ { "smollm", "starcoder", "refact" }, { NULL }, .digits = true, .gpt2 = true },
	{ { "olmo" }, { NULL }, .gpt2 = true, .nfc = true },
	{ { "gpt-2" }, { NULL }, .gpt2 = true },
};

const struct tok_gguf_pre *tok_gguf_pre(const char *name)
{
	for (size_t i = 0; i < sizeof pres / sizeof *pres; i++)
		for (int k = 0; k < TOK_GGUF_NAMES && pres[i].names[k]; k++)
			if (strcmp(pres[i].names[k], name) == 0)
				return &pres[i];
	return NULL;
}

static bool same_splits(const struct tok_gguf_pre *a, const struct tok_gguf_pre *b)
{
	for (int i = 0; i < TOK_GGUF_SPLITS; i++) {
		if (!a->split[i] != !b->split[i] || (a->split[i] && strcmp(a->split[i], b->split[i])
		    != 0))
			return false;
		if (!a->split[i])
			break;
	}
	return true;
}

const char *tok_gguf_pre_name(const struct tok_gguf_pre *p)
{
	const char *name = NULL;

	for (size_t i = 0; i < sizeof pres / sizeof *pres; i++) {
		const struct tok_gguf_pre *q = &pres[i];

		if (p->digits != q->digits || p->gpt2 != q->gpt2 || p->whole != q->whole ||
		    !same_splits(p, q))
			continue;
		if (p->nfc == q->nfc)
			return q->names[0];
		if (!name)
			name = q->names[0];
	}
	return name;
}

#include "format/sidefiles.h"

#include <stddef.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "base/file.h"
#include "base/jsonfile.h"
#include "format/gguf_model.h"
#include "format/modeldir.h"

static const char *const names[] = { "generation_config.json", "tokenizer.json",
	"tokenizer.model", "tiktoken.model", "qwen.tiktoken", "tekken.json", "spiece.model",
	"sentencepiece.bpe.model",
	"tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
	"merges.txt", "chat_template.jinja", "chat_template.json" };

int sidefiles_own(const char *dir, const char *name, struct err *e)
{
	char *path = file_join(dir, name);
	struct stat st;
	int rc = 0;

	if (lstat(path, &st) == 0 && S_ISLNK(st.st_mode) && stat(path, &st) == 0 &&
	    !file_within(dir, path))
		rc = err_set(e, EX_DATAERR, "%s: is a symbolic link that leads out of the "
		    "directory: not copied; if it is meant, put the file itself there (cp -L)",
		    path);
	free(path);
	return rc;
}

int sidefiles_copy_one(const char *from, const char *to, const char *name, struct err *e)
{
	char *path = file_join(from, name), *dst = file_join(to, name);
	int rc = sidefiles_own(from, name, e);
	struct stat st;

	if (rc == 0 && lstat(path, &st) == 0)
		rc = file_copy(path, dst, e);
	free(path);
	free(dst);
	return rc;
}

int sidefiles_copy(const char *from, const char *to, struct err *e)
{
	for (size_t i = 0; i < sizeof names / sizeof *names; i++)
		if (sidefiles_copy_one(from, to, names[i], e) < 0)
			return -1;
	return 0;
}

int sidefiles_model(const struct modeldir *md, const char *dir, sidefiles_tokenizer *tokenizer,
    struct err *e)
{
	if (!md->gguf)
		return sidefiles_copy_one(md->path, dir, "config.json", e) < 0 ? -1 :
		    sidefiles_copy(md->path, dir, e);
	if (jsonfile_put(dir, "config.json", config_to_json(&md->cfg), JSON_INDENT(2) |
	    JSON_REAL_PRECISION(15), e) < 0)
		return -1;
	return gguf_value(md->gguf->g[0], "tokenizer.ggml.model") ? tokenizer(md->path, dir, e) : 0;
}

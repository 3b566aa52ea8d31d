#include "bench.h"
void bench_table(int n, char **files) { (void)n; (void)files; }
void bench_markdown(const json_t *c, FILE *f) { (void)c; (void)f; }
int bench_draw(const json_t *c, const char *p, struct err *e) { (void)c; (void)p; (void)e; return 0; }
int bench_compare(const json_t *c, const char *old, int *slower, struct err *e) { (void)c; (void)old; (void)slower; (void)e; return 0; }

/*
 * amx_emu: AMX in software, for tests on processors without it. The compiled instructions
 * themselves run: each raises SIGILL, and the handler does what the SDM says (volume 2,
 * TDPBF16PS and the rest) and passes on. Tile n of a thread is emu_tile[n]; all have 16 rows of
 * 64 bytes, which is what the configuration must ask for.
 */
#ifndef TESTS_AMX_EMU_H
#define TESTS_AMX_EMU_H

#include <math.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

static _Thread_local struct { float f[16][16]; } emu_tile[8];
static _Thread_local bool emu_configured;
static _Atomic long emu_count;

static void emu_bad(const char *what)
{
	fprintf(stderr, "amx_emu: %s\n", what);
	abort();
}

static uint64_t emu_reg(const ucontext_t *u, int n)
{
	static const int at[16] = { REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI,
	    REG_RDI, REG_R8, REG_R9,
		REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15 };

	return (uint64_t)u->uc_mcontext.gregs[at[n]];
}

struct emu_insn {
	int op, pp, reg, rm, vvvv, mod, len;
	uint64_t base, index;		/* of a memory operand */
};

/* A three-byte VEX prefix, opcode, ModRM, SIB, displacement. */
static struct emu_insn emu_decode(const ucontext_t *u, const uint8_t *p)
{
	struct emu_insn x = { 0 };
	int at = 5;

	if (p[0] != 0xc4 || (p[1] & 31) != 2 || p[2] & 0x84)
		emu_bad("not an AMX instruction");
	x.pp = p[2] & 3, x.vvvv = ~p[2] >> 3 & 15, x.op = p[3];
	x.mod = p[4] >> 6, x.reg = p[4] >> 3 & 7, x.rm = p[4] & 7;
	if (x.mod != 3) {
		int rm = x.rm, bx = p[1] & 0x20 ? 0 : 8, ix = p[1] & 0x40 ? 0 : 8;
		bool no_base = false;

		if (rm == 4) {
			int sib = p[at++], index = (sib >> 3 & 7) + ix;

			rm = sib & 7;
			x.index = index == 4 ? 0 : emu_reg(u, index) << (sib >> 6);
			no_base = rm == 5 && x.mod == 0;
		} else if (rm == 5 && x.mod == 0) {
			int32_t d;

			memcpy(&d, p + at, 4);
			x.base = (uint64_t)(uintptr_t)(p + at + 4) + (uint64_t)(int64_t)d;
			x.len = at + 4;
			return x;
		}
		x.base = no_base ? 0 : emu_reg(u, rm + bx);
		if (x.mod == 1) {
			x.base += (uint64_t)(int64_t)(int8_t)p[at++];
		} else if (x.mod == 2 || no_base) {
			int32_t d;

			memcpy(&d, p + at, 4);
			x.base += (uint64_t)(int64_t)d;
			at += 4;
		}
	}
	x.len = at;
	return x;
}

static void emu_configure(const uint8_t *c)
{
	for (int t = 0; t < 8; t++)
		if (c[0] != 1 || c[1] != 0 || c[16 + 2 * t] != 64 || c[17 + 2 * t] != 0 ||
		    c[48 + t] != 16)
			emu_bad("another configuration than whole tiles");
	memset(emu_tile, 0, sizeof(emu_tile));
	emu_configured = true;
}

static float emu_half(uint32_t bits)
{
	float f;

	memcpy(&f, &bits, 4);
	return f;
}

/* Even and odd k have sums of their own, added together and then to C. */
static void emu_dp(int dst, int a, int b)
{
	for (int m = 0; m < 16; m++)
		for (int n = 0; n < 16; n++) {
			float even = 0, odd = 0;

			for (int k = 0; k < 16; k++) {
				uint32_t x, y;

				memcpy(&x, &emu_tile[a].f[m][k], 4);
				memcpy(&y, &emu_tile[b].f[k][n], 4);
				even = fmaf(emu_half(x << 16), emu_half(y << 16), even);
				odd = fmaf(emu_half(x & 0xffff0000), emu_half(y & 0xffff0000), odd);
			}
			emu_tile[dst].f[m][n] += even + odd;
		}
}

static void emu_step(const struct emu_insn *x)
{
	if (x->op == 0x49 && x->pp == 0 && x->mod != 3) {
		emu_configure((const uint8_t *)(uintptr_t)(x->base + x->index));
		return;
	}
	if (!emu_configured)
		emu_bad("tiles are not configured");
	if (x->op == 0x49 && x->pp == 0)
		emu_configured = false;
	else if (x->op == 0x49 && x->pp == 3)
		memset(&emu_tile[x->reg], 0, sizeof(emu_tile[0]));
	else if (x->op == 0x4b && x->pp == 3)
		for (int r = 0; r < 16; r++)
			memcpy(emu_tile[x->reg].f[r],
			    (void *)(uintptr_t)(x->base + (uint64_t)r * x->index), 64);
	else if (x->op == 0x4b && x->pp == 2)
		for (int r = 0; r < 16; r++)
			memcpy((void *)(uintptr_t)(x->base + (uint64_t)r * x->index),
			    emu_tile[x->reg].f[r], 64);
	else if (x->op == 0x5c && x->pp == 2 && x->mod == 3)
		emu_dp(x->reg, x->rm, x->vvvv);
	else
		emu_bad("unknown instruction");
}

static void emu_trap(int sig, siginfo_t *info, void *ctx)
{
	ucontext_t *u = ctx;
	const uint8_t *p = (const uint8_t *)(uintptr_t)u->uc_mcontext.gregs[REG_RIP];
	struct emu_insn x = emu_decode(u, p);

	(void)sig, (void)info;
	emu_step(&x);
	emu_count++;
	u->uc_mcontext.gregs[REG_RIP] += x.len;
}

static void emu_install(void)
{
	struct sigaction sa = { .sa_sigaction = emu_trap, .sa_flags = SA_SIGINFO | SA_NODEFER };

	sigaction(SIGILL, &sa, NULL);
}

#endif

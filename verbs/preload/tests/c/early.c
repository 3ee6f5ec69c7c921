/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * A library that registers memory before the program's main starts, and again after main has
 * returned. It has to be preloaded after the shim. The loader then runs this library's constructor
 * first, so the shim must work before any constructor of its own could run.
 */
#include "loop.h"

static struct ibv_context *context;
static struct ibv_pd *pd;
static char memory[1 << 16];

static void twice(void)
{
	for (int i = 0; i < 2; i++) {
		struct ibv_mr *mr = ibv_reg_mr(pd, memory, sizeof(memory), IBV_ACCESS_LOCAL_WRITE);

		CHECK(mr && mr->addr == memory);
		CHECK(ibv_dereg_mr(mr) == 0);
	}
}

__attribute__((constructor)) static void early(void)
{
	context = loop_open(NULL);
	pd = ibv_alloc_pd(context);
	CHECK(pd);
	twice();
}

__attribute__((destructor)) static void late(void)
{
	twice();
	CHECK(ibv_dealloc_pd(pd) == 0);
	CHECK(ibv_close_device(context) == 0);
	fputs("early and late\n", stderr);
}

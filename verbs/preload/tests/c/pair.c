/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* Registers and deregisters one page TIMES times on the fake device: pair TIMES */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <infiniband/verbs.h>

#include "check.h"

#undef ibv_reg_mr

int main(int argc, char **argv)
{
	CHECK(argc == 2);
	int times = atoi(argv[1]);
	struct ibv_device device = { 0 };
	struct ibv_context *context = ibv_open_device(&device);
	struct ibv_pd *pd = ibv_alloc_pd(context);
	char *memory = aligned_alloc(4096, 4096);

	for (int i = 0; i < times; i++) {
		struct ibv_mr *mr = ibv_reg_mr(pd, memory, 4096, IBV_ACCESS_LOCAL_WRITE);

		CHECK(mr);
		CHECK(ibv_dereg_mr(mr) == 0);
	}
	CHECK(ibv_dealloc_pd(pd) == 0);
	CHECK(ibv_close_device(context) == 0);
	free(memory);
	return 0;
}

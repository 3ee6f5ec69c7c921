/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Loads libibverbs by dlopen, as a program does that must also run without libibverbs. Registers
 * the same memory 100 times:
 *
 *     dlopened dlsym | dlvsym
 */
#define _GNU_SOURCE
#include <dlfcn.h>

#include "loop.h"

#undef ibv_reg_mr

static void *verbs;
static int by_version;

static void *function(const char *name, const char *version)
{
	void *found = by_version ? dlvsym(verbs, name, version) : dlsym(verbs, name);

	CHECK(found);
	return found;
}

#define GET(name, version) __typeof__(name) *f_##name = function(#name, version)

int main(int argc, char **argv)
{
	/* Static memory may begin in a page of the file, which userfaultfd cannot watch. */
	static char memory[1 << 16] __attribute__((aligned(4096)));

	CHECK(argc == 2);
	by_version = !strcmp(argv[1], "dlvsym");
	verbs = dlopen("libibverbs.so.1", RTLD_NOW | RTLD_LOCAL);
	CHECK(verbs);
	GET(ibv_get_device_list, "IBVERBS_1.1");
	GET(ibv_free_device_list, "IBVERBS_1.1");
	GET(ibv_open_device, "IBVERBS_1.1");
	GET(ibv_close_device, "IBVERBS_1.1");
	GET(ibv_alloc_pd, "IBVERBS_1.1");
	GET(ibv_dealloc_pd, "IBVERBS_1.1");
	GET(ibv_reg_mr, "IBVERBS_1.1");
	GET(ibv_reg_mr_iova2, "IBVERBS_1.8");
	GET(ibv_dereg_mr, "IBVERBS_1.1");

	struct ibv_device **list = f_ibv_get_device_list(NULL);

	CHECK(list && *list);
	struct ibv_context *context = f_ibv_open_device(*list);

	CHECK(context);
	f_ibv_free_device_list(list);
	struct ibv_pd *pd = f_ibv_alloc_pd(context);

	CHECK(pd);
	for (int i = 0; i < 50; i++) {
		struct ibv_mr *mr = f_ibv_reg_mr(pd, memory, sizeof(memory), IBV_ACCESS_LOCAL_WRITE);

		CHECK(mr && mr->addr == memory);
		CHECK(f_ibv_dereg_mr(mr) == 0);
		mr = f_ibv_reg_mr_iova2(pd, memory, 100, (uintptr_t)memory, IBV_ACCESS_LOCAL_WRITE);
		CHECK(mr && mr->length == 100);
		CHECK(f_ibv_dereg_mr(mr) == 0);
	}
	CHECK(f_ibv_dealloc_pd(pd) == 0);
	CHECK(f_ibv_close_device(context) == 0);
	return 0;
}

#define _GNU_SOURCE
/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * A naive preload shim, which keeps registrations by address and length, and does not notice
 * changes of the memory. The tests run it to show that they would detect a stale registration.
 */
#include <dlfcn.h>
#include <errno.h>
#include <stddef.h>
#include <stdint.h>

struct ibv_pd;
struct ibv_mr;

static struct {
	struct ibv_pd *pd;
	void *addr;
	size_t length;
	unsigned int access;
	struct ibv_mr *mr;
} kept[1024];
static int count;

struct ibv_mr *ibv_reg_mr_iova2(struct ibv_pd *pd, void *addr, size_t length, uint64_t iova, unsigned int access)
{
	struct ibv_mr *(*real)(struct ibv_pd *, void *, size_t, uint64_t, unsigned int) =
		dlsym(RTLD_NEXT, "ibv_reg_mr_iova2");

	for (int i = 0; i < count; i++)
		if (kept[i].pd == pd && kept[i].addr == addr && kept[i].length == length && kept[i].access == access)
			return kept[i].mr;
	if (count == 1024) {
		errno = ENOMEM;
		return NULL;
	}
	kept[count].mr = real(pd, addr, length, iova, access);
	if (!kept[count].mr)
		return NULL;
	kept[count].pd = pd;
	kept[count].addr = addr;
	kept[count].length = length;
	kept[count].access = access;
	return kept[count++].mr;
}

struct ibv_mr *ibv_reg_mr(struct ibv_pd *pd, void *addr, size_t length, int access)
{
	return ibv_reg_mr_iova2(pd, addr, length, (uintptr_t)addr, access);
}

int ibv_dereg_mr(struct ibv_mr *mr)
{
	(void)mr;
	return 0;
}

/* Deregisters everything first, so that the program ends as it does without the shim. */
int ibv_dealloc_pd(struct ibv_pd *pd)
{
	int (*dereg)(struct ibv_mr *) = dlsym(RTLD_NEXT, "ibv_dereg_mr");
	int (*dealloc)(struct ibv_pd *) = dlsym(RTLD_NEXT, "ibv_dealloc_pd");

	for (int i = 0; i < count; i++)
		dereg(kept[i].mr);
	count = 0;
	return dealloc(pd);
}

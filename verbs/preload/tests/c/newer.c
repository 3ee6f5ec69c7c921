/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Calls the functions of newer versions of libibverbs that register memory, on the fake device.
 * Each call must reach the library, and so must each deregistration of the result. Prints the
 * number of calls.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <infiniband/verbs.h>
#include <string.h>

#include "check.h"

#undef ibv_reg_mr

struct ibv_mr_init_attr;
struct ibv_buf;
extern struct ibv_mr *ibv_reg_mr_ex(struct ibv_pd *pd, struct ibv_mr_init_attr *attr);
extern struct ibv_mr *ibv_reg_buf_mr(struct ibv_pd *pd, struct ibv_buf *buf, void *addr, size_t length, int access);
extern int ibv_fake_registrations(void);

static struct ibv_qp *qp;
static int calls;

/* Sends with the registration's key, and deregisters. Before the call there were `before`. */
static void use_and_end(struct ibv_mr *mr, const void *addr, int before)
{
	CHECK(mr && mr->addr == addr);
	CHECK(ibv_fake_registrations() == before + 1);
	struct ibv_sge sge = { .addr = (uintptr_t)addr, .length = 1, .lkey = mr->lkey };
	struct ibv_send_wr wr = { .sg_list = &sge, .num_sge = 1, .send_flags = IBV_SEND_SIGNALED }, *bad;
	struct ibv_wc wc;

	CHECK(ibv_post_send(qp, &wr, &bad) == 0);
	CHECK(ibv_poll_cq(qp->send_cq, 1, &wc) == 1 && wc.status == IBV_WC_SUCCESS);
	CHECK(ibv_dereg_mr(mr) == 0);
	CHECK(ibv_fake_registrations() == before);
	calls++;
}

int main(void)
{
	struct ibv_device device = { 0 };
	struct ibv_context *context = ibv_open_device(&device);
	struct ibv_pd *pd = ibv_alloc_pd(context);
	struct ibv_cq *cq = ibv_create_cq(context, 16, NULL, NULL, 0);
	struct ibv_qp_init_attr attr = {
		.send_cq = cq,
		.recv_cq = cq,
		.cap = { .max_send_wr = 16, .max_recv_wr = 16, .max_send_sge = 1, .max_recv_sge = 1 },
		.qp_type = IBV_QPT_RC,
	};
	/* The fake takes the address of the structure for that of the memory. */
	char *memory = aligned_alloc(4096, 4096);

	qp = ibv_create_qp(pd, &attr);
	/* The cache knows the memory, so it could answer the calls below. */
	struct ibv_mr *mr = ibv_reg_mr(pd, memory, 4096, IBV_ACCESS_LOCAL_WRITE);

	CHECK(mr && ibv_dereg_mr(mr) == 0);
	struct ibv_mr *(*ex)(struct ibv_pd *, struct ibv_mr_init_attr *) = dlsym(RTLD_DEFAULT, "ibv_reg_mr_ex");

	CHECK(!strcmp(home((void *)ex), home((void *)ibv_fake_registrations)));
	CHECK(dlvsym(RTLD_DEFAULT, "ibv_reg_mr_ex", "IBVERBS_1.15") == (void *)ex);
	for (int i = 0; i < 3; i++) {
		int before = ibv_fake_registrations();

		use_and_end(ibv_reg_mr_ex(pd, (void *)memory), memory, before);
		use_and_end(ex(pd, (void *)memory), memory, before);
		use_and_end(ibv_reg_buf_mr(pd, NULL, memory, 4096, IBV_ACCESS_LOCAL_WRITE), memory, before);
	}
	CHECK(ibv_destroy_qp(qp) == 0);
	CHECK(ibv_destroy_cq(cq) == 0);
	CHECK(ibv_dealloc_pd(pd) == 0);
	CHECK(ibv_close_device(context) == 0);
	printf("%d calls\n", calls);
	return 0;
}

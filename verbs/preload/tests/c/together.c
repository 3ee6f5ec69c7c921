/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Four threads register memory, send it on the fake device, and deregister it. They share some
 * pages, and map and unmap others. At the end no registration may be left.
 */
#define _GNU_SOURCE
#include <infiniband/verbs.h>
#include <pthread.h>
#include <sys/mman.h>

#include "check.h"

#undef ibv_reg_mr

#define PAGE 4096
#define SHARED 4

extern int ibv_fake_registrations(void);

static struct ibv_context *context;
static struct ibv_pd *pd;
static char *shared;
static int rounds;

static char *map(size_t bytes)
{
	char *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	CHECK(at != MAP_FAILED);
	return at;
}

static void *work(void *unused)
{
	struct ibv_cq *cq = ibv_create_cq(context, 16, NULL, NULL, 0);
	struct ibv_qp_init_attr attr = {
		.send_cq = cq,
		.recv_cq = cq,
		.cap = { .max_send_wr = 16, .max_recv_wr = 16, .max_send_sge = 1, .max_recv_sge = 1 },
		.qp_type = IBV_QPT_RC,
	};
	struct ibv_qp *qp = ibv_create_qp(pd, &attr);

	CHECK(cq && qp);
	for (int i = 0; i < rounds; i++) {
		int is_own = i % 8 == 0;
		char *memory = is_own ? map(PAGE) : shared + i % SHARED * PAGE;
		struct ibv_mr *mr = ibv_reg_mr(pd, memory, PAGE, IBV_ACCESS_LOCAL_WRITE);

		CHECK(mr && mr->addr == memory);
		struct ibv_sge sge = { .addr = (uintptr_t)memory, .length = PAGE, .lkey = mr->lkey };
		struct ibv_send_wr wr = { .sg_list = &sge, .num_sge = 1, .send_flags = IBV_SEND_SIGNALED }, *bad;
		struct ibv_wc wc;

		CHECK(ibv_post_send(qp, &wr, &bad) == 0);
		CHECK(ibv_poll_cq(cq, 1, &wc) == 1 && wc.status == IBV_WC_SUCCESS);
		CHECK(ibv_dereg_mr(mr) == 0);
		if (is_own)
			CHECK(munmap(memory, PAGE) == 0);
	}
	CHECK(ibv_destroy_qp(qp) == 0);
	CHECK(ibv_destroy_cq(cq) == 0);
	return unused;
}

int main(int argc, char **argv)
{
	pthread_t threads[4];
	struct ibv_device device = { 0 };

	rounds = argc > 1 ? atoi(argv[1]) : 100;
	context = ibv_open_device(&device);
	pd = ibv_alloc_pd(context);
	shared = map(SHARED * PAGE);
	for (int i = 0; i < 4; i++)
		CHECK(pthread_create(&threads[i], NULL, work, NULL) == 0);
	for (int i = 0; i < 4; i++)
		CHECK(pthread_join(threads[i], NULL) == 0);
	CHECK(ibv_dealloc_pd(pd) == 0);
	CHECK(ibv_fake_registrations() == 0);
	CHECK(ibv_close_device(context) == 0);
	puts("together: ok");
	return 0;
}

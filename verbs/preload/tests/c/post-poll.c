/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Posts and polls TIMES times on the fake device. All posts use one registration, or each post uses
 * a new one:
 *
 *     post-poll TIMES QUEUE-PAIRS send|receive|register [FUNCTION]
 *
 * `register` registers and deregisters around each send. FUNCTION is looked up by name first.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <infiniband/verbs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#undef ibv_reg_mr

#define CHECK(condition)                                                    \
	do {                                                                \
		if (!(condition)) {                                         \
			fprintf(stderr, "line %d: not so: %s\n", __LINE__, #condition); \
			exit(1);                                            \
		}                                                           \
	} while (0)

int main(int argc, char **argv)
{
	CHECK(argc == 4 || argc == 5);
	if (argc == 5)
		dlsym(RTLD_DEFAULT, argv[4]);
	int times = atoi(argv[1]), pairs = atoi(argv[2]);
	int receives = !strcmp(argv[3], "receive"), registers = !strcmp(argv[3], "register");
	struct ibv_device device = { 0 };
	struct ibv_context *context = ibv_open_device(&device);
	struct ibv_pd *pd = ibv_alloc_pd(context);
	struct ibv_cq *cq = ibv_create_cq(context, 16, NULL, NULL, 0);
	struct ibv_qp_init_attr attr = {
		.send_cq = cq,
		.recv_cq = cq,
		.cap = { .max_send_wr = 128, .max_recv_wr = 128, .max_send_sge = 4, .max_recv_sge = 4 },
		.qp_type = IBV_QPT_RC,
	};
	struct ibv_qp *qp = NULL;

	for (int i = 0; i < pairs; i++)
		qp = ibv_create_qp(pd, &attr);
	char *memory = aligned_alloc(4096, 4096);
	struct ibv_mr *mr = ibv_reg_mr(pd, memory, 4096, IBV_ACCESS_LOCAL_WRITE);

	CHECK(mr);
	for (int i = 0; i < times; i++) {
		if (registers) {
			CHECK(ibv_dereg_mr(mr) == 0);
			mr = ibv_reg_mr(pd, memory, 4096, IBV_ACCESS_LOCAL_WRITE);
			CHECK(mr);
		}
		struct ibv_sge sge = { .addr = (uintptr_t)memory, .length = 4096, .lkey = mr->lkey };
		struct ibv_wc wc;

		if (receives) {
			struct ibv_recv_wr wr = { .sg_list = &sge, .num_sge = 1 }, *bad;

			CHECK(ibv_post_recv(qp, &wr, &bad) == 0);
		} else {
			struct ibv_send_wr wr = { .sg_list = &sge, .num_sge = 1, .send_flags = IBV_SEND_SIGNALED }, *bad;

			CHECK(ibv_post_send(qp, &wr, &bad) == 0);
		}
		CHECK(ibv_poll_cq(cq, 1, &wc) == 1 && wc.status == IBV_WC_SUCCESS);
	}
	CHECK(ibv_dereg_mr(mr) == 0);
	return 0;
}

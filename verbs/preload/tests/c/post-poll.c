/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Posts and polls TIMES times on the fake device. All posts use one registration, except where the
 * work says otherwise:
 *
 *     post-poll TIMES QUEUE-PAIRS WORK [FUNCTION]
 *
 * WORK is `send`, `write`, `receive`, `shared` (a receive of a shared queue), `list` (four sends in
 * one post and one poll), `keys` (a send, with four registrations in turn), `unsignaled` (three
 * sends without a completion before each send), or `register` (a send, which is registered and
 * deregistered). FUNCTION is looked up by name first.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <infiniband/verbs.h>
#include <string.h>

#include "check.h"

#undef ibv_reg_mr

int main(int argc, char **argv)
{
	CHECK(argc == 4 || argc == 5);
	if (argc == 5)
		dlsym(RTLD_DEFAULT, argv[4]);
	int times = atoi(argv[1]), pairs = atoi(argv[2]);
	const char *work = argv[3];
	int receives = !strcmp(work, "receive"), shared = !strcmp(work, "shared");
	int registers = !strcmp(work, "register"), list = !strcmp(work, "list"), keys = !strcmp(work, "keys");
	int unsignaled = !strcmp(work, "unsignaled") ? 3 : 0;
	struct ibv_device device = { 0 };
	struct ibv_context *context = ibv_open_device(&device);
	struct ibv_pd *pd = ibv_alloc_pd(context);
	struct ibv_cq *cq = ibv_create_cq(context, 16, NULL, NULL, 0);
	struct ibv_srq_init_attr srq_attr = { .attr = { .max_wr = 128, .max_sge = 4 } };
	struct ibv_srq *srq = shared ? ibv_create_srq(pd, &srq_attr) : NULL;
	struct ibv_qp_init_attr attr = {
		.send_cq = cq,
		.recv_cq = cq,
		.srq = srq,
		.cap = { .max_send_wr = 128, .max_recv_wr = 128, .max_send_sge = 4, .max_recv_sge = 4 },
		.qp_type = IBV_QPT_RC,
	};
	struct ibv_qp *qp = NULL;

	for (int i = 0; i < pairs; i++)
		qp = ibv_create_qp(pd, &attr);
	char *memory = aligned_alloc(4096, 4 * 4096);
	struct ibv_mr *mr[4];

	for (int i = 0; i < 4; i++) {
		mr[i] = ibv_reg_mr(pd, memory + i * 4096, 4096, IBV_ACCESS_LOCAL_WRITE);
		CHECK(mr[i]);
	}
	for (int i = 0; i < times; i++) {
		int key = keys ? i % 4 : 0, got = 1;

		if (registers) {
			CHECK(ibv_dereg_mr(mr[0]) == 0);
			mr[0] = ibv_reg_mr(pd, memory, 4096, IBV_ACCESS_LOCAL_WRITE);
			CHECK(mr[0]);
		}
		struct ibv_sge sge = { .addr = (uintptr_t)memory, .length = 4096, .lkey = mr[key]->lkey };
		struct ibv_wc wc[4];

		if (receives || shared) {
			struct ibv_recv_wr wr = { .sg_list = &sge, .num_sge = 1 }, *bad;

			CHECK((shared ? ibv_post_srq_recv(srq, &wr, &bad) : ibv_post_recv(qp, &wr, &bad)) == 0);
		} else if (list) {
			struct ibv_send_wr wr[4], *bad;

			for (int at = 0; at < 4; at++)
				wr[at] = (struct ibv_send_wr){ .sg_list = &sge, .num_sge = 1,
							       .next = at < 3 ? &wr[at + 1] : NULL,
							       .send_flags = IBV_SEND_SIGNALED };
			CHECK(ibv_post_send(qp, wr, &bad) == 0);
			got = 4;
		} else {
			struct ibv_send_wr wr = { .sg_list = &sge, .num_sge = 1 }, *bad;

			wr.opcode = strcmp(work, "write") ? IBV_WR_SEND : IBV_WR_RDMA_WRITE;
			for (int at = 0; at < unsignaled; at++)
				CHECK(ibv_post_send(qp, &wr, &bad) == 0);
			wr.send_flags = IBV_SEND_SIGNALED;
			CHECK(ibv_post_send(qp, &wr, &bad) == 0);
		}
		CHECK(ibv_poll_cq(cq, got, wc) == got && wc[0].status == IBV_WC_SUCCESS);
	}
	for (int i = 0; i < 4; i++)
		CHECK(ibv_dereg_mr(mr[i]) == 0);
	if (qp)
		CHECK(ibv_destroy_qp(qp) == 0);
	if (srq)
		CHECK(ibv_destroy_srq(srq) == 0);
	CHECK(ibv_destroy_cq(cq) == 0);
	CHECK(ibv_dealloc_pd(pd) == 0);
	CHECK(ibv_close_device(context) == 0);
	return 0;
}

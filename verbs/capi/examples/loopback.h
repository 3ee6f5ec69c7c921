/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * A queue pair that is connected with itself, so that this process receives what it sends. With
 * this file, the example needs no code for connections and shows only registrations.
 */
#ifndef LOOPBACK_H
#define LOOPBACK_H

#include <err.h>
#include <infiniband/verbs.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

struct loopback {
	struct ibv_context *context;
	struct ibv_pd *pd;
	struct ibv_cq *cq;
	struct ibv_qp *qp;
};

/* Returns the index of the GID for RoCE v2 with the port's IPv4 address, or 0 if there is none. */
static inline uint8_t gid_index(struct ibv_context *context, int entries)
{
	static const uint8_t mapped[12] = { [10] = 0xff, [11] = 0xff };
	union ibv_gid gid;
	int i;
	for (i = 0; i < entries && i < UINT8_MAX; i++)
		if (ibv_query_gid(context, 1, i, &gid) == 0 && memcmp(gid.raw, mapped, sizeof mapped) == 0)
			return (uint8_t)i;
	return 0;
}

/* Opens the first device and connects port 1 with itself. */
static inline struct loopback loopback_open(void)
{
	struct ibv_device **devices = ibv_get_device_list(NULL);
	struct ibv_port_attr port;
	struct loopback link;
	if (!devices || !devices[0])
		errx(1, "no RDMA device");
	link.context = ibv_open_device(devices[0]);
	ibv_free_device_list(devices);
	if (!link.context || ibv_query_port(link.context, 1, &port))
		err(1, "cannot open the device");
	link.pd = ibv_alloc_pd(link.context);
	link.cq = ibv_create_cq(link.context, 4, NULL, NULL, 0);
	if (!link.pd || !link.cq)
		err(1, "cannot set the device up");

	struct ibv_qp_init_attr init = {
		.send_cq = link.cq,
		.recv_cq = link.cq,
		.qp_type = IBV_QPT_RC,
		.cap = { .max_send_wr = 1, .max_recv_wr = 1, .max_send_sge = 1, .max_recv_sge = 1 },
		.sq_sig_all = 1,
	};
	link.qp = ibv_create_qp(link.pd, &init);
	if (!link.qp)
		err(1, "cannot create a queue pair");

	struct ibv_qp_attr attr = {
		.qp_state = IBV_QPS_INIT,
		.port_num = 1,
		.path_mtu = port.active_mtu,
		.dest_qp_num = link.qp->qp_num,
		.max_dest_rd_atomic = 1,
		.max_rd_atomic = 1,
		.min_rnr_timer = 12,
		.timeout = 20,
		.retry_cnt = 7,
		.rnr_retry = 7,
		.ah_attr = { .is_global = 1, .port_num = 1, .dlid = port.lid },
	};
	attr.ah_attr.grh.hop_limit = 1;
	attr.ah_attr.grh.sgid_index = gid_index(link.context, port.gid_tbl_len);
	if (ibv_query_gid(link.context, 1, attr.ah_attr.grh.sgid_index, &attr.ah_attr.grh.dgid))
		err(1, "the port has no GID");
	int to_init = IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS;
	int to_rtr = IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN |
		     IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER;
	int to_rts = IBV_QP_STATE | IBV_QP_SQ_PSN | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY |
		     IBV_QP_MAX_QP_RD_ATOMIC;
	int failed = ibv_modify_qp(link.qp, &attr, to_init);
	attr.qp_state = IBV_QPS_RTR;
	failed = failed ? failed : ibv_modify_qp(link.qp, &attr, to_rtr);
	attr.qp_state = IBV_QPS_RTS;
	failed = failed ? failed : ibv_modify_qp(link.qp, &attr, to_rts);
	if (failed)
		errx(1, "cannot connect: %s", strerror(failed));
	return link;
}

/* Sends `from`, receives it into `to`, and returns when both have completed. */
static inline void loopback_send(struct loopback *link, const void *from, uint32_t from_lkey,
				 void *to, uint32_t to_lkey, uint32_t length)
{
	struct ibv_sge source = { .addr = (uintptr_t)from, .length = length, .lkey = from_lkey };
	struct ibv_sge sink = { .addr = (uintptr_t)to, .length = length, .lkey = to_lkey };
	struct ibv_recv_wr recv = { .sg_list = &sink, .num_sge = 1 }, *bad_recv;
	struct ibv_send_wr send = { .sg_list = &source, .num_sge = 1, .opcode = IBV_WR_SEND }, *bad_send;
	struct ibv_wc wc;
	int done = 0;
	if (ibv_post_recv(link->qp, &recv, &bad_recv) || ibv_post_send(link->qp, &send, &bad_send))
		errx(1, "cannot post");
	while (done < 2) {
		int polled = ibv_poll_cq(link->cq, 1, &wc);
		if (polled < 0 || (polled == 1 && wc.status != IBV_WC_SUCCESS))
			errx(1, "the transfer failed: %s", polled < 0 ? "no completions" : ibv_wc_status_str(wc.status));
		done += polled;
	}
}

static inline void loopback_close(struct loopback *link)
{
	if (ibv_destroy_qp(link->qp) || ibv_destroy_cq(link->cq) || ibv_dealloc_pd(link->pd) ||
	    ibv_close_device(link->context))
		errx(1, "the device does not close");
}

#endif

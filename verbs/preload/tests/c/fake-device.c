/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * A fake of libibverbs with one device, which does nothing: all work that is posted to it completes
 * at once. Tests use it to count the instructions that the shim adds to posting and polling,
 * without a real device. The file is built as librxe-fake.so, because the shim recognizes devices
 * by the names of their libraries.
 */
#include <infiniband/verbs.h>
#include <stdlib.h>
#include <string.h>

#define ROOM 1024

struct fake_cq {
	struct ibv_cq cq;
	struct ibv_wc done[ROOM];
	unsigned int head, tail;
};

struct fake_srq {
	struct ibv_srq srq;
	/* The queue pair that takes the receives. */
	struct ibv_qp *qp;
};

static _Atomic uint32_t last_key, last_number;

static void complete(struct ibv_cq *to, const struct ibv_qp *qp, uint64_t id, enum ibv_wc_opcode opcode)
{
	struct fake_cq *cq = (struct fake_cq *)to;
	struct ibv_wc *wc = &cq->done[cq->tail++ % ROOM];

	*wc = (struct ibv_wc){ .wr_id = id, .opcode = opcode, .qp_num = qp->qp_num };
}

static int post_send(struct ibv_qp *qp, struct ibv_send_wr *wr, struct ibv_send_wr **bad)
{
	(void)bad;
	for (; wr; wr = wr->next)
		if (wr->send_flags & IBV_SEND_SIGNALED)
			complete(qp->send_cq, qp, wr->wr_id, IBV_WC_SEND);
	return 0;
}

static int post_recv(struct ibv_qp *qp, struct ibv_recv_wr *wr, struct ibv_recv_wr **bad)
{
	(void)bad;
	for (; wr; wr = wr->next)
		complete(qp->recv_cq, qp, wr->wr_id, IBV_WC_RECV);
	return 0;
}

static int post_srq_recv(struct ibv_srq *srq, struct ibv_recv_wr *wr, struct ibv_recv_wr **bad)
{
	return post_recv(((struct fake_srq *)srq)->qp, wr, bad);
}

static int poll_cq(struct ibv_cq *of, int most, struct ibv_wc *wc)
{
	struct fake_cq *cq = (struct fake_cq *)of;
	int got = 0;

	while (got < most && cq->head != cq->tail)
		wc[got++] = cq->done[cq->head++ % ROOM];
	return got;
}

struct ibv_context *ibv_open_device(struct ibv_device *device)
{
	struct ibv_context *context = calloc(1, sizeof(*context));

	context->device = device;
	context->ops.post_send = post_send;
	context->ops.post_recv = post_recv;
	context->ops.post_srq_recv = post_srq_recv;
	context->ops.poll_cq = poll_cq;
	return context;
}

int ibv_close_device(struct ibv_context *context)
{
	free(context);
	return 0;
}

struct ibv_pd *ibv_alloc_pd(struct ibv_context *context)
{
	struct ibv_pd *pd = calloc(1, sizeof(*pd));

	pd->context = context;
	return pd;
}

int ibv_dealloc_pd(struct ibv_pd *pd)
{
	free(pd);
	return 0;
}

/* The number of registrations that exist. Only the fake has this function. */
static _Atomic int registrations;

int ibv_fake_registrations(void)
{
	return registrations;
}

static struct ibv_mr *registered(struct ibv_pd *pd, void *addr, size_t length)
{
	struct ibv_mr *mr = calloc(1, sizeof(*mr));

	*mr = (struct ibv_mr){ .context = pd->context, .pd = pd, .addr = addr, .length = length, .lkey = ++last_key << 8 };
	registrations++;
	return mr;
}

#undef ibv_reg_mr
struct ibv_mr *ibv_reg_mr(struct ibv_pd *pd, void *addr, size_t length, int access)
{
	(void)access;
	return registered(pd, addr, length);
}

/*
 * Newer versions of libibverbs have these two functions. Its older headers do not declare them. The
 * fake does not read the structures.
 */
struct ibv_mr_init_attr;
struct ibv_buf;
struct ibv_mr *ibv_reg_mr_ex(struct ibv_pd *pd, struct ibv_mr_init_attr *attr);
struct ibv_mr *ibv_reg_buf_mr(struct ibv_pd *pd, struct ibv_buf *buf, void *addr, size_t length, int access);

struct ibv_mr *ibv_reg_mr_ex(struct ibv_pd *pd, struct ibv_mr_init_attr *attr)
{
	return registered(pd, attr, 1);
}

struct ibv_mr *ibv_reg_buf_mr(struct ibv_pd *pd, struct ibv_buf *buf, void *addr, size_t length, int access)
{
	(void)buf;
	(void)access;
	return registered(pd, addr, length);
}

int ibv_dereg_mr(struct ibv_mr *mr)
{
	registrations--;
	free(mr);
	return 0;
}

struct ibv_cq *ibv_create_cq(struct ibv_context *context, int cqe, void *cq_context, struct ibv_comp_channel *channel,
			     int vector)
{
	struct fake_cq *cq = calloc(1, sizeof(*cq));

	(void)vector;
	cq->cq.context = context;
	cq->cq.cqe = cqe;
	cq->cq.cq_context = cq_context;
	cq->cq.channel = channel;
	return &cq->cq;
}

int ibv_destroy_cq(struct ibv_cq *cq)
{
	free(cq);
	return 0;
}

struct ibv_srq *ibv_create_srq(struct ibv_pd *pd, struct ibv_srq_init_attr *attr)
{
	struct fake_srq *srq = calloc(1, sizeof(*srq));

	(void)attr;
	srq->srq.context = pd->context;
	srq->srq.pd = pd;
	return &srq->srq;
}

int ibv_destroy_srq(struct ibv_srq *srq)
{
	free(srq);
	return 0;
}

struct ibv_qp *ibv_create_qp(struct ibv_pd *pd, struct ibv_qp_init_attr *attr)
{
	struct ibv_qp *qp = calloc(1, sizeof(*qp));

	qp->context = pd->context;
	qp->pd = pd;
	qp->send_cq = attr->send_cq;
	qp->recv_cq = attr->recv_cq;
	qp->srq = attr->srq;
	if (qp->srq)
		((struct fake_srq *)qp->srq)->qp = qp;
	qp->qp_num = ++last_number;
	qp->qp_type = attr->qp_type;
	return qp;
}

int ibv_destroy_qp(struct ibv_qp *qp)
{
	free(qp);
	return 0;
}

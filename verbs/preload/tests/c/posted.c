/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Deregisters registrations while work with their keys is outstanding, and frees their memory:
 *
 *     posted PART
 *
 * Each part prints how the work completed, and how many bytes of the memory's next owner were
 * overwritten or sent. The output has to be the same with the shim and without. A part fails if any
 * such byte was overwritten or sent.
 */
#include <pthread.h>
#include <unistd.h>

#include "loop.h"

#define LENGTH 1024
#define LOCAL IBV_ACCESS_LOCAL_WRITE

/* Two queue pairs that are connected to each other. */
struct two {
	struct ibv_context *context;
	struct ibv_pd *pd;
	struct ibv_cq *cq;
	struct ibv_srq *srq;
	struct ibv_qp *a, *b;
	struct ibv_cq_ex *extended;
};

/* A piece of registered memory. */
struct buffer {
	char *at;
	struct ibv_mr *mr;
};

static void init(struct ibv_qp *qp)
{
	struct ibv_qp_attr attr = { .qp_state = IBV_QPS_INIT, .port_num = 1, .qp_access_flags = IBV_ACCESS_REMOTE_READ };

	CHECK(ibv_modify_qp(qp, &attr, IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS) == 0);
}

static void connect_to(struct ibv_qp *qp, const struct ibv_qp *peer)
{
	union ibv_gid gid;
	int index = loop_gid(qp->context, &gid);
	struct ibv_qp_attr attr = {
		.qp_state = IBV_QPS_RTR,
		.path_mtu = IBV_MTU_1024,
		.dest_qp_num = peer->qp_num,
		.max_dest_rd_atomic = 4,
		.min_rnr_timer = 1,
		.ah_attr = { .is_global = 1,
			     .grh = { .dgid = gid, .sgid_index = index, .hop_limit = 1 },
			     .port_num = 1 },
	};

	CHECK(ibv_modify_qp(qp, &attr,
			    IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN |
				    IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER) == 0);
	/* A request that gets no answer is sent again after half a second. */
	attr = (struct ibv_qp_attr){
		.qp_state = IBV_QPS_RTS, .timeout = 17, .retry_cnt = 7, .rnr_retry = 3, .max_rd_atomic = 4
	};
	CHECK(ibv_modify_qp(qp, &attr,
			    IBV_QP_STATE | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY | IBV_QP_SQ_PSN |
				    IBV_QP_MAX_QP_RD_ATOMIC) == 0);
}

static void reset(struct ibv_qp *qp)
{
	struct ibv_qp_attr attr = { .qp_state = IBV_QPS_RESET };

	CHECK(ibv_modify_qp(qp, &attr, IBV_QP_STATE) == 0);
}

static struct ibv_qp *make(struct two *two)
{
	struct ibv_qp_init_attr_ex attr = {
		.send_cq = two->cq,
		.recv_cq = two->cq,
		.srq = two->srq,
		.cap = { .max_send_wr = 8, .max_recv_wr = 8, .max_send_sge = 1, .max_recv_sge = 1, .max_inline_data = 64 },
		.qp_type = IBV_QPT_RC,
		.comp_mask = IBV_QP_INIT_ATTR_PD,
		.pd = two->pd,
	};
	if (two->extended) {
		attr.comp_mask |= IBV_QP_INIT_ATTR_SEND_OPS_FLAGS;
		attr.send_ops_flags = IBV_QP_EX_WITH_SEND | IBV_QP_EX_WITH_RDMA_READ;
	}
	struct ibv_qp *qp = ibv_create_qp_ex(two->context, &attr);

	CHECK(qp);
	init(qp);
	return qp;
}

enum { PLAIN = 0, SHARED = 1, EXTENDED = 2, HALF = 4 };

/*
 * Connects the two queue pairs `a` and `b`. With HALF, `b` is not connected yet, so the work that
 * is posted to `a` stays outstanding.
 */
static struct two begin(int how)
{
	struct two two = { .context = loop_open(NULL) };

	two.pd = ibv_alloc_pd(two.context);
	CHECK(two.pd);
	if (how & EXTENDED) {
		struct ibv_cq_init_attr_ex attr = { .cqe = 32 };

		two.extended = ibv_create_cq_ex(two.context, &attr);
		CHECK(two.extended);
		two.cq = ibv_cq_ex_to_cq(two.extended);
	} else {
		two.cq = ibv_create_cq(two.context, 32, NULL, NULL, 0);
		CHECK(two.cq);
	}
	if (how & SHARED) {
		struct ibv_srq_init_attr attr = { .attr = { .max_wr = 8, .max_sge = 1 } };

		two.srq = ibv_create_srq(two.pd, &attr);
		CHECK(two.srq);
	}
	two.a = make(&two);
	two.b = make(&two);
	connect_to(two.a, two.b);
	if (!(how & HALF))
		connect_to(two.b, two.a);
	return two;
}

static void finish(struct two *two)
{
	CHECK(ibv_destroy_qp(two->a) == 0 && ibv_destroy_qp(two->b) == 0);
	if (two->srq)
		CHECK(ibv_destroy_srq(two->srq) == 0);
	CHECK(ibv_destroy_cq(two->cq) == 0);
}

static struct buffer buffer(const struct two *two, char fill, int access)
{
	struct buffer it = { .at = malloc(LENGTH) };

	CHECK(it.at);
	memset(it.at, fill, LENGTH);
	it.mr = ibv_reg_mr(two->pd, it.at, LENGTH, access);
	CHECK(it.mr);
	return it;
}

/* Deregisters and frees the memory. Then a new owner gets the same memory, and fills it. */
static char *reuse(struct buffer *it)
{
	CHECK(ibv_dereg_mr(it->mr) == 0);
	free(it->at);
	char *mine = malloc(LENGTH);

	CHECK(mine == it->at);
	memset(mine, 'm', LENGTH);
	return mine;
}

static int count(const char *in, char wanted, int is_it)
{
	int found = 0;

	for (int i = 0; i < LENGTH; i++)
		found += (in[i] == wanted) == is_it;
	return found;
}

static void nothing_overwritten(const char *mine)
{
	int bytes = count(mine, 'm', 0);

	printf("overwritten: %d\n", bytes);
	CHECK(bytes == 0);
}

static void nothing_sent(const char *arrived)
{
	int bytes = count(arrived, 'm', 1);

	printf("sent: %d\n", bytes);
	CHECK(bytes == 0);
}

static struct ibv_sge all_of(const struct buffer *it)
{
	return (struct ibv_sge){ .addr = (uintptr_t)it->at, .length = LENGTH, .lkey = it->mr->lkey };
}

static void receive(const struct two *two, struct ibv_sge sge, int id)
{
	struct ibv_recv_wr wr = { .wr_id = id, .sg_list = &sge, .num_sge = 1 }, *bad;

	if (two->srq)
		CHECK(ibv_post_srq_recv(two->srq, &wr, &bad) == 0);
	else
		CHECK(ibv_post_recv(two->b, &wr, &bad) == 0);
}

static void post(const struct two *two, struct ibv_sge sge, int id, enum ibv_wr_opcode opcode, int flags,
		 const struct buffer *remote)
{
	struct ibv_send_wr wr = { .wr_id = id, .sg_list = &sge, .num_sge = 1, .opcode = opcode, .send_flags = flags };
	struct ibv_send_wr *bad;

	if (remote) {
		wr.wr.rdma.remote_addr = (uintptr_t)remote->at;
		wr.wr.rdma.rkey = remote->mr->rkey;
	}
	if (!two->extended) {
		CHECK(ibv_post_send(two->a, &wr, &bad) == 0);
		return;
	}
	struct ibv_qp_ex *qp = ibv_qp_to_qp_ex(two->a);

	ibv_wr_start(qp);
	qp->wr_id = id;
	qp->wr_flags = flags;
	if (opcode == IBV_WR_SEND)
		ibv_wr_send(qp);
	else
		ibv_wr_rdma_read(qp, remote->mr->rkey, (uintptr_t)remote->at);
	ibv_wr_set_sge(qp, sge.lkey, sge.addr, sge.length);
	CHECK(ibv_wr_complete(qp) == 0);
}

static void send_signaled(const struct two *two, struct ibv_sge sge, int id)
{
	post(two, sge, id, IBV_WR_SEND, IBV_SEND_SIGNALED, NULL);
}

/* The status of each completion, by the number of its work request. The numbers are small. */
struct done {
	int status[16];
};

/* Polls for at most `most` completions, and returns how many there were. */
static int poll(const struct two *two, int most, struct done *done)
{
	struct ibv_wc wc[4];
	int got = 0;

	if (two->extended) {
		struct ibv_poll_cq_attr attr = { 0 };

		if (ibv_start_poll(two->extended, &attr))
			return 0;
		/*
		 * The loop takes one completion at a time. If rxe of rdma-core 44 is asked for a
		 * completion that does not exist, it corrupts its queue.
		 */
		done->status[two->extended->wr_id] = two->extended->status;
		ibv_end_poll(two->extended);
		return 1;
	}
	got = ibv_poll_cq(two->cq, most < 4 ? most : 4, wc);
	CHECK(got >= 0);
	for (int i = 0; i < got; i++)
		done->status[wc[i].wr_id] = wc[i].status;
	return got;
}

/* Waits at most two minutes for `wanted` completions, and prints the statuses of `numbers`. */
static void await(const struct two *two, int wanted, const char *numbers)
{
	struct done done;
	int got = 0;

	for (int i = 0; i < 16; i++)
		done.status[i] = -1;
	for (int i = 0; i < 120000 && got < wanted; i++) {
		int more = poll(two, wanted - got, &done);

		got += more;
		if (!more)
			usleep(1000);
	}
	for (; *numbers; numbers++) {
		int status = done.status[*numbers - '0'];

		printf("%c: %s\n", *numbers, status < 0 ? "none" : ibv_wc_status_str(status));
	}
}

/* Deregisters while a receive is posted. */
static void receives(int how)
{
	struct two two = begin(how);
	struct buffer from = buffer(&two, 'S', LOCAL), to = buffer(&two, 'r', LOCAL);

	receive(&two, all_of(&to), 1);
	char *mine = reuse(&to);

	send_signaled(&two, all_of(&from), 2);
	await(&two, 2, "12");
	nothing_overwritten(mine);
	finish(&two);
}

/* Deregisters when one receive of a shared queue has completed, and another has not. */
static void shared(void)
{
	struct two two = begin(SHARED);
	struct buffer from = buffer(&two, 'S', LOCAL), first = buffer(&two, 'r', LOCAL),
		      second = buffer(&two, 'r', LOCAL);

	receive(&two, all_of(&first), 1);
	receive(&two, all_of(&second), 2);
	send_signaled(&two, all_of(&from), 3);
	await(&two, 2, "13");
	CHECK(count(first.at, 'S', 1) == LENGTH);
	char *mine = reuse(&second);

	send_signaled(&two, all_of(&from), 4);
	await(&two, 2, "24");
	nothing_overwritten(mine);
	finish(&two);
}

/*
 * Deregisters three registrations: one before a queue pair is destroyed, one after the receiver's
 * queue pair is destroyed, and one after both are destroyed.
 */
static void teardown(void)
{
	struct two two = begin(PLAIN);
	struct buffer from = buffer(&two, 'S', LOCAL), to = buffer(&two, 'r', LOCAL), other = buffer(&two, 'r', LOCAL);

	receive(&two, all_of(&to), 1);
	receive(&two, all_of(&other), 2);
	CHECK(ibv_dereg_mr(to.mr) == 0);
	free(to.at);
	char *mine = malloc(LENGTH);

	memset(mine, 'm', LENGTH);
	send_signaled(&two, all_of(&from), 3);
	await(&two, 3, "123");
	CHECK(ibv_destroy_qp(two.b) == 0);
	CHECK(ibv_dereg_mr(other.mr) == 0);
	CHECK(ibv_destroy_qp(two.a) == 0);
	CHECK(ibv_dereg_mr(from.mr) == 0);
	CHECK(ibv_destroy_cq(two.cq) == 0);
	nothing_overwritten(mine);
	CHECK(ibv_dealloc_pd(two.pd) == 0);
	CHECK(ibv_close_device(two.context) == 0);
}

/* Deregisters while a read waits for its answer. */
static void reads(int how)
{
	struct two two = begin(how | HALF);
	struct buffer from = buffer(&two, 'S', LOCAL | IBV_ACCESS_REMOTE_READ), to = buffer(&two, 'r', LOCAL);

	post(&two, all_of(&to), 1, IBV_WR_RDMA_READ, IBV_SEND_SIGNALED, &from);
	char *mine = reuse(&to);

	connect_to(two.b, two.a);
	await(&two, 1, "1");
	nothing_overwritten(mine);
	finish(&two);
}

/* Deregisters while a send waits behind a read that is not answered yet. */
static void behind(int how, int flags)
{
	struct two two = begin(how | HALF);
	struct buffer remote = buffer(&two, 'S', LOCAL | IBV_ACCESS_REMOTE_READ), to = buffer(&two, 'r', LOCAL),
		      from = buffer(&two, 'f', LOCAL), arrives = buffer(&two, 'r', LOCAL);

	receive(&two, all_of(&arrives), 3);
	post(&two, all_of(&to), 1, IBV_WR_RDMA_READ, flags, &remote);
	post(&two, all_of(&from), 2, IBV_WR_SEND, IBV_SEND_FENCE | IBV_SEND_SIGNALED, NULL);
	reuse(&from);
	connect_to(two.b, two.a);
	await(&two, flags & IBV_SEND_SIGNALED ? 2 : 1, "12");
	nothing_sent(arrives.at);
	finish(&two);
}

/*
 * The completion of a signaled send also ends unsignaled sends that were posted before it. It does
 * not end sends that were posted later.
 */
static void unsignaled(void)
{
	struct two two = begin(PLAIN);
	struct buffer to[3], from[3];

	for (int i = 0; i < 3; i++) {
		to[i] = buffer(&two, 'r', LOCAL);
		from[i] = buffer(&two, 'a' + i, LOCAL);
		receive(&two, all_of(&to[i]), 4 + i);
	}
	for (int i = 0; i < 3; i++)
		post(&two, all_of(&from[i]), 1 + i, IBV_WR_SEND, i == 1 ? IBV_SEND_SIGNALED : 0, NULL);
	await(&two, 4, "2456");
	for (int i = 0; i < 3; i++) {
		CHECK(count(to[i].at, 'a' + i, 1) == LENGTH);
		CHECK(ibv_dereg_mr(to[i].mr) == 0);
	}
	/* The third send has no completion, so the shim must assume that it is outstanding. */
	for (int i = 0; i < 3; i++)
		CHECK(ibv_dereg_mr(from[i].mr) == 0);
	finish(&two);
}

/* The data of the send is inline, so the device sends from its own copy. */
static void inlined(void)
{
	struct two two = begin(HALF);
	struct buffer from = buffer(&two, 'S', LOCAL), to = buffer(&two, 'r', LOCAL);
	struct ibv_sge some = all_of(&from);

	some.length = 64;
	post(&two, some, 1, IBV_WR_SEND, IBV_SEND_INLINE | IBV_SEND_SIGNALED, NULL);
	reuse(&from);
	receive(&two, all_of(&to), 2);
	connect_to(two.b, two.a);
	await(&two, 2, "12");
	printf("arrived: %d\n", count(to.at, 'S', 1));
	nothing_sent(to.at);
	CHECK(ibv_dereg_mr(to.mr) == 0);
	finish(&two);
}

/* Resets the queue pair while a receive is posted, and uses the queue pair again. */
static void resets(void)
{
	struct two two = begin(PLAIN);
	struct buffer from = buffer(&two, 'S', LOCAL), to = buffer(&two, 'r', LOCAL), other = buffer(&two, 'r', LOCAL);

	receive(&two, all_of(&to), 1);
	reset(two.b);
	char *mine = reuse(&to);

	init(two.b);
	receive(&two, all_of(&other), 2);
	connect_to(two.b, two.a);
	send_signaled(&two, all_of(&from), 3);
	await(&two, 2, "123");
	printf("arrived: %d\n", count(other.at, 'S', 1));
	nothing_overwritten(mine);
	/*
	 * This receive is posted to the queue pair after its reset. The shim must see it as
	 * outstanding.
	 */
	receive(&two, all_of(&other), 4);
	mine = reuse(&other);
	send_signaled(&two, all_of(&from), 5);
	await(&two, 2, "45");
	nothing_overwritten(mine);
	finish(&two);
}

/*
 * The queue pairs are reset and get new work. Then the completions of the work from before the
 * reset are polled. These completions must not end the new work.
 */
static void stale(void)
{
	struct two two = begin(PLAIN);
	struct buffer from = buffer(&two, 'S', LOCAL), to = buffer(&two, 'r', LOCAL), other = buffer(&two, 'r', LOCAL);

	receive(&two, all_of(&to), 1);
	send_signaled(&two, all_of(&from), 2);
	for (int i = 0; i < 120000 && count(to.at, 'S', 1) < LENGTH; i++)
		usleep(1000);
	/* After this time both completions are in the completion queue. */
	usleep(500000);
	reset(two.a);
	reset(two.b);
	init(two.a);
	init(two.b);
	connect_to(two.a, two.b);
	connect_to(two.b, two.a);
	receive(&two, all_of(&other), 3);
	await(&two, 2, "12");
	char *mine = reuse(&other);

	send_signaled(&two, all_of(&from), 4);
	await(&two, 2, "34");
	nothing_overwritten(mine);
	finish(&two);
}

struct poller {
	const struct two *two;
	struct done done;
	int wanted;
};

static void *polls(void *argument)
{
	struct poller *poller = argument;

	for (int i = 0, got = 0; i < 120000 && got < poller->wanted; i++) {
		got += poll(poller->two, 1, &poller->done);
		usleep(100);
	}
	return NULL;
}

/* Deregisters while another thread polls. */
static void polled(void)
{
	struct two two = begin(PLAIN);
	struct buffer from = buffer(&two, 'S', LOCAL), to = buffer(&two, 'r', LOCAL), other = buffer(&two, 'r', LOCAL);
	struct poller poller = { .two = &two, .wanted = 2 };
	pthread_t thread;

	CHECK(pthread_create(&thread, NULL, polls, &poller) == 0);
	receive(&two, all_of(&to), 1);
	receive(&two, all_of(&other), 2);
	send_signaled(&two, all_of(&from), 3);
	CHECK(pthread_join(thread, NULL) == 0);
	printf("1: %s\n3: %s\n", ibv_wc_status_str(poller.done.status[1]), ibv_wc_status_str(poller.done.status[3]));
	CHECK(count(to.at, 'S', 1) == LENGTH);
	CHECK(ibv_dereg_mr(to.mr) == 0);
	char *mine = reuse(&other);

	send_signaled(&two, all_of(&from), 4);
	await(&two, 2, "24");
	nothing_overwritten(mine);
	finish(&two);
}

/* The device refuses the second of three receives. */
static void refused(void)
{
	struct two two = begin(PLAIN);
	struct buffer from = buffer(&two, 'S', LOCAL), to[3];
	struct ibv_sge sge[3];
	struct ibv_recv_wr wr[3], *bad = NULL;

	for (int i = 0; i < 3; i++) {
		to[i] = buffer(&two, 'r', LOCAL);
		sge[i] = all_of(&to[i]);
		wr[i] = (struct ibv_recv_wr){
			.wr_id = 1 + i, .sg_list = &sge[i], .num_sge = i == 1 ? 1000 : 1, .next = i < 2 ? &wr[i + 1] : NULL
		};
	}
	CHECK(ibv_post_recv(two.b, wr, &bad) != 0 && bad == &wr[1]);
	char *mine = reuse(&to[0]);

	send_signaled(&two, all_of(&from), 4);
	await(&two, 2, "14");
	nothing_overwritten(mine);
	CHECK(ibv_dereg_mr(to[1].mr) == 0 && ibv_dereg_mr(to[2].mr) == 0);
	finish(&two);
}

/* Posts a receive with the key of a registration that was deregistered. */
static void late_receive(int how)
{
	struct two two = begin(how);
	struct buffer from = buffer(&two, 'S', LOCAL), to = buffer(&two, 'r', LOCAL);
	struct ibv_sge dead = all_of(&to);
	char *mine = reuse(&to);

	receive(&two, dead, 1);
	send_signaled(&two, all_of(&from), 2);
	await(&two, 2, "12");
	nothing_overwritten(mine);
	finish(&two);
}

/* Posts a send with the key of a registration that was deregistered. */
static void late_send(int how)
{
	struct two two = begin(how);
	struct buffer from = buffer(&two, 'S', LOCAL), to = buffer(&two, 'r', LOCAL);
	struct ibv_sge dead = all_of(&from);

	reuse(&from);
	receive(&two, all_of(&to), 1);
	send_signaled(&two, dead, 2);
	await(&two, 1, "2");
	nothing_sent(to.at);
	finish(&two);
}

/*
 * Does the same with a key that the queue has used before. Another key is posted at the same time,
 * so that neither of the two takes the place of the other in the shim's accounts. The other key is
 * used last, so a request with the dead key has to change the run.
 */
static void used_late_receive(int how)
{
	struct two two = begin(how);
	struct buffer from = buffer(&two, 'S', LOCAL), to = buffer(&two, 'r', LOCAL), other = buffer(&two, 'o', LOCAL);
	struct ibv_sge dead = all_of(&to);

	receive(&two, dead, 1);
	receive(&two, all_of(&other), 2);
	send_signaled(&two, all_of(&from), 3);
	send_signaled(&two, all_of(&from), 4);
	await(&two, 4, "1234");
	char *mine = reuse(&to);

	receive(&two, all_of(&other), 5);
	send_signaled(&two, all_of(&from), 6);
	await(&two, 2, "56");
	receive(&two, dead, 7);
	send_signaled(&two, all_of(&from), 8);
	await(&two, 2, "78");
	nothing_overwritten(mine);
	finish(&two);
}

static void used_late_send(int how)
{
	struct two two = begin(how);
	struct buffer from = buffer(&two, 'S', LOCAL), to = buffer(&two, 'r', LOCAL), other = buffer(&two, 'S', LOCAL);
	struct ibv_sge dead = all_of(&from);

	receive(&two, all_of(&to), 1);
	receive(&two, all_of(&to), 2);
	send_signaled(&two, dead, 3);
	send_signaled(&two, all_of(&other), 4);
	await(&two, 4, "1234");
	reuse(&from);
	receive(&two, all_of(&to), 5);
	send_signaled(&two, all_of(&other), 6);
	await(&two, 2, "56");
	receive(&two, all_of(&to), 7);
	send_signaled(&two, dead, 8);
	await(&two, 1, "8");
	nothing_sent(to.at);
	finish(&two);
}

/* Moves the registration to other memory by ibv_rereg_mr while a receive is posted. */
static void moved(void)
{
	struct two two = begin(PLAIN);
	struct buffer from = buffer(&two, 'S', LOCAL), to = buffer(&two, 'r', LOCAL);
	char *other = malloc(LENGTH);
	uint32_t lkey = to.mr->lkey;

	receive(&two, all_of(&to), 1);
	errno = 0;
	int result = ibv_rereg_mr(to.mr, IBV_REREG_MR_CHANGE_TRANSLATION, NULL, other, LENGTH, 0);

	printf("rereg: %d, errno %d\n", result, errno);
	printf("another wrong one: %d\n", ibv_rereg_mr(to.mr, 8, NULL, NULL, 0, 0));
	CHECK(result != 0 && to.mr->addr == to.at && to.mr->lkey == lkey);
	send_signaled(&two, all_of(&from), 2);
	await(&two, 2, "12");
	printf("arrived: %d\n", count(to.at, 'S', 1));
	CHECK(ibv_dereg_mr(to.mr) == 0);
	finish(&two);
}

/* Creates and destroys queue pairs while this thread polls the completion queue that they use. */
static void inside(void)
{
	struct two two = begin(EXTENDED);
	struct buffer from = buffer(&two, 'S', LOCAL), to = buffer(&two, 'r', LOCAL);
	struct ibv_poll_cq_attr attr = { 0 };

	receive(&two, all_of(&to), 1);
	send_signaled(&two, all_of(&from), 2);
	for (int got = 0; got < 2; got++) {
		while (ibv_start_poll(two.extended, &attr))
			usleep(1000);
		CHECK(two.extended->status == IBV_WC_SUCCESS);
		struct ibv_qp *other = make(&two);

		reset(other);
		CHECK(ibv_destroy_qp(other) == 0);
		ibv_end_poll(two.extended);
	}
	CHECK(ibv_dereg_mr(from.mr) == 0 && ibv_dereg_mr(to.mr) == 0);
	finish(&two);
}

/*
 * Registers and deregisters around each transfer, waits for each completion, and counts the
 * different keys.
 */
static void awaits(int how)
{
	struct two two = begin(how);
	struct buffer from = { .at = malloc(LENGTH) }, to = { .at = malloc(LENGTH) };
	uint32_t last = 0;
	int keys = 0;

	for (int i = 0; i < 100; i++) {
		from.mr = ibv_reg_mr(two.pd, from.at, LENGTH, LOCAL);
		to.mr = ibv_reg_mr(two.pd, to.at, LENGTH, LOCAL);
		CHECK(from.mr && to.mr && from.mr->lkey != to.mr->lkey);
		keys += to.mr->lkey != last;
		last = to.mr->lkey;
		memset(from.at, i, LENGTH);
		receive(&two, all_of(&to), 1);
		send_signaled(&two, all_of(&from), 2);
		struct done done;

		for (int got = 0; got < 2;)
			got += poll(&two, 2 - got, &done);
		CHECK(memcmp(from.at, to.at, LENGTH) == 0);
		CHECK(ibv_dereg_mr(from.mr) == 0 && ibv_dereg_mr(to.mr) == 0);
	}
	fprintf(stderr, "keys: %d\n", keys);
	finish(&two);
}

int main(int argc, char **argv)
{
	const char *part = argc > 1 ? argv[1] : "";
	const struct {
		const char *name;
		void (*run)(void);
		void (*run_how)(int);
		int how;
	} parts[] = {
		{ "receive", NULL, receives, PLAIN },
		{ "shared-receive", NULL, receives, SHARED },
		{ "extended-receive", NULL, receives, EXTENDED },
		{ "shared", shared, NULL, 0 },
		{ "teardown", teardown, NULL, 0 },
		{ "read", NULL, reads, PLAIN },
		{ "extended-read", NULL, reads, EXTENDED },
		{ "unsignaled", unsignaled, NULL, 0 },
		{ "inline", inlined, NULL, 0 },
		{ "reset", resets, NULL, 0 },
		{ "stale", stale, NULL, 0 },
		{ "polled", polled, NULL, 0 },
		{ "refused", refused, NULL, 0 },
		{ "late-receive", NULL, late_receive, PLAIN },
		{ "shared-late-receive", NULL, late_receive, SHARED },
		{ "late-send", NULL, late_send, PLAIN },
		{ "extended-late-send", NULL, late_send, EXTENDED },
		{ "used-late-receive", NULL, used_late_receive, PLAIN },
		{ "used-shared-late-receive", NULL, used_late_receive, SHARED },
		{ "used-late-send", NULL, used_late_send, PLAIN },
		{ "moved", moved, NULL, 0 },
		{ "inside", inside, NULL, 0 },
		{ "awaits", NULL, awaits, PLAIN },
		{ "shared-awaits", NULL, awaits, SHARED },
		{ "extended-awaits", NULL, awaits, EXTENDED },
	};

	setvbuf(stdout, NULL, _IOLBF, 0);
	if (!strcmp(part, "behind"))
		behind(PLAIN, IBV_SEND_SIGNALED);
	else if (!strcmp(part, "behind-unsignaled"))
		behind(PLAIN, 0);
	else if (!strcmp(part, "extended-behind"))
		behind(EXTENDED, IBV_SEND_SIGNALED);
	else {
		size_t i = 0;

		while (i < sizeof(parts) / sizeof(*parts) && strcmp(parts[i].name, part))
			i++;
		if (i == sizeof(parts) / sizeof(*parts))
			return 2;
		if (parts[i].run)
			parts[i].run();
		else
			parts[i].run_how(parts[i].how);
	}
	printf("%s: ok\n", part);
	return 0;
}

/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Two processes send to each other, and deregister at random moments, even while work is posted.
 * The memory is freed at once, and gets a new owner:
 *
 *     stress REQUESTS SEED SECONDS
 *
 * In each round one process posts receives and the other one sends, in lists of random lengths.
 * Either of them posts first. Some rounds use a shared receive queue of two queue pairs, where the
 * second receive completes before the first. In some rounds, called rude, some memory is
 * deregistered early. Afterwards, memory that was freed has its new owner's bytes, and none of
 * these bytes have arrived at the peer.
 *
 * The program ends when the two processes have posted REQUESTS work requests, or after SECONDS. It
 * prints what was done, and how many bytes were wrong.
 */
#include <sched.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "loop.h"

#define PAGE 4096
#define SHORT 256
/* A message of this length takes so many packets that a short one overtakes it. */
#define LONG (1024 * 1024)
#define MOST 64
#define LIST 16
#define NEW_OWNER 0xEE

/*
 * The queue pairs: one with its own receive queue, and two with a shared one. The last sends to the
 * second of these, in the same process. The others are connected to the other process.
 */
enum { OWN, FIRST, SECOND, LOCAL, PAIRS };

struct end {
	struct ibv_context *context;
	struct ibv_pd *pd;
	struct ibv_cq *cq;
	struct ibv_srq *srq;
	struct ibv_qp *qp[PAIRS];
	uint32_t peer[PAIRS];
	int socket;
	uint64_t random;
};

struct work {
	unsigned char *at;
	size_t length;
	struct ibv_mr *mr;
	/* True if the registration was deregistered early, so that the memory has a new owner. */
	int early;
};

static long early, failed, overtaken, posted, rounds, shared_rounds, wrong;

/* A bit for each number of a request whose completion was polled. */
static uint64_t ids;

/* A heap that always allocates the block that was freed last. No two blocks share a page. */
struct heap {
	unsigned char *unused[2 * MOST];
	int count;
};

static struct heap small, large;

static struct heap *heap_of(size_t length)
{
	return length == SHORT ? &small : &large;
}

static unsigned char *take(size_t length)
{
	struct heap *heap = heap_of(length);

	CHECK(heap->count > 0);
	return heap->unused[--heap->count];
}

static void put(unsigned char *block, size_t length)
{
	struct heap *heap = heap_of(length);

	heap->unused[heap->count++] = block;
}

static void fill_heap(size_t length, int blocks)
{
	size_t room = (length + PAGE - 1) / PAGE * PAGE;
	unsigned char *memory = mmap(NULL, blocks * room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	CHECK(memory != MAP_FAILED);
	for (int i = 0; i < blocks; i++)
		put(memory + i * room, length);
}

static uint32_t random_below(struct end *end, uint32_t limit)
{
	end->random = end->random * 6364136223846793005u + 1442695040888963407u;
	return (uint32_t)(end->random >> 33) % limit;
}

static void tell(struct end *end, int byte)
{
	unsigned char it = byte;

	CHECK(write(end->socket, &it, 1) == 1);
}

static int hear(struct end *end)
{
	unsigned char it;

	CHECK(read(end->socket, &it, 1) == 1);
	return it;
}

static void join(struct end *end)
{
	tell(end, 0);
	hear(end);
}

static void state(struct ibv_qp *qp, enum ibv_qp_state state)
{
	struct ibv_qp_attr attr = { .qp_state = state };

	CHECK(ibv_modify_qp(qp, &attr, IBV_QP_STATE) == 0);
}

static void connect_pair(struct end *end, int pair)
{
	union ibv_gid gid;
	int index = loop_gid(end->context, &gid);
	struct ibv_qp_attr attr = { .qp_state = IBV_QPS_INIT, .port_num = 1 };

	CHECK(ibv_modify_qp(end->qp[pair], &attr,
			    IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS) == 0);
	attr = (struct ibv_qp_attr){
		.qp_state = IBV_QPS_RTR,
		.path_mtu = IBV_MTU_1024,
		.dest_qp_num = end->peer[pair],
		.max_dest_rd_atomic = 1,
		.min_rnr_timer = 10,
		.ah_attr = { .is_global = 1, .grh = { .dgid = gid, .sgid_index = index, .hop_limit = 1 }, .port_num = 1 },
	};
	CHECK(ibv_modify_qp(end->qp[pair], &attr,
			    IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN |
				    IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER) == 0);
	attr = (struct ibv_qp_attr){
		.qp_state = IBV_QPS_RTS, .timeout = 15, .retry_cnt = 7, .rnr_retry = 7, .max_rd_atomic = 1
	};
	CHECK(ibv_modify_qp(end->qp[pair], &attr,
			    IBV_QP_STATE | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY | IBV_QP_SQ_PSN |
				    IBV_QP_MAX_QP_RD_ATOMIC) == 0);
}

static struct ibv_qp *make_pair(struct end *end, struct ibv_srq *srq)
{
	struct ibv_qp_init_attr attr = {
		.send_cq = end->cq,
		.recv_cq = end->cq,
		.srq = srq,
		.cap = { .max_send_wr = MOST, .max_recv_wr = MOST, .max_send_sge = 1, .max_recv_sge = 1 },
		.qp_type = IBV_QPT_RC,
	};
	struct ibv_qp *qp = ibv_create_qp(end->pd, &attr);

	CHECK(qp);
	return qp;
}

static void meet(struct end *end, int pair)
{
	CHECK(write(end->socket, &end->qp[pair]->qp_num, 4) == 4 && read(end->socket, &end->peer[pair], 4) == 4);
	connect_pair(end, pair);
}

/* Makes the shared receive queue and its queue pairs. */
static void make_shared(struct end *end)
{
	struct ibv_srq_init_attr attr = { .attr = { .max_wr = MOST, .max_sge = 1 } };

	end->srq = ibv_create_srq(end->pd, &attr);
	CHECK(end->srq);
	for (int pair = FIRST; pair < PAIRS; pair++)
		end->qp[pair] = make_pair(end, end->srq);
	meet(end, FIRST);
	end->peer[SECOND] = end->qp[LOCAL]->qp_num;
	end->peer[LOCAL] = end->qp[SECOND]->qp_num;
	connect_pair(end, SECOND);
	connect_pair(end, LOCAL);
	join(end);
}

static void destroy_shared(struct end *end)
{
	for (int pair = FIRST; pair < PAIRS; pair++)
		CHECK(ibv_destroy_qp(end->qp[pair]) == 0);
	CHECK(ibv_destroy_srq(end->srq) == 0);
}

/*
 * Polls until no completion has come for some time. The device has then flushed all work.
 */
static void drain(struct end *end)
{
	struct ibv_wc wc;

	for (int quiet = 0; quiet < 4; quiet++) {
		while (ibv_poll_cq(end->cq, 1, &wc) > 0)
			quiet = 0;
		usleep(500);
	}
}

/*
 * Begins again after a round that has failed. The queue pairs are reset, or destroyed and made
 * again.
 */
static void recover(struct end *end, int shared, int resets)
{
	failed++;
	for (int pair = shared ? FIRST : OWN; pair < (shared ? PAIRS : FIRST); pair++)
		state(end->qp[pair], IBV_QPS_ERR);
	drain(end);
	if (shared) {
		destroy_shared(end);
		make_shared(end);
		return;
	}
	if (resets) {
		state(end->qp[OWN], IBV_QPS_RESET);
		join(end);
		connect_pair(end, OWN);
	} else {
		CHECK(ibv_destroy_qp(end->qp[OWN]) == 0);
		end->qp[OWN] = make_pair(end, NULL);
		meet(end, OWN);
	}
	join(end);
}

static struct work begin(struct end *end, int fill, size_t length)
{
	struct work work = { .at = take(length), .length = length };

	memset(work.at, fill, length);
	work.mr = ibv_reg_mr(end->pd, work.at, length, IBV_ACCESS_LOCAL_WRITE);
	CHECK(work.mr);
	return work;
}

static void give_back(struct work *work)
{
	if (work->early)
		return;
	CHECK(ibv_dereg_mr(work->mr) == 0);
	put(work->at, work->length);
	memset(take(work->length), NEW_OWNER, work->length);
	work->early = 1;
	early++;
}

static void finish(struct work *work, int arrived)
{
	for (size_t i = 0; i < work->length; i++)
		wrong += work->early ? work->at[i] != NEW_OWNER : arrived && work->at[i] == NEW_OWNER;
	if (!work->early)
		CHECK(ibv_dereg_mr(work->mr) == 0);
	put(work->at, work->length);
}

/*
 * Gives back some of the work, or the first request only. The first request of a sender is mostly
 * unsignaled. If its key worked on, no other request would end the queue pair before the bytes
 * arrive.
 */
static void be_rude(struct end *end, struct work *work, int count)
{
	if (random_below(end, 2)) {
		give_back(&work[0]);
		return;
	}
	for (int i = 0; i < count; i++)
		if (random_below(end, 4) == 0)
			give_back(&work[i]);
}

/*
 * Waits for `wanted` completions, or the first that failed. Returns true if none has failed. A peer
 * that has failed sends nothing, so the wait is bounded.
 */
static int await(struct end *end, int wanted)
{
	struct ibv_wc wc[LIST];
	time_t until = time(NULL) + 10;

	for (int i = 1; wanted > 0; i++) {
		int got = ibv_poll_cq(end->cq, wanted < LIST ? wanted : LIST, wc);

		CHECK(got >= 0);
		for (int i = 0; i < got; i++) {
			ids |= 1 << wc[i].wr_id;
			if (wc[i].status != IBV_WC_SUCCESS)
				return 0;
		}
		wanted -= got;
		if (got) {
			continue;
		}
		/* The device needs the processor as well. */
		sched_yield();
		if (i % 100 == 0 && time(NULL) > until)
			return 0;
	}
	return 1;
}

static struct ibv_sge all_of(const struct work *work)
{
	return (struct ibv_sge){ .addr = (uintptr_t)work->at, .length = work->length, .lkey = work->mr->lkey };
}

static void post_receives(struct end *end, struct work *work, int count)
{
	for (int at = 0; at < count;) {
		int length = 1 + random_below(end, LIST);
		struct ibv_sge sge[LIST];
		struct ibv_recv_wr wr[LIST], *bad;

		if (length > count - at)
			length = count - at;
		for (int i = 0; i < length; i++) {
			work[at + i] = begin(end, 'r', SHORT);
			sge[i] = all_of(&work[at + i]);
			wr[i] = (struct ibv_recv_wr){ .sg_list = &sge[i], .num_sge = 1 };
			wr[i].next = i + 1 < length ? &wr[i + 1] : NULL;
		}
		CHECK(ibv_post_recv(end->qp[OWN], wr, &bad) == 0);
		at += length;
	}
	posted += count;
}

/* Returns how many requests were signaled. */
static int post_sends(struct end *end, struct work *work, int count)
{
	int signaled = 0;

	for (int at = 0; at < count;) {
		int length = 1 + random_below(end, LIST);
		struct ibv_sge sge[LIST];
		struct ibv_send_wr wr[LIST], *bad;

		if (length > count - at)
			length = count - at;
		for (int i = 0; i < length; i++) {
			int is_signaled = at + i == count - 1 || random_below(end, 4) == 0;

			work[at + i] = begin(end, 's', SHORT);
			sge[i] = all_of(&work[at + i]);
			wr[i] = (struct ibv_send_wr){ .sg_list = &sge[i], .num_sge = 1, .opcode = IBV_WR_SEND };
			wr[i].send_flags = is_signaled ? IBV_SEND_SIGNALED : 0;
			wr[i].next = i + 1 < length ? &wr[i + 1] : NULL;
			signaled += is_signaled;
		}
		CHECK(ibv_post_send(end->qp[OWN], wr, &bad) == 0);
		at += length;
	}
	posted += count;
	return signaled;
}

/* The receiver's part of a round. */
static int receives(struct end *end, struct work *work, int count, int first, int rude)
{
	if (!first)
		hear(end);
	post_receives(end, work, count);
	if (rude)
		be_rude(end, work, count);
	if (first)
		tell(end, 0);
	/* If the peer's requests have completed, these will complete as well. */
	return hear(end) && await(end, count);
}

/* The sender's part of a round. If it is first, its requests wait for the receives. */
static int sends(struct end *end, struct work *work, int count, int first, int rude)
{
	if (!first)
		hear(end);
	int signaled = post_sends(end, work, count);

	if (rude)
		be_rude(end, work, count);
	if (first)
		tell(end, 0);
	int went_well = await(end, signaled);

	tell(end, went_well);
	return went_well;
}

/*
 * Posts two receives to the shared queue. The first gets a long message from the peer. When that
 * message has begun to arrive, this process sends a short one to the second receive. So the second
 * receive completes first.
 */
static int receives_shared(struct end *end, struct work *work, int rude)
{
	time_t until = time(NULL) + 10;

	for (int i = 0; i < 3; i++)
		work[i] = begin(end, i == 2 ? 's' : 'r', i ? SHORT : LONG);
	for (int i = 0; i < 2; i++) {
		struct ibv_sge sge = all_of(&work[i]);
		struct ibv_recv_wr wr = { .wr_id = i, .sg_list = &sge, .num_sge = 1 }, *bad;

		CHECK(ibv_post_srq_recv(end->srq, &wr, &bad) == 0);
	}
	tell(end, 0);
	while (*(volatile unsigned char *)work[0].at != 's' && time(NULL) < until)
		;
	struct ibv_sge sge = all_of(&work[2]);
	struct ibv_send_wr wr = {
		.wr_id = 2, .sg_list = &sge, .num_sge = 1, .opcode = IBV_WR_SEND, .send_flags = IBV_SEND_SIGNALED
	}, *bad;

	CHECK(ibv_post_send(end->qp[LOCAL], &wr, &bad) == 0);
	posted += 3;
	int went_well = 1, left = 3;

	for (ids = 0; went_well && !(ids & 2); left--)
		went_well = await(end, 1);
	overtaken += !(ids & 1);
	if (rude)
		give_back(&work[0]);
	went_well &= hear(end);
	return went_well && await(end, left);
}

static int sends_shared(struct end *end, struct work *work)
{
	work[0] = begin(end, 's', LONG);
	hear(end);
	struct ibv_sge sge = all_of(&work[0]);
	struct ibv_send_wr wr = {
		.sg_list = &sge, .num_sge = 1, .opcode = IBV_WR_SEND, .send_flags = IBV_SEND_SIGNALED
	}, *bad;

	CHECK(ibv_post_send(end->qp[FIRST], &wr, &bad) == 0);
	posted++;
	int went_well = await(end, 1);

	tell(end, went_well);
	return went_well;
}

/* The kinds of a round, which the process with number 0 chooses. */
enum { STOP, GO, RUDE = 2, SENDER_FIRST = 4, SHARED = 8, RESETS = 16 };

static int choose(struct end *end)
{
	int kind = GO | (random_below(end, 32) ? 0 : SHARED);

	kind |= random_below(end, 4) ? 0 : SENDER_FIRST;
	/*
	 * A round that fails takes long, so few rounds are rude. If the sender is first, no
	 * request has completed when its memory is deregistered, so more of these rounds are.
	 */
	kind |= random_below(end, kind & SHARED ? 2 : kind & SENDER_FIRST ? 8 : 32) ? 0 : RUDE;
	kind |= random_below(end, 4) ? 0 : RESETS;
	return kind;
}

static void one_round(struct end *end, int kind, int is_receiver)
{
	struct work work[MOST];
	int rude = kind & RUDE, count, went_well;

	if (kind & SHARED) {
		shared_rounds++;
		count = is_receiver ? 3 : 1;
		went_well = is_receiver ? receives_shared(end, work, rude) : sends_shared(end, work);
	} else {
		int first = is_receiver == !(kind & SENDER_FIRST);

		if (is_receiver)
			tell(end, count = 1 + random_below(end, MOST));
		else
			count = hear(end);
		went_well = is_receiver ? receives(end, work, count, first, rude) : sends(end, work, count, first, rude);
	}
	/* The processes exchange their results, so each knows if the round went well for both. */
	tell(end, went_well);
	went_well &= hear(end);
	if (!went_well)
		recover(end, kind & SHARED, kind & RESETS);
	for (int i = 0; i < count; i++)
		finish(&work[i], is_receiver);
	rounds++;
}

static void run(struct end *end, int number, long requests, uint64_t seed, int seconds)
{
	time_t until = time(NULL) + seconds;

	end->random = seed * 2 + number;
	fill_heap(SHORT, MOST);
	fill_heap(LONG, 2);
	end->context = loop_open(NULL);
	end->pd = ibv_alloc_pd(end->context);
	CHECK(end->pd);
	end->cq = ibv_create_cq(end->context, 4 * MOST, NULL, NULL, 0);
	CHECK(end->cq);
	end->qp[OWN] = make_pair(end, NULL);
	meet(end, OWN);
	make_shared(end);
	for (;;) {
		int kind = STOP;

		if (number)
			kind = hear(end);
		else {
			if (2 * posted < requests && time(NULL) < until)
				kind = choose(end);
			tell(end, kind);
		}
		if (kind == STOP)
			break;
		if (!number && rounds % 10000 == 0)
			fprintf(stderr, "%ld rounds: posted=%ld failed=%ld wrong=%ld\n", rounds, posted, failed, wrong);
		one_round(end, kind, (rounds + number) % 2);
	}
	printf("process=%d posted=%ld rounds=%ld shared=%ld overtaken=%ld early=%ld failed=%ld wrong=%ld\n", number, posted, rounds,
	       shared_rounds, overtaken, early, failed, wrong);
	CHECK(ibv_destroy_qp(end->qp[OWN]) == 0);
	destroy_shared(end);
	CHECK(ibv_destroy_cq(end->cq) == 0);
	CHECK(ibv_dealloc_pd(end->pd) == 0);
	CHECK(ibv_close_device(end->context) == 0);
}

int main(int argc, char **argv)
{
	int sockets[2], status = 0;

	CHECK(argc == 4);
	CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, sockets) == 0);
	pid_t child = fork();

	CHECK(child >= 0);
	struct end end = { .socket = sockets[child == 0] };

	CHECK(close(sockets[child != 0]) == 0);
	run(&end, child == 0, atol(argv[1]), strtoull(argv[2], NULL, 0), atoi(argv[3]));
	if (child == 0)
		return wrong != 0;
	CHECK(waitpid(child, &status, 0) == child && status == 0);
	return wrong != 0;
}

/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Two processes send to each other, and deregister at random moments, even while work is posted.
 * The memory is freed at once, and gets a new owner:
 *
 *     stress ROUNDS [SEED]
 *
 * In each round one process posts receives and the other one sends. Afterwards, memory that was
 * freed has its new owner's bytes, and none of these bytes have arrived at the peer. Prints what
 * was done, and how many bytes were wrong.
 */
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "loop.h"

#define LENGTH 3000
#define MOST 4
#define NEW_OWNER 0xEE

struct end {
	struct loop loop;
	int socket;
	uint32_t peer;
	uint64_t random;
};

struct work {
	unsigned char *at;
	struct ibv_mr *mr;
	/* True if the registration was deregistered early, so that the memory has a new owner. */
	int early;
};

static long early, failed, wrong, done;

/* A heap that always allocates the block that was freed last. */
static unsigned char blocks[2 * MOST][LENGTH];
static unsigned char *unused[2 * MOST];
static int unused_count;

static unsigned char *take(void)
{
	CHECK(unused_count > 0);
	return unused[--unused_count];
}

static void put(unsigned char *block)
{
	unused[unused_count++] = block;
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

static void state(struct end *end, enum ibv_qp_state state)
{
	struct ibv_qp_attr attr = { .qp_state = state };

	CHECK(ibv_modify_qp(end->loop.qp, &attr, IBV_QP_STATE) == 0);
}

static void connect_again(struct end *end)
{
	union ibv_gid gid;
	int index = loop_gid(end->loop.context, &gid);

	state(end, IBV_QPS_RESET);
	join(end);
	struct ibv_qp_attr attr = { .qp_state = IBV_QPS_INIT, .port_num = 1 };

	CHECK(ibv_modify_qp(end->loop.qp, &attr,
			    IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS) == 0);
	attr = (struct ibv_qp_attr){
		.qp_state = IBV_QPS_RTR,
		.path_mtu = IBV_MTU_1024,
		.dest_qp_num = end->peer,
		.max_dest_rd_atomic = 1,
		.min_rnr_timer = 1,
		.ah_attr = { .is_global = 1, .grh = { .dgid = gid, .sgid_index = index, .hop_limit = 1 }, .port_num = 1 },
	};
	CHECK(ibv_modify_qp(end->loop.qp, &attr,
			    IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN |
				    IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER) == 0);
	attr = (struct ibv_qp_attr){
		.qp_state = IBV_QPS_RTS, .timeout = 14, .retry_cnt = 7, .rnr_retry = 7, .max_rd_atomic = 1
	};
	CHECK(ibv_modify_qp(end->loop.qp, &attr,
			    IBV_QP_STATE | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY | IBV_QP_SQ_PSN |
				    IBV_QP_MAX_QP_RD_ATOMIC) == 0);
	join(end);
}

static struct work begin(struct end *end, int fill)
{
	struct work work = { .at = take() };

	memset(work.at, fill, LENGTH);
	work.mr = ibv_reg_mr(end->loop.pd, work.at, LENGTH, IBV_ACCESS_LOCAL_WRITE);
	CHECK(work.mr);
	return work;
}

static void give_back(struct work *work)
{
	CHECK(ibv_dereg_mr(work->mr) == 0);
	put(work->at);
	memset(take(), NEW_OWNER, LENGTH);
	work->early = 1;
	early++;
}

static void finish(struct work *work, int arrived)
{
	for (int i = 0; i < LENGTH; i++)
		wrong += work->early ? work->at[i] != NEW_OWNER : arrived && work->at[i] == NEW_OWNER;
	if (!work->early)
		CHECK(ibv_dereg_mr(work->mr) == 0);
	put(work->at);
	done++;
}

/*
 * Waits for `wanted` completions, or for the first completion with an error. Returns true if no
 * completion had an error.
 */
static int await(struct end *end, int wanted)
{
	struct ibv_wc wc;

	while (wanted > 0) {
		int got = ibv_poll_cq(end->loop.cq, 1, &wc);

		CHECK(got >= 0);
		if (got && wc.status != IBV_WC_SUCCESS)
			return 0;
		wanted -= got;
	}
	return 1;
}

/*
 * Polls until no completion has come for some milliseconds. The device has then flushed all work.
 */
static void drain(struct end *end)
{
	struct ibv_wc wc;

	for (int quiet = 0; quiet < 5; quiet++) {
		while (ibv_poll_cq(end->loop.cq, 1, &wc) > 0)
			quiet = 0;
		usleep(1000);
	}
}

static int receives(struct end *end, struct work *work, int count)
{
	for (int i = 0; i < count; i++) {
		work[i] = begin(end, 'r');
		struct ibv_sge sge = { .addr = (uintptr_t)work[i].at, .length = LENGTH, .lkey = work[i].mr->lkey };
		struct ibv_recv_wr wr = { .sg_list = &sge, .num_sge = 1 }, *bad;

		CHECK(ibv_post_recv(end->loop.qp, &wr, &bad) == 0);
	}
	for (int i = 0; i < count; i++)
		if (random_below(end, 16) == 0)
			give_back(&work[i]);
	tell(end, count);
	int went_well = hear(end);

	/*
	 * All requests of the peer have completed, so those of this process will complete as well.
	 */
	return went_well && await(end, count);
}

static int sends(struct end *end, struct work *work, int *count)
{
	int signaled = 0;

	*count = hear(end);
	for (int i = 0; i < *count; i++) {
		work[i] = begin(end, 's');
		struct ibv_sge sge = { .addr = (uintptr_t)work[i].at, .length = LENGTH, .lkey = work[i].mr->lkey };
		int flags = i == *count - 1 || random_below(end, 2) ? IBV_SEND_SIGNALED : 0;
		struct ibv_send_wr wr = { .sg_list = &sge, .num_sge = 1, .opcode = IBV_WR_SEND, .send_flags = flags }, *bad;

		signaled += flags != 0;
		CHECK(ibv_post_send(end->loop.qp, &wr, &bad) == 0);
		if (random_below(end, 16) == 0)
			give_back(&work[i]);
	}
	int went_well = await(end, signaled);

	tell(end, went_well);
	return went_well;
}

static void run(struct end *end, int number, int rounds, uint64_t seed)
{
	end->random = seed * 2 + number;
	for (int i = 0; i < 2 * MOST; i++)
		put(blocks[i]);
	loop_make(&end->loop, NULL);
	CHECK(write(end->socket, &end->loop.qp->qp_num, 4) == 4 && read(end->socket, &end->peer, 4) == 4);
	connect_again(end);
	for (int round = 0; round < rounds; round++) {
		struct work work[MOST];
		int is_receiver = (round + number) % 2, count = 1 + random_below(end, MOST);
		int went_well = is_receiver ? receives(end, work, count) : sends(end, work, &count);

		/*
		 * The two processes exchange their results, so each knows whether the round went
		 * well for both.
		 */
		tell(end, went_well);
		went_well &= hear(end);
		if (!went_well) {
			failed++;
			state(end, IBV_QPS_ERR);
			drain(end);
			connect_again(end);
		}
		for (int i = 0; i < count; i++)
			finish(&work[i], is_receiver);
	}
	printf("process=%d done=%ld early=%ld failed=%ld wrong=%ld\n", number, done, early, failed, wrong);
	loop_end(&end->loop);
}

int main(int argc, char **argv)
{
	int sockets[2], status = 0, rounds = argc > 1 ? atoi(argv[1]) : 100;
	uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 0) : 1;

	CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, sockets) == 0);
	pid_t child = fork();

	CHECK(child >= 0);
	struct end end = { .socket = sockets[child == 0] };

	CHECK(close(sockets[child != 0]) == 0);
	run(&end, child == 0, rounds, seed);
	if (child == 0)
		return wrong != 0;
	CHECK(waitpid(child, &status, 0) == child && status == 0);
	return wrong != 0;
}

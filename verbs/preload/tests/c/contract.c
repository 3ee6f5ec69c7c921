/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Tests the behaviour of registrations that a verbs program can see. Each part tests one promise of
 * the shim:
 *
 *     contract PART [ARGUMENT]
 *
 * The program exits with 0, or prints the check that failed. The part `observe` checks nothing: its
 * output has to be the same with the shim and without.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "loop.h"

#define PAGE 4096
#define LOCAL IBV_ACCESS_LOCAL_WRITE
#define REMOTE (IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE)

static char *map(size_t bytes)
{
	char *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	CHECK(at != MAP_FAILED);
	return at;
}

static struct ibv_mr *reg(struct ibv_pd *pd, void *addr, size_t length, int access)
{
	struct ibv_mr *mr = ibv_reg_mr(pd, addr, length, access);

	CHECK(mr);
	CHECK(mr->addr == addr && mr->length == length && mr->pd == pd && mr->context == pd->context);
	return mr;
}

/* Fills the memory, sends it, and checks that its bytes arrive. */
static void sends(struct loop *loop, char *from, const struct ibv_mr *mr, size_t length)
{
	static char fill;
	char *sink = map(length);
	struct ibv_mr *to = reg(loop->pd, sink, length, REMOTE);

	memset(from, ++fill, length);
	CHECK(loop_write(loop, from, mr->lkey, length, sink, to->rkey) == IBV_WC_SUCCESS);
	CHECK(memcmp(from, sink, length) == 0);
	CHECK(ibv_dereg_mr(to) == 0);
	CHECK(munmap(sink, length) == 0);
}

/*
 * If the program holds several `ibv_mr`s at the same time, they share no key and no structure, and
 * each is deregistered once. If the program registers again after ibv_dereg_mr, the cache reuses
 * the earlier registration, even if that registration is larger than the range.
 */
static void distinct(void)
{
	struct loop loop;
	struct ibv_mr *mr[100];
	char *memory = map(64 * PAGE);

	loop_make(&loop, NULL);
	struct ibv_mr *whole = reg(loop.pd, memory, 64 * PAGE, LOCAL);
	uint32_t lkey = whole->lkey;

	for (int i = 0; i < 100; i++) {
		mr[i] = reg(loop.pd, memory + i * 100, 1000 + i, LOCAL);
		CHECK(mr[i]->lkey != lkey && mr[i] != whole);
		for (int j = 0; j < i; j++)
			CHECK(mr[i] != mr[j] && mr[i]->lkey != mr[j]->lkey);
	}
	sends(&loop, mr[50]->addr, mr[50], mr[50]->length);
	for (int i = 0; i < 100; i++)
		CHECK(ibv_dereg_mr(mr[i]) == 0);
	sends(&loop, memory, whole, 64 * PAGE);
	CHECK(ibv_dereg_mr(whole) == 0);
	for (int i = 0; i < 100; i++) {
		struct ibv_mr *part = reg(loop.pd, memory + i * 100, 1000 + i, LOCAL);

		CHECK(part->lkey == lkey);
		sends(&loop, part->addr, part, part->length);
		CHECK(ibv_dereg_mr(part) == 0);
		CHECK(ibv_dereg_mr(part) == EINVAL);
	}
	CHECK(munmap(memory, 64 * PAGE) == 0);
	loop_end(&loop);
}

/* Memory that changes is registered again, whether or not its registration is held. */
static void fresh(int rounds)
{
	struct loop loop;
	char *memory = map(16 * PAGE);

	loop_make(&loop, NULL);
	for (int i = 0; i < rounds; i++) {
		struct ibv_mr *held = reg(loop.pd, memory, 16 * PAGE, LOCAL);
		struct ibv_mr *idle = reg(loop.pd, memory + PAGE, PAGE, LOCAL);

		sends(&loop, memory, held, 16 * PAGE);
		CHECK(ibv_dereg_mr(idle) == 0);
		CHECK(mmap(memory, 16 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == memory);
		struct ibv_mr *fresh = reg(loop.pd, memory + PAGE, PAGE, LOCAL);

		CHECK(fresh->lkey != held->lkey);
		sends(&loop, memory + PAGE, fresh, PAGE);
		CHECK(ibv_dereg_mr(held) == 0);
		sends(&loop, memory + PAGE, fresh, PAGE);
		CHECK(ibv_dereg_mr(fresh) == 0);
	}
	loop_end(&loop);
}

/*
 * Whether the device has refused a peer's write. The status is IBV_WC_REM_ACCESS_ERR. On Linux 7.3,
 * rxe flushes the refused write of a queue pair that is its own peer.
 */
static int is_refusal(enum ibv_wc_status status)
{
	return status == IBV_WC_REM_ACCESS_ERR || status == IBV_WC_WR_FLUSH_ERR;
}

/*
 * A peer that has the rkey of a deregistered registration is refused, although the same memory is
 * registered a second time. With REGCACHE_REMOTE=keep the peer is `served`.
 */
static void revoked(int served)
{
	struct loop loop;
	char *source = map(PAGE), *sink = map(PAGE);

	loop_make(&loop, NULL);
	struct ibv_mr *from = reg(loop.pd, source, PAGE, LOCAL);
	struct ibv_mr *first = reg(loop.pd, sink, PAGE, REMOTE);
	struct ibv_mr *second = reg(loop.pd, sink, PAGE, REMOTE);
	uint32_t rkey = first->rkey, kept = rkey;

	memset(source, 1, PAGE);
	CHECK(loop_write(&loop, source, from->lkey, PAGE, sink, rkey) == IBV_WC_SUCCESS);
	CHECK(sink[0] == 1);
	CHECK(ibv_dereg_mr(first) == 0);
	memset(source, 2, PAGE);
	enum ibv_wc_status status = loop_write(&loop, source, from->lkey, PAGE, sink, rkey);

	CHECK(served ? status == IBV_WC_SUCCESS : is_refusal(status));
	CHECK(sink[0] == (served ? 2 : 1));
	memset(source, 3, PAGE);
	CHECK(loop_write(&loop, source, from->lkey, PAGE, sink, second->rkey) == IBV_WC_SUCCESS);
	CHECK(sink[0] == 3);
	rkey = second->rkey;
	CHECK(ibv_dereg_mr(second) == 0);
	CHECK(is_refusal(loop_write(&loop, source, from->lkey, PAGE, sink, rkey)));
	/* The peer cannot reach the memory after it was unmapped, whether or not keys are kept. */
	rkey = kept;
	CHECK(munmap(sink, PAGE) == 0);
	sink = map(PAGE);
	struct ibv_mr *other = reg(loop.pd, source, PAGE, LOCAL);

	CHECK(ibv_dereg_mr(other) == 0);
	loop_write(&loop, source, from->lkey, PAGE, sink, rkey);
	CHECK(sink[0] == 0);
	CHECK(ibv_dereg_mr(from) == 0);
	loop_end(&loop);
}

/*
 * A protection domain is deallocated if the program holds no registration in it, even if the cache
 * holds some. If a later domain has the same address, the shim does not use the earlier domain's
 * cache for the later one.
 */
static void domains(void)
{
	char *memory = map(4 * PAGE);
	struct ibv_context *context = loop_open(NULL);

	for (int i = 0; i < 20; i++) {
		struct ibv_pd *pd = ibv_alloc_pd(context), *other = ibv_alloc_pd(context);

		CHECK(pd && other);
		struct ibv_mr *mr = reg(pd, memory, 4 * PAGE, LOCAL), *theirs = reg(other, memory, 4 * PAGE, LOCAL);

		CHECK(mr->lkey != theirs->lkey);
		CHECK(ibv_dealloc_pd(pd) == EBUSY);
		CHECK(ibv_dereg_mr(mr) == 0);
		CHECK(ibv_dealloc_pd(pd) == 0);
		CHECK(ibv_dealloc_pd(other) == EBUSY);
		CHECK(ibv_dereg_mr(theirs) == 0);
		CHECK(ibv_dealloc_pd(other) == 0);
	}
	CHECK(ibv_close_device(context) == 0);

	/*
	 * Closing the device also ends cached registrations. A domain and a device that the program
	 * does not free are freed by the kernel at exit.
	 */
	for (int i = 0; i < 5; i++) {
		context = loop_open(NULL);
		struct ibv_pd *pd = ibv_alloc_pd(context);

		CHECK(pd && ibv_dereg_mr(reg(pd, memory, PAGE, LOCAL)) == 0);
		CHECK(ibv_close_device(context) == 0);
	}
}

/*
 * Closing the device ends a registration that the program still holds. Under the shim the program
 * may then call ibv_dereg_mr for the registration. Without the shim that call is an error.
 */
static void late(void)
{
	char *memory = map(PAGE);
	struct ibv_context *context = loop_open(NULL);
	struct ibv_pd *pd = ibv_alloc_pd(context);

	CHECK(pd);
	struct ibv_mr *held = reg(pd, memory, PAGE, LOCAL);
	struct ibv_cq *cq = ibv_create_cq(context, 16, NULL, NULL, 0);
	struct ibv_qp_init_attr init = {
		.send_cq = cq,
		.recv_cq = cq,
		.cap = { .max_send_wr = 1, .max_recv_wr = 1, .max_send_sge = 1, .max_recv_sge = 1 },
		.qp_type = IBV_QPT_RC,
	};
	struct ibv_qp *qp = ibv_create_qp(pd, &init);
	struct ibv_qp_attr attr = { .qp_state = IBV_QPS_INIT, .port_num = 1 };
	struct ibv_sge sge = { .addr = (uintptr_t)memory, .length = PAGE, .lkey = held->lkey };
	struct ibv_recv_wr wr = { .sg_list = &sge, .num_sge = 1 }, *bad;

	CHECK(qp);
	CHECK(ibv_modify_qp(qp, &attr,
			    IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS) == 0);
	CHECK(ibv_post_recv(qp, &wr, &bad) == 0);
	CHECK(ibv_dereg_mr(reg(pd, memory, 100, LOCAL)) == 0);
	CHECK(ibv_close_device(context) == 0);
	CHECK(munmap(memory, PAGE) == 0);
	CHECK(ibv_dereg_mr(held) == 0);
}

/* Several devices register the same memory at once. */
static void devices(const char *second)
{
	struct loop one, two;
	char *memory = map(4 * PAGE);

	loop_make(&one, NULL);
	two.context = loop_open(second);
	CHECK(strcmp(ibv_get_device_name(one.context->device), second));
	two.pd = ibv_alloc_pd(two.context);
	CHECK(two.pd);
	for (int i = 0; i < 20; i++) {
		struct ibv_mr *first = reg(one.pd, memory, 4 * PAGE, LOCAL), *other = reg(two.pd, memory, 4 * PAGE, LOCAL);

		sends(&one, memory, first, 4 * PAGE);
		CHECK(ibv_dereg_mr(first) == 0);
		CHECK(ibv_dereg_mr(other) == 0);
	}
	CHECK(ibv_dealloc_pd(two.pd) == 0);
	CHECK(ibv_close_device(two.context) == 0);
	loop_end(&one);
}

static struct ibv_pd *shared_pd;

/*
 * Registers a buffer of this thread, which it unmaps after each round, and a buffer that all
 * threads share.
 */
static void *thread(void *shared)
{
	for (int i = 0; i < 200; i++) {
		char *own = map(2 * PAGE);
		struct ibv_mr *mr = reg(shared_pd, own, 2 * PAGE, LOCAL);
		struct ibv_mr *theirs = reg(shared_pd, (char *)shared + i * 8, PAGE, LOCAL);

		CHECK(ibv_dereg_mr(mr) == 0);
		CHECK(munmap(own, 2 * PAGE) == 0);
		CHECK(ibv_dereg_mr(theirs) == 0);
	}
	return NULL;
}

static void threads(void)
{
	struct ibv_context *context = loop_open(NULL);
	char *shared = map(4 * PAGE);
	pthread_t all[4];

	shared_pd = ibv_alloc_pd(context);
	CHECK(shared_pd);
	for (int i = 0; i < 4; i++)
		CHECK(pthread_create(&all[i], NULL, thread, shared) == 0);
	for (int i = 0; i < 4; i++)
		CHECK(pthread_join(all[i], NULL) == 0);
	CHECK(ibv_dealloc_pd(shared_pd) == 0);
	CHECK(ibv_close_device(context) == 0);
}

/*
 * A child has no registrations of its parent, and can make new ones. The parent's registrations do
 * not change.
 */
static void forks(const char *self)
{
	struct loop loop;
	char *memory = map(4 * PAGE);
	int status;

	loop_make(&loop, NULL);
	struct ibv_mr *mr = reg(loop.pd, memory, 4 * PAGE, LOCAL);

	CHECK(ibv_dereg_mr(reg(loop.pd, memory, PAGE, LOCAL)) == 0);
	sends(&loop, memory, mr, 4 * PAGE);
	/*
	 * The child deregisters inherited registrations, then registers memory itself, and then
	 * executes another program.
	 */
	pid_t child = fork();

	CHECK(child >= 0);
	if (child == 0) {
		struct loop own;

		CHECK(ibv_dereg_mr(mr) == 0);
		loop_make(&own, NULL);
		struct ibv_mr *first = reg(own.pd, memory, 4 * PAGE, LOCAL);

		CHECK(ibv_dereg_mr(mr) == 0);
		CHECK(first != mr);
		uint32_t lkey = first->lkey;

		CHECK(ibv_dereg_mr(first) == 0);
		for (int i = 0; i < 10; i++) {
			struct ibv_mr *again = reg(own.pd, memory, 4 * PAGE, LOCAL);

			CHECK(again->lkey == lkey);
			sends(&own, memory, again, 4 * PAGE);
			CHECK(ibv_dereg_mr(again) == 0);
		}
		loop_end(&own);
		execl(self, self, "distinct", NULL);
		CHECK(!"exec");
	}
	CHECK(waitpid(child, &status, 0) == child && status == 0);
	sends(&loop, memory, mr, 4 * PAGE);
	struct ibv_mr *again = reg(loop.pd, memory, 4 * PAGE, LOCAL);

	CHECK(again->lkey != mr->lkey);
	CHECK(ibv_dereg_mr(again) == 0 && ibv_dereg_mr(mr) == 0);
	/* Children are forked while another thread registers. */
	pthread_t other;

	shared_pd = loop.pd;
	CHECK(pthread_create(&other, NULL, thread, memory) == 0);
	for (int i = 0; i < 20; i++) {
		child = fork();
		CHECK(child >= 0);
		if (child == 0) {
			struct ibv_context *context = loop_open(NULL);
			struct ibv_pd *pd = ibv_alloc_pd(context);

			CHECK(pd && ibv_dereg_mr(reg(pd, memory, PAGE, LOCAL)) == 0);
			CHECK(ibv_dealloc_pd(pd) == 0 && ibv_close_device(context) == 0);
			_exit(0);
		}
		CHECK(waitpid(child, &status, 0) == child && status == 0);
	}
	CHECK(pthread_join(other, NULL) == 0);
	loop_end(&loop);
}

/*
 * The shim passes ibv_rereg_mr of a cached registration on to the device, and this device does not
 * support the call. Afterwards the registration is unchanged.
 */
static void rereg(void)
{
	struct loop loop;
	char *memory = map(8 * PAGE);

	loop_make(&loop, NULL);
	struct ibv_pd *other = ibv_alloc_pd(loop.context);
	struct ibv_mr *mr = reg(loop.pd, memory, PAGE, LOCAL);
	uint32_t lkey = mr->lkey;
	const struct {
		int flags;
		struct ibv_pd *pd;
		char *addr;
		size_t length;
		int access;
	} tries[] = {
		{ 8, NULL, NULL, 0, 0 },
		{ IBV_REREG_MR_CHANGE_TRANSLATION, NULL, NULL, PAGE, 0 },
		{ IBV_REREG_MR_CHANGE_TRANSLATION, NULL, memory, 0, 0 },
		{ IBV_REREG_MR_CHANGE_TRANSLATION, NULL, memory, PAGE, LOCAL },
		{ IBV_REREG_MR_CHANGE_TRANSLATION, NULL, (void *)PAGE, PAGE, 0 },
		{ IBV_REREG_MR_CHANGE_TRANSLATION, NULL, memory + PAGE, 7 * PAGE, 0 },
		{ IBV_REREG_MR_CHANGE_ACCESS, NULL, NULL, 0, REMOTE },
		{ IBV_REREG_MR_CHANGE_PD, other, NULL, 0, 0 },
	};

	CHECK(other);
	for (size_t i = 0; i < sizeof(tries) / sizeof(*tries); i++) {
		errno = 0;
		int result = ibv_rereg_mr(mr, tries[i].flags, tries[i].pd, tries[i].addr, tries[i].length, tries[i].access);

		printf("rereg %zu: %d, errno %d\n", i, result, errno);
		CHECK(result != 0);
		CHECK(mr->addr == memory && mr->length == PAGE && mr->pd == loop.pd && mr->lkey == lkey);
		sends(&loop, memory, mr, PAGE);
	}
	CHECK(ibv_dereg_mr(mr) == 0);
	CHECK(ibv_dealloc_pd(other) == 0);
	loop_end(&loop);
}

/*
 * If idle registrations in the cache use up RLIMIT_MEMLOCK, a new registration still succeeds,
 * because the cache evicts them. The part has to run with a limit of 1 MiB, and without the
 * capability to exceed it.
 */
static void limit(void)
{
	struct ibv_context *context = loop_open(NULL);
	struct ibv_pd *pd = ibv_alloc_pd(context), *other = ibv_alloc_pd(context);
	size_t most = 700 << 10;
	char *memory = map(2 * most);
	const struct rlimit one = { 1 << 20, 1 << 20 };

	CHECK(pd && other);
	CHECK(setrlimit(RLIMIT_MEMLOCK, &one) == 0);
	CHECK(!ibv_reg_mr(pd, memory, 2 * most, LOCAL) && errno == ENOMEM);
	CHECK(!ibv_reg_mr(pd, memory, 2 * most, REMOTE) && errno == ENOMEM);
	for (int i = 0; i < 5; i++) {
		/*
		 * The cache keeps each of these registrations, and a second one would exceed the
		 * limit.
		 */
		CHECK(ibv_dereg_mr(reg(pd, memory, most, LOCAL)) == 0);
		CHECK(ibv_dereg_mr(reg(other, memory + most, most, LOCAL)) == 0);
		CHECK(ibv_dereg_mr(reg(pd, memory + most, most, REMOTE)) == 0);
	}
	CHECK(ibv_dealloc_pd(pd) == 0 && ibv_dealloc_pd(other) == 0);
	CHECK(ibv_close_device(context) == 0);
}

static void show(const char *what, struct ibv_pd *pd, void *addr, size_t length, struct ibv_mr *mr)
{
	if (!mr) {
		printf("%s: errno %d\n", what, errno);
		return;
	}
	printf("%s: context %d pd %d addr %d length %d keys %d\n", what, mr->context == pd->context, mr->pd == pd,
	       mr->addr == addr, mr->length == length, mr->lkey != 0);
	printf("%s: deregistered %d\n", what, ibv_dereg_mr(mr));
}

/*
 * Zero, added to flags so that they are not constants at compile time. The header's macro then
 * calls ibv_reg_mr_iova2.
 */
static volatile int zero;

static void observe(void)
{
	struct loop loop;
	char *memory = map(4 * PAGE), *readonly = map(PAGE), *guarded = map(3 * PAGE);
	const struct {
		const char *what;
		char *addr;
		size_t length;
		int access;
	} tries[] = {
		{ "local", memory, PAGE, LOCAL },
		{ "no flags", memory, PAGE, 0 },
		{ "unaligned", memory + 17, 1000, LOCAL },
		{ "one byte", memory + 4095, 1, LOCAL },
		{ "remote", memory, PAGE, REMOTE },
		{ "remote read", memory, PAGE, IBV_ACCESS_REMOTE_READ },
		{ "atomic", memory, PAGE, LOCAL | IBV_ACCESS_REMOTE_ATOMIC },
		{ "remote without local", memory, PAGE, IBV_ACCESS_REMOTE_WRITE },
		{ "window", memory, PAGE, LOCAL | IBV_ACCESS_MW_BIND },
		{ "zero-based", memory, PAGE, LOCAL | IBV_ACCESS_ZERO_BASED },
		{ "on demand", memory, PAGE, LOCAL | IBV_ACCESS_ON_DEMAND },
		{ "implicit on demand", NULL, SIZE_MAX, IBV_ACCESS_ON_DEMAND },
		{ "huge", memory, PAGE, LOCAL | IBV_ACCESS_HUGETLB },
		{ "relaxed", memory, PAGE, LOCAL | IBV_ACCESS_RELAXED_ORDERING },
		{ "flag of tomorrow", memory, PAGE, LOCAL | 1 << 15 },
		{ "optional flag of tomorrow", memory, PAGE, LOCAL | 1 << 29 },
		{ "length 0", memory, 0, LOCAL },
		{ "null", NULL, PAGE, LOCAL },
		{ "wrapping", memory, (size_t)0 - PAGE, LOCAL },
		{ "read-only memory", readonly, PAGE, 0 },
		{ "read-only memory to be written", readonly, PAGE, LOCAL },
		{ "across a guard page", guarded, 3 * PAGE, LOCAL },
		{ "kernel's memory", (char *)0xffff800000000000, PAGE, LOCAL },
	};

	memset(readonly, 1, PAGE);
	CHECK(mprotect(readonly, PAGE, PROT_READ) == 0);
	CHECK(mprotect(guarded + PAGE, PAGE, PROT_NONE) == 0);
	loop_make(&loop, NULL);
	for (size_t i = 0; i < sizeof(tries) / sizeof(*tries); i++) {
		char *addr = tries[i].addr;
		size_t length = tries[i].length;
		char what[80];

		show(tries[i].what, loop.pd, addr, length, ibv_reg_mr(loop.pd, addr, length, tries[i].access + zero));
		snprintf(what, sizeof(what), "%s, the function", tries[i].what);
		show(what, loop.pd, addr, length, (ibv_reg_mr)(loop.pd, addr, length, tries[i].access));
		snprintf(what, sizeof(what), "%s, iova", tries[i].what);
		show(what, loop.pd, addr, length,
		     (ibv_reg_mr_iova)(loop.pd, addr, length, (uintptr_t)addr, tries[i].access));
		snprintf(what, sizeof(what), "%s, another iova", tries[i].what);
		show(what, loop.pd, addr, length,
		     ibv_reg_mr_iova2(loop.pd, addr, length, (uintptr_t)addr + (1 << 20), tries[i].access));
	}

	/* With an iova other than the address, peers name the memory by the iova. */
	char *sink = map(PAGE);
	struct ibv_mr *from = reg(loop.pd, memory, PAGE, LOCAL);
	struct ibv_mr *to = ibv_reg_mr_iova(loop.pd, sink, PAGE, 1 << 20, REMOTE);

	CHECK(to && to->addr == sink);
	memset(memory, 7, PAGE);
	printf("by iova: %d\n", loop_write(&loop, memory, from->lkey, PAGE, (void *)(1 << 20), to->rkey));
	printf("arrived: %d\n", sink[0]);
	printf("by address: %d\n", loop_write(&loop, memory, from->lkey, PAGE, sink, to->rkey));
	printf("keys of no use to a peer: %d\n", loop_write(&loop, memory, from->lkey, PAGE, memory, from->rkey));
	printf("with something registered: %d\n", ibv_dealloc_pd(loop.pd));
	uint32_t gone = to->rkey;

	CHECK(ibv_dereg_mr(to) == 0);
	printf("by a key that is no more: %d\n", loop_write(&loop, memory, from->lkey, PAGE, (void *)(1 << 20), gone));

	/* This process's own work requests also name the memory by the iova. */
	struct ibv_mr *shifted = ibv_reg_mr_iova(loop.pd, memory, PAGE, 1 << 20, LOCAL);

	to = reg(loop.pd, sink, PAGE, REMOTE);
	CHECK(shifted);
	memset(memory, 8, PAGE);
	printf("from iova: %d\n", loop_write(&loop, (void *)(1 << 20), shifted->lkey, PAGE, sink, to->rkey));
	printf("arrived: %d\n", sink[0]);
	printf("from address: %d\n", loop_write(&loop, memory, shifted->lkey, PAGE, sink, to->rkey));
	CHECK(ibv_dereg_mr(shifted) == 0 && ibv_dereg_mr(to) == 0);

	/* The following functions register memory, and the shim does not interpose them. */
	struct ibv_mr *dmabuf = ibv_reg_dmabuf_mr(loop.pd, 0, PAGE, 0, 0, LOCAL);

	printf("dmabuf: %d\n", dmabuf ? 0 : errno);
	struct ibv_alloc_dm_attr attr = { .length = PAGE };
	struct ibv_dm *dm = ibv_alloc_dm(loop.context, &attr);

	printf("device memory: %d\n", dm ? 0 : errno);
	struct ibv_mr *null = ibv_alloc_null_mr(loop.pd);

	printf("null: %d\n", null ? 0 : errno);

	/* A memory window is bound to a registration that allows windows. */
	struct ibv_mw *window = ibv_alloc_mw(loop.pd, IBV_MW_TYPE_1);
	struct ibv_mr *under = ibv_reg_mr(loop.pd, sink, PAGE, REMOTE | IBV_ACCESS_MW_BIND);

	CHECK(window && under);
	struct ibv_mw_bind bind = {
		.wr_id = 1,
		.send_flags = IBV_SEND_SIGNALED,
		.bind_info = { .mr = under, .addr = (uintptr_t)sink, .length = PAGE, .mw_access_flags = IBV_ACCESS_REMOTE_WRITE },
	};
	printf("bind: %d\n", ibv_bind_mw(loop.qp, window, &bind));
	struct ibv_wc wc = { 0 };

	while (ibv_poll_cq(loop.cq, 1, &wc) == 0)
		;
	printf("bound: %d\n", wc.status);
	printf("by the window: %d\n", loop_write(&loop, memory, from->lkey, PAGE, sink, window->rkey));
	printf("under the window: %d\n", ibv_dereg_mr(under));
	printf("window: %d\n", ibv_dealloc_mw(window));
	printf("without it: %d\n", ibv_dereg_mr(under));
	CHECK(ibv_dereg_mr(from) == 0);
	loop_end(&loop);
	printf("end\n");
}

int main(int argc, char **argv)
{
	const char *part = argc > 1 ? argv[1] : "";
	const char *argument = argc > 2 ? argv[2] : "";

	setvbuf(stdout, NULL, _IOLBF, 0);
	if (!strcmp(part, "distinct"))
		distinct();
	else if (!strcmp(part, "fresh"))
		fresh(atoi(argument));
	else if (!strcmp(part, "revoked"))
		revoked(atoi(argument));
	else if (!strcmp(part, "domains"))
		domains();
	else if (!strcmp(part, "late"))
		late();
	else if (!strcmp(part, "memory")) {
		/*
		 * This part runs under valgrind, whose start takes longer than these two checks. So
		 * one run makes both checks.
		 */
		fresh(2);
		rereg();
	} else if (!strcmp(part, "devices"))
		devices(argument);
	else if (!strcmp(part, "threads"))
		threads();
	else if (!strcmp(part, "forks"))
		forks(argv[0]);
	else if (!strcmp(part, "rereg"))
		rereg();
	else if (!strcmp(part, "limit"))
		limit();
	else if (!strcmp(part, "observe"))
		observe();
	else
		return 2;
	printf("%s: ok\n", part);
	return 0;
}

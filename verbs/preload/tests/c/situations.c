/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Situations in which users of other registration caches were surprised:
 *
 *     situations NAME [ARGUMENT]
 *
 * The program prints the outcome, which has to be the same with the shim and without. Lines that
 * begin with "measured" are for the test, and may differ.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "loop.h"

#define PAGE 4096ul
#define MIB (1ul << 20)
#define LOCAL IBV_ACCESS_LOCAL_WRITE

static char *map(size_t bytes, int flags)
{
	return mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);
}

static const char *outcome(int failed)
{
	return failed ? strerror(errno) : "ok";
}

static void reg_and_dereg(struct ibv_pd *pd, void *addr, size_t length)
{
	struct ibv_mr *mr = ibv_reg_mr(pd, addr, length, LOCAL);

	CHECK(mr);
	CHECK(ibv_dereg_mr(mr) == 0);
}

static double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec + time.tv_nsec / 1e9;
}

static void end(struct ibv_context *context, struct ibv_pd *pd)
{
	printf("dealloc_pd: %d\n", ibv_dealloc_pd(pd));
	printf("close_device: %d\n", ibv_close_device(context));
}

static void print_end_of(pid_t child)
{
	int status;

	CHECK(waitpid(child, &status, 0) == child);
	if (WIFSIGNALED(status))
		printf("child: signal %d\n", WTERMSIG(status));
	else
		printf("child: exit %d\n", WEXITSTATUS(status));
}

static void print_read_by_child(const volatile char *memory)
{
	pid_t child = fork();

	if (child == 0)
		_exit(*memory == 7 ? 0 : 1);
	print_end_of(child);
}

/* Children read memory that their parent has registered, and memory that it has deregistered. */
static void hidden(int init)
{
	if (init)
		printf("ibv_fork_init: %d\n", ibv_fork_init());
	struct ibv_context *context = loop_open(NULL);
	struct ibv_pd *pd = ibv_alloc_pd(context);
	char *memories[] = { map(16 * PAGE, 0), malloc(100) };

	for (int i = 0; i < 2; i++) {
		*memories[i] = 7;
		reg_and_dereg(pd, memories[i], i ? 100 : 16 * PAGE);
		print_read_by_child(memories[i]);
	}
	struct ibv_mr *mr = ibv_reg_mr(pd, memories[0], PAGE, LOCAL);

	CHECK(mr);
	print_read_by_child(memories[0]);
	CHECK(ibv_dereg_mr(mr) == 0);
	end(context, pd);
}

/* Forks while `bytes` of memory are registered no more. One registration may be held. */
static void forks(size_t bytes, size_t piece, int flags)
{
	struct ibv_context *context = loop_open(NULL);
	struct ibv_pd *pd = ibv_alloc_pd(context);
	char *memory = map(bytes, flags), *held = map(PAGE, 0);
	struct ibv_mr *mr = flags ? ibv_reg_mr(pd, held, PAGE, LOCAL) : NULL;
	char line[200] = "";
	unsigned long dirty = 0;
	int report[2];

	CHECK(memory != MAP_FAILED && (mr || !flags) && pipe(report) == 0);
	memset(memory, 7, bytes);
	/* The first registration prepares what the others use. */
	reg_and_dereg(pd, held, PAGE);
	double begin = now();

	for (size_t i = 0; i < bytes; i += piece)
		reg_and_dereg(pd, memory + i, piece);
	double start = now();
	pid_t child = fork();
	double took = now() - start;

	if (child == 0) {
		int rollup = open("/proc/self/smaps_rollup", O_RDONLY);
		char text[4096];
		ssize_t length = read(rollup, text, sizeof(text));
		ssize_t written = write(report[1], text, length);

		_exit(written == length && memory[bytes - 1] == 7 ? 0 : 1);
	}
	CHECK(close(report[1]) == 0);
	FILE *rollup = fdopen(report[0], "r");

	while (fgets(line, sizeof(line), rollup))
		sscanf(line, "Private_Dirty: %lu kB", &dirty);
	printf("fork: %s\n", outcome(child < 0));
	if (child > 0)
		print_end_of(child);
	printf("measured: copied %lu kB\n", dirty);
	printf("measured: took %.3f ms\n", took * 1e3);
	printf("measured: with the calls before %.3f ms\n", (start - begin + took) * 1e3);
	/* The parent's memory can still be registered, and the held registration ends as usual. */
	reg_and_dereg(pd, memory, piece);
	if (mr)
		CHECK(ibv_dereg_mr(mr) == 0);
	end(context, pd);
}

static void *sleep_for_ever(void *unused)
{
	for (;;)
		pause();
	return unused;
}

/*
 * Does the same in a process that has a second thread already, as a process under the shim has. So
 * the difference is what the shim itself costs.
 */
static void forks_beside_thread(size_t bytes)
{
	pthread_t thread;

	CHECK(pthread_create(&thread, NULL, sleep_for_ever, NULL) == 0);
	forks(bytes, MIB, 0);
}

/* Huge pages are mapped again directly after they were unmapped. */
static void pool(void)
{
	struct ibv_context *context = loop_open(NULL);
	struct ibv_pd *pd = ibv_alloc_pd(context);
	int failed = 0;

	for (int i = 0; i < 30; i++) {
		char *memory = map(16 * MIB, MAP_HUGETLB | MAP_POPULATE);

		if (memory == MAP_FAILED) {
			failed++;
			usleep(20000);
			continue;
		}
		/* A registration may begin and end inside a huge page. */
		reg_and_dereg(pd, memory, 16 * MIB);
		reg_and_dereg(pd, memory + 3 * PAGE, 100);
		CHECK(munmap(memory, 16 * MIB) == 0);
	}
	printf("failed: %d\n", failed);
	end(context, pd);
}

/* Memory loses its protection after it was registered and deregistered. */
static void protect(void)
{
	static const struct {
		const char *name;
		int protection;
	} kinds[] = { { "read-only", PROT_READ },
		      { "none", PROT_NONE },
		      { "again", PROT_READ | PROT_WRITE } };
	struct ibv_context *context = loop_open(NULL);
	struct ibv_pd *pd = ibv_alloc_pd(context);

	for (int whole = 0; whole < 2; whole++) {
		char *memory = map(16 * PAGE, 0);
		char *from = whole ? memory : memory + 15 * PAGE;

		memset(memory, 1, 16 * PAGE);
		reg_and_dereg(pd, memory, 16 * PAGE);
		for (int i = 0; i < 3; i++) {
			CHECK(mprotect(from, memory + 16 * PAGE - from, kinds[i].protection) == 0);
			for (int access = 0; access <= LOCAL; access++) {
				struct ibv_mr *mr = ibv_reg_mr(pd, memory, 16 * PAGE, access);

				printf("%s, access %d: %s\n", kinds[i].name, access, outcome(!mr));
				if (mr)
					CHECK(ibv_dereg_mr(mr) == 0);
			}
		}
	}
	end(context, pd);
}

/* Objects of the program's own are created when registrations have used up a limit. */
static void queues(int registrations)
{
	struct ibv_context *context = loop_open(NULL);
	struct ibv_pd *pd = ibv_alloc_pd(context);
	char *memory = map(registrations * PAGE, 0);
	struct ibv_cq *cq[2];
	struct ibv_pd *other[2];

	for (int i = 0; i < registrations; i++)
		reg_and_dereg(pd, memory + i * PAGE, PAGE);
	for (int i = 0; i < 2; i++) {
		printf("create_cq: %s\n", outcome(!(cq[i] = ibv_create_cq(context, 8, NULL, NULL, 0))));
		CHECK(cq[i]);
		struct ibv_qp_init_attr init = {
			.send_cq = cq[i],
			.recv_cq = cq[i],
			.cap = { .max_send_wr = 8, .max_recv_wr = 8, .max_send_sge = 1, .max_recv_sge = 1 },
			.qp_type = IBV_QPT_RC,
		};
		for (int j = 0; j < registrations; j++)
			reg_and_dereg(pd, memory + j * PAGE, PAGE);
		struct ibv_qp *qp = ibv_create_qp(pd, &init);

		printf("create_qp: %s\n", outcome(!qp));
		CHECK(qp);
		struct ibv_srq_init_attr shared = { .attr = { .max_wr = 8, .max_sge = 1 } };

		for (int j = 0; j < registrations; j++)
			reg_and_dereg(pd, memory + j * PAGE, PAGE);
		struct ibv_srq *srq = ibv_create_srq(pd, &shared);

		printf("create_srq: %s\n", outcome(!srq));
		for (int j = 0; j < registrations; j++)
			reg_and_dereg(pd, memory + j * PAGE, PAGE);
		printf("alloc_pd: %s\n", outcome(!(other[i] = ibv_alloc_pd(context))));
		CHECK(srq && other[i]);
		CHECK(ibv_destroy_srq(srq) == 0 && ibv_destroy_qp(qp) == 0);
	}
	for (int i = 0; i < 2; i++)
		CHECK(ibv_destroy_cq(cq[i]) == 0 && ibv_dealloc_pd(other[i]) == 0);
	end(context, pd);
}

/* Walks through much memory, and registers each piece for a short time. */
static void walk(size_t bytes)
{
	struct ibv_context *context = loop_open(NULL);
	struct ibv_pd *pd = ibv_alloc_pd(context);
	char *memory = map(bytes, 0);

	for (size_t at = 0; at < bytes; at += MIB) {
		memset(memory + at, 1, MIB);
		reg_and_dereg(pd, memory + at, MIB);
	}
	printf("walked\n");
	end(context, pd);
}

static struct ibv_pd *shared;

/* Registers, deregisters and sends for ever, until it is cancelled. */
static void *work(void *unused)
{
	for (int i = 0;; i++) {
		char *memory = map(16 * PAGE, 0);

		reg_and_dereg(shared, memory, 16 * PAGE);
		reg_and_dereg(shared, memory, PAGE);
		struct ibv_mr *to = ibv_reg_mr(shared, memory, PAGE, LOCAL | IBV_ACCESS_REMOTE_WRITE);
		CHECK(to && ibv_dereg_mr(to) == 0);
		munmap(memory, 16 * PAGE);
		if (i % 8 == 0)
			pthread_testcancel();
	}
	return unused;
}

static void *send_for_ever(void *argument)
{
	struct loop *loop = argument;
	static char memory[2 * PAGE] __attribute__((aligned(4096)));
	struct ibv_mr *from = ibv_reg_mr(loop->pd, memory, PAGE, LOCAL);
	struct ibv_mr *to = ibv_reg_mr(loop->pd, memory + PAGE, PAGE, LOCAL | IBV_ACCESS_REMOTE_WRITE);

	CHECK(from && to);
	/* SoftRoCE's library posts by write(2), which is a cancellation point without the shim. */
	for (;;) {
		CHECK(loop_write(loop, memory, from->lkey, 64, memory + PAGE, to->rkey) == IBV_WC_SUCCESS);
		pthread_testcancel();
	}
	return NULL;
}

static void cancel(int count)
{
	struct ibv_context *context = loop_open(NULL);
	pthread_t thread;
	void *result;

	shared = ibv_alloc_pd(context);
	for (int i = 0; i < count; i++) {
		CHECK(pthread_create(&thread, NULL, work, NULL) == 0);
		usleep(500 + i * 977 % 20000);
		CHECK(pthread_cancel(thread) == 0);
		CHECK(pthread_join(thread, &result) == 0 && result == PTHREAD_CANCELED);
	}
	printf("cancelled\n");
	reg_and_dereg(shared, map(PAGE, 0), PAGE);
	for (int i = 0; i < count / 4; i++) {
		struct loop loop;

		loop_make(&loop, NULL);
		CHECK(pthread_create(&thread, NULL, send_for_ever, &loop) == 0);
		usleep(2000 + i * 977 % 20000);
		CHECK(pthread_cancel(thread) == 0);
		CHECK(pthread_join(thread, &result) == 0 && result == PTHREAD_CANCELED);
		CHECK(ibv_destroy_qp(loop.qp) == 0);
	}
	printf("cancelled while sending\n");
	end(context, shared);
}

static sigjmp_buf out;
static volatile sig_atomic_t signals, may_jump;

static void handle(int unused)
{
	(void)unused;
	signals++;
	if (may_jump)
		siglongjmp(out, 1);
}

/* Forks, registers, or leaves by siglongjmp, while signals come all the time. */
static void interrupts(void)
{
	struct ibv_context *context = loop_open(NULL);
	struct ibv_pd *pd = ibv_alloc_pd(context);
	struct sigaction action = { .sa_handler = handle };
	struct itimerval often = { { 0, 500 }, { 0, 500 } }, never = { { 0, 0 }, { 0, 0 } };
	char *memory = map(64 * PAGE, 0);
	int failed = 0;

	CHECK(sigaction(SIGALRM, &action, NULL) == 0);
	CHECK(setitimer(ITIMER_REAL, &often, NULL) == 0);
	for (int i = 0; i < 300 || signals < 10; i++) {
		struct ibv_mr *mr = ibv_reg_mr(pd, memory, 64 * PAGE, LOCAL);

		failed += !mr || ibv_dereg_mr(mr) != 0;
		if (i % 3 == 0)
			CHECK(madvise(memory, PAGE, MADV_DONTNEED) == 0);
	}
	struct ibv_mr *held = ibv_reg_mr(pd, memory, PAGE, LOCAL);

	if (!sigsetjmp(out, 1)) {
		may_jump = 1;
		for (;;)
			;
	}
	may_jump = 0;
	CHECK(setitimer(ITIMER_REAL, &never, NULL) == 0);
	CHECK(held && ibv_dereg_mr(held) == 0);
	printf("failed: %d\n", failed);
	end(context, pd);
}

/* A handler of a signal forks, as handlers of crashes do. The thread may be anywhere. */
static volatile sig_atomic_t forked;

static void fork_now(int unused)
{
	int saved = errno;
	pid_t child = fork();

	(void)unused;
	if (child == 0)
		_exit(0);
	if (child > 0 && waitpid(child, NULL, 0) == child)
		forked++;
	errno = saved;
}

static void fork_in_handler(void)
{
	struct ibv_context *context = loop_open(NULL);
	struct ibv_pd *pd = ibv_alloc_pd(context);
	struct sigaction action = { .sa_handler = fork_now };
	struct itimerval often = { { 0, 20000 }, { 0, 20000 } }, never = { { 0, 0 }, { 0, 0 } };
	char *memory = map(64 * PAGE, 0);
	sigset_t alarm;

	sigemptyset(&alarm);
	sigaddset(&alarm, SIGALRM);
	memset(memory, 1, 64 * PAGE);
	CHECK(sigaction(SIGALRM, &action, NULL) == 0);
	CHECK(setitimer(ITIMER_REAL, &often, NULL) == 0);
	while (forked < 20) {
		int before = forked;

		/*
		 * The first call after a fork allocates memory, and a process with threads must
		 * not fork in malloc. So the signal is blocked. Under the shim the other calls are
		 * hits.
		 */
		CHECK(sigprocmask(SIG_BLOCK, &alarm, NULL) == 0);
		reg_and_dereg(pd, memory, 64 * PAGE);
		CHECK(sigprocmask(SIG_UNBLOCK, &alarm, NULL) == 0);
		while (forked == before)
			reg_and_dereg(pd, memory, 64 * PAGE);
	}
	CHECK(setitimer(ITIMER_REAL, &never, NULL) == 0);
	reg_and_dereg(pd, memory, 64 * PAGE);
	printf("forked\n");
	end(context, pd);
}

/* The program's data file gets the number 2. */
static void reused(const char *path)
{
	struct ibv_context *context = loop_open(NULL);
	struct ibv_pd *pd = ibv_alloc_pd(context);

	CHECK(close(2) == 0);
	int file = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);

	printf("open: %d, %s\n", file, outcome(file != 2));
	CHECK(file == 2);
	CHECK(write(file, "record 1\n", 9) == 9);
	reg_and_dereg(pd, map(PAGE, 0), PAGE);
	CHECK(write(file, "record 2\n", 9) == 9);
	end(context, pd);
}

/* All descriptors are closed, and pipes of the program's own get their numbers. */
static void closed(int looks_up)
{
	struct ibv_context *context = loop_open(NULL);
	struct ibv_pd *pd = ibv_alloc_pd(context);
	char *memory = map(64 * PAGE, 0);
	int pipes[40][2], lost = 0;

	for (int i = 0; i < 64; i++)
		reg_and_dereg(pd, memory + i * PAGE, PAGE);
	usleep(20000);
	closefrom(3);
	for (int i = 0; i < 40; i++) {
		CHECK(pipe2(pipes[i], O_NONBLOCK) == 0);
		CHECK(write(pipes[i][1], "a message of 32 bytes, all of it", 32) == 32);
	}
	munmap(memory, 32 * PAGE);
	usleep(300000);
	/* Daemons also fork. The registrations are idle, and their device is gone. */
	pid_t child = fork();

	if (child == 0)
		_exit(0);
	print_end_of(child);
	if (looks_up) {
		struct ibv_mr *mr = ibv_reg_mr(pd, memory + 40 * PAGE, PAGE, LOCAL);

		printf("registered: %d\n", mr != NULL);
		mr = ibv_reg_mr(pd, memory + 40 * PAGE, PAGE, LOCAL);
		usleep(100000);
	}
	for (int i = 0; i < 40; i++) {
		char bytes[64];

		lost += read(pipes[i][0], bytes, 64) != 32;
		lost += write(pipes[i][1], bytes, 32) != 32;
	}
	printf("lost: %d\n", lost);
}

/* A daemon: forks twice, closes all descriptors, opens the device, and works. */
static void daemon_(void)
{
	/* The parent has used the device before, so the shim has state. */
	struct ibv_context *context = loop_open(NULL);
	struct ibv_pd *pd = ibv_alloc_pd(context);
	int report[2];

	reg_and_dereg(pd, map(PAGE, 0), PAGE);
	CHECK(pipe(report) == 0);
	pid_t child = fork();

	if (child == 0) {
		setsid();
		if (fork() != 0)
			_exit(0);
		CHECK(dup2(report[1], 1) == 1);
		closefrom(3);
		close(2);
		context = loop_open(NULL);
		pd = ibv_alloc_pd(context);
		char *memory = map(PAGE, 0);

		for (int i = 0; i < 10; i++)
			reg_and_dereg(pd, memory, PAGE);
		printf("daemon: ok\n");
		exit(0);
	}
	close(report[1]);
	print_end_of(child);
	char text[1000];
	ssize_t got;
	size_t length = 0;

	while ((got = read(report[0], text + length, sizeof(text) - length)) > 0)
		length += got;
	printf("%.*s", (int)length, text);
	end(context, pd);
}

/* Sends the bytes by RDMA write, and returns the number of those that arrive wrong. */
static int wrong_bytes(struct loop *loop, char *from, size_t length, uint32_t lkey)
{
	char *sink = map(length, 0);
	struct ibv_mr *to = ibv_reg_mr(loop->pd, sink, length, LOCAL | IBV_ACCESS_REMOTE_WRITE);
	int wrong = 0;

	CHECK(to && loop_write(loop, from, lkey, length, sink, to->rkey) == IBV_WC_SUCCESS);
	for (size_t i = 0; i < length; i++)
		wrong += from[i] != sink[i];
	CHECK(ibv_dereg_mr(to) == 0 && munmap(sink, length) == 0);
	return wrong;
}

/* Memory is mapped, sent and unmapped again and again, mostly at the same address. */
static void again(void)
{
	struct loop loop;
	char *last = NULL;
	int wrong = 0, same = 0;

	loop_make(&loop, NULL);
	for (int i = 0; i < 60; i++) {
		size_t length = (1 + i % 3) * PAGE;
		char *memory = map(length, 0);
		struct ibv_mr *mr = ibv_reg_mr(loop.pd, memory, length, LOCAL);

		CHECK(mr);
		memset(memory, i, length);
		wrong += wrong_bytes(&loop, memory, length, mr->lkey);
		CHECK(ibv_dereg_mr(mr) == 0);
		CHECK(i % 2 ? munmap(memory, length) == 0 :
			      mmap(memory, length, PROT_READ | PROT_WRITE,
				   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == memory);
		same += memory == last;
		last = memory;
	}
	printf("wrong: %d, reused: %d\n", wrong, same > 0);
	loop_end(&loop);
}

/* Many small buffers are in one page, with a registration each. */
static void small(void)
{
	struct loop loop;
	struct ibv_mr *mr[32];
	int wrong = 0;

	loop_make(&loop, NULL);
	char *page = map(PAGE, 0);

	for (int round = 0; round < 2; round++) {
		for (int i = 0; i < 32; i++) {
			memset(page + i * 128, i + round, 128);
			mr[i] = ibv_reg_mr(loop.pd, page + i * 128, 128 - round * 28, LOCAL);
			CHECK(mr[i] && mr[i]->addr == page + i * 128);
		}
		for (int i = 0; i < 32; i++)
			wrong += wrong_bytes(&loop, page + i * 128, 100, mr[i]->lkey);
		for (int i = 0; i < 32; i++)
			CHECK(ibv_dereg_mr(mr[(i * 7) % 32]) == 0);
	}
	printf("wrong: %d\n", wrong);
	loop_end(&loop);
}

/* One address is registered with lengths that grow and shrink. */
static void lengths(void)
{
	static const int pages[] = { 1, 16, 2, 15, 3, 64, 1, 33 };
	struct loop loop;
	int wrong = 0;

	loop_make(&loop, NULL);
	char *memory = map(64 * PAGE, 0);

	for (size_t i = 0; i < 64 * PAGE; i++)
		memory[i] = i / 7;
	for (size_t i = 0; i < sizeof(pages) / sizeof(*pages); i++) {
		size_t length = pages[i] * PAGE - i;
		struct ibv_mr *mr = ibv_reg_mr(loop.pd, memory, length, LOCAL);

		CHECK(mr && mr->length == length);
		wrong += wrong_bytes(&loop, memory, length, mr->lkey);
		CHECK(ibv_dereg_mr(mr) == 0);
	}
	printf("wrong: %d\n", wrong);
	loop_end(&loop);
}

/* Four buffers are registered for long; one ends, and the others are registered again. */
static void order(void)
{
	struct ibv_context *context = loop_open(NULL);
	struct ibv_pd *pd = ibv_alloc_pd(context);
	char *memory = map(8 * PAGE, 0);

	for (int round = 0; round < 25; round++)
		for (int i = 0; i < 4; i++)
			reg_and_dereg(pd, memory + ((i * (round | 1)) % 4) * 2 * PAGE, PAGE);
	printf("registered\n");
	end(context, pd);
}

static long field(const char *name)
{
	char line[200];
	long value = 0;
	size_t length = strlen(name);
	FILE *status = fopen("/proc/self/status", "r");

	while (fgets(line, sizeof(line), status))
		if (!strncmp(line, name, length))
			value = atol(line + length);
	fclose(status);
	return value;
}

/* Memory comes and goes for long, also without any call of the library in between. */
static void leak(void)
{
	struct ibv_context *context = loop_open(NULL);
	struct ibv_pd *pd = ibv_alloc_pd(context);
	char *kept = map(256 * PAGE, 0);
	long size = 0, pinned = 0;

	for (int i = 0; i < 4000; i++) {
		char *memory = map(2 * PAGE, 0);

		if (i % 4 == 0)
			reg_and_dereg(pd, memory, 2 * PAGE);
		if (i % 16 == 0)
			reg_and_dereg(pd, kept + i / 16 * PAGE, PAGE);
		CHECK(madvise(kept + i % 256 * PAGE, PAGE, MADV_DONTNEED) == 0);
		CHECK(munmap(memory, 2 * PAGE) == 0);
		if (i == 1000)
			size = field("VmData:");
	}
	usleep(300000);
	pinned = field("VmPin:");
	printf("grown: %d, pinned: %d\n", field("VmData:") - size > 2048, pinned > 1024);
	end(context, pd);
}

/* Memory that may only be read is registered for reading, beside memory that may be written. */
static void read_only(void)
{
	struct loop loop;
	int wrong = 0;

	loop_make(&loop, NULL);
	char *memory = map(4 * PAGE, 0);

	memset(memory, 9, 4 * PAGE);
	CHECK(mprotect(memory, 2 * PAGE, PROT_READ) == 0);
	for (int i = 0; i < 3; i++) {
		struct ibv_mr *writable = ibv_reg_mr(loop.pd, memory + 2 * PAGE, 2 * PAGE, LOCAL);
		struct ibv_mr *both = ibv_reg_mr(loop.pd, memory, 4 * PAGE, LOCAL);

		printf("both: %s\n", outcome(!both));
		struct ibv_mr *readable = ibv_reg_mr(loop.pd, memory, 4 * PAGE, 0);

		CHECK(writable && readable && !both);
		wrong += wrong_bytes(&loop, memory, 2 * PAGE, readable->lkey);
		CHECK(ibv_dereg_mr(readable) == 0 && ibv_dereg_mr(writable) == 0);
	}
	printf("wrong: %d\n", wrong);
	loop_end(&loop);
}

int main(int argc, char **argv)
{
	const char *name = argc > 1 ? argv[1] : "";
	const char *argument = argc > 2 ? argv[2] : "0";

	setvbuf(stdout, NULL, _IOLBF, 0);
	if (!strcmp(name, "hidden"))
		hidden(atoi(argument));
	else if (!strcmp(name, "forks"))
		forks(atol(argument) * MIB, MIB, 0);
	else if (!strcmp(name, "forks-beside-thread"))
		forks_beside_thread(atol(argument) * MIB);
	else if (!strcmp(name, "huge-forks"))
		forks(12 * MIB, 2 * MIB, MAP_HUGETLB);
	else if (!strcmp(name, "pool"))
		pool();
	else if (!strcmp(name, "protect"))
		protect();
	else if (!strcmp(name, "queues"))
		queues(atoi(argument));
	else if (!strcmp(name, "walk"))
		walk(atol(argument) * MIB);
	else if (!strcmp(name, "cancel"))
		cancel(atoi(argument));
	else if (!strcmp(name, "interrupts"))
		interrupts();
	else if (!strcmp(name, "fork-in-handler"))
		fork_in_handler();
	else if (!strcmp(name, "reused"))
		reused(argument);
	else if (!strcmp(name, "closed"))
		closed(atoi(argument));
	else if (!strcmp(name, "again"))
		again();
	else if (!strcmp(name, "small"))
		small();
	else if (!strcmp(name, "lengths"))
		lengths();
	else if (!strcmp(name, "order"))
		order();
	else if (!strcmp(name, "leak"))
		leak();
	else if (!strcmp(name, "read-only"))
		read_only();
	else if (!strcmp(name, "daemon"))
		daemon_();
	else
		return 2;
	return 0;
}

/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Registrations that pass from thread to thread on the fake device: handover ROUNDS
 *
 * The ibv_mrs of all threads must stay few, whichever thread deregisters them. Of two threads that
 * deregister the same ibv_mr, one is refused.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <infiniband/verbs.h>
#include <pthread.h>
#include <sched.h>

#include "check.h"

#undef ibv_reg_mr

#define PAGE 4096
#define DEPTH 16
#define MOST 512

static struct ibv_pd *pd;
static char *memory;
static int rounds;
static long asked;

static struct ibv_mr *seen[MOST];
static int count;

/* Fails if there are too many different ibv_mrs. */
static struct ibv_mr *note(struct ibv_mr *mr)
{
	CHECK(mr);
	asked++;
	for (int i = 0; i < count; i++)
		if (seen[i] == mr)
			return mr;
	CHECK(count < MOST);
	return seen[count++] = mr;
}

static struct ibv_mr *reg(int page)
{
	return ibv_reg_mr(pd, memory + page * PAGE, PAGE, IBV_ACCESS_LOCAL_WRITE);
}

static struct ibv_mr *passed[DEPTH];
static pthread_barrier_t barrier;

static void *deregister(void *unused)
{
	for (int i = 0; i < rounds; i++) {
		pthread_barrier_wait(&barrier);
		for (int j = 0; j < DEPTH; j++)
			CHECK(ibv_dereg_mr(passed[j]) == 0);
		pthread_barrier_wait(&barrier);
	}
	return unused;
}

static void from_one_thread_to_another(void)
{
	pthread_t other;

	CHECK(pthread_create(&other, NULL, deregister, NULL) == 0);
	for (int i = 0; i < rounds; i++) {
		for (int j = 0; j < DEPTH; j++)
			passed[j] = note(reg(j));
		pthread_barrier_wait(&barrier);
		pthread_barrier_wait(&barrier);
	}
	CHECK(pthread_join(other, NULL) == 0);
}

static pthread_key_t key;

/* A destructor that runs after the shim's own at the end of the thread. */
static void late(void *mr)
{
	CHECK(ibv_dereg_mr(mr) == 0);
	CHECK(ibv_dereg_mr(note(reg(1))) == 0);
}

static void *briefly(void *unused)
{
	CHECK(ibv_dereg_mr(note(reg(0))) == 0);
	CHECK(pthread_setspecific(key, note(reg(0))) == 0);
	return unused;
}

static void from_threads_that_end(void)
{
	CHECK(pthread_key_create(&key, late) == 0);
	for (int i = 0; i < rounds; i++) {
		pthread_t thread;

		CHECK(pthread_create(&thread, NULL, briefly, NULL) == 0);
		CHECK(pthread_join(thread, NULL) == 0);
	}
}

/* The ibv_mr that both threads deregister, and the number of threads that have arrived. */
static struct ibv_mr *both;
static int arrived;

/* Waits until both threads have arrived. It does not sleep, so that they leave at the same time. */
static void meet(int round)
{
	__atomic_add_fetch(&arrived, 1, __ATOMIC_ACQ_REL);
	while (__atomic_load_n(&arrived, __ATOMIC_ACQUIRE) < 2 * round)
		sched_yield();
}

static long results[2];

static void *again(void *number)
{
	for (int round = 1; round <= 20 * rounds; round++) {
		if (number == &results[0])
			both = note(reg(0));
		meet(3 * round - 2);
		*(long *)number = ibv_dereg_mr(both);
		meet(3 * round - 1);
		CHECK(results[0] + results[1] == EINVAL && results[0] * results[1] == 0);
		meet(3 * round);
	}
	return NULL;
}

static void by_two_threads(void)
{
	pthread_t other;

	CHECK(pthread_create(&other, NULL, again, &results[1]) == 0);
	again(&results[0]);
	CHECK(pthread_join(other, NULL) == 0);
}

int main(int argc, char **argv)
{
	struct ibv_device device = { 0 };
	struct ibv_context *context = ibv_open_device(&device);

	CHECK(argc == 2);
	rounds = atoi(argv[1]);
	pd = ibv_alloc_pd(context);
	memory = aligned_alloc(PAGE, DEPTH * PAGE);
	memset(memory, 1, DEPTH * PAGE);
	CHECK(pthread_barrier_init(&barrier, NULL, 2) == 0);
	from_one_thread_to_another();
	from_threads_that_end();
	by_two_threads();
	CHECK(ibv_dealloc_pd(pd) == 0);
	CHECK(ibv_close_device(context) == 0);
	free(memory);
	printf("asked=%ld\n", asked);
	return 0;
}

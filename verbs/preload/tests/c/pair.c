/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Registers and deregisters one page TIMES times on the fake device, in each of THREADS threads:
 * pair TIMES [THREADS]. Each thread has a page of its own. Prints the time of a thread in ns.
 */
#define _GNU_SOURCE
#include <infiniband/verbs.h>
#include <pthread.h>
#include <time.h>

#include "check.h"

#undef ibv_reg_mr

#define PAGE 4096
#define MOST 64

static struct ibv_pd *pd;
static int times;
static pthread_barrier_t start;

static double now(void)
{
	struct timespec at;

	CHECK(clock_gettime(CLOCK_MONOTONIC, &at) == 0);
	return at.tv_sec * 1e9 + at.tv_nsec;
}

static void pairs(char *memory, int count)
{
	for (int i = 0; i < count; i++) {
		struct ibv_mr *mr = ibv_reg_mr(pd, memory, PAGE, IBV_ACCESS_LOCAL_WRITE);

		CHECK(mr);
		CHECK(ibv_dereg_mr(mr) == 0);
	}
}

static void *thread(void *memory)
{
	pairs(memory, 1);
	pthread_barrier_wait(&start);
	double from = now();

	pairs(memory, times);
	printf("%.1f\n", (now() - from) / times);
	return NULL;
}

int main(int argc, char **argv)
{
	CHECK(argc == 2 || argc == 3);
	times = atoi(argv[1]);
	int count = argc == 3 ? atoi(argv[2]) : 1;
	struct ibv_device device = { 0 };
	struct ibv_context *context = ibv_open_device(&device);
	char *memory = aligned_alloc(PAGE, MOST * PAGE);
	pthread_t threads[MOST];

	CHECK(count > 0 && count <= MOST && memory);
	CHECK(pthread_barrier_init(&start, NULL, count) == 0);
	pd = ibv_alloc_pd(context);
	for (int i = 1; i < count; i++)
		CHECK(pthread_create(&threads[i], NULL, thread, memory + i * PAGE) == 0);
	thread(memory);
	for (int i = 1; i < count; i++)
		CHECK(pthread_join(threads[i], NULL) == 0);
	CHECK(ibv_dealloc_pd(pd) == 0);
	CHECK(ibv_close_device(context) == 0);
	free(memory);
	return 0;
}

/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Prints the CPU time that a lookup and its put take in each thread. Usage: lookups COUNT THREADS
 * MONITOR
 */
#include "check.h"

#include <time.h>

static struct regcache *cache;
static char *memory;
static long count;

static void *look_up(void *page)
{
	char *mine = memory + (uintptr_t)page * PAGE;
	long i;
	for (i = 0; i < count; i++) {
		struct regcache_mr mr;
		IS(regcache_get(cache, mine, PAGE, 0, &mr), 0);
		IS(regcache_put(mr.guard), 0);
	}
	return NULL;
}

int main(int argc, char **argv)
{
	struct fake fake = { 0 };
	struct regcache_device device = device_of(&fake);
	struct regcache_attr attr = { .size = sizeof attr, .flags = REGCACHE_NO_REAPER };
	struct timespec used;
	pthread_t threads[16];
	int i, n = argc > 2 ? atoi(argv[2]) : 1;
	count = argc > 1 ? atol(argv[1]) : 1000;
	attr.monitor = argc > 3 ? (unsigned int)atoi(argv[3]) : REGCACHE_MONITOR_AUTO;
	IS(regcache_create_for(&device, &attr, &cache), 0);
	memory = pages(16);
	for (i = 1; i < n; i++)
		pthread_create(&threads[i], NULL, look_up, (void *)(uintptr_t)i);
	look_up(NULL);
	for (i = 1; i < n; i++)
		pthread_join(threads[i], NULL);
	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used);
	printf("lookups: %.1f ns with %d threads on %s\n",
	       ((double)used.tv_sec * 1e9 + (double)used.tv_nsec) / (double)count / n, n, regcache_monitor_name(cache));
	IS(regcache_destroy(cache), 0);
	munmap(memory, 16 * PAGE);
	return 0;
}

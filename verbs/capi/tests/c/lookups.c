/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* What a lookup and its put cost. Usage: lookups COUNT [THREADS]; prints nanoseconds. */
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
	struct timespec before, after;
	pthread_t threads[16];
	int i, n = argc > 2 ? atoi(argv[2]) : 0;
	count = argc > 1 ? atol(argv[1]) : 1000000;
	cache = cache_of(&fake);
	memory = pages(16);
	clock_gettime(CLOCK_MONOTONIC, &before);
	for (i = 0; i < n; i++)
		pthread_create(&threads[i], NULL, look_up, (void *)(uintptr_t)i);
	if (n == 0)
		look_up(NULL);
	for (i = 0; i < n; i++)
		pthread_join(threads[i], NULL);
	clock_gettime(CLOCK_MONOTONIC, &after);
	if (caches(cache))
		IS(fake.registered, n ? n : 1);
	printf("lookups: %.1f ns\n", ((double)(after.tv_sec - before.tv_sec) * 1e9 + (double)(after.tv_nsec - before.tv_nsec)) / (double)count);
	IS(regcache_destroy(cache), 0);
	return 0;
}

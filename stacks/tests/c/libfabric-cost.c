/*
 * libfabric-cost: prints what libfabric's cache costs with the monitor that it has, in nanoseconds
 * of the machine's clock.
 *   hit      fi_mr_reg and fi_close of a range that is cached
 *   change   munmap(3) of a range that is cached
 * Each figure is the median of many. The program fails if a hit asked libibverbs.
 */
#include "domains.h"

#include <time.h>

#define SAMPLES 101
#define HITS 20

static uint64_t now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (uint64_t)time.tv_sec * 1000000000 + (uint64_t)time.tv_nsec;
}

static int order(const void *a, const void *b)
{
	const uint64_t *x = a, *y = b;

	return (*x > *y) - (*x < *y);
}

static uint64_t median(uint64_t *samples)
{
	qsort(samples, SAMPLES, sizeof(*samples), order);
	return samples[SAMPLES / 2];
}

int main(void)
{
	static uint64_t hits[SAMPLES], changes[SAMPLES];
	unsigned char *at = map(NULL, LENGTH);
	long before;

	open_domains();
	cache(0, at, LENGTH);
	before = registrations;
	for (int i = 0; i < SAMPLES; i++) {
		uint64_t start = now();

		for (int k = 0; k < HITS; k++)
			OK(fi_close(&registration_of(0, at, LENGTH)->fid));
		hits[i] = (now() - start) / HITS;
	}
	if (registrations != before)
		errx(1, "%ld of the hits were misses", registrations - before);
	for (int i = 0; i < SAMPLES; i++) {
		uint64_t start;

		memset(at, i, LENGTH);
		cache(0, at, LENGTH);
		start = now();
		unmap(at, LENGTH);
		changes[i] = now() - start;
		if (!map(at, LENGTH))
			errx(1, "the address is in use");
	}
	printf("hit=%lu change=%lu\n", (unsigned long)median(hits), (unsigned long)median(changes));
	fflush(stdout);
	close_domains();
	return 0;
}

/*
 * hits TIMES: looks cached memory up and gives it back, TIMES times, in UCX's registration cache. Prints the median time
 * of such a pair in nanoseconds. The second argument, if there is one, is the number of regions in the cache.
 */
#define _GNU_SOURCE
#include <err.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

#include <ucm/api/ucm.h>
#include <ucp/api/ucp.h>
#include <ucs/memory/rcache.h>
#include <ucs/type/status.h>

#define LENGTH (64 * 1024)
#define SAMPLES 51

static ucs_status_t mem_reg(void *context, ucs_rcache_t *rcache, void *arg, ucs_rcache_region_t *region, uint16_t flags)
{
	(void)context, (void)rcache, (void)arg, (void)region, (void)flags;
	return UCS_OK;
}

static void mem_dereg(void *context, ucs_rcache_t *rcache, ucs_rcache_region_t *region)
{
	(void)context, (void)rcache, (void)region;
}

static void dump_region(void *context, ucs_rcache_t *rcache, ucs_rcache_region_t *region, char *buffer, size_t max)
{
	(void)context, (void)rcache, (void)region;
	snprintf(buffer, max, "region");
}

static double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (double)time.tv_sec * 1e9 + (double)time.tv_nsec;
}

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

int main(int argc, char **argv)
{
	static ucs_rcache_ops_t ops = { .mem_reg = mem_reg, .mem_dereg = mem_dereg, .dump_region = dump_region };
	ucs_rcache_params_t params = {
		.region_struct_size = sizeof(ucs_rcache_region_t),
#if UCP_API_MINOR < 17
		.alignment = UCS_RCACHE_MIN_ALIGNMENT,
		.max_alignment = 4096,
#endif
		.ucm_events = UCM_EVENT_VM_UNMAPPED,
		.ops = &ops,
		.max_regions = -1,
		.max_size = -1,
		.max_unreleased = -1,
	};
	long times = argc > 1 ? atol(argv[1]) / SAMPLES : 1000, regions = argc > 2 ? atol(argv[2]) : 1;
	unsigned int major, minor, release;
	ucs_rcache_region_t *region;
	double samples[SAMPLES];
	ucs_rcache_t *rcache;
	char *memory;

	/* This makes sure that libucp is loaded, as in every program that uses UCX. */
	ucp_get_version(&major, &minor, &release);
	/* UCX cannot patch libc's functions under valgrind. No lookup depends on them. */
	ucm_set_external_event(UCM_EVENT_VM_UNMAPPED);
	if (ucs_rcache_create(&params, "hits", NULL, &rcache) != UCS_OK)
		errx(1, "ucs_rcache_create");
	memory = mmap(NULL, regions * 2 * LENGTH, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED)
		err(1, "mmap");
	for (int sample = -1; sample < SAMPLES; sample++) {
		/* The first sample registers the regions. */
		long pairs = sample < 0 ? regions : times, which = 0;
		double start = now();

		for (long i = 0; i < pairs; i++) {
			which = (which + 1) % regions;
			if (ucs_rcache_get(rcache, memory + which * 2 * LENGTH, LENGTH,
#if UCP_API_MINOR >= 17
					   UCS_RCACHE_MIN_ALIGNMENT,
#endif
					   PROT_READ | PROT_WRITE, NULL, &region))
				errx(1, "ucs_rcache_get");
			ucs_rcache_region_put(rcache, region);
		}
		if (sample >= 0)
			samples[sample] = (now() - start) / (double)pairs;
	}
	qsort(samples, SAMPLES, sizeof(*samples), compare);
	printf("%.2f\n", samples[SAMPLES / 2]);
	ucs_rcache_destroy(rcache);
	return 0;
}

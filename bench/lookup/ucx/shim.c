/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Creates a UCX registration cache whose registrations are dummies. This code depends on the layout
 * of UCX's structures, so it is compiled against the installed header. Lookups call libucs directly
 * and do not pass through this file.
 */
#include <ucs/memory/rcache.h>

#include <stdatomic.h>
#include <stdint.h>

/*
 * The functions of libucs that ../src/ucx.rs declares. If the installed header declares a function
 * with another signature, this file does not compile.
 */
typedef ucs_status_t (*get_t)(ucs_rcache_t *, void *, size_t, int, void *, ucs_rcache_region_t **);
typedef void (*put_t)(ucs_rcache_t *, ucs_rcache_region_t *);
typedef void (*invalidate_t)(ucs_rcache_t *, ucs_rcache_region_t *, void (*)(void *), void *);
typedef void (*destroy_t)(ucs_rcache_t *);

static const get_t get __attribute__((unused)) = ucs_rcache_get;
static const put_t put __attribute__((unused)) = ucs_rcache_region_put;
static const invalidate_t invalidate __attribute__((unused)) = ucs_rcache_region_invalidate;
static const destroy_t destroy __attribute__((unused)) = ucs_rcache_destroy;

_Static_assert(sizeof(ucs_status_t) == 1, "ucx.rs declares the status as a signed byte");
_Static_assert(UCS_OK == 0, "ucx.rs compares the status with 0 for success");

struct dummy_region {
	ucs_rcache_region_t region;
	uint64_t key;
};

/* The context of a cache: the number of registrations that were made, and the number destroyed. */
struct dummy_device {
	_Atomic uint64_t made;
	_Atomic uint64_t destroyed;
};

static ucs_status_t dummy_reg(void *context, ucs_rcache_t *rcache, void *arg, ucs_rcache_region_t *region,
			      uint16_t flags)
{
	struct dummy_device *device = context;

	(void)rcache;
	(void)arg;
	(void)flags;
	((struct dummy_region *)region)->key = region->super.start;
	atomic_fetch_add_explicit(&device->made, 1, memory_order_relaxed);
	return UCS_OK;
}

static void dummy_dereg(void *context, ucs_rcache_t *rcache, ucs_rcache_region_t *region)
{
	struct dummy_device *device = context;

	(void)rcache;
	(void)region;
	atomic_fetch_add_explicit(&device->destroyed, 1, memory_order_relaxed);
}

static void dummy_dump(void *context, ucs_rcache_t *rcache, ucs_rcache_region_t *region, char *buf, size_t max)
{
	(void)context;
	(void)rcache;
	(void)region;
	if (max > 0)
		buf[0] = '\0';
}

static const ucs_rcache_ops_t dummy_ops = {
	.mem_reg = dummy_reg,
	.mem_dereg = dummy_dereg,
	.dump_region = dummy_dump,
};

/*
 * Makes a cache of at most max_regions regions. Returns 0 or UCX's status.
 *
 * The cache requests no memory events, so UCX does not patch the process's mmap and munmap. A
 * lookup does the same work with and without memory events.
 */
int regcache_bench_ucx_create(unsigned long max_regions, struct dummy_device *device, ucs_rcache_t **rcache)
{
	const ucs_rcache_params_t params = {
		.region_struct_size = sizeof(struct dummy_region),
		.alignment = UCS_RCACHE_MIN_ALIGNMENT,
		.max_alignment = 4096,
		.ucm_events = 0,
		.ucm_event_priority = 1000,
		.ops = &dummy_ops,
		.context = device,
		/* With UCS_RCACHE_FLAG_NO_PFN_CHECK, UCX 1.13 would not evict. */
		.flags = 0,
		.max_regions = max_regions,
		.max_size = SIZE_MAX,
		.max_unreleased = SIZE_MAX,
	};

	return ucs_rcache_create(&params, "regcache-bench", NULL, rcache);
}

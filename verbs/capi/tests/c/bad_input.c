/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* Calls every function with every bad argument. Each call must return an errno and set a
 * message. */
#include "check.h"

#include <unistd.h>

/* Numbers that might be mistaken for handles. */
static const uint64_t numbers[] = {
	1, 2, 3, 4, 5, 6, 7, 4096, 0x7ffc00000000, UINT32_MAX, UINT64_MAX, UINT64_MAX - 1,
	UINT64_MAX - 2, UINT64_MAX - 3, (uint64_t)1 << 63, 0x4000001, 0x4000002,
};

static void every_function_with_this_cache(struct regcache *cache, int error, const char *text)
{
	struct regcache_mr mr;
	struct regcache_stats stats;
	struct fake fake = { 0 };
	struct regcache_device device = device_of(&fake);
	struct regcache_attr attr = { .size = sizeof attr, .monitor_of = cache };
	struct regcache *other;
	char byte = 0;
	size_t held = 7;

	memset(&mr, 0xff, sizeof mr);
	FAILS(regcache_get(cache, &byte, 1, 0, &mr), error, text);
	IS(mr.guard == NULL && mr.lkey == 0 && mr.length == 0, 1);
	memset(&mr, 0xff, sizeof mr);
	FAILS(regcache_get_if_cached(cache, &byte, 1, 0, &mr), error, text);
	IS(mr.guard == NULL && mr.lkey == 0 && mr.length == 0, 1);
	memset(&mr, 0xff, sizeof mr);
	FAILS(regcache_get_unretained(cache, &byte, 1, 0, &mr), error, text);
	IS(mr.guard == NULL && mr.lkey == 0 && mr.length == 0, 1);
	FAILS(regcache_set_max_bytes(cache, 1), error, text);
	FAILS(regcache_set_max_entries(cache, 1), error, text);
	FAILS(regcache_invalidate(cache, &byte, 1, -1, &held), error, text);
	FAILS(regcache_flush(cache, -1, &held), error, text);
	IS(held, 7);
	FAILS(regcache_query_stats(cache, &stats, sizeof stats), error, text);
	FAILS(regcache_dump(cache, STDERR_FILENO), error, text);
	FAILS(regcache_fd(cache), error, text);
	FAILS(regcache_reap(cache), error, text);
	FAILS(regcache_destroy(cache), error, text);
	IS(regcache_monitor_name(cache) == NULL, 1);
	if (cache)
		FAILS(regcache_create_for(&device, &attr, &other), error, text);
}

static void every_function_with_this_pool(struct regcache_pool *pool, int error, const char *text)
{
	struct fake fake = { 0 };
	struct regcache_device device = device_of(&fake);
	struct regcache_attr attr = { .size = sizeof attr, .pool = pool };
	struct regcache *cache = (struct regcache *)1;
	uint64_t bytes = 7;

	FAILS(regcache_pool_set_max_bytes(pool, 1), error, text);
	FAILS(regcache_pool_bytes(pool, &bytes), error, text);
	IS(bytes, 7);
	FAILS(regcache_pool_destroy(pool), error, text);
	if (pool)
		FAILS(regcache_create_for(&device, &attr, &cache), error, text);
	IS(cache == (struct regcache *)1, 1);
}

static void pools(void)
{
	struct fake fake = { 0 };
	struct regcache_pool *pool = pool_of(PAGE), *again;
	struct regcache *cache = cache_in(pool, &fake);
	struct regcache_mr mr;
	char *page = pages(1);
	size_t i;

	FAILS(regcache_pool_create(1, NULL), EINVAL, "pool is NULL");
	FAILS(regcache_pool_bytes(pool, NULL), EINVAL, "bytes is NULL");
	every_function_with_this_pool(NULL, EINVAL, "pool is NULL");
	for (i = 0; i < sizeof numbers / sizeof *numbers; i++)
		every_function_with_this_pool((struct regcache_pool *)numbers[i], EBADF, "not a pool");
	/* The handles of a cache and a guard are not pools, and the handle of a pool is neither. */
	IS(regcache_get(cache, page, PAGE, 0, &mr), 0);
	every_function_with_this_pool((struct regcache_pool *)cache, EBADF, "not a pool");
	every_function_with_this_pool((struct regcache_pool *)mr.guard, EBADF, "not a pool");
	every_function_with_this_cache((struct regcache *)pool, EBADF, "not a cache");
	FAILS(regcache_put((struct regcache_guard *)pool), EBADF, "not a guard");
	IS(bytes_in(pool), caches(cache) * PAGE);
	IS(regcache_put(mr.guard), 0);

	IS(regcache_pool_destroy(pool), 0);
	every_function_with_this_pool(pool, EBADF, "was destroyed");
	/* The new pool uses the slot of the destroyed pool, but has another handle. */
	again = pool_of(0);
	IS(again != pool, 1);
	every_function_with_this_pool(pool, EBADF, "was destroyed");
	IS(regcache_pool_destroy(again), 0);
	IS(regcache_destroy(cache), 0);
	IS(fake.live, 0);
	munmap(page, PAGE);

	/* A process can have 1024 pools, and creating another one fails. */
	{
		static struct regcache_pool *many[2048];
		int made = 0, status = 0;
		while (made < 2048 && (status = regcache_pool_create(1, &many[made])) == 0)
			made++;
		FAILS(status, ENOSPC, "too many pools: destroy some. A process can have 1024");
		IS(made, 1024);
		while (made--)
			IS(regcache_pool_destroy(many[made]), 0);
	}
}

static void handles(void)
{
	struct fake fake = { 0 };
	struct regcache *cache = cache_of(&fake), *again;
	struct regcache_mr mr, second;
	char *page = pages(1);
	size_t i;

	every_function_with_this_cache(NULL, EINVAL, "NULL");
	FAILS(regcache_put(NULL), EINVAL, "NULL");
	for (i = 0; i < sizeof numbers / sizeof *numbers; i++) {
		every_function_with_this_cache((struct regcache *)numbers[i], EBADF, "cache");
		FAILS(regcache_put((struct regcache_guard *)numbers[i]), EBADF, "not a guard");
	}

	IS(regcache_get(cache, page, PAGE, 0, &mr), 0);
	/* A guard's handle is not a cache, and a cache's handle is not a guard. */
	every_function_with_this_cache((struct regcache *)mr.guard, EBADF, "not a cache");
	FAILS(regcache_put((struct regcache_guard *)cache), EBADF, "not a guard");
	/* A cache whose guard is still held is not destroyed, and keeps its entries. */
	FAILS(regcache_destroy(cache), EBUSY, "still out: 1");
	IS(regcache_get(cache, page, PAGE, 0, &second), 0);
	IS(second.lkey == mr.lkey, caches(cache));
	IS(regcache_put(second.guard), 0);
	IS(regcache_put(mr.guard), 0);
	FAILS(regcache_put(mr.guard), EBADF, "put already");
	/* The new guard uses the slot of the put guard, but has another handle. */
	IS(regcache_get(cache, page, PAGE, 0, &second), 0);
	IS(second.guard != mr.guard, 1);
	FAILS(regcache_put(mr.guard), EBADF, "put already");
	IS(regcache_put(second.guard), 0);
	IS(regcache_destroy(cache), 0);
	FAILS(regcache_put(second.guard), EBADF, "put already");
	every_function_with_this_cache(cache, EBADF, "was destroyed");
	/* The new cache uses the slot of the destroyed cache, but has another handle. */
	again = cache_of(&fake);
	IS(again != cache, 1);
	every_function_with_this_cache(cache, EBADF, "was destroyed");
	IS(regcache_destroy(again), 0);
	IS(fake.live, 0);
	munmap(page, PAGE);
}

static void arguments(void)
{
	struct fake fake = { 0 };
	struct regcache *cache = cache_of(&fake);
	struct regcache_mr mr;
	struct regcache_stats stats;
	char *page = pages(1);

	FAILS(regcache_get(cache, page, PAGE, 0, NULL), EINVAL, "mr is NULL");
	FAILS(regcache_get(cache, NULL, PAGE, 0, &mr), EINVAL, "addr is NULL");
	FAILS(regcache_get(cache, page, 0, 0, &mr), EINVAL, "0 bytes");
	FAILS(regcache_get(cache, page, SIZE_MAX, 0, &mr), EINVAL, "past the end");
	FAILS(regcache_get(cache, (void *)(UINTPTR_MAX - 5), 7, 0, &mr), EINVAL, "past the end");
	FAILS(regcache_get_if_cached(cache, page, PAGE, 0, NULL), EINVAL, "mr is NULL");
	FAILS(regcache_get_if_cached(cache, NULL, PAGE, 0, &mr), EINVAL, "addr is NULL");
	FAILS(regcache_get_if_cached(cache, page, 0, 0, &mr), EINVAL, "0 bytes");
	FAILS(regcache_get_unretained(cache, page, PAGE, 0, NULL), EINVAL, "mr is NULL");
	FAILS(regcache_get_unretained(cache, NULL, PAGE, 0, &mr), EINVAL, "addr is NULL");
	FAILS(regcache_get_unretained(cache, page, SIZE_MAX, 0, &mr), EINVAL, "past the end");
	FAILS(regcache_invalidate(cache, NULL, PAGE, 0, NULL), EINVAL, "addr is NULL");
	FAILS(regcache_invalidate(cache, page, 0, 0, NULL), EINVAL, "0 bytes");
	FAILS(regcache_invalidate(cache, page, SIZE_MAX, 0, NULL), EINVAL, "past the end");
	FAILS(regcache_query_stats(cache, NULL, sizeof stats), EINVAL, "stats is NULL");
	FAILS(regcache_query_stats(cache, &stats, 0), EINVAL, "sizeof");
	IS(fake.registered, 0);

	/* If the device refuses a registration with an errno, the lookup returns that errno. */
	fake.fails = -EFAULT;
	FAILS(regcache_get(cache, page, PAGE, 0, &mr), EFAULT, "the device refused");
	fake.fails = EPERM;
	FAILS(regcache_get_unretained(cache, page, PAGE, 0, &mr), EPERM, "the device refused");
	fake.fails = EIO;
	FAILS(regcache_get(cache, page, PAGE, 0, &mr), EIO, "the device refused");
	fake.fails = -EFAULT;
	FAILS(regcache_get(cache, (char *)PAGE, PAGE, 0, &mr), EFAULT, "nothing is mapped at 0x1000");
	IS(regcache_destroy(cache), 0);
	munmap(page, PAGE);
}

static void structures(void)
{
	struct fake fake = { 0 };
	struct regcache_device device = device_of(&fake), wrong;
	struct regcache_attr attr = { .size = sizeof attr };
	struct regcache *cache = (struct regcache *)1;
	struct { struct regcache_attr known; uint64_t later; } newer = { .known = { .size = sizeof newer }, .later = 0 };
	struct { struct regcache_stats known; uint64_t later; } stats = { .later = 7 };
	int i;

	FAILS(regcache_create(NULL, NULL, &cache), EINVAL, "pd is NULL");
	FAILS(regcache_create((struct ibv_pd *)&fake, NULL, NULL), EINVAL, "cache is NULL");
	FAILS(regcache_create_for(NULL, NULL, &cache), EINVAL, "device is NULL");
	FAILS(regcache_create_for(&device, NULL, NULL), EINVAL, "cache is NULL");
	wrong = device;
	wrong.size = 8;
	FAILS(regcache_create_for(&wrong, NULL, &cache), EINVAL, "struct regcache_device");
	wrong = device;
	wrong.reg_mr = NULL;
	FAILS(regcache_create_for(&wrong, NULL, &cache), EINVAL, "reg_mr is NULL");
	wrong = device;
	wrong.dereg_mr = NULL;
	FAILS(regcache_create_for(&wrong, NULL, &cache), EINVAL, "dereg_mr is NULL");

	attr.size = 0;
	FAILS(regcache_create_for(&device, &attr, &cache), EINVAL, "struct regcache_attr");
	attr.size = sizeof attr;
	attr.monitor = 77;
	FAILS(regcache_create_for(&device, &attr, &cache), EINVAL, "attr.monitor");
	attr.monitor = 0;
	attr.flags = 0x80000001;
	FAILS(regcache_create_for(&device, &attr, &cache), EINVAL, "attr.flags is 0x80000001, of which 0x80000000");
	attr.flags = 0;
	attr.granularity = 3000;
	FAILS(regcache_create_for(&device, &attr, &cache), EINVAL, "power of two");
	newer.later = 1;
	FAILS(regcache_create_for(&device, &newer.known, &cache), E2BIG, "older than the header");
	IS(cache == (struct regcache *)1, 1);

	newer.later = 0;
	IS(regcache_create_for(&device, &newer.known, &cache), 0);
	IS(regcache_query_stats(cache, &stats.known, sizeof stats), 0);
	IS(stats.later, 0);
	stats.later = 7;
	IS(regcache_query_stats(cache, &stats.known, sizeof(uint64_t)), 0);
	IS(stats.later, 7);
	IS(regcache_destroy(cache), 0);

	/* A process can have 1024 caches, and creating another one fails. */
	{
		static struct regcache *many[2048];
		struct regcache_attr small = { .size = sizeof small, .monitor = REGCACHE_MONITOR_NONE,
			.flags = REGCACHE_NO_REAPER, .max_entries = 1 };
		int made = 0, status = 0;
		while (made < 2048 && (status = regcache_create_for(&device, &small, &many[made])) == 0)
			made++;
		IS(status, -ENOSPC);
		IS(made, 1024);
		for (i = 0; i < made; i++)
			IS(regcache_destroy(many[i]), 0);
	}
	IS(fake.live, 0);
}

int main(void)
{
	IS(strcmp(regcache_error(), ""), 0);
	handles();
	pools();
	arguments();
	structures();
	IS(strcmp(regcache_version(), REGCACHE_VERSION_EXPECTED), 0);
	puts("bad_input: ok");
	return 0;
}

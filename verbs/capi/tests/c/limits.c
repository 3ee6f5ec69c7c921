/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* Tests lookups that only search or do not retain, limits that change, and pools. */
#include "check.h"

static uint64_t evictions_of(struct regcache *cache)
{
	struct regcache_stats stats;
	IS(regcache_query_stats(cache, &stats, sizeof stats), 0);
	return stats.evictions;
}

/* Looks each page up once, and puts its guard. */
static void use_pages(struct regcache *cache, char *memory, size_t first, size_t count)
{
	struct regcache_mr mr;
	size_t i;
	for (i = first; i < first + count; i++) {
		IS(regcache_get(cache, memory + i * PAGE, PAGE, 0, &mr), 0);
		IS(regcache_put(mr.guard), 0);
	}
}

static void a_search_registers_nothing(void)
{
	struct fake fake = { 0 };
	struct regcache *cache = cache_of(&fake);
	struct regcache_mr mr, found;
	char *memory = pages(2);

	memset(&found, 0xff, sizeof found);
	FAILS(regcache_get_if_cached(cache, memory, PAGE, 0, &found), ENOENT, "call regcache_get()");
	IS(found.guard == NULL && found.lkey == 0 && found.length == 0, 1);
	IS(fake.registered, 0);
	IS(regcache_get(cache, memory, PAGE, REGCACHE_LOCAL_WRITE, &mr), 0);
	if (caches(cache)) {
		IS(regcache_get_if_cached(cache, memory + 100, 8, 0, &found), 0);
		IS(found.lkey == mr.lkey && found.addr == memory && found.length == PAGE, 1);
		IS(found.guard != mr.guard, 1);
		IS(regcache_put(mr.guard), 0);
		/* The guard of the search keeps the registration. */
		IS(regcache_flush(cache, 0, NULL), 0);
		IS(fake.live, 1);
		IS(regcache_put(found.guard), 0);
		IS(fake.live, 0);
		IS(regcache_get(cache, memory, PAGE, REGCACHE_LOCAL_WRITE, &mr), 0);
	}
	IS(regcache_put(mr.guard), 0);
	/* No registration covers more memory, or allows more access. */
	FAILS(regcache_get_if_cached(cache, memory, 2 * PAGE, 0, &found), ENOENT, "no registration");
	FAILS(regcache_get_if_cached(cache, memory, PAGE, REGCACHE_REMOTE_READ, &found), ENOENT, "no registration");
	/* The memory is replaced, so its registration is not found any more. */
	IS(mmap(memory, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == memory, 1);
	FAILS(regcache_get_if_cached(cache, memory, PAGE, 0, &found), ENOENT, "no registration");
	IS(fake.registered, caches(cache) ? 2 : 1);
	IS(regcache_destroy(cache), 0);
	munmap(memory, 2 * PAGE);
}

static void an_unretained_registration_ends_with_its_guard(void)
{
	struct fake fake = { 0 };
	struct regcache *cache = cache_of(&fake);
	struct regcache_mr mr, found;
	char *memory = pages(1);
	int kept = caches(cache);

	IS(regcache_get_unretained(cache, memory, PAGE, 0, &mr), 0);
	IS(mr.lkey == 1 && mr.addr == memory && mr.length == PAGE, 1);
	FAILS(regcache_get_if_cached(cache, memory, PAGE, 0, &found), ENOENT, "no registration");
	IS(fake.live, 1);
	IS(regcache_put(mr.guard), 0);
	IS(fake.live, 0);
	/* A registration that is cached serves the lookup, and stays cached. */
	use_pages(cache, memory, 0, 1);
	IS(regcache_get_unretained(cache, memory, PAGE, 0, &mr), 0);
	IS(mr.lkey, kept ? 2 : 3);
	IS(regcache_put(mr.guard), 0);
	IS(fake.live, kept);
	IS(regcache_destroy(cache), 0);
	IS(fake.live, 0);
	munmap(memory, PAGE);
}

static void limits_change(void)
{
	struct fake fake = { 0 };
	struct regcache_device device = device_of(&fake);
	struct regcache_attr attr = { .size = sizeof attr, .flags = REGCACHE_NO_REAPER, .max_entries = 6 };
	struct regcache *cache;
	struct regcache_mr mr;
	char *memory = pages(8);

	IS(regcache_create_for(&device, &attr, &cache), 0);
	if (!caches(cache)) {
		IS(regcache_set_max_bytes(cache, 0), 0);
		IS(regcache_set_max_entries(cache, 0), 0);
		IS(regcache_destroy(cache), 0);
		munmap(memory, 8 * PAGE);
		return;
	}
	use_pages(cache, memory, 0, 6);
	IS(fake.live, 6);
	IS(regcache_set_max_bytes(cache, 4 * PAGE), 0);
	IS(fake.live, 4);
	IS(regcache_set_max_entries(cache, 3), 0);
	IS(fake.live, 3);
	IS(evictions_of(cache), 3);
	use_pages(cache, memory, 0, 6);
	IS(fake.live, 3);
	/* With a limit of 0 the cache retains nothing, and lookups still succeed. */
	IS(regcache_set_max_bytes(cache, 0), 0);
	IS(fake.live, 0);
	use_pages(cache, memory, 0, 2);
	IS(fake.live, 0);
	IS(regcache_set_max_bytes(cache, UINT64_MAX), 0);
	IS(regcache_set_max_entries(cache, 0), 0);
	use_pages(cache, memory, 0, 2);
	IS(fake.live, 0);
	/* A limit can be raised again, but the entries only to the limit of the beginning. */
	IS(regcache_set_max_entries(cache, UINT64_MAX), 0);
	use_pages(cache, memory, 0, 8);
	IS(fake.live, 6);
	/* A registration in use is evicted when its guard is put. */
	IS(regcache_get(cache, memory, PAGE, 0, &mr), 0);
	IS(regcache_set_max_entries(cache, 0), 0);
	IS(fake.live, 1);
	IS(regcache_put(mr.guard), 0);
	IS(fake.live, 0);
	IS(regcache_destroy(cache), 0);
	munmap(memory, 8 * PAGE);
}

static void caches_of_a_pool_have_one_limit(void)
{
	struct fake fakes[2] = { { 0 } };
	struct regcache_pool *pool = pool_of(4 * PAGE);
	struct regcache *first = cache_in(pool, &fakes[0]), *second = cache_in(pool, &fakes[1]);
	struct regcache_mr mr;
	/* Two userfaultfd monitors cannot watch the same memory. */
	char *memory = pages(8), *others = pages(8);
	int kept = caches(first);

	IS(bytes_in(pool), 0);
	use_pages(first, memory, 0, 4);
	IS(bytes_in(pool), kept * 4 * PAGE);
	/* The other cache makes room. */
	IS(regcache_get(second, others, 3 * PAGE, 0, &mr), 0);
	IS(fakes[0].live, kept);
	IS(bytes_in(pool), kept * 4 * PAGE);
	/* A registration in use is evicted when its guard is put. */
	IS(regcache_pool_set_max_bytes(pool, 2 * PAGE), 0);
	IS(fakes[0].live, 0);
	IS(bytes_in(pool), kept * 3 * PAGE);
	IS(regcache_put(mr.guard), 0);
	IS(bytes_in(pool), 0);
	IS(fakes[1].live, 0);
	use_pages(first, memory, 0, 2);
	IS(bytes_in(pool), kept * 2 * PAGE);
	IS(regcache_pool_set_max_bytes(pool, 0), 0);
	IS(bytes_in(pool), 0);
	/* With a limit of 0 the caches retain nothing, and lookups still succeed. */
	use_pages(first, memory, 0, 4);
	use_pages(second, others, 0, 4);
	IS(fakes[0].live + fakes[1].live, 0);

	/* The limit outlives the pool. */
	IS(regcache_pool_set_max_bytes(pool, 2 * PAGE), 0);
	IS(regcache_pool_destroy(pool), 0);
	FAILS(regcache_pool_destroy(pool), EBADF, "pool 0x");
	use_pages(first, memory, 0, 8);
	IS(fakes[0].live, kept * 2);
	use_pages(second, others, 0, 1);
	IS(fakes[0].live + fakes[1].live, kept * 2);
	IS(regcache_destroy(first), 0);
	IS(fakes[0].live, 0);
	use_pages(second, others, 0, 8);
	IS(fakes[1].live, kept * 2);
	IS(regcache_destroy(second), 0);
	IS(fakes[1].live, 0);

	/* A pool without a cache, and a cache that is destroyed before its pool. */
	pool = pool_of(UINT64_MAX);
	first = cache_in(pool, &fakes[0]);
	use_pages(first, memory, 0, 8);
	IS(bytes_in(pool), kept * 8 * PAGE);
	IS(regcache_destroy(first), 0);
	IS(bytes_in(pool), 0);
	IS(regcache_pool_set_max_bytes(pool, 0), 0);
	IS(regcache_pool_destroy(pool), 0);
	munmap(memory, 8 * PAGE);
	munmap(others, 8 * PAGE);
}

/* A callback of one cache runs in a call with another cache or with the pool. The callback's own
 * calls are refused. */
static void calls_from_within(void)
{
	struct fake fake = { 0 }, other_fake = { 0 };
	struct regcache_pool *pool = pool_of(2 * PAGE);
	struct regcache *cache = cache_in(pool, &fake), *other = cache_in(pool, &other_fake);
	char *memory = pages(2), *others = pages(1);

	fake.pool = pool;
	use_pages(cache, memory, 0, 2);
	IS(fake.tried, caches(cache) ? 0 : -EDEADLK);
	use_pages(other, others, 0, 1);
	IS(fake.tried, -EDEADLK);
	IS(strstr(regcache_error(), "within reg_mr") != NULL, 1);
	fake.tried = 0;
	IS(regcache_pool_set_max_bytes(pool, 0), 0);
	IS(fake.tried, caches(cache) ? -EDEADLK : 0);
	IS(fake.live + other_fake.live, 0);
	IS(regcache_destroy(cache), 0);
	IS(regcache_destroy(other), 0);
	IS(regcache_pool_destroy(pool), 0);
	munmap(memory, 2 * PAGE);
	munmap(others, PAGE);
}

int main(void)
{
	a_search_registers_nothing();
	an_unretained_registration_ends_with_its_guard();
	limits_change();
	caches_of_a_pool_have_one_limit();
	calls_from_within();
	puts("limits: ok");
	return 0;
}

/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Tests the short way of regcache_get and regcache_put: which lookups hit, and that every bad
 * argument is refused as on the long way. Needs a driver that accepts every watch.
 */
#include "check.h"

/* More guards than the table's first chunk has slots. */
#define MANY 70000

static struct regcache_mr got(struct regcache *cache, void *addr, size_t length, unsigned int access)
{
	struct regcache_mr mr;

	IS(regcache_get(cache, addr, length, access, &mr), 0);
	return mr;
}

/* Looks up and puts. Returns the key of the registration. */
static uint32_t key_of(struct regcache *cache, void *addr, size_t length, unsigned int access)
{
	struct regcache_mr mr = got(cache, addr, length, access);

	IS((char *)mr.addr <= (char *)addr, 1);
	IS((char *)mr.addr + mr.length >= (char *)addr + length, 1);
	IS(mr.rkey, mr.lkey + 1000);
	IS(regcache_put(mr.guard), 0);
	return mr.lkey;
}

static struct regcache *cache_with(struct fake *fake, uint64_t granularity)
{
	struct regcache_device device = device_of(fake);
	struct regcache_attr attr = { .size = sizeof attr, .monitor = REGCACHE_MONITOR_UMMUNOTIFY,
				      .granularity = granularity };
	struct regcache *cache;

	IS(regcache_create_for(&device, &attr, &cache), 0);
	return cache;
}

static void *put_null_first(void *unused)
{
	IS(regcache_put(NULL), -EINVAL);
	IS(regcache_put(NULL), -EINVAL);
	return unused;
}

static void *get_null_first(void *unused)
{
	struct regcache_mr mr;
	char byte = 0;

	IS(regcache_get(NULL, &byte, 1, 0, &mr), -EINVAL);
	IS(regcache_get(NULL, &byte, 1, 0, &mr), -EINVAL);
	return unused;
}

static void in_a_thread(void *(*run)(void *))
{
	pthread_t thread;

	IS(pthread_create(&thread, NULL, run, NULL), 0);
	IS(pthread_join(thread, NULL), 0);
}

static void hits(struct regcache *cache, struct fake *fake, char *memory)
{
	struct regcache_stats stats;
	unsigned int both = REGCACHE_LOCAL_WRITE | REGCACHE_REMOTE_READ;
	uint32_t key = key_of(cache, memory, PAGE, REGCACHE_LOCAL_WRITE);
	int i;

	for (i = 0; i < 100; i++)
		IS(key_of(cache, memory, PAGE, REGCACHE_LOCAL_WRITE), key);
	IS(key_of(cache, memory + 100, 10, REGCACHE_LOCAL_WRITE), key);
	IS(key_of(cache, memory + PAGE - 1, 1, REGCACHE_LOCAL_WRITE), key);
	/* Fewer permissions are served. */
	IS(key_of(cache, memory, PAGE, 0), key);
	IS(fake->registered, 1);
	IS(regcache_query_stats(cache, &stats, sizeof stats), 0);
	IS(stats.hits, 103);
	/* Other permissions, other flags and other memory are not. */
	IS(key_of(cache, memory, PAGE, REGCACHE_REMOTE_READ) != key, 1);
	IS(key_of(cache, memory, PAGE, REGCACHE_LOCAL_WRITE | REGCACHE_RELAXED_ORDERING) != key, 1);
	IS(key_of(cache, memory, PAGE + 1, REGCACHE_LOCAL_WRITE) != key, 1);
	IS(key_of(cache, memory + PAGE - 1, 2, REGCACHE_LOCAL_WRITE) != key, 1);
	key = key_of(cache, memory + 4 * PAGE, PAGE, both);
	IS(key_of(cache, memory + 4 * PAGE, PAGE, REGCACHE_REMOTE_READ), key);
	IS(key_of(cache, memory + 4 * PAGE, PAGE, both), key);
	/* This permission implies another. */
	key = key_of(cache, memory + 6 * PAGE, PAGE, REGCACHE_REMOTE_WRITE);
	IS(key_of(cache, memory + 6 * PAGE, PAGE, REGCACHE_LOCAL_WRITE), key);
}

static void bad_lookups(struct regcache *cache, char *memory)
{
	struct regcache_mr mr;
	uint64_t handle = (uintptr_t)cache;
	int bit;

	key_of(cache, memory, PAGE, 0);
	FAILS(regcache_get(cache, NULL, PAGE, 0, &mr), EINVAL, "addr is NULL");
	FAILS(regcache_get(cache, NULL, 0, 0, &mr), EINVAL, "addr is NULL");
	FAILS(regcache_get(cache, memory, PAGE, 0, NULL), EINVAL, "mr is NULL");
	FAILS(regcache_get(cache, memory, 0, 0, &mr), EINVAL, "0 bytes");
	FAILS(regcache_get(cache, memory, SIZE_MAX, 0, &mr), EINVAL, "past the end");
	FAILS(regcache_get(cache, memory, -(uintptr_t)memory, 0, &mr), EINVAL, "past the end");
	IS(mr.guard == NULL && mr.lkey == 0 && mr.length == 0, 1);
	FAILS(regcache_get(NULL, memory, PAGE, 0, &mr), EINVAL, "cache is NULL");
	for (bit = 0; bit < 64; bit++)
		IS(regcache_get((struct regcache *)(handle ^ (uint64_t)1 << bit), memory, PAGE, 0, &mr), -EBADF);
	/* The word of the slot once the cache was destroyed. */
	IS(regcache_get((struct regcache *)(handle + (1 << 25)), memory, PAGE, 0, &mr), -EBADF);
	key_of(cache, memory, PAGE, 0);
}

/* A block makes the page of the null pointer part of a registration. */
static void null_in_a_block(void)
{
	struct fake fake = { 0 };
	struct regcache *cache = cache_with(&fake, 1 << 16);
	struct regcache_mr mr = got(cache, (void *)PAGE, 1, 0);

	IS(mr.addr == NULL && mr.length == 1 << 16, 1);
	IS(regcache_put(mr.guard), 0);
	IS(key_of(cache, (void *)PAGE, 1, 0), mr.lkey);
	FAILS(regcache_get(cache, NULL, 1, 0, &mr), EINVAL, "addr is NULL");
	IS(regcache_destroy(cache), 0);
	IS(fake.live, 0);
}

/* Puts numbers that no lookup has returned. */
static void bad_puts(struct regcache *cache, char *memory)
{
	struct regcache_guard *guard = got(cache, memory, PAGE, 0).guard;
	uint64_t handle = (uintptr_t)guard, next = handle + (1 << 26);
	uint64_t bad[] = { next, next + 1, next - 1, handle + 1, handle - 1, handle + 2, 1, 2, 1 << 16 };
	size_t i;
	int bit;

	for (bit = 0; bit < 64; bit++)
		IS(regcache_put((struct regcache_guard *)(handle ^ (uint64_t)1 << bit)), -EBADF);
	for (i = 0; i < sizeof bad / sizeof *bad; i++)
		IS(regcache_put((struct regcache_guard *)bad[i]), -EBADF);
	IS(regcache_put((struct regcache_guard *)cache), -EBADF);
	IS(regcache_put(NULL), -EINVAL);
	IS(regcache_put(guard), 0);
	FAILS(regcache_put(guard), EBADF, "put already");
	for (i = 0; i < sizeof bad / sizeof *bad; i++)
		IS(regcache_put((struct regcache_guard *)bad[i]), -EBADF);
	IS(regcache_put(NULL), -EINVAL);
}

static void many_guards(struct regcache *cache, char *memory)
{
	static struct regcache_guard *guards[MANY];
	struct fake fake = { 0 };
	struct regcache *other = cache_with(&fake, 0);
	struct regcache_mr alone = got(other, memory, PAGE, 0), uncached;
	size_t i;

	for (i = 0; i < MANY; i++)
		guards[i] = got(cache, memory, PAGE, 0).guard;
	FAILS(regcache_destroy(cache), EBUSY, "still out: 70000.");
	FAILS(regcache_destroy(other), EBUSY, "still out: 1.");
	IS(regcache_get_unretained(other, memory + 7 * PAGE, PAGE, 0, &uncached), 0);
	FAILS(regcache_destroy(other), EBUSY, "still out: 2.");
	for (i = 0; i < MANY; i++)
		IS(regcache_put(guards[i]), 0);
	for (i = 0; i < MANY; i += 7)
		FAILS(regcache_put(guards[i]), EBADF, "put already");
	IS(regcache_put(uncached.guard), 0);
	FAILS(regcache_put(uncached.guard), EBADF, "put already");
	FAILS(regcache_destroy(other), EBUSY, "still out: 1.");
	IS(regcache_put(alone.guard), 0);
	IS(regcache_destroy(other), 0);
	IS(fake.live, 0);
}

int main(void)
{
	struct fake fake = { 0 };
	char *memory = pages(8);
	struct regcache_mr mr;
	struct regcache *cache;

	in_a_thread(put_null_first);
	in_a_thread(get_null_first);
	cache = cache_with(&fake, 0);
	hits(cache, &fake, memory);
	bad_lookups(cache, memory);
	null_in_a_block();
	bad_puts(cache, memory);
	many_guards(cache, memory);
	mr = got(cache, memory, PAGE, 0);
	FAILS(regcache_destroy(cache), EBUSY, "still out: 1.");
	/* A destroy that fails leaves the cache as it was. */
	IS(key_of(cache, memory, PAGE, 0), mr.lkey);
	IS(regcache_put(mr.guard), 0);
	IS(regcache_destroy(cache), 0);
	IS(fake.live, 0);
	FAILS(regcache_get(cache, memory, PAGE, 0, &mr), EBADF, "was destroyed");
	in_a_thread(get_null_first);
	printf("at_once: ok\n");
	return 0;
}

/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Tests threads that look up, put guards of other threads, put one guard at the same time, use
 * caches and pools that are being destroyed, and make room in a pool through several caches. Usage:
 * threads ROUNDS
 */
#include "check.h"

#include <sched.h>
#include <unistd.h>

#define THREADS 4
#define HANDED 64

static int rounds;
static struct regcache *shared;
static char *memory;
static pthread_barrier_t barrier;
static _Atomic(struct regcache_guard *) handed[HANDED];
static atomic_int succeeded;
static pthread_key_t key;

/* Looks up, and exchanges the guard for that of another thread. */
static void *hand_over(void *seed)
{
	unsigned int state = (unsigned int)(uintptr_t)seed;
	int i;
	for (i = 0; i < rounds; i++) {
		struct regcache_mr mr;
		struct regcache_guard *other;
		state = state * 1664525 + 1013904223;
		IS(regcache_get(shared, memory + (state >> 16) % 8 * PAGE, PAGE, 0, &mr), 0);
		other = atomic_exchange(&handed[state >> 24 & (HANDED - 1)], mr.guard);
		if (other)
			IS(regcache_put(other), 0);
	}
	return NULL;
}

/* Puts every guard, as all other threads do. For each guard one thread succeeds. */
static void *put_the_same(void *mine)
{
	int i;
	(void)mine;
	for (i = 0; i < rounds / 16; i++) {
		int status;
		pthread_barrier_wait(&barrier);
		if (mine == NULL) {
			struct regcache_mr mr;
			IS(regcache_get(shared, memory, PAGE, 0, &mr), 0);
			handed[0] = mr.guard;
			succeeded = 0;
		}
		pthread_barrier_wait(&barrier);
		status = regcache_put(handed[0]);
		if (status == 0)
			succeeded++;
		else
			FAILS(status, EBADF, "put already");
		pthread_barrier_wait(&barrier);
		if (mine == NULL)
			IS(succeeded, 1);
	}
	return NULL;
}

/* Looks up in the current cache, while the main thread destroys it. */
static _Atomic(struct regcache *) current;
static atomic_int stop;
static atomic_ulong served, refused;

static void *use_what_goes(void *unused)
{
	(void)unused;
	while (!stop) {
		struct regcache_mr mr;
		int status = regcache_get(current, memory, PAGE, 0, &mr);
		if (status == 0) {
			IS(regcache_put(mr.guard), 0);
			served++;
		} else {
			FAILS(status, EBADF, "was destroyed");
			refused++;
			sched_yield();
		}
	}
	return NULL;
}

static void destroy_under_use(void)
{
	pthread_t threads[THREADS];
	struct fake fake = { 0 };
	int i, gone;
	current = cache_of(&fake);
	for (i = 0; i < THREADS; i++)
		pthread_create(&threads[i], NULL, use_what_goes, NULL);
	for (gone = 0; gone < rounds / 256; gone++) {
		struct regcache *old = current;
		unsigned long before = served;
		int status;
		while (served == before)
			sched_yield();
		/*
		 * Destroying fails with EBUSY while a thread holds a guard, so the loop repeats it.
		 */
		while ((status = regcache_destroy(old)) == -EBUSY)
			;
		IS(status, 0);
		/*
		 * After a cache was destroyed, no callback of its device runs, and none is called
		 * any more.
		 */
		IS(fake.live, 0);
		current = cache_of(&fake);
	}
	stop = 1;
	for (i = 0; i < THREADS; i++)
		pthread_join(threads[i], NULL);
	IS(regcache_destroy(current), 0);
	printf("threads: %lu lookups served, %lu refused by %d caches that went\n", served, refused, gone);
}

/* Reads the current pool, while the main thread destroys it. */
static _Atomic(struct regcache_pool *) current_pool;

static void *use_the_pool_that_goes(void *unused)
{
	(void)unused;
	while (!stop) {
		uint64_t bytes;
		int status = regcache_pool_bytes(current_pool, &bytes);
		if (status == 0) {
			IS(bytes, 0);
			served++;
		} else {
			FAILS(status, EBADF, "was destroyed");
			sched_yield();
		}
	}
	return NULL;
}

static void destroy_pools_under_use(void)
{
	pthread_t threads[THREADS];
	int i;
	stop = 0;
	current_pool = pool_of(PAGE);
	for (i = 0; i < THREADS; i++)
		pthread_create(&threads[i], NULL, use_the_pool_that_goes, NULL);
	for (i = 0; i < rounds / 64; i++) {
		unsigned long before = served;
		while (served == before)
			sched_yield();
		IS(regcache_pool_destroy(current_pool), 0);
		current_pool = pool_of(PAGE);
	}
	stop = 1;
	for (i = 0; i < THREADS; i++)
		pthread_join(threads[i], NULL);
	IS(regcache_pool_destroy(current_pool), 0);
}

/* Makes room in a pool through one cache. That evicts registrations of the pool's other caches. */
static struct regcache_pool *narrow;

static void *take_room(void *unused)
{
	struct fake fake = { 0 };
	struct regcache *cache = cache_in(narrow, &fake);
	char *mine = pages(8);
	int i;
	(void)unused;
	for (i = 0; !stop; i++) {
		struct regcache_mr mr;
		IS(regcache_get(cache, mine + i % 8 * PAGE, PAGE, 0, &mr), 0);
		IS(regcache_put(mr.guard), 0);
	}
	IS(regcache_destroy(cache), 0);
	munmap(mine, 8 * PAGE);
	return NULL;
}

static int dereg_slowly(void *user, void *registration)
{
	usleep(200);
	return fake_dereg(user, registration);
}

/* Destroys a cache while threads evict its registrations through the caches of the same pool. */
static void destroy_while_others_make_room(void)
{
	pthread_t threads[THREADS];
	char *mine = pages(8);
	int i, gone;
	stop = 0;
	narrow = pool_of(8 * PAGE);
	for (i = 0; i < THREADS; i++)
		pthread_create(&threads[i], NULL, take_room, NULL);
	for (gone = 0; gone < rounds / 256; gone++) {
		struct fake fake = { 0 };
		struct regcache_device device = device_of(&fake);
		struct regcache_attr attr = { .size = sizeof attr, .flags = REGCACHE_NO_REAPER, .pool = narrow };
		struct regcache *cache;
		device.dereg_mr = dereg_slowly;
		IS(regcache_create_for(&device, &attr, &cache), 0);
		for (i = 0; i < 8; i++) {
			struct regcache_mr mr;
			IS(regcache_get(cache, mine + i * PAGE, PAGE, 0, &mr), 0);
			IS(regcache_put(mr.guard), 0);
		}
		IS(regcache_destroy(cache), 0);
		/* No callback of the cache runs in another thread. */
		IS(fake.live, 0);
	}
	stop = 1;
	for (i = 0; i < THREADS; i++)
		pthread_join(threads[i], NULL);
	IS(bytes_in(narrow), 0);
	IS(regcache_pool_destroy(narrow), 0);
	munmap(mine, 8 * PAGE);
}

/* Puts a guard in the destructor of a thread's key, which runs after the destructors of Rust. */
static void put_late(void *guard)
{
	IS(regcache_put(guard), 0);
}

static void *leave_it_to_the_key(void *unused)
{
	struct regcache_mr mr;
	(void)unused;
	IS(regcache_get(shared, memory, PAGE, 0, &mr), 0);
	pthread_setspecific(key, mr.guard);
	return NULL;
}

static void all(void *(*what)(void *))
{
	pthread_t threads[THREADS];
	uintptr_t i;
	for (i = 0; i < THREADS; i++)
		pthread_create(&threads[i], NULL, what, (void *)i);
	for (i = 0; i < THREADS; i++)
		pthread_join(threads[i], NULL);
}

int main(int argc, char **argv)
{
	struct fake fake = { 0 };
	int i;
	rounds = argc > 1 ? atoi(argv[1]) : 1000;
	shared = cache_of(&fake);
	memory = pages(8);
	pthread_barrier_init(&barrier, NULL, THREADS);
	pthread_key_create(&key, put_late);

	all(hand_over);
	for (i = 0; i < HANDED; i++)
		if (handed[i])
			IS(regcache_put(handed[i]), 0);
	all(put_the_same);
	for (i = 0; i < 8; i++)
		all(leave_it_to_the_key);
	IS(regcache_destroy(shared), 0);
	IS(fake.live, 0);

	destroy_under_use();
	destroy_pools_under_use();
	destroy_while_others_make_room();
	pthread_barrier_destroy(&barrier);
	munmap(memory, 8 * PAGE);
	puts("threads: ok");
	return 0;
}

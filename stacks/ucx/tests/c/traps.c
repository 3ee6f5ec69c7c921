/*
 * Uses UCX's registration cache as UCX's own transports do, with registrations that need no device.
 *
 * A registration copies the first word of its memory. Each new mapping has a word of its own there.
 * So a registration is stale if its word differs from the word in memory.
 *
 * runner.c loads this library with RTLD_LOCAL, as Open MPI loads its components.
 */
#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <ucm/api/ucm.h>
#include <ucp/api/ucp.h>
#include <ucs/memory/rcache.h>
#include <ucs/type/status.h>

#define LENGTH (64 * 1024)
#define CHECK(condition)                                                                 \
	do {                                                                             \
		if (!(condition))                                                        \
			errx(1, "%s:%d: %s is false", __func__, __LINE__, #condition); \
	} while (0)

struct region {
	ucs_rcache_region_t super;
	uint64_t word;
};

/* The state of one cache's registrations. */
struct device {
	ucs_rcache_t *rcache;
	atomic_int made, live;
	/* If set, the next registration calls this function before or after it copies the word. */
	void (*before)(void);
	void (*after)(void);
	bool fails;
};

static atomic_uint_least64_t next_word = 1;

static ucs_status_t mem_reg(void *context, ucs_rcache_t *rcache, void *arg, ucs_rcache_region_t *region, uint16_t flags)
{
	struct device *device = context;
	struct region *of = (struct region *)region;
	void (*hook)(void);

	(void)arg, (void)flags;
	CHECK(device->rcache == rcache);
	if (device->fails)
		return UCS_ERR_IO_ERROR;
	hook = device->before;
	device->before = NULL;
	if (hook)
		hook();
	of->word = *(volatile uint64_t *)region->super.start;
	hook = device->after;
	device->after = NULL;
	if (hook)
		hook();
	device->made++;
	device->live++;
	return UCS_OK;
}

static void mem_dereg(void *context, ucs_rcache_t *rcache, ucs_rcache_region_t *region)
{
	struct device *device = context;

	(void)region;
	CHECK(device->rcache == rcache);
	device->live--;
}

static void dump_region(void *context, ucs_rcache_t *rcache, ucs_rcache_region_t *region, char *buffer, size_t max)
{
	(void)context, (void)rcache, (void)region;
	snprintf(buffer, max, "region");
}

#if UCP_API_MINOR >= 18
static void merge(void *context, ucs_rcache_t *rcache, void *arg, ucs_rcache_region_t *region)
{
	struct device *device = context;

	(void)arg, (void)region;
	CHECK(device->rcache == rcache);
}
#endif

static ucs_rcache_ops_t ops = {
	.mem_reg = mem_reg,
	.mem_dereg = mem_dereg,
#if UCP_API_MINOR >= 18
	.merge = merge,
#endif
	.dump_region = dump_region,
};

static void open_device(struct device *device, unsigned long max_regions)
{
	ucs_rcache_params_t params = {
		.region_struct_size = sizeof(struct region),
#if UCP_API_MINOR < 17
		.alignment = UCS_RCACHE_MIN_ALIGNMENT,
		.max_alignment = 4096,
#endif
		.ucm_events = UCM_EVENT_VM_UNMAPPED,
		.ucm_event_priority = 1000,
		.ops = &ops,
		.context = device,
		.max_regions = max_regions,
		.max_size = SIZE_MAX,
		.max_unreleased = SIZE_MAX,
	};
	ucs_status_t status;

	memset(device, 0, sizeof(*device));
	status = ucs_rcache_create(&params, "traps", NULL, &device->rcache);
	if (status != UCS_OK)
		errx(1, "ucs_rcache_create: %s", ucs_status_string(status));
}

static void close_device(struct device *device)
{
	ucs_rcache_destroy(device->rcache);
	CHECK(device->live == 0);
}

static void *map(void *at)
{
	int flags = MAP_PRIVATE | MAP_ANONYMOUS | (at ? MAP_FIXED_NOREPLACE : 0);
	uint64_t *got = mmap(at, LENGTH, PROT_READ | PROT_WRITE, flags, -1, 0);

	if (got == MAP_FAILED)
		return NULL;
	got[0] = next_word++;
	return got;
}

/* Replaces the memory at the address, without libc's functions. */
static void change(void *at)
{
	if (syscall(SYS_munmap, at, LENGTH))
		err(1, "munmap");
	CHECK(map(at) == at);
}

/* As change(), in one system call, so that no other thread can get the address. */
static void replace(void *at)
{
	int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;

	CHECK(syscall(SYS_mmap, at, LENGTH, PROT_READ | PROT_WRITE, flags, -1, 0L) == (long)at);
	*(volatile uint64_t *)at = next_word++;
}

static ucs_status_t get_range(struct device *device, void *at, size_t len, int prot, ucs_rcache_region_t **region)
{
#if UCP_API_MINOR < 17
	return ucs_rcache_get(device->rcache, at, len, prot, NULL, region);
#else
	return ucs_rcache_get(device->rcache, at, len, UCS_RCACHE_MIN_ALIGNMENT, prot, NULL, region);
#endif
}

static struct region *get(struct device *device, void *at)
{
	ucs_rcache_region_t *region;

	if (get_range(device, at, LENGTH, PROT_READ | PROT_WRITE, &region) != UCS_OK)
		return NULL;
	return (struct region *)region;
}

static bool is_fresh(const struct region *region, const void *at)
{
	return region->word == *(volatile const uint64_t *)at;
}

/* Looks the memory up, and returns whether the registration is fresh. */
static bool lookup(struct device *device, void *at)
{
	struct region *region = get(device, at);
	bool fresh;

	CHECK(region);
	fresh = is_fresh(region, at);
	ucs_rcache_region_put(device->rcache, &region->super);
	return fresh;
}

static void *memory;

static void change_memory(void)
{
	change(memory);
}

static void unchanged_memory_is_registered_once(void)
{
	struct device device;

	open_device(&device, -1);
	for (int i = 0; i < 100; i++)
		CHECK(lookup(&device, memory));
	CHECK(device.made == 1);
	close_device(&device);
}

static void changed_memory_is_registered_again(void)
{
	struct device device;

	open_device(&device, -1);
	for (int i = 0; i < 100; i++) {
		CHECK(lookup(&device, memory));
		CHECK(lookup(&device, memory));
		CHECK(device.made == i + 1);
		change(memory);
	}
	CHECK(device.live <= 2);
	close_device(&device);
}

static void a_change_before_the_registration_costs_no_correctness(void)
{
	struct device device;

	open_device(&device, -1);
	device.before = change_memory;
	CHECK(lookup(&device, memory));
	CHECK(lookup(&device, memory));
	close_device(&device);
}

/* This finds a watch that is placed after the registration. */
static void a_change_right_after_the_registration_is_seen(void)
{
	struct device device;

	open_device(&device, -1);
	device.after = change_memory;
	/* This registration is stale, but the memory has changed during the lookup. */
	CHECK(!lookup(&device, memory));
	CHECK(lookup(&device, memory));
	CHECK(device.made == 2);
	close_device(&device);
}

static void a_region_in_use_is_not_found_after_a_change(void)
{
	struct device device;
	struct region *old, *new;

	open_device(&device, -1);
	old = get(&device, memory);
	CHECK(old && is_fresh(old, memory));
	change(memory);
	new = get(&device, memory);
	CHECK(new && new != old && is_fresh(new, memory));
	CHECK(device.live == 2);
	ucs_rcache_region_put(device.rcache, &old->super);
	ucs_rcache_region_put(device.rcache, &new->super);
	CHECK(lookup(&device, memory));
	CHECK(device.made == 2);
	close_device(&device);
}

static void each_cache_sees_a_change_of_shared_memory(void)
{
	struct device devices[3];

	for (int i = 0; i < 3; i++)
		open_device(&devices[i], -1);
	for (int round = 0; round < 20; round++) {
		for (int i = 0; i < 3; i++)
			CHECK(lookup(&devices[(round + i) % 3], memory));
		change(memory);
		CHECK(lookup(&devices[round % 3], memory));
	}
	for (int i = 0; i < 3; i++)
		close_device(&devices[i]);
}

static void a_failed_registration_is_reported_and_may_be_repeated(void)
{
	struct device device;

	open_device(&device, -1);
	for (int i = 0; i < 3; i++) {
		device.fails = true;
		CHECK(!get(&device, memory));
		device.fails = false;
		change(memory);
		CHECK(lookup(&device, memory));
		CHECK(lookup(&device, memory));
		change(memory);
	}
	close_device(&device);
}

/* Maps a page of the firmware. The kernel has no page structure for it, and reports no changes. */
static void *firmware(void)
{
	int memory = open("/dev/mem", O_RDONLY | O_CLOEXEC);
	void *at = mmap(NULL, 4096, PROT_READ, MAP_SHARED, memory, 0xf0000);

	if (at == MAP_FAILED)
		err(1, "/dev/mem");
	close(memory);
	return at;
}

static void memory_that_cannot_be_watched_is_registered_for_each_lookup(void)
{
	struct device device;
	char *at = firmware();
	ucs_rcache_region_t *region;

	open_device(&device, -1);
	for (int i = 0; i < 5; i++) {
		CHECK(get_range(&device, at, 64, PROT_READ, &region) == UCS_OK);
		ucs_rcache_region_put(device.rcache, region);
		CHECK(device.made == i + 1);
	}
	/* Other memory is cached all the same. */
	CHECK(lookup(&device, memory));
	CHECK(lookup(&device, memory));
	CHECK(device.made == 6);
	close_device(&device);
}

static void evicted_regions_are_no_longer_watched(void)
{
	struct device device;
	void *at[16];

	open_device(&device, 4);
	for (int i = 0; i < 16; i++)
		CHECK((at[i] = map(NULL)));
	for (int round = 0; round < 20; round++)
		for (int i = 0; i < 16; i++) {
			CHECK(lookup(&device, at[i]));
			if ((i + round) % 5 == 0)
				change(at[i]);
			CHECK(device.live <= 6);
		}
	for (int i = 0; i < 16; i++) {
		CHECK(lookup(&device, at[i]));
		syscall(SYS_munmap, at[i], LENGTH);
	}
	close_device(&device);
}

static void parts_and_sizes_are_served(void)
{
	struct device device;
	size_t sizes[] = { 64, 4096, 65536, 1 << 20, 16 << 20 };

	open_device(&device, -1);
	for (int i = 0; i < 5; i++) {
		size_t len = sizes[i];

		for (int round = 0; round < 3; round++) {
			char *at = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
			int made;

			CHECK(at != MAP_FAILED);
			*(uint64_t *)at = next_word++;
			for (size_t offset = 0; offset < len; offset += len / 4) {
				ucs_rcache_region_t *region;

				made = device.made;
				CHECK(get_range(&device, at, len - offset, PROT_READ, &region) == UCS_OK);
				CHECK(is_fresh((struct region *)region, at));
				CHECK(offset == 0 || device.made == made);
				ucs_rcache_region_put(device.rcache, region);
			}
			CHECK(!syscall(SYS_munmap, at, len));
		}
	}
	close_device(&device);
}

static void more_caches_than_there_is_room_for_work(void)
{
	enum { MANY = 270 };
	static struct device devices[MANY];

	for (int i = 0; i < MANY; i++)
		open_device(&devices[i], -1);
	for (int i = 0; i < MANY; i++)
		CHECK(lookup(&devices[i], memory));
	/*
	 * The caches without a monitor of ours have UCX's own monitor, which sees libc's functions.
	 */
	CHECK(!munmap(memory, LENGTH));
	CHECK(map(memory) == memory);
	for (int i = 0; i < MANY; i++)
		CHECK(lookup(&devices[i], memory));
	for (int i = 0; i < MANY; i++)
		close_device(&devices[i]);
	/* There is room again. */
	changed_memory_is_registered_again();
}

static int in_child(void (*what)(void *), void *arg)
{
	pid_t child = fork();
	int status;

	if (child < 0)
		err(1, "fork");
	if (child == 0) {
		alarm(60);
		what(arg);
		_exit(0);
	}
	if (waitpid(child, &status, 0) != child)
		err(1, "waitpid");
	return status;
}

static void use_inherited(void *arg)
{
	struct device *device = arg;
	struct region *region = get(device, memory);

	if (region)
		ucs_rcache_region_put(device->rcache, &region->super);
	changed_memory_is_registered_again();
	ucs_rcache_destroy(device->rcache);
}

static void only_open(void *arg)
{
	(void)arg;
}

static void use_own(void *arg)
{
	(void)arg;
	changed_memory_is_registered_again();
}

static void a_forked_child_has_caches_of_its_own(void)
{
	struct device device;

	open_device(&device, -1);
	for (int i = 0; i < 5; i++) {
		CHECK(lookup(&device, memory));
		CHECK(in_child(i % 2 ? use_inherited : use_own, &device) == 0);
		/* The child has not taken the parent's watches or reports away. */
		change(memory);
		CHECK(lookup(&device, memory));
		CHECK(lookup(&device, memory));
	}
	close_device(&device);
}

static atomic_int forks_left;

/*
 * The children of a busy process do not use UCX: a thread of the parent may hold a lock of UCX
 * during the fork.
 */
static void *forker(void *arg)
{
	while (forks_left-- > 0)
		CHECK(in_child(only_open, arg) == 0);
	return NULL;
}

static void *looker(void *arg)
{
	while (forks_left > 0) {
		void *at = map(NULL);

		CHECK(at);
		CHECK(lookup(arg, at));
		replace(at);
		CHECK(lookup(arg, at));
		syscall(SYS_munmap, at, LENGTH);
	}
	return NULL;
}

static void a_fork_while_other_threads_look_up_does_not_hang(void)
{
	struct device device;
	pthread_t threads[3];

	open_device(&device, -1);
	CHECK(lookup(&device, memory));
	forks_left = 10;
	for (int i = 0; i < 3; i++)
		CHECK(!pthread_create(&threads[i], NULL, i ? looker : forker, &device));
	for (int i = 0; i < 3; i++)
		pthread_join(threads[i], NULL);
	CHECK(lookup(&device, memory));
	close_device(&device);
}

/*
 * Threads that look up, change and unmap memory of their own and of others, in two caches that
 * evict.
 */
static struct device shared[2];
static atomic_int stale;

static void *worker(void *arg)
{
	unsigned int seed = (unsigned int)(uintptr_t)arg;
	void *at = map(NULL);

	CHECK(at);
	for (int i = 0; i < 2000; i++) {
		struct device *device = &shared[rand_r(&seed) % 2];

		stale += !lookup(device, at);
		switch (rand_r(&seed) % 8) {
		case 0:
			replace(at);
			break;
		case 1:
			/* Another thread may get the address. */
			syscall(SYS_munmap, at, LENGTH);
			CHECK((at = map(NULL)));
			break;
		case 2:
			*(volatile uint64_t *)at = 0;
			syscall(SYS_madvise, at, LENGTH, MADV_DONTNEED);
			*(volatile uint64_t *)at = next_word++;
			break;
		}
	}
	return NULL;
}

static void threads_and_caches_find_no_stale_registration(void)
{
	pthread_t threads[4];

	stale = 0;
	open_device(&shared[0], 3);
	open_device(&shared[1], -1);
	for (uintptr_t i = 0; i < 4; i++)
		CHECK(!pthread_create(&threads[i], NULL, worker, (void *)(i + 1)));
	for (int i = 0; i < 4; i++)
		pthread_join(threads[i], NULL);
	CHECK(stale == 0);
	for (int i = 0; i < 2; i++)
		close_device(&shared[i]);
}

/* Leaves a cache and its registrations behind. */
static void exit_with_a_cache_open(void)
{
	static struct device device;

	open_device(&device, -1);
	CHECK(lookup(&device, memory));
}

/* Does what is right with UCX's own monitor, too. */
static void works(void)
{
	struct device device;

	open_device(&device, -1);
	for (int i = 0; i < 10; i++) {
		CHECK(lookup(&device, memory));
		CHECK(!munmap(memory, LENGTH));
		CHECK(map(memory) == memory);
		CHECK(lookup(&device, memory));
	}
	close_device(&device);
}

#define TEST(name) { #name, name }
static const struct {
	const char *name;
	void (*run)(void);
} tests[] = {
	TEST(unchanged_memory_is_registered_once),
	TEST(changed_memory_is_registered_again),
	TEST(a_change_before_the_registration_costs_no_correctness),
	TEST(a_change_right_after_the_registration_is_seen),
	TEST(a_region_in_use_is_not_found_after_a_change),
	TEST(each_cache_sees_a_change_of_shared_memory),
	TEST(a_failed_registration_is_reported_and_may_be_repeated),
	TEST(memory_that_cannot_be_watched_is_registered_for_each_lookup),
	TEST(evicted_regions_are_no_longer_watched),
	TEST(parts_and_sizes_are_served),
	TEST(more_caches_than_there_is_room_for_work),
	TEST(a_forked_child_has_caches_of_its_own),
	TEST(a_fork_while_other_threads_look_up_does_not_hang),
	TEST(threads_and_caches_find_no_stale_registration),
	TEST(exit_with_a_cache_open),
	TEST(works),
};

/* Runs the test of that name. */
int run(const char *name)
{
	unsigned int major, minor, release;

	/* This makes sure that libucp is loaded, as in every program that uses UCX. */
	ucp_get_version(&major, &minor, &release);
	memory = map(NULL);
	CHECK(memory);
	for (size_t i = 0; i < sizeof(tests) / sizeof(tests[0]); i++)
		if (!strcmp(name, tests[i].name)) {
			tests[i].run();
			return 0;
		}
	errx(2, "unknown test %s", name);
}

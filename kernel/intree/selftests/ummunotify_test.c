// SPDX-License-Identifier: GPL-2.0-only
/*
 * Tests of the interface of /dev/ummunotify, see
 * Documentation/userspace-api/ummunotify.rst
 *
 * The bound of a user is a module parameter. Its test needs root, and is
 * skipped without.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>
#include <linux/ummunotify.h>

#include "kselftest_harness.h"

#define DEVICE		"/dev/ummunotify"
#define BOUND		"/sys/module/ummunotify/parameters/max_user_regions"
#define PAGES		16
#define COOKIE		0x1234567890abcdefULL

FIXTURE(ummunotify)
{
	int fd;
	size_t page;
	char *memory;
	const __u64 *counter;
	char bound[32];
};

/* All pages are present, so that there is something to invalidate. */
static char *map_memory(size_t bytes)
{
	char *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (memory == MAP_FAILED)
		return NULL;
	madvise(memory, bytes, MADV_NOHUGEPAGE);
	memset(memory, 1, bytes);
	return memory;
}

static int watch(int fd, const void *start, size_t bytes, __u64 cookie)
{
	struct ummunotify_register_ioctl parm = {
		.start = (uintptr_t)start,
		.end = (uintptr_t)start + bytes,
		.user_cookie = cookie,
	};

	return ioctl(fd, UMMUNOTIFY_REGISTER_REGION, &parm);
}

static int watch2(int fd, const void *start, size_t bytes, __u64 cookie, __u32 flags)
{
	struct ummunotify_register2 parm = {
		.size = sizeof(parm),
		.flags = flags,
		.start = (uintptr_t)start,
		.end = (uintptr_t)start + bytes,
		.user_cookie = cookie,
	};

	return ioctl(fd, UMMUNOTIFY_REGISTER_REGION2, &parm);
}

static int unwatch(int fd, __u64 cookie)
{
	return ioctl(fd, UMMUNOTIFY_UNREGISTER_REGION, &cookie);
}

/* Read up to @max events; returns their number, or -1 with errno. */
static int read_events(int fd, struct ummunotify_event *events, int max)
{
	ssize_t bytes = read(fd, events, max * sizeof(*events));

	return bytes < 0 ? -1 : bytes / (int)sizeof(*events);
}

/* The kernel changes it in a system call of any thread. */
static __u64 generation(const __u64 *counter)
{
	return __atomic_load_n(counter, __ATOMIC_ACQUIRE);
}

static bool nothing_to_read(int fd)
{
	struct ummunotify_event event;

	return read_events(fd, &event, 1) == -1 && errno == EAGAIN;
}

static int poll_now(int fd)
{
	struct pollfd pollfd = { .fd = fd, .events = POLLIN | POLLRDNORM };

	return poll(&pollfd, 1, 0) < 0 ? -1 : pollfd.revents;
}

/* The value of a line of fdinfo, or -1 */
static long fdinfo_value(int fd, const char *name)
{
	char path[64], line[128];
	long value = -1;
	FILE *file;

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", fd);
	file = fopen(path, "r");
	if (!file)
		return -1;
	while (fgets(line, sizeof(line), file)) {
		if (!strncmp(line, name, strlen(name)) && line[strlen(name)] == ':')
			value = strtol(line + strlen(name) + 1, NULL, 10);
	}
	fclose(file);
	return value;
}

static int write_bound(const char *value)
{
	ssize_t written;
	int fd;

	fd = open(BOUND, O_WRONLY);
	if (fd < 0)
		return -1;
	written = write(fd, value, strlen(value));
	close(fd);
	return written == (ssize_t)strlen(value) ? 0 : -1;
}

/* Fails if the event is anything but the report of one invalidation. */
#define EXPECT_INVALIDATED(event, cookie, start, end)				\
do {										\
	const struct ummunotify_event *it = (event);				\
										\
	EXPECT_EQ(UMMUNOTIFY_EVENT_TYPE_INVAL, it->type);			\
	EXPECT_EQ(UMMUNOTIFY_EVENT_FLAG_HINT, it->flags);			\
	EXPECT_EQ((uintptr_t)(start), it->hint_start);				\
	EXPECT_EQ((uintptr_t)(end), it->hint_end);				\
	EXPECT_EQ(cookie, it->user_cookie_counter);				\
} while (0)

#define EXPECT_LAST(event, count)						\
do {										\
	const struct ummunotify_event *it = (event);				\
										\
	EXPECT_EQ(UMMUNOTIFY_EVENT_TYPE_LAST, it->type);			\
	EXPECT_EQ(0, it->flags);						\
	EXPECT_EQ(count, it->user_cookie_counter);				\
} while (0)

#define EXPECT_ERROR(error, call)						\
do {										\
	EXPECT_EQ(-1, call);							\
	EXPECT_EQ(error, errno);						\
} while (0)

FIXTURE_SETUP(ummunotify)
{
	self->page = sysconf(_SC_PAGESIZE);
	self->fd = open(DEVICE, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	ASSERT_LE(0, self->fd) {
		TH_LOG(DEVICE ": %m; is CONFIG_UMMUNOTIFY set, and the module loaded?");
	}
	self->memory = map_memory(PAGES * self->page);
	ASSERT_NE(NULL, self->memory);
	self->counter = mmap(NULL, self->page, PROT_READ, MAP_SHARED, self->fd, 0);
	ASSERT_NE(MAP_FAILED, self->counter);
}

FIXTURE_TEARDOWN(ummunotify)
{
	if (self->bound[0])
		write_bound(self->bound);
	munmap((void *)self->counter, self->page);
	munmap(self->memory, PAGES * self->page);
	close(self->fd);
}

/* Programs of 2010 were compiled with these. */
TEST(numbers_and_layout_are_those_of_2010)
{
	EXPECT_EQ('U', UMMUNOTIFY_MAGIC);
	EXPECT_EQ(0xc0045501, UMMUNOTIFY_EXCHANGE_FEATURES);
	EXPECT_EQ(0x40205502, UMMUNOTIFY_REGISTER_REGION);
	EXPECT_EQ(0x40085503, UMMUNOTIFY_UNREGISTER_REGION);
	EXPECT_EQ(0x5504, UMMUNOTIFY_REGISTER_REGION2);
	EXPECT_EQ(32, sizeof(struct ummunotify_register_ioctl));
	EXPECT_EQ(UMMUNOTIFY_REGISTER2_SIZE_VER0, sizeof(struct ummunotify_register2));
	EXPECT_EQ(32, sizeof(struct ummunotify_event));
	EXPECT_EQ(0, UMMUNOTIFY_EVENT_TYPE_INVAL);
	EXPECT_EQ(1, UMMUNOTIFY_EVENT_TYPE_LAST);
}

TEST(opening_for_writing_fails)
{
	/* Without permission, open() does not get as far as the driver. */
	int error = access(DEVICE, W_OK) ? EACCES : EINVAL;

	EXPECT_ERROR(error, open(DEVICE, O_RDWR));
	EXPECT_ERROR(error, open(DEVICE, O_WRONLY));
}

TEST(features_are_exchanged_once_and_first)
{
	int fd = open(DEVICE, O_RDONLY | O_NONBLOCK);
	__u32 mask = 0xdeadbeef;

	ASSERT_LE(0, fd);
	EXPECT_ERROR(EFAULT, ioctl(fd, UMMUNOTIFY_EXCHANGE_FEATURES, NULL));
	EXPECT_EQ(0, ioctl(fd, UMMUNOTIFY_EXCHANGE_FEATURES, &mask));
	EXPECT_EQ(0, mask);
	EXPECT_ERROR(EINVAL, ioctl(fd, UMMUNOTIFY_EXCHANGE_FEATURES, &mask));
	close(fd);

	fd = open(DEVICE, O_RDONLY | O_NONBLOCK);
	ASSERT_LE(0, fd);
	EXPECT_TRUE(nothing_to_read(fd));
	EXPECT_ERROR(EINVAL, ioctl(fd, UMMUNOTIFY_EXCHANGE_FEATURES, &mask));
	close(fd);
}

TEST_F(ummunotify, an_unknown_ioctl_is_refused)
{
	EXPECT_ERROR(ENOTTY, ioctl(self->fd, _IO(UMMUNOTIFY_MAGIC, 0x7f), NULL));
}

TEST_F(ummunotify, an_invalidation_is_reported_once)
{
	struct ummunotify_event events[4];
	char *middle = self->memory + self->page;
	int round;

	ASSERT_EQ(0, watch(self->fd, self->memory, PAGES * self->page, COOKIE));
	EXPECT_TRUE(nothing_to_read(self->fd));

	/* The range stays watched after it was reported. */
	for (round = 1; round <= 3; round++) {
		memset(self->memory, round, PAGES * self->page);
		ASSERT_EQ(0, madvise(middle, self->page, MADV_DONTNEED));
		ASSERT_EQ(2, read_events(self->fd, events, 4));
		EXPECT_INVALIDATED(&events[0], COOKIE, middle, middle + self->page);
		EXPECT_LAST(&events[1], round);
		EXPECT_TRUE(nothing_to_read(self->fd));
	}
}

TEST_F(ummunotify, several_invalidations_make_one_event_without_a_hint)
{
	struct ummunotify_event events[4];
	int i;

	ASSERT_EQ(0, watch(self->fd, self->memory, PAGES * self->page, COOKIE));
	for (i = 0; i < 3; i++)
		ASSERT_EQ(0, madvise(self->memory + i * self->page, self->page, MADV_DONTNEED));
	ASSERT_EQ(2, read_events(self->fd, events, 4));
	EXPECT_EQ(UMMUNOTIFY_EVENT_TYPE_INVAL, events[0].type);
	EXPECT_EQ(0, events[0].flags);
	EXPECT_EQ(COOKIE, events[0].user_cookie_counter);
	EXPECT_LAST(&events[1], 3);
}

TEST_F(ummunotify, munmap_and_what_is_mapped_over_a_range_are_reported)
{
	struct ummunotify_event events[4];
	char *memory = map_memory(2 * self->page);

	ASSERT_NE(NULL, memory);
	ASSERT_EQ(0, watch(self->fd, memory, 2 * self->page, COOKIE));
	ASSERT_EQ(memory, mmap(memory, self->page, PROT_READ | PROT_WRITE,
			       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0));
	ASSERT_EQ(2, read_events(self->fd, events, 4));
	EXPECT_INVALIDATED(&events[0], COOKIE, memory, memory + self->page);

	ASSERT_EQ(0, munmap(memory, 2 * self->page));
	ASSERT_EQ(2, read_events(self->fd, events, 4));
	EXPECT_EQ(UMMUNOTIFY_EVENT_TYPE_INVAL, events[0].type);
	EXPECT_EQ(COOKIE, events[0].user_cookie_counter);
	EXPECT_LAST(&events[1], generation(self->counter));
}

TEST_F(ummunotify, mremap_is_reported_where_the_range_was)
{
	struct ummunotify_event events[4];
	char *memory = map_memory(2 * self->page), *moved;

	ASSERT_NE(NULL, memory);
	ASSERT_EQ(0, watch(self->fd, memory, 2 * self->page, COOKIE));
	moved = mremap(memory, 2 * self->page, 4 * self->page, MREMAP_MAYMOVE | MREMAP_FIXED,
		       self->memory);
	ASSERT_EQ(self->memory, moved);
	ASSERT_EQ(2, read_events(self->fd, events, 4));
	EXPECT_EQ(UMMUNOTIFY_EVENT_TYPE_INVAL, events[0].type);
	EXPECT_EQ(COOKIE, events[0].user_cookie_counter);
}

TEST_F(ummunotify, the_counter_rises_before_the_call_returns)
{
	int i;

	EXPECT_EQ(0, generation(self->counter));
	ASSERT_EQ(0, watch(self->fd, self->memory, 4 * self->page, 1));
	ASSERT_EQ(0, watch(self->fd, self->memory, 4 * self->page, 2));

	/* Once for each invalidation, however many ranges it meets, read or not. */
	for (i = 1; i <= 4; i++) {
		memset(self->memory, i, 4 * self->page);
		ASSERT_EQ(0, madvise(self->memory, 4 * self->page, MADV_DONTNEED));
		EXPECT_EQ(i, generation(self->counter));
	}

	/* Not where nothing is watched. */
	ASSERT_EQ(0, madvise(self->memory + 8 * self->page, self->page, MADV_DONTNEED));
	EXPECT_EQ(4, generation(self->counter));
}

TEST_F(ummunotify, the_counter_is_one_page_and_read_only)
{
	void *counter = (void *)self->counter;
	const int prot = PROT_READ;

	EXPECT_ERROR(EINVAL, (intptr_t)mmap(NULL, 2 * self->page, prot, MAP_SHARED, self->fd, 0));
	EXPECT_ERROR(EINVAL, (intptr_t)mmap(NULL, self->page, prot, MAP_SHARED, self->fd,
					    self->page));
	EXPECT_ERROR(EACCES, (intptr_t)mmap(NULL, self->page, prot | PROT_WRITE, MAP_SHARED,
					    self->fd, 0));
	EXPECT_ERROR(EACCES, (intptr_t)mmap(NULL, self->page, prot | PROT_WRITE, MAP_PRIVATE,
					    self->fd, 0));
	EXPECT_ERROR(EACCES, (intptr_t)mmap(NULL, self->page, prot | PROT_EXEC, MAP_SHARED,
					    self->fd, 0));
	EXPECT_ERROR(EACCES, mprotect(counter, self->page, prot | PROT_WRITE));
	EXPECT_ERROR(EACCES, mprotect(counter, self->page, prot | PROT_EXEC));
	EXPECT_ERROR(EFAULT, (intptr_t)mremap(counter, self->page, 2 * self->page, MREMAP_MAYMOVE));
}

TEST_F(ummunotify, one_read_returns_several_events_in_their_order)
{
	struct ummunotify_event events[8];
	int i;

	for (i = 0; i < 5; i++)
		ASSERT_EQ(0, watch(self->fd, self->memory + i * self->page, self->page, i));
	for (i = 4; i >= 0; i--)
		ASSERT_EQ(0, madvise(self->memory + i * self->page, self->page, MADV_DONTNEED));
	ASSERT_EQ(6, read_events(self->fd, events, 8));
	for (i = 0; i < 5; i++)
		EXPECT_EQ(4 - i, events[i].user_cookie_counter);
	EXPECT_LAST(&events[5], 5);
}

/* More ranges than the driver visits in an invalidation. */
#define MANY	200

TEST_F(ummunotify, an_invalidation_of_many_ranges_reports_each_once)
{
	struct ummunotify_event events[MANY + 2];
	bool reported[MANY] = { };
	int i;

	for (i = 0; i < MANY; i++)
		ASSERT_EQ(0, watch(self->fd, self->memory + i, self->page, i));
	ASSERT_EQ(0, madvise(self->memory, 2 * self->page, MADV_DONTNEED));
	EXPECT_EQ(1, generation(self->counter));
	ASSERT_EQ(MANY + 1, read_events(self->fd, events, MANY + 2));
	for (i = 0; i < MANY; i++) {
		EXPECT_EQ(UMMUNOTIFY_EVENT_TYPE_INVAL, events[i].type);
		ASSERT_LT(events[i].user_cookie_counter, MANY);
		EXPECT_FALSE(reported[events[i].user_cookie_counter]);
		reported[events[i].user_cookie_counter] = true;
	}
	EXPECT_LAST(&events[MANY], 1);
	EXPECT_TRUE(nothing_to_read(self->fd));
}

TEST_F(ummunotify, more_than_fits_is_left_for_the_next_read)
{
	struct ummunotify_event events[4];
	int i;

	for (i = 0; i < 4; i++)
		ASSERT_EQ(0, watch(self->fd, self->memory + i * self->page, self->page, i));
	for (i = 0; i < 4; i++)
		ASSERT_EQ(0, madvise(self->memory + i * self->page, self->page, MADV_DONTNEED));
	/* The end of the buffer, where no event fits, is left alone. */
	ASSERT_EQ(2 * sizeof(*events), read(self->fd, events, 3 * sizeof(*events) - 1));
	EXPECT_EQ(0, events[0].user_cookie_counter);
	EXPECT_EQ(1, events[1].user_cookie_counter);
	ASSERT_EQ(2, read_events(self->fd, events, 2));
	EXPECT_EQ(2, events[0].user_cookie_counter);
	EXPECT_EQ(3, events[1].user_cookie_counter);
	/* LAST is due. */
	EXPECT_EQ(POLLIN | POLLRDNORM, poll_now(self->fd));
	ASSERT_EQ(1, read_events(self->fd, events, 4));
	EXPECT_LAST(&events[0], 4);
	EXPECT_TRUE(nothing_to_read(self->fd));
}

TEST_F(ummunotify, a_bad_buffer_loses_no_event)
{
	struct ummunotify_event events[4];

	ASSERT_EQ(0, watch(self->fd, self->memory, self->page, COOKIE));
	ASSERT_EQ(0, madvise(self->memory, self->page, MADV_DONTNEED));
	EXPECT_ERROR(EINVAL, read(self->fd, events, sizeof(*events) - 1));
	EXPECT_ERROR(EINVAL, read(self->fd, events, 0));
	EXPECT_ERROR(EFAULT, read(self->fd, (void *)self->counter, sizeof(events)));
	ASSERT_EQ(2, read_events(self->fd, events, 4));
	EXPECT_INVALIDATED(&events[0], COOKIE, self->memory, self->memory + self->page);
	EXPECT_LAST(&events[1], 1);
}

TEST_F(ummunotify, poll_says_whether_there_is_something_to_read)
{
	struct ummunotify_event events[4];

	ASSERT_EQ(0, watch(self->fd, self->memory, self->page, COOKIE));
	EXPECT_EQ(0, poll_now(self->fd));
	ASSERT_EQ(0, madvise(self->memory, self->page, MADV_DONTNEED));
	EXPECT_EQ(POLLIN | POLLRDNORM, poll_now(self->fd));
	ASSERT_EQ(2, read_events(self->fd, events, 4));
	EXPECT_EQ(0, poll_now(self->fd));
}

TEST_F(ummunotify, a_signal_is_sent_on_request)
{
	const struct timespec second = { .tv_sec = 1 };
	const struct timespec now = { };
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGIO);
	ASSERT_EQ(0, sigprocmask(SIG_BLOCK, &set, NULL));
	ASSERT_EQ(0, watch(self->fd, self->memory, self->page, COOKIE));
	ASSERT_EQ(0, fcntl(self->fd, F_SETOWN, getpid()));
	ASSERT_EQ(0, fcntl(self->fd, F_SETFL, O_NONBLOCK | O_ASYNC));
	EXPECT_ERROR(EAGAIN, sigtimedwait(&set, NULL, &now));
	ASSERT_EQ(0, madvise(self->memory, self->page, MADV_DONTNEED));
	EXPECT_EQ(SIGIO, sigtimedwait(&set, NULL, &second));
}

struct reader {
	int fd;
	int read;
	struct ummunotify_event events[4];
	char *page;
	/* the page was mapped after its report */
	unsigned char present;
	int error;
};

static void *read_until_last(void *arg)
{
	struct reader *reader = arg;

	reader->read = read_events(reader->fd, reader->events, 4);
	if (mincore(reader->page, 1, &reader->present))
		reader->error = errno;
	return NULL;
}

TEST_F(ummunotify, a_read_blocks_until_there_is_something_to_read)
{
	struct reader reader = { .fd = self->fd, .page = self->memory };
	pthread_t thread;

	ASSERT_EQ(0, fcntl(self->fd, F_SETFL, 0));
	ASSERT_EQ(0, watch(self->fd, self->memory, self->page, COOKIE));
	ASSERT_EQ(0, pthread_create(&thread, NULL, read_until_last, &reader));
	usleep(100 * 1000);
	ASSERT_EQ(0, madvise(self->memory, self->page, MADV_DONTNEED));
	ASSERT_EQ(0, pthread_join(thread, NULL));
	ASSERT_LE(1, reader.read);
	EXPECT_EQ(COOKIE, reader.events[0].user_cookie_counter);
}

/*
 * A large piece of memory is dropped, and the report is read meanwhile. The last
 * page is then still there and could be pinned, so that it must be reported once
 * more.
 */
#define EARLY_BYTES	(32UL << 20)
#define EARLY_ROUNDS	200
#define EARLY_ENOUGH	3

TEST_F_TIMEOUT(ummunotify, an_early_report_is_repeated, 300)
{
	char *memory = map_memory(EARLY_BYTES), *last;
	struct ummunotify_event events[4];
	int round, early = 0;
	__u64 before;

	ASSERT_NE(NULL, memory);
	last = memory + EARLY_BYTES - self->page;
	ASSERT_EQ(0, watch(self->fd, last, self->page, COOKIE));

	for (round = 0; round < EARLY_ROUNDS && early < EARLY_ENOUGH; round++) {
		struct reader reader = { .fd = self->fd, .page = last };
		pthread_t thread;

		memset(memory, 1, EARLY_BYTES);
		before = generation(self->counter);
		ASSERT_EQ(0, fcntl(self->fd, F_SETFL, 0));
		ASSERT_EQ(0, pthread_create(&thread, NULL, read_until_last, &reader));
		usleep(1000);
		ASSERT_EQ(0, madvise(memory, EARLY_BYTES, MADV_DONTNEED));
		ASSERT_EQ(0, pthread_join(thread, NULL));
		ASSERT_EQ(0, fcntl(self->fd, F_SETFL, O_NONBLOCK));
		ASSERT_EQ(0, reader.error);
		ASSERT_EQ(2, reader.read);
		EXPECT_INVALIDATED(&reader.events[0], COOKIE, last, last + self->page);
		EXPECT_LAST(&reader.events[1], before + 1);

		if (reader.present & 1) {
			early++;
			ASSERT_EQ(before + 2, generation(self->counter));
			ASSERT_EQ(2, read_events(self->fd, events, 4));
			EXPECT_INVALIDATED(&events[0], COOKIE, last, last + self->page);
			EXPECT_LAST(&events[1], before + 2);
		} else {
			/* Read after the page was gone; it may have been before the end. */
			read_events(self->fd, events, 4);
		}
		EXPECT_TRUE(nothing_to_read(self->fd));
	}
	munmap(memory, EARLY_BYTES);
	if (!early)
		SKIP(return, "no report of %d was read early", round);
}

TEST_F(ummunotify, junk_in_flags_switches_nothing_on)
{
	struct ummunotify_event events[4];
	int i;

	srandom(1);
	for (i = 1; i <= 1000; i++) {
		struct ummunotify_register_ioctl parm = {
			.start = (uintptr_t)self->memory,
			.end = (uintptr_t)self->memory + self->page,
			.user_cookie = i,
			.flags = random() ^ (__u32)random() << 16,
			.reserved = random() ^ (__u32)random() << 16,
		};

		self->memory[0] = 1;
		ASSERT_EQ(0, ioctl(self->fd, UMMUNOTIFY_REGISTER_REGION, &parm));
		ASSERT_EQ(0, mprotect(self->memory, self->page, PROT_READ));
		ASSERT_EQ(0, mprotect(self->memory, self->page, PROT_READ | PROT_WRITE));
		ASSERT_TRUE(nothing_to_read(self->fd));
		ASSERT_EQ(0, madvise(self->memory, self->page, MADV_DONTNEED));
		ASSERT_EQ(2, read_events(self->fd, events, 4));
		ASSERT_EQ(i, events[0].user_cookie_counter);
		ASSERT_EQ(0, unwatch(self->fd, i));
	}
	EXPECT_EQ(1000, generation(self->counter));
}

TEST_F(ummunotify, an_empty_range_is_one_byte)
{
	struct ummunotify_event events[4];

	ASSERT_EQ(0, watch(self->fd, self->memory + 5, 0, COOKIE));
	ASSERT_EQ(0, madvise(self->memory, self->page, MADV_DONTNEED));
	ASSERT_EQ(2, read_events(self->fd, events, 4));
	EXPECT_INVALIDATED(&events[0], COOKIE, self->memory + 5, self->memory + 6);
}

TEST_F(ummunotify, a_range_outside_the_address_space_is_refused)
{
	EXPECT_ERROR(EINVAL, watch(self->fd, self->memory + self->page, -self->page, COOKIE));
	EXPECT_ERROR(EINVAL, watch(self->fd, (void *)(ULONG_MAX - self->page), self->page, COOKIE));
	EXPECT_ERROR(EINVAL, watch(self->fd, self->memory, LONG_MAX, COOKIE));
	EXPECT_ERROR(EFAULT, ioctl(self->fd, UMMUNOTIFY_REGISTER_REGION, NULL));
	EXPECT_EQ(0, fdinfo_value(self->fd, "ummunotify-ranges"));
	/* None of them has taken the cookie. */
	EXPECT_EQ(0, watch(self->fd, self->memory, self->page, COOKIE));
}

TEST_F(ummunotify, a_cookie_names_one_range)
{
	EXPECT_EQ(0, watch(self->fd, self->memory, self->page, COOKIE));
	EXPECT_ERROR(EINVAL, watch(self->fd, self->memory, self->page, COOKIE));
	EXPECT_ERROR(EINVAL, watch2(self->fd, self->memory, self->page, COOKIE, 0));
	EXPECT_EQ(0, watch(self->fd, self->memory, self->page, COOKIE + 1));
	EXPECT_EQ(0, unwatch(self->fd, COOKIE));
	EXPECT_EQ(0, watch(self->fd, self->memory, self->page, COOKIE));
}

TEST_F(ummunotify, unregistering_drops_what_was_not_read)
{
	EXPECT_ERROR(EINVAL, unwatch(self->fd, COOKIE));
	EXPECT_ERROR(EFAULT, ioctl(self->fd, UMMUNOTIFY_UNREGISTER_REGION, NULL));
	ASSERT_EQ(0, watch(self->fd, self->memory, self->page, COOKIE));
	ASSERT_EQ(0, madvise(self->memory, self->page, MADV_DONTNEED));
	EXPECT_EQ(0, unwatch(self->fd, COOKIE));
	EXPECT_EQ(0, poll_now(self->fd));
	EXPECT_TRUE(nothing_to_read(self->fd));
	EXPECT_ERROR(EINVAL, unwatch(self->fd, COOKIE));

	/* Nobody watches now. */
	self->memory[0] = 1;
	ASSERT_EQ(0, madvise(self->memory, self->page, MADV_DONTNEED));
	EXPECT_EQ(1, generation(self->counter));
}

TEST_F(ummunotify, register2_has_the_size_that_the_caller_knows)
{
	const size_t bytes = 2 * self->page;
	struct ummunotify_register2 *parm;
	unsigned char *longer;

	longer = calloc(1, bytes);
	ASSERT_NE(NULL, longer);
	parm = (struct ummunotify_register2 *)longer;
	parm->start = (uintptr_t)self->memory;
	parm->end = parm->start + self->page;

	EXPECT_ERROR(EINVAL, ioctl(self->fd, UMMUNOTIFY_REGISTER_REGION2, parm));
	parm->size = UMMUNOTIFY_REGISTER2_SIZE_VER0 - 1;
	EXPECT_ERROR(EINVAL, ioctl(self->fd, UMMUNOTIFY_REGISTER_REGION2, parm));
	parm->size = self->page + 1;
	EXPECT_ERROR(E2BIG, ioctl(self->fd, UMMUNOTIFY_REGISTER_REGION2, parm));
	parm->size = UINT_MAX;
	EXPECT_ERROR(E2BIG, ioctl(self->fd, UMMUNOTIFY_REGISTER_REGION2, parm));
	EXPECT_ERROR(EFAULT, ioctl(self->fd, UMMUNOTIFY_REGISTER_REGION2, NULL));

	/* A later version of the structure, whose new fields are not used. */
	parm->size = sizeof(*parm) + 24;
	parm->user_cookie = 1;
	EXPECT_EQ(0, ioctl(self->fd, UMMUNOTIFY_REGISTER_REGION2, parm));
	longer[sizeof(*parm) + 23] = 1;
	parm->user_cookie = 2;
	EXPECT_ERROR(E2BIG, ioctl(self->fd, UMMUNOTIFY_REGISTER_REGION2, parm));
	parm->size = sizeof(*parm) + 23;
	EXPECT_EQ(0, ioctl(self->fd, UMMUNOTIFY_REGISTER_REGION2, parm));
	EXPECT_EQ(2, fdinfo_value(self->fd, "ummunotify-ranges"));
	free(longer);
}

TEST_F(ummunotify, register2_refuses_unknown_flags)
{
	int bit;

	for (bit = 2; bit < 32; bit++)
		EXPECT_ERROR(EINVAL, watch2(self->fd, self->memory, self->page, COOKIE, 1U << bit));
	EXPECT_EQ(0, watch2(self->fd, self->memory, self->page, COOKIE, 0));
}

TEST_F(ummunotify, changes_of_protection_are_reported_on_request)
{
	struct ummunotify_event events[4];

	ASSERT_EQ(0, watch2(self->fd, self->memory, self->page, 1, 0));
	ASSERT_EQ(0, watch2(self->fd, self->memory, self->page, 2, UMMUNOTIFY_REGISTER_PROTECTION));
	ASSERT_EQ(0, mprotect(self->memory, self->page, PROT_READ));
	ASSERT_EQ(2, read_events(self->fd, events, 4));
	EXPECT_EQ(2, events[0].user_cookie_counter);
	EXPECT_LAST(&events[1], generation(self->counter));
}

TEST_F(ummunotify, must_be_backed_refuses_what_cannot_be_pinned)
{
	const __u32 flag = UMMUNOTIFY_REGISTER_MUST_BE_BACKED;
	char *hole = self->memory + 2 * self->page;

	EXPECT_EQ(0, watch2(self->fd, self->memory, PAGES * self->page, 1, flag));

	ASSERT_EQ(0, mprotect(hole, self->page, PROT_NONE));
	EXPECT_ERROR(ENXIO, watch2(self->fd, hole, self->page, 2, flag));
	EXPECT_ERROR(ENXIO, watch2(self->fd, self->memory, PAGES * self->page, 2, flag));
	ASSERT_EQ(0, munmap(hole, self->page));
	EXPECT_ERROR(ENXIO, watch2(self->fd, hole, self->page, 2, flag));
	EXPECT_ERROR(ENXIO, watch2(self->fd, self->memory, PAGES * self->page, 2, flag));
	EXPECT_ERROR(ENXIO, watch2(self->fd, hole - 1, 2, 2, flag));

	/* Beside the hole, and where it was not asked for. */
	EXPECT_EQ(0, watch2(self->fd, self->memory, 2 * self->page, 2, flag));
	EXPECT_EQ(0, watch2(self->fd, hole, self->page, 3, 0));
	EXPECT_EQ(0, watch(self->fd, hole, self->page, 4));
	EXPECT_EQ(4, fdinfo_value(self->fd, "ummunotify-ranges"));
}

TEST_F(ummunotify, a_forked_child_is_refused_and_the_owner_loses_nothing)
{
	struct ummunotify_event events[4];
	int status;
	pid_t pid;

	ASSERT_EQ(0, watch(self->fd, self->memory, self->page, COOKIE));
	ASSERT_EQ(0, madvise(self->memory, self->page, MADV_DONTNEED));
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		EXPECT_ERROR(EPERM, read_events(self->fd, events, 4));
		EXPECT_ERROR(EPERM, watch(self->fd, self->memory, self->page, COOKIE + 1));
		EXPECT_ERROR(EPERM, watch2(self->fd, self->memory, self->page, COOKIE + 1, 0));
		EXPECT_ERROR(EPERM, unwatch(self->fd, COOKIE));
		EXPECT_ERROR(EPERM, (intptr_t)mmap(NULL, self->page, PROT_READ, MAP_SHARED,
						   self->fd, 0));
		EXPECT_EQ(POLLERR, poll_now(self->fd));
		/* It keeps what it has inherited, and its own memory is not watched. */
		EXPECT_EQ(1, generation(self->counter));
		self->memory[0] = 2;
		EXPECT_EQ(0, madvise(self->memory, self->page, MADV_DONTNEED));
		EXPECT_EQ(1, generation(self->counter));
		_exit(_metadata->exit_code);
	}
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	ASSERT_TRUE(WIFEXITED(status));
	EXPECT_EQ(0, WEXITSTATUS(status));

	ASSERT_EQ(2, read_events(self->fd, events, 4));
	EXPECT_INVALIDATED(&events[0], COOKIE, self->memory, self->memory + self->page);
	EXPECT_LAST(&events[1], 1);
	EXPECT_EQ(0, unwatch(self->fd, COOKIE));
}

TEST_F(ummunotify, fdinfo_describes_the_file)
{
	long user = fdinfo_value(self->fd, "ummunotify-user-ranges");

	EXPECT_LT(0, user);
	ASSERT_EQ(0, watch(self->fd, self->memory, self->page, 1));
	ASSERT_EQ(0, watch(self->fd, self->memory, self->page, 2));
	EXPECT_EQ(2, fdinfo_value(self->fd, "ummunotify-ranges"));
	EXPECT_EQ(user + 2, fdinfo_value(self->fd, "ummunotify-user-ranges"));
	EXPECT_EQ(0, fdinfo_value(self->fd, "ummunotify-counter"));
	EXPECT_EQ(0, fdinfo_value(self->fd, "ummunotify-readable"));
	EXPECT_EQ(0, fdinfo_value(self->fd, "ummunotify-in-flight"));
	ASSERT_EQ(0, madvise(self->memory, self->page, MADV_DONTNEED));
	EXPECT_EQ(1, fdinfo_value(self->fd, "ummunotify-counter"));
	EXPECT_EQ(1, fdinfo_value(self->fd, "ummunotify-readable"));
}

TEST_F(ummunotify, the_ranges_of_a_user_are_bounded)
{
	char bound[32];
	ssize_t got;
	int fd;

	fd = open(BOUND, O_RDWR);
	if (fd < 0)
		SKIP(return, BOUND ": %m");
	got = read(fd, bound, sizeof(bound) - 1);
	close(fd);
	ASSERT_LT(0, got);
	bound[got] = '\0';
	/* The teardown writes it back. */
	memcpy(self->bound, bound, sizeof(bound));

	snprintf(bound, sizeof(bound), "%ld", fdinfo_value(self->fd, "ummunotify-user-ranges") + 2);
	ASSERT_EQ(0, write_bound(bound));
	EXPECT_EQ(0, watch(self->fd, self->memory, self->page, 1));
	EXPECT_EQ(0, watch2(self->fd, self->memory, self->page, 2, 0));
	EXPECT_ERROR(ENOSPC, watch(self->fd, self->memory, self->page, 3));
	EXPECT_ERROR(ENOSPC, watch2(self->fd, self->memory, self->page, 3, 0));
	EXPECT_ERROR(EMFILE, open(DEVICE, O_RDONLY));
	EXPECT_EQ(0, unwatch(self->fd, 1));
	EXPECT_EQ(0, watch(self->fd, self->memory, self->page, 3));
	EXPECT_ERROR(EINVAL, unwatch(self->fd, 1));
}

TEST_HARNESS_MAIN

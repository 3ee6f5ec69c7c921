// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * Uses every part of the ABI once, from a 32-bit program. If a result is wrong,
 * the program prints the failed condition to stderr and exits with 1.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <linux/ummunotify.h>

#define PAGE 4096

#define CHECK(condition)                                                         \
	do {                                                                     \
		if (!(condition)) {                                              \
			fprintf(stderr, "line %d: %s (errno %d)\n", __LINE__,    \
				#condition, errno);                              \
			exit(1);                                                 \
		}                                                                \
	} while (0)

int main(void)
{
	const uint64_t cookie = 0xFEDCBA9876543210;
	struct ummunotify_event events[3];
	struct ummunotify_register_ioctl region;
	struct ummunotify_register2 region2;
	volatile uint64_t *counter;
	uint64_t last = 1;
	uint32_t mask = 0xFFFFFFFF;
	char *memory;
	int fd;

	_Static_assert(sizeof(void *) == 4, "build with -m32");

	fd = open("/dev/ummunotify", O_RDONLY | O_NONBLOCK);
	CHECK(fd >= 0);
	CHECK(!ioctl(fd, UMMUNOTIFY_EXCHANGE_FEATURES, &mask) && !mask);

	counter = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, fd, 0);
	CHECK(counter != MAP_FAILED && *counter == 0);
	memory = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(memory != MAP_FAILED);
	memset(memory, 1, 4 * PAGE);

	memset(&region, 0, sizeof(region));
	region.start = (uintptr_t)memory;
	region.end = (uintptr_t)memory + 4 * PAGE;
	region.user_cookie = cookie;
	CHECK(!ioctl(fd, UMMUNOTIFY_REGISTER_REGION, &region));

	/* The end is higher than any address that a 32-bit program can map. */
	region.user_cookie = 1;
	region.end = (uint64_t)1 << 32 | PAGE;
	CHECK(ioctl(fd, UMMUNOTIFY_REGISTER_REGION, &region) == -1 && errno == EINVAL);

	memset(&region2, 0, sizeof(region2));
	region2.size = sizeof(region2);
	region2.flags = UMMUNOTIFY_REGISTER_MUST_BE_BACKED;
	region2.start = (uintptr_t)memory;
	region2.end = (uintptr_t)memory + PAGE;
	region2.user_cookie = 2;
	CHECK(!ioctl(fd, UMMUNOTIFY_REGISTER_REGION2, &region2));
	CHECK(!mprotect(memory, PAGE, PROT_NONE));
	region2.user_cookie = 3;
	CHECK(ioctl(fd, UMMUNOTIFY_REGISTER_REGION2, &region2) == -1 && errno == ENXIO);
	last = 2;
	CHECK(!ioctl(fd, UMMUNOTIFY_UNREGISTER_REGION, &last));
	last = 1;

	CHECK(read(fd, events, sizeof(events)) == -1 && errno == EAGAIN);
	CHECK(!munmap(memory + PAGE, PAGE));
	CHECK(*counter == 1);
	struct pollfd polled = { .fd = fd, .events = POLLIN };
	CHECK(poll(&polled, 1, 0) == 1 && polled.revents == POLLIN);

	CHECK(read(fd, events, sizeof(events)) == 2 * sizeof(events[0]));
	CHECK(events[0].type == UMMUNOTIFY_EVENT_TYPE_INVAL);
	CHECK(events[0].flags == UMMUNOTIFY_EVENT_FLAG_HINT);
	CHECK(events[0].hint_start == (uintptr_t)memory + PAGE);
	CHECK(events[0].hint_end == (uintptr_t)memory + 2 * PAGE);
	CHECK(events[0].user_cookie_counter == cookie);
	CHECK(events[1].type == UMMUNOTIFY_EVENT_TYPE_LAST);
	CHECK(events[1].user_cookie_counter == 1);

	CHECK(ioctl(fd, UMMUNOTIFY_UNREGISTER_REGION, &last) == -1 && errno == EINVAL);
	CHECK(!ioctl(fd, UMMUNOTIFY_UNREGISTER_REGION, &cookie));
	CHECK(!munmap(memory, 4 * PAGE));
	CHECK(*counter == 1);
	CHECK(!close(fd));
	return 0;
}

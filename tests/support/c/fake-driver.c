/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * Replaces the ummunotify driver for the libraries of this process, so that hits of the C library
 * can be tested and measured on a machine without the driver. The functions below take the place of
 * libc's. They serve a device that accepts every watch and reports nothing. All other calls go to
 * the kernel.
 */
#define _GNU_SOURCE
#include <linux/ioctl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

/* The open device whose counter is not mapped yet, or -1. */
static _Atomic int unmapped = -1;

/* Makes the linker take this file. Returns 1. */
int regcache_bench_fake_driver(void)
{
	return 1;
}

int open64(const char *path, int flags, ...)
{
	va_list more;
	unsigned int mode;

	va_start(more, flags);
	mode = va_arg(more, unsigned int);
	va_end(more);
	if (strcmp(path, "/dev/ummunotify") == 0) {
		/* The library polls the device, and reads EAGAIN from it. */
		int device = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);

		unmapped = device;
		return device;
	}
	return (int)syscall(SYS_openat, -100 /* AT_FDCWD */, path, flags, mode);
}

int ioctl(int fd, unsigned long request, ...)
{
	va_list more;
	void *argument;

	va_start(more, request);
	argument = va_arg(more, void *);
	va_end(more);
	if (_IOC_TYPE(request) == 'U')
		return 0;
	return (int)syscall(SYS_ioctl, fd, request, argument);
}

void *mmap64(void *addr, size_t length, int prot, int flags, int fd, off_t offset)
{
	int device = fd;

	if (fd >= 0 && atomic_compare_exchange_strong(&unmapped, &device, -1)) {
		/* The page of zeros is the counter. */
		flags = MAP_PRIVATE | MAP_ANONYMOUS;
		fd = -1;
	}
	return (void *)(intptr_t)syscall(SYS_mmap, addr, length, prot, flags, fd, offset);
}

void *mmap(void *addr, size_t length, int prot, int flags, int fd, off_t offset)
{
	return mmap64(addr, length, prot, flags, fd, offset);
}

/*
 * Memory that changes, for the programs of the stacks. A program is called as PROGRAM CHANGE
 * MESSAGES, and ends with report().
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

/* The length of a message. */
#define LENGTH (64 * 1024)

enum change { MUNMAP, RAW, THREADS, TRUNCATE, WINDOW };

static inline enum change change_of(const char *name)
{
	static const char *const names[] = { "munmap", "raw", "threads", "truncate", "window" };

	for (int i = 0; i < 5; i++)
		if (!strcmp(name, names[i]))
			return (enum change)i;
	errx(2, "unknown change %s", name);
}

/*
 * Prints the line that the runner reads. The number that was kept is negative if the stack has no
 * cache.
 */
static inline void report(long wrong, long messages, long kept)
{
	printf("wrong=%ld/%ld kept=%ld\n", wrong, messages, kept < 0 ? 0 : kept);
	fflush(stdout);
}

/*
 * The byte of message number i. Two messages in a row differ, and no message has the byte of an
 * empty page.
 */
static inline unsigned char byte_of(long i)
{
	return (unsigned char)(1 + i % 251);
}

static inline bool has_byte(const unsigned char *at, size_t len, unsigned char byte)
{
	return at[0] == byte && !memcmp(at, at + 1, len - 1);
}

/*
 * Maps memory at the address, or anywhere if the address is null. Returns null if the address is in
 * use.
 */
static inline unsigned char *map(void *at, size_t len)
{
	int flags = MAP_PRIVATE | MAP_ANONYMOUS | (at ? MAP_FIXED_NOREPLACE : 0);
	void *got = mmap(at, len, PROT_READ | PROT_WRITE, flags, -1, 0);

	if (got == MAP_FAILED) {
		if (at && errno == EEXIST)
			return NULL;
		err(1, "mmap");
	}
	return got;
}

/*
 * Maps memory for received messages. It has no huge pages: the kernel announces a change of a whole
 * huge page if a part of it is unmapped, so the buffer and the sink must not share one.
 */
static inline unsigned char *map_sink(size_t len)
{
	unsigned char *at = map(NULL, len);

	/* A kernel without huge pages refuses this. */
	madvise(at, len, MADV_NOHUGEPAGE);
	return at;
}

/* Unmaps memory without libc's function, so that nothing that replaces this function sees it. */
static inline void unmap_raw(void *at, size_t len)
{
	if (syscall(SYS_munmap, at, len))
		err(1, "munmap");
}

static inline void unmap(void *at, size_t len)
{
	if (munmap(at, len))
		err(1, "munmap");
}

/*
 * The buffer of a message, which has the same address in every message. It must live until the
 * program ends.
 */
struct buffer {
	enum change change;
	unsigned char *at;
	size_t len;
	/* TRUNCATE: the file that is mapped, and the process that truncates it. */
	int file;
	int to_child, from_child;
	/* THREADS: the thread that unmaps, and the address that it is to unmap. */
	_Atomic(unsigned char *) todo;
};

static inline void *unmapper(void *argument)
{
	struct buffer *buffer = argument;

	for (;;) {
		unsigned char *at = atomic_load(&buffer->todo);

		if (at) {
			unmap_raw(at, buffer->len);
			atomic_store(&buffer->todo, NULL);
		}
	}
	return NULL;
}

/* Truncates the file and extends it again, whenever a byte arrives. */
static inline void truncate_for(int file, size_t len, int from, int to)
{
	char byte;

	while (read(from, &byte, 1) == 1)
		if (ftruncate(file, 0) || ftruncate(file, (off_t)len) || write(to, &byte, 1) != 1)
			_exit(1);
	_exit(0);
}

/*
 * Prepares a buffer. The caller must not have opened the stack yet, because TRUNCATE forks a child.
 * The truncation comes from another process: within one process, mmap_lock can hide a race.
 */
static inline void buffer_open(struct buffer *buffer, enum change change, size_t len)
{
	*buffer = (struct buffer){ .change = change, .len = len, .file = -1 };
	if (change == TRUNCATE) {
		int to[2], from[2];

		buffer->file = memfd_create("buffer", MFD_CLOEXEC);
		if (buffer->file < 0 || ftruncate(buffer->file, (off_t)len) || pipe(to) || pipe(from))
			err(1, "a file to truncate");
		switch (fork()) {
		case -1:
			err(1, "fork");
		case 0:
			close(to[1]);
			truncate_for(buffer->file, len, to[0], from[1]);
		}
		close(to[0]);
		close(from[1]);
		buffer->to_child = to[1];
		buffer->from_child = from[0];
		buffer->at = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, buffer->file, 0);
		if (buffer->at == MAP_FAILED)
			err(1, "mmap");
		return;
	}
	buffer->at = map(NULL, len);
	if (change == THREADS) {
		pthread_t thread;

		errno = pthread_create(&thread, NULL, unmapper, buffer);
		if (errno)
			err(1, "pthread_create");
	}
}

/* Replaces the pages of the buffer, at the same address. */
static inline void buffer_change(struct buffer *buffer)
{
	unsigned char *at = buffer->at;
	char byte = 0;

	switch (buffer->change) {
	case MUNMAP:
		unmap(at, buffer->len);
		break;
	case RAW:
	case WINDOW:
		unmap_raw(at, buffer->len);
		break;
	case THREADS:
		/*
		 * This thread has the address as soon as the kernel gives it away. That is before
		 * munmap() returns in the other thread, for which this thread does not wait.
		 */
		while (atomic_load(&buffer->todo))
			;
		atomic_store(&buffer->todo, at);
		while (!map(at, buffer->len))
			;
		return;
	case TRUNCATE:
		if (write(buffer->to_child, &byte, 1) != 1 || read(buffer->from_child, &byte, 1) != 1)
			errx(1, "the process that truncates has died");
		return;
	}
	if (!map(at, buffer->len))
		errx(1, "the address of the buffer is in use");
}

/* SPDX-License-Identifier: GPL-2.0-only WITH Linux-syscall-note */
/*
 * ummunotify - tell user space when the mapping of its memory changes
 *
 * The interface of /dev/ummunotify: the calls that were proposed in 2009-2010,
 * and one more call. Every structure is naturally aligned and the same for
 * 32-bit and 64-bit callers. Documentation/ummunotify.rst describes each call.
 */
#ifndef _UAPI_LINUX_UMMUNOTIFY_H
#define _UAPI_LINUX_UMMUNOTIFY_H

#include <linux/ioctl.h>
#include <linux/types.h>

/**
 * struct ummunotify_register_ioctl - a range to watch
 * @start: address of the first byte
 * @end: address one past the last byte; if it equals @start, the one byte at
 *	@start is watched
 * @user_cookie: name of the range in events and for unregistering; no two
 *	ranges of one file may have the same cookie
 * @flags: ignored, whatever it holds
 * @reserved: ignored, whatever it holds
 */
struct ummunotify_register_ioctl {
	__u64 start;
	__u64 end;
	__u64 user_cookie;
	__u32 flags;
	__u32 reserved;
};

/**
 * struct ummunotify_register2 - a range to watch, with options
 * @size: size of this structure that the caller was compiled with
 * @flags: UMMUNOTIFY_REGISTER_*; every other bit is -EINVAL
 * @start: as in struct ummunotify_register_ioctl
 * @end: as in struct ummunotify_register_ioctl
 * @user_cookie: as in struct ummunotify_register_ioctl
 *
 * Later versions of the structure may be longer. Bytes that the driver does not
 * know must be 0, otherwise the call fails with -E2BIG. Bytes beyond @size
 * count as 0.
 */
struct ummunotify_register2 {
	__u32 size;
	__u32 flags;
	__u64 start;
	__u64 end;
	__u64 user_cookie;
};

/* ummunotify_register2.size of the first version; a smaller size is -EINVAL */
#define UMMUNOTIFY_REGISTER2_SIZE_VER0	32

/* ummunotify_register2.flags */
enum {
	/*
	 * Changes of protection invalidate the range as well: mprotect(), scans
	 * for NUMA balancing, fork() in the parent, and write-protection of a
	 * file's pages before they are written back. Such changes keep the
	 * pages.
	 */
	UMMUNOTIFY_REGISTER_PROTECTION = 1 << 0,
	/*
	 * Refuse the range with -ENXIO, unless each byte is backed by memory
	 * whose changes the kernel announces. The mapping of such memory is
	 * accessible, and neither VM_IO nor VM_PFNMAP.
	 */
	UMMUNOTIFY_REGISTER_MUST_BE_BACKED = 1 << 1
};

#define UMMUNOTIFY_MAGIC		'U'

/*
 * Request features. On input the mask has the requested features, and on output
 * those that the driver grants. No feature is defined, so the driver always
 * grants 0. The call must be the first use of a file.
 */
#define UMMUNOTIFY_EXCHANGE_FEATURES	_IOWR(UMMUNOTIFY_MAGIC, 1, __u32)

/* Watch a range. */
#define UMMUNOTIFY_REGISTER_REGION	_IOW(UMMUNOTIFY_MAGIC, 2, \
					     struct ummunotify_register_ioctl)

/*
 * Stop watching the range with this cookie. If an event for the range is
 * waiting, it is dropped.
 */
#define UMMUNOTIFY_UNREGISTER_REGION	_IOW(UMMUNOTIFY_MAGIC, 3, __u64)

/*
 * Watch a range, with a struct ummunotify_register2. The size of the structure
 * is not part of the number, so the number stays the same when the structure
 * grows.
 */
#define UMMUNOTIFY_REGISTER_REGION2	_IO(UMMUNOTIFY_MAGIC, 4)

/* ummunotify_event.type */
enum {
	/* A watched range was invalidated. */
	UMMUNOTIFY_EVENT_TYPE_INVAL = 0,
	/* No range is invalid: all events up to the counter were read. */
	UMMUNOTIFY_EVENT_TYPE_LAST = 1
};

/* ummunotify_event.flags */
enum {
	/*
	 * The range was invalidated exactly once since it was last reported,
	 * between hint_start and hint_end. Without the flag, the range was
	 * invalidated once or more often, anywhere in it.
	 */
	UMMUNOTIFY_EVENT_FLAG_HINT = 1 << 0
};

/**
 * struct ummunotify_event - an element of the array that read() returns
 * @type: UMMUNOTIFY_EVENT_TYPE_INVAL or _LAST
 * @flags: UMMUNOTIFY_EVENT_FLAG_HINT or 0
 * @hint_start: INVAL: first byte that may have changed
 * @hint_end: INVAL: one past the last byte that may have changed
 * @user_cookie_counter: INVAL: the cookie of the range; LAST: the generation
 *	counter at the moment at which no range was invalid
 */
struct ummunotify_event {
	__u32 type;
	__u32 flags;
	__u64 hint_start;
	__u64 hint_end;
	__u64 user_cookie_counter;
};

/*
 * mmap() of one page at offset 0 with PROT_READ maps the generation counter, a
 * __u64 at byte 0. The counter rises by one for each invalidation that meets a
 * watched range, before the mapping changes. If read() reports such a range
 * before the invalidation ends, the counter rises again at the end.
 */

#endif /* _UAPI_LINUX_UMMUNOTIFY_H */

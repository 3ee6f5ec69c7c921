/* SPDX-License-Identifier: GPL-2.0-only WITH Linux-syscall-note */
/*
 * ummunotify - tell user space when the mapping of its memory changes
 *
 * The interface of /dev/ummunotify, as it was proposed in 2009-2010, and one call
 * more. Every structure is naturally aligned and the same for 32-bit and 64-bit
 * callers. Documentation/ummunotify.rst says what each call promises.
 */
#ifndef _UAPI_LINUX_UMMUNOTIFY_H
#define _UAPI_LINUX_UMMUNOTIFY_H

#include <linux/ioctl.h>
#include <linux/types.h>

/**
 * struct ummunotify_register_ioctl - a range to watch
 * @start: address of the first byte
 * @end: address one past the last byte; if it is @start, the one byte there is
 *	watched
 * @user_cookie: names the range in events and for unregistering; no two
 *	ranges of one file may have the same one
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
 * struct ummunotify_register2 - a range to watch, and how
 * @size: size of this structure, as the caller knows it
 * @flags: UMMUNOTIFY_REGISTER_*; every other bit is -EINVAL
 * @start: as in struct ummunotify_register_ioctl
 * @end: likewise
 * @user_cookie: likewise
 *
 * Later versions may be longer. Bytes that the driver does not know must be 0,
 * or it says -E2BIG. Bytes that the caller does not know are taken to be 0.
 */
struct ummunotify_register2 {
	__u32 size;
	__u32 flags;
	__u64 start;
	__u64 end;
	__u64 user_cookie;
};

/* ummunotify_register2.size of the first version; smaller is -EINVAL */
#define UMMUNOTIFY_REGISTER2_SIZE_VER0	32

/* ummunotify_register2.flags */
enum {
	/*
	 * Changes of protection invalidate the range as well: mprotect(), scans
	 * for NUMA balancing, fork() in the parent, and write-protection of a
	 * file's pages before they are written back. The pages stay.
	 */
	UMMUNOTIFY_REGISTER_PROTECTION = 1 << 0,
	/*
	 * Refuse the range with -ENXIO, unless memory is behind each byte whose
	 * changes are announced: mapped, accessible, and neither VM_IO nor
	 * VM_PFNMAP.
	 */
	UMMUNOTIFY_REGISTER_MUST_BE_BACKED = 1 << 1
};

#define UMMUNOTIFY_MAGIC		'U'

/*
 * Ask which features the driver has: in, a mask of those wanted; out, those
 * granted. None is defined, so 0 is granted whatever is asked. Only as the
 * first use of a file.
 */
#define UMMUNOTIFY_EXCHANGE_FEATURES	_IOWR(UMMUNOTIFY_MAGIC, 1, __u32)

/* Watch a range. */
#define UMMUNOTIFY_REGISTER_REGION	_IOW(UMMUNOTIFY_MAGIC, 2, \
					     struct ummunotify_register_ioctl)

/* Stop watching the range with this cookie; its queued event is dropped. */
#define UMMUNOTIFY_UNREGISTER_REGION	_IOW(UMMUNOTIFY_MAGIC, 3, __u64)

/*
 * Watch a range; takes a struct ummunotify_register2. Its size is not part of
 * the number, so that the number stays when the structure grows.
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
	 * and hint_start and hint_end are where. Without the flag it was
	 * invalidated once or more often, anywhere.
	 */
	UMMUNOTIFY_EVENT_FLAG_HINT = 1 << 0
};

/**
 * struct ummunotify_event - what read() returns, an array of
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
 * mmap() of one page at offset 0, PROT_READ, gives the generation counter: a
 * __u64 at byte 0, which rises by one for each invalidation that meets a
 * watched range, before the mapping changes; and again when it has changed, if
 * the range was read from here in between.
 */

#endif /* _UAPI_LINUX_UMMUNOTIFY_H */

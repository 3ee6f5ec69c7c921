/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * regcache: a memory-registration cache for RDMA that is never stale.
 * The reference is regcache(3).
 *
 * A function that returns an int returns a negative errno on failure, and 0 or
 * a positive value on success. After a failure, regcache_error() returns the
 * message. Any function may be called from any thread at any time, but not from
 * a signal handler.
 *
 * Caches and guards are handles, which every function checks. -EBADF means that
 * the handle was put or destroyed, was never returned, or is of the other kind.
 * -EINVAL means that it is NULL. In a child by fork(2), the parent's caches
 * fail with -ESTALE: a child creates its own. A call that runs into a bug of
 * the library fails with -ENOTRECOVERABLE.
 */

#ifndef REGCACHE_H
#define REGCACHE_H

/* Generated from verbs/capi/src. Do not edit. */

#include <stddef.h>
#include <stdint.h>

/**
 * The major version of this header. regcache_version() returns the version of
 * the library, as "MAJOR.MINOR.PATCH".
 */
#define REGCACHE_VERSION_MAJOR 0

/**
 * The minor version of this header.
 */
#define REGCACHE_VERSION_MINOR 1

/**
 * The patch level of this header.
 */
#define REGCACHE_VERSION_PATCH 0

/**
 * Access flag: work requests of this process may write, as for the destination
 * of a receive or of an RDMA read. Work requests of this process may always
 * read. The access flags have the values of `enum ibv_access_flags`.
 */
#define REGCACHE_LOCAL_WRITE 1

/**
 * Access flag: a peer may write. Implies REGCACHE_LOCAL_WRITE.
 */
#define REGCACHE_REMOTE_WRITE 2

/**
 * Access flag: a peer may read.
 */
#define REGCACHE_REMOTE_READ 4

/**
 * Access flag: a peer may do atomic operations. Implies REGCACHE_LOCAL_WRITE.
 */
#define REGCACHE_REMOTE_ATOMIC 8

/**
 * Access flag: the memory consists of huge pages, and the device may rely on
 * it.
 */
#define REGCACHE_HUGETLB 128

/**
 * Access flag: the device may write to memory in any order.
 */
#define REGCACHE_RELAXED_ORDERING (1 << 20)

/**
 * Monitor: the best one that is available. That is ummunotify; or else
 * userfaultfd, on Linux 6.7 and later; or else none.
 */
#define REGCACHE_MONITOR_AUTO 0

/**
 * Monitor: the ummunotify driver. Creating the cache fails if it is not
 * available.
 */
#define REGCACHE_MONITOR_UMMUNOTIFY 1

/**
 * Monitor: userfaultfd, with a check at each lookup. Creating the cache fails
 * if it is not available.
 */
#define REGCACHE_MONITOR_USERFAULTFD 2

/**
 * Monitor: none. Each lookup registers, and nothing is cached.
 */
#define REGCACHE_MONITOR_NONE 3

/**
 * Flag of a cache: deregister memory that was registered for remote access when
 * its last guard is put. A key that a peer was given is invalid from then on.
 * Without this flag such registrations are retained like others.
 */
#define REGCACHE_REVOKE_REMOTE_KEYS 1

/**
 * Flag of a cache: do not start a reaper, the thread that deregisters memory
 * after it was unmapped. The application polls regcache_fd() and calls
 * regcache_reap().
 */
#define REGCACHE_NO_REAPER 2

/**
 * A cache of registrations.
 */
struct regcache;

/**
 * A reference to a registration, from regcache_get() to regcache_put().
 */
struct regcache_guard;

/**
 * A protection domain of libibverbs.
 */
struct ibv_pd;

/**
 * Attributes of a cache. A field that is 0 selects the default, so set only
 * those that differ:
 * `struct regcache_attr attr = { .size = sizeof attr, .max_entries = 1000 };`
 */
struct regcache_attr {
        /**
         * sizeof(struct regcache_attr).
         */
        size_t size;
        /**
         * One of REGCACHE_MONITOR_*.
         */
        unsigned int monitor;
        /**
         * REGCACHE_REVOKE_REMOTE_KEYS, REGCACHE_NO_REAPER, both or none.
         */
        unsigned int flags;
        /**
         * Another cache, whose monitor this cache shares; `monitor` is ignored
         * then. Memory that both have registered is watched once. Two caches on
         * userfaultfd can watch the same memory only if they share.
         */
        struct regcache *monitor_of;
        /**
         * Most registrations that the cache retains. Default 65536, at most
         * 16777216.
         */
        uint64_t max_entries;
        /**
         * Most bytes that the cache pins. Default RLIMIT_MEMLOCK, and at most
         * half of the machine's memory.
         */
        uint64_t max_bytes;
        /**
         * Size in bytes, a power of two, of the aligned blocks that are
         * registered whole. Default 1. A larger block also pins the memory
         * around the caller's range, and opens it to peers that have the key.
         */
        uint64_t granularity;
        /**
         * Most bytes of one registration into which a miss merges neighbouring
         * ones. Default 0, which disables merging.
         */
        uint64_t merge_up_to;
};

/**
 * A registration that a `reg_mr` callback has made.
 */
struct regcache_registration {
        /**
         * Any pointer. The cache passes it to `dereg_mr`.
         */
        void *registration;
        /**
         * Local key, for struct regcache_mr.
         */
        uint32_t lkey;
        /**
         * Remote key, for struct regcache_mr.
         */
        uint32_t rkey;
};

/**
 * A device that the application implements by two callbacks.
 *
 * The cache calls them from any thread that calls it, and from the reaper, in
 * which all signals are blocked. Several calls may run at once. A callback
 * returns 0 or an errno of either sign. In a callback, functions that take a
 * cache fail with -EDEADLK. A callback must not throw or longjmp.
 *
 * `reg_mr` must register the pages that are mapped in the range while it runs.
 * The device must keep those pages until `dereg_mr`. A device that follows the
 * page tables needs no cache.
 */
struct regcache_device {
        /**
         * sizeof(struct regcache_device).
         */
        size_t size;
        /**
         * First argument of both callbacks.
         */
        void *user;
        /**
         * Registers a range. Access flags other than the four from
         * REGCACHE_LOCAL_WRITE to REGCACHE_REMOTE_ATOMIC have the meaning that
         * the device gives them. A registration serves only lookups with the
         * same such flags.
         */
        int (*reg_mr)(void *user,
                      void *addr,
                      size_t length,
                      unsigned int access,
                      struct regcache_registration *registration);
        /**
         * Deregisters. The memory may have been unmapped. If this fails, the
         * registration counts as leaked.
         */
        int (*dereg_mr)(void *user, void *registration);
};

/**
 * A registration that regcache_get() found.
 */
struct regcache_mr {
        /**
         * The guard, to be given to regcache_put().
         */
        struct regcache_guard *guard;
        /**
         * Key for the work requests of this process.
         */
        uint32_t lkey;
        /**
         * Key for the requests of a peer. Valid only with remote access.
         */
        uint32_t rkey;
        /**
         * The `struct ibv_mr *`, or the pointer that `reg_mr` returned. Do not
         * deregister it.
         */
        void *registration;
        /**
         * Start of the registration, at or before the address that was looked
         * up.
         */
        void *addr;
        /**
         * Length of the registration in bytes.
         */
        size_t length;
};

/**
 * The statistics of a cache: counts since it was created, and its contents now.
 */
struct regcache_stats {
        /**
         * Lookups that found a live entry.
         */
        uint64_t hits;
        /**
         * Lookups that registered memory.
         */
        uint64_t misses;
        /**
         * Misses whose registration was not retained: it ends with its guard.
         */
        uint64_t uncached;
        /**
         * Entries unlinked because memory under them changed.
         */
        uint64_t invalidations;
        /**
         * Drains that invalidated nothing: the entries reported were unlinked before.
         */
        uint64_t spurious;
        /**
         * Idle entries unlinked to make room.
         */
        uint64_t evictions;
        /**
         * Entries unlinked because a wider registration replaced them.
         */
        uint64_t merges;
        /**
         * Registrations made again because their memory changed while they were made.
         */
        uint64_t retries;
        /**
         * Registrations that the device refused to deregister.
         */
        uint64_t leaked;
        /**
         * Registrations in the cache now: linked, being made, or not yet deregistered.
         */
        uint64_t entries;
        /**
         * Bytes that the registrations in the cache pin now, in whole pages.
         */
        uint64_t bytes;
        /**
         * Registrations that were unlinked and that guards still hold.
         */
        uint64_t unreleased;
        /**
         * Bytes pinned by registrations that were unlinked and that guards still hold.
         */
        uint64_t unreleased_bytes;
};

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * Creates a cache for a protection domain.
 *
 * @param pd     The domain. It must stay allocated until the cache is destroyed.
 * @param attr   The attributes; NULL selects all defaults.
 * @param cache  Receives the cache.
 * @return       0, or a negative errno:
 *               -EINVAL: `pd` or `cache` is NULL, or an attribute has a bad value.
 *               -E2BIG: an attribute is set that this library does not know.
 *               -EBADF: `monitor_of` is not a cache, or was destroyed.
 *               -ESTALE: `monitor_of` belongs to the parent process.
 *               -ENODEV, -ENOENT, -EACCES, -EPERM: the monitor is not available.
 *               -ENOSPC: the process has 1024 caches.
 *               -EDEADLK: called with `monitor_of` from within a callback.
 *               Others, such as -ENOMEM and -EMFILE: the system's.
 */
int regcache_create(struct ibv_pd *pd,
                    const struct regcache_attr *attr,
                    struct regcache **cache);

/**
 * Creates a cache for a device that the application implements.
 *
 * @param device  The callbacks, which are copied. `user` must stay valid until the
 *                cache is destroyed.
 * @param attr    The attributes; NULL selects all defaults.
 * @param cache   Receives the cache.
 * @return        0, or a negative errno: those of regcache_create(), and
 *                -EINVAL: `device` or one of its callbacks is NULL.
 */
int regcache_create_for(const struct regcache_device *device,
                        const struct regcache_attr *attr,
                        struct regcache **cache);

/**
 * Finds a registration that covers a range and allows an access, or makes one.
 *
 * The registration is never stale: it covers the pages that are mapped in the
 * range now. It stays valid for them until the guard is put, even if they are
 * unmapped.
 *
 * @param cache   The cache.
 * @param addr    Start of the range.
 * @param length  Length of the range in bytes, not 0.
 * @param access  REGCACHE_LOCAL_WRITE and so on, or 0 for local reads.
 * @param mr      Receives the registration, or zeros on an error.
 * @return        0, or a negative errno:
 *                -EINVAL: a pointer is NULL, `length` is 0, the range runs past the
 *                end of the address space, or the device does not know a flag.
 *                -EBADF: `cache` is not a cache, or was destroyed.
 *                -ESTALE: `cache` belongs to the parent process.
 *                -EDEADLK: called from within a callback.
 *                -EFAULT: part of the range is not mapped, or not writable.
 *                -ENOMEM: RLIMIT_MEMLOCK is reached, or the device is exhausted.
 *                -ENOSPC: the process has 16777216 guards out.
 *                Others: the device's.
 */
int regcache_get(struct regcache *cache,
                 const void *addr,
                 size_t length,
                 unsigned int access,
                 struct regcache_mr *mr);

/**
 * Gives back a guard. Call it once for each guard, from any thread, after the
 * completions of all work with the registration's keys have been polled: the
 * keys stay valid on the device. This teardown is wrong, since a peer's send
 * can then overwrite memory that has another owner:
 *
 *     regcache_put(guard);    // A receive with its lkey is still posted.
 *     free(buffer);
 *     ibv_destroy_qp(qp);     // This has to come first: it ends all work.
 *
 * @param guard  The guard.
 * @return       0, or a negative errno:
 *               -EINVAL: `guard` is NULL.
 *               -EBADF: `guard` is not a guard, or was put already.
 */
int regcache_put(struct regcache_guard *guard);

/**
 * Unlinks all registrations that overlap a range, so that later lookups
 * register it again. There is no need to call this before memory is unmapped.
 *
 * A registration that guards hold is deregistered with its last guard. This
 * function waits for that.
 *
 * @param cache       The cache.
 * @param addr        Start of the range.
 * @param length      Length of the range in bytes, not 0.
 * @param timeout_ms  Longest time to wait, in milliseconds; negative is unlimited.
 * @param held        Receives the number of registrations that are still held. May
 *                    be NULL.
 * @return            0, also if some are still held, or a negative errno:
 *                    -EINVAL: `cache` or `addr` is NULL, `length` is 0, or the range
 *                    runs past the end of the address space.
 *                    -EBADF: `cache` is not a cache, or was destroyed.
 *                    -ESTALE: `cache` belongs to the parent process.
 *                    -EDEADLK: called from within a callback.
 *                    Others: the monitor's.
 */
int regcache_invalidate(struct regcache *cache,
                        const void *addr,
                        size_t length,
                        int timeout_ms,
                        size_t *held);

/**
 * Unlinks all registrations, as regcache_invalidate() does those of a range.
 *
 * @param cache       The cache.
 * @param timeout_ms  Longest time to wait, in milliseconds; negative is unlimited.
 * @param held        Receives the number of registrations that are still held. May
 *                    be NULL.
 * @return            0, also if some are still held, or a negative errno:
 *                    -EINVAL: `cache` is NULL.
 *                    -EBADF: `cache` is not a cache, or was destroyed.
 *                    -ESTALE: `cache` belongs to the parent process.
 *                    -EDEADLK: called from within a callback.
 *                    Others: the monitor's.
 */
int regcache_flush(struct regcache *cache,
                   int timeout_ms,
                   size_t *held);

/**
 * Reads the statistics of a cache.
 *
 * @param cache  The cache.
 * @param stats  Receives the statistics. Fields that this library does not know
 *               become 0.
 * @param size   sizeof(struct regcache_stats).
 * @return       0, or a negative errno:
 *               -EINVAL: a pointer is NULL, or `size` is less than 8.
 *               -EBADF: `cache` is not a cache, or was destroyed.
 *               -EDEADLK: called from within a callback.
 */
int regcache_query_stats(struct regcache *cache,
                         struct regcache_stats *stats,
                         size_t size);

/**
 * Returns a file descriptor that polls readable when regcache_reap() has work.
 * It is for an event loop. Do not read from it. It is closed with the cache.
 *
 * @param cache  The cache.
 * @return       The descriptor, or a negative errno:
 *               -EINVAL: `cache` is NULL.
 *               -EBADF: `cache` is not a cache, or was destroyed.
 *               -EDEADLK: called from within a callback.
 *               -EOPNOTSUPP: the monitor has no descriptor.
 */
int regcache_fd(struct regcache *cache);

/**
 * Deregisters memory that was unmapped, without waiting for a lookup to do it.
 * Call it when regcache_fd() polls readable, in a cache with
 * REGCACHE_NO_REAPER.
 *
 * @param cache  The cache.
 * @return       0, or a negative errno:
 *               -EINVAL: `cache` is NULL.
 *               -EBADF: `cache` is not a cache, or was destroyed.
 *               -ESTALE: `cache` belongs to the parent process.
 *               -EDEADLK: called from within a callback.
 *               Others: the monitor's.
 */
int regcache_reap(struct regcache *cache);

/**
 * Destroys a cache and deregisters its memory. Waits for other threads that are
 * in a call with the cache.
 *
 * After success no callback is called any more, and the protection domain may
 * be deallocated. After -EBUSY the cache stays usable; its registrations are
 * unlinked.
 *
 * @param cache  The cache.
 * @return       0, or a negative errno:
 *               -EBUSY: guards are out; regcache_error() says how many.
 *               -EINVAL: `cache` is NULL.
 *               -EBADF: `cache` is not a cache, or was destroyed.
 *               -ESTALE: `cache` belongs to the parent process.
 *               -EDEADLK: called from within a callback.
 *               Others: the monitor's, or membarrier(2)'s.
 */
int regcache_destroy(struct regcache *cache);

/**
 * Returns the name of the monitor that a cache uses.
 *
 * @param cache  The cache.
 * @return       "ummunotify"; "userfaultfd"; "nothing", with which nothing is cached;
 *               or NULL on an error.
 */
const char *regcache_monitor_name(struct regcache *cache);

/**
 * Returns the message of the last call that failed in this thread. It says in
 * English what is wrong, and what to do.
 *
 * @return  The message, never NULL. It is valid until the next call that fails in
 *          this thread.
 */
const char *regcache_error(void);

/**
 * Returns the version of the library.
 *
 * @return  A string such as "0.1.0".
 */
const char *regcache_version(void);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* REGCACHE_H */

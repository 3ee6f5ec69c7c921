/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * regcache: a memory-registration cache for RDMA that is never stale.
 * The reference is regcache(3).
 *
 * A function that returns an int returns a negative errno on failure, and 0 or
 * a positive value on success. After a failure, regcache_error() returns the
 * message. Any function may be called from any thread at any time, but not from
 * a signal handler. No function is a cancellation point.
 *
 * Caches, guards and pools are handles. Every function checks its handle. -EBADF
 * means that the handle was put or destroyed, was never returned, or names the
 * wrong kind of object. -EINVAL means that the handle is NULL. A call that finds a
 * bug in the library fails with -ENOTRECOVERABLE.
 *
 * A child by fork(2) must create its own caches and pools. With a cache or a pool
 * of the parent, each function that lists -ESTALE fails with that error, and has
 * no effect. The child may put its copy of a guard, which has no effect on the
 * parent.
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
 * Access flag: work requests of this process may write to the memory. The
 * destination of a receive or of an RDMA read needs this flag. Work requests
 * of this process may read without any flag. The access flags have the
 * values of `enum ibv_access_flags`.
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
 * Access flag: the memory consists of huge pages. The device may use larger
 * translation entries for such memory.
 */
#define REGCACHE_HUGETLB 128

/**
 * Access flag: the device may write to memory in any order.
 */
#define REGCACHE_RELAXED_ORDERING (1 << 20)

/**
 * Monitor: the best available one. The order is ummunotify, then userfaultfd
 * on Linux 6.7 and later, then none.
 */
#define REGCACHE_MONITOR_AUTO 0

/**
 * Monitor: the ummunotify driver. Creating the cache fails if the driver is
 * not available.
 */
#define REGCACHE_MONITOR_UMMUNOTIFY 1

/**
 * Monitor: userfaultfd, with a check at each lookup. Creating the cache
 * fails if userfaultfd is not available.
 */
#define REGCACHE_MONITOR_USERFAULTFD 2

/**
 * Monitor: none. Each lookup registers, and no registration is cached.
 */
#define REGCACHE_MONITOR_NONE 3

/**
 * Flag of a cache: end a registration for remote access when the last guard
 * of the registration is put. From then on, a peer cannot use the remote key.
 * Without this flag the cache retains such registrations like all others.
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
 * A reference to a registration, from regcache_get() or a similar function to
 * regcache_put().
 */
struct regcache_guard;

/**
 * One limit on the bytes that several caches pin together, from
 * regcache_pool_create() to regcache_pool_destroy().
 */
struct regcache_pool;

/**
 * A protection domain of libibverbs.
 */
struct ibv_pd;

/**
 * Attributes of a cache. A field that is 0 selects the default, so set only
 * the fields that differ from the default: `struct regcache_attr attr = {
 * .size = sizeof attr, .max_entries = 1000 };`
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
         * An OR of REGCACHE_REVOKE_REMOTE_KEYS and REGCACHE_NO_REAPER, or 0.
         */
        unsigned int flags;
        /**
         * Another cache, whose monitor this cache shares, or NULL. If this field
         * is set, `monitor` is ignored. Memory that both caches have registered
         * is watched once. Two caches on userfaultfd can watch the same memory
         * only if they share a monitor.
         */
        struct regcache *monitor_of;
        /**
         * The maximum number of registrations that the cache retains. The
         * default is 65536, and the largest value is 16776960.
         */
        uint64_t max_entries;
        /**
         * The maximum number of bytes that the cache pins. The default is
         * RLIMIT_MEMLOCK, but at most half of the machine's memory and half
         * of the memory that the cgroups of the process allow.
         */
        uint64_t max_bytes;
        /**
         * The block size in bytes, a power of two. The cache registers whole
         * aligned blocks. The default is the page size for local access, and 1
         * for remote access. A block also makes the memory around the caller's
         * range accessible with the key, to peers as well if the access is
         * remote. A block larger than a page also pins that memory.
         */
        uint64_t granularity;
        /**
         * The maximum size in bytes of a merged registration. A miss merges
         * neighbouring registrations up to this size. The default is 0, which
         * disables merging.
         */
        uint64_t merge_up_to;
        /**
         * A pool, which the cache joins, or NULL. The limit of the pool holds for
         * the bytes of all its caches together, in addition to `max_bytes`.
         */
        struct regcache_pool *pool;
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
         * The local key, for struct regcache_mr.
         */
        uint32_t lkey;
        /**
         * The remote key, for struct regcache_mr.
         */
        uint32_t rkey;
};

/**
 * A device that the application implements by two callbacks.
 *
 * The cache calls the callbacks from any thread that calls a function of the
 * library, and from the reaper. The reaper blocks all signals. Several
 * callbacks may run at once. A callback returns 0, an errno, or a negative
 * errno. In a callback, functions that take a cache or a pool fail with
 * -EDEADLK. A callback must not throw or longjmp.
 *
 * `reg_mr` must register the pages that are mapped in the range while the
 * callback runs. The device must use these pages until `dereg_mr`. A device
 * that follows the page tables needs no cache.
 */
struct regcache_device {
        /**
         * sizeof(struct regcache_device).
         */
        size_t size;
        /**
         * The first argument of both callbacks.
         */
        void *user;
        /**
         * Registers a range. The cache knows the four access flags from
         * REGCACHE_LOCAL_WRITE to REGCACHE_REMOTE_ATOMIC. The device defines the
         * meaning of all other flags. A registration serves only lookups whose
         * other flags are the same.
         */
        int (*reg_mr)(void *user,
                      void *addr,
                      size_t length,
                      unsigned int access,
                      struct regcache_registration *registration);
        /**
         * Ends a registration. Its memory may have been unmapped. If the
         * callback fails, the registration counts as leaked.
         */
        int (*dereg_mr)(void *user, void *registration);
};

/**
 * A registration that regcache_get() returned.
 */
struct regcache_mr {
        /**
         * The guard. Pass it to regcache_put().
         */
        struct regcache_guard *guard;
        /**
         * The key for the work requests of this process.
         */
        uint32_t lkey;
        /**
         * The key for the requests of a peer. It is valid only with remote
         * access.
         */
        uint32_t rkey;
        /**
         * The `struct ibv_mr *`, or the pointer that `reg_mr` returned. Do not
         * deregister it.
         */
        void *registration;
        /**
         * The start of the registration, at or before the address that was
         * looked up.
         */
        void *addr;
        /**
         * The length of the registration in bytes.
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
        /**
         * Waits for a registration that another lookup was making.
         */
        uint64_t waits;
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
 *               -EBADF: `monitor_of` is not the handle of a live cache, or `pool` is
 *               not the handle of a live pool.
 *               -ESTALE: `monitor_of` or `pool` belongs to the parent process.
 *               -ENODEV, -ENOENT, -EACCES, -EPERM: the monitor is not available.
 *               -ENOSPC: the process has 1024 caches.
 *               -EDEADLK: called with `monitor_of` or `pool` from within a callback.
 *               Another errno, such as -ENOMEM or -EMFILE, is from the system.
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
 * @return        0, or a negative errno as from regcache_create(). In addition:
 *                -EINVAL: `device` or one of its callbacks is NULL.
 */
int regcache_create_for(const struct regcache_device *device,
                        const struct regcache_attr *attr,
                        struct regcache **cache);

/**
 * Returns a registration that covers a range and allows an access. Makes a
 * registration if none is cached.
 *
 * The registration is never stale: it covers the pages that are mapped in the
 * range now. It stays valid for these pages until the guard is put, even if
 * the program unmaps the range.
 *
 * @param cache   The cache.
 * @param addr    Start of the range.
 * @param length  Length of the range in bytes, not 0.
 * @param access  An OR of access flags such as REGCACHE_LOCAL_WRITE; 0 allows only
 *                local reads.
 * @param mr      Receives the registration, or zeros on an error.
 * @return        0, or a negative errno:
 *                -EINVAL: a pointer is NULL, `length` is 0, the range runs past the
 *                end of the address space, or the device does not know a flag.
 *                -EBADF: `cache` is not a cache, or was destroyed.
 *                -ESTALE: `cache` belongs to the parent process.
 *                -EDEADLK: called from within a callback.
 *                -EFAULT: part of the range is not mapped, or not writable.
 *                -ENOMEM: RLIMIT_MEMLOCK is reached, or the device is exhausted.
 *                -ENOSPC: the process holds 16777216 guards.
 *                Another errno is from the device.
 */
int regcache_get(struct regcache *cache,
                 const void *addr,
                 size_t length,
                 unsigned int access,
                 struct regcache_mr *mr);

/**
 * Returns a registration as regcache_get() does, if the cache has one. Otherwise
 * fails with -ENOENT, and registers nothing. With this function a program can
 * choose between two ways of sending data: without a copy from memory that is
 * registered already, or with a copy to a registered buffer of its own.
 *
 * @param cache   The cache.
 * @param addr    Start of the range.
 * @param length  Length of the range in bytes, not 0.
 * @param access  An OR of access flags; see regcache_get().
 * @param mr      Receives the registration, or zeros on an error.
 * @return        0, or a negative errno:
 *                -ENOENT: the cache has no registration that serves the lookup. No
 *                other error of this function is -ENOENT.
 *                -EINVAL, -EBADF, -ESTALE, -EDEADLK, -ENOSPC: see regcache_get().
 */
int regcache_get_if_cached(struct regcache *cache,
                           const void *addr,
                           size_t length,
                           unsigned int access,
                           struct regcache_mr *mr);

/**
 * Returns a registration as regcache_get() does, but does not retain a new one: a
 * registration that this function makes is deregistered when its guard is put.
 * It evicts another registration only if the device is full. A program can use
 * this function for memory that it will not use again.
 *
 * @param cache   The cache.
 * @param addr    Start of the range.
 * @param length  Length of the range in bytes, not 0.
 * @param access  An OR of access flags; see regcache_get().
 * @param mr      Receives the registration, or zeros on an error.
 * @return        0, or a negative errno as from regcache_get().
 */
int regcache_get_unretained(struct regcache *cache,
                            const void *addr,
                            size_t length,
                            unsigned int access,
                            struct regcache_mr *mr);

/**
 * Returns a guard to the cache. Call this function once for each guard, from
 * any thread. First poll the completions of all work that uses the
 * registration's keys, because the device accepts the keys even after this
 * call. The following teardown is wrong: a peer's send can overwrite memory
 * that has another owner by then.
 *
 *     regcache_put(guard);    // A receive with the guard's lkey is still posted.
 *     free(buffer);
 *     ibv_destroy_qp(qp);     // Call this first, because it ends all work.
 *
 * @param guard  The guard.
 * @return       0, or a negative errno:
 *               -EINVAL: `guard` is NULL.
 *               -EBADF: `guard` was never returned, or was put already.
 */
int regcache_put(struct regcache_guard *guard);

/**
 * Unlinks all registrations that overlap a range, so that later lookups
 * register the memory again. There is no need to call this function before
 * memory is unmapped.
 *
 * A registration that guards hold is deregistered when its last guard is put.
 * This function waits until all unlinked registrations are deregistered.
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
 */
int regcache_invalidate(struct regcache *cache,
                        const void *addr,
                        size_t length,
                        int timeout_ms,
                        size_t *held);

/**
 * Unlinks all registrations. Apart from the range, this function works as
 * regcache_invalidate() does.
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
 */
int regcache_flush(struct regcache *cache,
                   int timeout_ms,
                   size_t *held);

/**
 * Changes the limit on the bytes that a cache pins. If the cache pins more, this
 * function evicts idle registrations. A registration in use is evicted when its
 * last guard is put, if the cache still pins too much. A registration that is
 * larger than the limit is not retained.
 *
 * @param cache      The cache.
 * @param max_bytes  The limit in bytes. With 0, the cache retains nothing: here, 0
 *                   does not select the default.
 * @return           0, or a negative errno:
 *                   -EINVAL: `cache` is NULL.
 *                   -EBADF: `cache` is not a cache, or was destroyed.
 *                   -ESTALE: `cache` belongs to the parent process.
 *                   -EDEADLK: called from within a callback.
 */
int regcache_set_max_bytes(struct regcache *cache,
                           uint64_t max_bytes);

/**
 * Changes the limit on the number of registrations that a cache retains, as
 * regcache_set_max_bytes() changes the limit on bytes.
 *
 * @param cache        The cache.
 * @param max_entries  The limit. A limit above the one with which the cache was created
 *                     is lowered to that one. With 0, the cache retains nothing.
 * @return             0, or a negative errno as from regcache_set_max_bytes().
 */
int regcache_set_max_entries(struct regcache *cache,
                             uint64_t max_entries);

/**
 * Reads the statistics of a cache. In a child by fork(2), the statistics of a
 * parent's cache are all 0.
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
 * Writes a table of the registrations of a cache, for diagnosis. The table has one
 * line for each registration, with its address, size, state and access. A
 * registration that comes or goes during the call may be missing. The format can
 * change, so read it with the eye only.
 *
 * @param cache  The cache.
 * @param fd     A file descriptor that is open for writing. The function does not
 *               close it.
 * @return       0, or a negative errno:
 *               -EINVAL: `cache` is NULL.
 *               -EBADF: `cache` is not a cache, or was destroyed; or `fd` is not
 *               open for writing.
 *               -ESTALE: `cache` belongs to the parent process.
 *               -EDEADLK: called from within a callback.
 *               Another errno is from write(2). A part of the table may be written.
 */
int regcache_dump(struct regcache *cache,
                  int fd);

/**
 * Returns a file descriptor that polls readable when regcache_reap() has work.
 * Add the descriptor to an event loop, and do not read from it.
 * regcache_destroy() closes the descriptor. In a child by fork(2), this
 * function also returns the descriptor of a parent's cache. The descriptor is
 * of no use there, because regcache_reap() fails with -ESTALE.
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
 * Deregisters memory that was unmapped. Without this call, a cache with
 * REGCACHE_NO_REAPER deregisters such memory only in a later lookup. Call this
 * function when regcache_fd() polls readable.
 *
 * @param cache  The cache.
 * @return       0, or a negative errno:
 *               -EINVAL: `cache` is NULL.
 *               -EBADF: `cache` is not a cache, or was destroyed.
 *               -ESTALE: `cache` belongs to the parent process.
 *               -EDEADLK: called from within a callback.
 *               Another errno is from the monitor.
 */
int regcache_reap(struct regcache *cache);

/**
 * Destroys a cache and deregisters its memory. Waits until no other thread is
 * in a call with the cache.
 *
 * After success no callback is called any more, and the protection domain may
 * be deallocated. After -EBUSY the cache is unchanged.
 *
 * @param cache  The cache.
 * @return       0, or a negative errno:
 *               -EBUSY: guards are still held; regcache_error() names their number.
 *               -EINVAL: `cache` is NULL.
 *               -EBADF: `cache` is not a cache, or was destroyed.
 *               -ESTALE: `cache` belongs to the parent process.
 *               -EDEADLK: called from within a callback.
 *               Another errno is from the monitor or from membarrier(2).
 */
int regcache_destroy(struct regcache *cache);

/**
 * Creates a pool: one limit on the bytes that several caches pin together. A cache
 * joins a pool by the attribute `pool`. Each cache also keeps its own limits. A
 * cache that needs room evicts idle registrations: first its own, and then those
 * of the other caches of the pool.
 *
 * @param max_bytes  The limit in bytes. With 0, the caches retain nothing.
 * @param pool       Receives the pool.
 * @return           0, or a negative errno:
 *                   -EINVAL: `pool` is NULL.
 *                   -ENOSPC: the process has 1024 pools.
 *                   Another errno, such as -ENOMEM, is from the system.
 */
int regcache_pool_create(uint64_t max_bytes,
                         struct regcache_pool **pool);

/**
 * Changes the limit of a pool. If its caches pin more, this function evicts idle
 * registrations. A registration in use is evicted when its last guard is put, if
 * the caches still pin too much.
 *
 * @param pool       The pool.
 * @param max_bytes  The limit in bytes. With 0, the caches retain nothing.
 * @return           0, or a negative errno:
 *                   -EINVAL: `pool` is NULL.
 *                   -EBADF: `pool` is not a pool, or was destroyed.
 *                   -ESTALE: `pool` belongs to the parent process.
 *                   -EDEADLK: called from within a callback.
 */
int regcache_pool_set_max_bytes(struct regcache_pool *pool,
                                uint64_t max_bytes);

/**
 * Reads the number of bytes that the registrations of all caches of a pool pin.
 * Not counted are registrations that are being made or deregistered, and those
 * that no cache retains.
 *
 * @param pool   The pool.
 * @param bytes  Receives the number of bytes, in whole pages.
 * @return       0, or a negative errno as from regcache_pool_set_max_bytes(), and
 *               -EINVAL if `bytes` is NULL.
 */
int regcache_pool_bytes(struct regcache_pool *pool,
                        uint64_t *bytes);

/**
 * Destroys a pool. Waits until no other thread is in a call with the pool. The
 * caches that have joined the pool keep its limit, which cannot be changed any
 * more. So a program may destroy the pool before or after its caches.
 *
 * @param pool  The pool.
 * @return      0, or a negative errno as from regcache_pool_set_max_bytes(), or from
 *              membarrier(2).
 */
int regcache_pool_destroy(struct regcache_pool *pool);

/**
 * Returns the name of the monitor that a cache uses. A child by fork(2) may also
 * pass a cache of its parent.
 *
 * @param cache  The cache.
 * @return       "ummunotify"; "userfaultfd"; "nothing" for REGCACHE_MONITOR_NONE, with
 *               which no registration is cached; or NULL on an error.
 */
const char *regcache_monitor_name(struct regcache *cache);

/**
 * Returns the message of the last call that failed in this thread. The message
 * is in English. It describes the error and, if possible, the remedy.
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

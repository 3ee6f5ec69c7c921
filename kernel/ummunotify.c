// SPDX-License-Identifier: GPL-2.0-only
/*
 * ummunotify - tell user space when the mapping of its memory changes
 *
 * A library may register memory with an RDMA adapter, and keep the registration
 * for the next transfer. Such a library must know when the pages at the memory's
 * addresses are no longer the ones that the adapter has pinned. This driver
 * reports that. A process opens /dev/ummunotify and registers the ranges of its
 * own address space that the driver shall watch. A 64-bit generation counter,
 * in a page that the process maps, shows that a range was invalidated. read()
 * returns the cookie of that range.
 *
 * There is no queue of events. Each range has one state, and a hint at the
 * bytes that were invalidated. So the driver's memory does not grow between two
 * reads.
 *
 * Order
 * -----
 * invalidate_range_start() of the MMU notifier records the invalidation and
 * raises the counter, before the kernel removes the first page table entry. The
 * task that changes the mapping runs this callback itself. So the counter has
 * risen before the task's system call returns. It has also risen before the
 * task drops the locks that keep other tasks from mapping other memory at the
 * address.
 *
 * An invalidation is in flight from its start to its end. Meanwhile the page
 * table entries may still be present, so another task may pin pages that are
 * about to be removed. There are two such races, and one rule prevents both.
 *
 * Early register: the range is registered while the invalidation is in flight.
 * The start of the invalidation has not found the range, because the range was
 * not registered yet.
 *
 *	CPU 0: madvise(MADV_DONTNEED)	CPU 1: REGISTER_REGION, then ibv_reg_mr()
 *	=============================	=========================================
 *	invalidate_range_start()
 *					add the range
 *					wait for the end
 *	zap the page table entries
 *	invalidate_range_end()
 *	  wake CPU 1
 *					return; pin the new pages
 *
 * Early read: the report is read while the invalidation is in flight. The
 * reader registers the memory again, under the same watch.
 *
 *	CPU 0: madvise(MADV_DONTNEED)	CPU 1: read(), then ibv_reg_mr()
 *	=============================	================================
 *	invalidate_range_start()
 *	  the range is invalidated
 *					read(): the range is valid again, and
 *					reported early; so is the invalidation
 *					pin the old pages
 *	zap the page table entries
 *	invalidate_range_end()
 *	  the range is invalidated
 *	  again, the counter raised
 *					compare the counter, read() again
 *
 * The rule: while an invalidation is in flight, each range that the
 * invalidation overlaps is in one of three states. A change of protection
 * concerns only the ranges that were registered for such changes.
 *
 * - It is a pending registration: REGISTER_REGION has not returned, and waits
 *   for the end of this invalidation. ummunotify_wait_for_older()
 * - It is waiting to be reported, or it is one of the ranges that the owner must
 *   visit before the next report. ummunotify_invalidate(), ummunotify_postpone()
 * - It was reported early, and the record of the invalidation says so. The end
 *   of the invalidation makes the range wait to be reported once more.
 *   ummunotify_report()
 *
 * So if pages were pinned before the end of an invalidation, their range is
 * reported after that end. read() could wait for the end instead, but unmapping
 * many gigabytes takes seconds. The driver keeps in-flight invalidations in as
 * many slots as a long has bits. An invalidation that finds no slot is
 * untracked. Of all untracked invalidations together, the driver keeps only the
 * number and the hull. So some registrations wait without need, and some
 * reports count as early without need, but no report is missed. An end without
 * a start is ignored, and takes no other invalidation out of its slot. Only a
 * bug elsewhere in mm can cause such an end.
 *
 * Cost
 * ----
 * The task that invalidates executes the callbacks. This task need not be the
 * owner: it may be kswapd, kcompactd, ksmd, or another process that truncates a
 * file. So the work of an invalidation is bounded, however many ranges are
 * watched.
 *
 * An invalidation visits only the ranges whose state it changes. A range that
 * was invalidated more than once since its last report is saturated: a further
 * invalidation changes nothing but the counter. Saturated ranges are in separate
 * trees, and an invalidation only checks whether it meets any range in these
 * trees.
 *
 * An invalidation visits at most UMMUNOTIFY_VISITS_MAX ranges. If it meets more,
 * it is postponed: the owner visits the others before the next report or
 * registration. An invalidation next to a postponed one joins it, and visits
 * nothing. The owner then saturates every range that they meet, because it does
 * not know how many of them have met the range.
 * Each registration or report of a range allows at most two visits to the range.
 *
 * Why not mmu_interval_notifier
 * -----------------------------
 * mmu_interval_notifier is made for drivers that have few ranges and stop their
 * device in the callback. It does not suit this driver:
 *
 * - It has no callback for the end of an invalidation. So an early report could
 *   not be repeated. User space would have to keep a sequence number for each
 *   range, and check the number by a system call after each registration.
 * - mmu_interval_read_begin() and mmu_interval_notifier_remove() wait while any
 *   invalidation that meets any interval of the mm is in flight. In a process
 *   that unmaps all the time, registrations would wait for unrelated
 *   invalidations.
 * - It calls back for each interval that an invalidation overlaps, each time.
 *   An earlier version of this driver also visited every overlapping range.
 *   With 65 536 ranges over a process's memory, reclaim of 4 MB then took 193
 *   times as long as without a range. Now it takes 1.03 times as many
 *   instructions, whether the ranges are new or wait to be read.
 * - The counter rises once for each invalidation. Interval callbacks do not
 *   show where one invalidation ends and the next begins.
 * - An interval takes 88 bytes, and an interval tree node takes 48.
 *
 * The driver uses one idea of mmu_interval_notifier: it records the
 * invalidations in flight, and waits for exactly these. Each file has its own
 * notifier. A notifier for each mm would save one callback in a process with
 * two files, but add a lock and a list to each invalidation.
 *
 * Locks
 * -----
 * ummunotify_file.lock is a spinlock, taken by the notifier callbacks. A task
 * that holds it does not sleep, allocate or touch user memory.
 *
 * ummunotify_file.deliver is a mutex that read() holds while events are off the
 * list and not yet in the user's buffer. So UNREGISTER_REGION waits for a
 * read() that has already picked up the range's event. A read() whose buffer
 * faults can put its events back. The callbacks never take deliver.
 *
 * ummunotify_file.attach is a mutex that is held while the notifier is
 * registered.
 *
 * deliver is taken before mmap_lock, which a fault on the user's buffer takes,
 * and before lock. attach is taken before mmap_lock.
 *
 * On PREEMPT_RT, lock is a sleeping lock. The callbacks may sleep, because mm
 * calls them in task context with preemption enabled. The holder of lock never
 * waits for another task, so even a callback that must not block ends soon. On
 * PREEMPT_RT, CONFIG_DEBUG_ATOMIC_SLEEP warns if the OOM reaper runs these
 * callbacks, as it does for KVM's callbacks.
 *
 * open() runs under a mutex that all misc devices share, so it must not wait
 * for a lock of the address space. The notifier is registered with the first
 * range instead.
 *
 * Memory
 * ------
 * The memory that a process makes the driver allocate is charged to its memory
 * cgroup, and bounded for each user over all files: struct ummunotify_user. If
 * memory is refused, the call fails with ENOMEM. Allocations with
 * UMMUNOTIFY_GFP fail early, so that the OOM killer does not end other
 * processes for the memory of a range.
 */

#include <linux/atomic.h>
#include <linux/compat.h>
#include <linux/cred.h>
#include <linux/fs.h>
#include <linux/hash.h>
#include <linux/hashtable.h>
#include <linux/highmem.h>
#include <linux/interval_tree.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/mmu_notifier.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/personality.h>
#include <linux/poll.h>
#include <linux/rbtree.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/seq_file.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/uaccess.h>
#include <linux/uio.h>
#include <linux/user_namespace.h>
#include <linux/wait.h>
#include <linux/ummunotify.h>

#include "compat.h"

static unsigned long max_user_regions;
module_param(max_user_regions, ulong, 0644);
MODULE_PARM_DESC(max_user_regions, "Most ranges that one user may watch (default: 4% of memory)");

#define UMMUNOTIFY_GFP	(GFP_KERNEL_ACCOUNT | __GFP_NORETRY | __GFP_NOWARN)

static struct kmem_cache *ummunotify_region_cache;

/* How often a range was invalidated since it was last reported. */
enum ummunotify_state {
	UMMUNOTIFY_VALID,
	UMMUNOTIFY_INVALIDATED_ONCE,	/* hint_start and hint_last say where */
	UMMUNOTIFY_SATURATED,		/* more than once */
};

/**
 * struct ummunotify_region - a watched range
 * @itree: node of the tree that ummunotify_tree() returns; its bounds are inclusive
 * @by_cookie: node of its tree in ummunotify_file.cookies
 * @invalid: on ummunotify_file.invalid unless @state is UMMUNOTIFY_VALID
 * @cookie: the caller's name for the range
 * @id: number that no other region of the file ever has
 * @hint_start: first byte invalidated, if invalidated once
 * @hint_last: last byte invalidated, if invalidated once
 * @state: tells read() what to report
 * @protection: changes of protection invalidate it as well
 * @reported_early: reported while an invalidation of it was in flight
 *
 * A region belongs to one file. Its bounds, cookie, id and protection are
 * constant, and ummunotify_file.lock guards the other fields. A region is
 * removed only under ummunotify_file.deliver. So a reader may use the region
 * between picking up its event and delivering it.
 */
struct ummunotify_region {
	struct interval_tree_node itree;
	struct rb_node by_cookie;
	struct list_head invalid;
	u64 cookie;
	u64 id;
	unsigned long hint_start;
	unsigned long hint_last;
	u8 state;
	bool protection;
	bool reported_early;
};

/**
 * struct ummunotify_in_flight - an invalidation between its start and its end
 * @task: the task that makes it; start and end are called by the same task
 * @start: first byte
 * @last: last byte
 * @serial: its place in the order of starts
 * @protection: it changes the protection of the pages, but not the pages
 * @reported_early: a region that it invalidates was reported since its start
 */
struct ummunotify_in_flight {
	struct task_struct *task;
	unsigned long start;
	unsigned long last;
	u64 serial;
	bool protection;
	bool reported_early;
};

#define UMMUNOTIFY_IN_FLIGHT_MAX	BITS_PER_LONG

/*
 * Cookies are spread over 2^7 trees, so each tree is seven levels lower than a
 * single tree would be. Registering and unregistering among 100 000 ranges then
 * costs at most 1.4 times as much as with one range.
 */
#define UMMUNOTIFY_COOKIE_BITS	7

/**
 * struct ummunotify_postponed - an invalidation with regions left to visit
 * @start: first byte
 * @last: last byte
 * @protection: the invalidation changes the protection of the pages, but not the
 *	pages
 * @several: several invalidations, which are next to each other or for which
 *	there were not enough elements; so no hint is known
 */
struct ummunotify_postponed {
	unsigned long start;
	unsigned long last;
	bool protection;
	bool several;
};

/*
 * The most regions that an invalidation visits. A page of a library's buffers is
 * in a few regions, so most invalidations are not postponed.
 */
#define UMMUNOTIFY_VISITS_MAX	32

#define UMMUNOTIFY_POSTPONED_MAX	8

/**
 * struct ummunotify_user - a user to whom open files are charged
 * @node: on ummunotify_users
 * @uid: of the user in the initial user namespace
 * @files: number of open files; guarded by ummunotify_users_lock
 * @charged: memory of the files and their ranges, in ranges
 *
 * Ucounts would do the same, but are not exported to modules. RLIMIT_MEMLOCK is
 * not a suitable limit: it is infinite on machines that use RDMA, and 64 KiB in
 * many containers.
 */
struct ummunotify_user {
	struct hlist_node node;
	kuid_t uid;
	unsigned int files;
	atomic_long_t charged;
};

static DEFINE_HASHTABLE(ummunotify_users, 6);
static DEFINE_SPINLOCK(ummunotify_users_lock);

/**
 * struct ummunotify_file - one open file, watching the mm that opened it
 * @mn: registered with @mm from the first range until the file is released
 * @lock: guards everything from here to @in_flight
 * @untracked: in-flight invalidations for which @in_flight had no slot
 * @gap_start: first byte of a gap without regions, which recent invalidations
 *	have met
 * @gap_last: last byte of the gap; less than @gap_start if no gap is known
 * @in_flight_slots: which elements of @in_flight are in use
 * @serial: serial number of the next invalidation
 * @watched: regions whose state an invalidation would change, by address; tree 1
 *	has the regions that changes of protection invalidate, tree 0 the others
 * @saturated: regions whose state an invalidation would not change, in two trees
 *	as for @watched
 * @counter: the generation
 * @shared: @counter as user space sees it; never read by the kernel
 * @invalid: regions to report, oldest invalidation first
 * @last_owed: an INVAL was delivered and no LAST since
 * @untracked_early: a region that untracked invalidations overlap was reported
 *	since the first of them started
 * @nr_regions: number of regions
 * @untracked_start: first byte that an untracked invalidation overlaps
 * @untracked_last: last byte that an untracked invalidation overlaps
 * @nr_postponed: number of elements of @postponed in use
 * @postponed: invalidations that have regions in @watched left to visit
 * @next_visit: the region in @watched that the first of these visits next, or
 *	NULL if that is the first region that it meets
 * @next_id: id of the next region
 * @cookies: all regions by cookie, see ummunotify_cookies()
 * @in_flight: the invalidations in flight
 * @ended: tasks that wait for an invalidation to end
 * @readable: tasks that wait for something to read
 * @async: files that want SIGIO
 * @deliver: see above
 * @attach: see above
 * @mm: held by mm_count, so that a descriptor does not keep dead memory, and no
 *	other mm gets the same address
 * @user: the user to whom the file is charged
 * @attached: @mn is registered
 * @used: EXCHANGE_FEATURES is no longer possible; needs no lock, because two
 *	threads that both exchange are both granted nothing
 *
 * The fields that each invalidation touches come first.
 */
struct ummunotify_file {
	struct mmu_notifier mn;

	spinlock_t lock;
	unsigned int untracked;
	unsigned long gap_start;
	unsigned long gap_last;
	unsigned long in_flight_slots;
	u64 serial;
	wait_queue_head_t ended;
	struct rb_root_cached watched[2];
	struct rb_root_cached saturated[2];
	u64 counter;
	u64 *shared;
	struct list_head invalid;
	bool last_owed;
	bool untracked_early;
	unsigned int nr_postponed;
	unsigned int nr_regions;
	unsigned long untracked_start;
	unsigned long untracked_last;
	u64 next_id;
	struct ummunotify_postponed postponed[UMMUNOTIFY_POSTPONED_MAX];
	struct ummunotify_region *next_visit;
	struct ummunotify_in_flight in_flight[UMMUNOTIFY_IN_FLIGHT_MAX];
	struct rb_root cookies[BIT(UMMUNOTIFY_COOKIE_BITS)];

	wait_queue_head_t readable;
	struct fasync_struct *async;
	struct mutex deliver;
	struct mutex attach;
	struct mm_struct *mm;
	struct ummunotify_user *user;
	bool attached;
	bool used;
};

/* A file takes as much memory as this number of ranges. */
#define UMMUNOTIFY_FILE_WEIGHT \
	DIV_ROUND_UP(sizeof(struct ummunotify_file) + PAGE_SIZE, sizeof(struct ummunotify_region))

static void ummunotify_mark_used(struct ummunotify_file *file)
{
	WRITE_ONCE(file->used, true);
}

/*
 * Only tasks with the mm that opened the file may use it, even if other
 * processes have the descriptor. Threads and CLONE_VM children share the mm.
 */
static bool ummunotify_is_owner(const struct ummunotify_file *file)
{
	return current->mm == file->mm;
}

/* Users and their limits */

/*
 * Returns the uid to which the caller's memory is charged. A user can make
 * namespaces, and be any number of users in them. All of these count as the
 * user who made the outermost namespace.
 */
static kuid_t ummunotify_current_uid(void)
{
	struct user_namespace *ns = current_user_ns();
	kuid_t uid = current_uid();

	for (; ns != &init_user_ns; ns = ns->parent)
		uid = ns->owner;
	return uid;
}

static struct ummunotify_user *ummunotify_get_user(void)
{
	struct ummunotify_user *user, *new;
	kuid_t uid = ummunotify_current_uid();

	new = kzalloc_obj(*new, UMMUNOTIFY_GFP);
	if (!new)
		return NULL;
	new->uid = uid;
	spin_lock(&ummunotify_users_lock);
	hash_for_each_possible(ummunotify_users, user, node, __kuid_val(uid)) {
		if (uid_eq(user->uid, uid))
			goto found;
	}
	hash_add(ummunotify_users, &new->node, __kuid_val(uid));
	user = new;
	new = NULL;
found:
	user->files++;
	spin_unlock(&ummunotify_users_lock);
	kfree(new);
	return user;
}

static void ummunotify_put_user(struct ummunotify_user *user)
{
	bool last;

	spin_lock(&ummunotify_users_lock);
	last = !--user->files;
	if (last)
		hash_del(&user->node);
	spin_unlock(&ummunotify_users_lock);
	if (last)
		kfree(user);
}

/* Returns false if the charge would exceed the limit. */
static bool ummunotify_charge(struct ummunotify_user *user, unsigned long ranges)
{
	if (atomic_long_add_return(ranges, &user->charged) <= READ_ONCE(max_user_regions))
		return true;
	atomic_long_sub(ranges, &user->charged);
	return false;
}

static void ummunotify_uncharge(struct ummunotify_user *user, unsigned long ranges)
{
	atomic_long_sub(ranges, &user->charged);
}

/* In-flight invalidations */

static void ummunotify_in_flight_add(struct ummunotify_file *file, unsigned long start,
				     unsigned long last, bool protection)
{
	unsigned long slot;

	lockdep_assert_held(&file->lock);

	if (unlikely(file->in_flight_slots == ~0UL)) {
		if (!file->untracked++) {
			file->untracked_start = start;
			file->untracked_last = last;
		}
		file->untracked_start = min(file->untracked_start, start);
		file->untracked_last = max(file->untracked_last, last);
		return;
	}
	slot = ffz(file->in_flight_slots);
	file->in_flight_slots |= BIT(slot);
	file->in_flight[slot] = (struct ummunotify_in_flight) {
		.task = current,
		.start = start,
		.last = last,
		.serial = file->serial++,
		.protection = protection,
	};
}

/*
 * Returns true if a range was reported while this invalidation was in flight.
 */
static bool ummunotify_in_flight_del(struct ummunotify_file *file,
				     unsigned long start, unsigned long last)
{
	const struct ummunotify_in_flight *mine = NULL;
	unsigned long slot;

	lockdep_assert_held(&file->lock);

	/*
	 * A task may be in several invalidations at once, even with the same
	 * bounds (munmap() of a hugetlb mapping). These invalidations are
	 * nested, so the youngest ends first.
	 */
	for_each_set_bit(slot, &file->in_flight_slots, UMMUNOTIFY_IN_FLIGHT_MAX) {
		const struct ummunotify_in_flight *it = &file->in_flight[slot];

		if (it->task == current && it->start == start && it->last == last &&
		    (!mine || it->serial > mine->serial))
			mine = it;
	}
	if (mine) {
		file->in_flight_slots &= ~BIT(mine - file->in_flight);
		return mine->reported_early;
	}
	/* If the end fits no untracked invalidation either, it has no start. */
	if (!file->untracked || start < file->untracked_start || last > file->untracked_last)
		return false;
	/*
	 * It is not known which of the untracked invalidations was reported
	 * early.
	 */
	if (!--file->untracked && file->untracked_early) {
		file->untracked_early = false;
		return true;
	}
	return file->untracked_early;
}

static bool ummunotify_overlaps_untracked(const struct ummunotify_file *file,
					  unsigned long start, unsigned long last)
{
	return file->untracked && file->untracked_start <= last && start <= file->untracked_last;
}

/*
 * A region is being reported: mark the in-flight invalidations of it as
 * reported early.
 */
static void ummunotify_report(struct ummunotify_file *file, struct ummunotify_region *region)
{
	unsigned long start = region->itree.start, last = region->itree.last;
	unsigned long slot;

	lockdep_assert_held(&file->lock);

	region->reported_early = false;
	for_each_set_bit(slot, &file->in_flight_slots, UMMUNOTIFY_IN_FLIGHT_MAX) {
		struct ummunotify_in_flight *it = &file->in_flight[slot];

		if (it->start <= last && start <= it->last &&
		    (region->protection || !it->protection)) {
			region->reported_early = true;
			it->reported_early = true;
		}
	}
	if (ummunotify_overlaps_untracked(file, start, last)) {
		region->reported_early = true;
		file->untracked_early = true;
	}
}

/**
 * struct ummunotify_pending - a registration that has not returned
 * @start: first byte
 * @last: last byte
 * @cookie: of the region
 * @id: of the region, which another thread may have unregistered since
 * @protection: changes of protection invalidate it as well
 * @serial: of the first invalidation that surely finds the region
 */
struct ummunotify_pending {
	unsigned long start;
	unsigned long last;
	u64 cookie;
	u64 id;
	bool protection;
	u64 serial;
};

/*
 * Returns true if an invalidation of the region is in flight that is older than
 * the region.
 */
static bool ummunotify_older_in_flight(struct ummunotify_file *file,
				       const struct ummunotify_pending *pending)
{
	unsigned long slot;
	bool found;

	spin_lock(&file->lock);
	/*
	 * The age of untracked invalidations is not known, so they count as
	 * older.
	 */
	found = ummunotify_overlaps_untracked(file, pending->start, pending->last);
	for_each_set_bit(slot, &file->in_flight_slots, UMMUNOTIFY_IN_FLIGHT_MAX) {
		const struct ummunotify_in_flight *it = &file->in_flight[slot];

		found |= it->serial < pending->serial &&
			 it->start <= pending->last && pending->start <= it->last &&
			 (pending->protection || !it->protection);
	}
	spin_unlock(&file->lock);
	return found;
}

/*
 * Wait for the invalidations that had started before a region became visible to
 * them. Later invalidations find the region, so this does not wait for them. So
 * a process that unmaps all the time cannot delay a registration for ever,
 * unless more than UMMUNOTIFY_IN_FLIGHT_MAX of its threads unmap at once. The
 * caller must hold no lock that an invalidation may take.
 */
static int ummunotify_wait_for_older(struct ummunotify_file *file,
				     const struct ummunotify_pending *pending)
{
	return wait_event_interruptible(file->ended, !ummunotify_older_in_flight(file, pending));
}

/* The MMU notifier */

enum ummunotify_kind {
	UMMUNOTIFY_IGNORED,	/* matters to no region */
	UMMUNOTIFY_PROTECTION,	/* changes the protection of the pages */
	UMMUNOTIFY_MAPPING,	/* puts other pages behind the addresses */
};

/*
 * mprotect(), NUMA balancing, fork() in the parent and write-protection for
 * dirty tracking keep the pages. Kinds that are not known here count as changes
 * of the mapping: a needless report costs time, a missing one costs data.
 */
static enum ummunotify_kind ummunotify_kind(enum mmu_notifier_event event)
{
	switch (event) {
	case MMU_NOTIFY_SOFT_DIRTY:
		return UMMUNOTIFY_IGNORED;
	case MMU_NOTIFY_PROTECTION_VMA:
	case MMU_NOTIFY_PROTECTION_PAGE:
		return UMMUNOTIFY_PROTECTION;
	default:
		return UMMUNOTIFY_MAPPING;
	}
}

/*
 * mprotect() and NUMA balancing do not announce the end of an invalidation that
 * starts at address 0. In their code a start of 0 means that nothing was
 * announced yet (change_pmd_range(), later change_pud_range()).
 */
static bool ummunotify_has_end(const struct mmu_notifier_range *range)
{
	return range->start || range->event != MMU_NOTIFY_PROTECTION_VMA;
}

/* Returns the tree that the region is in. */
static struct rb_root_cached *ummunotify_tree(struct ummunotify_file *file,
					      const struct ummunotify_region *region)
{
	return region->state == UMMUNOTIFY_SATURATED ? &file->saturated[region->protection] :
						       &file->watched[region->protection];
}

/* Call this when the region leaves its tree. */
static void ummunotify_forget_next_visit(struct ummunotify_file *file,
					 const struct ummunotify_region *region)
{
	if (file->next_visit == region)
		file->next_visit = NULL;
}

static void ummunotify_set_state(struct ummunotify_file *file, struct ummunotify_region *region,
				 enum ummunotify_state state)
{
	struct rb_root_cached *from, *to;

	lockdep_assert_held(&file->lock);

	from = ummunotify_tree(file, region);
	region->state = state;
	to = ummunotify_tree(file, region);
	if (from != to) {
		ummunotify_forget_next_visit(file, region);
		interval_tree_remove(&region->itree, from);
		interval_tree_insert(&region->itree, to);
	}
}

/* Returns true if the region was not already waiting to be reported. */
static bool ummunotify_invalidate(struct ummunotify_file *file,
				  struct ummunotify_region *region,
				  unsigned long start, unsigned long last)
{
	lockdep_assert_held(&file->lock);

	if (region->state != UMMUNOTIFY_VALID) {
		ummunotify_set_state(file, region, UMMUNOTIFY_SATURATED);
		return false;
	}
	ummunotify_set_state(file, region, UMMUNOTIFY_INVALIDATED_ONCE);
	region->hint_start = max(start, region->itree.start);
	region->hint_last = min(last, region->itree.last);
	list_add_tail(&region->invalid, &file->invalid);
	return true;
}

/*
 * Returns a postponed invalidation that includes this one, or that this one can
 * join as its neighbour: a region that meets their union meets one of them.
 */
static struct ummunotify_postponed *ummunotify_find_postponed(struct ummunotify_file *file,
							      unsigned long start,
							      unsigned long last, bool protection)
{
	unsigned int i;

	for (i = 0; i < file->nr_postponed; i++) {
		struct ummunotify_postponed *it = &file->postponed[i];

		if (it->start <= start && last <= it->last && it->protection <= protection)
			return it;
		if (it->protection == protection && start - 1 <= it->last && it->start - 1 <= last)
			return it;
	}
	return NULL;
}

/*
 * Let another invalidation join a postponed one. Returns true if the postponed
 * one includes more bytes now.
 */
static bool ummunotify_extend_postponed(struct ummunotify_file *file,
					struct ummunotify_postponed *it,
					unsigned long start, unsigned long last)
{
	bool more = start < it->start || it->last < last;

	if (it == file->postponed)
		file->next_visit = NULL;
	it->start = min(it->start, start);
	it->last = max(it->last, last);
	it->several = true;
	return more;
}

/* Postpone an invalidation that has visited the regions before @next. */
static void ummunotify_postpone(struct ummunotify_file *file, unsigned long start,
				unsigned long last, bool protection,
				struct interval_tree_node *next)
{
	struct ummunotify_postponed *it;

	lockdep_assert_held(&file->lock);

	it = ummunotify_find_postponed(file, start, last, protection);
	if (!it && file->nr_postponed < UMMUNOTIFY_POSTPONED_MAX) {
		if (!file->nr_postponed)
			file->next_visit = container_of(next, struct ummunotify_region, itree);
		file->postponed[file->nr_postponed++] = (struct ummunotify_postponed) {
			.start = start,
			.last = last,
			.protection = protection,
		};
		return;
	}
	if (!it) {
		/* Regions between the two will be reported without need. */
		it = &file->postponed[UMMUNOTIFY_POSTPONED_MAX - 1];
		it->protection &= protection;
	}
	ummunotify_extend_postponed(file, it, start, last);
}

/*
 * Visit some of the regions that postponed invalidations have left. Returns
 * false if no region is left to visit.
 *
 * If the region to visit next leaves its tree, or the invalidation is extended,
 * the visits start again at the first region. This finds regions a second time,
 * which saturates them, and so removes them from the trees that are searched
 * here. So the number of visits is bounded.
 */
static bool ummunotify_catch_up(struct ummunotify_file *file)
{
	const struct ummunotify_postponed *it = file->postponed;
	unsigned int visits = UMMUNOTIFY_VISITS_MAX;
	struct interval_tree_node *node, *next;
	int kind;

	lockdep_assert_held(&file->lock);

	if (likely(!file->nr_postponed))
		return false;
	if (file->next_visit) {
		kind = file->next_visit->protection;
		node = &file->next_visit->itree;
		file->next_visit = NULL;
	} else {
		kind = it->protection;
		node = interval_tree_iter_first(&file->watched[kind], it->start, it->last);
	}
	for (;;) {
		for (; node; node = next) {
			struct ummunotify_region *region =
				container_of(node, struct ummunotify_region, itree);

			if (!visits--) {
				file->next_visit = region;
				return true;
			}
			next = interval_tree_iter_next(node, it->start, it->last);
			ummunotify_invalidate(file, region, it->start, it->last);
			if (it->several)
				ummunotify_set_state(file, region, UMMUNOTIFY_SATURATED);
		}
		if (++kind > 1)
			break;
		node = interval_tree_iter_first(&file->watched[kind], it->start, it->last);
	}
	file->nr_postponed--;
	memmove(file->postponed, file->postponed + 1,
		file->nr_postponed * sizeof(file->postponed[0]));
	return file->nr_postponed;
}

/*
 * Visit all regions that postponed invalidations have left, and take the lock.
 * Only the owner of the file calls this: ummunotify_is_owner(). The lock is
 * released after a few visits each time, so that an invalidation does not wait
 * for all visits. The loop ends: each visit removes a region from those that are
 * left, and only reports and registrations add one.
 */
static void ummunotify_lock_caught_up(struct ummunotify_file *file)
	__acquires(&file->lock)
{
	spin_lock(&file->lock);
	while (unlikely(ummunotify_catch_up(file))) {
		spin_unlock(&file->lock);
		cond_resched();
		spin_lock(&file->lock);
	}
}

static void ummunotify_raise_counter(struct ummunotify_file *file)
{
	lockdep_assert_held(&file->lock);

	WRITE_ONCE(*file->shared, ++file->counter);
	/* Data caches that alias need this. */
	flush_dcache_page(virt_to_page(file->shared));
}

/*
 * Returns true if the invalidation lies within the gap, which has no region.
 * Most processes unmap the same unwatched addresses again and again, so this
 * check saves most searches.
 */
static bool ummunotify_in_gap(const struct ummunotify_file *file,
			      unsigned long start, unsigned long last)
{
	return file->gap_start <= start && last <= file->gap_last;
}

/* Add bytes that no region meets to the gap. */
static void ummunotify_add_gap(struct ummunotify_file *file,
			       unsigned long start, unsigned long last)
{
	/* The gap and the bytes overlap or are adjacent. */
	if (start - 1 <= file->gap_last && file->gap_start - 1 <= last) {
		file->gap_start = min(file->gap_start, start);
		file->gap_last = max(file->gap_last, last);
	} else {
		file->gap_start = start;
		file->gap_last = last;
	}
}

/* Forget the gap if the new region meets it. */
static void ummunotify_end_gap(struct ummunotify_file *file,
			       unsigned long start, unsigned long last)
{
	if (start <= file->gap_last && file->gap_start <= last) {
		file->gap_start = 1;
		file->gap_last = 0;
	}
}

/*
 * Record an invalidation that meets a region. Returns true if there is more to
 * read than before. This function is not inline, because most invalidations
 * meet no region.
 *
 * Changes of protection invalidate only the regions in tree 1. So a change of
 * protection begins with tree 1.
 */
static noinline bool ummunotify_record_met(struct ummunotify_file *file, unsigned long start,
					   unsigned long last, bool protection)
{
	unsigned int visits = UMMUNOTIFY_VISITS_MAX;
	struct ummunotify_postponed *postponed;
	struct interval_tree_node *node, *next;
	bool more = false;
	int kind;

	lockdep_assert_held(&file->lock);

	ummunotify_raise_counter(file);
	postponed = ummunotify_find_postponed(file, start, last, protection);
	if (unlikely(postponed))
		return ummunotify_extend_postponed(file, postponed, start, last);
	for (kind = protection; kind <= 1; kind++) {
		node = interval_tree_iter_first(&file->watched[kind], start, last);
		for (; node; node = next) {
			if (!visits--) {
				ummunotify_postpone(file, start, last, protection, node);
				return true;
			}
			next = interval_tree_iter_next(node, start, last);
			more |= ummunotify_invalidate(file,
				container_of(node, struct ummunotify_region, itree), start, last);
		}
	}
	return more;
}

/* Record an invalidation that may meet a region. Not inline, to keep the common path short. */
static noinline bool ummunotify_record_search(struct ummunotify_file *file, unsigned long start,
					      unsigned long last, bool protection)
{
	int kind;

	lockdep_assert_held(&file->lock);

	for (kind = protection; kind <= 1; kind++) {
		if (interval_tree_iter_first(&file->watched[kind], start, last) ||
		    interval_tree_iter_first(&file->saturated[kind], start, last))
			return ummunotify_record_met(file, start, last, protection);
	}
	if (!protection)
		ummunotify_add_gap(file, start, last);
	return false;
}

/* Record an invalidation. Returns true if there is more to read than before. */
static bool ummunotify_record(struct ummunotify_file *file, unsigned long start,
			      unsigned long last, bool protection)
{
	if (ummunotify_in_gap(file, start, last))
		return false;
	return ummunotify_record_search(file, start, last, protection);
}

/*
 * Record the end of an invalidation for the regions that were reported early.
 * Returns true if there is more to read than before. Saturated regions need no
 * visit: they are still waiting to be reported, and that report comes after
 * this end. If there are too many regions to visit, the end is postponed. The
 * regions that were registered since the start are then reported without need.
 */
static noinline bool ummunotify_record_again(struct ummunotify_file *file,
					     unsigned long start, unsigned long last,
					     bool protection)
{
	unsigned int visits = UMMUNOTIFY_VISITS_MAX;
	struct interval_tree_node *node;
	bool more = false;
	int kind;

	lockdep_assert_held(&file->lock);

	for (kind = protection; kind <= 1; kind++) {
		node = interval_tree_iter_first(&file->watched[kind], start, last);
		for (; node; node = interval_tree_iter_next(node, start, last)) {
			struct ummunotify_region *region =
				container_of(node, struct ummunotify_region, itree);

			if (!visits--) {
				ummunotify_postpone(file, start, last, protection, node);
				more = true;
				goto out;
			}
			if (region->reported_early && region->state == UMMUNOTIFY_VALID)
				more |= ummunotify_invalidate(file, region, start, last);
			region->reported_early = false;
		}
	}
out:
	if (more)
		ummunotify_raise_counter(file);
	return more;
}

static void ummunotify_wake_readers(struct ummunotify_file *file)
{
	/*
	 * Pairs with the barrier in wait_event(): the reader sees the list, or
	 * this task sees the reader.
	 */
	if (wq_has_sleeper(&file->readable))
		wake_up_interruptible_poll(&file->readable, EPOLLIN | EPOLLRDNORM);
}

static noinline void ummunotify_notify(struct ummunotify_file *file)
{
	ummunotify_wake_readers(file);
	kill_fasync(&file->async, SIGIO, POLL_IN);
}

/*
 * This callback waits only for the lock, and never fails. So it treats
 * blockable and non-blockable ranges alike.
 */
static int ummunotify_invalidate_start(struct mmu_notifier *mn,
				       const struct mmu_notifier_range *range)
{
	struct ummunotify_file *file = container_of(mn, struct ummunotify_file, mn);
	enum ummunotify_kind kind = ummunotify_kind(range->event);
	unsigned long start = range->start, last = range->end - 1;
	bool protection = kind == UMMUNOTIFY_PROTECTION;
	bool more;

	if (kind == UMMUNOTIFY_IGNORED)
		return 0;

	spin_lock(&file->lock);
	if (likely(ummunotify_has_end(range)))
		ummunotify_in_flight_add(file, start, last, protection);
	more = ummunotify_record(file, start, last, protection);
	spin_unlock(&file->lock);

	if (more)
		ummunotify_notify(file);
	return 0;
}

static void ummunotify_invalidate_end(struct mmu_notifier *mn,
				      const struct mmu_notifier_range *range)
{
	struct ummunotify_file *file = container_of(mn, struct ummunotify_file, mn);
	enum ummunotify_kind kind = ummunotify_kind(range->event);
	unsigned long start = range->start, last = range->end - 1;
	bool more = false;

	if (kind == UMMUNOTIFY_IGNORED || unlikely(!ummunotify_has_end(range)))
		return;

	spin_lock(&file->lock);
	if (unlikely(ummunotify_in_flight_del(file, start, last)))
		more = ummunotify_record_again(file, start, last,
					       kind == UMMUNOTIFY_PROTECTION);
	spin_unlock(&file->lock);

	if (more)
		ummunotify_notify(file);
	/*
	 * Pairs with the barrier in wait_event(): the waiter sees the free
	 * slot, or this task sees the waiter.
	 */
	if (wq_has_sleeper(&file->ended))
		wake_up_all(&file->ended);
}

/*
 * The address space ends: its last user exits or executes another program. The
 * kernel announces no invalidation from here on, so this callback records one
 * of the whole address space. A child that inherited a mapping of the counter
 * sees the counter rise. No reader is woken, because no task is left that could
 * read. No SIGIO is sent, because the signal would reach the program that was
 * executed.
 */
static void ummunotify_mm_release(struct mmu_notifier *mn, struct mm_struct *mm)
{
	struct ummunotify_file *file = container_of(mn, struct ummunotify_file, mn);

	spin_lock(&file->lock);
	ummunotify_record(file, 0, ULONG_MAX, false);
	spin_unlock(&file->lock);
}

static const struct mmu_notifier_ops ummunotify_mn_ops = {
	.invalidate_range_start	= ummunotify_invalidate_start,
	.invalidate_range_end	= ummunotify_invalidate_end,
	.release		= ummunotify_mm_release,
};

/*
 * Register the notifier, if it is not registered yet. The caller is the owner,
 * so the address space has a user.
 *
 * mmu_notifier_register() takes every lock that the task of an invalidation of
 * this mm could hold. So if the driver sees the end of an invalidation, it has
 * also seen the start. mm_take_all_locks() fails whenever a signal is pending.
 * In a process with many mappings, the timer of a profiler could make it fail
 * each time. So signals that do not kill are blocked meanwhile.
 */
static int ummunotify_attach(struct ummunotify_file *file)
{
	sigset_t most, before;
	int ret = 0;

	/* Pairs with the release below: the notifier is registered. */
	if (smp_load_acquire(&file->attached))
		return 0;
	if (mutex_lock_killable(&file->attach))
		return -EINTR;
	if (!file->attached) {
		siginitsetinv(&most, sigmask(SIGKILL));
		sigprocmask(SIG_BLOCK, &most, &before);
		ret = mmu_notifier_register(&file->mn, file->mm);
		sigprocmask(SIG_SETMASK, &before, NULL);
		if (!ret) {
			/* Pairs with the acquire above. */
			smp_store_release(&file->attached, true);
		}
	}
	mutex_unlock(&file->attach);
	/*
	 * The task is being killed, or has to do work of io_uring first. So
	 * restart the call.
	 */
	return ret == -EINTR ? -ERESTARTNOINTR : ret;
}

/* read and poll */

static bool ummunotify_is_readable(struct ummunotify_file *file)
{
	bool readable;

	ummunotify_lock_caught_up(file);
	readable = !list_empty(&file->invalid) || file->last_owed;
	spin_unlock(&file->lock);
	return readable;
}

/*
 * Large enough that taking the lock costs little for each event, small enough
 * for the stack.
 */
#define UMMUNOTIFY_BATCH	12

struct ummunotify_batch {
	struct ummunotify_event event[UMMUNOTIFY_BATCH];
	/* the region of each event; NULL for LAST */
	struct ummunotify_region *region[UMMUNOTIFY_BATCH];
	size_t len;
};

/*
 * Take up to @max events off the list. If the list is empty then, and a LAST is
 * due, add the LAST with the counter of that moment.
 */
static void ummunotify_pick_up(struct ummunotify_file *file,
			       struct ummunotify_batch *batch, size_t max)
{
	struct ummunotify_region *region, *next;
	size_t n = 0;

	lockdep_assert_held(&file->deliver);

	max = min_t(size_t, max, UMMUNOTIFY_BATCH);
	ummunotify_lock_caught_up(file);
	list_for_each_entry_safe(region, next, &file->invalid, invalid) {
		bool once = region->state == UMMUNOTIFY_INVALIDATED_ONCE;

		if (n == max)
			break;
		batch->event[n] = (struct ummunotify_event) {
			.type = UMMUNOTIFY_EVENT_TYPE_INVAL,
			.flags = once ? UMMUNOTIFY_EVENT_FLAG_HINT : 0,
			.hint_start = once ? region->hint_start : region->itree.start,
			.hint_end = (once ? region->hint_last : region->itree.last) + 1,
			.user_cookie_counter = region->cookie,
		};
		batch->region[n++] = region;
		ummunotify_set_state(file, region, UMMUNOTIFY_VALID);
		list_del(&region->invalid);
		ummunotify_report(file, region);
	}
	if (n)
		file->last_owed = true;
	if (n < max && file->last_owed) {
		file->last_owed = false;
		batch->event[n] = (struct ummunotify_event) {
			.type = UMMUNOTIFY_EVENT_TYPE_LAST,
			.user_cookie_counter = file->counter,
		};
		batch->region[n++] = NULL;
	}
	spin_unlock(&file->lock);
	batch->len = n;
}

/* Undo ummunotify_pick_up(), but keep the invalidations since. */
static void ummunotify_put_back(struct ummunotify_file *file,
				const struct ummunotify_batch *batch,
				bool last_was_owed)
{
	size_t i = batch->len;

	lockdep_assert_held(&file->deliver);

	spin_lock(&file->lock);
	while (i--) {
		const struct ummunotify_event *event = &batch->event[i];
		struct ummunotify_region *region = batch->region[i];

		if (!region)
			continue;
		if (region->state != UMMUNOTIFY_VALID) {
			ummunotify_set_state(file, region, UMMUNOTIFY_SATURATED);
			continue;
		}
		ummunotify_set_state(file, region, event->flags & UMMUNOTIFY_EVENT_FLAG_HINT ?
				     UMMUNOTIFY_INVALIDATED_ONCE : UMMUNOTIFY_SATURATED);
		region->hint_start = event->hint_start;
		region->hint_last = event->hint_end - 1;
		list_add(&region->invalid, &file->invalid);
	}
	file->last_owed = last_was_owed;
	spin_unlock(&file->lock);

	/*
	 * Send no SIGIO, because the handler of SIGIO may itself have passed
	 * the bad buffer.
	 */
	ummunotify_wake_readers(file);
}

/* Returns bytes delivered, 0 if there is nothing to deliver, or -EFAULT. */
static ssize_t ummunotify_deliver(struct ummunotify_file *file,
				  struct iov_iter *to, size_t max)
{
	struct ummunotify_batch batch;
	size_t done = 0;

	lockdep_assert_held(&file->deliver);

	while (done < max) {
		/*
		 * last_owed is written only under deliver, so it does not
		 * change before the pick-up.
		 */
		bool last_was_owed = READ_ONCE(file->last_owed);
		size_t bytes, copied;

		ummunotify_pick_up(file, &batch, max - done);
		if (!batch.len)
			break;
		bytes = batch.len * sizeof(batch.event[0]);
		copied = copy_to_iter(batch.event, bytes, to);
		if (copied != bytes) {
			iov_iter_revert(to, copied);
			ummunotify_put_back(file, &batch, last_was_owed);
			if (!done)
				return -EFAULT;
			break;
		}
		done += batch.len;
		/*
		 * A LAST ends the read. Otherwise a busy process could keep one
		 * read going for ever.
		 */
		if (!batch.region[batch.len - 1] || fatal_signal_pending(current))
			break;
		cond_resched();
	}
	return done * sizeof(batch.event[0]);
}

static ssize_t ummunotify_read_iter(struct kiocb *iocb, struct iov_iter *to)
{
	struct file *filp = iocb->ki_filp;
	struct ummunotify_file *file = filp->private_data;
	size_t max = iov_iter_count(to) / sizeof(struct ummunotify_event);
	bool nowait = iocb->ki_flags & IOCB_NOWAIT;
	ssize_t ret;

	if (!ummunotify_is_owner(file))
		return -EPERM;
	if (!max)
		return -EINVAL;
	ummunotify_mark_used(file);

	for (;;) {
		/*
		 * With O_NONBLOCK alone, wait for another reader, because
		 * EAGAIN must mean that no range is invalid.
		 */
		if (nowait) {
			if (!mutex_trylock(&file->deliver))
				return -EAGAIN;
		} else if (mutex_lock_interruptible(&file->deliver)) {
			return -ERESTARTSYS;
		}
		ret = ummunotify_deliver(file, to, max);
		mutex_unlock(&file->deliver);
		if (ret)
			return ret;
		if (nowait || filp->f_flags & O_NONBLOCK)
			return -EAGAIN;
		ret = wait_event_interruptible(file->readable, ummunotify_is_readable(file));
		if (ret)
			return ret;
	}
}

static __poll_t ummunotify_poll(struct file *filp, struct poll_table_struct *wait)
{
	struct ummunotify_file *file = filp->private_data;

	poll_wait(filp, &file->readable, wait);
	/*
	 * A kernel thread may finish a poll that the owner began, as with aio.
	 */
	if (!ummunotify_is_owner(file) && !(current->flags & PF_KTHREAD))
		return EPOLLERR;
	return ummunotify_is_readable(file) ? EPOLLIN | EPOLLRDNORM : 0;
}

static int ummunotify_fasync(int fd, struct file *filp, int on)
{
	struct ummunotify_file *file = filp->private_data;

	/* fd is -1 when the last close, by any process, cleans up. */
	if (fd != -1 && !ummunotify_is_owner(file))
		return -EPERM;
	return fasync_helper(fd, filp, on, &file->async);
}

/* ioctl */

static int ummunotify_compare_cookie(const void *key, const struct rb_node *node)
{
	u64 cookie = *(const u64 *)key;
	u64 other = rb_entry(node, struct ummunotify_region, by_cookie)->cookie;

	return cookie < other ? -1 : cookie > other;
}

static int ummunotify_compare_regions(struct rb_node *new, const struct rb_node *node)
{
	return ummunotify_compare_cookie(&rb_entry(new, struct ummunotify_region,
						   by_cookie)->cookie, node);
}

/* Returns the tree that has the cookie, if a region has it. */
static struct rb_root *ummunotify_cookies(struct ummunotify_file *file, u64 cookie)
{
	return &file->cookies[hash_64(cookie, UMMUNOTIFY_COOKIE_BITS)];
}

static long ummunotify_exchange_features(struct ummunotify_file *file, u32 __user *arg)
{
	if (READ_ONCE(file->used))
		return -EINVAL;
	/*
	 * The requested mask is not read, because programs of 2010 pass one
	 * that they never initialised.
	 */
	if (put_user(0, arg))
		return -EFAULT;
	ummunotify_mark_used(file);
	return 0;
}

/*
 * Make a region visible to invalidations, and store its id and its first serial
 * in @pending.
 */
static int ummunotify_add(struct ummunotify_file *file, struct ummunotify_region *region,
			  struct ummunotify_pending *pending)
{
	int ret = 0;

	/* A postponed invalidation must not find the new region. */
	ummunotify_lock_caught_up(file);
	if (rb_find_add(&region->by_cookie, ummunotify_cookies(file, region->cookie),
			ummunotify_compare_regions)) {
		ret = -EINVAL;
	} else {
		interval_tree_insert(&region->itree, ummunotify_tree(file, region));
		ummunotify_end_gap(file, region->itree.start, region->itree.last);
		file->nr_regions++;
		region->id = file->next_id++;
		pending->id = region->id;
		pending->serial = file->serial;
	}
	spin_unlock(&file->lock);
	return ret;
}

/*
 * Remove the region with this cookie. If @id is not NULL, the region must also
 * have this id. Returns the region, or NULL if there is none.
 */
static struct ummunotify_region *ummunotify_remove(struct ummunotify_file *file, u64 cookie,
						   const u64 *id)
{
	struct ummunotify_region *region = NULL;
	struct rb_root *cookies;
	struct rb_node *node;

	lockdep_assert_held(&file->deliver);

	spin_lock(&file->lock);
	cookies = ummunotify_cookies(file, cookie);
	node = rb_find(&cookie, cookies, ummunotify_compare_cookie);
	if (node)
		region = rb_entry(node, struct ummunotify_region, by_cookie);
	if (region && id && region->id != *id)
		region = NULL;
	if (region) {
		ummunotify_forget_next_visit(file, region);
		rb_erase(&region->by_cookie, cookies);
		interval_tree_remove(&region->itree, ummunotify_tree(file, region));
		if (region->state != UMMUNOTIFY_VALID)
			list_del(&region->invalid);
		file->nr_regions--;
	}
	spin_unlock(&file->lock);
	return region;
}

static void ummunotify_free(struct ummunotify_file *file, struct ummunotify_region *region)
{
	kmem_cache_free(ummunotify_region_cache, region);
	ummunotify_uncharge(file->user, 1);
}

/*
 * Remove the region of a registration that fails after the region was added.
 * Returns false if another thread has unregistered the region already. Also
 * returns false if the process is being killed: the region then stays until the
 * file is closed.
 */
static bool ummunotify_take_back(struct ummunotify_file *file,
				 const struct ummunotify_pending *pending)
{
	struct ummunotify_region *region;

	if (mutex_lock_killable(&file->deliver))
		return false;
	region = ummunotify_remove(file, pending->cookie, &pending->id);
	mutex_unlock(&file->deliver);
	if (region)
		ummunotify_free(file, region);
	return region;
}

/*
 * Returns 0 if each byte is backed by memory whose changes the kernel
 * announces. get_user_pages() finds no page where nothing is mapped, where
 * access is not allowed, or where a driver maps memory without struct page. A
 * device may have its own memory at such addresses, and changes of that memory
 * cause no invalidation.
 *
 * The range is visible to invalidations already. So if it is backed now, every
 * later change is recorded.
 */
static int ummunotify_check_backed(struct ummunotify_file *file,
				   const struct ummunotify_pending *pending)
{
	struct mm_struct *mm = file->mm;
	unsigned long address = pending->start;
	struct vm_area_struct *vma;
	bool backed;

	if (mmap_read_lock_killable(mm))
		return -EINTR;
	for (;;) {
		vma = find_vma(mm, address);
		backed = vma && vma->vm_start <= address && vma_is_accessible(vma) &&
			 !(vma->vm_flags & (VM_IO | VM_PFNMAP));
		if (!backed || pending->last < vma->vm_end)
			break;
		address = vma->vm_end;
		cond_resched();
	}
	mmap_read_unlock(mm);
	return backed ? 0 : -ENXIO;
}

/*
 * Watch the bytes from @start up to, but not including, @end. If both are
 * equal, watch the byte at @start, because a program of 2010 passes the last
 * byte as the end.
 */
static int ummunotify_register(struct ummunotify_file *file, u64 start, u64 end, u64 cookie,
			       u32 flags)
{
	struct ummunotify_pending pending = {
		.cookie = cookie,
		.protection = flags & UMMUNOTIFY_REGISTER_PROTECTION,
	};
	struct ummunotify_region *region;
	int ret;

	start = untagged_addr(start);
	end = untagged_addr(end);
	if (start > end || start >= file->mm->task_size || end > file->mm->task_size)
		return -EINVAL;
	pending.start = start;
	pending.last = start == end ? start : end - 1;

	ret = ummunotify_attach(file);
	if (ret)
		return ret;
	if (!ummunotify_charge(file->user, 1))
		return -ENOSPC;
	region = kmem_cache_alloc(ummunotify_region_cache, UMMUNOTIFY_GFP);
	if (!region) {
		ummunotify_uncharge(file->user, 1);
		return -ENOMEM;
	}
	region->itree.start = pending.start;
	region->itree.last = pending.last;
	region->cookie = cookie;
	region->state = UMMUNOTIFY_VALID;
	region->reported_early = false;
	region->protection = pending.protection;

	ret = ummunotify_add(file, region, &pending);
	if (ret) {
		ummunotify_free(file, region);
		return ret;
	}
	ret = ummunotify_wait_for_older(file, &pending);
	if (!ret && flags & UMMUNOTIFY_REGISTER_MUST_BE_BACKED)
		ret = ummunotify_check_backed(file, &pending);
	/*
	 * If another thread has unregistered the range already, the range was
	 * registered by then, so this call has succeeded.
	 */
	if (ret && !ummunotify_take_back(file, &pending) && ret == -ERESTARTSYS)
		ret = 0;
	return ret;
}

static long ummunotify_register_region(struct ummunotify_file *file,
				       struct ummunotify_register_ioctl __user *arg)
{
	struct ummunotify_register_ioctl parm;
	int ret;

	if (copy_from_user(&parm, arg, sizeof(parm)))
		return -EFAULT;
	/* Ignore the flags, which programs of 2010 do not initialise. */
	ret = ummunotify_register(file, parm.start, parm.end, parm.user_cookie, 0);
	/*
	 * These programs also ignore the result, so a signal must not leave the
	 * range unwatched.
	 */
	return ret == -ERESTARTSYS ? -ERESTARTNOINTR : ret;
}

static long ummunotify_register_region2(struct ummunotify_file *file,
					struct ummunotify_register2 __user *arg)
{
	struct ummunotify_register2 parm;
	u32 size;
	int ret;

	if (get_user(size, &arg->size))
		return -EFAULT;
	if (size < UMMUNOTIFY_REGISTER2_SIZE_VER0)
		return -EINVAL;
	if (size > PAGE_SIZE)
		return -E2BIG;
	ret = copy_struct_from_user(&parm, sizeof(parm), arg, size);
	if (ret)
		return ret;
	if (parm.flags & ~(UMMUNOTIFY_REGISTER_PROTECTION | UMMUNOTIFY_REGISTER_MUST_BE_BACKED))
		return -EINVAL;
	return ummunotify_register(file, parm.start, parm.end, parm.user_cookie, parm.flags);
}

static long ummunotify_unregister_region(struct ummunotify_file *file, u64 __user *arg)
{
	struct ummunotify_region *region;
	u64 cookie;

	if (copy_from_user(&cookie, arg, sizeof(cookie)))
		return -EFAULT;

	if (mutex_lock_killable(&file->deliver))
		return -EINTR;
	region = ummunotify_remove(file, cookie, NULL);
	mutex_unlock(&file->deliver);
	if (!region)
		return -EINVAL;
	ummunotify_free(file, region);
	return 0;
}

static long ummunotify_ioctl(struct file *filp, unsigned int cmd, unsigned long arg)
{
	struct ummunotify_file *file = filp->private_data;
	void __user *argp = (void __user *)arg;

	if (!ummunotify_is_owner(file))
		return -EPERM;

	switch (cmd) {
	case UMMUNOTIFY_EXCHANGE_FEATURES:
		return ummunotify_exchange_features(file, argp);
	case UMMUNOTIFY_REGISTER_REGION:
		ummunotify_mark_used(file);
		return ummunotify_register_region(file, argp);
	case UMMUNOTIFY_UNREGISTER_REGION:
		ummunotify_mark_used(file);
		return ummunotify_unregister_region(file, argp);
	case UMMUNOTIFY_REGISTER_REGION2:
		ummunotify_mark_used(file);
		return ummunotify_register_region2(file, argp);
	default:
		return -ENOTTY;
	}
}

/* mmap, fdinfo, open, release */

static vm_fault_t ummunotify_fault(struct vm_fault *vmf)
{
	struct ummunotify_file *file = vmf->vma->vm_file->private_data;
	struct page *page = virt_to_page(file->shared);

	get_page(page);
	vmf->page = page;
	return 0;
}

static const struct vm_operations_struct ummunotify_vm_ops = {
	.fault	= ummunotify_fault,
};

static int ummunotify_mmap(struct file *filp, struct vm_area_struct *vma)
{
	struct ummunotify_file *file = filp->private_data;

	if (!ummunotify_is_owner(file))
		return -EPERM;
	if (vma->vm_pgoff || vma_pages(vma) != 1)
		return -EINVAL;
	/*
	 * With READ_IMPLIES_EXEC, the kernel sets VM_EXEC although the caller
	 * has not requested it.
	 */
	if (vma->vm_flags & VM_WRITE ||
	    (vma->vm_flags & VM_EXEC && !(current->personality & READ_IMPLIES_EXEC)))
		return -EACCES;
	ummunotify_mark_used(file);

	/*
	 * mprotect() may not add permissions, mremap() may not grow it, and
	 * core dumps omit it.
	 */
	vm_flags_mod(vma, VM_DONTEXPAND | VM_DONTDUMP, VM_MAYWRITE | VM_EXEC | VM_MAYEXEC);
	vma->vm_ops = &ummunotify_vm_ops;
	return 0;
}

#ifdef CONFIG_PROC_FS
static void ummunotify_show_fdinfo(struct seq_file *seq, struct file *filp)
{
	struct ummunotify_file *file = filp->private_data;
	unsigned int ranges, in_flight;
	bool readable;
	u64 counter;

	spin_lock(&file->lock);
	ranges = file->nr_regions;
	counter = file->counter;
	readable = !list_empty(&file->invalid) || file->nr_postponed || file->last_owed;
	in_flight = hweight_long(file->in_flight_slots) + file->untracked;
	spin_unlock(&file->lock);

	seq_printf(seq, "ummunotify-ranges:\t%u\n", ranges);
	seq_printf(seq, "ummunotify-counter:\t%llu\n", counter);
	seq_printf(seq, "ummunotify-readable:\t%d\n", readable);
	seq_printf(seq, "ummunotify-in-flight:\t%u\n", in_flight);
	seq_printf(seq, "ummunotify-user-ranges:\t%ld\n", atomic_long_read(&file->user->charged));
}
#endif

static int ummunotify_open(struct inode *inode, struct file *filp)
{
	struct ummunotify_file *file;
	int ret = -ENOMEM;
	int kind;

	if (filp->f_mode & FMODE_WRITE)
		return -EINVAL;
	/* A kernel thread has no memory to watch. */
	if (!current->mm)
		return -EINVAL;

	file = kzalloc_obj(*file, UMMUNOTIFY_GFP);
	if (!file)
		return -ENOMEM;
	file->user = ummunotify_get_user();
	if (!file->user)
		goto free_file;
	if (!ummunotify_charge(file->user, UMMUNOTIFY_FILE_WEIGHT)) {
		ret = -EMFILE;
		goto put_user;
	}
	file->shared = (u64 *)get_zeroed_page(UMMUNOTIFY_GFP);
	if (!file->shared)
		goto uncharge;

	file->mn.ops = &ummunotify_mn_ops;
	spin_lock_init(&file->lock);
	file->gap_start = 1;
	init_waitqueue_head(&file->ended);
	for (kind = 0; kind <= 1; kind++) {
		file->watched[kind] = RB_ROOT_CACHED;
		file->saturated[kind] = RB_ROOT_CACHED;
	}
	INIT_LIST_HEAD(&file->invalid);
	init_waitqueue_head(&file->readable);
	mutex_init(&file->deliver);
	mutex_init(&file->attach);
	file->mm = current->mm;
	mmgrab(file->mm);

	filp->private_data = file;
	/* read() honours IOCB_NOWAIT. */
	filp->f_mode |= FMODE_NOWAIT;
	return stream_open(inode, filp);

uncharge:
	ummunotify_uncharge(file->user, UMMUNOTIFY_FILE_WEIGHT);
put_user:
	ummunotify_put_user(file->user);
free_file:
	kfree(file);
	return ret;
}

static int ummunotify_release(struct inode *inode, struct file *filp)
{
	struct ummunotify_file *file = filp->private_data;
	struct ummunotify_region *region, *next;
	int i;

	if (file->attached) {
		/*
		 * Only the file ends, so callbacks must find no range from here
		 * on.
		 */
		spin_lock(&file->lock);
		for (i = 0; i <= 1; i++) {
			file->watched[i] = RB_ROOT_CACHED;
			file->saturated[i] = RB_ROOT_CACHED;
		}
		spin_unlock(&file->lock);
		/*
		 * The call waits for the callbacks that are running. None
		 * starts afterwards.
		 */
		mmu_notifier_unregister(&file->mn, file->mm);
	}
	mmdrop(file->mm);

	for (i = 0; i < ARRAY_SIZE(file->cookies); i++) {
		rbtree_postorder_for_each_entry_safe(region, next, &file->cookies[i], by_cookie) {
			ummunotify_free(file, region);
			cond_resched();
		}
	}
	free_page((unsigned long)file->shared);
	ummunotify_uncharge(file->user, UMMUNOTIFY_FILE_WEIGHT);
	ummunotify_put_user(file->user);
	kfree(file);
	return 0;
}

static const struct file_operations ummunotify_fops = {
	.owner		= THIS_MODULE,
	.open		= ummunotify_open,
	.release	= ummunotify_release,
	.read_iter	= ummunotify_read_iter,
	.poll		= ummunotify_poll,
	.fasync		= ummunotify_fasync,
	.unlocked_ioctl	= ummunotify_ioctl,
	.compat_ioctl	= compat_ptr_ioctl,
	.mmap		= ummunotify_mmap,
#ifdef CONFIG_PROC_FS
	.show_fdinfo	= ummunotify_show_fdinfo,
#endif
};

static struct miscdevice ummunotify_misc = {
	.minor	= MISC_DYNAMIC_MINOR,
	.name	= "ummunotify",
	.fops	= &ummunotify_fops,
	/*
	 * Any user may open the device: a process can only watch itself, and
	 * the driver's memory for it is bounded.
	 */
	.mode	= 0444,
};

static int __init ummunotify_init(void)
{
	int ret;

	/*
	 * By default, the ranges of a user may take as much memory as epoll's
	 * watches.
	 */
	if (!max_user_regions)
		max_user_regions = totalram_pages() / 25 *
				   (PAGE_SIZE / sizeof(struct ummunotify_region));

	ummunotify_region_cache = KMEM_CACHE(ummunotify_region, SLAB_ACCOUNT);
	if (!ummunotify_region_cache)
		return -ENOMEM;

	ret = misc_register(&ummunotify_misc);
	if (ret)
		kmem_cache_destroy(ummunotify_region_cache);
	return ret;
}

static void __exit ummunotify_exit(void)
{
	misc_deregister(&ummunotify_misc);
	kmem_cache_destroy(ummunotify_region_cache);
}

module_init(ummunotify_init);
module_exit(ummunotify_exit);

MODULE_AUTHOR("The regcache authors");
MODULE_DESCRIPTION("Tells user space when the mapping of its memory changes");
MODULE_VERSION(UMMUNOTIFY_VERSION);
MODULE_LICENSE("GPL");
